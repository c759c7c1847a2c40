"""The four hot paths of data-free distillation, made of the library's parts.

They do the work of `../shared/bench/torch_reference.py`: the same networks (a
ResNet-20 with projection shortcuts), generator, loss terms, augmentation,
replay buffer and optimizers. The differences are small compared with the
convolutions:

  inversion  ours flips every image independently, the reference the whole
             batch; ours keeps the best images, the reference keeps none
  generator  while the generator learns, the student uses its running
             statistics, as in DFQ's released port, and in the reference those
             of the batch; the reference also computes gradients of the
             student's weights there, which it does not use
  distill    ours also measures agreement and the cross-entropy with the
             teacher's decision, for the log
  all        in bf16 ours keeps softmax, losses, statistics and the last linear
             layer in f32; the autocast of the reference has that layer in bf16
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from dfkt_jax import network as net
from dfkt_jax.bench.latents import LatentGenerator
from dfkt_jax.contracts import Context, Positive
from dfkt_jax.devices.loops import Loops
from dfkt_jax.devices.sharding import shard
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.errors import UsageError
from dfkt_jax.memory import replay_buffer
from dfkt_jax.memory.replay_buffer import ReplayBuffer
from dfkt_jax.models.resnet import ResNet
from dfkt_jax.network import Classification, InputSpec, Network, placement
from dfkt_jax.rounds import distil
from dfkt_jax.runs import checks
from dfkt_jax.synthesis.deep_inversion import DeepInversion
from dfkt_jax.synthesis.dfq import DFQ

Arch = Literal["resnet20", "resnet18", "resnet34"]
SPEC = InputSpec(
  *(32, 32, 3),
  (0.4914, 0.4822, 0.4465),
  (0.2470, 0.2435, 0.2616),
  Classification(10),
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
WIDTHS, LATENT, MEMORY = (128, 128, 64), 256, 20_000
DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}
LEARNER = KD(lr=0.1, temperature=20.0)
AUGMENTED = dataclasses.replace(LEARNER, crop_padding=4, flip=True)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a workload, with the names of the reference's flags."""

  # of the teacher; the student of resnet34 is resnet18
  arch: Arch = "resnet20"
  # images of one optimizer step
  batch: Annotated[int, Positive] = 128
  # steps that are timed, after two warm-up steps
  steps: Annotated[int, Positive] = 5
  # optimizer steps of the student in a step of `generator` and `round`
  student_steps: Annotated[int, Positive] = 5
  # optimizer steps of the synthesis in a step of `round`
  synthesis_steps: Annotated[int, Positive] = 5
  precision: Literal["f32", "bf16"] = "f32"  # of the networks' layers


class Piece(NamedTuple):
  """A pure function that a step of a workload applies `times` times."""

  name: str
  times: int
  function: Callable[..., Any]
  arguments: tuple  # shapes of arrays, with their shardings


class Workload(NamedTuple):
  """A workload whose step can be timed, and the functions it consists of."""

  state: Any  # before the first step; with `placement.abstract`, shapes
  # step(state, index) -> (state, infos), compiled; the state is donated
  step: Callable[[Any, int], tuple[Any, Any]]
  updates: int  # optimizer steps in one step
  pieces: tuple[Piece, ...]


def check(settings: Settings) -> None:
  """Check settings of a workload on the current mesh.

  Raises:
    UsageError: a count is not positive, or the batch does not divide.
  """
  checks.check(settings)
  check_shares(settings.batch, jax.sharding.get_abstract_mesh().size or 1)


def check_shares(batch: int, devices: int) -> None:
  """Check that a batch divides evenly over a number of devices.

  Raises:
    UsageError: it does not.
  """
  if batch % devices:
    raise UsageError(
      f"--batch {batch} cannot be split over {devices} devices: give a"
      f" multiple of {devices}, or fewer devices by --mesh data=N"
    )


def compute(function: Callable[..., Any], *arguments: Any) -> Any:
  """Compute the arrays of a workload; `placement.abstract` gives shapes."""
  return jax.jit(function)(*arguments)


Begin = Callable[..., Any]  # compute, or placement.abstract


def make(name: str, settings: Settings, begin: Begin = compute) -> Workload:
  """Make one of WORKLOADS on the current mesh; its step is not compiled yet.

  Raises:
    UsageError: a count is not positive, or the batch does not divide.
  """
  check(settings)
  return WORKLOADS[name](settings, begin, *networks(settings, begin))


def networks(
  settings: Settings, begin: Begin = compute
) -> tuple[Network, Network]:
  """Draw the weights of a teacher and of a student."""
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
  # The devices of the mesh may not exist; a key drawn outside jit needs them.
  return begin(lambda: jax.random.key(seed))


def inversion(
  settings: Settings, begin: Begin, teacher: Network, _: Network
) -> Workload:
  """One step of DeepInversion."""
  source = DeepInversion(
    synthesis_batch_size=settings.batch,
    image_lr=0.1,
    beta1=0.5,
    beta2=0.9,
    l2_weight=3e-8,
    image_flip=True,
  )
  key = _key(begin, 2)

  def init(key, teacher):
    return source.init(key, Context(teacher=teacher))

  def optimize(key, state, teacher):
    return source.step(key, state, Context(teacher=teacher))

  state = begin(init, key, teacher)
  step = jax.jit(optimize, donate_argnums=1)

  def advance(state, index):
    return step(jax.random.fold_in(key, index), state, teacher)

  pieces = (piece("inversion", 1, optimize, key, state, teacher),)
  return Workload(state, advance, 1, pieces)


def distill(
  settings: Settings, begin: Begin, teacher: Network, student: Network
) -> Workload:
  """One student step on images drawn from a replay buffer."""
  recipe = Recipe(batch_size=settings.batch)
  key = _key(begin, 2)

  def init(key, student):
    return AUGMENTED.init(key, student, Context(recipe=recipe))

  def learn(state, key, memory, teacher):
    draw_key, key = jax.random.split(key)
    batch = replay_buffer.draw(draw_key, memory, settings.batch)
    context = Context(teacher=teacher, batch=batch, recipe=recipe)
    return AUGMENTED.step(key, state, context)

  state, memory = begin(init, key, student), _full_memory(settings, begin)
  step = jax.jit(learn, donate_argnums=0)

  def advance(state, index):
    return step(state, jax.random.fold_in(key, index), memory, teacher)

  student_piece = piece(
    "student from replay buffer", 1, learn, state, key, memory, teacher
  )
  return Workload(state, advance, 1, (student_piece,))


def generator(
  settings: Settings, begin: Begin, teacher: Network, student: Network
) -> Workload:
  """One step of DFQ's generator, then student steps on fresh samples."""
  source = DFQ(
    synthesis_batch_size=settings.batch,
    latent=LATENT,
    generator_widths=WIDTHS,
    beta1=0.9,
  )
  recipe = Recipe(
    batch_size=settings.batch,
    synthesis_steps=1,
    student_steps=settings.student_steps,
  )
  state, advance, key = _rounds(
    source, LEARNER, recipe, begin, teacher, student
  )
  module = state.synthesis.generator.module
  module = module.clone(dtype=DTYPES[settings.precision])
  maker = dataclasses.replace(state.synthesis.generator, module=module)
  state = state._replace(synthesis=state.synthesis._replace(generator=maker))

  def learn(learner, key, synthesis, teacher):
    batch = source.sample(key, synthesis, settings.batch)
    context = Context(teacher=teacher, batch=batch, recipe=recipe)
    return LEARNER.step(key, learner, context)

  learner, synthesis = state.learner, state.synthesis
  student = LEARNER.student(learner)
  step = _synthesis_step(source, recipe)
  pieces = (
    piece("generator", 1, step, key, synthesis, teacher, student),
    piece(
      "student from generator",
      *(settings.student_steps, learn, learner, key, synthesis, teacher),
    ),
  )
  return Workload(state, advance, 1 + settings.student_steps, pieces)


def replay_round(
  settings: Settings, begin: Begin, teacher: Network, student: Network
) -> Workload:
  """One round: a batch by a generator and its latents, then student steps."""
  source = LatentGenerator(
    synthesis_batch_size=settings.batch,
    latent=LATENT,
    generator_widths=WIDTHS,
    precision=settings.precision,
  )
  recipe = Recipe(
    batch_size=settings.batch,
    synthesis_steps=settings.synthesis_steps,
    student_steps=settings.student_steps,
    memory_size=MEMORY,
  )
  state, advance, key = _rounds(
    source, AUGMENTED, recipe, begin, teacher, student
  )
  # The replay buffer is full, as in the reference.
  state = state._replace(memory=_full_memory(settings, begin))

  def learn(learner, key, memory, teacher):
    batch = replay_buffer.draw(key, memory, settings.batch)
    context = Context(teacher=teacher, batch=batch, recipe=recipe)
    return AUGMENTED.step(key, learner, context)

  def push(memory, key, synthesis):
    batch = source.sample(key, synthesis, settings.batch)
    return replay_buffer.push(memory, batch)

  synthesis, learner, memory = state
  student = AUGMENTED.student(learner)
  step = _synthesis_step(source, recipe)
  n, m = settings.synthesis_steps, settings.student_steps
  pieces = (
    piece("latents", n, step, key, synthesis, teacher, student),
    piece("push to replay buffer", 1, push, memory, key, synthesis),
    piece(
      "student from replay buffer", m, learn, learner, key, memory, teacher
    ),
  )
  return Workload(state, advance, n + m, pieces)


def _synthesis_step(source, recipe):
  """Return step(key, state, teacher, student) of a synthesizer."""

  def step(key, state, teacher, student):
    context = Context(teacher=teacher, student=student, recipe=recipe)
    return source.step(key, state, context)

  return step


def _rounds(source, learner, recipe, begin, teacher, student):
  """Return the state, the compiled round, and its key."""
  key = _key(begin, 2)

  def init(key, teacher, student):
    return distil.init(key, source, learner, recipe, teacher, student)

  state = begin(init, key, teacher, student)
  step = distil.make_round(source, learner, recipe, Loops.for_backend())

  def advance(state, index):
    return step(state, index, key, teacher, None, None)

  return state, advance, key


def _full_memory(settings: Settings, begin: Begin) -> ReplayBuffer:
  """Fill a replay buffer with random pixels."""

  def fill(key):
    memory = replay_buffer.init(MEMORY, SPEC.shape, settings.batch)
    words = jax.random.bits(key, memory.words.shape, jnp.uint32)
    words = shard(words)
    return dataclasses.replace(memory, words=words, pushed=jnp.int32(MEMORY))

  return begin(fill, _key(begin, 3))


def piece(
  name: str, times: int, function: Callable[..., Any], *arguments: Any
) -> Piece:
  """Make a piece; its arrays become shapes, as a step may have donated them."""

  def shape(x):
    sharding = x.sharding
    # An array that is not on the mesh may be put anywhere.
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
  "round": replay_round,
}
