"""CPGA: a generator makes prototypes of the classes, which attract the target.

Qiu et al., "Source-free Domain Adaptation via Avatar Prototype Generation and
Adaptation", IJCAI 2021. First a generator of features G(z, y) is trained
against the classifier C, without any image:

  L_G = CE(C(G(z, y)), y) + mean_i NCE(g_i, g+, g-; 1, margin 0.5)

NCE is the loss of `losses.contrastive` on cosines: g+ is another feature of the
class, g- are K - 1 features of other classes, K the number of classes. This
term begins after `contrast_after` steps. Then the network is trained, while C
stays as it is:

  L = mean_i w_i NCE(h(f_i), h(v_yi), h(v_k); 0.07)
      + 5 mean_i log(1 - <t_i, q_i>) + 0.05 mean_i H(softmax(<f_i, f_j> / 0.05))

Here f are features, v_k is one prototype of class k, drawn anew for every
image, and h is a head that learns with the network. Its predictions are
q_i = softmax_k(cos(f_i, v_k) / 0.07), and t_i <- 0.9 t_i + 0.1 q_i, from 0
(`losses.early_learning`). j runs over all other images of the target, which are
in a bank (`losses.neighbourhood`).

Every epoch makes `prototypes_per_class` new prototypes of a class, and labels:

  labels of two rounds of clustering (`centroids`, as in SHOT)
  sure images: that label is the network's own, with p > a, a from 0.9 to 0.7
  two more rounds, from the centroids of the sure images (a class without any
  keeps the mean weighted by p); sure images keep their label
  w_i = max_k softmax(cos(f_i, c_k) / 0.07)

The defaults are those of released code, which uses 24 prototypes a class for
VisDA. Deviations:
  - Its generator has transposed convolutions. Ours has two linear layers of
    about the same width and is trained by Adam (our choice; the released rate
    has not been checked).
  - Its first ten epochs only align target features with prototypes against a
    discriminator. We leave them out.
  - Its learning rate falls by 5 % every 2000 steps. Ours is constant.
  - We leave AutoAugment out.
  - h learns at --lr. This is the effect of released code too, where a factor
    of 5 is meant and lost.
  - In the first rounds of clustering a constant 1 is appended to the features
    (`centroids`), in the second rounds it is not.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import network as net
from dfkt_jax.adaptation import centroids
from dfkt_jax.adaptation.recipe import Recipe, TrainState
from dfkt_jax.contracts import (
  Context,
  NonNegative,
  Positive,
  Predictions,
  Share,
)
from dfkt_jax.devices.sharding import shard
from dfkt_jax.losses import reduce
from dfkt_jax.losses.classification import cross_entropy
from dfkt_jax.losses.contrastive import choose_keys, contrast
from dfkt_jax.losses.early_learning import early_learning
from dfkt_jax.losses.neighbourhood import neighbourhood_entropy
from dfkt_jax.losses.relation import normalize
from dfkt_jax.memory import feature_bank
from dfkt_jax.models.vectors import Projection, PrototypeGenerator
from dfkt_jax.network import Network, layers


class Labels(NamedTuple):
  """Pseudo-labels of all target images."""

  classes: jax.Array  # i32[rows]
  weights: jax.Array  # f32[rows], w
  sure: jax.Array  # bool[rows]


class State(NamedTuple):
  """The network, its head, the generator and what they made of the target."""

  train: TrainState
  head: Any  # parameters of h
  head_state: optax.OptState
  generator: Any  # parameters of G
  prototypes: jax.Array  # f32[classes, per class, width]
  labels: Labels
  features: jax.Array  # f32[rows, width], of length 1
  early: jax.Array  # f32[rows, classes], t
  valid: jax.Array  # bool[rows]


class Info(NamedTuple):
  """Loss terms before weighting."""

  loss: jax.Array
  contrast: jax.Array
  early_learning: jax.Array
  neighbourhood: jax.Array
  sure: jax.Array  # share of the batch


@dataclasses.dataclass(frozen=True)
class CPGA:
  """Hyper-parameters; the defaults are those of released code."""

  # Steps on the classifier alone, before the network's first step.
  generator_steps: Annotated[int, NonNegative] = 1000
  generator_batch_size: Annotated[int, Positive] = 128  # features
  generator_width: Annotated[int, Positive] = 1024  # of its hidden layer
  generator_lr: Annotated[float, NonNegative] = 1e-3  # of Adam; our choice
  latent: Annotated[int, Positive] = 100  # width of the generator's noise
  # Generator steps with cross-entropy alone.
  contrast_after: Annotated[int, NonNegative] = 30
  margin: Annotated[float, NonNegative] = 0.5  # of the generator's contrast
  # Number of prototypes that an epoch draws.
  prototypes_per_class: Annotated[int, Positive] = 2
  projection_width: Annotated[int, Positive] = 256  # of the head h
  # T of cosines to prototypes and centroids.
  temperature: Annotated[float, Positive] = 0.07
  # Least confidence of sure images at the beginning.
  sure_first: Annotated[float, Share] = 0.9
  # Least confidence of sure images at the end.
  sure_last: Annotated[float, Share] = 0.7
  # Weight of early-learning regularization.
  early_weight: Annotated[float, NonNegative] = 5.0
  early_momentum: Annotated[float, Share] = 0.9  # of its targets
  neighbourhood_weight: Annotated[float, NonNegative] = 0.05
  neighbourhood_temperature: Annotated[float, Positive] = 0.05

  recipe: ClassVar[Recipe] = Recipe(
    epochs=400,
    schedule="constant",
    weight_decay=1e-6,
    backbone_rate=1.0,
    classifier_rate=0.0,
  )

  def init(self, key: jax.Array, context: Context) -> State:
    """Train the generator and return the source with its banks and labels."""
    source, predictions = context.teacher, context.predictions
    train_key, draw_key, head_key = jax.random.split(key, 3)
    features = normalize(predictions.features)
    generator = self.train_generator(train_key, source)
    head = Projection(self.projection_width).init(head_key, features[:1])
    return State(
      context.recipe.init(source),
      head,
      context.recipe.make_optimizer().init(head),
      generator,
      self.draw(draw_key, source, generator),
      self.label(predictions, jnp.float32(0.0)),
      features,
      shard(jnp.zeros_like(predictions.logits)),
      predictions.valid,
    )

  def relabel(self, key: jax.Array, state: State, context: Context) -> State:
    """Return the state with prototypes and labels of a new epoch."""
    return state._replace(
      prototypes=self.draw(key, state.train.network, state.generator),
      labels=self.label(context.predictions, context.progress),
    )

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take a step of the network and its head, and write the banks."""
    recipe, batch = context.recipe, context.batch
    augment_key, draw_key = jax.random.split(key)
    images = recipe.augment(augment_key, batch.images)
    network = state.train.network

    def loss(params, head):
      _, taps, variables = net.train_features(
        network.with_params(params), images, None
      )
      features = normalize(taps["penultimate"])
      info, early = self.loss(draw_key, features, head, batch.rows, state)
      return info.loss, (variables, features, early, info)

    gradients, (variables, features, early, info) = jax.grad(
      loss, argnums=(0, 1), has_aux=True
    )(network.params, state.head)
    train = recipe.update(state.train, gradients[0], variables)
    updates, head_state = recipe.make_optimizer().update(
      gradients[1], state.head_state, state.head
    )
    return state._replace(
      train=train,
      head=optax.apply_updates(state.head, updates),
      head_state=head_state,
      features=feature_bank.write(state.features, batch.rows, features),
      early=feature_bank.write(state.early, batch.rows, early),
    ), info

  def loss(
    self,
    key: jax.Array,
    features: jax.Array,
    head: Any,
    rows: jax.Array,
    state: State,
  ) -> tuple[Info, jax.Array]:
    """Return the loss terms, and the batch's new rows of t.

    Args:
      features: f32[batch, width], of length 1.
      head: parameters of h.
      rows: i32[batch].
    """
    contrast_key, early_key = jax.random.split(key)
    read = lambda bank: feature_bank.read(bank, rows)
    labels, weights = state.labels.classes, state.labels.weights
    module = Projection(self.projection_width)
    project = lambda x: normalize(module.apply(head, x))  # type: ignore
    mine, theirs = project(features), project(normalize(state.prototypes))
    # One prototype of each class for every image: f32[batch, classes, width].
    drawn = pick(contrast_key, theirs, len(features))
    similarity = jnp.einsum("bd,bkd->bk", mine, drawn)
    classes = state.prototypes.shape[0]
    own = jax.nn.one_hot(read(labels), classes) > 0
    contrasts = contrast(similarity, own, ~own, self.temperature)
    contrasted = (read(weights) * contrasts).mean()

    drawn = pick(early_key, normalize(state.prototypes), len(features))
    cosines = jnp.einsum("bd,bkd->bk", features, drawn)
    q = jax.nn.softmax(cosines / self.temperature)
    momentum = self.early_momentum
    early = momentum * read(state.early) + (1.0 - momentum) * q
    early = jax.lax.stop_gradient(early)
    kept = early_learning(q, early).mean()

    gathered = neighbourhood_entropy(
      features,
      state.features,
      rows,
      state.valid,
      self.neighbourhood_temperature,
    ).mean()
    total = contrasted
    total += self.early_weight * kept + self.neighbourhood_weight * gathered
    sure = read(state.labels.sure).mean()
    return Info(total, contrasted, kept, gathered, sure), early

  def network(self, state: State) -> Network:
    """Return the network as it is."""
    return state.train.network

  def label(self, predictions: Predictions, progress: jax.Array) -> Labels:
    """Return labels and weights after a share `progress` of the steps."""
    p, valid = jax.nn.softmax(predictions.logits), predictions.valid
    first = centroids.pseudo_labels(predictions.features, p, valid)
    least = self.sure_first + progress * (self.sure_last - self.sure_first)
    sure = valid & (first == p.argmax(1)) & (p.max(1) > least)
    seeds = jax.nn.one_hot(first, p.shape[1]) * sure[:, None]
    seeds = jnp.where(seeds.any(0)[None], seeds, p)
    found = centroids.cluster(normalize(predictions.features), seeds, valid)
    odds = jax.nn.softmax(found.cosines / self.temperature)
    classes = jnp.where(sure, first, found.labels)
    return Labels(classes, odds.max(1), sure)

  def draw(self, key: jax.Array, network: Network, generator: Any) -> jax.Array:
    """Return new prototypes, f32[classes, per class, width]."""
    module, count = self._generator(network), self.prototypes_per_class
    labels = jnp.repeat(jnp.arange(module.classes), count)
    z = jax.random.normal(key, (len(labels), self.latent))
    made = module.apply(generator, z, labels)
    return made.reshape(module.classes, count, -1)  # type: ignore

  def train_generator(self, key: jax.Array, network: Network) -> Any:
    """Return parameters of G, trained against the network's classifier."""
    module, count = self._generator(network), self.generator_batch_size
    optimizer = optax.adam(self.generator_lr)
    example = (jnp.zeros((1, self.latent)), jnp.zeros(1, jnp.int32))
    params = module.init(jax.random.fold_in(key, 0), *example)

    def step(carry, index):
      params, opt_state = carry
      keys = jax.random.split(jax.random.fold_in(key, 1 + index), 3)
      labels = jax.random.randint(keys[0], (count,), 0, module.classes)
      z = jax.random.normal(keys[1], (count, self.latent))
      labels, z = shard((labels, z))

      def loss(params):
        made: Any = module.apply(params, z, labels)
        weight = jnp.where(index < self.contrast_after, 0.0, 1.0)
        return self.generator_loss(keys[2], network, made, labels, weight)

      gradient = jax.grad(loss)(params)
      updates, opt_state = optimizer.update(gradient, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), None

    start = (params, optimizer.init(params))
    # A scan on every backend: it contains no convolution.
    steps = jnp.arange(self.generator_steps)
    return jax.lax.scan(step, start, steps)[0][0]

  def generator_loss(
    self,
    key: jax.Array,
    network: Network,
    made: jax.Array,
    labels: jax.Array,
    weight: jax.Array,
  ) -> jax.Array:
    """Return L_G, f32[].

    Args:
      made: f32[batch, width], features from G.
      labels: i32[batch], their classes.
      weight: f32[], of the contrast.
    """
    logits = layers.classify(network, made)
    classified = cross_entropy(logits, labels).mean()
    own_key, other_key = jax.random.split(key)
    same = labels[:, None] == labels[None]
    own = choose_keys(own_key, same & ~jnp.eye(len(labels), dtype=bool), 1)
    others = choose_keys(other_key, ~same, logits.shape[1] - 1)
    made = normalize(made)
    contrasts = contrast(made @ made.T, own, others, 1.0, self.margin)
    return classified + weight * reduce.mean(contrasts, own.any(1))

  def _generator(self, network):
    last = layers.list_layers(network)[-1]
    width, classes = layers.kernel(network, last).shape
    return PrototypeGenerator(classes, width, self.generator_width)


def pick(key: jax.Array, prototypes: jax.Array, count: int) -> jax.Array:
  """Draw one prototype of each class for each of `count` images.

  Args:
    prototypes: f32[classes, per class, width].

  Returns:
    f32[count, classes, width].
  """
  classes, per_class, _ = prototypes.shape
  place = jax.random.randint(key, (count, classes), 0, per_class)
  return shard(prototypes[jnp.arange(classes)[None], place])
