"""The tables of `keymap` for ImageNet architectures."""

from dfkt_jax.models.efficientnet_lite import EfficientNetLite
from dfkt_jax.models.imagenet_resnet import ImageNetResNet
from dfkt_jax.models.imagenet_vgg import MAP, ImageNetVGG
from dfkt_jax.models.mobilenet import MobileNetV2
from dfkt_jax.models.vision_transformer import VisionTransformer
from dfkt_jax.network import InputSpec
from dfkt_jax.teachers.layouts import Layer


def resnet(module: ImageNetResNet, spec: InputSpec) -> list[Layer]:
  """conv1, bn1, layer1.0.{conv1,bn1,...,downsample.0,downsample.1}, fc.

  timm uses the same names.
  """
  convolutions = 3 if module.block == "bottleneck" else 2
  result = [
    Layer("conv", "conv1", ("conv1",)),
    Layer("batch_norm", "bn1", ("bn1",)),
  ]
  for stage, depth in enumerate(module.depths, 1):
    for index in range(depth):
      torch, linen = f"layer{stage}.{index}", f"layer{stage}_{index}"
      for n in range(1, convolutions + 1):
        result += [
          Layer("conv", f"{torch}.conv{n}", (linen, f"conv{n}")),
          Layer("batch_norm", f"{torch}.bn{n}", (linen, f"bn{n}")),
        ]
      # The first bottleneck block has four times the channels of its input.
      if index == 0 and (stage > 1 or module.block == "bottleneck"):
        result += [
          Layer("conv", f"{torch}.downsample.0", (linen, "shortcut_conv")),
          Layer("batch_norm", f"{torch}.downsample.1", (linen, "shortcut_bn")),
        ]
  return [*result, Layer("linear", "fc", ("linear",))]


def vgg(module: ImageNetVGG, spec: InputSpec) -> list[Layer]:
  """features.0 (convolution), features.1 (BatchNorm), ..., classifier.6.

  ReLU, pooling and dropout are numbered too.
  """
  result, position = [], 0
  for block, depth in enumerate(module.depths):
    for index in range(depth):
      conv, norm = f"features.{position}", f"features.{position + 1}"
      path = f"block{block}"
      result += [
        Layer("conv", conv, (path, f"conv{index}"), bias=True),
        Layer("batch_norm", norm, (path, f"bn{index}")),
      ]
      position += 3
    position += 1
  flat = (module.widths[-1], MAP, MAP)
  return [
    *result,
    Layer("flatten_linear", "classifier.0", ("fc1",), map_shape=flat),
    Layer("linear", "classifier.3", ("fc2",)),
    Layer("linear", "classifier.6", ("fc3",)),
  ]


def _conv_bn(conv: str, norm: str, path: tuple[str, ...]) -> list[Layer]:
  """Return a convolution and its BatchNorm in an inverted residual network."""
  *block, name = path
  return [
    Layer("conv", conv, (*block, f"{name}_conv")),
    Layer("batch_norm", norm, (*block, f"{name}_bn")),
  ]


def torchvision_mobilenet(module: MobileNetV2, spec: InputSpec) -> list[Layer]:
  """features.0.{0,1}, features.1.conv..., features.18.{0,1}, classifier.1.

  In a block conv.0 expands, conv.1 is depthwise and conv.2 projects, with a
  BatchNorm in conv.0.1, conv.1.1 and conv.3; the first block does not expand.
  """
  result = _conv_bn("features.0.0", "features.0.1", ("stem",))
  block = 1
  for number, stage in enumerate(module.stages, 1):
    for index in range(stage.depth):
      prefix, linen = f"features.{block}.conv", f"stage{number}_{index}"
      names = ["expand", "depthwise"] if stage.expand > 1 else ["depthwise"]
      for position, name in enumerate(names):
        torch = f"{prefix}.{position}"
        result += _conv_bn(f"{torch}.0", f"{torch}.1", (linen, name))
      position = len(names)
      conv, norm = f"{prefix}.{position}", f"{prefix}.{position + 1}"
      result += _conv_bn(conv, norm, (linen, "project"))
      block += 1
  last = f"features.{block}"
  return [
    *result,
    *_conv_bn(f"{last}.0", f"{last}.1", ("last",)),
    Layer("linear", "classifier.1", ("linear",)),
  ]


def timm_inverted_residuals(
  module: MobileNetV2 | EfficientNetLite, spec: InputSpec
) -> list[Layer]:
  """conv_stem, bn1, blocks.0.0.{conv_dw,...}, conv_head, bn2, classifier."""
  result = _conv_bn("conv_stem", "bn1", ("stem",))
  for number, stage in enumerate(module.stages, 1):
    names = [("expand", "conv_pw"), ("depthwise", "conv_dw")]
    names += [("project", "conv_pwl")]
    if stage.expand == 1:
      names = [("depthwise", "conv_dw"), ("project", "conv_pw")]
    for index in range(stage.depth):
      prefix, linen = f"blocks.{number - 1}.{index}", f"stage{number}_{index}"
      for position, (name, torch) in enumerate(names, 1):
        conv, norm = f"{prefix}.{torch}", f"{prefix}.bn{position}"
        result += _conv_bn(conv, norm, (linen, name))
  return [
    *result,
    *_conv_bn("conv_head", "bn2", ("last",)),
    Layer("linear", "classifier", ("linear",)),
  ]


def efficientnet_pytorch(
  module: EfficientNetLite, spec: InputSpec
) -> list[Layer]:
  """_conv_stem, _bn0, _blocks.0.{_depthwise_conv,...}, _conv_head, _bn1, _fc.

  The BatchNorms of a block are _bn0, _bn1 and _bn2; the first block does not
  expand and has no _bn0.
  """
  result = _conv_bn("_conv_stem", "_bn0", ("stem",))
  block = 0
  for number, stage in enumerate(module.stages, 1):
    for index in range(stage.depth):
      for position, name in enumerate(("expand", "depthwise", "project")):
        if name == "expand" and stage.expand == 1:
          continue
        prefix, linen = f"_blocks.{block}", f"stage{number}_{index}"
        conv, norm = f"{prefix}._{name}_conv", f"{prefix}._bn{position}"
        result += _conv_bn(conv, norm, (linen, name))
      block += 1
  return [
    *result,
    *_conv_bn("_conv_head", "_bn1", ("last",)),
    Layer("linear", "_fc", ("linear",)),
  ]


def torchvision_vit(module: VisionTransformer, spec: InputSpec) -> list[Layer]:
  """class_token, conv_proj, encoder.pos_embedding, encoder.layers..., heads."""
  return _torchvision_vit(module, mlp=("mlp.0", "mlp.3"))


def torchvision_v1_vit(
  module: VisionTransformer, spec: InputSpec
) -> list[Layer]:
  """Names in the file vit_b_16-c867db91.pth: mlp.linear_1 and mlp.linear_2."""
  return _torchvision_vit(module, mlp=("mlp.linear_1", "mlp.linear_2"))


def _torchvision_vit(module, mlp):
  result = [
    Layer("array", "class_token", ("tokens", "class_token")),
    Layer("conv", "conv_proj", ("tokens", "patches"), bias=True),
    Layer("array", "encoder.pos_embedding", ("tokens", "positions")),
  ]
  for index in range(module.depth):
    torch = f"encoder.layers.encoder_layer_{index}"
    linen, attention = f"block{index}", f"{torch}.self_attention"
    fc1, fc2 = (f"{torch}.{name}" for name in mlp)
    result += [
      Layer("layer_norm", f"{torch}.ln_1", (linen, "norm1")),
      Layer("packed_linear", f"{attention}.in_proj", (linen, "qkv")),
      Layer("linear", f"{attention}.out_proj", (linen, "out")),
      Layer("layer_norm", f"{torch}.ln_2", (linen, "norm2")),
      Layer("linear", fc1, (linen, "fc1")),
      Layer("linear", fc2, (linen, "fc2")),
    ]
  return [
    *result,
    Layer("layer_norm", "encoder.ln", ("norm",)),
    Layer("linear", "heads.head", ("linear",)),
  ]


def timm_vit(module: VisionTransformer, spec: InputSpec) -> list[Layer]:
  """cls_token, pos_embed, patch_embed.proj, blocks.0..., norm, head."""
  result = [
    Layer("array", "cls_token", ("tokens", "class_token")),
    Layer("array", "pos_embed", ("tokens", "positions")),
    Layer("conv", "patch_embed.proj", ("tokens", "patches"), bias=True),
  ]
  for index in range(module.depth):
    torch, linen = f"blocks.{index}", f"block{index}"
    result += [
      Layer("layer_norm", f"{torch}.norm1", (linen, "norm1")),
      Layer("linear", f"{torch}.attn.qkv", (linen, "qkv")),
      Layer("linear", f"{torch}.attn.proj", (linen, "out")),
      Layer("layer_norm", f"{torch}.norm2", (linen, "norm2")),
      Layer("linear", f"{torch}.mlp.fc1", (linen, "fc1")),
      Layer("linear", f"{torch}.mlp.fc2", (linen, "fc2")),
    ]
  return [
    *result,
    Layer("layer_norm", "norm", ("norm",)),
    Layer("linear", "head", ("linear",)),
  ]
