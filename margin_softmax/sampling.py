"""Partial FC: a step over some of the classes, chosen anew each time, always with those of the batch among them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from margin_softmax import _checks


class Sample(NamedTuple):
    """Some of the classes, and a batch's labels among them.

    Attributes:
      classes: which, `[S]` int32 ids in rising order, none twice.
      labels: own class of each example as its place in `classes`, `[B]`; -1 for a label that names no class.
      log_weights: `[S]`, 0 for classes of the batch and `log((C - P) / (S - P))` for the others, with P classes in the
        batch: as a `bias` of the loss it makes their sum stand for that of all others.
    """

    classes: jax.Array
    labels: jax.Array
    log_weights: jax.Array


def sample_classes(key: jax.Array, labels: jax.Array, num_classes: int, num_sampled: int) -> Sample:
    """Partial FC: all classes of the batch, and others drawn uniformly without replacement, S in all.

        loss over the sample:  L = log sum_{j in S, j != y} e^{z_j}

    The loss is that of any margin in any head on the sampled rows,

        sample = ms.sample_classes(key, labels, num_classes, num_sampled)
        ms.margin_loss(features, weights[sample.classes], sample.labels, margin)

    whose gradient reaches the sampled rows alone. As published, the sum over the sample stands for itself and not for
    the sum over all classes; with `bias=sample.log_weights` it is corrected. With S = C it is the full loss.

    Args:
      key: of `jax.random`; a new one in each step.
      labels: own class of each example, `[B]` integers in [0, C).
      num_classes: C, static.
      num_sampled: S, static; at least min(B, C), so that the classes of any batch fit, and at most C.

    Returns:
      A `Sample`.

    Raises:
      TypeError: `labels` are no integers.
      ValueError: a batch could have more classes than `num_sampled`, or a number is out of range.

    References:
      An et al., Partial FC: Training 10 Million Identities on a Single Machine, ICCV workshops 2021.

    Example:
      >>> sample = ms.sample_classes(jax.random.key(0), jnp.array([7, 2, 7]), num_classes=10, num_sampled=4)
      >>> bool((sample.classes[sample.labels] == jnp.array([7, 2, 7])).all())
      True
    """
    num_classes = int(_checks.static_number("num_classes", num_classes, at_least=1, whole=True))
    num_sampled = int(_checks.static_number("num_sampled", num_sampled, at_least=1, at_most=num_classes, whole=True))
    labels = _checks.labels_of(labels, jnp.shape(labels)[0] if jnp.ndim(labels) else 0, num_classes)
    if num_sampled < min(labels.shape[0], num_classes):
        raise ValueError(
            f"num_sampled: expected at least {min(labels.shape[0], num_classes)}, came {num_sampled}. A batch of "
            f"{labels.shape[0]} may have as many classes, and none of them may be left out."
        )
    return _sample_classes(key, labels, num_classes=num_classes, num_sampled=num_sampled)


@functools.partial(jax.jit, static_argnames=("num_classes", "num_sampled"))
def _sample_classes(key, labels, *, num_classes, num_sampled):
    valid, labels = _checks.in_range(labels, num_classes)
    positive = jnp.zeros(num_classes, bool).at[jnp.where(valid, labels, num_classes)].set(True, mode="drop")
    # 30 random bits each: the batch's classes come before all others.
    drawn = (jax.random.bits(key, (num_classes,), jnp.uint32) >> 2).astype(jnp.int32)
    score = jnp.where(positive, jnp.int32(2**30), drawn)
    classes = jnp.sort(jax.lax.top_k(score, num_sampled)[1])
    places = jnp.searchsorted(classes, labels)
    positives = jnp.sum(positive)
    share = (num_classes - positives) / jnp.maximum(num_sampled - positives, 1)
    log_weight = jnp.log(jnp.maximum(share, 1.0)).astype(jnp.float32)
    log_weights = jnp.where(positive.at[classes].get(mode="clip"), 0.0, log_weight)
    return Sample(classes, jnp.where(valid, places, -1).astype(jnp.int32), log_weights)
