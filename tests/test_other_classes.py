"""Losses that change the other classes: how they hang together with simpler ones, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_softmax as ms
from table import examples

HEADS = {"dense": ms.dense(), "blockwise": ms.blockwise(7, memory=0)}


def both(margin, x, w, y, head=HEADS["dense"], **more):
    """Losses and the feature gradient of their sum."""

    def total(x):
        losses = ms.margin_loss(x, w, y, margin, head=head, **more)
        return losses.sum(), losses

    (_, losses), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(x))
    return losses, gradient


@pytest.mark.parametrize(
    ("field", "simple"),
    [
        (ms.mv_softmax(ms.arcface(0.5, 8.0), t=0.0), ms.arcface(0.5, 8.0)),
        (ms.mv_softmax(ms.am_softmax(0.35, 8.0), t=0.0), ms.am_softmax(0.35, 8.0)),
        (ms.npcface(8.0, m0=0.4, m1=0.0, t=1.0, a=0.0), ms.arcface(0.4, 8.0)),
        (ms.cifp(1.0, 0.35, 8.0), ms.cosface(0.35, 8.0)),
        (ms.intertopk(0.2, 8.0, penalty=0.0), ms.arcface(0.2, 8.0)),
        (ms.sphereface_r(1.5, 8.0), ms.combined(1.5, 0.0, 0.0, 8.0)),
        (ms.sphereface_r(1.0, 8.0, version=2), ms.normface(8.0)),
        (ms.sphereface_r(4.0, feature_norm="none"), ms.a_softmax(4)),
        (ms.interclass_filter(ms.arcface(0.5, 8.0), threshold=1.0), ms.arcface(0.5, 8.0)),
        (ms.focal(ms.arcface(0.5, 8.0), gamma=0.0), ms.arcface(0.5, 8.0)),
    ],
    ids=lambda margin: None,
)
def test_without_what_is_special_they_are_the_simple_loss(field, simple):
    x, w, y = examples(6, 17, 4, 0.4, dtype=np.float32)
    for ours, theirs in zip(both(field, x, w, y), both(simple, x, w, y), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["mv", "curricular"])
def test_hard_classes_are_those_above_the_target(name):
    """Of one example and two other classes, one above the target's logit and one below."""
    x, w, y = jnp.array([[1.0, 0.0]]), jnp.array([[0.8, 0.6], [0.6, 0.8], [0.3, np.sqrt(0.91)]]), jnp.array([0])
    margin = {"mv": ms.mv_softmax(ms.cosface(0.35, 1.0), 0.2), "curricular": ms.curricularface(0.2, 0.35, 1.0)}[name]
    target = {"mv": 0.45, "curricular": np.cos(np.arccos(0.8) + 0.35)}[name]
    hard = {"mv": 1.2 * 0.6 + 0.2, "curricular": 0.6 * (0.2 + 0.6)}[name]
    np.testing.assert_allclose(ms.margin_logits(x, w, y, margin), [[target, hard, 0.3]], rtol=1e-6)


def test_a_fixed_curriculum_pulls_hard_classes_down_at_first():
    """Slope t + 2 c: below 1 while t and the cosine are small, as the paper wants it."""
    x, w, y = examples(6, 17, 4, 0.1, dtype=np.float32)
    at_first, later = (ms.margin_loss(x, w, y, ms.curricularface(t, 0.5, 8.0)) for t in (0.0, 1.0))
    base = ms.margin_loss(x, w, y, ms.arcface(0.5, 8.0))
    assert np.all(at_first <= base * (1 + 1e-6))
    assert np.all(later >= base * (1 - 1e-6))
    assert np.any(later > base * 1.01)


def test_the_weights_of_circle_have_no_slope():
    """dz_y / dc_y is the weight itself, not its product rule; the same for the others."""
    x, w, y = examples(6, 17, 4, 0.4)
    with jax.enable_x64(True):
        a, b = x / np.linalg.norm(x, axis=1, keepdims=True), w / np.linalg.norm(w, axis=1, keepdims=True)
        c = a @ b.T
        own = np.arange(17)[None] == y[:, None]
        slope = 16.0 * np.where(own, np.maximum(1.25 - c, 0), np.maximum(c + 0.25, 0))
        z = np.where(own, slope * (c - 0.75), slope * (c - 0.25))
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        g = (p - own) * slope
        expected = (g @ b - np.sum(g * c, axis=1, keepdims=True) * a) / np.linalg.norm(x, axis=1, keepdims=True)
        np.testing.assert_allclose(both(ms.circle(0.25, 16.0), x, w, y)[1], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("head", HEADS)
def test_a_filtered_class_is_as_good_as_absent(head):
    x, w, y = examples(1, 9, 4, 0.4, seed=3, dtype=np.float32)
    cosines = np.asarray(ms.cosines(x, w))[0]
    keep = (cosines <= 0.2) | (np.arange(9) == y[0])
    assert 1 < keep.sum() < 9
    label = np.cumsum(keep)[y] - 1
    expected = both(ms.cosface(0.35, 8.0), x, w[keep], label.astype(np.int32), HEADS[head])
    filtered = ms.interclass_filter(ms.cosface(0.35, 8.0), 0.2)
    for ours, theirs in zip(both(filtered, x, w, y, HEADS[head]), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    # A learned scale stays finite beside a closed class.
    slope = jax.grad(lambda s: ms.margin_loss(x, w, y, ms.interclass_filter(ms.normface(s), 0.2), head=HEADS[head])[0])
    assert np.isfinite(slope(8.0))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("base", [ms.p2sgrad(), ms.sface(8.0)], ids=["squares", "sum"])
def test_a_filtered_class_is_absent_from_every_reduction(base, head):
    """Of squares and of a sum, which no low logit closes, and with it its gradient; a NaN is not filtered."""
    x, w, y = jnp.array([[0.6, 0.8, 0.0]]), jnp.eye(3), jnp.array([1])
    filtered = ms.interclass_filter(base, 0.5)  # which takes the first class for the own one
    expected = both(base, x, w[1:], y - 1, HEADS[head])
    for ours, theirs in zip(both(filtered, x, w, y, HEADS[head]), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    with jax.debug_nans(False):
        assert np.isnan(ms.margin_loss(x, w.at[2].set(jnp.nan), y, filtered, head=HEADS[head])[0])


def test_a_filter_and_label_smoothing_do_not_go_together():
    x, w, y = jnp.array([[0.6, 0.8]]), jnp.eye(2), jnp.array([1])
    with pytest.raises(ValueError, match="label_smoothing: "):
        ms.margin_loss(x, w, y, ms.interclass_filter(ms.normface(10.0)), label_smoothing=0.1)
    z = ms.margin_logits(x, w, y, ms.interclass_filter(ms.normface(10.0), to_zero=True))
    ours = ms.margin_loss(x, w, y, ms.interclass_filter(ms.normface(10.0), to_zero=True), label_smoothing=0.1)
    np.testing.assert_allclose(ours, ms.cross_entropy(z, y, label_smoothing=0.1), rtol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_a_false_positive_at_a_right_angle_is_one_too(head):
    """Its square is 0, and the mean is over it as well: here of 0.36 and 0."""
    x, w, y = jnp.array([[0.6, 0.8, 0.0]]), jnp.eye(3), jnp.array([1])
    margin = ms.cifp(-0.1, 0.0, 1.0)
    target = 0.8 - 1.8 * 0.36 / 2
    np.testing.assert_allclose(ms.margin_logits(x, w, y, margin)[0, 1], target, rtol=1e-6)
    expected = np.log(np.exp(0.6) + 1 + np.exp(target)) - target
    np.testing.assert_allclose(both(margin, x, w, y, HEADS[head])[0], [expected], rtol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 16, 40])
def test_inter_top_k_penalises_k_classes(k):
    x, w, y = examples(6, 17, 4, 0.4, dtype=np.float32)
    z, base = ms.margin_logits(x, w, y, ms.intertopk(0.2, 1.0, k=k)), ms.margin_logits(x, w, y, ms.arcface(0.2, 1.0))
    assert np.all(np.sum(np.abs(z - base) > 1e-6, axis=1) == min(k, 16))
    assert np.all(np.sort(z, axis=1) >= np.sort(base, axis=1) - 1e-6)


def test_straight_through_has_the_slope_of_no_margin_in_all_logits():
    x, w, y = examples(6, 17, 4, 0.4)
    with jax.enable_x64(True):
        for margin in (ms.arcnegface(0.5, 8.0), ms.sphereface_r(1.5, 8.0, version=2)):
            exact, detached = both(margin, x, w, y), both(ms.straight_through(margin), x, w, y)
            np.testing.assert_allclose(detached[0], exact[0], rtol=1e-12)
            a, b = x / np.linalg.norm(x, axis=1, keepdims=True), w / np.linalg.norm(w, axis=1, keepdims=True)
            z = np.asarray(ms.margin_logits(x, w, y, margin))
            p = np.exp(z - z.max(axis=1, keepdims=True))
            g = 8.0 * (p / p.sum(axis=1, keepdims=True) - (np.arange(17)[None] == y[:, None]))
            along = np.sum(g * (a @ b.T), axis=1, keepdims=True)
            expected = (g @ b - along * a) / np.linalg.norm(x, axis=1, keepdims=True)
            np.testing.assert_allclose(detached[1], expected, rtol=1e-9, atol=1e-12)


def test_focal_is_its_formula_also_where_nothing_is_lacking():
    """At a loss of 0 its slope is 0 for every gamma > 0, below 1 too, where (1 - p)^gamma alone has none."""
    x, w, y = examples(6, 17, 4, 0.4, dtype=np.float32)
    losses = np.asarray(ms.margin_loss(x, w, y, ms.arcface(0.5, 8.0)), np.float64)
    for gamma in (0.5, 2.0):
        expected = (1 - np.exp(-losses)) ** gamma * losses
        np.testing.assert_allclose(ms.margin_loss(x, w, y, ms.focal(ms.arcface(0.5, 8.0), gamma)), expected, rtol=1e-5)
        own = jnp.array([[200.0, 0.0]])
        loss, gradient = both(ms.focal(ms.plain(), gamma), own, jnp.eye(2), jnp.array([0]))
        np.testing.assert_array_equal(loss, 0.0)
        np.testing.assert_array_equal(gradient, 0.0)


def test_virtual_softmax_is_softmax_with_one_more_class():
    x, w, y = examples(6, 17, 4, 0.4, feature_norm=3.0, dtype=np.float32)
    z = np.asarray(ms.margin_logits(x, w, y, ms.plain()), np.float64)
    extra = np.linalg.norm(x, axis=1) * np.linalg.norm(w[y], axis=1)
    expected = ms.cross_entropy(jnp.asarray(np.concatenate([z, extra[:, None]], axis=1), jnp.float32), y)
    for head in HEADS.values():
        np.testing.assert_allclose(ms.margin_loss(x, w, y, ms.virtual_softmax(), head=head), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ms.sphereface_r(0.5), "margin: .*>= 1"),
        (lambda: ms.sphereface_r(version=3), "version: expected one of 0, 1, 2"),
        (lambda: ms.sphereface_r(feature_norm="off"), "feature_norm: expected one of 'hard'"),
        (lambda: ms.sphereface_r(scale=30.0, feature_norm="none"), "scale: has no meaning"),
        (lambda: ms.sphereface_r(pull=0.1), "pull: has no meaning"),
        (lambda: ms.airface(26.0), "degrees"),
        (lambda: ms.mv_softmax(ms.arcface(), t=-0.1), "t: "),
        (lambda: ms.curricularface(1.5), "t: "),
        (lambda: ms.arcnegface(alpha=0.0), "alpha: "),
        (lambda: ms.npcface(64.0, m0=25.0), "m0: .*degrees"),
        (lambda: ms.cifp(1.2), "threshold: "),
        (lambda: ms.intertopk(k=0), "k: "),
        (lambda: ms.intertopk(k=2.5), "k: .*whole"),
        (lambda: ms.circle(gamma=-1.0), "gamma: "),
        (lambda: ms.interclass_filter(ms.arcface(), 2.0), "threshold: "),
        (lambda: ms.focal(ms.arcface(), -1.0), "gamma: "),
    ],
)
def test_numbers_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("wrap", [ms.mv_softmax, ms.focal, ms.interclass_filter, ms.straight_through])
def test_a_margin_of_something_else_is_refused(wrap):
    with pytest.raises(TypeError, match="margin: expected a Margin"):
        wrap(0.5)
