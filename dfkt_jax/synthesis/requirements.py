"""Refusals of a teacher, a student or a batch that a synthesizer cannot use.

Each raises UsageError, in one sentence that names the flag.
"""

from flax.errors import ScopeParamShapeError
import jax

from dfkt_jax import network as net
from dfkt_jax.errors import UsageError
from dfkt_jax.network import Network


def require_batch_norm(method: str, teacher: Network, rest: str = "") -> None:
  """Require a teacher with BatchNorm, for a term that matches its statistics.

  `rest` says what the method does without that term, such as " for the others".
  """
  if not teacher.batch_stats:
    raise UsageError(
      f"{method} matches BatchNorm statistics and this teacher has no"
      " BatchNorm: give a teacher that has BatchNorm, or --bn-weight 0" + rest
    )


def require_student(purpose: str, student: Network | None, flag: str) -> None:
  """Require a student, for the term with the weight `flag`."""
  if student is None:
    raise UsageError(f"{purpose}: give --student NETWORK_DIR, or {flag} 0")


def require_equal_parts(batch_size: int, micro_batch: int) -> None:
  """Require that a batch divides into parts of `micro_batch`; 0: no parts."""
  if micro_batch and batch_size % micro_batch:
    raise UsageError(
      f"--micro-batch is {micro_batch} and --synthesis-batch-size is"
      f" {batch_size}: give a divisor of the latter, or 0"
    )


def require_half_size(network: Network, share: float) -> None:
  """Require a network that takes images of half its height and width."""
  height, width, channels = network.spec.shape
  half = jax.ShapeDtypeStruct((1, height // 2, width // 2, channels), "float32")
  try:
    jax.eval_shape(net.logits, network, half)
    fits = height % 2 == 0 and width % 2 == 0
  except (ScopeParamShapeError, UsageError):
    fits = False
  if not fits:
    raise UsageError(
      f"--half-size-share is {share} and the architecture"
      f" {type(network.module).__name__} cannot take half of {height}x{width}"
      " pixels: give --half-size-share 0"
    )
