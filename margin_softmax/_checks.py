"""What every public function asks of its arguments, and the words in which it refuses them.

A message names the argument, what came, what was expected, and the fix. Shapes and dtypes are known while
tracing and are always checked; values are checked where they are concrete, and pass through where they are
traced (a margin under a schedule, labels inside `jit`).
"""

import math
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Numeric = float | jax.Array | np.ndarray
"""A hyper-parameter: a number, or an array with one value per example; concrete or traced."""


def held(value: Any) -> Any:
    """What a parameter of a network holds, as an `nnx.Param` does; anything else as it is."""
    return value.__jax_array__() if hasattr(value, "__jax_array__") and not isinstance(value, jax.Array) else value


def is_traced(value: Any) -> bool:
    return isinstance(held(value), Tracer)


def real_array(name: str, value: Any) -> jax.Array:
    """`value` as an array of real floating point numbers."""
    array = _as_array(name, value)
    real_dtype(name, array.dtype)
    return array


def real_dtype(name: str, dtype: Any) -> None:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name}: expected real floating point numbers, came {dtype}. "
            f"Convert it first, for example `{name}.astype(jnp.float32)`."
        )


def holds_reals(name: str, value: Any) -> bool:
    """Whether `value`, an array or a list, holds floating point numbers."""
    dtype = value.dtype if hasattr(value, "dtype") else _as_array(name, value).dtype
    return jnp.issubdtype(dtype, jnp.floating)


def _as_array(name: str, value: Any) -> jax.Array:
    if isinstance(value, jax.Array):
        return value  # as it is: `asarray` would run an operation, which `jax_debug_nans` checks, masked rows and all
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name}: expected an array, came {type(value).__name__}: {error}") from None


def shape(
    name: str, array: jax.Array | np.ndarray, expected: Sequence[int | None], letters: str, fix: str = ""
) -> None:
    """Refuses a shape that differs from `expected` (None: any size); `letters` is how the docs write it."""
    try:
        chex.assert_shape(array, tuple(expected))
    except AssertionError:
        # In our words only: chex calls the argument "input 0".
        raise ValueError(f"{name}: expected shape {letters}, came {array.shape}. {fix}".rstrip()) from None


def features_and_weights(features: Any, weights: Any, name: str = "weights") -> tuple[jax.Array, jax.Array]:
    """Features [B, D] and class weights [C, D] or [C, K, D], which have a name, as arrays that fit each other."""
    features, weights = real_array("features", features), real_array(name, weights)
    shape("features", features, (None, None), "[B, D]", "Flatten or pool every other axis first.")
    if weights.ndim not in (2, 3):
        raise ValueError(
            f"{name}: expected shape [C, D], or [C, K, D] with K sub-centres, came {weights.shape}. "
            "Give one row per class."
        )
    dimensions = features.shape[1]
    if weights.shape[-1] != dimensions:
        transposed = weights.ndim == 2 and weights.shape[0] == dimensions
        fix = f"They look transposed: pass `{name}.T`." if transposed else "Features and class rows share D."
        raise ValueError(
            f"{name}: expected shape [C, {dimensions}] for features {features.shape}, came {weights.shape}. {fix}"
        )
    if 0 in weights.shape[:-1]:
        raise ValueError(f"{name}: expected at least one class, came {weights.shape}. Give one row per class.")
    return features, weights


def labels_of(labels: Any, batch: int | None, num_classes: int) -> jax.Array:
    """Labels [B] as integers that can hold every class; their values are left as they are. None: of any B."""
    labels = _integers("labels", labels, num_classes, "Class indices are integers in [0, C)")
    letters = "[B]" if batch is None else f"[B] = ({batch},)"
    if labels.ndim == 2 and labels.shape[1] == num_classes != 1 and batch in (None, labels.shape[0]):
        raise ValueError(
            f"labels: expected shape {letters}, came {labels.shape}, which looks one-hot. "
            "Pass `labels.argmax(axis=-1)`."
        )
    fix = "One class index per example: `labels.reshape(-1)` drops a trailing axis."
    shape("labels", labels, (batch,), letters, fix)
    return labels


def indices_of(name: str, indices: Any, batch: int, size: int) -> jax.Array:
    """Indices [B] into `size` rows, as integers that can hold all; their values are left as they are."""
    indices = _integers(name, indices, size, f"They are integers in [0, {size})")
    shape(name, indices, (batch,), f"[B] = ({batch},)", "One index per example.")
    return indices


def _integers(name: str, indices: Any, size: int, meaning: str) -> jax.Array:
    """`indices` as integers that can hold 0 to size - 1."""
    _refuse_lost_digits(name, indices, meaning)
    indices = _as_array(name, indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"{name}: expected integers, came {indices.dtype}. {meaning}: `{name}.astype(jnp.int32)`.")
    if jnp.iinfo(indices.dtype).max < size - 1:
        raise TypeError(
            f"{name}: {indices.dtype} cannot hold 0 to {size - 1}, so larger ones have wrapped. "
            "Make them int32 where they are made."
        )
    return indices


def _refuse_lost_digits(name: str, indices: Any, meaning: str) -> None:
    """NumPy integers wider than the compiled ones would wrap onto other classes, silently."""
    if isinstance(indices, jax.Array) or hasattr(indices, "__jax_array__"):
        return
    try:
        wide = np.asarray(indices)
    except (TypeError, ValueError):
        return  # no array of numbers, or a list of traced ones: not NumPy's
    narrow = jax.dtypes.canonicalize_dtype(wide.dtype) if wide.dtype.kind in "iu" else wide.dtype
    if narrow == wide.dtype or wide.size == 0:
        return
    limits = np.iinfo(narrow)
    wrong = np.flatnonzero((wide.reshape(-1) > limits.max) | (wide.reshape(-1) < limits.min))
    if wrong.size:
        raise ValueError(
            f"{name}: row {wrong[0]} holds {wide.reshape(-1)[wrong[0]]}, which {narrow} cannot hold "
            f"({wide.dtype} is compiled as {narrow}). {meaning}."
        )


def mask_of(where: Any, batch: int) -> jax.Array | None:
    """The rows that count, [B] booleans, or None for all of them."""
    if where is None:
        return None
    where = _as_array("where", where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"where: expected booleans, came {where.dtype}. Pass `where != 0`.")
    shape("where", where, (batch,), f"[B] = ({batch},)", "One flag per example; nothing is broadcast.")
    return where


def bias_of(bias: Any, num_classes: int) -> jax.Array | None:
    if bias is None:
        return None
    bias = real_array("bias", bias)
    shape("bias", bias, (num_classes,), f"[C] = ({num_classes},)", "One number per class.")
    return bias


def number(name: str, value: Any, **bounds: Any) -> Any:
    """`value` in real numbers of 32 bits or more, once its concrete ones are finite and within bounds.

    Traced ones pass through. A whole number has no gradient, and a narrow one loses digits in the arithmetic of a
    constructor, before it meets the features.
    """
    value = held(value)
    _refuse_outside(name, value, **bounds)
    if isinstance(value, float | int):
        return float(value)
    value = value if isinstance(value, jax.Array | np.generic) else np.asarray(value)
    return value if value.dtype in (np.float32, np.float64) else value.astype(np.float32)


def one_number(name: str, value: Any, **bounds: Any) -> Any:
    """As `number`, for what all examples have in common."""
    value = number(name, value, **bounds)
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name}: expected one number, came shape {jnp.shape(value)}.")
    return value


def static_number(name: str, value: Any, **bounds: Any) -> Any:
    """`value` itself, once it is a number within bounds, for what is fixed when a program is compiled."""
    value = held(value)
    if is_traced(value):
        raise TypeError(
            f"{name}: expected a plain number, came a traced value. It shapes the program: pass a Python int."
        )
    if np.ndim(value) != 0:
        raise TypeError(f"{name}: expected one number, came shape {np.shape(value)}.")
    _refuse_outside(name, value, **bounds)
    return value


def _refuse_outside(
    name: str,
    value: Any,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    whole: bool = False,
    hint: str = "",
) -> None:
    """Refuses what is no real number, or is a concrete one that is not finite and within bounds."""
    traced = is_traced(value)
    numbers = value if traced else np.asarray(None if isinstance(value, list | tuple) else value)
    if numbers.dtype.kind not in "fiu" and not jnp.issubdtype(numbers.dtype, jnp.floating):
        raise TypeError(f"{name}: expected a real number or an array of them, came {value!r}.")
    if traced:
        return
    numbers = numbers.astype(np.float64)
    inside = np.isfinite(numbers) & (numbers >= at_least) & (numbers > above) & (numbers <= at_most)
    if whole:
        inside &= numbers == np.round(numbers)
    if not inside.all():
        bounds = [f">= {at_least:g}"] * (at_least > -math.inf) + [f"> {above:g}"] * (above > -math.inf)
        bounds += [f"<= {at_most:.6g}"] * (at_most < math.inf)
        kind = "a whole number" if whole else "a finite number"
        came = f"{value!r}" if numbers.ndim == 0 else f"{numbers[~inside][0]} among {numbers.size} values"
        raise ValueError(
            f"{name}: expected {' '.join([kind, ' and '.join(bounds)]).strip()}, came {came}. {hint}".rstrip()
        )


def one_of(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """`value` itself, once it is among `choices`."""
    if is_traced(value) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, came {value!r}.")
    return value


def hashable(name: str, value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{name}: expected a hashable value, came {type(value).__name__}. It is part of the compiled program."
        ) from None
    return value


def precision(value: Any) -> Any:
    """Of matrix products, as `jax.lax.dot_general` takes it."""
    one = np.zeros((1, 1), np.float32)
    try:
        jax.eval_shape(lambda: jax.lax.dot_general(one, one, (((1,), (1,)), ((), ())), precision=value))
    except (TypeError, ValueError):
        raise ValueError(
            f"precision: expected what jax.lax.dot_general takes, such as 'default', 'highest' or 'BF16_BF16_F32', "
            f"came {value!r}."
        ) from None
    return hashable("precision", value)


def head(value: Any) -> Any:
    """A head is any hashable value with the methods of `Head`; `ms.dense` itself, not called, is none."""
    if not all(hasattr(value, method) for method in ("num_classes", "place", "own", "others")):
        came = getattr(value, "__name__", type(value).__name__)
        raise TypeError(f"head: expected a head such as ms.blockwise() or ms.dense(), came {came}. Is it called?")
    return hashable("head", value)


def angle_margin(name: str, value: Any, *, at_least: float = 0.0) -> Any:
    """An additive margin in radians; the field also writes degrees, which would pass unnoticed."""
    return number(
        name,
        value,
        at_least=at_least,
        at_most=float(np.float32(math.pi)),  # a little above pi
        hint="Angles are in radians; are these degrees? `math.radians(28.6)` is 0.5.",
    )


def cosine_margin(name: str, value: Any) -> Any:
    """An additive margin taken off a cosine."""
    hint = "It is a difference of cosines, of which the papers take 0.2 to 0.5."
    return number(name, value, at_least=0.0, at_most=2.0, hint=hint)


def scale_of(scale: Any) -> Any:
    return number("scale", scale, above=0.0)


def smoothing_of(label_smoothing: Any) -> Any:
    """Label smoothing in [0, 1]; None for a concrete 0, which then costs nothing and needs no finite logits."""
    label_smoothing = one_number("label_smoothing", label_smoothing, at_least=0.0, at_most=1.0)
    return None if not is_traced(label_smoothing) and float(label_smoothing) == 0.0 else label_smoothing


def check_labels(labels: Any, num_classes: int) -> None:
    """Refuses labels outside [0, C), on the host, naming the first wrong row.

    Inside a compiled loss a wrong label can only be made loud: its row's loss is NaN and its gradient 0.
    This finds it before, for instance once per epoch or in the data loader.

    Args:
      labels: integers of any shape; NumPy or concrete JAX.
      num_classes: C.

    Raises:
      TypeError: the labels are traced, or not integers.
      ValueError: a label lies outside [0, C); names its row, the label and C.

    Example:
      >>> ms.check_labels([0, 3, 9], num_classes=10)
      >>> ms.check_labels([0, 3, 10], num_classes=10)
      Traceback (most recent call last):
      ...
      ValueError: labels: row 2 holds 10, expected 0 to 9 for 10 classes. 1 of 3 labels is wrong.
    """
    if is_traced(labels):
        raise TypeError("labels: check_labels reads values, and these are traced. Call it outside jit, on the batch.")
    static_number("num_classes", num_classes, at_least=1, whole=True)
    try:
        labels = np.asarray(labels)
    except (TypeError, ValueError) as error:
        raise TypeError(f"labels: expected an array, came {type(labels).__name__}: {error}") from None
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels: expected integers, came {labels.dtype}. Class indices are integers in [0, C).")
    wrong = np.argwhere((labels < 0) | (labels >= num_classes))
    if len(wrong):
        row = tuple(int(i) for i in wrong[0])
        place = row[0] if len(row) == 1 else row
        verb = "is" if len(wrong) == 1 else "are"
        raise ValueError(
            f"labels: row {place} holds {labels[row]}, expected 0 to {num_classes - 1} for {num_classes} classes. "
            f"{len(wrong)} of {labels.size} labels {verb} wrong."
        )


def in_range(labels: jax.Array, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Which labels name a class, and int32 labels that all do: a gather by them never leaves the array."""
    # Compared in their own dtype: a cast would wrap wide ones onto other classes.
    valid = (labels >= 0) & (labels <= jnp.asarray(num_classes - 1).astype(labels.dtype))
    return valid, jnp.where(valid, labels, 0).astype(jnp.int32)


def only_counted(losses: jax.Array, valid: jax.Array, where: jax.Array | None) -> jax.Array:
    """NaN, loudly, where a label names no class; 0 where the row does not count; no gradient in either."""
    if where is None:
        return jnp.where(valid, losses, jnp.nan)
    # Only rows that count may turn NaN: not even a masked one is made on the way.
    return jnp.where(where, jnp.where(valid | ~where, losses, jnp.nan), 0.0)
