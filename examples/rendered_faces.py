"""Faces drawn by arithmetic: any number of people, with no data set at hand.

A person is a vector of shape and tone parameters (`PERSON`); a picture adds pose, light, expression
and noise (`PICTURE`). The head is an ellipsoid seen along parallel rays, with eyes, brows, nose,
mouth and hair painted on its surface and bumps that bend its normals, so that turning the head or
moving the light changes every pixel while the person stays the same.

Run as a command, the module draws a sheet of faces:

    python examples/rendered_faces.py --out sheet.png
"""

import argparse
import functools
import sys
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

# Lengths are in units of half the picture's height, tones run from 0 (black) to 1 (white).
# Every value is drawn uniformly between the two limits.
PERSON = {
    "face_width": (0.47, 0.62),
    "face_height": (0.70, 0.86),
    "jaw": (0.05, 0.45),
    "skin": (0.45, 0.85),
    "eye_distance": (0.19, 0.29),
    "eye_height": (0.02, 0.16),
    "eye_width": (0.075, 0.12),
    "eye_opening": (0.30, 0.62),
    "iris": (0.05, 0.40),
    "brow_height": (0.09, 0.17),
    "brow_thickness": (0.014, 0.040),
    "brow_slope": (-0.30, 0.30),
    "brow_tone": (0.05, 0.55),
    "nose_length": (0.20, 0.36),
    "nose_width": (0.045, 0.095),
    "nose_relief": (0.06, 0.20),
    "mouth_height": (-0.50, -0.38),
    "mouth_width": (0.13, 0.25),
    "lip_thickness": (0.020, 0.060),
    "lip_tone": (0.45, 0.85),
    "hairline": (0.34, 0.62),
    "hair_side": (-0.50, 0.45),
    "hair_volume": (0.03, 0.16),
    "hair_tone": (0.03, 0.70),
    "beard": (-0.60, 0.55),
    "glasses": (-1.50, 1.00),
}

PICTURE = {
    "yaw": (-0.38, 0.38),
    "pitch": (-0.20, 0.20),
    "roll": (-0.10, 0.10),
    "right": (-0.05, 0.05),
    "up": (-0.05, 0.05),
    "size": (1.08, 1.22),
    "light_azimuth": (-0.70, 0.70),
    "light_elevation": (-0.10, 0.80),
    "ambient": (0.40, 0.70),
    "exposure": (0.85, 1.10),
    "gamma": (0.85, 1.20),
    "smile": (-0.35, 1.00),
    "mouth_opening": (-0.05, 0.07),
    "brow_raise": (-0.02, 0.05),
    "eyelids": (0.45, 1.10),
    "background": (0.35, 0.65),
    "clothes": (0.05, 0.80),
    "grain": (0.01, 0.035),
}

Person = namedtuple("Person", PERSON)
Picture = namedtuple("Picture", PICTURE)


def draw(key: Array, limits: dict[str, tuple[float, float]], shape: tuple[int, ...]) -> Array:
    """For each entry of `limits`, an array of the given shape, uniform between its two limits: [entries, *shape]."""
    low, high = (jnp.array(side).reshape(-1, *[1] * len(shape)) for side in zip(*limits.values(), strict=True))
    return jax.random.uniform(key, (len(limits), *shape), minval=low, maxval=high)


def rendered_faces(key: Array, people: int, pictures: int, size: int = 64) -> tuple[Array, Array]:
    """Pictures [people * pictures, size, size] with tones from 0 to 1, and their labels."""
    person_key, picture_key, grain_key = jax.random.split(key, 3)
    labels = jnp.repeat(jnp.arange(people), pictures)
    persons = drawn_people(person_key, people)[:, labels]
    return portraits(persons, picture_key, grain_key, size), labels


def drawn_people(key: Array, people: int) -> Array:
    """What makes each of them a person: [entries of `PERSON`, people]."""
    return draw(key, PERSON, (people,))


def portraits(persons: Array, picture_key: Array, grain_key: Array, size: int) -> Array:
    """A new picture [size, size] of each person of [entries of `PERSON`, N]."""
    count = persons.shape[1]
    picture = Picture(*draw(picture_key, PICTURE, (count,)))
    return _render_all(Person(*persons), picture, jax.random.split(grain_key, count), size=size)


@functools.partial(jax.jit, static_argnames="size")
def _render_all(person: Person, picture: Picture, keys: Array, *, size: int) -> Array:
    return jax.lax.map(lambda face: render(*face, size=size), (person, picture, keys), batch_size=32)


def render(person: Person, picture: Picture, key: Array, *, size: int) -> Array:
    """One picture [size, size] of one person; every field of `person` and `picture` is a scalar."""
    pixel = 2 / size
    across, down = jnp.meshgrid(*2 * [(jnp.arange(size) + 0.5) * pixel - 1])
    u, v = (across - picture.right) / picture.size, (-down - picture.up) / picture.size
    turn = rotation(picture)

    surface, inside = head_surface(person, u, v, turn)
    face = skin_and_features(person, picture, surface) * shading(person, picture, surface, turn)
    behind = backdrop(person, picture, u, v)
    tone = behind + smooth_step(inside, 1.5 * pixel) * (face - behind)
    tone = jnp.clip(picture.exposure * tone, 0, 1) ** picture.gamma
    return jnp.clip(tone + picture.grain * jax.random.normal(key, tone.shape), 0, 1)


def rotation(picture: Picture) -> Array:
    """The matrix [3, 3] that turns the head: roll after pitch after yaw. Axes: right, up, to the viewer."""
    (cy, sy), (cp, sp), (cr, sr) = ((jnp.cos(a), jnp.sin(a)) for a in (picture.yaw, picture.pitch, picture.roll))
    yaw = jnp.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    pitch = jnp.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    roll = jnp.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return roll @ pitch @ yaw


def head_axes(person: Person) -> Array:
    return jnp.stack([person.face_width, person.face_height, 0.5 * (person.face_width + person.face_height)])


def head_surface(person: Person, u: Array, v: Array, turn: Array) -> tuple[Array, Array]:
    """Where each pixel's ray meets the head: points [..., 3] in the head's own frame, and the distance to its outline.

    The distance is approximate, in units of the picture, and positive inside.
    """
    u = u / (1 - person.jaw * jnp.clip(-v, 0, 1) ** 1.5)  # the head narrows toward the chin
    to_sphere = turn.T / head_axes(person)[:, None]
    origin = jnp.stack([u, v, jnp.zeros_like(u)], axis=-1) @ to_sphere.T
    ray = to_sphere[:, 2]
    along = origin @ ray
    inside = along**2 - (ray @ ray) * (jnp.sum(origin**2, axis=-1) - 1)
    depth = (jnp.sqrt(jnp.maximum(inside, 1e-6)) - along) / (ray @ ray)
    return (origin + depth[..., None] * ray) * head_axes(person), 0.5 * inside * person.face_width


def smooth_step(x: Array, width: Array | float) -> Array:
    """0 for x well below 0, 1 well above, over about `width`: an edge without jagged pixels."""
    return jax.nn.sigmoid(4 * x / width)


def ellipse(x: Array, y: Array, width: Array | float, height: Array | float) -> Array:
    """About the distance to an ellipse around the origin, positive inside."""
    radius = jnp.sqrt((x / width) ** 2 + (y / height) ** 2 + 1e-9)
    return (1 - radius) * jnp.minimum(width, height)


def skin_and_features(person: Person, picture: Picture, surface: Array) -> Array:
    """The tone painted on each point of the head."""
    x, y, z = surface[..., 0], surface[..., 1], surface[..., 2]
    tone = jnp.full_like(x, 1.0) * person.skin

    def paint(tone, shape, new, edge=0.03):
        return tone + smooth_step(shape, edge) * smooth_step(z, 0.1) * (new - tone)

    mouth_y = y - person.mouth_height - 1.5 * picture.smile * (x**2 - 0.5 * person.mouth_width**2)
    mouth_width = person.mouth_width * (1 + 0.15 * picture.smile)
    opening = jnp.maximum(picture.mouth_opening, 0.008)
    beard = 0.30 - jnp.hypot(0.8 * x, y - person.mouth_height + 0.05)
    tone = paint(tone, beard, tone * (1 - jnp.maximum(person.beard, 0)), edge=0.15)
    tone = paint(tone, ellipse(x, mouth_y, mouth_width, person.lip_thickness + opening), person.skin * person.lip_tone)
    tone = paint(tone, ellipse(x, mouth_y, 0.95 * mouth_width, opening), 0.08)

    nose_tip = person.eye_height - person.nose_length
    nostril = ellipse(jnp.abs(x) - 0.55 * person.nose_width, y - nose_tip + 0.035, 0.025, 0.016)
    tone = paint(tone, nostril, 0.3 * person.skin)

    eye_x, eye_y = jnp.abs(x) - person.eye_distance, y - person.eye_height
    eye_opening = jnp.maximum(person.eye_width * person.eye_opening * picture.eyelids, 0.012)
    white = ellipse(eye_x, eye_y, person.eye_width, eye_opening)
    tone = paint(tone, white + 0.018, 0.45 * person.skin)
    tone = paint(tone, white, 0.92)
    tone = paint(tone, jnp.minimum(white, 0.048 - jnp.hypot(eye_x, eye_y)), person.iris)

    brow_y = eye_y - person.brow_height - picture.brow_raise - person.brow_slope * eye_x + 1.5 * eye_x**2
    brow = ellipse(eye_x, brow_y, 1.35 * person.eye_width, person.brow_thickness)
    tone = paint(tone, brow, person.brow_tone * person.skin)

    rim = 0.014 - jnp.abs(ellipse(eye_x, eye_y + 0.02, 0.155, 0.125))
    bridge = jnp.minimum(0.014 - jnp.abs(eye_y), person.eye_distance - 0.14 - jnp.abs(x))
    glasses = jnp.maximum(rim, bridge)
    tone = paint(tone, jnp.where(person.glasses > 0, glasses, -1.0), 0.10)

    hair = jnp.maximum(
        y - person.hairline + 0.9 * x**2,
        jnp.minimum(jnp.abs(x) - 0.86 * person.face_width, y - person.hair_side),
    )
    hair = jnp.maximum(hair, jnp.minimum(-z - 0.02, y - person.hair_side))
    return tone + smooth_step(hair, 0.06) * (person.hair_tone - tone)


def relief(person: Person, x: Array, y: Array) -> Array:
    """Height of nose, brow ridge, cheeks, eye sockets and chin above the ellipsoid."""

    def bump(x, y, width, height):
        return jnp.exp(-0.5 * ((x / width) ** 2 + (y / height) ** 2))

    nose_middle = person.eye_height - 0.62 * person.nose_length
    side = jnp.abs(x)
    return (
        person.nose_relief * bump(x, y - nose_middle, person.nose_width, 0.42 * person.nose_length)
        + 0.04 * bump(x, y - person.eye_height - person.brow_height, 0.30, 0.06)
        - 0.05 * bump(side - person.eye_distance, y - person.eye_height, 0.10, 0.07)
        + 0.05 * bump(side - 1.1 * person.eye_distance, y - person.eye_height + 0.24, 0.11, 0.10)
        + 0.04 * bump(x, y - person.mouth_height + 0.20, 0.12, 0.08)
    )


def shading(person: Person, picture: Picture, surface: Array, turn: Array) -> Array:
    """Ambient light plus Lambert's cosine law for one far lamp."""
    slope = jax.grad(lambda at: jnp.sum(relief(person, at[0], at[1])))(jnp.stack([surface[..., 0], surface[..., 1]]))
    normal = surface / head_axes(person) ** 2
    normal = normal / jnp.linalg.norm(normal, axis=-1, keepdims=True)
    normal = normal - jnp.stack([slope[0], slope[1], jnp.zeros_like(slope[0])], axis=-1)
    normal = normal / jnp.linalg.norm(normal, axis=-1, keepdims=True)
    azimuth, elevation = picture.light_azimuth, picture.light_elevation
    lamp = jnp.stack([jnp.sin(azimuth) * jnp.cos(elevation), jnp.sin(elevation), jnp.cos(azimuth) * jnp.cos(elevation)])
    lambert = jnp.maximum(normal @ turn.T @ lamp, 0)
    return picture.ambient + 1.25 * (1 - picture.ambient) * lambert


def backdrop(person: Person, picture: Picture, u: Array, v: Array) -> Array:
    """What is seen around the head: background, shoulders, neck, and hair that stands off the head."""
    tone = jnp.full_like(u, 1.0) * picture.background

    def paint(tone, shape, new):
        return tone + smooth_step(shape, 0.04) * (new - tone)

    tone = paint(tone, ellipse(u, v + 1.35, 1.05, 0.55), picture.clothes)
    neck = jnp.minimum(0.62 * person.face_width - jnp.abs(u), -0.3 - v)
    tone = paint(tone, jnp.minimum(neck, v + 0.98), 0.62 * person.skin * (picture.ambient + 0.35))
    width, height = person.face_width + 0.7 * person.hair_volume, person.face_height + person.hair_volume
    hair = jnp.minimum(ellipse(u + 0.25 * jnp.sin(picture.yaw), v, width, height), v - person.hair_side)
    return paint(tone, hair, person.hair_tone * (0.4 + 0.6 * picture.ambient))


def contact_sheet(pictures: ArrayLike, columns: int) -> Array:
    """The pictures [N, H, W] as one, `columns` to a row; N a multiple of `columns`."""
    pictures = jnp.asarray(pictures)
    count, height, width = pictures.shape
    grid = pictures.reshape(count // columns, columns, height, width)
    return grid.transpose(0, 2, 1, 3).reshape(count // columns * height, columns * width)


def main(arguments: list[str] | None = None) -> int:
    from matplotlib import pyplot as plt

    parser = argparse.ArgumentParser(description="Draws a sheet of rendered faces, one row for each person.")
    parser.add_argument("--people", type=int, default=8, help="rows (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=10, help="columns (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="pixels of a picture's side (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of people and pictures (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("rendered_faces.png"), help="file (default: %(default)s)")
    options = parser.parse_args(arguments)
    pictures, _ = rendered_faces(jax.random.key(options.seed), options.people, options.pictures, options.size)
    plt.imsave(options.out, contact_sheet(pictures, options.pictures), cmap="gray", vmin=0, vmax=1)
    print(f"{options.people} people, {options.pictures} pictures of each: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
