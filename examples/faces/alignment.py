"""Five-point alignment: a face is turned, scaled and moved until eyes, nose and mouth lie where a template has them.

Points are (x, y) in pixels, x to the right and y down; (0, 0) is the *centre* of the first pixel, as OpenCV has it
and as the template was made. They stand in the order of the template: the eye on the left of the picture, the eye on
its right, the tip of the nose, the corner of the mouth on the left, the corner on the right.
"""

import numpy as np
from numpy.typing import ArrayLike

POINTS = "the eyes, the nose, the corners of the mouth, left before right as the picture shows them"

TEMPLATE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where a picture of 112 x 112 has the five points (x, y): of ArcFace's code, and of most aligned data since."""
TEMPLATE_112.setflags(write=False)

NEGLIGIBLE = 1e-3
"""Of the extent of five points: a distance that landmarks found in a picture always exceed."""


def template(size: tuple[int, int] = (112, 112)) -> np.ndarray:
    """Where aligned pictures of one of the usual sizes have the five points.

    At 112 x 96 the template of 112 x 112 loses 8 columns on each side. At 128 x 128 it is moved 8 pixels to the
    right, and not down: so the usual data have it. For multiples of the two squares it is magnified.

    Args:
      size: (H, W): (112, 112), (128, 128), a multiple of either, or (112, 96).

    Returns:
      float64 `[5, 2]`, (x, y) in pixels.

    Raises:
      ValueError: for another size there is no convention.

    Example:
      >>> template((112, 96))[0]
      array([30.2946, 51.6963])
    """
    height, width = size
    if (height, width) == (112, 96):
        return TEMPLATE_112 - np.array([8.0, 0.0])
    if height == width and height > 0 and height % 112 == 0:
        return TEMPLATE_112 * (height / 112)
    if height == width and height > 0 and height % 128 == 0:
        return (TEMPLATE_112 + np.array([8.0, 0.0])) * (height / 128)
    raise ValueError(
        f"size: expected (112, 112), (128, 128), a multiple of either, or (112, 96), came {size}. "
        "Align to one of these and resize, or give `similarity` a template of your own."
    )


def similarity(points: ArrayLike, template: ArrayLike = TEMPLATE_112) -> np.ndarray:
    """The rotation, scale and shift that bring `points` nearest to `template`, in the sense of least squares.

    It is `A p + t` with `A = s R`: `R = U V^T` from the singular values of the covariance of the two, and
    `s = sum of the singular values / variance of the points`. There is no reflection in it.

    Args:
      points: `[5, 2]`, (x, y) in pixels.
      template: `[5, 2]`, where they are to come.

    Returns:
      float64 `[2, 3]`: `[A t]`.

    Raises:
      ValueError: the shape is another one, a number is not finite, the points lie on one line or coincide, or a
        reflection would fit better: the points of left and right are swapped, or the picture is mirrored.

    References:
      S. Umeyama, "Least-squares estimation of transformation parameters between two point patterns", IEEE
      Transactions on Pattern Analysis and Machine Intelligence 13(4), 1991.

    Example:
      >>> similarity(2.0 * TEMPLATE_112 + 10.0).round(6)
      array([[ 0.5,  0. , -5. ],
             [-0. ,  0.5, -5. ]])
    """
    points, template = _five("points", points), _five("template", template)
    centre, target = points.mean(axis=0), template.mean(axis=0)
    u, values, vt = np.linalg.svd((template - target).T @ (points - centre))
    if np.linalg.det(u) * np.linalg.det(vt) < 0:
        raise ValueError(
            f"points: a mirror image of the template fits them better than any rotation: {points.tolist()}. "
            f"Give {POINTS} (and x before y)."
        )
    matrix = values.sum() / np.square(points - centre).sum() * (u @ vt)
    return np.column_stack([matrix, target - matrix @ centre])


def align(picture: np.ndarray, points: ArrayLike, size: tuple[int, int] = (112, 112)) -> np.ndarray:
    """The face in `picture`, aligned to the template of `size`; what lies outside the picture is black.

    Interpolation is bilinear, as in the tools that the usual data were aligned with: it samples, so a face that is
    several times larger than `size` is better reduced first, points and all.

    Args:
      picture: uint8 `[H, W]` or `[H, W, channels]`.
      points: `[5, 2]`, (x, y) in pixels. A face may be cut by the border, so some may lie outside.
      size: (H, W), of which there is a `template`.

    Returns:
      uint8 `[*size]`, with the channels of `picture`.

    Raises:
      TypeError, ValueError: of `similarity` and `template`; the picture is not one; or the points cannot be its
        points: their mean lies outside it, or they are less than two pixels apart.
    """
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
        came = getattr(picture, "dtype", type(picture).__name__)
        raise TypeError(f"picture: expected a NumPy array of uint8, came {came}. Tones go from 0 to 255.")
    if picture.ndim not in (2, 3) or 0 in picture.shape:
        raise ValueError(f"picture: expected shape [H, W] or [H, W, channels], came {picture.shape}.")
    matrix = similarity(points, template(size))
    _refuse_foreign_points(_five("points", points), picture.shape[:2])
    x, y = np.meshgrid(np.arange(size[1]), np.arange(size[0]))
    source = np.linalg.solve(matrix[:, :2], np.stack([x.ravel(), y.ravel()]) - matrix[:, 2:])
    return _sampled(picture, source).reshape(*size, *picture.shape[2:])


def _sampled(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """uint8 `[n, ...]`: bilinear between pixels at (x, y) `[2, n]`; black beyond the border."""
    height, width = picture.shape[:2]
    # A black pixel all around; every place beyond it samples black from it.
    framed = np.pad(picture, [(1, 1), (1, 1), *[(0, 0)] * (picture.ndim - 2)]).astype(np.float64)
    x, y = np.clip(places[0] + 1, 0, width + 1), np.clip(places[1] + 1, 0, height + 1)
    column, row = np.minimum(np.floor(x).astype(int), width), np.minimum(np.floor(y).astype(int), height)
    right, down = (part.reshape(-1, *[1] * (picture.ndim - 2)) for part in (x - column, y - row))
    above = (1 - right) * framed[row, column] + right * framed[row, column + 1]
    below = (1 - right) * framed[row + 1, column] + right * framed[row + 1, column + 1]
    return np.rint((1 - down) * above + down * below).astype(np.uint8)


def _five(name: str, points: ArrayLike) -> np.ndarray:
    """Five finite points in general position, as float64 `[5, 2]`."""
    array = np.asarray(points)
    if array.shape != (5, 2):
        raise ValueError(f"{name}: expected shape [5, 2], (x, y) of {POINTS}; came {array.shape}.")
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, came {array.dtype}.")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, came {array.tolist()}. Leave this face out.")
    extent, thickness = np.linalg.svd(array - array.mean(axis=0), compute_uv=False)
    if thickness <= NEGLIGIBLE * extent:
        raise ValueError(f"{name}: they lie on one line, so they are no face: {array.tolist()}. Leave it out.")
    first, second = np.triu_indices(5, k=1)
    near = np.linalg.norm(array[first] - array[second], axis=1) <= NEGLIGIBLE * extent
    if near.any():
        pair = int(np.argmax(near))
        raise ValueError(
            f"{name}: rows {first[pair]} and {second[pair]} are one point, {array[first[pair]].tolist()}. "
            "Five landmarks of a face are apart; leave it out."
        )
    return array


def _refuse_foreign_points(points: np.ndarray, shape: tuple[int, int]) -> None:
    if np.ptp(points, axis=0).max() < 2:
        raise ValueError(
            f"points: they are less than two pixels apart: {points.tolist()}. "
            "They are pixels, not fractions of the picture's size."
        )
    x, y = points.mean(axis=0)
    if not (-0.5 <= x <= shape[1] - 0.5 and -0.5 <= y <= shape[0] - 0.5):
        raise ValueError(
            f"points: their mean, x = {x:.1f} and y = {y:.1f}, lies outside the picture of {shape[0]} rows and "
            f"{shape[1]} columns. Are they points of another picture, or of another size of it?"
        )
