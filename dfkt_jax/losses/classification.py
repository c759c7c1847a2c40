"""Losses on logits f32[..., classes], per example: f32[...].

The leading axes are those of a batch, or of a batch and its pixels. Natural
logarithms throughout.
"""

import chex
import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Return -log p(label); labels are i32[...]."""
  chex.assert_shape(labels, logits.shape[:-1])
  log_p = jax.nn.log_softmax(logits)
  return -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Return -sum_c t_c log p_c; targets are probabilities f32[..., classes]."""
  chex.assert_equal_shape([logits, targets])
  return -(targets * jax.nn.log_softmax(logits)).sum(-1)


def confidence(logits: jax.Array) -> jax.Array:
  """Return the cross-entropy of the network's own decision, the one-hot loss.

  Chen et al., "Data-Free Learning of Student Networks", ICCV 2019 (DAFL).
  The decision is a constant to the gradient.
  """
  return cross_entropy(logits, logits.argmax(-1))


def kl(
  teacher_logits: jax.Array,
  student_logits: jax.Array,
  temperature: float = 1.0,
) -> jax.Array:
  """Return temperature^2 KL(teacher || student) of the tempered predictions.

  Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. The sum
  runs over classes; its mean over the batch is PyTorch's "batchmean".
  """
  chex.assert_equal_shape([teacher_logits, student_logits])
  log_t = jax.nn.log_softmax(teacher_logits / temperature)
  log_s = jax.nn.log_softmax(student_logits / temperature)
  # The factor is inside the sum: XLA then merges it with the mean over the
  # batch, in the order in which "batchmean" adds.
  return (jnp.exp(log_t) * (temperature**2 * (log_t - log_s))).sum(-1)


def kl_from_probabilities(p: jax.Array, logits: jax.Array) -> jax.Array:
  """Return KL(p || softmax(logits)); p are probabilities, which may be 0."""
  chex.assert_equal_shape([p, logits])
  log_q = jax.nn.log_softmax(logits)
  return (jax.scipy.special.xlogy(p, p) - p * log_q).sum(-1)


def l1(teacher_logits: jax.Array, student_logits: jax.Array) -> jax.Array:
  """Return the mean absolute difference of the logits over the classes.

  Fang et al., "Data-Free Adversarial Distillation", 2019 (DFAD).
  """
  chex.assert_equal_shape([teacher_logits, student_logits])
  return jnp.abs(teacher_logits - student_logits).mean(-1)


def jensen_shannon(
  p_logits: jax.Array, q_logits: jax.Array, temperature: float = 1.0
) -> jax.Array:
  """Return the Jensen-Shannon divergence of the tempered predictions.

  (KL(p || m) + KL(q || m)) / 2 with m their mean, in [0, log 2]; symmetric, and
  without a factor temperature^2 (the competition of Yin et al., CVPR 2020).
  """
  chex.assert_equal_shape([p_logits, q_logits])
  log_p = jax.nn.log_softmax(p_logits / temperature)
  log_q = jax.nn.log_softmax(q_logits / temperature)
  log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
  divergence = lambda log_a: (jnp.exp(log_a) * (log_a - log_m)).sum(-1)
  return (divergence(log_p) + divergence(log_q)) / 2


def jensen_shannon_released(
  p_logits: jax.Array, q_logits: jax.Array, temperature: float = 3.0
) -> jax.Array:
  """Return the Jensen-Shannon divergence of the released DeepInversion code.

  It clamps probabilities to [0.01, 0.99] first, which flattens nearly every
  entry once there are hundreds of classes, and it exchanges the arguments of
  both KL terms. For comparison with published runs.
  """
  chex.assert_equal_shape([p_logits, q_logits])
  p = jax.nn.softmax(p_logits / temperature)
  q = jax.nn.softmax(q_logits / temperature)
  m = jnp.clip((p + q) / 2, 0.01, 0.99)
  p, q = jnp.clip(p, 0.01, 0.99), jnp.clip(q, 0.01, 0.99)
  divergence = lambda a: (m * (jnp.log(m) - jnp.log(a))).sum(-1)
  return (divergence(p) + divergence(q)) / 2
