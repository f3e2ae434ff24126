"""How well scores tell pairs apart: both rates of error, and how the scores of each kind of pair are distributed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from margin_softmax import _checks
from margin_softmax.plots import _drawing
from margin_softmax.verification import rates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PairScores = tuple[ArrayLike, ArrayLike] | rates.Counts
"""`(scores [N], same [N])`, or their `verification.Counts`."""

GENUINE, IMPOSTOR = _drawing.COLOURS[:2]


def roc(curves: Mapping[str, PairScores], *, ax: Axes | None = None) -> Axes:
    """Receiver operating characteristics: the true accept rate over the false accept rate, on a logarithmic axis.

    The curves are the steps that the scores make, nothing between them is smoothed. They begin at half of one false
    accept; the thin line is where as many impostors are accepted as genuine pairs rejected.

    Args:
      curves: name -> `(scores [N], same [N])`, or `verification.Counts`; at least one.
      ax: axes to draw on; without it, those of a new figure.

    Returns:
      The axes, with one line for each curve and, last, that of equal errors.

    Raises:
      TypeError: `curves` is no mapping, or a curve is not of that kind.
      ValueError: it is empty, or `verification.roc` refuses its scores.
      ImportError: `ax` is None, and Matplotlib is not installed.

    Example:
      >>> from matplotlib import pyplot as plt
      >>> ax = ms.plots.roc({"cosine": (np.array([0.9, 0.2, 0.7, 0.1]), np.array([True, False, True, True]))})
      >>> ax.get_xscale(), [line.get_label() for line in ax.lines]
      ('log', ['cosine', 'equal error'])
      >>> plt.close(ax.figure)
    """
    counts = _counts_of_all(curves)
    points = {name: rates.roc(count)[:2] for name, count in counts.items()}
    lowest = min(0.5 / count.different.sum() for count in counts.values())
    ax = _drawing.axes_of(ax, (6, 4))
    _steps(ax, points)
    far = np.geomspace(lowest, 1.0, 200)
    ax.plot(far, 1 - far, color=_drawing.GREY, linewidth=0.8, label="equal error")
    ax.set(xscale="log", xlim=(lowest, 1.0), ylim=(0.0, 1.01), xlabel="false accept rate", ylabel="true accept rate")
    _drawing.finish(ax)
    return ax


def det(curves: Mapping[str, PairScores], *, ax: Axes | None = None) -> Axes:
    """Detection error trade-offs: the false reject rate over the false accept rate, both axes logarithmic.

    Lower is better. Logarithmic rather than normal-deviate axes: they show small rates in powers of ten, and need no
    assumption about scores. Each axis begins at half of one error.

    Args:
      curves: name -> `(scores [N], same [N])`, or `verification.Counts`; at least one.
      ax: axes to draw on; without it, those of a new figure.

    Returns:
      The axes, with one line for each curve and, last, that of equal errors.

    Raises:
      TypeError: `curves` is no mapping, or a curve is not of that kind.
      ValueError: it is empty, or `verification.det` refuses its scores.
      ImportError: `ax` is None, and Matplotlib is not installed.

    References:
      Martin, Doddington, Kamm, Ordowski, Przybocki, The DET Curve in Assessment of Detection Task Performance,
      Eurospeech 1997.

    Example:
      >>> from matplotlib import pyplot as plt
      >>> ax = ms.plots.det({"cosine": (np.array([0.9, 0.2, 0.7, 0.1]), np.array([True, False, True, True]))})
      >>> ax.get_xscale(), ax.get_yscale()
      ('log', 'log')
      >>> plt.close(ax.figure)
    """
    counts = _counts_of_all(curves)
    points = {name: rates.det(count)[:2] for name, count in counts.items()}
    far = min(0.5 / count.different.sum() for count in counts.values())
    frr = min(0.5 / count.same.sum() for count in counts.values())
    ax = _drawing.axes_of(ax, (6, 4))
    _steps(ax, points)
    equal = np.array([max(far, frr), 1.0])
    ax.plot(equal, equal, color=_drawing.GREY, linewidth=0.8, label="equal error")
    ax.set(xscale="log", yscale="log", xlim=(far, 1.0), ylim=(frr, 1.0))
    ax.set(xlabel="false accept rate", ylabel="false reject rate")
    _drawing.finish(ax)
    return ax


def score_histogram(
    scores: ArrayLike | rates.Counts, same: ArrayLike | None = None, *, bins: int = 80, ax: Axes | None = None
) -> Axes:
    """How the scores of genuine and of impostor pairs are distributed, with the equal error rate and d'.

    Each of the two is a density, of area 1, however many pairs there are. The dashed line is the threshold at which
    the two errors are nearest to each other.

    Args:
      scores: `[N]` real, higher means more alike; or `verification.Counts`.
      same: `[N]` booleans, whether the two are of one person; none with `Counts`.
      bins: how many, of one width, from the lowest score to the highest.
      ax: axes to draw on; without it, those of a new figure.

    Returns:
      The axes, with two patches of steps (impostor, genuine) and one line.

    Raises:
      TypeError: scores are not real or `same` is not boolean.
      ValueError: shapes differ, a score is not finite, one of the two kinds is missing, all scores of each kind are
        equal, or `bins` is not a whole number >= 2.
      ImportError: `ax` is None, and Matplotlib is not installed.

    Example:
      >>> from matplotlib import pyplot as plt
      >>> scores, same = np.array([0.9, 0.2, 0.7, 0.1]), np.array([True, False, True, False])
      >>> ax = ms.plots.score_histogram(scores, same, bins=8)
      >>> ax.texts[0].get_text().splitlines()
      ['equal error 0 %', 'threshold 0.700', "d' = 8.22"]
      >>> plt.close(ax.figure)
    """
    counts = _counts_of(scores) if same is None else _counts_of((scores, same))
    bins = int(_checks.static_number("bins", bins, at_least=2, whole=True))
    error, threshold, d_prime = (f(counts) for f in (rates.eer, rates.threshold_at_eer, rates.d_prime))
    edges = np.histogram_bin_edges(counts.scores, bins)
    ax = _drawing.axes_of(ax, (6, 4))
    for name, number, colour in (("impostor", counts.different, IMPOSTOR), ("genuine", counts.same, GENUINE)):
        density, _ = np.histogram(counts.scores, edges, weights=number, density=True)
        ax.stairs(density, edges, fill=True, color=colour, alpha=0.55, label=f"{name} pairs ({number.sum():,})")
    ax.axvline(threshold, color="black", linewidth=1, linestyle="--")
    ax.set_ylim(0, 1.6 * ax.get_ylim()[1])
    note = f"equal error {100 * error:.3g} %\nthreshold {threshold:.3f}\nd' = {d_prime:.3g}"
    right = threshold > edges[[0, -1]].mean()
    side = -1 if right else 1
    ax.annotate(
        note,
        xy=(threshold, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(6 * side, -38),  # below the legend, which may be as wide as what is left beside the line
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        fontsize=_drawing.SMALL,
    )
    ax.set(xlabel="score", ylabel="density")
    _drawing.finish(ax, loc="upper right" if right else "upper left")
    return ax


def _counts_of(curve: Any) -> rates.Counts:
    if isinstance(curve, rates.Counts):
        return curve
    if not (isinstance(curve, tuple | list) and len(curve) == 2):
        raise TypeError(f"expected scores and same, or Counts, came {type(curve).__name__}.")
    return rates.count(*curve)


def _counts_of_all(curves):
    counts = {}
    for name, curve in _drawing.named("curves", curves).items():
        try:
            counts[name] = _counts_of(curve)
        except (TypeError, ValueError) as error:
            raise type(error)(f"curves[{name!r}]: {error}") from None
    return counts


def _steps(ax, points):
    for (name, (x, y)), (colour, stroke) in zip(points.items(), _drawing.styles(points), strict=True):
        corners = _corners(x, y)
        ax.step(x[corners], y[corners], where="post", color=colour, linestyle=stroke, linewidth=1.8, label=name)


def _corners(x, y):
    """Which points of a staircase matter: not those amid others of the same height, or above each other."""
    amid = np.zeros(len(x), bool)
    for values in (x, y):
        amid[1:-1] |= (values[:-2] == values[1:-1]) & (values[1:-1] == values[2:])
    return ~amid
