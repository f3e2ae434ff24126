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
    before = {"adaface": [20.0, 100.0], "curricularface": [0.3], "adacos": [ms.adacos(CLASSES).scale]}
    np.testing.assert_allclose(nobody, before.get(name, [1.0]), rtol=1e-6)


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


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x, w, y: ms.update_adaface(ms.AdaFaceState(), x, momentum=1.5), "momentum: "),
        (lambda x, w, y: ms.update_adaface(ms.AdaFaceState(), x[0]), r"features: expected shape \[B, D\]"),
        (lambda x, w, y: ms.update_curricularface(0.0, x, w, y, momentum=-1.0), "momentum: "),
        (lambda x, w, y: ms.update_curricularface(0.0, x, w.T, y), "transposed|share D|weights"),
        (lambda x, w, y: ms.update_adacos(-1.0, x, w, y), "scale: "),
        (lambda x, w, y: ms.cifp_threshold(x, w, y, rate=0.0), "rate: "),
        (lambda x, w, y: ms.update_kappaface(w, x, np.arange(BATCH) + 20), "examples: .*<= 22"),
        (lambda x, w, y: ms.update_kappaface(w, x, y, rate=0.0), "rate: "),
    ],
)
def test_what_is_out_of_range_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make(*batch())
