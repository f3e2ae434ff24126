"""Sheets of the worst pairs: which pairs, in which order, and their pictures as they came."""

import jax
import numpy as np
import pytest
from matplotlib import pyplot as plt

from margin_softmax import plots
from margin_softmax.verification import rates


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def pair_sheet():
    pictures = np.random.default_rng(0).random((6, 5, 4))
    pairs = np.array([[0, 1], [0, 2], [1, 2], [3, 4], [3, 5], [4, 5]])
    same = np.array([True, False, False, True, False, True])
    return pictures, pairs, np.array([0.9, 0.8, 0.95, 0.1, 0.2, 0.3]), same


SHEETS = {
    "accepts": (plots.worst_false_accepts, [(1, 2), (0, 2)], "false accepts: 2 of 3 pairs of different people"),
    "rejects": (plots.worst_false_rejects, [(3, 4), (4, 5)], "false rejects: 2 of 3 pairs of one person"),
}


@pytest.mark.parametrize("name", SHEETS)
@pytest.mark.parametrize(("kind", "channels"), [(np.float32, 0), (np.float32, 1), (np.uint8, 1), (np.uint8, 3)])
def test_sheets_show_the_worst_first(name, kind, channels):
    draw, worst, title = SHEETS[name]
    pictures, pairs, values, same = pair_sheet()
    tones = (np.round(255 * pictures) if kind == np.uint8 else pictures).astype(kind)
    given = np.stack([tones] * channels, axis=-1) if channels else tones
    ax = draw(given, pairs, values, same, threshold=0.5)
    assert ax.get_title().startswith(title)
    of_pair = {tuple(pair): score for pair, score in zip(pairs.tolist(), values, strict=True)}
    assert [text.get_text() for text in ax.texts] == [f"{of_pair[p]:.3f}  {p}" for p in worst]
    assert len(ax.images) == 4
    for image, which in zip(ax.images, np.ravel(worst), strict=True):
        np.testing.assert_array_equal(image.get_array(), given[which] if channels == 3 else tones[which])
        assert image.get_clim() == (0, 255 if kind == np.uint8 else 1)
    (first, _, _, _), (second, _, _, _) = (image.get_extent() for image in ax.images[:2])
    assert second - first == 4
    assert len(draw(given, pairs, values, same, threshold=0.5, number=1).images) == 2


def test_sheets_take_the_threshold_of_equal_errors():
    pictures, pairs, values, same = pair_sheet()
    threshold = rates.threshold_at_eer(values, same)
    drawn = plots.worst_false_accepts(pictures, pairs, values, same)
    assert f"{threshold:.3f}" in drawn.get_title()
    assert len(drawn.images) == 2 * np.sum(~same & (values >= threshold))


def test_a_sheet_without_a_mistake_is_empty_and_says_so():
    pictures, pairs, values, same = pair_sheet()
    ax = plots.worst_false_rejects(pictures, pairs, values, same, threshold=0.0)
    assert not ax.images
    assert ax.get_title().startswith("false rejects: 0 of 3")


P = pair_sheet()
REFUSED = {
    "pictures": (lambda: plots.worst_false_accepts(P[0][0], *P[1:]), ValueError, "pictures: expected shape"),
    "tones": (lambda: plots.worst_false_accepts(P[0] * 9, *P[1:]), ValueError, "pictures: .* tones from 0 to 1"),
    "no picture": (lambda: plots.worst_false_rejects(P[0][:5], *P[1:]), ValueError, "pairs: row 4 holds 5, .* 0 to 4"),
    "pairs": (lambda: plots.worst_false_accepts(P[0], P[1][:3], *P[2:]), ValueError, "pairs: expected shape"),
    "real pairs": (lambda: plots.worst_false_accepts(P[0], P[1] * 1.0, *P[2:]), TypeError, "pairs: expected integers"),
    "number": (lambda: plots.worst_false_accepts(*P, number=0), ValueError, "number: .* >= 1"),
    "two channels": (lambda: plots.worst_false_accepts(np.zeros((6, 5, 4, 2)), *P[1:]), ValueError, r"H, W, 1\] or"),
    "traced": (lambda: jax.jit(lambda p: plots.worst_false_rejects(p, *P[1:]))(P[0]), TypeError, "pictures: .* jit"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_is_refused_and_leaves_no_figure(name):
    draw, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        draw()
    assert plt.get_fignums() == []
