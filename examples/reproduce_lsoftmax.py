"""The MNIST table of L-Softmax: softmax and m = 2, 3, 4, on the digits trained on and on digits never seen.

    python examples/reproduce_lsoftmax.py --data mnist:FOLDER --out runs --table table.md
    python examples/reproduce_lsoftmax.py --data mnist:FOLDER --out runs --table table.md --paper
    python examples/reproduce_lsoftmax.py --out runs --table table.md

The first trains a network of LeNet's size, 3,000 steps; the second the paper's own network by its schedule, 18,000
steps, for an accelerator; the third tries everything out in a still smaller protocol, on scikit-learn's bundled digits.

Every loss is trained twice with each seed. On digits 0 to 6 ("open"), where it is then verified on all pairs of test
pictures of 7, 8 and 9: are two of one digit? And on all ten ("closed"), where the test error is counted. A seed's first
weights and batches are the same for all losses, and each loss is compared with softmax seed by seed. One JSON file is
kept for each run; a run whose file is there is not repeated, so the command can be stopped and given again. A file of
other data or settings is refused.
"""

import argparse
import functools
import itertools
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import margin_softmax as ms
from feature_circle import load_digits
from lsoftmax_training import ANNEALING, BUNDLED, LEARNING_RATE, MOMENTUM, PAPER, REDUCED, WEIGHT_DECAY, embed, train
from measured_runs import OtherRunError, Seeds, kept, measure_all, places, surroundings
from mnist_files import Digits

LOSSES = {"softmax": 1, "L-Softmax, m = 2": 2, "L-Softmax, m = 3": 3, "L-Softmax, m = 4": 4}
TASKS = "open", "closed"
SEEDS = 0, 1, 2
TRAINED_ON = 7
FAR = 1e-2
PROTOCOLS = {protocol.name: protocol for protocol in (BUNDLED, REDUCED, PAPER)}
PUBLISHED = {1: "0.40", 2: "0.32", 3: "0.31", 4: "0.31"}


class Trial(NamedTuple):
    """One run: what makes its result, and nothing else."""

    protocol: str
    task: str
    margin: int
    seed: int

    def file(self, folder: Path) -> Path:
        return folder / f"{self.protocol}-{self.task}-m{self.margin}-seed{self.seed}.json"


class Column(NamedTuple):
    """A figure of a run, as the table shows it."""

    name: str
    key: str
    shown: Callable[[float], str]
    compared: bool


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def degrees(value: float) -> str:
    return f"{value:.1f}"


ANGLES = Column("angle within, °", "within", degrees, True), Column("angle between, °", "between", degrees, False)
COLUMNS = {
    "open": (Column("EER, %", "eer", percent, True), Column("TAR at FAR 1 %, %", "tar", percent, True), *ANGLES),
    "closed": (Column("test error, %", "error", percent, True), *ANGLES),
}
TITLES = {
    "open": "Trained on digits 0 to 6, verified on all pairs of test pictures of 7 to 9",
    "closed": "Trained and tested on all ten digits",
}


def load(source: str) -> Digits:
    """As the figure of features has them; refused where the tables could not be made of them."""
    digits = load_digits(source)
    height, width = digits.pictures.shape[1:]
    if height % 4 or width % 4:
        raise ValueError(f"--data {source}: expected pictures whose sides are multiples of 4, came {height} x {width}.")
    for part, labels, least in (("train", digits.labels, 1), ("test", digits.test_labels, 2)):
        counts = np.bincount(labels, minlength=10)
        if (counts < least).any():
            raise ValueError(
                f"--data {source}: expected at least {least} of each digit to {part} on, came {counts.min()} of "
                f"{counts.argmin()}. Bring all ten digits."
            )
    return digits


def measure(trial: Trial, digits: Digits) -> dict[str, Any]:
    """A network trained, and its figures; None where it diverged, which is a result, too."""
    started = time.perf_counter()
    protocol, known = PROTOCOLS[trial.protocol], TRAINED_ON if trial.task == "open" else 10
    trained = digits.labels < known
    with tqdm(total=protocol.steps, unit="step", leave=False, dynamic_ncols=True) as bar:
        model, losses = train(
            protocol, digits.pictures[trained], digits.labels[trained], trial.margin, trial.seed, bar.update
        )
    tested = digits.test_labels >= (TRAINED_ON if trial.task == "open" else 0)
    pictures, labels = digits.test_pictures[tested], digits.test_labels[tested]
    features = embed(model, pictures)
    result = {**trial._asdict(), **surroundings(), "last_losses": losses[-10:]}
    if trial.task == "open":
        result["raw_pixels"] = verified(pictures.reshape(len(pictures), -1).astype(np.float32), labels)
    finite = np.isfinite(features).all() and np.isfinite(losses).all()
    result["figures"] = figures(trial.task, features, np.asarray(model.classes[...]), labels) if finite else None
    return {**result, "seconds": time.perf_counter() - started}


def figures(task: str, features: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    spread = angles(features, labels)
    if task == "open":
        return verified(features, labels) | spread
    return {"error": float(np.mean(np.argmax(features @ classes.T, axis=1) != labels))} | spread


def verified(features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Of all pairs, by their cosines."""
    counts = ms.verification.pair_counts(features, labels)
    return {"eer": ms.verification.eer(counts), "tar": float(ms.verification.tar_at_far(counts, far=FAR))}


def angles(features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """In degrees: mean angle to the mean direction of the own class, and smallest angle between two such directions."""
    directions = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    present, own = np.unique(labels, return_inverse=True)
    means = jnp.stack([directions[labels == digit].mean(0) for digit in present])
    between = [ms.angle(a, b) for a, b in itertools.combinations(means, 2)]
    within = ms.angle(jnp.asarray(directions), means[own]).mean()
    return {"within": float(jnp.degrees(within)), "between": float(jnp.degrees(jnp.stack(between).min()))}


def checksums(digits: Digits) -> list[int]:
    return [zlib.crc32(part.tobytes()) for part in digits]


def made_by(trial: Trial, data: Sequence[int]) -> dict[str, Any]:
    """What a result depends on besides its trial: the settings that this file and the one beside it have now."""
    protocol = PROTOCOLS[trial.protocol]
    return {
        **protocol._asdict(),
        "trunk": protocol.trunk.__name__,
        "optimiser": [LEARNING_RATE, MOMENTUM, WEIGHT_DECAY],
        "annealing": ANNEALING,
        "data": data,
    }


def tables(protocol: str, results: dict[Trial, dict[str, Any]], seeds: Sequence[int]) -> list[str]:
    """Markdown of one protocol: unknown digits, then known ones, then where the numbers were made."""
    lines = [f"## {heading(protocol)}", ""]
    for task in TASKS:
        columns, published = COLUMNS[task], task == "closed" and protocol == PAPER.name
        names = ["published, %"] * published + [column.name for column in columns]
        names += [f"{c.name.partition(',')[0]} less softmax's" for c in columns if c.compared]
        names += ["seeds", "minutes a run"]
        lines += [f"{TITLES[task]}:", "", f"| loss | {' | '.join(names)} |", "| --- " * (1 + len(names)) + "|"]
        of_task = {trial: r for trial, r in results.items() if (trial.protocol, trial.task) == (protocol, task)}
        lines += raw_pixels(columns, len(names), list(of_task.values()))
        for name, margin in LOSSES.items():
            of_loss, of_softmax = (
                [of_task.get(Trial(protocol, task, m, seed)) for seed in seeds] for m in (margin, LOSSES["softmax"])
            )
            cells = row(columns, of_loss, of_softmax, compared=margin != LOSSES["softmax"])
            lines.append(f"| {name} | {' | '.join([PUBLISHED[margin]] * published + cells)} |")
        lines.append("")
    return [*lines, made_on([r for trial, r in results.items() if trial.protocol == protocol]), ""]


def row(
    columns: Sequence[Column],
    of_loss: Sequence[dict[str, Any] | None],
    of_softmax: Sequence[dict[str, Any] | None],
    *,
    compared: bool,
) -> list[str]:
    """Mean and standard error over the seeds, then the same of what is less than softmax's, seed by seed."""
    run = [result for result in of_loss if result]
    converged = [result["figures"] for result in run if result["figures"]]
    pairs = [
        (result["figures"], other["figures"])
        for result, other in zip(of_loss, of_softmax, strict=True)
        if result and other and result["figures"] and other["figures"]
    ]
    shown, none = [c for c in columns if c.compared], "diverged" if run else "not run"
    cells = [spread([f[c.key] for f in converged], c.shown) if converged else none for c in columns]
    if compared:
        cells += [spread([f[c.key] - o[c.key] for f, o in pairs], c.shown, "+") if pairs else "" for c in shown]
    else:
        cells += [""] * len(shown)
    diverged = len(run) - len(converged)
    cells.append(f"{len(converged)}" + (f", {diverged} diverged" if diverged else ""))
    return [*cells, f"{statistics.median(result['seconds'] for result in run) / 60:.1f}" if run else ""]


def spread(values: Sequence[float], shown: Callable[[float], str], sign: str = "") -> str:
    """Mean ± standard error; of one value there is none."""
    mean = statistics.mean(values)
    text = f"{sign if mean >= 0 else ''}{shown(mean)}"
    return text if len(values) == 1 else f"{text} ± {shown(statistics.stdev(values) / len(values) ** 0.5)}"


def raw_pixels(columns: Sequence[Column], width: int, results: Sequence[dict[str, Any]]) -> list[str]:
    """A row of the pictures themselves, which need no training."""
    measured = next((result["raw_pixels"] for result in results if "raw_pixels" in result), None)
    if measured is None:
        return []
    cells = [column.shown(measured[column.key]) if column.key in measured else "" for column in columns]
    return [f"| raw pixels | {' | '.join(cells + [''] * (width - len(cells)))} |"]


def heading(protocol: str) -> str:
    chosen = PROTOCOLS[protocol]
    what = {
        BUNDLED.name: "Scikit-learn's bundled digits, a network smaller than LeNet",
        REDUCED.name: "MNIST, reduced: a network of LeNet's size",
        PAPER.name: "MNIST, the paper's network and schedule",
    }[protocol]
    return f"{what}, {chosen.steps:,} steps of {chosen.batch}"


def made_on(results: Sequence[dict[str, Any]]) -> str:
    if not results:
        return "Not run."
    return f"Means ± standard errors over the seeds. Made on {places(results)}."


def parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", metavar="digits|mnist:FOLDER", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("lsoftmax_runs"), help="one file a run (default: %(default)s)")
    parser.add_argument("--table", type=Path, default=Path("lsoftmax.md"), help="Markdown (default: %(default)s)")
    parser.add_argument("--paper", action="store_true", help="the paper's own network and schedule, on MNIST")
    parser.add_argument("--seeds", type=int, nargs="+", action=Seeds, default=SEEDS, help="(default: 0 1 2)")
    parser.add_argument("--tasks", choices=TASKS, nargs="+", default=TASKS, help="which to run (default: both)")
    parser.add_argument("--only-table", action="store_true", help="run nothing; make the table of the runs there are")
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    parser, options = parse(arguments)
    bundled = options.data == "digits"
    if options.paper and bundled:
        parser.error("--paper: expected --data mnist:FOLDER with it, came scikit-learn's digits.")
    shown = [BUNDLED.name] if bundled else [REDUCED.name, PAPER.name]
    # Seed by seed, so that what a stopped command leaves has its comparisons.
    every = [
        Trial(protocol, task, margin, seed)
        for protocol, task in itertools.product(shown, TASKS)
        for seed, margin in itertools.product(options.seeds, LOSSES.values())
    ]
    wanted = [t for t in every if t.protocol == shown[options.paper] and t.task in options.tasks]

    def told(trial, result):
        found = result["figures"] or {"diverged": True}
        return f"{trial.file(Path()).stem}: {', '.join(f'{key} {value:.4f}' for key, value in found.items())}"

    try:
        digits = load(options.data)
        made = functools.partial(made_by, data=checksums(digits))
        kept(every, options.out, made)
    except (ValueError, OtherRunError) as error:
        parser.error(str(error))
    if not options.only_table:
        measure_all(
            wanted,
            options.out,
            lambda t: measure(t, digits),
            made_by=made,
            program=lambda t: (t.protocol, t.task),
            told=told,
        )
    results = kept(every, options.out, made)
    text = "\n".join(line for protocol in shown for line in tables(protocol, results, options.seeds))
    options.table.parent.mkdir(parents=True, exist_ok=True)
    options.table.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
