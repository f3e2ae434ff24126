"""Face verification: are two pictures of one person? Scores over all pairs of a set of pictures."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import margin_softmax as ms


class Verification(NamedTuple):
    """How well one threshold on the cosine separates genuine from impostor pairs.

    Attributes:
      accuracy: where it is largest, genuine and impostor pairs counting alike however many there are of each.
      eer: equal error rate, where as many impostors are accepted as genuine pairs refused.
      tar_at_far_1e2, tar_at_far_1e3: genuine pairs accepted where at most 1 % (0.1 %) of the impostors are.
      threshold: the cosine at the equal error rate.
    """

    accuracy: float
    eer: float
    tar_at_far_1e2: float
    tar_at_far_1e3: float
    threshold: float


def pair_cosines(features: ArrayLike, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all genuine pairs and of all impostor pairs."""
    features = jnp.asarray(features)
    cosines = np.asarray(ms.cosines(features, features))
    first, second = np.triu_indices(len(labels), k=1)
    scores, genuine = cosines[first, second], labels[first] == labels[second]
    return scores[genuine], scores[~genuine]


def receiver_operating_characteristic(
    genuine: np.ndarray, impostor: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(false accept rate, true accept rate, threshold) at every score, from the strictest threshold on."""
    thresholds = np.unique(np.concatenate([genuine, impostor]))[::-1]

    def accepted(scores):
        return 1 - np.searchsorted(np.sort(scores), thresholds, side="left") / len(scores)

    return accepted(impostor), accepted(genuine), thresholds


def verification(genuine: np.ndarray, impostor: np.ndarray) -> Verification:
    far, tar, thresholds = receiver_operating_characteristic(genuine, impostor)
    crossing = int(np.argmax(far >= 1 - tar))
    return Verification(
        accuracy=float(np.max(tar + 1 - far) / 2),
        eer=float((far[crossing] + 1 - tar[crossing]) / 2),
        tar_at_far_1e2=float(np.max(tar, where=far <= 1e-2, initial=0)),
        tar_at_far_1e3=float(np.max(tar, where=far <= 1e-3, initial=0)),
        threshold=float(thresholds[crossing]),
    )
