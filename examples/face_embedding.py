"""Trains face embeddings with a margin softmax loss, and verifies people whom the training never saw.

    python examples/face_embedding.py
    python examples/face_embedding.py --margin "am_softmax(margin=0.15, scale=16)" --fold 2
    python examples/face_embedding.py --margin "a_softmax(margin=2, blend=blend_schedule(gamma=10))"
    python examples/face_embedding.py --margin "adaface(margin=0.3, scale=16)"
    python examples/face_embedding.py --data rendered --people 400 --steps 2000 --out large
    python examples/face_embedding.py --out large --data rendered --people 400 --steps 4000 --resume
    python examples/face_embedding.py --data lfw:lfw.npz --margin "am_softmax(margin=0.1, scale=16)"
    python examples/face_embedding.py --data rec:faces/train.rec --validate bin:faces/lfw.bin bin:faces/cfp_fp.bin
    srun --ntasks=2 python examples/face_embedding.py --distributed

Runs on whatever device JAX finds. Needs the packages of the `examples` extra.
"""

import argparse
import json
import shlex
import sys
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import exported_embedding
import face_figures
import many_processes
import margin_softmax as ms
from face_data import Choice, Faces, load_faces
from face_loop import Plan, resume, train
from face_options import parse
from face_recipes import RECIPES
from face_training import Run, embed, frozen
from face_verification import Figures, Scores, Validation, raw_pixels, refuse_unfoldable, scores_of
from faces.olivetti import UnavailableError
from faces.pictures import BadFileError, Pictures
from many_devices import UnevenError
from measured_runs import surroundings
from training_checkpoints import Checkpoints

EXAMINED = 2000  # training pictures, at most, that are classified


class Evaluation(NamedTuple):
    """How good the features are.

    Attributes:
      figures: of the first set of pairs.
      scores: behind them.
      training_accuracy: training pictures whose nearest class is their own; no margin is applied. Of a large training
        set it is that of some pictures.
    """

    figures: Figures
    scores: Scores
    training_accuracy: float


def evaluate(run: Run, faces: Faces) -> Evaluation:
    pairs = faces.validation[0]
    features, _ = embed(run.model, pairs.pictures)
    scores = scores_of(features, pairs)
    return Evaluation(scores.figures(), scores, training_accuracy(run, faces.training))


def figures_of_sets(run: Run, faces: Faces, first: Figures) -> dict[str, Figures]:
    """Of every set of pairs by its name; those of the first are known."""
    first_set, *others = faces.validation
    return {first_set.name: first} | {
        pairs.name: scores_of(embed(run.model, pairs.pictures)[0], pairs).figures() for pairs in others
    }


def training_accuracy(run: Run, pictures: Pictures) -> float:
    chosen = np.linspace(0, len(pictures) - 1, min(EXAMINED, len(pictures))).astype(int)
    features, _ = embed(run.model, np.stack([pictures[int(index)] for index in chosen]))
    nearest, _ = ms.nearest_class(features, run.model.classes[...], head=run.head)
    return float(np.mean(np.asarray(nearest) == pictures.labels[chosen]))


def report(name: str, result: Figures, training_accuracy: float | None = None) -> None:
    at_far = (("1e-2", result.tar_at_far_1e2), ("1e-3", result.tar_at_far_1e3))
    tar = "".join(f"   TAR@FAR={far} {tar:.3f}" for far, tar in at_far if tar is not None)
    trained = "" if training_accuracy is None else f"   training accuracy {training_accuracy:.3f}"
    print(f"{name:<16} accuracy {result.accuracy:.3f}   EER {result.eer:.3f}{tar}{trained}")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments, __doc__ or "")
    with many_processes.one_voice():
        try:
            return train_and_verify(options, arguments)
        except BadFileError as error:  # of a picture that is first read to see how good the network is
            raise SystemExit(str(error)) from error


def train_and_verify(options: argparse.Namespace, arguments: list[str] | None) -> int:
    started = time.perf_counter()
    where = surroundings()
    many = f"{where['devices']} devices in {where['processes']} processes, " if options.distributed else ""
    print(f"Running on {where['device']}, {many}JAX {where['versions']['jax']}.")
    faces = faces_of(options)
    seconds = {"data": time.perf_counter() - started}

    run = run_of(options, faces)
    raw, before = raw_pixels(faces.validation[0]), evaluate(run, faces)
    report("raw pixels", raw.figures())
    report("before training", before.figures, before.training_accuracy)

    record: dict[str, Any] = {"configuration": configuration(options, faces), "log": []}
    steps = options.steps or run.recipe.steps(len(faces.training))
    plan = Plan(steps, tuple(map(Validation, faces.validation)), options.validate_every)
    training = time.perf_counter()
    with Checkpoints(options.out / "checkpoints") as checkpoints:
        if options.resume:
            resume(run, plan, checkpoints, record)
        else:
            checkpoints.clear()
        ended_by = train(run, plan, checkpoints, record)
    if ended_by is not None:
        print(f"Interrupted; step {run.step} is kept. To go on: {command_to_resume(arguments)}")
        return 128 + ended_by
    seconds["training"] = time.perf_counter() - training

    after = evaluate(run, faces)
    report("after training", after.figures, after.training_accuracy)
    of_sets = figures_of_sets(run, faces, after.figures)
    if not many_processes.is_first():
        return 0
    seconds["total"] = time.perf_counter() - started
    results = {
        **record,
        "steps": run.step,
        **where,
        "seconds": seconds,
        "raw_pixels": raw.figures()._asdict(),
        "before_training": {**before.figures._asdict(), "training_accuracy": before.training_accuracy},
        "after_training": {**after.figures._asdict(), "training_accuracy": after.training_accuracy},
        "validation": {name: figures._asdict() for name, figures in of_sets.items()},
        **run.history(),
    }
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    if options.export:
        export(options.export, run, faces, after.scores, where)
    draw(options.out, run, faces, {"raw pixels": raw, "before": before.scores, "after": after.scores})
    print(f"{seconds['total']:.0f} s, {seconds['training']:.0f} s of them training. Results and figures: {options.out}")
    return 0


def configuration(options: argparse.Namespace, faces: Faces) -> dict[str, Any]:
    """What a run must share with the one that it goes on from."""
    labels = faces.training.labels
    return {
        **{name: getattr(options, name) for name in ("fold", "seed", "margin", "head", "recipe")},
        "data": faces.source,
        "people": faces.people,
        "pictures": len(labels),
        "labels": zlib.crc32(labels.tobytes()),
        "shape": list(faces.training.shape),
        "validation": [f"{pairs.name}, {len(pairs.same)} pairs" for pairs in faces.validation],
    }


def faces_of(options: argparse.Namespace) -> Faces:
    resized = None if options.resize is None else tuple(options.resize)
    choice = Choice(options.fold, options.people, options.seed, resized=resized, channels=options.channels)
    try:
        faces = load_faces(options.data, choice, options.validate)
        for pairs in faces.validation:
            refuse_unfoldable(pairs)
    except UnavailableError as reason:
        raise SystemExit(f"No Olivetti faces: {reason}. --data rendered needs none.") from reason
    except (BadFileError, ValueError, OSError) as reason:
        raise SystemExit(f"Not started: {reason}") from reason
    print(f"{faces.source}: training on {faces.people:,} people, {len(faces.training):,} pictures.")
    for pairs in faces.validation:
        print(f"Verifying {pairs.name}: {len(pairs.pictures):,} pictures, {len(pairs.same):,} pairs.")
    return faces


def run_of(options: argparse.Namespace, faces: Faces) -> Run:
    """A run that is the same in all processes."""
    try:
        many_processes.agree("command", {name: str(value) for name, value in sorted(vars(options).items())})
        many_processes.agree("people", faces.training.labels)
        many_processes.agree("first picture", faces.training[0])
        return Run(faces.training, RECIPES[options.recipe], options.margin, options.head, options.seed)
    except (ValueError, UnevenError, BadFileError) as reason:
        raise SystemExit(f"Not started: {reason}") from reason


EXPORTED_RATES = 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6
LEAST_ACCEPTED = 10  # false accepts; a threshold that rests on fewer pairs would be chance
CHECKED = 8


def export(path: Path, run: Run, faces: Faces, scores: Scores, where: dict[str, Any]) -> None:
    """Writes the embedding, with thresholds from the first set of pairs."""
    impostors = int(np.sum(~scores.same))
    at = {
        far: float(ms.verification.threshold_at_far(*scores, far))
        for far in EXPORTED_RATES
        if far >= LEAST_ACCEPTED / impostors
    }
    thresholds = {far: cosine for far, cosine in at.items() if np.isfinite(cosine)}
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = faces.validation[0]
    pictures, measured_on = pairs.pictures[:CHECKED], f"{pairs.name}, {impostors:,} impostor pairs"
    try:
        apart = exported_embedding.write(
            path, frozen(run.model.backbone), pictures, thresholds, measured_on=measured_on, **where
        )
    except exported_embedding.DifferentError as error:
        raise SystemExit(str(error)) from error
    print(f"Exported to {path}; a fresh process finds the same features, but for {apart:.0e}.")


def command_to_resume(arguments: list[str] | None) -> str:
    given = sys.argv[1:] if arguments is None else arguments
    return shlex.join(["python", sys.argv[0], *(word for word in given if word != "--resume"), "--resume"])


def draw(out: Path, run: Run, faces: Faces, curves: dict[str, Scores]) -> None:
    face_figures.draw_loss(out / "loss.png", run.losses)
    face_figures.draw_angles(out / "angles.png", run.angles)
    verified = faces.validation[0].name
    face_figures.draw_roc(out / "roc.png", curves, verified)
    face_figures.draw_cosines(out / "cosines.png", curves["after"], verified)
    face_figures.draw_worst(out / "worst.png", faces.validation[0], curves["after"])
    if faces.source == "rendered":
        face_figures.draw_sheet(out / "faces.png", faces.training)


if __name__ == "__main__":
    sys.exit(main())
