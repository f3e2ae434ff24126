"""Every loss beyond a target margin against its float64 oracle: in each head, float32 and bfloat16, at every angle."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_softmax as ms
from field import FIELD, logits_of, losses_and_gradients, losses_of
from table import MARGINS, examples, largest_row_error

HEADS = {"dense": ms.dense(), "keep_some": ms.blockwise(block_size=7, memory=7 * 9 * 8 * 2)}
COTANGENT = np.array([1.0, -0.5, 2.0, 0.0, 3.0, 0.25, 1.0, 1.0, 7.0])


def small(name, cosine):
    """Nine examples of 23 classes; logits of norms reach 8, and where a loss looks at norms, on all its branches."""
    norm = FIELD[name].feature_norm
    x, w, y = examples(9, 23, 5, cosine, feature_norm=norm / 8 if norm == 64 and name != "magface" else norm)
    return x * np.linspace(0.1, 1.3, 9)[:, None] if name in ("magface", "adaface") else x, w, y


@pytest.mark.parametrize("name", FIELD)
def test_float64_equals_the_oracle(name):
    """Losses and the gradients of features, weights and every number, each number another for every example."""
    field = FIELD[name]
    varied = [n * np.linspace(0.96, 1.04, 9) for n in field.numbers]
    with jax.enable_x64(True):

        @jax.jit
        def ours(x, w, y, numbers):
            def total(x, w, numbers):
                losses = ms.margin_loss(x, w, y, field.margin(*numbers), head=HEADS["keep_some"])
                return jnp.sum(losses * COTANGENT), losses

            return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(x, w, numbers)

        for cosine in (-0.9, 0.1, 0.95):
            x, w, y = small(name, cosine)
            columns = [n[:, None] for n in varied]
            (_, losses), (x_bar, w_bar, numbers_bar) = ours(x, w, y, varied)
            exact = losses_and_gradients(field, x, w, y, cotangent=COTANGENT, numbers=columns)
            for mine, theirs in zip((losses, x_bar, w_bar), exact[:3], strict=True):
                assert mine.dtype == jnp.float64
                np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-10 * np.abs(theirs).max() + 1e-30)
            for i, mine in enumerate(numbers_bar):
                stepped = [n + 1e-30j if i == j else n for j, n in enumerate(columns)]
                theirs = COTANGENT * np.imag(losses_of(field, x, w, y, stepped)) / 1e-30
                np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-10 * np.abs(theirs).max() + 1e-30)


@pytest.mark.parametrize("name", FIELD)
@pytest.mark.optimised
def test_float32_keeps_its_digits_where_training_goes(name):
    """At s = 64 and 10,000 classes, from the start of training to its end, and at angle 0 and pi; in the default head.

    The bounds are those of test_losses.py, which has the dense one, too. They are for logits whose slope in a cosine is
    64; where a loss is steeper, a rounding of the cosine weighs more by that factor, `steep`. And a feature's gradient
    is what is left of a sum after its part along the feature is taken away: four roundings of that sum, 5e-7 of it, are
    added.
    """
    field = FIELD[name]
    margin = field.margin(*field.numbers)

    @jax.jit
    def ours(x, w, y):
        def total(x, w):
            losses = ms.margin_loss(x, w, y, margin)
            return losses.sum(), losses

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(x, w)

    for cosine in (-0.3, 0.3, 0.7, 0.99):
        x, w, y = examples(16, 10_000, 64, cosine, feature_norm=field.feature_norm, dtype=np.float32)
        losses, x_bar, w_bar, along = losses_and_gradients(field, x, w, y)
        bound = (5e-6 if cosine <= 0.3 else 2e-5) * field.steep
        (_, mine), (x_mine, w_mine) = ours(x, w, y)
        assert mine.dtype == x_mine.dtype == w_mine.dtype == jnp.float32
        assert np.max(np.abs(mine - losses) / losses) <= bound
        x_error = np.linalg.norm(np.asarray(x_mine, np.float64) - x_bar, axis=1)
        assert np.all(x_error <= bound * np.linalg.norm(x_bar, axis=1) + 5e-7 * along)
        # float32 ends at 1e-38, and loses digits on the way to it.
        rows = np.linalg.norm(w_bar, axis=1) > 1e-28
        assert largest_row_error(w_mine[rows], w_bar[rows], quantile=0.95) <= bound
        if name != "circle":  # whose weight [c + m]_+ is 0 at c = -m: near there the row is the rounding of c
            wide = bound + 64 * field.steep * 2.0**-23 if cosine <= 0.3 else bound
            assert largest_row_error(w_mine[rows], w_bar[rows]) <= wide
    for sign in (2.0, -0.5):
        x = np.float32(sign) * w[y]
        losses = np.real(losses_of(field, x.astype(float), w.astype(float), y, field.numbers))
        (_, mine), gradients = ours(x, w, y)
        np.testing.assert_allclose(mine, losses, rtol=2e-5 * field.steep, atol=1e-30)
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", FIELD)
def test_bfloat16_inputs_are_computed_in_float32(name, head):
    field = FIELD[name]
    x, w, y = small(name, 0.4)
    x, w = jnp.asarray(x, jnp.bfloat16), jnp.asarray(w, jnp.bfloat16)
    margin = field.margin(*field.numbers)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def ours(x, w):
        losses = ms.margin_loss(x, w, y, margin, head=HEADS[head])
        return losses.sum(), losses

    (_, mine), gradients = ours(x, w)
    losses, *exact, _ = losses_and_gradients(field, np.asarray(x, float), np.asarray(w, float), y)
    assert mine.dtype == jnp.float32
    np.testing.assert_allclose(mine, losses, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(gradients, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        # A class row is the sum of two parts, each rounded once.
        error = np.linalg.norm(np.asarray(ours, np.float64) - theirs, axis=1)
        size = np.linalg.norm(theirs, axis=1)
        assert np.all(error <= 2 * 2.0**-8 * size + 1e-4 * size.max())


@pytest.mark.parametrize("name", FIELD)
def test_logits_are_the_oracles(name):
    """All of them, the own one included; what is more than logits (a regulariser, one more class) is in the loss."""
    x, w, y = small(name, 0.4)
    logits = ms.margin_logits(
        jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32), y, FIELD[name].margin(*FIELD[name].numbers)
    )
    expected = logits_of(FIELD[name], x, w, y)
    closed = expected < -1e6
    np.testing.assert_allclose(np.asarray(logits)[~closed], expected[~closed], rtol=2e-5, atol=2e-4)
    assert np.all(np.asarray(logits)[closed] < -1e6)


def test_every_margin_of_the_library_is_held_against_an_oracle():
    """Here or in table.py; what only makes the numbers of one of those, by its relation to it in test_adaptive.py."""
    related = {"elastic_arcface", "elastic_cosface", "adaptive_face", "kappaface", "adacos"}
    functions = {name: getattr(ms, name) for name in ms.__all__ if name[0].islower()}
    margins = {n for n, f in functions.items() if typing.get_type_hints(f).get("return") is ms.Margin}
    rows = {*FIELD, *MARGINS}
    assert {m for m in margins - related if not any(row == m or row.startswith(f"{m}_") for row in rows)} == set()
    assert related <= margins
