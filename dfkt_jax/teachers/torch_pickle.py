"""The pickles inside PyTorch's files, read without running anything.

`pickletools` splits a pickle into its opcodes; the few that PyTorch writes are
followed here. A global is only ever a name on the stack, looked up in the
tables below when the pickle calls it, so there is no object a file could reach
for. Storages and tensors stay descriptions until their bytes are at hand.
"""

import dataclasses
import math
import pickletools
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np


class BadFile(Exception):
  """One sentence without its subject: the file is not what was expected."""

  def __init__(
    self,
    found: str,
    expected: str = "a whole file written by torch.save",
    advice: str = "download or copy it again",
  ):
    super().__init__(f"{found}: expected {expected}; {advice}.")


@dataclasses.dataclass(frozen=True)
class ElementType:
  """One element type under its four names."""

  storage: str
  torch: str
  safetensors: str
  dtype: np.dtype


ELEMENT_TYPES = (
  ElementType("DoubleStorage", "float64", "F64", np.dtype("<f8")),
  ElementType("FloatStorage", "float32", "F32", np.dtype("<f4")),
  ElementType("HalfStorage", "float16", "F16", np.dtype("<f2")),
  ElementType(
    "BFloat16Storage", "bfloat16", "BF16", np.dtype(ml_dtypes.bfloat16)
  ),
  ElementType("LongStorage", "int64", "I64", np.dtype("<i8")),
  ElementType("IntStorage", "int32", "I32", np.dtype("<i4")),
  ElementType("ShortStorage", "int16", "I16", np.dtype("<i2")),
  ElementType("CharStorage", "int8", "I8", np.dtype("i1")),
  ElementType("ByteStorage", "uint8", "U8", np.dtype("u1")),
  ElementType("BoolStorage", "bool", "BOOL", np.dtype("?")),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
  """Elements [start, start + size) of the bytes that the file calls `key`."""

  key: str
  dtype: np.dtype
  size: int
  start: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """A strided window of a storage, known to lie inside it; in elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.storage.dtype.itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class Name:
  """A global that the pickle named, or an object made by one we do not need."""

  path: str


def load(file: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
  """The object of one pickle; `file` is left behind its last byte.

  Tensors are `Tensor`, every mapping is a plain dict, and what is allowed but
  has no use here (numpy scalars, dtypes, devices) is a `Name`.

  Args:
    file: positioned at the pickle; its `read` must not allocate ahead of the
      data, as io.BytesIO does not.
    storages: gets the storages that the pickle refers to, by key. None: it may
      refer to none.

  Raises:
    BadFile: the pickle wants a global that is not allowed, or contradicts
      itself.
    Exception: of any other kind when the pickle is broken.
  """
  stack: list[Any] = []
  memo: dict[int, Any] = {}
  for opcode, argument, _ in pickletools.genops(file):
    if opcode.name == "STOP":
      break
    _step(opcode.name, argument, stack, memo, storages)
  return stack.pop()


def shown(value: Any) -> str:
  """`value` for a message: quoted, on one line and short."""
  if isinstance(value, str):
    value = value if len(value) <= 80 else f"{value[:77]}..."
    return ascii(value)
  return value.path if isinstance(value, Name) else type(value).__name__


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LITERALS = frozenset(
  {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
  }
)
# Hashing a deeply nested tuple overflows the C stack, so no tuple is a key.
_KEYS = (str, int, float, bool, bytes, type(None))


def _step(opcode, argument, stack, memo, storages):
  match opcode:
    case "PROTO" | "FRAME":
      pass
    case _ if opcode in _LITERALS:
      stack.append(argument)
    case "BINSTRING" | "SHORT_BINSTRING":  # Python 2's str
      text = argument.encode("latin-1")
      stack.append(text.decode("utf-8", "surrogateescape"))
    case _ if opcode in _CONSTANTS:
      stack.append(_CONSTANTS[opcode])
    case _ if opcode in _EMPTY:
      stack.append(_EMPTY[opcode]())
    case _ if opcode in _TUPLES:
      items = [stack.pop() for _ in range(_TUPLES[opcode])]
      stack.append(tuple(reversed(items)))
    case "MARK":
      stack.append(_MARK)
    case "TUPLE":
      stack.append(tuple(_pop_to_mark(stack)))
    case "APPEND":
      item = stack.pop()
      _extend(stack[-1], [item])
    case "APPENDS":
      items = _pop_to_mark(stack)
      _extend(stack[-1], items)
    case "SETITEM":
      value, key = stack.pop(), stack.pop()
      _update(stack[-1], [(key, value)])
    case "SETITEMS":
      items = _pop_to_mark(stack)
      _update(stack[-1], zip(items[::2], items[1::2], strict=True))
    case "BINPUT" | "LONG_BINPUT":
      memo[argument] = stack[-1]
    case "MEMOIZE":
      memo[len(memo)] = stack[-1]
    case "BINGET" | "LONG_BINGET":
      stack.append(memo[argument])
    case "GLOBAL":
      stack.append(_global(argument.replace(" ", ".", 1)))
    case "STACK_GLOBAL":
      name, module = stack.pop(), stack.pop()
      if type(name) is not str or type(module) is not str:
        raise BadFile("names a global by something else than text")
      stack.append(_global(f"{module}.{name}"))
    case "REDUCE":
      arguments, function = stack.pop(), stack.pop()
      stack.append(_call(function, arguments))
    case "BUILD":
      stack.pop()
      # Attributes of a mapping, PyTorch's version notes; no use here.
      if type(stack[-1]) not in (dict, Name):
        raise BadFile(f"sets attributes of a {shown(stack[-1])}")
    case "BINPERSID":
      stack.append(_storage(stack.pop(), storages))
    case _:
      raise BadFile(f"uses {opcode}, an opcode that torch.save does not write")


def _pop_to_mark(stack):
  items = []
  while (item := stack.pop()) is not _MARK:
    items.append(item)
  return items[::-1]


def _extend(target, items):
  if type(target) is not list:
    raise BadFile(f"appends to a {shown(target)}")
  target.extend(items)


def _update(target, pairs):
  if type(target) is not dict:
    raise BadFile(f"sets items of a {shown(target)}")
  for key, value in pairs:
    if type(key) not in _KEYS:
      raise BadFile(f"has a {shown(key)} as a key")
    target[key] = value


def _global(path):
  if path not in _ALLOWED:
    raise BadFile(
      f"wants the Python name {shown(path)} (nothing was run)",
      "tensors in plain dicts, as model.state_dict() has them",
      "save only the state_dict() where the model comes from",
    )
  return Name(path)


def _call(function, arguments):
  if type(function) is not Name or type(arguments) is not tuple:
    raise BadFile(f"calls a {shown(function)}")
  if function.path in _IGNORED:
    return Name(function.path)
  if function.path not in _REBUILDERS:
    raise BadFile(f"calls {function.path}")
  return _REBUILDERS[function.path](*arguments)


def _storage(identity, storages):
  """`("storage", type, key, location, size[, view])`; the place is ignored."""
  if storages is None or type(identity) is not tuple or len(identity) < 5:
    raise BadFile("refers to something outside the pickle that is no storage")
  tag, kind, key, _, size, *view = identity
  dtype = _STORAGES.get(kind.path) if type(kind) is Name else None
  if tag != "storage" or dtype is None or type(key) is not str:
    raise BadFile("refers to something outside the pickle that is no storage")
  root = storages.setdefault(key, Storage(key, dtype, _count(size)))
  if (root.dtype, root.size) != (dtype, size):
    raise BadFile(f"describes the storage {shown(key)} in two ways")
  if view in ([], [None]):
    return root
  ((_, start, length),) = view
  if _count(start) + _count(length) > size:
    raise BadFile(f"looks past the end of the storage {shown(key)}")
  return Storage(key, dtype, length, start)


def _rebuild_tensor(storage, offset, shape, strides):
  if type(storage) is not Storage:
    raise BadFile(f"makes a tensor of a {shown(storage)}")
  if type(shape) is not tuple or type(strides) is not tuple:
    raise BadFile("has a tensor whose shape is no tuple")
  if len(shape) != len(strides) or len(shape) > 32:
    raise BadFile(
      f"has a tensor of {len(shape)} dimensions and {len(strides)} strides"
    )
  last = _count(offset) + sum(
    (_count(size) - 1) * _count(stride) for size, stride in zip(shape, strides)
  )
  if 0 not in shape and last >= storage.size:
    raise BadFile(
      f"has a tensor of shape {shape} that reaches element {last} of a storage"
      f" of {storage.size}"
    )
  return Tensor(storage, offset, shape, strides)


def _rebuild_tensor_v2(
  storage, offset, shape, strides, requires_grad, hooks, metadata=None
):
  # The metadata are the bits "conjugate" and "negate".
  if metadata is not None and metadata != {}:
    raise BadFile("has a tensor with lazy negation or conjugation")
  return _rebuild_tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor, requires_grad, hooks):
  if type(tensor) is not Tensor:
    raise BadFile(f"makes a parameter of a {shown(tensor)}")
  return tensor


def _ordered_dict(items=None):
  result: dict = {}
  if items is not None:  # Python 2 passes the pairs to the constructor.
    if type(items) is not list:
      raise BadFile(f"makes a dict of a {shown(items)}")
    _update(result, items)
    # Used once by honest files; a second copy could be a memory bomb.
    items.clear()
  return result


def _count(value):
  # No file is larger, and numpy's strides in bytes still fit 64 bits.
  if type(value) is not int or not 0 <= value < 2**48:
    raise BadFile("has a size, stride or offset that is no reasonable number")
  return value


_STORAGES = {
  f"{module}.{kind.storage}": kind.dtype
  for kind in ELEMENT_TYPES
  for module in ("torch", "torch.cuda")
}
_REBUILDERS = {
  "collections.OrderedDict": _ordered_dict,
  "torch._utils._rebuild_tensor": _rebuild_tensor,
  "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
  "torch._utils._rebuild_parameter": _rebuild_parameter,
}
# Found beside the tensors of honest files; what they would make is not made.
_IGNORED = frozenset(
  {
    "collections.Counter",
    "torch.Size",
    "torch.device",
    "numpy.dtype",
    "numpy.ndarray",
    "_codecs.encode",
    *(
      f"numpy.{core}.multiarray.{function}"
      for core in ("core", "_core")
      for function in ("scalar", "_reconstruct")
    ),
    *(f"torch.{kind.torch}" for kind in ELEMENT_TYPES),
  }
)
_ALLOWED = _IGNORED | _REBUILDERS.keys() | _STORAGES.keys()
