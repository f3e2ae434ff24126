"""Draws the pictures of docs/pictures.md, one for each kind, of made-up data and rendered faces.

python examples/plot_gallery.py --out docs/figures
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import margin_softmax as ms
from margin_softmax import plots
from margin_softmax.plots.scores import PairScores
from margin_softmax.verification import pairs as pairing
from rendered_faces import rendered_faces

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def boundaries() -> None:
    plots.decision_boundaries(
        {
            "modified softmax": ms.modified_softmax(),
            "A-Softmax, m = 2": ms.a_softmax(2),
            "AM-Softmax, m = 0.2": ms.am_softmax(0.2),
            "ArcFace, m = 0.3": ms.arcface(0.3),
        }
    )


def scores(separation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of 2,000 genuine and 40,000 impostor pairs, their cosines made up as normal ones."""
    random = np.random.default_rng(seed)
    same = np.arange(42_000) < 2_000
    return np.clip(random.normal(np.where(same, separation, 0.0), 0.13), -1, 1), same


def curves() -> dict[str, PairScores]:
    return {"weak": scores(0.3, 0), "strong": scores(0.5, 1)}


def roc() -> None:
    plots.roc(curves())


def det() -> None:
    plots.det(curves())


def histogram() -> None:
    plots.score_histogram(*scores(0.5, 1)).set_xlabel("cosine of the two features")


def angles() -> None:
    """Made up: an own angle that falls and a nearest other one that rises."""
    steps = np.arange(0, 1001, 10)
    own = np.radians(25 + 60 * np.exp(-steps / 200))
    other = np.radians(85 - 10 * np.exp(-steps / 300))
    bands = {"own class": (own - 0.15, own + 0.15), "nearest other": (other - 0.08, other + 0.08)}
    plots.angle_statistics(steps, {"own class": own, "nearest other": other}, bands=bands)


def sheets() -> None:
    """The worst pairs of 24 rendered people, compared by their pixels."""
    pictures, labels = rendered_faces(jax.random.key(0), people=24, pictures=4)
    features = pictures.reshape(len(pictures), -1)
    pairs, same = pairing.all_pairs(np.asarray(labels))
    cosines = pairing.pair_cosines(features - jnp.mean(features, axis=0), pairs)
    _, (accepts, rejects) = plt.subplots(2, 1, figsize=(6, 4.2), layout="constrained")
    plots.worst_false_accepts(pictures, pairs, cosines, same, ax=accepts)
    plots.worst_false_rejects(pictures, pairs, cosines, same, ax=rejects)


FIGURES: dict[str, Callable[[], None]] = {
    "decision_boundaries": boundaries,
    "made_up_roc": roc,
    "made_up_det": det,
    "made_up_scores": histogram,
    "made_up_angles": angles,
    "worst_pairs": sheets,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--only", choices=FIGURES, help="one of them; otherwise all")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        if options.only in (None, name):
            draw()
            plt.savefig(options.out / f"{name}.png", dpi=100)
            plt.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
