"""Sub-centres: which of a class's K centres is its own, and which examples lie too far from it to be clean."""

import math

import jax
import jax.numpy as jnp

from margin_softmax import _checks, angles
from margin_softmax._checks import Numeric
from margin_softmax._meshes import same_everywhere, split_as_examples

DEGREES_75 = math.radians(75.0)


def center_counts(features: jax.Array, weights: jax.Array, labels: jax.Array) -> jax.Array:
    """How many examples each sub-centre has: those whose largest cosine within their own class it is.

    Counts of batches add up: sum them over the training set for `ms.dominant_centers`.

    Args:
      features: `[B, D]`, real.
      weights: `[C, K, D]`, K sub-centres per class.
      labels: `[B]` integers in [0, C); others count nowhere.

    Returns:
      Counts `[C, K]`, int32.

    Raises:
      TypeError: an argument has the wrong dtype.
      ValueError: a shape is wrong.

    References:
      Deng, Guo, Liu, Gong, Zafeiriou, Sub-center ArcFace: Boosting Face Recognition by Large-scale Noisy Web Faces,
      ECCV 2020.

    Example:
      >>> centers = jnp.stack([jnp.eye(2), -jnp.eye(2)], axis=1)
      >>> ms.center_counts(jnp.array([[1.0, 0.1], [-1.0, 0.2], [1.0, 0.0]]), centers, jnp.array([0, 0, 0]))
      Array([[2, 1],
             [0, 0]], dtype=int32)
    """
    features, weights = _checks.features_and_weights(features, _sub_centers(weights))
    return _center_counts(features, weights, _checks.labels_of(labels, features.shape[0], weights.shape[0]))


@same_everywhere
@jax.jit
def _center_counts(features, weights, labels):
    valid, labels = _checks.in_range(labels, weights.shape[0])
    dtype = angles.compute_dtype(features, weights)
    own = angles.unit(weights.at[labels].get(mode="clip").astype(dtype))
    nearest = jnp.argmax(angles.dot(features.astype(dtype)[:, None], own), axis=1)
    counts = jnp.zeros(weights.shape[:2], jnp.int32)
    return counts.at[jnp.where(valid, labels, weights.shape[0]), nearest].add(1, mode="drop")


def dominant_centers(weights: jax.Array, counts: jax.Array) -> jax.Array:
    """Of each class the sub-centre with the most examples: weights for a training with one centre per class.

    Args:
      weights: `[C, K, D]`, K sub-centres per class.
      counts: examples of each, `[C, K]`, as `ms.center_counts`.

    Returns:
      `[C, D]`, in the dtype of `weights`; of equal counts the first, so also of a class without examples.

    Raises:
      TypeError: `weights` are not real floating point.
      ValueError: a shape is wrong.

    References:
      Deng, Guo, Liu, Gong, Zafeiriou, Sub-center ArcFace: Boosting Face Recognition by Large-scale Noisy Web Faces,
      ECCV 2020.

    Example:
      >>> centers = jnp.stack([jnp.eye(2), -jnp.eye(2)], axis=1)
      >>> ms.dominant_centers(centers, jnp.array([[1, 2], [3, 0]]))
      Array([[-1., -0.],
             [ 0.,  1.]], dtype=float32)
    """
    weights = _sub_centers(weights)
    counts = jnp.asarray(counts)
    _checks.shape("counts", counts, weights.shape[:2], f"[C, K] = {weights.shape[:2]}", "One count per sub-centre.")
    return jnp.take_along_axis(weights, jnp.argmax(counts, axis=1)[:, None, None], axis=1)[:, 0]


def outlier_mask(
    features: jax.Array, centers: jax.Array, labels: jax.Array, *, largest: Numeric = DEGREES_75
) -> jax.Array:
    """Which examples are near enough to their class's dominant centre to be kept: a cleaned training set.

        keep = theta <= largest

    Sub-center ArcFace trains with K = 3, drops what lies farther than 75 degrees, and trains anew with K = 1. The mask
    also fits the losses' `where`.

    Args:
      features: `[B, D]`, real.
      centers: `[C, D]`, such as `ms.dominant_centers`.
      labels: `[B]` integers in [0, C); others are not kept.
      largest: angle in radians, from 0 to pi.

    Returns:
      `[B]` booleans, True for those to keep.

    Raises:
      TypeError: an argument has the wrong dtype.
      ValueError: a shape or `largest` is out of range (above pi it is taken for degrees).

    References:
      Deng, Guo, Liu, Gong, Zafeiriou, Sub-center ArcFace: Boosting Face Recognition by Large-scale Noisy Web Faces,
      ECCV 2020.

    Example:
      >>> ms.outlier_mask(jnp.array([[1.0, 0.1], [0.1, 1.0]]), jnp.eye(2), jnp.array([0, 0]))
      Array([ True, False], dtype=bool)
    """
    features, centers = _checks.features_and_weights(features, centers, "centers")
    _checks.shape("centers", centers, (None, None), "[C, D]", "One row per class: see `ms.dominant_centers`.")
    labels = _checks.labels_of(labels, features.shape[0], centers.shape[0])
    return _outlier_mask(features, centers, labels, _checks.angle_margin("largest", largest))


@split_as_examples
@jax.jit
def _outlier_mask(features, centers, labels, largest):
    valid, labels = _checks.in_range(labels, centers.shape[0])
    dtype = angles.compute_dtype(features, centers)
    own = centers.at[labels].get(mode="clip").astype(dtype)
    return valid & (angles.angle_between(features.astype(dtype), own) <= largest)


def _sub_centers(weights):
    weights = _checks.real_array("weights", weights)
    _checks.shape("weights", weights, (None, None, None), "[C, K, D]", "K sub-centres for each class.")
    return weights
