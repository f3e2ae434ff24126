"""Margin softmax losses and logits: where margins and heads meet, and the only place where they do.

features [B, D], weights [C, D], labels [B]
  -> head.own      -> Own [B]  -> margin.target -> z_y [B]
  -> head.others   -> L [B]    (a reduction over j != y, through margin.others, block by block)
  -> margin.loss(z_y, L, Own) [B]
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from margin_softmax import _checks, angles, heads, reductions
from margin_softmax._checks import Numeric
from margin_softmax._meshes import split_as_examples
from margin_softmax.heads import Classes, Head, Logits, Rows
from margin_softmax.margins import Margin, Own, checked


class _Given(NamedTuple):
    """What the logits of the other classes need of an example."""

    margin: Margin
    own: Own
    target: jax.Array


class _Example(NamedTuple):
    """Examples on the way through a head: every leaf `[B, ...]`, rows that do not count replaced by harmless ones."""

    margin: Margin
    features: jax.Array
    directions: jax.Array


def margin_loss(
    features: jax.Array,
    weights: jax.Array,
    labels: jax.Array,
    margin: Margin,
    *,
    head: Head = heads.blockwise(),
    bias: jax.Array | None = None,
    label_smoothing: Numeric = 0.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """Margin softmax loss of each example, without its `[B, C]` logits.

        loss = log(e^{z_y} + sum_{j != y} e^{z_j}) - z_y = softplus(L - z_y),   L = log sum_{j != y} e^{z_j}

        dloss/dz_y = -(1 - p_y),   1 - p_y = sigmoid(L - z_y),   dloss/dz_j = (1 - p_y) e^{z_j - L} = p_j

    `z` are the margin's logits; in this form the loss is never negative and small losses keep their digits. Margins
    with another reduction define their own loss. The gradient is exact, for features, weights, bias and every number
    in the margin; it comes in the dtype of each input, while all arithmetic is float32 (float64 for float64 inputs).

    Args:
      features: `[B, D]`, real. They need not be normalised; the margin says whether they are.
      weights: one row per class, `[C, D]`; or `[C, K, D]` for K sub-centres, of which the best counts.
      labels: own class of each example, `[B]` integers in [0, C). A label outside makes that row's loss NaN and its
        gradient 0; no other row changes.
      margin: what the loss is, such as `ms.arcface(0.5, scale=64.0)`; its numbers may be traced, or `[B]`.
      head: where it runs: `ms.blockwise()`, `ms.dense()`. Static.
      bias: `[C]`, added to every logit after scale and margin.
      label_smoothing: epsilon in [0, 1]: the target distribution is `(1 - epsilon)` at the own class and
        `epsilon / C` everywhere. For margins that are a softmax over all classes; one against all, or with classes
        filtered out, it has no meaning and is refused.
      where: rows that count, `[B]` booleans. The others have loss 0 and gradient 0, whatever they hold; for the mean
        divide by `where.sum()`.

    Returns:
      Losses `[B]`, float32 or float64, not reduced: `.mean()` is the caller's.

    Raises:
      TypeError: an argument has the wrong dtype, or `margin` is no `Margin`.
      ValueError: an argument has the wrong shape or a concrete value out of range.

    References:
      See the margin.

    Example:
      >>> x = jnp.array([[0.9, 0.1, 0.0], [0.0, 1.0, 0.2]])
      >>> ms.margin_loss(x, jnp.eye(5, 3), jnp.array([0, 1]), ms.arcface(0.5, scale=16.0))
      Array([1.7955e-05, 1.2290e-04], dtype=float32)
    """
    head = _checks.head(head)
    features, weights, labels, margin, bias = _front(features, weights, labels, margin, bias, head)
    where = _checks.mask_of(where, labels.shape[0])
    label_smoothing = _checks.smoothing_of(label_smoothing)
    if label_smoothing is not None and margin.smoothing is None:
        raise ValueError(
            "label_smoothing: expected 0 with this margin, whose loss is no softmax over all classes, came "
            f"{label_smoothing!r}. A target distribution has no meaning for it."
        )
    return _margin_loss(features, weights, labels, margin, bias, label_smoothing, where, head=head)


@split_as_examples
@functools.partial(jax.jit, static_argnames="head")
def _margin_loss(features, weights, labels, margin, bias, label_smoothing, where, *, head):
    features, labels, margin, where = head.place((features, labels, margin, where))
    num_classes = head.num_classes(weights)
    valid, labels = _checks.in_range(labels, num_classes)
    counted = valid if where is None else valid & where
    example = _examples(margin, features, weights, counted)
    classes = Classes(weights, bias)
    own, target, own_bias = _own(head, example, classes, labels)
    margin, target_logit = example.margin, _biased(target * example.margin.scale, own_bias)
    reduction = margin.reduction
    if label_smoothing is not None:
        reduction = reductions.pair(reduction, reductions.linear_sum())
    total = head.others(reduction, OTHER_LOGITS, Rows(example.directions, _given(margin, own, target)), classes, labels)
    if label_smoothing is None:
        losses = margin.loss(target_logit, total, own)
    else:
        assert margin.smoothing is not None  # `margin_loss` refuses it
        total, others_sum = total
        mean = (target_logit + others_sum) / num_classes
        epsilon = jnp.asarray(label_smoothing, target.dtype)
        losses = margin.loss(target_logit, total, own) + epsilon * margin.smoothing(target_logit, mean)
    return _checks.only_counted(losses, valid, where)


def margin_logits(
    features: jax.Array,
    weights: jax.Array,
    labels: jax.Array,
    margin: Margin,
    *,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Logits of all classes with the margin at the own class: `[B, C]`, for any cross-entropy and for looking at.

        z[i, j] = margin's logit of class j for example i, own where j = labels[i]

    `ms.cross_entropy(ms.margin_logits(...), labels)` is `ms.margin_loss(...)` for every softmax margin. Their memory
    grows with batch x classes. Accuracy belongs to logits without a margin: see `ms.nearest_class`.

    Args:
      features: `[B, D]`, real.
      weights: one row per class, `[C, D]`; or `[C, K, D]` for K sub-centres.
      labels: own class of each example, `[B]` integers in [0, C). The row of a label outside is NaN.
      margin: such as `ms.arcface(0.5, scale=64.0)`.
      bias: `[C]`, added to every logit after scale and margin.

    Returns:
      Logits `[B, C]`, float32 or float64.

    Raises:
      TypeError: an argument has the wrong dtype, or `margin` is no `Margin`.
      ValueError: an argument has the wrong shape.

    Example:
      >>> ms.margin_logits(jnp.array([[3.0, 4.0]]), jnp.eye(2), jnp.array([1]), ms.cosface(0.25, scale=8.0))
      Array([[4.8, 4.4]], dtype=float32)
    """
    return _margin_logits(*_front(features, weights, labels, margin, bias, heads.dense()))


@split_as_examples
@jax.jit
def _margin_logits(features, weights, labels, margin, bias):
    head = heads.dense()
    valid, labels = _checks.in_range(labels, weights.shape[0])
    example = _examples(margin, features, weights, valid)
    classes = Classes(weights, bias)
    own, target, own_bias = _own(head, example, classes, labels)
    target_logit = _biased(target * example.margin.scale, own_bias)
    logits = head.logits(OTHER_LOGITS, Rows(example.directions, _given(example.margin, own, target)), classes)
    is_own = jnp.arange(weights.shape[0], dtype=labels.dtype)[None] == labels[:, None]
    return jnp.where(valid[:, None], jnp.where(is_own, target_logit[:, None], logits), jnp.nan)


def observe(
    features: jax.Array,
    weights: jax.Array,
    labels: jax.Array,
    margin: Margin,
    *,
    head: Head = heads.blockwise(),
    where: jax.Array | None = None,
) -> Own:
    """What a margin sees of each example and its own class: angle, product, lengths, and its statistic of the others.

    For watching angles and norms in training, and for what adaptive margins are fed with. Without a gradient.

    Args:
      features: `[B, D]`, real.
      weights: one row per class, `[C, D]`; or `[C, K, D]` for K sub-centres, of which the best counts.
      labels: own class of each example, `[B]` integers in [0, C). A label outside makes that row NaN.
      margin: any; its `features`, `weights` and `statistic` say what is seen.
      head: where it runs. Static.
      where: rows that count, `[B]` booleans. The others are those of a feature of zeros.

    Returns:
      An `Own`, each of its arrays `[B]`.

    Raises:
      TypeError: an argument has the wrong dtype, or `margin` is no `Margin`.
      ValueError: an argument has the wrong shape or a concrete value out of range.

    Example:
      >>> seen = ms.observe(jnp.array([[3.0, 4.0]]), jnp.eye(2), jnp.array([1]), ms.arcface())
      >>> round(float(seen.angle[0]), 4), float(seen.norm[0])
      (0.6435, 5.0)
    """
    own, counted = observed(features, weights, labels, margin, head=head, where=where)
    wrong = ~counted if where is None else ~counted & jnp.asarray(where)
    return jax.tree.map(lambda leaf: jnp.where(jnp.expand_dims(wrong, range(1, leaf.ndim)), jnp.nan, leaf), own)


def observed(features, weights, labels, margin, *, head, where=None) -> tuple[Own, jax.Array]:
    """`observe`, and which rows count."""
    head = _checks.head(head)
    features, weights, labels, margin, _ = _front(features, weights, labels, margin, None, head)
    where = _checks.mask_of(where, labels.shape[0])
    return jax.lax.stop_gradient(_observed(features, weights, labels, margin, where, head=head))


@split_as_examples
@functools.partial(jax.jit, static_argnames="head")
def _observed(features, weights, labels, margin, where, *, head):
    features, labels, margin, where = head.place((features, labels, margin, where))
    valid, labels = _checks.in_range(labels, head.num_classes(weights))
    counted = valid if where is None else valid & where
    example = _examples(margin, features, weights, counted)
    own, _, _ = _own(head, example, Classes(weights), labels)
    return own, counted


def mixed_margin_loss(
    features: jax.Array,
    weights: jax.Array,
    labels: jax.Array,
    other_labels: jax.Array,
    share: Numeric,
    margin: Margin,
    *,
    head: Head = heads.blockwise(),
    bias: jax.Array | None = None,
    label_smoothing: Numeric = 0.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """Margin loss of examples with two labels, as mixup and CutMix make them, without the `[B, C]` logits.

        loss = share loss(y) + (1 - share) loss(y')

    Each of the two losses has its margin at its own label and none at the other. Two passes over the classes.

    Args:
      features: `[B, D]`, real.
      weights: `[C, D]` or `[C, K, D]`.
      labels: y, `[B]` integers in [0, C).
      other_labels: y', `[B]` integers in [0, C).
      share: of y, from 0 to 1; a number or `[B]`, may be traced.
      margin: of both.
      head: where it runs. Static.
      bias: `[C]`.
      label_smoothing: epsilon in [0, 1].
      where: rows that count, `[B]` booleans.

    Returns:
      Losses `[B]`, float32 or float64, not reduced.

    Raises:
      TypeError: an argument has the wrong dtype, or `margin` is no `Margin`.
      ValueError: an argument has the wrong shape or a concrete value out of range.

    References:
      Zhang, Cisse, Dauphin, Lopez-Paz, mixup: Beyond Empirical Risk Minimization, ICLR 2018. For the margin see
      `margin`.

    Example:
      >>> x, w, y, other = jnp.array([[0.6, 0.8]]), jnp.eye(2), jnp.array([1]), jnp.array([0])
      >>> ms.mixed_margin_loss(x, w, y, other, 0.75, ms.cosface(0.1, scale=4.0))
      Array([0.7506], dtype=float32)
    """
    _checks.number("share", share, at_least=0.0, at_most=1.0)
    if jnp.shape(share) not in ((), jnp.shape(labels)):
        raise ValueError(
            f"share: expected a number or one per example {jnp.shape(labels)}, came shape {jnp.shape(share)}."
        )
    loss = functools.partial(
        margin_loss,
        features,
        weights,
        margin=margin,
        head=head,
        bias=bias,
        label_smoothing=label_smoothing,
        where=where,
    )
    first, second = loss(labels), loss(other_labels)
    share = jnp.asarray(share).astype(first.dtype)
    return share * first + (1.0 - share) * second


def nearest_class(
    features: jax.Array, weights: jax.Array, *, labels: jax.Array | None = None, head: Head = heads.blockwise()
) -> tuple[jax.Array, jax.Array]:
    """The class of largest cosine, without the `[B, C]` cosines: accuracy as it will be, with no margin in it.

        index = argmax_j cos(theta_j),   cosine = cos(theta_index)

    The cosine is differentiable, toward the class that won. With labels the maximum is over j != y: the class that an
    example is most easily taken for.

    Args:
      features: `[B, D]`, real.
      weights: one row per class, `[C, D]`; or `[C, K, D]` for K sub-centres.
      labels: `[B]`, integers in [0, C), of which C is then at least 2: each example's own class, which is left out. The
        cosine is NaN where a label is none.
      head: where it runs. Static.

    Returns:
      index `[B]` int32, the lowest of equal ones; cosine `[B]`, float32 or float64.

    Raises:
      TypeError: an input is not real floating point.
      ValueError: the shapes do not fit.

    Example:
      >>> index, cosine = ms.nearest_class(jnp.array([[3.0, 4.0]]), jnp.eye(2))
      >>> int(index[0]), float(cosine[0])
      (1, 0.800000011920929)
      >>> int(ms.nearest_class(jnp.array([[3.0, 4.0]]), jnp.eye(2), labels=jnp.array([1]))[0][0])
      0
    """
    features, weights = _checks.features_and_weights(features, weights)
    head = _checks.head(head)
    if labels is None:
        return _nearest_class(features, weights, jnp.full(features.shape[0], -1, jnp.int32), head=head)
    num_classes = head.num_classes(weights)
    if num_classes < 2:
        raise ValueError(f"labels: expected none with {num_classes} class, of which no other is left.")
    valid, labels = _checks.in_range(_checks.labels_of(labels, features.shape[0], num_classes), num_classes)
    index, cosine = _nearest_class(features, weights, jnp.where(valid, labels, -1), head=head)
    return index, jnp.where(valid, cosine, jnp.nan)


@split_as_examples
@functools.partial(jax.jit, static_argnames="head")
def _nearest_class(features, weights, left_out, *, head):
    features = head.place(features)
    directions = angles.unit(features.astype(angles.compute_dtype(features, weights)))
    rows, classes = jax.lax.stop_gradient((Rows(directions), Classes(weights)))
    _, index = head.others(reductions.top_one(), COSINES, rows, classes, left_out)
    return index, head.own(_own_cosine, directions, Classes(weights), index)


def _front(features, weights, labels, margin, bias, head):
    """The checks that the losses and the logits share."""
    features, weights = _checks.features_and_weights(features, weights)
    batch, num_classes = features.shape[0], weights.shape[0]
    for leaf in jax.tree.leaves(checked(margin)):
        if jnp.shape(leaf) not in ((), (batch,)):
            raise ValueError(
                f"margin: expected numbers, or one value per example [B] = ({batch},), came shape {jnp.shape(leaf)}. "
                "Of a table by class, pass `table[labels]`."
            )
    labels = _checks.labels_of(labels, batch, head.num_classes(weights))
    return features, weights, labels, margin, _checks.bias_of(bias, num_classes)


def _examples(margin, features, weights, counted):
    """Every number of the margin becomes one per example, so that a head need only know rows and classes."""
    dtype = angles.compute_dtype(features, weights)

    def per_example(leaf):
        if _is_reduction(leaf):
            return leaf
        return jnp.where(counted, jnp.broadcast_to(jnp.asarray(leaf).astype(dtype), counted.shape), 1.0)

    # A reduction is no number of an example's: what steers it stays as it is.
    margin = jax.tree.map(per_example, margin, is_leaf=_is_reduction)
    features = jnp.where(counted[:, None], features.astype(dtype), 0.0)
    factor, _ = margin.features(features)
    return _Example(margin, features, features * factor[:, None])


def _is_reduction(node):
    return isinstance(node, reductions.Reduction)


def _given(margin, own, target):
    margin = jax.tree.map(lambda node: () if _is_reduction(node) else node, margin, is_leaf=_is_reduction)
    return _Given(margin, own, target)


def _own(head, example, classes, labels):
    """What the margin may know of each example and its own class; its logit there before the scale; its bias."""
    own, own_bias = head.own(_own_of, example, classes, labels)
    margin = example.margin
    if margin.statistic is not None:
        rows = Rows(example.directions, _given(margin, own, jnp.zeros_like(own.angle)))
        own = own._replace(statistic=head.others(margin.statistic.reduction, STATISTIC, rows, classes, labels))
    return own, margin.target(own), own_bias


def _own_of(example, classes):
    margin, features, directions = example
    weights = classes.weights.astype(features.dtype)
    if weights.ndim == 3:
        weights = _winner(margin, directions, weights)
    factor, weight_length = margin.weights(weights)
    _, feature_length = margin.features(features)
    own = Own(
        angle=angles.angle_between(features, weights),
        product=angles.inner(directions, weights * factor[:, None], (feature_length == 1.0) & (weight_length == 1.0)),
        length=feature_length * weight_length,
        norm=angles.norm(features),
    )
    return own, classes.bias


def _winner(margin, directions, centres):
    """Of each own class's sub-centres `[B, K, D]` the one with the largest product."""
    factor, _ = margin.weights(centres)
    best = jnp.argmax(angles.dot(directions[:, None], centres) * factor, axis=-1)
    return jnp.take_along_axis(centres, best[:, None, None], axis=1, mode="clip")[:, 0]


def _class_rows(weights, given):
    """A block of class rows as the margin takes them."""
    factor, _ = given.margin.weights(weights)
    return weights * factor[..., None]


def _best(products):
    """Products `[B, n]`: of sub-centres the best counts."""
    return products if products.ndim == 2 else angles.over_centres(products)


def _logits(products, given, bias):
    margin, own, target = given
    logits = margin.others(_best(products), own, target) * margin.scale
    return logits if bias is None else logits + bias[None]


def _statistic_terms(products, given, bias):
    del bias
    return given.margin.statistic.of(_best(products), given.own)


def _directions(weights, given):
    del given
    return angles.unit(weights)


def _cosines(products, given, bias):
    del given, bias
    return _best(products)


OTHER_LOGITS = Logits(_class_rows, _logits)
STATISTIC = Logits(_class_rows, _statistic_terms)
COSINES = Logits(_directions, _cosines)


def _own_cosine(directions, classes):
    cosines = angles.dot(
        directions if classes.weights.ndim == 2 else directions[:, None],
        angles.unit(classes.weights.astype(directions.dtype)),
    )
    return cosines if classes.weights.ndim == 2 else angles.over_centres(cosines)


def _biased(logit, bias: Any):
    return logit if bias is None else logit + bias.astype(logit.dtype)
