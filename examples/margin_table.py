"""Measures margin against margin: the same network, pictures and number of steps, one row for each loss.

    python examples/margin_table.py --out margin_runs --table margins.md

Trains each loss of `CHOSEN` on each fold of the Olivetti faces with each seed, so that every person is verified once
for each seed, and writes the mean over the runs beside raw pixels. One JSON file is kept for each run; a run whose
file is there is not repeated, so the command can be stopped and given again. A file of other settings is refused.

    python examples/margin_table.py --out margin_runs --choose

Every loss got the same number of tries (`CANDIDATES`, six each; plain and modified softmax have nothing to choose).
The choice was made on another division of the people into folds (every fourth person, not ten in a row) and with a seed
(100) that the table does not use: the smallest mean equal error rate over the four folds. The people are those of the
table, for there are only forty; a bias that remains is shared by the losses that have hyper-parameters. Network,
augmentation and learning rate are the same for all; they were settled on that division, too, with ArcFace.
"""

import argparse
import itertools
import statistics
import sys
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from face_data import FOLDS, Choice, load_faces
from face_embedding import evaluate
from face_recipes import SMALL
from face_training import Run
from face_verification import raw_pixels
from faces.olivetti import UnavailableError, olivetti_faces
from faces.pictures import ArrayPictures
from measured_runs import OtherRunError, in_file_name, measure_all, places, surroundings

# The blend falls to 20 within 5 steps, to 5 within 20; A-Softmax's authors leave 5 to the end, too. Blends that go on
# towards 0 were tried first, with fewer features (L- and A-Softmax so had a second round): equal error 0.11 to 0.19.
_BLEND = "blend=blend_schedule(base=1000, gamma=10, minimum={})"
CANDIDATES = {
    "plain softmax": ["plain()"],
    "modified softmax": ["modified_softmax()"],
    "L-Softmax": [f"l_softmax(margin={m}, {_BLEND.format(least)})" for m in (2, 3, 4) for least in (5, 20)],
    "A-Softmax": [f"a_softmax(margin={m}, {_BLEND.format(least)})" for m in (2, 3, 4) for least in (5, 20)],
    "AM-Softmax": [f"am_softmax(margin={m}, scale={s})" for m in (0.15, 0.3) for s in (10, 16, 24)],
    "ArcFace": [f"arcface(margin={m}, scale={s})" for m in (0.2, 0.4) for s in (10, 16, 24)],
}
CHOSEN = {
    "plain softmax": "plain()",
    "modified softmax": "modified_softmax()",
    "L-Softmax": f"l_softmax(margin=2, {_BLEND.format(20)})",
    "A-Softmax": f"a_softmax(margin=2, {_BLEND.format(5)})",
    "AM-Softmax": "am_softmax(margin=0.15, scale=16)",
    "ArcFace": "arcface(margin=0.2, scale=16)",
}
SEEDS = 0, 1, 2
CHOICE_SEED = 100
METRICS = {"eer": "EER", "tar_at_far_1e2": "TAR@FAR=1e-2", "tar_at_far_1e3": "TAR@FAR=1e-3", "accuracy": "accuracy"}
COMPARED = {"eer": 4, "tar_at_far_1e2": 3}
"""Of which the table has each loss's less plain softmax's, and with how many digits."""
COMPARISON = "{} less plain softmax's"


class Trial(NamedTuple):
    """One run: what makes its result, and nothing else."""

    margin: str
    fold: int
    seed: int
    steps: int
    interleaved: bool = False

    def file(self, folder: Path) -> Path:
        division = "interleaved" if self.interleaved else "blocks"
        return folder / f"{in_file_name(self.margin)}-{division}-fold{self.fold}-seed{self.seed}-steps{self.steps}.json"


def measure(trial: Trial) -> dict[str, Any]:
    started = time.perf_counter()
    faces = load_faces("olivetti", Choice(trial.fold, interleaved=trial.interleaved))
    run = Run(faces.training, SMALL, trial.margin, "blockwise", trial.seed)
    for _ in range(trial.steps):
        run.advance()
    after = evaluate(run, faces)
    return {
        **trial._asdict(),
        **surroundings(),
        "raw_pixels": raw_pixels(faces.validation[0]).figures()._asdict(),
        "after_training": {**after.figures._asdict(), "training_accuracy": after.training_accuracy},
        "last_loss": float(run.losses[-1]),
        "seconds": time.perf_counter() - started,
    }


def made_by(pictures: ArrayPictures) -> dict[str, Any]:
    """What a result depends on besides its trial."""
    return {"pictures": zlib.crc32(pictures.array.tobytes()), "folds": FOLDS, "recipe": SMALL.record()}


def measured(trials: list[Trial], folder: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    def told(trial, result):
        return f"{trial.margin} fold {trial.fold} seed {trial.seed}: EER {result['after_training']['eer']:.3f}"

    return measure_all(
        trials,
        folder,
        measure,
        made_by=lambda trial: record,
        program=lambda trial: trial.margin.partition("(")[0],
        told=told,
    )


def choose(folder: Path, steps: int, record: dict[str, Any]) -> None:
    """Prints the mean equal error rate of every candidate, the best of each loss first."""
    candidates = itertools.product(itertools.chain(*CANDIDATES.values()), range(FOLDS))
    trials = [Trial(margin, fold, CHOICE_SEED, steps, interleaved=True) for margin, fold in candidates]
    results = measured(trials, folder, record)
    for name, margins in CANDIDATES.items():
        means = {m: statistics.mean(r["after_training"]["eer"] for r in results if r["margin"] == m) for m in margins}
        print(f"\n{name}")
        for margin, mean in sorted(means.items(), key=lambda item: item[1]):
            print(f"  EER {mean:.4f}  {margin}")


def table(results: dict[str, list[dict[str, Any]]], steps: int) -> str:
    """Markdown: for each metric the mean over folds and seeds, and how far runs and seeds lie apart."""
    first = next(iter(results.values()))
    where = places(itertools.chain(*results.values()))
    raw = [
        row(
            "raw pixels",
            [{**result, "measured": result["raw_pixels"]} for result in first if result["seed"] == SEEDS[0]],
        )
    ]
    trained = [
        row(
            f"{name}: `{of_loss[0]['margin']}`",
            [{**result, "measured": result["after_training"]} for result in of_loss],
        )
        for name, of_loss in results.items()
    ]
    return "\n".join(
        [
            f"Verification of people never trained on: Olivetti faces, {FOLDS} folds of ten people, {len(SEEDS)}",
            f"seeds, {steps} steps of {SMALL.batch} pictures. Means over folds and seeds; in brackets the standard",
            "deviation over these runs, then that over the seeds of the mean over the folds. Last, EER and TAR less",
            "those of plain softmax on the same fold with the same seed, with their standard errors.",
            "",
            f"| {' | '.join(['loss', *METRICS.values(), *(COMPARISON.format(METRICS[name]) for name in COMPARED)])} |",
            "| --- " * (1 + len(METRICS) + len(COMPARED)) + "|",
            *(f"{line} {'| ' * len(COMPARED)}".rstrip() for line in raw),
            *(f"{line} {less} |" for line, less in zip(trained, differences(list(results.values())), strict=True)),
            "",
            f"Made by `python examples/margin_table.py --steps {steps}` on {where}.",
            "",
        ]
    )


def differences(results: list[list[dict[str, Any]]]) -> list[str]:
    """Mean and standard error of each loss's rates less the first one's, run by run; two cells."""
    lines = [""] * len(results)
    for metric, digits in COMPARED.items():
        of_run = [{(r["fold"], r["seed"]): r["after_training"][metric] for r in of_loss} for of_loss in results]
        for i, rates in enumerate(of_run[1:], start=1):
            less = [rates[run] - of_run[0][run] for run in rates]
            error = statistics.stdev(less) / len(less) ** 0.5
            lines[i] += f"{' | ' * bool(lines[i])}{statistics.mean(less):+.{digits}f} ± {error:.{digits}f}"
    return ["|", *lines[1:]]


def row(name: str, results: list[dict[str, Any]]) -> str:
    cells = [spread({(r["fold"], r["seed"]): r["measured"][metric] for r in results}) for metric in METRICS]
    return f"| {name} | {' | '.join(cells)} |"


def spread(values: dict[tuple[int, int], float]) -> str:
    """Mean (deviation over all runs; deviation over seeds of the mean over folds) of (fold, seed) -> value."""
    seeds = {seed for _, seed in values}
    means = [statistics.mean(value for (_, seed), value in values.items() if seed == one) for one in seeds]
    deviations = [statistics.stdev(numbers) for numbers in (list(values.values()), means) if len(numbers) > 1]
    return f"{statistics.mean(values.values()):.3f} ({'; '.join(f'{deviation:.3f}' for deviation in deviations)})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("margin_runs"), help="one file a run (default: %(default)s)")
    parser.add_argument("--table", type=Path, default=Path("margins.md"), help="Markdown file (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=SMALL.steps(300), help="training steps of each run (default: %(default)s)"
    )
    parser.add_argument("--choose", action="store_true", help="compare hyper-parameters instead of making the table")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"argument --steps: expected at least 1, came {options.steps}")
    try:
        record = made_by(olivetti_faces())
    except UnavailableError as reason:
        parser.error(f"the Olivetti faces cannot be had: {reason}")
    trials = {
        name: [Trial(margin, fold, seed, options.steps) for fold in range(FOLDS) for seed in SEEDS]
        for name, margin in CHOSEN.items()
    }
    try:
        if options.choose:
            choose(options.out, options.steps, record)
            return 0
        results = iter(measured(list(itertools.chain(*trials.values())), options.out, record))
    except OtherRunError as error:
        parser.error(str(error))
    by_loss = {name: list(itertools.islice(results, len(of_loss))) for name, of_loss in trials.items()}
    options.table.write_text(table(by_loss, options.steps))
    print(options.table.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
