"""What the functions of this folder ask of their arguments, in the words of `_checks`.

They read values and decide by them on the host, so none of them runs inside `jit`: traced arguments are refused first.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from margin_softmax import _checks

BLOCK = 2048
"""Rows on each side of a block of cosines, which is then 16 MiB of float32."""


def refuse_traced(**arguments: Any) -> None:
    """All arguments of a function at once: where one is traced, even what is computed of the others would be."""
    for name, value in arguments.items():
        if any(map(_checks.is_traced, jax.tree.leaves(value))):
            raise TypeError(f"{name}: expected values that can be read here, came traced ones. Call it outside jit.")


def on_host(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name}: expected an array that can be read here, came {type(value).__name__}: {error}"
        ) from None


def finite_reals(name: str, value: Any, letters: str) -> np.ndarray:
    """A vector of finite numbers, in float64, which holds them all without rounding."""
    array = on_host(name, value)
    whole = jnp.issubdtype(array.dtype, jnp.integer)
    if not (whole or jnp.issubdtype(array.dtype, jnp.floating)) or array.dtype.itemsize > 8:
        raise TypeError(f"{name}: expected real numbers of at most 64 bits, came {array.dtype}. Convert them first.")
    _checks.shape(name, array, (None,), letters, "Drop or flatten other axes.")
    if whole and array.size and max(int(array.max()), -int(array.min())) > 2**53:
        raise ValueError(
            f"{name}: expected integers of at most 2^53 in size, came larger ones, which float64 would round."
        )
    array = array.astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(array))
    if wrong.size:
        raise ValueError(
            f"{name}: expected finite numbers, came {array[wrong[0]]} at index {wrong[0]}; {wrong.size} of "
            f"{array.size} are not finite. Features that hold NaN, or zeros divided by their length, make such scores."
        )
    return array


def integers(name: str, value: Any, fix: str) -> np.ndarray:
    """Of any shape, int64."""
    array = on_host(name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, came {array.dtype}. {fix}")
    if array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: expected numbers that int64 can hold, came {array.max()}. {fix}")
    return array.astype(np.int64)


def ids(name: str, value: Any, rows: int | None = None) -> np.ndarray:
    """Numbers that are names and only compared, int64; one per row."""
    numbers = integers(name, value, "Number them: `np.unique(names, return_inverse=True)[1]`.")
    letters = "[rows]" if rows is None else f"[rows] = ({rows},)"
    _checks.shape(name, numbers, (rows,), letters, "Give one number per row.")
    return numbers


def numbered(*labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Each label as its place among all that are different, int32: wider ones would wrap on the device."""
    places = np.unique(np.concatenate(labels), return_inverse=True)[1].astype(np.int32)
    return tuple(np.split(places, np.cumsum([len(part) for part in labels[:-1]])))


def features_of(name: str, value: Any) -> jax.Array:
    """Rows to be compared on the device, `[rows, D]`, real and finite."""
    rows = _checks.real_array(name, value)
    refuse_other_shapes(name, rows)
    finite = _finite(rows)
    refuse_traced(**{name: finite})  # as it is inside `jit`, even of constants
    refuse_unfinite(name, np.asarray(finite))
    return rows


@jax.jit
def _finite(rows):
    return jnp.isfinite(rows).all(axis=1)


def like(name: str, value: Any, features: jax.Array) -> jax.Array:
    """As `features_of`, of the same dimension."""
    rows = features_of(name, value)
    letters = f"[rows, {features.shape[1]}] for features {features.shape}"
    _checks.shape(name, rows, (None, features.shape[1]), letters, "Both come from one network.")
    return rows


def refuse_other_shapes(name: str, rows: Any) -> None:
    _checks.shape(name, rows, (None, None), "[rows, D]", "Flatten or pool every other axis first.")
    if 0 in rows.shape:
        raise ValueError(f"{name}: expected at least one row and one dimension, came shape {rows.shape}.")


def refuse_unfinite(name: str, finite: np.ndarray) -> None:
    """`finite`: which rows are."""
    wrong = np.flatnonzero(~finite)
    if wrong.size:
        raise ValueError(
            f"{name}: row {wrong[0]} holds a number that is not finite, expected finite ones. {wrong.size} of "
            f"{len(finite)} rows do. Look for what made them: such a row has no direction."
        )


def block_rows(block_size: Any) -> int:
    """Rows on each side of a block, of whose square memory holds some copies and int32 must count the places."""
    if block_size is None:
        return BLOCK
    return int(_checks.static_number("block_size", block_size, at_least=1, at_most=2**15, whole=True))
