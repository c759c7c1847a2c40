"""What open-world methods do with a batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax import parallel, placement
from dfkt_jax.data.stream import put
from dfkt_jax.distillation.kd import KD
from dfkt_jax.errors import UsageError
from dfkt_jax.loops import Loops
from dfkt_jax.losses import relation
from dfkt_jax.openworld import round as rounds
from dfkt_jax.openworld.contract import Study
from dfkt_jax.openworld.dfnd import DFND
from dfkt_jax.openworld.mosaic import MosaicKD
from dfkt_jax.openworld.odsd import ODSD
from dfkt_jax.openworld.random_selection import RandomSelection
from tests.networks import tiny

KEY = jax.random.key(8)
STUDY = Study(
  kd=KD(steps=12, lr=0.02, temperature=2.0, crop_padding=1, flip=True),
  batch_size=16,
  student_steps=3,
)
METHODS = {
  "random": RandomSelection(),
  "dfnd": DFND(),
  "odsd": ODSD(),
  "mosaic-kd": MosaicKD(
    latent=4, generator_widths=(4, 4, 4), discriminator_widths=(4, 8)
  ),
}
PIXELS = np.random.default_rng(0).integers(
  0, 256, (8, 4, 16, 8, 8, 1), dtype=np.uint8
)
DIRECTIONS = np.asarray(
  relation.normalise(jax.random.normal(KEY, (5, 8))), np.float32
)


@functools.cache
def run(name, count, rolled=False, devices=1):
  method = METHODS[name]
  mesh = parallel.make_mesh(devices)
  with jax.set_mesh(mesh):
    teacher, student = placement.place((tiny(), tiny(1)), mesh)
    init = lambda t, s: method.init(
      KEY, t, s, STUDY.kd, jnp.asarray(DIRECTIONS)
    )
    state = jax.jit(init)(teacher, student)
    step = rounds.make_round(method, STUDY, Loops(rolled))
    each = rounds.batches_per_round(method, STUDY)
    infos = []
    for index in range(count):
      batches = put(PIXELS[index][:each], mesh, axis=1)
      state, info = step(state, index, KEY, teacher, batches)
      infos.append(jax.device_get(info))
  return state, infos


@pytest.mark.parametrize("name", METHODS)
def test_one_device_equals_eight_and_rolled_equals_unrolled(name):
  _, one = run(name, 4)
  _, eight = run(name, 1, rolled=True, devices=8)
  for group, info in eight[0].items():
    for term, values in info._asdict().items():
      expected = getattr(one[0][group], term)
      np.testing.assert_allclose(values[0], expected[0], rtol=1e-3, atol=1e-5)
      # Angles between nearly equal features carry the order of sums on.
      np.testing.assert_allclose(values, expected, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_the_student_comes_closer_to_the_teacher(name):
  method = METHODS[name]
  state, infos = run(name, 4)
  first, last = infos[0]["distillation"], infos[-1]["distillation"]
  assert last.distance[-1] < first.distance[0]
  assert method.student(state).spec == tiny().spec


def test_dfnds_transition_is_row_stochastic():
  noise = jax.random.normal(KEY, (4, 4))
  q = np.asarray(DFND(assumed_accuracy=0.9).transition(noise))
  np.testing.assert_allclose(q.sum(1), 1.0, rtol=1e-6)
  np.testing.assert_allclose(q.diagonal(), 0.9)
  off = np.exp(np.asarray(noise)[0, 1:])
  np.testing.assert_allclose(q[0, 1:], 0.1 * off / off.sum(), rtol=1e-5)


def test_dfnds_noisy_label_term_is_the_equation():
  teacher, student = tiny(), tiny(1)
  kd = dataclasses.replace(STUDY.kd, crop_padding=0, flip=False)
  method = DFND()
  state = method.init(KEY, teacher, student, kd, None)
  images = jax.random.uniform(KEY, (16, 8, 8, 1))
  after, info = jax.jit(method.step, static_argnums=4)(
    KEY, state, images, teacher, kd
  )
  logits, _ = net.train_logits(student, images, KEY)
  p = np.asarray(jax.nn.softmax(logits) @ method.transition(state.noise))
  decisions = np.asarray(net.logits(teacher, images).argmax(1))
  expected = -np.log(p[np.arange(16), decisions]).mean()
  assert info.noisy_label == pytest.approx(float(expected), rel=1e-3)
  assert (np.asarray(after.noise) != 0).any()


def test_odsd_leans_on_prototypes_where_the_teacher_doubts():
  method = ODSD(denoise=0.8, prototype_temperature=0.05)
  features = jax.random.normal(KEY, (2, 8))
  logits = jnp.array([[40.0] + [0.0] * 9, [0.0] * 10])
  t = method.low_noise(
    jax.nn.softmax(logits), features, jnp.asarray(DIRECTIONS)
  )
  u = np.asarray(relation.normalise(features))
  np.testing.assert_allclose(t[0], u[0], atol=1e-5)
  odds = np.exp(u[1] @ DIRECTIONS.T / 0.05)
  share = 0.8 * 0.9
  mixed = (1 - share) * u[1] + share * (odds / odds.sum()) @ DIRECTIONS
  np.testing.assert_allclose(t[1], mixed / np.linalg.norm(mixed), atol=1e-4)


def odsd_step(method, images, kd):
  teacher, student = tiny(), tiny(1)
  state = method.init(KEY, teacher, student, kd, DIRECTIONS)
  step = jax.jit(method.step, static_argnums=4)
  return state, *step(KEY, state, images, teacher, kd)


@pytest.mark.parametrize("angle_images", [4, 64])
def test_odsds_terms_are_the_equations(angle_images):
  kd = KD(steps=12, lr=0.02, temperature=2.0, hard_label_weight=0.3)
  images = jax.random.uniform(KEY, (6, 8, 8, 1))
  # Nothing is augmented, so both views are the image.
  method = ODSD(denoise=0.8, angle_images=angle_images)
  state, _, info = odsd_step(method, images, kd)
  views = jnp.concatenate([images, images])
  logits, taps = net.features(tiny(), images)
  t = method.low_noise(
    jax.nn.softmax(logits), taps["penultimate"], jnp.asarray(DIRECTIONS)
  )
  _, taps, _ = net.train_features(tiny(1), views, KEY)
  z = relation.normalise(taps["penultimate"] @ state.projection)[:6]
  similarity = np.asarray(z @ t.T, np.float64) / 0.1
  own = np.exp(similarity.diagonal()) / np.exp(similarity).sum(1)
  assert info.contrast == pytest.approx(-np.log(own).mean(), rel=1e-3)
  structure = sum(
    weight * relation.huber(of(x[:n], z[:n]), of(t[:n], t[:n]))
    for weight, of, n in (
      (1.0, relation.distances, 6),
      (2.0, relation.angles, angle_images),
    )
    for x in (z, t)
  )
  assert info.relation == pytest.approx(float(structure), rel=1e-3)


def test_odsd_learns_from_what_two_views_have_in_common():
  kd = KD(steps=12, lr=0.02, noise=0.5)
  images = jax.random.uniform(KEY, (6, 8, 8, 1))
  method = ODSD()
  seen = []

  class Spy(ODSD):
    def low_noise(self, probabilities, features, directions):
      seen.append((probabilities, features))
      return super().low_noise(probabilities, features, directions)

  teacher = tiny()
  state = method.init(KEY, teacher, tiny(1), kd, DIRECTIONS)
  Spy().step(KEY, state, images, teacher, kd)
  *view_keys, _ = jax.random.split(KEY, 3)
  answers = [net.features(teacher, kd.augment(k, images)) for k in view_keys]
  features = sum(taps["penultimate"] for _, taps in answers) / 2
  p = sum(jax.nn.softmax(logits) for logits, _ in answers) / 2
  np.testing.assert_allclose(seen[0][0], p, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(seen[0][1], features, rtol=1e-4, atol=1e-6)


def test_odsd_needs_images_to_relate():
  with pytest.raises(UsageError, match="--batch-size is 2 and odsd relates"):
    odsd_step(ODSD(), jnp.zeros((2, 8, 8, 1)), STUDY.kd)


@pytest.mark.parametrize("name", ["random", "dfnd", "odsd"])
def test_hard_labels_weigh_in(name):
  method = METHODS[name]
  images = jax.random.uniform(KEY, (6, 8, 8, 1))
  students = []
  for weight in (0.0, 3.0):
    kd = dataclasses.replace(STUDY.kd, hard_label_weight=weight)
    state = method.init(KEY, tiny(), tiny(1), kd, DIRECTIONS)
    step = jax.jit(method.step, static_argnums=4)
    state, info = step(KEY, state, images, tiny(), kd)
    assert info.hard_label > 0.0
    students.append(jax.tree.leaves(method.student(state).params))
  assert any((a != b).any() for a, b in zip(*students))


def test_odsds_terms_can_be_switched_off():
  teacher, student = tiny(), tiny(1)
  method = ODSD(contrast_weight=0.0, relation_weight=0.0)
  state = method.init(KEY, teacher, student, STUDY.kd, DIRECTIONS)
  images = jax.random.uniform(KEY, (16, 8, 8, 1))
  after, info = jax.jit(method.step, static_argnums=4)(
    KEY, state, images, teacher, STUDY.kd
  )
  assert info.contrast == 0.0
  assert info.relation == 0.0
  # Nothing pulls at the projection but weight decay.
  shrunk = np.asarray(after.projection) / np.asarray(state.projection)
  assert np.ptp(shrunk) < 1e-3
  full = ODSD()
  _, info = jax.jit(full.step, static_argnums=4)(
    KEY, state, images, teacher, STUDY.kd
  )
  assert info.contrast > 0.0
  assert info.relation > 0.0


def test_mosaics_discriminator_learns_real_from_made():
  method = dataclasses.replace(METHODS["mosaic-kd"], adversary_lr=0.02)
  teacher = tiny()
  state = method.init(KEY, teacher, tiny(1), STUDY.kd, None)
  # Stripes, which no fresh generator draws.
  contrast = jax.random.uniform(KEY, (16, 1, 1, 1))
  images = contrast * jnp.zeros((16, 8, 8, 1)).at[:, ::2].set(1.0)
  step = jax.jit(method.adversary_step)
  infos = []
  for index in range(20):
    key = jax.random.fold_in(KEY, index)
    state, info = step(key, state, images, teacher)
    infos.append(info)
  assert infos[-1].discriminator < 0.95 * infos[0].discriminator
  assert set(info._fields) >= {"adversarial", "local", "marginal_entropy"}


def test_mosaics_rates_fall_with_the_student():
  method = METHODS["mosaic-kd"]
  state, _ = run("mosaic-kd", 4)
  assert state.progress == pytest.approx(1.0, abs=1e-5)
  before = jax.device_get(state.generator.params)
  images = jnp.asarray(PIXELS[0, 0], jnp.float32) / 255
  after, _ = jax.jit(method.adversary_step)(KEY, state, images, tiny())
  for a, b in zip(
    jax.tree.leaves(before), jax.tree.leaves(after.generator.params)
  ):
    np.testing.assert_allclose(a, b, atol=1e-6)
