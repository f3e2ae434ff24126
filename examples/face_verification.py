"""How well features tell people apart: the figures of a set of pairs, and the three lines that face people know."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import margin_softmax as ms
from face_network import FaceNetwork
from face_training import embed
from faces.pictures import Pairs

verification = ms.verification
# InsightFace tries squared distances of unit vectors from 0 to 4; exact thresholds differ in the fourth digit.
INSIGHTFACE_THRESHOLDS = 1 - np.arange(0, 4, 0.01) / 2
FLOAT_BYTES = 2**24  # of pictures as float32, on either side of a block of cosines


class Figures(NamedTuple):
    """How well one threshold on the cosine separates genuine from impostor pairs.

    Attributes:
      accuracy: where it is largest, genuine and impostor pairs counting alike however many there are of each.
      eer: equal error rate, where as many impostors are accepted as genuine pairs refused.
      tar_at_far_1e2, tar_at_far_1e3: genuine pairs accepted where at most 1 % (0.1 %) of the impostors are; None where
        there are too few of these to say.
      threshold: the cosine at the equal error rate.
    """

    accuracy: float
    eer: float
    tar_at_far_1e2: float | None
    tar_at_far_1e3: float | None
    threshold: float


class Scores(NamedTuple):
    """Cosines of pairs, `[M]`, and which are genuine."""

    scores: np.ndarray
    same: np.ndarray

    def figures(self) -> Figures:
        roc = verification.roc(*self)
        impostors = np.sum(~self.same)
        percent, permille = (
            float(verification.tar_at_far(*self, far)) if far >= 1 / impostors else None for far in (1e-2, 1e-3)
        )
        accuracy = float(np.max(roc.tar + 1 - roc.far) / 2)
        return Figures(accuracy, verification.eer(*self), percent, permille, verification.threshold_at_eer(*self))


def scores_of(features: np.ndarray | jax.Array, pairs: Pairs) -> Scores:
    return Scores(np.asarray(verification.pair_cosines(features, pairs.pairs)), pairs.same)


def refuse_unfoldable(pairs: Pairs) -> None:
    """Raises ValueError, naming the set, where ten folds of it have no accuracy."""
    try:
        accuracy_over_folds(Scores(np.zeros(len(pairs.same)), pairs.same), pairs)
    except ValueError as error:
        raise ValueError(f"{pairs.name}: {error}") from error


def accuracy_over_folds(scores: Scores, pairs: Pairs) -> verification.KFoldAccuracy:
    folds = 10 if pairs.fold is None else pairs.fold
    return verification.kfold_accuracy(*scores, folds=folds, grid=INSIGHTFACE_THRESHOLDS)


def raw_pixels(pairs: Pairs) -> Scores:
    """The baseline: cosines of the pictures themselves, exactly as loaded; as floats some at a time.

    Those of some pictures with some others are taken all at once: one by one, each pair would bring two pictures to
    length 1 again, and the pairs of the people left out are millions.
    """
    first, second = pairs.pairs.T
    size = min(len(pairs.pictures), max(1, FLOAT_BYTES // (4 * pairs.pictures[0].size)))
    cosines = np.empty(len(first), np.float32)
    for rows in _parts(np.unique(first), size):
        left = as_floats(pairs.pictures, rows, size)
        of_rows = np.flatnonzero((rows[0] <= first) & (first <= rows[-1]))
        others = second[of_rows]
        for columns in _parts(np.unique(others), size):
            here = of_rows[(columns[0] <= others) & (others <= columns[-1])]
            block = np.asarray(ms.cosines(left, as_floats(pairs.pictures, columns, size)))
            cosines[here] = block[np.searchsorted(rows, first[here]), np.searchsorted(columns, second[here])]
    return Scores(np.clip(cosines, -1, 1), pairs.same)


def _parts(numbers: np.ndarray, size: int) -> list[np.ndarray]:
    return [numbers[at : at + size] for at in range(0, len(numbers), size)]


def as_floats(pictures: np.ndarray, numbers: np.ndarray, size: int) -> jax.Array:
    """Some pictures as rows, float32 `[size, D]`, the first ones again at the end: a block of each size is compiled."""
    return jnp.asarray(pictures[np.resize(numbers, size)].reshape(size, -1).astype(np.float32))


class Validation:
    """One set of pairs, verified again and again while a network trains."""

    def __init__(self, pairs: Pairs, highest: float = 0.0):
        self.pairs, self.highest = pairs, highest

    def lines(self, model: FaceNetwork, step: int) -> list[str]:
        """XNorm, Accuracy-Flip and Accuracy-Highest, as InsightFace computes them: ten folds, standard deviation."""
        features, norms = embed(model, self.pairs.pictures)
        accuracy = accuracy_over_folds(scores_of(features, self.pairs), self.pairs)
        self.highest = max(self.highest, accuracy.mean)
        name = f"[{self.pairs.name}][{step}]"
        return [
            f"{name}XNorm: {float(norms.mean()):.6f}",
            f"{name}Accuracy-Flip: {accuracy.mean:.5f}+-{accuracy.standard_deviation:.5f}",
            f"{name}Accuracy-Highest: {self.highest:.5f}",
        ]
