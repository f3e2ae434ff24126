"""Margin softmax losses in JAX: exact, composable, and without the batch x classes logits."""

from margin_softmax import plots as plots
from margin_softmax import verification as verification
from margin_softmax._checks import check_labels
from margin_softmax.adaptive import (
    AdaFaceState,
    adaface,
    adaptive_face,
    adaptive_face_regularizer,
    elastic_arcface,
    elastic_cosface,
    frequency_margins,
    kappaface,
    kappaface_margins,
    ldam_margins,
    logit_adjustment,
    magface,
)
from margin_softmax.angles import angle, cosines
from margin_softmax.cross_entropy import cross_entropy
from margin_softmax.growth import grow_classes, grow_state
from margin_softmax.heads import Head, blockwise, dense
from margin_softmax.lazy_rows import lazy_rows
from margin_softmax.losses import margin_logits, margin_loss, mixed_margin_loss, nearest_class, observe
from margin_softmax.margins import (
    Margin,
    Own,
    Statistic,
    a_softmax,
    am_softmax,
    arcface,
    combined,
    cosface,
    focal,
    l_softmax,
    modified_softmax,
    normface,
    plain,
    straight_through,
    temperature,
)
from margin_softmax.one_vs_all import (
    p2sgrad,
    sface,
    sphereface2,
    sphereface2_bias,
    unified_cross_entropy,
    unified_cross_entropy_bias,
)
from margin_softmax.other_classes import (
    airface,
    arcnegface,
    cifp,
    circle,
    curricularface,
    interclass_filter,
    intertopk,
    mv_softmax,
    npcface,
    sphereface_r,
    virtual_softmax,
)
from margin_softmax.reductions import Reduction
from margin_softmax.regularizers import center_loss, hyperspherical_energy
from margin_softmax.sampling import Sample, put_rows, sample_classes, take_rows
from margin_softmax.scales import adacos, suggest_scale
from margin_softmax.schedules import annealing, blend_schedule, margin_warmup
from margin_softmax.sharded import sharded
from margin_softmax.states import (
    cifp_threshold,
    update_adacos,
    update_adaface,
    update_curricularface,
    update_kappaface,
)
from margin_softmax.sub_centers import center_counts, dominant_centers, outlier_mask

__version__ = "0.1.0"

__all__ = [
    # geometry
    "angle",
    "cosines",
    # margins: what a paper defines
    "Margin",
    "Own",
    "Statistic",
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
    # others changed
    "sphereface_r",
    "airface",
    "mv_softmax",
    "curricularface",
    "arcnegface",
    "npcface",
    "cifp",
    "intertopk",
    "circle",
    "virtual_softmax",
    # one against all
    "sphereface2",
    "sphereface2_bias",
    "unified_cross_entropy",
    "unified_cross_entropy_bias",
    "p2sgrad",
    "sface",
    # from norms, chance, or learned
    "magface",
    "adaface",
    "AdaFaceState",
    "elastic_arcface",
    "elastic_cosface",
    "adaptive_face",
    "adaptive_face_regularizer",
    "kappaface",
    # from counts, by class
    "ldam_margins",
    "frequency_margins",
    "kappaface_margins",
    "logit_adjustment",
    # margins of margins
    "straight_through",
    "focal",
    "interclass_filter",
    # scales
    "suggest_scale",
    "adacos",
    # schedules
    "blend_schedule",
    "annealing",
    "margin_warmup",
    # state
    "update_curricularface",
    "update_adaface",
    "update_adacos",
    "update_kappaface",
    "cifp_threshold",
    # heads: where it runs
    "Head",
    "Reduction",
    "dense",
    "blockwise",
    "sharded",
    # some of the classes
    "sample_classes",
    "Sample",
    "take_rows",
    "put_rows",
    "lazy_rows",
    # more classes
    "grow_classes",
    "grow_state",
    # losses
    "margin_loss",
    "mixed_margin_loss",
    "margin_logits",
    "cross_entropy",
    "nearest_class",
    "observe",
    "check_labels",
    # beside the loss
    "hyperspherical_energy",
    "center_loss",
    # sub-centres
    "center_counts",
    "dominant_centers",
    "outlier_mask",
]
