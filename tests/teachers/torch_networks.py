"""PyTorch networks with the module names of DataFree's CIFAR code."""

import torch
from torch import nn
from torch.nn import functional as F


def randomize(model, seed=0):
  """Give every BatchNorm random statistics, gains and biases."""
  generator = torch.Generator().manual_seed(seed)
  uniform = lambda n, low, high: (
    low + (high - low) * torch.rand(n, generator=generator)
  )
  with torch.no_grad():
    for count, module in enumerate(model.modules()):
      if isinstance(module, nn.BatchNorm2d):
        n = module.num_features
        module.weight.copy_(uniform(n, 0.5, 1.5))
        module.bias.copy_(uniform(n, -0.5, 0.5))
        module.running_mean.copy_(uniform(n, -0.5, 0.5))
        module.running_var.copy_(uniform(n, 0.5, 1.5))
        module.num_batches_tracked.fill_(count)
  return model.eval()


def conv(inputs, outputs, size, stride=1, bias=False):
  return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=bias)


class WideBlock(nn.Module):
  def __init__(self, inputs, outputs, stride):
    super().__init__()
    self.bn1 = nn.BatchNorm2d(inputs)
    self.conv1 = conv(inputs, outputs, 3, stride)
    self.bn2 = nn.BatchNorm2d(outputs)
    self.conv2 = conv(outputs, outputs, 3)
    self.convShortcut = None
    if inputs != outputs:
      self.convShortcut = conv(inputs, outputs, 1, stride)

  def forward(self, x):
    y = F.relu(self.bn1(x))
    if self.convShortcut is not None:
      x = self.convShortcut(y)
    return x + self.conv2(F.relu(self.bn2(self.conv1(y))))


class WideStage(nn.Module):
  def __init__(self, n, inputs, outputs, stride):
    super().__init__()
    first = WideBlock(inputs, outputs, stride)
    rest = (WideBlock(outputs, outputs, 1) for _ in range(n - 1))
    self.layer = nn.Sequential(first, *rest)

  def forward(self, x):
    return self.layer(x)


class WideResNet(nn.Module):
  def __init__(self, depth, widen, classes):
    super().__init__()
    n, width = (depth - 4) // 6, 16 * widen
    self.conv1 = conv(3, 16, 3)
    self.block1 = WideStage(n, 16, width, 1)
    self.block2 = WideStage(n, width, 2 * width, 2)
    self.block3 = WideStage(n, 2 * width, 4 * width, 2)
    self.bn1 = nn.BatchNorm2d(4 * width)
    self.fc = nn.Linear(4 * width, classes)

  def forward(self, x):
    x = self.block3(self.block2(self.block1(self.conv1(x))))
    return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


class VGG(nn.Module):
  def __init__(self, depths, classes):
    super().__init__()
    inputs = 3
    for block, (width, depth) in enumerate(
      zip((64, 128, 256, 512, 512), depths)
    ):
      layers = []
      for _ in range(depth):
        layers.append(conv(inputs, width, 3, bias=True))
        layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU())
        inputs = width
      setattr(self, f"block{block}", nn.Sequential(*layers))
    self.classifier = nn.Linear(512, classes)

  def forward(self, x):
    x = F.max_pool2d(self.block0(x), 2)
    x = F.max_pool2d(self.block1(x), 2)
    x = F.max_pool2d(self.block2(x), 2)
    x = self.block4(self.block3(x))
    return self.classifier(x.mean((2, 3)))


class BasicBlock(nn.Module):
  def __init__(self, inputs, outputs, stride):
    super().__init__()
    self.conv1 = conv(inputs, outputs, 3, stride)
    self.bn1 = nn.BatchNorm2d(outputs)
    self.conv2 = conv(outputs, outputs, 3)
    self.bn2 = nn.BatchNorm2d(outputs)
    self.shortcut = nn.Sequential()
    if stride != 1 or inputs != outputs:
      self.shortcut = nn.Sequential(
        conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
      )

  def forward(self, x):
    y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
    return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
  def __init__(self, depths, classes):
    super().__init__()
    self.conv1 = conv(3, 64, 3)
    self.bn1 = nn.BatchNorm2d(64)
    inputs = 64
    for stage, depth in enumerate(depths):
      blocks = []
      for index in range(depth):
        stride = 2 if stage and not index else 1
        blocks.append(BasicBlock(inputs, 64 * 2**stage, stride))
        inputs = 64 * 2**stage
      setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
    self.linear = nn.Linear(inputs, classes)

  def forward(self, x):
    x = F.relu(self.bn1(self.conv1(x)))
    x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
    return self.linear(x.mean((2, 3)))
