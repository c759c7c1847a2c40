"""3C-GAN: classifier, generator and discriminator work together.

  min_D  - E log D(x) - E log(1 - D(G(y, z)))
  min_G  - E log D(G(y, z)) + l_s CE(C(G(y, z)), y)
  min_C  l_g CE(C(G(y, z)), y) + l_w |w - w_source|^2
         + l_clu [mean H(p(x)) + KL(p(x) || p(x + r))] - l_div H(mean p(x))

Li et al., "Model Adaptation: Unsupervised Domain Adaptation without Source
Data", CVPR 2020; y is uniform over the classes, z ~ N(0, I), w all weights of
C, which begins as the source, and r the virtual adversarial perturbation
(`losses.vat`). The classifier tells the generator what a class looks like, the
discriminator what the target does; the generated images are then labelled
images of the target. One step of D, of G and of C at every batch, each against
what the one before has become.

No released code is known to us and the weights l, the radius, the networks and
the rates have not been checked against the paper: all defaults are ours. So is
what follows. D has spectral normalisation. G is the generator of
`models.generator` with the class, one hot, beside the noise; where both were
equally long, it made one image a class. C runs on the batch's own statistics,
of target and of generated images apart; those of the target alone move the
running ones. There is no weight decay, as |w - w_source|^2 stands in for it.
l_div is an addition, SHOT's, and off unless asked for.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import network as net
from dfkt_jax import parallel
from dfkt_jax.adaptation.contract import Answers, Batch
from dfkt_jax.adaptation.course import Course, Learner
from dfkt_jax.losses import classification, information, vat
from dfkt_jax.models import generator, spectral
from dfkt_jax.models.generator import GeneratorNetwork
from dfkt_jax.models.spectral import SpectralNetwork
from dfkt_jax.network import Network


class State(NamedTuple):
  learner: Learner
  source: net.PyTree  # the source's parameters
  generator: GeneratorNetwork
  generator_opt_state: optax.OptState
  discriminator: SpectralNetwork
  discriminator_opt_state: optax.OptState


class Info(NamedTuple):
  """Loss terms before weighting."""

  loss: jax.Array  # of the classifier, weighted
  cross_entropy: jax.Array  # of the classifier on generated images
  distance: jax.Array  # |w - w_source|^2
  entropy: jax.Array
  marginal_entropy: jax.Array  # H(mean p(x))
  smoothness: jax.Array  # KL(p(x) || p(x + r))
  generator: jax.Array  # loss, weighted
  realism: jax.Array  # - E log D(G(y, z))
  discriminator: jax.Array  # loss


@dataclasses.dataclass(frozen=True)
class GAN3C:
  """Hyper-parameters; all defaults are ours."""

  latent: int = 100  # dimensions of the noise z
  generator_widths: tuple[int, ...] = (128, 128, 64)  # channels, coarse to fine
  discriminator_widths: tuple[int, ...] = (64, 128)  # each halves the image
  adversary_lr: float = 2e-4  # of Adam on G and on D
  beta1: float = 0.5  # of Adam
  guidance_weight: float = 1.0  # l_s, of the class in G's loss
  label_weight: float = 0.1  # l_g, of generated images in C's loss
  source_weight: float = 1e-3  # l_w, of |w - w_source|^2
  clustering_weight: float = 1.0  # l_clu, of entropy and smoothness
  diversity_weight: float = 0.0  # l_div, of H(mean p); not in the paper
  radius: float = 1.0  # of r, on images in [0, 1]

  course: ClassVar[Course] = Course(weight_decay=0.0, backbone_rate=1.0)

  def init(
    self, key: jax.Array, source: Network, answers: Answers, course: Course
  ) -> State:
    """Fresh G and D.

    Raises:
      UsageError: G or D of these widths does not fit the source's images.
    """
    keys = jax.random.split(key)
    shape, inputs = source.spec.shape, self.latent + source.spec.classes
    g = generator.init(keys[0], shape, self.generator_widths, inputs)
    d = spectral.init(keys[1], shape, self.discriminator_widths)
    adam = self._adam()
    return State(
      course.init(source),
      source.params,
      g,
      adam.init(g.params),
      d,
      adam.init(d.params),
    )

  def step(
    self, key: jax.Array, state: State, batch: Batch, course: Course
  ) -> tuple[State, Info]:
    keys = jax.random.split(key, 5)
    images = course.augment(keys[0], batch.images)
    network, g = state.learner.network, state.generator
    labels = jax.random.randint(
      keys[1], (len(images),), 0, network.spec.classes
    )
    z = self._condition(keys[2], labels, network.spec.classes)

    d, d_opt_state, d_loss = self._discriminator_step(
      state, images, generator.generate(g, z)
    )
    answer = lambda network, images: net.train_logits(network, images, keys[3])
    g, g_opt_state, g_loss, realism = self._generator_step(
      state, z, labels, d, lambda images: answer(network, images)[0]
    )
    made = jax.lax.stop_gradient(generator.generate(g, z))
    r = vat.perturbation(
      keys[4], lambda x: answer(network, x)[0], images, self.radius
    )

    def loss(params):
      moved = network.with_params(params)
      logits, variables = answer(moved, images)
      info = self.loss(
        logits,
        answer(moved, made)[0],
        labels,
        squared_distance(params, state.source),
        vat.loss(lambda x: answer(moved, x)[0], images, r, logits),
      )
      return info.loss, (variables, info)

    gradient, (variables, info) = jax.grad(loss, has_aux=True)(network.params)
    learner = course.update(state.learner, gradient, variables)
    info = info._replace(
      generator=g_loss, realism=realism, discriminator=d_loss
    )
    return State(learner, state.source, g, g_opt_state, d, d_opt_state), info

  def loss(
    self,
    logits: jax.Array,
    made_logits: jax.Array,
    labels: jax.Array,
    distance: jax.Array,
    smoothness: jax.Array,
  ) -> Info:
    """C's: of f32[batch, classes] logits of target and of generated images."""
    cross_entropy = classification.cross_entropy(made_logits, labels)
    entropy = information.entropy(logits)
    marginal = information.marginal_entropy(logits)
    total = (
      self.label_weight * cross_entropy
      + self.source_weight * distance
      + self.clustering_weight * (entropy + smoothness)
      - self.diversity_weight * marginal
    )
    zero = jnp.float32(0.0)
    return Info(
      loss=total,
      cross_entropy=cross_entropy,
      distance=distance,
      entropy=entropy,
      marginal_entropy=marginal,
      smoothness=smoothness,
      generator=zero,
      realism=zero,
      discriminator=zero,
    )

  def network(self, state: State) -> Network:
    return state.learner.network

  def sample(
    self, key: jax.Array, state: State, labels: jax.Array
  ) -> jax.Array:
    """Images of i32[count] classes, f32[count, height, width, channels]."""
    classes = state.learner.network.spec.classes
    z = self._condition(key, labels, classes)
    return generator.generate(state.generator, z)

  def _condition(self, key, labels, classes):
    noise = jax.random.normal(key, (len(labels), self.latent))
    kind = jax.nn.one_hot(labels, classes)
    return parallel.split(jnp.concatenate([noise, kind], 1))

  def _discriminator_step(self, state, real, made):
    """D, its optimiser's state and its loss."""
    d, made = state.discriminator, jax.lax.stop_gradient(made)

    def loss(params):
      moved = dataclasses.replace(d, params=params)
      on_real, after = spectral.train_logits(moved, real)
      on_made = spectral.logits(moved, made)
      total = jax.nn.softplus(-on_real) + jax.nn.softplus(on_made)
      return total.mean(), after

    (value, after), gradient = jax.value_and_grad(loss, has_aux=True)(d.params)
    params, opt_state = self._update(
      gradient, state.discriminator_opt_state, d.params
    )
    return dataclasses.replace(after, params=params), opt_state, value

  def _generator_step(self, state, z, labels, d, answer):
    """G, its optimiser's state, its loss and the realism in it."""
    g = state.generator

    def loss(params):
      made = generator.generate(dataclasses.replace(g, params=params), z)
      realism = jax.nn.softplus(-spectral.logits(d, made)).mean()
      guidance = classification.cross_entropy(answer(made), labels)
      return realism + self.guidance_weight * guidance, realism

    (value, realism), gradient = jax.value_and_grad(loss, has_aux=True)(
      g.params
    )
    params, opt_state = self._update(
      gradient, state.generator_opt_state, g.params
    )
    return (dataclasses.replace(g, params=params), opt_state, value, realism)

  def _update(self, gradient, opt_state, params):
    updates, opt_state = self._adam().update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state

  def _adam(self):
    return optax.adam(self.adversary_lr, b1=self.beta1)


def squared_distance(params: net.PyTree, others: net.PyTree) -> jax.Array:
  """|a - b|^2 over all parameters together."""
  squares = jax.tree.map(lambda a, b: jnp.square(a - b).sum(), params, others)
  return jax.tree.reduce(jnp.add, squares)
