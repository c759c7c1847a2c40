"""3C-GAN: classifier, generator and discriminator train one another.

  min_D  - E log D(x) - E log(1 - D(G(y, z)))
  min_G  - E log D(G(y, z)) + l_s CE(C(G(y, z)), y)
  min_C  l_g CE(C(G(y, z)), y) + l_w |w - w_source|^2
         + l_clu [mean H(p(x)) + KL(p(x) || p(x + r))] - l_div H(mean p(x))

Li et al., "Model Adaptation: Unsupervised Domain Adaptation without Source
Data", CVPR 2020. y is uniform over the classes, z ~ N(0, I), w are all weights
of C, which starts as the source, and r is the virtual adversarial perturbation
(`losses.vat`). The classifier shows the generator the classes, and the
discriminator shows it the target; the generated images then are labeled images
of the target. Each batch has one step of D, one of G and one of C, each against
the latest state of the others.

We know of no released code, and have not checked the weights l, the radius, the
networks and the rates against the paper: all defaults are ours. So are these
choices:
  - D has spectral normalization.
  - G is the generator of `models.generator`, with the one-hot class beside the
    noise. (Where both had the same length, it made one image for each class.)
  - C runs on batch statistics, separately for target and generated images; only
    those of the target move the running statistics.
  - There is no weight decay, because |w - w_source|^2 replaces it.
  - l_div is an addition, from SHOT, and 0 by default.
"""

import dataclasses
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import network as net
from dfkt_jax.adaptation.recipe import Recipe, TrainState
from dfkt_jax.contracts import Context, NonNegative, Positive
from dfkt_jax.devices.sharding import shard
from dfkt_jax.losses import classification, information, vat
from dfkt_jax.models import generator, spectral
from dfkt_jax.models.generator import GeneratorNetwork
from dfkt_jax.models.spectral import SpectralNetwork
from dfkt_jax.network import Network


class State(NamedTuple):
  """C, G and D with their optimizers."""

  train: TrainState  # C
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

  latent: Annotated[int, Positive] = 100  # dimensions of the noise z
  # Channels of G, coarse to fine.
  generator_widths: Annotated[tuple[int, ...], Positive] = (128, 128, 64)
  # Channels of D; each layer halves the image.
  discriminator_widths: Annotated[tuple[int, ...], Positive] = (64, 128)
  adversary_lr: Annotated[float, NonNegative] = 2e-4  # of Adam on G and on D
  beta1: Annotated[float, NonNegative] = 0.5  # of Adam
  # l_s, of the class in the loss of G.
  guidance_weight: Annotated[float, NonNegative] = 1.0
  # l_g, of generated images in the loss of C.
  label_weight: Annotated[float, NonNegative] = 0.1
  # l_w, of |w - w_source|^2.
  source_weight: Annotated[float, NonNegative] = 1e-3
  # l_clu, of entropy and smoothness.
  clustering_weight: Annotated[float, NonNegative] = 1.0
  # l_div, of H(mean p); not in the paper.
  diversity_weight: Annotated[float, NonNegative] = 0.0
  radius: Annotated[float, NonNegative] = 1.0  # of r, on images in [0, 1]

  recipe: ClassVar[Recipe] = Recipe(weight_decay=0.0, backbone_rate=1.0)

  def init(self, key: jax.Array, context: Context) -> State:
    """Return the source, and a fresh G and D.

    Raises:
      UsageError: G or D of these widths does not fit the source's images.
    """
    spec = context.teacher.spec
    keys = jax.random.split(key)
    shape, inputs = spec.shape, self.latent + spec.classes
    g = generator.init(keys[0], shape, self.generator_widths, inputs)
    d = spectral.init(keys[1], shape, self.discriminator_widths)
    adam = self._adam()
    return State(
      context.recipe.init(context.teacher),
      g,
      adam.init(g.params),
      d,
      adam.init(d.params),
    )

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take a step of D, one of G and one of C."""
    recipe, batch = context.recipe, context.batch
    keys = jax.random.split(key, 5)
    images = recipe.augment(keys[0], batch.images)
    network, g = state.train.network, state.generator
    labels = jax.random.randint(
      keys[1], (len(images),), 0, network.spec.classes
    )
    z = self.condition(keys[2], labels, network.spec.classes)

    d, d_opt_state, d_loss = self.discriminator_step(
      state, images, generator.generate(g, z)
    )
    dropout_key = keys[3]  # the same for all: `vat` compares predictions
    predict = lambda network, images: net.train_logits(
      network, images, dropout_key
    )
    g, g_opt_state, g_loss, realism = self.generator_step(
      state, z, labels, d, lambda images: predict(network, images)[0]
    )
    made = jax.lax.stop_gradient(generator.generate(g, z))
    r = vat.perturbation(
      keys[4], lambda x: predict(network, x)[0], images, self.radius
    )

    def loss(params):
      moved = network.with_params(params)
      logits, variables = predict(moved, images)
      info = self.loss(
        logits,
        predict(moved, made)[0],
        labels,
        squared_distance(params, context.teacher.params),
        vat.loss(lambda x: predict(moved, x)[0], images, r, logits).mean(),
      )
      return info.loss, (variables, info)

    gradient, (variables, info) = jax.grad(loss, has_aux=True)(network.params)
    train = recipe.update(state.train, gradient, variables)
    info = info._replace(
      generator=g_loss, realism=realism, discriminator=d_loss
    )
    return State(train, g, g_opt_state, d, d_opt_state), info

  def loss(
    self,
    logits: jax.Array,
    made_logits: jax.Array,
    labels: jax.Array,
    distance: jax.Array,
    smoothness: jax.Array,
  ) -> Info:
    """Return the terms of the loss of C; those of G and D are 0.

    Args:
      logits: f32[batch, classes], of target images.
      made_logits: f32[batch, classes], of generated images.
      labels: i32[batch], of generated images.
      distance: f32[], |w - w_source|^2.
      smoothness: f32[].
    """
    cross_entropy = classification.cross_entropy(made_logits, labels).mean()
    entropy = information.entropy(logits).mean()
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
    """Return C as it is."""
    return state.train.network

  def generate(
    self, key: jax.Array, state: State, labels: jax.Array
  ) -> jax.Array:
    """Return images of i32[n] classes, f32[n, height, width, channels]."""
    classes = state.train.network.spec.classes
    z = self.condition(key, labels, classes)
    return generator.generate(state.generator, z)

  def condition(
    self, key: jax.Array, labels: jax.Array, classes: int
  ) -> jax.Array:
    """Return inputs of G: noise beside the one-hot classes."""
    noise = jax.random.normal(key, (len(labels), self.latent))
    kind = jax.nn.one_hot(labels, classes)
    return shard(jnp.concatenate([noise, kind], 1))

  def discriminator_step(self, state: State, real: jax.Array, made: jax.Array):
    """Return D after a step, the state of its optimizer and its loss."""
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

  def generator_step(
    self,
    state: State,
    z: jax.Array,
    labels: jax.Array,
    d: SpectralNetwork,
    predict: vat.Predict,
  ):
    """Return G after a step, the state of its optimizer, its loss and realism.

    Args:
      z: f32[batch, latent + classes].
      labels: i32[batch], the classes in z.
      predict: C, from images to f32[batch, classes] logits.
    """
    g = state.generator

    def loss(params):
      made = generator.generate(dataclasses.replace(g, params=params), z)
      realism = jax.nn.softplus(-spectral.logits(d, made)).mean()
      guidance = classification.cross_entropy(predict(made), labels).mean()
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
  """Return |a - b|^2, summed over all parameters."""
  squares = jax.tree.map(lambda a, b: jnp.square(a - b).sum(), params, others)
  return jax.tree.reduce(jnp.add, squares)
