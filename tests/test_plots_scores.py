"""Scores of pairs, drawn: rates as scikit-learn has them, densities, and the numbers written beside them."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from sklearn.metrics import roc_curve

from margin_softmax import plots
from margin_softmax.verification import rates


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def scores(seed=0, number=400):
    random = np.random.default_rng(seed)
    same = random.random(number) < 0.3
    return np.round(random.normal(np.where(same, 0.5, 0.0), 0.3), 2), same  # rounded: with ties


def highest_at(x, y, at):
    """A staircase: the height where it is last at or before each place."""
    return y[np.searchsorted(x, at, side="right") - 1]


def test_roc_and_det_are_the_steps_of_scikit_learn():
    first, second = scores(0), scores(1, 900)
    curves = {"pair": first, "counts": rates.count(*second)}
    for ax, sign in ((plots.roc(curves), 1), (plots.det(curves), -1)):
        for line, (values, same), name in zip(ax.lines, (first, second), curves, strict=False):
            far, tar, _ = roc_curve(same, values, drop_intermediate=False)
            at = np.unique(np.concatenate([far, np.random.default_rng(2).uniform(0, 1, 500)]))
            expected = highest_at(far, tar, at)
            x, y = line.get_data()
            np.testing.assert_allclose(highest_at(x, y, at), expected if sign > 0 else 1 - expected, atol=1e-12)
            assert line.get_drawstyle() == "steps-post"
            assert line.get_label() == name
            assert len(x) < len(far)
        assert ax.get_xscale() == "log"
        assert ax.get_xlim() == pytest.approx((0.5 / np.sum(~second[1]), 1))
        x, y = ax.lines[-1].get_data()
        np.testing.assert_allclose(y, 1 - x if sign > 0 else x)
    assert ax.get_yscale() == "log"
    assert ax.get_ylim() == pytest.approx((0.5 / np.sum(second[1]), 1))


def test_histograms_are_densities_with_the_equal_error_rate():
    values, same = scores()
    ax = plots.score_histogram(values, same, bins=20)
    drawn = [patch.get_data() for patch in ax.patches]
    edges = np.linspace(values.min(), values.max(), 21)
    for data, chosen in zip(drawn, (values[~same], values[same]), strict=True):
        np.testing.assert_allclose(data.edges, edges)
        place = np.minimum(np.searchsorted(edges, chosen, side="right") - 1, 19)
        expected = np.array([np.sum(place == k) for k in range(20)]) / len(chosen) / (edges[1] - edges[0])
        np.testing.assert_allclose(data.values, expected)
    far, tar, thresholds = roc_curve(same, values, drop_intermediate=False)
    (line,) = ax.lines
    nearest = np.abs(far - (1 - tar))
    assert nearest[thresholds == line.get_xdata()[0]] == nearest.min()
    cut = np.argmax(far >= 1 - tar)
    text, shown, d_prime = ax.texts[0].get_text().splitlines()
    low, high = sorted((100 * far[cut - 1], 100 * far[cut]))
    assert low - 0.1 <= float(text.split()[2]) <= high + 0.1
    assert float(shown.split()[1]) == pytest.approx(line.get_xdata()[0], abs=1e-3)
    genuine, impostor = values[same], values[~same]
    expected = (genuine.mean() - impostor.mean()) / np.sqrt((genuine.var() + impostor.var()) / 2)
    assert float(d_prime.split()[-1]) == pytest.approx(expected, rel=5e-3)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == [f"impostor pairs ({np.sum(~same)})", f"genuine pairs ({same.sum()})"]


@pytest.mark.parametrize("threshold", np.linspace(0.05, 0.95, 10))
def test_figures_and_legend_of_a_histogram_never_meet(threshold):
    """Wherever between the lowest score and the highest the threshold lies."""
    genuine, impostor = np.linspace(threshold + 0.01, 1.0, 45_000), np.linspace(0.0, threshold - 0.01, 45_000)
    ax = plots.score_histogram(np.append(genuine, impostor), np.repeat([True, False], 45_000))
    ax.figure.canvas.draw()
    note, legend = ax.texts[0].get_window_extent(), ax.get_legend().get_window_extent()
    assert not note.overlaps(legend)
    top = max(np.max(patch.get_data().values) for patch in ax.patches)
    assert note.y0 > ax.transData.transform((0.0, top))[1]
    plt.close(ax.figure)


def test_histograms_of_counts_are_those_of_scores():
    one, other = plots.score_histogram(*scores()), plots.score_histogram(rates.count(*scores()))
    for a, b in zip(one.patches, other.patches, strict=True):
        np.testing.assert_allclose(a.get_data().values, b.get_data().values)
    assert one.texts[0].get_text() == other.texts[0].get_text()


S = scores()
REFUSED = {
    "no curves": (lambda: plots.roc({}), ValueError, "curves: .* at least one"),
    "scores alone": (lambda: plots.det({"a": S[0]}), TypeError, r"curves\['a'\]: .* Counts, came ndarray"),
    "same": (lambda: plots.roc({"a": (S[0], S[1] * 1)}), TypeError, r"curves\['a'\]: same"),
    "no labels": (lambda: plots.score_histogram(S[0]), TypeError, "expected scores and same, or Counts"),
    "twice": (lambda: plots.score_histogram(rates.count(*S), S[1]), (TypeError, ValueError), "scores|same"),
    "bins": (lambda: plots.score_histogram(*S, bins=1), ValueError, "bins: .* >= 2"),
    "one kind": (lambda: plots.score_histogram(S[0][S[1]], S[1][S[1]]), ValueError, "impostor"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_is_refused_and_leaves_no_figure(name):
    draw, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        draw()
    assert plt.get_fignums() == []
