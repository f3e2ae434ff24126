"""Five-point alignment: against the closed form in complex numbers and a numerical minimum, and down to pixels."""

import doctest

import numpy as np
import pytest
from scipy.optimize import minimize

import faces.alignment
from faces.alignment import TEMPLATE_112, align, similarity, template

RANDOM = np.random.default_rng(0)
FACE = TEMPLATE_112 + RANDOM.normal(scale=3.0, size=(5, 2))


def turned(points, degrees, scale, shift):
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * points @ rotation.T + shift


@pytest.mark.parametrize("degrees", [0, 30, -90, 179, 180])
@pytest.mark.parametrize("scale", [0.2, 1, 7.5])
def test_a_known_motion_is_undone(degrees, scale):
    matrix = similarity(turned(TEMPLATE_112, degrees, scale, [-40.0, 1e4]))
    angle = np.radians(-degrees)
    expected = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    np.testing.assert_allclose(matrix[:, :2], expected, atol=1e-12 / scale)
    np.testing.assert_allclose(matrix[:, 2], -expected @ [-40.0, 1e4], rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_least_squares_in_complex_numbers(seed):
    """`w = a z + b` is every similarity without reflection: a linear regression on complex numbers."""
    points = turned(FACE + np.random.default_rng(seed).normal(scale=4.0, size=(5, 2)), 70 * seed, 1.5, [300, 200])
    z, w = points @ [1, 1j], TEMPLATE_112 @ [1, 1j]
    (a, b), *_ = np.linalg.lstsq(np.column_stack([z, np.ones(5)]), w)
    expected = [[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]]
    np.testing.assert_allclose(similarity(points), expected, rtol=1e-9, atol=1e-9)


def test_no_other_similarity_fits_better():
    def error(parameters):
        degrees, scale, *shift = parameters
        return np.square(turned(FACE, degrees, scale, shift) - TEMPLATE_112).sum()

    numerical = minimize(error, [10.0, 0.8, 1.0, 1.0], method="BFGS", options={"gtol": 1e-8})
    matrix = similarity(FACE)
    reached = np.square(FACE @ matrix[:, :2].T + matrix[:, 2] - TEMPLATE_112).sum()
    assert reached == pytest.approx(numerical.fun, rel=1e-9)
    np.testing.assert_allclose(np.hypot(*matrix[:, 0]), numerical.x[1], rtol=1e-5)


def test_templates_of_the_usual_sizes():
    eyes, right = np.array([[38.2946, 51.6963], [73.5318, 51.5014]]), np.array([8, 0])
    np.testing.assert_array_equal(template((112, 112))[:2], eyes)
    np.testing.assert_allclose(template((112, 96))[:2], eyes - right)
    np.testing.assert_allclose(template((128, 128))[:2], eyes + right)
    np.testing.assert_allclose(template((224, 224))[:2], 2 * eyes)
    np.testing.assert_allclose(template((256, 256))[:2], 2 * (eyes + right))


def moved(x, y):
    return TEMPLATE_112 + np.array([x, y])


@pytest.mark.parametrize("size", [(112, 112), (112, 96), (128, 128)])
def test_points_on_the_template_leave_the_pixels(size):
    picture = RANDOM.integers(0, 256, (*size, 3), np.uint8)
    np.testing.assert_array_equal(align(picture, template(size), size), picture)
    np.testing.assert_array_equal(align(picture[..., 0], template(size), size), picture[..., 0])


def test_whole_and_half_pixels_and_black_beyond_the_border():
    picture = RANDOM.integers(1, 256, (112, 112, 1), np.uint8)
    shifted = align(picture, moved(-2, 3))
    np.testing.assert_array_equal(shifted[:-3, 2:], picture[3:, :-2])
    assert not shifted[-3:].any()
    assert not shifted[:, :2].any()
    framed = np.pad(picture[..., 0].astype(float), ((0, 0), (0, 1)))
    halves = (framed[:, :-1] + framed[:, 1:]) / 2
    assert np.abs(align(picture, moved(0.5, 0))[..., 0] - halves).max() <= 0.5


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_quarter_turns_are_exact(degrees):
    """About the middle of the pixels, (55.5, 55.5), where a turn maps pixels onto pixels."""
    picture = RANDOM.integers(0, 256, (112, 112), np.uint8)
    points = turned(TEMPLATE_112 - 55.5, degrees, 1.0, 55.5)
    np.testing.assert_array_equal(align(picture, points), np.rot90(picture, degrees // 90))


def test_a_ramp_stays_a_ramp():
    """Bilinear interpolation keeps a linear picture, so each pixel must have the value of the place it came from."""
    y, x = np.mgrid[:400, :500]
    picture = np.rint((x + 2 * y) / 6).astype(np.uint8)
    aligned = align(picture, turned(TEMPLATE_112, 25, 1.7, [120, 40]))
    rows, columns = np.mgrid[:112, :112]
    from_x, from_y = np.moveaxis(turned(np.stack([columns, rows], axis=-1), 25, 1.7, [120, 40]), -1, 0)
    inside = (from_x >= 0) & (from_x <= 499) & (from_y >= 0) & (from_y <= 399)
    assert inside.mean() > 0.95
    assert np.abs(aligned - (from_x + 2 * from_y) / 6)[inside].max() <= 1.0  # each rounded once, by half a tone
    assert not aligned[(from_x <= -1) | (from_y <= -1)].any()


def test_a_face_cut_by_the_border_is_aligned():
    picture = np.full((112, 112), 200, np.uint8)
    points = moved(-40, 0)
    assert points.min() < 0
    np.testing.assert_array_equal(align(picture, points)[:, 40:], 200)


def swapped(*order):
    return FACE[list(order)]


PICTURE = np.zeros((112, 112), np.uint8)
LINE = np.outer(np.arange(5.0), [3, 4]) + 20
WRONG = {
    "eyes": (lambda: similarity(swapped(1, 0, 2, 3, 4)), ValueError, "a mirror image of the template"),
    "left and right": (lambda: similarity(swapped(1, 0, 2, 4, 3)), ValueError, "left before right"),
    "mirrored": (lambda: similarity(turned(FACE, 40, 2, 5) * [-1, 1]), ValueError, "a mirror image"),
    "y before x": (lambda: similarity(FACE[:, ::-1]), ValueError, "x before y"),
    "nan": (lambda: similarity(np.where(np.arange(5)[:, None] == 2, np.nan, FACE)), ValueError, "finite .* nan"),
    "infinite": (lambda: align(PICTURE, FACE * [1, np.inf]), ValueError, "points: expected finite"),
    "a line": (lambda: similarity(LINE), ValueError, "one line"),
    "nearly a line": (lambda: similarity(LINE + 1e-4 * FACE), ValueError, "one line"),
    "one point": (lambda: similarity(np.ones((5, 2))), ValueError, "one line"),
    "two in one": (lambda: similarity(swapped(0, 1, 2, 3, 3)), ValueError, r"rows 3 and 4 are one point, \["),
    "template": (lambda: similarity(FACE, LINE), ValueError, "template: they lie on one line"),
    "shape": (lambda: similarity(FACE.ravel()), ValueError, r"shape \[5, 2\], .* came \(10,\)"),
    "68 points": (lambda: similarity(np.zeros((68, 2))), ValueError, r"came \(68, 2\)"),
    "text": (lambda: similarity(FACE.astype(str)), TypeError, "real numbers"),
    "another picture": (lambda: align(PICTURE, FACE + 200), ValueError, "mean, x = .* outside .* 112 rows"),
    "fractions": (lambda: align(PICTURE, FACE / 112), ValueError, "not fractions"),
    "size": (lambda: align(PICTURE, FACE, (100, 100)), ValueError, r"size: .* came \(100, 100\)"),
    "no size": (lambda: template((0, 0)), ValueError, "size: expected"),
    "wide": (lambda: template((96, 112)), ValueError, "size: expected"),
    "reals": (lambda: align(PICTURE / 255, FACE), TypeError, "picture: expected .* uint8, came float64"),
    "a list": (lambda: align(PICTURE.tolist(), FACE), TypeError, "came list"),
    "empty": (lambda: align(PICTURE[:0], FACE), ValueError, r"picture: expected shape .* came \(0, 112\)"),
    "a batch": (lambda: align(PICTURE[None, ..., None], FACE), ValueError, "picture: expected shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_face_is_refused(name):
    call, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        call()


def test_docstrings_show_what_is_so():
    failed, attempted = doctest.testmod(faces.alignment)
    assert (failed, attempted) == (0, 2)
