"""What pictures have in common: axes, colours and strokes, and what is asked of arguments.

Matplotlib is imported here alone, when the first picture is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from margin_softmax import _checks
from margin_softmax.verification import _inputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Those of Okabe and Ito, and two for the ten digits: dark blue and dark brown lie between black and the others in
# lightness, and of all pairs none of these is among the nearest, in any kind of colour vision.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442"),
    *("#000099", "#772200"),
)
STROKES = "-", "--", "-.", (0, (1, 1)), (0, (6, 1.2, 1, 1.2, 1, 1.2))
MARKERS = "o", "^", "s", "D"
HATCHES = None, "//////", "......", "xxxxxx"
GREY = "#777777"
SMALL = 9


def named(argument: str, mapping: Any) -> Mapping[str, Any]:
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"{argument}: expected a mapping from names, such as a dict, came {type(mapping).__name__}. "
            "The names stand in the legend."
        )
    if not mapping:
        raise ValueError(f"{argument}: expected at least one, came an empty mapping. There is nothing to draw.")
    return mapping


def finite(name: str, values: Any, expected: Sequence[int | None], letters: str, fix: str = "") -> np.ndarray:
    """Real finite numbers of that shape, and at least one of them, in float64."""
    _inputs.refuse_traced(**{name: values})
    values = _inputs.on_host(name, values)
    if values.dtype.kind not in "fiu" and not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"{name}: expected real numbers, came {values.dtype}.")
    _checks.shape(name, values, expected, letters, fix)
    if values.size == 0:
        raise ValueError(f"{name}: expected at least one, came shape {values.shape}. There is nothing to draw.")
    values = values.astype(np.float64)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row = tuple(int(i) for i in wrong[0])
        raise ValueError(
            f"{name}: expected finite numbers, came {values[row]} in row {row[0]}. "
            f"{len(wrong)} of {values.size} are not finite."
        )
    return values


def styles(curves: Iterable[Any]) -> list[tuple[str, Any]]:
    """A colour and a stroke for each; of 50 no two are alike."""
    one_round = len(COLOURS)
    return [(COLOURS[i % one_round], STROKES[(i + i // one_round) % len(STROKES)]) for i, _ in enumerate(curves)]


def look(k: int) -> tuple[str, str, str | None]:
    """The colour of a class, the marker of its points and the hatching of its areas; of 40 no two are alike."""
    one_round, place = divmod(k, len(COLOURS))
    return COLOURS[place], MARKERS[one_round % len(MARKERS)], HATCHES[one_round % len(HATCHES)]


def axes_of(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The given axes, or those of a new figure. Called when nothing can be refused any more: no figure is left over."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            f'margin_softmax.plots: expected Matplotlib, came {error}. `pip install "margin-softmax[plots]"`'
        ) from error
    return pyplot.subplots(figsize=size, layout="constrained")[1]


def finish(ax: Axes, **legend: Any) -> None:
    """A grid behind everything, no frame, and the legend."""
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=SMALL)
    ax.legend(frameon=False, fontsize=SMALL, **legend)
