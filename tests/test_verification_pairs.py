"""Scores of pairs: lists against NumPy in float64, counts against integers, over blocks that do not divide the rows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import margin_softmax as ms
from margin_softmax.verification import _inputs
from margin_softmax.verification import pairs as module
from margin_softmax.verification.pairs import all_pairs, as_norm, pair_cosines, pair_counts
from margin_softmax.verification.rates import auc

D = 24
LARGEST, SQUARE = 16, 1024


def whole_rows(count, seed=0):
    """Rows of whole numbers of length 32, whose cosines float32 has exactly, in whatever order they are summed.

    Among them are equal and opposite ones, so cosines of 1 and -1. The largest number is a power of two, and so is the
    length: directions are multiples of 1/32, and cosines of 1/1024.
    """
    random = np.random.default_rng(seed)
    rows = np.zeros((count, D), np.int64)
    rows[:, 0] = LARGEST
    rows[:, 1:9] = random.integers(0, 9, (count, 8))
    for j in range(9, D):
        left = SQUARE - np.square(rows).sum(1)
        rows[:, j] = np.minimum(LARGEST, np.floor(np.sqrt(left)))
    assert (np.square(rows).sum(1) == SQUARE).all()
    rows = random.permuted(rows, axis=1) * random.choice([-1, 1], rows.shape)
    rows[count // 2 :: 3] = rows[0]
    rows[count // 2 + 1 :: 5] = -rows[0]
    return rows


def counted(products, same, bins):
    """Counts from inner products of `whole_rows`, in whole numbers."""
    places = products * (bins // 2) // SQUARE  # rounds down
    scores = np.unique(places)[::-1]
    of_one = [np.sum(places[same] == s) for s in scores]
    of_two = [np.sum(places[~same] == s) for s in scores]
    return scores * 2 / bins, of_one, of_two


def assert_counts(counts, expected):
    for ours, wanted in zip(counts, expected, strict=True):
        np.testing.assert_array_equal(ours, wanted)
    assert [c.dtype for c in counts] == [np.float64, np.int64, np.int64]


N = 53


@pytest.mark.parametrize(("size", "bins"), [(7, 2048), (27, 2), (None, 2**16)])
def test_counts_are_those_of_all_pairs(size, bins):
    """With 2048 bins and more, every cosine lies on an edge: one rounded the wrong way would be in another bin."""
    rows, labels = whole_rows(N), np.random.default_rng(1).integers(-3, 3, N)
    i, j = np.array(list(itertools.combinations(range(N), 2))).T
    expected = counted(np.sum(rows[i] * rows[j], axis=1), labels[i] == labels[j], bins)
    assert expected[0][0] == 1
    assert expected[0][-1] == -1
    assert_counts(pair_counts(rows.astype(np.float32), labels, bins=bins, block_size=size), expected)


@pytest.mark.parametrize(("others", "size"), [(1, 64), (90, 26)])
def test_counts_are_those_of_every_feature_with_every_row_of_the_gallery(others, size):
    rows, gallery = whole_rows(N), whole_rows(others, seed=2)
    labels, gallery_labels = (np.random.default_rng(n).integers(0, 4, n) for n in (N, others))
    expected = counted(rows @ gallery.T, labels[:, None] == gallery_labels, 512)
    counts = pair_counts(
        rows.astype(np.float32), labels, gallery=jnp.asarray(gallery, jnp.bfloat16), gallery_labels=gallery_labels,
        bins=512, block_size=size,
    )  # fmt: skip
    assert_counts(counts, expected)


def random_rows(dtype=np.float32):
    """Directions about some classes, of lengths that overflow when they are squared; and a zero vector."""
    random = np.random.default_rng(3)
    labels = random.integers(0, 12, 150)
    rows = random.normal(size=(12, 64))[labels] + random.normal(size=(150, 64))
    rows *= np.geomspace(1e-30, 1e30, 150)[:, None]
    rows[5] = 0
    return rows.astype(dtype), labels


def expected_cosines(rows, others=None):
    rows, others = (np.asarray(x, np.float64) for x in (rows, rows if others is None else others))
    lengths = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(others, axis=1)
    return np.where(lengths == 0, 0, rows @ others.T / np.where(lengths == 0, 1, lengths))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 1e-6), (np.float32, 1e-6), (np.float64, 1e-14)])
def test_rates_at_the_thresholds_are_those_of_the_cosines(dtype, tolerance):
    """All that separates the two is the rounding of a cosine: no threshold has more, or fewer, pairs above it."""
    rows, labels = random_rows(dtype)
    with jax.enable_x64(dtype == np.float64):
        counts = pair_counts(rows, labels, block_size=64)
    i, j = np.triu_indices(len(rows), 1)
    cosines, same = expected_cosines(rows)[i, j], labels[i] == labels[j]
    for ours, theirs in ((counts.same, np.sort(cosines[same])), (counts.different, np.sort(cosines[~same]))):
        assert ours.sum() == theirs.size
        above = np.cumsum(ours)
        assert (theirs.size - np.searchsorted(theirs, counts.scores + tolerance) <= above).all()
        assert (above <= theirs.size - np.searchsorted(theirs, counts.scores - tolerance)).all()
    assert 0 in counts.scores
    assert (np.diff(counts.scores) < 0).all()


def test_cosines_that_rounding_leaves_outside_count_as_one_and_minus_one():
    rows = np.random.default_rng(5).normal(size=(300, 48)).astype(np.float32)
    assert (ms.cosines(rows, rows).diagonal() > 1).any()
    labels = np.arange(300)
    for sign in (1, -1):
        counts = pair_counts(rows, labels, gallery=sign * rows, gallery_labels=labels, bins=2**16)
        assert counts.same.sum() == 300
        assert counts.different.sum() == 300 * 299
        assert counts.scores[0] <= 1
        assert counts.scores[-1] >= -1
        assert counts.same[counts.scores == sign].sum() > 0


def test_counts_are_what_the_metrics_take():
    rows, labels = whole_rows(N), np.random.default_rng(1).integers(-3, 3, N)
    pairs, same = all_pairs(labels)
    products = np.sum(rows[pairs[:, 0]] * rows[pairs[:, 1]], axis=1)
    counts = pair_counts(rows.astype(np.float32), labels, bins=2**16)
    assert auc(counts) == pytest.approx(roc_auc_score(same, products), abs=1e-12)


def test_one_program_serves_all_blocks():
    rows, labels = whole_rows(N).astype(np.float32), np.zeros(N, int)
    before = module._block_counts._cache_size()
    pair_counts(rows, labels, bins=128, block_size=9)
    assert module._block_counts._cache_size() == before + 1


def test_labels_are_told_apart_at_their_full_width():
    x, every_second = whole_rows(N).astype(np.float32), np.arange(N) % 2
    for two in (np.array([1, 2**32 + 1]), np.array([-1, 2**32 - 1]), np.array([0, 2**63 - 1], np.uint64)):
        counts = pair_counts(x, two[every_second], bins=2**16)
        assert (counts.same.sum(), counts.different.sum()) == (27 * 26 / 2 + 26 * 25 / 2, 27 * 26)
        np.testing.assert_array_equal(all_pairs(two[[0, 1, 0]])[1], [False, True, False])
    one = {"gallery": jnp.ones((1, D), jnp.bfloat16), "gallery_labels": np.array([2], np.uint8)}
    against = pair_counts(x, np.where(every_second, 2, 2**32 + 2), bins=512, **one)
    assert (against.same.sum(), against.different.sum()) == (26, 27)


@pytest.mark.optimised
def test_memory_is_that_of_a_block():
    """Of 10^5 features all scores would be 40 GB; the rows of 10^7 pairs 20 GB a side; cosines to a cohort 6 GB."""
    x = jax.ShapeDtypeStruct((10**5, 512), np.float32)
    ids, starts, pairs = (jax.ShapeDtypeStruct(shape, np.int32) for shape in ((10**5,), (2,), (10**7, 2)))
    cohort = jax.ShapeDtypeStruct((15_000, 512), np.float32)
    size = (_inputs.BLOCK, _inputs.BLOCK)
    lowered = {
        "counts": module._block_counts.lower(x, ids, x, ids, starts, sizes=size, bins=2**16, each_once=True),
        "cosines": module._pair_cosines.lower(x, pairs),
        "cohort": module._nearest_in_cohort.lower(x, ids, cohort, top=300),
    }
    # Some copies of a block; of the pairs, which are no rows, two copies; of the cohort, one.
    block = 4 * _inputs.BLOCK**2
    of_pairs, of_cohort = 2 * 4 * 2 * 10**7, 4 * 15_000 * 512
    limits = {"counts": 5 * block, "cosines": 5 * block + of_pairs, "cohort": 5 * block + of_cohort}
    for name, limit in limits.items():
        assert lowered[name].compile().memory_analysis().temp_size_in_bytes < limit, name


@pytest.mark.parametrize("count", [2, 3, 20])
def test_all_pairs_are_the_combinations(count):
    labels = np.random.default_rng(0).integers(0, 3, count)
    pairs, same = all_pairs(labels)
    expected = np.array(list(itertools.combinations(range(count), 2)))
    np.testing.assert_array_equal(pairs, expected)
    np.testing.assert_array_equal(same, [labels[i] == labels[j] for i, j in expected])
    assert (pairs.dtype, same.dtype) == (np.int32, np.bool_)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "at_once"), [(jnp.bfloat16, 5e-7, 10**4), (np.float32, 5e-7, 100), (np.float64, 1e-14, 1)]
)
def test_cosines_are_those_of_the_pairs(monkeypatch, dtype, tolerance, at_once):
    monkeypatch.setattr(module, "GATHERED", 64 * at_once)
    rows, _ = random_rows(dtype)
    pairs = np.random.default_rng(4).integers(0, len(rows), (350, 2))
    pairs[0] = 5, 7
    with jax.enable_x64(dtype == np.float64):
        cosines = np.asarray(pair_cosines(rows, pairs))
    expected = expected_cosines(rows)[pairs[:, 0], pairs[:, 1]]
    assert cosines[0] == 0
    assert cosines.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_allclose(cosines, expected, rtol=0, atol=tolerance)


def test_a_cosine_of_equal_or_opposite_features_is_exact():
    rows = np.random.default_rng(5).normal(size=(200, 33)).astype(np.float32)
    rows = np.concatenate([rows, 4 * rows, -rows])
    first = np.arange(200)
    np.testing.assert_array_equal(pair_cosines(rows, np.stack([first, first + 200], axis=1)), np.ones(200))
    np.testing.assert_array_equal(pair_cosines(rows, np.stack([first, first + 400], axis=1)), -np.ones(200))


def expected_as_norm(rows, pairs, cohort, top):
    scores = expected_cosines(rows)
    to_cohort = np.sort(expected_cosines(rows, cohort), axis=1)[:, ::-1][:, :top]
    normalised = []
    for i, j in pairs:
        sides = [(scores[i, j] - np.mean(to_cohort[k])) / np.std(to_cohort[k]) for k in (i, j)]
        normalised.append(sum(sides) / 2)
    return np.array(normalised), np.std(to_cohort[np.unique(pairs)], axis=1).min()


@pytest.mark.parametrize(("top", "at_once"), [(30, 8), (70, 10**4)])
def test_as_norm_is_its_formula(monkeypatch, top, at_once):
    monkeypatch.setattr(module, "GATHERED", 70 * at_once)
    rows, _ = random_rows()
    cohort = np.random.default_rng(6).normal(size=(70, 64)).astype(np.float32)
    pairs = np.random.default_rng(7).integers(6, 40, (90, 2))  # none is of row 5, which is zero
    scores = as_norm(rows, pairs, cohort, top=top)
    assert scores.dtype == np.float32
    expected, least_deviation = expected_as_norm(rows, pairs, cohort, top)
    tolerance = 5e-7 / least_deviation  # the rounding of a cosine, in deviations
    np.testing.assert_allclose(scores, expected, rtol=tolerance, atol=tolerance)


def test_as_norm_knows_no_side():
    rows, _ = random_rows()
    cohort = np.random.default_rng(6).normal(size=(70, 64)).astype(np.float32)
    pairs = np.random.default_rng(7).integers(6, 40, (90, 2))
    np.testing.assert_array_equal(as_norm(rows, pairs, cohort, top=30), as_norm(rows, pairs[:, ::-1], cohort, top=30))


def test_no_pairs_have_no_scores():
    none = np.zeros((0, 2), int)
    assert pair_cosines(X, none).shape == (0,)
    assert as_norm(X, none, X, top=2).shape == (0,)


X = np.random.default_rng(8).normal(size=(6, 3)).astype(np.float32)
Y = np.array([0, 0, 1, 1, 2, 2])
P = np.array([[0, 1], [2, 5]])
FLAT = X[:1] * np.geomspace(1, 7, 6, dtype=np.float32)[:, None]  # cosines differ, by their rounding


def with_nan():
    bad = X.copy()
    bad[2, 1], bad[4, 0] = np.nan, np.inf
    with jax.debug_nans(False):
        return jnp.asarray(bad)


WRONG = {
    "too many": (lambda: all_pairs(np.zeros(10_001, int)), ValueError, "at most 50,000,000 pairs, .* Use pair_counts"),
    "one label": (lambda: all_pairs([3]), ValueError, "labels: expected at least two, came 1"),
    "real labels": (lambda: all_pairs(Y * 1.0), TypeError, "labels: expected integers, came float64"),
    "bool labels": (lambda: all_pairs(Y > 0), TypeError, "labels: expected integers, came bool"),
    "label columns": (lambda: all_pairs(Y[:, None]), ValueError, r"labels: expected shape \[rows\], came \(6, 1\)"),
    "ragged labels": (lambda: all_pairs([[1], [2, 3]]), TypeError, "labels: expected an array .*came list"),
    "huge labels": (lambda: all_pairs(np.full(3, 2**63, np.uint64)), ValueError, "labels: .* int64 can hold"),
    "label count": (lambda: pair_counts(X, Y[:5]), ValueError, r"labels: expected shape .*\(6,\), came \(5,\)"),
    "whole features": (lambda: pair_cosines(X.astype(int), P), TypeError, "features: expected real floating point"),
    "one axis": (lambda: pair_cosines(X[0], P), ValueError, r"features: expected shape \[rows, D\], came \(3,\)"),
    "nan": (lambda: pair_cosines(with_nan(), P), ValueError, "features: row 2 holds .* 2 of 6 rows"),
    "nan counted": (lambda: pair_counts(with_nan(), Y), ValueError, "features: row 2 holds .* not finite"),
    "nan gallery": (lambda: pair_counts(X, Y, gallery=with_nan(), gallery_labels=Y), ValueError, "gallery: row 2"),
    "nan cohort": (lambda: as_norm(X, P, with_nan(), top=2), ValueError, "cohort: row 2 holds"),
    "real pairs": (lambda: pair_cosines(X, P * 1.0), TypeError, "pairs: expected integers, came float64"),
    "three": (lambda: pair_cosines(X, np.zeros((4, 3), int)), ValueError, r"pairs: .* \[M, 2\], came \(4, 3\)"),
    "past the end": (lambda: pair_cosines(X, P + 1), ValueError, r"pairs: row 1 holds \(3, 6\), .* 0 to 5 .* 1 of 2"),
    "negative": (lambda: as_norm(X, P - 1, X), ValueError, r"pairs: row 0 holds \(-1, 0\)"),
    "wraps": (lambda: pair_cosines(X, P + 2**32), ValueError, "pairs: row 0 holds .* 2 of 2 pairs"),
    "no labels": (lambda: pair_counts(X, Y, gallery=X), ValueError, "gallery: expected it with gallery_labels"),
    "no gallery": (lambda: pair_counts(X, Y, gallery_labels=Y), ValueError, "gallery: expected it with gallery_labels"),
    "other D": (lambda: pair_counts(X, Y, gallery=X[:, :2], gallery_labels=Y), ValueError,
                r"gallery: expected shape \[rows, 3\] for features \(6, 3\), came \(6, 2\)"),
    "no pair": (lambda: pair_counts(X[:1], Y[:1]), ValueError, "at least one pair, came one row"),
    "empty gallery": (lambda: pair_counts(X, Y, gallery=X[:0], gallery_labels=Y[:0]), ValueError, "gallery: .*one row"),
    "odd bins": (lambda: pair_counts(X, Y, bins=1000), ValueError, "bins: .* power of two, came 1000.* next is 1024"),
    "few bins": (lambda: pair_counts(X, Y, bins=1), ValueError, "bins: .* >= 2"),
    "many bins": (lambda: pair_counts(X, Y, bins=2**25), ValueError, "bins: "),
    "no block": (lambda: pair_counts(X, Y, block_size=0), ValueError, "block_size: .* >= 1"),
    "large block": (lambda: pair_counts(X, Y, block_size=2**16), ValueError, "block_size: .* <= 32768"),
    "cohort D": (lambda: as_norm(X, P, X[:, :2], top=2), ValueError, r"cohort: expected shape \[rows, 3\]"),
    "top of one": (lambda: as_norm(X, P, X, top=1), ValueError, "top: .* >= 2"),
    "top of more": (lambda: as_norm(X, P, X), ValueError, "top: .* <= 6, came 300. The cohort has 6 rows"),
    "flat cohort": (lambda: as_norm(X, P, FLAT, top=4), ValueError, "cohort: the 4 rows nearest to row 0 .* of the 4"),
    "zero feature": (lambda: as_norm(X * (np.arange(6) != 2)[:, None].astype("f"), P, X, top=4), ValueError,
                     "cohort: the 4 rows nearest to row 2 .* 1 of the 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_has_no_score_is_refused(name):
    call, error, words = WRONG[name]
    with pytest.raises(error, match="(?s)" + words):
        call()
