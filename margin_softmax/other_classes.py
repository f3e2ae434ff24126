"""Losses that change the logits of the other classes too: which of them count as hard, and how much more they count.

Each is a `Margin` whose `others` is not the identity. "Hard" is a comparison with the own class's logit as the margin
has it; comparisons have no slope, so nothing need be detached for them.
"""

import math

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from margin_softmax import _checks, angles, reductions
from margin_softmax._checks import Numeric
from margin_softmax.margins import (
    Margin,
    Statistic,
    am_softmax,
    arcface,
    as_given,
    checked,
    normalised,
    own_product,
    plain,
    softmax,
    softmax_loss,
)


def sphereface_r(
    margin: Numeric = 1.5,
    scale: Numeric | None = None,
    *,
    version: int = 0,
    feature_norm: str = "hard",
    pull: Numeric | None = None,
) -> Margin:
    """SphereFace revived: a multiplicative angular margin in three forms, with three ways to treat the feature's norm.

        version 0:  z_y = r psi(m theta),            z_j = r cos(theta_j)
        version 1:  z_y = r cos(min(m theta, pi)),   z_j = r cos(theta_j)
        version 2:  z_y = r cos(theta),              z_j = r cos(theta_j / m)

        feature_norm "hard": r = s;   "soft": r = |x|, and the loss gains pull | |x| - s |;   "none": r = |x|

    Version 1 has slope 0 beyond theta = pi / m. The paper trains with the slope of no margin ("characteristic gradient
    detachment"), which is `ms.straight_through(ms.sphereface_r())`, and its code multiplies the loss by 50 / s. Where
    the norm is not hard it raises m from 1 step by step: `ms.margin_warmup(1.5, 0, steps, initial=1.0)`.

    Args:
      margin: m >= 1, multiplies angles; a number or `[B]`, may be traced.
      scale: s > 0, 30 unless given; not for feature_norm "none".
      version: 0, 1 or 2.
      feature_norm: "hard", "soft" or "none".
      pull: weight of the soft norm's term, 0.01 unless given; for feature_norm "soft" alone.

    Returns:
      A `Margin`.

    Raises:
      ValueError: an argument is out of range, or has no meaning for this `feature_norm`.

    References:
      Liu, Wen, Raj, Singh, Weller, SphereFace Revived: Unifying Hyperspherical Face Recognition, TPAMI 2022.

    Example:
      >>> x, w, y = jnp.array([[3.0, 4.0]]), jnp.eye(2), jnp.array([1])
      >>> for version in (0, 1, 2):
      ...     print(ms.margin_logits(x, w, y, ms.sphereface_r(1.5, scale=10.0, version=version)))
      [[6.     5.6921]]
      [[6.     5.6921]]
      [[8.1492 8.    ]]
    """
    margin = _checks.number("margin", margin, at_least=1.0)
    _checks.one_of("version", version, (0, 1, 2))
    _checks.one_of("feature_norm", feature_norm, ("hard", "soft", "none"))
    for name, value, meant in (("scale", scale, feature_norm != "none"), ("pull", pull, feature_norm == "soft")):
        if value is not None and not meant:
            raise ValueError(
                f"{name}: has no meaning with feature_norm={feature_norm!r}, came {value!r}. Leave it out."
            )
    radius: Numeric = _checks.scale_of(30.0 if scale is None else scale)
    targets = (Partial(_multiplied, margin=margin), Partial(_multiplied_to_pi, margin=margin), Partial(own_product))
    base = softmax(
        targets[version],
        scale=radius if feature_norm == "hard" else 1.0,
        features=normalised if feature_norm == "hard" else as_given,
    )
    if version == 2:
        base = base._replace(others=Partial(_divided, margin=margin))
    if feature_norm == "soft":
        pull = _checks.number("pull", 0.01 if pull is None else pull, at_least=0.0)
        base = base._replace(loss=Partial(_soft_norm_loss, scale=radius, pull=pull))
    return base


def _multiplied(own, *, margin):
    return own.length * angles.psi(margin * own.angle)


def _multiplied_to_pi(own, *, margin):
    return own.length * jnp.cos(jnp.minimum(margin * own.angle, math.pi))


def _divided(products, own, target, *, margin):
    del target
    cosines = products / jnp.where(own.length == 0, 1.0, own.length)
    return own.length * jnp.cos(angles.arc_cosine(cosines) / margin)


def _soft_norm_loss(target, total, own, *, scale, pull):
    return softmax_loss(target, total, own) + pull * jnp.abs(own.norm - scale)


def airface(margin: Numeric = 0.45, scale: Numeric = 64.0) -> Margin:
    """Li-ArcFace (AirFace): logits that fall linearly with the angle.

        z_y = s (pi - 2 (theta + m)) / pi,   z_j = s (pi - 2 theta_j) / pi

        dz_y/dtheta = -2 s / pi

    The slope in the own angle is constant. In the other angles, known here from their cosines, it is cut off within
    3.5e-4 rad of 0 and pi (float32), where a class other than the own would have to coincide with the feature.

    Args:
      margin: m, in radians, from 0 to pi; a number or `[B]`, may be traced.
      scale: s > 0; a number or `[B]`, may be traced.

    Returns:
      A `Margin`.

    Raises:
      ValueError: `margin` or `scale` is out of range (a margin above pi is taken for degrees).

    References:
      Li et al., AirFace: Lightweight and Efficient Model for Face Recognition, ICCV workshops 2019.

    Example:
      >>> ms.margin_logits(jnp.array([[3.0, 4.0]]), jnp.eye(2), jnp.array([1]), ms.airface(0.5, scale=10.0))
      Array([[4.0967, 2.7202]], dtype=float32)
    """
    target = Partial(_linear_in_angle, margin=_checks.angle_margin("margin", margin))
    return softmax(target, scale=_checks.scale_of(scale), others=_linear_in_other_angles)


def _linear_in_angle(own, *, margin):
    return 1.0 - (2.0 / math.pi) * (own.angle + margin)


def _linear_in_other_angles(products, own, target):
    del own, target
    return 1.0 - (2.0 / math.pi) * angles.arc_cosine(products)


MV_AM = am_softmax(0.35, scale=32.0)


def mv_softmax(margin: Margin = MV_AM, t: Numeric = 0.2) -> Margin:
    """Mis-classified vector guided softmax: classes above the target's logit count more.

        z_y as in `margin`,   z_j = s ((t + 1) c_j + t) where c_j > z_y / s,   s c_j elsewhere

    MV-AM-Softmax is the default, MV-Arc-Softmax `mv_softmax(ms.arcface(0.5, scale=32.0))`. (The authors' code applies
    the margin only to own cosines above 0, "easy margin", which is not in the paper.)

    Args:
      margin: of the own class; any `Margin` over cosines.
      t: how much hard classes are raised, >= 0; a number or `[B]`, may be traced.

    Returns:
      A `Margin`.

    Raises:
      TypeError: `margin` is not a `Margin`.
      ValueError: `t` is negative.

    References:
      Wang et al., Mis-classified Vector Guided Softmax Loss for Face Recognition, AAAI 2020.

    Example:
      >>> x, w, y = jnp.array([[0.8, 0.6]]), jnp.eye(2), jnp.array([1])
      >>> ms.margin_logits(x, w, y, ms.mv_softmax(ms.cosface(0.35, scale=10.0), t=0.2))
      Array([[11.6,  2.5]], dtype=float32)
    """
    t = _checks.number("t", t, at_least=0.0)
    margin = checked(margin)
    return margin._replace(others=Partial(_raised_where_hard, margin.others, t=t))


def _raised_where_hard(others, products, own, target, *, t):
    logits = others(products, own, target)
    return jnp.where(logits > target, (t + 1.0) * logits + t, logits)


def curricularface(t: Numeric, margin: Numeric = 0.5, scale: Numeric = 64.0) -> Margin:
    """CurricularFace: hard classes count little at first and more as training goes on.

        z_y = s psi(theta + m),   z_j = s c_j (t + c_j) where c_j > z_y / s,   s c_j elsewhere

    `t` is state, and the caller's: start with 0 and follow the mean own cosine with `ms.update_curricularface`, in
    training only. At 0 hard classes are pulled down (`c_j^2 < c_j`), as the paper wants it early on.

    Args:
      t: the curriculum, from -1 to 1; may be traced.
      margin: m, in radians, from 0 to pi; a number or `[B]`, may be traced.
      scale: s > 0; a number or `[B]`, may be traced.

    Returns:
      A `Margin`.

    Raises:
      ValueError: a number is out of range (a margin above pi is taken for degrees).

    References:
      Huang et al., CurricularFace: Adaptive Curriculum Learning Loss for Deep Face Recognition, CVPR 2020.

    Example:
      >>> x, w, y = jnp.array([[0.8, 0.6]]), jnp.eye(2), jnp.array([1])
      >>> ms.margin_logits(x, w, y, ms.curricularface(0.1, 0.5, scale=10.0))
      Array([[7.2   , 1.4301]], dtype=float32)
    """
    t = _checks.number("t", t, at_least=-1.0, at_most=1.0)
    return arcface(margin, scale)._replace(others=Partial(_by_curriculum, t=t))


def _by_curriculum(products, own, target, *, t):
    del own
    return jnp.where(products > target, products * (t + products), products)


def arcnegface(margin: Numeric = 0.5, scale: Numeric = 64.0, *, alpha: Numeric = 1.2, sigma: Numeric = 2.0) -> Margin:
    """ArcNegFace: every other class is weighted by how near its cosine is to the target.

        z_y = s psi(theta + m),   z_j = s (t_j c_j + t_j - 1),   t_j = alpha exp(-(c_j - z_y / s)^2 / sigma)

    The weights `t_j` are constants for differentiation, as in every implementation.

    Args:
      margin: m, in radians, from 0 to pi; a number or `[B]`, may be traced.
      scale: s > 0; a number or `[B]`, may be traced.
      alpha: largest weight, > 0.
      sigma: width of the weights, in squared cosines, > 0.

    Returns:
      A `Margin`.

    Raises:
      ValueError: a number is out of range (a margin above pi is taken for degrees).

    References:
      Liu et al., Towards Flops-constrained Face Recognition, ICCV workshops 2019.

    Example:
      >>> x, w, y = jnp.array([[0.8, 0.6]]), jnp.eye(2), jnp.array([1])
      >>> ms.margin_logits(x, w, y, ms.arcnegface(0.5, scale=10.0))
      Array([[7.407 , 1.4301]], dtype=float32)
    """
    alpha, sigma = _checks.number("alpha", alpha, above=0.0), _checks.number("sigma", sigma, above=0.0)
    return arcface(margin, scale)._replace(others=Partial(_weighted_by_nearness, alpha=alpha, sigma=sigma))


def _weighted_by_nearness(products, own, target, *, alpha, sigma):
    del own
    weight = jax.lax.stop_gradient(alpha * jnp.exp(-jnp.square(products - target) / sigma))
    return weight * products + (weight - 1.0)


def npcface(
    scale: Numeric = 64.0,
    *,
    margin: Numeric = 0.5,
    m0: Numeric = 0.4,
    m1: Numeric = 0.2,
    t: Numeric = 1.1,
    a: Numeric = 0.2,
) -> Margin:
    """NPCFace: hard other classes count more, and raise the own margin by their mean cosine.

        hard: c_j > psi(theta + margin)
        z_y = s psi(theta + m0 + m1 mean(c_j over the hard)),   z_j = s (t c_j + a) where hard, s c_j elsewhere

    The own margin is a constant for differentiation. Two passes over the classes: which are hard, then the loss. (The
    implementation that is known leaves own cosines below 0 without a margin, which is not in the paper.)

    Args:
      scale: s > 0; a number or `[B]`, may be traced.
      margin: of the comparison that says which classes are hard, in radians, from 0 to pi.
      m0: own margin without hard classes, in radians, from 0 to pi.
      m1: how far their mean cosine raises it, in radians, >= 0.
      t: factor of hard cosines, > 0.
      a: what is added to them, a cosine.

    Returns:
      A `Margin`.

    Raises:
      ValueError: a number is out of range (a margin above pi is taken for degrees).

    References:
      Zeng et al., NPCFace: Negative-Positive Collaborative Training for Large-scale Face Recognition, 2020.

    Example:
      >>> x, w, y = jnp.array([[0.8, 0.6]]), jnp.eye(2), jnp.array([1])
      >>> ms.margin_logits(x, w, y, ms.npcface(10.0))
      Array([[10.8  ,  0.834]], dtype=float32)
    """
    margin, m0 = _checks.angle_margin("margin", margin), _checks.angle_margin("m0", m0)
    m1, t, a = _checks.number("m1", m1, at_least=0.0), _checks.number("t", t, above=0.0), _checks.number("a", a)
    excess_and_count = reductions.pair(reductions.sum_of(jax.nn.relu), reductions.sum_of(_is_positive))
    base = softmax(Partial(_raised_by_hard, margin=margin, m0=m0, m1=m1), scale=_checks.scale_of(scale))
    return base._replace(
        others=Partial(_stretched_where_hard, margin=margin, t=t, a=a),
        statistic=Statistic(Partial(_excess, margin=margin), excess_and_count),
    )


def _is_positive(z):
    return (z > 0).astype(z.dtype)


def _excess(products, own, *, margin):
    return products - angles.psi(own.angle + margin)


def _raised_by_hard(own, *, margin, m0, m1):
    excess, count = own.statistic
    mean = jnp.where(count > 0, angles.psi(own.angle + margin) + excess / jnp.maximum(count, 1.0), 0.0)
    return angles.psi(own.angle + m0 + m1 * jax.lax.stop_gradient(mean))


def _stretched_where_hard(products, own, target, *, margin, t, a):
    del target
    return jnp.where(_excess(products, own, margin=margin) > 0, t * products + a, products)


def cifp(threshold: Numeric, margin: Numeric = 0.35, scale: Numeric = 64.0) -> Margin:
    """Consistent instance false positives: an example whose wrong classes come near pays for it in its own logit.

        z_y = s (c_y - m - (1 + c_y) mean(c_j^2 over the false positives)),   z_j = s c_j
        false positives: threshold < c_j <= c_y

    The threshold is the cosine above which lie a given share of all wrong pairs of a batch: `ms.cifp_threshold`. Two
    passes over the classes. The gradient is exact; the authors' code leaves out some of its terms for the weights.

    Args:
      threshold: a cosine; may be traced.
      margin: m, a difference of cosines, from 0 to 2; a number or `[B]`, may be traced.
      scale: s > 0; a number or `[B]`, may be traced.

    Returns:
      A `Margin`.

    Raises:
      ValueError: a number is out of range.

    References:
      Xu et al., Consistent Instance False Positive Improves Fairness in Face Recognition, CVPR 2021, and its code.

    Example:
      >>> x, w, y = jnp.array([[0.6, 0.8]]), jnp.eye(2), jnp.array([1])
      >>> ms.margin_logits(x, w, y, ms.cifp(0.5, margin=0.1, scale=10.0))
      Array([[6.  , 0.52]], dtype=float32)
    """
    threshold = _checks.number("threshold", threshold, at_least=-1.0, at_most=1.0)
    target = Partial(_less_false_positives, margin=_checks.cosine_margin("margin", margin))
    squares_and_count = reductions.pair(reductions.sum_of(jax.nn.relu), reductions.sum_of(_is_not_negative))
    statistic = Statistic(Partial(_false_positives, threshold=threshold), squares_and_count)
    return softmax(target, scale=_checks.scale_of(scale))._replace(statistic=statistic)


def _false_positives(products, own, *, threshold):
    # -1 is no square: that of a cosine of 0, which counts, is 0.
    return jnp.where((products > threshold) & (products <= own.product), jnp.square(products), -1.0)


def _is_not_negative(z):
    return (z >= 0).astype(z.dtype)


def _less_false_positives(own, *, margin):
    squares, count = own.statistic
    return own.product - margin - (1.0 + own.product) * squares / jnp.maximum(count, 1.0)


def intertopk(margin: Numeric = 0.2, scale: Numeric = 32.0, *, k: int = 5, penalty: Numeric = 0.06) -> Margin:
    """ArcFace with a penalty for the k nearest other classes (inter-top-k, the speaker recipe).

        z_y = s psi(theta + m),   z_j = s cos(theta_j - m') for the k nearest, s cos(theta_j) elsewhere

    Two passes over the classes: the k-th largest cosine, then the loss. Classes tied with the k-th count too. The
    recipe has three sub-centres (weights `[C, 3, D]`), raises the penalty with the margin (m' = 0.06 m / 0.2), and
    ends with a fine-tuning without it (`ms.arcface` with m = 0.5).

    Args:
      margin: m, in radians, from 0 to pi; a number or `[B]`, may be traced.
      scale: s > 0; a number or `[B]`, may be traced.
      k: how many classes are penalised, >= 1; static.
      penalty: m', in radians, from 0 to pi.

    Returns:
      A `Margin`.

    Raises:
      ValueError: a number is out of range (a margin above pi is taken for degrees).

    References:
      Zhao et al., Multi-query Multi-head Attention Pooling and Inter-topK Penalty for Speaker Verification, 2021.

    Example:
      >>> x, w, y = jnp.array([[0.6, 0.8, 0.0]]), jnp.eye(3), jnp.array([1])
      >>> ms.margin_logits(x, w, y, ms.intertopk(0.2, scale=10.0, k=1))
      Array([[6.4689, 6.6485, 0.    ]], dtype=float32)
    """
    k = int(_checks.static_number("k", k, at_least=1, whole=True))
    penalty = _checks.angle_margin("penalty", penalty)
    return arcface(margin, scale)._replace(
        others=Partial(_nearer_where_near, penalty=penalty),
        statistic=Statistic(Partial(_products_alone), reductions.top_k(k)),
    )


def _products_alone(products, own):
    del own
    return products


def _nearer_where_near(products, own, target, *, penalty):
    del target
    return jnp.where(products >= own.statistic[..., -1], jnp.cos(angles.arc_cosine(products) - penalty), products)


def circle(margin: Numeric = 0.25, gamma: Numeric = 256.0) -> Margin:
    """Circle loss in its classification form: each cosine is weighted by how far it is from its optimum.

        z_y = gamma [1 + m - c_y]_+ (c_y - (1 - m)),   z_j = gamma [c_j + m]_+ (c_j - m)

    The weights in brackets are constants for differentiation, as in the paper.

    Args:
      margin: m, a cosine, from 0 to 1; a number or `[B]`, may be traced.
      gamma: scale, > 0; a number or `[B]`, may be traced.

    Returns:
      A `Margin`.

    Raises:
      ValueError: a number is out of range.

    References:
      Sun et al., Circle Loss: A Unified Perspective of Pair Similarity Optimization, CVPR 2020.

    Example:
      >>> ms.margin_logits(jnp.array([[0.6, 0.8]]), jnp.eye(2), jnp.array([1]), ms.circle(0.25, gamma=10.0))
      Array([[2.975, 0.225]], dtype=float32)
    """
    margin = _checks.number("margin", margin, at_least=0.0, at_most=1.0)
    base = softmax(Partial(_circle_target, margin=margin), scale=_checks.number("gamma", gamma, above=0.0))
    return base._replace(others=Partial(_circle_others, margin=margin))


def _circle_target(own, *, margin):
    weight = jax.lax.stop_gradient(jax.nn.relu(1.0 + margin - own.product))
    return weight * (own.product - (1.0 - margin))


def _circle_others(products, own, target, *, margin):
    del own, target
    return jax.lax.stop_gradient(jax.nn.relu(products + margin)) * (products - margin)


def interclass_filter(margin: Margin, threshold: Numeric = 0.4, *, to_zero: bool = False) -> Margin:
    """Leaves out other classes that come too near to be wrong: perhaps they are the same person under another name.

        z_j as in `margin`, and no z_j at all where c_j > threshold

    The code that it comes from sets those cosines to 0 instead, so that each still weighs `e^0`: `to_zero=True`. Label
    smoothing asks for the logits of all classes: without `to_zero` it is refused.

    Args:
      margin: any `Margin` over cosines.
      threshold: a cosine, from -1 to 1; a number or `[B]`, may be traced.
      to_zero: whether a filtered class keeps the logit 0.

    Returns:
      A `Margin`.

    Raises:
      TypeError: `margin` is not a `Margin`.
      ValueError: `threshold` is out of range.

    References:
      An et al., Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by Partial
      FC, CVPR 2022, whose code has it.

    Example:
      >>> x, w, y = jnp.array([[0.6, 0.8]]), jnp.eye(2), jnp.array([1])
      >>> ms.margin_loss(x, w, y, ms.interclass_filter(ms.normface(10.0), threshold=0.5))
      Array([0.], dtype=float32)
    """
    threshold = _checks.number("threshold", threshold, at_least=-1.0, at_most=1.0)
    margin = checked(margin)
    if to_zero:
        return margin._replace(others=Partial(_zero_where_near, margin.others, threshold=threshold))
    of, pull = Partial(_of_open, margin.reduction.of), Partial(_pull_open, margin.reduction.pull)
    return margin._replace(
        others=Partial(_closed_where_near, margin.others, threshold=threshold),
        reduction=margin.reduction._replace(of=of, pull=pull),
        smoothing=None,
    )


CLOSED = -1e30
"""The logit of a class that does not count. Finite: -inf times a zero cotangent would be NaN in a learned scale."""


def _closed_where_near(others, products, own, target, *, threshold):
    return jnp.where(products > threshold, CLOSED, others(products, own, target))


def _zero_where_near(others, products, own, target, *, threshold):
    return jnp.where(products > threshold, 0.0, others(products, own, target))


def _is_open(logits):
    # Whatever the scale. A NaN is not closed: it must stay visible.
    return ~(logits < CLOSED / 1e15)


def _of_open(of, logits, keep, ids):
    return of(logits, keep & _is_open(logits), ids)


def _pull_open(pull, logits, keep, total, cotangent):
    return pull(logits, keep & _is_open(logits), total, cotangent)


def virtual_softmax() -> Margin:
    """Virtual softmax: one more class, of the own class's length, in the direction of the feature.

        z_j = <x, w_j>,   and one more logit |x| |w_y|

    Returns:
      A `Margin`.

    References:
      Chen, Deng, Shen, Virtual Class Enhanced Discriminative Embedding Learning, NeurIPS 2018.

    Example:
      >>> x, w, y = jnp.array([[1.0, 0.0]]), jnp.eye(2), jnp.array([0])
      >>> ms.margin_loss(x, w, y, ms.virtual_softmax())
      Array([0.862], dtype=float32)
    """
    return plain()._replace(loss=Partial(_with_virtual_class))


def _with_virtual_class(target, total, own):
    return softmax_loss(target, total.plus(own.length), own)
