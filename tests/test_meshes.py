"""Examples split over devices while every device has all classes: plain data parallelism, in every kind of mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import margin_softmax as ms
from table import examples

HEADS = {"dense": ms.dense(), "blockwise": ms.blockwise(block_size=7, memory=7 * 8 * 4)}


def mesh_of(kind=AxisType.Auto):
    return jax.make_mesh((4,), ("data",), axis_types=(kind,))


def total_and_losses(x, w, y, head):
    losses = ms.margin_loss(x, w, y, ms.npcface(8.0), head=head, label_smoothing=0.1)
    return losses.sum(), losses


def gradients(x, w, y, head):
    (_, losses), bars = jax.value_and_grad(total_and_losses, argnums=(0, 1), has_aux=True)(x, w, y, head)
    return losses, *bars


@pytest.mark.parametrize("rows", [P(), P("data")], ids=["everywhere", "by row"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("head", HEADS)
def test_examples_split_by_the_compiler(head, kind, rows):
    """Losses lie as the features do, and gradients as what they belong to."""
    x, w, y = (jnp.asarray(a) for a in examples(8, 24, 5, 0.4, dtype=np.float32))
    theirs = gradients(x, w, y, HEADS[head])
    with jax.set_mesh(mesh_of(kind)):
        split = jax.device_put(x, P("data")), jax.device_put(w, rows), jax.device_put(y, P("data"))
        ours = jax.jit(gradients, static_argnums=3)(*split, HEADS[head])
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)
    if kind == AxisType.Explicit:
        for one, like in zip(ours, (split[2], *split[:2]), strict=True):
            assert one.sharding.is_equivalent_to(like.sharding, one.ndim)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_examples_split_by_the_caller(head, check_vma):
    """In a `shard_map` of the examples, with class rows that are the same on all devices: their gradient is the sum."""
    x, w, y = (jnp.asarray(a) for a in examples(8, 24, 5, 0.4, dtype=np.float32))

    def local(x, w, y):
        losses, x_bar, w_bar = gradients(x, w, y, HEADS[head])
        # Without its bookkeeping JAX does not know that the rows are shared, and the sum is the caller's.
        return losses, x_bar, w_bar if check_vma else jax.lax.psum(w_bar, "data")

    specs = (P("data"), P(), P("data")), (P("data"), P("data"), P())
    ours = jax.shard_map(local, mesh=mesh_of(), in_specs=specs[0], out_specs=specs[1], check_vma=check_vma)
    for one, other in zip(jax.jit(ours)(x, w, y), gradients(x, w, y, HEADS[head]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


def test_everything_else_takes_examples_that_are_split():
    """What sees examples or class rows, under Explicit axes, where JAX lays out nothing by itself."""
    random = np.random.default_rng(0)
    x, w = (jnp.asarray(random.normal(size=(rows, 5)), jnp.float32) for rows in (8, 24))
    y = jnp.asarray(random.permutation(24)[:8])
    table, key, margin = jnp.linspace(0.1, 0.4, 24), jax.random.key(0), ms.arcface(0.5, 8.0)

    def results(x, w, y):
        observed = ms.observe(x, w, y, ms.intertopk(0.2, 8.0, k=3))
        sample = ms.sample_classes(key, y, 24, 12)
        rows = ms.take_rows(w, sample)
        return {
            "logits": ms.margin_logits(x, w, y, margin),
            "nearest class": ms.nearest_class(x, w, labels=y),
            "observed": observed,
            "two labels": ms.mixed_margin_loss(x, w, y, y[::-1], 0.3, margin),
            "cross-entropy": ms.cross_entropy(ms.margin_logits(x, w, y, margin), y),
            "cosines": ms.cosines(x, w),
            "by class": ms.margin_loss(x, w, y, ms.adaptive_face(table, y, 8.0)),
            "KappaFace": ms.margin_loss(x, w, y, ms.kappaface(table, y, 8.0)),
            "elastic": ms.margin_loss(x, w, y, ms.elastic_arcface(key, 8, scale=8.0, angle=observed.angle)),
            "centres": ms.center_loss(x, w, y),
            "energy": ms.hyperspherical_energy(w, y),
            "CurricularFace": ms.update_curricularface(0.1, x, w, y),
            "AdaFace": ms.update_adaface(ms.AdaFaceState(20.0, 100.0), x),
            "AdaCos": ms.update_adacos(8.0, x, w, y),
            "CIFP": ms.cifp_threshold(x, w, y, rate=0.1),
            "sample": ms.margin_loss(x, rows, sample.labels, margin),
            "rows": ms.put_rows(w, rows + 1.0, sample),
        }

    theirs = jax.jit(results)(x, w, y)
    for run, by_row in ((results, P()), (jax.jit(results), P("data"))):
        with jax.set_mesh(mesh_of(AxisType.Explicit)):
            ours = run(jax.device_put(x, P("data")), jax.device_put(w, by_row), jax.device_put(y, P("data")))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, theirs)
