"""What a margin does: to the logit of the own class, to its slope, and to the boundary between two classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from margin_softmax import _checks, losses
from margin_softmax._checks import Numeric
from margin_softmax.margins import Margin
from margin_softmax.plots import _drawing
from margin_softmax.verification import _inputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def target_logits(margins: Mapping[str, Margin], *, norm: Numeric = 1.0, ax: Axes | None = None) -> Axes:
    """What margins do to the logit of the own class, over the angle to it.

        z_y / s   over   theta,   for a feature of length `norm` and a class weight of length 1

    `s` is the margin's scale, 1 where it has none, so margins of different scales are comparable.

    Args:
      margins: name -> margin, at least one; its numbers those of one example, its scale a scalar.
      norm: length of the feature, > 0, for margins that do not normalise it.
      ax: axes to draw on; without it, those of a new figure.

    Returns:
      The axes, with one line for each margin at 361 angles from 0 to 180 degrees.

    Raises:
      TypeError: `margins` is no mapping of margins.
      ValueError: it is empty, a margin is that of a batch, its scale no scalar, or `norm` is not positive.
      ImportError: `ax` is None, and Matplotlib is not installed.

    References:
      Deng, Guo, Xue, Zafeiriou, ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019, figure 4.

    Example:
      >>> from matplotlib import pyplot as plt
      >>> ax = ms.plots.target_logits({"ArcFace": ms.arcface(0.5), "AM-Softmax": ms.am_softmax(0.35)})
      >>> np.round([line.get_ydata()[180] for line in ax.lines], 3)  # at 90 degrees
      array([-0.479, -0.35 ])
      >>> plt.close(ax.figure)
    """
    curves = _over_angles(_logits_at, margins, norm, np.linspace(0.0, np.pi, 361))
    return _angle_curves(curves, "logit of the own class, $z_y / s$", ax)


def target_slopes(margins: Mapping[str, Margin], *, norm: Numeric = 1.0, ax: Axes | None = None) -> Axes:
    """How steeply margins let the logit of the own class fall: what trains.

        dz_y / (s dtheta)   over   theta,   as training sees it, through the margin's own derivative

    At its corners, where a slope has two values, one of them is drawn. The two ends are left out: there the slope is
    that of a turning point, of which the derivative takes one side or none. A line on which another lies is wide and
    pale, so that both are seen: a margin in the cosine has the slope of none.

    Args:
      margins: name -> margin, at least one; its numbers those of one example, its scale a scalar.
      norm: length of the feature, > 0, for margins that do not normalise it.
      ax: axes to draw on; without it, those of a new figure.

    Returns:
      The axes, with one line for each margin at 359 angles between 0 and 180 degrees.

    Raises:
      TypeError: `margins` is no mapping of margins.
      ValueError: it is empty, a margin is that of a batch, its scale no scalar, or `norm` is not positive.
      ImportError: `ax` is None, and Matplotlib is not installed.

    Example:
      >>> from matplotlib import pyplot as plt
      >>> ax = ms.plots.target_slopes({"exact": ms.arcface(0.5), "shipped": ms.straight_through(ms.arcface(0.5))})
      >>> np.round([line.get_ydata()[179] for line in ax.lines], 3)  # at 90 degrees
      array([-0.878, -1.   ])
      >>> plt.close(ax.figure)
    """
    curves = _over_angles(_slopes_at, margins, norm, np.linspace(0.0, np.pi, 361)[1:-1])
    return _angle_curves(curves, "its slope, $dz_y / (s\\, d\\theta)$", ax)


def decision_boundaries(margins: Mapping[str, Margin], *, norm: Numeric = 1.0, ax: Axes | None = None) -> Axes:
    """The boundaries between two classes that training asks for, in the plane of the angles to both.

        z_1(theta_1), with the margin of class 1 as the own class, = z_2(theta_2),   and the same with 1 and 2 exchanged

    Between a margin's two lines, shaded, a feature is not yet far enough on either side: without a margin they are one.

    Args:
      margins: name -> margin, at least one.
      norm: length of the feature, > 0, for margins in which it counts.
      ax: axes to draw on; without it, those of a new figure.

    Returns:
      The axes, with two contours for each margin, from 0 to 90 degrees both ways. A margin which no feature in that
      square satisfies has none, and its name in the legend says so.

    Raises:
      TypeError: `margins` is no mapping of margins.
      ValueError: it is empty, a margin is that of a batch, or `norm` is not positive.
      ImportError: `ax` is None, and Matplotlib is not installed.

    References:
      Deng, Guo, Xue, Zafeiriou, ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019, figure 5.

    Example:
      >>> from matplotlib import pyplot as plt
      >>> ax = ms.plots.decision_boundaries({"ArcFace": ms.arcface(0.3), "A-Softmax": ms.a_softmax(2)})
      >>> [text.get_text() for text in ax.get_legend().get_texts()]
      ['ArcFace', 'A-Softmax']
      >>> plt.close(ax.figure)
    """
    margins, norm = _margins_of(margins), _norm_of(norm)
    angles = np.linspace(0.0, np.pi / 2, 181)
    theta = jnp.asarray(angles, dtype=float)
    gaps = {name: np.asarray(_gaps(margin, norm, theta)) for name, margin in margins.items()}
    ax, degrees = _drawing.axes_of(ax, (6, 4)), np.degrees(angles)
    for (name, gap), (colour, stroke) in zip(gaps.items(), _drawing.styles(gaps), strict=True):
        tiny = 1e-6 * np.abs(gap).max()
        if gap.min() < 0 < gap.max():
            for one in (gap, gap.T):
                ax.contour(degrees, degrees, one, levels=[0.0], colors=colour, linestyles=[stroke], linewidths=1.8)
        else:
            name = f"{name}: nowhere here"
        unsatisfied = np.maximum(gap, gap.T)
        if unsatisfied.min() < -tiny:
            ax.contourf(degrees, degrees, unsatisfied, levels=[unsatisfied.min(), -tiny], colors=colour, alpha=0.1)
        ax.plot([], [], color=colour, linestyle=stroke, linewidth=1.8, label=name)
    for where, name in (((0.04, 0.93), "class 1"), ((0.96, 0.04), "class 2")):
        ax.annotate(
            name, where, xycoords="axes fraction", ha="left" if where[0] < 0.5 else "right", fontsize=_drawing.SMALL
        )
    ax.set(xlabel="angle to class 1, degrees", ylabel="angle to class 2, degrees")
    ax.set(xticks=range(0, 91, 15), yticks=range(0, 91, 15), aspect="equal")
    _drawing.finish(ax, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return ax


def _target_logit(theta, margin, norm):
    feature = norm * jnp.stack([jnp.cos(theta), jnp.sin(theta)])
    weights, label = jnp.array([[1.0, 0.0]]), jnp.array([0])
    return losses.margin_logits(feature[None], weights, label, margin)[0, 0] / margin.scale


@jax.jit
def _logits_at(theta, margin, norm):
    return jax.vmap(_target_logit, (0, None, None))(theta, margin, norm)


@jax.jit
def _slopes_at(theta, margin, norm):
    return jax.vmap(jax.grad(_target_logit), (0, None, None))(theta, margin, norm)


def _over_angles(function, margins, norm, angles):
    """For each name the angles in degrees, and the function of each."""
    margins, norm = _margins_of(margins), _norm_of(norm)
    for name, margin in margins.items():
        if jnp.ndim(margin.scale) != 0:
            raise ValueError(f"margins[{name!r}]: expected one scale, came shape {jnp.shape(margin.scale)}.")
    theta = jnp.asarray(angles, dtype=float)
    values = {name: np.asarray(function(theta, m, norm), np.float64) for name, m in margins.items()}
    return {name: (np.degrees(angles), value) for name, value in values.items()}


def _angle_curves(curves, ylabel, ax):
    ax = _drawing.axes_of(ax, (6, 4))
    covers = _covers(np.stack([y for _, y in curves.values()]))
    for (name, (x, y)), (colour, stroke), above in zip(curves.items(), _drawing.styles(curves), covers, strict=True):
        # Wider and paler where others lie on it, so that all of them are seen.
        width, alpha = 1.8 + 3.2 * above, 0.45 if above else 1.0
        ax.plot(x, y, color=colour, linestyle=stroke, linewidth=width, alpha=alpha, label=name)
    ax.set(xlabel="angle to the own class, degrees", ylabel=ylabel, xlim=(0, 180), xticks=range(0, 181, 30))
    _drawing.finish(ax)
    return ax


def _covers(curves):
    """How many later curves lie on each, nearer than half a stroke is wide, over most of its length."""
    near = np.abs(curves[:, None] - curves) <= 0.004 * np.ptp(curves)
    return np.triu(near.mean(axis=-1) > 0.5, 1).sum(axis=1)


@jax.jit
def _gaps(margin, norm, theta):
    """Own logit less the other's: class 1 is the own one, its angle along the columns, class 2's along the rows."""

    def gap(own, other):
        # In three dimensions there is a pair of classes at any two angles from the feature.
        zero = jnp.zeros_like(own)
        feature = norm * jnp.array([1.0, 0.0, 0.0])
        rows = [[jnp.cos(own), jnp.sin(own), zero], [jnp.cos(other), zero, jnp.sin(other)]]
        weights = jnp.stack([jnp.stack(row) for row in rows])
        z = losses.margin_logits(feature[None], weights, jnp.array([0]), margin)[0]
        return z[0] - z[1]

    return jax.vmap(jax.vmap(gap, (0, None)), (None, 0))(theta, theta)


_ONE_EXAMPLE = np.ones((1, 2), np.float32), np.eye(2, dtype=np.float32), np.zeros(1, np.int32)


def _margins_of(margins):
    for name, margin in _drawing.named("margins", margins).items():
        _inputs.refuse_traced(**{f"margins[{name!r}]": margin})
        if not isinstance(margin, Margin):
            raise TypeError(
                f"margins[{name!r}]: expected a Margin such as ms.arcface(0.5), came {type(margin).__name__}."
            )
        try:
            jax.eval_shape(losses.margin_logits, *_ONE_EXAMPLE, margin)
        except ValueError as error:
            raise ValueError(f"margins[{name!r}]: expected the numbers of one example. {error}") from error
    return margins


def _norm_of(norm):
    return jnp.asarray(_checks.static_number("norm", norm, above=0.0), dtype=float)
