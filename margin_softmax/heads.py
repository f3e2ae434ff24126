"""Heads: where a loss runs. A head is a map-reduce over the rows of the class weights.

A head multiplies features with class rows, hands the products to functions it is given, and reduces over classes;
it knows no loss. Heads are static values: two equal ones share one compiled program.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from margin_softmax import _checks
from margin_softmax.reductions import Reduction

Tree = Any


class Logits(NamedTuple):
    """What becomes of a block of classes; each a function of its arguments alone.

    Attributes:
      rows: weights `[n, D]` (or `[n, K, D]`), `rows.given` with leaves `[B, 1]` -> the right factor of the products, of
        the weights' shape; row by row. What is given says how, and gets no gradient from it.
      of: products `[B, n]` (or `[B, n, K]`), `rows.given` with leaves `[B, 1]`, bias `[n]` or None -> logits `[B, n]`;
        elementwise.
    """

    rows: Callable[[jax.Array, Tree], jax.Array]
    of: Callable[[jax.Array, Tree, jax.Array | None], jax.Array]


class Rows(NamedTuple):
    """What a head has of each example: the left factor of the products, and whatever the logits need, `[B]` each."""

    features: jax.Array
    given: Tree = ()


class Classes(NamedTuple):
    """What a head has of each class: weights `[C, D]` or `[C, K, D]`, and an optional bias `[C]`."""

    weights: jax.Array
    bias: jax.Array | None = None


class Head(Protocol):
    """A map-reduce over class rows; any frozen, hashable value with these four methods."""

    def num_classes(self, weights: jax.Array) -> int:
        """C: of all classes, also where `weights` are a part of them."""
        ...

    def place(self, tree: Tree) -> Tree:
        """What belongs to the examples, `[B, ...]` each, where the head wants it."""
        ...

    def own(self, function: Callable[[Any, Classes], Tree], rows: Any, classes: Classes, labels: jax.Array) -> Tree:
        """`function(rows, classes[labels])`; labels lie in [0, C), every leaf of the result is `[B]`."""
        ...

    def others(self, reduction: Reduction, logits: Logits, rows: Rows, classes: Classes, labels: jax.Array) -> Tree:
        """The reduction's total of `logits` over the classes j != label; a label outside [0, C) excludes none."""
        ...


class _OneDevice:
    """A head that has all classes before it, and takes the examples where they are."""

    def num_classes(self, weights):
        return weights.shape[0]

    def place(self, tree):
        return tree


@dataclasses.dataclass(frozen=True)
class Dense(_OneDevice):
    """All `[B, C]` logits at once, in plain JAX; see `dense`."""

    precision: Any = None

    def own(self, function, rows, classes, labels):
        return function(rows, take(classes, labels, jax.tree.leaves(rows)[0].dtype))

    def others(self, reduction, logits, rows, classes, labels):
        ids = jnp.arange(classes.weights.shape[0], dtype=labels.dtype)
        return reduction.total(reduction.of(self.logits(logits, rows, classes), ids[None] != labels[:, None], ids))

    def logits(self, logits: Logits, rows: Rows, classes: Classes) -> jax.Array:
        """Logits of all classes `[B, C]`."""
        weights, bias = _as_dtype(classes, rows.features.dtype)
        given = columns(rows.given)
        return logits.of(products(rows.features, logits.rows(weights, given), self.precision), given, bias)


def dense() -> Dense:
    """All `[B, C]` logits at once, in plain JAX.

    Forward-mode differentiation and Hessians work through it, and every other head is tested against it. Its memory
    grows with batch x classes; its time is that of three matrix products for the loss with its gradients.

    Returns:
      A head.

    Example:
      >>> x, w, y = jnp.ones((2, 3)), jnp.eye(5, 3), jnp.array([0, 4])
      >>> ms.margin_loss(x, w, y, ms.arcface(0.5, scale=8.0), head=ms.dense()).shape
      (2,)
    """
    return Dense()


@dataclasses.dataclass(frozen=True)
class Blockwise(_OneDevice):
    """One block of classes after the other; see `blockwise`."""

    block_size: int | None = None
    memory: int = 64 * 2**20
    precision: Any = None

    def own(self, function, rows, classes, labels):
        return function(rows, take(classes, labels, jax.tree.leaves(rows)[0].dtype))

    def others(self, reduction, logits, rows, classes, labels):
        rows = only_used(logits, rows, classes)
        return _blockwise(self.plan(rows, classes), logits, reduction, rows, classes, labels)

    def plan(self, rows: Rows, classes: Classes) -> "Plan":
        """Block size and number of kept blocks for these examples and class rows."""
        batch, itemsize = rows.features.shape[0], rows.features.dtype.itemsize
        num_classes, *centres = classes.weights.shape[:-1]
        per_class = max(batch, 1) * int(np.prod(centres, dtype=int))
        size = min(self.block_size or _block_size(num_classes, per_class), num_classes)
        kept = int(self.memory // (size * per_class * itemsize))
        return Plan(size, kept, self.precision, self.block_size is None and num_classes <= FEW_BLOCKS * size)


def _block_size(num_classes: int, per_class: int) -> int:
    """Blocks of one size that overlap as little as may be: what they share is computed twice.

    An odd multiple of 16: powers of two are slower, presumably as their rows compete for the same lines of a cache.
    """
    products = BLOCK_PRODUCTS_ON_CPU if jax.default_backend() == "cpu" else BLOCK_PRODUCTS
    blocks = -(-num_classes // max(128, products // per_class))
    sixteens = -(-num_classes // (16 * blocks))
    return 16 * (sixteens + 1 - sixteens % 2)


BLOCK_PRODUCTS_ON_CPU = 2**19
"""Products in one block: 2 MiB of float32, which stay in a cache between the passes over them (measured)."""

BLOCK_PRODUCTS = 2**25
"""Elsewhere: 128 MiB, so that each product takes longer than it takes to start one (reckoned, not measured)."""

FEW_BLOCKS = 8
"""As many blocks are written out one after the other: a loop would copy what it keeps and what it makes."""


def blockwise(block_size: int | None = None, memory: int = 64 * 2**20, precision: Any = None) -> Blockwise:
    """One block of classes after the other: the same loss, and no `[B, C]` array.

    The backward pass needs the products of features and weights again. Those of as many blocks as fit into `memory`
    are kept from the forward pass (three matrix products in all), the rest are computed anew (four). Differentiates
    in reverse mode; for forward mode and Hessians there is `dense`.

    Args:
      block_size: classes in a block; None chooses it from the shapes. C need not be a multiple of it.
      memory: bytes of products that may be kept for the backward pass; 0 keeps none.
      precision: of the matrix products, as in `jax.lax.dot_general`; None is the highest, summed in parts, so that
        float32 means float32 on accelerators too. `"BF16_BF16_F32"` is the fast choice there for bfloat16 inputs.

    Returns:
      A head.

    Raises:
      ValueError: `block_size` is not a whole number >= 1, `memory` is negative, or `precision` is none of JAX's.

    Example:
      >>> x, w, y = jnp.ones((2, 3)), jnp.eye(5, 3), jnp.array([0, 4])
      >>> ms.margin_loss(x, w, y, ms.arcface(0.5, scale=8.0), head=ms.blockwise(block_size=2)).shape
      (2,)
    """
    if block_size is not None:
        block_size = int(_checks.static_number("block_size", block_size, at_least=1, whole=True))
    memory = int(_checks.static_number("memory", memory, at_least=0, whole=True, hint="It counts bytes."))
    return Blockwise(block_size, memory, _checks.precision(precision))


def products(features: jax.Array, weights: jax.Array, precision: Any = None) -> jax.Array:
    """Inner products `[B, C]` or `[B, C, K]`."""
    contracted = (1,), (weights.ndim - 1,)
    if precision is not None:
        return _dot(features, weights, contracted, precision)
    # A matrix product may add up its terms one after the other, each sum rounded, and a logit has that error 64 times.
    # Parts added up apart take a third to two thirds of it away. A short sum has little of it; in few dimensions
    # cosines, and with them the error, are larger.
    dim = features.shape[1]
    bounds = np.linspace(0, dim, 1 + (1 if dim < 16 else 4 if dim <= 64 else 2), dtype=int)
    parts = [(features[:, i:j], weights[..., i:j]) for i, j in itertools.pairwise(bounds) if i < j or not bounds[-1]]
    return functools.reduce(jnp.add, [_dot(x, w, contracted, precision) for x, w in parts])


def _products_transpose(products_bar, features, weights, precision):
    """Cotangents of both factors of `products`, from the cotangent of the products."""
    classes = tuple(range(1, products_bar.ndim)), tuple(range(weights.ndim - 1))
    return _dot(products_bar, weights, classes, precision), _dot(products_bar, features, ((0,), (0,)), precision)


def _dot(a, b, contracted, precision):
    precision = jax.lax.Precision.HIGHEST if precision is None else precision
    return jax.lax.dot_general(a, b, (contracted, ((), ())), precision=precision)


def take(classes: Classes, labels: jax.Array, dtype) -> Classes:
    """The rows `classes[labels]` as `dtype`, for labels in [0, C)."""
    # Examples of one class take its row from the first of them. So their gradients add up in `dtype`, however narrow
    # the weights are, and no two of them meet in the scatter over classes, whose order accelerators do not fix.
    order = jnp.argsort(labels, stable=True)
    first = order[jnp.searchsorted(labels[order], labels, method="sort")]

    def rows(leaf):
        return leaf.at[labels].get(mode="clip").astype(dtype).at[first].get(mode="clip")

    return jax.tree.map(rows, classes)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Unread:
    """What stands for numbers `[B]` that nobody reads: a part of the program and not of its data."""

    batch: int
    dtype: Any


def columns(tree: Tree) -> Tree:
    """Leaves `[B]` as `[B, 1]`, to meet a block `[B, n]`."""

    def column(leaf):
        return jnp.zeros((leaf.batch, 1), leaf.dtype) if isinstance(leaf, _Unread) else leaf[:, None]

    return jax.tree.map(column, tree, is_leaf=lambda leaf: isinstance(leaf, _Unread))


def only_used(logits: Logits, rows: Rows, classes: Classes) -> Rows:
    """Rows without what is given of them and not read.

    Nothing is then computed from its cotangent, which would be an array of zeros.
    """
    leaves, structure = jax.tree.flatten(rows.given)
    batch, dtype = rows.features.shape[0], rows.features.dtype

    def look(leaves, products, class_rows, bias):
        given = jax.tree.unflatten(structure, leaves)
        return logits.of(products, given, bias), logits.rows(class_rows, given)

    one_class, bias = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), dtype), classes)
    products = jax.ShapeDtypeStruct((batch, *one_class.shape[:-1]), dtype)
    given = [jax.ShapeDtypeStruct((batch, 1, *leaf.shape[1:]), leaf.dtype) for leaf in leaves]
    jaxpr = jax.make_jaxpr(look)(given, products, one_class, bias).jaxpr
    seen = {id(var) for equation in jaxpr.eqns for var in equation.invars} | {id(var) for var in jaxpr.outvars}
    used = jax.tree.unflatten(structure, [id(var) in seen for var in jaxpr.invars[: len(leaves)]])
    unread = _Unread(batch, dtype)
    return rows._replace(given=jax.tree.map(lambda leaf, used: leaf if used else unread, rows.given, used))


def _as_dtype(tree: Tree, dtype) -> Tree:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


class Plan(NamedTuple):
    """How a blockwise pass runs: classes in a block, blocks whose products are kept, precision, loop or none."""

    size: int
    kept: int
    precision: Any
    unrolled: bool


def _blocks(plan: Plan, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """First class of each block, and the first class that is not another block's.

    The last block starts early enough to be full. It comes first: what it writes for the classes it shares is then
    overwritten by the block whose classes they are.
    """
    own = np.arange(0, num_classes, plan.size, dtype=np.int32)
    return np.roll(np.minimum(own, num_classes - plan.size), 1), np.roll(own, 1)


def _write(classes: Classes, block: Classes, start) -> Classes:
    def write(leaf, new):
        return jax.lax.dynamic_update_slice_in_dim(leaf, new.astype(leaf.dtype), start, axis=0)

    return jax.tree.map(write, classes, block)


class Shard(NamedTuple):
    """Which of all classes are before a device: those from the id `first` on, and what reaches `end` is padding."""

    first: jax.Array | int
    end: int


class _Block(NamedTuple):
    classes: Classes
    keep: jax.Array
    ids: jax.Array


def _block(plan: Plan, rows: Rows, classes: Classes, labels: jax.Array, shard: Shard, start, own) -> _Block:
    ids = shard.first + start + jnp.arange(plan.size, dtype=jnp.int32)
    keep = ((ids >= shard.first + own) & (ids < shard.end))[None] & (ids[None] != labels[:, None])
    block = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, plan.size), classes)
    return _Block(_as_dtype(block, rows.features.dtype), keep, ids)


def _over(plan: Plan, step, carry, starts, kept=None):
    """`step` over the blocks that start there, each with what was kept of it; and what it makes of each."""
    if len(starts[0]) > 1 and not plan.unrolled:
        return jax.lax.scan(step, carry, (starts, kept))
    made = []
    for i, where in enumerate(zip(*starts, strict=True)):
        carry, one = step(carry, (where, None if kept is None else kept[i]))
        made.append(one)
    return carry, made


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blockwise(plan: Plan, logits: Logits, reduction: Reduction, rows: Rows, classes: Classes, labels: jax.Array):
    return _blockwise_fwd(plan._replace(kept=0), logits, reduction, rows, classes, labels)[0]


def _blockwise_fwd(plan, logits, reduction, rows, classes, labels):
    shard = Shard(0, classes.weights.shape[0])
    part, kept = forward(plan, logits, reduction, rows, classes, labels, shard)
    total = reduction.total(part)
    return total, (reduction, rows, classes, labels, total, kept)


def forward(plan: Plan, logits: Logits, reduction: Reduction, rows: Rows, classes: Classes, labels, shard: Shard):
    """The part of a shard's classes, block by block, and the products that are kept."""

    def step(part, xs, keep_products):
        where, _ = xs
        block = _block(plan, rows, classes, labels, shard, *where)
        p = products(rows.features, logits.rows(block.classes.weights, given), plan.precision)
        z = logits.of(p, given, block.classes.bias)
        return reduction.merge(part, reduction.of(z, block.keep, block.ids)), p if keep_products else None

    given = columns(rows.given)
    nothing = jnp.zeros((rows.features.shape[0], 1), rows.features.dtype)
    part = _as_unlike(reduction.of(nothing, nothing > 0, jnp.zeros(1, jnp.int32)), (rows, classes, shard.first))
    starts = _blocks(plan, classes.weights.shape[0])
    first, others = ([s[: plan.kept] for s in starts], [s[plan.kept :] for s in starts])
    part, kept = _over(plan, functools.partial(step, keep_products=True), part, first)
    part, _ = _over(plan, functools.partial(step, keep_products=False), part, others)
    return part, kept


def _blockwise_bwd(plan, logits, residuals, total_bar):
    reduction, rows, classes, labels, total, kept = residuals
    shard = Shard(0, classes.weights.shape[0])
    bars = backward(plan, logits, reduction, rows, classes, labels, shard, total, kept, total_bar)
    # A reduction is a constant by contract, and labels are integers.
    return jax.tree.map(jnp.zeros_like, reduction), *summed_as(bars, (rows, classes)), None


def backward(plan: Plan, logits, reduction, rows, classes, labels, shard: Shard, total, kept, total_bar):
    """Cotangents of rows and of a shard's classes, from the cotangent of the total over all classes.

    Inside a `shard_map` they are each device's own share, of which the caller makes the sum: block by block, as
    differentiation would do it, that would be a collective for each.
    """
    rows, classes, total_bar = _as_unlike((rows, classes, total_bar), (rows, classes, shard.first, total_bar))

    def step(bars, xs):
        where, p = xs
        block = _block(plan, rows, classes, labels, shard, *where)
        class_rows, pull_rows = jax.vjp(lambda w: logits.rows(w, columns(rows.given)), block.classes.weights)
        if p is None:
            p = products(rows.features, class_rows, plan.precision)
        z, pull = jax.vjp(lambda p, given, bias: logits.of(p, columns(given), bias), p, rows.given, block.classes.bias)
        p_bar, given_bar, bias_bar = pull(reduction.pull(z, block.keep, total, total_bar))
        features_bar, class_rows_bar = _products_transpose(p_bar, rows.features, class_rows, plan.precision)
        (weights_bar,) = pull_rows(class_rows_bar)
        block_bar = Classes(weights_bar, bias_bar)
        rows_bar, classes_bar = bars
        rows_bar = jax.tree.map(jnp.add, rows_bar, Rows(features_bar, given_bar))
        return (rows_bar, _write(classes_bar, block_bar, where[0])), None

    bars = _as_unlike(jax.tree.map(jnp.zeros_like, (rows, classes)), (rows, classes))
    starts = _blocks(plan, classes.weights.shape[0])
    bars, _ = _over(plan, step, bars, [s[: plan.kept] for s in starts], kept)
    bars, _ = _over(plan, step, bars, [s[plan.kept :] for s in starts])
    return bars


def _as_unlike(carry: Tree, to: Tree) -> Tree:
    """Inside a `shard_map`, what a loop carries must differ from device to device wherever what joins it does."""
    axes = {axis for leaf in jax.tree.leaves(to) for axis in varying(leaf)}

    def cast(leaf):
        missing = tuple(sorted(axes - varying(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, carry)


def summed_as(bars: Tree, primals: Tree) -> Tree:
    """Cotangents summed over the axes along which they differ from device to device and what they belong to does not.

    That is the classes' axis for the examples; and the data axis for the classes, where the caller has mapped it.
    """
    leaves, structure = jax.tree.flatten(bars)
    extra = [
        tuple(sorted(varying(bar) - varying(primal)))
        for bar, primal in zip(leaves, jax.tree.leaves(primals), strict=True)
    ]
    for axes in sorted(set(extra) - {()}):
        chosen = [i for i, other in enumerate(extra) if other == axes]
        for i, summed in zip(chosen, jax.lax.psum([leaves[i] for i in chosen], axes), strict=True):
            leaves[i] = summed
    return jax.tree.unflatten(structure, leaves)


def varying(array) -> set[str]:
    """The axes of the surrounding `shard_map` along which an array differs from device to device."""
    return set(jax.typeof(array).manual_axis_type.varying)


_blockwise.defvjp(_blockwise_fwd, _blockwise_bwd)
