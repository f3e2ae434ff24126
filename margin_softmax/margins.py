"""Margins: what a paper defines, as a value. One constructor per paper.

A margin softmax loss changes the logit of an example's own class, as a function of the angle `theta` between its
feature and its class weight. With `s` a scale, the published family is

    z_y = s (psi(m1 theta + m2) - m3),   psi(u) = (-1)^k cos(u) - 2k,   k = floor(u / pi)

A `Margin` holds that map and everything else that a paper may define: which of the two factors are normalised,
what becomes of the other logits, which reduction over them the loss needs. It is a pytree: every hyper-parameter
is a leaf, a number or one value per example, so a margin can be traced, scheduled, learned or swept with `vmap`
without recompiling. Where it runs is a head's matter.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from margin_softmax import _checks, angles, reductions
from margin_softmax._checks import Numeric


class Own(NamedTuple):
    """An example and its own class: all that a margin may know of them. Each `[B]`.

    Attributes:
      angle: theta, in radians.
      product: inner product of the two factors as the margin takes them (normalised or as given).
      length: the product of their lengths, so that `product = length cos(angle)`; 1 where both are normalised.
      norm: length of the feature as given.
      statistic: total of the margin's `statistic`, or `()`.
    """

    angle: jax.Array
    product: jax.Array
    length: jax.Array
    norm: jax.Array
    statistic: Any = ()


class Statistic(NamedTuple):
    """A reduction over the other classes that is needed before the target's logit (hard examples, their count).

    Attributes:
      of: products `[B, n]`, Own `[B, 1]` -> numbers `[B, n]`; elementwise.
      reduction: of those numbers.
    """

    of: Callable[[jax.Array, Own], jax.Array]
    reduction: reductions.Reduction


class Margin(NamedTuple):
    """What a paper defines: pure functions and numbers. With the defaults it is softmax.

    Attributes:
      features: how a feature enters, rows `[..., D]` -> (factor on the row, the length it then has), `[...]` each:
        `normalised` or `as_given`.
      weights: the same for a class row.
      target: Own -> `[B]`, the own class's logit before the scale.
      others: products `[B, n]`, Own `[B, 1]`, target `[B, 1]` -> `[B, n]`, the other logits before the scale;
        elementwise.
      scale: multiplies every logit; a bias, if any, is added after it.
      reduction: over the logits of the other classes.
      loss: target logit, total of the reduction, Own -> `[B]`.
      smoothing: target logit, mean of all logits -> `[B]`, what label smoothing adds to the loss for each unit of
        epsilon; None where a smoothed target has no meaning.
      statistic: a `Statistic` for `Own.statistic`, or None.
    """

    features: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    weights: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    target: Callable[[Own], jax.Array]
    others: Callable[[jax.Array, Own, jax.Array], jax.Array]
    scale: Numeric
    reduction: reductions.Reduction
    loss: Callable[[jax.Array, Any, Own], jax.Array]
    smoothing: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    statistic: Statistic | None = None


def normalised(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A row enters as its direction."""
    factor = angles.reciprocal_norm(rows)
    return factor, jnp.ones_like(factor)


def as_given(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A row enters as it is."""
    length = angles.norm(rows)
    return jnp.ones_like(length), length


def unchanged(products: jax.Array, own: Own, target: jax.Array) -> jax.Array:
    """The other logits are the products themselves."""
    del own, target
    return products


def softmax_loss(target: jax.Array, total: reductions.LogSumExp, own: Own) -> jax.Array:
    """`log(e^{z_y} + e^L) - z_y`, without the cancellation of the full sum."""
    del own
    return jax.nn.softplus(total.minus(target))


def softmax_smoothing(target: jax.Array, mean: jax.Array) -> jax.Array:
    """Of cross-entropy `log sum_j e^{z_j} - sum_j t_j z_j`, when epsilon of t is taken off the own class for all."""
    return target - mean


def softmax(
    target: Callable[[Own], jax.Array],
    *,
    scale: Numeric = 1.0,
    features: Callable = normalised,
    weights: Callable = normalised,
    others: Callable = unchanged,
) -> Margin:
    """A softmax loss from its target map; the factors are normalised unless said otherwise."""
    return Margin(
        features=Partial(features),
        weights=Partial(weights),
        target=target,
        others=Partial(others),
        scale=scale,
        reduction=reductions.log_sum_exp(),
        loss=Partial(softmax_loss),
        smoothing=Partial(softmax_smoothing),
    )


def own_product(own: Own) -> jax.Array:
    """The own logit is the product itself."""
    return own.product


def _combined(own, *, m1, m2, m3):
    return own.length * angles.psi(m1 * own.angle + m2) - m3


def additive_angle(own: Own, *, margin: Numeric) -> jax.Array:
    """The own angle counts as much more as the margin says."""
    return own.length * angles.psi(own.angle + margin)


def _multiple_angle(own, *, margin, blend):
    return (blend * own.product + own.length * angles.psi(margin * own.angle)) / (1.0 + blend)


def additive_cosine(own: Own, *, margin: Numeric) -> jax.Array:
    """The own product counts as much less as the margin says."""
    return own.product - margin


def plain() -> Margin:
    """Softmax loss of a linear layer: no margin, nothing normalised.

        z_j = <x, w_j>

        dloss/dz_j = p_j - [j = y]

    Returns:
      A `Margin`.

    Example:
      >>> x, w = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[-1.0, 1.0, 0.0], [1.0, -1.0, 0.0]])
      >>> ms.margin_loss(x, w, jnp.array([1]), ms.plain())
      Array([2.1269], dtype=float32)
    """
    return softmax(Partial(own_product), features=as_given, weights=as_given)


def temperature(tau: Numeric) -> Margin:
    """Softmax at a temperature: larger `tau` flattens the distribution.

        z_j = <x, w_j> / tau

        dloss/dz_j = p_j - [j = y],   dz_j/dx = w_j / tau

    Args:
      tau: temperature, > 0, without unit; a number or `[B]`, may be traced.

    Returns:
      A `Margin`.

    Raises:
      ValueError: `tau` is not positive and finite.

    References:
      Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, NIPS workshop 2014.

    Example:
      >>> a = jnp.array([[38.0, 20.0, 40.0, 39.0]])
      >>> ms.cross_entropy(ms.margin_logits(a, jnp.eye(4), jnp.array([0]), ms.temperature(100.0)), jnp.array([0]))
      Array([1.3521], dtype=float32)
    """
    return softmax(
        Partial(own_product), scale=1.0 / _checks.number("tau", tau, above=0.0), features=as_given, weights=as_given
    )


def modified_softmax() -> Margin:
    """Softmax with normalised class weights and no bias: classes differ by their angle alone.

        z_j = |x| cos(theta_j)

        dz_j/dx = w_j / |w_j|,   dz_j/dw_j = |x| (the part of x / |x| across w_j) / |w_j|

    Returns:
      A `Margin`.

    References:
      Liu et al., SphereFace: Deep Hypersphere Embedding for Face Recognition, CVPR 2017, section 3.

    Example:
      >>> ms.margin_logits(jnp.array([[3.0, 4.0]]), 9.0 * jnp.eye(2), jnp.array([0]), ms.modified_softmax())
      Array([[3., 4.]], dtype=float32)
    """
    return softmax(Partial(own_product), features=as_given)


def normface(scale: Numeric) -> Margin:
    """Softmax of scaled cosines (NormFace, also known as COCO loss): both factors normalised, no margin.

        z_j = s cos(theta_j)

        dz_j/dx = s (the part of w_j / |w_j| across x) / |x|

    Args:
      scale: s, > 0; a number or `[B]`, may be traced (the paper also learns it).

    Returns:
      A `Margin`.

    Raises:
      ValueError: `scale` is not positive and finite.

    References:
      Wang et al., NormFace: L2 Hypersphere Embedding for Face Verification, ACM MM 2017.
      Liu, Li, Wang, Rethinking Feature Discrimination and Polymerization for Large-scale Recognition, 2017 (COCO).

    Example:
      >>> ms.margin_logits(jnp.array([[3.0, 4.0]]), 9.0 * jnp.eye(2), jnp.array([0]), ms.normface(10.0))
      Array([[6., 8.]], dtype=float32)
    """
    return softmax(Partial(own_product), scale=_checks.scale_of(scale))


def l_softmax(margin: Numeric = 4, blend: Numeric = 0.0) -> Margin:
    """Large-margin softmax: the angle to the own class counts `m` times. Nothing is normalised.

        z_y = |x| |w_y| (lambda cos(theta) + psi(m theta)) / (1 + lambda),   z_j = <x, w_j>

        dz_y/dtheta = -|x| |w_y| (lambda sin(theta) + m |sin(m theta)|) / (1 + lambda)

    With m = 4 it may not train from scratch; the paper anneals lambda from 1000 towards 0, which is
    `blend=ms.blend_schedule(...)(step)`.

    Args:
      margin: m, a whole number >= 1 (any real one in `combined`), multiplies angles; may be traced.
      blend: lambda >= 0, weight of the plain logit; a number or `[B]`, may be traced.

    Returns:
      A `Margin`.

    Raises:
      ValueError: `margin` is not a whole number >= 1, or `blend` is negative.

    References:
      Liu et al., Large-Margin Softmax Loss for Convolutional Neural Networks, ICML 2016.

    Example:
      >>> ms.margin_logits(jnp.array([[0.0, 2.0]]), jnp.eye(2), jnp.array([0]), ms.l_softmax(2))
      Array([[-2.,  2.]], dtype=float32)
    """
    return softmax(_multiple_angle_of(margin, blend), features=as_given, weights=as_given)


def a_softmax(margin: Numeric = 4, blend: Numeric = 0.0) -> Margin:
    """Angular softmax (SphereFace): as L-Softmax, with normalised class weights.

        z_y = |x| (lambda cos(theta) + psi(m theta)) / (1 + lambda),   z_j = |x| cos(theta_j)

        dz_y/dtheta = -|x| (lambda sin(theta) + m |sin(m theta)|) / (1 + lambda)

    The authors' code anneals lambda from 1000 down to 5 and stops there: `blend=ms.blend_schedule()(step)`. At
    lambda = 5, m = 4 acts like a multiplicative margin of 1.35 to 1.86. Its gradient is rescaled by hand there; the
    one here is exact, so learning rates do not carry over.

    Args:
      margin: m, a whole number >= 1 (any real one in `combined`), multiplies angles; may be traced.
      blend: lambda >= 0, weight of the plain logit; a number or `[B]`, may be traced.

    Returns:
      A `Margin`.

    Raises:
      ValueError: `margin` is not a whole number >= 1, or `blend` is negative.

    References:
      Liu et al., SphereFace: Deep Hypersphere Embedding for Face Recognition, CVPR 2017.

    Example:
      >>> ms.margin_logits(jnp.array([[0.0, 2.0]]), 9.0 * jnp.eye(2), jnp.array([0]), ms.a_softmax(2, blend=1.0))
      Array([[-1.,  2.]], dtype=float32)
    """
    return softmax(_multiple_angle_of(margin, blend), features=as_given)


def _multiple_angle_of(margin, blend):
    hint = "The papers use 1, 2, 3 or 4; `combined(m1=...)` takes any real multiple."
    margin = _checks.number("margin", margin, at_least=1.0, whole=True, hint=hint)
    return Partial(_multiple_angle, margin=margin, blend=_checks.number("blend", blend, at_least=0.0))


def am_softmax(margin: Numeric = 0.35, scale: Numeric = 30.0) -> Margin:
    """Additive margin softmax: the own cosine counts `m` less. The same loss as `cosface`, with its paper's scale.

        z_y = s (cos(theta) - m),   z_j = s cos(theta_j)

        dz_y/dtheta = -s sin(theta)

    Args:
      margin: m, a difference of cosines, from 0 to 2; a number or `[B]`, may be traced.
      scale: s, > 0; a number or `[B]`, may be traced.

    Returns:
      A `Margin`.

    Raises:
      ValueError: `margin` or `scale` is out of range.

    References:
      Wang, Cheng, Liu, Liu, Additive Margin Softmax for Face Verification, IEEE Signal Processing Letters 2018.

    Example:
      >>> ms.margin_logits(jnp.array([[3.0, 4.0]]), jnp.eye(2), jnp.array([1]), ms.am_softmax(0.3, scale=10.0))
      Array([[6., 5.]], dtype=float32)
    """
    margin = _checks.cosine_margin("margin", margin)
    return softmax(Partial(additive_cosine, margin=margin), scale=_checks.scale_of(scale))


def cosface(margin: Numeric = 0.35, scale: Numeric = 64.0) -> Margin:
    """Large margin cosine loss (CosFace): the same loss as `am_softmax`, with its paper's scale.

        z_y = s (cos(theta) - m),   z_j = s cos(theta_j)

        dz_y/dtheta = -s sin(theta)

    Args:
      margin: m, a difference of cosines, from 0 to 2; a number or `[B]`, may be traced.
      scale: s, > 0; a number or `[B]`, may be traced.

    Returns:
      A `Margin`.

    Raises:
      ValueError: `margin` or `scale` is out of range.

    References:
      Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, CVPR 2018.

    Example:
      >>> ms.margin_logits(jnp.array([[3.0, 4.0]]), jnp.eye(2), jnp.array([1]), ms.cosface(0.3, scale=10.0))
      Array([[6., 5.]], dtype=float32)
    """
    return am_softmax(margin, scale)


def arcface(margin: Numeric = 0.5, scale: Numeric = 64.0) -> Margin:
    """Additive angular margin (ArcFace): the own angle counts `m` more.

        z_y = s psi(theta + m),   z_j = s cos(theta_j)

        dz_y/dtheta = -s |sin(theta + m)|

    Up to theta = pi - m this is `s cos(theta + m)`. Beyond, where the paper says nothing and codebases differ in
    six ways, `psi` mirrors the cosine, so that the logit keeps falling, with a continuous slope. Some codebases
    ship this value with the slope of `s cos(theta)`: `ms.straight_through(ms.arcface())`.

    Args:
      margin: m, in radians, from 0 to pi; a number or `[B]`, may be traced.
      scale: s, > 0; a number or `[B]`, may be traced.

    Returns:
      A `Margin`.

    Raises:
      ValueError: `margin` or `scale` is out of range (a margin above pi is taken for degrees).

    References:
      Deng, Guo, Xue, Zafeiriou, ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019.

    Example:
      >>> ms.margin_logits(jnp.array([[3.0, 4.0]]), jnp.eye(2), jnp.array([1]), ms.arcface(0.5, scale=10.0))
      Array([[6.       , 4.1441]], dtype=float32)
    """
    margin = _checks.angle_margin("margin", margin)
    return softmax(Partial(additive_angle, margin=margin), scale=_checks.scale_of(scale))


def combined(m1: Numeric, m2: Numeric, m3: Numeric, scale: Numeric = 64.0) -> Margin:
    """The combined margin of the ArcFace paper: multiplicative, additive in the angle, additive in the cosine.

        z_y = s (psi(m1 theta + m2) - m3),   z_j = s cos(theta_j)

        dz_y/dtheta = -s m1 |sin(m1 theta + m2)|

    All three act together, whatever their values. The paper's CM1 is (1, 0.3, 0.2), its CM2 (0.9, 0.4, 0.15).

    Args:
      m1: multiplies the angle, > 0; a number or `[B]`, may be traced.
      m2: added to the angle, in radians, from 0 to pi; a number or `[B]`, may be traced.
      m3: taken off the cosine, from 0 to 2; a number or `[B]`, may be traced.
      scale: s, > 0; a number or `[B]`, may be traced.

    Returns:
      A `Margin`.

    Raises:
      ValueError: a margin or `scale` is out of range (an `m2` above pi is taken for degrees).

    References:
      Deng, Guo, Xue, Zafeiriou, ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019.

    Example:
      >>> margin = ms.combined(1.0, 0.3, 0.2, scale=10.0)
      >>> ms.margin_logits(jnp.array([[3.0, 4.0]]), jnp.eye(2), jnp.array([1]), margin)
      Array([[6.       , 3.8696]], dtype=float32)
    """
    m1, m2, m3 = _checks.number("m1", m1, above=0.0), _checks.angle_margin("m2", m2), _checks.cosine_margin("m3", m3)
    return softmax(Partial(_combined, m1=m1, m2=m2, m3=m3), scale=_checks.scale_of(scale))


def straight_through(margin: Margin) -> Margin:
    """The margin's value with the slope of no margin: what some codebases ship under the margin's name.

        z as in `margin`,   dz_y := s d(|.| cos(theta)),   dz_j := s d(|.| cos(theta_j))

    Several widely used ArcFace and SphereFace implementations compute the margin outside of differentiation, on
    purpose or not; this reproduces them. Against the exact slope `s sin(theta + m)` of ArcFace it is 0.18 times as
    steep at theta = 0.1 and 1.5 times at theta = 2 (m = 0.5), so learning rates do not carry over. Only the features
    and the weights are detached: numbers of the margin that are learned keep their gradients.

    Args:
      margin: any `Margin`.

    Returns:
      A `Margin` with the same loss and another gradient.

    Raises:
      TypeError: `margin` is not a `Margin`.

    References:
      Wen et al., SphereFace Revived: Unifying Hyperspherical Face Recognition, TPAMI 2022 ("characteristic
      gradient detachment").

    Example:
      >>> def loss(x, margin):
      ...     return ms.margin_loss(x, jnp.eye(2), jnp.array([1]), margin).sum()
      >>> x = jnp.array([[0.6, 0.8]])
      >>> exact, detached = ms.arcface(0.5, 8.0), ms.straight_through(ms.arcface(0.5, 8.0))
      >>> float(loss(x, exact)) == float(loss(x, detached))
      True
    """
    margin = checked(margin)
    detached = margin._replace(target=Partial(_target_straight_through, margin.target))
    if getattr(margin.others, "func", None) is not unchanged:  # whose slope is that of no margin as it is
        detached = detached._replace(others=Partial(_others_straight_through, margin.others))
    return detached


def _target_straight_through(target, own):
    fixed = jax.lax.stop_gradient(own)
    return target(fixed) + (own.product - fixed.product)


def _others_straight_through(others, products, own, target):
    fixed = jax.lax.stop_gradient((products, own, target))
    return others(*fixed) + (products - fixed[0])


def focal(margin: Margin, gamma: Numeric = 2.0) -> Margin:
    """A margin loss that counts easy examples less: each loss times the probability that it still lacks.

        loss = (1 - p)^gamma l,   p = e^{-l},   l the loss of `margin`

    The probability is each example's own. (Some codebases put the mean loss of the batch into the exponent, which
    only changes the learning rate.)

    Args:
      margin: any `Margin`.
      gamma: >= 0; 0 leaves the loss as it is; a number or `[B]`, may be traced.

    Returns:
      A `Margin`.

    Raises:
      TypeError: `margin` is not a `Margin`.
      ValueError: `gamma` is negative.

    References:
      Lin, Goyal, Girshick, He, Dollar, Focal Loss for Dense Object Detection, ICCV 2017.

    Example:
      >>> x = jnp.array([[1.0, 0.0]])
      >>> ms.margin_loss(x, jnp.eye(2), jnp.array([0]), ms.focal(ms.plain(), gamma=2.0))
      Array([0.0227], dtype=float32)
    """
    gamma = _checks.number("gamma", gamma, at_least=0.0)
    margin = checked(margin)
    return margin._replace(loss=Partial(_focal, margin.loss, gamma=gamma))


def _focal(loss, target, total, own, *, gamma):
    losses = loss(target, total, own)
    # As u^(1 + gamma) (l / u) with u = 1 - p: neither factor has an infinite slope at l = 0, whatever gamma.
    lacking = -jnp.expm1(-losses)
    ratio = jnp.where(lacking > 0, losses / jnp.where(lacking > 0, lacking, 1.0), 1.0)
    return lacking ** (1.0 + gamma) * ratio


def checked(margin: Margin) -> Margin:
    """`margin` itself, once it is one, whose functions are static and whose leaves are numbers."""
    if not isinstance(margin, Margin):
        raise TypeError(f"margin: expected a Margin such as ms.arcface(0.5), came {type(margin).__name__}.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(margin):
        if callable(leaf) and not hasattr(leaf, "dtype"):
            raise TypeError(
                f"margin: expected functions that are part of the program, came {leaf!r} as "
                f"`{jax.tree_util.keystr(path, simple=True, separator='.')}`. Wrap it in jax.tree_util.Partial."
            )
    return margin
