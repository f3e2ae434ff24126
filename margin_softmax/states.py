"""Explicit state: what adaptive losses carry from step to step, as pure functions of the state and a batch.

Nothing is remembered anywhere else. State changes where the caller calls an update, in training, and is saved with
the parameters. Rows that do not count (masked, or of a label that names no class) change nothing, nor does a batch
without any. Where a batch is split over devices, `axis_name` joins its parts: sums are added up, a median gathered.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from margin_softmax import _checks, angles, heads, losses, reductions
from margin_softmax._checks import Numeric
from margin_softmax._meshes import as_the_first, same_everywhere
from margin_softmax.adaptive import AdaFaceState, checked_state
from margin_softmax.heads import Head
from margin_softmax.margins import Statistic, normface


def update_adaface(
    state: AdaFaceState,
    features: jax.Array,
    *,
    momentum: float = 0.99,
    where: jax.Array | None = None,
    axis_name: str | None = None,
) -> AdaFaceState:
    """The next state of AdaFace: moving averages of the mean norm and of its deviation.

        mean <- momentum mean + (1 - momentum) mean(|x|),   deviation likewise, of the sample deviation (over B - 1)

    The paper's alpha is 0.99, the authors' command line has 0.01 for the same thing, and their class 1.0, with which
    nothing is remembered. A batch of one has no deviation: it updates the mean alone, where the authors' code turns
    NaN for good. Norms count as within [0.001, 100], as in their code.

    Args:
      state: before; `ms.AdaFaceState()` at first.
      features: `[B, D]`, real.
      momentum: share of the old values, from 0 to 1.
      where: rows that count, `[B]` booleans.
      axis_name: mapped axis over which the batch is split, as in `jax.lax.psum`.

    Returns:
      The next state, without a gradient.

    Raises:
      TypeError: `state` is no `AdaFaceState`, or `features` are not real floating point.
      ValueError: a shape or a concrete number is out of range.

    References:
      Kim, Jain, Liu, AdaFace: Quality Adaptive Margin for Face Recognition, CVPR 2022.

    Example:
      >>> ms.update_adaface(ms.AdaFaceState(), jnp.array([[3.0, 4.0], [6.0, 8.0]]), momentum=0.5)
      AdaFaceState(mean=Array(13.75, dtype=float32), deviation=Array(51.7678, dtype=float32))
    """
    state = checked_state(state, _checks.one_number)
    features = _checks.real_array("features", features)
    _checks.shape("features", features, (None, None), "[B, D]")
    momentum = _checks.one_number("momentum", momentum, at_least=0.0, at_most=1.0)
    return _update_adaface(state, features, momentum, _checks.mask_of(where, features.shape[0]), axis_name=axis_name)


@functools.partial(jax.jit, static_argnames="axis_name")
def _update_adaface(state, features, momentum, where, *, axis_name):
    counted = jnp.ones(features.shape[0], bool) if where is None else where
    features = jnp.where(counted[:, None], features.astype(angles.compute_dtype(features)), 0.0)
    norms = jnp.clip(angles.norm(jax.lax.stop_gradient(features)), 1e-3, 100.0)
    old = jnp.asarray(state.mean).astype(norms.dtype), jnp.asarray(state.deviation).astype(norms.dtype)
    # About the old mean, which every device knows: sums of bare squares would cost half the digits.
    distance = norms - old[0]
    count, first, second = (_sum(term, counted, axis_name) for term in (jnp.ones_like(norms), distance, distance**2))
    mean = first / jnp.maximum(count, 1.0)
    variance = jnp.maximum(second - count * mean**2, 0.0) / jnp.maximum(count - 1.0, 1.0)
    return AdaFaceState(
        _moved(old[0], old[0] + mean, momentum, count >= 1), _moved(old[1], jnp.sqrt(variance), momentum, count >= 2)
    )


def update_curricularface(
    t: Numeric,
    features: jax.Array,
    weights: jax.Array,
    labels: jax.Array,
    *,
    momentum: float = 0.99,
    head: Head = heads.blockwise(),
    where: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """The next `t` of CurricularFace: a moving average of the mean own cosine.

        t <- momentum t + (1 - momentum) mean(cos(theta))

    The authors' code calls 0.99 the share of the old value, as here, and updates before it uses `t`, also in
    evaluation and apart on every device; the paper's text can be read the other way round.

    Args:
      t: before, from -1 to 1; 0 at first.
      features: `[B, D]`, real.
      weights: `[C, D]` or `[C, K, D]`.
      labels: `[B]` integers in [0, C).
      momentum: share of the old value, from 0 to 1.
      head: where it runs. Static.
      where: rows that count, `[B]` booleans.
      axis_name: mapped axis over which the batch is split, as in `jax.lax.psum`.

    Returns:
      The next `t`, a scalar without a gradient.

    Raises:
      TypeError: an argument has the wrong dtype.
      ValueError: a shape or a concrete value is out of range.

    References:
      Huang et al., CurricularFace: Adaptive Curriculum Learning Loss for Deep Face Recognition, CVPR 2020.

    Example:
      >>> t = ms.update_curricularface(0.0, jnp.array([[3.0, 4.0]]), jnp.eye(2), jnp.array([1]), momentum=0.9)
      >>> round(float(t), 3)
      0.08
    """
    t = _checks.one_number("t", t, at_least=-1.0, at_most=1.0)
    momentum = _checks.one_number("momentum", momentum, at_least=0.0, at_most=1.0)
    own, counted = losses.observed(features, weights, labels, normface(1.0), head=head, where=where)
    count, total = (_sum(term, counted, axis_name) for term in (jnp.ones_like(own.angle), jnp.cos(own.angle)))
    return _moved(jnp.asarray(t).astype(own.angle.dtype), total / jnp.maximum(count, 1.0), momentum, count >= 1)


def update_adacos(
    scale: Numeric,
    features: jax.Array,
    weights: jax.Array,
    labels: jax.Array,
    *,
    head: Head = heads.blockwise(),
    where: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """The next scale of dynamic AdaCos, from the batch's wrong logits and its median angle.

        s <- log(mean over the batch of sum_{j != y} e^{s c_j}) / cos(min(pi / 4, median(theta)))

    Use it as `ms.normface(scale)`. The median is that of the whole batch, the mean of the middle two where B is even.
    What is not above 0 is no scale: then s stays as it was. It may be so where classes are few and far apart, and is
    with one class.

    Args:
      scale: s before; `ms.adacos(num_classes).scale` at first.
      features: `[B, D]`, real.
      weights: `[C, D]` or `[C, K, D]`.
      labels: `[B]` integers in [0, C).
      head: where it runs. Static.
      where: rows that count, `[B]` booleans.
      axis_name: mapped axis over which the batch is split, as in `jax.lax.psum`.

    Returns:
      The next s, a scalar without a gradient.

    Raises:
      TypeError: an argument has the wrong dtype.
      ValueError: a shape or a concrete value is out of range.

    References:
      Zhang, Zhao, Qiao, Wang, Li, AdaCos: Adaptively Scaling Cosine Logits for Effectively Learning Deep Face
      Representations, CVPR 2019.

    Example:
      >>> x, w = jax.random.normal(jax.random.key(0), (8, 4)), jax.random.normal(jax.random.key(1), (50, 4))
      >>> round(float(ms.update_adacos(ms.adacos(50).scale, x, w, jnp.arange(8))), 2)
      9.43
    """
    scale = _checks.one_number("scale", scale, above=0.0)
    margin = normface(scale)._replace(statistic=Statistic(Partial(_logits, scale=scale), reductions.log_sum_exp()))
    own, counted = losses.observed(features, weights, labels, margin, head=head, where=where)
    return _next_adacos(own, counted, scale, axis_name=axis_name)


@same_everywhere
@functools.partial(jax.jit, static_argnames="axis_name")
def _next_adacos(own, counted, scale, *, axis_name):
    log_sums = jnp.where(counted, own.statistic.largest + own.statistic.log_sum, -jnp.inf)
    angle = jnp.where(counted, own.angle, jnp.inf)
    if axis_name is not None:
        log_sums, angle = (jax.lax.all_gather(x, axis_name, tiled=True) for x in (log_sums, angle))
    count = jnp.sum(angle < jnp.inf)
    # With one more that does not count, as an empty batch has none.
    log_sums, angle = (jnp.pad(x, (0, 1), constant_values=no) for x, no in ((log_sums, -jnp.inf), (angle, jnp.inf)))
    angle = jnp.sort(angle)
    middle = (angle[jnp.maximum(count - 1, 0) // 2] + angle[count // 2]) / 2
    log_mean = jax.nn.logsumexp(log_sums) - jnp.log(jnp.maximum(count, 1).astype(angle.dtype))
    new = log_mean / jnp.cos(jnp.minimum(middle, math.pi / 4))
    # A NaN is not kept out: it must stay visible.
    return _moved(jnp.asarray(scale).astype(angle.dtype), new, 0.0, (count >= 1) & ~(new <= 0))


def _logits(products, own, *, scale):
    del own
    return scale * products


def cifp_threshold(
    features: jax.Array,
    weights: jax.Array,
    labels: jax.Array,
    *,
    rate: float | None = None,
    head: Head = heads.blockwise(),
    where: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """The cosine above which a batch has a given share of false positives: the threshold of `ms.cifp`.

        the n-th largest c_j <= c_y of the batch,   n = ceil(rate (B (C - 1) - number of c_j > c_y))

    It keeps the n largest wrong cosines of every example on the way, B of them with the usual rate.

    Args:
      features: `[B, D]`, real.
      weights: `[C, D]` or `[C, K, D]`.
      labels: `[B]` integers in [0, C).
      rate: share of wrong pairs that are to be false positives, in (0, 1]; 1 / (C - 1), one for each example on
        average, unless given. Static.
      head: where it runs. Static.
      where: rows that count, `[B]` booleans.
      axis_name: mapped axis over which the batch is split, as in `jax.lax.psum`.

    Returns:
      A scalar without a gradient; 1 where no row counts.

    Raises:
      TypeError: an argument has the wrong dtype.
      ValueError: a shape or a concrete value is out of range.

    References:
      Xu et al., Consistent Instance False Positive Improves Fairness in Face Recognition, CVPR 2021, and its code.

    Example:
      >>> x, w, y = jnp.array([[0.6, 0.8], [0.0, 1.0]]), jnp.eye(2), jnp.array([1, 1])
      >>> float(ms.cifp_threshold(x, w, y, rate=0.5))
      0.6000000238418579
    """
    features, weights = _checks.features_and_weights(features, weights)
    batch, num_classes = features.shape[0], _checks.head(head).num_classes(weights)
    if rate is not None:
        _checks.static_number("rate", rate, above=0.0, at_most=1.0)
    share = 1.0 / max(num_classes - 1, 1) if rate is None else float(rate)
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    kept = max(min(math.ceil(share * batch * devices * (num_classes - 1)), num_classes - 1), 1)
    statistic = reductions.pair(reductions.top_k(kept), reductions.sum_of(_closed))
    margin = normface(1.0)._replace(statistic=Statistic(Partial(_no_nearer_than_own), statistic))
    own, counted = losses.observed(features, weights, labels, margin, head=head, where=where)
    return _threshold(*own.statistic, counted, share=share, others=num_classes - 1, axis_name=axis_name)


@same_everywhere
@functools.partial(jax.jit, static_argnames=("share", "others", "axis_name"))
def _threshold(cosines, nearer, counted, *, share, others, axis_name):
    cosines = jnp.where(counted[:, None], cosines, -jnp.inf).reshape(-1)
    if axis_name is not None:
        cosines = jax.lax.all_gather(cosines, axis_name, tiled=True)
    cosines = jnp.pad(cosines, (0, 1), constant_values=-jnp.inf)  # an empty batch has none
    count = _sum(jnp.ones_like(nearer), counted, axis_name)
    wanted = (share * others) * count - share * _sum(nearer, counted, axis_name)
    # A whole number that rounding has lifted is still that number.
    place = jnp.clip(jnp.ceil(wanted - 1e-4).astype(jnp.int32) - 1, 0, cosines.size - 1)
    found = -jnp.sort(-cosines)[place]
    return jax.lax.stop_gradient(jnp.where((count >= 1) & (found > -jnp.inf), found, 1.0))


def _no_nearer_than_own(products, own):
    return jnp.where(products <= own.product, products, -jnp.inf)


def _closed(z):
    return (z == -jnp.inf).astype(z.dtype)


def update_kappaface(
    memory: jax.Array, features: jax.Array, examples: jax.Array, *, rate: float = 0.9, where: jax.Array | None = None
) -> jax.Array:
    """The next memory of KappaFace: the directions of the examples that a batch showed, mixed into the old ones.

        m_i <- unit((1 - rate) m_i + rate unit(x_i))

    As in the authors' code the new direction has the larger share. `jnp.zeros((N, D))` at first; once per epoch
    `ms.kappaface_margins` makes the table of margins from it.

    Args:
      memory: `[N, D]`, a row for every example of the training set.
      features: `[B, D]`, real.
      examples: which examples they are, `[B]` integers in [0, N), each once. Rows of others change nothing, as those
        of a label that names no class.
      rate: share of the new direction, in (0, 1].
      where: rows that count, `[B]` booleans.

    Returns:
      The next memory, `[N, D]`, without a gradient.

    Raises:
      TypeError: an argument has the wrong dtype.
      ValueError: a shape or a concrete value is out of range.

    References:
      Oinar, Le, Woo, KappaFace: Adaptive Additive Angular Margin Loss for Deep Face Recognition, IEEE Access 2023.

    Example:
      >>> ms.update_kappaface(jnp.zeros((3, 2)), jnp.array([[3.0, 4.0]]), jnp.array([1]))
      Array([[0. , 0. ],
             [0.6, 0.8],
             [0. , 0. ]], dtype=float32)
    """
    memory, features = _checks.real_array("memory", memory), _checks.real_array("features", features)
    _checks.shape("memory", memory, (None, None), "[N, D]")
    _checks.shape("features", features, (None, memory.shape[1]), f"[B, {memory.shape[1]}]")
    examples = _checks.indices_of("examples", examples, features.shape[0], memory.shape[0])
    rate = _checks.one_number("rate", rate, above=0.0, at_most=1.0)
    return _update_kappaface(memory, features, examples, rate, _checks.mask_of(where, features.shape[0]))


@as_the_first
@jax.jit
def _update_kappaface(memory, features, examples, rate, where):
    counted, examples = _checks.in_range(examples, memory.shape[0])
    counted = counted if where is None else counted & where
    features = jax.lax.stop_gradient(jnp.where(counted[:, None], features.astype(memory.dtype), 0.0))
    mixed = angles.unit((1.0 - rate) * memory.at[examples].get(mode="clip") + rate * angles.unit(features))
    return memory.at[jnp.where(counted, examples, memory.shape[0])].set(mixed, mode="drop")


def _sum(terms, counted, axis_name):
    """Over the rows that count, of all devices."""
    total = jnp.sum(jnp.where(counted, jax.lax.stop_gradient(terms), 0.0))
    return total if axis_name is None else jax.lax.psum(total, axis_name)


def _moved(old, new, momentum, defined):
    """The moving average, where there is something new."""
    return jax.lax.stop_gradient(jnp.where(defined, momentum * old + (1.0 - momentum) * new, old))
