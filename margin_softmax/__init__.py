"""Margin softmax losses in JAX: exact, composable, and without the batch x classes logits."""

from margin_softmax._checks import check_labels
from margin_softmax.angles import angle, cosines
from margin_softmax.cross_entropy import cross_entropy
from margin_softmax.heads import Head, blockwise, dense
from margin_softmax.losses import margin_logits, margin_loss, nearest_class
from margin_softmax.margins import (
    Margin,
    Own,
    a_softmax,
    am_softmax,
    arcface,
    combined,
    cosface,
    l_softmax,
    modified_softmax,
    normface,
    plain,
    straight_through,
    temperature,
)
from margin_softmax.reductions import Reduction
from margin_softmax.schedules import blend_schedule

__version__ = "0.1.0"

__all__ = [
    # geometry
    "angle",
    "cosines",
    # margins: what a paper defines
    "Margin",
    "Own",
    "plain",
    "temperature",
    "modified_softmax",
    "normface",
    "l_softmax",
    "a_softmax",
    "am_softmax",
    "cosface",
    "arcface",
    "combined",
    "straight_through",
    "blend_schedule",
    # heads: where it runs
    "Head",
    "Reduction",
    "dense",
    "blockwise",
    # losses
    "margin_loss",
    "margin_logits",
    "cross_entropy",
    "nearest_class",
    "check_labels",
]
