"""The losses that do more than change the own logit, each with its oracle: NumPy float64, written from the papers.

An oracle is written in analytic steps of what a loss depends on: cosines, lengths, sums over the other classes. Its
partial derivatives are complex steps, exact to rounding; the chain rule from cosines to vectors is spelled out below.
What a paper treats as constant goes through `fixed`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import margin_softmax as ms

STEP = 1e-30


class Seen(NamedTuple):
    """What a loss may depend on; `[B, C]`, `[B, 1]` or `[1, C]`."""

    c: np.ndarray
    """Cosines with all classes."""
    own: np.ndarray
    """The own one of them."""
    x: np.ndarray
    """Length of the feature."""
    w: np.ndarray
    """Lengths of the class weights."""
    w_own: np.ndarray
    stat: tuple = ()


def _log1p(z):
    """NumPy's own, of complex numbers, forms 1 + z."""
    return np.log1p(z.real) + 1j * (z.imag / (1 + z.real))


def _expm1(z):
    return np.expm1(z.real) + 1j * (z.imag * np.exp(z.real))


def _softplus(z):
    return np.where(z.real > 0, z, 0) + _log1p(np.exp(np.where(z.real > 0, -z, z)))


class Field(NamedTuple):
    """A loss: its margin from its numbers, and its oracle from the same numbers."""

    margin: Callable
    numbers: tuple
    target: Callable
    others: Callable = lambda s, *_: s.c
    scale: Callable = lambda *_: 1.0
    feature_norm: float = 1.0
    terms: Callable = lambda s, *_: ()
    """Summed over the other classes, they are `stat`."""
    constants: Callable = lambda c: ()
    """From the cosines of the others (-inf at the own class): further members of `stat`, without a gradient."""
    parts: tuple | None = None
    """Losses of own and other logits that just add up, from the numbers; softmax where None."""
    more: Callable | None = None
    """One more logit in the softmax."""
    beside: Callable = lambda s, *_: 0.0
    after: Callable = lambda loss, *_: loss
    steep: float = 1.0
    """By how much a rounding of a cosine weighs more than at s = 64; see the float32 test."""


def fixed(value):
    return value.real + 0 * value


def _cos_plus(c, m):
    """cos(theta + m), mirrored beyond pi, for 0 <= theta + m <= 2 pi."""
    inside = c * np.cos(m) - np.sqrt(1 - c * c) * np.sin(m)
    return np.where(np.arccos(np.clip(c.real, -1, 1)) + np.real(m) <= np.pi, inside, -2 - inside)


def _theta(c):
    return np.arccos(c + 0j)


def _spread(c, t):
    return 2 * ((c + 1) / 2) ** t - 1


def _psi(u):
    k = np.floor(u.real / np.pi)
    return np.where(k % 2 == 0, 1.0, -1.0) * np.cos(u) - 2 * k


def _binary(own_weight, others_weight):
    return lambda *n: (lambda z: own_weight(*n) * _softplus(-z), lambda z: others_weight(*n) * _softplus(z))


def _hard_mean(s, m0, m1, m):
    total, count = s.stat
    return fixed(total / np.maximum(count.real, 1))


def _quality(s, mean, deviation, h):
    return np.clip(fixed(h * (np.clip(s.x.real, 1e-3, 100) - mean) / (deviation + 1e-3)).real, -1, 1)


def _mag(s, low, high, low_margin, high_margin):
    a = np.where(s.x.real < low, low, np.where(s.x.real > high, high, s.x))
    return a, low_margin + (high_margin - low_margin) * (a - low) / (high - low)


def _ada(v, mean, deviation, m, s, h):
    shift = m * _quality(v, mean, deviation, h)
    theta = _theta(v.own)
    return _psi(np.where((theta - shift).real < 0, shift - theta, theta - shift)) - m - shift


def _kth(k):
    return lambda c: (np.sort(c.real, axis=1)[:, -k][:, None],)


FIELD = {
    "sphereface_r_0": Field(
        lambda m, s: ms.sphereface_r(m, s), (1.5, 64.0), lambda v, m, s: _psi(m * _theta(v.own)), scale=lambda m, s: s
    ),
    "sphereface_r_1": Field(
        lambda m, s: ms.sphereface_r(m, s, version=1),
        (1.5, 64.0),
        lambda v, m, s: np.where(m * _theta(v.own).real < np.pi, np.cos(m * _theta(v.own)), -1),
        scale=lambda m, s: s,
    ),
    "sphereface_r_2": Field(
        lambda m, s: ms.sphereface_r(m, s, version=2),
        (1.5, 64.0),
        lambda v, m, s: v.own,
        lambda v, m, s: np.cos(_theta(v.c) / m),
        scale=lambda m, s: s,
    ),
    "sphereface_r_soft": Field(
        lambda m, s, t: ms.sphereface_r(m, s, feature_norm="soft", pull=t),
        (1.5, 30.0, 0.01),
        lambda v, m, s, t: v.x * _psi(m * _theta(v.own)),
        lambda v, m, s, t: v.x * v.c,
        feature_norm=64.0,
        beside=lambda v, m, s, t: t * np.where(v.x.real > s, v.x - s, s - v.x),
    ),
    "sphereface_r_none_2": Field(
        lambda m: ms.sphereface_r(m, version=2, feature_norm="none"),
        (1.5,),
        lambda v, m: v.x * v.own,
        lambda v, m: v.x * np.cos(_theta(v.c) / m),
        feature_norm=64.0,
    ),
    "airface": Field(
        lambda m, s: ms.airface(m, s),
        (0.45, 64.0),
        lambda v, m, s: (np.pi - 2 * (_theta(v.own) + m)) / np.pi,
        lambda v, m, s: (np.pi - 2 * _theta(v.c)) / np.pi,
        scale=lambda m, s: s,
    ),
    "mv_softmax": Field(
        lambda m, t, s: ms.mv_softmax(ms.am_softmax(m, s), t),
        (0.35, 0.2, 32.0),
        lambda v, m, t, s: v.own - m,
        lambda v, m, t, s: np.where(v.c.real > (v.own - m).real, (t + 1) * v.c + t, v.c),
        scale=lambda m, t, s: s,
    ),
    "mv_softmax_arc": Field(
        lambda m, t, s: ms.mv_softmax(ms.arcface(m, s), t),
        (0.5, 0.2, 32.0),
        lambda v, m, t, s: _cos_plus(v.own, m),
        lambda v, m, t, s: np.where(v.c.real > _cos_plus(v.own, m).real, (t + 1) * v.c + t, v.c),
        scale=lambda m, t, s: s,
    ),
    "curricularface": Field(
        lambda t, m, s: ms.curricularface(t, m, s),
        (0.3, 0.5, 64.0),
        lambda v, t, m, s: _cos_plus(v.own, m),
        lambda v, t, m, s: np.where(v.c.real > _cos_plus(v.own, m).real, v.c * (t + v.c), v.c),
        scale=lambda t, m, s: s,
    ),
    # The slope of the others is s t_j, up to 1.2 s, and the weight t_j is itself rounded.
    "arcnegface": Field(
        lambda m, s, alpha, sigma: ms.arcnegface(m, s, alpha=alpha, sigma=sigma),
        (0.5, 64.0, 1.2, 2.0),
        lambda v, m, s, alpha, sigma: _cos_plus(v.own, m),
        lambda v, m, s, alpha, sigma: (
            (weight := fixed(alpha * np.exp(-((v.c - _cos_plus(v.own, m)) ** 2) / sigma))) * v.c + weight - 1
        ),
        scale=lambda m, s, alpha, sigma: s,
        steep=2.0,
    ),
    # Hard classes have slope t s, and one rounding more.
    "npcface": Field(
        lambda s, m, m0, m1, t, a: ms.npcface(s, margin=m, m0=m0, m1=m1, t=t, a=a),
        (64.0, 0.5, 0.4, 0.2, 1.1, 0.2),
        lambda v, s, m, m0, m1, t, a: _cos_plus(v.own, m0 + m1 * _hard_mean(v, m0, m1, m)),
        lambda v, s, m, m0, m1, t, a: np.where(v.c.real > _cos_plus(v.own, m).real, t * v.c + a, v.c),
        scale=lambda s, *_: s,
        terms=lambda v, s, m, *_: (
            np.where(v.c.real > _cos_plus(v.own, m).real, v.c, 0),
            np.where(v.c.real > _cos_plus(v.own, m).real, 1.0, 0),
        ),
        steep=1.2,
    ),
    "cifp": Field(
        lambda threshold, m, s: ms.cifp(threshold, m, s),
        (0.2, 0.35, 64.0),
        lambda v, threshold, m, s: v.own - m - (1 + v.own) * v.stat[0] / np.maximum(v.stat[1].real, 1),
        scale=lambda threshold, m, s: s,
        terms=lambda v, threshold, m, s: (
            np.where((v.c.real > threshold) & (v.c.real <= v.own.real), v.c**2, 0),
            np.where((v.c.real > threshold) & (v.c.real <= v.own.real), 1.0, 0),
        ),
    ),
    "intertopk": Field(
        lambda m, s, penalty: ms.intertopk(m, s, k=5, penalty=penalty),
        (0.2, 32.0, 0.06),
        lambda v, m, s, penalty: _cos_plus(v.own, m),
        lambda v, m, s, penalty: np.where(
            v.c.real >= v.stat[0], v.c * np.cos(penalty) + np.sqrt(1 - v.c * v.c) * np.sin(penalty), v.c
        ),
        scale=lambda m, s, penalty: s,
        constants=_kth(5),
    ),
    # The slope of the others is gamma [c_j + m]_+ for cosines up to 0.75.
    "circle": Field(
        lambda m, s: ms.circle(m, s),
        (0.25, 256.0),
        lambda v, m, s: fixed(np.maximum((1 + m - v.own).real, 0)) * (v.own - (1 - m)),
        lambda v, m, s: fixed(np.maximum((v.c + m).real, 0)) * (v.c - m),
        scale=lambda m, s: s,
        steep=4.0,
    ),
    "virtual_softmax": Field(
        lambda: ms.virtual_softmax(),
        (),
        lambda v: v.x * v.w_own * v.own,
        lambda v: v.x * v.w * v.c,
        feature_norm=64.0,
        more=lambda v: v.x * v.w_own,
    ),
    # Between cosine and logit stand a power and four more roundings.
    "sphereface2": Field(
        lambda b, m, s, t, balance: ms.sphereface2(b, m, s, t=t, balance=balance),
        (5.6, 0.4, 40.0, 3.0, 0.7),
        lambda v, b, m, s, t, balance: s * (_spread(v.own, t) - m) + b,
        lambda v, b, m, s, t, balance: s * (_spread(v.c, t) + m) + b,
        parts=_binary(lambda b, m, s, t, balance: balance / s, lambda b, m, s, t, balance: (1 - balance) / s),
        steep=1.5,
    ),
    "sphereface2_A": Field(
        lambda b, m, s: ms.sphereface2(b, m, s, kind="A"),
        (5.6, 0.5, 40.0),
        lambda v, b, m, s: (
            s
            * _spread(
                np.where(np.arccos(v.own.real) + m < np.pi, v.own * np.cos(m) - np.sqrt(1 - v.own**2) * np.sin(m), -1),
                3.0,
            )
            + b
        ),
        lambda v, b, m, s: s * _spread(v.c, 3.0) + b,
        parts=_binary(lambda b, m, s: 0.7 / s, lambda b, m, s: (1 - 0.7) / s),
        steep=1.5,
    ),
    "sphereface2_M": Field(
        lambda b, m, s: ms.sphereface2(b, m, s, kind="M"),
        (5.6, 1.7, 40.0),
        lambda v, b, m, s: (
            s * _spread(np.where(m * _theta(v.own).real < np.pi, np.cos(m * _theta(v.own)), -1), 3.0) + b
        ),
        lambda v, b, m, s: s * _spread(v.c, 3.0) + b,
        parts=_binary(lambda b, m, s: 0.7 / s, lambda b, m, s: (1 - 0.7) / s),
        steep=1.5,
    ),
    "unified_cross_entropy": Field(
        lambda b, m, s, balance: ms.unified_cross_entropy(b, m, s, balance=balance),
        (11.5, 0.4, 64.0, 1.0),
        lambda v, b, m, s, balance: s * (v.own - m) - b,
        lambda v, b, m, s, balance: s * v.c - b,
        parts=_binary(lambda b, m, s, balance: 1.0, lambda b, m, s, balance: balance),
    ),
    "p2sgrad": Field(
        lambda: ms.p2sgrad(),
        (),
        lambda v: v.own,
        parts=lambda: (lambda z: (1 - z) ** 2 / 2, lambda z: z**2 / 2),
    ),
    # A rounding of an angle weighs k = 80 times in the weight, and one of a cosine is 1 / sin of it in the angle.
    "sface": Field(
        lambda s: ms.sface(s),
        (64.0,),
        lambda v, s: v.own * fixed(1 / (1 + np.exp(80 * (0.8 - _theta(v.own))))),
        lambda v, s: v.c * fixed(1 / (1 + np.exp(80 * (_theta(v.c) - 1.23)))),
        scale=lambda s: s,
        parts=lambda s: (lambda z: -z, lambda z: z),
        steep=2.0,
    ),
    "magface": Field(
        lambda s, weight: ms.magface(s, norms=(10.0, 60.0), regularizer=weight, checked=False),
        (64.0, 35.0),
        lambda v, s, weight: _cos_plus(v.own, _mag(v, 10, 60, 0.45, 0.8)[1]),
        scale=lambda s, weight: s,
        feature_norm=64.0,
        beside=lambda v, s, weight: weight * ((a := _mag(v, 10, 60, 0.45, 0.8)[0]) / 60**2 + 1 / a),
    ),
    "adaface": Field(
        lambda mean, deviation, m, s, h: ms.adaface(ms.AdaFaceState(mean, deviation), m, s, h=h),
        (20.0, 6.0, 0.4, 64.0, 0.333),
        _ada,
        scale=lambda mean, deviation, m, s, h: s,
        feature_norm=24.0,
    ),
    # A third power of 1 - p, where p is near 1.
    "focal": Field(
        lambda m, s, gamma: ms.focal(ms.arcface(m, s), gamma),
        (0.5, 64.0, 2.0),
        lambda v, m, s, gamma: _cos_plus(v.own, m),
        scale=lambda m, s, gamma: s,
        after=lambda loss, m, s, gamma: (-_expm1(-loss)) ** gamma * loss,
        steep=3.0,
    ),
    "interclass_filter": Field(
        lambda m, s, threshold: ms.interclass_filter(ms.cosface(m, s), threshold),
        (0.35, 64.0, 0.3),
        lambda v, m, s, threshold: v.own - m,
        lambda v, m, s, threshold: np.where(v.c.real > threshold, -1e6, v.c),
        scale=lambda m, s, threshold: s,
    ),
    "interclass_filter_to_zero": Field(
        lambda m, s, threshold: ms.interclass_filter(ms.cosface(m, s), threshold, to_zero=True),
        (0.35, 64.0, 0.3),
        lambda v, m, s, threshold: v.own - m,
        lambda v, m, s, threshold: np.where(v.c.real > threshold, 0, v.c),
        scale=lambda m, s, threshold: s,
    ),
}


def _seen(x, w, labels):
    x_length, w_length = np.sqrt(np.sum(x * x, axis=1)), np.sqrt(np.sum(w * w, axis=1))
    c = (x / x_length[:, None]) @ (w / w_length[:, None]).T
    c = np.where(np.abs(c.real) > 1, np.sign(c.real), c)
    rows = np.arange(len(x))
    return Seen(c, c[rows, labels][:, None], x_length[:, None], w_length[None], w_length[labels][:, None])


def _with_stat(field, seen, labels, numbers):
    not_own = np.arange(seen.c.shape[1])[None] != labels[:, None]
    sums = [np.sum(np.where(not_own, term, 0), axis=1, keepdims=True) for term in field.terms(seen, *numbers)]
    constants = field.constants(np.where(not_own, seen.c, -np.inf))
    return seen._replace(stat=(*sums, *constants)), not_own


def logits_of(field, x, w, labels):
    """Logits [B, C]."""
    seen, not_own = _with_stat(field, _seen(x, w, labels), labels, field.numbers)
    own, others = (f(seen, *field.numbers) + 0 * seen.c for f in (field.target, field.others))
    return field.scale(*field.numbers) * np.real(np.where(not_own, others, own))


def losses_of(field, x, w, labels, numbers):
    """Losses [B], in analytic steps of all arguments."""
    seen, not_own = _with_stat(field, _seen(x, w, labels), labels, numbers)
    return field.after(_losses(field, seen, not_own, numbers)[:, None], *numbers)[:, 0]


def _losses(field, seen, not_own, numbers):
    z_own = field.scale(*numbers) * field.target(seen, *numbers)
    z = field.scale(*numbers) * field.others(seen, *numbers)
    if field.parts is None:
        others = np.where(not_own, z - z_own, -np.inf)
        if field.more:
            others = np.concatenate([others, field.more(seen, *numbers) - z_own], axis=1)
        shift = np.maximum(others.real.max(axis=1), 0)
        rest = np.sum(np.exp(others - shift[:, None]), axis=1)
        losses = np.where(shift > 0, shift + np.log(np.exp(-shift) + rest), _log1p(rest))
    else:
        of_own, of_others = field.parts(*numbers)
        losses = of_own(z_own)[:, 0] + np.sum(np.where(not_own, of_others(z), 0), axis=1)
    return losses + np.broadcast_to(field.beside(seen, *numbers), z_own.shape)[:, 0]


def _slopes(function, seen, name):
    """Partial derivative of an elementwise function of `seen` with respect to one of its members."""
    if name.startswith("stat"):
        i = int(name[4:])
        stat = tuple(s + 1j * STEP if i == j else s for j, s in enumerate(seen.stat))
        return np.imag(function(seen._replace(stat=stat))) / STEP
    return np.imag(function(seen._replace(**{name: getattr(seen, name) + 1j * STEP}))) / STEP


def losses_and_gradients(field, features, weights, labels, *, cotangent=None, numbers=None):
    """Losses [B]; gradients of `sum(cotangent loss)`, features and weights; the former's lengths with what lies along.

    The part of a feature's gradient along the feature itself is taken away where the loss does not depend on its
    length; where the others pull all in much the same direction that is nearly all of it.
    """
    numbers = field.numbers if numbers is None else numbers
    x, w = np.asarray(features, np.float64), np.asarray(weights, np.float64)
    cotangent = np.ones(len(x)) if cotangent is None else np.asarray(cotangent, np.float64)
    bare = _seen(x, w, labels)
    seen, not_own = _with_stat(field, bare, labels, numbers)
    scale = field.scale(*numbers)

    def target(s):
        return scale * field.target(s, *numbers) + 0 * s.own

    def others(s):
        return scale * field.others(s, *numbers) + 0 * s.c

    z_own, z = target(seen).real, others(seen).real
    if field.parts is None:
        largest = np.maximum(np.where(not_own, z, -np.inf).max(axis=1, keepdims=True), z_own)
        e = np.where(not_own, np.exp(z - largest), 0)
        e_more = np.exp(field.more(seen, *numbers).real - largest) if field.more else np.zeros_like(z_own)
        all_ = e.sum(axis=1, keepdims=True) + e_more + np.exp(z_own - largest)
        own_bar, bar, more_bar = -(e.sum(axis=1, keepdims=True) + e_more) / all_, e / all_, e_more / all_
    else:
        of_own, of_others = field.parts(*numbers)
        own_bar = np.imag(of_own(z_own + 1j * STEP)) / STEP
        bar, more_bar = np.where(not_own, np.imag(of_others(z + 1j * STEP)) / STEP, 0), np.zeros_like(z_own)
    losses = _losses(field, seen, not_own, numbers).real
    weight = cotangent[:, None] * np.imag(field.after(losses[:, None] + 1j * STEP, *numbers)) / STEP

    def total(name, axis):
        """Gradient of the losses by one member of `seen`, through both kinds of logits and what stands beside them."""
        by = np.sum(bar * _slopes(others, seen, name), axis=1, keepdims=True) if axis == 1 else 0.0
        by = by + own_bar * np.broadcast_to(_slopes(target, seen, name), z_own.shape)
        if field.more:
            by = by + more_bar * np.broadcast_to(_slopes(lambda s: field.more(s, *numbers), seen, name), z_own.shape)
        beside = _slopes(lambda s: field.beside(s, *numbers) + 0 * s.x, seen, name)
        return by + np.broadcast_to(beside, z_own.shape)

    c_bar = bar * _slopes(others, seen, "c")
    own_c_bar, x_len_bar, w_own_bar = total("own", 1), total("x", 1), total("w_own", 1)
    w_len_bar = bar * _slopes(others, seen, "w")
    for i in range(len(field.terms(bare, *numbers))):
        stat_bar = total(f"stat{i}", 1)

        def term(s, i=i):
            return field.terms(s, *numbers)[i] + 0 * s.c

        c_bar = c_bar + np.where(not_own, stat_bar * _slopes(term, bare, "c"), 0)
        own_c_bar = own_c_bar + stat_bar * np.sum(
            np.where(not_own, _slopes(term, bare, "own"), 0), axis=1, keepdims=True
        )
    rows = np.arange(len(x))
    c_bar[rows, labels] = own_c_bar[:, 0]
    w_len_bar[rows, labels] = w_own_bar[:, 0]
    g = weight * c_bar
    a, b = x / bare.x, w / bare.w.T
    along = np.linalg.norm(g @ b, axis=1) / bare.x[:, 0]
    x_bar = (g @ b - np.sum(g * bare.c, axis=1)[:, None] * a) / bare.x + weight * x_len_bar * a
    w_bar = (g.T @ a - np.sum(g * bare.c, axis=0)[:, None] * b) / bare.w.T
    w_bar = w_bar + np.sum(weight * w_len_bar, axis=0)[:, None] * b
    return field.after(losses[:, None], *numbers)[:, 0].real, x_bar, w_bar, along
