"""Explicit state: each update against NumPy, the same when the batch is split over devices, and never poisoned."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_softmax as ms
from table import examples

HEADS = {"dense": ms.dense(), "blockwise": ms.blockwise(7, memory=0)}
BATCH, CLASSES = 12, 23


def batch(seed=0):
    """Features at many angles and norms, class rows, labels."""
    random = np.random.default_rng(seed)
    x, w, y = examples(BATCH, CLASSES, 5, 0.5, seed=seed)
    x = (x + 0.5 * random.normal(size=x.shape)) * random.uniform(5, 40, size=(BATCH, 1))
    return x.astype(np.float32), w.astype(np.float32), y


def cosines(x, w):
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T


def numpy_adaface(state, x, momentum):
    norms = np.clip(np.linalg.norm(np.asarray(x, np.float64), axis=1), 1e-3, 100)
    return [
        momentum * old + (1 - momentum) * new for old, new in zip(state, (norms.mean(), norms.std(ddof=1)), strict=True)
    ]


def numpy_curricularface(t, x, w, y, momentum):
    return momentum * t + (1 - momentum) * cosines(x, w)[np.arange(len(x)), y].mean()


def numpy_adacos(scale, x, w, y):
    c = cosines(x, w)
    others = np.arange(c.shape[1])[None] != y[:, None]
    wrong = np.mean(np.sum(np.where(others, np.exp(scale * c), 0), axis=1))
    median = np.median(np.arccos(c[np.arange(len(x)), y]))
    return np.log(wrong) / np.cos(min(math.pi / 4, median))


def numpy_cifp(x, w, y, rate):
    c = cosines(x, w)
    own = c[np.arange(len(x)), y][:, None]
    others = np.arange(c.shape[1])[None] != y[:, None]
    nearer = others & (c > own)
    rank = math.ceil(rate * (len(x) * (c.shape[1] - 1) - nearer.sum()))
    return np.sort(c[others & ~nearer])[::-1][rank - 1]


UPDATES = {
    "adaface": (
        lambda x, w, y, **more: ms.update_adaface(ms.AdaFaceState(), x, momentum=0.9, **more),
        lambda x, w, y: numpy_adaface((20.0, 100.0), x, 0.9),
    ),
    "curricularface": (
        lambda x, w, y, **more: ms.update_curricularface(0.3, x, w, y, momentum=0.9, **more),
        lambda x, w, y: [numpy_curricularface(0.3, x, w, y, 0.9)],
    ),
    "adacos": (
        lambda x, w, y, **more: ms.update_adacos(ms.adacos(CLASSES).scale, x, w, y, **more),
        lambda x, w, y: [numpy_adacos(math.sqrt(2) * math.log(CLASSES - 1), x, w, y)],
    ),
    "cifp": (
        lambda x, w, y, **more: ms.cifp_threshold(x, w, y, **more),
        lambda x, w, y: [numpy_cifp(x, w, y, 1 / (CLASSES - 1))],
    ),
    "cifp_rate": (
        lambda x, w, y, **more: ms.cifp_threshold(x, w, y, rate=0.3, **more),
        lambda x, w, y: [numpy_cifp(x, w, y, 0.3)],
    ),
}


@pytest.mark.parametrize("name", UPDATES)
def test_updates_are_their_formulas_in_every_head_and_over_devices(name):
    update, exact = UPDATES[name]
    x, w, y = batch()
    expected = exact(x, w, y)
    for head in HEADS.values() if name != "adaface" else [None]:
        more = {} if head is None else {"head": head}
        np.testing.assert_allclose(jax.tree.leaves(update(x, w, y, **more)), expected, rtol=1e-6, atol=1e-7)
    # Of four devices each has three of the twelve examples; all come to the same state.
    split = functools.partial(update, w=w, axis_name="devices")
    parts = jax.vmap(lambda x, y: split(x, y=y), axis_name="devices")(x.reshape(4, 3, -1), y.reshape(4, 3))
    for leaf, value in zip(jax.tree.leaves(parts), expected, strict=True):
        np.testing.assert_allclose(leaf, np.full(4, value), rtol=1e-6, atol=1e-7)  # a cosine may be near 0


@pytest.mark.parametrize("name", UPDATES)
def test_rows_that_do_not_count_change_nothing(name):
    """Masked rows, NaN in them, and labels that name no class."""
    update, exact = UPDATES[name]
    x, w, y = batch()
    expected = exact(x[2:], w, y[2:])
    where = np.arange(BATCH) >= 2
    masked = np.where(where[:, None], x, np.nan).astype(np.float32)
    ours = jax.tree.leaves(update(jnp.asarray(masked), w, np.where(where, y, 99), where=where))
    np.testing.assert_allclose(ours, expected, rtol=2e-6)
    if name != "adaface":  # which has no labels
        np.testing.assert_allclose(update(x, w, np.where(where, y, -1)), expected[0], rtol=2e-6)
    nobody = jax.tree.leaves(update(x, w, y, where=np.zeros(BATCH, bool)))
    np.testing.assert_allclose(nobody, BEFORE.get(name, [1.0]), rtol=1e-6)


BEFORE = {"adaface": [20.0, 100.0], "curricularface": [0.3], "adacos": [ms.adacos(CLASSES).scale]}


@pytest.mark.parametrize("name", UPDATES)
def test_an_empty_batch_changes_nothing(name):
    update, _ = UPDATES[name]
    x, w, y = batch()
    for head in HEADS.values() if name != "adaface" else [None]:
        more = {} if head is None else {"head": head}
        after = jax.tree.leaves(update(x[:0], w, y[:0], **more))
        np.testing.assert_allclose(after, BEFORE.get(name, [1.0]), rtol=1e-6)
    memory = jnp.eye(3)
    np.testing.assert_array_equal(ms.update_kappaface(memory, x[:0, :3], np.zeros(0, np.int32)), memory)


def test_adacos_keeps_its_scale_where_the_next_one_is_none():
    """At the corners of a simplex the wrong logits add up to less than e^0; of one class there are none."""
    corners = 10.0 * jnp.eye(10) - 1.0
    assert numpy_adacos(30.0, corners, corners, np.arange(10)) < 0
    assert ms.update_adacos(30.0, corners, corners, jnp.arange(10)) == 30.0
    assert ms.update_adacos(8.0, jnp.ones((2, 3)), jnp.ones((1, 3)), jnp.zeros(2, jnp.int32)) == 8.0
    with jax.debug_nans(False):  # a NaN is not kept out
        assert np.isnan(ms.update_adacos(8.0, corners.at[0].set(jnp.nan), corners.at[5].set(jnp.nan), jnp.arange(10)))


def test_a_batch_of_one_updates_the_mean_alone():
    state = ms.update_adaface(ms.AdaFaceState(), jnp.array([[3.0, 4.0]]), momentum=0.5)
    assert (float(state.mean), float(state.deviation)) == (12.5, 100.0)
    x, w, y = batch()
    assert np.isfinite(ms.update_adacos(8.0, x[:1], w, y[:1]))


@pytest.mark.parametrize("name", UPDATES)
def test_state_has_no_gradient_and_runs_inside_a_step(name):
    update, _ = UPDATES[name]
    x, w, y = batch()
    gradient = jax.jit(jax.grad(lambda x: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(update(x, w, y)))))(x)
    np.testing.assert_array_equal(gradient, 0)


def test_states_go_through_training_as_any_pytree_does():
    """Two steps and two more, saved between, are four steps, to the bit; what a loss reads it does not change."""
    x, w, y = batch()
    start = (jnp.asarray(w), ms.AdaFaceState(jnp.float32(20.0), jnp.float32(100.0)), jnp.float32(0.0))

    @jax.jit
    def step(carry):
        w, state, t = carry
        state = ms.update_adaface(state, x)
        t = ms.update_curricularface(t, x, w, y)

        def loss(w):
            first = ms.margin_loss(x, w, y, ms.adaface(state, scale=8.0)).mean()
            return first + ms.margin_loss(x, w, y, ms.curricularface(t, scale=8.0)).mean()

        return w - 0.1 * jax.grad(loss)(w), state, t

    def after(steps, carry):
        for _ in range(steps):
            carry = step(carry)
        return carry

    straight = after(4, start)
    saved = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(after(2, start))]
    shapes = jax.tree.leaves(start)
    restored = [jnp.asarray(np.frombuffer(b, np.float32).reshape(s.shape)) for b, s in zip(saved, shapes, strict=True)]
    resumed = after(2, jax.tree.unflatten(jax.tree.structure(start), restored))
    for one, other in zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    assert float(straight[2]) != 0.0


def test_kappaface_remembers_directions():
    x, _, _ = batch()
    random = np.random.default_rng(1)
    memory = np.zeros((20, 5))
    memory[:10] = random.normal(size=(10, 5))
    memory[:10] /= np.linalg.norm(memory[:10], axis=1, keepdims=True)
    which = random.permutation(20)[:BATCH]
    mixed = 0.1 * memory[which] + 0.9 * x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = memory.copy()
    expected[which] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    where = np.arange(BATCH) != 4
    expected[which[4]] = memory[which[4]]
    ours = ms.update_kappaface(jnp.asarray(memory, jnp.float32), x, which, where=where)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    traced = jax.jit(lambda which: ms.update_kappaface(jnp.asarray(memory, jnp.float32), x, which, where=where))
    np.testing.assert_array_equal(traced(which), ours)


def test_kappaface_leaves_out_examples_that_it_has_no_row_for():
    """As labels that name no class: the same inside jit and outside, masked or not."""
    memory, x = jnp.eye(3), jnp.array([[0.0, 2.0, 0.0], [0.0, 0.0, 2.0], [2.0, 0.0, 0.0]])
    expected = ms.update_kappaface(memory, x[:1], jnp.array([0]))
    where = np.array([True, True, False])
    for update in (ms.update_kappaface, jax.jit(ms.update_kappaface)):
        np.testing.assert_array_equal(update(memory, x, jnp.array([0, 3, -1])), expected)
        np.testing.assert_array_equal(update(memory, x, jnp.array([0, -1, 7]), where=where), expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x, w, y: ms.update_adaface(ms.AdaFaceState(), x, momentum=1.5), "momentum: "),
        (lambda x, w, y: ms.update_adaface(ms.AdaFaceState(), x[0]), r"features: expected shape \[B, D\]"),
        (lambda x, w, y: ms.update_curricularface(0.0, x, w, y, momentum=-1.0), "momentum: "),
        (lambda x, w, y: ms.update_curricularface(0.0, x, w.T, y), "transposed|share D|weights"),
        (lambda x, w, y: ms.update_adacos(-1.0, x, w, y), "scale: "),
        (lambda x, w, y: ms.cifp_threshold(x, w, y, rate=0.0), "rate: "),
        (lambda x, w, y: ms.update_kappaface(w, x, y[1:]), r"examples: expected shape \[B\] = \(12,\)"),
        (lambda x, w, y: ms.update_kappaface(w, x, y, rate=0.0), "rate: "),
        (lambda x, w, y: ms.update_kappaface(w, x, y, rate=np.full(5, 0.5)), "rate: expected one number"),
        (lambda x, w, y: ms.update_curricularface(math.nan, x, w, y), "t: expected a finite number .* came nan"),
        (lambda x, w, y: ms.update_curricularface(np.zeros(3, "f"), x, w, y), r"t: expected one number, .* \(3,\)"),
        (lambda x, w, y: ms.update_adacos(np.ones(BATCH, "f"), x, w, y), "scale: expected one number"),
        (lambda x, w, y: ms.update_adacos(math.inf, x, w, y), "scale: "),
        (lambda x, w, y: ms.update_adaface(ms.AdaFaceState(mean=math.nan), x), "mean: .*came nan"),
        (lambda x, w, y: ms.update_adaface(ms.AdaFaceState(deviation=np.ones(BATCH, "f")), x), "deviation: .*one num"),
        (lambda x, w, y: ms.update_adaface(ms.AdaFaceState(), x, momentum=np.ones(BATCH)), "momentum: .*one number"),
    ],
)
def test_what_is_out_of_range_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make(*batch())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x, w, y: ms.update_adaface((20.0, 100.0), x), "state: expected an AdaFaceState .* came tuple"),
        (lambda x, w, y: ms.update_curricularface(None, x, w, y), "t: expected a real number"),
        (lambda x, w, y: ms.cifp_threshold(None, w, y), "features: .*NoneType"),
        (lambda x, w, y: ms.update_kappaface(w, x, y * 1.0), "examples: expected integers"),
        (lambda x, w, y: ms.update_kappaface(np.zeros((300, 5), "f"), x, y.astype(np.uint8)), "examples: uint8 cannot"),
    ],
)
def test_what_is_of_another_kind_is_refused(make, words):
    with pytest.raises(TypeError, match=words):
        make(*batch())
