"""Many runs, one file each: what was measured is not measured again, and tables are made from the files.

Beside its figures a file says what they depend on: its trial, and under `made_by` the data and settings. A file that
says otherwise than today's command is refused, not taken for an answer.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
from tqdm import tqdm

import margin_softmax as ms
from whole_files import whole


class _Trial(Hashable, Protocol):
    """One run: what makes its result, and nothing else. A NamedTuple."""

    def file(self, folder: Path) -> Path: ...

    def _asdict(self) -> dict[str, Any]: ...


Trial = TypeVar("Trial", bound=_Trial)
MadeBy = Callable[[Trial], dict[str, Any]]


class OtherRunError(Exception):
    """A file is not of the run that is asked for; the message says which, why, and what to do."""


def measure_all(
    trials: Sequence[Trial],
    folder: Path,
    measure: Callable[[Trial], dict[str, Any]],
    *,
    made_by: MadeBy[Trial],
    program: Callable[[Trial], Hashable],
    told: Callable[[Trial, dict[str, Any]], str],
    alike: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The results of all trials, those already in `folder` as they are there. The bar tells the time left.

    Args:
      trials: the runs, those of one program in a row.
      folder: of the files.
      measure: of a trial, its result; with the trial in it, and with `surroundings` where `alike` asks for them.
      made_by: of a trial, what its result depends on besides it; as JSON has it.
      program: of a trial, what compiled programs depend on.
      told: a line about a result.
      alike: which of the surroundings all results must share.

    Raises:
      OtherRunError: a file is of another run; nothing was measured yet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = kept(trials, folder, made_by)
    missing = [trial for trial in trials if trial not in found]
    refuse_mixture([*found.values(), *([surroundings()] if missing else [])], folder, alike)
    with tqdm(total=len(missing), unit="run", dynamic_ncols=True) as bar:
        for _, same_program in itertools.groupby(missing, key=program):
            for trial in same_program:
                result = {**measure(trial), "made_by": made_by(trial)}
                with whole(trial.file(folder)) as part:
                    part.write_text(json.dumps(result, indent=1) + "\n")
                bar.update()
                bar.write(told(trial, result))
            # Those of the last program would only fill the memory.
            jax.clear_caches()
    results = kept(trials, folder, made_by)
    return [results[trial] for trial in trials]


def kept(trials: Sequence[Trial], folder: Path, made_by: MadeBy[Trial]) -> dict[Trial, dict[str, Any]]:
    """The results of those trials that have a file. Raises `OtherRunError` where one is damaged, or of another run."""
    files = {trial: trial.file(folder) for trial in trials}
    return {trial: _read(file, trial, made_by(trial)) for trial, file in files.items() if file.exists()}


def _read(file: Path, trial: _Trial, made_by: dict[str, Any]) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text())
        was = _leaves({**{name: result[name] for name in trial._asdict()}, "made_by": result["made_by"]})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise OtherRunError(
            f"{file}: expected the JSON of a run, with its trial and what it was made by, came something else. Delete "
            "it, or give another folder by --out."
        ) from None
    wanted = _leaves(json.loads(json.dumps({**trial._asdict(), "made_by": made_by})))
    values = {name: (was.get(name, "nothing"), wanted.get(name, "nothing")) for name in {**wanted, **was}}
    differences = [f"{name} was {then}, is {now}" for name, (then, now) in values.items() if then != now]
    if differences:
        raise OtherRunError(
            f"{file}: expected a run of these data and settings, came one of others ({'; '.join(differences)}). Delete "
            "it, or give another folder by --out."
        )
    return result


def _leaves(record: dict[str, Any], within: str = "") -> dict[str, Any]:
    """What is in objects in objects, each under the names on the way: 'made_by recipe batch'."""
    flat = {}
    for name, value in record.items():
        flat |= _leaves(value, f"{within}{name} ") if isinstance(value, dict) else {f"{within}{name}": value}
    return flat


def refuse_mixture(results: Sequence[dict[str, Any]], folder: Path, alike: Sequence[str]) -> None:
    """Raises `OtherRunError`, or else one table would be made of runs that only lie in one folder."""
    for key in alike:
        found = {str(result[key]) for result in results}
        if len(found) > 1:
            raise OtherRunError(
                f"--out: expected runs that agree on {key}, those still to be made here among them, came "
                f"{' and '.join(sorted(found))} in {folder}. Delete those of one kind, or give another folder."
            )


class Seeds(argparse.Action):
    """Different seeds: of equal ones a deviation would be none. JAX takes 2^32 for 0."""

    def __call__(self, parser, namespace, values, option_string=None):
        seeds: Any = values
        if min(seeds) < 0 or max(seeds) >= 2**32 or len(set(seeds)) < len(seeds):
            raise argparse.ArgumentError(self, f"expected different numbers from 0 to {2**32 - 1}, came {seeds}")
        setattr(namespace, self.dest, seeds)


def in_file_name(text: str) -> str:
    """A margin's text, say, as part of a name: letters, digits, '.' and '=' as they are, anything else as '_'."""
    return "".join(letter if letter.isalnum() or letter in ".=" else "_" for letter in text)


def surroundings() -> dict[str, Any]:
    """Where the numbers were made."""
    packages = "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy"
    device = jax.devices()[0]
    versions = {"python": platform.python_version(), "margin_softmax": ms.__version__}
    versions |= {package: importlib.metadata.version(package) for package in packages}
    return {
        "device": f"{device.platform} ({device.device_kind})",
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cores": cores(),
        "processor": processor(),
        "versions": versions,
    }


def cores() -> int:
    """How many this process may use, where the system tells it; else how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Its name, where the system tells it; else its kind."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def places(results: Iterable[dict[str, Any]]) -> str:
    """Where results were made, in words; each place once."""
    return "; and on ".join(dict.fromkeys(map(_place, results)))


def _place(result: dict[str, Any]) -> str:
    few = f"{result['cores']} core{'' if result['cores'] == 1 else 's'} of {result['processor']}"
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    return f"{result['device']}, {few}, with {versions}"
