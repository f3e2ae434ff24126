"""Angles, lengths and cosines against extended precision, from 1e-6 rad to pi - 1e-6, and exactly at both ends."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_softmax as ms
from margin_softmax import angles

pytestmark = pytest.mark.optimised

GRID = np.concatenate([10.0 ** np.arange(-6.0, 0.0, 0.5), np.linspace(1.0, 2.0, 5)])
GRID = np.concatenate([GRID, math.pi - GRID[::-1]])
ONE = 2.0**-23


def exact_angle(x, w):
    """From the wedge product, by Lagrange's identity: nothing cancels, at no angle."""
    x, w = np.asarray(x, np.longdouble), np.asarray(w, np.longdouble)
    wedge = x[..., :, None] * w[..., None, :]
    wedge = wedge - np.swapaxes(wedge, -1, -2)
    return np.arctan2(np.sqrt(np.sum(wedge**2, axis=(-1, -2)) / 2), np.sum(x * w, axis=-1))


def exact_gradient(x, w):
    """The derivative -u / |x|, with u the part of w across x, as `x wedge w` applied to x: nothing cancels either."""
    x, w = np.asarray(x, np.longdouble), np.asarray(w, np.longdouble)
    wedge = x[..., :, None] * w[..., None, :]
    wedge = wedge - np.swapaxes(wedge, -1, -2)
    across = np.sum(x[..., :, None] * wedge, axis=-2)
    across /= np.sqrt(np.sum(across**2, axis=-1, keepdims=True))
    return -across / np.sqrt(np.sum(x * x, axis=-1, keepdims=True))


def pairs(dim, dtype, seed=0):
    """Two vectors at each angle of the grid, as exactly as the dtype allows, of lengths from 0.5 to 2."""
    random = np.random.default_rng(seed)
    a = random.normal(size=(len(GRID), dim))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    across = random.normal(size=a.shape)
    across -= np.sum(across * a, axis=1, keepdims=True) * a
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    b = np.cos(GRID)[:, None] * a + np.sin(GRID)[:, None] * across
    lengths = random.uniform(0.5, 2.0, size=(2, len(GRID), 1))
    return (lengths[0] * a).astype(dtype), (lengths[1] * b).astype(dtype)


def gradients(x, w):
    return jax.grad(lambda x, w: ms.angle(x, w).sum(), argnums=(0, 1))(jnp.asarray(x), jnp.asarray(w))


@pytest.mark.parametrize("dim", [3, 64])
def test_angles_and_gradients_are_exact_at_every_angle(dim):
    """To a few roundings of the directions, whose components are known to 2^-24 each: in float32 and in float64.

    The gradient's direction is that of a difference as long as sin(angle), so its error is that much larger.
    """
    for dtype, unit in ((np.float32, 2.0**-24), (np.float64, 2.0**-53)):
        x, w = pairs(dim, dtype)
        with jax.enable_x64(dtype == np.float64):
            theta, (x_bar, w_bar) = ms.angle(x, w), gradients(x, w)
            assert theta.dtype == x_bar.dtype == w_bar.dtype == dtype
        assert np.all(np.abs(np.asarray(theta, np.longdouble) - exact_angle(x, w)) <= 6 * unit)
        for ours, exact in ((x_bar, exact_gradient(x, w)), (w_bar, exact_gradient(w, x))):
            length = np.sqrt(np.sum(exact**2, axis=1))
            error = np.sqrt(np.sum((np.asarray(ours, np.longdouble) - exact) ** 2, axis=1)) / length
            assert np.all(error <= 8 * unit / np.sin(GRID))
            assert np.all(np.linalg.norm(ours, axis=1) <= length * (1 + 4 * unit))


def test_small_angles_keep_their_digits_where_arccos_has_none():
    """The axis is exact in float32, so the angle itself is; its cosine resolves 3.5e-4."""
    small = np.array([1e-6, 1e-5, 1e-4, 1e-3])
    x = np.tile(np.float32([1, 0]), (4, 1))
    w = np.stack([np.cos(small), np.sin(small)], axis=1).astype(np.float32)
    np.testing.assert_allclose(ms.angle(x, w), small, rtol=1e-6)
    by_arccos = np.arccos(np.clip(np.sum(x * w, axis=1), -1, 1))
    assert np.max(np.abs(by_arccos - small) / small) > 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_ends_are_exact_and_flat(dtype):
    """Of the same direction 0, of opposite ones pi; the gradient has no direction there and is 0."""
    w = np.random.default_rng(0).normal(size=(5, 16)).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        for x, theta in ((w, 0.0), (2 * w, 0.0), (-w, dtype(math.pi)), (-w / 4, dtype(math.pi))):
            np.testing.assert_array_equal(ms.angle(x, w), theta)
            for gradient in gradients(x, w):
                np.testing.assert_array_equal(gradient, 0.0)


def test_directions_within_their_rounding_count_as_one():
    """The angle is 0 or more than a rounding, never a rounding alone, and where it is 0 so is the gradient."""
    x = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    nudged = x * (1 + ONE * np.random.default_rng(1).integers(-2, 3, size=x.shape)).astype(np.float32)
    for sign, end in ((1, 0.0), (-1, np.float32(math.pi))):
        theta = np.asarray(ms.angle(x, sign * nudged))
        at_end = theta == end
        assert at_end.any()
        assert not at_end.all()
        assert np.all(np.abs(theta - end)[~at_end] >= 2 * ONE)
        if sign == 1:
            for gradient in gradients(x, nudged):
                np.testing.assert_array_equal(np.asarray(gradient)[at_end], 0.0)


def test_a_zero_vector_is_at_a_right_angle_to_everything_and_flat():
    w = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    zero = np.zeros_like(w)
    for x, y in ((zero, w), (w, zero), (zero, zero)):
        np.testing.assert_array_equal(ms.angle(x, y), np.float32(math.pi / 2))
        for gradient in gradients(x, y):
            np.testing.assert_array_equal(gradient, 0.0)


def test_gradients_are_never_longer_than_one_over_the_length():
    """Not even where a rounding decides their direction."""
    x, w = (np.repeat(a, 8, axis=0) for a in pairs(16, np.float32))
    nudge = 1 + ONE * np.random.default_rng(1).integers(-2, 3, size=x.shape)
    nearly = [(x, w), (x, x * nudge), (x, -x * nudge), (1e-30 * x, 1e20 * w)]
    for x, w in nearly:
        x, w = x.astype(np.float32), w.astype(np.float32)
        for rows, bars in zip((x, w), gradients(x, w), strict=True):
            product = np.linalg.norm(rows.astype(float), axis=1) * np.linalg.norm(np.asarray(bars, float), axis=1)
            assert np.all(product <= 1 + 4 * ONE)


def test_both_modes_are_the_closed_form():
    x, w = pairs(4, np.float64)
    random = np.random.default_rng(2)
    dx, dw = random.normal(size=(2, *x.shape))
    moderate = np.sin(GRID) > 1e-3
    with jax.enable_x64(True):
        theta, slope = jax.jvp(ms.angle, (x, w), (dx, dw))
        x_bar, w_bar = gradients(x, w)
        np.testing.assert_allclose(slope, np.sum(x_bar * dx + w_bar * dw, axis=1), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(theta, ms.angle(x, w), rtol=0)
        step = 1e-6
        ahead, behind = (exact_angle(x + s * step * dx, w + s * step * dw) for s in (1, -1))
        difference = np.asarray((ahead - behind) / (2 * step), float)
        # A central difference errs by step^2 times a third derivative, which grows as 1 / sin^2.
        np.testing.assert_allclose(slope[moderate], difference[moderate], rtol=1e-5, atol=1e-5)


def test_second_derivatives_are_right_and_finite_everywhere():
    x, w = pairs(3, np.float64)
    with jax.enable_x64(True):
        hessian = jax.jit(jax.vmap(jax.hessian(lambda x, w: ms.angle(x[None], w[None])[0])))
        gradient = jax.vmap(jax.grad(lambda x, w: ms.angle(x[None], w[None])[0]))
        middle = np.abs(GRID - math.pi / 2) < 1.27
        for i in range(3):
            step = 1e-6 * np.eye(3)[i]
            difference = (gradient(x[middle] + step, w[middle]) - gradient(x[middle] - step, w[middle])) / 2e-6
            np.testing.assert_allclose(hessian(x[middle], w[middle])[:, :, i], difference, rtol=1e-6, atol=1e-7)
        reverse = jax.vmap(jax.jacrev(jax.grad(lambda x, w: ms.angle(x[None], w[None])[0])))
        np.testing.assert_allclose(reverse(x[middle], w[middle]), hessian(x[middle], w[middle]), rtol=1e-9, atol=1e-12)
        for a, b in ((x, w), (x, x), (x, -x), (0 * x, w), (x, 0 * w)):
            assert np.all(np.isfinite(hessian(a, b)))


@pytest.mark.parametrize("length", [1e-30, 1e-10, 1e10, 1e20])
def test_lengths_do_not_matter(length):
    """Also those whose squares leave float32; the gradient is that of length 1 divided by the length."""
    x, w = pairs(16, np.float32)
    keep = np.sin(GRID) > 1e-3
    x, w = x[keep], w[keep]
    scaled = np.float32(length) * x
    np.testing.assert_allclose(ms.angle(scaled, w), ms.angle(x, w), atol=3 * ONE)
    x_bar, w_bar = gradients(x, w)
    x_bar_scaled, w_bar_scaled = gradients(scaled, w)
    bound = 4 * ONE / np.sin(GRID[keep]).min()
    np.testing.assert_allclose(np.asarray(x_bar_scaled, float) * length, x_bar, atol=bound)
    np.testing.assert_allclose(w_bar_scaled, w_bar, atol=bound)


@pytest.mark.parametrize("length", [1e-36, 1e-30, 1e-20, 1.0, 1e20, 1e36])
def test_lengths_and_their_slopes_where_squares_leave_float32(length):
    x = np.random.default_rng(0).uniform(0.5, 1.0, size=(4, 3))
    rows = (length * x).astype(np.float32)
    wide = rows.astype(float)
    exact = np.linalg.norm(wide, axis=1)
    np.testing.assert_allclose(angles.norm(rows), exact, rtol=4 * ONE)
    np.testing.assert_allclose(angles.reciprocal_norm(rows), 1 / exact, rtol=4 * ONE)
    np.testing.assert_allclose(angles.unit(rows), wide / exact[:, None], rtol=4 * ONE)
    slope = jax.grad(lambda rows: angles.norm(rows).sum())(rows)
    np.testing.assert_allclose(slope, wide / exact[:, None], rtol=6 * ONE)
    # Of a direction along (1, 2, 3): (c - (c . u) u) / |x|, in which 1 / |x|^2 never appears.
    c = np.array([1.0, 2.0, 3.0])
    u = wide / exact[:, None]
    across = (c - (u @ c)[:, None] * u) / exact[:, None]
    cotangent = jnp.asarray(np.tile(c, (4, 1)), jnp.float32)
    slope = jax.grad(lambda rows: jnp.sum(cotangent * angles.unit(rows)))(rows)
    np.testing.assert_allclose(length * np.asarray(slope, float), length * across, rtol=1e-5, atol=1e-6)


def test_inner_products_of_directions_have_the_slope_of_inner_products():
    x, w = pairs(5, np.float64)
    with jax.enable_x64(True):
        a, b = np.asarray(angles.unit(x)), np.asarray(angles.unit(w))
        directions = np.ones(len(GRID), bool)
        np.testing.assert_allclose(angles.inner(a, b, directions), np.sum(a * b, axis=1), rtol=0, atol=1e-15)
        np.testing.assert_array_equal(angles.inner(x, w, ~directions), angles.dot(x, w))
        slopes = jax.grad(lambda a, b: angles.inner(a, b, directions).sum(), argnums=(0, 1))(a, b)
        np.testing.assert_array_equal(slopes[0], b)
        np.testing.assert_array_equal(slopes[1], a)


def test_psi_is_the_mirrored_cosine_continuous_falling_and_smooth():
    u = np.linspace(0.0, 5 * math.pi, 2001)
    k = np.floor(u / math.pi)
    with jax.enable_x64(True):
        value = np.asarray(angles.psi(u))
        np.testing.assert_allclose(value, np.where(k % 2 == 0, 1, -1) * np.cos(u) - 2 * k, rtol=0, atol=1e-14)
        assert np.all(np.diff(value) <= 1e-15)
        slope = jax.vmap(jax.grad(angles.psi))
        np.testing.assert_allclose(slope(jnp.asarray(u)), -np.abs(np.sin(u)), rtol=0, atol=1e-13)
        for at in math.pi * np.arange(1, 5):
            below, above = np.nextafter(at, 0), np.nextafter(at, 10 * at)
            assert abs(angles.psi(below) - angles.psi(above)) < 1e-14
            assert abs(slope(jnp.array([below]))[0] - slope(jnp.array([above]))[0]) < 1e-14
    # In float32 the boundary itself is rounded: the value there errs by that much times the slope, which is 0.
    narrow = u.astype(np.float32)
    np.testing.assert_allclose(angles.psi(narrow), value, atol=8 * ONE * 5)
    ends = np.float32(math.pi) * np.arange(1, 5, dtype=np.float32)
    near = np.concatenate([np.nextafter(ends, np.float32(0)), ends, np.nextafter(ends, np.float32(99))])
    np.testing.assert_allclose(angles.psi(near), np.tile(1 - 2.0 * np.arange(1, 5), 3), atol=2 * ONE)


def test_cosines_equal_float64():
    random = np.random.default_rng(0)
    for length in (1e-30, 1.0, 1e20):
        x, w = length * random.normal(size=(6, 32)), random.normal(size=(9, 32)) / length
        x, w = x.astype(np.float32), w.astype(np.float32)
        a, b = (r.astype(float) / np.linalg.norm(r.astype(float), axis=1, keepdims=True) for r in (x, w))
        np.testing.assert_allclose(ms.cosines(x, w), a @ b.T, rtol=0, atol=4 * ONE)
    assert np.all(np.asarray(ms.cosines(0 * x, w)) == 0)
    assert np.all(np.asarray(ms.cosines(x, 0 * w)) == 0)
    half = ms.cosines(np.full((1, 512), 300, np.float16), np.full((1, 512), 300, np.float16))
    np.testing.assert_allclose(half, 1.0, atol=4 * ONE)


def test_the_cosine_of_a_class_is_that_of_its_best_centre():
    random = np.random.default_rng(0)
    x, w = random.normal(size=(6, 8)), random.normal(size=(9, 3, 8))
    with jax.enable_x64(True):
        each = np.stack([ms.cosines(x, w[:, k]) for k in range(3)], axis=2)
        np.testing.assert_allclose(ms.cosines(x, w), each.max(axis=2), rtol=1e-14)
        gradient = np.asarray(jax.grad(lambda w: ms.cosines(x, w).sum())(w))
        never = ~np.any(each == each.max(axis=2, keepdims=True), axis=0)
        assert never.any()
        assert np.all(gradient[never] == 0)


def test_of_equal_centres_the_first_has_the_gradient():
    random = np.random.default_rng(0)
    x, w = random.normal(size=(6, 8)).astype(np.float32), random.normal(size=(9, 1, 8)).astype(np.float32)
    gradient = np.asarray(jax.grad(lambda w: ms.cosines(x, w).sum())(np.tile(w, (1, 3, 1))))
    single = jax.grad(lambda w: ms.cosines(x, w).sum())(w[:, 0])
    np.testing.assert_allclose(gradient[:, 0], single, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(gradient[:, 1:], 0.0)


def test_a_nan_centre_is_not_passed_over():
    w = np.ones((2, 3, 4), np.float32)
    w[1, 1] = np.nan
    with jax.debug_nans(False):
        cosines = np.asarray(ms.cosines(np.ones((1, 4), np.float32), w))
    assert np.isnan(cosines[0, 1])
    np.testing.assert_allclose(cosines[0, 0], 1.0, atol=4 * ONE)
