"""Reductions: parts merge into the whole, and the pull is the derivative of the total."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from margin_softmax import reductions

pytestmark = pytest.mark.optimised

REDUCTIONS = {
    "log_sum_exp": (reductions.log_sum_exp(), lambda z: np.log(np.sum(np.exp(z)))),
    "sum_of_softplus": (reductions.sum_of(jax.nn.softplus), lambda z: np.sum(np.log1p(np.exp(z)))),
    "linear_sum": (reductions.linear_sum(), np.sum),
    "top_one": (reductions.top_one(), lambda z: (np.max(z), np.argmax(z)) if len(z) else (-np.inf, 0)),
    "top_k": (reductions.top_k(3), lambda z: [np.sort(np.append(z, [-np.inf] * 3))[::-1][:3]]),
    "pair": (
        reductions.pair(reductions.log_sum_exp(), reductions.linear_sum()),
        lambda z: (np.log(np.sum(np.exp(z))), np.sum(z)),
    ),
}
IDS = np.arange(12, dtype=np.int32)


def whole(total):
    """The numbers of a total: of a log-sum-exp, only the sum of its two has a meaning."""

    def is_sum(node):
        return isinstance(node, reductions.LogSumExp)

    return [n.largest + n.log_sum if is_sum(n) else n for n in jax.tree.leaves(total, is_leaf=is_sum)]


def logits_and_mask():
    random = np.random.default_rng(0)
    logits = random.normal(size=(4, 12)) * 3
    keep = random.uniform(size=(4, 12)) < 0.7
    keep[3] = False
    return logits, keep


@pytest.mark.parametrize("name", REDUCTIONS)
def test_parts_merge_into_the_whole_in_any_order(name):
    reduction, exact = REDUCTIONS[name]
    logits, keep = logits_and_mask()
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        parts = [reduction.of(logits[:, s], keep[:, s], IDS[s]) for s in (slice(0, 5), slice(5, 6), slice(6, 12))]
        for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
            merged = reduction.merge(reduction.merge(parts[order[0]], parts[order[1]]), parts[order[2]])
            for row, total in enumerate(zip(*whole(reduction.total(merged)), strict=True)):
                expected = np.atleast_1d(exact(logits[row, keep[row]]))
                if name == "top_one" and keep[row].any():
                    expected[1] = IDS[keep[row]][int(expected[1])]
                np.testing.assert_allclose(np.asarray(total, np.float64), expected, rtol=1e-12)


@pytest.mark.parametrize("name", [n for n in REDUCTIONS if n != "top_one"])
def test_pull_is_the_derivative_of_the_total(name):
    reduction, _ = REDUCTIONS[name]
    logits, keep = logits_and_mask()
    with jax.enable_x64(True):
        total, vjp = jax.vjp(lambda z: reduction.total(reduction.of(z, keep, IDS)), jnp.asarray(logits))
        cotangent = jax.tree.map(lambda t: jnp.linspace(-1.0, 2.0, t.size, dtype=t.dtype).reshape(t.shape), total)
        pulled = reduction.pull(jnp.asarray(logits), jnp.asarray(keep), total, cotangent)
        np.testing.assert_allclose(pulled, vjp(cotangent)[0], rtol=1e-12)
        assert np.all(np.asarray(pulled)[~keep] == 0)


def test_pull_of_the_top_one_goes_to_the_winner():
    reduction = reductions.top_one()
    logits, keep = logits_and_mask()
    logits = jnp.asarray(logits, jnp.float32)
    total = reduction.total(reduction.of(logits, keep, IDS))
    pulled = np.asarray(reduction.pull(logits, jnp.asarray(keep), total, (jnp.arange(1.0, 5.0), None)))
    expected = np.zeros((4, 12))
    expected[np.arange(3), np.asarray(total[1])[:3]] = [1, 2, 3]
    np.testing.assert_array_equal(pulled, expected)


def test_equal_logits_have_the_lowest_winner():
    reduction = reductions.top_one()
    parts = [
        reduction.of(jnp.zeros((1, 2)), jnp.ones((1, 2), bool), jnp.array(ids)) for ids in ([4, 5], [0, 1], [2, 3])
    ]
    merged = reduction.merge(reduction.merge(parts[0], parts[1]), parts[2])
    assert int(merged[1][0]) == 0


def test_a_nan_stays_visible():
    reduction = reductions.top_one()
    with jax.debug_nans(False):
        parts = [reduction.of(jnp.array([[v]]), jnp.ones((1, 1), bool), jnp.array([0])) for v in (1.0, jnp.nan, 2.0)]
        assert np.isnan(reduction.merge(reduction.merge(parts[0], parts[1]), parts[2])[0][0])


def test_one_more_logit_in_the_sum():
    """Also in the sum over no classes; with its gradient, through `log_sum` alone as the pull wants it."""
    reduction = reductions.log_sum_exp()
    logits, keep = logits_and_mask()
    more = np.array([-3.0, 900.0, 0.5, 2.0])
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        total = reduction.total(reduction.of(jnp.asarray(logits), jnp.asarray(keep), IDS))
        sums = np.log(np.sum(np.where(keep, np.exp(logits), 0), axis=1))
        with_more = total.plus(jnp.asarray(more))
        np.testing.assert_allclose(with_more.largest + with_more.log_sum, np.logaddexp(sums, more), rtol=1e-12)

        def distance(log_sum, more):
            return total._replace(log_sum=log_sum).plus(more).minus(jnp.zeros(4)).sum()

        by_sum, by_more = jax.grad(distance, argnums=(0, 1))(total.log_sum, jnp.asarray(more))
        p = np.exp(more - np.logaddexp(sums, more))
        np.testing.assert_allclose(by_sum, 1 - p, rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(by_more, p, rtol=1e-10)


def test_huge_and_closed_logits_need_no_care():
    reduction = reductions.log_sum_exp()
    logits = jnp.array([[1e4, -1e4, 1e4], [-jnp.inf, -jnp.inf, 2.0], [-jnp.inf, -jnp.inf, -jnp.inf]])
    keep = jnp.ones((3, 3), bool)
    total = reduction.total(reduction.of(logits, keep, jnp.arange(3)))
    np.testing.assert_allclose(whole(total)[0], [1e4 + np.log(2), 2.0, -np.inf], rtol=1e-6)
    np.testing.assert_allclose(total.minus(jnp.full(3, 1e4))[0], np.log(2), rtol=1e-6)
    pulled = reduction.pull(logits, keep, total, jax.tree.map(jnp.ones_like, total))
    np.testing.assert_allclose(pulled, [[0.5, 0, 0.5], [0, 0, 1], [0, 0, 0]], rtol=1e-6)
