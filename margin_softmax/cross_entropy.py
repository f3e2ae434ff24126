"""Cross-entropy on given logits, with the closed-form gradient `p - y` and none of its cancellation."""

import jax
import jax.numpy as jnp

from margin_softmax import _checks, angles, reductions
from margin_softmax._checks import Numeric


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: Numeric = 0.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of each example with softmax built in.

        loss = log(sum_j e^{z_j}) - z_y = softplus(L - z_y),   L = log sum_{j != y} e^{z_j}

        dloss/dz = p - y:   -(1 - p_y) at the own class, 1 - p_y = sigmoid(L - z_y);   p_j elsewhere

    With distributions `t` as labels the loss is `-sum_j t_j log p_j` and its gradient `p sum(t) - t`. Neither loss
    nor gradient loses digits where `p_y` is close to 1: `1 - p_y` is never formed by subtraction.

    The gradient is written by hand, so JAX refuses forward mode through the loss (`jax.jvp`, `jax.jacfwd`); second
    derivatives of either order over the gradient work.

    Args:
      logits: `[B, C]`, real; -inf closes a class.
      labels: `[B]` integers in [0, C), or `[B, C]` distributions, real and >= 0, of any sum. A label outside makes
        that row's loss NaN and its gradient 0; no other row changes.
      label_smoothing: epsilon in [0, 1]: the target becomes `(1 - epsilon) t + epsilon / C`.
      where: rows that count, `[B]` booleans. The others have loss 0 and gradient 0, whatever they hold.

    Returns:
      Losses `[B]`, float32 (float64 for float64 logits), not reduced.

    Raises:
      TypeError: an argument has the wrong dtype.
      ValueError: an argument has the wrong shape or a concrete value out of range.

    References:
      Bridle, Probabilistic Interpretation of Feedforward Classification Network Outputs, 1990.
      Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016 (label smoothing).

    Example:
      >>> ms.cross_entropy(jnp.array([[-1000.0, -1000.0, -1000.0], [0.0, 50.0, 0.0]]), jnp.array([0, 1]))
      Array([1.0986e+00, 3.8575e-22], dtype=float32)
    """
    logits = _checks.real_array("logits", logits)
    _checks.shape("logits", logits, (None, None), "[B, C]", "Reshape other leading axes into one.")
    batch, num_classes = logits.shape
    if num_classes == 0:
        raise ValueError(f"logits: expected at least one class, came shape {logits.shape}.")
    labels = _labels(labels, batch, num_classes)
    where = _checks.mask_of(where, batch)
    return _cross_entropy(logits, labels, _checks.smoothing_of(label_smoothing), where)


def _labels(labels, batch, num_classes):
    if _checks.holds_reals("labels", labels):
        distributions = _checks.real_array("labels", labels)
        letters = f"[B, C] = ({batch}, {num_classes})"
        fix = "Real labels are distributions over the classes; class indices are integers."
        _checks.shape("labels", distributions, (batch, num_classes), letters, fix)
        return distributions
    return _checks.labels_of(labels, batch, num_classes)


@jax.jit
def _cross_entropy(logits, labels, label_smoothing, where):
    dtype = angles.compute_dtype(logits)
    logits = logits.astype(dtype)
    if where is not None:
        logits = jnp.where(where[:, None], logits, 0.0)
    smoothing = None if label_smoothing is None else jnp.asarray(label_smoothing, dtype)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        valid, labels = _checks.in_range(labels, logits.shape[-1])
        losses = _of_labels(jnp.where(valid[:, None], logits, 0.0), labels)
        if smoothing is not None:
            losses = losses + smoothing * (_own(logits, labels) - jnp.mean(logits, axis=-1))
    else:
        valid = jnp.ones(logits.shape[:1], bool)
        labels = labels.astype(dtype)
        if where is not None:
            labels = jnp.where(where[:, None], labels, 1.0 / logits.shape[-1])
        if smoothing is not None:
            labels = (1.0 - smoothing) * labels + smoothing / logits.shape[-1]
        losses = _of_distributions(logits, labels)
    return _checks.only_counted(losses, valid, where)


def _is_own(logits, labels):
    # A comparison, not a gather: it keeps logits that are sharded by class where they are.
    return jnp.arange(logits.shape[-1], dtype=labels.dtype)[None] == labels[:, None]


def _own(logits, labels):
    return jnp.sum(jnp.where(_is_own(logits, labels), logits, 0.0), axis=-1)


@jax.custom_vjp
def _of_labels(logits, labels):
    return _of_labels_fwd(logits, labels)[0]


def _of_labels_fwd(logits, labels):
    reduction = reductions.log_sum_exp()
    ids = jnp.arange(logits.shape[-1], dtype=labels.dtype)
    others = reduction.total(reduction.of(logits, ids[None] != labels[:, None], ids))
    distance = others.minus(_own(logits, labels))
    return jax.nn.softplus(distance), (logits, labels, others, distance)


def _of_labels_bwd(residuals, losses_bar):
    logits, labels, others, distance = residuals
    is_own = _is_own(logits, labels)
    others_bar = losses_bar * jax.nn.sigmoid(distance)
    logits_bar = reductions.log_sum_exp().pull(logits, ~is_own, others, others._replace(log_sum=others_bar))
    return jnp.where(is_own, -others_bar[:, None], logits_bar), None


_of_labels.defvjp(_of_labels_fwd, _of_labels_bwd)


@jax.custom_vjp
def _of_distributions(logits, labels):
    return _of_distributions_fwd(logits, labels)[0]


def _of_distributions_fwd(logits, labels):
    """`-log p_j = (z_max - z_j) + log1p(rest)`, with `rest` the classes but the largest: all terms are >= 0."""
    top = jnp.argmax(logits, axis=-1)
    is_top = _is_own(logits, top)
    # The logit of that one class: of equal ones, `max` would have the mean slope, and second derivatives be wrong.
    largest = jnp.sum(jnp.where(is_top, logits, 0.0), axis=-1, keepdims=True)
    rest = jnp.sum(jnp.where(is_top, 0.0, jnp.exp(logits - largest)), axis=-1, keepdims=True)
    surprise = (largest - logits) + jnp.log1p(rest)
    losses = jnp.sum(jnp.where(labels == 0, 0.0, labels * jnp.where(labels == 0, 0.0, surprise)), axis=-1)
    return losses, (logits, labels, largest, rest, is_top, surprise)


def _of_distributions_bwd(residuals, losses_bar):
    """`p T - t = p (T - t) - t (1 - p)`, each difference as the sum of what it leaves."""
    logits, labels, largest, rest, is_top, surprise = residuals
    p = jnp.exp(logits - largest) / (1.0 + rest)
    not_p = jnp.where(is_top, rest / (1.0 + rest), 1.0 - p)
    is_most = _is_own(labels, jnp.argmax(labels, axis=-1))
    total = jnp.sum(labels, axis=-1, keepdims=True)
    not_most = jnp.sum(jnp.where(is_most, 0.0, labels), axis=-1, keepdims=True)
    not_t = jnp.where(is_most, not_most, total - labels)
    return losses_bar[:, None] * (p * not_t - labels * not_p), losses_bar[:, None] * surprise


_of_distributions.defvjp(_of_distributions_fwd, _of_distributions_bwd)
