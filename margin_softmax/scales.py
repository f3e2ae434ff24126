"""The scale s of normalised losses: how large it must be for a number of classes."""

import math

from margin_softmax import _checks
from margin_softmax.margins import Margin, normface


def suggest_scale(num_classes: int, probability: float = 0.9) -> float:
    """The scale that a normalised loss needs: the smallest at which an example can reach a probability at all.

        s = (C - 1) / C log((C - 1) p / (1 - p))

    With cosines the logits lie between -s and s. Even with the classes as far apart as they can be and every feature
    on its own class weight, p cannot exceed the value that this solves for, and the loss not fall below -log p
    (NormFace, proposition 2). A margin asks for more, and so does an angle that is not 0: with the other classes at
    right angles p is reached at log((C - 1) p / (1 - p)) / t, where t is the own logit at that angle for a scale of 1;
    the papers' 30 and 64 are two to five times the s of their number of classes.

    Args:
      num_classes: C >= 2.
      probability: p of the own class that shall be within reach, between 0 and 1.

    Returns:
      s, a Python float; above 0 as long as p is above 1 / C.

    Raises:
      ValueError: an argument is out of range.

    References:
      Wang et al., NormFace: L2 Hypersphere Embedding for Face Verification, ACM MM 2017.

    Example:
      >>> [round(ms.suggest_scale(c, 0.99), 1) for c in (10, 1000, 100_000)]
      [6.1, 11.5, 16.1]
    """
    _checks.static_number("num_classes", num_classes, at_least=2, whole=True)
    _checks.static_number("probability", probability, above=1.0 / num_classes)
    if not probability < 1.0:
        raise ValueError(f"probability: expected a number below 1, came {probability!r}. No scale reaches 1.")
    others = num_classes - 1
    return others / num_classes * math.log(others * probability / (1.0 - probability))


def adacos(num_classes: int) -> Margin:
    """AdaCos with its fixed scale: normalised softmax whose s follows from the number of classes.

        z_j = s cos(theta_j),   s = sqrt(2) log(C - 1)

    The dynamic variant is `ms.normface(scale)` with a scale that `ms.update_adacos` carries on in training, from this
    margin's own `scale` at first.

    Args:
      num_classes: C >= 3.

    Returns:
      A `Margin`.

    Raises:
      ValueError: `num_classes` is below 3, where s would not be positive.

    References:
      Zhang, Zhao, Qiao, Wang, Li, AdaCos: Adaptively Scaling Cosine Logits for Effectively Learning Deep Face
      Representations, CVPR 2019.

    Example:
      >>> round(ms.adacos(10_572).scale, 2)
      13.1
    """
    _checks.static_number("num_classes", num_classes, at_least=3, whole=True)
    return normface(math.sqrt(2.0) * math.log(num_classes - 1))
