"""Many runs, one file each: what was measured is not measured again, and tables are made from the files."""

import importlib.metadata
import itertools
import json
import os
import platform
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
from tqdm import tqdm

import margin_softmax as ms


class _Trial(Protocol):
    """One run: what makes its result, and nothing else."""

    def file(self, folder: Path) -> Path: ...


Trial = TypeVar("Trial", bound=_Trial)


def measure_all(
    trials: Sequence[Trial],
    folder: Path,
    measure: Callable[[Trial], dict[str, Any]],
    *,
    program: Callable[[Trial], Hashable],
    told: Callable[[Trial, dict[str, Any]], str],
) -> list[dict[str, Any]]:
    """The results of all trials, those already in `folder` as they are there. The bar tells the time left."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [trial for trial in trials if not trial.file(folder).exists()]
    with tqdm(total=len(missing), unit="run", dynamic_ncols=True) as bar:
        for _, same_program in itertools.groupby(missing, key=program):
            for trial in same_program:
                result = measure(trial)
                partial = trial.file(folder).with_suffix(".partial")
                partial.write_text(json.dumps(result, indent=1) + "\n")
                os.replace(partial, trial.file(folder))
                bar.update()
                bar.write(told(trial, result))
            # Those of the last program would only fill the memory.
            jax.clear_caches()
    return [json.loads(trial.file(folder).read_text()) for trial in trials]


def surroundings() -> dict[str, Any]:
    """Where the numbers were made."""
    packages = "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy"
    device = jax.devices()[0]
    versions = {"python": platform.python_version(), "margin_softmax": ms.__version__}
    versions |= {package: importlib.metadata.version(package) for package in packages}
    many = {"devices": jax.device_count(), "processes": jax.process_count()}
    return {"device": f"{device.platform} ({device.device_kind})", **many, "versions": versions}
