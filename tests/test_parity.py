"""PyTorch Metric Learning and the package, in float64; tests/reference/pytorch_metric_learning.py stored the former."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_softmax as ms

STORED = pathlib.Path(__file__).parent / "reference" / "pytorch_metric_learning.npz"
HEADS = {"dense": ms.dense(), "blockwise": ms.blockwise(block_size=4, memory=0)}
LOSSES = {
    "l_softmax_2": ms.l_softmax(2),
    "l_softmax_3": ms.l_softmax(3),
    "l_softmax_4": ms.l_softmax(4),
    "sphereface_2": ms.a_softmax(2),
    "sphereface_4": ms.a_softmax(4),
    "cosface": ms.cosface(0.35, scale=64.0),
    "normalized_softmax": ms.normface(1 / 0.05),
}
# Degrees there. Its default of 28.6 is 0.4992, which is not the paper's 0.5 to these digits.
ARCFACE = {
    "arcface": (math.radians(28.6), 64.0),
    "arcface_60": (math.radians(60.0), 30.0),
    "sub_centre_arcface": (math.radians(28.6), 64.0),
}


def stored(name):
    with np.load(STORED) as file:
        return {key.split("/")[1]: file[key] for key in file.files if key.startswith(f"{name}/")}


def ours(case, margin, head):
    """Losses, and the gradients of their sum weighted with the case's cotangent: features, weights."""

    def losses(features, weights):
        return ms.margin_loss(features, weights, case["labels"], margin, head=HEADS[head])

    values, pull = jax.vjp(losses, jnp.asarray(case["features"]), jnp.asarray(case["weights"]))
    assert values.dtype == jnp.float64
    return np.asarray(values), *pull(jnp.asarray(case["cotangent"]))


def assert_same_gradient(gradient, theirs):
    """To 1e-8 of each number, and to 1e-14 of the largest: smaller ones are sums that cancel."""
    np.testing.assert_allclose(gradient, theirs, rtol=1e-8, atol=1e-14 * np.abs(theirs).max())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients(name, head):
    """Its gradients are exact here: no length is detached, and the k of psi, which is, has slope 0."""
    case = stored(name)
    with jax.enable_x64(True):
        losses, x_bar, w_bar = ours(case, LOSSES[name], head)
    np.testing.assert_allclose(losses, case["losses"], rtol=1e-9)
    assert_same_gradient(x_bar, case["features_bar"])
    assert_same_gradient(w_bar, case["weights_bar"])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ARCFACE)
def test_arcface_up_to_pi_and_another_logit_beyond(name, head):
    """Past theta + m = pi it takes `cos(theta) - m sin(m)`: a jump, and the slope of no margin."""
    case = stored(name)
    m, scale = ARCFACE[name]
    with jax.enable_x64(True):
        losses, x_bar, w_bar = ours(case, ms.arcface(m, scale), head)
    # The largest cosine is that of the nearest sub-centre, where there are any.
    rows = case["weights"][case["labels"]].reshape(len(losses), -1, case["features"].shape[1])
    products = np.einsum("bd,bkd->bk", case["features"], rows)
    cosine = np.max(products / np.linalg.norm(rows, axis=2), axis=1) / np.linalg.norm(case["features"], axis=1)
    theta = np.arccos(cosine)
    beyond = theta + m > np.pi
    assert beyond.any() == (name != "sub_centre_arcface")
    assert not case["cotangent"][beyond].any()
    assert case["cotangent"][~beyond].all()
    np.testing.assert_allclose(losses[~beyond], case["losses"][~beyond], rtol=1e-9)
    assert_same_gradient(x_bar, case["features_bar"])
    assert_same_gradient(w_bar, case["weights_bar"])
    # Losses of this size differ as their own logits do, psi(u) = -cos(u) - 2 being ours.
    difference = scale * (cosine - m * np.sin(m) + np.cos(theta + m) + 2)[beyond]
    assert np.all(np.abs(difference) > 1.0)
    np.testing.assert_allclose((losses - case["losses"])[beyond], difference, rtol=1e-9)


@pytest.mark.parametrize("head", HEADS)
def test_arcface_at_angle_0_has_a_gradient_here(head):
    """Its clamp lets a cosine of 1 through to arccos, whose slope there is infinite: the gradient is NaN."""
    case = stored("arcface_at_angle_0")
    assert np.isnan(case["features_bar"]).all()
    assert np.isnan(case["weights_bar"][0]).all()
    with jax.enable_x64(True):
        losses, x_bar, w_bar = ours(case, ms.arcface(math.radians(28.6), scale=64.0), head)
    # A loss of 1.6e-24 is a difference of logits of 56 there, and rounds to 0.
    assert case["losses"] == 0
    assert losses > 0
    assert np.isfinite(x_bar).all()
    assert np.isfinite(w_bar).all()
    np.testing.assert_allclose(w_bar[1:], case["weights_bar"][1:], rtol=1e-8)


@pytest.mark.parametrize("head", HEADS)
def test_p2sgrad(head):
    """Its loss is a mean over examples and classes, ours half a sum over classes for each example."""
    case = stored("p2sgrad")
    factor = 2 / (len(case["features"]) * len(case["weights"]))
    case["cotangent"] = np.full(len(case["features"]), factor)
    with jax.enable_x64(True):
        losses, x_bar, w_bar = ours(case, ms.p2sgrad(), head)
    np.testing.assert_allclose(factor * losses.sum(), case["losses"], rtol=1e-9)
    assert_same_gradient(x_bar, case["features_bar"])
    # It normalises its class rows in place, outside the derivative: theirs keeps the part along each unit row.
    along = np.sum(case["weights_bar"] * case["weights"], axis=1, keepdims=True)
    assert np.abs(along).max() > 0.1 * np.abs(case["weights_bar"]).max()
    assert_same_gradient(w_bar, case["weights_bar"] - along * case["weights"])


def test_the_stored_file_says_where_it_is_from_and_is_small():
    assert STORED.stat().st_size < 100_000
    with np.load(STORED) as file:
        versions = dict(line.split(" ") for line in file["versions"].tolist())
        seeds = dict(line.split(" ") for line in file["seeds"].tolist())
    assert versions.keys() == {"python", "numpy", "torch", "pytorch-metric-learning"}
    assert all(version[0].isdigit() for version in versions.values())
    assert seeds.keys() == {"inputs", "sub_centres"}
    assert all(seed.isdigit() for seed in seeds.values())
