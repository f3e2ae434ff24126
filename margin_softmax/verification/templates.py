"""One feature for several pictures: of a picture and its mirror image, and of all the pictures of a template."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from margin_softmax import _checks, angles
from margin_softmax.verification import _inputs


def with_mirror(embed: Callable[[Any], jax.Array]) -> Callable[[Any], jax.Array]:
    """A network that sees each picture twice: the sum of its features and those of its mirror image.

        x = embed(pictures) + embed(pictures mirrored along their width)

    It is the sum, as in the IJB protocols and InsightFace, and not the two side by side; of opposite features it is 0.
    It runs inside `jit` or outside, as `embed` does.

    Args:
      embed: pictures `[N, H, W]` or `[N, H, W, channels]` -> features `[N, D]`, real.

    Returns:
      A function of the same pictures, to features `[N, D]`, float32, or float64 for float64 features. It refuses
      pictures of other shapes, channels before height and width among them.

    Raises:
      TypeError: `embed` is not callable.

    Example:
      >>> embed = ms.verification.with_mirror(lambda pictures: pictures.reshape(len(pictures), -1))
      >>> embed(jnp.array([[[1.0, 2.0, 3.0, 5.0]]]))
      Array([[6., 5., 5., 6.]], dtype=float32)
    """
    if not callable(embed):
        raise TypeError(f"embed: expected a function of pictures, came {type(embed).__name__}.")

    def embed_both(pictures):
        _refuse_other_pictures(pictures)
        upright = _embedded(embed, pictures)
        mirrored = _embedded(embed, pictures[:, :, ::-1])
        return upright + mirrored

    return embed_both


def _refuse_other_pictures(pictures) -> None:
    shape = getattr(pictures, "shape", None)
    if shape is None:
        raise TypeError(f"pictures: expected an array, came {type(pictures).__name__}. Stack them: `np.stack(...)`.")
    if len(shape) not in (3, 4):
        raise ValueError(f"pictures: expected shape [N, H, W] or [N, H, W, channels], came {shape}.")
    if len(shape) == 3 and shape[2] in (1, 3):
        raise ValueError(f"pictures: expected shape [N, H, W], came {shape}, one picture. Pass `pictures[None]`.")
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        raise ValueError(
            f"pictures: expected shape [N, H, W, channels], came {shape}, whose channels look to be first: these would "
            "be turned upside down. Pass `pictures.transpose(0, 2, 3, 1)`, and transpose back inside embed."
        )


def _embedded(embed, pictures) -> jax.Array:
    features = _checks.real_array("embed(pictures)", embed(pictures))
    letters = f"[N, D] for N = {pictures.shape[0]}"
    _checks.shape("embed(pictures)", features, (pictures.shape[0], None), letters, "Return the features alone.")
    return features.astype(angles.compute_dtype(features))


class Templates(NamedTuple):
    """One feature per template.

    Attributes:
      features: `[T, D]`, of length 1, NumPy.
      ids: of the templates, `[T]` int64, increasing.
    """

    features: np.ndarray
    ids: np.ndarray

    def rows(self, ids: ArrayLike) -> np.ndarray:
        """The rows of templates in `features`, such as those of the pairs of a protocol, for `pair_cosines`.

            rows[...] = the i for which self.ids[i] = ids[...]

        Args:
          ids: of templates, integers of any shape, such as `[N, 2]` for pairs. Concrete.

        Returns:
          Indices into `features`, int64, of the shape of `ids`.

        Raises:
          TypeError: ids are not integers, or are traced.
          ValueError: an id is none of these templates.

        Example:
          >>> pooled = ms.verification.Templates(np.eye(3), np.array([10, 20, 40]))
          >>> pooled.rows([[40, 10], [20, 20]])
          array([[2, 0],
                 [1, 1]])
        """
        _inputs.refuse_traced(ids=ids)
        ids = _inputs.integers("ids", ids, "They are those of `pool_templates`.")
        places = np.searchsorted(self.ids, ids)
        wrong = np.argwhere(self.ids[np.minimum(places, len(self.ids) - 1)] != ids)
        if len(wrong):
            row = tuple(map(int, wrong[0]))
            raise ValueError(
                f"ids: row {row[0] if len(row) == 1 else row} holds {ids[row]}, expected one of {len(self.ids)} "
                f"templates. {len(wrong)} of {ids.size} are unknown."
            )
        return places


def pool_templates(
    features: ArrayLike, media: ArrayLike, templates: ArrayLike, *, weights: ArrayLike | None = None
) -> Templates:
    """One feature of each template: the mean over each medium, then the sum over the media, then its direction.

        x_T = unit(sum over the media m of T of the mean over the pictures i of m in T of w_i x_i)

    So a video of many frames counts as much as one photograph (the protocols of IJB-B and IJB-C). Pictures enter with
    their lengths, which say how clear they are. A medium that has pictures in several templates is a medium of each.
    It runs on the host and multiplies and sums in float64.

    Args:
      features: one row per picture, `[N, D]`, real; those of `with_mirror`, for the IJB protocols. Concrete.
      media: the photograph or video that each is from, `[N]` integers. Concrete.
      templates: the template that each belongs to, `[N]` integers. Concrete.
      weights: of each picture, `[N]`, real, >= 0, such as the detector's score; None for 1. They multiply the features
        and are not divided out: the mean is over the number of pictures.

    Returns:
      Templates(features, ids), one row for each template, in increasing order of its id; float32, or float64 for
      float64 features. `rows` finds those of given ids, for `pair_cosines`.

    Raises:
      TypeError: an argument has the wrong dtype, or is traced.
      ValueError: a shape is wrong, a number is not finite, a weight is negative, or the sum of a template is zero or
        its length too large for float64.

    References:
      Whitelam et al., IARPA Janus Benchmark-B Face Dataset, CVPR Workshops 2017.
      Maze et al., IARPA Janus Benchmark - C: Face Dataset and Protocol, ICB 2018.

    Example:
      >>> frames = np.array([[3.0, 0.0], [5.0, 0.0], [0.0, 3.0], [0.0, 2.0]], np.float32)
      >>> pooled = ms.verification.pool_templates(frames, np.array([1, 1, 2, 3]), np.array([20, 20, 20, 10]))
      >>> pooled.ids
      array([10, 20])
      >>> pooled.features
      array([[0. , 1. ],
             [0.8, 0.6]], dtype=float32)
      >>> pooled.rows(np.array([[20, 10]]))
      array([[1, 0]])
    """
    _inputs.refuse_traced(features=features, media=media, templates=templates, weights=weights)
    features = _pictures(features)
    media = _inputs.ids("media", media, len(features))
    templates = _inputs.ids("templates", templates, len(features))
    order = np.lexsort((media, templates))
    pictures = features[order]
    with np.errstate(over="ignore", invalid="ignore"):  # what is infinite is refused below
        if weights is not None:
            pictures = pictures * _weights(weights, len(features))[order, None]  # float64, as the weights are

        starts = _starts(templates[order], media[order])
        sums = np.add.reduceat(pictures, starts, axis=0, dtype=np.float64)
        means = sums / np.diff(starts, append=len(order))[:, None]
        owners = templates[order][starts]
        starts = _starts(owners)
        totals, ids = np.add.reduceat(means, starts, axis=0), owners[starts]

        lengths = np.linalg.norm(totals, axis=1)
        of_media = np.add.reduceat(np.linalg.norm(means, axis=1), starts)
    _refuse_undirected(lengths, of_media, ids)
    return Templates((totals / lengths[:, None]).astype(features.dtype), ids)


def _refuse_undirected(lengths: np.ndarray, of_media: np.ndarray, ids: np.ndarray) -> None:
    """Templates whose sum has no direction: lengths of the sums, and the lengths that were added, `[T]` each."""
    large = ~(np.isfinite(lengths) & np.isfinite(of_media))
    if large.any():
        raise ValueError(
            f"features: those of template {ids[large][0]}, times their weights, are too long for float64. "
            f"{np.sum(large)} of {len(ids)} templates are so. Divide all features, or all weights, by one number: no "
            "direction changes."
        )
    # What features that cancel leave of their sum is rounding.
    directed = lengths > 1e-12 * of_media
    if not directed.all():
        raise ValueError(
            f"features: those of template {ids[~directed][0]} add up to zero, which has no direction. "
            f"{np.sum(~directed)} of {len(ids)} templates are so: their pictures, or their weights, are zeros, or "
            "cancel each other. Leave these templates out."
        )


def _starts(*keys: np.ndarray) -> np.ndarray:
    """Where sorted keys change: the first of each run."""
    changed = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return np.flatnonzero(np.concatenate([[True], changed]))


def _pictures(value: Any) -> np.ndarray:
    """Features on the host, which has float64 whatever the device does; float32, or float64 if they are."""
    features = _inputs.on_host("features", value)
    _checks.real_dtype("features", features.dtype)
    _inputs.refuse_other_shapes("features", features)
    _inputs.refuse_unfinite("features", np.all(np.isfinite(features), axis=1))
    return features.astype(np.float64 if features.dtype == np.float64 else np.float32, copy=False)


def _weights(value: Any, count: int) -> np.ndarray:
    weights = _inputs.finite_reals("weights", value, f"[N] = ({count},)")
    _checks.shape("weights", weights, (count,), f"[N] = ({count},)", "Give one per picture.")
    negative = np.flatnonzero(weights < 0)
    if negative.size:
        raise ValueError(
            f"weights: row {negative[0]} holds {weights[negative[0]]}, expected numbers >= 0. {negative.size} of "
            f"{count} are negative, and would turn their features around."
        )
    return weights
