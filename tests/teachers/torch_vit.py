"""PyTorch vision transformers with the module names of published networks.

The names are those of torchvision's code, of its older file, and of timm.
"""

import torch
from torch import nn
from torch.nn import functional as F


class MLP(nn.Module):
  def __init__(self, width, names):
    super().__init__()
    self.names = names
    setattr(self, names[0], nn.Linear(width, 4 * width))
    setattr(self, names[1], nn.Linear(4 * width, width))

  def forward(self, x):
    first, second = (getattr(self, name) for name in self.names)
    return second(F.gelu(first(x)))


class TorchvisionEncoderBlock(nn.Module):
  names = ("0", "3")

  def __init__(self, width, heads):
    super().__init__()
    self.ln_1 = nn.LayerNorm(width, eps=1e-6)
    self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
    self.ln_2 = nn.LayerNorm(width, eps=1e-6)
    self.mlp = MLP(width, self.names)

  def forward(self, x):
    y = self.ln_1(x)
    x = x + self.self_attention(y, y, y, need_weights=False)[0]
    return x + self.mlp(self.ln_2(x))


class TorchvisionV1EncoderBlock(TorchvisionEncoderBlock):
  names = ("linear_1", "linear_2")


class TorchvisionEncoder(nn.Module):
  block = TorchvisionEncoderBlock

  def __init__(self, width, depth, heads, positions):
    super().__init__()
    self.pos_embedding = nn.Parameter(torch.randn(1, positions, width))
    self.layers = nn.Sequential()
    for index in range(depth):
      name = f"encoder_layer_{index}"
      self.layers.add_module(name, self.block(width, heads))
    self.ln = nn.LayerNorm(width, eps=1e-6)

  def forward(self, x):
    return self.ln(self.layers(x + self.pos_embedding))


class TorchvisionV1Encoder(TorchvisionEncoder):
  block = TorchvisionV1EncoderBlock


class TorchvisionViT(nn.Module):
  encoder_class = TorchvisionEncoder

  def __init__(self, width, depth, heads, positions, classes=1000):
    super().__init__()
    self.conv_proj = nn.Conv2d(3, width, 16, 16)
    self.class_token = nn.Parameter(torch.randn(1, 1, width))
    self.encoder = self.encoder_class(width, depth, heads, positions)
    self.heads = nn.Sequential()
    self.heads.add_module("head", nn.Linear(width, classes))

  def forward(self, x):
    x = self.conv_proj(x).flatten(2).transpose(1, 2)
    x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
    return self.heads(self.encoder(x)[:, 0])


class TorchvisionV1ViT(TorchvisionViT):
  encoder_class = TorchvisionV1Encoder


class TimmAttention(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.qkv = nn.Linear(width, 3 * width)
    self.proj = nn.Linear(width, width)

  def forward(self, x):
    b, n, width = x.shape
    packed = self.qkv(x).reshape(b, n, 3, self.heads, width // self.heads)
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(
      -1
    )
    return self.proj((weights @ v).transpose(1, 2).reshape(b, n, width))


class TimmBlock(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.norm1 = nn.LayerNorm(width, eps=1e-6)
    self.attn = TimmAttention(width, heads)
    self.norm2 = nn.LayerNorm(width, eps=1e-6)
    self.mlp = MLP(width, ("fc1", "fc2"))

  def forward(self, x):
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x))


class TimmPatches(nn.Module):
  def __init__(self, width):
    super().__init__()
    self.proj = nn.Conv2d(3, width, 16, 16)

  def forward(self, x):
    return self.proj(x).flatten(2).transpose(1, 2)


class TimmViT(nn.Module):
  def __init__(self, width, depth, heads, positions, classes=1000):
    super().__init__()
    self.cls_token = nn.Parameter(torch.randn(1, 1, width))
    self.pos_embed = nn.Parameter(torch.randn(1, positions, width))
    self.patch_embed = TimmPatches(width)
    self.blocks = nn.Sequential(
      *(TimmBlock(width, heads) for _ in range(depth))
    )
    self.norm = nn.LayerNorm(width, eps=1e-6)
    self.head = nn.Linear(width, classes)

  def forward(self, x):
    x = self.patch_embed(x)
    x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
    return self.head(self.norm(self.blocks(x + self.pos_embed))[:, 0])


VIT = {
  "torchvision": TorchvisionViT,
  "torchvision-v1": TorchvisionV1ViT,
  "timm": TimmViT,
}
