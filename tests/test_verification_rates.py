"""Rates of error: against scikit-learn, against their definitions written out, and what is refused."""

import inspect
import itertools
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from sklearn.model_selection import KFold

from margin_softmax import verification as mv

TARGETS = [0.0, 0.05, 0.1, 0.3, 0.5, 0.77, 1.0]


def random_pairs(seed, pairs=80, distance=1.0, decimals=17):
    random = np.random.default_rng(seed)
    same = random.permutation(np.arange(pairs) % 3 == 0)
    return np.round(random.normal(size=pairs) + distance * same, decimals), same


def alternating(scores):
    return np.array(scores, np.float64), np.arange(len(scores)) % 2 == 0


CASES = {
    "distinct": random_pairs(0),
    "apart": random_pairs(1, distance=20.0),
    "inverted": random_pairs(2, distance=-3.0),
    "a few ties": random_pairs(3, decimals=1),
    "many ties": random_pairs(4, pairs=150, decimals=0),
    "constant": alternating([0.25] * 40),
    "one of each": alternating([0.5, 0.75]),
    "signed zeros": alternating([0.0, -0.0, 1.0, -1.0, -0.0, 0.0] * 7),
    "huge and tiny": alternating([1.7e308, -1.7e308, 5e-324, 0.0, -5e-324, 1e300, 1.7e308, 5e-324] * 5),
    "neighbours": alternating(np.repeat(1 + np.arange(4) * 2.0**-52, [3, 8, 7, 4])),
    "long stretch": (-np.arange(60.0), np.isin(np.arange(60), [0, 7, 50, 51, 59])),
}
METRICS = {
    "roc": mv.roc,
    "det": mv.det,
    "auc": mv.auc,
    "eer": mv.eer,
    "threshold_at_eer": mv.threshold_at_eer,
    "tar_at_far": lambda *pairs: mv.tar_at_far(*pairs, far=[0.0, 0.5, 1.0]),
    "threshold_at_far": lambda *pairs: mv.threshold_at_far(*pairs, far=0.5, interpolation="nearest"),
    "min_dcf": mv.min_dcf,
    "best_accuracy": mv.best_accuracy,
    "d_prime": mv.d_prime,
}
"""Those that take scores or counts."""


@pytest.mark.parametrize("name", [*METRICS, "kfold_accuracy"])
def test_every_rate_states_its_formula(name):
    assert re.match(r"[^\n]+\n\n    \S", inspect.getdoc(getattr(mv, name)))


def each_case(test):
    return pytest.mark.parametrize(("scores", "same"), CASES.values(), ids=CASES)(test)


def points_of(scores, same):
    """Threshold, and impostor and genuine pairs accepted by it, counted one threshold at a time."""
    thresholds = [np.inf, *sorted(set(scores.tolist()), reverse=True)]
    return [(t, int((scores[~same] >= t).sum()), int((scores[same] >= t).sum())) for t in thresholds]


def errors_of(scores, same):
    """Threshold, FAR and FRR, exactly."""
    impostors, genuine = int((~same).sum()), int(same.sum())
    return [(t, Fraction(f, impostors), 1 - Fraction(g, genuine)) for t, f, g in points_of(scores, same)]


def measurable(same, targets=TARGETS):
    return [far for far in targets if far == 0 or far >= 1 / (~same).sum()]


@each_case
def test_counts_are_of_every_distinct_score(scores, same):
    counts = mv.count(scores, same)
    assert [c.dtype for c in counts] == [np.float64, np.int64, np.int64]
    np.testing.assert_array_equal(counts.scores, sorted(set(scores.tolist()), reverse=True))
    np.testing.assert_array_equal(counts.same, [sum(scores[same] == s) for s in counts.scores])
    np.testing.assert_array_equal(counts.different, [sum(scores[~same] == s) for s in counts.scores])


@each_case
def test_roc_is_that_of_the_definition_and_of_scikit_learn(scores, same):
    ours = mv.roc(scores, same)
    with np.errstate(all="ignore"):  # it adds the scores up
        theirs = sklearn.metrics.roc_curve(same, scores, drop_intermediate=False)
    impostors, genuine = (~same).sum(), same.sum()
    definition = np.array([(f / impostors, g / genuine, t) for t, f, g in points_of(scores, same)]).T
    for a, b, c in zip(ours, theirs, definition, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


@each_case
def test_det_is_that_of_the_definition_and_holds_the_points_of_scikit_learn(scores, same):
    ours = mv.det(scores, same)
    exact = [(float(far), float(frr), t) for t, far, frr in errors_of(scores, same)]
    assert list(zip(*ours, strict=True)) == exact
    with np.errstate(all="ignore"):
        theirs = set(zip(*sklearn.metrics.det_curve(same, scores), strict=True))
    assert len(theirs) > 0
    # These leave out where only one of the errors is left, and some of their versions the threshold +inf.
    assert theirs <= set(exact)


@each_case
def test_auc_counts_ties_half(scores, same):
    wins = scores[same][:, None] > scores[~same]
    ties = scores[same][:, None] == scores[~same]
    expected = Fraction(int(2 * wins.sum() + ties.sum()), 2 * ties.size)
    assert mv.auc(scores, same) == pytest.approx(float(expected), rel=1e-15)
    with np.errstate(all="ignore"):
        theirs = sklearn.metrics.roc_auc_score(same, scores)
    assert mv.auc(scores, same) == pytest.approx(theirs, rel=1e-12, abs=1e-15)


@each_case
def test_eer_is_where_the_lines_between_points_cross(scores, same):
    points = errors_of(scores, same)
    for (_, far, frr), (_, next_far, next_frr) in itertools.pairwise(points):
        if far < frr and next_far >= next_frr:
            share = (frr - far) / ((frr - far) + (next_far - next_frr))
            expected = far + share * (next_far - far)
            assert expected == frr + share * (next_frr - frr)
    assert mv.eer(scores, same) == float(expected)
    nearest = min(abs(far - frr) for t, far, frr in points if t < np.inf)
    wanted = max(t for t, far, frr in points if abs(far - frr) == nearest and t < np.inf)
    assert mv.threshold_at_eer(scores, same) == wanted


@each_case
def test_strict_far_is_never_above_the_target(scores, same):
    points, impostors = points_of(scores, same), (~same).sum()
    targets = measurable(same)
    expected = [max((g / same.sum(), -t) for t, f, g in points if f / impostors <= far) for far in targets]
    tar, threshold = (f(scores, same, targets) for f in (mv.tar_at_far, mv.threshold_at_far))
    np.testing.assert_array_equal(tar, [e[0] for e in expected])
    np.testing.assert_array_equal([np.mean(scores[same] >= t) for t in threshold], tar)
    assert all(np.mean(scores[~same] >= t) <= far for t, far in zip(threshold, targets, strict=True))
    lowest = [min(t for t, f, _ in points if f / impostors <= far) for far in targets]
    np.testing.assert_array_equal(threshold, lowest)


def ijb_script(scores, same, far):
    """As the scripts for IJB-B and IJB-C do it: TAR and threshold."""
    with np.errstate(all="ignore"):
        fpr, tpr, thresholds = sklearn.metrics.roc_curve(same, scores)
    fpr, tpr, thresholds = np.flipud(fpr), np.flipud(tpr), np.flipud(thresholds)
    _, index = min(zip(abs(fpr - far), range(len(fpr)), strict=True))
    return tpr[index], thresholds[index]


@each_case
def test_nearest_far_is_that_of_the_scripts(scores, same):
    targets = measurable(same, [*TARGETS, *np.arange(40) / 40])  # some of these lie midway between two FARs
    expected = [ijb_script(scores, same, far) for far in targets]
    ours = [f(scores, same, targets, interpolation="nearest") for f in (mv.tar_at_far, mv.threshold_at_far)]
    np.testing.assert_array_equal(np.transpose(ours), expected)


def test_nearest_far_is_that_of_a_corner():
    """Impostors alone in the middle: the point itself would be at hand, and the scripts take a corner with more TAR."""
    scores, same = -np.arange(14.0), np.isin(np.arange(14), [0, 11, 12, 13])
    assert mv.tar_at_far(scores, same, 0.6) == 0.25
    assert mv.tar_at_far(scores, same, 0.6, interpolation="nearest") == 1.0 == ijb_script(scores, same, 0.6)[0]
    assert mv.tar_at_far(scores, same, 0.5, interpolation="nearest") == ijb_script(scores, same, 0.5)[0]


def test_far_may_have_any_shape():
    scores, same = CASES["distinct"]
    one = mv.tar_at_far(scores, same, 0.3)
    assert isinstance(one, float)
    for far in (np.full((2, 3), 0.3), np.float64(0.3), np.zeros((0,)), jnp.full((1,), 0.5), 1):
        for interpolation in ("strict", "nearest"):
            assert np.shape(mv.tar_at_far(scores, same, far, interpolation=interpolation)) == np.shape(far)
    np.testing.assert_array_equal(mv.tar_at_far(scores, same, [[0.3, 0.3]]), [[one, one]])


@pytest.mark.parametrize("metric", [mv.tar_at_far, mv.threshold_at_far])
@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
def test_a_narrow_far_stands_for_the_decimal_that_was_meant(metric, dtype):
    """Of 100 impostor pairs 3 are 0.03, and float32's 0.03 is below it."""
    scores, same = -np.arange(110.0), np.arange(110) % 11 == 0
    hundredths = np.arange(1, 101) / 100
    expected = metric(scores, same, hundredths)
    assert len(set(expected)) >= 10
    narrow = hundredths.astype(dtype)
    for far in (narrow, list(narrow), jnp.asarray(narrow)):
        np.testing.assert_array_equal(metric(scores, same, far), expected)
    assert [metric(scores, same, far) for far in narrow] == expected.tolist()
    assert metric(scores, same, jnp.float32(0.0)) == metric(scores, same, 0)


def test_a_narrow_far_that_is_larger_than_its_decimal_stays_what_it_is():
    """2**-20 is written as 9.536743e-07, which is less."""
    counts = mv.Counts(-np.arange(2.0**20), (np.arange(2**20) == 2**19).astype(int), np.ones(2**20, int))
    for accepted in (1, 3, 2**19 - 1):
        assert mv.threshold_at_far(counts, far=np.float32(accepted / 2**20)) == 1 - accepted


def test_no_false_accept_at_all():
    scores, same = [0.5, 0.9, 0.9, 0.1], [True, True, False, False]
    assert mv.tar_at_far(scores, same, 0) == 0.0
    assert mv.threshold_at_far(scores, same, 0) == np.inf


@each_case
@pytest.mark.parametrize(("p", "miss", "false_accept"), [(0.01, 1, 1), (0.05, 10.0, 1.0), (0.9, 1.0, 3.0), (0.5, 1, 1)])
def test_min_dcf_is_relative_to_the_better_blind_decision(scores, same, p, miss, false_accept):
    costs = [
        Fraction(miss) * Fraction(p) * frr + Fraction(false_accept) * (1 - Fraction(p)) * far
        for _, far, frr in errors_of(scores, same)
    ]
    expected = min(costs) / min(costs[0], costs[-1])
    ours = mv.min_dcf(scores, same, p, cost_miss=miss, cost_false_accept=false_accept)
    assert ours == pytest.approx(float(expected), rel=1e-14)
    assert ours <= 1


def best_cut(scores, same):
    """The most right decisions; and the lowest score accepted and the highest rejected at the strictest such cut."""
    values = sorted(set(scores.tolist()), reverse=True)
    cuts = [((scores >= t) == same).sum() for t in [np.inf, *values]]
    cut = int(np.argmax(cuts))
    return cuts[cut], ([np.inf, *values])[cut], ([*values, -np.inf])[cut]


def assert_midway(threshold, accepted, rejected):
    assert rejected < threshold <= accepted
    if np.inf in (accepted, -rejected):
        assert threshold == accepted
    else:
        middle = (Fraction(accepted) + Fraction(rejected)) / 2
        assert abs(Fraction(threshold) - middle) <= np.spacing(max(abs(accepted), abs(rejected)))


@each_case
def test_best_accuracy_is_that_of_the_strictest_best_cut(scores, same):
    ours = mv.best_accuracy(scores, same)
    right, accepted, rejected = best_cut(scores, same)
    assert ours.accuracy == right / len(same) == np.mean((scores >= ours.threshold) == same)
    assert_midway(ours.threshold, accepted, rejected)


def test_best_accuracy_at_the_ends():
    assert mv.best_accuracy([0.5, 0.5, 0.5], [True, False, False]) == (2 / 3, np.inf)
    assert mv.best_accuracy([0.5, 0.5, 0.5], [True, True, False]) == (2 / 3, 0.5)
    assert mv.best_accuracy([0.5, 0.75, 0.25], [True, False, True]) == (2 / 3, 0.25)
    assert mv.best_accuracy([0.5, 0.5], [True, False]) == (0.5, np.inf)


@pytest.mark.parametrize("high", [1 + 2.0**-52, 1 + 2.0**-51, 1.7e308, 5e-324, 0.0, -1e-310, -1.6e308])
@pytest.mark.parametrize("below", [1, 2, 3])
def test_a_threshold_lies_between_scores_however_near_or_large_they_are(high, below):
    low = high
    for _ in range(below):
        low = np.nextafter(low, -np.inf)
    accuracy, threshold = mv.best_accuracy([high, low], [True, False])
    assert accuracy == 1.0
    assert_midway(threshold, high, low.item())
    assert mv.kfold_accuracy([high, low] * 3, [True, False] * 3, folds=3).mean == 1.0


FOLDED = {
    "distinct": random_pairs(5, pairs=103),
    "ties": random_pairs(6, pairs=97, decimals=1),
    "constant": (np.full(30, 0.5), np.arange(30) % 3 == 0),
}


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("folds", [2, 7, 10])
def test_folds_are_those_of_scikit_learn_and_choose_on_the_others(name, folds):
    scores, same = FOLDED[name]
    ours = mv.kfold_accuracy(scores, same, folds)
    parts = list(KFold(folds).split(scores))
    accuracies = []
    for threshold, (others, fold) in zip(ours.thresholds, parts, strict=True):
        _, accepted, rejected = best_cut(scores[others], same[others])
        assert_midway(threshold, accepted, rejected)
        accuracies.append(np.mean((scores[fold] >= threshold) == same[fold]))
    np.testing.assert_array_equal(ours.accuracies, accuracies)
    assert ours.mean == pytest.approx(np.sum(accuracies) / folds, rel=1e-14)
    squares = np.sum((accuracies - np.mean(accuracies)) ** 2)
    assert ours.standard_deviation == pytest.approx(np.sqrt(squares / folds), rel=1e-14, abs=1e-15)
    assert ours.standard_error == pytest.approx(np.sqrt(squares / (folds - 1) / folds), rel=1e-14, abs=1e-15)
    numbers = np.zeros(len(scores), np.int16)
    for k, (_, fold) in enumerate(parts):
        numbers[fold] = 5 * k - 9
    shuffled = np.random.default_rng(0).permutation(len(scores))
    named = mv.kfold_accuracy(scores[shuffled], same[shuffled], numbers[shuffled])
    for a, b in zip(ours, named, strict=True):
        np.testing.assert_array_equal(a, b)


def facenet(first, second, same, folds):
    """Ten-fold accuracy as facenet, and InsightFace after it, compute it: squared distances, and a grid of them."""
    thresholds = np.arange(0, 4, 0.01)
    distance = np.sum(np.square(first - second), 1)
    accuracies, chosen = [], []
    for others, fold in KFold(folds, shuffle=False).split(distance):
        right = [np.mean((distance[others] < t) == same[others]) for t in thresholds]
        best = thresholds[np.argmax(right)]
        accuracies.append(np.mean((distance[fold] < best) == same[fold]))
        chosen.append(best)
    return accuracies, chosen


@pytest.mark.parametrize("spread", [0.2, 1.0, 4.0])
def test_a_grid_of_distances_gives_the_accuracy_of_the_usual_scripts(spread):
    random = np.random.default_rng(7)
    first, other = random.normal(size=(2, 300, 8))
    same = random.random(300) < 0.5
    second = np.where(same[:, None], first + spread * random.normal(size=first.shape), other)
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    accuracies, chosen = facenet(first, second, same, 10)
    grid = 1 - np.arange(0, 4, 0.01) / 2
    for order in (grid, grid[::-1], random.permutation(grid)):
        ours = mv.kfold_accuracy(np.sum(first * second, 1), same, grid=order)
        np.testing.assert_array_equal(ours.accuracies, accuracies)
        np.testing.assert_allclose(ours.thresholds, 1 - np.array(chosen) / 2, rtol=1e-12, atol=1e-15)
        assert (ours.mean, ours.standard_deviation) == (np.mean(accuracies), np.std(accuracies))


def test_a_grid_accepts_the_scores_that_equal_a_threshold():
    ours = mv.kfold_accuracy([0.5, 0.25] * 4, [True, False] * 4, folds=4, grid=[0.25, 0.5, 0.75])
    assert (ours.mean, *ours.thresholds) == (1.0, 0.5, 0.5, 0.5, 0.5)


@each_case
def test_d_prime_is_in_standard_deviations(scores, same):
    genuine, impostor = ([Fraction(float(s)) for s in scores[kind]] for kind in (same, ~same))
    means = [sum(x) / len(x) for x in (genuine, impostor)]
    variances = [sum((s - m) ** 2 for s in x) / len(x) for x, m in zip((genuine, impostor), means, strict=True)]
    if not sum(variances):
        with pytest.raises(ValueError, match="scores: expected a spread"):
            mv.d_prime(scores, same)
        return
    difference = means[0] - means[1]
    squared = float(difference**2 * 2 / sum(variances))
    assert mv.d_prime(scores, same) == pytest.approx(
        np.copysign(np.sqrt(squared), float(difference)), rel=1e-13, abs=1e-15
    )


def test_d_prime_of_one_genuine_pair_has_the_deviation_of_impostors():
    assert mv.d_prime([0.1, 0.0, 0.0, 2.0, 2.0], [True, False, False, False, False]) == pytest.approx(
        -0.9 * np.sqrt(2), rel=1e-15
    )


@pytest.mark.parametrize("pairs", [3, 7, 30, 49])
def test_without_any_spread_rounding_is_none(pairs):
    for genuine, impostor in np.random.default_rng(0).random((20, 2)):
        with pytest.raises(ValueError, match="scores: expected a spread"):
            mv.d_prime(np.repeat([genuine, impostor], pairs), np.arange(2 * pairs) < pairs)


def assert_same(ours, other):
    ours, other = (x if isinstance(x, tuple) else (x,) for x in (ours, other))
    for a, b in zip(ours, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("case", ["distinct", "many ties", "huge and tiny"])
def test_counts_stand_for_their_pairs(name, case):
    pairs = CASES[case]
    counts = mv.count(*pairs)
    assert_same(METRICS[name](*pairs), METRICS[name](counts))
    order = np.random.default_rng(0).permutation(len(pairs[0]))
    assert_same(METRICS[name](*pairs), METRICS[name](*(x[order] for x in pairs)))
    narrow = mv.Counts(counts.scores, counts.same.astype(np.int32), jnp.asarray(counts.different))
    assert_same(METRICS[name](*pairs), METRICS[name](narrow))


@pytest.mark.parametrize("name", [*METRICS, "kfold_accuracy"])
def test_every_real_dtype_is_taken_as_it_is(name):
    """In float64 there is no other number than the one that came."""
    metric = METRICS.get(name, mv.kfold_accuracy)
    scores, same = CASES["distinct"]
    single = scores.astype(np.float32)
    for came in (single, jnp.asarray(single), single.astype(np.float16), jnp.asarray(single, jnp.bfloat16)):
        assert_same(metric(came, jnp.asarray(same)), metric(np.asarray(came).astype(np.float64), same))
    assert_same(metric(scores.tolist(), same.tolist()), metric(scores, same))
    whole = np.round(10 * scores).astype(np.int8)
    assert_same(metric(whole, same), metric(whole.astype(np.float64), same))
    for integers in (whole.astype(np.int64) + 2**52, (whole.astype(int) + 100).astype(np.uint64)):
        assert_same(metric(integers, same), metric(integers.astype(np.float64), same))


def test_float32_scores_are_grouped_as_they_are():
    """One unit in the last place apart they are different; the average of neighbours is a float64 between them."""
    high = np.float32(0.7)
    scores = np.array([high, np.nextafter(high, np.float32(0))])
    accuracy, threshold = mv.best_accuracy(scores, [True, False])
    assert accuracy == 1.0
    assert scores[1].item() < threshold < scores[0].item()


def test_many_pairs():
    random = np.random.default_rng(8)
    same = random.random(200_000) < 0.01
    scores = random.normal(size=200_000).astype(np.float32) + 2 * same.astype(np.float32)
    counts = mv.count(scores, same)
    far, tar, thresholds = sklearn.metrics.roc_curve(same, scores, drop_intermediate=False)
    for ours, theirs in zip(mv.roc(counts), (far, tar, thresholds), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert mv.auc(counts) == pytest.approx(sklearn.metrics.auc(far, tar), rel=1e-12)
    assert mv.eer(counts) == pytest.approx(np.interp(0, far + tar - 1, far), rel=1e-9)
    assert mv.tar_at_far(counts, far=1e-4) == tar[far <= 1e-4].max()
    assert mv.best_accuracy(counts).accuracy == pytest.approx(
        np.max(tar * same.mean() + (1 - far) * (1 - same.mean())), rel=1e-12
    )


def test_more_pairs_than_fit_any_array():
    """10^9 genuine and 10^12 impostor pairs, whose product exceeds int64."""
    counts = mv.Counts(
        [0.9, 0.6, 0.5, 0.1], [5 * 10**8, 4 * 10**8, 10**8 - 1, 1], [1, 10**8, 10**11, 9 * 10**11 - 10**8 - 1]
    )
    genuine, impostor = ([int(n) for n in c] for c in (counts.same, counts.different))
    wins = sum(Fraction(n) * (2 * sum(genuine[:i]) + genuine[i]) for i, n in enumerate(impostor))
    total_genuine, total_impostors = sum(genuine), sum(impostor)
    assert mv.auc(counts) == pytest.approx(float(wins / (2 * total_genuine * total_impostors)), rel=1e-14)
    # On the line from (1 + 10^8, 9 10^8) to (1 + 10^8 + 10^11, 10^9 - 1)
    f0, m0 = Fraction(impostor[0] + impostor[1], total_impostors), Fraction(genuine[2] + 1, total_genuine)
    f1, m1 = f0 + Fraction(impostor[2], total_impostors), Fraction(1, total_genuine)
    assert mv.eer(counts) == float(f0 + (f1 - f0) * (m0 - f0) / (m0 - f0 + f1 - m1))
    np.testing.assert_array_equal(mv.tar_at_far(counts, far=[0.0, 1e-12, 1e-3, 0.2]), [0.0, 0.5, 0.9, 1 - 1e-9])
    with pytest.raises(
        ValueError, match=r"far: 5e-13 cannot be measured, .* of the 1000000000000 impostor pairs is 1e-12"
    ):
        mv.tar_at_far(counts, far=5e-13)


def test_counts_by_bins_are_exact_at_the_edges():
    scores, same = random_pairs(9, pairs=500)
    counts = mv.count(np.floor(scores * 4) / 4, same)
    far, tar, thresholds = mv.roc(counts)
    np.testing.assert_array_equal(far, [np.mean(scores[~same] >= t) for t in thresholds])
    np.testing.assert_array_equal(tar, [np.mean(scores[same] >= t) for t in thresholds])


S, Y = random_pairs(10, pairs=20)
C = mv.count(S, Y)


def with_value(index, value):
    broken = S.copy()
    broken[index] = value
    return broken


def in_jax(scores):
    with jax.debug_nans(False):
        return jnp.asarray(scores)


WRONG = {
    "nan": (lambda: mv.eer(with_value([3, 7], np.nan), Y), ValueError, "scores: .*came nan at index 3; 2 of 20 are"),
    "infinite": (lambda: mv.roc(with_value(19, -np.inf), Y), ValueError, "scores: .*came -inf at index 19; 1 of 20"),
    "jax nan": (lambda: mv.auc(in_jax(with_value(0, np.nan)), Y), ValueError, "scores: .*came nan at index 0"),
    "no impostor": (lambda: mv.auc(S, Y | True), ValueError, "same: expected .*came 20 genuine and 0 impostor pairs"),
    "no genuine": (lambda: mv.det(S, Y & False), ValueError, "same: expected .*came 0 genuine and 20 impostor pairs"),
    "no pair": (lambda: mv.eer(S[:0], Y[:0]), ValueError, "same: expected .*came 0 genuine and 0 impostor pairs"),
    "counts of one kind": (lambda: mv.eer(mv.count(S, Y | True)), ValueError, "same: .*came 20 genuine and 0 impostor"),
    "matrix": (lambda: mv.roc(S[:, None], Y), ValueError, r"scores: expected shape \[N\], came \(20, 1\)"),
    "number": (lambda: mv.roc(0.5, True), ValueError, r"scores: expected shape \[N\], came \(\)"),
    "lengths": (lambda: mv.roc(S, Y[1:]), ValueError, r"same: expected shape \[N\] = \(20,\), as scores, came \(19,\)"),
    "not broadcast": (lambda: mv.roc(S, Y[:1]), ValueError, r"same: expected shape .*, came \(1,\)"),
    "labels": (lambda: mv.roc(S, Y.astype(int)), TypeError, r"same: expected booleans, came int64.*astype\(bool\)"),
    "same, real": (lambda: mv.roc(S, Y * 1.0), TypeError, "same: expected booleans, came float64"),
    "same, missing": (lambda: mv.roc(S), TypeError, r"same: expected \[N\] booleans, .*came None"),
    "complex": (lambda: mv.roc(S + 0j, Y), TypeError, "scores: expected real numbers .*came complex128"),
    "booleans": (lambda: mv.roc(Y, Y), TypeError, "scores: expected real numbers .*came bool"),
    "text": (lambda: mv.roc(["a"] * 20, Y), TypeError, "scores: expected real numbers .*came <U1"),
    "objects": (lambda: mv.roc([None] * 20, Y), TypeError, "scores: expected real numbers .*came object"),
    "ragged": (lambda: mv.roc([[1.0], 2.0], Y), TypeError, "scores: expected an array .*came list"),
    "long double": (lambda: mv.roc(S.astype(np.longdouble), Y), TypeError, "scores: .*at most 64 bits, came"),
    "wide integers": (lambda: mv.roc(np.arange(20) + 2**53, Y), ValueError, r"scores: .*at most 2\^53"),
    "wide negatives": (lambda: mv.roc(-np.arange(20) - 2**53, Y), ValueError, r"scores: .*at most 2\^53"),
    "wide unsigned": (lambda: mv.roc(np.arange(20, dtype="u8") + 2**63, Y), ValueError, r"scores: .*at most 2\^53"),
    "counts and same": (lambda: mv.roc(C, Y), TypeError, "same: expected none, as Counts hold it"),
    "far in place of same": (lambda: mv.tar_at_far(C, 0.1), TypeError, "same: expected none, .*by keyword: far=1e-3"),
    "counts, ties": (lambda: mv.roc(mv.Counts([1.0, 1.0], [1, 1], [1, 1])), ValueError, "scores.scores: .*distinct"),
    "counts, rising": (lambda: mv.roc(mv.Counts([1.0, 2.0], [1, 1], [1, 1])), ValueError, "scores.scores: .*highest"),
    "counts, nan": (lambda: mv.roc(mv.Counts([np.nan], [1], [1])), ValueError, "scores.scores: .*came nan at index 0"),
    "counts, shape": (lambda: mv.roc(mv.Counts([2.0, 1.0], [1, 1], [1])), ValueError, r"scores.diff.*came \(1,\)"),
    "counts, real": (lambda: mv.roc(mv.Counts([2.0], [1.0], [1])), TypeError, "scores.same: .*came float64"),
    "counts, negative": (lambda: mv.roc(mv.Counts([2.0], [1], [-1])), ValueError, "scores.different: .*>= 0, came -1"),
    "far, missing": (lambda: mv.tar_at_far(S, Y), TypeError, "far: expected a real number .*came None"),
    "far, above": (lambda: mv.tar_at_far(S, Y, 1.01), ValueError, "far: expected .*<= 1, came 1.01"),
    "far, below": (lambda: mv.tar_at_far(S, Y, [0.5, -0.1]), ValueError, "far: expected .*>= 0.*came -0.1 among 2"),
    "far, nan": (lambda: mv.threshold_at_far(S, Y, np.nan), ValueError, "far: expected a finite number"),
    "far, small": (lambda: mv.tar_at_far(S, Y, [0.5, 1e-3]), ValueError,
                   "far: 0.001 cannot be measured, as a single one of the 13 impostor pairs is 0.0769230"),
    "far, small too": (lambda: mv.tar_at_far(S, Y, 0.07, interpolation="nearest"), ValueError, "far: 0.07 cannot"),
    "interpolation": (lambda: mv.tar_at_far(S, Y, 0.1, interpolation="linear"), ValueError,
                      "interpolation: expected one of 'strict', 'nearest', came 'linear'"),
    "p, 0": (lambda: mv.min_dcf(S, Y, 0.0), ValueError, "p_target: expected .*> 0, came 0.0"),
    "p, 1": (lambda: mv.min_dcf(S, Y, 1), ValueError, "p_target: expected a probability below 1, came 1"),
    "p, percent": (lambda: mv.min_dcf(S, Y, 5), ValueError, "p_target: .*came 5. Are these percent"),
    "p, two": (lambda: mv.min_dcf(S, Y, [0.1, 0.2]), TypeError, "p_target: expected one number"),
    "cost": (lambda: mv.min_dcf(S, Y, cost_miss=0), ValueError, "cost_miss: expected .*> 0, came 0"),
    "other cost": (lambda: mv.min_dcf(S, Y, cost_false_accept=np.inf), ValueError, "cost_false_accept: .*a finite"),
    "one fold": (lambda: mv.kfold_accuracy(S, Y, 1), ValueError, "folds: expected .*>= 2, came 1"),
    "half a fold": (lambda: mv.kfold_accuracy(S, Y, 2.5), ValueError, "folds: expected a whole number"),
    "too many folds": (lambda: mv.kfold_accuracy(S, Y, 21), ValueError, "folds: expected at most .* 20 pairs, came 21"),
    "fold of each": (lambda: mv.kfold_accuracy(S, Y, np.zeros(19, int)), ValueError, r"folds: .*shape .*\(19,\)"),
    "the same fold": (lambda: mv.kfold_accuracy(S, Y, np.zeros(20, int)), ValueError, "folds: .*two or more, came 1"),
    "real folds": (lambda: mv.kfold_accuracy(S, Y, np.zeros(20)), TypeError, "folds: .*integers, came float64"),
    "sorted": (lambda: mv.kfold_accuracy(S, np.arange(20) < 10, 2), ValueError,
               "same: .*came 0 genuine and 10 impostor pairs outside of fold 0, to choose its threshold on. Mix"),
    "sorted, named": (lambda: mv.kfold_accuracy(S, np.arange(20) >= 10, np.arange(20) // 10 + 7), ValueError,
                      "same: .*came 10 genuine and 0 impostor pairs outside of fold 7"),
    "counts, folds": (lambda: mv.kfold_accuracy(C, None), TypeError, "scores: expected .* pairs, came Counts"),
    "empty grid": (lambda: mv.kfold_accuracy(S, Y, grid=[]), ValueError, "grid: expected one threshold at least"),
    "grid, nan": (lambda: mv.kfold_accuracy(S, Y, grid=[0.0, np.nan]), ValueError, "grid: .*came nan at index 1"),
    "grid, matrix": (lambda: mv.kfold_accuracy(S, Y, grid=[[0.0]]), ValueError, r"grid: expected shape \[M\]"),
    "no spread": (lambda: mv.d_prime(np.where(Y, 0.1, 0.3), Y), ValueError, "scores: expected a spread"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_has_no_rate_is_refused(name):
    call, error, words = WRONG[name]
    with pytest.raises(error, match="(?s)" + words):
        call()


def test_counts_of_one_kind_are_counts():
    """What has no rate may still be counted; a block of pairs may well hold impostors alone."""
    counts = mv.count([0.5, 0.5], [False, False])
    assert_same(counts, ([0.5], [0], [2]))
    assert_same(mv.count(np.zeros(0), np.zeros(0, bool)), (np.zeros(0),) * 3)
