"""Partial FC: what is sampled, and that a loss over the sample is the loss over those classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_softmax as ms
from field import FIELD
from table import MARGINS, examples

CLASSES = 40


def test_all_classes_of_the_batch_are_in_and_none_twice():
    labels = jnp.array([3, 39, 3, 0, 17])
    for seed in range(20):
        sample = ms.sample_classes(jax.random.key(seed), labels, CLASSES, 9)
        classes = np.asarray(sample.classes)
        assert classes.shape == (9,)
        assert np.all(np.diff(classes) > 0)
        assert classes[0] >= 0
        assert classes[-1] < CLASSES
        np.testing.assert_array_equal(classes[sample.labels], labels)
        negatives = ~np.isin(classes, labels)
        np.testing.assert_allclose(sample.log_weights, np.where(negatives, np.log(36 / 5), 0), rtol=1e-6)
    again = ms.sample_classes(jax.random.key(19), labels, CLASSES, 9)
    np.testing.assert_array_equal(again.classes, sample.classes)


def test_the_others_are_drawn_uniformly():
    """Each of 36 in 5 of 36 draws; over 4,000 draws its count stays within five standard deviations."""
    labels = jnp.array([3, 39, 3, 0, 17])
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: ms.sample_classes(key, labels, CLASSES, 9).classes)(keys)
    counts = np.bincount(np.asarray(drawn).reshape(-1), minlength=CLASSES)
    assert np.all(counts[[3, 39, 0, 17]] == 4000)
    p = 5 / 36
    others = np.delete(counts, [0, 3, 17, 39])
    assert np.all(np.abs(others - 4000 * p) <= 5 * np.sqrt(4000 * p * (1 - p)))


@pytest.mark.parametrize("margin", ["a_softmax_3", "npcface"])
def test_a_loss_over_the_sample_is_that_over_its_classes(margin):
    """Losses and gradients; no row moves that is not in the sample, and with all classes it is the full loss."""
    margin = MARGINS[margin].margin if margin in MARGINS else FIELD[margin].margin(*FIELD[margin].numbers)
    x, w, y = (jnp.asarray(a) for a in examples(6, CLASSES, 5, 0.4, dtype=np.float32))

    def total(x, w, num_sampled):
        sample = ms.sample_classes(jax.random.key(1), y, CLASSES, num_sampled)
        losses = ms.margin_loss(x, w[sample.classes], sample.labels, margin, head=ms.dense())
        return losses.sum(), (losses, sample)

    for num_sampled in (12, CLASSES):
        of = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True), static_argnums=2)
        (_, (losses, sample)), (_, w_bar) = of(x, w, num_sampled)
        chosen = np.isin(np.arange(CLASSES), sample.classes)
        assert chosen.sum() == num_sampled
        assert np.all(np.asarray(w_bar)[~chosen] == 0)
        expected = ms.margin_loss(x, w[chosen], np.cumsum(chosen)[y] - 1, margin, head=ms.dense())
        np.testing.assert_allclose(losses, expected, rtol=1e-6)
    np.testing.assert_allclose(losses, ms.margin_loss(x, w, y, margin, head=ms.dense()), rtol=1e-5)


def test_log_weights_make_the_sum_stand_for_all_classes():
    """The mean over many samples of the corrected sum of e^z is the whole sum; uncorrected it is a ninth of it."""
    x, w, y = (jnp.asarray(a) for a in examples(1, CLASSES, 5, 0.4, dtype=np.float32))
    z = np.asarray(ms.margin_logits(x, w, y, ms.normface(4.0)), np.float64)[0]
    whole = np.sum(np.exp(np.delete(z, y[0])))

    def others(key, corrected):
        sample = ms.sample_classes(key, y, CLASSES, 5)
        negative = jnp.arange(5) != sample.labels[0]
        bias = sample.log_weights if corrected else jnp.zeros(5)
        return jnp.sum(jnp.where(negative, jnp.exp(jnp.asarray(z, jnp.float32)[sample.classes] + bias), 0.0))

    keys = jax.random.split(jax.random.key(0), 5000)
    sums = np.asarray(jax.vmap(lambda key: others(key, corrected=True))(keys))
    assert abs(sums.mean() - whole) <= 5 * sums.std() / np.sqrt(5000)
    bare = np.asarray(jax.vmap(lambda key: others(key, corrected=False))(keys))
    assert bare.mean() == pytest.approx(whole * 4 / 39, rel=0.05)


def test_labels_outside_are_loud_and_disturb_nobody():
    labels = jnp.array([3, -1, 40, 17])
    sample = ms.sample_classes(jax.random.key(0), labels, CLASSES, 8)
    np.testing.assert_array_equal(np.asarray(sample.labels) < 0, [False, True, True, False])
    assert {3, 17} <= set(np.asarray(sample.classes).tolist())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda y: ms.sample_classes(jax.random.key(0), y, 100, 5), "num_sampled: expected at least 6, came 5"),
        (lambda y: ms.sample_classes(jax.random.key(0), y, 100, 101), "num_sampled: .*<= 100"),
        (lambda y: ms.sample_classes(jax.random.key(0), y, 0, 5), "num_classes: "),
        (lambda y: ms.sample_classes(jax.random.key(0), y[:, None], 100, 9), r"labels: expected shape \[B\]"),
    ],
)
def test_impossible_samples_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make(jnp.zeros(6, jnp.int32))
    ms.sample_classes(jax.random.key(0), jnp.zeros(6, jnp.int32), 4, 4)
