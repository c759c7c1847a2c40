"""The four hot paths of data-free distillation, out of the library's pieces.

They do the work of `../shared/bench/torch_reference.py`: the same networks (a
ResNet-20 with projection shortcuts), generator, loss terms, augmentation, pool
and optimisers. What differs, all of it small beside the convolutions:

  inversion  ours flips every image by a coin of its own, the reference the
             whole batch; ours keeps the best images, the reference none
  generator  the student answers the generator on its running statistics, as
             DFQ's released port has it, and in the reference on the batch's;
             the reference also computes gradients of the student's weights
             there, which nobody reads
  distill    ours also measures agreement and the cross-entropy with the
             teacher's decision, for the log
  all        in bf16 ours keeps softmax, losses, statistics and the last linear
             layer in f32; the reference's autocast has that layer in bf16
"""

from collections.abc import Callable, Mapping
import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from dfkt_jax import network as net
from dfkt_jax import parallel, placement
from dfkt_jax.bench.latents import LatentGenerator
from dfkt_jax.distillation import pool as pools
from dfkt_jax.distillation import transfer as transfers
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.pool import Pool
from dfkt_jax.distillation.transfer import Transfer
from dfkt_jax.errors import UsageError
from dfkt_jax.loops import Loops
from dfkt_jax.models.resnet import ResNet
from dfkt_jax.network import InputSpec, Network
from dfkt_jax.synthesis.deep_inversion import DeepInversion
from dfkt_jax.synthesis.dfq import DFQ

Arch = Literal["resnet20", "resnet18", "resnet34"]
SPEC = InputSpec(
  *(32, 32, 3), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 10
)
NETWORKS: Mapping[str, tuple[int, tuple[int, ...]]] = {  # width, depths
  "resnet20": (16, (3, 3, 3)),
  "resnet18": (64, (2, 2, 2, 2)),
  "resnet34": (64, (3, 4, 6, 3)),
}
STUDENTS: Mapping[str, str] = {
  "resnet20": "resnet20",
  "resnet18": "resnet18",
  "resnet34": "resnet18",
}
WIDTHS, LATENT, POOL = (128, 128, 64), 256, 20_000
DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}
STUDENT = KD(lr=0.1, temperature=20.0)
AUGMENTED = dataclasses.replace(STUDENT, crop_padding=4, flip=True)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of a workload; as the reference's flags."""

  arch: Arch = "resnet20"  # the teacher; its student is resnet18 for resnet34
  batch: int = 128  # images of one optimiser step
  steps: int = 5  # timed, after two that are not
  student_steps: int = 5  # of `generator` and `round`
  synthesis_steps: int = 5  # of `round`
  precision: Literal["f32", "bf16"] = "f32"  # of the networks' layers


class Piece(NamedTuple):
  """A pure function that a workload's step applies so many times."""

  name: str
  times: int
  function: Callable[..., Any]
  arguments: tuple  # shapes of arrays, with their shardings


class Workload(NamedTuple):
  state: Any  # before the first step; of an outline, shapes
  # step(state, index) -> (state, infos), compiled; the state is donated
  step: Callable[[Any, int], tuple[Any, Any]]
  updates: int  # optimiser steps that one step takes
  pieces: tuple[Piece, ...]


def check(settings: Settings) -> None:
  """Raises a UsageError for settings that describe no workload."""
  for field in dataclasses.fields(settings):
    value = getattr(settings, field.name)
    if isinstance(value, int) and value < 1:
      flag = field.name.replace("_", "-")
      raise UsageError(f"--{flag} is {value}: give a whole number from 1 up")
  check_shares(settings.batch, jax.sharding.get_abstract_mesh().size or 1)


def check_shares(batch: int, devices: int) -> None:
  """Raises a UsageError for a batch that so many devices cannot share."""
  if batch % devices:
    raise UsageError(
      f"--batch {batch} cannot be split over {devices} devices: give a"
      f" multiple of {devices}, or fewer devices by --mesh data=N"
    )


def compute(function: Callable[..., Any], *arguments: Any) -> Any:
  """What a workload begins with; `placement.outline` has its shapes alone."""
  return jax.jit(function)(*arguments)


Begin = Callable[..., Any]  # compute, or placement.outline


def make(name: str, settings: Settings, begin: Begin = compute) -> Workload:
  """One of WORKLOADS on the current mesh, nothing of its step compiled yet.

  Raises:
    UsageError: a count is not one, or the batch does not divide.
  """
  check(settings)
  return WORKLOADS[name](settings, begin, *networks(settings, begin))


def networks(
  settings: Settings, begin: Begin = compute
) -> tuple[Network, Network]:
  """Freshly drawn teacher and student."""
  return (
    _network(settings, begin, settings.arch, 0),
    _network(settings, begin, STUDENTS[settings.arch], 1),
  )


def _network(settings, begin, arch, seed) -> Network:
  width, depths = NETWORKS[arch]
  dtype = DTYPES[settings.precision]
  module = ResNet(SPEC.classes, depths, width, "projection", dtype)
  init = lambda key: placement.constrain(net.init(key, module, SPEC))
  return begin(init, _key(begin, seed))


def _key(begin, seed):
  # Outside jit, one could not be drawn on a mesh of described devices.
  return begin(lambda: jax.random.key(seed))


def inversion(
  settings: Settings, begin: Begin, teacher: Network, _: Network
) -> Workload:
  method = DeepInversion(
    synthesis_batch_size=settings.batch,
    image_lr=0.1,
    beta1=0.5,
    beta2=0.9,
    l2_weight=3e-8,
    image_flip=True,
  )
  key = _key(begin, 2)
  state = begin(partial(method.init, student=None), key, teacher)
  step = jax.jit(method.step, donate_argnums=1)

  def advance(state, index):
    return step(jax.random.fold_in(key, index), state, teacher, None)

  pieces = (piece("inversion", 1, method.step, key, state, teacher, None),)
  return Workload(state, advance, 1, pieces)


def distill(
  settings: Settings, begin: Begin, teacher: Network, student: Network
) -> Workload:
  key = _key(begin, 2)
  state, pool = begin(AUGMENTED.init, student), _full_pool(settings, begin)

  def learn(state, key, pool, teacher):
    draw_key, key = jax.random.split(key)
    batch = pools.draw(draw_key, pool, settings.batch)
    return AUGMENTED.step(key, state, batch, teacher)

  step = jax.jit(learn, donate_argnums=0)

  def advance(state, index):
    return step(state, jax.random.fold_in(key, index), pool, teacher)

  pieces = (piece("student from pool", 1, learn, state, key, pool, teacher),)
  return Workload(state, advance, 1, pieces)


def generator(
  settings: Settings, begin: Begin, teacher: Network, student: Network
) -> Workload:
  method = DFQ(
    synthesis_batch_size=settings.batch,
    latent=LATENT,
    generator_widths=WIDTHS,
    beta1=0.9,
  )
  transfer = Transfer(
    STUDENT,
    settings.batch,
    synthesis_steps=1,
    student_steps=settings.student_steps,
  )
  state, advance, key = _rounds(method, transfer, begin, teacher, student)
  module = state.synthesis.generator.module
  module = module.clone(dtype=DTYPES[settings.precision])
  maker = dataclasses.replace(state.synthesis.generator, module=module)
  state = state._replace(synthesis=state.synthesis._replace(generator=maker))

  def learn(learner, key, synthesis, teacher):
    batch = method.sample(key, synthesis, settings.batch)
    return STUDENT.step(key, learner, batch, teacher)

  learner, synthesis = state.learner, state.synthesis
  student = learner.student
  pieces = (
    piece("generator", 1, method.step, key, synthesis, teacher, student),
    piece(
      "student from generator",
      *(settings.student_steps, learn, learner, key, synthesis, teacher),
    ),
  )
  return Workload(state, advance, 1 + settings.student_steps, pieces)


def transfer_round(
  settings: Settings, begin: Begin, teacher: Network, student: Network
) -> Workload:
  method = LatentGenerator(
    synthesis_batch_size=settings.batch,
    latent=LATENT,
    generator_widths=WIDTHS,
    precision=settings.precision,
  )
  transfer = Transfer(
    AUGMENTED,
    settings.batch,
    synthesis_steps=settings.synthesis_steps,
    student_steps=settings.student_steps,
    pool_size=POOL,
  )
  state, advance, key = _rounds(method, transfer, begin, teacher, student)
  # As the reference, from a full pool.
  state = state._replace(pool=_full_pool(settings, begin))

  def learn(learner, key, pool, teacher):
    batch = pools.draw(key, pool, settings.batch)
    return AUGMENTED.step(key, learner, batch, teacher)

  def harvest(pool, key, synthesis):
    return pools.push(pool, method.sample(key, synthesis, settings.batch))

  synthesis, learner, pool = state
  student = learner.student
  n, m = settings.synthesis_steps, settings.student_steps
  pieces = (
    piece("latents", n, method.step, key, synthesis, teacher, student),
    piece("push to pool", 1, harvest, pool, key, synthesis),
    piece("student from pool", m, learn, learner, key, pool, teacher),
  )
  return Workload(state, advance, n + m, pieces)


def _rounds(method, transfer, begin, teacher, student):
  """The state, the compiled round, and the key it is given."""
  key = _key(begin, 2)
  init = lambda key, *networks: transfers.init(key, method, transfer, *networks)
  state = begin(init, key, teacher, student)
  step = transfers.make_round(method, transfer, Loops.for_backend())
  return state, lambda state, index: step(state, index, key, teacher), key


def _full_pool(settings: Settings, begin: Begin) -> Pool:
  """Of random pixels."""

  def fill(key):
    pool = pools.init(POOL, SPEC.shape, settings.batch)
    words = jax.random.bits(key, pool.words.shape, jnp.uint32)
    words = parallel.split(words)
    return dataclasses.replace(pool, words=words, pushed=jnp.int32(POOL))

  return begin(fill, _key(begin, 3))


def piece(name, times, function, *arguments) -> Piece:
  """With shapes in the place of arrays, which a step will have donated."""

  def shape(x):
    sharding = getattr(x, "sharding", None)
    # What is not on the mesh may go anywhere.
    if not isinstance(sharding, NamedSharding):
      sharding = None
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return Piece(name, times, function, jax.tree.map(shape, arguments))


WORKLOADS: Mapping[
  str, Callable[[Settings, Begin, Network, Network], Workload]
] = {
  "inversion": inversion,
  "generator": generator,
  "distill": distill,
  "round": transfer_round,
}
