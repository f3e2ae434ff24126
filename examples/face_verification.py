"""How well features tell people apart: the figures of a set of pairs, and the three lines that face people know."""

from typing import NamedTuple

import jax
import numpy as np

import margin_softmax as ms
from face_network import FaceNetwork
from face_training import embed
from faces.pictures import Pairs

verification = ms.verification
# InsightFace tries squared distances of unit vectors from 0 to 4; exact thresholds differ in the fourth digit.
INSIGHTFACE_THRESHOLDS = 1 - np.arange(0, 4, 0.01) / 2
PAIRS_AT_ONCE = 5000


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
    """The baseline: cosines of the pictures themselves, exactly as loaded; as floats some at a time."""
    cosines = []
    for at in range(0, len(pairs.same), PAIRS_AT_ONCE):
        used, numbers = np.unique(pairs.pairs[at : at + PAIRS_AT_ONCE], return_inverse=True)
        rows = pairs.pictures[used].reshape(len(used), -1).astype(np.float32)
        cosines.append(np.asarray(verification.pair_cosines(rows, numbers.reshape(-1, 2))))
    return Scores(np.concatenate(cosines), pairs.same)


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
