"""How a margin changes during training: schedules in the sense of optax, step -> value.

A margin is a pytree of numbers, so `ms.a_softmax(4, blend=schedule(step))` inside a compiled step follows its
schedule without recompiling; and since the step is the caller's, a resumed run resumes its schedule.
"""

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
    for name, value in {"base": base, "gamma": gamma, "power": power, "minimum": minimum}.items():
        _checks.number(name, value, at_least=0.0)

    def schedule(step):
        # In logarithms: (1 + gamma step)^power overflows float32 long before its reciprocal matters.
        decay = jnp.exp(-power * jnp.log1p(gamma * jnp.asarray(step, dtype=float)))
        return jnp.maximum(base * decay, minimum)

    return schedule
