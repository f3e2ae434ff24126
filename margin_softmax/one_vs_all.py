"""One-against-all losses: every class is its own yes-or-no question, and nothing is divided by a sum over classes.

Their reduction over the other classes is a plain sum of a function of each logit; what differs is that function.
"""

import math

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from margin_softmax import _checks, angles, reductions
from margin_softmax._checks import Numeric
from margin_softmax.margins import Margin, own_product, softmax


def sphereface2(
    bias: Numeric,
    margin: Numeric | None = None,
    scale: Numeric = 40.0,
    *,
    kind: str = "C",
    t: Numeric = 3.0,
    balance: Numeric = 0.7,
) -> Margin:
    """SphereFace2: binary classification of every class, with a margin and a map that spreads similar cosines.

        loss = (lambda / s) softplus(-z_y) + ((1 - lambda) / s) sum_j softplus(z_j),   g(c) = 2 ((c + 1) / 2)^t - 1

        kind "C":  z_y = s (g(cos(theta)) - m) + b,          z_j = s (g(cos(theta_j)) + m) + b
        kind "A":  z_y = s g(cos(min(theta + m, pi))) + b,   z_j = s g(cos(theta_j)) + b
        kind "M":  z_y = s g(cos(min(m theta, pi))) + b,     z_j = s g(cos(theta_j)) + b

    `bias` is learned; start it with `ms.sphereface2_bias`. The authors' code takes the slope of no margin and no `g`,
    `ms.straight_through(ms.sphereface2(b))`, and multiplies by 50 C over a mean of C terms; a speaker toolkit leaves
    out the 1 / s, starts b at 0, and has cos(theta_j - m) for the other classes of kind "A".

    Args:
      bias: b; a number, usually learned.
      margin: m; 0.4 for kind "C" (a cosine, 0 to 2), 0.5 for "A" (radians, 0 to pi), 1.7 for "M" (>= 1) unless given.
      scale: s > 0 (r in the paper); a number or `[B]`, may be traced.
      kind: "C", "A" or "M".
      t: exponent of the map, >= 1; 1 is none.
      balance: lambda, weight of the own class, from 0 to 1.

    Returns:
      A `Margin`.

    Raises:
      ValueError: an argument is out of range (an angle above pi is taken for degrees).

    References:
      Wen, Liu, Weller, Raj, Singh, SphereFace2: Binary Classification is All You Need for Deep Face Recognition,
      ICLR 2022.

    Example:
      >>> x, w, y = jnp.array([[0.6, 0.8]]), jnp.eye(2), jnp.array([1])
      >>> b = ms.sphereface2_bias(2, scale=8.0)
      >>> ms.margin_loss(x, w, y, ms.sphereface2(b, scale=8.0))
      Array([0.4831], dtype=float32)
    """
    margin = _of_kind(kind, margin)
    bias, t = _checks.number("bias", bias), _checks.number("t", t, at_least=1.0)
    balance, scale = _checks.number("balance", balance, at_least=0.0, at_most=1.0), _checks.scale_of(scale)
    target = {"C": _spread_cosine, "A": _spread_sum, "M": _spread_multiple}[kind]
    base = softmax(Partial(target, margin=margin, t=t, bias=bias / scale), scale=scale)
    return base._replace(
        others=Partial(_spread_others, margin=margin if kind == "C" else 0.0, t=t, bias=bias / scale),
        reduction=reductions.sum_of(jax.nn.softplus),
        loss=Partial(_binary_loss, own_weight=balance / scale, others_weight=(1.0 - balance) / scale),
        smoothing=None,
    )


def sphereface2_bias(
    num_classes: int,
    margin: float | None = None,
    scale: float = 40.0,
    *,
    kind: str = "C",
    t: float = 3.0,
    balance: float = 0.7,
) -> float:
    """The bias at which SphereFace2 starts at rest: where all angles are right, its loss does not ask for another b.

        lambda sigmoid(-(a_y + b)) = (1 - lambda) (C - 1) sigmoid(a_j + b),   a the logits of cosine 0 without b

        b = log(2 z) - a_j - log(1 - z + sqrt((1 - z)^2 + 4 z e^{a_y - a_j})),   z = lambda / ((1 - lambda) (C - 1))

    Args:
      num_classes: C >= 2.
      margin: as in `ms.sphereface2`.
      scale: as in `ms.sphereface2`.
      kind: as in `ms.sphereface2`.
      t: as in `ms.sphereface2`.
      balance: as in `ms.sphereface2`, here between 0 and 1.

    Returns:
      b, a Python float.

    Raises:
      ValueError: an argument is out of range.

    References:
      Wen, Liu, Weller, Raj, Singh, SphereFace2: Binary Classification is All You Need for Deep Face Recognition,
      ICLR 2022, and its code.

    Example:
      >>> round(ms.sphereface2_bias(10_000), 4)
      5.6373
    """
    margin = float(_of_kind(kind, margin))
    _checks.static_number("num_classes", num_classes, at_least=2, whole=True)
    for name, value in {"scale": scale, "balance": balance}.items():
        _checks.static_number(name, value, above=0.0)
    _checks.static_number("t", t, at_least=1.0)
    if not balance < 1.0:
        raise ValueError(f"balance: expected a number below 1, came {balance!r}. At 1 the other classes do not count.")
    at_own = {
        "C": 0.0,
        "A": math.cos(min(math.pi / 2 + margin, math.pi)),
        "M": math.cos(min(margin / 2, 1.0) * math.pi),
    }
    shift = margin if kind == "C" else 0.0
    own = scale * (2.0 * ((at_own[kind] + 1.0) / 2.0) ** t - 1.0 - shift)
    other = scale * (2.0 * 0.5**t - 1.0 + shift)
    z = balance / ((1.0 - balance) * (num_classes - 1))
    root = math.sqrt((1.0 - z) ** 2 + 4.0 * z * math.exp(own - other))
    if z > 1.0:  # few classes: the difference below cancels, and this is the same number
        return math.log((z - 1.0 + root) / 2.0) - own
    return math.log(2.0 * z) - other - math.log(1.0 - z + root)


def _of_kind(kind, margin):
    """The margin of this kind, checked; its default where none is given."""
    _checks.one_of("kind", kind, ("C", "A", "M"))
    margin = {"C": 0.4, "A": 0.5, "M": 1.7}[kind] if margin is None else margin
    if kind == "A":
        return _checks.angle_margin("margin", margin)
    if kind == "M":
        return _checks.number("margin", margin, at_least=1.0, hint="It multiplies the angle.")
    return _checks.number("margin", margin, at_least=0.0, at_most=2.0, hint="It is a difference of similarities.")


def _spread(cosine, t):
    # A product of directions may be -1 less a rounding, of which no power is real.
    return 2.0 * jax.nn.relu((cosine + 1.0) / 2.0) ** t - 1.0


def _spread_cosine(own, *, margin, t, bias):
    return _spread(own.product, t) - margin + bias


def _spread_sum(own, *, margin, t, bias):
    return _spread(jnp.cos(jnp.minimum(own.angle + margin, math.pi)), t) + bias


def _spread_multiple(own, *, margin, t, bias):
    return _spread(jnp.cos(jnp.minimum(own.angle * margin, math.pi)), t) + bias


def _spread_others(products, own, target, *, margin, t, bias):
    del own, target
    return _spread(products, t) + (margin + bias)


def _binary_loss(target, total, own, *, own_weight, others_weight):
    del own
    return own_weight * jax.nn.softplus(-target) + others_weight * total


def unified_cross_entropy(
    bias: Numeric, margin: Numeric = 0.4, scale: Numeric = 64.0, *, balance: Numeric = 1.0
) -> Margin:
    """Unified cross-entropy (UniFace): one threshold b for all classes parts own from other cosines.

        loss = softplus(-(s (c_y - m) - b)) + lambda sum_j softplus(s c_j - b)

    `bias` is learned; start it with `ms.unified_cross_entropy_bias`. (The authors' code clips every logit to -s and s,
    which takes the gradient from the farthest; nothing is clipped here.)

    Args:
      bias: b; a number, usually learned.
      margin: m, a difference of cosines, from 0 to 2; a number or `[B]`, may be traced.
      scale: s > 0; a number or `[B]`, may be traced.
      balance: lambda >= 0, weight of the other classes.

    Returns:
      A `Margin`.

    Raises:
      ValueError: an argument is out of range.

    References:
      Zhou et al., UniFace: Unified Cross-Entropy Loss for Deep Face Recognition, ICCV 2023.

    Example:
      >>> x, w, y = jnp.array([[0.6, 0.8]]), jnp.eye(2), jnp.array([1])
      >>> b = ms.unified_cross_entropy_bias(2)
      >>> ms.margin_loss(x, w, y, ms.unified_cross_entropy(b, margin=0.1, scale=8.0))
      Array([2.028], dtype=float32)
    """
    bias, margin = _checks.number("bias", bias), _checks.cosine_margin("margin", margin)
    balance, scale = _checks.number("balance", balance, at_least=0.0), _checks.scale_of(scale)
    base = softmax(Partial(_above_threshold, margin=margin, threshold=bias / scale), scale=scale)
    return base._replace(
        others=Partial(_others_above_threshold, threshold=bias / scale),
        reduction=reductions.sum_of(jax.nn.softplus),
        loss=Partial(_binary_loss, own_weight=1.0, others_weight=balance),
        smoothing=None,
    )


def unified_cross_entropy_bias(num_classes: int, rate: float = 1.0) -> float:
    """The threshold at which UniFace starts.

        b = log(10 C r)

    Args:
      num_classes: C.
      rate: r, share of the classes that is sampled (Partial FC), in (0, 1].

    Returns:
      b, a Python float.

    Raises:
      ValueError: an argument is out of range.

    References:
      Zhou et al., UniFace: Unified Cross-Entropy Loss for Deep Face Recognition, ICCV 2023, and its code.

    Example:
      >>> round(ms.unified_cross_entropy_bias(10_000), 3)
      11.513
    """
    _checks.static_number("num_classes", num_classes, at_least=1, whole=True)
    _checks.static_number("rate", rate, above=0.0, at_most=1.0)
    return math.log(10.0 * num_classes * rate)


def _above_threshold(own, *, margin, threshold):
    return own.product - margin - threshold


def _others_above_threshold(products, own, target, *, threshold):
    del own, target
    return products - threshold


def p2sgrad() -> Margin:
    """P2SGrad: the gradient of each cosine is its own distance to what it should be.

        dloss/dc_j = c_j - [j = y],   the gradient of   loss = (1 - c_y)^2 / 2 + sum_j c_j^2 / 2

    It has no hyper-parameter. An implementation that takes the mean over batch and classes has gradients C / 2 times
    smaller than the paper's, which are the ones here for a mean over the batch.

    Returns:
      A `Margin`.

    References:
      Zhang et al., P2SGrad: Refined Gradients for Optimizing Deep Face Models, CVPR 2019.

    Example:
      >>> ms.margin_loss(jnp.array([[0.6, 0.8]]), jnp.eye(2), jnp.array([1]), ms.p2sgrad())
      Array([0.2], dtype=float32)
    """
    return softmax(Partial(own_product))._replace(
        reduction=reductions.sum_of(_half_square), loss=Partial(_squared_distance), smoothing=None
    )


def _half_square(z):
    return jnp.square(z) / 2


def _squared_distance(target, total, own):
    del own
    return _half_square(1.0 - target) + total


def sface(scale: Numeric = 64.0, *, steepness: Numeric = 80.0, near: Numeric = 0.8, far: Numeric = 1.23) -> Margin:
    """SFace: pulls the own class as long as it is not near, and pushes the others as long as they are not far.

        loss = -s r_y c_y + s sum_j r_j c_j,   r_y = sigmoid(k (theta_y - a)),   r_j = sigmoid(k (b - theta_j))

        dloss/dc_y = -s r_y,   dloss/dc_j = s r_j

    The weights r are constants for differentiation, as in the paper: they are what the gradient is designed by, and the
    loss, which may be negative, says little. An example whose label is wrong stays within angle b of other classes and
    is not forced to the angle 0, so less of the noise is learned.

    Args:
      scale: s > 0; a number or `[B]`, may be traced.
      steepness: k > 0, per radian; a number or `[B]`, may be traced.
      near: a, the angle to the own class at which its pull is halved, in radians, 0 to pi; a number or `[B]`.
      far: b, the angle to another class at which its push is halved, in radians, 0 to pi; a number or `[B]`.

    Returns:
      A `Margin`.

    Raises:
      ValueError: an argument is out of range (an angle above pi is taken for degrees).

    References:
      Zhong et al., SFace: Sigmoid-Constrained Hypersphere Loss for Robust Face Recognition, IEEE TIP 2021, and its
      code, whose defaults these are.

    Example:
      >>> x, w, y = jnp.array([[0.6, 0.8]]), jnp.eye(2), jnp.array([1])
      >>> ms.margin_loss(x, w, y, ms.sface(10.0, steepness=5.0))
      Array([2.4072], dtype=float32)
    """
    steepness, scale = _checks.number("steepness", steepness, above=0.0), _checks.scale_of(scale)
    near, far = _checks.angle_margin("near", near), _checks.angle_margin("far", far)
    base = softmax(Partial(_pulled, steepness=steepness, near=near), scale=scale)
    return base._replace(
        others=Partial(_pushed, steepness=steepness, far=far),
        reduction=reductions.linear_sum(),
        loss=Partial(_less_own),
        smoothing=None,
    )


def _pulled(own, *, steepness, near):
    return own.product * jax.lax.stop_gradient(jax.nn.sigmoid(steepness * (own.angle - near)))


def _pushed(products, own, target, *, steepness, far):
    del own, target
    return products * jax.lax.stop_gradient(jax.nn.sigmoid(steepness * (far - angles.arc_cosine(products))))


def _less_own(target, total, own):
    del own
    return total - target
