"""Explicit mesh axes, as `jax.make_mesh` gives them: there every operation has to be told how its result lies."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


def split_as_examples(function: Callable) -> Callable:
    """`function(examples, ...)` under Explicit axes as under Auto ones; its results `[B, ...]` lie as the examples do.

    What is made on the way (own class rows, blocks, sums over classes) is nobody's concern but the compiler's.
    """
    return _laid_out(function, lambda examples: P(*_spec(examples)[:1]))


def same_everywhere(function: Callable) -> Callable:
    """The same for results that every device has."""
    return _laid_out(function, lambda examples: P())


def as_the_first(function: Callable) -> Callable:
    """The same for a result that is the first argument anew."""
    return _laid_out(function, lambda first: jax.tree.map(_spec, first))


def _spec(array):
    return jax.typeof(array).sharding.spec


def _laid_out(function, spec_of):
    @functools.wraps(function)
    def call(first: Any, *others: Any, **static: Any) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
        explicit = tuple(axis for axis, kind in kinds if kind is AxisType.Explicit)
        bound = functools.partial(function, **static)
        if explicit:
            bound = jax.sharding.auto_axes(bound, axes=explicit, out_sharding=spec_of(first))
        return bound(first, *others)

    return call
