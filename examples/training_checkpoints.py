"""Checkpoints of a training run: what is kept, how it is found again, and what is done when it is damaged.

Of several processes each writes its share, and all of them call every method here, at the same time. What is kept does
not say how many there were: it is read as the arrays lie into which it is restored.
"""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from many_processes import is_first, of_first, wait_for_all

CHECKSUMS = "checksums.json"


class Checkpoints:
    """The latest checkpoints in a folder: the state of a model and its optimiser, and a record, a JSON object.

    The record holds what the state does not: configuration, curves. Random numbers and the order of the data need no
    place here, being functions of the seed and the step.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        # Written at once, not in the background: a run that is being ended has no later.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self.manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.manager.close()

    def save(self, step: int, model: nnx.Module, optimizer: nnx.Optimizer, record: dict[str, Any]) -> None:
        """Keeps the state after `step` steps; does nothing where that very step is already kept."""
        if step in self.manager.all_steps():
            return
        state = ocp.args.StandardSave(_state(model, optimizer))
        self.manager.save(step, args=ocp.args.Composite(state=state, record=ocp.args.JsonSave(record)))
        if is_first():
            (self._folder_of(step) / CHECKSUMS).write_text(json.dumps(_checksums(self._folder_of(step))))

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """(step, record) of the newest sound checkpoint, or None. Damaged ones are named and set aside."""
        for step in sorted(self.manager.all_steps(), reverse=True):
            if of_first(self._is_sound, step):
                kept = self.manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))
                return step, kept["record"]
            print(f"The checkpoint of step {step} is damaged; trying the one before.")
            self._set_aside(step)
        return None

    def restore(self, step: int, model: nnx.Module, optimizer: nnx.Optimizer) -> None:
        """Puts the state after `step` steps into `model` and `optimizer`."""
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, _state(model, optimizer))
        kept = self.manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted)))
        nnx.update(model, kept["state"]["model"])
        nnx.update(optimizer, kept["state"]["optimizer"])

    def clear(self) -> None:
        """Forgets every checkpoint: a new run begins."""
        for step in self.manager.all_steps():
            self.manager.delete(step)

    def _folder_of(self, step: int) -> Path:
        return self.folder / str(step)

    def _is_sound(self, step: int) -> bool:
        # Asked of the files and not of their reader, which takes a changed byte for a number.
        try:
            return json.loads((self._folder_of(step) / CHECKSUMS).read_text()) == _checksums(self._folder_of(step))
        except (OSError, ValueError):
            return False

    def _set_aside(self, step: int) -> None:
        """Out of the way, so that the run can save this step again when it comes back to it."""
        if is_first():
            aside = self.folder / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            self._folder_of(step).rename(aside)
        wait_for_all(f"step {step} set aside")
        self.manager.reload()


def _state(model: nnx.Module, optimizer: nnx.Optimizer) -> dict[str, Any]:
    return {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}


def _checksums(folder: Path) -> dict[str, int]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != CHECKSUMS)
    return {str(file.relative_to(folder)): zlib.crc32(file.read_bytes()) for file in files}
