"""`dfkt bench`: what design decisions cost on this machine.

loops   one student step of LeNet-5 and of the quickstart student, batch 256,
        as a program of its own and inside `lax.scan`; the measured reason
        for `loops.Loops`
"""

from collections.abc import Callable, Iterator
import platform
import statistics
import time

import jax
import jax.numpy as jnp

from dfkt_jax import models
from dfkt_jax import network as net
from dfkt_jax.distillation.kd import KD
from dfkt_jax.loops import Loops
from dfkt_jax.network import InputSpec
from dfkt_jax.synthesis.contract import Batch

BATCH, STEPS, REPEATS = 256, 10, 3
ARCHS = {"lenet5": (28, 28, 1), "convnet-half": (8, 8, 1)}


def loops() -> Iterator[dict]:
  """One record an architecture; `ratio` is rolled over unrolled seconds."""
  for arch, shape in ARCHS.items():
    spec = InputSpec(*shape, mean=(0.5,), std=(0.25,), classes=10)
    module = models.build(arch, spec.classes)
    teacher, student = (
      net.init(jax.random.key(seed), module, spec) for seed in (0, 1)
    )
    kd = KD(steps=1000)
    images = jax.random.uniform(jax.random.key(2), (BATCH, *shape))
    labels = jnp.zeros(BATCH, jnp.int32)

    def body(state, index, images, teacher, kd=kd, labels=labels):
      key = jax.random.fold_in(jax.random.key(3), index)
      return kd.step(key, state, Batch(images, labels), teacher)

    programs = {
      rolled: Loops(rolled).whole(Loops(rolled).repeat(body, STEPS))
      for rolled in (False, True)
    }
    states = {rolled: kd.init(_copy(student)) for rolled in programs}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    # Alternating, so that a busy moment of the machine hits both.
    for repeat in range(REPEATS + 1):
      for rolled, program in programs.items():
        start = time.perf_counter()
        states[rolled], infos = program(
          states[rolled], repeat * STEPS, images, teacher
        )
        jax.block_until_ready((states[rolled], infos))
        if repeat:  # the first one compiles
          seconds[rolled].append((time.perf_counter() - start) / STEPS)
    alone, inside = (statistics.median(seconds[r]) for r in (False, True))
    yield {
      "framework": "jax",
      "workload": "loops",
      "arch": arch,
      "batch": BATCH,
      "device": jax.devices()[0].device_kind,
      "machine": platform.machine(),
      "seconds_per_step": round(alone, 6),
      "seconds_per_step_in_scan": round(inside, 6),
      "ratio": round(inside / alone, 2),
    }


def _copy(network):
  return jax.tree.map(jnp.copy, network)


WORKLOADS: dict[str, Callable[[], Iterator[dict]]] = {"loops": loops}
