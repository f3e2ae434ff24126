"""Sub-centres: counting, choosing and cleaning, as Sub-center ArcFace does."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import margin_softmax as ms


def data(seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(40, 6)), random.normal(size=(5, 3, 6)), random.integers(0, 5, 40)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_counts_are_those_of_a_loop_and_add_up():
    x, w, y = data()
    expected = np.zeros((5, 3), int)
    for feature, label in zip(x, y, strict=True):
        expected[label, np.argmax(unit(w[label]) @ feature)] += 1
    x, w = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    np.testing.assert_array_equal(ms.center_counts(x, w, y), expected)
    np.testing.assert_array_equal(ms.center_counts(x[:7], w, y[:7]) + ms.center_counts(x[7:], w, y[7:]), expected)
    wrong = np.where(np.arange(40) == 3, 5, np.where(np.arange(40) == 4, -1, y))
    assert int(ms.center_counts(x, w, wrong).sum()) == 38


def test_the_dominant_centre_is_the_fullest():
    _, w, _ = data()
    counts = np.array([[1, 2, 0], [0, 0, 0], [5, 5, 1], [0, 1, 9], [3, 0, 0]])
    expected = w[np.arange(5), [1, 0, 0, 2, 0]].astype(np.float32)
    np.testing.assert_array_equal(ms.dominant_centers(jnp.asarray(w, jnp.float32), counts), expected)


def test_outliers_are_farther_than_75_degrees():
    x, w, y = data()
    centers = w[:, 0]
    angle = np.arccos(np.sum(unit(x) * unit(centers[y]), axis=1))
    assert 5 < np.sum(angle <= math.radians(75)) < 35
    x, centers = jnp.asarray(x, jnp.float32), jnp.asarray(centers, jnp.float32)
    np.testing.assert_array_equal(ms.outlier_mask(x, centers, y), angle <= math.radians(75))
    np.testing.assert_array_equal(ms.outlier_mask(x, centers, y, largest=math.pi), True)
    assert not np.any(ms.outlier_mask(x, centers, np.full(40, 9), largest=math.pi))
    # What is kept is what the loss counts.
    keep = ms.outlier_mask(x, centers, y)
    losses = ms.margin_loss(x, centers, y, ms.arcface(), where=keep)
    np.testing.assert_array_equal(losses == 0, ~keep)


def test_shapes_are_refused():
    x, w, y = (jnp.asarray(a) for a in data())
    x, w = x.astype(jnp.float32), w.astype(jnp.float32)
    with pytest.raises(ValueError, match=r"weights: expected shape \[C, K, D\]"):
        ms.center_counts(x, w[:, 0], y)
    with pytest.raises(ValueError, match=r"counts: expected shape \[C, K\] = \(5, 3\)"):
        ms.dominant_centers(w, jnp.ones((5, 2)))
    with pytest.raises(ValueError, match=r"centers: .*dominant_centers"):
        ms.outlier_mask(x, w, y)
    with pytest.raises(ValueError, match=r"centers: expected shape \[C, 6\]"):
        ms.outlier_mask(x, w[:, 0, :3], y)
    with pytest.raises(TypeError, match="centers: expected real"):
        ms.outlier_mask(x, w[:, 0].astype(int), y)
    with pytest.raises(ValueError, match="degrees"):
        ms.outlier_mask(x, w[:, 0], y, largest=75.0)
