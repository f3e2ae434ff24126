"""Training a face network with a margin softmax loss: what happens in one step, and nothing around it."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import margin_softmax as ms
from face_augmentation import as_seen, augment, standardise
from face_batches import FaceBatch, batches
from face_network import Backbone, FaceNetwork, Shape
from face_recipes import Recipe
from faces.pictures import Pictures
from many_devices import all_devices, head_over, keep_in_place, lay_out, of_all_processes, refuse_uneven, split
from margin_expression import Known, margin_at
from margin_state import Batch, MarginState, trial

ON_ONE_DEVICE = {"blockwise": ms.blockwise(), "dense": ms.dense()}
HEADS = *ON_ONE_DEVICE, "sharded"
EMBEDDED_AT_ONCE = 300


class Progress(NamedTuple):
    """What one step tells: means over the batch, angles in radians."""

    loss: Array
    target_angle: Array
    other_angle: Array
    norm: Array


class Run:
    """A network in training. Step n is a function of the seed, of n and of the state before it, and of nothing else."""

    def __init__(self, pictures: Pictures, recipe: Recipe, margin: str, head: str, seed: int):
        self.pictures, self.recipe, self.seed = pictures, recipe, seed
        people = len(pictures.names)
        self.batch = min(recipe.batch, len(pictures))
        self.mesh = all_devices() if head == "sharded" else None
        refuse_uneven(self.batch, self.mesh)
        self.head = ON_ONE_DEVICE[head] if self.mesh is None else head_over(self.mesh)
        self.labels = jnp.asarray(pictures.labels)
        known = Known(people, self.batch, counts=np.bincount(pictures.labels, minlength=people))
        self.margin_at = margin_at(margin, known)
        start_key, self.key = jax.random.split(jax.random.key(seed))
        self.learning_rate = recipe.learning_rate(recipe.steps(len(pictures)))
        tx = optimiser(recipe, len(pictures), decay_classes=not normalises_weights(trial(margin)))
        state, shape = MarginState(self.margin_at(0), known, recipe.features), recipe.shape(pictures.shape)
        self.model, self.optimizer = start(start_key, state, recipe=recipe, shape=shape, people=people, tx=tx)
        lay_out(self.mesh, self.model, self.optimizer)
        self.losses: list[float | Array] = []
        self.angles: list[tuple[float | Array, float | Array]] = []
        self.fetched: FaceBatch | None = None
        self._batches: tuple[int, Iterator[FaceBatch]] | None = None

    @property
    def step(self) -> int:
        return len(self.losses)

    def history(self) -> dict[str, list[Any]]:
        """Of every step, for a record: JSON once they are floats."""
        return {"losses": self.losses, "angles": self.angles}

    def advance(self) -> Progress:
        """One step. Raises `BadFileError` from reading its batch, before anything has changed."""
        if self.fetched is None:
            self.fetch()
        batch, self.fetched = of_all_processes(self.mesh, self.fetched), None
        key, margin = jax.random.fold_in(self.key, self.step), self.margin_at(self.step)
        static: dict[str, Any] = dict(recipe=self.recipe, head=self.head, mesh=self.mesh)
        told = train_step(self.model, self.optimizer, batch, self.labels, margin, key, self.step, **static)
        self.losses.append(told.loss)
        self.angles.append((told.target_angle, told.other_angle))
        return told

    def fetch(self) -> None:
        """Reads the batch of the next step, which is not that after the last where a checkpoint was put in between."""
        if self._batches is None or self._batches[0] != self.step:
            place = dict(process=jax.process_index(), processes=jax.process_count()) if self.mesh is not None else {}
            self._batches = self.step, batches(self.pictures, self.batch, self.seed, start=self.step, **place)
        _, iterator = self._batches
        self.fetched = next(iterator)
        self._batches = self.step + 1, iterator


@functools.partial(nnx.jit, static_argnames=("recipe", "shape", "people", "tx"))
def start(
    key: Array, state: MarginState, *, recipe: Recipe, shape: Shape, people: int, tx: optax.GradientTransformation
) -> tuple[FaceNetwork, nnx.Optimizer]:
    rngs = nnx.Rngs(key)
    model = FaceNetwork(recipe.backbone(shape, recipe.features, rngs=rngs), people, state, rngs=rngs)
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


@functools.partial(nnx.jit, static_argnames=("recipe", "head", "mesh"))
def train_step(model, optimizer, batch, all_labels, margin, key, step, *, recipe, head, mesh) -> Progress:
    # Of a batch's key only the second half is used; the first once chose the batch, and the margin's is folded in.
    _, augment_key = jax.random.split(key)
    margin_key = jax.random.fold_in(key, 2)
    raw, labels, examples = split(batch, mesh)
    pictures = augment(augment_key, as_seen(raw, model.backbone.shape[:2]), recipe.changes)

    def mean_loss(model):
        features, classes = model(pictures, jax.random.fold_in(key, 3)), model.classes[...]
        shown = Batch(features, classes, labels, examples, all_labels, step, margin_key, head)
        complete = model.margin_state.complete(margin, shown)
        loss = ms.margin_loss(features, classes, labels, complete, head=head).mean() + model.margin_state.penalty()
        return loss, progress(features, classes, labels, loss, head)

    (_, told), gradients = nnx.value_and_grad(mean_loss, has_aux=True)(model)
    optimizer.update(model, gradients)
    model.margin_state.bound()
    keep_in_place(mesh, model, optimizer)
    return told


def progress(features: Array, classes: Array, labels: Array, loss: Array, head: ms.Head) -> Progress:
    features, classes = jax.lax.stop_gradient((features, classes))
    nearest_other, _ = ms.nearest_class(features, classes, labels=labels, head=head)
    return Progress(
        loss=loss,
        target_angle=ms.angle(features, classes[labels]).mean(),
        other_angle=ms.angle(features, classes[nearest_other]).mean(),
        norm=jnp.linalg.norm(features, axis=-1).mean(),
    )


@functools.cache  # equal optimisers must be one object, or each run would compile its own training step
def optimiser(recipe: Recipe, pictures: int, *, decay_classes: bool) -> optax.GradientTransformation:
    def decayed(parameters):
        def of(path, leaf):
            return leaf.ndim > 1 and (decay_classes or "classes" not in jax.tree_util.keystr(path))

        return jax.tree.map_with_path(of, parameters)

    return recipe.optimiser(recipe.learning_rate(recipe.steps(pictures)), decayed)


def normalises_weights(margin: ms.Margin) -> bool:
    """Whether the loss takes class weights by their direction only: decaying their length would then mean nothing."""
    _, length = margin.weights(jnp.array([3.0, 4.0]))
    return bool(length == 1)


def embed(model: FaceNetwork, pictures: np.ndarray | Array) -> tuple[Array, Array]:
    """Of pictures [N, H, W, channels]: features [N, D], the sum over each picture and its mirror image, and norms [N].

    The norms are the means over the two pictures.
    """
    model.eval()
    parts = [
        _embed(model, jnp.asarray(pictures[at : at + EMBEDDED_AT_ONCE]))
        for at in range(0, len(pictures), EMBEDDED_AT_ONCE)
    ]
    model.train()
    features, norms = zip(*parts, strict=True)
    return jnp.concatenate(features), jnp.concatenate(norms)


@nnx.jit
def _embed(model, pictures):
    def with_norm(seen):
        features = model(seen)
        return jnp.append(features, jnp.linalg.norm(features, axis=-1, keepdims=True), axis=-1)

    # As one feature more the norm is added up, too.
    both = ms.verification.with_mirror(with_norm)(standardise(as_seen(pictures, model.backbone.shape[:2])))
    return both[:, :-1], both[:, -1] / 2


def frozen(backbone: Backbone) -> Callable[[Array], Array]:
    """What `embed` does, as a pure function that holds the weights, on no device, and returns unit features."""
    backbone.eval()
    graph, state = nnx.split(backbone)
    backbone.train()
    state = jax.tree.map(_on_host, state)

    def unit_features(pictures):
        backbone = nnx.merge(graph, state)
        features = ms.verification.with_mirror(backbone)(standardise(as_seen(pictures, backbone.shape[:2])))
        return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)

    return unit_features


def _on_host(leaf: Array) -> Any:
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)
