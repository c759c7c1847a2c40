"""DFQ: its loss by hand, and the effect of its terms."""

import dataclasses

import jax
import pytest

from dfkt_jax import network as net
from dfkt_jax.contracts import Context
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import classification, information, statistics
from dfkt_jax.models import build, generator
from dfkt_jax.synthesis import dfq
from dfkt_jax.synthesis.dfq import DFQ
from tests.networks import spec, tiny

KEY = jax.random.key(7)
METHOD = DFQ(synthesis_batch_size=32, latent=8, generator_widths=(8, 8, 4))


def run(method, steps, teacher, student):
  context = Context(teacher=teacher, student=student)
  state = method.init(KEY, context)
  step = jax.jit(method.step)
  infos = []
  for index in range(steps):
    key = jax.random.fold_in(KEY, index)
    state, info = step(key, state, context)
    infos.append(info)
  return state, infos


@pytest.mark.parametrize("method", [METHOD, dfq.PAPER], ids=["port", "paper"])
def test_loss_terms_are_the_equations(method):
  method = dataclasses.replace(
    method, synthesis_batch_size=32, latent=8, generator_widths=(8, 8, 4)
  )
  teacher, student = tiny(), tiny(1)
  context = Context(teacher=teacher, student=student)
  state = method.init(KEY, context)
  _, info = jax.jit(method.step)(KEY, state, context)

  images = generator.sample(KEY, state.generator, 32)
  logits, taps = net.statistics(teacher, images)
  running = teacher.batch_stats
  if method.bn_form == "norm":
    bn = statistics.norm_distance(taps, running)
    instance = classification.confidence(logits).mean()
  else:
    bn = statistics.gaussian_kl(taps, running)
    instance = information.entropy(logits).mean()
  expected = (
    -classification.kl(logits, net.logits(student, images)).mean()
    + method.bn_weight * bn
    + method.instance_weight * instance
    - method.balance_weight * information.marginal_entropy(logits)
  )
  assert info.loss == pytest.approx(float(expected), rel=1e-4)


def test_the_adversarial_term_is_not_zero_and_grows():
  # In a released library the student of this term was the teacher itself.
  method = dataclasses.replace(
    METHOD, bn_weight=0.0, instance_weight=0.0, balance_weight=0.0
  )
  _, infos = run(method, 40, tiny(), tiny(1))
  assert infos[0].adversarial > 0
  assert infos[-1].adversarial > 2 * infos[0].adversarial


def test_steps_decrease_the_batch_norm_term():
  method = dataclasses.replace(METHOD, bn_weight=10.0, generator_lr=3e-3)
  _, infos = run(method, 60, tiny(), tiny(1))
  assert infos[-1].bn_distance < 0.8 * infos[0].bn_distance
  assert infos[-1].loss < infos[0].loss


def test_balance_makes_the_classes_even():
  # Without the term the generator settles on a few classes.
  method = dataclasses.replace(METHOD, bn_weight=0.0, generator_lr=3e-3)
  even, few = (
    run(dataclasses.replace(method, balance_weight=w), 80, tiny(), tiny(1))[1]
    for w in (20.0, 0.0)
  )
  assert even[-1].marginal_entropy > few[-1].marginal_entropy + 0.3


def test_refusals():
  lenet = net.init(KEY, build("lenet5", 10), spec(28))
  with pytest.raises(UsageError, match="--bn-weight 0"):
    METHOD.init(KEY, Context(teacher=lenet, student=lenet))
  with pytest.raises(UsageError, match="--adversarial-weight 0"):
    METHOD.init(KEY, Context(teacher=tiny()))
  alone = dataclasses.replace(METHOD, adversarial_weight=0.0)
  _, infos = run(alone, 2, tiny(), None)
  assert infos[0].adversarial == 0
