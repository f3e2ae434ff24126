"""Training a face network with a margin softmax loss: what happens in one step, and nothing around it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

import margin_softmax as ms
from face_augmentation import augment, shrink, standardise
from face_data import Faces
from face_network import FaceNetwork
from many_devices import all_devices, head_over, keep_in_place, lay_out, refuse_uneven, split
from margin_expression import Known, margin_at
from margin_state import Batch, MarginState, trial

ON_ONE_DEVICE = {"blockwise": ms.blockwise(), "dense": ms.dense()}
HEADS = *ON_ONE_DEVICE, "sharded"
BATCH = 64
WEIGHT_DECAY = 0.05
# A constant end, and not the number of steps asked for: a run of 2 N steps begins as one of N.
learning_rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, warmup_steps=30, decay_steps=450, end_value=1.5e-4)
EMBEDDED_AT_ONCE = 300


class Progress(NamedTuple):
    """What one step tells: means over the batch, angles in radians."""

    loss: Array
    target_angle: Array
    other_angle: Array
    norm: Array


class Run:
    """A network in training. Step n is a function of the seed, of n and of the state before it, and of nothing else."""

    def __init__(self, faces: Faces, margin: str, head: str, seed: int):
        self.pictures, self.labels = shrink(jnp.asarray(faces.pictures)), jnp.asarray(faces.labels)
        self.batch = min(BATCH, len(faces.labels))
        self.mesh = all_devices() if head == "sharded" else None
        refuse_uneven(self.batch, self.mesh)
        self.head = ON_ONE_DEVICE[head] if self.mesh is None else head_over(self.mesh)
        known = Known(faces.people, self.batch, counts=np.bincount(faces.labels, minlength=faces.people))
        self.margin_at = margin_at(margin, known)
        start_key, self.key = jax.random.split(jax.random.key(seed))
        tx = optimiser(decay_classes=not normalises_weights(trial(margin)))
        state = MarginState(self.margin_at(0), known)
        self.model, self.optimizer = start(start_key, state, people=faces.people, tx=tx)
        lay_out(self.mesh, self.model, self.optimizer)
        self.losses: list[float | Array] = []

    @property
    def step(self) -> int:
        return len(self.losses)

    def advance(self) -> Progress:
        key, margin = jax.random.fold_in(self.key, self.step), self.margin_at(self.step)
        data = self.pictures, self.labels
        static: dict[str, Any] = dict(batch=self.batch, head=self.head, mesh=self.mesh)
        progress = train_step(self.model, self.optimizer, *data, margin, key, self.step, **static)
        self.losses.append(progress.loss)
        return progress


@functools.partial(nnx.jit, static_argnames=("people", "tx"))
def start(
    key: Array, state: MarginState, *, people: int, tx: optax.GradientTransformation
) -> tuple[FaceNetwork, nnx.Optimizer]:
    model = FaceNetwork(people, state, rngs=nnx.Rngs(key))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


@functools.partial(nnx.jit, static_argnames=("batch", "head", "mesh"))
def train_step(model, optimizer, pictures, all_labels, margin, key, step, *, batch, head, mesh) -> Progress:
    batch_key, augment_key = jax.random.split(key)
    margin_key = jax.random.fold_in(key, 2)  # and not one of three: splitting in three would change the other two
    chosen = split(jax.random.choice(batch_key, len(all_labels), (batch,), replace=False), mesh)
    pictures, labels = augment(augment_key, pictures[chosen]), all_labels[chosen]

    def mean_loss(model):
        features, classes = model(pictures), model.classes[...]
        shown = Batch(features, classes, labels, chosen, all_labels, step, margin_key, head)
        complete = model.margin_state.complete(margin, shown)
        loss = ms.margin_loss(features, classes, labels, complete, head=head).mean() + model.margin_state.penalty()
        return loss, progress(features, classes, labels, loss)

    (_, told), gradients = nnx.value_and_grad(mean_loss, has_aux=True)(model)
    optimizer.update(model, gradients)
    model.margin_state.bound()
    keep_in_place(mesh, model, optimizer)
    return told


def progress(features: Array, classes: Array, labels: Array, loss: Array) -> Progress:
    features, classes = jax.lax.stop_gradient((features, classes))
    own = jnp.arange(len(classes)) == labels[:, None]
    nearest_other = jnp.argmax(jnp.where(own, -jnp.inf, ms.cosines(features, classes)), axis=-1)
    return Progress(
        loss=loss,
        target_angle=ms.angle(features, classes[labels]).mean(),
        other_angle=ms.angle(features, classes[nearest_other]).mean(),
        norm=jnp.linalg.norm(features, axis=-1).mean(),
    )


@functools.cache  # equal optimisers must be one object, or each run would compile its own training step
def optimiser(*, decay_classes: bool) -> optax.GradientTransformation:
    def decayed(parameters):
        def of(path, leaf):
            return leaf.ndim > 1 and (decay_classes or "classes" not in jax.tree_util.keystr(path))

        return jax.tree.map_with_path(of, parameters)

    return optax.adamw(learning_rate, weight_decay=WEIGHT_DECAY, mask=decayed)


def normalises_weights(margin: ms.Margin) -> bool:
    """Whether the loss takes class weights by their direction only: decaying their length would then mean nothing."""
    _, length = margin.weights(jnp.array([3.0, 4.0]))
    return bool(length == 1)


def embed(model: FaceNetwork, pictures: ArrayLike) -> Array:
    """Features [N, D] of pictures [N, H, W]: the sum over each picture and its mirror image."""
    small = standardise(shrink(jnp.asarray(pictures)))
    model.eval()
    parts = [_embed(model, small[at : at + EMBEDDED_AT_ONCE]) for at in range(0, len(small), EMBEDDED_AT_ONCE)]
    model.train()
    return jnp.concatenate(parts)


@nnx.jit
def _embed(model, pictures):
    return model(pictures) + model(pictures[:, :, ::-1])
