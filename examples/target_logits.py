"""Draws what margins do to the logit of the own class.

The picture of the README is made by

    python examples/target_logits.py docs/figures/target_logits.png
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import margin_softmax as ms

MARGINS = {
    "no margin": (ms.normface(1.0), "black", "-"),
    "A-Softmax, m = 4": (ms.a_softmax(4), "#D55E00", "--"),
    "AM-Softmax, m = 0.35": (ms.am_softmax(0.35, scale=1.0), "#0072B2", "-."),
    "ArcFace, m = 0.5": (ms.arcface(0.5, scale=1.0), "#009E73", "-"),
    "combined, (1, 0.3, 0.2)": (ms.combined(1.0, 0.3, 0.2, scale=1.0), "#CC79A7", ":"),
}


def target_logit(margin: ms.Margin, theta: jax.Array) -> jax.Array:
    """z_y / s of one unit feature at the angle theta from its class."""
    feature = jnp.stack([jnp.cos(theta), jnp.sin(theta)])[None]
    return ms.margin_logits(feature, jnp.array([[1.0, 0.0]]), jnp.array([0]), margin)[0, 0]


def draw(path: pathlib.Path) -> None:
    # Slopes at the very ends are those of a corner, of which the derivative takes one side or none.
    theta = jnp.linspace(1e-3, jnp.pi - 1e-3, 400)
    figure, (values, slopes) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for name, (margin, color, line) in MARGINS.items():
        z, slope = jax.vmap(jax.value_and_grad(target_logit, argnums=1), in_axes=(None, 0))(margin, theta)
        for axes, y in ((values, z), (slopes, slope)):
            axes.plot(jnp.degrees(theta), y, color=color, linestyle=line, linewidth=1.8, label=name)
    values.set(ylabel="logit of the own class, $z_y / s$", ylim=(-3.2, 1.1))
    slopes.set(ylabel="its slope, $dz_y / (s\\, d\\theta)$", ylim=(-4.2, 0.2))
    for axes in (values, slopes):
        axes.set(xlabel="angle to the own class, degrees", xlim=(0, 180), xticks=range(0, 181, 30))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    values.legend(frameon=False, fontsize=9, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=pathlib.Path, nargs="?", default=pathlib.Path("target_logits.png"))
    draw(parser.parse_args().path)
