"""Labeled Faces in the Wild without outside data: six losses on the development split, and ten folds for one of them.

    python examples/lfw_table.py --lfw lfw.npz --out lfw_runs --table lfw.md
    python examples/lfw_table.py --lfw lfw.npz --out lfw_runs --table ten.md --folds "am_softmax(margin=0.1, scale=16)"

The archive is made from the public pictures by `python -m faces.convert_lfw`, in the folder of the examples.

On the development split (LFW's View 1) a network is trained on the development people, a threshold is picked on the
2,200 training pairs, and the accuracy is that of the 1,000 test pairs of other people; three seeds. With --folds the
same is done ten times (View 2, "unrestricted, labelled outside data: none"): trained on the people of nine folds,
threshold from their pairs, accuracy on the tenth's.

Features are means over a face, its mirror image, and both a little nearer and farther. A score is the cosine of two of
them, told in standard deviations from the mean cosine of each to the training people (`ms.verification.as_norm` with
all of them). The threshold is the one that the part FALSE_ACCEPTS of the training impostors pass. The one that suits
the training pairs best would be too high, because training draws together the genuine pairs among them; impostors
score alike, known or not.

Thresholds alone are picked on training pairs. Everything else was chosen by looking at the test pairs of the
development split, which View 1 is there for: network, augmentation, length of training, scale and margin, ZOOMS, the
normalisation of scores, FALSE_ACCEPTS. So the development numbers are optimistic by that choice. View 2 shares people
and pictures with View 1, and so its numbers are not free of it either.

One JSON file is kept for each run; a run whose file is there is not repeated, so the command can be stopped and given
again. A file of another archive or other settings is refused. With --part 1/3, 2/3 and 3/3 three machines share the
runs, and without it their files, put together, are tabled.
"""

import argparse
import functools
import hashlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import margin_softmax as ms
from face_augmentation import Change, move
from face_network import FaceNetwork
from face_recipes import RESIDUAL
from face_training import Run, embed
from face_verification import Scores, scores_of
from faces.lfw import Lfw, Split, read_lfw
from faces.pictures import BadFileError
from margin_state import trial
from measured_runs import OtherRunError, Seeds, in_file_name, measure_all, places, surroundings

# As in `margin_table`: a blend that falls within the first epochs and then stays.
_BLEND = "blend=blend_schedule(base=1000, gamma=10, minimum={})"
LOSSES = {
    "plain softmax": "plain()",
    "modified softmax": "modified_softmax()",
    "L-Softmax": f"l_softmax(margin=2, {_BLEND.format(20)})",
    "A-Softmax": f"a_softmax(margin=2, {_BLEND.format(5)})",
    "AM-Softmax": "am_softmax(margin=0.1, scale=16)",
    "ArcFace": "arcface(margin=0.1, scale=16)",
}
SEEDS = 0, 1, 2
FOLDS = 10
ZOOMS = 0.93, 1.0, 1.07
FALSE_ACCEPTS = 0.1
THRESHOLD = f"threshold: {100 * FALSE_ACCEPTS:g} % of the training impostors"
COLUMNS = {
    ("normalised", "accuracy"): f"accuracy, {THRESHOLD}",
    ("cosine", "accuracy"): f"of plain cosines, {THRESHOLD}",
    ("normalised", "accuracy_training_pairs"): "at the training pairs' best threshold",
    ("normalised", "accuracy_test_pairs"): "at the test pairs' own best threshold",
    ("normalised", "eer"): "EER of the test pairs",
    ("normalised", "auc"): "AUC of the test pairs",
}
ALIKE = "device", "versions"


class Trial(NamedTuple):
    """One run: what makes its result, and nothing else. `fold` is None on the development split."""

    margin: str
    seed: int
    fold: int | None = None

    def file(self, folder: Path) -> Path:
        split = "development" if self.fold is None else f"fold{self.fold}"
        return folder / f"{in_file_name(self.margin)}-{split}-seed{self.seed}.json"


def made_by(lfw: Path) -> dict[str, Any]:
    """What a result depends on besides its trial."""
    return {
        "archive": hashlib.sha256(lfw.read_bytes()).hexdigest(),
        "recipe": RESIDUAL.record(),
        "zooms": ZOOMS,
        "false_accepts": FALSE_ACCEPTS,
    }


def measure(trial: Trial, archive: Lfw) -> dict[str, Any]:
    started = time.perf_counter()
    split = archive.development() if trial.fold is None else archive.fold(trial.fold)
    pictures = split.train
    run = Run(pictures, RESIDUAL, trial.margin, "blockwise", trial.seed)
    steps = RESIDUAL.steps(len(pictures))
    for _ in tqdm(range(steps), unit="step", leave=False, dynamic_ncols=True):
        told = run.advance()
    last_loss = float(told.loss)
    trained = time.perf_counter()
    return {
        **trial._asdict(),
        **surroundings(),
        "people": len(pictures.names),
        "pictures": len(pictures),
        "steps": steps,
        "epochs": round(steps * run.batch / len(pictures)),
        "last_loss": last_loss,
        "raw_pixels": measured(as_they_are, split),
        "after_training": measured(functools.partial(features_of, run.model), split),
        "seconds_training": trained - started,
        "seconds": time.perf_counter() - started,
    }


def as_they_are(faces: np.ndarray) -> jax.Array:
    return jnp.asarray(faces.reshape(len(faces), -1), jnp.float32)


def features_of(model: FaceNetwork, faces: np.ndarray) -> jax.Array:
    tones = as_they_are(faces).reshape(faces.shape) / 255
    return sum(directions(embed(model, zoomed(tones, zoom))[0]) for zoom in ZOOMS)  # pyright: ignore[reportReturnType]


def directions(rows: jax.Array) -> jax.Array:
    return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)


@jax.jit
def zoomed(tones: jax.Array, by: float) -> jax.Array:
    """[N, H, W, channels] -> the same, of which `by` as much is seen in each direction."""
    still = Change(*(0.0 for _ in Change._fields))._replace(mirror=1.0, scale_down=by, scale_across=by)
    return jax.vmap(functools.partial(move, still))(tones)


def measured(embedding: Callable[[np.ndarray], jax.Array], split: Split) -> dict[str, dict[str, float]]:
    """Of both kinds of scores: accuracy on the test pairs at thresholds picked on the training pairs, and the rest."""
    training, known, tested = split
    faces = directions(embedding(training.array))
    people = jax.ops.segment_sum(faces, jnp.asarray(training.labels), num_segments=len(training.names))
    features = [embedding(pairs.pictures) for pairs in (known, tested)]
    cosines = [scores_of(of_pairs, pairs) for of_pairs, pairs in zip(features, (known, tested), strict=True)]
    normalised = [
        Scores(np.asarray(ms.verification.as_norm(of_pairs, pairs.pairs, people, top=len(people))), pairs.same)
        for of_pairs, pairs in zip(features, (known, tested), strict=True)
    ]
    return {"cosine": figures(*cosines), "normalised": figures(*normalised)}


def figures(known: Scores, tested: Scores) -> dict[str, float]:
    threshold = float(ms.verification.threshold_at_far(*known, FALSE_ACCEPTS))
    best = ms.verification.best_accuracy(*known).threshold

    def accuracy(threshold: float) -> float:
        return float(np.mean((tested.scores >= threshold) == tested.same))

    return {
        "accuracy": accuracy(threshold),
        "threshold": threshold,
        "accuracy_training_pairs": accuracy(best),
        "accuracy_test_pairs": ms.verification.best_accuracy(*tested).accuracy,
        "eer": ms.verification.eer(*tested),
        "auc": ms.verification.auc(*tested),
    }


def table(results: dict[str, list[dict[str, Any]]], archive: Lfw) -> str:
    """Markdown: a row for each loss, mean over the runs with their standard deviation."""
    first = next(iter(results.values()))[0]
    raw = row("raw pixels", [{**first, "after_training": first["raw_pixels"]}])
    plain = {result["seed"]: accuracy_of(result) for result in next(iter(results.values()))}
    lines = [f"{raw} | | |"]
    for place, (name, of_loss) in enumerate(results.items()):
        minutes = statistics.median(result["seconds"] for result in of_loss) / 60
        less = [accuracy_of(result) - plain[result["seed"]] for result in of_loss]
        margin, less_plain = of_loss[0]["margin"], spread(less) if place else ""
        lines.append(f"{row(f'{name}: `{margin}`', of_loss)} | {less_plain} | {minutes:.1f} |")
    head = ["loss", *COLUMNS.values(), "accuracy less plain softmax's", "minutes"]
    every = list(itertools.chain(*results.values()))
    return "\n".join(
        [
            f"Development split: {first['people']:,} people with two or more pictures, {first['pictures']:,} pictures,",
            f"{first['steps']:,} steps of {RESIDUAL.batch}; {len(plain)} seeds. Mean and standard deviation over the",
            f"seeds. {of_choices_and_chance(every, archive)}",
            "",
            f"| {' | '.join(head)} |",
            "| --- " * len(head) + "|",
            *lines,
            "",
            made_on(every),
        ]
    )


def of_choices_and_chance(results: list[dict[str, Any]], archive: Lfw) -> str:
    """What the deviation over the seeds leaves out: how often the test pairs were looked at, and how few they are."""
    pairs = len(archive.development().test_pairs.same)
    accuracy = statistics.mean(accuracy_of(result) for result in results)
    error = (accuracy * (1 - accuracy) / pairs) ** 0.5
    return (
        "Network, augmentation, length of training, scale and margin, zooms, normalisation and the part of impostors "
        "that pass were chosen by looking at these very test pairs, so the numbers are optimistic by that choice. Of "
        f"{pairs:,} pairs an accuracy of {accuracy:.3f} has a standard error of {error:.3f}, which the deviation over "
        "the seeds does not show."
    )


def folds_table(margin: str, results: list[dict[str, Any]], archive: Lfw) -> str:
    """Markdown: the ten folds and their mean, with its standard error as LFW's authors ask for it."""
    trained, raw = ([accuracy_of(result, kind) for result in results] for kind in ("after_training", "raw_pixels"))
    lines = [f"| {result['fold']} | {a:.3f} | {b:.3f} |" for result, a, b in zip(results, raw, trained, strict=True)]
    means = " | ".join(f"{statistics.mean(v):.4f} ± {statistics.stdev(v) / len(v) ** 0.5:.4f}" for v in (raw, trained))
    head = f"Ten folds, `{margin}`, seed {results[0]['seed']}: accuracy, {THRESHOLD}; last the mean and its standard"
    return "\n".join(
        [
            f"{head} error. {of_shared_people(archive)}",
            "",
            "| fold | raw pixels | after training |",
            "| --- | --- | --- |",
            *lines,
            f"| mean | {means} |",
            "",
            made_on(results),
        ]
    )


def of_shared_people(archive: Lfw) -> str:
    """That the folds are not free of the choices made on the development split, in numbers where the archive has it."""
    said = "View 2 shares people and pictures with View 1, on whose test pairs network, settings and scores were chosen"
    if archive.pairs_dev_test is None or archive.pairs_10folds is None:
        return f"{said}."
    chosen_on, folds = (
        {frozenset(pair) for pair in p.tolist()} for p in (archive.pairs_dev_test, archive.pairs_10folds)
    )
    looked_at, tested = (np.unique(archive.label[p]) for p in (archive.pairs_dev_test, archive.pairs_10folds))
    return (
        f"{said}: of those {len(chosen_on):,} pairs {len(chosen_on & folds):,} are also pairs of the folds, and of "
        f"their {len(looked_at):,} people {len(np.intersect1d(looked_at, tested)):,} are in them."
    )


def row(name: str, results: list[dict[str, Any]]) -> str:
    cells = [spread([r["after_training"][kind][metric] for r in results]) for kind, metric in COLUMNS]
    return f"| {name} | {' | '.join(cells)}"


def accuracy_of(result: dict[str, Any], kind: str = "after_training") -> float:
    return result[kind]["normalised"]["accuracy"]


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f}" + (f" ({statistics.stdev(values):.3f})" if len(values) > 1 else "")


def made_on(results: list[dict[str, Any]]) -> str:
    return f"Made by `python examples/lfw_table.py` on {places(results)}.\n"


def part_of(text: str) -> tuple[int, int]:
    """From "2/3" to (2, 3)."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"expected one like 1/3, 2/3 or 3/3, came {text!r}")
    return int(part), int(parts)


def refuse(archive: Lfw, folds: str | None) -> None:
    """Before hours of training: the archive lacks what is asked for, or the text is no margin."""
    if folds is None:
        archive.development()
        return
    trial(folds)
    if archive.folds != FOLDS:
        raise ValueError(
            f"--folds: expected an archive with {FOLDS} folds, came one with {archive.folds}. Make it anew with the "
            "pairs.txt and people.txt of LFW's authors."
        )
    for fold in range(FOLDS):
        archive.fold(fold)


def options_of(arguments: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lfw", type=Path, required=True, help="the archive")
    parser.add_argument("--out", type=Path, default=Path("lfw_runs"), help="one file a run (default: %(default)s)")
    parser.add_argument("--table", type=Path, default=Path("lfw.md"), help="Markdown file (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", action=Seeds, default=SEEDS, help="(default: 0 1 2)")
    parser.add_argument(
        "--folds", metavar="MARGIN", help="ten folds with this loss and the first seed, and no table of losses"
    )
    parser.add_argument(
        "--part", type=part_of, metavar="K/N", help="make every Nth run, from the Kth on, and no table (default: all)"
    )
    return parser, parser.parse_args(arguments)


def trials_of(options: argparse.Namespace) -> list[Trial]:
    if options.folds:
        trials = [Trial(options.folds, options.seeds[0], fold) for fold in range(FOLDS)]
    else:
        # Seed by seed, so that what a stopped command leaves can be compared.
        trials = [Trial(margin, seed) for seed in options.seeds for margin in LOSSES.values()]
    part, parts = options.part or (1, 1)
    return trials[part - 1 :: parts]


def told(trial: Trial, result: dict[str, Any]) -> str:
    split = "development" if trial.fold is None else f"fold {trial.fold}"
    return f"{trial.margin} {split} seed {trial.seed}: accuracy {accuracy_of(result):.3f}"


def main(arguments: list[str] | None = None) -> int:
    parser, options = options_of(arguments)
    try:
        archive, record = read_lfw(options.lfw), made_by(options.lfw)
        refuse(archive, options.folds)
    except (BadFileError, ValueError) as error:
        parser.error(str(error))
    try:
        results = measure_all(
            trials_of(options),
            options.out,
            lambda trial: measure(trial, archive),
            made_by=lambda trial: record,
            program=lambda trial: trial.margin,
            told=told,
            alike=ALIKE,
        )
    except OtherRunError as error:
        parser.error(str(error))
    if options.part:
        return 0
    if options.folds:
        text = folds_table(options.folds, results, archive)
    else:
        of_loss = {name: [r for r in results if r["margin"] == margin] for name, margin in LOSSES.items()}
        text = table(of_loss, archive)
    options.table.parent.mkdir(parents=True, exist_ok=True)
    options.table.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
