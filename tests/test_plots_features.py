"""Features, angles and losses, drawn: every number where it belongs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import colors
from matplotlib import pyplot as plt

from margin_softmax import plots
from margin_softmax.plots import _drawing
from margin_softmax.plots import features as drawn


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def made_up_features(classes):
    random = np.random.default_rng(0)
    labels = np.arange(60) % classes
    turn = 2 * np.pi * labels / classes + random.normal(0, 0.1, 60)
    return random.uniform(1, 5, 60)[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1), labels


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_circle_shows_each_feature_in_the_colour_of_its_class(dtype):
    features, labels = made_up_features(5)
    features = jnp.asarray(features, dtype)
    weights = np.random.default_rng(1).normal(size=(6, 2))
    ax = plots.circle(features, jnp.asarray(labels), weights=weights, names=list("abcdef"))
    features = np.asarray(features, np.float64)
    assert len(ax.collections) == 5  # the sixth class has no feature
    for k, points in enumerate(ax.collections):
        np.testing.assert_array_equal(points.get_offsets(), features[labels == k])
    assert len({tuple(points.get_facecolor()[0]) for points in ax.collections}) == 5
    radius = np.linalg.norm(features, axis=1).max()
    for line, row in zip(ax.lines, weights, strict=True):
        np.testing.assert_allclose(line.get_xydata(), [[0, 0], radius * row / np.linalg.norm(row)])
    assert [text.get_text() for text in ax.texts] == list("abcde")
    means = np.stack([features[labels == k].mean(axis=0) for k in range(5)])
    at = np.array([text.xy for text in ax.texts])
    np.testing.assert_allclose(np.arctan2(*at.T), np.arctan2(*means.T))
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_xlim()[1] > radius
    assert ax.get_aspect() == 1


def test_normalised_features_lie_on_the_circle_with_their_histogram_outside():
    features, labels = made_up_features(3)
    ax = plots.circle(features, labels, normalised=True)
    for k, points in enumerate(ax.collections):
        expected = features[labels == k] / np.linalg.norm(features[labels == k], axis=1, keepdims=True)
        np.testing.assert_allclose(points.get_offsets(), expected)
    *bars, disk = ax.patches
    np.testing.assert_allclose(np.linalg.norm(disk.get_xy(), axis=1), 1)
    degrees = np.degrees(np.arctan2(features[:, 1], features[:, 0]))
    counts = [[np.sum((labels == k) & (degrees // 2 == cell)) for cell in range(-90, 90)] for k in range(3)]
    for bar, count in zip(bars, counts, strict=True):
        x, y = bar.get_xy()[:-1].T  # closed: the first point again
        height = np.hypot(x, y)[1:-1].reshape(180, 2) - 1
        np.testing.assert_allclose(
            height, np.outer(drawn.TALLEST * np.array(count) / np.max(counts), [1, 1]), atol=1e-12
        )


def colours_of(artists):
    return {colors.to_hex(artist.get_facecolor()) for artist in artists}


def test_ten_classes_have_ten_colours_on_the_circle_and_outside():
    ax = plots.circle(*made_up_features(10), normalised=True)
    assert len(colours_of(ax.collections)) == 10
    *bars, _ = ax.patches
    assert colours_of(bars) == colours_of(ax.collections)
    assert [bar.get_hatch() for bar in bars] == [None] * 10


def test_more_classes_and_more_curves_do_not_differ_by_colour_alone():
    styles = _drawing.styles(range(50))
    assert len(set(styles)) == 50
    assert len({stroke for _, stroke in styles[:5]}) == 5
    ax = plots.circle(*made_up_features(40), normalised=True)
    shapes = [(colors.to_hex(p.get_facecolor()[0]), p.get_paths()[0].vertices.tobytes()) for p in ax.collections]
    *bars, _ = ax.patches
    hatched = [(colors.to_hex(bar.get_facecolor()), bar.get_hatch()) for bar in bars]
    assert len(set(shapes)) == len(set(hatched)) == 40
    assert all(points.get_sizes() >= drawn.SEEN_AS_SHAPE for points in ax.collections)


# Of linear RGB. Machado, Oliveira, Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency,
# IEEE Transactions on Visualization and Computer Graphics 2009.
VISION = {
    "all cones": np.eye(3),
    "no L": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no M": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no S": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.412456, 0.357576, 0.180438], [0.212673, 0.715152, 0.072175], [0.019334, 0.119192, 0.950304]])


def cielab(linear):
    t = linear @ XYZ.T / XYZ.sum(axis=1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("vision", VISION)
def test_two_more_colours_are_farther_from_all_than_some_of_okabe_and_ito_from_each_other(vision):
    tones = colors.to_rgba_array(_drawing.COLOURS)[:, :3]
    linear = np.where(tones <= 0.04045, tones / 12.92, ((tones + 0.055) / 1.055) ** 2.4)
    seen = cielab(np.clip(linear @ np.transpose(VISION[vision]), 0, 1))
    apart = np.linalg.norm(seen[:, None] - seen, axis=-1) + 1000 * np.eye(10)
    assert apart[8:].min() > 1.3 * apart[:8, :8].min()
    lightness = seen[:, 0]
    assert np.abs(lightness[8:, None] - lightness[:8]).min() > 13


def test_angles_are_drawn_in_degrees_with_their_bands():
    own, other = np.linspace(1.5, 0.5, 7), np.linspace(1.4, 1.5, 7)
    steps = np.arange(0, 70, 10)
    bands = {"own": (own - 0.1, own + 0.2)}
    ax = plots.angle_statistics(steps, {"own": jnp.asarray(own), "other": other}, bands=bands)
    for line, values, name in zip(ax.lines, (own, other), ("own", "other"), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), steps)
        np.testing.assert_allclose(line.get_ydata(), values * 180 / np.pi, rtol=1e-6)
        assert line.get_label() == name
    (band,) = ax.collections
    np.testing.assert_allclose(band.get_paths()[0].vertices[:, 1].min(), 0.4 * 180 / np.pi)
    np.testing.assert_allclose(band.get_paths()[0].vertices[:, 1].max(), 1.7 * 180 / np.pi)


def test_a_loss_is_drawn_with_its_running_mean():
    values = np.random.default_rng(0).random(90)
    ax = plots.loss_curve(values)
    raw, mean = ax.lines
    np.testing.assert_array_equal(raw.get_xydata(), np.stack([np.arange(1, 91), values], axis=1))
    np.testing.assert_allclose(mean.get_xdata(), np.arange(2, 90))
    np.testing.assert_allclose(mean.get_ydata(), [values[k : k + 3].mean() for k in range(88)])


NAN = np.array([[1.0, np.nan], [0.0, 1.0]])
F, L = made_up_features(3)
REFUSED = {
    "dimensions": (lambda: plots.circle(np.ones((4, 3)), np.arange(4)), ValueError, r"features: .* \[N, 2\]"),
    "not finite": (lambda: plots.circle(NAN, np.array([0, 1])), ValueError, "features: .* nan in row 0. 1 of 4"),
    "integers": (lambda: plots.circle(F, L * 1.0), TypeError, "labels: expected integers"),
    "too few labels": (lambda: plots.circle(F, L[:5]), ValueError, "labels: expected shape"),
    "a negative label": (lambda: plots.circle(F, L - 1), ValueError, "labels: row 0 holds -1"),
    "no row": (lambda: plots.circle(F, L, weights=np.eye(2)), ValueError, "labels: row 2 holds 2, expected 0 to 1"),
    "weights": (lambda: plots.circle(F, L, weights=np.eye(3)), ValueError, r"weights: expected shape \[C, 2\]"),
    "no direction": (lambda: plots.circle(F, L, weights=np.zeros((3, 2))), ValueError, "weights: .* zeros in row 0"),
    "names": (lambda: plots.circle(F, L, weights=np.ones((3, 2)), names=["a"]), ValueError, "names: .* 3 cla"),
    "zeros": (lambda: plots.circle(0 * F, L), ValueError, "features: .* zeros alone"),
    "a zero": (lambda: plots.circle(F * (L != 1)[:, None], L, normalised=True), ValueError, "features: .* in row 1"),
    "no features": (lambda: plots.circle(F[:0], L[:0]), ValueError, "features: expected at least one"),
    "traced": (lambda: jax.jit(lambda x: plots.circle(x, L))(F), TypeError, "features: .*outside jit"),
    "degrees": (lambda: plots.angle_statistics([1], {"a": [90.0]}), ValueError, r"angles\['a'\]: .* degrees\?"),
    "steps": (lambda: plots.angle_statistics([2, 1], {"a": [1.0, 1.0]}), ValueError, "steps: .* rise"),
    "angles": (lambda: plots.angle_statistics([1, 2], {"a": [1.0]}), ValueError, r"angles\['a'\]: expected shape"),
    "a band": (lambda: plots.angle_statistics([1], {"a": [1.0]}, bands={"b": ([1.0], [1.0])}), ValueError, "a name of"),
    "upside down": (lambda: plots.angle_statistics([1], {"a": [1.0]}, bands={"a": ([1.0], [0.9])}), ValueError, "abov"),
    "losses": (lambda: plots.loss_curve(np.ones((3, 2))), ValueError, "values: expected shape"),
    "window": (lambda: plots.loss_curve([1.0, 2.0], window=3), ValueError, "window: .* <= 2"),
    "strings": (lambda: plots.loss_curve(["a"]), TypeError, "values: expected real numbers"),
    "traced labels": (lambda: jax.jit(lambda y: plots.circle(F, y))(L), TypeError, "labels: .*outside jit"),
    "half a band": (lambda: plots.angle_statistics([1], {"a": [1.0]}, bands={"a": [1.0]}), TypeError, "a pair .* list"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_is_refused_and_leaves_no_figure(name):
    draw, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        draw()
    assert plt.get_fignums() == []
