"""Margins as values: their leaves and programs, their schedules, and their shape from angle 0 to pi."""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import margin_softmax as ms
from margin_softmax.margins import softmax_loss
from table import MARGINS, examples

HEADS = {"dense": ms.dense(), "blockwise": ms.blockwise(7, memory=0)}


class Case(NamedTuple):
    """A constructor, two settings of its numbers, and how it multiplies the angle and adds to it."""

    make: object
    numbers: tuple
    others: tuple
    m1: float = 1.0
    m2: float = 0.0
    m3: float = 0.0
    blend: float = 0.0
    scale: float = 1.0
    x_power: int = 0
    w_power: int = 0


def _straight_through(margin, scale):
    return ms.straight_through(ms.arcface(margin, scale))


CASES = {
    "plain": Case(ms.plain, (), (), x_power=1, w_power=1),
    "temperature": Case(ms.temperature, (0.5,), (4.0,), scale=2.0, x_power=1, w_power=1),
    "modified_softmax": Case(ms.modified_softmax, (), (), x_power=1),
    "normface": Case(ms.normface, (16.0,), (32.0,), scale=16.0),
    "l_softmax": Case(ms.l_softmax, (4, 0.5), (2, 0.0), m1=4.0, blend=0.5, x_power=1, w_power=1),
    "a_softmax": Case(ms.a_softmax, (3, 5.0), (4, 0.25), m1=3.0, blend=5.0, x_power=1),
    "am_softmax": Case(ms.am_softmax, (0.35, 30.0), (0.2, 10.0), m3=0.35, scale=30.0),
    "cosface": Case(ms.cosface, (0.35, 64.0), (0.2, 10.0), m3=0.35, scale=64.0),
    "arcface": Case(ms.arcface, (0.5, 64.0), (0.2, 10.0), m2=0.5, scale=64.0),
    "combined": Case(ms.combined, (1.2, 0.3, 0.2, 64.0), (0.9, 0.4, 0.15, 10.0), 1.2, 0.3, 0.2, scale=64.0),
    "straight_through": Case(_straight_through, (0.5, 64.0), (0.2, 10.0), m2=0.5, scale=64.0),
}
WITHOUT_SCALE = {"plain", "modified_softmax", "l_softmax", "a_softmax"}
"""These have no scale in their papers; theirs is 1, and a leaf like any other scale."""


def psi(u):
    k = np.floor(u / np.pi)
    return np.where(k % 2 == 0, 1.0, -1.0) * np.cos(u) - 2 * k


def target_of(case, theta, length):
    """The family in one formula, before the scale: `length (lambda cos + psi(m1 theta + m2)) / (1 + lambda) - m3`."""
    mapped = (case.blend * np.cos(theta) + psi(case.m1 * theta + case.m2)) / (1 + case.blend)
    return length * mapped - case.m3


def own_at(theta, length=1.0, norm=1.0):
    theta = jnp.asarray(theta)
    ones = jnp.ones_like(theta)
    return ms.Own(angle=theta, product=length * jnp.cos(theta), length=length * ones, norm=norm * ones)


@pytest.mark.parametrize("name", CASES)
def test_the_leaves_are_the_hyper_parameters(name):
    case = CASES[name]
    expected = [1.0 / n for n in case.numbers] if name == "temperature" else list(case.numbers)
    expected += [1.0] * (name in WITHOUT_SCALE)
    leaves = jax.tree.leaves(case.make(*case.numbers))
    assert sorted(leaves) == sorted(expected)
    assert {type(leaf) for leaf in leaves} <= {float}


def test_equal_constructors_have_equal_static_parts():
    structures = {}
    for name, case in CASES.items():
        first, second = (jax.tree.structure(case.make(*numbers)) for numbers in (case.numbers, case.others))
        assert first == second
        assert hash(first) == hash(second)
        structures[name] = first
    # These are one loss, of other numbers.
    assert structures["am_softmax"] == structures["cosface"]
    assert structures["temperature"] == structures["plain"]
    different = {name: s for name, s in structures.items() if name not in ("cosface", "temperature")}
    assert len(set(different.values())) == len(different)


@pytest.mark.parametrize("name", CASES)
def test_a_margin_may_be_traced_stacked_and_differentiated(name):
    """One program for all its values; a sweep is a `vmap` over its leaves; the derivative is a margin itself."""
    case = CASES[name]
    chex.clear_trace_counter()  # which counts by name

    @jax.jit
    @chex.assert_max_traces(n=1)
    def logit(margin):
        return margin.scale * margin.target(own_at(jnp.array([0.3, 1.4, 2.9])))

    margins = [jax.tree.map(jnp.float32, case.make(*numbers)) for numbers in (case.numbers, case.others)]
    each = [logit(margin) for margin in margins]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *margins)
    sweep = jax.vmap(lambda m: m.scale * m.target(own_at(jnp.array([0.3, 1.4, 2.9]))))(stacked)
    np.testing.assert_allclose(sweep, np.stack(each), rtol=1e-5, atol=1e-5)
    if case.numbers:
        assert np.max(np.abs(each[0] - each[1])) > 0.1
    gradient = jax.grad(lambda m: logit(m).sum())(margins[0])
    assert isinstance(gradient, ms.Margin)
    assert jax.tree.structure(gradient) == jax.tree.structure(margins[0])
    assert np.all(np.isfinite(jax.tree.leaves(gradient)))


@pytest.mark.parametrize("head", HEADS)
def test_a_sweep_over_margins_is_a_loop_over_them(head):
    x, w, y = examples(6, 17, 4, 0.5, dtype=np.float32)
    m, s = jnp.array([0.0, 0.2, 0.5]), jnp.array([4.0, 8.0, 16.0])

    def loss_and_gradient(m, s):
        def loss(x):
            losses = ms.margin_loss(x, w, y, ms.arcface(m, s), head=HEADS[head])
            return losses.sum(), losses

        return jax.value_and_grad(loss, has_aux=True)(x)

    (_, losses), gradients = jax.vmap(loss_and_gradient)(m, s)
    for i in range(3):
        (_, one), gradient = loss_and_gradient(m[i], s[i])
        np.testing.assert_allclose(losses[i], one, rtol=1e-5)
        np.testing.assert_allclose(gradients[i], gradient, rtol=1e-4, atol=1e-5)


def test_a_schedule_inside_a_compiled_step_compiles_once():
    """Its value follows the step, whatever kind of number the step is; an equal head made anew changes nothing."""
    x, w, y = examples(6, 17, 4, 0.5, dtype=np.float32)
    schedule = ms.blend_schedule(base=100.0, gamma=0.5, power=2.0, minimum=1.0)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step_loss(step):
        margin = ms.a_softmax(4, blend=schedule(step))
        return ms.margin_loss(x, w, y, margin, head=ms.blockwise(block_size=7))

    for step in (0, 1, 5, 1000):
        blend = max(100.0 * (1 + 0.5 * step) ** -2, 1.0)
        np.testing.assert_allclose(step_loss(step), ms.margin_loss(x, w, y, ms.a_softmax(4, blend)), rtol=1e-5)
    with pytest.raises(AssertionError, match="traced"):
        step_loss(2.5)


@pytest.mark.parametrize(
    "constants",
    [(1000.0, 0.12, 1.0, 5.0), (1000.0, 2.5e-5, 35.0, 0.0), (1000.0, 1e-5, 45.0, 0.0), (7.0, 0.0, 3.0, 0.0)],
)
def test_blend_schedule_is_its_formula(constants):
    """Also at steps where (1 + gamma step)^power leaves float32: 1e38 is passed by the second row at step 4.6e5.

    In float32 the logarithm of the decay, up to 150, is known to one unit in its last place.
    """
    base, gamma, power, minimum = constants
    schedule = ms.blend_schedule(*constants)
    steps = np.array([0, 1, 100, 1658, 10_000, 460_000, 3_000_000, 2**31 - 1])
    exact = np.maximum(base * (1 + gamma * steps.astype(float)) ** -power, minimum)
    ours = np.asarray(schedule(steps.astype(np.int32)))
    exponent = power * np.log1p(gamma * steps)
    assert ours.dtype == np.float32
    # float32 ends at 1e-38, where base * decay is 0.
    assert np.all(np.abs(ours - exact) <= exact * (4 + exponent) * 2.0**-23 + 1e-34)
    assert ours[0] == base
    assert np.all(np.diff(ours) <= 0)
    for step in (1658, np.int32(1658), jnp.asarray(1658), jnp.asarray(1658.0)):
        np.testing.assert_allclose(schedule(step), exact[3], rtol=1e-5)
    with jax.enable_x64(True):
        np.testing.assert_allclose(schedule(steps), exact, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("name", CASES)
def test_targets_are_the_family_and_never_rise_with_the_angle(name):
    """Over a grid from 0 to pi, both included, for lengths on either side of 1; by a rounding at most in float32."""
    case = CASES[name]
    grid = np.concatenate([[0.0], np.geomspace(1e-6, 1e-2, 20), np.linspace(0.01, math.pi - 0.01, 1001)])
    grid = np.concatenate([grid, math.pi - np.geomspace(1e-2, 1e-6, 20), [math.pi]])
    # Also at and next to every angle where psi changes its piece.
    pieces = (np.arange(1, 6) * math.pi - case.m2) / case.m1
    pieces = pieces[pieces < math.pi]
    grid = np.unique(np.concatenate([grid, pieces, np.nextafter(pieces, 0), np.nextafter(pieces, 9)]))
    for length in (1.0,) if not case.x_power else (0.25, 3.0):
        with jax.enable_x64(True):
            target = case.make(*case.numbers).target(own_at(grid, length))
            np.testing.assert_allclose(target, target_of(case, grid, length), rtol=0, atol=1e-13)
            assert np.all(np.diff(target) <= 1e-14)
        narrow = case.make(*case.numbers).target(own_at(grid.astype(np.float32), length))
        assert narrow.dtype == jnp.float32
        np.testing.assert_allclose(narrow, target_of(case, grid, length), rtol=0, atol=2e-5)
        assert np.all(np.diff(narrow) <= 2.0**-21 * case.m1 * length)


@pytest.mark.parametrize("name", CASES)
def test_slopes_have_no_jump_at_any_angle(name):
    """C1, also where psi changes its piece: between grid points h apart the slope changes by h times its own bound."""
    case = CASES[name]
    if name == "straight_through":
        # Its slope is that of no margin, on purpose.
        case = Case(ms.normface, (64.0,), (), scale=64.0)
    step = 1e-4
    grid = np.arange(0.0, math.pi, step)
    with jax.enable_x64(True):
        margin = CASES[name].make(*CASES[name].numbers)
        slope = jax.vmap(jax.grad(lambda theta: margin.target(own_at(theta[None]))[0]))(jnp.asarray(grid))
    by_theta = -(case.blend * np.sin(grid) + case.m1 * np.abs(np.sin(case.m1 * grid + case.m2))) / (1 + case.blend)
    np.testing.assert_allclose(slope, by_theta, rtol=0, atol=1e-12)
    assert np.max(np.abs(np.diff(slope))) <= step * max(case.m1**2, 1.0) * 1.01


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", CASES)
def test_at_angle_zero_and_pi_values_are_right_and_gradients_bounded(name, head):
    """At x = w and x = -w: where arccos has no derivative, and where training ends and begins to go wrong."""
    case = CASES[name]
    margin = case.make(*case.numbers)
    _, w, y = examples(6, 17, 4, 0.5, dtype=np.float32)
    weights = w.astype(float)
    w_norm = np.linalg.norm(weights, axis=1)
    for sign, theta in ((1, 0.0), (2, 0.0), (-1, math.pi), (-0.5, math.pi)):
        x = np.float32(sign) * w[y]
        x_norm = abs(sign) * w_norm[y]
        length = x_norm**case.x_power * w_norm[y] ** case.w_power
        z = case.scale * np.asarray(target_of(case, theta, length))
        if name != "straight_through" or theta == 0:
            logits = np.asarray(ms.margin_logits(x, w, y, margin))
            np.testing.assert_allclose(logits[np.arange(6), y], z, rtol=4e-6, atol=1e-5)

        def losses_of(x, w, y=y):
            losses = ms.margin_loss(x, w, y, margin, head=HEADS[head])
            return losses.sum(), losses

        (x_bar, w_bar), losses = jax.grad(losses_of, argnums=(0, 1), has_aux=True)(jnp.asarray(x), jnp.asarray(w))
        cosines = (x / x_norm[:, None]) @ (weights / w_norm[:, None]).T
        others = case.scale * x_norm[:, None] ** case.x_power * w_norm[None] ** case.w_power * cosines
        others[np.arange(6), y] = -np.inf
        exact = np.logaddexp(np.log(np.exp(others).sum(axis=1)) - z, 0.0)
        np.testing.assert_allclose(losses, exact, rtol=2e-5, atol=1e-6)
        assert np.all(np.isfinite(w_bar))
        # |dz_y/dx| <= s m1 / |x| where x is normalised, and s |w|^p (m1 + |psi|), |psi| <= 2 m1 + 1, where it is not;
        # the other logits add as much as one without a margin.
        slope = case.scale / x_norm * (case.m1 + 1)
        if case.x_power:
            slope = case.scale * w_norm.max() ** case.w_power * (3 * case.m1 + 2)
        assert np.all(np.linalg.norm(x_bar, axis=1) <= slope * (1 + 1e-5))


@pytest.mark.parametrize("name", CASES)
def test_the_slope_of_the_own_logit_is_bounded_from_zero_to_pi(name):
    """By s m1 / |x| for normalised features: at 0 and pi themselves, and within a rounding of them."""
    case = CASES[name]
    if case.x_power:
        # Their logit is linear in the feature's length: bounded on a sphere, as in the test before.
        assert name in WITHOUT_SCALE | {"temperature"}
        return
    margin = case.make(*case.numbers)
    small = 10.0 ** np.arange(-8.0, 0.0)
    angle = np.concatenate([[0.0], small, [1.0, 2.0], math.pi - small, [math.pi]])
    x = 0.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    w = np.float32([[3.0, 0.0], [0.0, 1.0]])
    y = np.zeros(len(x), np.int32)
    gradient = jax.grad(lambda x: ms.margin_logits(x, w, y, margin)[:, 0].sum())(jnp.asarray(x))
    bound = case.scale * case.m1 / 0.5
    assert np.all(np.linalg.norm(gradient, axis=1) <= bound * (1 + 1e-5))
    middle = (angle > 0.05) & (angle < math.pi - 0.05)
    slope = np.abs(np.sin(case.m1 * angle + case.m2)) if name != "straight_through" else np.sin(angle)
    np.testing.assert_allclose(np.linalg.norm(gradient, axis=1)[middle], bound * slope[middle], rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda margin: margin._replace(others=lambda products, own, target: products), "others"),
        (lambda margin: margin._replace(target=functools.partial(margin.target)), "target"),
        (lambda margin: margin._replace(loss=Partial(softmax_loss, math.cos)), r"loss\.\S+"),
    ],
)
def test_a_function_that_is_not_part_of_the_program_is_refused(change, field):
    """`jit` would call it no valid type."""
    margin = change(ms.arcface())
    for call in (lambda: ms.margin_loss(jnp.eye(2), jnp.eye(2), jnp.arange(2), margin), lambda: ms.focal(margin)):
        with pytest.raises(TypeError, match=f"margin: .*as `{field}`. Wrap it in jax.tree_util.Partial"):
            call()
    fixed = ms.arcface()._replace(others=Partial(lambda products, own, target: products))
    assert ms.margin_loss(jnp.eye(2), jnp.eye(2), jnp.arange(2), fixed).shape == (2,)


def test_the_table_of_margins_holds_every_constructor():
    """So that every law here and in the other tests is about every target margin there is; the rest: field.py."""
    functions = {name: getattr(ms, name) for name in ms.__all__ if name[0].islower()}
    constructors = {name for name, f in functions.items() if f.__module__ == "margin_softmax.margins"} - {"focal"}
    assert constructors == set(CASES)
    assert constructors == {name.removesuffix("_blend").rstrip("_1234") for name in MARGINS}
