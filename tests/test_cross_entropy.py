"""cross_entropy against NumPy float64: losses and whole gradients, at every distance between logits."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import margin_softmax as ms

pytestmark = pytest.mark.optimised

B, C = 6, 7
COTANGENT = np.array([1.0, -0.5, 2.0, 0.0, 3.0, 0.25])
LABELS = np.array([0, 6, 2, 2, 4, 1], np.int32)
FLOAT32 = 2.0**-23


def distributions(seed=1):
    """One-hot, nearly one-hot, with zeros, uniform, and two at random that do not sum to 1."""
    t = np.random.default_rng(seed).uniform(0.1, 1.0, size=(B, C))
    t[0] = np.eye(C)[3]
    t[1] = [1 - 1e-6, 1e-6, 0, 0, 0, 0, 0]
    t[2, ::2] = 0
    t[3] = 1 / C
    return t


def exact(z, labels, smoothing=0.0, cotangent=COTANGENT):
    """Losses and gradients of `sum(cotangent loss)` for logits and distributions, in sums that cancel nothing."""
    z = np.asarray(z, np.float64)
    t = np.eye(z.shape[1])[labels] if np.ndim(labels) == 1 else np.asarray(labels, np.float64)
    t = (1 - smoothing) * t + smoothing / z.shape[1]
    surprise, p_minus_t = np.empty_like(z), np.empty_like(z)
    for i, j in np.ndindex(z.shape):
        # -log p_j = log(1 + sum over the others of exp(z_k - z_j)), and t_j (p_j - 1) + p_j (T - t_j).
        others = np.delete(z[i], j) - z[i, j]
        largest = max(np.max(others, initial=-np.inf), 0.0)
        rest = np.sum(np.exp(others - largest))
        surprise[i, j] = np.log1p(rest) if largest == 0 else largest + np.log(np.exp(-largest) + rest)
        own = np.exp(-largest)
        p_minus_t[i, j] = (own * np.sum(np.delete(t[i], j)) - t[i, j] * rest) / (own + rest)
    losses = np.sum(np.where(t == 0, 0, t * np.where(t == 0, 0, surprise)), axis=1)
    t_bar = cotangent[:, None] * (1 - smoothing) * surprise
    return losses, cotangent[:, None] * p_minus_t, t_bar


def ours(z, labels, cotangent=COTANGENT, argnums=0, **options):
    """Losses and gradients of `sum(cotangent loss)`."""

    def total(z, labels):
        losses = ms.cross_entropy(z, labels, **options)
        return jnp.sum(losses * jnp.asarray(cotangent, losses.dtype)), losses

    gradient, losses = jax.grad(total, argnums=argnums, has_aux=True)(z, labels)
    return losses, gradient


def logits(spread, seed=0):
    """Of the given spread; a tie of all in the last row but one, of two in the last."""
    z = spread * np.random.default_rng(seed).normal(size=(B, C))
    z[4] = z[4, 0]
    z[5, 1:3] = z[5].max() + spread
    return z


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("spread", [1e-6, 1.0, 30.0, 1e3])
def test_float64_equals_numpy(spread, smoothing):
    z = logits(spread)
    with jax.enable_x64(True):
        for labels in (LABELS, distributions()):
            losses, z_bar, t_bar = exact(z, labels, smoothing)
            result, gradient = ours(jnp.asarray(z), jnp.asarray(labels), label_smoothing=smoothing)
            assert result.dtype == gradient.dtype == jnp.float64
            np.testing.assert_allclose(result, losses, rtol=1e-12, atol=1e-300)
            np.testing.assert_allclose(gradient, z_bar, rtol=1e-12, atol=1e-15 if smoothing else 1e-300)
            if labels is not LABELS:
                _, gradient = ours(jnp.asarray(z), jnp.asarray(labels), argnums=1, label_smoothing=smoothing)
                np.testing.assert_allclose(gradient, t_bar, rtol=1e-12)


@pytest.mark.parametrize("spread", [1e-6, 1.0, 30.0])
def test_float32_keeps_its_digits_whole_gradient(spread):
    """Every entry of the gradient to a few roundings: of the logits' differences, 2^-24 of the largest, and of exp."""
    z = logits(spread).astype(np.float32)
    bound = (16 + 4 * np.abs(z).max()) * FLOAT32 / 4
    for labels in (LABELS, distributions().astype(np.float32)):
        losses, z_bar, t_bar = exact(z, labels)
        result, gradient = ours(z, labels)
        assert result.dtype == gradient.dtype == jnp.float32
        np.testing.assert_allclose(result, losses, rtol=bound)
        if labels is LABELS:
            np.testing.assert_allclose(gradient, z_bar, rtol=bound, atol=1e-37)
        else:
            # p_j (T - t_j) and t_j (1 - p_j) may be nearly equal: then their difference is known to this.
            np.testing.assert_allclose(gradient, z_bar, rtol=bound, atol=8 * FLOAT32 * np.abs(COTANGENT).max())
            np.testing.assert_allclose(ours(z, labels, argnums=1)[1], t_bar, rtol=bound)


def test_small_losses_keep_their_digits():
    """A target far above: losses and gradients down to 1e-30, where `p - 1` in float32 is 0.

    They are exp(L - z_y), and a difference of 70 is itself known to half a unit in its last place, 2^-24 of it.
    """
    gaps = np.array([10.0, 20.0, 40.0, 60.0, 69.0, 70.0])
    z = np.zeros((B, 4), np.float32)
    z[:, 1] = gaps
    labels = np.ones(B, np.int32)
    for y in (labels, np.eye(4, dtype=np.float32)[labels]):
        losses, z_bar, _ = exact(z, labels)
        result, gradient = ours(z, y)
        assert losses[-1] < 2e-30
        for i, gap in enumerate(gaps):
            np.testing.assert_allclose(result[i], losses[i], rtol=(8 + gap) * 2.0**-24)
            np.testing.assert_allclose(gradient[i], z_bar[i], rtol=(8 + gap) * 2.0**-24)
    by_subtraction = jax.nn.softmax(z) - jax.nn.one_hot(labels, 4)
    assert np.all(by_subtraction[2:, 1] == 0)
    assert np.all(gradient[4:, 1] < 0)


def test_huge_logits_need_no_care():
    """At +-1000 and +-10,000, whatever they all have in common; far apart the loss is their difference."""
    for offset in (-1e4, -1e3, 1e3, 1e4):
        z = (np.array([[0.0, 1.0, 2.0, 0.0], [0.5, 0.5, 0.5, 0.5]]) + offset).astype(np.float32)
        for labels in (np.array([0, 3]), np.eye(4, dtype=np.float32)[[0, 3]]):
            losses, z_bar, _ = exact(z, labels, cotangent=np.ones(2))
            result, gradient = ours(z, labels, cotangent=np.ones(2))
            np.testing.assert_allclose(result, losses, rtol=1e-6)
            np.testing.assert_allclose(gradient, z_bar, rtol=1e-6)
    z = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], np.float32)
    for labels in (np.array([1, 1]), np.eye(3, dtype=np.float32)[[1, 1]]):
        result, gradient = ours(z, labels, cotangent=np.ones(2))
        np.testing.assert_array_equal(result, [2e4, 0.0])
        np.testing.assert_array_equal(gradient, [[1, -1, 0], [0, 0, 0]])


def test_closed_classes():
    """A logit of -inf: no gradient there, an infinite loss where it is the own class, and no NaN in either."""
    inf = np.inf
    z = np.array([[1.0, -inf, 2.0], [-inf, 1.0, 2.0], [-inf, -inf, 3.0]], np.float32)
    labels = np.array([0, 0, 2])
    opened, _, _ = exact(z[:1, [0, 2]], np.array([0]), cotangent=np.ones(1))
    p = np.exp(1.0) / (np.exp(1.0) + np.exp(2.0))
    for y in (labels, np.eye(3, dtype=np.float32)[labels]):
        result, gradient = ours(z, y, cotangent=np.ones(3))
        np.testing.assert_allclose(result, [opened[0], inf, 0.0], rtol=1e-6)
        np.testing.assert_allclose(gradient, [[p - 1, 0, 1 - p], [-1, p, 1 - p], [0, 0, 0]], rtol=1e-6)
    second = jax.jacrev(lambda z: ours(z, labels, cotangent=np.ones(3))[1])(jnp.asarray(z))
    assert np.all(np.isfinite(second))


def test_one_class_has_no_loss():
    for labels in (np.zeros(B, np.int32), np.ones((B, 1), np.float32)):
        for smoothing in (0.0, 0.3):
            result, gradient = ours(logits(30.0)[:, :1].astype(np.float32), labels, label_smoothing=smoothing)
            np.testing.assert_array_equal(result, 0.0)
            np.testing.assert_array_equal(gradient, 0.0)


def test_label_smoothing_is_that_of_optax():
    z = logits(3.0)
    with jax.enable_x64(True):
        for smoothing in (0.0, 0.1, 1.0):
            for labels in (LABELS, distributions()):
                one_hot = np.eye(C)[labels] if labels is LABELS else labels / labels.sum(axis=1, keepdims=True)
                smooth = optax.smooth_labels(jnp.asarray(one_hot), smoothing)
                theirs = optax.softmax_cross_entropy(jnp.asarray(z), smooth)
                result = ms.cross_entropy(z, labels if labels is LABELS else one_hot, label_smoothing=smoothing)
                np.testing.assert_allclose(result, theirs, rtol=1e-12)
                np.testing.assert_allclose(ms.cross_entropy(z, smooth), theirs, rtol=1e-12)


def test_smoothed_labels_of_any_sum_are_smoothed_first():
    """What all logits have in common does not matter, whatever the labels sum to."""
    z, t = np.array([[1.0, 2.0, 3.0]], np.float32), np.array([[1.0, 1.0, 0.0]], np.float32)
    smooth = np.float32(0.7) * t + np.float32(0.1)
    for labels, smoothing in ((t, 0.3), (smooth, 0.0)):
        for offset in (0.0, 100.0):
            result = ms.cross_entropy(z + np.float32(offset), labels, label_smoothing=smoothing)
            np.testing.assert_allclose(result, 3.092929, rtol=1e-6)


def test_the_gradient_of_the_smoothing_itself():
    z, t = logits(3.0), distributions()
    surprise = -np.asarray(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))
    with jax.enable_x64(True):
        ours_ = jax.jacrev(lambda e: ms.cross_entropy(z, LABELS, label_smoothing=e))(0.1)
        np.testing.assert_allclose(ours_, z[np.arange(B), LABELS] - z.mean(axis=1), rtol=1e-12, atol=1e-14)
        ours_ = jax.jacrev(lambda e: ms.cross_entropy(z, t, label_smoothing=e))(0.1)
        np.testing.assert_allclose(ours_, np.sum((1 / C - t) * surprise, axis=1), rtol=1e-12, atol=1e-13)


def test_forward_mode_is_refused_and_works_over_the_gradient():
    z = jnp.asarray(logits(3.0), jnp.float32)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda z: ms.cross_entropy(z, LABELS), (z,), (z,))
    _, along = jax.jvp(jax.grad(lambda z: ms.cross_entropy(z, LABELS).sum()), (z,), (jnp.ones_like(z),))
    np.testing.assert_allclose(along, 0.0, atol=1e-6)  # the loss is flat where all logits rise alike


def test_two_classes_are_a_logistic_loss():
    d = np.linspace(-60.0, 60.0, 25)
    z = np.stack([0 * d, d], axis=1)
    with jax.enable_x64(True):
        for label in (0, 1):
            labels = np.full(25, label)
            theirs = optax.sigmoid_binary_cross_entropy(jnp.asarray(d), jnp.asarray(labels, float))
            np.testing.assert_allclose(ms.cross_entropy(z, labels), theirs, rtol=1e-12)
            gradient = jax.grad(lambda z, labels=labels: ms.cross_entropy(z, labels).sum())(jnp.asarray(z))
            sign = 1 - 2 * label
            np.testing.assert_allclose(gradient[:, 1], sign / (1 + np.exp(-sign * d)), rtol=1e-12)


def test_p_minus_y_sums_to_zero():
    z = logits(3.0).astype(np.float32)
    for smoothing in (0.0, 0.1):
        for labels in (LABELS, distributions().astype(np.float32)):
            gradient = ours(z, labels, cotangent=np.ones(B), label_smoothing=smoothing)[1]
            np.testing.assert_allclose(np.asarray(gradient, np.float64).sum(axis=1), 0.0, atol=8 * FLOAT32)


def test_the_jacobian_of_softmax_is_the_second_derivative():
    """p_i (delta_ij - p_j), forward over reverse and reverse over reverse, for labels and for distributions."""
    z = logits(2.0)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    expected = np.zeros((B, C, B, C))
    for i in range(B):
        expected[i, :, i] = COTANGENT[i] * (np.diag(p[i]) - np.outer(p[i], p[i]))
    with jax.enable_x64(True):
        t = distributions()
        for labels, weight in ((LABELS, np.ones(B)), (t, t.sum(axis=1))):
            for jacobian in (jax.jacfwd, jax.jacrev):
                second = jacobian(lambda z, labels=labels: ours(z, jnp.asarray(labels))[1])(jnp.asarray(z))
                np.testing.assert_allclose(second, expected * weight[:, None, None, None], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_narrow_logits_are_taken_in_float32(dtype):
    z = jnp.asarray(logits(3.0), dtype)
    for labels in (LABELS, jnp.asarray(distributions(), jnp.float32)):
        losses, z_bar, _ = exact(z.astype(jnp.float32), labels)
        result, gradient = ours(z, labels)
        assert result.dtype == jnp.float32
        assert gradient.dtype == dtype
        np.testing.assert_allclose(result, losses, rtol=2e-6)
        np.testing.assert_allclose(gradient.astype(jnp.float32), z_bar, rtol=float(jnp.finfo(dtype).eps), atol=1e-6)


WHERE = np.array([True, False, True, True, False, True])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_that_do_not_count_may_hold_anything(smoothing):
    """Losses and gradients are 0 there and what they are elsewhere; no NaN arises even on the way."""
    z, t = logits(3.0).astype(np.float32), distributions().astype(np.float32)
    for labels in (LABELS, t):
        argnums = 0 if labels is LABELS else (0, 1)
        expected = ours(z, labels, label_smoothing=smoothing, argnums=argnums)
        for garbage in (np.nan, np.inf, -np.inf, 3e38):
            bad_z, bad_labels = z.copy(), labels.copy()
            bad_z[~WHERE] = garbage
            bad_labels[~WHERE] = C if labels is LABELS else garbage
            result = ours(
                jax.device_put(bad_z),
                jax.device_put(bad_labels),
                label_smoothing=smoothing,
                where=WHERE,
                argnums=argnums,
            )
            for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(np.asarray(a)[WHERE], np.asarray(b)[WHERE], rtol=1e-6, atol=1e-7)
                np.testing.assert_array_equal(np.asarray(a)[~WHERE], 0.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_outside_makes_its_own_loss_nan_and_nothing_else(smoothing):
    z = logits(3.0).astype(np.float32)
    expected = ours(z, LABELS, label_smoothing=smoothing, cotangent=np.ones(B))
    for outside in (C, -1, -100, 2**31 - 1, -(2**31)):
        labels = LABELS.copy()
        labels[2] = outside
        with jax.debug_nans(False):
            result, gradient = ours(z, labels, label_smoothing=smoothing, cotangent=np.ones(B))
        result, gradient = np.asarray(result), np.asarray(gradient)
        assert np.isnan(result[2])
        np.testing.assert_array_equal(gradient[2], 0.0)
        for a, b in zip((result, gradient), expected, strict=True):
            np.testing.assert_allclose(np.delete(a, 2, axis=0), np.delete(b, 2, axis=0), rtol=1e-6)
    z[2] = np.nan  # whatever the row holds besides
    with jax.debug_nans(False):
        _, gradient = ours(z, labels, label_smoothing=smoothing)
    np.testing.assert_array_equal(np.asarray(gradient)[2], 0.0)
    unsigned = np.array([0, 6, 2**32 - 1, 2, 4, 1], np.uint32)
    with jax.debug_nans(False):
        assert np.isnan(np.asarray(ms.cross_entropy(z, unsigned))[2])


def test_a_nan_stays_visible_and_in_its_row():
    """At any class, own or not, and in the labels; +inf at another class, and a row all closed, are none either."""
    t = distributions().astype(np.float32)
    rows = [(np.nan, 0), (np.nan, 3), (np.inf, 3), (-np.inf, slice(None))]
    with jax.debug_nans(False):
        for labels in (np.zeros(B, np.int32), t):
            z = logits(3.0).astype(np.float32)
            expected = np.asarray(ms.cross_entropy(z, labels))
            for value, at in rows:
                bad = z.copy()
                bad[2, at] = value
                result = np.asarray(ms.cross_entropy(bad, labels))
                assert np.isnan(result[2]), (value, at)
                np.testing.assert_allclose(np.delete(result, 2), np.delete(expected, 2), rtol=1e-6)
        bad = t.copy()
        bad[2, 1] = np.nan
        assert np.isnan(np.asarray(ms.cross_entropy(z, bad))[2])


@pytest.mark.parametrize("kind", ["labels", "distributions"])
def test_transformations(kind):
    """jit, grad of jit, vmap, scan, checkpoint: one and the same gradient; and nothing leaks."""
    labels = jnp.asarray(
        LABELS if kind == "labels" else distributions(), jnp.int32 if kind == "labels" else jnp.float32
    )
    z = jnp.asarray(logits(3.0), jnp.float32)

    def total(z):
        return jnp.sum(jnp.asarray(COTANGENT, jnp.float32) * ms.cross_entropy(z, labels, label_smoothing=0.1))

    def scanned(z):
        return jax.lax.scan(lambda sum_, _: (sum_ + total(z), None), 0.0, None, length=2)[0] / 2

    def by_row(z):
        rows = jax.vmap(lambda z, y: ms.cross_entropy(z[None], y[None], label_smoothing=0.1)[0])(z, labels)
        return jnp.sum(jnp.asarray(COTANGENT, jnp.float32) * rows)

    expected = jax.grad(total)(z)
    for transformed in (jax.jit(total), jax.checkpoint(total), scanned, by_row):
        chex.assert_trees_all_close(jax.jit(jax.grad(transformed))(z), expected, rtol=1e-5, atol=1e-6)
    stacked = jax.vmap(jax.grad(total))(jnp.stack([z, 2 * z]))
    chex.assert_trees_all_close(stacked[1], jax.grad(total)(2 * z), rtol=1e-5, atol=1e-6)
    with jax.checking_leaks():
        jax.grad(total)(z)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_logits_stay_where_they_are_sharded(kind):
    """By class, and by batch and class: the same loss, and no gather of logits."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=(8, 12)), jnp.float32)
    t, y = jax.nn.softmax(2 * z[:, ::-1]), jnp.arange(8) % 12

    def value_and_grad(z, labels):
        return jax.value_and_grad(lambda z: ms.cross_entropy(z, labels, label_smoothing=0.1).sum())(z)

    mesh = jax.make_mesh((2, 2), ("batch", "classes"), axis_types=(kind,) * 2, devices=jax.devices()[:4])
    for spec, row in ((P("batch", "classes"), P("batch")), (P(None, ("batch", "classes")), P(None))):
        for labels, place in ((y, row), (t, spec)):
            expected = value_and_grad(z, labels)
            with jax.set_mesh(mesh):
                sharding = NamedSharding(mesh, spec)
                arguments = jax.device_put(z, sharding), jax.device_put(labels, NamedSharding(mesh, place))
                compiled = jax.jit(value_and_grad).lower(*arguments).compile()
                loss, gradient = compiled(*arguments)
            np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
            np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-6)
            assert gradient.sharding.is_equivalent_to(sharding, 2)
            text = compiled.as_text()
            assert "all-reduce" in text
            # Logits that are sharded by class stay where they are; at most each device's best is gathered.
            gathered = [int(n) for n in re.findall(r" = \w+\[\d+,(\d+)\]\S* all-gather", text)]
            assert len(gathered) == text.count(" all-gather(")
            assert "all-to-all" not in text
            assert max(gathered, default=0) <= 4 < z.shape[1] // 2
