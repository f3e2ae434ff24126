"""How large the scale must be: NormFace's bound, and the fixed scale of AdaCos."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import margin_softmax as ms


@pytest.mark.parametrize("classes", [2, 10, 92, 10_572, 1_000_000])
@pytest.mark.parametrize("probability", [0.9, 0.999])
def test_the_suggested_scale_reaches_its_probability_and_no_smaller_one_does(classes, probability):
    """Classes as far apart as C of them can be have cosines -1 / (C - 1): the best case there is."""
    scale = ms.suggest_scale(classes, probability)
    rest = (classes - 1) * math.exp(-scale * classes / (classes - 1))
    assert 1 / (1 + rest) == pytest.approx(probability, rel=1e-9)
    assert scale > ms.suggest_scale(classes, probability - 0.01)


def test_the_bound_is_met_by_a_simplex():
    """The formula, as a loss of this library: four classes in three dimensions, every feature on its own class."""
    corners = jnp.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    scale = ms.suggest_scale(4, 0.99)
    losses = ms.margin_loss(corners, corners, jnp.arange(4), ms.normface(scale))
    np.testing.assert_allclose(np.exp(-np.asarray(losses)), 0.99, rtol=1e-5)


@pytest.mark.parametrize(("classes", "scale"), [(10, 3.11), (10_572, 13.10), (1_000_000, 19.54)])
def test_the_fixed_scale_of_adacos(classes, scale):
    assert ms.adacos(classes).scale == pytest.approx(scale, abs=0.005)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ms.suggest_scale(1), "num_classes"),
        (lambda: ms.suggest_scale(10, 1.0), "probability: expected a number below 1"),
        (lambda: ms.suggest_scale(10, 0.05), "probability: .*> 0.1"),
        (lambda: ms.adacos(2), "num_classes"),
    ],
)
def test_what_has_no_scale_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
