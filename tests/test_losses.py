"""margin_loss and margin_logits against the float64 oracle, for every margin in every head."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import margin_softmax as ms
import oracle
from margin_softmax import reductions
from table import MARGINS, examples, largest_row_error

HEADS = {
    "dense": ms.dense(),
    "blockwise": ms.blockwise(),
    "keep_some": ms.blockwise(block_size=7, memory=7 * 9 * 8 * 2),
}
"""More of them, and more shapes, in test_heads.py; the blocks here keep some products and compute the others anew."""
SMALL = ["dense", "keep_some"]
COTANGENT = np.array([1.0, -0.5, 2.0, 0.0, 3.0, 0.25, 1.0, 1.0, 7.0])


def value_and_gradients(features, weights, labels, margin, head, *, cotangent=None, bias=None, smoothing=0.0):
    """Losses, and the gradients of features, weights and bias."""

    def total(features, weights, bias):
        losses = ms.margin_loss(features, weights, labels, margin, head=head, bias=bias, label_smoothing=smoothing)
        return jnp.sum(losses if cotangent is None else losses * jnp.asarray(cotangent, losses.dtype)), losses

    bias = None if bias is None else jnp.asarray(bias)
    (_, losses), gradients = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(
        jnp.asarray(features), jnp.asarray(weights), bias
    )
    return losses, *gradients


@pytest.mark.parametrize("head", SMALL)
@pytest.mark.parametrize("name", MARGINS)
def test_float64_equals_the_oracle(name, head):
    row = MARGINS[name]
    bias = np.linspace(-1.0, 1.0, 23)
    with jax.enable_x64(True):
        for cosine in (-0.9, 0.1, 0.95):
            x, w, y = examples(9, 23, 5, cosine, feature_norm=row.feature_norm / 8)
            z, losses, x_bar, w_bar, bias_bar = oracle.logits_and_gradients(
                row.oracle, x, w, y, bias=bias, smoothing=0.1, cotangent=COTANGENT
            )
            result = value_and_gradients(
                x, w, y, row.margin, HEADS[head], cotangent=COTANGENT, bias=bias, smoothing=0.1
            )
            for ours, exact in zip(result, (losses, x_bar, w_bar, bias_bar), strict=True):
                assert ours.dtype == jnp.float64
                np.testing.assert_allclose(ours, exact, rtol=1e-10, atol=1e-10 * np.abs(exact).max())
            if head == "dense":
                np.testing.assert_allclose(ms.margin_logits(x, w, y, row.margin, bias=bias), z, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dim", [64, 512])
@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.optimised
def test_float32_keeps_its_digits_where_training_goes(name, dim):
    """From the start of training to its end, s = 64 and 10,000 classes.

    The bound on losses and features is 5e-6 early and 2e-5 late. A class row far from every example is fed by one
    p_j = exp(s c - L) alone, and float32 knows c to one unit in the last place of 1, 2^-23, at best, whatever the
    order of the products' sums: that is s 2^-23 = 7.6e-6 of the row, which no other example averages out. It is
    added to the early bound, for class rows only; 95 in 100 of them keep the bound itself.
    """
    row = MARGINS[name]

    @functools.partial(jax.jit, static_argnames="head")
    def of(x, w, y, head):
        losses, x_bar, w_bar, _ = value_and_gradients(x, w, y, row.margin, head)
        return losses, x_bar, w_bar

    for cosine in (-0.3, 0.1, 0.3, 0.7, 0.9, 0.99) if dim == 64 else (0.3, 0.99):
        x, w, y = examples(16, 10_000, dim, cosine, feature_norm=row.feature_norm, dtype=np.float32)
        _, losses, x_bar, w_bar, _ = oracle.logits_and_gradients(row.oracle, x, w, y)
        bound = 5e-6 if cosine <= 0.3 else 2e-5
        for head in ("dense", "blockwise") if dim == 64 else ("blockwise",):
            ours, ours_x_bar, ours_w_bar = of(x, w, y, HEADS[head])
            assert ours.dtype == ours_x_bar.dtype == ours_w_bar.dtype == jnp.float32
            assert np.max(np.abs(ours - losses) / losses) <= bound
            assert largest_row_error(ours_x_bar, x_bar) <= bound
            assert largest_row_error(ours_w_bar, w_bar) <= (bound + 64 * 2.0**-23 if cosine <= 0.3 else bound)
            assert largest_row_error(ours_w_bar, w_bar, quantile=0.95) <= bound


@pytest.mark.optimised
def test_the_usual_formulation_does_not_meet_the_bound():
    """Full log-sum-exp and autodiff in float32 lose the digits of 1 - p: the test above can fail."""
    row = MARGINS["cosface"]
    x, w, y = examples(16, 10_000, 64, 0.9, dtype=np.float32)
    _, losses, x_bar, _, _ = oracle.logits_and_gradients(row.oracle, x, w, y)

    def usual(x):
        a = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        b = w / jnp.linalg.norm(w, axis=1, keepdims=True)
        z = 64.0 * (a @ b.T - 0.35 * jax.nn.one_hot(y, len(w)))
        losses = jax.nn.logsumexp(z, axis=1) - jnp.take_along_axis(z, y[:, None], axis=1)[:, 0]
        return losses.sum(), losses

    (_, theirs), gradient = jax.value_and_grad(usual, has_aux=True)(jnp.asarray(x))
    assert np.max(np.abs(theirs - losses) / losses) > 2e-5
    assert largest_row_error(gradient, x_bar) > 2e-5


@pytest.mark.parametrize("name", MARGINS)
def test_loss_is_cross_entropy_of_logits(name):
    x, w, y = examples(6, 11, 4, 0.5, feature_norm=3.0, dtype=np.float32)
    bias = jnp.linspace(-1.0, 1.0, 11)
    for smoothing in (0.0, 0.2):
        logits = ms.margin_logits(x, w, y, MARGINS[name].margin, bias=bias)
        of_logits = ms.cross_entropy(logits, y, label_smoothing=smoothing)
        losses = ms.margin_loss(x, w, y, MARGINS[name].margin, bias=bias, label_smoothing=smoothing)
        np.testing.assert_allclose(losses, of_logits, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", MARGINS)
def test_zero_margin_is_the_plain_loss_and_a_margin_never_lowers_it(name):
    row = MARGINS[name]
    if row.without_margin is None:
        # These have no margin; the law is about those that do.
        assert name in ("plain", "temperature", "modified_softmax", "normface")
        return
    for cosine in np.linspace(-0.999, 0.999, 9):
        x, w, y = examples(6, 11, 4, cosine, feature_norm=row.feature_norm / 16, dtype=np.float32)
        base = ms.margin_loss(x, w, y, row.without_margin)
        assert np.all(ms.margin_loss(x, w, y, row.margin) >= base * (1 - 1e-5) - 1e-6)
        zero = {
            "l_softmax_2": ms.l_softmax(1),
            "l_softmax_4_blend": ms.l_softmax(1, blend=3.0),
            "a_softmax_3": ms.a_softmax(1),
            "a_softmax_4_blend": ms.a_softmax(1, blend=3.0),
            "am_softmax": ms.am_softmax(0.0),
            "cosface": ms.cosface(0.0),
            "arcface": ms.arcface(0.0),
            "combined": ms.combined(1.0, 0.0, 0.0),
            "straight_through": ms.straight_through(ms.arcface(0.0)),
        }[name]
        np.testing.assert_allclose(ms.margin_loss(x, w, y, zero), base, rtol=2e-5, atol=1e-5)


def test_combined_reduces_to_each_single_margin():
    x, w, y = examples(6, 11, 4, 0.4, dtype=np.float32)
    for combined, single in (
        (ms.combined(1.0, 0.4, 0.0), ms.arcface(0.4)),
        (ms.combined(1.0, 0.0, 0.3), ms.cosface(0.3)),
        (ms.combined(4.0, 0.0, 0.0, scale=1.0), ms.a_softmax(4)),
    ):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        np.testing.assert_allclose(
            ms.margin_loss(unit, w, y, combined), ms.margin_loss(unit, w, y, single), rtol=2e-5, atol=1e-6
        )


@pytest.mark.parametrize("head", SMALL)
def test_permuting_classes_permutes_nothing_else(head):
    x, w, y = examples(9, 23, 5, 0.4, dtype=np.float32)
    order = np.random.default_rng(1).permutation(23)
    inverse = np.argsort(order)
    losses, x_bar, w_bar, _ = value_and_gradients(x, w, y, ms.arcface(), HEADS[head])
    again, x_bar_again, w_bar_again, _ = value_and_gradients(
        x, w[order], inverse[y].astype(np.int32), ms.arcface(), HEADS[head]
    )
    np.testing.assert_allclose(again, losses, rtol=1e-5)
    np.testing.assert_allclose(x_bar_again, x_bar, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(w_bar_again[inverse], w_bar, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", SMALL)
@pytest.mark.parametrize("length", [0.25, 0.5, 1.0, 2.0, 1024.0])
def test_lengths_whose_product_is_one_are_no_directions(head, length):
    """`|x| |w| = 1` does not say that either of them is 1."""
    x, w, y = (
        np.array([[length, 0.0]], np.float32),
        np.array([[1 / length, 0.0], [0.0, 1.0]], np.float32),
        np.zeros(1, int),
    )
    for margin in (ms.plain(), ms.l_softmax(1, blend=3.0), ms.virtual_softmax()):
        assert ms.margin_logits(x, w, y, margin)[0, 0] == 1.0
    loss, x_bar, w_bar, _ = value_and_gradients(x, w, y, ms.plain(), HEADS[head])
    p = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(loss, -np.log(p), rtol=1e-6)
    np.testing.assert_allclose(x_bar, (p - 1) * w[:1] + (1 - p) * w[1:], rtol=1e-6)
    np.testing.assert_allclose(w_bar, [(p - 1) * x[0], (1 - p) * x[0]], rtol=1e-6)


@pytest.mark.parametrize(
    "margin",
    [ms.sphereface2(0.0), ms.unified_cross_entropy(0.0), ms.p2sgrad(), ms.sface(), ms.interclass_filter(ms.cosface())],
)
def test_what_is_no_softmax_over_all_classes_is_not_smoothed(margin):
    """The term that smoothing adds to a cross-entropy would drive examples of other losses from their class."""
    x, w, y = examples(6, 17, 4, 0.5, dtype=np.float32)
    with pytest.raises(ValueError, match="label_smoothing: expected 0 with this margin"):
        ms.margin_loss(x, w, y, margin, label_smoothing=0.1)
    assert np.all(np.isfinite(ms.margin_loss(x, w, y, margin, label_smoothing=0.0)))


@pytest.mark.parametrize("head", SMALL)
def test_what_steers_a_reduction_is_not_one_per_example(head):
    """Seven examples meet blocks of seven classes: a number for each of either would pass unseen."""
    x, w, y = examples(7, 23, 4, 0.5, dtype=np.float32)
    p2sgrad = ms.p2sgrad()
    half_power = Partial(lambda z, power: jnp.abs(z) ** power / 2, power=jnp.float32(2.0))
    margin = p2sgrad._replace(reduction=reductions.sum_of(half_power))
    where = np.arange(7) < 3
    for counted in (None, where):
        np.testing.assert_allclose(
            ms.margin_loss(x, w, y, margin, head=HEADS[head], where=counted),
            ms.margin_loss(x, w, y, p2sgrad, head=HEADS[head], where=counted),
            rtol=1e-5,
        )


@pytest.mark.parametrize("head", SMALL)
def test_gradient_of_a_normalised_loss_is_across_the_feature(head):
    x, w, y = examples(9, 23, 5, 0.4, dtype=np.float32)
    for margin in (ms.normface(64.0), ms.cosface(), ms.arcface()):
        _, x_bar, w_bar, _ = value_and_gradients(x, w, y, margin, HEADS[head])
        for rows, bars in ((x, x_bar), (w, w_bar)):
            lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(bars, axis=1)
            assert np.max(np.abs(np.sum(rows * bars, axis=1)) / lengths) < 1e-5


@pytest.mark.parametrize("head", SMALL)
def test_straight_through_has_the_value_and_not_the_slope(head):
    x, w, y = examples(9, 23, 5, 0.7, dtype=np.float32)
    exact = value_and_gradients(x, w, y, ms.arcface(0.5, 8.0), HEADS[head])
    detached = value_and_gradients(x, w, y, ms.straight_through(ms.arcface(0.5, 8.0)), HEADS[head])
    np.testing.assert_allclose(detached[0], exact[0], rtol=1e-5)
    assert np.max(np.abs(detached[1] - exact[1])) > 0.1


@pytest.mark.parametrize("head", SMALL)
def test_gradients_of_the_margins_own_numbers(head):
    """Scale and margin may be learned, and may differ from example to example."""
    x, w, y = examples(9, 23, 5, 0.4)
    cotangent = COTANGENT

    def exact(numbers):
        m, s = numbers[:9], numbers[9]
        a, b = x / np.linalg.norm(x, axis=1, keepdims=True), w / np.linalg.norm(w, axis=1, keepdims=True)
        z = s * (a @ b.T)
        z[np.arange(9), y] = s * np.cos(np.arccos(np.sum(a * b[y], axis=1)) + m)
        return np.sum(cotangent * (np.log(np.exp(z).sum(axis=1)) - z[np.arange(9), y]))

    numbers = np.concatenate([np.linspace(0.0, 0.5, 9), [8.0]])
    with jax.enable_x64(True):

        def ours(numbers):
            margin = ms.arcface(numbers[:9], scale=numbers[9])
            return jnp.sum(jnp.asarray(cotangent) * ms.margin_loss(x, w, y, margin, head=HEADS[head]))

        np.testing.assert_allclose(
            jax.grad(ours)(jnp.asarray(numbers)), oracle.complex_step(exact, numbers), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("head", SMALL)
def test_one_sub_centre_is_none(head):
    x, w, y = examples(9, 23, 5, 0.4, dtype=np.float32)
    losses, x_bar, w_bar, _ = value_and_gradients(x, w, y, ms.arcface(), HEADS[head])
    again, x_bar_again, w_bar_again, _ = value_and_gradients(x, w[:, None], y, ms.arcface(), HEADS[head])
    np.testing.assert_allclose(again, losses, rtol=1e-6)
    np.testing.assert_allclose(x_bar_again, x_bar, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(w_bar_again[:, 0], w_bar, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", SMALL)
def test_sub_centres_are_the_best_of_each_class(head):
    """The loss is that of the best centre of every class, and the others get no gradient."""
    x, w, y = examples(9, 23, 5, 0.4)
    centres = np.random.default_rng(3).normal(size=(23, 3, 5))
    centres[:, 0] = w
    with jax.enable_x64(True):
        losses, x_bar, w_bar, _ = value_and_gradients(x, centres, y, ms.arcface(0.5, 8.0), HEADS[head])
        a = x / np.linalg.norm(x, axis=1, keepdims=True)
        c = np.einsum("bd,ckd->bck", a, centres / np.linalg.norm(centres, axis=2, keepdims=True))
        best = c.argmax(axis=2)
        for i in range(9):
            chosen = centres[np.arange(23), best[i]]
            one = slice(i, i + 1)
            oracle_margin = oracle.additive_angle(1.0, 0.5, 0.0, 8.0)
            _, loss, one_x_bar, _, _ = oracle.logits_and_gradients(oracle_margin, x[one], chosen, y[one])
            np.testing.assert_allclose(losses[i], loss[0], rtol=1e-10)
            np.testing.assert_allclose(x_bar[i], one_x_bar[0], rtol=1e-9, atol=1e-10)
        never = np.ones((23, 3), bool)
        never[np.arange(23)[None], best] = False
        assert never.any()
        assert np.all(np.asarray(w_bar)[never] == 0)
        assert np.all(np.any(np.asarray(w_bar)[~never] != 0, axis=-1))


@pytest.mark.parametrize("head", SMALL)
def test_two_labels_share_the_loss(head):
    """With all the share at one label it is that label's loss; between, a margin at each in its own half."""
    x, w, y = examples(9, 23, 5, 0.4)
    other = np.roll(y, 1)
    share = np.linspace(0.0, 1.0, 9)
    with jax.enable_x64(True):
        exact = [
            oracle.logits_and_gradients(
                oracle.additive_angle(1.0, 0.5, 0.0, 8.0), x, w, labels, smoothing=0.1, cotangent=weight
            )
            for labels, weight in ((y, share), (other, 1 - share))
        ]

        def total(x, w):
            losses = ms.mixed_margin_loss(
                x, w, y, other, share, ms.arcface(0.5, 8.0), head=HEADS[head], label_smoothing=0.1
            )
            return losses.sum(), losses

        (_, losses), (x_bar, w_bar) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
            jnp.asarray(x), jnp.asarray(w)
        )
    np.testing.assert_allclose(losses, share * exact[0][1] + (1 - share) * exact[1][1], rtol=1e-10)
    np.testing.assert_allclose(x_bar, exact[0][2] + exact[1][2], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(w_bar, exact[0][3] + exact[1][3], rtol=1e-9, atol=1e-12)
    narrow = x.astype(np.float32), w.astype(np.float32)
    np.testing.assert_array_equal(
        ms.mixed_margin_loss(*narrow, y, other, 1.0, ms.arcface(), head=HEADS[head]),
        ms.margin_loss(*narrow, y, ms.arcface(), head=HEADS[head]),
    )


def test_shares_are_refused():
    x, w, y = examples(9, 23, 5, 0.4, dtype=np.float32)
    with pytest.raises(ValueError, match=r"share: .*1\.5"):
        ms.mixed_margin_loss(x, w, y, y, 1.5, ms.arcface())
    with pytest.raises(ValueError, match=r"share: expected a number or one per example \(9,\)"):
        ms.mixed_margin_loss(x, w, y, y, np.ones(3), ms.arcface())


@pytest.mark.parametrize("head", SMALL)
def test_observing_is_seeing_what_the_margin_sees(head):
    x, w, y = examples(9, 23, 5, 0.4, feature_norm=3.0, dtype=np.float32)
    seen = ms.observe(x, w, y, ms.a_softmax(), head=HEADS[head])
    np.testing.assert_allclose(seen.angle, np.arccos(0.4), rtol=1e-5)
    np.testing.assert_allclose(seen.norm, np.linalg.norm(x, axis=1), rtol=1e-6)
    np.testing.assert_allclose(seen.product, 0.4 * seen.norm, rtol=1e-5)
    np.testing.assert_allclose(seen.length, seen.norm, rtol=1e-6)
    statistic = ms.observe(x, w, y, ms.intertopk(k=3), head=HEADS[head]).statistic
    cosines = np.where(np.arange(23)[None] == y[:, None], -2, ms.cosines(x, w))
    np.testing.assert_allclose(statistic, -np.sort(-cosines, axis=1)[:, :3], rtol=1e-5)
    gradient = jax.grad(lambda x: ms.observe(x, w, y, ms.plain(), head=HEADS[head]).angle.sum())(jnp.asarray(x))
    np.testing.assert_array_equal(gradient, 0)
    with jax.debug_nans(False):
        wrong = np.where(np.arange(9) < 2, 23, y)
        where = np.arange(9) != 0
        seen = ms.observe(x, w, wrong, ms.plain(), head=HEADS[head], where=where)
        np.testing.assert_array_equal(np.isnan(np.asarray(seen.angle)), np.arange(9) == 1)


@pytest.mark.parametrize("head", SMALL)
def test_nearest_class(head):
    x, w, _ = examples(9, 23, 5, 0.4, dtype=np.float32)
    cosines = ms.cosines(x, w)
    index, cosine = ms.nearest_class(x, w, head=HEADS[head])
    np.testing.assert_array_equal(index, cosines.argmax(axis=1))
    np.testing.assert_allclose(cosine, cosines.max(axis=1), rtol=1e-6)
    centres = np.stack([w, -w, np.roll(w, 1, axis=1)], axis=1)
    index, cosine = ms.nearest_class(x, centres, head=HEADS[head])
    np.testing.assert_array_equal(index, ms.cosines(x, centres).argmax(axis=1))
    tied = np.tile(w[:1], (23, 1))
    np.testing.assert_array_equal(ms.nearest_class(x, tied, head=HEADS[head])[0], np.zeros(9))
    labels = np.arange(9) % len(w)
    others = np.where(np.arange(len(w)) == labels[:, None], -2, cosines)
    index, cosine = ms.nearest_class(x, w, labels=labels, head=HEADS[head])
    np.testing.assert_array_equal(index, others.argmax(1))
    np.testing.assert_allclose(cosine, others.max(1), rtol=1e-5)
    with jax.debug_nans(False):
        wrong = np.where(np.arange(9) == 1, -1, np.where(np.arange(9) == 3, len(w), labels))
        _, cosine = ms.nearest_class(x, w, labels=wrong, head=HEADS[head])
        np.testing.assert_array_equal(np.isnan(np.asarray(cosine)), np.isin(np.arange(9), [1, 3]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
@pytest.mark.parametrize("head", SMALL)
def test_nearest_other_class_takes_labels_of_any_integer_dtype(head, dtype):
    x, w, y = examples(9, 23, 5, 0.5, dtype=np.float32)
    index, _ = ms.nearest_class(x, w, labels=y.astype(dtype), head=HEADS[head])
    cosines = np.array(ms.cosines(x, w))
    cosines[np.arange(9), y] = -2
    np.testing.assert_array_equal(index, cosines.argmax(axis=1))
    assert index.dtype == jnp.int32


def test_nearest_cosine_pulls_toward_the_class_that_won():
    x, w, _ = examples(9, 23, 5, 0.4, dtype=np.float32)
    ours = jax.grad(lambda x: ms.nearest_class(x, w)[1].sum())(jnp.asarray(x))
    theirs = jax.grad(lambda x: ms.cosines(x, w).max(axis=1).sum())(jnp.asarray(x))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
