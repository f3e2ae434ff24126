"""The class-parallel head: equal to one device, on any number of them, under both kinds of mesh; and what they say."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import margin_softmax as ms
import oracle
from field import FIELD, losses_and_gradients
from table import MARGINS, examples, largest_row_error

COTANGENT = np.array([1.0, -0.5, 2.0, 0.0, 3.0, 0.25, 1.0, 1.0])


def mesh_of(shape, names=("classes",), kind=AxisType.Auto):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names), devices=devices)


def value_and_gradients(head, margin, x, w, y, bias=None, **more):
    def total(x, w, bias):
        losses = ms.margin_loss(x, w, y, margin, head=head, bias=bias, **more)
        return jnp.sum(losses * jnp.asarray(COTANGENT, losses.dtype)), losses

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(x, w, bias)


def assert_equal(ours, theirs, tolerance=1e-10):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("name", [*MARGINS, *FIELD])
def test_every_margin_is_the_oracles(name, request):
    """On four devices, of 23 classes, the last with one less; some products are kept, others computed anew.

    On another number of them with `--devices`.
    """
    devices = request.config.getoption("devices")
    row = MARGINS.get(name) or FIELD[name]
    x, w, y = examples(8, 23, 5, 0.4, feature_norm=row.feature_norm if name in ("magface", "adaface") else 4.0)
    with jax.enable_x64(True):
        head = ms.sharded("classes", inner=ms.blockwise(4, memory=4 * 8 * 8), mesh=mesh_of((devices,)))
        arrays = [jnp.asarray(a) for a in (x, w, y)]
        if name in MARGINS:
            bias = np.linspace(-1, 1, 23)
            ours = value_and_gradients(head, row.margin, *arrays, jnp.asarray(bias), label_smoothing=0.1)
            _, losses, *bars = oracle.logits_and_gradients(
                row.oracle, x, w, y, bias=bias, smoothing=0.1, cotangent=COTANGENT
            )
        else:
            ours = value_and_gradients(head, row.margin(*row.numbers), *arrays)
            losses, *bars, _ = losses_and_gradients(row, x, w, y, cotangent=COTANGENT)
    (_, our_losses), our_bars = ours
    assert_equal((our_losses, our_bars), (losses, bars))


@pytest.mark.optimised
@pytest.mark.parametrize("name", ["arcface", "l_softmax_2"])
def test_float32_keeps_its_digits(name):
    """The bounds of test_losses.py, on four devices; the last has padding."""
    row, head = MARGINS[name], ms.sharded("classes", mesh=mesh_of((4,)))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def of(x, w, y):
        return ms.margin_loss(x, w, y, row.margin, head=head).sum()

    for cosine in (0.3, 0.9):
        x, w, y = examples(16, 9_999, 64, cosine, feature_norm=row.feature_norm, dtype=np.float32)
        _, losses, x_bar, w_bar, _ = oracle.logits_and_gradients(row.oracle, x, w, y)
        bound = 5e-6 if cosine <= 0.3 else 2e-5
        total, (ours_x_bar, ours_w_bar) = of(x, w, y)
        np.testing.assert_allclose(total, losses.sum(), rtol=bound)
        assert largest_row_error(ours_x_bar, x_bar) <= bound
        assert largest_row_error(ours_w_bar, w_bar) <= (bound + 64 * 2.0**-23 if cosine <= 0.3 else bound)
        assert largest_row_error(ours_w_bar, w_bar, quantile=0.95) <= bound


@pytest.mark.parametrize(("devices", "classes"), [(1, 23), (2, 23), (8, 8), (8, 23)])
def test_any_number_of_devices(devices, classes):
    """One class per device among them, and shards without a positive: all labels are 0 or the last."""
    x, w, _ = examples(8, classes, 5, 0.4)
    y = np.where(np.arange(8) < 4, 0, classes - 1).astype(np.int32)
    with jax.enable_x64(True):
        head = ms.sharded("classes", mesh=mesh_of((devices,)))
        (_, losses), (x_bar, w_bar, _) = value_and_gradients(
            head, ms.npcface(8.0), *(jnp.asarray(a) for a in (x, w, y))
        )
    numbers = (8.0, *FIELD["npcface"].numbers[1:])
    exact = losses_and_gradients(FIELD["npcface"], x, w, y, cotangent=COTANGENT, numbers=numbers)
    assert_equal((losses, x_bar, w_bar), exact[:3])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_examples_and_classes_split_over_two_axes(kind):
    """Data over one axis and classes over the other; gradients come back as their inputs lie."""
    mesh = mesh_of((2, 4), ("data", "classes"), kind)
    x, w, y = examples(8, 24, 5, 0.4, dtype=np.float32)
    margin, where = ms.curricularface(jnp.linspace(0, 0.5, 8), 0.5, 8.0), np.arange(8) != 3
    theirs = value_and_gradients(ms.dense(), margin, jnp.asarray(x), jnp.asarray(w), y, where=jnp.asarray(where))
    with jax.set_mesh(mesh):
        place = functools.partial(jax.device_put)
        xs, ys = place(x, NamedSharding(mesh, P("data"))), place(y, NamedSharding(mesh, P("data")))
        ws, wheres = place(w, NamedSharding(mesh, P("classes"))), place(where, NamedSharding(mesh, P("data")))

        @jax.jit
        def ours(x, w, y, where):
            def total(x, w):
                losses = ms.margin_loss(x, w, y, margin, head=ms.sharded("classes"), where=where)
                return jnp.sum(losses * jnp.asarray(COTANGENT, jnp.float32)), losses

            return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(x, w)

        (_, losses), (x_bar, w_bar) = ours(xs, ws, ys, wheres)
    np.testing.assert_allclose(losses, theirs[0][1], rtol=1e-5)
    np.testing.assert_allclose(x_bar, theirs[1][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(w_bar, theirs[1][1], rtol=1e-4, atol=1e-5)
    assert w_bar.sharding.is_equivalent_to(ws.sharding, 2)
    if kind == AxisType.Explicit:
        assert x_bar.sharding.is_equivalent_to(xs.sharding, 2)


def test_classes_over_both_axes_at_once():
    mesh = mesh_of((2, 4), ("data", "classes"))
    x, w, y = (jnp.asarray(a) for a in examples(8, 23, 5, 0.4, dtype=np.float32))
    head = ms.sharded(("data", "classes"), mesh=mesh)
    margin = ms.arcface(0.5, 8.0)
    assert_equal(value_and_gradients(head, margin, x, w, y), value_and_gradients(ms.dense(), margin, x, w, y), 1e-5)


@pytest.mark.parametrize("mapped", [("classes",), ("data", "classes")])
def test_inside_a_shard_map_of_the_callers(mapped):
    """With the classes mapped, and with the examples mapped over another axis, too."""
    mesh = mesh_of((2, 4), ("data", "classes"))
    x, w, y = examples(8, 24, 5, 0.4)
    with jax.enable_x64(True):
        x, w, y, cotangent = (jnp.asarray(a) for a in (x, w, y, COTANGENT))
        rows = P("data") if "data" in mapped else P()

        def local(x, w, y, cotangent):
            def total(x, w):
                losses = ms.margin_loss(x, w, y, ms.cifp(0.2, 0.35, 8.0), head=ms.sharded("classes"))
                return jnp.sum(losses * cotangent), losses

            (_, losses), bars = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(x, w)
            return losses, *bars

        specs = (rows, P("classes"), rows, rows), (rows, rows, P("classes"))
        ours = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs[0], out_specs=specs[1], axis_names=set(mapped)))
        (_, losses), bars = value_and_gradients(ms.dense(), ms.cifp(0.2, 0.35, 8.0), x, w, y)
        assert_equal(ours(x, w, y, cotangent), (losses, *bars[:2]))


def test_sub_centres_nearest_class_and_state_run_in_it():
    mesh = mesh_of((4,))
    head = ms.sharded("classes", mesh=mesh)
    x, w, y = (jnp.asarray(a) for a in examples(8, 23, 5, 0.4, dtype=np.float32))
    centres = jnp.stack([w, -w, jnp.roll(w, 1, axis=1)], axis=1)
    margin = ms.arcface(0.5, 8.0)
    assert_equal(
        value_and_gradients(head, margin, x, centres, y), value_and_gradients(ms.dense(), margin, x, centres, y), 1e-5
    )
    for weights in (w, centres):
        (index, cosine), (one, other) = ms.nearest_class(x, weights, head=head), ms.nearest_class(x, weights)
        np.testing.assert_array_equal(index, one)
        np.testing.assert_allclose(cosine, other, rtol=1e-6)
    np.testing.assert_allclose(ms.update_adacos(8.0, x, w, y, head=head), ms.update_adacos(8.0, x, w, y), rtol=1e-6)
    outside = y.at[2].set(23)
    with jax.debug_nans(False):
        losses = ms.margin_loss(x, w, outside, margin, head=head)
        np.testing.assert_array_equal(np.isnan(np.asarray(losses)), np.arange(8) == 2)


def collectives(compiled):
    """Operation and elements of each collective of a compiled program."""
    found = re.findall(
        r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\(", compiled.as_text()
    )
    return [
        (
            operation,
            sum(
                int(np.prod([int(n) for n in shape.split(",") if n])) for shape in re.findall(r"\[([0-9,]*)\]", shapes)
            ),
        )
        for shapes, operation in found
    ]


@pytest.mark.optimised
def test_what_devices_say_to_each_other_does_not_grow_with_the_classes():
    """The gather of features and labels, own class rows, the merge of parts, the feature gradient; nothing else."""
    mesh = mesh_of((2, 4), ("data", "classes"))
    by_data, by_class = NamedSharding(mesh, P("data")), NamedSharding(mesh, P("classes"))

    def said(classes, batch=64, dim=32):
        def total(x, w, y):
            head = ms.sharded("classes", mesh=mesh, inner=ms.blockwise(64, memory=0))
            return ms.margin_loss(x, w, y, ms.arcface(), head=head).mean()

        arguments = [
            jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            for shape, dtype, sharding in (
                ((batch, dim), jnp.float32, by_data),
                ((classes, dim), jnp.float32, by_class),
                ((batch,), jnp.int32, by_data),
            )
        ]
        out = (None, (by_data, by_class))
        return collectives(
            jax.jit(jax.value_and_grad(total, argnums=(0, 1)), out_shardings=out).lower(*arguments).compile()
        )

    few, many = said(1024), said(4096)
    # Of 64 examples: the labels, the features [64, 32], own class rows with the parts of four devices, two numbers of
    # each example; the feature gradient.
    expected = [("all-gather", 64), ("all-gather", 64 * 32), ("all-reduce", 64 * 32), ("all-reduce", 64 * (32 + 4 * 2))]
    assert sorted(few) == sorted(many) == expected


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ms.sharded(3), TypeError, "axis_name: "),
        (lambda: ms.sharded(()), TypeError, "axis_name: "),
        (lambda: ms.sharded("classes", inner=ms.dense()), TypeError, "inner: expected ms.blockwise"),
    ],
)
def test_what_is_no_head_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_missing_mesh_or_axis_is_named():
    x, w, y = (jnp.asarray(a) for a in examples(8, 23, 5, 0.4, dtype=np.float32))
    with pytest.raises(ValueError, match=r"axis_name: .*'classes' and no mesh.*set_mesh"):
        ms.margin_loss(x, w, y, ms.arcface(), head=ms.sharded("classes"))
    with pytest.raises(ValueError, match=r"axis_name: .*'rows' and axes \('classes',\)"):
        ms.margin_loss(x, w, y, ms.arcface(), head=ms.sharded("rows", mesh=mesh_of((2,))))


def test_a_shard_map_without_bookkeeping_is_refused():
    """There gradients would be silently wrong: JAX no longer knows what is the same on all devices."""
    x, w, y = (jnp.asarray(a) for a in examples(8, 24, 5, 0.4, dtype=np.float32))

    def local(x, w, y):
        return ms.margin_loss(x, w, y, ms.arcface(), head=ms.sharded("classes"))

    specs = {"in_specs": (P(), P("classes"), P()), "out_specs": P()}
    with pytest.raises(ValueError, match="check_vma"):
        jax.shard_map(local, mesh=mesh_of((4,)), **specs, check_vma=False)(x, w, y)


def test_examples_that_differ_along_the_classes_are_refused():
    mesh = mesh_of((4,))
    x, w, y = (jnp.asarray(a) for a in examples(8, 24, 5, 0.4, dtype=np.float32))

    def local(x, w, y):
        return ms.margin_loss(x, w, y, ms.arcface(), head=ms.sharded("classes"))

    with pytest.raises(ValueError, match=r"features: expected the same examples along \['classes'\].*all_gather"):
        jax.shard_map(local, mesh=mesh, in_specs=P("classes"), out_specs=P("classes"))(x, w, y)
