"""More classes for a trained head: the rows that they get, what stays to the bit, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import margin_softmax as ms

D, OLD, NEW = 5, 8, 4
LABELS = np.array([8, 9, 10, 11, 8, 8, 9, 10])


def arrays(dtype=np.float32, centres=()):
    random = np.random.default_rng(0)
    features = random.normal(size=(OLD + NEW, D))[LABELS] + 0.2 * random.normal(size=(len(LABELS), D))
    features *= np.geomspace(1e-3, 1e3, len(LABELS))[:, None]
    return random.normal(size=(OLD, *centres, D)).astype(dtype), features.astype(dtype)


def expected_rows(weights, features):
    weights, features = weights.astype(np.float64), features.astype(np.float64)
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = np.stack([directions[c == LABELS].mean(0) for c in range(OLD, OLD + NEW)])
    return np.linalg.norm(weights, axis=-1).mean() * means / np.linalg.norm(means, axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, jnp.bfloat16])
@pytest.mark.parametrize("centres", [(), (3,)])
def test_new_rows_are_mean_directions_of_the_mean_length(dtype, centres):
    weights, features = arrays(dtype, centres)
    with jax.enable_x64(dtype == np.float64):
        grown = np.asarray(ms.grow_classes(weights, features, LABELS, OLD + NEW))
    np.testing.assert_array_equal(grown[:OLD], weights)
    assert grown.dtype == weights.dtype
    assert grown.shape == (OLD + NEW, *centres, D)
    rows = np.broadcast_to(expected_rows(weights, features).reshape(NEW, *[1] * len(centres), D), grown[OLD:].shape)
    tolerance = {2: 2**-8, 4: 1e-6, 8: 1e-14}[grown.dtype.itemsize]
    np.testing.assert_allclose(grown[OLD:].astype(np.float64), rows, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("margin", [ms.plain(), ms.arcface(0.3, scale=8.0)], ids=["plain", "arcface"])
def test_old_logits_stay_and_a_new_class_is_the_nearest_of_its_examples(margin):
    """At the first evaluation after growth, before any step."""
    weights, features = arrays()
    grown = ms.grow_classes(weights, features, LABELS, OLD + NEW)
    old_labels = np.arange(OLD)
    of_old = np.random.default_rng(1).normal(size=(OLD, D)).astype(np.float32)
    before = ms.margin_logits(of_old, weights, old_labels, margin)
    after = ms.margin_logits(of_old, grown, old_labels, margin)
    np.testing.assert_allclose(after[:, :OLD], before, rtol=1e-6, atol=1e-6)
    index, _ = ms.nearest_class(features, grown)
    np.testing.assert_array_equal(index, LABELS)


def test_equal_sub_centres_part():
    """Two kinds of examples in the new class, in different batches: each gets a centre of its own."""
    weights = np.stack([np.eye(3), -np.eye(3)], axis=1).astype(np.float32)
    features = np.array([[1, 1, 0], [1, -1, 0]], np.float32)
    labels = np.array([3, 3])
    grown = ms.grow_classes(weights, features, labels, 4)

    @jax.jit
    def step(w, x):
        return w - 0.1 * jax.grad(lambda w: ms.margin_loss(x, w, labels[:1], ms.arcface(0.5, 8.0)).sum())(w)

    for batch in (0, 1, 0, 1, 0, 1):
        grown = step(grown, features[batch : batch + 1])
    cosines = ms.cosines(features, grown[3])
    assert sorted(np.argmax(cosines, axis=1).tolist()) == [0, 1]
    assert float(jnp.min(jnp.max(cosines, axis=1))) > 0.75  # cos(pi / 4) is 0.71


OPTIMISERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(1e-3),
    "adagrad": optax.adagrad(0.1, initial_accumulator_value=0.3),
    "accumulated": optax.MultiSteps(optax.adam(1e-3, mu_dtype=jnp.bfloat16), 2),
    "masked": optax.chain(optax.clip_by_global_norm(1.0), optax.masked(optax.adam(0.1), {"classes": True, "x": False})),
    "injected": optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.0, 10)),
    "schedule free": optax.contrib.schedule_free_adamw(1e-2),
    "noisy": optax.noisy_sgd(0.1, key=jax.random.key(0)),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_state_is_carried_to_the_bit_and_new_rows_begin_as_the_optimiser_begins(name):
    optimiser, (weights, _) = OPTIMISERS[name], arrays()
    params = {"classes": weights, "x": np.ones((OLD, 2), np.float32)}  # x has as many rows, and does not grow
    grown = params | {"classes": np.full((OLD + NEW, D), 0.5, np.float32)}
    with jax.debug_nans(False):  # inside optax
        start = optimiser.init(grown)
        state = jax.tree.map(learned, optimiser.init(params))
    carried = ms.grow_state(state, start)
    assert jax.tree.structure(carried) == jax.tree.structure(start)
    grew = 0
    for old, new, ours in zip(*map(jax.tree.leaves, (state, start, carried)), strict=True):
        assert (ours.shape, ours.dtype) == (new.shape, new.dtype)
        if old.shape == new.shape:
            np.testing.assert_array_equal(bits(ours), bits(old))
        else:
            grew += 1
            np.testing.assert_array_equal(bits(ours), np.concatenate([bits(old), bits(new)[OLD:]]))
    assert (grew > 0) == (name != "noisy")


def learned(leaf):
    """Other numbers of its kind."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return np.random.default_rng(leaf.size).uniform(0, 100, leaf.shape).astype(leaf.dtype)


def bits(leaf):
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


@pytest.mark.parametrize(("kind", "new"), [(AxisType.Auto, 4), (AxisType.Explicit, 4), (AxisType.Explicit, 3)])
def test_split_rows_stay_split_where_they_can(kind, new):
    mesh = jax.make_mesh((4,), ("classes",), axis_types=(kind,), devices=jax.devices()[:4])
    weights, features = arrays()
    keep = np.isin(LABELS, np.arange(OLD, OLD + new))
    whole = ms.grow_classes(weights, features[keep], LABELS[keep], OLD + new)
    split = jax.device_put(weights, NamedSharding(mesh, P("classes")))
    grown = ms.grow_classes(split, features[keep], LABELS[keep], OLD + new)
    np.testing.assert_array_equal(np.asarray(grown)[:OLD], weights)
    np.testing.assert_allclose(grown, whole, rtol=1e-6)
    wanted = NamedSharding(mesh, P("classes") if new == 4 else P())
    optimiser = optax.sgd(0.1, momentum=0.9)
    trace = ms.grow_state(optimiser.init(split), optimiser.init(grown))[0].trace
    for array in (grown, trace):
        assert array.sharding.is_equivalent_to(wanted, 2)


W, X = arrays()
WRONG = {
    "old": (lambda: ms.grow_classes(W, X, LABELS - 1, 12), ValueError, r"labels: row 0 holds 7, expected .* 8 to 11"),
    "none": (lambda: ms.grow_classes(W, X, LABELS, 11), ValueError, r"labels: row 3 holds 11, .* 8 to 10"),
    "gap": (lambda: ms.grow_classes(W, X, LABELS, 14), ValueError, r"labels: class 12 has no example.* 2 of 6 have"),
    "fewer": (lambda: ms.grow_classes(W, X, LABELS, 8), ValueError, r"num_classes: .* >= 9, came 8.* 8 are there"),
    "not whole": (lambda: ms.grow_classes(W, X, LABELS, 12.5), ValueError, "num_classes: expected a whole number"),
    "reals": (lambda: ms.grow_classes(W, X, LABELS * 1.0, 12), TypeError, "labels: expected integers"),
    "shape": (lambda: ms.grow_classes(W, X[:, :3], LABELS, 12), ValueError, "weights: expected shape"),
    "count": (lambda: ms.grow_classes(W, X, LABELS[:5], 12), ValueError, "labels: expected shape"),
    "traced": (lambda: jax.jit(lambda y: ms.grow_classes(W, X, y, 12))(LABELS), TypeError, "labels: .*outside jit"),
    "zeros": (lambda: ms.grow_classes(W, X * (LABELS != 9)[:, None], LABELS, 12), ValueError,
              "features: class 9 has no mean direction"),
    "opposite": (lambda: ms.grow_classes(W, np.stack([X[0], -3 * X[0]]), np.array([8, 8]), 9), ValueError,
                 "features: class 8 has no mean direction"),
    "untrained": (lambda: ms.grow_classes(0 * W, X, LABELS, 12), ValueError, "weights: expected rows of a trained"),
    "trees": (lambda: ms.grow_state({"a": W}, [W]), ValueError, "start: expected the structure of state"),
    "dtype": (lambda: ms.grow_state([W], [X.astype(jnp.bfloat16)]), TypeError, r"start\[0\]: expected float32"),
    "columns": (lambda: ms.grow_state({"a": W}, {"a": W.T}), ValueError, r"start\['a'\]: expected shape \(8, 5\)"),
    "fewer rows": (lambda: ms.grow_state([W], [W[1:]]), ValueError, "same with more rows"),
    "a scalar": (lambda: ms.grow_state([W[0, 0]], [W[0]]), ValueError, r"start\[0\]: expected shape \(\)"),
    "unlike": (lambda: ms.grow_state([W, W[0]], [np.ones((9, 5), "f"), np.ones(9, "f")]), ValueError,
               r"grow alike, came rows \(5, 9\) and \(8, 9\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_grow_is_refused(name):
    call, error, words = WRONG[name]
    with pytest.raises(error, match="(?s)" + words):
        call()


def test_adam_after_growth_takes_the_steps_that_the_page_says():
    optimiser, weights, grown = optax.adam(1.0), jnp.ones((1, 2)), jnp.ones((2, 2))
    update, state = jax.jit(optimiser.update), optimiser.init(weights)
    with jax.numpy_dtype_promotion("standard"):  # inside optax
        for _ in range(2000):
            _, state = update(jnp.ones((1, 2)), state)
        step, _ = update(jnp.ones((2, 2)), ms.grow_state(state, optimiser.init(grown)))
    np.testing.assert_allclose(step[:, 0], [-1, -0.1 / np.sqrt(1e-3 / (1 - 0.999**2001))], rtol=1e-3)
