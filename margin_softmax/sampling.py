"""Partial FC: a step over some of the classes, chosen anew each time, always with those of the batch among them.

Where the classes are split over devices, each device draws from its own share and gathers from its own rows: what
devices tell each other are places of labels, `[B]` numbers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from margin_softmax import _checks, heads
from margin_softmax._meshes import as_the_first, same_everywhere
from margin_softmax.heads import Head
from margin_softmax.sharded import Sharded


class Sample(NamedTuple):
    """Some of the classes, and a batch's labels among them.

    Attributes:
      classes: which, `[S]` int32 ids in rising order, none twice. Split over devices as the class rows are.
      labels: own class of each example as its place in `classes`, `[B]`; -1 for a label that names no class.
      log_weights: `[S]`, 0 for classes of the batch and `log((C - P) / (S - P))` for the others, with P classes in the
        batch: as a `bias` of the loss it makes their sum stand for that of all others. C, S and P are a device's own.
    """

    classes: jax.Array
    labels: jax.Array
    log_weights: jax.Array


def sample_classes(
    key: jax.Array, labels: jax.Array, num_classes: int, num_sampled: int, *, head: Head = heads.blockwise()
) -> Sample:
    """Partial FC: all classes of the batch, and others drawn uniformly without replacement, S in all.

        loss over the sample:  L = log sum_{j in S, j != y} e^{z_j}

    The loss is that of any margin in any head on the sampled rows,

        sample = ms.sample_classes(key, labels, num_classes, num_sampled)
        ms.margin_loss(features, ms.take_rows(weights, sample), sample.labels, margin)

    whose gradient reaches the sampled rows alone. As published, the sum over the sample stands for itself and not for
    the sum over all classes; with `bias=sample.log_weights` it is corrected. With S = C it is the full loss.

    With `head=ms.sharded(...)`, here and in the two others, each of n devices draws S / n of its own ceil(C / n)
    classes, so that the sampled rows are split as the weights are. Inside a `shard_map` of the caller's, S and C are
    still those of all devices, and the labels those of the whole batch, the same on all devices.

    Args:
      key: of `jax.random`; a new one in each step, the same on all devices.
      labels: own class of each example, `[B]` integers in [0, C).
      num_classes: C, static. Rows of padding after the C-th, up to the next multiple of the devices, are never drawn.
      num_sampled: S, static; at most C, and so many that the classes of any batch fit: at least min(B, C), or of every
        device's share as many as the batch could have there.
      head: where the class rows are: `ms.sharded(...)`, or any head of one device. Static.

    Returns:
      A `Sample`.

    Raises:
      TypeError: `labels` are no integers.
      ValueError: a batch could have more classes than there are places, or a number is out of range.

    References:
      An et al., Partial FC: Training 10 Million Identities on a Single Machine, ICCV workshops 2021.

    Example:
      >>> sample = ms.sample_classes(jax.random.key(0), jnp.array([7, 2, 7]), num_classes=10, num_sampled=4)
      >>> bool((sample.classes[sample.labels] == jnp.array([7, 2, 7])).all())
      True
    """
    num_classes = int(_checks.static_number("num_classes", num_classes, at_least=1, whole=True))
    num_sampled = int(_checks.static_number("num_sampled", num_sampled, at_least=1, at_most=num_classes, whole=True))
    labels = _checks.labels_of(labels, None, num_classes)
    shards = _shards(_checks.head(head))
    share = -(-num_classes // shards)
    _refuse_too_few(labels.shape[0], num_sampled, shards, share)
    _refuse_too_many(num_classes, num_sampled, shards, share)
    return _sample_classes(key, labels, num_classes=num_classes, num_sampled=num_sampled, head=head)


def _refuse_too_few(batch, num_sampled, shards, share):
    needed = min(batch, share)
    if num_sampled < shards * needed:
        there = "" if shards == 1 else f" Each of {shards} devices draws as many, and all could be classes of one."
        raise ValueError(
            f"num_sampled: expected at least {shards * needed}, came {num_sampled}. A batch of {batch} may have "
            f"{needed} classes, and none of them may be left out.{there}"
        )


def _refuse_too_many(num_classes, num_sampled, shards, share):
    if num_sampled % shards:
        raise ValueError(
            f"num_sampled: expected a multiple of the {shards} devices over which the classes are split, came "
            f"{num_sampled}. Each draws as many: take {num_sampled - num_sampled % shards}."
        )
    fewest = max(0, num_classes - (shards - 1) * share)
    if num_sampled > shards * fewest:
        raise ValueError(
            f"num_sampled: expected at most {shards * fewest}, came {num_sampled}. Of {num_classes} classes on "
            f"{shards} devices the last has {fewest}, and each draws as many. The loss of all of them needs no sample."
        )


@functools.partial(jax.jit, static_argnames=("num_classes", "num_sampled", "head"))
def _sample_classes(key, labels, *, num_classes, num_sampled, head):
    shards = _shards(head)
    share, drawn_each = -(-num_classes // shards), num_sampled // shards
    labels = head.place(labels)
    valid, labels = _checks.in_range(labels, num_classes)

    def local(shard, key, labels, valid):
        first = shard * share
        own_key = key if shards == 1 else jax.random.fold_in(key, shard)
        own_labels = jnp.where(valid, labels - first, -1)
        drawn = _drawn(own_key, own_labels, jnp.clip(num_classes - first, 0, share), share, drawn_each)
        # A label has its place on one device; the others add 0.
        places = jnp.where(drawn.labels >= 0, shard * drawn_each + drawn.labels, 0)
        return first + drawn.classes, _summed(head, places), drawn.log_weights

    split = _split(head)
    classes, places, log_weights = on_shares(head, local, (P(), P(), P()), (split, P(), split))(key, labels, valid)
    return Sample(classes, jnp.where(valid, places, -1), log_weights)


def _drawn(key, labels, num_classes, share, num_sampled) -> Sample:
    """Of the classes [0, num_classes) of one device, `share` at most; a label outside is another's."""
    here = (labels >= 0) & (labels < share)
    positive = jnp.zeros(share, bool).at[jnp.where(here, labels, share)].set(True, mode="drop")
    # 30 random bits each: the batch's classes come before all others, and rows of padding after them.
    drawn = (jax.random.bits(key, (share,), jnp.uint32) >> 2).astype(jnp.int32)
    score = jnp.where(positive, jnp.int32(2**30), drawn)
    score = jnp.where(jnp.arange(share, dtype=jnp.int32) < num_classes, score, -1)
    classes = jnp.sort(jax.lax.top_k(score, num_sampled)[1]).astype(jnp.int32)
    place = jnp.zeros(share, jnp.int32).at[classes].set(jnp.arange(num_sampled, dtype=jnp.int32))
    positives = jnp.sum(positive, dtype=jnp.int32)
    stands_for = (num_classes - positives) / jnp.maximum(num_sampled - positives, 1)
    log_weight = jnp.log(jnp.maximum(stands_for, 1.0)).astype(jnp.float32)
    labels = jnp.where(here, place.at[jnp.where(here, labels, 0)].get(mode="clip"), -1)
    return Sample(classes, labels, jnp.where(positive.at[classes].get(mode="clip"), 0.0, log_weight))


def take_rows(weights: Any, sample: Sample, *, head: Head = heads.blockwise()) -> Any:
    """The rows of the sampled classes, where they are: of the weights, of a bias, or of a table by class.

        rows[i] = weights[sample.classes[i]]

    Its derivative with respect to `weights` is as large as they are, with zeros for every class not sampled. An
    optimiser that is given it still moves them, by momentum and decay; `ms.lazy_rows` takes the rows' gradient instead.

    Args:
      weights: `[C, ...]`, or a tree of such. In `ms.sharded` C is a multiple of the devices: add rows of padding.
      sample: of `ms.sample_classes`.
      head: that of the sample. Static.

    Returns:
      `[S, ...]`, or a tree of such. NaN for classes of the sample that a device does not have.

    Raises:
      TypeError: `sample` is no `Sample`.
      ValueError: the rows cannot be split over the devices.

    Example:
      >>> sample = ms.sample_classes(jax.random.key(0), jnp.array([1, 3]), num_classes=4, num_sampled=2)
      >>> ms.take_rows(jnp.arange(4.0), sample)
      Array([1., 3.], dtype=float32)
    """
    _refuse_unsplit(weights, sample, head)
    return _take_rows(weights, sample.classes, head=head)


@functools.partial(jax.jit, static_argnames="head")
def _take_rows(weights, classes, *, head):
    def local(shard, weights, classes):
        def rows(leaf):
            at = classes - shard * leaf.shape[0]
            return leaf.at[at].get(mode="fill", **IN_ORDER)

        return jax.tree.map(rows, weights)

    split = _split(head)
    return on_shares(head, local, (split, split), split)(_placed(head, weights), _placed(head, classes))


def put_rows(weights: Any, rows: Any, sample: Sample, *, head: Head = heads.blockwise()) -> Any:
    """The weights with new rows of the sampled classes; where weights are donated, in their place.

        weights[sample.classes[i]] = rows[i]

    Args:
      weights: `[C, ...]`, or a tree of such.
      rows: `[S, ...]`, or a tree of such, in the order of the sample; they take the dtype of the weights.
      sample: of `ms.sample_classes`.
      head: that of the sample. Static.

    Returns:
      As `weights`; rows of other classes are as they were, to the last bit.

    Raises:
      TypeError: `sample` is no `Sample`.
      ValueError: the rows cannot be split over the devices, or are not those of a sample.

    Example:
      >>> sample = ms.sample_classes(jax.random.key(0), jnp.array([1, 3]), num_classes=4, num_sampled=2)
      >>> ms.put_rows(jnp.zeros(4), jnp.array([5.0, 7.0]), sample)
      Array([0., 5., 0., 7.], dtype=float32)
    """
    _refuse_unsplit(weights, sample, head)
    refuse_other_rows("rows", rows, sample)
    return _put_rows(weights, rows, sample.classes, head=head)


@functools.partial(jax.jit, static_argnames="head")
def _put_rows(weights, rows, classes, *, head):
    def local(shard, weights, rows, classes):
        def put(leaf, row):
            at = classes - shard * leaf.shape[0]
            return leaf.at[at].set(row.astype(leaf.dtype), mode="drop", **IN_ORDER)

        return jax.tree.map(put, weights, rows)

    split = _split(head)
    placed = _placed(head, weights), _placed(head, rows), _placed(head, classes)
    return on_shares(head, local, (split, split, split), split, as_the_first)(*placed)


IN_ORDER = {"indices_are_sorted": True, "unique_indices": True, "wrap_negative_indices": False}
"""What a sample promises of its classes."""


def _refuse_unsplit(weights, sample, head):
    if not isinstance(sample, Sample):
        raise TypeError(f"sample: expected what ms.sample_classes returns, came {type(sample).__name__}.")
    refuse_uneven(weights, head)


def refuse_uneven(weights: Any, head: Head) -> None:
    """Refuses what has not one row per class, or as many on every device."""
    shards = 1 if _is_mapped(_checks.head(head)) else _shards(head)
    for leaf in jax.tree.leaves(weights):
        if jnp.ndim(leaf) == 0:
            raise ValueError("weights: expected one row per class, [C, ...], came a single number.")
        missing = -jnp.shape(leaf)[0] % shards
        if missing:
            raise ValueError(
                f"weights: expected a multiple of the {shards} devices over which the classes are split, came "
                f"{jnp.shape(leaf)}. Keep them with {missing} more rows, which are never drawn: "
                f"`jnp.pad(weights, [(0, {missing})] + [(0, 0)] * (weights.ndim - 1))`."
            )


def refuse_other_rows(name: str, rows: Any, sample: Sample) -> None:
    """Refuses rows that are not one for each class of the sample."""
    sampled = sample.classes.shape[0]
    for leaf in jax.tree.leaves(rows):
        if jnp.shape(leaf)[:1] != (sampled,):
            raise ValueError(
                f"{name}: expected one row per sampled class, [S, ...] = ({sampled}, ...), came {jnp.shape(leaf)}. "
                "Take the rows by `ms.take_rows(weights, sample)`, and the gradient with respect to them."
            )


def by_row(function: Callable, *trees: Any, head: Head) -> Any:
    """`function` of one row after the other of all trees, on the device that has it."""
    split = _split(head)

    def local(shard, *trees):
        del shard
        return jax.vmap(function)(*trees)

    return on_shares(head, local, (split,) * len(trees), split)(*(_placed(head, tree) for tree in trees))


def on_shares(
    head: Head, function: Callable, in_specs: Any, out_specs: Any, lie: Callable = same_everywhere
) -> Callable:
    """`function(shard, ...)` on every device's share of the classes; on all of them where the head has them all."""
    if not isinstance(head, Sharded):
        return lie(functools.partial(function, 0))

    def local(*arguments):
        return function(jax.lax.axis_index(head.axis_name), *arguments)

    return head.over(local, in_specs, out_specs)


def _split(head):
    return P(head.axis_name) if isinstance(head, Sharded) else P()


def _shards(head):
    return head.shards() if isinstance(head, Sharded) else 1


def _is_mapped(head):
    return isinstance(head, Sharded) and head.is_inside()


def _placed(head, tree):
    if not isinstance(head, Sharded) or head.is_inside():
        return tree
    return jax.tree.map(lambda leaf: head.constrained(leaf, _split(head)), tree)


def _summed(head, array):
    return jax.lax.psum(array, head.axis_name) if isinstance(head, Sharded) else array
