"""What maps a face to a feature vector, and the class weights that go with it."""

import itertools

import jax
from flax import nnx
from jax import Array
from jax import numpy as jnp

Shape = tuple[int, int, int]


class StridedBlock(nnx.Module):
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


class SmallBackbone(nnx.Module):
    """Pictures `[B, *shape]` -> features `[B, D]`, in seconds on two cores: four convolution stages of few channels."""

    def __init__(self, shape: Shape, features: int, *, widths: tuple[int, ...] = (16, 32, 64), rngs: nnx.Rngs):
        self.shape, self.features = shape, features
        height, width, channels = shape
        self.stem = nnx.Conv(channels, widths[0], (3, 3), strides=2, use_bias=False, rngs=rngs)
        stages = itertools.pairwise((widths[0], *widths))
        self.blocks = nnx.List(StridedBlock(width_in, width_out, rngs=rngs) for width_in, width_out in stages)
        self.norm = nnx.BatchNorm(widths[-1], rngs=rngs)
        pixels = (height // 16) * (width // 16)
        self.linear = nnx.Linear(widths[-1] * pixels, features, use_bias=False, rngs=rngs)
        # Batch normalisation of the features themselves, as in ArcFace's network: no scale can run away.
        self.feature_norm = nnx.BatchNorm(features, rngs=rngs)

    def __call__(self, pictures: Array, key: Array | None = None) -> Array:
        """Leaves nothing to chance, and so needs no `key`."""
        del key
        x = self.stem(pictures)
        for block in self.blocks:
            x = block(x)
        x = nnx.relu(self.norm(x))
        return self.feature_norm(self.linear(x.reshape(x.shape[0], -1)))


class ResidualBlock(nnx.Module):
    """Two convolutions beside the input, averaged over 2 x 2 pixels first where the resolution is to be halved.

    Averaging comes before the convolutions because the derivative of a strided one is slow on CPUs.
    """

    def __init__(self, width_in: int, width: int, *, halve: bool, rngs: nnx.Rngs):
        self.halve = halve
        self.norm1 = nnx.BatchNorm(width_in, rngs=rngs)
        self.conv1 = nnx.Conv(width_in, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(width, rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs)
        # A scale of zero: the block begins as its shortcut.
        self.norm3 = nnx.BatchNorm(width, scale_init=nnx.initializers.zeros_init(), rngs=rngs)
        self.shortcut = None if width == width_in else nnx.Conv(width_in, width, (1, 1), use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = averaged(x) if self.halve else x
        y = nnx.relu(self.norm2(self.conv1(self.norm1(x))))
        y = self.norm3(self.conv2(y))
        return y + (x if self.shortcut is None else self.shortcut(x))


def averaged(x: Array) -> Array:
    """Means over 2 x 2 pixels: [B, H, W, channels] -> [B, H / 2, W / 2, channels]."""
    count, height, width, channels = x.shape
    return x.reshape(count, height // 2, 2, width // 2, 2, channels).mean((2, 4))


class ResidualBackbone(nnx.Module):
    """Pictures `[B, *shape]` -> features `[B, D]`; H and W multiples of 16. The stem and each stage halve them."""

    def __init__(
        self,
        shape: Shape,
        features: int,
        *,
        widths: tuple[int, ...] = (64, 64, 128, 256),
        blocks: tuple[int, ...] = (2, 1, 1),
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.shape, self.features = shape, features
        height, width, channels = shape
        # Each 2 x 2 pixels become four channels: the first convolution, of few channels, is the slowest of all.
        self.stem = nnx.Conv(4 * channels, widths[0], (3, 3), use_bias=False, rngs=rngs)
        self.stem_norm = nnx.BatchNorm(widths[0], rngs=rngs)
        stages = []
        for (width_in, width_out), count in zip(itertools.pairwise(widths), blocks, strict=True):
            stages.append(ResidualBlock(width_in, width_out, halve=True, rngs=rngs))
            stages += [ResidualBlock(width_out, width_out, halve=False, rngs=rngs) for _ in range(count - 1)]
        self.blocks = nnx.List(stages)
        self.norm = nnx.BatchNorm(widths[-1], rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        pixels = (height >> len(widths)) * (width >> len(widths))
        self.linear = nnx.Linear(widths[-1] * pixels, features, use_bias=False, rngs=rngs)
        # Without a scale a feature is about as long as the square root of D, and no loss can let that run away.
        self.feature_norm = nnx.BatchNorm(features, use_scale=False, rngs=rngs)

    def __call__(self, pictures: Array, key: Array | None = None) -> Array:
        """`key` decides what is dropped; in evaluation nothing is, and none is needed."""
        count, height, width, channels = pictures.shape
        x = pictures.reshape(count, height // 2, 2, width // 2, 2, channels)
        x = self.stem(x.transpose(0, 1, 3, 2, 4, 5).reshape(count, height // 2, width // 2, 4 * channels))
        # Before any averaging: with nothing but a convolution here, what is finer than four pixels is seen linearly.
        x = nnx.relu(self.stem_norm(x))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x).reshape(count, -1)
        if not self.dropout.deterministic:  # in evaluation it is nothing, and converters to ONNX need not know it
            x = self.dropout(x, rngs=None if key is None else nnx.Rngs(dropout=key))
        return self.feature_norm(self.linear(x))


Backbone = SmallBackbone | ResidualBackbone


class FaceNetwork(nnx.Module):
    """A backbone, and one row of weights `[C, D]` for each person.

    `margin_state` holds what the loss carries and learns; it stands here to be trained and kept with the rest.
    """

    def __init__(self, backbone: Backbone, people: int, margin_state: nnx.Module, *, rngs: nnx.Rngs):
        self.backbone = backbone
        features = backbone.features
        self.classes = nnx.Param(jax.random.normal(rngs.params(), (people, features)) / jnp.sqrt(features))
        self.margin_state = margin_state

    def __call__(self, pictures: Array, key: Array | None = None) -> Array:
        return self.backbone(pictures, key)
