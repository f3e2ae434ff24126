"""Schedules: the papers' annealings by name, and margins that rise. `blend_schedule` itself: see test_margins.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import margin_softmax as ms


@pytest.mark.parametrize(
    ("name", "step", "value"),
    [
        ("a_softmax_casia", 1000, 1000 / 121),
        ("a_softmax_casia", 1659, 5.0),
        ("l_softmax_mnist", 30_000, 1000 * 1.75**-35.0),
        ("l_softmax_cifar10", 20_000, 1000 * 1.2**-45.0),
        ("sv_softmax", 100_000, 1000 * 11.0**-2),
    ],
)
def test_annealings_are_the_papers(name, step, value):
    schedule = ms.annealing(name)
    np.testing.assert_allclose(schedule(step), value, rtol=1e-4)
    assert float(schedule(0)) == 1000.0


def test_constants_of_a_schedule_may_be_whole_narrow_or_learned():
    expected = ms.blend_schedule(1000.0, 0.5, 2.0, 5.0)(3)
    narrow = (jnp.bfloat16(n) for n in (1000, 0.5, 2, 5))
    for constants in ((1000, 0.5, 2, 5), narrow, (nnx.Param(jnp.float32(n)) for n in (1000, 0.5, 2, 5))):
        np.testing.assert_allclose(ms.blend_schedule(*constants)(3), expected, rtol=1e-6)


def test_an_unknown_annealing_names_the_known():
    with pytest.raises(ValueError, match="name: expected one of 'a_softmax_casia'"):
        ms.annealing("casia")


@pytest.mark.parametrize("kind", ["linear", "exponential"])
def test_a_margin_warms_up_between_its_steps(kind):
    schedule = ms.margin_warmup(0.5, 100, 300, initial=0.1, kind=kind)
    steps = np.arange(0, 400, 10, dtype=np.int32)
    values = jax.jit(jax.vmap(schedule))(steps)
    u = np.clip((steps - 100) / 200, 0, 1)
    ratio = {"linear": u, "exponential": np.where(u < 1, 1 - 1000.0**-u, 1)}[kind]
    np.testing.assert_allclose(values, 0.1 + 0.4 * ratio, rtol=1e-5)
    assert np.all(np.diff(values) >= 0)
    assert float(schedule(0)) == pytest.approx(0.1)
    assert float(schedule(300)) == pytest.approx(0.5)
    margin = jax.jit(
        lambda step: ms.margin_loss(jnp.eye(2), jnp.eye(2), jnp.arange(2), ms.arcface(schedule(step), 4.0))
    )
    assert np.all(margin(300) > margin(0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ms.margin_warmup(0.5, 10, 10), "end: "),
        (lambda: ms.margin_warmup(0.5, -1, 10), "start: "),
        (lambda: ms.margin_warmup(0.5, 0, 10, kind="cubic"), "kind: "),
    ],
)
def test_impossible_schedules_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
