"""Who is it, and what is alike: identification in a gallery, and retrieval within a set, block by block.

Both ask how many rows of others come before a row of the own label. Cosines that differ by less than their rounding
are a tie, and a tie counts against: a network that maps everybody to one direction must not look perfect.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from margin_softmax import _checks, angles
from margin_softmax.verification import _inputs

UNRESOLVED = 4
"""Units of rounding, 4.8e-7 in float32: rows of one direction and other lengths have cosines 2.5 apart (measured)."""


def identification(
    features: ArrayLike,
    labels: ArrayLike,
    gallery: ArrayLike,
    gallery_labels: ArrayLike,
    *,
    ranks: Sequence[int] = (1, 5),
    block_size: int | None = None,
) -> np.ndarray:
    """Closed-set identification: the share of probes whose own person is among the first k, for each rank k.

        rank = 1 + the number of rows j of others with cos_j >= max over the rows i of the own person of cos_i

    A cosine within four units of rounding (4.8e-7 in float32) of the own best counts as equal to it. With one row
    per person these are the points of the cumulative match characteristic. A block of probes meets a block of the
    gallery, so that no `[P, G]` array is made: memory holds some of `block_size` x (`block_size` + k).

    Args:
      features: of the probes, `[P, D]`, real; none of a picture that the gallery has too, for it would find itself.
        Concrete.
      labels: who each is, `[P]` integers; any numbers, for they are only compared. Concrete.
      gallery: those who are known, `[G, D]`, real; one row or more for each. Concrete.
      gallery_labels: who each is, `[G]` integers. Concrete.
      ranks: each k, from 1.
      block_size: rows on each side of a block; None for 2048.

    Returns:
      The share of the probes with rank <= k, `[len(ranks)]` float64, NumPy.

    Raises:
      TypeError: an argument has the wrong dtype, or is traced.
      ValueError: a shape is wrong, a row is not finite, a probe is of nobody in the gallery, a rank is not a whole
        number from 1, or `block_size` none from 1 to 2^15.

    References:
      Phillips, Grother, Micheals, Evaluation Methods in Face Recognition, Handbook of Face Recognition, 2011.

    Example:
      >>> gallery = jnp.eye(3)
      >>> probes = jnp.array([[1.0, 0.2, 0.1], [0.5, 0.4, 0.1]])
      >>> ms.verification.identification(probes, np.array([7, 8]), gallery, np.array([7, 8, 9]), ranks=(1, 2))
      array([0.5, 1. ])
    """
    _inputs.refuse_traced(features=features, labels=labels, gallery=gallery, gallery_labels=gallery_labels)
    _inputs.refuse_traced(ranks=ranks, block_size=block_size)
    features = _inputs.features_of("features", features)
    gallery = _inputs.like("gallery", gallery, features)
    labels = _inputs.ids("labels", labels, len(features))
    gallery_labels = _inputs.ids("gallery_labels", gallery_labels, len(gallery))
    ranks, size = _ranks(ranks), _inputs.block_rows(block_size)
    _refuse_unknown(labels, gallery_labels)
    people, known = _inputs.numbered(labels, gallery_labels)
    known, most = jnp.asarray(known), min(max(ranks), len(gallery))
    ahead = np.empty(len(labels), np.int64)
    for rows in _blocks(np.arange(len(labels)), size):
        not_in_it = np.full(len(rows), -1, np.int32)
        counts = _ahead(features, rows, people[rows], not_in_it, gallery, known, size=size, own=1, most=most)
        ahead[rows] = np.asarray(counts)[:, 0]
    return np.array([np.mean(ahead < rank) for rank in ranks])


def _refuse_unknown(labels: np.ndarray, known: np.ndarray) -> None:
    unknown = np.flatnonzero(~np.isin(labels, known))
    if unknown.size:
        raise ValueError(
            f"labels: row {unknown[0]} holds {labels[unknown[0]]}, expected a label of the gallery. {unknown.size} of "
            f"{len(labels)} probes are of nobody in it: in a closed set everybody is known, so leave these out."
        )


class Retrieval(NamedTuple):
    """How well each example finds those of its label among all the others; means over the queries.

    Attributes:
      precision_at_1: share of the queries whose nearest example is of their label.
      r_precision: share of the R nearest that are of the query's label, where R others have it.
      map_at_r: mean average precision at R, `1 / R` times the sum over i <= R of the precision at i, where the i-th is
        of the query's label.
      queries: how many there were: the examples whose label another example has.
    """

    precision_at_1: float
    r_precision: float
    map_at_r: float
    queries: int


def retrieval(features: ArrayLike, labels: ArrayLike, *, block_size: int | None = None) -> Retrieval:
    """Retrieval within a set: every example asks for those of its label, among all but itself.

        position of the r-th nearest of the own label = r + the number of others at least as near,   r = 1 ... R

    A cosine within four units of rounding (4.8e-7 in float32) of that of the own label counts as equal to it. An
    example whose label nobody else has is no query; it remains among those that are searched. A block of queries meets
    a block of the set, so that no `[N, N]` array is made: memory holds some of `block_size` x (`block_size` + R).

    Args:
      features: `[N, D]`, real. Concrete.
      labels: class of each, `[N]` integers; any numbers, for they are only compared. Concrete.
      block_size: rows on each side of a block; None for 2048.

    Returns:
      Retrieval(precision_at_1, r_precision, map_at_r, queries).

    Raises:
      TypeError: an argument has the wrong dtype, or is traced.
      ValueError: a shape is wrong, a row is not finite, no two examples share a label, or `block_size` is not a whole
        number from 1 to 2^15.

    References:
      Musgrave, Belongie, Lim, A Metric Learning Reality Check, ECCV 2020.

    Example:
      >>> x = jnp.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.3], [0.0, 1.0]])
      >>> ms.verification.retrieval(x, np.array([0, 0, 1, 1]))
      Retrieval(precision_at_1=0.75, r_precision=0.75, map_at_r=0.75, queries=4)
    """
    _inputs.refuse_traced(features=features, labels=labels, block_size=block_size)
    features = _inputs.features_of("features", features)
    labels, size = _inputs.ids("labels", labels, len(features)), _inputs.block_rows(block_size)
    _, people, members = np.unique(labels, return_inverse=True, return_counts=True)
    people, wanted = people.astype(np.int32), members[people] - 1
    queries = np.flatnonzero(wanted)
    if not queries.size:
        raise ValueError(
            f"labels: expected two examples of one label at least, came {len(labels)} labels, all different. "
            "There is nothing to be found."
        )
    # Those of small classes together: they need few of their nearest.
    queries = queries[np.argsort(wanted[queries], kind="stable")]
    found, known = [], jnp.asarray(people)
    for rows in _blocks(queries, size):
        # Up to a power of two, so that few programs serve all sizes of classes.
        own = 1 << int(wanted[rows].max() - 1).bit_length()
        ahead = _ahead(features, rows, people[rows], rows, features, known, size=size, own=own, most=own)
        found.append(_precisions(np.asarray(ahead), wanted[rows]))
    scores = np.concatenate(found, axis=1)[:, : len(queries)]
    return Retrieval(*(float(np.mean(score)) for score in scores), queries=len(queries))


def _precisions(ahead: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Precision at 1, R-precision and average precision at R, `[3, queries]`, from how many are ahead of the r-th."""
    found = np.arange(1, ahead.shape[1] + 1)[None]
    positions = ahead + found
    hits = positions <= wanted[:, None]
    average = np.sum(np.where(hits, found / positions, 0.0), axis=1) / wanted
    return np.stack([positions[:, 0] == 1, np.sum(hits, axis=1) / wanted, average])


def _blocks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Blocks of one size, so that one program serves all; the last repeats its last row until it is full."""
    size = min(size, len(rows))
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        yield np.pad(block, (0, size - len(block)), mode="edge").astype(np.int32)


@functools.partial(jax.jit, static_argnames=("size", "own", "most"))
def _ahead(features, rows, people, places, gallery, known, *, size, own, most):
    """How many rows of others are at least as near as each of the `own` nearest of the query's label, at most `most`.

    Queries are `features[rows]`, their labels `people` `[n]`, their own rows in the gallery, which do not count,
    `places` `[n]`, or -1. The result `[n, own]` means nothing where the gallery has fewer of that label.
    """
    dtype = angles.compute_dtype(features, gallery)
    queries = angles.unit(features.at[rows].get(mode="clip").astype(dtype))
    size = min(size, gallery.shape[0])

    def step(nearest, start):
        # The last block starts early enough to be full; what it shares with the one before has been counted.
        first = jnp.minimum(start, gallery.shape[0] - size)
        ids = first + jnp.arange(size, dtype=jnp.int32)
        block = angles.unit(jax.lax.dynamic_slice_in_dim(gallery, first, size).astype(dtype))
        cosines = jnp.matmul(queries, block.T, precision=jax.lax.Precision.HIGHEST)
        counts = (ids >= start)[None] & (ids[None] != places[:, None])
        same = jax.lax.dynamic_slice_in_dim(known, first, size)[None] == people[:, None]
        ours, others = nearest
        return (merged(ours, cosines, counts & same), merged(others, cosines, counts & ~same)), None

    def merged(best, cosines, counts):
        cosines = jnp.where(counts, cosines, -jnp.inf)
        return jax.lax.top_k(jnp.concatenate([best, cosines], axis=1), best.shape[1])[0]

    nearest = tuple(jnp.full((len(rows), k), -jnp.inf, dtype) for k in (own, most))
    (ours, others), _ = jax.lax.scan(step, nearest, jnp.arange(0, gallery.shape[0], size, dtype=jnp.int32))
    # Both fall; a search wants them to rise.
    farthest = UNRESOLVED * float(jnp.finfo(dtype).eps) - ours
    return jax.vmap(functools.partial(jnp.searchsorted, side="right"))(-others, farthest)


def _ranks(ranks: Any) -> list[int]:
    if not isinstance(ranks, Sequence | np.ndarray) or isinstance(ranks, str) or not len(ranks):
        raise TypeError(f"ranks: expected a sequence of whole numbers such as (1, 5), came {ranks!r}.")
    return [int(_checks.static_number("ranks", rank, at_least=1, whole=True)) for rank in ranks]
