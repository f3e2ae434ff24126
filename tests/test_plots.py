"""Pictures: each draws on the axes that it is given, saves nothing, and imports Matplotlib when it draws."""

import inspect
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import pyplot as plt

import margin_softmax as ms
import plot_gallery
import target_logits
from margin_softmax import plots

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


F, L = np.array([[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5]]), np.arange(3)
S = np.array([0.9, 0.2, 0.7, 0.4]), np.array([True, False, True, True])
P = np.zeros((3, 4, 4)), np.array([[0, 1], [0, 2], [1, 2]]), np.array([0.1, 0.9, 0.5]), np.array([True, False, True])
DRAWN = {
    "target_logits": lambda **k: plots.target_logits({"a": ms.plain()}, **k),
    "target_slopes": lambda **k: plots.target_slopes({"a": ms.plain()}, **k),
    "decision_boundaries": lambda **k: plots.decision_boundaries({"a": ms.plain()}, **k),
    "roc": lambda **k: plots.roc({"a": S}, **k),
    "det": lambda **k: plots.det({"a": S}, **k),
    "score_histogram": lambda **k: plots.score_histogram(*S, **k),
    "circle": lambda **k: plots.circle(F, L, **k),
    "circle, normalised": lambda **k: plots.circle(F, L, normalised=True, **k),
    "angle_statistics": lambda **k: plots.angle_statistics([1, 2], {"a": [1.0, 2.0]}, **k),
    "loss_curve": lambda **k: plots.loss_curve([1.0, 2.0], **k),
    "worst_false_accepts": lambda **k: plots.worst_false_accepts(*P, **k),
    "worst_false_rejects": lambda **k: plots.worst_false_rejects(*P, **k),
}


@pytest.mark.parametrize("name", DRAWN)
def test_given_axes_are_drawn_on_and_nothing_is_saved(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figure, (before, given) = plt.subplots(1, 2)
    plt.sca(before)
    assert DRAWN[name](ax=given) is given
    assert given.has_data()
    assert not before.has_data()
    assert plt.get_fignums() == [figure.number]
    own = DRAWN[name]()
    assert own.figure is not figure
    assert len(plt.get_fignums()) == 2
    own.figure.canvas.draw()
    texts = [t for t in own.figure.findobj(plt.Text) if t.get_text() and t.get_visible()]
    assert min(t.get_fontsize() for t in texts) >= 8
    assert list(tmp_path.iterdir()) == []


def test_every_function_is_public_and_is_drawn_here():
    assert {name for name, value in vars(plots).items() if inspect.isfunction(value)} == set(plots.__all__)
    assert {name.partition(",")[0] for name in DRAWN} == set(plots.__all__)


def test_examples_draw_their_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(target_logits, "MARGINS", {"no margin": ms.plain()})
    target_logits.draw(tmp_path / "figures" / "target_logits.png")
    assert plot_gallery.main(["--out", str(tmp_path / "figures"), "--only", "made_up_angles"]) == 0
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {"target_logits.png", "made_up_angles.png"}
    assert plt.get_fignums() == []
    shown = {path.stem for path in (ROOT / "docs" / "figures").glob("*.png")}
    assert set(plot_gallery.FIGURES) <= shown


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "margin-softmax\[plots\]"'):
        plots.loss_curve([1.0])


def test_matplotlib_is_not_imported_before_it_is_needed():
    code = "import sys, margin_softmax; assert not any(name.startswith('matplotlib') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
