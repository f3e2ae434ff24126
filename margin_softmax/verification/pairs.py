"""Scores of pairs, made from features on the device, block by block: no array of all with all is ever there.

A score is a cosine, 0 where a feature is the zero vector. Small sets are lists of pairs, with one score each; of large
ones the scores are counted as they are made, and only the counts are kept. What a score is worth, `rates` says.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from margin_softmax import _checks, angles
from margin_softmax.verification import _inputs
from margin_softmax.verification.rates import Counts

MOST_PAIRS = 5 * 10**7
"""In a list, as indices 400 MB. Above it `pair_counts` needs none."""
GATHERED = 2**22
"""Numbers in the rows of one side of a block of pairs, and in a block of cosines to a cohort: 16 MiB of float32."""


def all_pairs(labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a small set, each once, and which are of one class.

        (i, j) for all i < j, in the order (0, 1), (0, 2), ..., (N - 2, N - 1);   M = N (N - 1) / 2

    Args:
      labels: class of each example, `[N]` integers; any numbers, for they are only compared. Concrete.

    Returns:
      `pairs`, `[M, 2]` int32, and `same`, `[M]` booleans; both NumPy arrays.

    Raises:
      TypeError: the labels are not integers, or traced.
      ValueError: there are fewer than two, or more than 10,000: their 5 * 10^7 pairs are for `pair_counts`.

    Example:
      >>> pairs, same = ms.verification.all_pairs(np.array([7, 7, 3]))
      >>> pairs
      array([[0, 1],
             [0, 2],
             [1, 2]], dtype=int32)
      >>> same
      array([ True, False, False])
    """
    _inputs.refuse_traced(labels=labels)
    labels = _inputs.ids("labels", labels)
    count = len(labels)
    if count * (count - 1) // 2 > MOST_PAIRS:
        raise ValueError(
            f"labels: expected at most {MOST_PAIRS:,} pairs, came {count:,} labels with {count * (count - 1) // 2:,}. "
            "Use pair_counts, which counts the scores of all pairs and lists none."
        )
    if count < 2:
        raise ValueError(f"labels: expected at least two, came {count}. A pair is of two examples.")
    rows = np.arange(count, dtype=np.int32)
    pairs = np.stack([np.repeat(rows, rows[::-1]), np.concatenate([rows[i + 1 :] for i in rows])], axis=1)
    return pairs, labels[pairs[:, 0]] == labels[pairs[:, 1]]


def pair_cosines(features: ArrayLike, pairs: ArrayLike) -> jax.Array:
    """Cosines of given pairs of features.

        cos[m] = <x_i, x_j> / (|x_i| |x_j|),   i, j = pairs[m]

    It is 0 where a norm is 0, never outside [-1, 1], and 1 for two that are equal. The rows are gathered a block of
    pairs at a time. Where pair m is of rows 2m and 2m + 1, as packs of verification pairs have it, `pairs` is
    `np.arange(2 * M).reshape(M, 2)`.

    Args:
      features: `[N, D]`, real. Concrete.
      pairs: indices of rows, `[M, 2]` integers in [0, N). Concrete.

    Returns:
      `[M]`, float32, or float64 for float64 features.

    Raises:
      TypeError: an argument has the wrong dtype, or is traced.
      ValueError: a shape is wrong, a feature is not finite, or an index is none of a row.

    Example:
      >>> x = jnp.array([[3.0, 4.0], [6.0, 8.0], [1.0, 0.0], [0.0, 0.0]])
      >>> ms.verification.pair_cosines(x, np.array([[0, 1], [0, 2], [0, 3]]))
      Array([1. , 0.6, 0. ], dtype=float32)
    """
    _inputs.refuse_traced(features=features, pairs=pairs)
    features = _inputs.features_of("features", features)
    return _pair_cosines(features, _pairs(pairs, features.shape[0]))


@jax.jit
def _pair_cosines(features, pairs):
    dtype = angles.compute_dtype(features)

    def cosine(pair):
        a, b = angles.unit(features[pair].astype(dtype))
        return angles.inner(a, b, jnp.ones((), bool))

    return jax.lax.map(cosine, pairs, batch_size=max(1, GATHERED // max(1, features.shape[1])))


def pair_counts(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    gallery: ArrayLike | None = None,
    gallery_labels: ArrayLike | None = None,
    bins: int = 2**16,
    block_size: int | None = None,
) -> Counts:
    """How many pairs of one class and of two have each score, over all pairs: for sets too large to list them.

        score = floor(cos * bins / 2) * 2 / bins,   over all i < j; with a gallery, over all features and all its rows

    So a score is the cosine, rounded down to a multiple of `2 / bins`. Rates at these thresholds are exact, not
    estimates, because `cos >= threshold` and `score >= threshold` are then the same; `bins` says only how dense they
    are. A cosine that its rounding has left above 1 or below -1 counts as 1 or -1. Hence there are up to bins + 1
    scores, 1 among them, and of pairs of equal features some have it and some, by their rounding, the one below.

    A block of features meets a block of others on the device, and only its counts leave it. The same program serves all
    blocks.

    Args:
      features: `[N, D]`, real. Concrete.
      labels: class of each, `[N]` integers; any numbers, for they are only compared. Concrete.
      gallery: `[M, D]`, real, if the pairs are those of a feature and a row of it. Concrete.
      gallery_labels: class of each, `[M]` integers. Concrete.
      bins: between -1 and 1; a power of two, 2 to 2^24.
      block_size: rows on each side of a block, of whose square of scores memory must hold some copies; None for 2048.

    Returns:
      Counts(scores, same, different), the scores decreasing; only those that some pair has.

    Raises:
      TypeError: an argument has the wrong dtype, or is traced.
      ValueError: a shape is wrong, a feature is not finite, there is no pair, a gallery comes without labels or labels
        without it, `bins` is no such power, or `block_size` is not a whole number from 1 to 2^15.

    Example:
      >>> x = jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 4.0]])
      >>> ms.verification.pair_counts(x, np.array([0, 0, 1]), bins=16)
      Counts(scores=array([1. , 0.5]), same=array([1, 0]), different=array([0, 2]))
    """
    _inputs.refuse_traced(features=features, labels=labels, gallery=gallery, gallery_labels=gallery_labels)
    _inputs.refuse_traced(bins=bins, block_size=block_size)
    features = _inputs.features_of("features", features)
    labels = _inputs.ids("labels", labels, len(features))
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery: expected it with gallery_labels, or neither, came one of the two. Pass both.")
    each_once = gallery is None
    if each_once and len(features) < 2:
        raise ValueError("features: expected at least one pair, came one row. Bring another, or a gallery.")
    others = features if each_once else _inputs.like("gallery", gallery, features)
    other_labels = labels if each_once else _inputs.ids("gallery_labels", gallery_labels, len(others))
    bins, size = _bins(bins), _inputs.block_rows(block_size)
    ids, other_ids = map(jnp.asarray, _inputs.numbered(labels, other_labels))
    return _as_counts(_totals(features, ids, others, other_ids, size, bins, each_once), bins)


def _totals(features, ids, others, other_ids, size: int, bins: int, each_once: bool) -> np.ndarray:
    """Pairs of all blocks with each score, `[2, bins + 1]`: those of two classes, and those of one."""
    sizes = min(size, len(features)), min(size, len(others))
    total = np.zeros((2, bins + 1), np.int64)
    for i in range(0, len(features), sizes[0]):
        for j in range(i if each_once else 0, len(others), sizes[1]):
            starts = np.array([i, j], np.int32)
            part = _block_counts(features, ids, others, other_ids, starts, sizes=sizes, bins=bins, each_once=each_once)
            total += np.asarray(part)
    return total


def _bins(bins) -> int:
    hint = "So edges are exact in float32."
    bins = int(_checks.static_number("bins", bins, at_least=2, at_most=2**24, whole=True, hint=hint))
    if bins.bit_count() != 1:
        raise ValueError(f"bins: expected a power of two, came {bins}. {hint} The next is {2 ** bins.bit_length()}.")
    return bins


@functools.partial(jax.jit, static_argnames=("sizes", "bins", "each_once"))
def _block_counts(features, ids, others, other_ids, starts, *, sizes, bins, each_once):
    """As `_totals`, of one block; int32 holds them, for it has at most 2^30 pairs."""
    dtype = angles.compute_dtype(features, others)
    a, a_ids, rows, keep_rows = _part(features, ids, starts[0], sizes[0], dtype)
    b, b_ids, columns, keep_columns = _part(others, other_ids, starts[1], sizes[1], dtype)
    cosines = jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST)
    score = jnp.floor(jnp.clip(cosines, -1.0, 1.0) * (bins / 2)).astype(jnp.int32) + bins // 2
    keep = keep_rows[:, None] & keep_columns[None]
    if each_once:
        keep &= rows[:, None] < columns[None]
    place = jnp.where(a_ids[:, None] == b_ids[None], score + (bins + 1), score)
    place = jnp.where(keep, place, 2 * (bins + 1))
    # Not a sort of the places and a search in it: of 4 million, on a CPU, it takes longer than all else together.
    counts = jnp.zeros(2 * (bins + 1), jnp.int32).at[place.reshape(-1)].add(1, mode="drop")
    return counts.reshape(2, bins + 1)


def _part(rows, ids, start, size, dtype):
    """Directions, ids and numbers of `size` rows from `start` on, and which of them count.

    The last block starts early enough to be full, and what it shares with the one before counts there.
    """
    first = jnp.minimum(start, rows.shape[0] - size)
    numbers = first + jnp.arange(size, dtype=jnp.int32)
    rows, ids = (jax.lax.dynamic_slice_in_dim(leaf, first, size) for leaf in (rows, ids))
    return angles.unit(rows.astype(dtype)), ids, numbers, numbers >= start


def _as_counts(total: np.ndarray, bins: int) -> Counts:
    places = np.flatnonzero(total.any(axis=0))[::-1]
    different, same = total[:, places]
    return Counts((places - bins // 2) * (2 / bins), same, different)


def as_norm(features: ArrayLike, pairs: ArrayLike, cohort: ArrayLike, *, top: int = 300) -> jax.Array:
    """Cosines of pairs, each side measured against its nearest in a cohort: adaptive symmetric score normalisation.

        s' = ((s - mean_i) / std_i + (s - mean_j) / std_j) / 2

    where mean_i and std_i, the population's, are those of the `top` highest cosines of x_i to the cohort. It is the
    form that is called AS-norm1, in which each side has a selection of its own; with all the cohort as `top` it is
    S-norm. The cohort should be of people who are in no pair, and recorded as those in the pairs are. Scores are then
    no longer cosines: they count standard deviations above what the nearest strangers have. Each row's statistics are
    computed once, a block of rows at a time.

    Args:
      features: `[N, D]`, real. Concrete.
      pairs: indices of rows, `[M, 2]` integers in [0, N). Concrete.
      cohort: `[C, D]`, real; features of others, or means of their features. Concrete.
      top: how many of the highest, 2 to C. Static.

    Returns:
      `[M]`, float32, or float64 if an input is.

    Raises:
      TypeError: an argument has the wrong dtype, or is traced.
      ValueError: a shape is wrong, a number is not finite, an index is none of a row, `top` is not a whole number from
        2 to C, or a row has the same cosine to all that are nearest to it.

    References:
      Cumani et al., Comparison of Speaker Recognition Approaches for Real Applications, Interspeech 2011.
      Matejka et al., Analysis of Score Normalization in Multilingual Speaker Recognition, Interspeech 2017.

    Example:
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> cohort = jnp.array([[2.0, 1.0], [1.0, 3.0], [-1.0, 0.0]])
      >>> ms.verification.as_norm(x, np.array([[0, 1], [0, 0]]), cohort, top=2)
      Array([-2.439,  1.365], dtype=float32)
    """
    _inputs.refuse_traced(features=features, pairs=pairs, cohort=cohort, top=top)
    features = _inputs.features_of("features", features)
    pairs = _pairs(pairs, features.shape[0])
    cohort = _inputs.like("cohort", cohort, features)
    hint = f"The cohort has {cohort.shape[0]} rows, of whose cosines to each feature so many are used."
    top = int(_checks.static_number("top", top, at_least=2, at_most=cohort.shape[0], whole=True, hint=hint))
    rows, places = np.unique(pairs, return_inverse=True)
    mean, deviation = _nearest_in_cohort(features, rows, cohort, top=top)
    _refuse_undeviating(np.asarray(deviation), rows, top)
    places = places.reshape(pairs.shape).astype(np.int32)
    return _normalised(_pair_cosines(features, pairs), mean, deviation, places)


@functools.partial(jax.jit, static_argnames="top")
def _nearest_in_cohort(features, rows, cohort, *, top):
    """Mean and standard deviation of the highest cosines of each of the rows."""
    dtype = angles.compute_dtype(features, cohort)
    cohort = angles.unit(cohort.astype(dtype))

    def statistics(row):
        cosines = jnp.dot(cohort, angles.unit(features[row].astype(dtype)), precision=jax.lax.Precision.HIGHEST)
        highest, _ = jax.lax.top_k(cosines, top)
        return jnp.mean(highest), jnp.std(highest)

    return jax.lax.map(statistics, rows, batch_size=max(1, GATHERED // cohort.shape[0]))


def _refuse_undeviating(deviation, rows, top: int) -> None:
    # Of equal cosines, what deviates is their rounding.
    flat = rows[deviation <= 8 * float(np.finfo(deviation.dtype).eps)]
    if flat.size:
        raise ValueError(
            f"cohort: the {top} rows nearest to row {flat[0]} of features have the same cosine to it, expected some "
            f"that differ. So it is with {flat.size} of the {rows.size} rows in pairs: they are zeros, or the cohort "
            "repeats one row."
        )


@jax.jit
def _normalised(cosines, mean, deviation, places):
    sides = (cosines.astype(mean.dtype)[:, None] - mean[places]) / deviation[places]
    return jnp.mean(sides, axis=1)


def _pairs(value: Any, count: int) -> np.ndarray:
    """Indices of rows, `[M, 2]` int32 in [0, count)."""
    pairs = _inputs.integers("pairs", value, f"They are indices of rows in [0, {count}).")
    _checks.shape("pairs", pairs, (None, 2), "[M, 2]", "Each row holds the two indices of a pair.")
    wrong = np.flatnonzero(((pairs < 0) | (pairs >= count)).any(axis=1))
    if wrong.size:
        raise ValueError(
            f"pairs: row {wrong[0]} holds {tuple(map(int, pairs[wrong[0]]))}, expected indices from 0 to {count - 1} "
            f"for {count} features. {wrong.size} of {len(pairs)} pairs are wrong."
        )
    return pairs.astype(np.int32)
