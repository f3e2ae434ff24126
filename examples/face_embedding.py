"""Trains face embeddings with a margin softmax loss, and verifies people whom the training never saw.

    python examples/face_embedding.py
    python examples/face_embedding.py --margin "am_softmax(margin=0.15, scale=16)" --fold 2
    python examples/face_embedding.py --margin "a_softmax(margin=2, blend=blend_schedule(gamma=10))"
    python examples/face_embedding.py --margin "adaface(margin=0.3, scale=16)"
    python examples/face_embedding.py --data rendered --people 400 --steps 2000 --out large
    python examples/face_embedding.py --out large --data rendered --people 400 --steps 4000 --resume
    python examples/face_embedding.py --data lfw:lfw.npz --margin "am_softmax(margin=0.2, scale=24)"
    python examples/face_embedding.py --data rec:faces/train.rec --validate bin:faces/lfw.bin bin:faces/cfp_fp.bin
    srun --ntasks=2 python examples/face_embedding.py --distributed

Runs on whatever device JAX finds. Needs the packages of the `examples` extra.
"""

import argparse
import importlib.metadata
import json
import platform
import shlex
import sys
import textwrap
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

import exported_embedding
import face_figures
import many_processes
import margin_softmax as ms
from face_data import FILES, FOLDS, RENDERED_PEOPLE, Choice, Faces, load_faces, pack_path, source_of
from face_recipes import RECIPES, recipe_for
from face_training import HEADS, Progress, Run, embed, frozen
from face_verification import Figures, Scores, Validation, raw_pixels, refuse_unfoldable, scores_of
from faces.olivetti import UnavailableError
from faces.pictures import BadFileError, Pictures
from interruption import Interruption
from many_devices import UnevenError
from margin_expression import margin_names
from margin_state import trial
from training_checkpoints import Checkpoints

VALIDATE_EVERY = 2000
MOST_UNTOLD, MOST_UNKEPT = 100, 1000  # steps
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


def training_accuracy(run: Run, pictures: Pictures) -> float:
    chosen = np.linspace(0, len(pictures) - 1, min(EXAMINED, len(pictures))).astype(int)
    features, _ = embed(run.model, np.stack([pictures[int(index)] for index in chosen]))
    nearest, _ = ms.nearest_class(features, run.model.classes[...], head=run.head)
    return float(np.mean(np.asarray(nearest) == pictures.labels[chosen]))


class Plan(NamedTuple):
    """How long a run is, and what it verifies on the way."""

    steps: int
    validation: tuple[Validation, ...]
    validate_every: int


def train(run: Run, plan: Plan, checkpoints: Checkpoints, record: dict[str, Any]) -> int | None:
    """Trains until `plan.steps`, with a log line each tenth and a checkpoint each quarter, in long runs more.

    Returns the number of the signal that ended it early, or None. In both cases the last step is kept.
    """

    def keep():
        refuse_infinite(run)
        run.losses = [float(loss) for loss in run.losses]
        run.angles = [(float(target), float(other)) for target, other in run.angles]
        highest = [validation.highest for validation in plan.validation]
        checkpoints.save(run.step, run.model, run.optimizer, {**record, **run.history(), "highest": highest})

    def tell(*lines):
        for line in lines:
            tqdm.write(line)
            record["log"].append(line)

    steps = plan.steps
    clock = Clock(run.step)
    ended_by, silent = None, not many_processes.is_first()
    bar = tqdm(total=steps, initial=run.step, unit="step", dynamic_ncols=True, disable=silent)
    with Interruption() as interruption, bar:
        while run.step < steps and ended_by is None:
            bad = fetched(run)
            if many_processes.any_of(1 if bad else None):  # of all processes, or the others would wait for this one
                keep()
                raise SystemExit(f"Step {run.step} is kept. {bad or 'Another process found a bad file.'}") from bad
            told = run.advance()
            bar.update()
            if run.step % max(1, min(steps // 10, MOST_UNTOLD)) == 0 or run.step == steps:
                refuse_infinite(run)
                tell(log_line(run, steps, told, clock))
            clock.start(told)
            if run.step % plan.validate_every == 0 or run.step == steps:
                refuse_infinite(run)
                for validation in plan.validation:
                    tell(*validation.lines(run.model, run.step))
            if run.step % max(1, min(steps // 4, MOST_UNKEPT)) == 0:
                keep()
            ended_by = many_processes.any_of(interruption.signal)
        keep()
    return ended_by


def fetched(run: Run) -> BadFileError | None:
    """What the reading of the next batch ended with."""
    try:
        run.fetch()
    except BadFileError as error:
        return error
    return None


def refuse_infinite(run: Run) -> None:
    """Before it is kept: nothing could be made of it again."""
    if run.losses and not np.isfinite(float(run.losses[-1])):
        raise SystemExit(f"The loss is {run.losses[-1]} at step {run.step}: try a smaller scale or margin.")


class Clock:
    """Steps per second, from the end of the first step on: compiling it is not counted."""

    def __init__(self, step: int):
        self.first_step, self.started = step + 1, None

    def start(self, told: Progress) -> None:
        if self.started is None:
            jax.block_until_ready(told)
            self.started = time.perf_counter()

    def steps_per_second(self, step: int) -> float:
        return (step - self.first_step) / (time.perf_counter() - self.started) if self.started else float("nan")


def log_line(run: Run, steps: int, told: Progress, clock: Clock) -> str:
    step = run.step
    loss, target, other, norm = map(float, told)
    speed = clock.steps_per_second(step)
    left = (steps - step) / speed if speed else float("nan")
    return (
        f"step {step}/{steps}  {run.batch * speed:,.0f} samples/s  loss {loss:.4f}  "
        f"learning rate {run.learning_rate(step - 1):.2e}  target {np.degrees(target):.1f} deg  "
        f"nearest other {np.degrees(other):.1f} deg  norm {norm:.2f}  {left:.0f} s left"
    )


def resume(run: Run, plan: Plan, checkpoints: Checkpoints, record: dict[str, Any]) -> None:
    """Puts the latest sound checkpoint into `run`, `plan` and `record`; refuses one of another configuration."""
    latest = checkpoints.latest()
    if latest is None:
        print(f"No checkpoint to resume from in {checkpoints.folder}: starting at the first step.")
        return
    step, kept = latest
    wanted, found = record["configuration"], kept["configuration"]
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        differences = "; ".join(f"{name} was {found.get(name)!r}, is {wanted[name]!r}" for name in differing)
        raise SystemExit(f"Not resumed: the run in {checkpoints.folder} is another one ({differences}).")
    if step > plan.steps:
        raise SystemExit(f"Not resumed: {step} steps are done in {checkpoints.folder}; --steps asks for {plan.steps}.")
    checkpoints.restore(step, run.model, run.optimizer)
    run.losses, run.angles, record["log"] = kept["losses"], list(map(tuple, kept["angles"])), kept["log"]
    for validation, highest in zip(plan.validation, kept["highest"], strict=True):
        validation.highest = highest
    print(f"Resumed after step {step}.")


def report(name: str, result: Figures, training_accuracy: float | None = None) -> None:
    at_far = (("1e-2", result.tar_at_far_1e2), ("1e-3", result.tar_at_far_1e3))
    tar = "".join(f"   TAR@FAR={far} {tar:.3f}" for far, tar in at_far if tar is not None)
    trained = "" if training_accuracy is None else f"   training accuracy {training_accuracy:.3f}"
    print(f"{name:<16} accuracy {result.accuracy:.3f}   EER {result.eer:.3f}{tar}{trained}")


def surroundings() -> dict[str, Any]:
    """Where the numbers were made."""
    packages = "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy"
    device = jax.devices()[0]
    versions = {"python": platform.python_version(), "margin_softmax": ms.__version__}
    versions |= {package: importlib.metadata.version(package) for package in packages}
    many = {"devices": jax.device_count(), "processes": jax.process_count()}
    return {"device": f"{device.platform} ({device.device_kind})", **many, "versions": versions}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--margin", help="loss with its hyper-parameters (default: that of the recipe)")
    parser.add_argument(
        "--head", choices=HEADS, help="where the loss runs (default: blockwise; sharded with --distributed)"
    )
    parser.add_argument("--distributed", action="store_true", help="be one of several processes of one run; see below")
    parser.add_argument("--data", default="auto", help="pictures; see below (default: auto)")
    parser.add_argument(
        "--resize", type=int, nargs=2, metavar=("H", "W"), help="bring the pictures of a folder to this size"
    )
    parser.add_argument("--validate", nargs="+", default=[], metavar="bin:FILE", help="verification packs")
    parser.add_argument(
        "--validate-every",
        type=int,
        default=VALIDATE_EVERY,
        metavar="STEPS",
        help="and at the end (default: %(default)s)",
    )
    parser.add_argument("--recipe", choices=RECIPES, help="network, batch and schedule; see below (default: by --data)")
    parser.add_argument(
        "--fold", type=int, choices=range(FOLDS), help="quarter of the people to leave out and verify (default: 0)"
    )
    parser.add_argument("--people", type=int, help=f"people to render (default: {RENDERED_PEOPLE})")
    parser.add_argument("--steps", type=int, help="length of the run (default: that of the recipe)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and rendered people (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("face_embedding_run"), help="folder (default: %(default)s)")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the trained embedding, for compare_faces.py")
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint in --out")
    options = parser.parse_args(arguments)
    options.head = options.head or ("sharded" if options.distributed else "blockwise")
    if options.distributed:
        if options.head != "sharded":
            parser.error(f"argument --distributed: expected --head sharded, came {options.head}")
        try:
            many_processes.join()
        except ValueError as error:
            parser.error(f"argument --distributed: {error}")
    refuse(parser, options)
    return options


def refuse(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the program where an argument makes no sense; fills in those that depend on others."""
    for name, check, values in (
        ("data", source_of, [options.data]),
        ("validate", pack_path, options.validate),
        ("margin", trial, [options.margin] if options.margin else []),
    ):
        for value in values:
            try:
                check(value)
            except ValueError as error:
                parser.error(f"argument --{name}: {error}")
    options.recipe = options.recipe or recipe_for(source_of(options.data)[0])
    options.margin = options.margin or RECIPES[options.recipe].margin
    for name in ("steps", "validate_every"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"argument --{name.replace('_', '-')}: expected at least 1")
    if options.resize is not None and not options.data.startswith("folder:"):
        parser.error(f"argument --resize: for --data folder:PATH alone; came with {options.data}")
    if options.people is not None and source_of(options.data)[0] not in ("auto", "rendered"):
        parser.error(f"argument --people: for --data rendered alone; came with {options.data}")
    if options.people is not None and options.people < 2 * FOLDS:
        parser.error(f"argument --people: expected at least {2 * FOLDS}, two for each fold")
    if options.fold is not None and not leaves_out(options):
        parser.error("argument --fold: nobody is left out of LFW, nor of a folder or records beside --validate")
    if not 0 <= options.seed < 2**32:
        parser.error(f"argument --seed: expected a whole number from 0 to {2**32 - 1}, came {options.seed}")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"argument --out: {options.out} is no folder")
    if options.export is not None and options.export.is_dir():
        parser.error(f"argument --export: expected a file, and {options.export} is a folder")
    options.fold, options.people = options.fold or 0, options.people or RENDERED_PEOPLE


def leaves_out(options: argparse.Namespace) -> bool:
    """Whether a quarter of the people is verified; see `face_data.load_faces`."""
    kind, _ = source_of(options.data)
    return kind != "lfw" and not (kind in FILES and options.validate)


KINDS = {
    "margins": "the own class, or a loss of another margin",
    "other_classes": "the other classes too",
    "one_vs_all": "every class by itself",
    "adaptive": "by norm, by chance, or learned by class",
    "scales": "the scale by the number of classes",
}


def margins_by_kind() -> str:
    """A paragraph for each module of the package that has margins."""
    modules = {name: getattr(ms, name).__module__.rpartition(".")[2] for name in margin_names()}
    kinds = {module: [name for name in modules if modules[name] == module] for module in modules.values()}
    lines = (f"{KINDS.get(module, module)}: {', '.join(names)}" for module, names in kinds.items())
    return "\n".join(textwrap.fill(line, 110, initial_indent="  ", subsequent_indent="    ") for line in lines)


def recipe_lines() -> str:
    def size(recipe):
        return "pictures of {} x {}".format(*recipe.size) if recipe.size else "pictures in their size"

    lines = (
        f"  {name:<10} {size(recipe)}, batches of {recipe.batch}, {recipe.margin}" for name, recipe in RECIPES.items()
    )
    return "\n".join(lines)


HELP = f"""
margins:
{margins_by_kind()}

  A name without arguments has its paper's defaults. They are for thousands of classes; with thirty, scales of 10 to 24
  and margins of 0.15 to 0.3 do better. Leave out what training supplies: key, batch and labels, the number of classes
  and their counts, what is learned (bias, margins) and what follows training (t, state, memory, threshold).

  arcface(margin=margin_warmup(0.3, 0, 100), scale=16)          a schedule, also blend_schedule() and annealing()
  am_softmax(margin=ldam_margins(), scale=16)                   by class, also frequency_margins, kappaface_margins
  adaface(margin=0.3, scale=16)                                 its state as update_adaface() has it
  adaface(0.3, 16, state=update_adaface(momentum=0.9))          the same with another momentum
  normface(scale=update_adacos())                               dynamic AdaCos
  elastic_arcface(margin=0.3, scale=16, angle=observe().angle)  ElasticFace-Arc+
  interclass_filter(arcface(margin=0.2, scale=16), 0.6)         a margin of a margin

data:
  olivetti      scikit-learn's Olivetti faces, 40 people with ten pictures each, from its cache or its download
  rendered      faces that the example draws itself, ten pictures for each of --people
  auto          olivetti if there within 20 seconds, otherwise rendered
  folder:PATH   one folder for each person; a quarter of the people is left out and verified, unless --validate is given
  rec:FILE      an InsightFace RecordIO file; the same
  lfw:FILE      LFW as python -m faces.convert_lfw archives it, or lfw:scikit-learn: trains on its development people,
                verifies its development test pairs
  --validate bin:FILE ...   verification packs as InsightFace has them, beside or instead of people left out

recipes:
{recipe_lines()}

many devices:
  --head sharded   all devices that JAX finds share the work: each has a part of the batch and of the class weights
  --distributed    and so do those of other processes, which are given the same command. JAX finds them by itself in
                   Slurm, Open MPI, Kubernetes and on TPUs. Elsewhere MASTER_ADDR, MASTER_PORT, WORLD_SIZE and RANK say
                   where process 0 listens, how many they are and which one it is; JAX_LOCAL_DEVICE_IDS gives each its
                   own GPU. Process 0 prints and writes; --out must be the same folder for all of them.
                   The batch must be divisible by the devices. The result is that of one process, but for rounding.

Ctrl-C keeps a checkpoint; the same command with --resume goes on, to the same bits as a run never interrupted.
--steps may grow. Without --resume, checkpoints of an earlier run in --out are deleted.
--out receives results.json, checkpoints/, and figures of the loss, angles, ROC, cosines and worst errors.
"""


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
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

    configuration = {"data": faces.source, "fold": options.fold, "people": faces.people, "seed": options.seed}
    configuration |= {"margin": options.margin, "head": options.head, "recipe": options.recipe}
    configuration |= {"labels": zlib.crc32(faces.training.labels.tobytes()), "pictures": len(faces.training)}
    configuration |= {"shape": list(faces.training.shape)}
    configuration["validation"] = [f"{pairs.name}, {len(pairs.same)} pairs" for pairs in faces.validation]
    record: dict[str, Any] = {"configuration": configuration, "log": []}
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
        **run.history(),
    }
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    if options.export:
        export(options.export, run, faces, after.scores, where)
    draw(options.out, run, faces, {"raw pixels": raw, "before": before.scores, "after": after.scores})
    print(f"{seconds['total']:.0f} s, {seconds['training']:.0f} s of them training. Results and figures: {options.out}")
    return 0


def faces_of(options: argparse.Namespace) -> Faces:
    resized = None if options.resize is None else tuple(options.resize)
    choice = Choice(options.fold, options.people, options.seed, resized=resized)
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
