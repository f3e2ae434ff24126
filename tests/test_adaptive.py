"""Margins from norms, chance, counts and memory: their limits, their tables, and what they refuse."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_softmax as ms
from table import examples


def value_and_gradient(margin, x, w, y):
    def total(x):
        losses = ms.margin_loss(x, w, y, margin)
        return losses.sum(), losses

    (_, losses), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(x))
    return losses, gradient


@pytest.mark.parametrize(
    ("quality", "limit"),
    [
        (-1.0, ms.arcface(0.4, 8.0)),
        (0.0, ms.cosface(0.4, 8.0)),
        (1.0, None),
    ],
)
def test_adaface_between_its_limits(quality, limit):
    """Poor pictures: ArcFace(m). Middling: CosFace(m). Good: cos(theta - m) - 2 m."""
    x, w, y = examples(6, 17, 4, 0.4, dtype=np.float32)
    # One deviation up, down or none: h = 1 and norms that make q exactly so.
    norms = 20.0 + quality * 5.0
    x = (norms * x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    margin = ms.adaface(ms.AdaFaceState(20.0, 5.0 - 1e-3), 0.4, 8.0, h=1.0 if quality else 0.0)
    if limit is None:
        limit = ms.combined(1.0, 0.0, 0.8, 8.0)
        shifted = ms.Margin(**limit._asdict() | {"target": jax.tree_util.Partial(_good_picture)})
        limit = shifted
    for ours, theirs in zip(value_and_gradient(margin, x, w, y), value_and_gradient(limit, x, w, y), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def _good_picture(own):
    return jnp.cos(own.angle - 0.4) - 0.8


def test_adaface_clips_as_its_code_does_where_asked():
    """Below theta = m q: the paper's cosine falls again toward 0, the code's stands still."""
    theta = jnp.array([0.0, 0.1, 0.3, 0.5])
    ones = jnp.ones_like(theta)
    own = ms.Own(angle=theta, product=jnp.cos(theta), length=ones, norm=30.0 * ones)
    state = ms.AdaFaceState(20.0, 1.0)
    paper, code = (ms.adaface(state, 0.4, h=1.0, clip=clip).target(own) for clip in (False, True))
    np.testing.assert_allclose(paper, np.cos(theta - 0.4) - 0.8, rtol=1e-6)
    np.testing.assert_allclose(code, np.cos(np.maximum(theta - 0.4, 0)) - 0.8, rtol=1e-6)


@pytest.mark.parametrize("name", ["arc", "cos"])
def test_elastic_without_deviation_is_the_plain_margin(name):
    x, w, y = examples(6, 17, 4, 0.4, dtype=np.float32)
    elastic, plain = {"arc": (ms.elastic_arcface, ms.arcface), "cos": (ms.elastic_cosface, ms.cosface)}[name]
    drawn = elastic(jax.random.key(0), 6, 0.3, 8.0, deviation=0.0)
    for ours, theirs in zip(
        value_and_gradient(drawn, x, w, y), value_and_gradient(plain(0.3, 8.0), x, w, y), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("elastic", [ms.elastic_arcface, ms.elastic_cosface])
def test_elastic_margins_are_drawn_anew_and_ranked_where_asked(elastic):
    def drawn(margin):
        return np.asarray(margin.target.keywords["margin"])

    margins = drawn(elastic(jax.random.key(0), 2000, 0.5, deviation=0.05))
    assert margins.mean() == pytest.approx(0.5, abs=0.005)
    assert margins.std() == pytest.approx(0.05, rel=0.05)
    np.testing.assert_array_equal(margins, drawn(elastic(jax.random.key(0), 2000, 0.5, deviation=0.05)))
    assert not np.any(margins == drawn(elastic(jax.random.key(1), 2000, 0.5, deviation=0.05)))
    # "+": a larger margin for a larger angle, over the very same draws.
    angle = jax.random.uniform(jax.random.key(2), (2000,), maxval=math.pi)
    ranked = drawn(elastic(jax.random.key(0), 2000, 0.5, deviation=0.05, angle=angle))
    np.testing.assert_array_equal(np.sort(ranked), np.sort(margins))
    assert np.all(np.diff(ranked[np.argsort(angle)]) >= 0)


@pytest.mark.parametrize("elastic", [ms.elastic_arcface, ms.elastic_cosface])
def test_rows_that_do_not_count_take_no_part_in_the_ranking(elastic):
    """Masked ones, whose angle is that of a feature of zeros, and those whose label names no class."""

    def drawn(**options):
        return np.asarray(elastic(jax.random.key(0), 12, 0.5, **options).target.keywords["margin"])

    x, w, y = examples(12, 17, 4, 0.9, dtype=np.float32)
    x = x + np.float32(0.3) * np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    where, y = np.arange(12) % 3 != 0, np.where(np.arange(12) == 4, 99, y)
    with jax.debug_nans(False):
        angle = ms.observe(x, w, y, ms.arcface(), where=where).angle
        ranked, unranked = drawn(angle=angle, where=where), drawn(angle=angle, where=np.zeros(12, bool))
    angle, margins = np.asarray(angle), drawn()
    assert np.isnan(angle[4])
    np.testing.assert_allclose(angle[~where], math.pi / 2)
    np.testing.assert_array_equal(unranked, margins)
    counted = where & (np.arange(12) != 4)
    np.testing.assert_array_equal(ranked[~counted], margins[~counted])
    np.testing.assert_array_equal(np.sort(ranked[counted]), np.sort(margins[counted]))
    assert np.all(np.diff(ranked[counted][np.argsort(angle[counted])]) >= 0)
    assert ranked[counted][np.argmax(angle[counted])] == margins[counted].max()


def test_magface_refuses_what_its_authors_call_too_little():
    """22.6 for the defaults: the 20 of their own command line is below it."""
    with pytest.raises(ValueError, match=r"regularizer: .*>= 22\.5867, came 20"):
        ms.magface(regularizer=20.0)
    assert ms.magface(regularizer=20.0, checked=False).scale == 64.0
    bound = 64.0 * (0.8 - 0.45) / 100 * 110**2 * 10**2 / (110**2 - 10**2)
    ms.magface(regularizer=bound * 1.001)
    # What the bound is for: with an example on its class, the best norm is the largest.
    norms = jnp.linspace(10.0, 110.0, 101)[:, None]
    x, w, y = norms * jnp.array([[1.0, 0.0]]), jnp.eye(2), jnp.zeros(101, jnp.int32)
    losses = ms.margin_loss(x, w, y, ms.magface())
    assert int(jnp.argmin(losses)) == 100


def test_magface_refuses_a_margin_that_falls_with_the_norm():
    with pytest.raises(ValueError, match=r"margins: expected a lower before a higher margin, came \(0.8, 0.45\)"):
        ms.magface(margins=(0.8, 0.45))
    ms.magface(margins=(0.45, 0.45))
    ms.magface(margins=(0.8, 0.45), checked=False)
    jax.eval_shape(lambda m: ms.magface(margins=(m, 0.45)), 0.8)


def test_the_easy_margin_of_magface_ends_at_a_right_angle():
    theta = jnp.array([0.3, 1.5, 1.7, 3.0])
    own = ms.Own(angle=theta, product=jnp.cos(theta), length=jnp.ones(4), norm=jnp.full(4, 10.0))
    expected = np.where(np.cos(theta) > 0, np.cos(theta + 0.45), np.cos(theta))
    np.testing.assert_allclose(ms.magface(easy_margin=True).target(own), expected, rtol=1e-5)


def test_tables_by_class():
    counts = np.array([500, 20, 1, 3000])
    np.testing.assert_allclose(ms.ldam_margins(counts), 0.5 * counts**-0.25 / 1.0, rtol=1e-6)
    rarity = counts**-0.25
    expected = 0.05 + 0.45 * (rarity - rarity.min()) / (rarity.max() - rarity.min())
    np.testing.assert_allclose(ms.frequency_margins(counts), expected, rtol=1e-6)
    np.testing.assert_allclose(ms.frequency_margins([7, 7, 7]), 0.05, rtol=1e-6)
    x, w, y = examples(6, 4, 4, 0.4, dtype=np.float32)
    table = ms.ldam_margins(counts)
    together = ms.margin_loss(x, w, y, ms.am_softmax(table[y], scale=8.0))
    for i in range(6):
        alone = ms.margin_loss(x[i : i + 1], w, y[i : i + 1], ms.am_softmax(float(table[y[i]]), scale=8.0))
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-5)


def test_logit_adjustment_is_a_bias_by_prior():
    x, w, y = examples(6, 4, 4, 0.4, dtype=np.float32)
    counts = np.array([500, 20, 1, 3000])
    z = np.asarray(ms.margin_logits(x, w, y, ms.arcface(0.3, 8.0)), np.float64) + 0.7 * np.log(counts / counts.sum())
    losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(6), y]
    ours = ms.margin_loss(x, w, y, ms.arcface(0.3, 8.0), bias=ms.logit_adjustment(counts, tau=0.7))
    np.testing.assert_allclose(ours, losses, rtol=1e-5)


def test_adaptive_face_learns_one_margin_per_class():
    x, w, y = examples(6, 17, 4, 0.4, dtype=np.float32)
    margins = jnp.linspace(0.1, 0.5, 17)

    def loss(margins):
        return ms.margin_loss(x, w, y, ms.adaptive_face(margins, y, 8.0)).sum() + ms.adaptive_face_regularizer(margins)

    gradient = np.asarray(jax.grad(loss)(margins))
    assert np.all((gradient > -70 / 17 + 1e-6) == np.isin(np.arange(17), y))
    np.testing.assert_allclose(gradient[~np.isin(np.arange(17), y)], -70 / 17, rtol=1e-6)
    np.testing.assert_allclose(
        ms.margin_loss(x, w, y, ms.adaptive_face(margins, y, 8.0)),
        ms.margin_loss(x, w, y, ms.am_softmax(margins[y], 8.0)),
        rtol=1e-6,
    )
    outside = np.where(np.arange(6) == 2, 17, y)
    with jax.debug_nans(False):
        losses = ms.margin_loss(x, w, outside, ms.adaptive_face(margins, outside, 8.0))
        np.testing.assert_array_equal(np.isnan(np.asarray(losses)), np.arange(6) == 2)


def kappaface_table(memory, labels, classes, margin=0.8, temperature=0.4, gamma=0.7):
    """From the paper, class by class."""
    dim = memory.shape[1]
    counts = np.bincount(labels, minlength=classes)
    kappa = []
    for c in range(classes):
        r = np.linalg.norm(memory[labels == c].sum(axis=0)) / counts[c]
        kappa.append(r * (dim - r**2) / (1 - r**2) if r < 1 - 1e-6 else np.inf)
    kappa = np.array(kappa)
    kappa[np.isinf(kappa)] = kappa[~np.isinf(kappa)].max()
    spread_out = 1 - 1 / (1 + np.exp(-temperature * (kappa - kappa.mean()) / kappa.std(ddof=1)))
    rare = (1 + np.cos(np.pi * counts / counts.max())) / 2
    return margin * (gamma * spread_out + (1 - gamma) * rare)


def test_kappaface_margins_are_the_papers():
    random = np.random.default_rng(0)
    labels = np.concatenate([np.arange(5), random.integers(0, 4, 35)])  # class 4 has one example: no spread at all
    memory = random.normal(size=(40, 6)) + 3 * random.normal(size=(5, 6))[labels] * np.arange(1, 6)[labels][:, None]
    memory /= np.linalg.norm(memory, axis=1, keepdims=True)
    ours = ms.kappaface_margins(jnp.asarray(memory, jnp.float32), labels, 5)
    np.testing.assert_allclose(ours, kappaface_table(memory, labels, 5), rtol=1e-4)
    # What has not been seen yet takes no part.
    half = np.where(np.arange(40)[:, None] < 30, memory, 0)
    np.testing.assert_allclose(
        ms.kappaface_margins(jnp.asarray(half, jnp.float32), labels, 5),
        kappaface_table(memory[:30], labels[:30], 5),
        rtol=1e-4,
    )


def test_examples_of_no_class_count_nowhere_in_kappaface():
    """Not at the last class, which -1 would name, nor at class 0, as which 256 is a uint8."""
    memory = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [1.0, 0.0]])
    expected = ms.kappaface_margins(memory[:3], jnp.array([0, 0, 1]), 2)
    for outside in (-1, 2, -(2**31)):
        np.testing.assert_array_equal(ms.kappaface_margins(memory, jnp.array([0, 0, 1, outside]), 2), expected)
    unseen, labels = memory.at[3].set(0.0), np.array([0, 0, 1, 1])
    narrow = ms.kappaface_margins(unseen, labels.astype(np.uint8), 256)
    np.testing.assert_array_equal(narrow, ms.kappaface_margins(unseen, labels, 256))


def test_kappaface_of_equal_classes_is_arcface():
    """Equal concentrations and counts: one margin for all, m0 (gamma / 2) at headroom 1."""
    turned = np.stack([np.eye(6)[[0, 1, 2, 3]], np.eye(6)[[2, 3, 4, 5]]])[:, :, ::1]
    memory = jnp.asarray(np.concatenate(turned), jnp.float32)
    labels = np.repeat([0, 1], 4)
    table = ms.kappaface_margins(memory, labels, 2, margin=1.0, gamma=0.6)
    np.testing.assert_allclose(table, 0.3, rtol=1e-6)
    x, w, y = examples(6, 2, 4, 0.4, dtype=np.float32)
    np.testing.assert_allclose(
        ms.margin_loss(x, w, y, ms.kappaface(table, y, 8.0)), ms.margin_loss(x, w, y, ms.arcface(0.3, 8.0)), rtol=1e-5
    )
    np.testing.assert_allclose(ms.kappaface_margins(jnp.zeros((4, 3)), labels[:4], 2, gamma=0.6), 0.8, rtol=1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ms.magface(norms=(110.0, 10.0)), "norms: expected a lower before"),
        (lambda: ms.magface(margins=(26.0, 45.0)), "degrees"),
        (lambda: ms.adaface(ms.AdaFaceState(), 23.0), "degrees"),
        (lambda: ms.adaface(ms.AdaFaceState(deviation=-1.0)), "deviation: "),
        (lambda: ms.elastic_arcface(jax.random.key(0), 4, 28.0), "degrees"),
        (lambda: ms.elastic_cosface(jax.random.key(0), 4, deviation=-0.1), "deviation: "),
        (lambda: ms.elastic_arcface(jax.random.key(0), 4, where=jnp.ones(4, bool)), "where: has no meaning without"),
        (lambda: ms.elastic_arcface(jax.random.key(0), 4, angle=jnp.ones(4), where=jnp.ones(3, bool)), "where: "),
        (lambda: ms.elastic_cosface(jax.random.key(0), 4, angle=jnp.ones(3)), r"angle: expected shape \[B\] = \(4,\)"),
        (lambda: ms.adaptive_face(jnp.ones((3, 2)), jnp.array([0])), r"margins: expected shape \[C\]"),
        (lambda: ms.adaptive_face(jnp.array([0.5, 3.0]), jnp.array([0])), "margins: "),
        (lambda: ms.ldam_margins([3, 0, 2]), "counts: .*>= 1"),
        (lambda: ms.frequency_margins([3, 2], lowest=0.5, highest=0.1), "highest: "),
        (lambda: ms.logit_adjustment([[1, 2]]), r"counts: expected shape \[C\]"),
        (lambda: ms.kappaface_margins(jnp.ones((3, 2)), jnp.array([0, 1, 1]), 2, headroom=0.5), "headroom: "),
        (lambda: ms.kappaface_margins(jnp.ones((3, 2)), jnp.array([0, 1]), 2), r"labels: expected shape \[B\]"),
    ],
)
def test_what_is_out_of_range_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_wrong_types_are_refused():
    for norms in (10, (10.0,), (10.0, 50.0, 110.0), None):
        with pytest.raises(TypeError, match=r"norms: expected a pair of numbers, \(lower, higher\), came"):
            ms.magface(norms=norms)
    with pytest.raises(TypeError, match="margins: expected a pair of numbers"):
        ms.magface(margins=0.5)
    with pytest.raises(TypeError, match="state: expected an AdaFaceState"):
        ms.adaface((20.0, 100.0))
    with pytest.raises(TypeError, match="counts: expected concrete"):
        jax.jit(ms.ldam_margins)(jnp.array([1, 2]))
