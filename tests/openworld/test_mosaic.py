"""MosaicKD's adversary: its losses by hand, and the rates it learns by."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.contracts import Context, Selector, Synthesizer, unlabelled
from dfkt_jax.data.stream import put
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.losses import classification, information
from dfkt_jax.models import discriminator, generator
from dfkt_jax.network import placement
from dfkt_jax.openworld.mosaic import MosaicKD
from tests.networks import tiny

KEY = jax.random.key(8)
METHOD = MosaicKD(
  latent=4, generator_widths=(4, 4, 4), discriminator_widths=(4, 8)
)
IMAGES = jax.random.uniform(KEY, (16, 8, 8, 1))


def see(images=IMAGES, progress=0.0, teacher=None, student=None):
  return Context(
    teacher=teacher or tiny(),
    student=student or tiny(1),
    batch=unlabelled(images),
    progress=progress,
    recipe=Recipe(steps=12, batch_size=16),
  )


def test_it_selects_and_synthesizes():
  assert isinstance(METHOD, Selector)
  assert isinstance(METHOD, Synthesizer)
  state = METHOD.init(KEY, see())
  batch = METHOD.sample(KEY, state, 6)
  assert batch.images.shape == (6, 8, 8, 1)
  np.testing.assert_array_equal(batch.labels, -1)


def test_info_is_the_equations():
  state = METHOD.init(KEY, see())
  after, info = jax.jit(METHOD.step)(KEY, state, see())
  fake = generator.sample(KEY, state.generator, 16)
  patches = lambda x: jax.nn.softplus(x).sum((1, 2)).mean()
  judge = discriminator.logits
  expected = patches(-judge(state.discriminator, IMAGES)) + patches(
    judge(state.discriminator, fake)
  )
  assert info.discriminator == pytest.approx(float(expected), rel=1e-3)
  logits = net.logits(tiny(), fake)
  terms = {
    "adversarial": classification.kl(logits, net.logits(tiny(1), fake)).mean(),
    "entropy": information.entropy(logits).mean(),
    # The generator meets the discriminator after its step.
    "local": patches(-judge(after.discriminator, fake)),
    "marginal_entropy": information.marginal_entropy(logits) / np.log(2),
  }
  for name, value in terms.items():
    assert value != 0.0
    assert getattr(info, name) == pytest.approx(float(value), rel=1e-3)
  total = (
    -terms["adversarial"]
    + terms["entropy"]
    + terms["local"]
    - 10.0 * terms["marginal_entropy"]
  )
  assert info.loss == pytest.approx(float(total), rel=1e-3)


def test_one_device_equals_eight():
  runs = []
  for devices in (1, 8):
    mesh = make_mesh(devices)
    with jax.set_mesh(mesh):
      teacher, student = placement.put((tiny(), tiny(1)), mesh)
      images = put(np.asarray(IMAGES), mesh)
      context = see(images, teacher=teacher, student=student)
      state = placement.create(METHOD.init, KEY, context)
      step = jax.jit(METHOD.step, donate_argnums=1)
      infos = []
      for index in range(3):
        key = jax.random.fold_in(KEY, index)
        state, info = step(key, state, context._replace(progress=index / 3))
        infos.append(jax.device_get(info))
      assert step._cache_size() == 1
      runs.append(np.array(infos))
  one, eight = runs
  assert np.isfinite(one).all()
  np.testing.assert_allclose(eight[0], one[0], rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(eight, one, rtol=2e-2, atol=1e-3)


def test_the_discriminator_learns_real_from_made():
  method = dataclasses.replace(METHOD, adversary_lr=0.02)
  # Stripes, which no fresh generator draws.
  contrast = jax.random.uniform(KEY, (16, 1, 1, 1))
  context = see(contrast * jnp.zeros((16, 8, 8, 1)).at[:, ::2].set(1.0))
  state = method.init(KEY, context)
  step = jax.jit(method.step)
  infos = []
  for index in range(20):
    key = jax.random.fold_in(KEY, index)
    state, info = step(key, state, context)
    infos.append(info)
  assert infos[-1].discriminator < 0.95 * infos[0].discriminator
  assert set(info._fields) >= {"adversarial", "local", "marginal_entropy"}


def test_the_rates_fall_with_progress():
  state = METHOD.init(KEY, see())
  step = jax.jit(METHOD.step)
  moved = {}
  for progress in (0.0, 0.5, 1.0):
    after, _ = step(KEY, state, see(progress=progress))
    # The generator's step depends on the discriminator's.
    moved[progress] = jax.tree.map(
      lambda a, b: np.asarray(a - b),
      after.discriminator.params,
      state.discriminator.params,
    )
    if progress == 1.0:
      for a, b in zip(
        jax.tree.leaves(after.generator.params),
        jax.tree.leaves(state.generator.params),
      ):
        np.testing.assert_allclose(a, b, atol=1e-6)
  for full, half, none in zip(*(jax.tree.leaves(m) for m in moved.values())):
    assert (full != 0.0).any()
    np.testing.assert_allclose(half, 0.5 * full, atol=1e-6)
    np.testing.assert_allclose(none, 0.0, atol=1e-6)
