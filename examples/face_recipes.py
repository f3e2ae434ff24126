"""How a network is trained, by name: what it is, what it sees, for how long and how fast.

The numbers in a recipe's functions are defaults of their arguments, so that the record of a run can tell them.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from face_augmentation import Changes
from face_network import Backbone, ResidualBackbone, Shape, SmallBackbone

Mask = Callable[[Any], Any]


class Recipe(NamedTuple):
    """All but the loss and the pictures.

    Attributes:
      size: `(H, W)` of what the network sees; None for that of the pictures, to multiples of 16.
      backbone: `(H, W, channels)`, D, `rngs` -> what maps pictures to features.
      features: D.
      batch: pictures in a step.
      steps: number of pictures -> length of a run, unless another is asked for.
      learning_rate: that length -> schedule. It does not depend on what is asked for: a run of 2 N steps begins as one
        of N.
      optimiser: schedule, what may be decayed (parameters -> booleans) -> optimiser.
      changes: by which pictures are varied.
      margin: the loss, unless another is asked for. The papers' scales and margins (64 and 0.5 for ArcFace) are for
        10,000 people and more.
    """

    size: tuple[int, int] | None
    backbone: Callable[..., Backbone]
    features: int
    batch: int
    steps: Callable[[int], int]
    learning_rate: Callable[[int], optax.Schedule]
    optimiser: Callable[[optax.Schedule, Mask], optax.GradientTransformation]
    changes: Changes
    margin: str

    def shape(self, pictures: Shape) -> Shape:
        """`(H, W, channels)` of what the network sees of pictures of that shape."""
        height, width = self.size or (max(32, 16 * round(side / 16)) for side in pictures[:2])
        return height, width, pictures[2]

    def record(self) -> dict[str, Any]:
        """All but the loss, as JSON has it: functions by their names, with the numbers in them."""
        fields = {name: value for name, value in self._asdict().items() if name != "margin"}
        told = {name: _told(value) if callable(value) else value for name, value in fields.items()}
        return {**told, "changes": self.changes._asdict()}


def _told(function: Callable[..., Any]) -> dict[str, Any]:
    given = function.keywords if isinstance(function, functools.partial) else {}
    made = function.func if isinstance(function, functools.partial) else function
    # Flax hides the arguments of a module's constructor, but not those of its `__init__`.
    arguments = inspect.signature(made.__init__ if isinstance(made, type) else made).parameters.values()
    numbers = {argument.name: argument.default for argument in arguments if argument.default is not argument.empty}
    return {"name": made.__name__, **numbers, **given}


def _small_steps(pictures: int, *, steps: int = 450) -> int:
    return steps


def _small_learning_rate(steps: int, *, peak: float = 3e-3, warmup: int = 30, end: float = 1.5e-4) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps=warmup, decay_steps=steps, end_value=end)


def _adamw(learning_rate: optax.Schedule, decayed: Mask, *, weight_decay: float = 0.05) -> optax.GradientTransformation:
    return optax.adamw(learning_rate, weight_decay=weight_decay, mask=decayed)


SMALL = Recipe(
    size=(32, 32),
    backbone=SmallBackbone,
    features=128,
    batch=64,
    steps=_small_steps,
    learning_rate=_small_learning_rate,
    optimiser=_adamw,
    changes=Changes(),
    margin="arcface(margin=0.2, scale=16)",
)


def _residual_steps(pictures: int, *, epochs: int = 20, batch: int = 128, least: int = 20) -> int:
    return max(least, epochs * pictures // batch)


def _residual_learning_rate(
    steps: int, *, peak: float = 1.5e-2, warmup_percent: int = 15, end: float = 1.5e-4
) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(0.0, peak, steps * warmup_percent // 100, steps, end_value=end)


def _muon(
    learning_rate: optax.Schedule, decayed: Mask, *, weight_decay: float = 0.05, consistent_rms: float = 0.2
) -> optax.GradientTransformation:
    """Muon for the kernels between the first convolution and the features, Adam for the rest.

    Tried on LFW beside AdamW, with which the loss falls more slowly.
    """

    def dimensions(path, leaf):
        inside = "stem" not in jax.tree_util.keystr(path) and "classes" not in jax.tree_util.keystr(path)
        if leaf.ndim < 2 or not inside:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

    def dimensions_of_all(parameters):
        return jax.tree.map_with_path(dimensions, parameters)

    def optimiser_of_all(parameters):
        return jax.tree.map_with_path(
            lambda path, leaf: "adam" if dimensions(path, leaf) is None else "muon", parameters
        )

    # The root mean square of Adam's steps for both, so that one learning rate suits both.
    muon = optax.contrib.muon(
        learning_rate,
        weight_decay=weight_decay,
        consistent_rms=consistent_rms,
        muon_weight_dimension_numbers=dimensions_of_all,
    )
    adam = optax.adamw(learning_rate, weight_decay=weight_decay, mask=decayed)
    return optax.partition({"muon": muon, "adam": adam}, optimiser_of_all)


# For some thousand people.
RESIDUAL = Recipe(
    size=None,
    backbone=functools.partial(ResidualBackbone, dropout=0.3),
    features=256,
    batch=128,
    steps=_residual_steps,
    learning_rate=_residual_learning_rate,
    optimiser=_muon,
    changes=Changes(
        turn=(-0.16, 0.16),
        scale_down=(0.87, 1.13),
        scale_across=(0.87, 1.13),
        shift_down=(-0.13, 0.13),
        shift_across=(-0.13, 0.13),
        light_down=(-0.4, 0.4),
        light_across=(-0.4, 0.4),
    ),
    margin="am_softmax(margin=0.1, scale=16)",
)
RECIPES = {"small": SMALL, "residual": RESIDUAL}


def recipe_for(source: str) -> str:
    """The recipe that suits a kind of source: see `face_data`."""
    return "small" if source in ("auto", "olivetti", "rendered") else "residual"
