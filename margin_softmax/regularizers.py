"""Terms beside the loss: on the rows of the classes at hand, and between features and their centres."""

import functools

import jax
import jax.numpy as jnp

from margin_softmax import _checks, angles
from margin_softmax._checks import Numeric
from margin_softmax._meshes import same_everywhere, split_as_examples


def hyperspherical_energy(
    weights: jax.Array, labels: jax.Array, *, power: Numeric = 2.0, angular: bool = True
) -> jax.Array:
    """Hyperspherical energy of the classes of a batch: small where their directions are spread out (MHE).

        mean over pairs of different classes of theta_jk^-power,   or of |w_j / |w_j| - w_k / |w_k||^-power

    SphereFace+ is `ms.a_softmax` with this term, weight 1. Each class counts once, however many examples it has, so
    memory grows with the square of the batch and not with C. Pairs of one direction, which have no finite energy and
    no gradient to part them, are left out: those nearer than 1e-3 rad in float32.

    Args:
      weights: one row per class, `[C, D]`.
      labels: classes of the batch, `[B]` integers in [0, C).
      power: of the inverse distance, > 0.
      angular: whether the distance is the angle, as in SphereFace+, or the chord.

    Returns:
      A scalar; 0 where the batch has fewer than two classes.

    Raises:
      TypeError: an argument has the wrong dtype.
      ValueError: a shape or a concrete value is out of range.

    References:
      Liu et al., Learning towards Minimum Hyperspherical Energy, NeurIPS 2018.

    Example:
      >>> ms.hyperspherical_energy(jnp.eye(3), jnp.array([0, 2, 2]))
      Array(0.4053, dtype=float32)
    """
    weights = _checks.real_array("weights", weights)
    _checks.shape("weights", weights, (None, None), "[C, D]", "One row per class.")
    labels = _checks.labels_of(labels, None, len(weights))
    return _energy(weights, labels, _checks.one_number("power", power, above=0.0), angular=angular)


@same_everywhere
@functools.partial(jax.jit, static_argnames="angular")
def _energy(weights, labels, power, *, angular):
    valid, labels = _checks.in_range(labels, weights.shape[0])
    rows = weights.astype(angles.compute_dtype(weights)).at[labels].get(mode="clip")
    if not labels.size:
        return jnp.zeros((), rows.dtype)
    # Each class by its first example, each pair once.
    first = valid & (jnp.argmax(labels[:, None] == labels[None], axis=1) == jnp.arange(labels.size))
    above = jnp.arange(labels.size)[:, None] < jnp.arange(labels.size)[None]
    rows = angles.unit(rows)
    cosines = jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
    apart = cosines < 1.0 - 4 * float(jnp.finfo(rows.dtype).eps)
    counts = first[:, None] & first[None] & above & apart
    distance = angles.arc_cosine(jnp.where(counts, cosines, 0.0))
    if not angular:
        distance = 2.0 * jnp.sin(distance / 2)
    pairs = jnp.sum(counts.astype(distance.dtype))
    return jnp.sum(jnp.where(counts, distance**-power, 0.0)) / jnp.maximum(pairs, 1.0)


def center_loss(features: jax.Array, centers: jax.Array, labels: jax.Array) -> jax.Array:
    """Center loss: half the squared distance of each feature from its class's centre.

        loss = |x - c_y|^2 / 2

    Added to a softmax loss with a small weight (0.003 in the paper). The centres are a parameter of their own, or the
    class weights; their gradient here is the exact one, where the paper moves each by the mean over its examples.

    Args:
      features: `[B, D]`, real.
      centers: `[C, D]`, real.
      labels: `[B]` integers in [0, C). A label outside makes that row's loss NaN and its gradient 0.

    Returns:
      Losses `[B]`, float32 or float64, not reduced.

    Raises:
      TypeError: an argument has the wrong dtype.
      ValueError: a shape is wrong.

    References:
      Wen, Zhang, Li, Qiao, A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016.

    Example:
      >>> ms.center_loss(jnp.array([[3.0, 5.0]]), jnp.eye(2), jnp.array([1]))
      Array([12.5], dtype=float32)
    """
    features, centers = _checks.features_and_weights(features, centers, "centers")
    _checks.shape("centers", centers, (None, None), "[C, D]", "One row per class.")
    return _center_loss(features, centers, _checks.labels_of(labels, features.shape[0], centers.shape[0]))


@split_as_examples
@jax.jit
def _center_loss(features, centers, labels):
    valid, labels = _checks.in_range(labels, centers.shape[0])
    dtype = angles.compute_dtype(features, centers)
    distance = features.astype(dtype) - centers.astype(dtype).at[labels].get(mode="clip")
    distance = jnp.where(valid[:, None], distance, 0.0)
    return _checks.only_counted(angles.dot(distance, distance) / 2, valid, None)
