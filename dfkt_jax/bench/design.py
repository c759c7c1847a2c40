"""`dfkt bench loops` and `pooling`: costs of design decisions on this machine.

loops    one student step of LeNet-5 and of the quickstart student, batch 256,
         as a program of its own and inside `lax.scan`; the measured reason for
         `loops.Loops`
pooling  the gradient of a convolution, ReLU and 2x2 max pooling in the shapes
         of LeNet-5 and of the digit networks, as XLA's window maximum, as
         `layers.max_pool` and, for LeNet-5, as `layers.PooledConv`
"""

from collections.abc import Callable, Iterator
from functools import partial
import platform
import statistics
import time
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from dfkt_jax import models
from dfkt_jax import network as net
from dfkt_jax.contracts import Batch, Context
from dfkt_jax.devices.loops import Loops
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.models import layers
from dfkt_jax.network import Classification, InputSpec

BATCH, STEPS, REPEATS = 256, 10, 3
# (side, channels in, channels out, kernel size, padding) of LeNet-5, and of a
# digit network, whose channels are too many for a PooledConv.
FEW_CHANNELS = ((28, 1, 6, 5, 2), (14, 6, 16, 5, 0))
MORE_CHANNELS = ((28, 1, 32, 3, 1), (14, 32, 64, 3, 1))
ARCHS = {"lenet5": (28, 28, 1), "convnet-half": (8, 8, 1)}


def loops() -> Iterator[dict]:
  """Yield a record of each architecture; `ratio` is rolled over unrolled."""
  return map(_loops_of, ARCHS)


def pooling() -> Iterator[dict]:
  """Yield a record of each layer."""
  return map(_pooling_of, FEW_CHANNELS + MORE_CHANNELS)


def _loops_of(arch):
  shape = ARCHS[arch]
  spec = InputSpec(*shape, mean=(0.5,), std=(0.25,), task=Classification(10))
  module = models.build(arch, spec.classes)
  teacher, student = (
    net.init(jax.random.key(seed), module, spec) for seed in (0, 1)
  )
  kd, recipe = KD(), Recipe(steps=1000)
  images = jax.random.uniform(jax.random.key(2), (BATCH, *shape))
  labels = jnp.zeros(BATCH, jnp.int32)

  def body(state, index, images, teacher):
    key = jax.random.fold_in(jax.random.key(3), index)
    batch = Batch(images, labels)
    context = Context(teacher=teacher, batch=batch, recipe=recipe)
    return kd.step(key, state, context)

  programs = {
    rolled: Loops(rolled).jit_round(Loops(rolled).repeat(body, STEPS))
    for rolled in (False, True)
  }
  begin = lambda: kd.init(
    jax.random.key(3), _copy(student), Context(recipe=recipe)
  )
  states = {rolled: begin() for rolled in programs}

  def run(rolled, repeat):
    states[rolled], infos = programs[rolled](
      states[rolled], repeat * STEPS, images, teacher
    )
    return states[rolled], infos

  seconds = _alternate({rolled: partial(run, rolled) for rolled in programs})
  alone, inside = (seconds[rolled] for rolled in (False, True))
  return {
    "framework": "jax",
    "workload": "loops",
    "arch": arch,
    "batch": BATCH,
    **_machine(),
    "seconds_per_step": round(alone, 6),
    "seconds_per_step_in_scan": round(inside, 6),
    "ratio": round(inside / alone, 2),
  }


def _pooling_of(shape):
  side, channels, width, size, padding = shape
  x = jax.random.uniform(jax.random.key(0), (BATCH, side, side, channels))
  conv = layers.conv(width, size, name="conv", bias=True, padding=padding)
  variables = conv.init(jax.random.key(1), x)
  convolve = lambda v, x: nn.relu(conv.apply(v, x))  # type: ignore
  forms: dict[str, Callable[..., Any]] = {
    "window": lambda v, x: nn.max_pool(convolve(v, x), (2, 2), strides=(2, 2)),
    "slices": lambda v, x: layers.max_pool(convolve(v, x)),
  }
  if shape in FEW_CHANNELS:
    forms["folded"] = layers.PooledConv(width, size, padding).apply

  def runner(form):
    square = lambda v, x: (form(v, x) ** 2).sum()
    gradient = jax.jit(jax.grad(square, argnums=(0, 1)))
    return lambda _: [gradient(variables, x) for _ in range(STEPS)]

  seconds = _alternate({name: runner(form) for name, form in forms.items()})
  return {
    "framework": "jax",
    "workload": "pooling",
    "input": x.shape,
    "kernel": (size, size, channels, width),
    **_machine(),
    **{f"seconds_{name}": round(s, 6) for name, s in seconds.items()},
  }


def _alternate(runs: dict) -> dict:
  """Return the median seconds a step, by name, of run(repeat) of STEPS steps.

  The runs alternate, so that other work on the machine affects all of them.
  """
  seconds: dict = {name: [] for name in runs}
  for repeat in range(REPEATS + 1):
    for name, run in runs.items():
      start = time.perf_counter()
      jax.block_until_ready(run(repeat))
      if repeat:  # the first one compiles
        seconds[name].append((time.perf_counter() - start) / STEPS)
  return {name: statistics.median(times) for name, times in seconds.items()}


def _machine():
  return {
    "device": jax.devices()[0].device_kind,
    "machine": platform.machine(),
  }


def _copy(network):
  return jax.tree.map(jnp.copy, network)
