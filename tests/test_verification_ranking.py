"""Identification and retrieval against their definitions, against scikit-learn, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import NearestNeighbors

from margin_softmax.verification import ranking


def spread(count, people, seed=0, dim=8):
    """Features of some people, near their own directions, at lengths from 1e-3 to 1e3; no two cosines are equal."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.resize(np.arange(people), count))
    features = random.normal(size=(people, dim))[labels] + 0.9 * random.normal(size=(count, dim))
    return (features * np.geomspace(1e-3, 1e3, count)[:, None]).astype(np.float32), labels


def lattice(count, people, seed=0):
    """Four of eight coordinates are 1 or -1: cosines are quarters, mostly tied, and products are whole numbers."""
    random = np.random.default_rng(seed)
    kept = random.permuted(np.tile([1, 1, 1, 1, 0, 0, 0, 0], (count, 1)), axis=1)
    return (kept * random.choice([-1, 1], size=(count, 8))).astype(np.float32), random.integers(people, size=count)


def cosines_of(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def ranks_by_definition(scores, labels, known):
    for row, label in zip(scores, labels, strict=True):
        best = max(row[i] for i in range(len(row)) if known[i] == label)
        yield 1 + sum(row[j] >= best for j in range(len(row)) if known[j] != label)


def retrieval_by_definition(scores, labels):
    """Of each query, what it finds in falling order of scores; among equal ones those of other labels come first."""
    results = []
    for query, label in enumerate(labels):
        rest = [i for i in range(len(labels)) if i != query]
        relevant = [labels[i] == label for i in sorted(rest, key=lambda i: (-scores[query, i], labels[i] == label))]
        wanted = sum(relevant)
        if wanted:
            precisions = [sum(relevant[: i + 1]) / (i + 1) for i in range(wanted) if relevant[i]]
            results.append((relevant[0], sum(relevant[:wanted]) / wanted, sum(precisions) / wanted))
    return (*np.mean(results, axis=0), len(results))


@pytest.mark.parametrize("block_size", [7, None])
def test_identification_is_its_definition(block_size):
    """Blocks that are ragged on both sides, and a single one."""
    x, labels = spread(61, people=9)
    scores = cosines_of(x[:29], x[29:])
    expected = list(ranks_by_definition(scores, labels[:29], labels[29:]))
    assert 1 < len(set(expected)) < 20
    got = ranking.identification(x[:29], labels[:29], x[29:], labels[29:], ranks=range(1, 40), block_size=block_size)
    np.testing.assert_array_equal(got, [np.mean(np.array(expected) <= k) for k in range(1, 40)])
    alone = ranking.identification(
        x[:29], np.zeros(29, int), x[29:], np.zeros(32, int), ranks=range(1, 40), block_size=block_size
    )
    assert (alone == 1).all()


def test_one_row_per_person_is_the_top_k_accuracy_of_scikit_learn():
    x, labels = spread(90, people=30, dim=5)
    first = np.array([np.flatnonzero(labels == person)[0] for person in range(30)])
    scores = cosines_of(x, x[first])
    got = ranking.identification(x, labels + 2**40, x[first], np.arange(30) + 2**40, ranks=(1, 2, 5, 30), block_size=32)
    expected = [top_k_accuracy_score(labels, scores, k=k, labels=np.arange(30)) for k in (1, 2, 5)]
    np.testing.assert_allclose(got, [*expected, 1.0], rtol=1e-15)
    assert 0.3 < got[0] < got[1] < got[2] < 1


def test_ties_count_against_the_probe():
    x, labels = lattice(80, people=6)
    scores = x[:40] @ x[40:].T
    expected = np.array(list(ranks_by_definition(scores, labels[:40], labels[40:])))
    got = ranking.identification(x[:40], labels[:40], x[40:], labels[40:], ranks=(1, 3, 9), block_size=5)
    np.testing.assert_array_equal(got, [np.mean(expected <= k) for k in (1, 3, 9)])
    best_of_own = np.where(labels[:40, None] == labels[40:], scores, -np.inf).max(axis=1)
    assert got[0] < np.mean(best_of_own == scores.max(axis=1))


@pytest.mark.parametrize("block_size", [16, None])
@pytest.mark.parametrize("make", [spread, lattice])
def test_retrieval_is_its_definition(make, block_size):
    """Classes of one member, of a few and of many, with ties and without."""
    x, _ = make(70, people=12)
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(-7, 3), [1, 1, 1, 3, 3, 4, 4, 12, 16, 25]))
    scores = x @ x.T if make is lattice else cosines_of(x, x)
    expected = retrieval_by_definition(scores, labels)
    got = ranking.retrieval(x, labels, block_size=block_size)
    np.testing.assert_allclose(got, expected, rtol=1e-14)
    assert got.queries == 67
    assert all(0 < score < 1 for score in got[:3])


def test_retrieval_finds_the_neighbours_of_scikit_learn():
    x, labels = spread(60, people=15)
    _, nearest = NearestNeighbors(n_neighbors=3, metric="cosine").fit(x.astype(np.float64)).kneighbors()
    hits = labels[nearest] == labels[:, None]
    precisions = np.cumsum(hits, axis=1) / [1, 2, 3]
    expected = np.mean(hits[:, 0]), np.mean(hits), np.mean(precisions * hits), 60
    np.testing.assert_allclose(ranking.retrieval(x, labels), expected, rtol=1e-14)


def test_a_network_that_has_collapsed_finds_nobody():
    """Everybody in one direction, at different lengths: what is left between their cosines is rounding. Or all zero."""
    random = np.random.default_rng(0)
    one = (random.normal(size=512) * random.uniform(0.1, 9, (150, 1))).astype(np.float32)
    directions = one / np.linalg.norm(one, axis=1, keepdims=True)
    assert np.ptp(directions @ directions.T) > 0
    for x in (one, 0 * one):
        rates = ranking.identification(x[:50], np.arange(50), x[50:], np.arange(100), ranks=(1, 99, 100))
        assert rates.tolist() == [0, 0, 1]
        assert ranking.retrieval(x, np.arange(150) // 2)[:3] == (0.0, 0.0, 0.0)


def test_cosines_that_differ_by_more_than_rounding_are_no_tie():
    near, far = np.array([[1.0, 0.0]], np.float32), np.array([[1.0, 2e-3]], np.float32)  # 2e-6 below
    gallery = np.concatenate([near, far])
    assert ranking.identification(near, np.array([1]), gallery, np.array([1, 2]), ranks=(1,)) == 1
    assert ranking.identification(near, np.array([2]), gallery, np.array([1, 2]), ranks=(1,)) == 0


def test_float64_resolves_what_float32_does_not():
    probe, gallery = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 1e-6]])
    with jax.enable_x64(True):
        assert ranking.identification(probe, np.array([1]), gallery, np.array([1, 2]), ranks=(1,)) == 1
    assert ranking.identification(probe, np.array([1]), gallery, np.array([1, 2]), ranks=(1,)) == 0


def test_bfloat16_features_are_compared_in_float32():
    x, labels = spread(70, people=14)
    rounded = jnp.asarray(x).astype(jnp.bfloat16)
    wide = np.asarray(rounded.astype(jnp.float32))
    expected = retrieval_by_definition(cosines_of(wide, wide), labels)
    np.testing.assert_allclose(ranking.retrieval(rounded, labels), expected, rtol=1e-14)


@pytest.mark.optimised
def test_memory_is_that_of_a_block():
    """Of 64 queries before a gallery of a million, all cosines would be 2^28 bytes."""
    rows, known = np.arange(64, dtype=np.int32), jax.ShapeDtypeStruct((2**20,), jnp.int32)
    features, gallery = (jax.ShapeDtypeStruct((count, 8), jnp.float32) for count in (1000, 2**20))
    lowered = ranking._ahead.lower(features, rows, rows, rows, gallery, known, size=64, own=4, most=8)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 2**18


X, Y = spread(6, people=3)
WITH_NAN = np.where(np.arange(6)[:, None] == 4, np.nan, X)
WRONG = {
    "unknown": (lambda: ranking.identification(X, Y, X[Y > 0], Y[Y > 0]), ValueError,
                r"labels: row \d holds 0, .* 2 of 6 probes"),
    "dimensions": (lambda: ranking.identification(X, Y, X[:, :3], Y), ValueError, r"gallery: .*\[rows, 8\]"),
    "rank 0": (lambda: ranking.identification(X, Y, X, Y, ranks=(0, 1)), ValueError, "ranks: .* >= 1, came 0"),
    "half a rank": (lambda: ranking.identification(X, Y, X, Y, ranks=(1.5,)), ValueError, "ranks: .*whole"),
    "one rank": (lambda: ranking.identification(X, Y, X, Y, ranks=5), TypeError, "ranks: expected a sequence"),
    "no rank": (lambda: ranking.identification(X, Y, X, Y, ranks=()), TypeError, "ranks: expected a sequence"),
    "gallery labels": (lambda: ranking.identification(X, Y, X, Y[:3]), ValueError,
                       r"gallery_labels: .*\(6,\), came \(3,\)"),
    "gallery NaN": (lambda: ranking.identification(X, Y, WITH_NAN, Y), ValueError, "gallery: row 4 .* 1 of 6"),
    "block": (lambda: ranking.retrieval(X, Y, block_size=0), ValueError, "block_size: .* >= 1 .*came 0"),
    "NaN": (lambda: ranking.retrieval(WITH_NAN, Y), ValueError, "features: row 4 .*not finite.* 1 of 6"),
    "infinity": (lambda: ranking.retrieval(np.where(X > 1, np.inf, X), Y), ValueError, "features: row .*finite"),
    "all alone": (lambda: ranking.retrieval(X, np.arange(6)), ValueError, "labels: expected two .* came 6 labels"),
    "one": (lambda: ranking.retrieval(X[:1], Y[:1]), ValueError, "labels: expected two"),
    "none": (lambda: ranking.retrieval(X[:0], Y[:0]), ValueError, "features: expected at least one row"),
    "names": (lambda: ranking.retrieval(X, Y.astype(str)), TypeError, "labels: expected integers.*return_inverse"),
    "reals": (lambda: ranking.retrieval(X, Y * 1.0), TypeError, "labels: expected integers, came float64"),
    "booleans": (lambda: ranking.retrieval(X, Y > 0), TypeError, "labels: expected integers, came bool"),
    "too large": (lambda: ranking.retrieval(X, Y.astype(np.uint64) + 2**63), ValueError, "labels: .* int64"),
    "columns": (lambda: ranking.retrieval(X, Y[:, None]), ValueError, r"labels: .* came \(6, 1\)"),
    "rank": (lambda: ranking.retrieval(X[0], Y), ValueError, r"features: expected shape \[rows, D\]"),
    "whole": (lambda: ranking.retrieval(X.astype(int), Y), TypeError, "features: expected real floating"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_ranked_is_refused(name):
    call, error, words = WRONG[name]
    with pytest.raises(error, match="(?s)" + words):
        call()
