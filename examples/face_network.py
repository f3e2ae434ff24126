"""A small residual network that maps a face to a feature vector, and the class weights that go with it."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from face_augmentation import SIDE

FEATURES = 128
WIDTHS = (16, 32, 64)


class ResidualBlock(nnx.Module):
    """Two convolutions beside a projection, at half the resolution of the input."""

    def __init__(self, width_in: int, width: int, *, rngs: nnx.Rngs):
        self.norm1 = nnx.BatchNorm(width_in, rngs=rngs)
        self.conv1 = nnx.Conv(width_in, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(width, rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.shortcut = nnx.Conv(width_in, width, (1, 1), strides=2, use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        y = self.conv1(nnx.relu(self.norm1(x)))
        y = self.conv2(nnx.relu(self.norm2(y)))
        return y + self.shortcut(x)


class FaceNetwork(nnx.Module):
    """Pictures [B, 32, 32] -> features [B, 128]; `classes` [C, 128] is one weight row per person.

    `margin_state` holds what the loss carries and learns; it stands here to be trained and kept with the rest.
    """

    def __init__(self, people: int, margin_state: nnx.Module, *, rngs: nnx.Rngs):
        self.stem = nnx.Conv(1, WIDTHS[0], (3, 3), strides=2, use_bias=False, rngs=rngs)
        widths = itertools.pairwise((WIDTHS[0], *WIDTHS))
        self.blocks = nnx.List(ResidualBlock(width_in, width, rngs=rngs) for width_in, width in widths)
        self.norm = nnx.BatchNorm(WIDTHS[-1], rngs=rngs)
        side = SIDE // 2 ** (1 + len(WIDTHS))
        self.features = nnx.Linear(WIDTHS[-1] * side * side, FEATURES, use_bias=False, rngs=rngs)
        # Batch normalisation of the features themselves, as in ArcFace's network: no scale can run away.
        self.feature_norm = nnx.BatchNorm(FEATURES, rngs=rngs)
        self.classes = nnx.Param(jax.random.normal(rngs.params(), (people, FEATURES)) / jnp.sqrt(FEATURES))
        self.margin_state = margin_state

    def __call__(self, pictures: Array) -> Array:
        x = self.stem(pictures[..., None])
        for block in self.blocks:
            x = block(x)
        x = nnx.relu(self.norm(x))
        return self.feature_norm(self.features(x.reshape(len(x), -1)))
