"""Losses that prove the seam between margins and heads: one for each way in which papers go beyond a target margin.

They are not public; each is a `Margin` and an oracle for its value, written in analytic steps so that a complex step
gives the exact gradient. Their numbers are arguments, so gradients with respect to them are checked too.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from margin_softmax import angles, margins, reductions
from margin_softmax.margins import Margin

SCALE = 6.0


def _parts(x, weights, labels):
    """Cosines [B, C] with the best of K centres, the own ones, and the rest."""
    a = x / np.sqrt(np.sum(x * x, axis=1, keepdims=True))
    b = weights / np.sqrt(np.sum(weights * weights, axis=2, keepdims=True))
    each = np.einsum("bd,ckd->bck", a, b)
    c = np.take_along_axis(each, each.real.argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    rows = np.arange(len(x))
    others = np.ones(c.shape, bool)
    others[rows, labels] = False
    return c, c[rows, labels], others


def _cos_plus(c, m):
    """cos(theta + m) from the cosine."""
    return c * np.cos(m) - np.sqrt(1 - c * c) * np.sin(m)


def _softplus(z):
    return np.log(1 + np.exp(z))


def _softmax(own, z, others):
    return np.log(np.exp(own) + np.sum(np.where(others, np.exp(z), 0), axis=1)) - own


def curricular(numbers) -> Margin:
    """Other logits depend on the target: those above it are `c (t + c)` (as in CurricularFace)."""
    m, t = numbers

    def others(products, own, target, *, t):
        del own
        return jnp.where(products > target, products * (t + products), products)

    base = margins.arcface(0.3, scale=SCALE)
    return base._replace(target=Partial(_arc, m=m), others=Partial(others, t=t))


def _arc(own, *, m):
    return angles.psi(own.angle + m)


def curricular_oracle(x, weights, labels, numbers):
    m, t = numbers
    c, c_y, others = _parts(x, weights, labels)
    own = _cos_plus(c_y, m)
    z = np.where(c.real > own.real[:, None], c * (t + c), c)
    return _softmax(SCALE * own, SCALE * z, others)


def one_against_all(numbers) -> Margin:
    """The reduction is a sum of softplus, with a learned offset (as in SphereFace2)."""
    m, offset = numbers

    def target(own, *, m, offset):
        return own.product - m + offset

    def others(products, own, target, *, m, offset):
        del own, target
        return products + m + offset

    def loss(target, total, own):
        del own
        return 0.7 * jax.nn.softplus(-target) + 0.3 * total

    return margins.softmax(Partial(target, m=m, offset=offset), scale=SCALE)._replace(
        others=Partial(others, m=m, offset=offset),
        reduction=reductions.sum_of(jax.nn.softplus),
        loss=Partial(loss),
    )


def one_against_all_oracle(x, weights, labels, numbers):
    m, offset = numbers
    c, c_y, others = _parts(x, weights, labels)
    rest = np.where(others, _softplus(SCALE * (c + m + offset)), 0)
    return 0.7 * _softplus(-SCALE * (c_y - m + offset)) + 0.3 * np.sum(rest, axis=1)


def hard_mean(numbers) -> Margin:
    """The target needs a statistic first: the margin grows with the mean excess of hard classes (as in NPCFace)."""
    m0, m1 = numbers

    def excess(products, own, *, m0):
        return products - angles.psi(own.angle + m0)

    def target(own, *, m0, m1):
        total, count = own.statistic
        return angles.psi(own.angle + m0 + m1 * total / jnp.maximum(count, 1.0))

    statistic = margins.Statistic(
        Partial(excess, m0=m0), reductions.pair(reductions.sum_of(jax.nn.relu), reductions.sum_of(_positive))
    )
    return margins.softmax(Partial(target, m0=m0, m1=m1), scale=SCALE)._replace(statistic=statistic)


def _positive(z):
    return (z > 0).astype(z.dtype)


def hard_mean_oracle(x, weights, labels, numbers):
    m0, m1 = numbers
    c, c_y, others = _parts(x, weights, labels)
    excess = c - _cos_plus(c_y, m0)[:, None]
    hard = others & (excess.real > 0)
    mean = np.sum(np.where(hard, excess, 0), axis=1) / np.maximum(hard.sum(axis=1), 1)
    own = c_y * np.cos(m0 + m1 * mean) - np.sqrt(1 - c_y * c_y) * np.sin(m0 + m1 * mean)
    return _softmax(SCALE * own, SCALE * c, others)


def from_norm(numbers) -> Margin:
    """The margin grows with the feature's norm, differentiably, and so does the loss itself (as in MagFace)."""
    low, slope = numbers

    def target(own, *, low, slope):
        return angles.psi(own.angle + low + slope * own.norm)

    def loss(target, total, own, *, slope):
        return margins.softmax_loss(target, total, own) + slope / own.norm

    return margins.softmax(Partial(target, low=low, slope=slope), scale=SCALE)._replace(loss=Partial(loss, slope=slope))


def from_norm_oracle(x, weights, labels, numbers):
    low, slope = numbers
    c, c_y, others = _parts(x, weights, labels)
    norm = np.sqrt(np.sum(x * x, axis=1))
    return _softmax(SCALE * _cos_plus(c_y, low + slope * norm), SCALE * c, others) + slope / norm


SEAM = {
    "others_need_the_target": (curricular, curricular_oracle, (0.3, 0.4)),
    "sum_of_softplus": (one_against_all, one_against_all_oracle, (0.2, 0.1)),
    "target_needs_a_statistic": (hard_mean, hard_mean_oracle, (0.2, 0.3)),
    "margin_from_the_norm": (from_norm, from_norm_oracle, (0.1, 0.05)),
}
