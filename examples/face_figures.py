"""Pictures of a run: the loss, the ROC, the cosines of pairs, the worst errors, and the rendered faces."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jax.typing import ArrayLike

from face_verification import Scores
from faces.pictures import Pairs, Pictures
from rendered_faces import contact_sheet

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from margin_softmax import plots


def draw_loss(path: Path, losses: Sequence[ArrayLike]) -> None:
    axes = plots.loss_curve(np.asarray(losses))
    axes.set_title("Training loss, with the margin")
    _save(axes.figure, path)


def draw_angles(path: Path, angles: Sequence[tuple[ArrayLike, ArrayLike]]) -> None:
    target, other = np.asarray(angles).T
    steps = np.arange(1, len(target) + 1)
    axes = plots.angle_statistics(steps, {"own class": target, "nearest other class": other})
    axes.set_title("Angles to class weights, means over batches")
    _save(axes.figure, path)


def draw_roc(path: Path, curves: Mapping[str, Scores], verified: str) -> None:
    axes = plots.roc(curves)
    axes.set_title(f"Verification: {verified}")
    _save(axes.figure, path)


def draw_cosines(path: Path, scores: Scores, verified: str) -> None:
    axes = plots.score_histogram(*scores)
    axes.set(xlabel="cosine of the two features", title=f"Pairs: {verified}")
    _save(axes.figure, path)


def draw_worst(path: Path, pairs: Pairs, scores: Scores) -> None:
    figure, axes = plt.subplots(2, 1, figsize=(7, 5.2), layout="constrained")
    for draw, ax in zip((plots.worst_false_accepts, plots.worst_false_rejects), axes, strict=True):
        draw(pairs.pictures, pairs.pairs, *scores, ax=ax)
    _save(figure, path)


def draw_sheet(path: Path, pictures: Pictures, people: int = 8) -> None:
    """The pictures of the first people, one row for each."""
    columns = int(np.sum(pictures.labels == pictures.labels[0]))
    shown = range(min(people * columns, len(pictures)))
    tones = np.stack([pictures[index][..., 0] for index in shown]) / 255
    plt.imsave(path, np.asarray(contact_sheet(tones, columns)), cmap="gray", vmin=0, vmax=1)


def _save(figure, path):
    figure.savefig(path, dpi=120)
    plt.close(figure)
