"""What a margin carries from step to step and what it learns, beside the network: only what its text asks for.

As with the statistics of batch normalisation, a training step moves it on, evaluation does not, and a checkpoint of
the model holds it.
"""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import margin_softmax as ms
from margin_expression import Known, Later, margin_at, margin_names

MADE_UP_FEATURES = 8
MADE_UP = Known(num_classes=6, batch=4, counts=np.arange(1, 7))
# A schedule may start within the bounds of a margin and leave them; all of them are at their ends by the last of these.
TRIED_STEPS = 0, 10**9

STARTS = {
    "update_curricularface": lambda known, width: jnp.float32(0.0),
    "update_adaface": lambda known, width: ms.AdaFaceState(*map(jnp.float32, ms.AdaFaceState())),
    "update_adacos": lambda known, width: jnp.float32(ms.adacos(known.num_classes).scale),
    "update_kappaface": lambda known, width: jnp.zeros((known.counts.sum(), width)),
    "kappaface_margins": lambda known, width: jnp.zeros(known.num_classes),
}


class Batch(NamedTuple):
    """What a training step shows a margin.

    Attributes:
      features: [B, D].
      weights: [C, D].
      labels: [B].
      examples: which pictures of the training set, [B].
      all_labels: of the training set, [N].
      step: from 0 on.
      key: of this step, for margins alone.
      head: where the loss runs.
    """

    features: Array
    weights: Array
    labels: Array
    examples: Array
    all_labels: Array
    step: int | Array
    key: Array
    head: ms.Head


class Carried(nnx.Variable):
    """Follows training; has no gradient."""


class MarginState(nnx.Module):
    """The state of one margin over features `[B, width]`; empty for most."""

    def __init__(self, margin: ms.Margin | Later, known: Known, width: int):
        calls = list(margin.calls()) if isinstance(margin, Later) else []
        names = [call.name for call in calls]
        for name in names:
            if name in STARTS and names.count(name) > 1:
                raise ValueError(f"{name!r} is asked for {names.count(name)} times: a margin carries one of a kind")
        self.carried = nnx.Dict({name: Carried(STARTS[name](known, width)) for name in names if name in STARTS})
        self.learned = nnx.Dict({name: nnx.Param(start) for call in calls for name, start in _learned(call, known)})

    def complete(self, value: Any, batch: Batch) -> Any:
        """What stands for `value` once the batch is there. State that it uses moves on."""
        if not isinstance(value, Later):
            return value
        arguments = {name: self.complete(argument, batch) for name, argument in value.arguments.items()}
        if value.name in margin_names():
            return getattr(ms, value.name)(**arguments)
        if value.name in self.learned:
            return self.learned[value.name][...]
        if value.name not in STARTS:
            return _of_step(value.name, arguments, batch)
        carried = self.carried[value.name]
        carried.set_value(_moved(value.name, carried.get_value(), arguments, batch))
        return carried.get_value()

    def penalty(self) -> Array | float:
        """What the loss gains."""
        return ms.adaptive_face_regularizer(self.learned["margins"][...]) if "margins" in self.learned else 0.0

    def bound(self) -> None:
        """To be called after each step of the optimiser, which knows no bounds."""
        if "margins" in self.learned:
            self.learned["margins"][...] = jnp.clip(self.learned["margins"][...], 0.0, 1.0)


def trial(text: str, known: Known = MADE_UP) -> ms.Margin:
    """The margin of `text` for a made-up batch. Raises ValueError, saying what is wrong, where there is none."""
    at = margin_at(text, known)
    try:
        margin, _ = (
            MarginState(at(step), known, MADE_UP_FEATURES).complete(at(step), made_up_batch(known))
            for step in TRIED_STEPS
        )
    except TypeError as error:
        raise ValueError(str(error)) from error
    if not isinstance(margin, ms.Margin):
        raise ValueError(f"{text!r} is not a margin")
    return margin


def made_up_batch(known: Known) -> Batch:
    random = np.random.default_rng(0)
    return Batch(
        features=jnp.asarray(random.normal(size=(known.batch, MADE_UP_FEATURES)), jnp.float32),
        weights=jnp.asarray(random.normal(size=(known.num_classes, MADE_UP_FEATURES)), jnp.float32),
        labels=jnp.arange(known.batch) % known.num_classes,
        examples=jnp.arange(known.batch),
        all_labels=jnp.repeat(jnp.arange(known.num_classes), known.counts),
        step=0,
        key=jax.random.key(0),
        head=ms.blockwise(),
    )


def _learned(call: Later, known: Known):
    """(name, start) of the numbers that a call leaves to the optimiser."""
    waiting = {argument.name for argument in call.arguments.values() if isinstance(argument, Later)}
    if "margins" in waiting:
        yield "margins", jnp.zeros(known.num_classes)
    if "bias" in waiting:
        start = getattr(ms, f"{call.name}_bias")
        names = inspect.signature(start).parameters
        alike = {n: value for n, value in call.arguments.items() if n in names and not isinstance(value, Later)}
        yield "bias", jnp.float32(start(known.num_classes, **alike))


def _of_step(name: str, arguments: dict[str, Any], batch: Batch) -> Any:
    """What a batch supplies by itself."""
    features, weights = jax.lax.stop_gradient((batch.features, batch.weights))
    match name:
        case "key" | "labels":
            return getattr(batch, name)
        case "looked_up":
            return arguments["table"][batch.labels]
        case "observe":
            own = ms.observe(features, weights, batch.labels, ms.normface(1.0), head=batch.head)
            return getattr(own, arguments["attribute"])
        case "cifp_threshold":
            return ms.cifp_threshold(features, weights, batch.labels, head=batch.head, **arguments)
    raise ValueError(f"{name!r} is nothing that a batch supplies")


def _moved(name: str, old: Any, arguments: dict[str, Any], batch: Batch) -> Any:
    """The next value of what is carried under the name of a function."""
    features, weights = jax.lax.stop_gradient((batch.features, batch.weights))
    match name:
        case "update_adaface":
            return ms.update_adaface(old, features, **arguments)
        case "update_kappaface":
            return ms.update_kappaface(old, features, batch.examples, **arguments)
        case "kappaface_margins":
            epoch = -(-len(batch.all_labels) // len(batch.labels))
            renewed: dict[str, Any] = {**arguments, "labels": batch.all_labels}
            return jax.lax.cond(batch.step % epoch == 0, lambda: ms.kappaface_margins(**renewed), lambda: old)
    update = {"update_curricularface": ms.update_curricularface, "update_adacos": ms.update_adacos}[name]
    return update(old, features, weights, batch.labels, head=batch.head, **arguments)
