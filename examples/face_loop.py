"""The loop around the steps of a training: its log, its checkpoints, what ends it early, and how it goes on."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

import many_processes
from face_training import Progress, Run
from face_verification import Validation
from faces.pictures import BadFileError
from interruption import Interruption
from training_checkpoints import Checkpoints

MOST_UNTOLD, MOST_UNKEPT = 100, 1000  # steps


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
        with clock.stopped():
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
                with clock.stopped():
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
    """Before it is kept: nothing could be made of it again. Waits for the step."""
    if run.losses and not np.isfinite(float(run.losses[-1])):
        raise SystemExit(f"The loss is {run.losses[-1]} at step {run.step}: try a smaller scale or margin.")


class Clock:
    """Steps per second, from the end of the first step on: compiling it is not counted, nor what it is stopped for."""

    def __init__(self, step: int):
        self.first_step, self.started = step + 1, None

    def start(self, told: Progress) -> None:
        if self.started is None:
            jax.block_until_ready(told)
            self.started = time.perf_counter()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Entered where no step is under way, or the rest of that would not be counted either."""
        since = time.perf_counter()
        yield
        if self.started is not None:
            self.started += time.perf_counter() - since

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
