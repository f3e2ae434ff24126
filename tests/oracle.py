"""The oracle: margin softmax losses in NumPy float64, written from the papers, sharing no code with the package.

Each margin is its own class's logit as a function of the cosine `c` and the two lengths, with its three partial
derivatives as the papers give them, and the radius of the other logits. Angles go through `arccos` here, which is
exact enough in float64 away from 0 and pi.
"""

from collections.abc import Callable
from math import comb
from typing import NamedTuple

import numpy as np


class Target(NamedTuple):
    """The own logit and its derivatives with respect to cosine, feature length and weight length."""

    z: np.ndarray
    by_c: np.ndarray
    by_x: np.ndarray
    by_w: np.ndarray


class Oracle(NamedTuple):
    """A margin: its target, the power of each length in the radius of the other logits, and the scale."""

    target: Callable[[np.ndarray, np.ndarray, np.ndarray], Target]
    x_power: int = 0
    w_power: int = 0
    scale: float = 1.0


def linear(scale=1.0, x_power=1, w_power=1):
    """The logits of softmax: `s |x|^a |w|^b c`."""

    def target(c, x, w):
        radius = scale * x**x_power * w**w_power
        return Target(radius * c, radius, x_power * radius * c / x, w_power * radius * c / w)

    return Oracle(target, x_power, w_power, scale)


def large_margin(m, blend, w_power):
    """L-Softmax (w_power 1) and A-Softmax (0): the papers' binomial sum for cos(m theta), k by intervals of c."""

    def target(c, x, w):
        cos_m = sum((-1) ** n * comb(m, 2 * n) * c ** (m - 2 * n) * (1 - c * c) ** n for n in range(m // 2 + 1))
        slope = np.zeros_like(c)
        for n in range(m // 2 + 1):
            a, b = m - 2 * n, n
            term = a * c ** max(a - 1, 0) * (1 - c * c) ** b if a else 0.0
            term = term - (2 * b * c * c**a * (1 - c * c) ** max(b - 1, 0) if b else 0.0)
            slope = slope + (-1) ** n * comb(m, 2 * n) * term
        k = sum((c <= np.cos(np.pi * i / m)).astype(int) for i in range(1, m))
        sign = np.where(k % 2 == 0, 1.0, -1.0)
        psi, by_c = sign * cos_m - 2 * k, sign * slope
        mixed, mixed_by_c = (blend * c + psi) / (1 + blend), (blend + by_c) / (1 + blend)
        radius = x * w**w_power
        return Target(radius * mixed, radius * mixed_by_c, radius * mixed / x, w_power * radius * mixed / w)

    return Oracle(target, 1, w_power)


def additive_cosine(m, s):
    """AM-Softmax, CosFace: `s (c - m)`."""

    def target(c, x, w):
        return Target(s * (c - m), s * np.ones_like(c), 0 * x, 0 * w)

    return Oracle(target, scale=s)


def additive_angle(m1, m2, m3, s):
    """ArcFace and the combined margin: `s (cos(m1 theta + m2) - m3)`, mirrored at each multiple of pi."""

    def target(c, x, w):
        theta = np.arccos(c)
        u = m1 * theta + m2
        k = np.floor(u / np.pi)
        psi = np.where(k % 2 == 0, 1.0, -1.0) * np.cos(u) - 2 * k
        return Target(s * (psi - m3), s * m1 * np.abs(np.sin(u)) / np.sin(theta), 0 * x, 0 * w)

    return Oracle(target, scale=s)


def straight_through(oracle):
    """The value of a margin over normalised factors with the slope `s` of no margin."""

    def target(c, x, w):
        z = oracle.target(c, x, w).z
        return Target(z, oracle.scale * np.ones_like(c), 0 * x, 0 * w)

    return oracle._replace(target=target)


def _lengths(rows):
    return np.sqrt(np.sum(rows * rows, axis=-1))


def logits_and_gradients(oracle, features, weights, labels, *, bias=None, smoothing=0.0, cotangent=None):
    """Logits [B, C], losses [B] and the gradients of `sum(cotangent loss)`: features, weights, bias."""
    x, w = np.asarray(features, np.float64), np.asarray(weights, np.float64)
    batch = x.shape[0]
    cotangent = np.ones(batch) if cotangent is None else np.asarray(cotangent, np.float64)
    rows = np.arange(batch)
    x_len, w_len = _lengths(x), _lengths(w)
    a, b = x / x_len[:, None], w / w_len[:, None]
    c = np.clip(a @ b.T, -1, 1)
    radius = oracle.scale * x_len[:, None] ** oracle.x_power * w_len[None] ** oracle.w_power
    z = radius * c
    own = oracle.target(c[rows, labels], x_len, w_len[labels])
    z[rows, labels] = own.z
    if bias is not None:
        z = z + np.asarray(bias, np.float64)
    largest = z.max(axis=1, keepdims=True)
    e = np.exp(z - largest)
    log_total = largest[:, 0] + np.log(e.sum(axis=1))
    losses, z_bar = _cross_entropy(z, e, log_total, labels, smoothing)
    z_bar = z_bar * cotangent[:, None]

    # dz/dc, dz/d|x|, dz/d|w| of every pair, then the chain rule through c = <x, w> / (|x| |w|).
    by_c, by_x, by_w = radius.copy(), oracle.x_power * radius * c / x_len[:, None], oracle.w_power * radius * c / w_len
    by_c[rows, labels], by_x[rows, labels], by_w[rows, labels] = own.by_c, own.by_x, own.by_w
    g = z_bar * by_c
    x_bar = (g @ b - (g * c).sum(axis=1)[:, None] * a) / x_len[:, None] + (z_bar * by_x).sum(axis=1)[:, None] * a
    w_bar = (g.T @ a - (g * c).sum(axis=0)[:, None] * b) / w_len[:, None] + (z_bar * by_w).sum(axis=0)[:, None] * b
    return z, losses, x_bar, w_bar, z_bar.sum(axis=0)


def _cross_entropy(z, e, log_total, labels, smoothing):
    rows = np.arange(len(z))
    others = e.copy()
    others[rows, labels] = 0.0
    not_p = others.sum(axis=1) / e.sum(axis=1)
    # Small losses keep their digits in float64 too: log(1 + rest / own) rather than a difference.
    with np.errstate(over="ignore", divide="ignore"):
        losses = np.log1p(others.sum(axis=1) / e[rows, labels])
    losses = np.where(np.isfinite(losses), losses, log_total - z[rows, labels])
    z_bar = e / e.sum(axis=1, keepdims=True)
    z_bar[rows, labels] = -not_p
    if smoothing:
        losses = losses + smoothing * (z[rows, labels] - z.mean(axis=1))
        z_bar[rows, labels] += smoothing
        z_bar = z_bar - smoothing / z.shape[1]
    return losses, z_bar


def complex_step(function, x, step=1e-30):
    """Gradient of a real function that is written in analytic steps: exact to rounding, without differences."""
    gradient = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        shifted = x.astype(complex)
        shifted[i] += 1j * step
        gradient[i] = np.imag(function(shifted)) / step
    return gradient
