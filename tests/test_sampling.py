"""Partial FC: what is sampled, and that a loss over the sample is the loss over those classes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import margin_softmax as ms
from field import FIELD
from table import MARGINS, examples
from test_sharded import assert_equal, collectives, mesh_of

CLASSES = 40


def test_all_classes_of_the_batch_are_in_and_none_twice():
    labels = jnp.array([3, 39, 3, 0, 17])
    for seed in range(20):
        sample = ms.sample_classes(jax.random.key(seed), labels, CLASSES, 9)
        classes = np.asarray(sample.classes)
        assert classes.shape == (9,)
        assert np.all(np.diff(classes) > 0)
        assert classes[0] >= 0
        assert classes[-1] < CLASSES
        np.testing.assert_array_equal(classes[sample.labels], labels)
        negatives = ~np.isin(classes, labels)
        np.testing.assert_allclose(sample.log_weights, np.where(negatives, np.log(36 / 5), 0), rtol=1e-6)
    again = ms.sample_classes(jax.random.key(19), labels, CLASSES, 9)
    np.testing.assert_array_equal(again.classes, sample.classes)


def test_the_others_are_drawn_uniformly():
    """Each of 36 in 5 of 36 draws; over 4,000 draws its count stays within five standard deviations."""
    labels = jnp.array([3, 39, 3, 0, 17])
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: ms.sample_classes(key, labels, CLASSES, 9).classes)(keys)
    counts = np.bincount(np.asarray(drawn).reshape(-1), minlength=CLASSES)
    assert np.all(counts[[3, 39, 0, 17]] == 4000)
    p = 5 / 36
    others = np.delete(counts, [0, 3, 17, 39])
    assert np.all(np.abs(others - 4000 * p) <= 5 * np.sqrt(4000 * p * (1 - p)))


@pytest.mark.parametrize("margin", ["a_softmax_3", "npcface"])
def test_a_loss_over_the_sample_is_that_over_its_classes(margin):
    """Losses and gradients; no row moves that is not in the sample, and with all classes it is the full loss."""
    margin = MARGINS[margin].margin if margin in MARGINS else FIELD[margin].margin(*FIELD[margin].numbers)
    x, w, y = (jnp.asarray(a) for a in examples(6, CLASSES, 5, 0.4, dtype=np.float32))

    def total(x, w, num_sampled):
        sample = ms.sample_classes(jax.random.key(1), y, CLASSES, num_sampled)
        losses = ms.margin_loss(x, ms.take_rows(w, sample), sample.labels, margin, head=ms.dense())
        return losses.sum(), (losses, sample)

    for num_sampled in (12, CLASSES):
        of = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True), static_argnums=2)
        (_, (losses, sample)), (_, w_bar) = of(x, w, num_sampled)
        chosen = np.isin(np.arange(CLASSES), sample.classes)
        assert chosen.sum() == num_sampled
        assert np.all(np.asarray(w_bar)[~chosen] == 0)
        expected = ms.margin_loss(x, w[chosen], np.cumsum(chosen)[y] - 1, margin, head=ms.dense())
        np.testing.assert_allclose(losses, expected, rtol=1e-6)
    np.testing.assert_allclose(losses, ms.margin_loss(x, w, y, margin, head=ms.dense()), rtol=1e-5)


def test_log_weights_make_the_sum_stand_for_all_classes():
    """The mean over many samples of the corrected sum of e^z is the whole sum; uncorrected it is a ninth of it."""
    x, w, y = (jnp.asarray(a) for a in examples(1, CLASSES, 5, 0.4, dtype=np.float32))
    z = np.asarray(ms.margin_logits(x, w, y, ms.normface(4.0)), np.float64)[0]
    whole = np.sum(np.exp(np.delete(z, y[0])))

    def others(key, corrected):
        sample = ms.sample_classes(key, y, CLASSES, 5)
        negative = jnp.arange(5) != sample.labels[0]
        bias = sample.log_weights if corrected else jnp.zeros(5)
        return jnp.sum(jnp.where(negative, jnp.exp(jnp.asarray(z, jnp.float32)[sample.classes] + bias), 0.0))

    keys = jax.random.split(jax.random.key(0), 5000)
    sums = np.asarray(jax.vmap(lambda key: others(key, corrected=True))(keys))
    assert abs(sums.mean() - whole) <= 5 * sums.std() / np.sqrt(5000)
    bare = np.asarray(jax.vmap(lambda key: others(key, corrected=False))(keys))
    assert bare.mean() == pytest.approx(whole * 4 / 39, rel=0.05)


def test_labels_outside_are_loud_and_disturb_nobody():
    labels = jnp.array([3, -1, 40, 17])
    sample = ms.sample_classes(jax.random.key(0), labels, CLASSES, 8)
    np.testing.assert_array_equal(np.asarray(sample.labels) < 0, [False, True, True, False])
    assert {3, 17} <= set(np.asarray(sample.classes).tolist())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda y: ms.sample_classes(jax.random.key(0), y, 100, 5), "num_sampled: expected at least 6, came 5"),
        (lambda y: ms.sample_classes(jax.random.key(0), y, 100, 101), "num_sampled: .*<= 100"),
        (lambda y: ms.sample_classes(jax.random.key(0), y, 0, 5), "num_classes: "),
        (lambda y: ms.sample_classes(jax.random.key(0), y[:, None], 100, 9), r"labels: expected shape \[B\]"),
    ],
)
def test_impossible_samples_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make(jnp.zeros(6, jnp.int32))
    ms.sample_classes(jax.random.key(0), jnp.zeros(6, jnp.int32), 4, 4)


SHARDS, SHARE = 4, 10


@pytest.fixture(scope="module")
def draws():
    """Over four devices, of 38 classes, so that the last has two less: 2000 samples of 24 with the same labels."""
    labels = jnp.array([3, 9, 3, 0, 37, 12])
    head = ms.sharded("classes", mesh=mesh_of((SHARDS,)))
    one = functools.partial(ms.sample_classes, labels=labels, num_classes=38, num_sampled=24, head=head)
    keys = jax.random.split(jax.random.key(0), 2000)
    return labels, jax.tree.map(np.asarray, jax.lax.map(one, keys))


def test_every_device_draws_its_own_with_all_of_the_batch_that_it_has(draws):
    labels, (classes, places, log_weights) = draws
    assert np.all(np.diff(classes, axis=1) > 0)
    np.testing.assert_array_equal(classes // SHARE, np.broadcast_to(np.repeat(range(SHARDS), 6), classes.shape))
    np.testing.assert_array_equal(np.take_along_axis(classes, places, axis=1), np.broadcast_to(labels, places.shape))
    assert classes.max() < 38
    each = np.log([7 / 3, 9 / 5, 10 / 6, 7 / 5])
    expected = np.where(np.isin(classes, labels), 0, each[classes // SHARE])
    np.testing.assert_allclose(log_weights, expected, rtol=1e-6)


def test_every_device_draws_the_others_uniformly(draws):
    """Each of a device's others in S - P of C - P draws, within five standard deviations; no two devices alike."""
    labels, (classes, _, _) = draws
    counts = np.bincount(classes.reshape(-1), minlength=38)
    ids = np.arange(38)
    p = np.exp(-np.log([7 / 3, 9 / 5, 10 / 6, 7 / 5]))[ids // SHARE]
    others = ~np.isin(ids, labels)
    assert np.all(counts[~others] == 2000)
    assert np.all(np.abs(counts - 2000 * p)[others] <= 5 * np.sqrt(2000 * p * (1 - p))[others])
    drawn = (classes[:, :, None] == ids).any(axis=1)
    together = np.corrcoef(drawn[:, 4], drawn[:, 24])[0, 1]
    assert abs(together) <= 5 / np.sqrt(2000)


def of_sample(head, margin, num_sampled):
    """Losses, gradients of features and of all weights, and the sample, in one program."""

    @jax.jit
    def of(x, w, y, key):
        sample = ms.sample_classes(key, y, CLASSES, num_sampled, head=head)

        def total(x, w):
            rows = ms.take_rows(w, sample, head=head)
            losses = ms.margin_loss(x, rows, sample.labels, margin, head=head, bias=sample.log_weights)
            return jnp.sum(losses * jnp.linspace(-1, 2, 8)), losses

        (_, losses), bars = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(x, w)
        return (losses, *bars), sample

    return of


@pytest.mark.parametrize("name", ["l_softmax_4_blend", "npcface", "sub-centres"])
def test_over_devices_it_is_the_loss_of_one_that_is_given_the_same_classes(name):
    row = MARGINS.get(name) or FIELD.get(name)
    margin = ms.cosface(0.2, 8.0) if row is None else row.margin if name in MARGINS else row.margin(*row.numbers)
    with jax.enable_x64(True):
        x, w, y = (jnp.asarray(a) for a in examples(8, CLASSES, 5, 0.4))
        if row is None:
            w = jnp.stack([w, -w, jnp.roll(w, 1, axis=1)], axis=1)
        head = ms.sharded("classes", inner=ms.blockwise(3, memory=0), mesh=mesh_of((SHARDS,)))
        ours, sample = of_sample(head, margin, 32)(x, w, y, jax.random.key(1))

        def total(x, w):
            rows, bias = w[sample.classes], sample.log_weights.astype(jnp.float64)
            losses = ms.margin_loss(x, rows, sample.labels, margin, head=ms.dense(), bias=bias)
            return jnp.sum(losses * jnp.linspace(-1, 2, 8)), losses

        (_, losses), bars = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(x, w)
        assert_equal(ours, (losses, *bars))


@pytest.mark.parametrize("devices", [1, 4])
def test_with_all_classes_it_is_the_full_loss_to_the_last_bit(devices):
    head = ms.blockwise() if devices == 1 else ms.sharded("classes", mesh=mesh_of((devices,)))
    x, w, y = (jnp.asarray(a) for a in examples(8, CLASSES, 5, 0.4, dtype=np.float32))
    ours, sample = of_sample(head, ms.arcface(), CLASSES)(x, w, y, jax.random.key(0))

    def total(x, w):
        losses = ms.margin_loss(x, w, y, ms.arcface(), head=head, bias=jnp.zeros(CLASSES))
        return jnp.sum(losses * jnp.linspace(-1, 2, 8)), losses

    (_, losses), bars = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(x, w)
    np.testing.assert_array_equal(sample.classes, np.arange(CLASSES))
    for one, other in zip(ours, (losses, *bars), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_are_taken_and_put_where_they_are_and_in_a_shard_map_of_the_callers():
    mesh = mesh_of((2, SHARDS), ("data", "classes"), AxisType.Explicit)
    x, w, y = (jnp.asarray(a) for a in examples(8, CLASSES, 5, 0.4, dtype=np.float32))
    tree = {"rows": w, "ids": jnp.arange(CLASSES, dtype=jnp.int32)}

    def local(key, x, w, y):
        head = ms.sharded("classes")
        sample = ms.sample_classes(key, y, CLASSES, 32, head=head)
        rows = ms.take_rows(w, sample, head=head)
        changed = jax.tree.map(lambda leaf: leaf + 1, rows)
        losses = ms.margin_loss(x, rows["rows"], sample.labels, ms.arcface(), head=head)
        return sample, rows, ms.put_rows(w, changed, sample, head=head), losses

    split, sample_split = P("classes"), ms.Sample(P("classes"), P(), P("classes"))
    arguments = jax.random.key(0), x, tree, y
    with jax.set_mesh(mesh):
        inside = jax.jit(
            jax.shard_map(local, in_specs=(P(), P(), split, P()), out_specs=(sample_split, split, split, P()))
        )(*jax.device_put(arguments, tuple(NamedSharding(mesh, spec) for spec in (P(), P(), split, P()))))
        outside = jax.jit(local)(*arguments)
    assert_equal(inside, outside, 0)
    sample, rows, changed, losses = jax.tree.map(np.asarray, outside)
    np.testing.assert_array_equal(rows["ids"], sample.classes)
    np.testing.assert_array_equal(rows["rows"], np.asarray(w)[sample.classes])
    chosen = np.isin(np.arange(CLASSES), sample.classes)
    np.testing.assert_array_equal(changed["ids"], np.arange(CLASSES) + chosen)
    np.testing.assert_allclose(
        losses, ms.margin_loss(x, w[sample.classes], jnp.asarray(sample.labels), ms.arcface()), rtol=1e-5
    )


def test_a_sample_of_other_devices_is_loud():
    """The second of two devices has the classes 4 to 7: the row of 3 is NaN there, and is not written."""
    head = ms.sharded("classes", mesh=mesh_of((2,)))
    sample = ms.Sample(jnp.array([1, 2, 3, 7], jnp.int32), jnp.zeros(1, jnp.int32), jnp.zeros(4))
    with jax.debug_nans(False):
        np.testing.assert_array_equal(ms.take_rows(jnp.arange(8.0), sample, head=head), [1, 2, np.nan, 7])
    put = ms.put_rows(jnp.zeros(8), jnp.ones(4), sample, head=head)
    np.testing.assert_array_equal(put, [0, 1, 1, 0, 0, 0, 0, 1])


@pytest.mark.optimised
def test_what_devices_say_to_each_other_grows_neither_with_the_classes_nor_with_the_sample():
    """Of 16 examples as of the full loss (see test_sharded.py), and the places of their labels; of 512 rows nothing."""
    mesh, classes, num_sampled, batch, dim = mesh_of((2,)), 2048, 512, 16, 8
    head = ms.sharded("classes", mesh=mesh, inner=ms.blockwise(64, memory=0))
    same, by_class = NamedSharding(mesh, P()), NamedSharding(mesh, P("classes"))

    def step(key, x, w, y):
        sample = ms.sample_classes(key, y, classes, num_sampled, head=head)
        rows = ms.take_rows(w, sample, head=head)

        def total(x, rows):
            return ms.margin_loss(x, rows, sample.labels, ms.arcface(), head=head).mean()

        x_bar, rows_bar = jax.grad(total, argnums=(0, 1))(x, rows)
        return x_bar, ms.put_rows(w, rows - rows_bar, sample, head=head)

    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for shape, dtype, sharding in (
            ((batch, dim), jnp.float32, same),
            ((classes, dim), jnp.float32, by_class),
            ((batch,), jnp.int32, same),
        )
    ]
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = jax.jit(step, out_shardings=(same, by_class)).lower(key, *arguments).compile()
    expected = [("all-reduce", batch), ("all-reduce", batch * dim), ("all-reduce", batch * (dim + 2 * 2))]
    assert sorted(collectives(compiled)) == expected


SAMPLE = ms.Sample(jnp.arange(4, dtype=jnp.int32), jnp.zeros(2, jnp.int32), jnp.zeros(4))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda head, y: ms.sample_classes(jax.random.key(0), y, 100, 20, head=head), ValueError,
         r"num_sampled: expected at least 24, came 20\. A batch of 6 .* Each of 4 devices"),
        (lambda head, y: ms.sample_classes(jax.random.key(0), y, 100, 30, head=head), ValueError,
         "num_sampled: expected a multiple of the 4 devices .*: take 28"),
        (lambda head, y: ms.sample_classes(jax.random.key(0), y, 38, 36, head=head), ValueError,
         "num_sampled: expected at most 32, came 36. Of 38 classes on 4 devices the last has 8"),
        (lambda head, y: ms.sample_classes(jax.random.key(0), y, 9, 8, head=head), ValueError,
         "num_sampled: expected at least 12"),
        (lambda head, y: ms.take_rows(jnp.zeros((38, 3)), SAMPLE, head=head), ValueError,
         r"weights: expected a multiple of the 4 devices .*came \(38, 3\).*with 2 more rows.*jnp\.pad"),
        (lambda head, y: ms.take_rows(jnp.float32(1), SAMPLE), ValueError, "weights: expected one row per class"),
        (lambda head, y: ms.take_rows(jnp.zeros((8, 3)), y), TypeError, "sample: expected what ms.sample_classes"),
        (lambda head, y: ms.put_rows(jnp.zeros((8, 3)), jnp.zeros((8, 3)), SAMPLE), ValueError,
         r"rows: expected one row per sampled class, .* = \(4, \.\.\.\), came \(8, 3\)"),
        (lambda head, y: ms.sample_classes(jax.random.key(0), y, 100, 20, head=ms.dense), TypeError, "head: "),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make(ms.sharded("classes", mesh=mesh_of((SHARDS,))), jnp.zeros(6, jnp.int32))
