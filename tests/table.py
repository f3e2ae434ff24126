"""The table of margins that the tests run over: each with its oracle, and the norms at which its logits reach 64."""

import functools
from typing import NamedTuple

import numpy as np

import margin_softmax as ms
import oracle


class Row(NamedTuple):
    margin: ms.Margin
    oracle: oracle.Oracle
    feature_norm: float = 1.0
    without_margin: ms.Margin | None = None
    """The same loss with a margin of zero, where there is a margin."""


MARGINS = {
    "plain": Row(ms.plain(), oracle.linear(), 64.0),
    "temperature": Row(ms.temperature(0.5), oracle.linear(2.0), 32.0),
    "modified_softmax": Row(ms.modified_softmax(), oracle.linear(w_power=0), 64.0),
    "normface": Row(ms.normface(64.0), oracle.linear(64.0, 0, 0)),
    "l_softmax_2": Row(ms.l_softmax(2), oracle.large_margin(2, 0.0, 1), 64.0, ms.plain()),
    "l_softmax_4_blend": Row(ms.l_softmax(4, blend=0.5), oracle.large_margin(4, 0.5, 1), 64.0, ms.plain()),
    "a_softmax_3": Row(ms.a_softmax(3), oracle.large_margin(3, 0.0, 0), 64.0, ms.modified_softmax()),
    "a_softmax_4_blend": Row(ms.a_softmax(4, blend=5.0), oracle.large_margin(4, 5.0, 0), 64.0, ms.modified_softmax()),
    "am_softmax": Row(ms.am_softmax(), oracle.additive_cosine(0.35, 30.0), 1.0, ms.normface(30.0)),
    "cosface": Row(ms.cosface(), oracle.additive_cosine(0.35, 64.0), 1.0, ms.normface(64.0)),
    "arcface": Row(ms.arcface(), oracle.additive_angle(1.0, 0.5, 0.0, 64.0), 1.0, ms.normface(64.0)),
    "combined": Row(
        ms.combined(1.2, 0.3, 0.2, scale=64.0), oracle.additive_angle(1.2, 0.3, 0.2, 64.0), 1.0, ms.normface(64.0)
    ),
    "straight_through": Row(
        ms.straight_through(ms.arcface()),
        oracle.straight_through(oracle.additive_angle(1.0, 0.5, 0.0, 64.0)),
        1.0,
        ms.normface(64.0),
    ),
}


def examples(batch, classes, dim, cosine, *, seed=0, feature_norm=1.0, dtype=np.float64):
    """Features at a given cosine from their own class, class rows of unlike lengths up to 1, labels with a repeat."""
    own, across, lengths, weights, labels = _drawn(batch, classes, dim, seed)
    features = (cosine * own + np.sqrt(1 - cosine**2) * across) * (feature_norm * lengths)
    return features.astype(dtype), weights.astype(dtype), labels.astype(np.int32)


@functools.cache  # a test goes through many cosines
def _drawn(batch, classes, dim, seed):
    random = np.random.default_rng(seed)
    weights = random.normal(size=(classes, dim))
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    labels = random.integers(0, classes, batch)
    labels[1:2] = labels[0]
    own = weights[labels]
    across = random.normal(size=(batch, dim))
    across -= np.sum(across * own, axis=1, keepdims=True) * own
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    lengths = random.uniform(0.8, 1.0, size=(batch, 1))
    return own, across, lengths, weights * random.uniform(0.5, 1.0, size=(classes, 1)), labels


def largest_row_error(gradient, exact, quantile=1.0):
    """The largest over rows of |g - g64| / |g64|, or a quantile of it."""
    error = np.linalg.norm(np.asarray(gradient, np.float64) - exact, axis=-1)
    return np.quantile(error / np.linalg.norm(exact, axis=-1), quantile)
