"""Sheets of the pairs that are decided most wrongly: two pictures, their score, and their indices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jax.typing import ArrayLike

from margin_softmax import _checks
from margin_softmax.plots import _drawing
from margin_softmax.verification import _inputs, rates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHEET_COLUMNS = 4


def worst_false_accepts(
    pictures: ArrayLike,
    pairs: ArrayLike,
    scores: ArrayLike,
    same: ArrayLike,
    *,
    threshold: float | None = None,
    number: int = 8,
    ax: Axes | None = None,
) -> Axes:
    """A sheet of the pairs of different people with the highest scores, of those accepted: look at them, and at labels.

    Args:
      pictures: `[P, H, W]` or `[P, H, W, 1]` grey, or `[P, H, W, 3]`; bytes, or reals from 0 to 1.
      pairs: `[N, 2]` integers in [0, P), as from `verification.all_pairs`.
      scores: of the pairs, `[N]` real, higher means more alike.
      same: `[N]` booleans, whether the two are of one person.
      threshold: pairs with scores from it on are accepted; without it, that of equal errors.
      number: how many pairs at most, the worst first.
      ax: axes to draw on; without it, those of a new figure.

    Returns:
      The axes, with two images for each pair; below them the score and the two indices.

    Raises:
      TypeError: an argument has the wrong dtype.
      ValueError: a shape is wrong, an index names no picture, a tone is out of range, or the scores are refused by
        `verification.count`.
      ImportError: `ax` is None, and Matplotlib is not installed.

    Example:
      >>> from matplotlib import pyplot as plt
      >>> pictures, pairs = np.zeros((4, 8, 8)), np.array([[0, 1], [0, 2], [1, 2], [2, 3]])
      >>> scores, same = np.array([0.9, 0.8, 0.3, 0.7]), np.array([True, False, False, True])
      >>> ax = ms.plots.worst_false_accepts(pictures, pairs, scores, same, threshold=0.5)
      >>> [text.get_text() for text in ax.texts]
      ['0.800  (0, 2)']
      >>> plt.close(ax.figure)
    """
    return _sheet(pictures, pairs, scores, same, threshold, number, ax, accepts=True)


def worst_false_rejects(
    pictures: ArrayLike,
    pairs: ArrayLike,
    scores: ArrayLike,
    same: ArrayLike,
    *,
    threshold: float | None = None,
    number: int = 8,
    ax: Axes | None = None,
) -> Axes:
    """A sheet of the pairs of one person with the lowest scores, of those rejected.

    Args:
      pictures: `[P, H, W]` or `[P, H, W, 1]` grey, or `[P, H, W, 3]`; bytes, or reals from 0 to 1.
      pairs: `[N, 2]` integers in [0, P), as from `verification.all_pairs`.
      scores: of the pairs, `[N]` real, higher means more alike.
      same: `[N]` booleans, whether the two are of one person.
      threshold: pairs with scores below it are rejected; without it, that of equal errors.
      number: how many pairs at most, the worst first.
      ax: axes to draw on; without it, those of a new figure.

    Returns:
      The axes, with two images for each pair; below them the score and the two indices.

    Raises:
      TypeError: an argument has the wrong dtype.
      ValueError: a shape is wrong, an index names no picture, a tone is out of range, or the scores are refused by
        `verification.count`.
      ImportError: `ax` is None, and Matplotlib is not installed.

    Example:
      >>> from matplotlib import pyplot as plt
      >>> pictures, pairs = np.zeros((4, 8, 8)), np.array([[0, 1], [0, 2], [1, 2], [2, 3]])
      >>> scores, same = np.array([0.2, 0.8, 0.3, 0.4]), np.array([True, False, False, True])
      >>> ax = ms.plots.worst_false_rejects(pictures, pairs, scores, same, threshold=0.5)
      >>> [text.get_text() for text in ax.texts]
      ['0.200  (0, 1)', '0.400  (2, 3)']
      >>> plt.close(ax.figure)
    """
    return _sheet(pictures, pairs, scores, same, threshold, number, ax, accepts=False)


def _sheet(pictures, pairs, scores, same, threshold, number, ax, *, accepts):
    _inputs.refuse_traced(pictures=pictures, pairs=pairs)
    pictures, brightest = _pictures_of(pictures)
    number = int(_checks.static_number("number", number, at_least=1, whole=True))
    counts = rates.count(scores, same)
    scores, same = np.asarray(scores, np.float64), np.asarray(same)
    pairs = _pairs_of(pairs, len(scores), len(pictures))
    if threshold is None:
        threshold = rates.threshold_at_eer(counts)
    else:
        _checks.static_number("threshold", threshold)
    wrong = np.flatnonzero((scores >= threshold) & ~same if accepts else (scores < threshold) & same)
    worst = wrong[np.argsort(-scores[wrong] if accepts else scores[wrong], kind="stable")][:number]
    rows = max(1, -(-len(worst) // SHEET_COLUMNS))
    ax = _drawing.axes_of(ax, (6, 0.5 + 1.05 * rows))
    _draw_pairs(ax, pictures, pairs[worst], scores[worst], brightest)
    kind, of_whom = ("accepts", "different people") if accepts else ("rejects", "one person")
    total = np.sum(~same if accepts else same)
    sign = "≥" if accepts else "<"
    ax.set_title(
        f"false {kind}: {len(wrong):,} of {total:,} pairs of {of_whom}, score {sign} {threshold:.3f}",
        fontsize=_drawing.SMALL,
    )
    return ax


def _draw_pairs(ax, pictures, pairs, scores, brightest):
    height, width = pictures.shape[1:3]
    across, down = 2.25 * width, 1.3 * height
    for place, ((first, second), score) in enumerate(zip(pairs, scores, strict=True)):
        left, top = place % SHEET_COLUMNS * across, place // SHEET_COLUMNS * down
        for x, which in ((left, first), (left + width, second)):
            ax.imshow(pictures[which], cmap="gray", vmin=0, vmax=brightest, extent=(x, x + width, top + height, top))
        ax.text(
            left + width, top + 1.04 * height, f"{score:.3f}  ({first}, {second})", ha="center", va="top", fontsize=8
        )
    rows = max(1, -(-len(pairs) // SHEET_COLUMNS))
    ax.set(xlim=(0, SHEET_COLUMNS * across - 0.25 * width), ylim=(rows * down, 0), aspect="equal")
    ax.set_axis_off()


def _pictures_of(pictures):
    """Pictures, grey ones without their axis of one channel, and their brightest tone."""
    pictures = _inputs.on_host("pictures", pictures)
    if pictures.ndim not in (3, 4) or pictures.shape[3:] not in ((), (1,), (3,)) or 0 in pictures.shape:
        raise ValueError(f"pictures: expected shape [P, H, W], [P, H, W, 1] or [P, H, W, 3], came {pictures.shape}.")
    if pictures.shape[3:] == (1,):
        pictures = pictures[..., 0]
    if pictures.dtype == np.uint8:
        return pictures, 255
    pictures = _drawing.finite("pictures", pictures, pictures.shape, "[P, H, W]")
    if pictures.min() < 0 or pictures.max() > 1:
        raise ValueError(
            f"pictures: expected tones from 0 to 1, came {pictures.min():g} to {pictures.max():g}. "
            "Undo what was done to them for the network, or pass bytes, `uint8`."
        )
    return pictures, 1


def _pairs_of(pairs, count, size):
    pairs = _inputs.integers("pairs", pairs, "They are indices of pictures.")
    _checks.shape("pairs", pairs, (count, 2), f"[N, 2] = ({count}, 2)", "Two indices for each score.")
    wrong = np.argwhere((pairs < 0) | (pairs >= size))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(f"pairs: row {row} holds {pairs[row, column]}, expected 0 to {size - 1} for {size} pictures.")
    return pairs
