"""Lazy rows: a row and its state move when it is sampled, as if it were alone, and no array is as large as all rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import margin_softmax as ms
from table import examples
from test_sharded import collectives, mesh_of

pytestmark = pytest.mark.usefixtures("as_users_have_it")

CLASSES, SAMPLED, DIM, STEPS = 12, 8, 3, 6


class Adam:
    """Of one row, in NumPy."""

    def __init__(self, row, rate=0.1, b1=0.9, b2=0.999, eps=1e-8, decay=0.0):
        self.rate, self.b1, self.b2, self.eps, self.decay = rate, b1, b2, eps, decay
        self.steps, self.m, self.v = 0, np.zeros_like(row), np.zeros_like(row)

    def change(self, gradient, row):
        self.steps += 1
        self.m = self.b1 * self.m + (1 - self.b1) * gradient
        self.v = self.b2 * self.v + (1 - self.b2) * gradient**2
        m, v = self.m / (1 - self.b1**self.steps), self.v / (1 - self.b2**self.steps)
        return -self.rate * (m / (np.sqrt(v) + self.eps) + self.decay * row)


class Momentum:
    """Of one row, in NumPy; its learning rate is `rate` of the number of its own steps."""

    def __init__(self, row, rate=lambda steps: 0.1, momentum=0.9):
        self.rate, self.momentum, self.steps, self.trace = rate, momentum, 0, np.zeros_like(row)

    def change(self, gradient, row):
        self.trace = gradient + self.momentum * self.trace
        self.steps += 1
        return -self.rate(self.steps - 1) * self.trace


def falling(steps):
    return 0.5 / (1 + steps)


OPTIMISERS = {
    "adam, with decay": (optax.adamw(0.1, weight_decay=0.5), functools.partial(Adam, decay=0.5)),
    "momentum": (optax.sgd(0.1, momentum=0.9), Momentum),
    "a schedule inside, which counts the steps of the row": (
        optax.sgd(falling, momentum=0.9),
        functools.partial(Momentum, rate=falling),
    ),
}


def sampled_rows(head, optimiser):
    """One step on given gradients `[C, D]`, of which the sampled rows alone are seen."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(weights, state, gradients, labels, key):
        sample = ms.sample_classes(key, labels, CLASSES, SAMPLED, head=head)
        rows, row_gradients = ms.take_rows((weights, gradients), sample, head=head)
        changes, state = optimiser.update(row_gradients, state, rows, sample=sample)
        return ms.put_rows(weights, optax.apply_updates(rows, changes), sample, head=head), state, sample.classes

    return step


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("devices", [1, 4])
def test_every_row_has_an_optimiser_of_its_own(name, devices):
    """Against float64 NumPy; what is not sampled stays as it is to the last bit, its state with it."""
    inner, of_row = OPTIMISERS[name]
    random = np.random.default_rng(0)
    weights = random.normal(size=(CLASSES, DIM))
    exact, optimisers = weights.copy(), [of_row(row) for row in weights]
    mesh = mesh_of((devices,))
    head = ms.blockwise() if devices == 1 else ms.sharded("classes", mesh=mesh)
    with jax.enable_x64(True):
        optimiser = ms.lazy_rows(inner, head=head)
        step, weights = sampled_rows(head, optimiser), jax.device_put(weights, NamedSharding(mesh, P("classes")))
        state = optimiser.init(weights)
        for leaf in jax.tree.leaves(state):
            assert leaf.shape[0] == CLASSES
            assert leaf.sharding.is_equivalent_to(weights.sharding, leaf.ndim)
        for i in range(STEPS):
            gradients, before = random.normal(size=(CLASSES, DIM)), jax.tree.map(np.asarray, (weights, state))
            labels = jnp.asarray(random.integers(0, CLASSES, 2))
            weights, state, classes = step(weights, state, jnp.asarray(gradients), labels, jax.random.key(i))
            for j in np.asarray(classes):
                exact[j] += optimisers[j].change(gradients[j], exact[j])
            np.testing.assert_allclose(weights, exact, rtol=1e-12, atol=1e-12)
            others = np.delete(np.arange(CLASSES), classes)
            assert len(others) == CLASSES - SAMPLED
            for one, other in zip(jax.tree.leaves(before), jax.tree.leaves((weights, state)), strict=True):
                np.testing.assert_array_equal(one[others], np.asarray(other)[others])
    assert len({optimiser.steps for optimiser in optimisers}) > 1


def test_what_belongs_to_all_rows_goes_outside():
    """A schedule outside counts the steps, a norm outside is that of all sampled rows; inside, those of the row."""
    weights, gradients = jnp.zeros((CLASSES, DIM)), jnp.ones((CLASSES, DIM))
    labels = jnp.arange(4, dtype=jnp.int32)
    outside = optax.chain(
        optax.clip_by_global_norm(1.0), ms.lazy_rows(optax.trace(0.0)), optax.scale_by_schedule(falling)
    )
    inside = ms.lazy_rows(optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_schedule(falling)))
    norms = {}
    for name, optimiser in {"outside": outside, "inside": inside}.items():
        rows, state, step = weights, optimiser.init(weights), sampled_rows(ms.blockwise(), optimiser)
        rows, state, _ = step(jnp.array(rows), state, gradients, labels, jax.random.key(0))
        after, state, classes = step(jnp.array(rows), state, gradients, labels, jax.random.key(1))
        norms[name] = np.linalg.norm(after - rows, axis=1)
        again = np.isin(np.arange(CLASSES), classes) & (np.linalg.norm(rows, axis=1) > 0)
        first = np.isin(np.arange(CLASSES), classes) & ~again
        assert first.any()
        norms[name] = norms[name][first].mean(), norms[name][again].mean()
    np.testing.assert_allclose(norms["outside"], [falling(1) / np.sqrt(SAMPLED)] * 2, rtol=1e-5)
    np.testing.assert_allclose(norms["inside"], [falling(0), falling(1)], rtol=1e-5)


def training_step(optimiser, classes, sampled, head, *, dense=False):
    """A step of either meaning on the loss of a sample; weights and state are donated."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(weights, state, x, y, key):
        sample = ms.sample_classes(key, y, classes, sampled, head=head)

        def loss(rows):
            return ms.margin_loss(x, rows, sample.labels, ms.arcface(0.2, scale=8.0), head=head).mean()

        if dense:
            gradient = jax.grad(lambda weights: loss(ms.take_rows(weights, sample, head=head)))(weights)
            changes, state = optimiser.update(gradient, state, weights)
            return optax.apply_updates(weights, changes), state, sample.classes
        rows = ms.take_rows(weights, sample, head=head)
        changes, state = optimiser.update(jax.grad(loss)(rows), state, rows, sample=sample)
        return ms.put_rows(weights, optax.apply_updates(rows, changes), sample, head=head), state, sample.classes

    return step


def test_the_two_meanings_differ_where_they_say():
    """From a first step with all classes on, a row that is not sampled is moved by momentum in the dense meaning."""
    x, w, y = (jnp.asarray(a) for a in examples(4, 20, 5, 0.4, dtype=np.float32))
    inner = optax.sgd(0.5, momentum=0.9)
    moved = {}
    for name, optimiser in {"dense": inner, "lazy": ms.lazy_rows(inner)}.items():
        steps = [training_step(optimiser, 20, n, ms.blockwise(), dense=name == "dense") for n in (20, 6)]
        first, state, _ = steps[0](jnp.array(w), optimiser.init(w), x, y, jax.random.key(0))
        before = np.asarray(first)
        second, _, classes = steps[1](jnp.array(first), state, x, y, jax.random.key(1))
        moved[name] = before, np.asarray(second), np.isin(np.arange(20), classes)
    (dense_first, dense, sampled), (lazy_first, lazy, also) = moved["dense"], moved["lazy"]
    np.testing.assert_array_equal(sampled, also)
    np.testing.assert_allclose(lazy_first, dense_first, rtol=1e-6)
    np.testing.assert_allclose(lazy[sampled], dense[sampled], rtol=1e-5)
    np.testing.assert_array_equal(lazy[~sampled], lazy_first[~sampled])
    np.testing.assert_allclose((dense - dense_first)[~sampled], 0.9 * (dense_first - w)[~sampled], rtol=1e-3, atol=1e-6)
    assert np.all(np.abs(dense - dense_first)[~sampled].max(axis=1) > 1e-5)


def made_of_size(jaxpr, shape):
    """The operations, at any depth, that make an array of a shape."""
    for equation in jaxpr.eqns:
        # A scatter has a program, too: how two numbers meet.
        parameters = [value for name, value in equation.params.items() if name != "update_jaxpr"]
        bodies = [leaf for leaf in jax.tree.leaves(parameters, is_leaf=is_jaxpr) if is_jaxpr(leaf)]
        for body in bodies:
            yield from made_of_size(getattr(body, "jaxpr", body), shape)
        if not bodies and any(getattr(out.aval, "shape", None) == shape for out in equation.outvars):
            yield equation.primitive.name


def is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


@pytest.mark.optimised
@pytest.mark.parametrize("devices", [1, 4])
def test_no_array_is_as_large_as_the_weights(devices):
    """Weights and both moments are written in place, and what devices say to each other is as small."""
    classes, sampled, dim, batch = 40_000, 400, 64, 16
    here = classes // devices, dim
    mesh = mesh_of((devices,))
    head = ms.blockwise() if devices == 1 else ms.sharded("classes", mesh=mesh)
    placed = NamedSharding(mesh, P("classes"))
    weights = jax.ShapeDtypeStruct((classes, dim), jnp.float32, sharding=placed)
    more = jax.ShapeDtypeStruct((batch, dim), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    optimiser = ms.lazy_rows(optax.adam(1e-3), head=head)
    state = jax.eval_shape(optimiser.init, weights)
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed), state)
    with jax.debug_nans(False):  # which keeps what is donated, to compute it again
        traced = training_step(optimiser, classes, sampled, head).trace(weights, state, *more, key)
        compiled = traced.lower().compile()
    memory, whole = compiled.memory_analysis(), 4 * here[0] * here[1]
    assert sorted(made_of_size(traced.jaxpr.jaxpr, here)) == ["scatter"] * 3
    assert memory.alias_size_in_bytes >= 3 * whole
    assert memory.temp_size_in_bytes < whole / 4
    assert all(size <= batch * (dim + 2 * devices) for _, size in collectives(compiled))


@pytest.mark.optimised
def test_the_dense_meaning_makes_its_gradient():
    """And is found out by what finds no such array above."""
    weights = jax.ShapeDtypeStruct((5_000, 64), jnp.float32)
    more = jax.ShapeDtypeStruct((16, 64), jnp.float32), jax.ShapeDtypeStruct((16,), jnp.int32)
    optimiser = optax.adam(1e-3)
    step = training_step(optimiser, 5_000, 50, ms.blockwise(), dense=True)
    state = jax.eval_shape(optimiser.init, weights)
    with jax.debug_nans(False):
        traced = step.trace(weights, state, *more, jax.eval_shape(lambda: jax.random.key(0)))
        memory = traced.lower().compile().memory_analysis()
    assert "scatter-add" in made_of_size(traced.jaxpr.jaxpr, weights.shape)
    assert memory.temp_size_in_bytes >= 4 * weights.size


SAMPLE = ms.Sample(jnp.arange(2, dtype=jnp.int32), jnp.zeros(1, jnp.int32), jnp.zeros(2))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ms.lazy_rows(0.1), TypeError, "inner: expected an optax transformation"),
        (lambda: ms.lazy_rows(optax.sgd(0.1), head=ms.dense), TypeError, "head: "),
        (lambda: ms.lazy_rows(optax.sgd(0.1)).update(jnp.ones((2, 3)), optax.EmptyState()), TypeError,
         r"sample: expected that of this step, came none\. Pass `update\(\.\.\., sample=sample\)`"),
        (lambda: ms.lazy_rows(optax.sgd(0.1)).update(jnp.ones((2, 3)), optax.EmptyState(), sample=(0, 1)), TypeError,
         "sample: expected that of this step, came tuple.*of `ms.sample_classes`"),
        (lambda: ms.lazy_rows(optax.sgd(0.1)).update(jnp.ones((4, 3)), optax.EmptyState(), sample=SAMPLE), ValueError,
         r"updates: .* = \(2, \.\.\.\), came \(4, 3\).*gradient with respect to them"),
        (lambda: ms.lazy_rows(optax.sgd(0.1)).update(
            jnp.ones((2, 3)), optax.EmptyState(), jnp.ones((4, 3)), sample=SAMPLE), ValueError,
         "params: expected one row"),
        (lambda: ms.lazy_rows(optax.sgd(0.1), head=ms.sharded("classes", mesh=mesh_of((4,)))).init(jnp.ones((6, 3))),
         ValueError, "weights: expected a multiple of the 4 devices"),
    ],
)  # fmt: skip
def test_what_is_no_row_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
