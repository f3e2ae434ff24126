"""Pictures: what margins do, how well scores separate pairs, where features lie. Needs `margin-softmax[plots]`.

Every function takes data first and an optional Matplotlib `ax`, draws, and returns the axes. Without `ax` it makes a
figure of its own through `pyplot`, so a notebook shows it; closing and saving it, `ax.figure.savefig(path)`, is the
caller's. Colours are the eight of Okabe and Ito and two more, which stay apart for every kind of colour vision; lines
differ in their strokes too. Matplotlib is imported when the first picture is drawn, not before.

- `margins`: target logits, their slopes, and decision boundaries.
- `scores`: ROC, DET, and histograms of genuine and impostor pairs.
- `features`: features of two dimensions on the circle; angles and the loss over training.
- `sheets`: the worst false accepts and false rejects.
"""

from margin_softmax.plots.features import angle_statistics, circle, loss_curve
from margin_softmax.plots.margins import decision_boundaries, target_logits, target_slopes
from margin_softmax.plots.scores import det, roc, score_histogram
from margin_softmax.plots.sheets import worst_false_accepts, worst_false_rejects

__all__ = [
    # margins
    "target_logits",
    "target_slopes",
    "decision_boundaries",
    # scores of pairs
    "roc",
    "det",
    "score_histogram",
    # features and training
    "circle",
    "angle_statistics",
    "loss_curve",
    # the worst pairs
    "worst_false_accepts",
    "worst_false_rejects",
]
