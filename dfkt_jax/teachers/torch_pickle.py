"""A reader of the pickles inside PyTorch's files that runs nothing.

`pickletools` splits a pickle into its opcodes; the few that PyTorch writes are
executed here. A global is only ever a name on the stack, looked up in the
tables below when the pickle calls it, so a file cannot reach any object.
Storages and tensors are descriptions without bytes.
"""

import dataclasses
import math
import pickletools
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np


class BadFile(Exception):
  """A file that cannot be read; the message is a sentence without subject."""

  def __init__(
    self,
    found: str,
    expected: str = "a whole file written by torch.save",
    advice: str = "download or copy it again",
  ):
    super().__init__(f"{found}: expected {expected}; {advice}.")


@dataclasses.dataclass(frozen=True)
class ElementType:
  """One element type with its four names."""

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
  """Elements [start, start + size) of the bytes with the name `key`."""

  key: str
  dtype: np.dtype
  size: int
  start: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """A strided view of a storage, checked to lie inside it; in elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.storage.dtype.itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class Name:
  """A global in the pickle, or the unused result of calling one."""

  path: str


def load(file: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
  """Load one pickle and leave `file` after its last byte.

  Tensors become `Tensor`, every mapping becomes a plain dict, and objects that
  are allowed but have no use here (numpy scalars, dtypes, devices) become
  `Name`.

  Args:
    file: positioned at the pickle; its `read` must not allocate memory before
      it has the data (io.BytesIO does not).
    storages: is filled with the storages that the pickle refers to, by key. If
      None, a reference to a storage is an error.

  Raises:
    BadFile: the pickle wants a global that is not allowed, or contradicts
      itself.
    Exception: any other kind, if the pickle is broken.
  """
  stack: list[Any] = []
  memo: dict[int, Any] = {}
  for opcode, argument, _ in pickletools.genops(file):
    if opcode.name == "STOP":
      break
    _execute(opcode.name, argument, stack, memo, storages)
  return stack.pop()


def quote(value: Any) -> str:
  """Return a short text of one line for a value, to be used in a message.

  Text is quoted and cut short, and a `Name` is its path; of any other value
  only the type is given.
  """
  if isinstance(value, str):
    value = value if len(value) <= 80 else f"{value[:77]}..."
    return ascii(value)
  if isinstance(value, Name):
    return value.path
  return f"an object of type {type(value).__name__}"


_NOT_A_STORAGE = "refers to something outside the pickle that is not a storage"
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


def _execute(opcode, argument, stack, memo, storages):
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
        raise BadFile("has a global whose name is not text")
      stack.append(_global(f"{module}.{name}"))
    case "REDUCE":
      arguments, function = stack.pop(), stack.pop()
      stack.append(_call(function, arguments))
    case "BUILD":
      stack.pop()
      # Attributes of a mapping, such as PyTorch's version; not needed here.
      if type(stack[-1]) not in (dict, Name):
        raise BadFile(f"sets attributes of {quote(stack[-1])}")
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
    raise BadFile(f"appends to {quote(target)}")
  target.extend(items)


def _update(target, pairs):
  if type(target) is not dict:
    raise BadFile(f"sets items of {quote(target)}")
  for key, value in pairs:
    if type(key) not in _KEYS:
      raise BadFile(f"has {quote(key)} as a key")
    target[key] = value


def _global(path):
  if path not in _ALLOWED:
    raise BadFile(
      f"wants the Python name {quote(path)} (nothing was run)",
      "tensors in plain dicts, such as model.state_dict()",
      "save only the state_dict() with the program that wrote it",
    )
  return Name(path)


def _call(function, arguments):
  if type(function) is not Name or type(arguments) is not tuple:
    raise BadFile(f"calls {quote(function)}")
  if function.path in _IGNORED:
    return Name(function.path)
  if function.path not in _REBUILDERS:
    raise BadFile(f"calls {function.path}")
  return _REBUILDERS[function.path](*arguments)


def _storage(identity, storages):
  """Return the storage of a persistent id; its location is ignored.

  The id is `("storage", type, key, location, size[, view])`.
  """
  if storages is None or type(identity) is not tuple or len(identity) < 5:
    raise BadFile(_NOT_A_STORAGE)
  tag, kind, key, _, size, *view = identity
  dtype = _STORAGES.get(kind.path) if type(kind) is Name else None
  if tag != "storage" or dtype is None or type(key) is not str:
    raise BadFile(_NOT_A_STORAGE)
  root = storages.setdefault(key, Storage(key, dtype, _check_size(size)))
  if (root.dtype, root.size) != (dtype, size):
    raise BadFile(f"has two different descriptions of storage {quote(key)}")
  if view in ([], [None]):
    return root
  ((_, start, length),) = view
  if _check_size(start) + _check_size(length) > size:
    raise BadFile(f"reads past the end of the storage {quote(key)}")
  return Storage(key, dtype, length, start)


def _rebuild_tensor(storage, offset, shape, strides):
  if type(storage) is not Storage:
    raise BadFile(f"makes a tensor from {quote(storage)}")
  if type(shape) is not tuple or type(strides) is not tuple:
    raise BadFile("has a tensor whose shape is not a tuple")
  if len(shape) != len(strides) or len(shape) > 32:
    raise BadFile(
      f"has a tensor of {len(shape)} dimensions and {len(strides)} strides"
    )
  last = _check_size(offset) + sum(
    (_check_size(size) - 1) * _check_size(stride)
    for size, stride in zip(shape, strides)
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
    raise BadFile(f"makes a parameter from {quote(tensor)}")
  return tensor


def _ordered_dict(items=None):
  result: dict = {}
  if items is not None:  # Python 2 passes the pairs to the constructor.
    if type(items) is not list:
      raise BadFile(f"makes a dict from {quote(items)}")
    _update(result, items)
    # Valid files use the list once; a second copy could be a memory bomb.
    items.clear()
  return result


def _check_size(value):
  # No file is larger, and numpy's strides in bytes still fit in 64 bits.
  if type(value) is not int or not 0 <= value < 2**48:
    raise BadFile("has a size, stride or offset that is out of range")
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
# Found beside the tensors of valid files; their objects are not constructed.
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
