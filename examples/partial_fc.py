"""Partial FC at work: 20,000 rendered people, of whose class rows each step sees a tenth, or all.

    python examples/partial_fc.py --out partial_fc_runs --table partial_fc.md

Trains with each arm and seed, verifies 200 people whom no training saw, and writes how good, how fast and how large
each arm is. Every picture is new: a step draws the people of its batch once more, and no data set is kept. One JSON
file is kept for each run; a run whose file is there is not repeated, so the command can be stopped and given again. A
file of other settings is refused.

The arms of one seed have the same people, the same network to start from, and the same batches.
"""

import argparse
import functools
import itertools
import operator
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

import margin_softmax as ms
from face_training import embed
from face_verification import Figures, Scores
from measured_runs import OtherRunError, Seeds, measure_all, places, surroundings
from partial_fc_training import (
    BATCH,
    CLASS_LEARNING_RATE,
    FEATURES,
    LEARNING_RATE,
    MARGIN,
    SCALE,
    SIDE,
    WEIGHT_DECAY,
    Run,
    Trial,
    class_step,
)
from rendered_faces import drawn_people, portraits

IDENTITIES = 20_000
STEPS = 600
UNSEEN_PEOPLE, UNSEEN_PICTURES = 200, 5
REPETITIONS = 30


class Arm(NamedTuple):
    """What is compared; see `Trial`."""

    rate: float
    momentum: float
    corrected: bool = False

    def __str__(self):
        rows = "all rows" if self.rate == 1 else f"{100 * self.rate:g} % of the rows"
        return f"{rows}, momentum {self.momentum:g}{', corrected' if self.corrected else ''}"


ARMS = Arm(1.0, 0.9), Arm(0.1, 0.9), Arm(1.0, 0.0), Arm(0.1, 0.0), Arm(0.1, 0.0, corrected=True)


def unseen(seed: int) -> tuple[jax.Array, np.ndarray]:
    """Pictures of people who are in no training, and who they are."""
    people_key, picture_key, grain_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), 3)
    labels = np.repeat(np.arange(UNSEEN_PEOPLE), UNSEEN_PICTURES)
    return portraits(drawn_people(people_key, UNSEEN_PEOPLE)[:, labels], picture_key, grain_key, SIDE)[
        ..., None
    ], labels


def figures(features: jax.Array, labels: np.ndarray) -> Figures:
    pairs, same = ms.verification.all_pairs(labels)
    return Scores(np.asarray(ms.verification.pair_cosines(features, pairs)), same).figures()


def measure(trial: Trial) -> dict[str, Any]:
    started = time.perf_counter()
    pictures, labels = unseen(trial.seed)
    raw = figures(pictures.reshape(len(labels), -1), labels)
    run, seconds, losses = Run(trial), [], []
    for _ in tqdm(range(trial.steps), unit="step", leave=False, dynamic_ncols=True):
        before = time.perf_counter()
        losses.append(float(run.advance()))
        seconds.append(time.perf_counter() - before)
    return {
        **trial._asdict(),
        **surroundings(),
        "raw_pixels": raw._asdict(),
        "after_training": figures(embed(run.model, pictures)[0], labels)._asdict(),
        "losses": losses,
        "seconds_per_step": statistics.median(seconds),
        "temporary_bytes": temporary_bytes(run.step),
        "class_part": class_part(run),
        "seconds": time.perf_counter() - started,
    }


def made_by(trial: Trial) -> dict[str, Any]:
    """What a result depends on besides its trial: the settings that this file and the one beside it have now."""
    return {
        "side": SIDE,
        "features": FEATURES,
        "batch": BATCH,
        "loss": [MARGIN, SCALE],
        "learning_rates": [LEARNING_RATE, CLASS_LEARNING_RATE],
        "weight_decay": WEIGHT_DECAY,
        "unseen": [UNSEEN_PEOPLE, UNSEEN_PICTURES],
        "repetitions": REPETITIONS,
    }


def class_part(run: Run) -> dict[str, float]:
    """Time and memory of what in a step depends on the number of classes, alone."""
    classes, moments = run.training.classes, run.training.class_moments
    features_key, label_key = jax.random.split(run.key)
    features = jax.random.normal(features_key, (BATCH, FEATURES))
    labels = jax.random.randint(label_key, (BATCH,), 0, run.trial.identities)
    step = jax.jit(class_step, static_argnames="trial", donate_argnames=("classes", "moments"))
    step = step.lower(classes, moments, features, labels, run.key, trial=run.trial).compile()
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves((classes, moments)))
    seconds = []
    for _ in range(REPETITIONS):
        before = time.perf_counter()
        _, _, classes, moments = jax.block_until_ready(step(classes, moments, features, labels, run.key))
        seconds.append(time.perf_counter() - before)
    run.training = run.training._replace(classes=classes, class_moments=moments)
    return {"seconds": min(seconds), "temporary_bytes": temporary_bytes(step), "kept_bytes": kept}


def temporary_bytes(step: Any) -> int:
    return step.memory_analysis().temp_size_in_bytes


def table(results: dict[Arm, list[dict[str, Any]]]) -> str:
    """Markdown: verification, its difference to the arm with all rows, time and memory."""
    of_first = next(iter(results.values()))
    first = of_first[0]
    return "\n".join(
        [
            f"{first['identities']:,} people, {first['steps']} steps of {BATCH} pictures, seeds "
            f"{', '.join(map(str, of_all(of_first, 'seed')))}; ArcFace with margin {MARGIN:g} and scale {SCALE:g}.",
            "",
            "| class rows in a step | EER, unseen people | of raw pixels' | EER less that of all rows | step | "
            "class part alone | its temporary memory |",
            "| --- " * 7 + "|",
            f"| raw pixels | {spread(of_all(of_first, 'raw_pixels', 'eer'))} | 1 | | | | |",
            *(
                row(arm, of_arm, results.get(arm._replace(rate=1.0, corrected=False)))
                for arm, of_arm in results.items()
            ),
            "",
            f"Made by `python examples/partial_fc.py` on {places(itertools.chain(*results.values()))}.",
            "",
        ]
    )


def row(arm: Arm, results: list[dict[str, Any]], all_rows: list[dict[str, Any]] | None) -> str:
    def fastest(*path):  # of the seeds: whatever else the machine does, it makes nothing faster
        return 1e3 * min(of_all(results, *path))

    eers, raw = of_all(results, "after_training", "eer"), of_all(results, "raw_pixels", "eer")
    difference = ""
    if arm.rate != 1 and all_rows is not None:
        less = [one - other for one, other in zip(eers, of_all(all_rows, "after_training", "eer"), strict=True)]
        difference = f"{statistics.mean(less):+.4f} ± {deviation(less) / len(less) ** 0.5:.4f}"
    cells = [
        str(arm),
        spread(eers),
        f"{statistics.mean(eer / of_raw for eer, of_raw in zip(eers, raw, strict=True)):.2f}",
        difference,
        f"{fastest('seconds_per_step'):.0f} ms",
        f"{fastest('class_part', 'seconds'):.1f} ms",
        f"{results[0]['class_part']['temporary_bytes'] / 2**20:.1f} MiB",
    ]
    return f"| {' | '.join(cells)} |"


def of_all(results: list[dict[str, Any]], *path: str) -> list[Any]:
    return [functools.reduce(operator.getitem, path, result) for result in results]


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ({deviation(values):.4f})"


def deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out, written = Path("partial_fc_runs"), Path("partial_fc.md")
    parser.add_argument("--out", type=Path, default=out, help="one file a run (default: %(default)s)")
    parser.add_argument("--table", type=Path, default=written, help="Markdown file (default: %(default)s)")
    parser.add_argument("--identities", type=int, default=IDENTITIES, help="people to train on (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", action=Seeds, default=[0, 1, 2], help="(default: 0 1 2)")
    arms = range(1, len(ARMS) + 1)
    parser.add_argument("--arms", type=int, choices=arms, default=len(ARMS), help="the first so many (default: all)")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"argument --steps: expected at least 1, came {options.steps}")
    fewest = round(BATCH / min(arm.rate for arm in ARMS))
    if options.identities < fewest:
        parser.error(f"argument --identities: expected at least {fewest}, so that a batch fits into a sample")
    trials = {
        arm: [Trial(*arm, seed, options.identities, options.steps) for seed in options.seeds]
        for arm in ARMS[: options.arms]
    }

    def told(trial, result):
        return f"{Arm(*trial[:3])}, seed {trial.seed}: EER {result['after_training']['eer']:.4f}"

    every = list(itertools.chain(*trials.values()))
    try:
        results = iter(
            measure_all(every, options.out, measure, made_by=made_by, program=lambda trial: trial[:3], told=told)
        )
    except OtherRunError as error:
        parser.error(str(error))
    by_arm = {arm: list(itertools.islice(results, len(of_arm))) for arm, of_arm in trials.items()}
    options.table.write_text(table(by_arm))
    print(options.table.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
