"""Verification and search: how well features tell people apart.

A pair is genuine where both are of one person, and otherwise an impostor pair; a higher score means more alike.

- `rates`: what follows from the scores of pairs, in float64 on the host: ROC, DET, TAR at a FAR, EER, detection cost,
  d', accuracy at the best threshold and, as LFW has it, over folds. `count` groups equal scores once for all of them.
- `pairs`: scores of pairs, made from features on the device: cosines of given pairs, counts over all pairs, AS-norm.
- `ranking`: one feature against many: identification in a gallery, retrieval among all others.
- `templates`: one feature of many pictures: mirrored pictures, and templates of media as IJB has them.
"""

from margin_softmax.verification.pairs import all_pairs, as_norm, pair_cosines, pair_counts
from margin_softmax.verification.ranking import Retrieval, identification, retrieval
from margin_softmax.verification.rates import (
    BestAccuracy,
    Counts,
    Det,
    KFoldAccuracy,
    Roc,
    auc,
    best_accuracy,
    count,
    d_prime,
    det,
    eer,
    kfold_accuracy,
    min_dcf,
    roc,
    tar_at_far,
    threshold_at_eer,
    threshold_at_far,
)
from margin_softmax.verification.templates import Templates, pool_templates, with_mirror

__all__ = [
    # from scores: both rates
    "Counts",
    "count",
    "Roc",
    "roc",
    "Det",
    "det",
    "auc",
    "eer",
    "threshold_at_eer",
    "tar_at_far",
    "threshold_at_far",
    "min_dcf",
    "d_prime",
    # from scores: accuracy
    "BestAccuracy",
    "best_accuracy",
    "KFoldAccuracy",
    "kfold_accuracy",
    # scores of pairs
    "all_pairs",
    "pair_cosines",
    "pair_counts",
    "as_norm",
    # one against many
    "identification",
    "Retrieval",
    "retrieval",
    # templates
    "with_mirror",
    "Templates",
    "pool_templates",
]
