"""Hyperspherical energy and centre loss against their formulas, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_softmax as ms
import oracle


def energy(w, labels, power, angular):
    rows = w[np.unique(labels)]
    rows = rows / np.sqrt(np.sum(rows * rows, axis=1, keepdims=True))
    cosines = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
    distance = np.arccos(cosines) if angular else np.sqrt(2 - 2 * cosines)
    return np.mean(distance**-power)


@pytest.mark.parametrize("angular", [True, False])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_energy_and_its_gradient(power, angular):
    w = np.random.default_rng(0).normal(size=(9, 5))
    labels = np.array([3, 0, 3, 8, 5, 5, 1])
    with jax.enable_x64(True):
        ours, gradient = jax.value_and_grad(
            lambda w: ms.hyperspherical_energy(w, labels, power=power, angular=angular)
        )(jnp.asarray(w))
    np.testing.assert_allclose(ours, energy(w, labels, power, angular), rtol=1e-12)
    exact = oracle.complex_step(lambda w: energy(w, labels, power, angular), w)
    np.testing.assert_allclose(gradient, exact, rtol=1e-10, atol=1e-12)


def test_energy_needs_the_batch_squared_and_no_more():
    """Not times D: at 512 examples of 512 dimensions that would be 512 MiB."""
    energy = jax.jit(jax.value_and_grad(ms.hyperspherical_energy))
    shapes = jax.ShapeDtypeStruct((1000, 512), jnp.float32), jax.ShapeDtypeStruct((512,), jnp.int32)
    assert energy.lower(*shapes).compile().memory_analysis().temp_size_in_bytes < 32 * 2**20


def test_energy_where_there_is_no_pair():
    """One class, none, or two of one direction: nothing to part, and no NaN."""
    w = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    for labels in ([1, 1], [0, 1], [7, -1]):
        value, gradient = jax.value_and_grad(ms.hyperspherical_energy)(w, jnp.array(labels))
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)
    assert ms.hyperspherical_energy(w, jnp.zeros(0, jnp.int32)) == 0


def test_descending_the_energy_spreads_the_classes():
    w, labels = jax.random.normal(jax.random.key(0), (6, 3)) + jnp.array([[3.0, 0, 0]]), jnp.arange(6)

    @jax.jit
    def step(w):
        w = w - 0.3 * jax.grad(ms.hyperspherical_energy)(w, labels)
        return w / jnp.linalg.norm(w, axis=1, keepdims=True)

    before = ms.cosines(w, w)
    for _ in range(300):
        w = step(w)
    above = np.triu_indices(6, 1)
    assert np.max(np.asarray(ms.cosines(w, w))[above]) < 0.3 < np.max(np.asarray(before)[above])


def test_center_loss_and_its_gradients():
    random = np.random.default_rng(0)
    x, c, y = random.normal(size=(6, 4)), random.normal(size=(5, 4)), np.array([0, 3, 3, 4, 9, -1])
    with jax.debug_nans(False):
        losses = np.asarray(ms.center_loss(jnp.asarray(x, jnp.float32), jnp.asarray(c, jnp.float32), y))
        by_x, by_c = jax.grad(lambda x, c: jnp.nansum(ms.center_loss(x, c, y)), argnums=(0, 1))(
            jnp.asarray(x, jnp.float32), jnp.asarray(c, jnp.float32)
        )
    np.testing.assert_allclose(losses[:4], np.sum((x[:4] - c[y[:4]]) ** 2, axis=1) / 2, rtol=1e-5)
    assert np.all(np.isnan(losses[4:]))
    np.testing.assert_allclose(by_x, np.where(np.arange(6)[:, None] < 4, x - c[y % 5], 0), rtol=1e-5, atol=1e-6)
    expected = np.zeros((5, 4))
    np.add.at(expected, y[:4], c[y[:4]] - x[:4])
    np.testing.assert_allclose(by_c, expected, rtol=1e-5, atol=1e-6)


def test_shapes_and_numbers_are_refused():
    with pytest.raises(ValueError, match=r"weights: expected shape \[C, D\]"):
        ms.hyperspherical_energy(jnp.ones((3, 2, 4)), jnp.array([0]))
    with pytest.raises(ValueError, match="power: "):
        ms.hyperspherical_energy(jnp.ones((3, 2)), jnp.array([0]), power=0.0)
    with pytest.raises(ValueError, match="power: expected one number"):
        ms.hyperspherical_energy(jnp.ones((3, 2)), jnp.array([0, 1]), power=np.ones(2))
    for labels in (jnp.eye(3, dtype=jnp.int32), jnp.ones((4, 3), jnp.int32)):
        with pytest.raises(ValueError, match=r"labels: expected shape \[B\], came .* one-hot"):
            ms.hyperspherical_energy(jnp.ones((3, 2)), labels)
    with pytest.raises(ValueError, match=r"centers: expected shape \[C, D\]"):
        ms.center_loss(jnp.ones((1, 4)), jnp.ones((3, 2, 4)), jnp.array([0]))
    with pytest.raises(ValueError, match=r"centers: expected shape \[C, 4\] for features"):
        ms.center_loss(jnp.ones((1, 4)), jnp.ones((5, 3)), jnp.array([0]))
    with pytest.raises(ValueError, match=r"centers: .*transposed: pass `centers\.T`"):
        ms.center_loss(jnp.ones((1, 4)), jnp.ones((4, 3)), jnp.array([0]))
