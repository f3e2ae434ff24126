"""Pictures of a run: the loss, the ROC, the cosines of pairs, and the rendered faces."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jax.typing import ArrayLike

from pair_verification import receiver_operating_characteristic
from rendered_faces import contact_sheet

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's colours, which remain apart for every kind of colour vision.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"

Pairs = tuple[np.ndarray, np.ndarray]


def draw_loss(path: Path, losses: Sequence[ArrayLike]) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    window = max(1, len(losses) // 30)
    mean = np.convolve(np.asarray(losses), np.ones(window) / window, mode="valid")
    axes.plot(np.arange(1, len(losses) + 1), np.asarray(losses), color=BLUE, alpha=0.3, linewidth=1, label="each step")
    axes.plot(np.arange(len(mean)) + (window + 1) / 2, mean, color=BLUE, linewidth=2, label=f"mean of {window} steps")
    axes.set(xlabel="step", ylabel="loss (nats)", title="Training loss, with the margin")
    axes.legend(frameon=False)
    _save(figure, axes, path)


def draw_roc(path: Path, curves: dict[str, Pairs]) -> None:
    """One curve for each name, from its (genuine, impostor) cosines."""
    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    for (name, (genuine, impostor)), color, style in zip(
        curves.items(), (GREY, ORANGE, BLUE), (":", "--", "-"), strict=True
    ):
        far, tar, _ = receiver_operating_characteristic(genuine, impostor)
        axes.step(far, tar, where="post", color=color, linestyle=style, linewidth=2, label=name)
    rates = np.geomspace(0.5 / len(impostor), 1, 200)
    axes.plot(rates, 1 - rates, color="black", linewidth=0.7)
    axes.annotate("equal error", (0.9, 0.1), xytext=(-4, 0), textcoords="offset points", ha="right", fontsize=8)
    axes.set(xscale="log", xlim=(0.5 / len(impostor), 1), ylim=(0, 1.01))
    axes.set(xlabel="false accept rate", ylabel="true accept rate", title="Verification of people never trained on")
    axes.legend(frameon=False, loc="upper left")
    _save(figure, axes, path)


def draw_cosines(path: Path, pairs: Pairs, threshold: float, equal_error_rate: float) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    lowest = min(scores.min() for scores in pairs)
    for scores, name, color in zip(pairs, ("genuine", "impostor"), (BLUE, ORANGE), strict=True):
        label = f"{name} pairs ({len(scores):,})"
        axes.hist(scores, bins=60, range=(lowest, 1), density=True, color=color, alpha=0.6, label=label)
    axes.axvline(threshold, color="black", linewidth=1, linestyle="--")
    axes.set_ylim(top=1.2 * axes.get_ylim()[1])
    label = f"threshold {threshold:.2f}\nequal error {equal_error_rate:.1%}"
    axes.annotate(label, (threshold, axes.get_ylim()[1]), xytext=(5, -4), textcoords="offset points", va="top")
    axes.set(xlabel="cosine of the two features", ylabel="density", title="Pairs of people never trained on")
    axes.legend(frameon=False, loc="upper left")
    _save(figure, axes, path)


def draw_sheet(path: Path, pictures: np.ndarray, labels: np.ndarray, people: int = 8) -> None:
    """The pictures of the first people, one row for each."""
    columns = int(np.sum(labels == labels[0]))
    sheet = np.asarray(contact_sheet(pictures[: people * columns], columns))
    plt.imsave(path, sheet, cmap="gray", vmin=0, vmax=1)


def _save(figure, axes, path):
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
