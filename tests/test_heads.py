"""Heads: losses of every kind in them, what a compiled program holds, and every transformation of JAX."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import margin_softmax as ms
import oracle
from field import FIELD, losses_and_gradients
from margin_softmax import heads, reductions
from table import examples, largest_row_error

HEADS = {
    "dense": ms.dense(),
    "blockwise": ms.blockwise(),
    "recompute": ms.blockwise(block_size=7, memory=0),
    "keep_some": ms.blockwise(block_size=7, memory=7 * 6 * 3 * 8),
    "one_class": ms.blockwise(block_size=1, memory=0),
    "one_block": ms.blockwise(block_size=1000),
}
COTANGENT = np.array([1.0, -0.5, 2.0, 0.0, 3.0, 0.25])


@pytest.mark.parametrize("head", ["dense", "recompute", "keep_some"])
@pytest.mark.parametrize("name", ["curricularface", "sphereface2", "npcface", "magface"])
def test_sub_centres_and_smoothing_meet_losses_of_every_kind(name, head):
    """Others that need the target, another reduction, a statistic, a norm: of every class the best centre counts.

    For each example alone that is the loss over those centres; smoothing is a second reduction in the same pass,
    where the loss has any.
    """
    field = FIELD[name]
    x, w, y = examples(6, 17, 4, 0.6, feature_norm=field.feature_norm)
    centres = np.random.default_rng(5).normal(size=(17, 3, 4))
    centres[:, 0] = w
    a = x / np.linalg.norm(x, axis=1, keepdims=True)
    best = np.einsum("bd,ckd->bck", a, centres / np.linalg.norm(centres, axis=2, keepdims=True)).argmax(axis=2)
    with jax.enable_x64(True):
        arguments = (jnp.asarray(x), jnp.asarray(centres), jnp.asarray(y), field.margin(*field.numbers))

        @jax.jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def ours(x):
            losses = ms.margin_loss(x, *arguments[1:], head=HEADS[head])
            return losses.sum(), losses

        (_, losses), x_bar = ours(arguments[0])
        smooth = None
        if name != "sphereface2":
            smooth = ms.margin_loss(*arguments, head=HEADS[head], label_smoothing=0.1)
        z = np.asarray(ms.margin_logits(*arguments))
    for i in range(6):
        chosen, one = centres[np.arange(17), best[i]], slice(i, i + 1)
        loss, gradient, *_ = losses_and_gradients(field, x[one], chosen, y[one])
        np.testing.assert_allclose(losses[i], loss[0], rtol=1e-10)
        np.testing.assert_allclose(x_bar[i], gradient[0], rtol=1e-9, atol=1e-9 * np.abs(gradient).max())
    if smooth is None:
        return
    mean_distance = z[np.arange(6), y] - z.mean(axis=1)
    np.testing.assert_allclose(np.asarray(smooth), np.asarray(losses) + 0.1 * mean_distance, rtol=1e-10)


@pytest.mark.parametrize(
    ("head", "classes"),
    [("dense", 1), ("dense", 13), ("blockwise", 2), ("one_class", 8), ("one_block", 13)]
    + [("recompute", classes) for classes in (1, 2, 6, 7, 8, 13, 14)],
)
def test_any_number_of_classes_fits_any_block(head, classes):
    """First and last class, repeated labels, C below, at, above and prime to the block; also one example."""
    x, w, _ = examples(6, classes, 4, 0.5)
    with jax.enable_x64(True):
        for batch in (6, 1) if classes in (1, 13) else (6,):
            y = np.array([0, classes - 1, 0, classes // 2, classes - 1, 0])[:batch]
            _, losses, x_bar, w_bar, _ = oracle.logits_and_gradients(
                oracle.additive_cosine(0.35, 8.0), x[:batch], w, y, cotangent=COTANGENT[:batch]
            )

            def total(x, w, y=y, batch=batch):
                losses = ms.margin_loss(x, w, y, ms.am_softmax(0.35, 8.0), head=HEADS[head])
                return jnp.sum(jnp.asarray(COTANGENT[:batch]) * losses), losses

            (_, ours), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
                jnp.asarray(x[:batch]), jnp.asarray(w)
            )
            np.testing.assert_allclose(ours, losses, rtol=1e-10, atol=1e-14)
            np.testing.assert_allclose(gradients[0], x_bar, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(gradients[1], w_bar, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("head", ["dense", "blockwise", "recompute"])
def test_near_zero_logits_count_every_class_once(head):
    """Where padding would show: all logits near 0, so that each class weighs the same."""
    x, w, y = examples(6, 17, 4, 0.5, dtype=np.float32)
    losses = ms.margin_loss(1e-6 * x, w, y, ms.plain(), head=HEADS[head])
    np.testing.assert_allclose(losses, np.log(17.0), rtol=1e-6)


def gradients_of(head, dtype=jnp.float32):
    x, w, y = examples(6, 17, 4, 0.5, dtype=np.float32)
    margin = ms.arcface(0.3, 8.0)

    def total(x, w):
        return jnp.sum(jnp.asarray(COTANGENT + 0.1, jnp.float32) * ms.margin_loss(x, w, y, margin, head=head))

    return total, (jnp.asarray(x, dtype), jnp.asarray(w, dtype))


@pytest.mark.parametrize("head", ["dense", "keep_some"])
def test_transformations(head):
    """jit, grad of jit, jit of grad, vmap, scan, checkpoint: one and the same gradient."""
    total, arguments = gradients_of(HEADS[head])
    expected = jax.grad(total, argnums=(0, 1))(*arguments)
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), arguments)

    def scanned(x, w):
        return jax.lax.scan(lambda sum_, _: (sum_ + total(x, w), None), 0.0, None, length=2)[0] / 2

    for transformed in (jax.jit(total), jax.checkpoint(total), scanned):
        ours = jax.jit(jax.grad(transformed, argnums=(0, 1)))(*arguments)
        chex.assert_trees_all_close(ours, expected, rtol=1e-5, atol=1e-6)
    by_vmap = jax.vmap(jax.grad(total, argnums=(0, 1)))(*stacked)
    for i in range(2):
        one = jax.grad(total, argnums=(0, 1))(*jax.tree.map(lambda a, i=i: a[i], stacked))
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], by_vmap), one, rtol=1e-5, atol=1e-6)


def test_nothing_leaks():
    x, w, y = (jnp.asarray(a) for a in examples(2, 9, 3, 0.5, dtype=np.float32))

    def total(x):
        total = HEADS["recompute"].others(
            reductions.log_sum_exp(),
            heads.Logits(lambda w, _: w, lambda p, *_: p),
            heads.Rows(x),
            heads.Classes(w),
            jnp.asarray(y),
        )
        return total.log_sum.sum()

    with jax.checking_leaks():
        jax.make_jaxpr(jax.grad(total))(x)


def test_forward_mode_and_hessian_through_the_dense_head():
    x, w, y = examples(3, 5, 3, 0.5)
    with jax.enable_x64(True):

        def total(x):
            return ms.margin_loss(x, w, y, ms.arcface(0.3, 8.0), head=ms.dense()).sum()

        x = jnp.asarray(x)
        gradient = jax.grad(total)(x)
        np.testing.assert_allclose(jax.jacfwd(total)(x), gradient, rtol=1e-10)
        hessian = jax.hessian(total)(x)
        step = 1e-6
        for i in np.ndindex(x.shape):
            ahead, behind = (jax.grad(total)(x.at[i].add(sign * step)) for sign in (1, -1))
            np.testing.assert_allclose(hessian[i], (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-6)


def test_second_derivatives_through_the_blockwise_head():
    x, w, y = examples(3, 17, 3, 0.5)
    with jax.enable_x64(True):

        def total(x, head):
            return ms.margin_loss(x, w, y, ms.arcface(0.3, 8.0), head=head).sum()

        x = jnp.asarray(x)
        exact = jax.hessian(total)(x, ms.dense())
        for head in (ms.blockwise(), ms.blockwise(7, memory=0)):
            np.testing.assert_allclose(jax.jacrev(jax.grad(total))(x, head), exact, rtol=1e-9, atol=1e-9)
            with pytest.raises(TypeError, match="forward-mode"):
                jax.jvp(lambda x, head=head: total(x, head), (x,), (x,))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("head", ["dense", "blockwise", "recompute"])
def test_narrow_inputs_are_computed_in_float32(head, dtype):
    total, arguments = gradients_of(HEADS[head], dtype)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), arguments)
    narrow = jax.grad(total, argnums=(0, 1))(*arguments)
    exact = jax.grad(total, argnums=(0, 1))(*wide)
    chex.assert_trees_all_equal_dtypes(narrow, arguments)
    for ours, theirs in zip(narrow, exact, strict=True):
        # A class row is the sum of two parts, its own examples' and the others', each rounded once to the narrow type.
        assert largest_row_error(ours, np.asarray(theirs, np.float64)) < 2 * float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize("head", ["dense", "recompute"])
def test_gradients_of_many_examples_of_one_class_add_up_in_float32(head):
    """In bfloat16 a sum of 512 like terms would stop at 256 of them."""
    x = jnp.tile(jnp.array([[0.8, 0.6]], jnp.bfloat16), (512, 1))
    y = np.zeros(512, np.int32)

    def total(w):
        return ms.margin_loss(x, w, y, ms.plain(), head=HEADS[head]).sum()

    w = jnp.zeros((9, 2), jnp.bfloat16)
    exact = 512 * (np.eye(9)[0] - 1 / 9)[:, None] * -np.array([[0.8, 0.6]])
    np.testing.assert_allclose(np.asarray(jax.grad(total)(w), np.float64), exact, rtol=0.01)


def test_a_new_value_or_an_equal_head_is_not_a_new_program():
    x, w, y = examples(6, 17, 4, 0.5, dtype=np.float32)

    @chex.assert_max_traces(n=1)
    def loss(margin):
        return ms.margin_loss(x, w, y, margin, head=ms.blockwise(7))

    compiled = jax.jit(loss)
    for m in (0.1, 0.2, np.float32(0.3), jnp.float32(0.4)):
        compiled(ms.arcface(float(m), 8.0))
    from margin_softmax import losses

    before = losses._margin_loss.__wrapped__._cache_size()
    for head in (ms.blockwise(6), ms.blockwise(6), ms.blockwise(block_size=6)):
        ms.margin_loss(x, w, y, ms.arcface(0.1, 8.0), head=head)
    assert losses._margin_loss.__wrapped__._cache_size() == before + 1


def buffers(compiled):
    """Sizes, in elements, of every array in a compiled program."""
    shapes = set(re.findall(r"\b[a-z]+[0-9]+\[([0-9,]+)\]", compiled.as_text()))
    return {shape: int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes}


def compiled_gradients(head, batch=256, dim=64, classes=100_003):
    def total(x, w, y):
        return ms.margin_loss(x, w, y, ms.arcface(), head=head).sum()

    arguments = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((batch, dim), jnp.float32), ((classes, dim), jnp.float32), ((batch,), jnp.int32))
    ]
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*arguments).compile()


@pytest.mark.optimised
def test_the_default_head_holds_no_batch_by_classes_array():
    """The dense one does, so that this can be seen."""
    logits = 256 * 100_003
    assert max(buffers(compiled_gradients(ms.blockwise())).values()) < logits
    assert max(buffers(compiled_gradients(ms.dense())).values()) >= logits


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("shape", "most"), [((256, 512, 100_000), 90), ((512, 512, 100_000), 95), ((128, 128, 1_000_000), 75)]
)
def test_temporaries_stay_within_what_is_allowed_and_a_few_blocks(shape, most):
    """In MiB; by default 64 of them may be kept. So there is no copy of the weights or their gradient either."""
    for head, limit in ((ms.blockwise(), most), (ms.blockwise(memory=16 * 2**20), 40)):
        assert compiled_gradients(head, *shape).memory_analysis().temp_size_in_bytes <= limit * 2**20


def plan_of(head, batch, dim, classes, dtype=jnp.float32):
    rows = heads.Rows(jax.ShapeDtypeStruct((batch, dim), dtype))
    return head.plan(rows, heads.Classes(jax.ShapeDtypeStruct((classes, dim), dtype)))


@pytest.mark.optimised
@pytest.mark.parametrize("head", [ms.blockwise(), ms.dense()], ids=["blockwise", "dense"])
def test_nothing_is_as_large_as_the_square_of_the_batch(head):
    """Labels are compared with one another, to find those of one class; 4096 of them in pairs would be 64 MiB."""
    temporaries = compiled_gradients(head, 4096, 4, 16).memory_analysis().temp_size_in_bytes
    assert temporaries < 4 * 2**20


def test_a_few_blocks_are_written_out_without_a_loop():
    """What is kept of some of them, and the last one's overlap, are as in the loop."""
    x, w, y = examples(256, 10_001, 3, 0.5)
    with jax.enable_x64(True):
        block = 8 * 256 * plan_of(ms.blockwise(), 256, 3, 10_001).size

        @functools.partial(jax.jit, static_argnames="head")
        def ours(x, w, head):
            def total(x, w):
                losses = ms.margin_loss(x, w, y, ms.arcface(0.3, 8.0), head=head)
                return jnp.sum(jnp.cos(jnp.arange(256.0)) * losses), losses

            return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(x, w)

        exact = ours(jnp.asarray(x), jnp.asarray(w), ms.dense())
        for kept in (0, 2):
            head = ms.blockwise(memory=kept * block)
            plan = plan_of(head, 256, 3, 10_001, jnp.float64)
            assert plan.unrolled
            assert plan.kept == kept
            assert 2 * plan.size < 10_001
            assert 10_001 % plan.size
            chex.assert_trees_all_close(ours(jnp.asarray(x), jnp.asarray(w), head), exact, rtol=1e-9, atol=1e-12)


def test_blocks_are_no_powers_of_two():
    for batch, dim, classes in (
        (256, 512, 100_000),
        (128, 128, 1_000_000),
        (256, 64, 2**22),
        (1, 2, 10),
        (4096, 8, 999),
    ):
        rows = heads.Rows(jax.ShapeDtypeStruct((batch, dim), jnp.float32))
        size = heads.Blockwise().plan(rows, heads.Classes(jax.ShapeDtypeStruct((classes, dim), jnp.float32))).size
        assert size == classes or size % 32 == 16
        assert batch * size <= 2**19 + 16 * batch or size <= 128 + 16


@pytest.mark.parametrize("name", ["cosface", "curricularface", "magface"])
def test_what_the_other_logits_do_not_look_at_does_not_reach_them(name):
    """So that no gradient of it, all zeros, is carried through an angle's derivative."""
    seen = []

    class Watching(heads.Blockwise):
        def others(self, reduction, logits, rows, classes, labels):
            given = heads.only_used(logits, rows, classes).given
            read = {**given.own._asdict(), "target": given.target}
            seen.append({name for name, leaf in read.items() if isinstance(leaf, jax.Array)})
            assert isinstance(given.margin.scale, jax.Array)
            return super().others(reduction, logits, rows, classes, labels)

    margin = {"cosface": ms.cosface(), "curricularface": ms.curricularface(0.1), "magface": ms.magface()}[name]
    x, w, y = examples(6, 17, 4, 0.5, feature_norm=50.0, dtype=np.float32)
    ms.margin_loss(x, w, y, margin, head=Watching())
    assert seen == [{"target"} if name == "curricularface" else set()]


@pytest.mark.parametrize("head", ["dense", "keep_some", "recompute"])
def test_a_margin_may_make_something_of_numbers_that_it_does_not_read(head):
    def others(products, own, target):
        return jnp.maximum(products, jnp.full_like(target, -0.5)) + jnp.zeros_like(own.angle)

    x, w, y = examples(6, 17, 4, 0.5, dtype=np.float32)
    margin = ms.cosface(0.2, 8.0)._replace(others=Partial(others))
    losses = ms.margin_loss(x, w, y, margin, head=HEADS[head])
    z = np.maximum(np.asarray(ms.cosines(x, w)), -0.5)
    z[np.arange(6), y] = ms.cosines(x, w)[np.arange(6), y] - 0.2
    np.testing.assert_allclose(losses, ms.cross_entropy(8.0 * z, y), rtol=1e-5)
    assert np.all(np.isfinite(jax.grad(lambda x: ms.margin_loss(x, w, y, margin, head=HEADS[head]).sum())(x)))


def precisions(head):
    total, arguments = gradients_of(head)
    text = str(jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(*arguments))
    assert text.count("dot_general[") == text.count("precision=") > 2
    return set(re.findall(r"precision=\(?(?:Precision\.)?(\w+)", text))


def test_precision_reaches_every_product():
    """By default the highest: what else an accelerator would make of float32 does not keep its digits."""
    assert precisions(ms.blockwise()) == precisions(ms.dense()) == {"HIGHEST"}
    assert precisions(ms.blockwise(precision="default")) == {"DEFAULT"}
    assert precisions(ms.blockwise(7, memory=0, precision="BF16_BF16_F32")) == {"BF16_BF16_F32"}


def test_bfloat16_products_are_summed_in_float32():
    """A logit of s = 64 then knows its cosine to the eighth bit of the factors, and each p_j to a few hundredths."""
    total, arguments = gradients_of(ms.blockwise(precision="BF16_BF16_F32"), jnp.bfloat16)
    exact, _ = gradients_of(ms.dense())
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), arguments)
    np.testing.assert_allclose(total(*arguments), exact(*wide), rtol=0.02)
