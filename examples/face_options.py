"""The options of the face example: what they are, which of them make no sense, and the help."""

import argparse
import textwrap
from pathlib import Path

import many_processes
import margin_softmax as ms
from face_data import FILES, FOLDS, RENDERED_PEOPLE, pack_path, source_of
from face_recipes import RECIPES, recipe_for
from face_training import HEADS
from margin_expression import margin_names
from margin_state import trial

VALIDATE_EVERY = 2000


def parse(arguments: list[str] | None, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
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
    parser.add_argument(
        "--channels", type=int, choices=(1, 3), help="read those of a folder in grey or RGB (default: as the first is)"
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
    for name in ("resize", "channels"):
        if getattr(options, name) is not None and not options.data.startswith("folder:"):
            parser.error(f"argument --{name}: for --data folder:PATH alone; came with {options.data}")
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
  rec:FILE      an InsightFace RecordIO file, or a folder with train.rec; the same
  lfw:FILE      LFW as python -m faces.convert_lfw archives it, or lfw:scikit-learn: trains on its development people,
                verifies its development test pairs
  --validate bin:FILE ...   verification packs as InsightFace has them, or the archives that
                python -m faces.packs makes of them, beside or instead of people left out

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
