"""How a margin changes during training: schedules in the sense of optax, step -> value.

A margin is a pytree of numbers, so `ms.a_softmax(4, blend=schedule(step))` inside a compiled step follows its
schedule without recompiling; and since the step is the caller's, a resumed run resumes its schedule.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from margin_softmax import _checks


def blend_schedule(
    base: float = 1000.0, gamma: float = 0.12, power: float = 1.0, minimum: float = 5.0
) -> Callable[[jax.Array | int], jax.Array]:
    """The annealing of L-Softmax and A-Softmax: how much of the plain logit is still blended in.

        lambda(step) = max(minimum, base (1 + gamma step)^-power)

    The authors' constants: A-Softmax on CASIA-WebFace (1000, 0.12, 1, 5), the defaults, at 5 after 1,658 steps of
    256 examples; L-Softmax on MNIST (1000, 2.5e-5, 35, 0) and on CIFAR-10+ (1000, 1e-5, 45, 0). On a shorter run
    raise `gamma` in proportion.

    Args:
      base: lambda at step 0, >= 0.
      gamma: speed of the decay per step, >= 0.
      power: of the decay, >= 0.
      minimum: lambda at which the decay stops, >= 0.

    Returns:
      step -> lambda, for the `blend` of `ms.l_softmax` and `ms.a_softmax`.

    Raises:
      ValueError: a constant is negative or not finite.

    References:
      Liu et al., Large-Margin Softmax Loss for Convolutional Neural Networks, ICML 2016, and the authors' code.
      Liu et al., SphereFace: Deep Hypersphere Embedding for Face Recognition, CVPR 2017, and the authors' code.

    Example:
      >>> schedule = ms.blend_schedule()
      >>> [round(float(schedule(step)), 3) for step in (0, 100, 10_000)]
      [1000.0, 76.923, 5.0]
      >>> margin = ms.a_softmax(4, blend=schedule(100))
    """
    constants = {"base": base, "gamma": gamma, "power": power, "minimum": minimum}
    base, gamma, power, minimum = (_checks.number(name, value, at_least=0.0) for name, value in constants.items())

    def schedule(step):
        # In logarithms: (1 + gamma step)^power overflows float32 long before its reciprocal matters.
        decay = jnp.exp(-power * jnp.log1p(gamma * jnp.asarray(step, dtype=float)))
        return jnp.maximum(base * decay, minimum)

    return schedule


ANNEALINGS = {
    "a_softmax_casia": (1000.0, 0.12, 1.0, 5.0),
    "l_softmax_mnist": (1000.0, 2.5e-5, 35.0, 0.0),
    "l_softmax_cifar10": (1000.0, 1e-5, 45.0, 0.0),
    "sv_softmax": (1000.0, 1e-4, 2.0, 5.0),
}


def annealing(name: str) -> Callable[[jax.Array | int], jax.Array]:
    """A `blend_schedule` with the constants (base, gamma, power, minimum) of a paper's code.

        a_softmax_casia     (1000, 0.12, 1, 5)       SphereFace on CASIA-WebFace, 28,000 steps of 256, m = 4
        l_softmax_mnist     (1000, 2.5e-5, 35, 0)    L-Softmax on MNIST, m = 4
        l_softmax_cifar10   (1000, 1e-5, 45, 0)      L-Softmax on CIFAR-10+, m = 2
        sv_softmax          (1000, 1e-4, 2, 5)       A-Softmax in the code of SV-X-Softmax, m = 4

    Args:
      name: one of these.

    Returns:
      step -> lambda, for the `blend` of `ms.l_softmax` and `ms.a_softmax`.

    Raises:
      ValueError: there is no such annealing.

    References:
      Liu et al., Large-Margin Softmax Loss for Convolutional Neural Networks, ICML 2016, and the authors' code.
      Liu et al., SphereFace: Deep Hypersphere Embedding for Face Recognition, CVPR 2017, and the authors' code.
      Wang et al., Support Vector Guided Softmax Loss for Face Recognition, 2018, and the authors' code.

    Example:
      >>> [round(float(ms.annealing("l_softmax_mnist")(step)), 2) for step in (0, 5_000, 30_000)]
      [1000.0, 16.21, 0.0]
    """
    return blend_schedule(*ANNEALINGS[_checks.one_of("name", name, tuple(ANNEALINGS))])


def margin_warmup(
    final: float, start: int, end: int, *, initial: float = 0.0, kind: str = "linear"
) -> Callable[[jax.Array | int], jax.Array]:
    """A margin, or anything else, that rises from one value to another between two steps.

        value(step) = initial + (final - initial) r(u),   u = (step - start) / (end - start) within [0, 1]

        kind "linear": r(u) = u;   "exponential": r(u) = 1 - 1000^-u, and 1 from the end on: most of it early

    The loss rises with it, as it should. The speaker recipes: 0 to 0.2, exponential, from epoch 20 to 40 of 150;
    large-margin fine-tuning then goes on with 0.5. SphereFace-R without a hard norm: 1 to 1.5.

    Args:
      final: value from `end` on.
      start: step at which it begins to rise.
      end: step at which it arrives, > start.
      initial: value up to `start`.
      kind: "linear" or "exponential".

    Returns:
      step -> value, such as `ms.arcface(schedule(step))`.

    Raises:
      ValueError: an argument is out of range.

    References:
      Wang et al., WeSpeaker: A Research and Production Oriented Speaker Embedding Learning Toolkit, ICASSP 2023.

    Example:
      >>> schedule = ms.margin_warmup(0.5, start=100, end=300)
      >>> [round(float(schedule(step)), 3) for step in (0, 200, 1000)]
      [0.0, 0.25, 0.5]
    """
    for name, value in {"final": final, "initial": initial}.items():
        _checks.static_number(name, value)
    _checks.static_number("start", start, at_least=0)
    _checks.static_number("end", end, above=start)
    _checks.one_of("kind", kind, ("linear", "exponential"))

    def schedule(step):
        u = jnp.clip((jnp.asarray(step, dtype=float) - start) / (end - start), 0.0, 1.0)
        ratio = u if kind == "linear" else jnp.where(u < 1.0, 1.0 - jnp.exp(-math.log(1000.0) * u), 1.0)
        return initial + (final - initial) * ratio

    return schedule
