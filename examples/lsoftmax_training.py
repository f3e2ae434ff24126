"""Networks and schedules of L-Softmax's table of MNIST, the paper's own and reduced ones, and one training step."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import margin_softmax as ms

MSRA = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
LEARNING_RATE = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
# Of the authors' code for MNIST; whether the paper's table was made with it is not known.
ANNEALING = {"base": 1000.0, "gamma": 2.5e-5, "power": 35.0, "minimum": 0.0}
PAPER_STEPS = 18_000
EMBEDDED_AT_ONCE = 1000


class Convolution(nnx.Module):
    """3 x 3, then batch normalisation, which has the bias, then PReLU."""

    def __init__(self, width_in: int, width: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(width_in, width, (3, 3), use_bias=False, kernel_init=MSRA, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.rectify = nnx.PReLU(0.25)

    def __call__(self, x: Array) -> Array:
        return self.rectify(self.norm(self.conv(x)))


class PaperTrunk(nnx.Module):
    """Ten convolutions of 64 channels; the last nine in threes, each followed by the maxima of 2 x 2 pixels."""

    def __init__(self, height: int, width: int, *, rngs: nnx.Rngs):
        self.convolutions = nnx.List(Convolution(64 if i else 1, 64, rngs=rngs) for i in range(10))
        # As in Caffe, what is left over at a border is a window, too: of 28 pixels there remain 14, 7 and 4.
        self.numbers = -(-height // 8) * -(-width // 8) * 64

    def __call__(self, tones: Array) -> Array:
        x = tones[..., None]
        for i, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if i and i % 3 == 0:
                x = nnx.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        return x.reshape(len(x), -1)


class ReducedTrunk(nnx.Module):
    """Of LeNet's size: three convolutions, and none at the full resolution, where they are slow on CPUs."""

    def __init__(self, height: int, width: int, *, rngs: nnx.Rngs):
        self.stem = Convolution(4, 32, rngs=rngs)
        self.widen = Convolution(32, 64, rngs=rngs)
        self.last = Convolution(64, 64, rngs=rngs)
        self.numbers = (height // 4) * (width // 4) * 64

    def __call__(self, tones: Array) -> Array:
        x = self.stem(squares(tones))
        count, height, width, channels = x.shape
        x = x.reshape(count, height // 2, 2, width // 2, 2, channels).mean((2, 4))
        return self.last(self.widen(x)).reshape(count, -1)


def squares(tones: Array) -> Array:
    """Each 2 x 2 pixels as four channels: [B, H, W] -> [B, H / 2, W / 2, 4]."""
    count, height, width = tones.shape
    x = tones.reshape(count, height // 2, 2, width // 2, 2)
    return x.transpose(0, 1, 3, 2, 4).reshape(count, height // 2, width // 2, 4)


class Network(nnx.Module):
    """Pictures [B, H, W] of bytes -> features [B, D]; `classes` [C, D] is one weight row per class, without a bias."""

    def __init__(self, trunk: Callable[..., Any], height: int, width: int, features: int, classes: int, rngs: nnx.Rngs):
        self.trunk = trunk(height, width, rngs=rngs)
        self.linear = nnx.Linear(self.trunk.numbers, features, use_bias=False, kernel_init=MSRA, rngs=rngs)
        self.norm = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
        self.rectify = nnx.PReLU(0.25)
        self.classes = nnx.Param(jax.random.normal(rngs.params(), (classes, features)) * (2 / features) ** 0.5)

    def __call__(self, pictures: Array) -> Array:
        tones = (pictures.astype(jnp.float32) - 127.5) / 127.5
        return self.rectify(self.norm(self.linear(self.trunk(tones))))


class Protocol(NamedTuple):
    """How a network is trained; learning rate and annealing follow the paper's schedule in proportion to `steps`."""

    name: str
    trunk: type[nnx.Module]
    features: int
    batch: int
    steps: int


PAPER = Protocol("paper", PaperTrunk, 256, 256, PAPER_STEPS)
# 3.7 million multiplications a picture, three times as many with the derivatives: 17 TFLOP a run.
REDUCED = Protocol("reduced", ReducedTrunk, 256, 256, 3000)
BUNDLED = Protocol("bundled", ReducedTrunk, 64, 128, 600)


def margin_at(margin: Array | float, step: Array | int, steps: int) -> ms.Margin:
    """L-Softmax with the blend of this step; m = 1 is softmax, whatever the blend."""
    annealing = ANNEALING | {"gamma": ANNEALING["gamma"] * PAPER_STEPS / steps}
    return ms.l_softmax(margin, blend=ms.blend_schedule(**annealing)(step))


def learning_rate(steps: int) -> optax.Schedule:
    """0.1, a tenth of it after two thirds of the steps, and a hundredth after five sixths."""
    return optax.piecewise_constant_schedule(LEARNING_RATE, {steps * 2 // 3: 0.1, steps * 5 // 6: 0.1})


@functools.cache  # equal optimisers must be one object, or each run would compile its own step
def optimiser(steps: int) -> optax.GradientTransformation:
    """SGD with momentum; weight decay for what has rows, so not for normalisations and slopes."""

    def with_rows(parameters):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, parameters)

    decay = optax.add_decayed_weights(WEIGHT_DECAY, mask=with_rows)
    return optax.chain(decay, optax.sgd(learning_rate(steps), momentum=MOMENTUM))


def batches(count: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Indices `[batch]` without end: all examples in an order of their own, then all again in another."""
    random = np.random.default_rng(seed)
    waiting = np.empty(0, np.int32)
    while True:
        while len(waiting) < batch:
            waiting = np.concatenate([waiting, random.permutation(count).astype(np.int32)])
        chosen, waiting = waiting[:batch], waiting[batch:]
        yield chosen


@functools.partial(nnx.jit, static_argnames=("protocol", "height", "width", "classes"))
def start(key: Array, *, protocol: Protocol, height: int, width: int, classes: int) -> tuple[Network, nnx.Optimizer]:
    model = Network(protocol.trunk, height, width, protocol.features, classes, nnx.Rngs(key))
    return model, nnx.Optimizer(model, optimiser(protocol.steps), wrt=nnx.Param)


@functools.partial(nnx.jit, static_argnames=("steps",))
def train_step(model, optimizer, pictures, labels, chosen, margin, step, *, steps) -> Array:
    """One program for all losses: m and the step are numbers that come in."""

    def mean_loss(model):
        annealed = margin_at(margin, step, steps)
        return ms.margin_loss(model(pictures[chosen]), model.classes[...], labels[chosen], annealed).mean()

    loss, gradients = nnx.value_and_grad(mean_loss)(model)
    optimizer.update(model, gradients)
    return loss


def train(
    protocol: Protocol, pictures: np.ndarray, labels: np.ndarray, margin: int, seed: int, tick: Callable[[], object]
) -> tuple[Network, list[float]]:
    """A trained network and its losses. The first weights and the batches depend on the seed and on no margin."""
    _, height, width = pictures.shape
    classes = int(labels.max()) + 1
    model, optimizer = start(jax.random.key(seed), protocol=protocol, height=height, width=width, classes=classes)
    order = batches(len(labels), protocol.batch, seed)
    on_device, answers, losses = jnp.asarray(pictures), jnp.asarray(labels), []
    for step in range(protocol.steps):
        at = next(order), jnp.float32(margin), step
        losses.append(train_step(model, optimizer, on_device, answers, *at, steps=protocol.steps))
        tick()
    model.eval()
    return model, np.asarray(jnp.stack(losses)).tolist()


@nnx.jit
def _embed(model, pictures):
    return model(pictures)


def embed(model: Network, pictures: np.ndarray) -> np.ndarray:
    """Features [N, D] of a trained network."""
    parts = range(0, len(pictures), EMBEDDED_AT_ONCE)
    return np.concatenate([_embed(model, jnp.asarray(pictures[at : at + EMBEDDED_AT_ONCE])) for at in parts])
