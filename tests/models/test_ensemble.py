"""Several teachers as one network: its numbers, its tree and its refusals."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.contracts import Context
from dfkt_jax.data import Dataset
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.errors import UsageError
from dfkt_jax.evaluation.evaluator import evaluate, make_predict
from dfkt_jax.losses import statistics
from dfkt_jax.models.ensemble import make_ensemble
from dfkt_jax.network import Classification, Regression, Segmentation, placement
from dfkt_jax.rounds.target_predictions import make_predict_all
from dfkt_jax.synthesis.dfq import DFQ
from dfkt_jax.synthesis.target_fitting import TargetFitting
from tests.networks import spec, tiny

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(KEY, (6, 8, 8, 1))
# Members of unequal widths and moments.
MEMBERS = (
  tiny(0),
  tiny(1, (4, 8, 8), dataclasses.replace(spec(), mean=(0.2,), std=(0.7,))),
)
COUNTS = np.arange(20).reshape(2, 10)
COMBINATIONS = ("logits", "probabilities", "columns")


def logits_of_members(images=IMAGES):
  return jnp.stack([net.logits(member, images) for member in MEMBERS], 1)


def test_logits_are_the_mean_of_the_members_bit_for_bit():
  found = net.logits(make_ensemble(MEMBERS, "logits"), IMAGES)
  np.testing.assert_array_equal(found, logits_of_members().mean(1))


def test_probabilities_are_the_mean_of_the_members():
  found = net.logits(make_ensemble(MEMBERS), IMAGES)
  p = jax.nn.softmax(logits_of_members()).mean(1)
  np.testing.assert_allclose(jnp.exp(found), p, rtol=1e-5)


def test_columns_weigh_a_member_by_its_images_of_a_class():
  ensemble = make_ensemble(MEMBERS, class_counts=COUNTS)
  p = np.asarray(jax.nn.softmax(logits_of_members()), np.float64)
  q = np.zeros((6, 10))
  for k in range(10):
    for i in range(2):
      q[:, k] += COUNTS[i, k] / COUNTS[:, k].sum() * p[:, i, k]
  q /= q.sum(1, keepdims=True)
  found = jnp.exp(net.logits(ensemble, IMAGES))
  np.testing.assert_allclose(found, q, rtol=1e-5)
  # Class 0 has images at the second member alone, and a finite gradient.
  assert ensemble.module.shares[0] == (0.0, 1.0)
  gradient = jax.grad(lambda x: net.logits(ensemble, x).max())(IMAGES)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("copies", [1, 3])
def test_copies_of_one_teacher_are_that_teacher(combine, copies):
  counts = np.ones((copies, 10), int)
  ensemble = make_ensemble([tiny()] * copies, combine, counts)
  np.testing.assert_allclose(
    jax.nn.log_softmax(net.logits(ensemble, IMAGES)),
    jax.nn.log_softmax(net.logits(tiny(), IMAGES)),
    atol=1e-5,
  )


def test_the_tap_has_the_logits_of_the_members():
  for combine in COMBINATIONS:
    ensemble = make_ensemble(MEMBERS, combine, COUNTS)
    _, taps = net.features(ensemble, IMAGES)
    np.testing.assert_array_equal(taps["members"], logits_of_members())
    own = net.features(MEMBERS[1], IMAGES)[1]["penultimate"]
    np.testing.assert_array_equal(taps["members_1"]["penultimate"], own)


def test_a_feature_that_an_ensemble_does_not_name_is_refused():
  ensemble = make_ensemble(MEMBERS)
  _, taps = net.features(ensemble, IMAGES)
  members = net.require_feature(taps, "members", ensemble)
  np.testing.assert_array_equal(members, taps["members"])
  said = (
    "'penultimate' are needed .* Ensemble names only .*members.* list archs"
  )
  fitting, labels = TargetFitting(), jnp.eye(len(IMAGES), 10)
  state = fitting.init(KEY, labels, ensemble)
  pixels = np.zeros((4, *ensemble.spec.shape), np.uint8)
  for use in (
    lambda: net.require_feature(taps, "penultimate", ensemble),
    lambda: jax.jit(fitting.step)(KEY, state, ensemble),
    lambda: make_predict_all(pixels, make_mesh(1))(ensemble),
  ):
    with pytest.raises(UsageError, match=said):
      use()
  with pytest.raises(UsageError, match="ConvNet names none"):
    net.require_feature({}, "penultimate", MEMBERS[0])


def test_statistics_are_those_of_the_members():
  ensemble = make_ensemble(MEMBERS)
  _, found = net.statistics(ensemble, IMAGES)
  structure = jax.tree.structure(ensemble.batch_stats)
  assert jax.tree.structure(found) == structure
  for index, member in enumerate(MEMBERS):
    own = net.statistics(member, IMAGES)[1]
    jax.tree.map(np.testing.assert_array_equal, found[f"members_{index}"], own)


def test_a_statistics_loss_sums_over_members():
  def distance(network):
    _, taps = net.statistics(network, IMAGES)
    return float(statistics.norm_distance(taps, network.batch_stats))

  alone = [distance(member) for member in MEMBERS]
  assert distance(make_ensemble(MEMBERS)) == pytest.approx(sum(alone), rel=1e-5)


def test_batch_norms_are_listed_member_by_member_in_order():
  expected = [
    (f"members_{index}", *path)
    for index, member in enumerate(MEMBERS)
    for path in net.batch_norm_paths(member)
  ]
  assert net.batch_norm_paths(make_ensemble(MEMBERS)) == expected


def test_training_moves_the_statistics_of_every_member():
  ensemble = make_ensemble(MEMBERS, "logits")
  logits, variables = net.train_logits(ensemble, IMAGES, KEY)
  own = [net.train_logits(member, IMAGES, KEY) for member in MEMBERS]
  np.testing.assert_array_equal(
    logits, jnp.stack([logits for logits, _ in own], 1).mean(1)
  )
  for index, (_, expected) in enumerate(own):
    jax.tree.map(
      np.testing.assert_array_equal,
      variables["batch_stats"][f"members_{index}"],
      expected["batch_stats"],
    )


def test_a_generator_is_fitted_to_an_ensemble_as_to_any_teacher():
  method = DFQ(latent=4, generator_widths=(4, 4, 4), synthesis_batch_size=8)
  context = Context(teacher=make_ensemble(MEMBERS), student=tiny(2))
  state = method.init(KEY, context)
  state, info = jax.jit(method.step)(KEY, state, context)
  for term, value in info._asdict().items():
    assert np.isfinite(value).all(), term
  assert method.sample(KEY, state, 8).images.shape == (8, 8, 8, 1)


def test_an_ensemble_is_sharded_and_evaluated_like_any_network():
  ensemble = jax.device_get(make_ensemble(MEMBERS, "logits"))
  pixels = np.random.default_rng(0).integers(0, 256, (23, 8, 8, 1), np.uint8)
  expected = logits_of_members(pixels.astype("float32") / 255).mean(1)
  labels = np.asarray(expected.argmax(1), np.int32)
  mesh = make_mesh(4, 2)
  with jax.set_mesh(mesh):
    placed = placement.put(ensemble, mesh)
    np.testing.assert_allclose(
      make_predict()(placed, pixels), expected, atol=1e-4
    )
    result = evaluate(placed, Dataset("made", pixels, labels))
  assert result["accuracy"] == 1.0


def test_one_compilation_serves_ensembles_of_equal_members():
  compiled = jax.jit(net.logits)
  for _ in range(2):
    compiled(make_ensemble(MEMBERS, class_counts=COUNTS), IMAGES)
  assert compiled._cache_size() == 1


def with_task(task, seed=0):
  return tiny(seed, input_spec=dataclasses.replace(spec(), task=task))


@pytest.mark.parametrize(
  ("networks", "said"),
  [
    (
      [tiny(), tiny(input_spec=spec(12)), tiny()],
      "teacher 1: 8x8x1; teacher 2: 12x12x1; teacher 3: 8x8x1",
    ),
    (
      [tiny(), tiny(input_spec=spec(classes=3))],
      "teacher 1: 10 outputs; teacher 2: 3 outputs",
    ),
    (
      [
        with_task(Classification(3, ("a", "b", "c"))),
        with_task(Classification(3)),
        with_task(Classification(3, ("a", "c", "b"))),
      ],
      "teacher 1: a, b, c; teacher 3: a, c, b",
    ),
    (
      [tiny(), with_task(Regression(10))],
      "teacher 1: classification; teacher 2: regression",
    ),
    (
      [with_task(Regression(1)), with_task(Regression(1, (), (3.0,)))],
      r"teacher 2: mean \(3.0,\), std \(\)",
    ),
    ([], "networks is empty"),
  ],
)
def test_members_that_differ_are_refused_one_by_one(networks, said):
  with pytest.raises(UsageError, match=said):
    make_ensemble(networks)


def test_members_are_called_by_their_names():
  with pytest.raises(UsageError, match="c0: 8x8x1; c1: 12x12x1"):
    make_ensemble([tiny(), tiny(input_spec=spec(12))], names=["c0", "c1"])


@pytest.mark.parametrize(
  ("combine", "counts", "said"),
  [
    ("columns", None, "combine is 'columns'.* no class_counts: give them"),
    (None, np.ones((3, 10)), r"shape \(3, 10\).* 2 teachers and 10 classes"),
    (None, np.ones((2, 9)), r"shape \(2, 9\)"),
    (None, -np.ones((2, 10)), "the least -1"),
    (None, np.ones((2, 10)) * (np.arange(10) != 4), "no image of class 4"),
  ],
)
def test_counts_that_do_not_fit_are_refused(combine, counts, said):
  with pytest.raises(UsageError, match=said):
    make_ensemble(MEMBERS, combine, counts)


def test_regressions_are_combined_by_their_mean_alone():
  members = [with_task(Regression(2), seed) for seed in (0, 1)]
  found = net.logits(make_ensemble(members), IMAGES)
  expected = jnp.stack([net.logits(member, IMAGES) for member in members], 1)
  np.testing.assert_array_equal(found, expected.mean(1))
  with pytest.raises(UsageError, match="a regression have none"):
    make_ensemble(members, "probabilities")


class Pixels(nn.Module):
  """A segmentation by a single convolution."""

  @nn.compact
  def __call__(self, x, train):
    return nn.Conv(3, (1, 1))(x)


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_segmentations_are_combined_pixel_by_pixel(combine):
  task = dataclasses.replace(spec(), task=Segmentation(3))
  members = [net.init(jax.random.key(seed), Pixels(), task) for seed in (0, 1)]
  counts = [[1, 2, 3], [4, 1, 0]]
  found = net.logits(make_ensemble(members, combine, counts), IMAGES)
  # As the classification of every pixel by itself.
  logits = jnp.stack([net.logits(member, IMAGES) for member in members], -2)
  weights = np.array(counts) / np.sum(counts, 0)
  p = np.asarray(jax.nn.softmax(logits))
  expected = {
    "logits": jax.nn.softmax(logits.mean(-2)),
    "probabilities": p.mean(-2),
    "columns": (weights * p).sum(-2) / (weights * p).sum((-2, -1))[..., None],
  }[combine]
  np.testing.assert_allclose(jax.nn.softmax(found), expected, atol=1e-5)
