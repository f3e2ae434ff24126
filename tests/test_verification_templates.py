"""Mirror images and template pooling against their definitions, and what is refused."""

import doctest
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.preprocessing import normalize

import margin_softmax as ms
from margin_softmax.verification import templates as pooling

PLANE = np.random.default_rng(0).normal(size=(4 * 6 * 3, 5)).astype(np.float32)


def embed(pictures):
    """Linear, with another weight for each place in the picture."""
    flat = jnp.asarray(pictures).reshape(len(pictures), -1)
    return flat @ PLANE[: flat.shape[1]]


@pytest.mark.parametrize("shape", [(2, 4, 6), (2, 4, 6, 3), (2, 4, 6, 1)])
def test_mirror_is_along_the_width(shape):
    pictures = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    mirrored = np.stack([np.fliplr(picture) for picture in pictures])  # of one picture: left and right change places
    expected = (pictures.astype(np.float64) + mirrored).reshape(2, -1) @ PLANE[: np.prod(shape[1:])].astype(np.float64)
    both = pooling.with_mirror(embed)
    for got in (both(pictures), jax.jit(both)(pictures), both(mirrored)):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_mirrored_features_are_added_in_float32():
    pictures = np.array([[[256.0, 1.0]]], np.float32)  # 257 is no bfloat16
    got = pooling.with_mirror(lambda p: jnp.asarray(p)[:, 0].astype(jnp.bfloat16))(pictures)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, [[257.0, 257.0]])


def pooled_by_definition(features, media, templates, weights):
    """As the evaluation of IJB-C is written: a loop over templates, and in each over its media."""
    rows, features = [], features.astype(np.float64) * np.asarray(weights, np.float64)[:, None]
    for template in sorted(set(templates.tolist())):
        of_template = [i for i in range(len(features)) if templates[i] == template]
        total = np.zeros(features.shape[1])
        for medium in {int(media[i]) for i in of_template}:
            total += np.mean([features[i] for i in of_template if media[i] == medium], axis=0)
        rows.append(total)
    return normalize(np.array(rows))


def pictures_of(count=60, dtype=np.float32):
    random = np.random.default_rng(2)
    features = (random.normal(size=(count, 5)) * np.geomspace(0.01, 100, count)[:, None]).astype(dtype)
    return features, random.integers(-2, 3, count), random.choice([7, 3, 2**40, -5], count), random.uniform(0, 1, count)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-14), (jnp.bfloat16, 1e-6)])
def test_templates_are_sums_over_media_of_means_over_frames(dtype, tolerance, weighted):
    features, media, templates, weights = pictures_of(dtype=dtype)
    before = features.copy()
    got = pooling.pool_templates(features, media, templates, weights=weights if weighted else None)
    expected = pooled_by_definition(features, media, templates, weights if weighted else np.ones(len(media)))
    np.testing.assert_allclose(got.features, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(got.ids, [-5, 3, 7, 2**40])
    np.testing.assert_array_equal(features, before)
    assert got.features.dtype == (np.float64 if dtype == np.float64 else np.float32)


def test_a_video_counts_as_one_photograph():
    photograph, frame = [3.0, 0.0], [0.0, 4.0]
    x = np.array([photograph, *[frame] * 9], np.float32)
    got = pooling.pool_templates(x, np.array([0] + 9 * [1]), np.zeros(10, int))
    np.testing.assert_allclose(got.features, [[0.6, 0.8]], rtol=1e-7)


@pytest.mark.parametrize(("size", "weight"), [(1e30, 1e10), (1e-30, 1e-30), (1e38, 1.0)])
def test_products_with_weights_are_those_of_float64(size, weight):
    """Here float32 has no room for them."""
    features, media, templates, weights = pictures_of(30)
    features /= 1000
    got = pooling.pool_templates(np.float32(size) * features, media, templates, weights=weight * weights)
    expected = pooled_by_definition(features, media, templates, weights)
    np.testing.assert_allclose(got.features, expected, rtol=1e-6, atol=1e-6)


def test_order_of_pictures_and_one_template_per_picture():
    features, media, templates, weights = pictures_of()
    order = np.random.default_rng(3).permutation(len(media))
    one = pooling.pool_templates(features, media, templates, weights=weights)
    other = pooling.pool_templates(jnp.asarray(features[order]), media[order], templates[order], weights=weights[order])
    np.testing.assert_allclose(one.features, other.features, rtol=1e-6, atol=1e-7)
    alone = pooling.pool_templates(features, media, np.arange(len(media)))
    np.testing.assert_allclose(alone.features, normalize(features.astype(np.float64)), rtol=1e-6)


def test_rows_of_templates():
    got = pooling.pool_templates(*pictures_of()[:3])
    pairs = np.array([[7, -5], [2**40, 3], [7, 7]])
    np.testing.assert_array_equal(got.ids[got.rows(pairs)], pairs)
    with pytest.raises(ValueError, match=r"ids: row \(1, 0\) holds 4, expected one of 4 templates. 2 of 6 are unknown"):
        got.rows(np.array([[7, -5], [4, 3], [2**41, 7]]))
    with pytest.raises(ValueError, match="ids: row 1 holds -6"):
        got.rows(np.array([3, -6]))
    with pytest.raises(TypeError, match="ids: expected integers, came float64"):
        got.rows(np.array([3.0]))
    with pytest.raises(TypeError, match=r"ids: .*outside jit"):
        jax.jit(got.rows)(np.array([3]))


def test_the_rows_of_templates_are_documented_as_functions_are():
    text = inspect.getdoc(pooling.Templates.rows)
    assert all(f"\n{section}:\n" in text for section in ("Args", "Returns", "Raises", "Example"))
    names = {"ms": ms, "np": np}
    (example,) = doctest.DocTestFinder().find(pooling.Templates.rows, "rows", globs=names)
    assert doctest.DocTestRunner().run(example) == (0, 2)


X, MEDIA, TEMPLATES, WEIGHTS = pictures_of(6)
PICTURES = np.ones((2, 4, 6), np.float32)


def pool(x=X, media=MEDIA, templates=TEMPLATES, weights=WEIGHTS):
    return pooling.pool_templates(x, media, templates, weights=weights)


def mirror(function, pictures):
    return pooling.with_mirror(function)(pictures)


OPPOSITE = np.array([[1.0, 2.0], [-1.0, -2.0], [3.0, 4.0], [0.0, 0.0]], np.float32)
WRONG = {
    "opposite": (lambda: pool(OPPOSITE, np.arange(4), np.array([7, 7, 8, 8]), None), ValueError,
                 "features: those of template 7 add up to zero.* 1 of 2 templates"),
    "zeros": (lambda: pool(OPPOSITE, np.arange(4), np.array([7, 8, 8, 9]), None), ValueError,
              "template 9 add up to zero"),
    "no weight": (lambda: pool(weights=0 * WEIGHTS), ValueError, "add up to zero"),
    "rounding": (lambda: pool(np.array([[0.1], [0.2], [-0.3]]), np.arange(3), np.zeros(3, int), None), ValueError,
                 "template 0 add up to zero"),
    "long": (lambda: pool(np.array([[1e200], [1.0]]), np.arange(2), np.array([7, 8]), None), ValueError,
             "features: those of template 7, .* too long for float64. 1 of 2 templates are so. Divide"),
    "long in all": (lambda: pool(np.full((2, 1), 1e154), np.arange(2), np.zeros(2, int), None), ValueError, "too long"),
    "long by weight": (lambda: pool(np.full((1, 2), 1e300), np.zeros(1, int), np.zeros(1, int), np.array([1e10])),
                       ValueError, "features: those of template 0, times their weights, are too long"),
    "NaN": (lambda: pool(np.where(np.arange(6)[:, None] == 4, np.nan, X)), ValueError,
            "features: row 4 .*not finite.* 1 of 6"),
    "no pictures": (lambda: pool(X[:0], MEDIA[:0], TEMPLATES[:0]), ValueError, "features: .*at least one row"),
    "one picture": (lambda: pool(X[0]), ValueError, r"features: expected shape \[rows, D\], came \(5,\)"),
    "whole": (lambda: pool(X.astype(int)), TypeError, "features: expected real floating point numbers, came int"),
    "media": (lambda: pool(media=MEDIA[:3]), ValueError, r"media: expected shape \[rows\] = \(6,\), came \(3,\)"),
    "templates": (lambda: pool(templates=TEMPLATES * 1.0), TypeError, "templates: expected integers, came float64"),
    "large": (lambda: pool(media=np.full(6, 2**64 - 1, np.uint64)), ValueError, "media: .* int64 can hold"),
    "weights": (lambda: pool(weights=WEIGHTS[:1]), ValueError, r"weights: expected shape \[N\] = \(6,\), came \(1,\)"),
    "negative": (lambda: pool(weights=WEIGHTS - WEIGHTS[3] - 1e-3), ValueError, "weights: row .*expected numbers >= 0"),
    "infinite": (lambda: pool(weights=WEIGHTS + np.inf), ValueError, "weights: .* came inf at index 0; 6 of 6"),
    "no function": (lambda: pooling.with_mirror(X), TypeError, "embed: expected a function"),
    "channels first": (lambda: mirror(embed, np.ones((2, 3, 4, 6))), ValueError,
                       "pictures: .*channels look to be first"),
    "a colour picture": (lambda: mirror(embed, np.ones((4, 6, 3))), ValueError, r"pictures: .*one picture.*\[None\]"),
    "flat": (lambda: mirror(embed, np.ones((2, 24))), ValueError, r"pictures: expected .* came \(2, 24\)"),
    "a list": (lambda: mirror(embed, [PICTURES]), TypeError, "pictures: expected an array, came list"),
    "with state": (lambda: mirror(lambda p: (embed(p), {}), PICTURES), TypeError, r"embed\(pictures\): .*came tuple"),
    "a pair": (lambda: mirror(lambda p: (embed(p), embed(p)), PICTURES), ValueError, "embed.*: expected shape"),
    "pooled": (lambda: mirror(lambda p: embed(p)[:1], PICTURES), ValueError, r"\[N, D\] for N = 2, came \(1, 5\)"),
    "integers": (lambda: mirror(lambda p: embed(p).astype(int), PICTURES), TypeError, "expected real floating point"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_pooled_is_refused(name):
    call, error, words = WRONG[name]
    with pytest.raises(error, match="(?s)" + words):
        call()
