"""What margins do, drawn: the papers' formulas, and boundaries where the papers' logits are equal."""

import jax
import numpy as np
import pytest
from matplotlib import pyplot as plt

import margin_softmax as ms
import oracle
from margin_softmax import plots


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


MARGINS = {
    "L-Softmax": (ms.l_softmax(3, blend=0.5), oracle.large_margin(3, 0.5, 1)),
    "AM-Softmax": (ms.am_softmax(0.35, scale=30.0), oracle.additive_cosine(0.35, 30.0)),
    "ArcFace": (ms.arcface(0.5, scale=64.0), oracle.additive_angle(1.0, 0.5, 0.0, 64.0)),
    "straight": (ms.straight_through(ms.arcface(0.5, scale=8.0)),
                 oracle.straight_through(oracle.additive_angle(1.0, 0.5, 0.0, 8.0))),
}  # fmt: skip
OURS = {name: margin for name, (margin, _) in MARGINS.items()}


def target_of(name, theta, norm):
    """The papers' z / s and its derivative by the angle."""
    paper = MARGINS[name][1]
    with np.errstate(divide="ignore", invalid="ignore"):  # the slope by the cosine, at 0 and 180 degrees
        z = paper.target(np.cos(theta), np.full_like(theta, norm), np.ones_like(theta))
        return z.z / paper.scale, -z.by_c * np.sin(theta) / paper.scale


@pytest.mark.parametrize("norm", [1.0, 2.5])
def test_target_logits_and_slopes_are_those_of_the_papers(norm):
    logits = plots.target_logits(OURS, norm=norm)
    slopes = plots.target_slopes(OURS, norm=norm)
    for name, value, slope in zip(MARGINS, logits.lines, slopes.lines, strict=True):
        assert value.get_label() == slope.get_label() == name
        theta = np.linspace(0, np.pi, 361)
        np.testing.assert_allclose(value.get_xdata(), np.degrees(theta))
        np.testing.assert_allclose(value.get_ydata(), target_of(name, theta, norm)[0], atol=2e-6 * norm)
        # Away from multiples of 15 degrees, where L-Softmax has its corners: there arccos decides a side.
        away = np.arange(1, 360) % 30 != 0
        theta = theta[1:-1][away]
        np.testing.assert_allclose(slope.get_xdata()[away], np.degrees(theta))
        np.testing.assert_allclose(slope.get_ydata()[away], target_of(name, theta, norm)[1], atol=2e-5 * norm)
    assert [text.get_text() for text in logits.get_legend().get_texts()] == list(MARGINS)


def test_a_curve_that_lies_under_another_is_wider():
    """A margin in the cosine leaves the slope as it is; at its ends alone nothing would show."""
    margins = {"none": ms.am_softmax(0.0), "ArcFace": ms.arcface(0.5), "AM-Softmax": ms.am_softmax(0.35)}
    logits, slopes = plots.target_logits(margins), plots.target_slopes(margins)
    assert len({line.get_linewidth() for line in logits.lines}) == 1
    none, arcface, above = (line.get_linewidth() for line in slopes.lines)
    assert none > 2 * above
    assert arcface == above
    strokes = [line.get_linestyle() for line in slopes.lines]
    assert strokes[0] != strokes[2]


def boundaries_of(ax):
    """Of each contour of one level its points [N, 2], and of each strip its filled paths."""
    lines = [np.concatenate([p.vertices for p in c.get_paths()]) for c in ax.collections if not c.filled]
    return lines, [c.get_paths() for c in ax.collections if c.filled]


def test_boundaries_lie_where_the_papers_logits_are_equal():
    names = ["AM-Softmax", "ArcFace"]
    ax = plots.decision_boundaries({name: OURS[name] for name in names})
    lines, strips = boundaries_of(ax)
    assert len(lines) == 2 * len(names)
    assert len(strips) == len(names)
    for name, line, mirrored in zip(names, lines[::2], lines[1::2], strict=True):
        assert len(line) > 30
        own, other = np.radians(line.T)
        np.testing.assert_allclose(target_of(name, own, 1.0)[0], np.cos(other), atol=1e-3)
        np.testing.assert_allclose(sorted(map(tuple, mirrored)), sorted(map(tuple, line[:, ::-1])), atol=1e-4)
        assert np.ptp(other) > 0.6


def test_a_strip_holds_what_satisfies_neither_class():
    ax = plots.decision_boundaries({"ArcFace": ms.arcface(0.3)})
    _, ((strip,),) = boundaries_of(ax)
    random = np.random.default_rng(0)
    own, other = random.uniform(1, 89, (2, 300))
    gap = np.radians(np.abs(own - other)) - 0.3
    sure = np.abs(gap) > 0.02
    inside = strip.contains_points(np.stack([own, other], axis=1))
    np.testing.assert_array_equal(inside[sure], gap[sure] < 0)
    assert 50 < inside.sum() < 250


def test_without_a_margin_there_is_one_line_and_beyond_reach_none():
    ax = plots.decision_boundaries({"none": ms.am_softmax(0.0), "beyond": ms.am_softmax(1.5)})
    lines, strips = boundaries_of(ax)
    assert len(lines) == 2
    for line in lines:
        np.testing.assert_allclose(*line.T, atol=1e-3)
    assert len(strips) == 1  # of the margin that nothing here satisfies: all of the square
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["none", "beyond: nowhere here"]


def test_the_feature_s_length_counts_where_the_margin_lets_it():
    """MagFace: a longer feature has a larger margin."""
    margins = {"MagFace": ms.magface()}
    widths = []
    for norm in (20.0, 80.0):
        (line, _), _ = boundaries_of(plots.decision_boundaries(margins, norm=norm))
        widths.append(np.mean(line[:, 1] - line[:, 0]))
    assert widths[1] > widths[0] + 5


REFUSED = {
    "no margins": (lambda: plots.target_logits({}), ValueError, "margins: .* at least one"),
    "a list": (lambda: plots.target_slopes([ms.plain()]), TypeError, "margins: expected a mapping .* came list"),
    "not called": (lambda: plots.target_logits({"a": ms.plain}), TypeError, r"margins\['a'\]: expected a Margin"),
    "norm": (lambda: plots.target_logits({"a": ms.plain()}, norm=0.0), ValueError, "norm: .* > 0"),
    "scales": (lambda: plots.target_logits({"a": ms.normface(np.ones(3, np.float32))}), ValueError, "of one example"),
    "a row": (lambda: plots.target_logits({"a": ms.normface(np.ones(1, np.float32))}), ValueError, "expected one sca"),
    "of a batch": (lambda: plots.decision_boundaries({"a": ms.elastic_arcface(jax.random.key(0), batch=4)}), ValueError,
                   r"margins\['a'\]: expected the numbers of one example"),
    "no boundaries": (lambda: plots.decision_boundaries({}), ValueError, "margins"),
    "traced": (lambda: jax.jit(lambda m: plots.target_logits({"a": ms.arcface(m)}))(0.5), TypeError, "outside jit"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_is_refused_and_leaves_no_figure(name):
    draw, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        draw()
    assert plt.get_fignums() == []
