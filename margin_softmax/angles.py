"""Lengths, directions, cosines, and the angle between two vectors, accurate at every angle.

The angle is Kahan's `2 atan2(|a - b|, |a + b|)` of the two directions: no arccos, whose slope is infinite where
training ends (angle 0), no clamp, and so no frozen examples and no NaN. A direction is undefined at the zero
vector: there the cosine is 0, the angle pi/2, and every gradient 0.
"""

import functools
import math

import jax
import jax.numpy as jnp

from margin_softmax import _checks
from margin_softmax._meshes import split_as_examples


def norm(rows: jax.Array) -> jax.Array:
    """Length along the last axis, without overflow or underflow of the squares; slope 0 at the zero vector."""
    nonzero, shrink, root = _shrunk(rows)
    return jnp.where(nonzero, root / shrink, 0.0)


def _shrunk(rows):
    """Which rows are not zero; what brings their largest number to about 1; the length they then have."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(rows), axis=-1, initial=0.0))
    nonzero = largest != 0  # a NaN is not zero: it must stay visible
    smallest = float(jnp.finfo(rows.dtype).tiny)
    # The length does not depend on this factor, so treating it as constant leaves the derivative exact.
    shrink = jnp.clip(1.0 / jnp.where(nonzero, largest, 1.0), smallest, 1.0 / smallest)
    squares = jnp.sum(jnp.square(rows * shrink[..., None]), axis=-1)
    return nonzero, shrink, jnp.sqrt(jnp.where(nonzero, squares, 1.0))


@jax.custom_jvp
def reciprocal_norm(rows: jax.Array) -> jax.Array:
    """What makes a row a direction: `1 / |row|`, and 0 for the zero vector."""
    nonzero, shrink, root = _shrunk(rows)
    # Not 1 / norm: every logit of a class is multiplied by this, and one rounding less is seen in its gradient.
    return jnp.where(nonzero, shrink / root, 0.0)


@reciprocal_norm.defjvp
def _reciprocal_norm_jvp(primals, tangents):
    """`-<u, dx> / |x|^2`, one factor after the other: the square overflows for rows of length 1e-30."""
    (rows,), (d_rows,) = primals, tangents
    reciprocal = reciprocal_norm(rows)
    return reciprocal, -(reciprocal * dot(rows * reciprocal[..., None], d_rows)) * reciprocal


def unit(rows: jax.Array) -> jax.Array:
    """Directions along the last axis, 0 for the zero vector."""
    return rows * reciprocal_norm(rows)[..., None]


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inner product along the last axis, summed at full precision on every backend."""
    return jnp.sum(a * b, axis=-1)


@jax.custom_jvp
def inner(a: jax.Array, b: jax.Array, directions: jax.Array) -> jax.Array:
    """`<a, b>` along the last axis; `directions` says where both have the length 1.

    Where they have, and are near each other, `1 - |a - b|^2 / 2` does not see how their lengths were rounded, which in
    the sum costs half the digits that a logit of 60 can spare. The derivative is that of `<a, b>`.
    """
    product = dot(a, b)
    near, far = 1.0 - dot(a - b, a - b) / 2, dot(a + b, a + b) / 2 - 1.0
    by_chord = jnp.where(product > 0, near, far)
    return jnp.where(directions & (jnp.abs(product) > 0.5), by_chord, product)


@inner.defjvp
def _inner_jvp(primals, tangents):
    a, b, directions = primals
    da, db, _ = tangents
    return inner(a, b, directions), dot(da, b) + dot(a, db)


@jax.custom_jvp
def angle_between(x: jax.Array, w: jax.Array) -> jax.Array:
    """`angle` without its checks."""
    a, b = unit(x), unit(w)
    difference, total = _resolved(norm(a - b)), _resolved(norm(a + b))
    both_zero = difference + total == 0
    return jnp.where(both_zero, math.pi / 2, 2.0 * jnp.arctan2(difference, total))


def _resolved(length):
    """A difference of two directions, or 0 where it is no longer than their rounding: they are one direction then.

    Compilers may fuse `a - b` with the products that make a and b, so that it is not 0 even for equal inputs.
    """
    return jnp.where(length <= 2 * float(jnp.finfo(length.dtype).eps), 0.0, length)


@angle_between.defjvp
def _angle_between_jvp(primals, tangents):
    x, w = primals
    dx, dw = tangents
    return angle_between(x, w), -dot(_slope(x, w), dx) - dot(_slope(w, x), dw)


def _slope(x: jax.Array, w: jax.Array) -> jax.Array:
    """`-d angle / dx = u / |x|`, u the unit tangent at x's direction toward w; 0 where there is none."""
    a, b = unit(x), unit(w)
    # b - a and b + a have the same part across a; the shorter of them carries the more digits of it.
    chord = jnp.where(dot(a, b)[..., None] > 0, b - a, b + a)
    across = chord - a * dot(a, chord)[..., None]
    defined = jnp.any(w != 0, axis=-1) & (_resolved(norm(across)) != 0)
    return jnp.where(defined[..., None], unit(across), 0.0) * reciprocal_norm(x)[..., None]


def angle(x: jax.Array, w: jax.Array) -> jax.Array:
    """Angle between two vectors along the last axis, accurate from 0 to pi.

        theta = 2 atan2(|a - b|, |a + b|),   a = x / |x|,   b = w / |w|

        d theta / dx = -u / |x|,   u = the unit tangent at a toward b (0 where a = b or a = -b)

    Directions closer than two units in the last place, 2.4e-7 in float32, count as one. Both modes of
    differentiation work, and no gradient exceeds `1 / |x|`. With a zero vector the angle is pi/2 and its gradient 0.

    Args:
      x: vectors `[..., D]`, real.
      w: vectors of the same shape.

    Returns:
      Angles `[...]` in radians, from 0 to pi; float32, or float64 if an input is.

    Raises:
      TypeError: an input is not real floating point.
      ValueError: the shapes differ, or have no axis.

    References:
      Kahan, How Futile are Mindless Assessments of Roundoff in Floating-Point Computation?, 2006, section 12.

    Example:
      >>> ms.angle(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[0.0, 2.0], [1.0, 1e-6]]))
      Array([1.5708e+00, 1.0000e-06], dtype=float32)
    """
    x, w = _checks.real_array("x", x), _checks.real_array("w", w)
    if x.ndim == 0 or x.shape != w.shape:
        raise ValueError(
            f"w: expected the shape of x, [..., D], came x {x.shape} and w {w.shape}. "
            "Broadcast them first; nothing is broadcast here."
        )
    return _angle(x, w)


@jax.jit
def _angle(x, w):
    dtype = compute_dtype(x, w)
    return angle_between(x.astype(dtype), w.astype(dtype))


def cosines(features: jax.Array, weights: jax.Array) -> jax.Array:
    """Cosines between all features and all classes.

        cos[i, j] = <x_i, w_j> / (|x_i| |w_j|),   the largest over k for sub-centres w_jk

    This is the `[B, C]` array that `margin_loss` never builds; use it for small C. It is 0 where a norm is 0.

    Args:
      features: `[B, D]`, real.
      weights: one row per class, `[C, D]`; or `[C, K, D]` for K sub-centres.

    Returns:
      `[B, C]`, float32, or float64 if an input is.

    Raises:
      TypeError: an input is not real floating point.
      ValueError: the shapes do not fit.

    Example:
      >>> ms.cosines(jnp.array([[3.0, 4.0]]), jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
      Array([[0.6, 0.8, 0. ]], dtype=float32)
    """
    features, weights = _checks.features_and_weights(features, weights)
    return _cosines(features, weights)


@split_as_examples
@jax.jit
def _cosines(features, weights):
    dtype = compute_dtype(features, weights)
    a, b = unit(features.astype(dtype)), unit(weights.astype(dtype))
    products = jnp.tensordot(a, b, axes=[[-1], [-1]], precision=jax.lax.Precision.HIGHEST)
    return products if weights.ndim == 2 else over_centres(products)


def over_centres(products: jax.Array) -> jax.Array:
    """The largest over the last axis, K sub-centres; its gradient goes to the first of those that win."""

    def better(best, other):
        return jnp.where((other > best) | jnp.isnan(other), other, best)

    return functools.reduce(better, [products[..., k] for k in range(products.shape[-1])])


def psi(u: jax.Array) -> jax.Array:
    """The cosine, continued so that it keeps falling: `psi(u) = (-1)^k cos(u) - 2k`, `k = floor(u / pi)`.

    It has a continuous slope `-|sin u|`; L-Softmax and A-Softmax need it for `m theta`, ArcFace for `theta + m`.
    """
    k = jnp.floor(u / math.pi)
    return (1.0 - 2.0 * jnp.mod(k, 2.0)) * jnp.cos(u) - 2.0 * k


@jax.custom_jvp
def arc_cosine(cosine: jax.Array) -> jax.Array:
    """Angle from a cosine, for the classes other than the own, of which only the product is at hand.

    A product of directions may exceed 1 by its rounding, and knows angles near 0 and pi only to the square root of
    it. The slope, -1 / sin, is bounded accordingly: by 2896 in float32.
    """
    return jnp.arccos(jnp.clip(cosine, -1.0, 1.0))


@arc_cosine.defjvp
def _arc_cosine_jvp(primals, tangents):
    (cosine,), (d_cosine,) = primals, tangents
    square = jnp.maximum((1.0 - cosine) * (1.0 + cosine), float(jnp.finfo(cosine.dtype).eps))
    return arc_cosine(cosine), -d_cosine * jax.lax.rsqrt(square)


def compute_dtype(*arrays: jax.Array) -> jnp.dtype:
    """float64 where an input is float64, float32 for everything narrower: bfloat16 resolves angles to 5 degrees."""
    return jnp.dtype(jnp.float64 if any(a.dtype == jnp.float64 for a in arrays) else jnp.float32)
