"""Reductions over the classes other than an example's own.

A `Reduction` is associative: parts of it, taken over blocks of classes or over devices, merge into the whole.
So nothing of size batch x classes need exist, whatever the loss.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

Part = Any
"""A pytree of arrays whose first axis is the batch."""


class Reduction(NamedTuple):
    """An associative reduction over classes, with its derivative: four pure functions.

    A reduction is a constant: numbers inside its functions steer rounding, and get no gradient. What is learned
    belongs in the logits before it or in the loss after it.

    Attributes:
      of: logits `[B, n]`, keep `[B, n]` (False: leave this class out), class ids `[n]` -> part.
      merge: part, part -> part.
      total: part -> total, a pytree of `[B, ...]` arrays.
      pull: logits, keep, total, cotangent of the total -> cotangent of the logits `[B, n]`.
    """

    of: Callable[[jax.Array, jax.Array, jax.Array], Part]
    merge: Callable[[Part, Part], Part]
    total: Callable[[Part], Any]
    pull: Callable[[jax.Array, jax.Array, Any, Any], jax.Array]


class LogSumExp(NamedTuple):
    """`L = largest + log_sum`; -inf over no classes. Only their sum has a meaning, and a gradient in `log_sum`."""

    largest: jax.Array
    log_sum: jax.Array

    def minus(self, logit: jax.Array) -> jax.Array:
        """`L - z`, of which the sum `L` itself would round away what logits of 1000 leave."""
        return (self.largest - logit) + self.log_sum

    def plus(self, logit: jax.Array) -> "LogSumExp":
        """With one more logit in the sum."""
        largest = jax.lax.stop_gradient(jnp.maximum(self.largest, logit))
        return LogSumExp(largest, jnp.logaddexp((self.largest - largest) + self.log_sum, logit - largest))


def log_sum_exp() -> Reduction:
    """`L = log sum_j exp(z_j)` as a `LogSumExp`; -inf over no classes. `dL / dz_j = exp(z_j - L)`."""
    return Reduction(
        Partial(_log_sum_exp_of), Partial(_log_sum_exp_merge), Partial(_log_sum_exp_total), Partial(_log_sum_exp_pull)
    )


def _log_sum_exp_of(logits, keep, ids):
    del ids
    logits = jnp.where(keep, logits, -jnp.inf)
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    return largest, jnp.sum(jnp.exp(logits - _finite(largest)[:, None]), axis=-1)


def _log_sum_exp_merge(a, b):
    largest = jnp.maximum(a[0], b[0])
    return largest, sum(s * jnp.exp(m - _finite(largest)) for m, s in (a, b))


def _log_sum_exp_total(part):
    largest, s = part
    return LogSumExp(_finite(largest), jnp.where(s > 0, jnp.log(jnp.where(s > 0, s, 1.0)), -jnp.inf))


def _log_sum_exp_pull(logits, keep, total, cotangent):
    shifted = jnp.where(keep, logits, -jnp.inf) - total.largest[:, None]
    return cotangent.log_sum[:, None] * jnp.exp(shifted - _finite(total.log_sum)[:, None])


def _finite(largest):
    """Over no classes the largest logit is -inf, and a difference of two of them would be NaN."""
    return jnp.where(largest == -jnp.inf, 0.0, largest)


def sum_of(function: Callable[[jax.Array], jax.Array]) -> Reduction:
    """`S = sum_j f(z_j)`, 0 over no classes; f is elementwise. `dS / dz_j = f'(z_j)`."""
    f = Partial(function)
    return Reduction(Partial(_sum_of, f), Partial(jnp.add), Partial(_identity), Partial(_sum_pull, f))


def _sum_of(f, logits, keep, ids):
    del ids
    return jnp.sum(jnp.where(keep, f(logits), 0.0), axis=-1)


def _sum_pull(f, logits, keep, total, cotangent):
    del total
    _, pull = jax.vjp(f, logits)
    return pull(jnp.where(keep, cotangent[:, None], 0.0))[0]


def _identity(part):
    return part


def linear_sum() -> Reduction:
    """`S = sum_j z_j`: what label smoothing needs beside the loss's own reduction."""
    return sum_of(_identity)


def top_one() -> Reduction:
    """The largest logit and the id of its class, the lowest of equal ones; -inf over no classes."""
    return Reduction(Partial(_top_one_of), Partial(_top_one_merge), Partial(_identity), Partial(_top_one_pull))


def _top_one_of(logits, keep, ids):
    logits = jnp.where(keep, logits, -jnp.inf)
    return jnp.max(logits, axis=-1), ids[jnp.argmax(logits, axis=-1)]


def _top_one_merge(a, b):
    better = (b[0] > a[0]) | jnp.isnan(b[0]) | ((b[0] == a[0]) & (b[1] < a[1]))
    return jnp.where(better, b[0], a[0]), jnp.where(better, b[1], a[1])


def _top_one_pull(logits, keep, total, cotangent):
    return jnp.where(keep & (logits == total[0][:, None]), cotangent[0][:, None], 0.0)


def top_k(k: int) -> Reduction:
    """The k largest logits `[B, k]`, in falling order, -inf where there are fewer; constants, without a gradient."""
    return Reduction(Partial(_TopK(k)), Partial(_top_k_merge), Partial(_identity), Partial(_no_pull))


@dataclasses.dataclass(frozen=True)
class _TopK:
    k: int

    def __call__(self, logits, keep, ids):
        del ids
        nothing = jnp.full((*logits.shape[:-1], self.k), -jnp.inf, logits.dtype)
        logits = jax.lax.stop_gradient(jnp.where(keep, logits, -jnp.inf))
        return jax.lax.top_k(jnp.concatenate([logits, nothing], axis=-1), self.k)[0]


def _top_k_merge(a, b):
    return jax.lax.top_k(jnp.concatenate([a, b], axis=-1), a.shape[-1])[0]


def _no_pull(logits, keep, total, cotangent):
    del keep, total, cotangent
    return jnp.zeros_like(logits)


def pair(first: Reduction, second: Reduction) -> Reduction:
    """Two reductions in one pass; its total is the pair of theirs."""
    return Reduction(
        Partial(_pair_of, first, second),
        Partial(_pair_merge, first, second),
        Partial(_pair_total, first, second),
        Partial(_pair_pull, first, second),
    )


def _pair_of(first, second, logits, keep, ids):
    return first.of(logits, keep, ids), second.of(logits, keep, ids)


def _pair_merge(first, second, a, b):
    return first.merge(a[0], b[0]), second.merge(a[1], b[1])


def _pair_total(first, second, part):
    return first.total(part[0]), second.total(part[1])


def _pair_pull(first, second, logits, keep, total, cotangent):
    return first.pull(logits, keep, total[0], cotangent[0]) + second.pull(logits, keep, total[1], cotangent[1])
