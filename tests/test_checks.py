"""Bad inputs: what is refused, in which words, and what has a defined value instead."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import checkify

import margin_softmax as ms
import oracle
from table import MARGINS, examples

B, C, D = 4, 5, 3
X, W, _ = (np.asarray(a) for a in examples(B, C, D, 0.3, dtype=np.float32))
Y = np.array([0, 3, 3, 4], np.int32)
Z = X @ W.T
COTANGENT = np.array([1.0, -0.5, 2.0, 3.0], np.float32)
NAN, INF = math.nan, math.inf

# One block kept and two computed anew, so that both ways of the backward pass meet every input.
HEADS = {"dense": ms.dense(), "blockwise": ms.blockwise(2, memory=2 * B * 4)}
LOSSES = {"plain": ms.plain(), "arcface": ms.arcface(0.5, 8.0), "a_softmax": ms.a_softmax(3, blend=1.0)}


def loss(features=X, weights=W, labels=Y, margin=LOSSES["arcface"], **options):
    return ms.margin_loss(features, weights, labels, margin, **options)


def entropy(logits=Z, labels=Y, **options):
    return ms.cross_entropy(logits, labels, **options)


def logits(features=X, weights=W, labels=Y, margin=LOSSES["arcface"], **options):
    return ms.margin_logits(features, weights, labels, margin, **options)


def with_margin(*numbers):
    return loss(margin=ms.arcface(*numbers))


def refused(*words, error=ValueError, **calls):
    """Rows of the table: each call must raise `error`, with all these words in its message."""
    return {f"{words[0]} {name.replace('_', ' ')}": (call, error, words) for name, call in calls.items()}


INT8 = np.zeros(B, np.int8)
WIDE = np.array([0, 2**32 + 1, 3, 4])
REFUSED = {
    # features and weights
    **refused(
        "features", "real floating point", "int32", "features.astype(jnp.float32)", error=TypeError,
        integers=lambda: loss(np.ones((B, D), np.int32)),
        integer_lists=lambda: loss([[1, 2, 3]] * B),
        integers_for_logits=lambda: logits(np.ones((B, D), np.int32)),
        integers_for_cosines=lambda: ms.cosines(np.ones((B, D), np.int32), W),
        integers_for_nearest_class=lambda: ms.nearest_class(np.ones((B, D), np.int32), W),
    ),
    **refused("features", "real", "complex64", error=TypeError, complex=lambda: loss(X.astype(np.complex64))),
    **refused("features", "NoneType", error=TypeError, none=lambda: loss(None)),
    **refused("features", "str", error=TypeError, text=lambda: loss("features")),
    **refused("features", "[B, D]", f"came ({D},)", rank_1=lambda: loss(X[0]), cosines=lambda: ms.cosines(X[0], W)),
    **refused("features", "[B, D]", f"came (1, {B}, {D})", "Flatten", rank_3=lambda: loss(X[None])),
    **refused("weights", "real", "int32", error=TypeError, integers=lambda: loss(weights=np.ones((C, D), np.int32))),
    **refused("weights", "complex64", error=TypeError, complex=lambda: loss(weights=W.astype(np.complex64))),
    **refused("weights", "[C, D]", "[C, K, D]", f"came ({D},)", rank_1=lambda: loss(weights=W[0])),
    **refused("weights", "[C, K, D]", f"came (1, 1, {C}, {D})", rank_4=lambda: loss(weights=W[None, None])),
    **refused(
        "weights", f"[C, {D}]", f"came ({C}, 2)", "share D",
        too_few_dimensions=lambda: loss(weights=W[:, :2]), sub_centres=lambda: ms.cosines(X, W[:, :2]),
    ),
    **refused(
        "weights", "transposed", "weights.T", f"came ({D}, {C})",
        transposed=lambda: loss(weights=W.T), cosines=lambda: ms.cosines(X, W.T),
        nearest_class=lambda: ms.nearest_class(X, W.T), logits=lambda: logits(weights=W.T),
    ),
    **refused(
        "labels", "no other is left", one_class=lambda: ms.nearest_class(X, W[:1], labels=np.zeros(B, np.int32))
    ),
    **refused("weights", "at least one class", f"(0, {D})", no_class=lambda: loss(weights=W[:0])),
    **refused("weights", "at least one class", f"({C}, 0, {D})", no_centre=lambda: loss(weights=W[:, None][:, :0])),
    # logits
    **refused("logits", "real", "int32", error=TypeError, integers=lambda: entropy(np.ones((B, C), np.int32))),
    **refused("logits", "real", "complex64", error=TypeError, complex=lambda: entropy(Z.astype(np.complex64))),
    **refused("logits", "[B, C]", f"came ({C},)", rank_1=lambda: entropy(Z[0])),
    **refused("logits", "[B, C]", f"came (1, {B}, {C})", rank_3=lambda: entropy(Z[None])),
    **refused("logits", "at least one class", f"({B}, 0)", no_class=lambda: entropy(Z[:, :0])),
    # labels
    **refused(
        "labels", "integers", "float32", "labels.astype(jnp.int32)", error=TypeError,
        real=lambda: loss(labels=Y.astype(np.float32)),
        real_list=lambda: loss(labels=[0.0, 1.0, 2.0, 3.0]),
        real_for_logits=lambda: logits(labels=Y.astype(np.float32)),
        one_hot_real=lambda: loss(labels=np.eye(C, dtype=np.float32)[Y]),
    ),
    **refused(
        "labels", f"[B, C] = ({B}, {C})", f"came ({B},)", "class indices are integers",
        real_indices_for_cross_entropy=lambda: entropy(labels=Y.astype(np.float32)),
    ),
    **refused(
        "labels", f"[B, C] = ({B}, {C})", f"came ({B}, {C - 1})", "distributions",
        distributions_over_too_few=lambda: entropy(labels=np.full((B, C - 1), 0.2, np.float32)),
    ),
    **refused(
        "labels", "integers", "bool", error=TypeError,
        booleans=lambda: loss(labels=Y > 0), booleans_for_cross_entropy=lambda: entropy(labels=Y > 0),
        boolean_list=lambda: entropy(labels=[True, False, True, False]),
    ),
    **refused("labels", "NoneType", error=TypeError, none=lambda: loss(labels=None)),
    **refused("labels", "str", error=TypeError, text=lambda: entropy(labels="labels")),
    **refused("labels", "list", error=TypeError, ragged=lambda: loss(labels=[[0], [1, 2], [3], [4]])),
    **refused(
        "labels", f"[B] = ({B},)", f"came ({B}, {C})", "one-hot", "labels.argmax(axis=-1)",
        one_hot=lambda: loss(labels=np.eye(C, dtype=np.int32)[Y]),
        one_hot_for_cross_entropy=lambda: entropy(labels=np.eye(C, dtype=np.int32)[Y]),
        one_hot_list=lambda: entropy(labels=np.eye(C, dtype=np.int32)[Y].tolist()),
    ),
    **refused(
        "labels", f"[B] = ({B},)", f"came ({B}, 1)", "labels.reshape(-1)",
        column=lambda: loss(labels=Y[:, None]), column_for_cross_entropy=lambda: entropy(labels=Y[:, None]),
        column_of_one_class=lambda: entropy(Z[:, :1], labels=0 * Y[:, None]),
    ),
    **refused(
        "labels", f"[B] = ({B},)", "came (1,)",
        one_for_all=lambda: loss(labels=Y[:1]), one_for_all_in_cross_entropy=lambda: entropy(labels=Y[:1]),
    ),
    **refused("labels", f"[B] = ({B},)", f"came ({B - 1},)", too_few=lambda: loss(labels=Y[1:])),
    **refused("labels", f"[B] = ({B},)", "came ()", scalar=lambda: entropy(labels=2)),
    **refused(
        "labels", "int8", "0 to 128", "int32", error=TypeError,
        narrow=lambda: loss(weights=np.ones((129, D), np.float32), labels=INT8),
        narrow_for_cross_entropy=lambda: entropy(np.ones((B, 129), np.float32), INT8),
    ),
    **refused(
        "labels", "row 1", str(2**32 + 1), "int32 cannot hold",
        wide=lambda: loss(labels=WIDE), wide_for_cross_entropy=lambda: entropy(labels=WIDE),
        wide_for_logits=lambda: logits(labels=WIDE),
    ),
    **refused("labels", "row 1", str(-(2**31) - 1), far_below=lambda: loss(labels=[0, -(2**31) - 1, 3, 4])),
    **refused("labels", "row 1", str(2**63), far_above=lambda: loss(labels=np.array([0, 2**63, 3, 4], np.uint64))),
    **refused("labels", "list", error=TypeError, huge=lambda: loss(labels=[0, 2**70, 3, 4])),
    # where
    **refused(
        "where", "booleans", "int32", "where != 0", error=TypeError,
        integers=lambda: loss(where=np.ones(B, np.int32)),
        for_cross_entropy=lambda: entropy(where=np.ones(B, np.int32)),
    ),
    **refused("where", "booleans", "float32", error=TypeError, real=lambda: loss(where=np.ones(B, np.float32))),
    **refused(
        "where", f"[B] = ({B},)", f"came ({C},)", "nothing is broadcast",
        by_class=lambda: loss(where=np.ones(C, bool)),
    ),
    **refused(
        "where", f"[B] = ({B},)", f"came ({B}, {B})",
        of_all_logits_when_there_are_as_many_classes=lambda: entropy(Z[:, :B], 0 * Y, where=np.ones((B, B), bool)),
    ),
    **refused("where", f"[B] = ({B},)", "came (1,)", one_for_all=lambda: entropy(where=np.ones(1, bool))),
    **refused("where", f"[B] = ({B},)", "came ()", scalar=lambda: loss(where=True)),
    # bias
    **refused("bias", f"[C] = ({C},)", f"came ({B},)", by_example=lambda: loss(bias=np.ones(B, np.float32))),
    **refused("bias", f"[C] = ({C},)", "came ()", scalar=lambda: logits(bias=1.0)),
    **refused("bias", f"[C] = ({C},)", f"came ({C}, 1)", column=lambda: loss(bias=np.ones((C, 1), np.float32))),
    **refused("bias", "real", "int32", error=TypeError, integers=lambda: loss(bias=np.ones(C, np.int32))),
    # label smoothing
    **refused(
        "label_smoothing", ">= 0 and <= 1", "-0.1",
        negative=lambda: loss(label_smoothing=-0.1), negative_for_cross_entropy=lambda: entropy(label_smoothing=-0.1),
    ),
    **refused("label_smoothing", ">= 0 and <= 1", "1.5", above_1=lambda: entropy(label_smoothing=1.5)),
    **refused("label_smoothing", "finite", "nan", nan=lambda: loss(label_smoothing=NAN)),
    **refused("label_smoothing", "one number", "(1,)", array=lambda: loss(label_smoothing=np.array([0.1]))),
    **refused("label_smoothing", "real number", "[0.1]", error=TypeError, list=lambda: entropy(label_smoothing=[0.1])),
    **refused("label_smoothing", "real number", "None", error=TypeError, none=lambda: loss(label_smoothing=None)),
    # margins
    **refused(
        "margin", "expected a Margin", "ms.arcface(0.5)", "function", error=TypeError,
        not_called=lambda: loss(margin=ms.arcface), not_called_for_logits=lambda: logits(margin=ms.arcface),
        not_called_for_straight_through=lambda: ms.straight_through(ms.arcface),
    ),
    **refused("margin", "expected a Margin", "float", error=TypeError, number=lambda: loss(margin=0.5)),
    **refused(
        "margin", f"[B] = ({B},)", f"shape ({C},)", "table[labels]",
        by_class=lambda: with_margin(np.full(C, 0.5)), scale_by_class=lambda: with_margin(0.5, np.full(C, 8.0)),
        for_logits=lambda: logits(margin=ms.arcface(np.full(C, 0.5))),
    ),
    **refused("margin", f"shape ({B}, 1)", column=lambda: with_margin(np.full((B, 1), 0.5))),
    **refused("margin", "shape (1,)", one_for_all=lambda: with_margin(np.full(1, 0.5))),
    **refused(
        "margin", "-0.1", ">= 0",
        negative=lambda: ms.arcface(-0.1), negative_cosface=lambda: ms.cosface(-0.1),
        negative_am=lambda: ms.am_softmax(-0.1),
    ),
    **refused("margin", "-0.25 among 2 values", one_negative=lambda: ms.arcface(np.array([0.25, -0.25]))),
    **refused("margin", "finite", "nan", nan=lambda: ms.arcface(NAN), nan_cosface=lambda: ms.cosface(NAN)),
    **refused("margin", "28.6", "radians", "degrees", "<= 3.14159", degrees=lambda: ms.arcface(28.6)),
    **refused("m2", "17.2", "radians", "degrees", degrees=lambda: ms.combined(1.0, 17.2, 0.2)),
    **refused("margin", "20", "<= 2", "difference of cosines", not_a_cosine=lambda: ms.cosface(20.0)),
    **refused(
        "margin", "whole number >= 1", "1.5", "combined(m1=...)",
        not_whole=lambda: ms.l_softmax(1.5), not_whole_for_a_softmax=lambda: ms.a_softmax(1.5),
        one_not_whole=lambda: ms.l_softmax(np.array([1.0, 1.5])),
    ),
    **refused("margin", "whole number >= 1", "came 0", zero=lambda: ms.l_softmax(0), for_a=lambda: ms.a_softmax(0)),
    **refused("margin", "whole number", "nan", not_a_multiple=lambda: ms.a_softmax(NAN)),
    **refused("blend", ">= 0", "-1", negative=lambda: ms.l_softmax(2, -1.0), for_a=lambda: ms.a_softmax(2, -1.0)),
    **refused("blend", "finite", "inf", infinite=lambda: ms.a_softmax(4, INF)),
    **refused("m1", "> 0", "came 0", zero=lambda: ms.combined(0.0, 0.3, 0.2)),
    **refused("m3", ">= 0", "-0.2", negative=lambda: ms.combined(1.0, 0.3, -0.2)),
    **refused(
        "scale", "> 0", "came 0",
        zero=lambda: ms.arcface(0.5, 0.0), for_cosface=lambda: ms.cosface(0.3, 0.0),
        for_am=lambda: ms.am_softmax(0.3, 0.0), for_normface=lambda: ms.normface(0.0),
        for_combined=lambda: ms.combined(1.0, 0.3, 0.2, 0.0),
    ),
    **refused("scale", "> 0", "-64", negative=lambda: ms.normface(-64.0)),
    **refused("scale", "finite", "inf", infinite=lambda: ms.cosface(0.3, INF)),
    **refused("scale", "real number", "1j", error=TypeError, complex=lambda: ms.normface(1j)),
    **refused("scale", "real number", "True", error=TypeError, boolean=lambda: ms.normface(True)),
    **refused("margin", "real number", "[0.1, 0.2]", error=TypeError, list=lambda: ms.arcface([0.1, 0.2])),
    **refused("margin", "real number", "'0.5'", error=TypeError, text=lambda: ms.arcface("0.5")),
    **refused("tau", "> 0", "came 0", zero=lambda: ms.temperature(0.0)),
    **refused("tau", "finite", "inf", infinite=lambda: ms.temperature(INF)),
    **refused("base", ">= 0", "-1", negative=lambda: ms.blend_schedule(-1.0)),
    **refused("gamma", ">= 0", "-0.1", negative=lambda: ms.blend_schedule(1.0, -0.1)),
    **refused("power", ">= 0", "-2", negative=lambda: ms.blend_schedule(1.0, 0.1, -2.0)),
    **refused("minimum", "finite", "nan", nan=lambda: ms.blend_schedule(minimum=NAN)),
    # heads
    **refused("block_size", "whole number >= 1", "came 0", zero=lambda: ms.blockwise(0)),
    **refused("block_size", "whole number", "1.5", not_whole=lambda: ms.blockwise(1.5)),
    **refused("block_size", "one number", "(2,)", error=TypeError, array=lambda: ms.blockwise(np.array([1, 2]))),
    **refused(
        "block_size", "traced", "Python int", error=TypeError,
        traced=lambda: jax.jit(lambda size: loss(head=ms.blockwise(size)))(2),
    ),
    **refused("memory", ">= 0", "-1", "bytes", negative=lambda: ms.blockwise(memory=-1)),
    **refused("precision", "'highest'", "'exact'", unknown=lambda: ms.blockwise(precision="exact")),
    **refused("precision", "'BF16_BF16_F32'", "['high']", list=lambda: ms.blockwise(precision=["high"])),
    # angles
    **refused("x", "real", "int32", "x.astype(jnp.float32)", error=TypeError, integers=lambda: ms.angle(Y, X[:, 0])),
    **refused("w", "real", "int32", error=TypeError, integers=lambda: ms.angle(X[:, 0], Y)),
    **refused(
        "w", f"x ({B}, {D})", "nothing is broadcast",
        one_for_all=lambda: ms.angle(X, X[0]), all_classes=lambda: ms.angle(X, W),
        first_only=lambda: ms.angle(X, X[:1]),
    ),
    **refused("w", "[..., D]", "()", scalars=lambda: ms.angle(1.0, 2.0)),
    # labels on the host
    **refused(
        "labels", "row 1 holds 5", "0 to 4", "5 classes", "1 of 2 labels is wrong",
        label_above=lambda: ms.check_labels([0, 5], 5),
    ),
    **refused("labels", "row 0 holds -1", "2 of 3", "are wrong", below=lambda: ms.check_labels(Y[:3] - [1, 0, 9], 5)),
    **refused("labels", "row (1, 0) holds 9", two_axes=lambda: ms.check_labels([[0, 1], [9, 2]], 5)),
    **refused("labels", str(2**40), wide_on_the_host=lambda: ms.check_labels(np.array([2**40]), 5)),
    **refused("labels", "integers", "float64", error=TypeError, real_on_the_host=lambda: ms.check_labels([0.0], 5)),
    **refused("labels", "integers", "bool", error=TypeError, boolean_on_the_host=lambda: ms.check_labels([True], 5)),
    **refused("labels", "list", error=TypeError, ragged_on_the_host=lambda: ms.check_labels([[0], [1, 2]], 5)),
    **refused(
        "labels", "traced", "outside jit", error=TypeError,
        traced=lambda: jax.jit(lambda labels: ms.check_labels(labels, 5))(Y),
    ),
    **refused("num_classes", ">= 1", "came 0", zero=lambda: ms.check_labels([0], 0)),
    **refused("num_classes", "whole number", "2.5", not_whole=lambda: ms.check_labels([0], 2.5)),
    **refused(
        "num_classes", "traced", error=TypeError,
        traced=lambda: jax.jit(lambda classes: ms.check_labels([0], classes))(5),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_by_name_with_what_came_and_what_to_do(call, error, words):
    with pytest.raises(error) as refusal:
        call()
    message = str(refusal.value)
    assert type(refusal.value) is error
    assert message.startswith(f"{words[0]}: ")
    for word in words:
        assert word in message


def test_what_is_no_jax_array_is_made_one():
    expected, lists = loss(), (X.tolist(), W.tolist(), Y.tolist())
    parameters = (nnx.Param(jnp.asarray(X)), nnx.Param(jnp.asarray(W)), nnx.Variable(jnp.asarray(Y)))
    wide = (X.astype(np.float64), W.astype(np.float64), Y.astype(np.int64))
    for arguments in (lists, parameters, wide):
        result = loss(*arguments)
        assert result.dtype == jnp.float32
        np.testing.assert_array_equal(result, expected)
        np.testing.assert_array_equal(ms.cosines(*arguments[:2]), ms.cosines(X, W))
        np.testing.assert_array_equal(logits(*arguments), logits())
    np.testing.assert_array_equal(entropy(Z.tolist(), Y.tolist()), entropy())
    distributions = np.eye(C, dtype=np.float32)[Y]
    np.testing.assert_array_equal(entropy(Z, distributions.tolist()), entropy(Z, distributions))
    np.testing.assert_array_equal(loss(where=[True] * B), expected)
    np.testing.assert_array_equal(loss(margin=ms.arcface(0.5, nnx.Param(jnp.array(8.0)))), expected)
    np.testing.assert_array_equal(loss(bias=nnx.Param(jnp.zeros(C))), loss(bias=np.zeros(C)))
    np.testing.assert_array_equal(ms.angle(nnx.Param(jnp.asarray(X)), X.tolist()), ms.angle(X, X))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint8, np.uint16, np.uint32])
def test_any_integers_are_labels(dtype):
    np.testing.assert_array_equal(loss(labels=Y.astype(dtype)), loss())
    np.testing.assert_array_equal(entropy(labels=Y.astype(dtype)), entropy())


def test_labels_inside_are_let_pass():
    for labels in ([0, 4], np.array([], np.int64), jnp.array([4]), np.array([[0], [4]], np.uint8), 3):
        assert ms.check_labels(labels, np.int64(5)) is None


def test_the_bounds_themselves_are_allowed():
    for pi in (math.pi, np.float32(math.pi), jnp.float32(math.pi)):
        ms.arcface(pi)
    for margin in (ms.arcface(0.0), ms.cosface(2.0), ms.l_softmax(1), ms.a_softmax(4.0), ms.a_softmax(2, np.zeros(B))):
        assert np.all(np.isfinite(loss(margin=margin)))
    for smoothing in (0, 1, 0.0, 1.0, np.float32(0.5)):
        assert np.all(np.isfinite(loss(label_smoothing=smoothing)))
        assert np.all(np.isfinite(entropy(label_smoothing=smoothing)))


def test_traced_numbers_pass_through():
    """Even ones that would be refused: their values do not exist yet."""

    @jax.jit
    def traced(number):
        margins = (
            ms.arcface(number, scale=number), ms.l_softmax(number, blend=number), ms.a_softmax(number, blend=number),
            ms.combined(number, number, number, scale=number), ms.temperature(number), ms.cosface(number, number),
        )  # fmt: skip
        losses = [loss(margin=margin, label_smoothing=number) for margin in margins]
        return losses, entropy(label_smoothing=number), ms.blend_schedule(number, number, number, number)(number)

    assert np.all(np.isfinite(jax.tree.leaves(traced(1.0))[0]))
    assert jax.tree.leaves(traced(1.5))[1].shape == (B,)


WHOLE = {
    "arcface": lambda: ms.arcface(1, 64), "l_softmax": lambda: ms.l_softmax(4, 0), "a_softmax": lambda: ms.a_softmax(4),
    "combined": lambda: ms.combined(1, 0, 1, 64), "temperature": lambda: ms.temperature(2),
    "focal": lambda: ms.focal(ms.cosface(1, 64), 2), "sphereface_r": lambda: ms.sphereface_r(2, 30, version=1),
    "soft": lambda: ms.sphereface_r(2, 30, feature_norm="soft", pull=1), "airface": lambda: ms.airface(1, 64),
    "mv_softmax": lambda: ms.mv_softmax(t=1), "curricularface": lambda: ms.curricularface(0, 1, 64),
    "arcnegface": lambda: ms.arcnegface(1, 64, alpha=1, sigma=2), "cifp": lambda: ms.cifp(0, 1, 64),
    "npcface": lambda: ms.npcface(64, margin=1, m0=0, m1=1, t=1, a=0), "circle": lambda: ms.circle(1, 256),
    "intertopk": lambda: ms.intertopk(1, 32, penalty=1),
    "filter": lambda: ms.interclass_filter(ms.normface(8), 1), "sface": lambda: ms.sface(8, steepness=9, near=1, far=1),
    "sphereface2": lambda: ms.sphereface2(0, 1, 40, t=3, balance=1),
    "unified": lambda: ms.unified_cross_entropy(0, 1, 64, balance=1),
    "magface": lambda: ms.magface(64, norms=(10, 110), margins=(0, 1), regularizer=99),
    "adaface": lambda: ms.adaface(ms.AdaFaceState(20, 100), 1, 64, h=1),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_are_real_ones(name):
    """So they can be learned, and share a program with the real ones that they equal."""
    assert {type(leaf) for leaf in jax.tree.leaves(WHOLE[name]())} == {float}


def test_a_margin_of_whole_numbers_has_a_gradient():
    def total(margin):
        return loss(margin=margin).sum()

    expected = jax.tree.leaves(jax.grad(total)(ms.arcface(1.0, 8.0)))
    np.testing.assert_array_equal(jax.tree.leaves(jax.grad(total)(ms.arcface(1, 8))), expected)
    arrays = np.full(B, 1), jnp.full(B, 8)
    for margin in (ms.arcface(*arrays), ms.arcface(np.int64(1), np.int32(8))):
        assert {leaf.dtype for leaf in jax.tree.leaves(margin)} == {np.dtype(np.float32)}
        gradients = [np.sum(leaf) for leaf in jax.tree.leaves(jax.grad(total)(margin))]
        np.testing.assert_allclose(gradients, expected, rtol=1e-5)
    np.testing.assert_array_equal(jax.jit(with_margin)(1, 8), jax.jit(with_margin)(1.0, 8.0))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("wrap", [lambda call: call, jax.jit], ids=["concrete", "traced"])
def test_narrow_numbers_are_widened_before_they_meet_others(wrap, dtype):
    """A constructor divides; in bfloat16 that would leave three digits."""
    tau, bias, scale, balance = (jnp.asarray(n, dtype) for n in (0.07, 5.6, 40.3, 0.7))
    np.testing.assert_allclose(wrap(ms.temperature)(tau).scale, 1.0 / np.float32(tau), rtol=2e-7)
    margin = wrap(lambda b, s, share: ms.sphereface2(b, None, s, balance=share))(bias, scale, balance)
    ratios = margin.target.keywords["bias"], margin.loss.keywords["own_weight"]
    np.testing.assert_allclose(ratios, [np.float32(n) / np.float32(scale) for n in (bias, balance)], rtol=2e-7)
    assert {jnp.asarray(leaf).dtype for leaf in jax.tree.leaves(margin)} == {jnp.dtype(jnp.float32)}


def test_a_learned_number_may_be_a_parameter_of_a_network():
    """Under `grad` and `jit`, where an `nnx.Param` holds a tracer and is none."""
    makes = {
        "scale": ms.normface, "tau": ms.temperature, "margin": lambda n: ms.arcface(n / n, 8.0),
        "bias": lambda n: ms.sphereface2(n, scale=8.0), "filter": lambda n: ms.interclass_filter(ms.normface(n), 0.9),
    }  # fmt: skip
    for make in makes.values():

        def total(n, make=make):
            return loss(margin=make(n)).sum()

        expected = jax.value_and_grad(total)(jnp.float32(4.0))
        value, gradient = jax.jit(jax.value_and_grad(total))(nnx.Param(jnp.float32(4.0)))
        assert isinstance(gradient, nnx.Param)
        np.testing.assert_allclose([value, gradient[...]], expected, rtol=1e-5)
        assert not any(isinstance(leaf, nnx.Variable) for leaf in make(nnx.Param(jnp.float32(4.0))))
    table = nnx.Param(jnp.full(C, 0.3))
    gradient = jax.grad(lambda table: loss(margin=ms.adaptive_face(table, Y, 8.0)).sum())(table)
    np.testing.assert_array_equal(gradient[...] != 0, np.isin(np.arange(C), Y))
    smoothing = nnx.Param(jnp.float32(0.1))
    np.testing.assert_allclose(jax.jit(lambda e: entropy(label_smoothing=e))(smoothing), entropy(label_smoothing=0.1))


def test_the_dtype_of_a_traced_number_is_checked():
    for wrong in (True, 1j):
        with pytest.raises(TypeError, match="scale: expected a real number"):
            jax.eval_shape(ms.normface, jnp.asarray(wrong))


def run(features, weights, labels, margin, head, **options):
    """Losses and the gradients of features and weights, for a cotangent that is not uniform."""

    def total(features, weights):
        losses = ms.margin_loss(features, weights, labels, margin, head=HEADS[head], **options)
        # A row that is NaN on purpose must not reach the others through the sum.
        return jnp.sum(jnp.where(jnp.isnan(losses), 0.0, losses) * COTANGENT[: len(losses)]), losses

    gradients, losses = jax.grad(total, argnums=(0, 1), has_aux=True)(features, weights)
    return tuple(np.asarray(a) for a in (losses, *gradients))


def array_with_nan(values):
    """JAX refuses NaN inputs under `jax_debug_nans` when it copies them; one already on the device is a value."""
    return jax.device_put(np.asarray(values, np.float32))


heads = pytest.mark.parametrize("head", HEADS)
losses = pytest.mark.parametrize("name", LOSSES)
OUTSIDE = [C, -1, -100, 2**31 - 1, -(2**31)]


@losses
@heads
def test_a_label_outside_makes_its_own_loss_nan_and_nothing_else(name, head):
    """Its gradient is exactly 0, and every other row is what it is when this row does not count."""
    masked = run(X, W, Y, LOSSES[name], head, where=np.array([True, False, True, True]))
    for outside in OUTSIDE:
        labels = Y.copy()
        labels[1] = outside
        with jax.debug_nans(False):
            ours, x_bar, w_bar = run(X, W, labels, LOSSES[name], head)
        assert np.isnan(ours[1])
        np.testing.assert_allclose(ours[[0, 2, 3]], masked[0][[0, 2, 3]], rtol=1e-6)
        np.testing.assert_array_equal(x_bar[1], 0.0)
        np.testing.assert_allclose(x_bar, masked[1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(w_bar, masked[2], rtol=1e-5, atol=1e-6)
    features = X.copy()
    features[1] = NAN  # whatever the row holds besides
    with jax.debug_nans(False):
        _, *gradients = run(features, W, labels, LOSSES[name], head)
    for ours, theirs in zip(gradients, masked[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@losses
@heads
def test_a_masked_row_may_hold_anything(name, head):
    """Its loss is 0, its gradient is 0, no NaN arises on the way, and the other rows do not see what it holds."""
    where = np.array([True, False, True, True])
    expected = run(jnp.asarray(X), W, Y, LOSSES[name], head, where=where)
    assert expected[0][1] == 0
    np.testing.assert_array_equal(expected[1][1], 0.0)
    for outside in OUTSIDE:
        labels = Y.copy()
        labels[1] = outside
        for ours, theirs in zip(run(jnp.asarray(X), W, labels, LOSSES[name], head, where=where), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for garbage in (NAN, INF, -INF, 3e38, 0.0):
        features = X.copy()
        features[1] = garbage
        # Taken one at a time, JAX's own cast of the gradient would run on the NaN, outside of the compiled loss.
        ours = run(array_with_nan(features), W, Y, LOSSES[name], head, where=where)
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(a, b)


@heads
def test_no_operation_makes_a_nan_that_is_then_masked(head):
    """Every operation of the loss and its gradient is looked at; `jax_debug_nans` only sees what a program returns."""
    where, labels = np.array([True, False, True, False]), np.array([0, -1, 3, C])

    def total(features, where):
        losses = ms.margin_loss(features, W, labels, LOSSES["arcface"], head=HEADS[head], where=where)
        return jnp.sum(losses) + jnp.sum(ms.cross_entropy(Z, labels, where=where))

    checked = jax.jit(checkify.checkify(jax.grad(total), errors=checkify.nan_checks))
    features = X.copy()
    for row, value in ((1, NAN), (3, INF), (0, 0.0), (2, 1e-30)):
        features[row] = value
        error, gradient = checked(array_with_nan(features), where)
        assert error.get() is None
        assert np.all(np.isfinite(gradient))
    with jax.debug_nans(False):
        error, _ = checked(features, ~where)
    assert "nan generated" in error.get()


@heads
def test_a_masked_row_may_hold_any_margin(head):
    where = np.array([True, False, True, True])

    def total(numbers, features):
        margin = ms.arcface(numbers[0], scale=numbers[1])
        return jnp.sum(ms.margin_loss(features, W, Y, margin, head=HEADS[head], where=where))

    gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    numbers = [np.full(B, 0.5, np.float32), np.full(B, 8.0, np.float32)]
    expected = gradient([jnp.asarray(n) for n in numbers], X)
    for garbage in (NAN, INF, -1e30):
        bad = [n.copy() for n in numbers]
        bad[0][1] = bad[1][1] = garbage
        ours = gradient([array_with_nan(n) for n in bad], X)
        jax.tree.map(np.testing.assert_array_equal, ours, expected)
        assert ours[1][0][0][1] == ours[1][0][1][1] == 0


@losses
@heads
def test_when_no_row_counts_everything_is_zero(name, head):
    for result in run(X, W, np.full(B, -1), LOSSES[name], head, where=np.zeros(B, bool)):
        np.testing.assert_array_equal(result, 0.0)


@losses
@heads
def test_a_nan_feature_stays_in_its_row(name, head):
    expected = run(X, W, Y, LOSSES[name], head)
    with jax.debug_nans(False):
        for garbage in (NAN, INF):
            features = X.copy()
            features[1, 0] = garbage
            ours, x_bar, _ = run(features, W, Y, LOSSES[name], head)
            assert np.isnan(ours[1])
            np.testing.assert_allclose(ours[[0, 2, 3]], expected[0][[0, 2, 3]], rtol=1e-6)
            np.testing.assert_allclose(x_bar[[0, 2, 3]], expected[1][[0, 2, 3]], rtol=1e-5, atol=1e-6)


@losses
@heads
def test_a_nan_class_row_makes_every_loss_nan(name, head):
    """Every example compares itself with every class: a loss that looked healthy would hide it."""
    weights = W.copy()
    weights[1] = NAN
    with jax.debug_nans(False):
        for arguments, options in (((X, weights), {}), ((X, W), {"bias": np.array([0, NAN, 0, 0, 0], np.float32)})):
            assert np.all(np.isnan(np.asarray(loss(*arguments, Y, LOSSES[name], head=HEADS[head], **options))))


def test_the_logits_of_a_label_outside_are_nan_in_its_row_alone():
    for outside in OUTSIDE:
        labels = Y.copy()
        labels[1] = outside
        with jax.debug_nans(False):
            z = np.asarray(logits(labels=labels))
        assert np.all(np.isnan(z[1]))
        np.testing.assert_array_equal(z[[0, 2, 3]], np.asarray(logits())[[0, 2, 3]])


@losses
@heads
def test_an_empty_batch_has_no_losses_and_no_gradient(name, head):
    ours, x_bar, w_bar = run(X[:0], W, Y[:0], LOSSES[name], head)
    assert ours.shape == (0,)
    assert x_bar.shape == (0, D)
    np.testing.assert_array_equal(w_bar, np.zeros((C, D)))


def test_an_empty_batch_has_no_cosines_no_classes_and_no_angles():
    assert logits(X[:0], W, Y[:0]).shape == ms.cosines(X[:0], W).shape == (0, C)
    assert [a.shape for a in ms.nearest_class(X[:0], W)] == [(0,), (0,)]
    assert entropy(Z[:0], Y[:0]).shape == entropy(Z[:0], Z[:0]).shape == ms.angle(X[:0], X[:0]).shape == (0,)


@losses
@heads
def test_of_one_class_every_loss_and_gradient_is_zero(name, head):
    options = {"label_smoothing": 0.1} if head == "blockwise" else {}
    for result in run(X, W[:1], np.zeros(B, np.int32), LOSSES[name], head, **options):
        np.testing.assert_array_equal(result, 0.0)


@losses
@heads
def test_two_classes_are_a_logistic_loss(name, head):
    labels = np.array([0, 1, 1, 0], np.int32)
    z = np.asarray(logits(X, W[:2], labels, LOSSES[name]), np.float64)
    rows = np.arange(B)
    ours = loss(X, W[:2], labels, LOSSES[name], head=HEADS[head])
    np.testing.assert_allclose(ours, np.log1p(np.exp(z[rows, 1 - labels] - z[rows, labels])), rtol=1e-5)


@losses
@heads
def test_classes_with_equal_rows_share_their_gradient(name, head):
    weights = W.copy()
    weights[1] = weights[0]
    labels = np.array([2, 3, 3, 4], np.int32)
    _, _, w_bar = run(X, weights, labels, LOSSES[name], head)
    assert np.any(w_bar[0] != 0)
    np.testing.assert_allclose(w_bar[1], w_bar[0], rtol=1e-6)


@heads
def test_a_zero_vector_has_no_direction_and_a_linear_logit_needs_none(head):
    """Where it is normalised: cosine 0, gradient 0. Where the logit is linear in it: the true gradient p - y."""
    features, weights = X.copy(), W.copy()
    features[1], weights[1] = 0.0, 0.0
    for name, margin in LOSSES.items():
        losses, x_bar, w_bar = run(features, weights, Y, margin, head)
        assert all(np.all(np.isfinite(a)) for a in (losses, x_bar, w_bar))
        if name == "arcface":
            own = 8.0 * math.cos(math.pi / 2 + 0.5)
            np.testing.assert_allclose(losses[1], math.log(math.exp(own) + C - 1) - own, rtol=1e-6)
            np.testing.assert_array_equal(x_bar[1], 0.0)
            np.testing.assert_array_equal(w_bar[1], 0.0)
        if name == "plain":
            p_minus_y = np.full((B, C), 1 / C)
            p_minus_y -= np.eye(C)[Y]
            np.testing.assert_allclose(losses[1], math.log(C), rtol=1e-6)
            np.testing.assert_allclose(x_bar[1], COTANGENT[1] * p_minus_y[1] @ weights, rtol=1e-5, atol=1e-7)
    # A class matrix of zeros, a usual initialisation.
    losses, x_bar, w_bar = run(X, 0 * W, Y, ms.plain(), head)
    p_minus_y = COTANGENT[:, None] * (1 / C - np.eye(C)[Y])
    np.testing.assert_allclose(losses, math.log(C), rtol=1e-6)
    np.testing.assert_array_equal(x_bar, 0.0)
    np.testing.assert_allclose(w_bar, p_minus_y.T @ X, rtol=1e-5, atol=1e-6)
    cosines = np.asarray(ms.cosines(features, weights))
    assert np.all(cosines[1] == 0)
    assert np.all(cosines[:, 1] == 0)


@heads
@pytest.mark.parametrize("length", [1e20, 1e-30])
def test_lengths_that_square_out_of_range_change_nothing(head, length):
    """A normalised loss does not depend on lengths, and its gradient is that of length 1, divided by the length."""
    for margin in (ms.arcface(0.5, 8.0), ms.cosface(0.3, 8.0)):
        losses, x_bar, w_bar = run(X, W, Y, margin, head)
        scaled = run(np.float32(length) * X, np.float32(length) * W, Y, margin, head)
        np.testing.assert_allclose(scaled[0], losses, rtol=1e-5)
        np.testing.assert_allclose(scaled[1].astype(np.float64) * length, x_bar, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scaled[2].astype(np.float64) * length, w_bar, rtol=1e-4, atol=1e-5)


@heads
def test_norms_that_overflow_float16_are_taken_in_float32(head):
    x, w, y = np.full((B, 512), 300.0), np.full((C, 512), 300.0), Y
    w[1:, ::2] *= -1
    losses, x_bar, w_bar = run(x.astype(np.float16), w.astype(np.float16), y, ms.cosface(0.3, 8.0), head)
    exact = oracle.additive_cosine(0.3, 8.0)
    _, *expected, _ = oracle.logits_and_gradients(exact, x, w, y, cotangent=COTANGENT)
    assert x_bar.dtype == w_bar.dtype == np.float16
    np.testing.assert_allclose(losses, expected[0], rtol=1e-6)
    # Gradients of 1e-4 are float16 numbers with an absolute resolution of 2^-24.
    np.testing.assert_allclose(x_bar, expected[1], atol=2.0**-24)
    np.testing.assert_allclose(w_bar, expected[2], atol=2.0**-24)


@losses
@heads
def test_a_bias_of_minus_infinity_closes_a_class(name, head):
    bias = np.zeros(C, np.float32)
    bias[1] = -INF
    ours, x_bar, w_bar = run(X, W, Y, LOSSES[name], head, bias=bias)
    opened = [0, 2, 3, 4]
    without = run(X, W[opened], np.array([0, 2, 2, 3]), LOSSES[name], head, bias=np.zeros(C - 1, np.float32))
    np.testing.assert_allclose(ours, without[0], rtol=1e-6)
    np.testing.assert_allclose(x_bar, without[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(w_bar[opened], without[2], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(w_bar[1], 0.0)
    bias[0] = -INF  # the own class of the first example
    ours, x_bar, w_bar = run(X, W, Y, LOSSES[name], head, bias=bias)
    assert ours[0] == INF
    assert np.all(np.isfinite(x_bar))
    assert np.all(np.isfinite(w_bar))


def arguments_of(x_dtype, w_dtype):
    return jnp.asarray(X, x_dtype), jnp.asarray(W, w_dtype)


@pytest.mark.parametrize("name", MARGINS)
def test_results_are_strongly_float32_and_gradients_as_their_inputs(name):
    """Traced, not compiled: nothing here depends on a value. With x64 on, float32 inputs leave no float64 behind."""
    margin, b16, f16, f32, f64 = MARGINS[name].margin, jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64
    off, on = (False, f32), (True, f32)
    cases = [(off, b16, f32), (off, f16, f16), (off, f32, b16), (on, f32, f32), (on, b16, f16), ((True, f64), f64, f32)]
    for i, ((x64, expected), *dtypes) in enumerate(cases):
        with jax.enable_x64(x64):
            features, weights = arguments_of(*dtypes)
            head = list(HEADS.values())[i % 2]

            def total(features, weights, head=head):
                bias = jnp.zeros(C, weights.dtype)
                losses = ms.margin_loss(features, weights, Y, margin, head=head, bias=bias, label_smoothing=0.1)
                return losses.sum(), losses

            gradients, losses = jax.eval_shape(jax.grad(total, argnums=(0, 1), has_aux=True), features, weights)
            z = jax.eval_shape(lambda x, w: ms.margin_logits(x, w, Y, margin), features, weights)
            assert [g.dtype for g in gradients] == dtypes
            assert losses.dtype == z.dtype == expected
            assert not losses.weak_type
            assert not z.weak_type


@pytest.mark.parametrize("smoothing", [0.1, np.float64(0.1), np.float32(0.1)], ids=["python", "float64", "float32"])
def test_no_float64_arises_from_float32_under_x64(smoothing):
    """Whatever carries the hyper-parameters: Python numbers, NumPy's float64, arrays of it."""
    with jax.enable_x64(True):
        features, weights = arguments_of(jnp.float32, jnp.float32)
        margins = [row.margin for row in MARGINS.values()]
        margins += [ms.arcface(np.float64(0.5), np.full(B, 8.0)), ms.temperature(np.float64(2.0))]
        margins += [ms.a_softmax(3, blend=ms.blend_schedule()(7))]
        for i, margin in enumerate(margins):
            head = list(HEADS.values())[i % 2]

            def losses_of(features, margin=margin, head=head):
                losses = loss(features, weights, Y, margin, head=head, label_smoothing=smoothing)
                return losses.sum(), losses

            gradient, losses = jax.eval_shape(jax.grad(losses_of, has_aux=True), features)
            assert gradient.dtype == losses.dtype == jnp.float32
            assert not losses.weak_type
        result = jax.eval_shape(lambda z: entropy(z, Y, label_smoothing=smoothing), jnp.asarray(Z))
        assert result.dtype == jnp.float32
        assert not result.weak_type
        for function in (ms.angle, ms.cosines):
            assert jax.eval_shape(function, features, features).dtype == jnp.float32
        assert jax.eval_shape(ms.nearest_class, features, weights)[1].dtype == jnp.float32


def test_weak_inputs_give_strong_results():
    for result in (
        jax.eval_shape(lambda x: ms.cross_entropy(jnp.stack([x, x])[None], np.array([0])), 1.0),
        jax.eval_shape(lambda x: ms.angle(jnp.stack([x, x]), jnp.stack([x, x])), 1.0),
        jax.eval_shape(lambda x: ms.cosines(jnp.stack([x, x])[None], jnp.stack([x, x])[None]), 1.0),
        jax.eval_shape(lambda s: loss(margin=ms.arcface(s, s)), 1.0),
    ):
        assert result.dtype == jnp.float32
        assert not result.weak_type
