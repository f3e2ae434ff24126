"""Draws what margins do to the logit of the own class.

The picture of the README is made by

    python examples/target_logits.py docs/figures/target_logits.png
"""

import argparse
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import margin_softmax as ms
from margin_softmax import plots

MARGINS = {
    "no margin": ms.normface(1.0),
    "A-Softmax, m = 4": ms.a_softmax(4),
    "AM-Softmax, m = 0.35": ms.am_softmax(0.35, scale=1.0),
    "ArcFace, m = 0.5": ms.arcface(0.5, scale=1.0),
    "combined, (1, 0.3, 0.2)": ms.combined(1.0, 0.3, 0.2, scale=1.0),
}


def draw(path: pathlib.Path) -> None:
    figure, (values, slopes) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    plots.target_logits(MARGINS, ax=values).legend(frameon=False, fontsize=9, loc="lower right")
    plots.target_slopes(MARGINS, ax=slopes).legend().remove()
    values.set_ylim(-3.2, 1.1)
    slopes.set_ylim(-4.2, 0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=pathlib.Path, nargs="?", default=pathlib.Path("target_logits.png"))
    draw(parser.parse_args().path)
