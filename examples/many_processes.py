"""Several processes as one training run: who takes part, whether they agree, and who speaks.

Each process is the same program with the same arguments; they meet at an address, and from then on `jax.devices()` are
those of all of them. What JAX finds out by itself is left to it: Slurm, Open MPI, Kubernetes, TPU. Elsewhere four
variables say it, as other launchers set them, too:

    MASTER_ADDR=localhost MASTER_PORT=29500 WORLD_SIZE=2 RANK=0 python examples/face_embedding.py --distributed
    MASTER_ADDR=localhost MASTER_PORT=29500 WORLD_SIZE=2 RANK=1 python examples/face_embedding.py --distributed
"""

import contextlib
import errno
import json
import os
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

VARIABLES = "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"


class Place(NamedTuple):
    """Of one process among all: where they meet, how many they are, which it is."""

    address: str
    port: int
    processes: int
    process: int


def place_of(environment: Mapping[str, str]) -> Place | None:
    """What the four variables say, or None where there are none of them. Raises ValueError for half of them."""
    given = [name for name in VARIABLES if environment.get(name)]
    missing = [name for name in VARIABLES if name not in given]
    if not given:
        return None
    if missing:
        raise ValueError(
            f"{', '.join(given)} came without {', '.join(missing)}. Set all four, or none of them on a cluster that "
            "JAX knows (Slurm, Open MPI, Kubernetes, TPU)."
        )
    processes = _whole(environment, "WORLD_SIZE", 1, 2**20)
    process = _whole(environment, "RANK", 0, processes - 1)
    return Place(environment["MASTER_ADDR"], _whole(environment, "MASTER_PORT", 1, 2**16 - 1), processes, process)


def _whole(environment: Mapping[str, str], name: str, least: int, most: int) -> int:
    try:
        number = int(environment[name])
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise ValueError(f"{name}: expected a whole number from {least} to {most}, came {environment[name]!r}.")
    return number


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Meets the other processes; to be called before JAX computes anything. Raises ValueError where that cannot be."""
    place = place_of(environment)
    if place is None:
        _join_by_cluster()
        return
    if place.process == 0:
        _refuse_taken(place.port)
        print(f"Waiting for {place.processes} processes at {place.address}:{place.port}.", flush=True)
    jax.distributed.initialize(f"{place.address}:{place.port}", place.processes, place.process)
    # JAX believes process 0, whatever the others were told.
    agree("WORLD_SIZE", place.processes)


def _join_by_cluster() -> None:
    try:
        jax.distributed.initialize()
    except ValueError as error:
        raise ValueError(
            f"JAX finds no cluster here (Slurm, Open MPI, Kubernetes, TPU), and {', '.join(VARIABLES)} are not set. "
            "Set them in every process."
        ) from error


def _refuse_taken(port: int) -> None:
    """Asked beforehand: on a port that is taken JAX ends without a word."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what an earlier run left behind is not in the way
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise ValueError(f"MASTER_PORT: {port} is not free ({error.strerror}). Take another in all.") from error


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def agree(name: str, value: Any) -> None:
    """Refuses, in all processes alike, what is not the same in all of them: any JSON, or an array."""
    if jax.process_count() == 1:
        return
    told = value.tobytes() if isinstance(value, np.ndarray) else json.dumps(value, sort_keys=True).encode()
    sums = multihost_utils.process_allgather(np.uint32(zlib.crc32(told)))
    others = np.flatnonzero(sums != sums[0]).tolist()
    if others:
        came = "" if isinstance(value, np.ndarray) else f" Process {jax.process_index()} has {value!r}."
        raise ValueError(f"{name}: expected the same in all processes, came another in {others} than in 0.{came}")


def any_of(number: int | None) -> int | None:
    """The largest number that a process has, if one has any: what interrupts one interrupts all, at the same step."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number or 0)).max()) or None


def of_first(question: Callable[..., bool], *arguments: Any) -> bool:
    """What process 0 finds, for all: of files that it alone has read."""
    answer = question(*arguments) if is_first() else False
    return answer if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.bool_(answer)))


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """What other processes than the first print goes nowhere; their errors are still told."""
    with contextlib.ExitStack() as stack:
        if not is_first():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        yield


def wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
