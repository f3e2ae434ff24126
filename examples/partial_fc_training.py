"""Partial FC on rendered faces: in each step new pictures of some people, and a sample of the class rows.

The network has its optimiser, and the class rows theirs, of which a step over a sample touches the sampled rows alone.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

import margin_softmax as ms
from face_augmentation import standardise
from face_network import FaceNetwork, SmallBackbone
from rendered_faces import drawn_people, portraits

SIDE = 32
FEATURES = 128
BATCH = 256
MARGIN, SCALE = 0.2, 24.0
ARCFACE = ms.arcface(MARGIN, scale=SCALE)
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
# A class has few examples, and its row must follow each of them: with this rate, one moves it by half its length.
CLASS_LEARNING_RATE = 5.0


class Trial(NamedTuple):
    """One run: what makes its result, and nothing else. `rate` of the class rows are in each step."""

    rate: float
    momentum: float
    corrected: bool
    seed: int
    identities: int
    steps: int

    @property
    def sampled(self) -> int:
        return round(self.rate * self.identities)

    def file(self, folder: Path) -> Path:
        sum_of = "corrected-" if self.corrected else ""
        size = f"identities{self.identities}-steps{self.steps}"
        return folder / f"rate{self.rate}-momentum{self.momentum}-{sum_of}{size}-seed{self.seed}.json"


class Training(NamedTuple):
    """All that a step changes: the network, the class rows `[C, D]`, and what their optimisers carry."""

    step: Array
    network: Any
    statistics: Any
    network_moments: Any
    classes: Any
    class_moments: Any


class Run:
    """A network and its class rows in training. Step n is a function of the trial, of n and of the state before it."""

    def __init__(self, trial: Trial):
        self.trial = trial
        people_key, start_key, self.key = jax.random.split(jax.random.key(trial.seed), 3)
        self.people = drawn_people(people_key, trial.identities)
        model = _new_network(start_key, people=trial.identities)
        classes = model.classes[...]
        del model.classes  # trained apart, by rows
        self.graph, network, statistics = nnx.split(model, nnx.Param, ...)
        moments = network_optimiser(trial.steps).init(network), class_optimiser(trial).init(classes)
        self.training = Training(jnp.int32(0), network, statistics, moments[0], classes, moments[1])
        arguments = self.training, self.people, self.key
        self.step = _step.lower(*arguments, graph=self.graph, trial=trial._replace(seed=0)).compile()

    def advance(self) -> Array:
        self.training, loss = self.step(self.training, self.people, self.key)
        return loss

    @property
    def model(self) -> FaceNetwork:
        return nnx.merge(self.graph, self.training.network, self.training.statistics)


@functools.partial(nnx.jit, static_argnames="people")
def _new_network(key: Array, *, people: int) -> FaceNetwork:
    rngs = nnx.Rngs(key)
    return FaceNetwork(SmallBackbone((SIDE, SIDE, 1), FEATURES, rngs=rngs), people, nnx.Module(), rngs=rngs)


def falling(peak: float, steps: int) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(0.0, peak, steps // 20, steps, 0.01 * peak)


def network_optimiser(steps: int) -> optax.GradientTransformation:
    return optax.adamw(falling(LEARNING_RATE, steps), weight_decay=WEIGHT_DECAY)


def class_optimiser(trial: Trial) -> optax.GradientTransformationExtraArgs:
    """Momentum belongs to the row, the learning rate to the step. With all classes every optimiser is a lazy one."""
    momentum = optax.trace(trial.momentum) if trial.momentum else optax.identity()
    peak = CLASS_LEARNING_RATE * (1 - trial.momentum)
    by_row = momentum if trial.rate == 1 else ms.lazy_rows(momentum)
    return optax.chain(by_row, optax.scale_by_learning_rate(falling(peak, trial.steps)))


@functools.partial(jax.jit, static_argnames=("graph", "trial"), donate_argnames="training")
def _step(training: Training, people: Array, key: Array, *, graph: Any, trial: Trial) -> tuple[Training, Array]:
    label_key, picture_key, grain_key, sample_key = jax.random.split(jax.random.fold_in(key, training.step), 4)
    labels = jax.random.randint(label_key, (BATCH,), 0, trial.identities)
    pictures = standardise(portraits(people[:, labels], picture_key, grain_key, SIDE)[..., None])

    def features_of(network):
        model = nnx.merge(graph, network, training.statistics, copy=True)
        return model(pictures), nnx.state(model, nnx.Not(nnx.Param))

    features, pull, statistics = jax.vjp(features_of, training.network, has_aux=True)
    loss, features_bar, classes, class_moments = class_step(
        training.classes, training.class_moments, features, labels, sample_key, trial=trial
    )
    (gradient,) = pull(features_bar)
    changes, network_moments = network_optimiser(trial.steps).update(
        gradient, training.network_moments, training.network
    )
    network = optax.apply_updates(training.network, changes)
    return Training(training.step + 1, network, statistics, network_moments, classes, class_moments), loss


def class_step(
    classes: Array, moments: Any, features: Array, labels: Array, key: Array, *, trial: Trial
) -> tuple[Any, ...]:
    """What of a step depends on the number of classes: the loss, the features' gradient, and new class rows."""
    optimiser = class_optimiser(trial)

    def mean_loss(features, rows, labels, bias=None):
        return ms.margin_loss(features, rows, labels, ARCFACE, bias=bias).mean()

    of_loss = jax.value_and_grad(mean_loss, argnums=(0, 1))
    if trial.rate == 1:
        loss, (features_bar, gradient) = of_loss(features, classes, labels)
        changes, moments = optimiser.update(gradient, moments, classes)
        return loss, features_bar, optax.apply_updates(classes, changes), moments

    sample = ms.sample_classes(key, labels, trial.identities, trial.sampled)
    rows = ms.take_rows(classes, sample)
    bias = sample.log_weights if trial.corrected else None
    loss, (features_bar, gradient) = of_loss(features, rows, sample.labels, bias)
    changes, moments = optimiser.update(gradient, moments, rows, sample=sample)
    return loss, features_bar, ms.put_rows(classes, optax.apply_updates(rows, changes), sample), moments
