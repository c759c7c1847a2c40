"""CPGA: prototypes of the classes, made by a generator, draw the target near.

Qiu et al., "Source-free Domain Adaptation via Avatar Prototype Generation and
Adaptation", IJCAI 2021. First a generator of features G(z, y) is trained
against the classifier C, which needs no image:

  L_G = CE(C(G(z, y)), y) + mean_i NCE(g_i, g+, g-; 1, margin 0.5)

NCE is the loss of `losses.contrastive` on cosines: g+ is another feature of the
class, g- are K - 1 of other classes, K the number of classes. It begins after
`contrast_after` steps. Then the network is trained, C kept as it is:

  L = mean_i w_i NCE(h(f_i), h(v_yi), h(v_k); 0.07)
      + 5 mean_i log(1 - <t_i, q_i>) + 0.05 mean_i H(softmax(<f_i, f_j> / 0.05))

Here f are features, v_k one prototype of class k drawn anew for every image, h
a head that is learnt with the network. q_i = softmax_k(cos(f_i, v_k) / 0.07)
and t_i <- 0.9 t_i + 0.1 q_i, from 0 (`losses.early_learning`). j runs over all
other images of the target, kept in a bank (`losses.neighbourhood`).

At every epoch `prototypes_per_class` prototypes are made anew, and labels:

  labels of two rounds of clustering (`centroids`, as in SHOT)
  sure images: that label is the network's own, with p > a, a from 0.9 to 0.7
  two more rounds, from the centroids of the sure images (a class without any
  keeps the mean weighted by p); sure images keep their label
  w_i = max_k softmax(cos(f_i, c_k) / 0.07)

Defaults are released code's; for VisDA it takes 24 prototypes a class.
Deviations: its generator has transposed convolutions, ours is two linear layers
of about that width, trained by Adam (ours; its rate is not checked). Its first
ten epochs align target features with prototypes against a discriminator and do
nothing else: left out. Its rate falls by 5 % every 2000 steps: here it stays.
AutoAugment is left out. h learns at --lr, as there in effect, where a factor of
5 is meant and lost. Labels and weights of its first rounds see a constant 1
behind the features (`centroids`), those of the second do not.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import network as net
from dfkt_jax import parallel, tails
from dfkt_jax.adaptation import banks, centroids
from dfkt_jax.adaptation.contract import Answers, Batch
from dfkt_jax.adaptation.course import Course, Learner
from dfkt_jax.losses import classification, information
from dfkt_jax.losses.contrastive import choose, contrast
from dfkt_jax.losses.early_learning import early_learning
from dfkt_jax.losses.neighbourhood import neighbourhood_entropy
from dfkt_jax.losses.relation import normalise
from dfkt_jax.models.vectors import Projection, PrototypeGenerator
from dfkt_jax.network import Network


class Labels(NamedTuple):
  """Of all target images."""

  classes: jax.Array  # i32[rows]
  weights: jax.Array  # f32[rows], w
  sure: jax.Array  # bool[rows]


class State(NamedTuple):
  learner: Learner
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
  """Hyper-parameters; defaults are released code's."""

  generator_steps: int = 1000  # on the classifier alone, before the first step
  generator_batch_size: int = 128
  generator_width: int = 1024  # of its hidden layer
  generator_lr: float = 1e-3  # of Adam; ours
  latent: int = 100  # width of the generator's noise
  contrast_after: int = 30  # generator steps with cross-entropy alone
  margin: float = 0.5  # of the generator's contrast
  prototypes_per_class: int = 2  # drawn at every epoch
  projection_width: int = 256  # of the head h
  temperature: float = 0.07  # of cosines to prototypes and centroids
  sure_first: float = 0.9  # least confidence of sure images at the beginning
  sure_last: float = 0.7  # and at the end
  early_weight: float = 5.0  # of early-learning regularisation
  early_momentum: float = 0.9  # of its targets
  neighbourhood_weight: float = 0.05
  neighbourhood_temperature: float = 0.05

  course: ClassVar[Course] = Course(
    epochs=400,
    schedule="constant",
    weight_decay=1e-6,
    backbone_rate=1.0,
    classifier_rate=0.0,
  )

  def init(
    self, key: jax.Array, source: Network, answers: Answers, course: Course
  ) -> State:
    train_key, draw_key, head_key = jax.random.split(key, 3)
    features = normalise(answers.features)
    generator = self.train_generator(train_key, source)
    head = Projection(self.projection_width).init(head_key, features[:1])
    return State(
      course.init(source),
      head,
      course.make_optimizer().init(head),
      generator,
      self.draw(draw_key, source, generator),
      self.label(answers, jnp.float32(0.0)),
      features,
      jnp.zeros_like(answers.logits),
      answers.valid,
    )

  def relabel(
    self, key: jax.Array, state: State, answers: Answers, course: Course
  ) -> State:
    progress = course.progress(state.learner)
    return state._replace(
      prototypes=self.draw(key, state.learner.network, state.generator),
      labels=self.label(answers, progress),
    )

  def step(
    self, key: jax.Array, state: State, batch: Batch, course: Course
  ) -> tuple[State, Info]:
    augment_key, draw_key = jax.random.split(key)
    images = course.augment(augment_key, batch.images)
    network = state.learner.network

    def loss(params, head):
      _, taps, variables = net.train_features(
        network.with_params(params), images, None
      )
      features = normalise(taps["penultimate"])
      info, early = self.loss(draw_key, features, head, batch.rows, state)
      return info.loss, (variables, features, early, info)

    gradients, (variables, features, early, info) = jax.grad(
      loss, argnums=(0, 1), has_aux=True
    )(network.params, state.head)
    learner = course.update(state.learner, gradients[0], variables)
    updates, head_state = course.make_optimizer().update(
      gradients[1], state.head_state, state.head
    )
    return state._replace(
      learner=learner,
      head=optax.apply_updates(state.head, updates),
      head_state=head_state,
      features=banks.write(state.features, batch.rows, features),
      early=banks.write(state.early, batch.rows, early),
    ), info

  def loss(
    self,
    key: jax.Array,
    features: jax.Array,
    head: Any,
    rows: jax.Array,
    state: State,
  ) -> tuple[Info, jax.Array]:
    """Of f32[batch, width] features of length 1; and the rows of t to keep."""
    contrast_key, early_key = jax.random.split(key)
    of_batch = lambda bank: banks.read(bank, rows)
    labels, weights = state.labels.classes, state.labels.weights
    module = Projection(self.projection_width)
    project = lambda x: normalise(module.apply(head, x))  # type: ignore
    mine, theirs = project(features), project(normalise(state.prototypes))
    # One prototype a class for every image: f32[batch, classes, width].
    met = pick(contrast_key, theirs, len(features))
    similarity = jnp.einsum("bd,bkd->bk", mine, met)
    classes = state.prototypes.shape[0]
    own = jax.nn.one_hot(of_batch(labels), classes) > 0
    each = contrast(similarity, own, ~own, self.temperature)
    contrasted = (of_batch(weights) * each).mean()

    met = pick(early_key, normalise(state.prototypes), len(features))
    cosines = jnp.einsum("bd,bkd->bk", features, met)
    q = jax.nn.softmax(cosines / self.temperature)
    momentum = self.early_momentum
    early = momentum * of_batch(state.early) + (1.0 - momentum) * q
    early = jax.lax.stop_gradient(early)
    kept = early_learning(q, early)

    gathered = neighbourhood_entropy(
      features,
      state.features,
      rows,
      state.valid,
      self.neighbourhood_temperature,
    )
    total = contrasted
    total += self.early_weight * kept + self.neighbourhood_weight * gathered
    sure = of_batch(state.labels.sure).mean()
    return Info(total, contrasted, kept, gathered, sure), early

  def network(self, state: State) -> Network:
    return state.learner.network

  def label(self, answers: Answers, progress: jax.Array) -> Labels:
    """Labels, weights, and who is sure after that share of the course."""
    p, valid = jax.nn.softmax(answers.logits), answers.valid
    first = centroids.pseudo_labels(answers.features, p, valid)
    least = self.sure_first + progress * (self.sure_last - self.sure_first)
    sure = valid & (first == p.argmax(1)) & (p.max(1) > least)
    seeds = jax.nn.one_hot(first, p.shape[1]) * sure[:, None]
    seeds = jnp.where(seeds.any(0)[None], seeds, p)
    found = centroids.cluster(normalise(answers.features), seeds, valid)
    odds = jax.nn.softmax(found.cosines / self.temperature)
    classes = jnp.where(sure, first, found.labels)
    return Labels(classes, odds.max(1), sure)

  def draw(self, key: jax.Array, network: Network, generator: Any) -> jax.Array:
    """Prototypes, f32[classes, per class, width]."""
    module, count = self._generator(network), self.prototypes_per_class
    labels = jnp.repeat(jnp.arange(module.classes), count)
    z = jax.random.normal(key, (len(labels), self.latent))
    made = module.apply(generator, z, labels)
    return made.reshape(module.classes, count, -1)  # type: ignore

  def train_generator(self, key: jax.Array, network: Network) -> Any:
    """Parameters of G, a prototype of each class for the classifier."""
    module, count = self._generator(network), self.generator_batch_size
    optimizer = optax.adam(self.generator_lr)
    nothing = (jnp.zeros((1, self.latent)), jnp.zeros(1, jnp.int32))
    params = module.init(jax.random.fold_in(key, 0), *nothing)

    def step(carry, index):
      params, opt_state = carry
      keys = jax.random.split(jax.random.fold_in(key, 1 + index), 3)
      labels = jax.random.randint(keys[0], (count,), 0, module.classes)
      z = jax.random.normal(keys[1], (count, self.latent))
      labels, z = parallel.split((labels, z))

      def loss(params):
        made: Any = module.apply(params, z, labels)
        weight = jnp.where(index < self.contrast_after, 0.0, 1.0)
        return self.generator_loss(keys[2], network, made, labels, weight)

      gradient = jax.grad(loss)(params)
      updates, opt_state = optimizer.update(gradient, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), None

    start = (params, optimizer.init(params))
    # No convolution inside: rolled on every machine.
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
    """L_G of f32[batch, width] features for i32[batch] labels."""
    logits = tails.classify(network, made)
    cross_entropy = classification.cross_entropy(logits, labels)
    own_key, other_key = jax.random.split(key)
    same = labels[:, None] == labels[None]
    own = choose(own_key, same & ~jnp.eye(len(labels), dtype=bool), 1)
    others = choose(other_key, ~same, logits.shape[1] - 1)
    made = normalise(made)
    each = contrast(made @ made.T, own, others, 1.0, self.margin)
    return cross_entropy + weight * information.mean(each, own.any(1))

  def _generator(self, network):
    last = tails.layers(network)[-1]
    width, classes = tails.kernel(network, last).shape
    return PrototypeGenerator(classes, width, self.generator_width)


def pick(key: jax.Array, prototypes: jax.Array, count: int) -> jax.Array:
  """For each of `count` images one of every class, f32[count, classes, width].

  Of f32[classes, per class, width].
  """
  classes, per_class, _ = prototypes.shape
  place = jax.random.randint(key, (count, classes), 0, per_class)
  return parallel.split(prototypes[jnp.arange(classes)[None], place])
