"""What the benchmark compares: the package's heads, a fixed baseline, what others offer, and the bare products.

Each candidate computes the same loss (additive margin in the cosine) with its gradients in features and weights; the
peers that have no such margin compute their nearest. What a candidate needs is read from its compiled program, so that
one which does not fit is known before it runs.
"""

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import margin_softmax as ms

SCALE, MARGIN = 64.0, 0.35
RATE = 0.1
EVERYTHING = 2**40


class Shape(NamedTuple):
    """Examples, features, classes."""

    batch: int
    dim: int
    classes: int


class Examples(NamedTuple):
    """Features `[B, D]`, weights `[C, D]`, labels `[B]`."""

    features: jax.Array
    weights: jax.Array
    labels: jax.Array


class Prepared(NamedTuple):
    """A candidate at one shape.

    Attributes:
      run: computes loss and gradients once, and returns when they are there.
      temporary: bytes besides arguments and results; None where nothing tells.
    """

    run: Callable[[], Any]
    temporary: int | None


class MissingError(Exception):
    """A candidate cannot run here; its text says what is not installed."""


class DoesNotFitError(Exception):
    """A candidate needs more memory than there is; its text says how much."""


def examples_of(shape: Shape, dtype: str, seed: int) -> Examples:
    keys = jax.random.split(jax.random.key(seed), 3)
    return Examples(
        jax.random.normal(keys[0], (shape.batch, shape.dim), dtype),
        jax.random.normal(keys[1], (shape.classes, shape.dim), dtype),
        jax.random.randint(keys[2], (shape.batch,), 0, shape.classes),
    )


def memory_limit() -> int:
    """Bytes that a program may use here: of the device where it tells, else of the machine."""
    of_device = jax.devices()[0].memory_stats()
    if of_device and "bytes_limit" in of_device:
        return of_device["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def bare_products(examples: Examples, limit: int) -> Prepared:
    """The floor: x W^T, G W and G^T x, each by itself, without anything between. G is `[B, C]`.

    Where G and the product are too large for memory, as many classes as fit are multiplied, several times.
    """
    x, w, _ = examples
    pieces = -(-4 * len(x) * len(w) * x.dtype.itemsize // limit)
    w = w[: -(-len(w) // pieces)]
    g = jax.random.normal(jax.random.key(1), (len(x), len(w)), x.dtype)
    highest = jax.lax.Precision.HIGHEST
    products = [
        functools.partial(jax.jit(functools.partial(jnp.einsum, equation, precision=highest)), a, b)
        for equation, a, b in (("bd,cd->bc", x, w), ("bc,cd->bd", g, w), ("bc,bd->cd", g, x))
    ]

    def run():
        for _ in range(pieces):
            for product in products:
                jax.block_until_ready(product())

    return Prepared(run, None)


Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def program_of(loss: Loss, examples: Examples) -> Any:
    """Loss and both gradients, compiled for these examples; their shapes are enough."""
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), examples)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes).compile()


def bytes_of(program: Any) -> int:
    """Arguments, results and temporaries."""
    analysis = program.memory_analysis()
    return analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes


def compiled(loss: Loss, examples: Examples, limit: int) -> Prepared:
    program = program_of(loss, examples)
    if bytes_of(program) > limit:
        raise DoesNotFitError(f"{bytes_of(program) / 2**30:.1f} GiB")
    return Prepared(lambda: jax.block_until_ready(program(*examples)), program.memory_analysis().temp_size_in_bytes)


def baseline(x: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    """What people write: all logits, the margin taken off the target, optax's cross-entropy. It stays as it is."""
    unit_x, unit_w = (rows / jnp.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, w))
    logits = SCALE * (unit_x @ unit_w.T).astype(jnp.float32)
    logits = logits.at[jnp.arange(len(y)), y].add(-SCALE * MARGIN, mode="promise_in_bounds")
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def in_head(head: ms.Head) -> Loss:
    def loss(x, w, y):
        return ms.margin_loss(x, w, y, ms.cosface(MARGIN, SCALE), head=head).mean()

    return loss


def sampled(x: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    """Partial FC: a tenth of the classes, drawn in each step, with a dense gradient."""
    num_sampled = min(len(w), max(round(RATE * len(w)), len(y)))
    sample = ms.sample_classes(jax.random.key(2), y, len(w), num_sampled)
    rows = w.at[sample.classes].get(mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True)
    return ms.margin_loss(x, rows, sample.labels, ms.cosface(MARGIN, SCALE)).mean()


def over_devices(examples: Examples, limit: int) -> Prepared:
    """Classes shared by all devices, placed so where their number allows it; the bytes are those of one device."""
    if len(jax.devices()) == 1:
        raise MissingError("there is one device (on CPU, --devices 2 makes two of it)")
    mesh = Mesh(np.array(jax.devices()), ("classes",))
    rows = P() if len(examples.weights) % len(jax.devices()) else P("classes")
    placed = jax.device_put(tuple(examples), tuple(NamedSharding(mesh, spec) for spec in (P(), rows, P())))
    return compiled(in_head(ms.sharded("classes", mesh=mesh)), Examples(*placed), limit)


def tokamax_loss(examples: Examples, limit: int) -> Prepared:
    """Its own choice of kernel, on unit vectors: it has no margin."""
    try:
        # Not `import`: a check of types without the peers would miss them.
        tokamax, flags = (importlib.import_module(name) for name in ("tokamax", "absl.flags"))
    except ImportError:
        raise MissingError("tokamax is not installed") from None
    flags.FLAGS.mark_as_parsed()  # or it takes the command line for its own

    def loss(x, w, y):
        unit_x, unit_w = (rows / jnp.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, w))
        return tokamax.linear_softmax_cross_entropy_loss(SCALE * unit_x, y, unit_w.T, reduction="mean")

    return compiled(loss, examples, limit)


def torch_loss(examples: Examples, limit: int) -> Prepared:
    """pytorch-metric-learning's CosFace on the CPU."""
    try:
        torch = importlib.import_module("torch")
        peer = importlib.import_module("pytorch_metric_learning.losses")
    except ImportError as error:
        raise MissingError(f"{error.name} is not installed") from None
    batch, classes = len(examples.features), len(examples.weights)
    needed = 8 * 4 * batch * classes
    if needed > limit:
        raise DoesNotFitError(f"about {needed / 2**30:.1f} GiB")
    torch.set_num_threads(os.cpu_count() or 1)
    x = torch.tensor(np.asarray(examples.features, np.float32), requires_grad=True)
    y = torch.tensor(np.asarray(examples.labels), dtype=torch.int64)
    module = peer.CosFaceLoss(classes, x.shape[1], margin=MARGIN, scale=int(SCALE))
    module.W.data = torch.tensor(np.asarray(examples.weights, np.float32).T.copy())

    def run():
        x.grad = module.W.grad = None
        loss = module(x, y)
        loss.backward()
        return loss.item(), None

    return Prepared(run, None)


def jax_candidate(loss: Loss) -> Callable[[Examples, int], Prepared]:
    return functools.partial(compiled, loss)


CANDIDATES: dict[str, Callable[[Examples, int], Prepared]] = {
    "baseline": jax_candidate(baseline),
    "dense": jax_candidate(in_head(ms.dense())),
    "blockwise": jax_candidate(in_head(ms.blockwise())),
    "blockwise, 16 MiB": jax_candidate(in_head(ms.blockwise(memory=16 * 2**20))),
    "blockwise, all kept": jax_candidate(in_head(ms.blockwise(memory=EVERYTHING))),
    "blockwise, none kept": jax_candidate(in_head(ms.blockwise(memory=0))),
    "sharded": over_devices,
    "sampled": jax_candidate(sampled),
    "tokamax": tokamax_loss,
    "pytorch-metric-learning": torch_loss,
}
