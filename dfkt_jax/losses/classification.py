"""Losses on logits, f32[batch, classes], averaged over the batch.

Each is a scalar. Natural logarithms throughout.
"""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """-log p(label); labels are i32[batch]."""
  log_p = jax.nn.log_softmax(logits)
  return -jnp.take_along_axis(log_p, labels[:, None], axis=1).mean()


def confidence(logits: jax.Array) -> jax.Array:
  """Cross-entropy against the network's own decision, the one-hot loss.

  Chen et al., "Data-Free Learning of Student Networks", ICCV 2019 (DAFL).
  The decision is a constant to the gradient.
  """
  return cross_entropy(logits, logits.argmax(1))


def kl(
  teacher_logits: jax.Array,
  student_logits: jax.Array,
  temperature: float = 1.0,
) -> jax.Array:
  """temperature^2 KL(teacher || student) of the tempered predictions.

  Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. The sum
  runs over classes, the mean over the batch ("batchmean").
  """
  log_t = jax.nn.log_softmax(teacher_logits / temperature)
  log_s = jax.nn.log_softmax(student_logits / temperature)
  return temperature**2 * (jnp.exp(log_t) * (log_t - log_s)).sum(1).mean()


def l1(teacher_logits: jax.Array, student_logits: jax.Array) -> jax.Array:
  """Mean absolute difference of logits (Fang et al., DFAD, 2019)."""
  return jnp.abs(teacher_logits - student_logits).mean()


def jensen_shannon(
  p_logits: jax.Array, q_logits: jax.Array, temperature: float = 1.0
) -> jax.Array:
  """Jensen-Shannon divergence of the tempered predictions, in [0, log 2].

  (KL(p || m) + KL(q || m)) / 2 with m their mean; symmetric, and no
  temperature^2 factor (the competition of Yin et al., CVPR 2020).
  """
  log_p = jax.nn.log_softmax(p_logits / temperature)
  log_q = jax.nn.log_softmax(q_logits / temperature)
  log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
  towards = lambda log_a: (jnp.exp(log_a) * (log_a - log_m)).sum(1).mean()
  return (towards(log_p) + towards(log_q)) / 2


def jensen_shannon_released(
  p_logits: jax.Array, q_logits: jax.Array, temperature: float = 3.0
) -> jax.Array:
  """The Jensen-Shannon divergence that released DeepInversion code computes.

  Probabilities are clamped to [0.01, 0.99] first, which flattens nearly every
  entry once there are hundreds of classes, and the arguments of both KL terms
  are exchanged. For comparison with published runs.
  """
  p = jax.nn.softmax(p_logits / temperature)
  q = jax.nn.softmax(q_logits / temperature)
  m = jnp.clip((p + q) / 2, 0.01, 0.99)
  p, q = jnp.clip(p, 0.01, 0.99), jnp.clip(q, 0.01, 0.99)
  towards = lambda a: (m * (jnp.log(m) - jnp.log(a))).sum(1).mean()
  return (towards(p) + towards(q)) / 2
