"""One-against-all losses: where their biases start, and what is learned through a straight-through estimate."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_softmax as ms
from table import examples


@pytest.mark.parametrize("kind", ["C", "A", "M"])
@pytest.mark.parametrize("classes", [2, 10, 100_000])
def test_sphereface2_starts_at_rest(kind, classes):
    """Where every cosine is 0 the loss has no slope in the bias: weights of own and other classes balance."""
    with jax.enable_x64(True):
        bias = ms.sphereface2_bias(classes, kind=kind)
        x, w, y = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0], [0.0, 1.0]]), jnp.array([0])

        def own_and_other(bias):
            """The two kinds of terms, by weighing the classes; the second counts C - 1 times."""
            own = ms.margin_loss(x, w[:1], y, ms.sphereface2(bias, kind=kind))[0]
            pair = ms.margin_loss(x, w, y, ms.sphereface2(bias, kind=kind))[0]
            return own + (classes - 1) * (pair - own)

        slope, curvature = jax.grad(own_and_other)(bias), jax.grad(jax.grad(own_and_other))(bias)
    assert curvature > 0
    assert abs(slope / curvature) < 1e-7 * max(1.0, abs(bias))


def test_a_learned_bias_has_a_gradient_through_the_detached_loss():
    x, w, y = examples(6, 17, 4, 0.4, dtype=np.float32)

    def loss(bias, wrap):
        return ms.margin_loss(x, w, y, wrap(ms.sphereface2(bias, scale=8.0))).sum()

    exact, detached = (jax.grad(loss)(1.0, wrap) for wrap in (lambda m: m, ms.straight_through))
    np.testing.assert_allclose(detached, exact, rtol=1e-5)
    assert abs(exact) > 1e-3


def test_the_bias_of_the_unified_loss_is_its_formula():
    assert ms.unified_cross_entropy_bias(1000, rate=0.1) == pytest.approx(math.log(10 * 1000 * 0.1))


def test_p2sgrad_is_the_gradient_it_is_named_for():
    """Of each cosine: its distance from 1 or from 0."""
    x, w, y = jnp.array([[0.6, 0.8]]), jnp.eye(2), jnp.array([1])
    by_x = jax.grad(lambda x: ms.margin_loss(x, w, y, ms.p2sgrad())[0])(x)[0]
    g = np.array([0.6, 0.8 - 1.0])
    a = np.array([0.6, 0.8])
    np.testing.assert_allclose(by_x, g - (g @ a) * a, rtol=1e-5)


def test_sface_pulls_what_is_not_near_and_pushes_what_is_not_far():
    """Its gradients of cosines: none for an own class within a and for others beyond b, and s for the rest."""
    angles = jnp.array([0.3, 1.0, 1.5, 0.9])
    w = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    x = jnp.array([[1.0, 0.0]])

    def pull_of_each_class(y):
        return jax.vmap(lambda row, d: row @ d)(jax.grad(loss)(w, y), jnp.stack([-w[:, 1], w[:, 0]], axis=1))

    def loss(w, y):
        return ms.margin_loss(x, w, y, ms.sface(10.0))[0]

    # By the angle, dloss/dtheta = -sin(theta) dloss/dc.
    near, not_near = (pull_of_each_class(jnp.array([label])) / -jnp.sin(angles) for label in (0, 1))
    np.testing.assert_allclose(near, [0.0, 10.0, 0.0, 10.0], atol=1e-5)
    np.testing.assert_allclose(not_near, [10.0, -10.0, 0.0, 10.0], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ms.sphereface2(0.0, kind="B"), "kind: expected one of 'C', 'A', 'M'"),
        (lambda: ms.sphereface2(0.0, 20.0, kind="A"), "degrees"),
        (lambda: ms.sphereface2(0.0, 0.5, kind="M"), "margin: .*>= 1"),
        (lambda: ms.sphereface2(0.0, t=0.5), "t: "),
        (lambda: ms.sphereface2(math.nan), "bias: "),
        (lambda: ms.sphereface2(0.0, balance=1.5), "balance: "),
        (lambda: ms.sphereface2_bias(1), "num_classes: "),
        (lambda: ms.sphereface2_bias(10, balance=1.0), "balance: "),
        (lambda: ms.unified_cross_entropy(0.0, -0.1), "margin: "),
        (lambda: ms.unified_cross_entropy_bias(10, rate=0.0), "rate: "),
        (lambda: ms.sface(0.0), "scale: "),
        (lambda: ms.sface(steepness=0.0), "steepness: "),
        (lambda: ms.sface(near=45.0), "near: .*degrees"),
        (lambda: ms.sface(far=-0.1), "far: "),
    ],
)
def test_numbers_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
