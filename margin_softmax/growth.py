"""New classes for a head that is trained: the rows that they start from, and what an optimiser has of them."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from margin_softmax import _checks, angles

Tree = Any


def grow_classes(weights: jax.Array, features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Class weights with a row more for each new class: the mean direction of its features, as long as the others are.

        w_c = r unit(sum over the features of class c of x / |x|),   r = mean over the old classes of |w_j|

    Old rows stay as they are, to the bit, and so do their ids and logits. A feature counts by its direction: its length
    says how clear a picture is, and not whose. The length r suits every loss. Where rows are normalised it is no part
    of the logits, but a shorter row would turn faster at the same learning rate, and a longer one slower; where they
    are not, a longer row would have larger logits and take the others' examples. With K sub-centres all of a class
    start there; of equal ones a batch moves one, which parts them.

    It shapes the next program, so it belongs between two of them and not inside `jit`. Weights that are split over
    devices come back split alike where the number of rows allows it, and otherwise whole on each. For the optimiser's
    state see `ms.grow_state`.

    Args:
      weights: one row per class, `[C, D]`; or `[C, K, D]` for K sub-centres.
      features: of examples of the new classes, `[B, D]`, real.
      labels: class of each, `[B]` integers in [C, num_classes); every new class at least once. Concrete.
      num_classes: how many there are to be, old and new together. Static.

    Returns:
      `[num_classes, D]` or `[num_classes, K, D]`, in the dtype of `weights`.

    Raises:
      TypeError: an argument has the wrong dtype, or values that cannot be read here.
      ValueError: a shape is wrong, a label is that of an old class or of none, a new class has no features, or its
        features have no mean direction.

    References:
      Qi, Brown, Lowe, Low-Shot Learning with Imprinted Weights, CVPR 2018.

    Example:
      >>> x = jnp.array([[3.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
      >>> ms.grow_classes(2 * jnp.eye(2, 3), x, jnp.array([2, 2]), num_classes=3)
      Array([[2.       , 0.       , 0.       ],
             [0.       , 2.       , 0.       ],
             [1.4142135, 1.4142135, 0.       ]], dtype=float32)
    """
    features, weights = _checks.features_and_weights(features, weights)
    old = weights.shape[0]
    hint = f"It is the number of all classes, of which {old} are there."
    num_classes = int(_checks.static_number("num_classes", num_classes, at_least=old + 1, whole=True, hint=hint))
    places = _places(_checks.labels_of(labels, features.shape[0], num_classes), old, num_classes)
    sharding = _sharding_of(weights, num_classes)
    grown, length, known = _grown(weights, features, places, new=num_classes - old, sharding=sharding)
    if not _checks.is_traced(grown):
        _refuse_undirected(np.asarray(length), np.asarray(known), old)
    return grown


def _places(labels, old: int, num_classes: int) -> np.ndarray:
    """Which of the new classes each label is."""
    if _checks.is_traced(labels) or not (labels.is_fully_addressable or labels.is_fully_replicated):
        raise TypeError(
            "labels: expected values that can be read here, came traced ones, or a part of them. "
            "Call it outside jit, with all labels on every process."
        )
    places = np.asarray(labels).astype(np.int64) - old
    wrong = np.flatnonzero((places < 0) | (places >= num_classes - old))
    if wrong.size:
        raise ValueError(
            f"labels: row {wrong[0]} holds {places[wrong[0]] + old}, expected new classes, {old} to {num_classes - 1}. "
            "Leave out the examples of others."
        )
    missing = np.flatnonzero(np.bincount(places, minlength=num_classes - old) == 0)
    if missing.size:
        raise ValueError(
            f"labels: class {missing[0] + old} has no example, expected one at least for each new class, {old} to "
            f"{num_classes - 1}. {missing.size} of {num_classes - old} have none: number the new classes without gaps."
        )
    return places.astype(np.int32)


def _sharding_of(weights, num_classes: int) -> NamedSharding | None:
    """How the grown weights are to lie on the devices; None for one device."""
    sharding = None if _checks.is_traced(weights) else weights.sharding
    if not isinstance(sharding, NamedSharding):
        return None
    try:
        sharding.shard_shape((num_classes, *weights.shape[1:]))
    except ValueError:  # rows are not divisible by devices
        return NamedSharding(sharding.mesh, P())
    return sharding


@functools.partial(jax.jit, static_argnames=("new", "sharding"))
def _grown(weights, features, places, *, new, sharding):
    def grown(weights, features, places):
        dtype = angles.compute_dtype(weights, features)
        directions = angles.unit(features.astype(dtype))
        total = jax.ops.segment_sum(directions, places, new)
        counts = jax.ops.segment_sum(jnp.ones_like(places), places, new)
        length = jnp.mean(angles.norm(weights.astype(dtype)))
        rows = (length * angles.unit(total)).astype(weights.dtype)
        rows = jnp.broadcast_to(rows.reshape(new, *[1] * (weights.ndim - 2), -1), (new, *weights.shape[1:]))
        # What directions that cancel leave of their sum is rounding.
        known = angles.norm(total) > 4 * float(jnp.finfo(dtype).eps) * counts.astype(dtype)
        return jnp.concatenate([weights, rows]), length, known

    everywhere = sharding and NamedSharding(sharding.mesh, P())
    return _laid_out(grown, (sharding, everywhere, everywhere), weights, features, places)


def _laid_out(function, shardings, *arrays):
    """`function` of arrays, its results on the devices as `shardings` say; None where there is one device."""
    if not jax.tree.leaves(shardings):
        return function(*arrays)
    # Rows that are split and rows that are not: under Explicit axes these have different types, and do not join.
    return jax.sharding.auto_axes(function, out_sharding=shardings)(*arrays)


def _refuse_undirected(length, known, old: int) -> None:
    if not length > 0:
        raise ValueError(
            f"weights: expected rows of a trained head, whose mean length the new ones get, came mean length {length}."
        )
    unknown = np.flatnonzero(~known)
    if unknown.size:
        raise ValueError(
            f"features: class {unknown[0] + old} has no mean direction, expected one for each new class: its features "
            "are zeros, not finite, or cancel each other. Give it other examples."
        )


def grow_state(state: Tree, start: Tree) -> Tree:
    """An optimiser's state for more classes: what it has learned, and for the new rows what it starts from.

        state[i] for a row i that it has, start[i] for a row that is new; what has no such rows as in `state`

    `start` is the state that the optimiser makes for the grown parameters, however large a tree they are in:

        grown = params | {"classes": ms.grow_classes(params["classes"], features, labels, num_classes)}
        state = ms.grow_state(state, optimizer.init(grown))

    So a new row has the momentum zero, or whatever the optimiser starts from, and everything else is carried to the
    bit, with the count of steps. As Adam's correction for that count is the same for all rows, a new row's first step
    is of up to (1 - b1) / sqrt(1 - b2) learning rates, 3.2 by default, instead of one. Anything else with a row per
    class grows in the same way: a bias, a table of margins, an average of the parameters.

    Args:
      state: a pytree, before.
      start: one of the same structure, whose arrays may have more rows, the same number in each.

    Returns:
      A pytree of the same structure, its arrays placed as those of `start`.

    Raises:
      TypeError: an array has another dtype in `start`.
      ValueError: the trees differ, or an array does in other things than its rows.

    Example:
      >>> optimizer, weights, grown = optax.sgd(0.1, momentum=0.9), jnp.ones((1, 2)), jnp.ones((3, 2))
      >>> _, state = optimizer.update(jnp.array([[4.0, 5.0]]), optimizer.init(weights))
      >>> ms.grow_state(state, optimizer.init(grown))[0].trace
      Array([[4., 5.],
             [0., 0.],
             [0., 0.]], dtype=float32)
    """
    if jax.tree.structure(state) != jax.tree.structure(start):
        raise ValueError(
            f"start: expected the structure of state, {jax.tree.structure(state)}, came {jax.tree.structure(start)}. "
            "Make it with the same optimiser, from the grown parameters."
        )
    pairs = [
        (f"start{jax.tree_util.keystr(path)}", old, new)
        for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(start), strict=True)
    ]
    grown = {rows for rows in itertools.starmap(_rows_of, pairs) if rows}
    if len(grown) > 1:
        raise ValueError(
            f"start: expected all that grows to grow alike, came rows {' and '.join(map(str, sorted(grown)))}. "
            "A state whose arrays change their roles with the number of classes must begin anew."
        )
    return jax.tree.unflatten(jax.tree.structure(start), [_carried(old, new) for _, old, new in pairs])


def _rows_of(name: str, old, new) -> tuple[int, int] | None:
    """The number of rows before and after; None where there is nothing to grow."""
    was, now = jax.typeof(old), jax.typeof(new)
    if was.dtype != now.dtype:
        raise TypeError(f"{name}: expected {was.dtype}, as in state, came {now.dtype}. It is carried to the bit.")
    if was.shape == now.shape:
        return None
    same_rows = was.shape and now.shape and was.shape[1:] == now.shape[1:]
    if not (same_rows and was.shape[0] < now.shape[0]):
        raise ValueError(
            f"{name}: expected shape {was.shape}, as in state, or the same with more rows, came {now.shape}. "
            "Only classes grow, along the first axis."
        )
    return was.shape[0], now.shape[0]


def _carried(old, new):
    if jnp.shape(old) == jnp.shape(new):
        return old
    sharding = getattr(new, "sharding", None)
    return _joined(old, new, sharding=sharding if isinstance(sharding, NamedSharding) else None)


@functools.partial(jax.jit, static_argnames="sharding")
def _joined(old, new, *, sharding):
    return _laid_out(lambda old, new: jnp.concatenate([old, new[old.shape[0] :]]), sharding, old, new)
