"""One of several processes that save and restore class weights split over all devices; see test_processes.py."""

import itertools
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental import multihost_utils

import many_processes
import margin_softmax as ms
from many_devices import AXIS, all_devices, keep_in_place, lay_out
from table import examples
from training_checkpoints import Checkpoints

CLASSES, D = 24, 5
MANY_CLASSES = 2**20
"""So many that saving them takes its time."""


class Model(nnx.Module):
    def __init__(self, seed, classes=CLASSES):
        random = np.random.default_rng(seed)
        self.classes = nnx.Param(random.normal(size=(classes, D)).astype(np.float32))
        self.layer = nnx.Param(random.normal(size=(D, D)).astype(np.float32))


def start(mesh, seed, classes=CLASSES):
    """A model and its optimiser on the devices of a mesh."""
    model = Model(seed, classes)
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    lay_out(mesh, model, optimizer)
    return model, optimizer


def advance(mesh, model, optimizer, steps):
    for step in steps:
        x, _, y = examples(8, CLASSES, D, 0.4, dtype=np.float32, seed=step)
        _step(model, optimizer, x, y, mesh=mesh)


@nnx.jit(static_argnames="mesh")
def _step(model, optimizer, x, y, *, mesh):
    def loss(model):
        head = ms.sharded(AXIS, mesh=mesh)
        return ms.margin_loss(x @ model.layer[...], model.classes[...], y, ms.arcface(0.3, 8.0), head=head).mean()

    optimizer.update(model, nnx.grad(loss)(model))
    keep_in_place(mesh, model, optimizer)


def whole(model, optimizer):
    """All that is kept, by name, whole in every process."""
    leaves = jax.tree_util.tree_leaves_with_path((nnx.state(model), nnx.state(optimizer)))
    return {
        jax.tree_util.keystr(path): np.asarray(
            leaf if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True)
        )
        for path, leaf in leaves
    }


def assert_same(ours, theirs):
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], strict=True, err_msg=name)


def restored(folder, mesh):
    """Of the latest step in a folder, put into a model that began otherwise: step, model, optimiser."""
    model, optimizer = start(mesh, seed=99)
    with Checkpoints(folder) as checkpoints:
        step, _ = checkpoints.latest()
        checkpoints.restore(step, model, optimizer)
    return step, model, optimizer


def agree_and_differ(process):
    """One that is told otherwise stops all; one that is interrupted, too; the first alone has read a file."""
    many_processes.agree("steps", 4)
    with pytest.raises(ValueError, match=rf"seed: .* in \[1\] than in 0. Process {process} has {process}"):
        many_processes.agree("seed", process)
    with pytest.raises(ValueError, match=r"pictures: expected the same in all processes, came another in \[1\]"):
        many_processes.agree("pictures", np.full(3, process))
    assert many_processes.any_of(None) is None
    assert many_processes.any_of(15 if process == 1 else None) == 15
    assert many_processes.of_first(lambda: process == 0)


def main(folder: Path, address: str, processes: int, process: int) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_disable_most_optimizations", True)  # as conftest.py has it
    jax.distributed.initialize(address, processes, process, initialization_timeout=60)
    mesh = all_devices()
    assert mesh.size == 2 * processes
    agree_and_differ(process)

    step, model, optimizer = restored(folder / "of one process", mesh)
    assert not model.classes[...].is_fully_addressable
    assert_same(whole(model, optimizer), np.load(folder / "of one process.npz"))

    advance(mesh, model, optimizer, range(step, step + 2))
    with Checkpoints(folder / "of many") as checkpoints:
        checkpoints.save(step + 2, model, optimizer, {})
    kept = whole(model, optimizer)
    if process == 0:
        np.savez(folder / "of many.npz", **kept)
    advance(mesh, model, optimizer, range(step + 2, step + 4))
    _, resumed, its_optimizer = restored(folder / "of many", mesh)
    assert_same(whole(resumed, its_optimizer), kept)
    advance(mesh, resumed, its_optimizer, range(step + 2, step + 4))
    assert_same(whole(resumed, its_optimizer), whole(model, optimizer))

    with Checkpoints(folder / "killed") as checkpoints:
        for seed in itertools.count(1):  # until test_processes.py kills it
            checkpoints.save(seed, *start(mesh, seed, classes=MANY_CLASSES), {"seed": seed})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
