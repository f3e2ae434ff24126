"""Several processes, as on several machines: the sharded loss is that of one device, and checkpoints fit any number."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

import checkpoint_worker
import many_processes
from training_checkpoints import CHECKSUMS, Checkpoints

HERE = pathlib.Path(__file__).parent
SECONDS = 120


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def launched(processes, worker, *arguments):
    """That many processes of a worker, which get an address and their places after the other arguments."""
    paths = map(str, [HERE, HERE.parent, HERE.parent / "examples"])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(HERE / worker), *map(str, arguments), f"localhost:{free_port()}", str(processes)]
    with contextlib.ExitStack() as stack:
        running = []
        for place in range(processes):
            output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            process = subprocess.Popen([*command, str(place)], env=environment, **output)
            running.append(stack.enter_context(process))
            stack.callback(process.kill)  # comes first; what is entered then waits for it
        yield running


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_classes(processes):
    with launched(processes, "process_worker.py") as running:
        said = [process.communicate(timeout=SECONDS)[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes, "\n".join(said)


def mesh_of(devices):
    return jax.make_mesh((devices,), (checkpoint_worker.AXIS,), (AxisType.Auto,), devices=jax.devices()[:devices])


def test_checkpoints_fit_any_number_of_devices_and_processes_and_outlive_a_kill(tmp_path):
    """Saved on 1 x 4, restored on 2 x 2, resumed there to the same bits, restored on 1, 3 and 4; killed in a save."""
    model, optimizer = checkpoint_worker.start(mesh_of(4), seed=0)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # inside optax
        checkpoint_worker.advance(mesh_of(4), model, optimizer, range(3))
    with Checkpoints(tmp_path / "of one process") as checkpoints:
        checkpoints.save(3, model, optimizer, {})
    np.savez(tmp_path / "of one process.npz", **checkpoint_worker.whole(model, optimizer))

    with launched(2, "checkpoint_worker.py", tmp_path) as (first, _):
        stop_in_a_save(first, tmp_path / "killed")
        first.kill()
        said = first.communicate(timeout=SECONDS)[0]
    assert first.returncode == -signal.SIGKILL, said

    for devices in (1, 3, 4):
        step, *state = checkpoint_worker.restored(tmp_path / "of many", mesh_of(devices))
        assert step == 5
        checkpoint_worker.assert_same(checkpoint_worker.whole(*state), np.load(tmp_path / "of many.npz"))
        assert len(state[0].classes[...].sharding.device_set) == devices

    assert unfinished_bytes(tmp_path / "killed") > 2**20
    model, optimizer = checkpoint_worker.start(mesh_of(4), seed=0, classes=checkpoint_worker.MANY_CLASSES)
    with Checkpoints(tmp_path / "killed") as checkpoints:
        step, record = checkpoints.latest()
        checkpoints.restore(step, model, optimizer)
        good = checkpoint_worker.Model(record["seed"], checkpoint_worker.MANY_CLASSES)
        np.testing.assert_array_equal(model.classes[...], good.classes[...])
        checkpoints.save(step + 1, model, optimizer, {})
        assert checkpoints.latest() == (step + 1, {})


def stop_in_a_save(process, folder):
    """Once a step is kept and a megabyte of the next is written, not all; the process may also have ended by itself."""
    for _ in range(SECONDS * 1000):
        if (folder / "1" / CHECKSUMS).exists() and unfinished_bytes(folder) > 2**20:
            process.send_signal(signal.SIGSTOP)
            if unfinished_bytes(folder) > 2**20:
                return
            process.send_signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.001)
            return


def unfinished_bytes(folder):
    """Of a step that is being written; its files come and go."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for file in folder.glob("*.orbax-checkpoint-tmp*/**/*"):
            total += file.stat().st_size
    return total


PLACES = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "WORLD_SIZE": "2", "RANK": "1"}


def test_a_place_among_processes_is_read_from_four_variables():
    assert many_processes.place_of(PLACES) == ("localhost", 29500, 2, 1)
    assert many_processes.place_of({"HOME": "/", "RANK": ""}) is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"RANK": None}, "MASTER_ADDR, MASTER_PORT, WORLD_SIZE came without RANK.*Slurm"),
        ({"MASTER_ADDR": None, "MASTER_PORT": ""}, "WORLD_SIZE, RANK came without MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "2"}, "RANK: expected a whole number from 0 to 1, came '2'"),
        ({"RANK": "-1"}, "RANK: "),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a whole number from 1 .* came 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: "),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT: expected a whole number from 1 to 65535"),
    ],
)
def test_a_place_that_cannot_be_is_refused(changed, words):
    environment = {name: value for name, value in (PLACES | changed).items() if value is not None}
    with pytest.raises(ValueError, match=words):
        many_processes.join(environment)


def test_a_port_that_is_taken_is_named():
    """By anything, also by another run; before JAX hears of it, which would end without a word."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"MASTER_PORT: {port} is not free"):
            many_processes.join(PLACES | {"MASTER_PORT": str(port), "RANK": "0"})


def test_without_a_cluster_and_variables_it_says_what_to_set():
    command = [sys.executable, "-c", "import many_processes; many_processes.join({})"]
    paths = os.environ | {"PYTHONPATH": str(HERE.parent / "examples")}
    ended = subprocess.run(command, env=paths, capture_output=True, text=True, timeout=SECONDS)
    assert "ValueError: JAX finds no cluster here" in ended.stderr
    assert "RANK are not set" in ended.stderr
