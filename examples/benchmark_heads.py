"""Times the heads, with what they need, beside the bare products, a fixed baseline and what others offer.

    python examples/benchmark_heads.py --out benchmark --devices 2

For every shape all candidates run in one process, in another order in each round: machines are noisy, and a ratio of
two times of one round is worth more than either. The table has the medians of these ratios with their quartiles, to
the time of the three products that no head can do without (x W^T, G W, G^T x). One JSON a shape is kept, with all
times, device, versions and load; a shape whose file is there is not measured again. What does not fit into memory is
marked so, and peers that are not installed are named.

    python examples/benchmark_heads.py --training-step 256,64,10000000

Trains that many classes for a few steps (SGD with momentum, weights and momentum donated) and tells the time of a step
and the most memory that the process ever held.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import sys
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from tqdm import tqdm

import margin_softmax as ms
from benchmark_figures import draw_memory, draw_times
from head_candidates import (
    CANDIDATES,
    MARGIN,
    SCALE,
    DoesNotFitError,
    MissingError,
    Prepared,
    Shape,
    bare_products,
    baseline,
    bytes_of,
    examples_of,
    in_head,
    jax_candidate,
    memory_limit,
    program_of,
)
from measured_runs import OtherRunError, cores, measure_all, processor

SHAPES = [Shape(256, 128, classes) for classes in (1_000, 10_000, 100_000, 1_000_000)] + [
    Shape(128, 512, 1_000),
    Shape(512, 256, 10_000),
    Shape(256, 512, 100_000),
    Shape(512, 512, 100_000),
    Shape(128, 128, 1_000_000),
]


class Trial(NamedTuple):
    """One shape, and all candidates at it."""

    shape: Shape
    candidates: tuple[str, ...]
    dtype: str
    repetitions: int
    seed: int
    limit: int

    def file(self, folder: Path) -> Path:
        batch, dim, classes = self.shape
        rest = zlib.crc32(repr((self.candidates, self.repetitions, self.limit)).encode())
        return folder / f"B{batch}-D{dim}-C{classes}-{self.dtype}-seed{self.seed}-{rest:08x}.json"


def surroundings() -> dict[str, Any]:
    return {
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}, {cores()} cores",
        "processor": processor(),
        "python": platform.python_version(),
        "versions": {"jax": jax.__version__, "optax": optax.__version__, "margin_softmax": ms.__version__},
        "load": os.getloadavg(),
    }


def made_by(trial: Trial) -> dict[str, Any]:
    """What the times depend on besides their trial."""
    return {"loss": [MARGIN, SCALE]}


def measure(trial: Trial) -> dict[str, Any]:
    before = surroundings()
    examples = examples_of(trial.shape, trial.dtype, trial.seed)
    prepared, why_not = {"bare products": bare_products(examples, trial.limit // 4)}, {}
    for name in tqdm(trial.candidates, desc=f"{tuple(trial.shape)}: compiling", leave=False, disable=None):
        try:
            prepared[name] = CANDIDATES[name](examples, trial.limit)
        except MissingError as missing:
            why_not[name] = f"not run: {missing}"
        except DoesNotFitError as needed:
            why_not[name] = f"does not fit: needs {needed}"
    times = interleaved(prepared, trial.repetitions, str(tuple(trial.shape)))
    return {
        **trial._asdict(),
        **before,
        "load_after": os.getloadavg(),
        "seconds": times,
        "temporary_bytes": {name: candidate.temporary for name, candidate in prepared.items()},
        "why_not": why_not,
    }


def interleaved(prepared: dict[str, Prepared], repetitions: int, title: str) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after one round that is not counted.

    The order is another one in each round: who comes after one that filled the memory finds it in another state.
    """
    times, order = {name: [] for name in prepared}, random.Random(0)
    for i in tqdm(range(repetitions + 1), desc=f"{title}: measuring", leave=False, disable=None):
        for name in order.sample(list(prepared), len(prepared)):
            started = time.perf_counter()
            prepared[name].run()
            if i:
                times[name].append(time.perf_counter() - started)
    return times


def ratios(result: dict[str, Any], name: str, to: str = "bare products") -> list[float]:
    return [a / b for a, b in zip(result["seconds"][name], result["seconds"][to], strict=True)]


def cell(values: list[float]) -> str:
    """Median, with the quartiles in brackets."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def told(trial: Trial, result: dict[str, Any]) -> str:
    names = [name for name in ("baseline", "blockwise") if name in result["seconds"]]
    times = ", ".join(f"{name} {cell(ratios(result, name))}" for name in names)
    return f"{tuple(trial.shape)}: {times} times the bare products"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: time as multiples of the bare products', and bytes besides arguments and results."""
    told = {name for r in results for name in [*r["seconds"], *(n for n, why in r["why_not"].items() if "fit" in why)]}
    names = [name for name in CANDIDATES if name in told]
    first = results[0]
    versions = ", ".join(f"{package} {version}" for package, version in first["versions"].items())
    absent = sorted({f"{name}: {why}" for r in results for name, why in r["why_not"].items() if "not run" in why})

    def rows(of_candidate):
        for result in results:
            cells = [result["why_not"].get(name) or of_candidate(result, name) for name in names]
            yield f"| {', '.join(f'{n:,}' for n in result['shape'])} | " + " | ".join(cells)

    def temporary(result, name):
        size = result["temporary_bytes"][name]
        return "not known" if size is None else f"{size / 2**20:.0f}"

    head = f"{' | '.join(names)} |"
    return "\n".join(
        [
            f"{first['dtype']}, {first['repetitions']} rounds, on {first['device']} ({first['processor']}), Python",
            f"{first['python']}, {versions}. In brackets the quartiles.",
            "",
            "Time of loss and both gradients, as a multiple of the three bare products' time:",
            "",
            f"| B, D, C | {head} bare products (ms) | blockwise to baseline |",
            "| --- " * (len(names) + 3) + "|",
            *(
                f"{row} | {1e3 * statistics.median(result['seconds']['bare products']):.1f} | {to_baseline(result)} |"
                for row, result in zip(rows(lambda r, n: cell(ratios(r, n))), results, strict=True)
            ),
            "",
            "Temporaries (MiB), from the compiled program:",
            "",
            f"| B, D, C | {head}",
            "| --- " * (len(names) + 1) + "|",
            *(f"{row} |" for row in rows(temporary)),
            "",
            *([f"Not run: {'; '.join(absent)}.", ""] if absent else []),
        ]
    )


def to_baseline(result: dict[str, Any]) -> str:
    both = {"blockwise", "baseline"} <= set(result["seconds"])
    return cell(ratios(result, "blockwise", "baseline")) if both else ""


def training_step(shape: Shape, steps: int) -> dict[str, Any]:
    """Time of a step at `shape`, the process's peak memory, and what all logits at once would need."""
    x, w, y = examples_of(shape, "float32", 0)
    optimiser = optax.sgd(0.1, momentum=0.9)
    gradients = jax.value_and_grad(in_head(ms.blockwise()), argnums=(0, 1))

    def step(w, state, x, y):
        loss, (features_bar, weights_bar) = gradients(x, w, y)
        updates, state = optimiser.update(weights_bar, state)
        return optax.apply_updates(w, updates), state, loss, features_bar

    state = jax.jit(optimiser.init)(w)
    program: Any = jax.jit(step, donate_argnums=(0, 1)).lower(w, state, x, y).compile()
    analysis = program.memory_analysis()
    seconds, losses = [], []
    for _ in tqdm(range(steps + 1), desc=f"{tuple(shape)}: training", disable=None):
        started = time.perf_counter()
        w, state, loss, _ = jax.block_until_ready(program(w, state, x, y))
        seconds.append(time.perf_counter() - started)
        losses.append(float(loss))
    all_logits = program_of(baseline, jax.eval_shape(lambda: examples_of(shape, "float32", 0)))
    return {
        "shape": shape,
        **surroundings(),
        "margin": f"cosface({MARGIN}, scale={SCALE})",
        "seconds": seconds[1:],
        "median_seconds": statistics.median(seconds[1:]),
        "losses": losses,
        "peak_resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "weights_and_momentum_gib": 2 * shape.classes * shape.dim * 4 / 2**30,
        "temporary_gib": analysis.temp_size_in_bytes / 2**30,
        "baseline_would_need_gib": bytes_of(all_logits) / 2**30,
    }


def shape_of(text: str) -> Shape:
    try:
        shape = Shape(*(int(number) for number in text.split(",")))
    except (TypeError, ValueError):
        shape = Shape(0, 0, 0)
    if min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected three whole numbers >= 1 as B,D,C, came {text!r}")
    return shape


def candidate(text: str) -> str:
    if text not in CANDIDATES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(map(repr, CANDIDATES))}, came {text!r}")
    return text


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmark"), help="folder of results (default: %(default)s)")
    shapes = "B,D,C: examples, features, classes; may be repeated (default: nine shapes)"
    parser.add_argument("--shape", type=shape_of, action="append", help=shapes)
    names = f"one of {', '.join(CANDIDATES)}; may be repeated (default: all)"
    parser.add_argument("--candidate", type=candidate, action="append", help=names)
    blocks = "also measure `blockwise` in blocks of this many classes; may be repeated"
    parser.add_argument("--block-size", type=int, action="append", default=[], help=blocks)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of features and weights")
    parser.add_argument("--repetitions", type=int, default=7, help="rounds that count (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of features, weights and labels (default: %(default)s)")
    parser.add_argument("--devices", type=int, help="on CPU: make this many devices of it, for the sharded head")
    limit = "GiB; what needs more is marked as not fitting (default: the device's or the machine's memory)"
    parser.add_argument("--memory-limit", type=float, help=limit)
    parser.add_argument("--training-step", type=shape_of, metavar="B,D,C", help="instead: steps of SGD at one shape")
    options = parser.parse_args(arguments)
    numbers = {"repetitions": options.repetitions, "devices": options.devices or 1}
    for name, number in [*numbers.items(), *(("block-size", size) for size in options.block_size)]:
        if number < 1:
            parser.error(f"--{name}: expected at least 1, came {number}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = options_of(arguments)
    if options.devices:
        jax.config.update("jax_num_cpu_devices", options.devices)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.training_step:
        result = training_step(options.training_step, options.repetitions)
        text = json.dumps(result, indent=1)
        (options.out / "training-step.json").write_text(text + "\n")
        print(text)
        return 0
    limit = int(options.memory_limit * 2**30) if options.memory_limit else memory_limit()
    names = tuple(options.candidate or CANDIDATES)
    for size in options.block_size:
        CANDIDATES[f"blocks of {size:,}"] = jax_candidate(in_head(ms.blockwise(size)))
        names += (f"blocks of {size:,}",)
    trials = [
        Trial(shape, names, options.dtype, options.repetitions, options.seed, limit)
        for shape in options.shape or SHAPES
    ]
    try:
        results = measure_all(trials, options.out, measure, made_by=made_by, program=lambda trial: trial, told=told)
    except OtherRunError as error:
        raise SystemExit(str(error)) from error
    (options.out / "heads.md").write_text(table(results))
    draw_times(options.out / "time.png", results)
    draw_memory(options.out / "memory.png", results)
    print(table(results))
    print(f"Tables and pictures are in {options.out}: heads.md, time.png, memory.png.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
