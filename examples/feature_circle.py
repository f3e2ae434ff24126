"""The famous figure: features of two dimensions, one panel for each loss, as they are and on the unit circle.

    python examples/feature_circle.py                                      scikit-learn's digits
    python examples/feature_circle.py --data mnist:FOLDER                  MNIST, from its four idx files
    python examples/feature_circle.py --data mnist:FOLDER --cache panels   stopped, it goes on where it was

A small convolutional network ends in a feature of two numbers, so the features of a test set are a picture. L-Softmax
with m = 1 is softmax, A-Softmax with m = 1 modified softmax, and AM-Softmax with m = 0 NormFace: the first column has
no margin.
"""

import argparse
import functools
import io
import itertools
import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from jax import Array
from PIL import Image
from tqdm import tqdm

import margin_softmax as ms
from margin_softmax import plots
from mnist_files import Digits, read_mnist

matplotlib.use("Agg")
from matplotlib import pyplot as plt

WIDTHS = 16, 32, 64
HIDDEN = 128
SCALE = 24.0
BATCH = 128
EPOCHS = {"digits": 90, "mnist": 4}
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.5  # chosen by eye, from 1e-4 to 0.5, by the test features of two panels
CLASSES = 10
EMBEDDED_AT_ONCE = 1000


class Panel(NamedTuple):
    title: str
    family: str
    margin: float


PANELS = (
    Panel("softmax (L-, m = 1)", "l_softmax", 1),
    Panel("L-Softmax, m = 2", "l_softmax", 2),
    Panel("L-Softmax, m = 3", "l_softmax", 3),
    Panel("L-Softmax, m = 4", "l_softmax", 4),
    Panel("modified softmax (A-, m = 1)", "a_softmax", 1),
    Panel("A-Softmax, m = 2", "a_softmax", 2),
    Panel("A-Softmax, m = 3", "a_softmax", 3),
    Panel("A-Softmax, m = 4", "a_softmax", 4),
    Panel("NormFace (AM-, m = 0)", "am_softmax", 0.0),
    Panel("AM-Softmax, m = 0.2", "am_softmax", 0.2),
    Panel("ArcFace, m = 0.2", "arcface", 0.2),
    Panel("ArcFace, m = 0.5", "arcface", 0.5),
)


def margin_at(family: str, margin: Array | float, done: Array) -> ms.Margin:
    """The panel's margin after a part `done` of its steps, from 0 to 1.

    On a circle every class has two neighbours, and one that starts in a wrong place must pass through others, which a
    margin forbids. So L- and A-Softmax begin as good as blended out, and the others without a margin.
    """
    if family in ("l_softmax", "a_softmax"):
        blend = ms.blend_schedule(base=1000.0, gamma=6.0, power=5.0, minimum=0.0)(done)
        return getattr(ms, family)(margin, blend=blend)
    rise = ms.margin_warmup(1.0, start=1, end=3)(4 * done)
    return getattr(ms, family)(margin * rise, scale=SCALE)


class Network(nnx.Module):
    """Pictures [B, H, W] -> features [B, 2]; `classes` [C, 2] is one weight row per class."""

    def __init__(self, side: int, *, rngs: nnx.Rngs):
        pairs = list(itertools.pairwise((1, *WIDTHS)))
        self.convs = nnx.List(nnx.Conv(a, b, (3, 3), strides=2, use_bias=False, rngs=rngs) for a, b in pairs)
        self.norms = nnx.List(nnx.BatchNorm(b, momentum=0.9, rngs=rngs) for _, b in pairs)
        for _ in WIDTHS:
            side = (side + 1) // 2
        self.hidden = nnx.Linear(WIDTHS[-1] * side * side, HIDDEN, use_bias=False, rngs=rngs)
        self.hidden_norm = nnx.BatchNorm(HIDDEN, momentum=0.9, rngs=rngs)
        self.features = nnx.Linear(HIDDEN, 2, rngs=rngs)
        # Evenly around the circle: in two dimensions a row that starts among others may never get past them.
        turn = 2 * jnp.pi / CLASSES * jnp.arange(CLASSES, dtype=jnp.float32)
        self.classes = nnx.Param(jnp.stack([jnp.cos(turn), jnp.sin(turn)], axis=1))

    def __call__(self, pictures: Array) -> Array:
        x = pictures[..., None]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.leaky_relu(norm(conv(x)))
        return self.features(nnx.leaky_relu(self.hidden_norm(self.hidden(x.reshape(len(x), -1)))))


class Result(NamedTuple):
    """What a panel shows, of the test set: features [N, 2], class weights [C, 2], accuracy, mean own angle."""

    features: np.ndarray
    weights: np.ndarray
    accuracy: float
    degrees: float


@functools.cache  # equal optimisers must be one object, or each panel would compile its own step
def optimiser(steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, steps // 20, steps, end_value=LEARNING_RATE / 100)
    return optax.chain(optax.clip_by_global_norm(5.0), optax.adamw(rate, weight_decay=WEIGHT_DECAY))


@functools.partial(nnx.jit, static_argnames=("side", "steps"))
def start(key: Array, *, side: int, steps: int) -> tuple[Network, nnx.Optimizer]:
    model = Network(side, rngs=nnx.Rngs(key))
    return model, nnx.Optimizer(model, optimiser(steps), wrt=nnx.Param)


@functools.partial(nnx.jit, static_argnames=("family", "steps"))
def train_step(model, optimizer, pictures, labels, margin, key, step, *, family, steps) -> Array:
    """One program for each family: its margin and the step are numbers that come in."""
    chosen = jax.random.randint(jax.random.fold_in(key, step), (BATCH,), 0, len(labels))
    margin = margin_at(family, margin, step / steps)

    def mean_loss(model):
        features = model(as_tones(pictures[chosen]))
        return ms.margin_loss(features, model.classes[...], labels[chosen], margin).mean()

    loss, gradients = nnx.value_and_grad(mean_loss)(model)
    optimizer.update(model, gradients)
    return loss


@nnx.jit
def embed(model: Network, pictures: Array) -> Array:
    return model(as_tones(pictures))


def as_tones(pictures: Array) -> Array:
    return pictures.astype(jnp.float32) / 128 - 1


def train(panel: Panel, digits: Digits, *, steps: int, seed: int, tick: Callable[[int], object]) -> Result:
    """The features that a panel shows. They depend on the seed and the panel, and on no other panel."""
    start_key, key = jax.random.split(jax.random.key(seed))
    model, optimizer = start(start_key, side=digits.pictures.shape[1], steps=steps)
    pictures, labels, margin = jnp.asarray(digits.pictures), jnp.asarray(digits.labels), jnp.float32(panel.margin)
    for step in range(steps):
        train_step(model, optimizer, pictures, labels, margin, key, step, family=panel.family, steps=steps)
        tick(1)
    model.eval()
    tested = jnp.asarray(digits.test_pictures)
    parts = range(0, len(tested), EMBEDDED_AT_ONCE)
    features = jnp.concatenate([embed(model, tested[at : at + EMBEDDED_AT_ONCE]) for at in parts])
    return measured(panel, features, model.classes[...], jnp.asarray(digits.test_labels))


def measured(panel: Panel, features: Array, weights: Array, labels: Array) -> Result:
    """Accuracy by the logits without a margin, and the mean angle to the own class."""
    margin = ms.plain() if panel.family == "l_softmax" else ms.modified_softmax()
    nearest = jnp.argmax(ms.margin_logits(features, weights, labels, margin), axis=-1)
    degrees = jnp.degrees(ms.angle(features, weights[labels])).mean()
    return Result(np.asarray(features), np.asarray(weights), float((nearest == labels).mean()), float(degrees))


def load_digits(source: str) -> Digits:
    """The pictures of 'digits' (scikit-learn's; a quarter, chosen by chance, is tested on) or of 'mnist:FOLDER'."""
    kind, _, folder = source.partition(":")
    if kind == "mnist" and folder:
        return read_mnist(folder)
    if source != "digits":
        raise ValueError(f"--data: expected digits or mnist:FOLDER, came {source!r}.")
    from sklearn.datasets import load_digits as bundled

    tones, digit = bundled(return_X_y=True)  # tones are whole numbers from 0 to 16
    order = np.random.default_rng(0).permutation(len(digit))
    pictures, labels = (tones[order] * 15.9375).astype(np.uint8).reshape(-1, 8, 8), digit[order].astype(np.int32)
    tested = len(labels) // 4
    return Digits(pictures[tested:], labels[tested:], pictures[:tested], labels[:tested])


def train_or_load(
    panel: Panel, digits: Digits, cache: Path | None, *, steps: int, seed: int, tick: Callable[[int], object]
) -> Result:
    """A panel from the cache if it was made in the same way, and otherwise trained and put there."""
    of_network = [WIDTHS, HIDDEN, SCALE, BATCH, LEARNING_RATE, WEIGHT_DECAY]
    of_data = [zlib.crc32(part.tobytes()) for part in digits]
    made_by = json.dumps([panel, steps, seed, of_network, of_data])
    path = cache / f"{panel.family}_{panel.margin:g}.npz" if cache else None
    if path and path.is_file() and (kept := read_result(path, made_by)):
        tick(steps)
        return kept
    result = train(panel, digits, steps=steps, seed=seed, tick=tick)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".partial.npz")
        np.savez(unfinished, made_by=made_by, **result._asdict())
        unfinished.replace(path)
    return result


def read_result(path: Path, made_by: str) -> Result | None:
    """A kept panel; None for one that was made in another way."""
    try:
        with path.open("rb") as file, np.load(file) as kept:
            if str(kept["made_by"]) != made_by:
                return None
            return Result(kept["features"], kept["weights"], float(kept["accuracy"]), float(kept["degrees"]))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: expected a panel that an earlier run kept, came a file that cannot be read: {error}. Delete it."
        ) from None


def draw(path: Path, panels: Sequence[Panel], results: Sequence[Result], labels: np.ndarray, columns: int = 4) -> None:
    """Each panel as it is and, below it, on the unit circle."""
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(2 * rows, columns, figsize=(2.3 * columns, 4.4 * rows))
    for ax in axes.flat:
        ax.set_visible(False)
    for i, (panel, result) in enumerate(zip(panels, results, strict=True)):
        for normalised in (False, True):
            ax = axes[2 * (i // columns) + normalised, i % columns]
            ax.set_visible(True)
            plots.circle(result.features, labels, weights=result.weights, normalised=normalised, ax=ax)
        title = f"{panel.title}\n{result.accuracy:.1%}, {result.degrees:.1f}°"
        axes[2 * (i // columns), i % columns].set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    plt.close(figure)
    with Image.open(drawn) as image:  # with 128 colours it is a quarter of the size
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", metavar="digits|mnist:FOLDER")
    parser.add_argument("--out", type=Path, default=Path("circle.png"), help="the figure")
    parser.add_argument("--epochs", type=int, help=f"of the training set; otherwise {EPOCHS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="a folder that keeps each panel, so that a second run goes on")
    options = parser.parse_args(arguments)
    try:
        digits = load_digits(options.data)
    except ValueError as error:
        parser.error(str(error))
    epochs = EPOCHS[options.data.partition(":")[0]] if options.epochs is None else options.epochs
    if epochs < 1:
        parser.error(f"--epochs: expected at least 1, came {epochs}.")
    steps = max(1, epochs * len(digits.labels) // BATCH)
    results = []
    with tqdm(total=steps * len(PANELS), unit="step", mininterval=1.0) as bar:
        for panel in PANELS:
            try:
                result = train_or_load(panel, digits, options.cache, steps=steps, seed=options.seed, tick=bar.update)
            except ValueError as error:
                parser.error(str(error))
            results.append(result)
            bar.write(f"{panel.title:36}test accuracy {result.accuracy:.4f}   own angle {result.degrees:5.2f} degrees")
    draw(options.out, PANELS, results, digits.test_labels)
    print(f"Written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
