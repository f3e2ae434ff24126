"""What training does: where features of two dimensions lie, how angles and the loss follow the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax.typing import ArrayLike

from margin_softmax import _checks
from margin_softmax.plots import _drawing
from margin_softmax.verification import _inputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CIRCLE_BINS = 180
SEEN_AS_DOT, SEEN_AS_SHAPE = 2, 16
"""Smallest areas of markers, in square points."""
TALLEST = 0.45


def circle(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    normalised: bool = False,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Features of two dimensions by class, with the directions of the class weights.

    Normalised they lie on the unit circle, one above the other; so outside it stands each class's histogram of angles,
    in steps of 2 degrees. The highest bar is equally high in every picture: heights compare within one, widths between.

    There are ten colours. From the eleventh class on they come again, with larger points of other shapes and hatched
    bars: of 40 classes no two look alike.

    Args:
      features: `[N, 2]` real, N >= 1.
      labels: class of each, `[N]` integers in [0, C).
      weights: one row per class, `[C, 2]`; without it C is the number of names, or else the largest label + 1.
      normalised: as directions, on the unit circle.
      names: of the classes, C of them; without it their numbers. They stand in the mean direction of the class.
      ax: axes to draw on; without it, those of a new figure.

    Returns:
      The axes, with one collection of points for each class that has any.

    Raises:
      TypeError: features are not real, or labels are not integers.
      ValueError: a shape is wrong, a number is not finite, a label names no class, or a direction is asked of zeros.
      ImportError: `ax` is None, and Matplotlib is not installed.

    References:
      Liu et al., Large-Margin Softmax Loss for Convolutional Neural Networks, ICML 2016, figure 2.

    Example:
      >>> from matplotlib import pyplot as plt
      >>> ax = ms.plots.circle(np.array([[3.0, 4.0], [0.0, -2.0]]), np.array([0, 1]), normalised=True)
      >>> [np.round(points.get_offsets(), 3).tolist() for points in ax.collections]
      [[[0.6, 0.8]], [[0.0, -1.0]]]
      >>> plt.close(ax.figure)
    """
    points, classes, rows, names = _circle_arguments(features, labels, weights, names)
    lengths = np.linalg.norm(points, axis=1)
    if normalised:
        points = points / _directed("features", lengths)[:, None]
    elif not lengths.max() > 0:
        raise ValueError("features: expected some that are not zero, came zeros alone. There is nothing to see.")
    if rows is not None:
        rows = rows / _directed("weights", np.linalg.norm(rows, axis=1))[:, None]
    radius = 1.0 if normalised else lengths.max()
    ax = _drawing.axes_of(ax, (4, 4))
    _draw_points(ax, points, classes)
    if normalised:
        _bars_outside(ax, points, classes)
        ax.set_axis_off()
    for x, y in () if rows is None else radius * rows:
        ax.plot([0, x], [0, y], color="black", linewidth=0.7, zorder=0.9)
    _class_names(ax, points, classes, names, (0.8 if normalised else 1.09) * radius)
    limit = (1.06 + TALLEST if normalised else 1.18) * radius
    ax.set(aspect="equal", xlim=(-limit, limit), ylim=(-limit, limit))
    ax.tick_params(labelsize=8)
    return ax


def _circle_arguments(features, labels, weights, names):
    _inputs.refuse_traced(features=features, labels=labels, weights=weights)
    features = _drawing.finite("features", features, (None, 2), "[N, 2]", "A circle shows features of two dimensions.")
    rows = None if weights is None else _drawing.finite("weights", weights, (None, 2), "[C, 2]", "One row per class.")
    labels = _inputs.integers("labels", labels, "Class indices are integers in [0, C).")
    _checks.shape("labels", labels, (len(features),), f"[N] = ({len(features)},)", "One class per feature.")
    classes = len(rows) if rows is not None else len(names) if names is not None else max(0, int(labels.max())) + 1
    _checks.check_labels(labels, classes)
    names = [str(k) for k in range(classes)] if names is None else list(names)
    if len(names) != classes:
        raise ValueError(f"names: expected one for each of {classes} classes, came {len(names)}.")
    return features, labels, rows, names


def _draw_points(ax, features, labels):
    several_shapes = labels.max() >= len(_drawing.COLOURS)
    size = max(min(2e4 / len(features), 10), SEEN_AS_SHAPE if several_shapes else SEEN_AS_DOT)
    for k in np.unique(labels):
        colour, marker, _ = _drawing.look(k)
        ax.scatter(*features[labels == k].T, s=size, color=colour, marker=marker, linewidths=0, alpha=0.6)


def _directed(name, lengths):
    """Lengths to divide by."""
    zeros = np.flatnonzero(lengths == 0)
    if zeros.size:
        raise ValueError(f"{name}: expected directions, came zeros in row {zeros[0]}. Leave out {zeros.size} of them.")
    return lengths


def _bars_outside(ax, directions, labels):
    """Each class's histogram of angles, standing on the circle; all of one scale."""
    edges = np.linspace(-np.pi, np.pi, CIRCLE_BINS + 1)
    angles = np.arctan2(directions[:, 1], directions[:, 0])
    counts = {k: np.histogram(angles[labels == k], edges)[0] for k in np.unique(labels)}
    highest = max(count.max() for count in counts.values())
    turn = np.repeat(edges, 2)
    for k, count in counts.items():
        outer = 1 + np.concatenate([[0], np.repeat(TALLEST * count / highest, 2), [0]])
        colour, _, hatch = _drawing.look(k)
        bar = {"facecolor": colour, "hatch": hatch, "edgecolor": "white"}
        ax.fill(outer * np.cos(turn), outer * np.sin(turn), **bar, alpha=0.7, linewidth=0, zorder=0.5)
    ax.fill(np.cos(edges), np.sin(edges), color="white", linewidth=0, zorder=0.6)


def _class_names(ax, features, labels, names, rim):
    for k in np.unique(labels):
        mean = features[labels == k].mean(axis=0)
        length = np.linalg.norm(mean)
        if length > 0:
            at, box = rim * mean / length, {"boxstyle": "round,pad=0.08", "facecolor": "white", "linewidth": 0}
            ax.annotate(names[k], at, ha="center", va="center", fontsize=_drawing.SMALL, bbox=box)


def angle_statistics(
    steps: ArrayLike,
    angles: Mapping[str, ArrayLike],
    *,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Angles over training, such as those to the own class and to the nearest other one: how a margin opens.

    Args:
      steps: `[N]` real, rising.
      angles: name -> `[N]` angles in radians, at least one name; drawn in degrees.
      bands: name -> (lowest `[N]`, highest `[N]`), in radians, for any of these names, such as two quantiles.
      ax: axes to draw on; without it, those of a new figure.

    Returns:
      The axes, with one line for each name, in degrees.

    Raises:
      TypeError: an argument holds no real numbers, or is no mapping.
      ValueError: a shape is wrong, a number is not finite, an angle lies outside [0, pi], steps do not rise, or a band
        has no line or lies upside down.
      ImportError: `ax` is None, and Matplotlib is not installed.

    Example:
      >>> from matplotlib import pyplot as plt
      >>> ax = ms.plots.angle_statistics([0, 100], {"own class": [1.57, 0.52], "nearest other": [1.50, 1.35]})
      >>> np.round(ax.lines[0].get_ydata(), 1)
      array([90. , 29.8])
      >>> plt.close(ax.figure)
    """
    steps = _drawing.finite("steps", steps, (None,), "[N]")
    if not (np.diff(steps) > 0).all():
        raise ValueError(
            "steps: expected numbers that rise, came some that do not. Sort them, and the angles with them."
        )
    degrees = {
        name: _degrees(f"angles[{name!r}]", a, len(steps)) for name, a in _drawing.named("angles", angles).items()
    }
    degree_bands = {} if bands is None else _bands_of(bands, degrees, len(steps))
    ax = _drawing.axes_of(ax, (6, 4))
    for (name, y), (colour, stroke) in zip(degrees.items(), _drawing.styles(degrees), strict=True):
        ax.plot(steps, y, color=colour, linestyle=stroke, linewidth=1.8, label=name)
        if name in degree_bands:
            ax.fill_between(steps, *degree_bands[name], color=colour, alpha=0.15, linewidth=0)
    ax.set(xlabel="step", ylabel="angle, degrees", ylim=(0, None))
    _drawing.finish(ax)
    return ax


def _bands_of(bands, names, count):
    in_degrees = {}
    for name, band in _drawing.named("bands", bands).items():
        if name not in names:
            raise ValueError(f"bands[{name!r}]: expected a name of angles, one of {', '.join(map(repr, names))}.")
        if not (isinstance(band, tuple | list) and len(band) == 2):
            raise TypeError(f"bands[{name!r}]: expected a pair (lowest, highest), came {type(band).__name__}.")
        low, high = in_degrees[name] = [_degrees(f"bands[{name!r}]", side, count) for side in band]
        if (low > high).any():
            raise ValueError(f"bands[{name!r}]: expected (lowest, highest), came a lowest above the highest.")
    return in_degrees


def _degrees(name, radians, count):
    radians = _drawing.finite(name, radians, (count,), f"[N] = ({count},)", "One angle for each step.")
    _checks.angle_margin(name, radians)
    return np.degrees(radians)


def loss_curve(values: ArrayLike, *, window: int | None = None, ax: Axes | None = None) -> Axes:
    """The loss of each step, and its mean over the steps around.

    Args:
      values: loss of each step, `[N]` real, N >= 1.
      window: how many steps each mean is over, from 1 to N; without it a thirtieth of all.
      ax: axes to draw on; without it, those of a new figure.

    Returns:
      The axes, with two lines: the values at steps 1 to N, and the means at the middle of their steps.

    Raises:
      TypeError: the values are not real.
      ValueError: a shape is wrong, a loss is not finite, or `window` is out of range.
      ImportError: `ax` is None, and Matplotlib is not installed.

    Example:
      >>> from matplotlib import pyplot as plt
      >>> ax = ms.plots.loss_curve([4.0, 2.0, 1.0], window=2)
      >>> ax.lines[1].get_xdata(), ax.lines[1].get_ydata()
      (array([1.5, 2.5]), array([3. , 1.5]))
      >>> plt.close(ax.figure)
    """
    values = _drawing.finite("values", values, (None,), "[N]", "One loss per step: take the mean over the batch first.")
    window = max(1, len(values) // 30) if window is None else window
    window = int(_checks.static_number("window", window, at_least=1, at_most=len(values), whole=True))
    mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
    ax = _drawing.axes_of(ax, (6, 4))
    ax.plot(np.arange(1, len(values) + 1), values, color=_drawing.COLOURS[0], alpha=0.3, linewidth=1, label="each step")
    middle = np.arange(len(mean)) + (window + 1) / 2
    ax.plot(middle, mean, color=_drawing.COLOURS[0], linewidth=2, label=f"mean of {window} steps")
    ax.set(xlabel="step", ylabel="loss (nats)")
    _drawing.finish(ax)
    return ax
