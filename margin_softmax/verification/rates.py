"""What is known of a verifier from the scores of pairs alone: its two rates of error, and numbers made from them.

A pair is accepted where `score >= threshold`. FAR is the share of impostor pairs (of two people) that are accepted, TAR
that of genuine pairs (of one), FRR = 1 - TAR. Equal scores are accepted or rejected together, so every rate is a
function of `Counts`: the distinct scores, and how many pairs of each kind have each. All of it is float64 on the host.
"""

import bisect
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from margin_softmax import _checks
from margin_softmax.verification import _inputs


class Counts(NamedTuple):
    """How many pairs of each kind have each score.

    Attributes:
      scores: distinct, from the highest down, `[T]` float64; for counts by bins, the lower edges of bins.
      same: genuine pairs of that score, `[T]` int64.
      different: impostor pairs of that score, `[T]` int64.
    """

    scores: np.ndarray
    same: np.ndarray
    different: np.ndarray


class Roc(NamedTuple):
    """Receiver operating characteristic: from the threshold that accepts nothing to the one that accepts everything.

    Attributes:
      far: share of impostor pairs accepted, `[T + 1]`, from 0 to 1.
      tar: share of genuine pairs accepted, `[T + 1]`, from 0 to 1.
      thresholds: `[T + 1]`, from +inf down over the distinct scores.
    """

    far: np.ndarray
    tar: np.ndarray
    thresholds: np.ndarray


class Det(NamedTuple):
    """Detection error trade-off: the points of the ROC by their two errors.

    Attributes:
      far: share of impostor pairs accepted, `[T + 1]`, from 0 to 1.
      frr: share of genuine pairs rejected, `[T + 1]`, from 1 to 0.
      thresholds: `[T + 1]`, from +inf down over the distinct scores.
    """

    far: np.ndarray
    frr: np.ndarray
    thresholds: np.ndarray


class BestAccuracy(NamedTuple):
    """The largest share of right decisions that one threshold reaches.

    Attributes:
      accuracy: share of pairs decided rightly.
      threshold: that reaches it.
    """

    accuracy: float
    threshold: float


class KFoldAccuracy(NamedTuple):
    """Accuracy over folds, each decided with a threshold from the others.

    Attributes:
      mean: over folds.
      standard_deviation: over folds, that of the population (over K), which face papers print after the mean.
      standard_error: of the mean: the sample deviation (over K - 1) divided by sqrt(K), which LFW asks for.
      accuracies: of each fold, `[K]`.
      thresholds: of each fold, `[K]`.
    """

    mean: float
    standard_deviation: float
    standard_error: float
    accuracies: np.ndarray
    thresholds: np.ndarray


def count(scores: ArrayLike, same: ArrayLike) -> Counts:
    """Groups pairs by their score.

    Every metric here takes these counts in place of scores, so several metrics of many pairs need one sort alone.

    Args:
      scores: `[N]` real, higher means more alike. Integers may be so, up to 2^53, which float64 holds.
      same: `[N]` booleans, whether the two are of one person.

    Returns:
      `Counts` of the distinct scores.

    Raises:
      TypeError: scores are not real or `same` is not boolean, or they are traced.
      ValueError: shapes differ, or a score is not finite.

    Example:
      >>> ms.verification.count([0.5, 0.9, 0.5], [True, True, False])
      Counts(scores=array([0.9, 0.5]), same=array([1, 1]), different=array([0, 1]))
    """
    _inputs.refuse_traced(scores=scores, same=same)
    scores, same = _pairs(scores, same)
    return _counted(*_distinct(scores), same)


def roc(scores: ArrayLike | Counts, same: ArrayLike | None = None) -> Roc:
    """Receiver operating characteristic: both rates at every threshold that makes a difference.

        far(t) = #{different, score >= t} / #different
        tar(t) = #{same, score >= t} / #same

    It begins where nothing is accepted, at (0, 0) with threshold +inf, and has one point for each distinct score, from
    the strictest on. No point on a straight line is left out.

    Args:
      scores: `[N]` real, higher means more alike; or `Counts`.
      same: `[N]` booleans, whether the two are of one person; none with `Counts`.

    Returns:
      `Roc` of float64 arrays.

    Raises:
      TypeError: scores are not real or `same` is not boolean, or they are traced.
      ValueError: shapes differ, a score is not finite, or there is no genuine or no impostor pair.

    Example:
      >>> far, tar, thresholds = ms.verification.roc([0.9, 0.8, 0.3], [True, False, True])
      >>> far, tar, thresholds
      (array([0., 0., 1., 1.]), array([0. , 0.5, 0.5, 1. ]), array([inf, 0.9, 0.8, 0.3]))
    """
    counts = _counts(scores, same)
    same_accepted, different_accepted = _accepted(counts)
    return Roc(
        far=different_accepted / different_accepted[-1],
        tar=same_accepted / same_accepted[-1],
        thresholds=np.concatenate([[np.inf], counts.scores]),
    )


def det(scores: ArrayLike | Counts, same: ArrayLike | None = None) -> Det:
    """Detection error trade-off: FAR and FRR at every threshold that makes a difference.

        far(t) = #{different, score >= t} / #different
        frr(t) = #{same, score < t} / #same

    The points are those of `roc`, the two ends included; on normal-deviate axes these lie at infinity.

    Args:
      scores: `[N]` real, higher means more alike; or `Counts`.
      same: `[N]` booleans, whether the two are of one person; none with `Counts`.

    Returns:
      `Det` of float64 arrays.

    Raises:
      TypeError: scores are not real or `same` is not boolean, or they are traced.
      ValueError: shapes differ, a score is not finite, or there is no genuine or no impostor pair.

    References:
      Martin, Doddington, Kamm, Ordowski, Przybocki, The DET Curve in Assessment of Detection Task Performance,
      Eurospeech 1997.

    Example:
      >>> ms.verification.det([0.9, 0.8, 0.3], [True, False, True]).frr
      array([1. , 0.5, 0.5, 0. ])
    """
    counts = _counts(scores, same)
    same_accepted, different_accepted = _accepted(counts)
    genuine = same_accepted[-1]
    return Det(
        far=different_accepted / different_accepted[-1],
        frr=(genuine - same_accepted) / genuine,  # whereas 1 - TAR would be rounded twice
        thresholds=np.concatenate([[np.inf], counts.scores]),
    )


def auc(scores: ArrayLike | Counts, same: ArrayLike | None = None) -> float:
    """Area under the ROC: how often a genuine pair has a higher score than an impostor pair.

        auc = P(genuine > impostor) + P(genuine = impostor) / 2

    Args:
      scores: `[N]` real, higher means more alike; or `Counts`.
      same: `[N]` booleans, whether the two are of one person; none with `Counts`.

    Returns:
      From 0 to 1; 0.5 where all scores are equal.

    Raises:
      TypeError: scores are not real or `same` is not boolean, or they are traced.
      ValueError: shapes differ, a score is not finite, or there is no genuine or no impostor pair.

    Example:
      >>> ms.verification.auc([0.9, 0.8, 0.8], [True, False, True])
      0.75
    """
    counts = _counts(scores, same)
    higher, _ = _accepted(counts)
    # In float64: the product of two numbers of pairs may exceed int64.
    wins = np.sum(counts.different * (higher[:-1] + higher[1:]).astype(np.float64)) / 2
    return float(wins / counts.different.sum() / higher[-1])


def eer(scores: ArrayLike | Counts, same: ArrayLike | None = None) -> float:
    """Equal error rate: FAR where it equals FRR, on the ROC joined by straight lines.

        eer = far + a (far' - far),   a = (frr - far) / ((frr - far) + (far' - frr'))

    far and frr are the rates at the last threshold with far < frr, far' and frr' those at the next one.

    Args:
      scores: `[N]` real, higher means more alike; or `Counts`.
      same: `[N]` booleans, whether the two are of one person; none with `Counts`.

    Returns:
      From 0 to 1; 0.5 where all scores are equal.

    Raises:
      TypeError: scores are not real or `same` is not boolean, or they are traced.
      ValueError: shapes differ, a score is not finite, or there is no genuine or no impostor pair.

    Example:
      >>> ms.verification.eer([0.9, 0.7, 0.6, 0.8, 0.5, 0.4], [True, True, True, False, False, False])
      0.3333333333333333
    """
    counts = _counts(scores, same)
    point, before, after = _crossing(counts)
    _, accepted = _accepted(counts)
    fewer, more, impostors = int(accepted[point - 1]), int(accepted[point]), int(accepted[-1])
    return (after * fewer + before * more) / ((before + after) * impostors)


def threshold_at_eer(scores: ArrayLike | Counts, same: ArrayLike | None = None) -> float:
    """The score at which, taken as the threshold, FAR and FRR are nearest to each other.

        the score t for which |far(t) - frr(t)| is least

    Args:
      scores: `[N]` real, higher means more alike; or `Counts`.
      same: `[N]` booleans, whether the two are of one person; none with `Counts`.

    Returns:
      One of the scores; of two equally good ones the higher.

    Raises:
      TypeError: scores are not real or `same` is not boolean, or they are traced.
      ValueError: shapes differ, a score is not finite, or there is no genuine or no impostor pair.

    Example:
      >>> ms.verification.threshold_at_eer([0.9, 0.7, 0.6, 0.8, 0.5, 0.4], [True, True, True, False, False, False])
      0.7
    """
    counts = _counts(scores, same)
    point, before, after = _crossing(counts)
    if before <= after and point > 1:  # the threshold of point 0 is +inf, no score
        point -= 1
    return float(counts.scores[point - 1])


def _crossing(counts: Counts) -> tuple[int, int, int]:
    """The first point of the ROC where FAR is not below FRR, how far it is below one point before, and above here.

    Both in units of 1 / (genuine impostors), as Python's integers: no rounding decides what is equal.
    """
    same, different = _accepted(counts)
    genuine, impostors = int(same[-1]), int(different[-1])

    def gap(point):
        return int(different[point]) * genuine - (genuine - int(same[point])) * impostors

    point = bisect.bisect_left(range(len(same)), 0, key=gap)
    return point, -gap(point - 1), gap(point)


def tar_at_far(
    scores: ArrayLike | Counts,
    same: ArrayLike | None = None,
    far: ArrayLike | None = None,
    *,
    interpolation: str = "strict",
) -> float | np.ndarray:
    """Share of genuine pairs accepted where at most a given share of impostor pairs is.

        strict:   max of tar(t) over the thresholds t with far(t) <= far
        nearest:  tar(t) at the corner t of the ROC for which |far(t) - far| is least

    `"strict"` takes the threshold with the largest FAR that is not above `far`; of several the one with the largest
    TAR. It never claims a FAR that the scores do not keep.

    `"nearest"` takes the point whose FAR is nearest to `far`, above or below, as the usual scripts for IJB-B and IJB-C
    do, to the bit: of equally near ones that with the larger FAR, and then that with the largest TAR. As there, only
    the corners of the ROC are tried, as `sklearn.metrics.roc_curve` leaves out what lies between them. That matters:
    on a long horizontal stretch the next corner may have a much larger TAR than any point near `far`.

    Args:
      scores: `[N]` real, higher means more alike; or `Counts`.
      same: `[N]` booleans, whether the two are of one person; none with `Counts`.
      far: one number or an array of them, in [0, 1]. 0 is no false accept at all; between 0 and 1 / (number of
        impostor pairs) nothing can be measured. A number narrower than float64 stands for the shortest decimal that is
        rounded to it, if that is larger: float32's 0.03, which is 0.0299999993, for 0.03. Must be given, with `Counts`
        by keyword.
      interpolation: `"strict"` or `"nearest"`.

    Returns:
      TAR, a float or an array of the shape of `far`.

    Raises:
      TypeError: scores or `far` are not real or `same` is not boolean, or they are traced.
      ValueError: shapes differ, a score is not finite, there is no genuine or no impostor pair, `far` is out of range
        or too small for so few impostor pairs, or `interpolation` is another word.

    References:
      Whitelam et al., IARPA Janus Benchmark-B Face Dataset, CVPR Workshops 2017.
      Maze et al., IARPA Janus Benchmark - C: Face Dataset and Protocol, ICB 2018.

    Example:
      >>> scores, same = [0.9, 0.8, 0.7, 0.6, 0.5], [True, True, False, True, False]
      >>> ms.verification.tar_at_far(scores, same, 0.5)
      1.0
      >>> ms.verification.tar_at_far(ms.verification.count(scores, same), far=[0.0, 0.5])
      array([0.66666667, 1.        ])
    """
    index, curve = _points_at_far(scores, same, far, interpolation)
    return _like(curve.tar[index])


def threshold_at_far(
    scores: ArrayLike | Counts,
    same: ArrayLike | None = None,
    far: ArrayLike | None = None,
    *,
    interpolation: str = "strict",
) -> float | np.ndarray:
    """The threshold at which `tar_at_far` is measured: the lowest score that keeps a given FAR.

        strict:   min of the scores t with far(t) <= far, or +inf
        nearest:  the corner t of the ROC for which |far(t) - far| is least

    Args:
      scores: `[N]` real, higher means more alike; or `Counts`.
      same: `[N]` booleans, whether the two are of one person; none with `Counts`.
      far: one number or an array of them, as in `tar_at_far`.
      interpolation: `"strict"` or `"nearest"`, as in `tar_at_far`.

    Returns:
      One of the scores, or +inf where even the highest is that of too many impostor pairs; a float or an array of the
      shape of `far`.

    Raises:
      TypeError: scores or `far` are not real or `same` is not boolean, or they are traced.
      ValueError: shapes differ, a score is not finite, there is no genuine or no impostor pair, `far` is out of range
        or too small for so few impostor pairs, or `interpolation` is another word.

    Example:
      >>> ms.verification.threshold_at_far([0.9, 0.8, 0.7, 0.6], [True, False, True, False], 0.5)
      0.7
    """
    index, curve = _points_at_far(scores, same, far, interpolation)
    return _like(curve.thresholds[index])


def _points_at_far(scores, same, far, interpolation: str) -> tuple[np.ndarray, Roc]:
    """Which points of the ROC the targets choose, and the ROC."""
    _inputs.refuse_traced(scores=scores, same=same, far=far)
    _checks.one_of("interpolation", interpolation, ("strict", "nearest"))
    counts = _counts(scores, same)
    targets = _targets(far, int(counts.different.sum()))
    curve = roc(counts)
    if interpolation == "strict":
        return np.searchsorted(curve.far, targets, side="right") - 1, curve
    corners = _corners(counts)[::-1]
    near = [corners[np.argmin(np.abs(curve.far[corners] - target))] for target in targets.reshape(-1)]
    return np.array(near, np.intp).reshape(targets.shape), curve


def _targets(far, impostors: int) -> np.ndarray:
    far = np.asarray(far) if isinstance(far, list | tuple) else far
    _checks.number("far", far, at_least=0.0, at_most=1.0)
    came = _inputs.on_host("far", far)
    targets = np.array([_meant(number) for number in came.reshape(-1)], np.float64).reshape(came.shape)
    small = targets[(targets > 0) & (targets < 1 / impostors)]
    if small.size:
        raise ValueError(
            f"far: {float(small[0])!r} cannot be measured, as a single one of the {impostors} impostor pairs is "
            f"{1 / impostors!r} of them. Ask for that or more, for 0 (no false accept at all), or bring more pairs."
        )
    return targets


def _meant(number: np.generic) -> float:
    """The shortest decimal that is rounded to this number in its dtype, or the number itself if that is larger.

    Where the number lies a little below the decimal, the FAR that was meant would be above it.
    """
    exact = float(number)
    if number.dtype.kind in "iu" or number.dtype.itemsize >= 8:
        return exact
    decimals = (float(f"{exact:.{digits}g}") for digits in range(1, 18))
    return max(exact, next(d for d in decimals if np.asarray(d).astype(number.dtype) == number))


def _corners(counts: Counts) -> np.ndarray:
    """Points of the ROC that do not lie in the middle between their neighbours; the first two and the last always."""
    bends = (np.diff(counts.same) != 0) | (np.diff(counts.different) != 0)
    return np.flatnonzero(np.concatenate([[True, True], bends[1:], [True]])[: len(counts.scores) + 1])


def _like(values) -> Any:
    return float(values) if values.ndim == 0 else values


def min_dcf(
    scores: ArrayLike | Counts,
    same: ArrayLike | None = None,
    p_target: float = 0.01,
    *,
    cost_miss: float = 1.0,
    cost_false_accept: float = 1.0,
) -> float:
    """Smallest detection cost that a threshold reaches, relative to deciding without looking.

        min over thresholds of (a FRR + b FAR) / min(a, b)
        a = cost_miss p_target,   b = cost_false_accept (1 - p_target)

    Args:
      scores: `[N]` real, higher means more alike; or `Counts`.
      same: `[N]` booleans, whether the two are of one person; none with `Counts`.
      p_target: assumed probability that a pair is genuine, in (0, 1).
      cost_miss: of rejecting a genuine pair, above 0.
      cost_false_accept: of accepting an impostor pair, above 0.

    Returns:
      From 0 to 1: 1 is what accepting all pairs costs, or rejecting all, whichever is better.

    Raises:
      TypeError: scores are not real or `same` is not boolean, or they are traced.
      ValueError: shapes differ, a score is not finite, there is no genuine or no impostor pair, or a number is out of
        range.

    References:
      NIST 2016 Speaker Recognition Evaluation Plan, 2016.

    Example:
      >>> ms.verification.min_dcf([0.9, 0.8, 0.3], [True, False, True], p_target=0.05)
      0.5
    """
    numbers = {"p_target": p_target, "cost_miss": cost_miss, "cost_false_accept": cost_false_accept}
    _inputs.refuse_traced(scores=scores, same=same, **numbers)
    for name, value in numbers.items():
        _checks.static_number(name, value, above=0.0)
    if p_target >= 1:
        raise ValueError(f"p_target: expected a probability below 1, came {p_target!r}. Are these percent?")
    far, frr, _ = det(scores, same)
    miss, false_accept = cost_miss * p_target, cost_false_accept * (1 - p_target)
    return float(np.min(miss * frr + false_accept * far) / min(miss, false_accept))


def best_accuracy(scores: ArrayLike | Counts, same: ArrayLike | None = None) -> BestAccuracy:
    """Largest share of right decisions, and its threshold, chosen on the very pairs that it is measured on.

        accuracy = max over thresholds t of (#{same, score >= t} + #{different, score < t}) / N

    That is optimistic: to report an accuracy use `kfold_accuracy`. The threshold lies midway between the lowest score
    accepted and the next one below, which it must reject; it is +inf where all are rejected, and the lowest score where
    all are accepted. Of equally good thresholds it is the strictest. With counts by bins, where a score is the lower
    edge of its bin, it may lie inside of the next bin.

    Args:
      scores: `[N]` real, higher means more alike; or `Counts`.
      same: `[N]` booleans, whether the two are of one person; none with `Counts`.

    Returns:
      `BestAccuracy(accuracy, threshold)`.

    Raises:
      TypeError: scores are not real or `same` is not boolean, or they are traced.
      ValueError: shapes differ, a score is not finite, or there is no genuine or no impostor pair.

    Example:
      >>> ms.verification.best_accuracy([0.9, 0.75, 0.5, 0.25], [True, True, False, False])
      BestAccuracy(accuracy=1.0, threshold=0.625)
    """
    counts = _counts(scores, same)
    right, threshold = _best(counts)
    return BestAccuracy(float(right / (counts.same.sum() + counts.different.sum())), threshold)


def kfold_accuracy(
    scores: ArrayLike, same: ArrayLike, folds: int | ArrayLike = 10, *, grid: ArrayLike | None = None
) -> KFoldAccuracy:
    """Accuracy by the protocol of LFW: each fold is decided with the threshold that is best on all the others.

        t_k = the threshold of `best_accuracy` on the pairs outside of fold k
        accuracy_k = (#{same, score >= t_k} + #{different, score < t_k}) / #fold k,   both counted in fold k
        mean = (accuracy_1 + ... + accuracy_K) / K

    Thresholds are exact, as in `best_accuracy`. The usual scripts try 400 squared distances of unit vectors instead,
    which for cosines are `grid=1 - np.arange(0, 4, 0.01) / 2`; results may then differ in the fourth digit. They accept
    distances below a threshold, and here scores equal to one are accepted too. Of equally good thresholds the strictest
    is taken, there as here.

    Args:
      scores: `[N]` real, higher means more alike.
      same: `[N]` booleans, whether the two are of one person.
      folds: how many, of neighbouring pairs and as equal as can be, as `sklearn.model_selection.KFold` makes them
        without shuffling; or the number of each pair's fold, `[N]` integers.
      grid: thresholds to try, `[M]` real, in any order; None for the exact ones.

    Returns:
      `KFoldAccuracy`, folds in the order of their numbers.

    Raises:
      TypeError: scores or `grid` are not real, `same` is not boolean or `folds` not of integers, they are traced, or
        `Counts` came for scores, which no longer say which fold a pair is of.
      ValueError: shapes differ, a score is not finite, there are fewer than two folds or more than pairs, or the others
        of a fold hold no genuine or no impostor pair.

    References:
      Huang, Ramesh, Berg, Learned-Miller, Labeled Faces in the Wild, University of Massachusetts 07-49, 2007.

    Example:
      >>> scores, same = [0.9, 0.2, 0.8, 0.1, 0.7, 0.75], [True, False, True, False, True, False]
      >>> ms.verification.kfold_accuracy(scores, same, folds=3).accuracies
      array([1. , 0.5, 0.5])
    """
    _inputs.refuse_traced(scores=scores, same=same, folds=folds, grid=grid)
    if isinstance(scores, Counts):
        raise TypeError(
            "scores: expected the scores of pairs, came Counts. These no longer say which fold a pair is of."
        )
    scores, same = _pairs(scores, same)
    fold, names = _folds(folds, len(scores))
    grid = None if grid is None else _thresholds(grid)
    distinct, place = _distinct(scores)
    thresholds = np.empty(len(names))
    for k, name in enumerate(names):
        others = fold != k
        counts = _counted(distinct, place[others], same[others])
        _refuse_one_kind(counts, f" outside of fold {name}, to choose its threshold on. Mix both kinds in every fold.")
        _, thresholds[k] = _best(counts, grid)
    right = (scores >= thresholds[fold]) == same
    accuracies = np.bincount(fold, right) / np.bincount(fold)
    return KFoldAccuracy(
        mean=float(np.mean(accuracies)),
        standard_deviation=float(np.std(accuracies)),
        standard_error=float(np.std(accuracies, ddof=1) / np.sqrt(len(names))),
        accuracies=accuracies,
        thresholds=thresholds,
    )


def _folds(folds, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """The fold of each pair, counted from 0, and the numbers by which the caller knows the folds."""
    if np.ndim(folds) == 0:
        number = int(_checks.static_number("folds", folds, at_least=2, whole=True))
        if number > pairs:
            raise ValueError(f"folds: expected at most one fold for each of {pairs} pairs, came {number}.")
        # The first ones are longer by one where it does not come out even.
        sizes = pairs // number + (np.arange(number) < pairs % number)
        return np.repeat(np.arange(number), sizes), np.arange(number)
    folds = _inputs.integers("folds", folds, "Give how many folds there are, or the number of each pair's fold.")
    _checks.shape("folds", folds, (pairs,), f"[N] = ({pairs},)", "One number of a fold for each pair.")
    names, fold = np.unique(folds, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"folds: expected two or more, came {len(names)}. A threshold is chosen on the other folds.")
    return fold, names


def _thresholds(grid) -> np.ndarray:
    """From the strictest on."""
    grid = np.sort(_inputs.finite_reals("grid", grid, "[M]"))[::-1]
    if not grid.size:
        raise ValueError("grid: expected one threshold at least, came none. None itself stands for the exact ones.")
    return grid


def _best(counts: Counts, grid: np.ndarray | None = None) -> tuple[int, float]:
    """How many pairs the best threshold decides rightly, and the strictest such threshold."""
    same_accepted, different_accepted = _accepted(counts)
    right = same_accepted + (different_accepted[-1] - different_accepted)
    if grid is None:
        grid = _between(counts.scores)
    else:
        right = right[np.searchsorted(-counts.scores, -grid, side="right")]
    best = np.argmax(right)
    return int(right[best]), float(grid[best])


def _between(scores: np.ndarray) -> np.ndarray:
    """A threshold for each number of distinct scores to accept, from none to all."""
    high, low = scores[:-1], scores[1:]
    middle = high / 2 + low / 2  # a sum, halved, could overflow
    # Between neighbouring floats there is none: a threshold rounded down would accept the lower.
    return np.concatenate([[np.inf], np.where(middle > low, middle, high), scores[-1:]])


def d_prime(scores: ArrayLike | Counts, same: ArrayLike | None = None) -> float:
    """How far genuine and impostor scores lie apart, in standard deviations.

        d' = (mean of genuine - mean of impostor) / sqrt((variance of genuine + variance of impostor) / 2)

    Variances are those of the population. It does not depend on the unit or the origin of scores.

    Args:
      scores: `[N]` real, higher means more alike; or `Counts`.
      same: `[N]` booleans, whether the two are of one person; none with `Counts`.

    Returns:
      0 where the means are equal, negative where impostors score higher.

    Raises:
      TypeError: scores are not real or `same` is not boolean, or they are traced.
      ValueError: shapes differ, a score is not finite, there is no genuine or no impostor pair, or neither kind has
        more than one score.

    Example:
      >>> ms.verification.d_prime([3.0, 5.0, 0.0, 2.0], [True, True, False, False])
      3.0
    """
    counts = _counts(scores, same)
    # By a power of two, which changes no digit: squares of what is below 1 do not overflow.
    scores = np.ldexp(counts.scores, -np.frexp(np.abs(counts.scores).max())[1])
    scores = scores - scores[0]  # the means of scores that share their first digits differ in the others
    genuine, genuine_variance = _moments(scores, counts.same)
    impostor, impostor_variance = _moments(scores, counts.different)
    if genuine_variance == impostor_variance == 0:
        raise ValueError(
            "scores: expected a spread among genuine or impostor pairs, came one score for each kind. "
            "The distance in standard deviations is not defined."
        )
    return float((genuine - impostor) / np.sqrt((genuine_variance + impostor_variance) / 2))


def _moments(scores, weights) -> tuple[float, float]:
    """Mean and variance."""
    origin = scores[weights > 0][0]  # so that the variance of a single score is 0, and not what rounding leaves
    mean = np.average(scores - origin, weights=weights)
    return origin + mean, np.average((scores - origin - mean) ** 2, weights=weights)


def _accepted(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Genuine and impostor pairs accepted, at threshold +inf and at each score, `[T + 1]`."""
    return np.append(0, np.cumsum(counts.same)), np.append(0, np.cumsum(counts.different))


def _counts(scores, same) -> Counts:
    """Counts with pairs of both kinds, of whatever a metric was given."""
    _inputs.refuse_traced(scores=scores, same=same)
    if isinstance(scores, Counts):
        if same is not None:
            raise TypeError(
                "same: expected none, as Counts hold it, came an argument. Give others by keyword: far=1e-3."
            )
        counts = _checked(scores)
    else:
        scores, same = _pairs(scores, same)
        counts = _counted(*_distinct(scores), same)
    _refuse_one_kind(counts, ". Each rate is a share of the pairs of one kind.")
    return counts


def _checked(counts: Counts) -> Counts:
    """Counts that were made elsewhere, once they are what `Counts` says."""
    scores = _inputs.finite_reals("scores.scores", counts.scores, "[T]")
    tallies = []
    for kind in ("same", "different"):
        tally = _inputs.integers(f"scores.{kind}", getattr(counts, kind), "They are numbers of pairs.")
        _checks.shape(f"scores.{kind}", tally, scores.shape, f"[T] = {scores.shape}", "One number for each score.")
        if (tally < 0).any():
            raise ValueError(f"scores.{kind}: expected numbers of pairs, >= 0, came {tally[tally < 0][0]}.")
        tallies.append(tally)
    if (np.diff(scores) >= 0).any():
        raise ValueError("scores.scores: expected distinct scores from the highest down. `count` makes them so.")
    return Counts(scores, *tallies)


def _refuse_one_kind(counts: Counts, where: str) -> None:
    genuine, impostors = counts.same.sum(), counts.different.sum()
    if not (genuine and impostors):
        raise ValueError(
            f"same: expected genuine and impostor pairs, came {genuine} genuine and {impostors} impostor pairs{where}"
        )


def _distinct(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct scores, from the highest down, and which of them each pair has."""
    rising, place = np.unique(scores, return_inverse=True)
    return rising[::-1], len(rising) - 1 - place


def _counted(distinct: np.ndarray, place: np.ndarray, same: np.ndarray) -> Counts:
    """Counts of those of the distinct scores that any pair has."""
    genuine, impostors = (np.bincount(place[kind], minlength=len(distinct)) for kind in (same, ~same))
    present = genuine + impostors > 0
    return Counts(distinct[present], genuine[present], impostors[present])


def _pairs(scores, same) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N] in float64 and booleans [N]."""
    if same is None:
        raise TypeError("same: expected [N] booleans, whether the two of each pair are of one person, came None.")
    scores, same = _inputs.finite_reals("scores", scores, "[N]"), _inputs.on_host("same", same)
    if same.dtype != np.bool_:
        raise TypeError(f"same: expected booleans, came {same.dtype}. If 1 stands for one person: `same.astype(bool)`.")
    _checks.shape("same", same, scores.shape, f"[N] = {scores.shape}, as scores", "One flag for each pair.")
    return scores, same
