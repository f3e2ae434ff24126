"""What the network sees: standardised pictures of one size, varied at random while it trains."""

from collections import namedtuple
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates

from rendered_faces import draw

Limits = tuple[float, float]


def as_seen(pictures: Array, size: tuple[int, int]) -> Array:
    """[N, H, W, channels], uint8 or tones from 0 to 1 -> [N, *size, channels], tones from 0 to 1."""
    tones = pictures / jnp.float32(255) if pictures.dtype == jnp.uint8 else pictures
    count, height, width, channels = tones.shape
    if height % size[0] == 0 and width % size[1] == 0:  # averages, exactly
        blocks = tones.reshape(count, size[0], height // size[0], size[1], width // size[1], channels)
        return blocks.mean((2, 4))
    return jax.image.resize(tones, (count, *size, channels), "linear", antialias=True)


def standardise(pictures: Array) -> Array:
    """Each picture with mean 0 and deviation 1: brightness and contrast are the camera's, not the person's."""
    mean = pictures.mean((-3, -2, -1), keepdims=True)
    deviation = pictures.std((-3, -2, -1), keepdims=True)
    return (pictures - mean) / (deviation + 1e-3)


class Changes(NamedTuple):
    """By how much pictures are varied: each value is drawn uniformly between two limits.

    Lengths are in units of half the picture's side, angles in radians. `mirror` has only a sign.
    """

    mirror: Limits = (-1.0, 1.0)
    turn: Limits = (-0.17, 0.17)
    scale_down: Limits = (0.9, 1.1)
    scale_across: Limits = (0.9, 1.1)
    shift_down: Limits = (-0.125, 0.125)
    shift_across: Limits = (-0.125, 0.125)
    light_down: Limits = (-0.25, 0.25)
    light_across: Limits = (-0.25, 0.25)
    patch_row: Limits = (-1.0, 1.0)
    patch_column: Limits = (-1.0, 1.0)
    patch_height: Limits = (0.0, 0.5)
    patch_width: Limits = (0.0, 0.5)


Change = namedtuple("Change", Changes._fields)


def augment(key: Array, pictures: Array, changes: Changes) -> Array:
    """Pictures [B, H, W, channels] mirrored, moved, lit from a side and partly hidden, each in its own way."""

    def one(picture, *drawn):
        change = Change(*drawn)
        return hide(change, standardise(relight(change, move(change, picture))))

    return jax.vmap(one)(pictures, *draw(key, changes._asdict(), (len(pictures),)))


def grid(picture: Array) -> list[Array]:
    """Row and column of each pixel, from -1 to 1."""
    height, width, _ = picture.shape
    return jnp.meshgrid(jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width), indexing="ij")


def move(change: Change, picture: Array) -> Array:
    """Mirrors, turns, scales and shifts, in one resampling."""
    height, width, _ = picture.shape
    row, column = grid(picture)
    column = column * jnp.sign(change.mirror)
    cos, sin = jnp.cos(change.turn), jnp.sin(change.turn)
    from_row = change.scale_down * (cos * row - sin * column * (width / height)) + change.shift_down
    from_column = change.scale_across * (sin * row * (height / width) + cos * column) + change.shift_across
    pixels = [(at + 1) * (side - 1) / 2 for at, side in ((from_row, height), (from_column, width))]

    def resampled(channel):
        return map_coordinates(channel, pixels, order=1, mode="nearest")

    return jax.vmap(resampled, in_axes=-1, out_axes=-1)(picture)


def relight(change: Change, picture: Array) -> Array:
    """A lamp at some side: the light falls off across the picture."""
    row, column = grid(picture)
    return picture * (1 + change.light_down * row + change.light_across * column)[..., None]


def hide(change: Change, picture: Array) -> Array:
    """Puts the mean tone over a rectangle (random erasing)."""
    row, column = grid(picture)
    hidden = jnp.abs(row - change.patch_row) < change.patch_height
    hidden &= jnp.abs(column - change.patch_column) < change.patch_width
    return jnp.where(hidden[..., None], 0.0, picture)
