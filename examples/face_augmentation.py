"""What the network sees: small, standardised pictures, varied at random while it trains."""

from collections import namedtuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates

from rendered_faces import draw

SIDE = 32  # enough to tell people apart, and four times cheaper than 64


def shrink(pictures: Array) -> Array:
    """[N, H, W] -> [N, 32, 32], by averaging; H and W multiples of 32."""
    count, height, width = pictures.shape
    return pictures.reshape(count, SIDE, height // SIDE, SIDE, width // SIDE).mean((2, 4))


def standardise(pictures: Array) -> Array:
    """Each picture with mean 0 and deviation 1: brightness and contrast are the camera's, not the person's."""
    mean = pictures.mean((-2, -1), keepdims=True)
    deviation = pictures.std((-2, -1), keepdims=True)
    return (pictures - mean) / (deviation + 1e-3)


# Lengths are in units of half the picture's side; every value is drawn uniformly between the two limits.
CHANGES = {
    "mirror": (-1.0, 1.0),
    "turn": (-0.17, 0.17),
    "scale_down": (0.9, 1.1),
    "scale_across": (0.9, 1.1),
    "shift_down": (-0.125, 0.125),
    "shift_across": (-0.125, 0.125),
    "light_down": (-0.25, 0.25),
    "light_across": (-0.25, 0.25),
    "patch_row": (-1.0, 1.0),
    "patch_column": (-1.0, 1.0),
    "patch_height": (0.0, 0.5),
    "patch_width": (0.0, 0.5),
}
Change = namedtuple("Change", CHANGES)


def augment(key: Array, pictures: Array) -> Array:
    """Pictures [B, 32, 32] mirrored, moved, lit from a side and partly hidden, each in its own way."""

    def one(picture, *values):
        change = Change(*values)
        return hide(change, standardise(relight(change, move(change, picture))))

    return jax.vmap(one)(pictures, *draw(key, CHANGES, (len(pictures),)))


def grid() -> list[Array]:
    """Row and column of each pixel, from -1 to 1."""
    return jnp.meshgrid(*2 * [jnp.linspace(-1, 1, SIDE)], indexing="ij")


def move(change: Change, picture: Array) -> Array:
    """Mirrors, turns, scales and shifts, in one resampling."""
    row, column = grid()
    column = column * jnp.sign(change.mirror)
    cos, sin = jnp.cos(change.turn), jnp.sin(change.turn)
    from_row = change.scale_down * (cos * row - sin * column) + change.shift_down
    from_column = change.scale_across * (sin * row + cos * column) + change.shift_across
    pixels = [(coordinate + 1) * (SIDE - 1) / 2 for coordinate in (from_row, from_column)]
    return map_coordinates(picture, pixels, order=1, mode="nearest")


def relight(change: Change, picture: Array) -> Array:
    """A lamp at some side: the light falls off across the picture."""
    row, column = grid()
    return picture * (1 + change.light_down * row + change.light_across * column)


def hide(change: Change, picture: Array) -> Array:
    """Puts the mean tone over a rectangle (random erasing)."""
    row, column = grid()
    hidden = jnp.abs(row - change.patch_row) < change.patch_height
    hidden &= jnp.abs(column - change.patch_column) < change.patch_width
    return jnp.where(hidden, 0.0, picture)
