"""Margins that differ from example to example or from class to class: by norm, by chance, by count, or learned.

They only produce the numbers of a target margin. What belongs to a class is a table `[C]`, looked up by the caller:
`ms.arcface(table[labels])`.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from margin_softmax import _checks, angles
from margin_softmax._checks import Numeric
from margin_softmax._meshes import same_everywhere, split_as_examples
from margin_softmax.margins import (
    Margin,
    additive_angle,
    additive_cosine,
    am_softmax,
    arcface,
    softmax,
    softmax_loss,
)


def magface(
    scale: Numeric = 64.0,
    *,
    norms: tuple[float, float] = (10.0, 110.0),
    margins: tuple[float, float] = (0.45, 0.8),
    regularizer: Numeric = 35.0,
    easy_margin: bool = False,
    checked: bool = True,
) -> Margin:
    """MagFace: the margin grows with the feature's norm, and the loss asks for a larger norm where it is earned.

        z_y = s psi(theta + m(a)),   a = |x| within [l_a, u_a],   m(a) = l_m + (u_m - l_m) (a - l_a) / (u_a - l_a)

        loss = softmax loss + lambda g(a),   g(a) = a / u_a^2 + 1 / a

    The gradient reaches the norm through m and g; outside [l_a, u_a] both are flat, and a norm that starts there does
    not come back by itself: scale the features into the interval first. The papers' other settings: fine-tuning with
    norms (1, 51), margins (0.45, 1), regularizer 5.

    Args:
      scale: s > 0; a number or `[B]`, may be traced.
      norms: (l_a, u_a), 0 < l_a < u_a.
      margins: (l_m, u_m) at these norms, in radians, from 0 to pi.
      regularizer: lambda >= 0, weight of g; may be traced.
      easy_margin: no margin beyond theta = pi / 2, the default of the authors' code and not in the paper.
      checked: whether to refuse a margin that falls with the norm, and a regularizer below the authors' bound, at
        which the best norm no longer grows as the angle falls: `s k u_a^2 l_a^2 / (u_a^2 - l_a^2)`, k the slope of
        m; 22.6 with the defaults.

    Returns:
      A `Margin`.

    Raises:
      TypeError: `norms` or `margins` are no pair.
      ValueError: an argument is out of range, `regularizer` below the bound, or the higher margin below the lower.

    References:
      Meng, Zhao, Huang, Zhou, MagFace: A Universal Representation for Face Recognition and Quality Assessment, CVPR
      2021.

    Example:
      >>> x, w, y = jnp.array([[36.0, 48.0]]), jnp.eye(2), jnp.array([1])
      >>> ms.margin_loss(x, w, y, ms.magface(scale=8.0))
      Array([3.2605], dtype=float32)
    """
    low, high = (float(_checks.static_number(*norm, above=0.0)) for norm in _pair("norms", norms))
    if not low < high:
        raise ValueError(f"norms: expected a lower before a higher norm, came {norms!r}.")
    low_margin, high_margin = (_checks.angle_margin(*margin) for margin in _pair("margins", margins))
    scale, regularizer = _checks.scale_of(scale), _checks.number("regularizer", regularizer, at_least=0.0)
    slope = (high_margin - low_margin) / (high - low)
    if checked:
        _refuse_what_magface_is_not(margins, slope, scale, regularizer, high**2 * low**2 / (high**2 - low**2))
    target = _easy_margin_from_norm if easy_margin else _margin_from_norm
    base = softmax(Partial(target, low=low, high=high, margin=low_margin, slope=slope), scale=scale)
    return base._replace(loss=Partial(_with_norm_loss, low=low, high=high, weight=regularizer))


def _pair(name, pair):
    """Two numbers with their names."""
    try:
        first, second = pair
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a pair of numbers, (lower, higher), came {pair!r}.") from None
    return (f"{name}[0]", first), (f"{name}[1]", second)


def _refuse_what_magface_is_not(margins, slope, scale, regularizer, squares):
    if _checks.is_traced(slope):
        return
    if np.any(np.asarray(slope) < 0):
        raise ValueError(
            f"margins: expected a lower before a higher margin, came {margins!r}. The margin of MagFace grows with the "
            "norm; checked=False does without it."
        )
    if not any(map(_checks.is_traced, (scale, regularizer))):
        bound = float(np.max(np.asarray(scale) * np.asarray(slope))) * squares
        hint = "It is the authors' bound for this scale, these norms and margins; checked=False does without it."
        _checks.number("regularizer", regularizer, at_least=bound, hint=hint)


def _margin_from_norm(own, *, low, high, margin, slope):
    return angles.psi(own.angle + margin + slope * (jnp.clip(own.norm, low, high) - low))


def _easy_margin_from_norm(own, *, low, high, margin, slope):
    with_margin = _margin_from_norm(own, low=low, high=high, margin=margin, slope=slope)
    return jnp.where(own.product > 0, with_margin, own.product)


def _with_norm_loss(target, total, own, *, low, high, weight):
    norm = jnp.clip(own.norm, low, high)
    return softmax_loss(target, total, own) + weight * (norm / jnp.square(high) + 1.0 / norm)


class AdaFaceState(NamedTuple):
    """What AdaFace remembers of the features' norms: the start of its authors' code by default.

    Attributes:
      mean: moving average of the batches' mean norm.
      deviation: moving average of the batches' standard deviation of the norm.
    """

    mean: Numeric = 20.0
    deviation: Numeric = 100.0


def adaface(
    state: AdaFaceState, margin: Numeric = 0.4, scale: Numeric = 64.0, *, h: Numeric = 0.333, clip: bool = False
) -> Margin:
    """AdaFace: the feature's norm, taken for the picture's quality, decides between angular and additive margin.

        z_y = s (psi(|theta - m q|) - m - m q),   q = h (|x| - mean) / deviation within [-1, 1], a constant

    At q = -1 (poor) it is ArcFace(m), at 0 CosFace(m), at 1 (good) `cos(theta - m) - 2 m`. As in the paper, below
    theta = m q the logit falls again toward 0; the authors' code holds the angle at 0 there, with slope 0: `clip`.

    The state is the caller's: `ms.update_adaface(state, features)` in training, before the loss as in the authors'
    code, and never in evaluation.

    Args:
      state: `ms.AdaFaceState()` at first.
      margin: m, from 0 to pi; radians and a cosine at once; a number or `[B]`, may be traced.
      scale: s > 0; a number or `[B]`, may be traced.
      h: concentration: how many deviations are 1 / h of the way from 0 to 1.
      clip: whether the shifted angle stays within [0, pi], as in the authors' code.

    Returns:
      A `Margin`.

    Raises:
      TypeError: `state` is no `AdaFaceState`.
      ValueError: a number is out of range (a margin above pi is taken for degrees).

    References:
      Kim, Jain, Liu, AdaFace: Quality Adaptive Margin for Face Recognition, CVPR 2022.

    Example:
      >>> x, w, y = jnp.array([[12.0, 16.0]]), jnp.eye(2), jnp.array([1])
      >>> ms.margin_logits(x, w, y, ms.adaface(ms.AdaFaceState(), 0.35, scale=10.0))
      Array([[6. , 4.5]], dtype=float32)
    """
    mean, deviation = checked_state(state, _checks.number)
    margin, h = _checks.angle_margin("margin", margin), _checks.number("h", h, at_least=0.0)
    target = Partial(
        _clipped_quality_margin if clip else _quality_margin, mean=mean, deviation=deviation, margin=margin, h=h
    )
    return softmax(target, scale=_checks.scale_of(scale))


def checked_state(state: AdaFaceState, number: Callable[..., Numeric]) -> AdaFaceState:
    """`state` itself, once it is one and `number` lets its numbers pass."""
    if not isinstance(state, AdaFaceState):
        raise TypeError(f"state: expected an AdaFaceState such as ms.AdaFaceState(), came {type(state).__name__}.")
    return AdaFaceState(*(number(name, value, at_least=0.0) for name, value in state._asdict().items()))


def _quality(own, mean, deviation, h):
    quality = h * (jnp.clip(own.norm, 1e-3, 100.0) - mean) / (deviation + 1e-3)
    return jax.lax.stop_gradient(jnp.clip(quality, -1.0, 1.0))


def _quality_margin(own, *, mean, deviation, margin, h):
    shift = margin * _quality(own, mean, deviation, h)
    return angles.psi(jnp.abs(own.angle - shift)) - (margin + shift)


def _clipped_quality_margin(own, *, mean, deviation, margin, h):
    shift = margin * _quality(own, mean, deviation, h)
    return jnp.cos(jnp.clip(own.angle - shift, 0.0, math.pi)) - (margin + shift)


def elastic_arcface(
    key: jax.Array,
    batch: int,
    margin: Numeric = 0.5,
    scale: Numeric = 64.0,
    *,
    deviation: Numeric = 0.05,
    angle: jax.Array | None = None,
    where: jax.Array | None = None,
) -> Margin:
    """ElasticFace-Arc: every example draws its own angular margin anew in each step.

        z_y = s psi(theta + E),   E ~ Normal(m, deviation)

    With `angle` it is ElasticFace-Arc+: the largest of the batch's margins goes to the largest angle, and so on, as
    the paper means it (deviation 0.0175 there). Its code puts a permutation where a rank is needed and so hands out
    the margins nearly at random; that behaviour is the loss without `angle`.

    Args:
      key: of `jax.random`; a new one in each step.
      batch: B, static.
      margin: mean of E, in radians, from 0 to pi.
      scale: s > 0; a number or `[B]`, may be traced.
      deviation: of E, >= 0.
      angle: of each example from its own class, `[B]`, as `ms.observe(...).angle`; has no gradient.
      where: rows that count, `[B]` booleans, as in the loss; for `angle` alone. Others, and those whose angle is NaN
        because their label names no class, take no part in the ranking: each has the margin that it drew.

    Returns:
      A `Margin`.

    Raises:
      TypeError: `angle` is not real floating point, or `where` no booleans.
      ValueError: an argument is out of range (a margin above pi is taken for degrees).

    References:
      Boutros, Damer, Kirchbuchner, Kuijper, ElasticFace: Elastic Margin Loss for Deep Face Recognition, CVPR
      workshops 2022.

    Example:
      >>> x, w, y = jnp.array([[0.6, 0.8]]), jnp.eye(2), jnp.array([1])
      >>> margin = ms.elastic_arcface(jax.random.key(0), 1, deviation=0.0, scale=10.0)
      >>> bool(jnp.allclose(ms.margin_loss(x, w, y, margin), ms.margin_loss(x, w, y, ms.arcface(0.5, scale=10.0))))
      True
    """
    drawn = _drawn(key, batch, _checks.angle_margin("margin", margin), deviation, angle, where)
    return softmax(Partial(additive_angle, margin=drawn), scale=_checks.scale_of(scale))


def elastic_cosface(
    key: jax.Array,
    batch: int,
    margin: Numeric = 0.35,
    scale: Numeric = 64.0,
    *,
    deviation: Numeric = 0.05,
    angle: jax.Array | None = None,
    where: jax.Array | None = None,
) -> Margin:
    """ElasticFace-Cos: every example draws its own cosine margin anew in each step.

        z_y = s (cos(theta) - E),   E ~ Normal(m, deviation)

    With `angle` it is ElasticFace-Cos+ (deviation 0.02 in the paper); see `ms.elastic_arcface` for how the published
    code differs.

    Args:
      key: of `jax.random`; a new one in each step.
      batch: B, static.
      margin: mean of E, a difference of cosines, from 0 to 2.
      scale: s > 0; a number or `[B]`, may be traced.
      deviation: of E, >= 0.
      angle: of each example from its own class, `[B]`, as `ms.observe(...).angle`; has no gradient.
      where: rows that count, `[B]` booleans, as in the loss; for `angle` alone. Others, and those whose angle is NaN
        because their label names no class, take no part in the ranking: each has the margin that it drew.

    Returns:
      A `Margin`.

    Raises:
      TypeError: `angle` is not real floating point, or `where` no booleans.
      ValueError: an argument is out of range.

    References:
      Boutros, Damer, Kirchbuchner, Kuijper, ElasticFace: Elastic Margin Loss for Deep Face Recognition, CVPR
      workshops 2022.

    Example:
      >>> x, w, y = jnp.array([[0.6, 0.8]]), jnp.eye(2), jnp.array([1])
      >>> margin = ms.elastic_cosface(jax.random.key(0), 1, deviation=0.0, scale=10.0)
      >>> bool(jnp.allclose(ms.margin_loss(x, w, y, margin), ms.margin_loss(x, w, y, ms.cosface(scale=10.0))))
      True
    """
    drawn = _drawn(key, batch, _checks.cosine_margin("margin", margin), deviation, angle, where)
    return softmax(Partial(additive_cosine, margin=drawn), scale=_checks.scale_of(scale))


def _drawn(key, batch, mean, deviation, angle, where):
    batch = int(_checks.static_number("batch", batch, at_least=0, whole=True))
    deviation = _checks.number("deviation", deviation, at_least=0.0)
    drawn = mean + deviation * jax.random.normal(key, (batch,), jnp.float32)
    if angle is None:
        if where is not None:
            raise ValueError("where: has no meaning without an angle, by which the rows are ranked. Leave it out.")
        return drawn
    angle = _checks.real_array("angle", angle)
    _checks.shape("angle", angle, (batch,), f"[B] = ({batch},)")
    return _ranked(angle, drawn, _checks.mask_of(where, batch))


@split_as_examples
@jax.jit
def _ranked(angle, drawn, where):
    """The margins drawn for the rows that count, in the order of their angles."""
    counted = ~jnp.isnan(angle) if where is None else where & ~jnp.isnan(angle)
    # What does not count comes last in both orders, so that the rest is ranked as if it were alone.
    rank = jnp.argsort(jnp.argsort(jnp.where(counted, jax.lax.stop_gradient(angle), jnp.inf)))
    return jnp.where(counted, jnp.sort(jnp.where(counted, drawn, jnp.inf))[rank], drawn)


def adaptive_face(margins: jax.Array, labels: jax.Array, scale: Numeric = 30.0) -> Margin:
    """AdaptiveFace: an additive cosine margin for every class, learned.

        z_y = s (cos(theta) - m_y)

    `margins` is a parameter of the training: add `ms.adaptive_face_regularizer(margins)` to the loss, without which
    they fall, and keep them within [0, 1], `jnp.clip`, after each step. (A class without examples in a batch is moved
    by the regulariser alone.)

    Args:
      margins: m by class, `[C]`, differences of cosines.
      labels: own class of each example, `[B]` integers in [0, C).
      scale: s > 0; a number or `[B]`, may be traced.

    Returns:
      A `Margin`.

    Raises:
      TypeError: `margins` are not real floating point, or `labels` no integers.
      ValueError: a shape or a concrete number is out of range.

    References:
      Liu, Zhu, Lei, Li, AdaptiveFace: Adaptive Margin and Sampling for Face Recognition, CVPR 2019.

    Example:
      >>> x, w, y = jnp.array([[0.6, 0.8]]), jnp.eye(2), jnp.array([1])
      >>> def loss(margins):
      ...     loss = ms.margin_loss(x, w, y, ms.adaptive_face(margins, y, scale=8.0)).mean()
      ...     return loss + ms.adaptive_face_regularizer(margins)
      >>> jax.grad(loss)(jnp.array([0.4, 0.4]))
      Array([-35.    , -28.3439], dtype=float32)
    """
    return am_softmax(_of_labels(_checks.cosine_margin("margins", margins), labels), scale)


def adaptive_face_regularizer(margins: jax.Array, weight: Numeric = 70.0) -> jax.Array:
    """What keeps the margins of AdaptiveFace up.

        -weight mean(m_c)

    Beside the mean loss of a batch, a class of average size pulls its margin down by at most s / C, and this pushes it
    up by weight / C: with a weight above s, as the default is for most s, margins go on rising to their bound.

    Args:
      margins: m by class, `[C]`.
      weight: lambda >= 0.

    Returns:
      A scalar.

    Raises:
      TypeError: `margins` are not real floating point.
      ValueError: `margins` has another shape, or `weight` is negative.

    References:
      Liu, Zhu, Lei, Li, AdaptiveFace: Adaptive Margin and Sampling for Face Recognition, CVPR 2019.

    Example:
      >>> ms.adaptive_face_regularizer(jnp.array([0.25, 0.75]))
      Array(-35., dtype=float32)
    """
    margins = _checks.real_array("margins", margins)
    _checks.shape("margins", margins, (None,), "[C]", "One margin per class.")
    return -_checks.one_number("weight", weight, at_least=0.0) * jnp.mean(margins)


def ldam_margins(counts: jax.Array, largest: float = 0.5) -> jax.Array:
    """Label-distribution-aware margins: rarer classes get larger ones.

        m_c = largest (n_min / n_c)^(1/4)

    The paper's loss is `ms.am_softmax(ms.ldam_margins(counts)[labels], scale=30.0)`; its deferred re-weighting is a
    weight on the losses, from a late epoch on.

    Args:
      counts: n_c, examples of each class, `[C]`, >= 1; concrete.
      largest: margin of the rarest class, a difference of cosines, > 0.

    Returns:
      m_c, `[C]` float32.

    Raises:
      TypeError: `counts` are traced.
      ValueError: a count is below 1, or `largest` out of range.

    References:
      Cao, Wei, Gaidon, Arechiga, Ma, Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, NeurIPS
      2019.

    Example:
      >>> ms.ldam_margins([1, 16, 81])
      Array([0.5   , 0.25  , 0.1667], dtype=float32)
    """
    _checks.static_number("largest", largest, above=0.0, at_most=2.0)
    rarity = _counts(counts) ** -0.25
    return jnp.asarray(largest * rarity / rarity.max(), jnp.float32)


def frequency_margins(
    counts: jax.Array, lowest: float = 0.05, highest: float = 0.5, *, power: float = -0.25
) -> jax.Array:
    """Class-wise margins between two bounds, by frequency (dynamic margins): rarer classes get larger ones.

        m_c = lowest + (highest - lowest) (n_c^power - min) / (max - min),   min and max of n_c^power over the classes

    Two of its users: GLDv2's third place of 2020, `ms.arcface(table[labels], scale=80.0)` with three sub-centres, and
    a retrieval toolbox. Where all counts are equal no class is rare: all margins are the lowest.

    Args:
      counts: n_c, examples of each class, `[C]`, >= 1; concrete.
      lowest: margin of the most frequent class, >= 0.
      highest: margin of the rarest class, >= lowest.
      power: of the counts, < 0.

    Returns:
      m_c, `[C]` float32.

    Raises:
      TypeError: `counts` are traced.
      ValueError: a count is below 1, or a bound is out of range.

    References:
      Ha, Liu, Liu, Liao, Google Landmark Recognition 2020 Competition Third Place Solution, 2020.

    Example:
      >>> ms.frequency_margins([1, 16, 81])
      Array([0.5   , 0.1625, 0.05  ], dtype=float32)
    """
    _checks.static_number("lowest", lowest, at_least=0.0)
    _checks.static_number("highest", highest, at_least=lowest, at_most=math.pi)
    _checks.static_number("power", power, at_most=-1e-6)
    rarity = _counts(counts) ** power
    spread = rarity.max() - rarity.min()
    share = (rarity - rarity.min()) / spread if spread > 0 else np.zeros_like(rarity)
    return jnp.asarray(lowest + (highest - lowest) * share, jnp.float32)


def logit_adjustment(counts: jax.Array, tau: float = 1.0) -> jax.Array:
    """The bias that takes the classes' frequencies out of what is learned.

        b_c = tau log(n_c / sum n)

    It goes to every loss as `bias=ms.logit_adjustment(counts)`; with `ms.plain()` and tau = 1 this is also called
    balanced softmax. Leave the bias out when classes are predicted.

    Args:
      counts: n_c, examples of each class, `[C]`, >= 1; concrete.
      tau: strength, >= 0.

    Returns:
      b_c, `[C]` float32.

    Raises:
      TypeError: `counts` are traced.
      ValueError: a count is below 1, or `tau` is negative.

    References:
      Menon et al., Long-tail Learning via Logit Adjustment, ICLR 2021.

    Example:
      >>> ms.logit_adjustment([1, 3])
      Array([-1.3863, -0.2877], dtype=float32)
    """
    _checks.static_number("tau", tau, at_least=0.0)
    numbers = _counts(counts)
    return jnp.asarray(tau * np.log(numbers / numbers.sum()), jnp.float32)


def kappaface_margins(
    memory: jax.Array,
    labels: jax.Array,
    num_classes: int,
    margin: float = 0.8,
    *,
    temperature: float = 0.4,
    gamma: float = 0.7,
    headroom: float = 1.0,
) -> jax.Array:
    """KappaFace: larger angular margins for classes that are spread out, or rare.

        m_c = m0 (gamma w_k + (1 - gamma) w_n)

        w_k = 1 - sigmoid(T (kappa_c - mean) / deviation),   kappa_c = r (D - r^2) / (1 - r^2)
        w_n = (1 + cos(pi n_c / (headroom n_max))) / 2

    `r` is the length of the mean direction of the class's examples, kappa the concentration of a von Mises-Fisher
    distribution. Compute it once per epoch, from the memory that `ms.update_kappaface` keeps, and train with
    `ms.arcface(table[labels])`. Order of the weights as in the authors' code, whose headroom is 1.05.

    Args:
      memory: a direction for every example of the training set, `[N, D]`; zeros for those not seen yet.
      labels: their classes, `[N]` integers in [0, C); others count nowhere.
      num_classes: C, static.
      margin: m0, in radians, from 0 to pi.
      temperature: T > 0.
      gamma: weight of the concentration, from 0 to 1.
      headroom: >= 1; at 1 the most frequent class has w_n = 0.

    Returns:
      m_c, `[C]` float32. Classes without examples have the mean concentration.

    Raises:
      TypeError: `memory` is not real floating point, or `labels` no integers.
      ValueError: a shape or a number is out of range.

    References:
      Oinar, Le, Woo, KappaFace: Adaptive Additive Angular Margin Loss for Deep Face Recognition, IEEE Access 2023.

    Example:
      >>> memory = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [1.0, 0.0]])
      >>> ms.kappaface_margins(memory, jnp.array([0, 0, 1, 1]), 2)
      Array([0.2407, 0.3193], dtype=float32)
    """
    memory = _checks.real_array("memory", memory)
    _checks.shape("memory", memory, (None, None), "[N, D]")
    num_classes = int(_checks.static_number("num_classes", num_classes, at_least=1, whole=True))
    labels = _checks.labels_of(labels, memory.shape[0], num_classes)
    margin = _checks.angle_margin("margin", margin)
    temperature = _checks.one_number("temperature", temperature, above=0.0)
    gamma = _checks.one_number("gamma", gamma, at_least=0.0, at_most=1.0)
    headroom = _checks.one_number("headroom", headroom, at_least=1.0)
    return _kappaface_margins(memory, labels, margin, temperature, gamma, headroom, num_classes=num_classes)


@same_everywhere
@functools.partial(jax.jit, static_argnames="num_classes")
def _kappaface_margins(memory, labels, margin, temperature, gamma, headroom, *, num_classes):
    memory = memory.astype(angles.compute_dtype(memory))
    dim = memory.shape[1]
    seen = jnp.any(memory != 0, axis=1)
    valid, labels = _checks.in_range(labels, num_classes)
    by_class = jnp.where(seen & valid, labels, num_classes)  # what is not seen yet belongs to no class
    counts = jnp.zeros(num_classes, memory.dtype).at[by_class].add(1.0, mode="drop")
    sums = jnp.zeros((num_classes, dim), memory.dtype).at[by_class].add(memory, mode="drop")
    present = counts > 0
    # A class of one example, or of equal ones, has r = 1 and an infinite concentration: as in the authors' code it
    # counts as the largest finite one.
    squared = jnp.minimum(jnp.sum(jnp.square(sums), axis=1) / jnp.square(jnp.maximum(counts, 1.0)), 1.0)
    finite = present & (squared < 1.0 - 4 * float(jnp.finfo(memory.dtype).eps))
    kappa = jnp.sqrt(squared) * (dim - squared) / jnp.where(finite, 1.0 - squared, 1.0)
    kappa = jnp.where(finite, kappa, jnp.max(jnp.where(finite, kappa, 0.0)))
    number = jnp.maximum(jnp.sum(present.astype(memory.dtype)), 2.0)
    mean = jnp.sum(jnp.where(present, kappa, 0.0)) / jnp.maximum(jnp.sum(present.astype(memory.dtype)), 1.0)
    distance = jnp.where(present, kappa - mean, 0.0)
    deviation = jnp.sqrt(jnp.sum(jnp.square(distance)) / (number - 1.0))
    standard = distance / jnp.where(deviation > 0, deviation, 1.0)
    spread_out = 1.0 - jax.nn.sigmoid(temperature * standard)
    rare = (1.0 + jnp.cos(math.pi * counts / (headroom * jnp.maximum(jnp.max(counts), 1.0)))) / 2
    return margin * (gamma * spread_out + (1.0 - gamma) * rare)


def kappaface(margins: jax.Array, labels: jax.Array, scale: Numeric = 64.0) -> Margin:
    """KappaFace: an additive angular margin for every class, larger for classes that are spread out, or rare.

        z_y = s psi(theta + m_y)

    The table `margins` follows the training from afar: `ms.update_kappaface` remembers a direction for every example,
    and once per epoch `ms.kappaface_margins` makes the table anew.

    Args:
      margins: m by class, `[C]`, in radians, from 0 to pi.
      labels: own class of each example, `[B]` integers in [0, C).
      scale: s > 0; a number or `[B]`, may be traced.

    Returns:
      A `Margin`.

    Raises:
      TypeError: `margins` are not real floating point, or `labels` no integers.
      ValueError: a shape or a concrete number is out of range (a margin above pi is taken for degrees).

    References:
      Oinar, Le, Woo, KappaFace: Adaptive Additive Angular Margin Loss for Deep Face Recognition, IEEE Access 2023.

    Example:
      >>> x, w, y = jnp.array([[0.6, 0.8], [0.8, 0.6]]), jnp.eye(2), jnp.array([1, 0])
      >>> ms.margin_logits(x, w, y, ms.kappaface(jnp.array([0.5, 0.2]), y, scale=10.0))
      Array([[6.    , 6.6485],
             [4.1441, 6.    ]], dtype=float32)
    """
    return arcface(_of_labels(_checks.angle_margin("margins", margins), labels), scale)


def _of_labels(margins, labels):
    """Of a table by class the number of each example; for a label that names no class any: its loss is NaN."""
    margins = _checks.real_array("margins", margins)
    _checks.shape("margins", margins, (None,), "[C]", "One margin per class.")
    return _looked_up(_checks.labels_of(labels, None, len(margins)), margins)


@split_as_examples
@jax.jit
def _looked_up(labels, margins):
    return margins.at[labels].get(mode="clip")


def _counts(counts) -> np.ndarray:
    if _checks.is_traced(counts):
        raise TypeError("counts: expected concrete numbers, came traced ones. Make the table once, outside jit.")
    counts = np.asarray(counts)
    if counts.ndim != 1 or not counts.size:
        raise ValueError(f"counts: expected shape [C], came {counts.shape}. One number per class.")
    _checks.number("counts", counts, at_least=1.0, hint="Every class needs an example, or no frequency is defined.")
    return counts.astype(np.float64)
