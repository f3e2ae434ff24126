"""What is traced is refused in one way by every function of `verification`, before any other look at the arguments."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from margin_softmax import verification as mv

RUN_IN_JIT = {mv.with_mirror}
FUNCTIONS = [f for name in mv.__all__ if inspect.isfunction(f := getattr(mv, name)) and f not in RUN_IN_JIT]
ARGUMENTS = [
    pytest.param(f, name, id=f"{f.__name__}-{name}")
    for f in FUNCTIONS
    for name in inspect.signature(f).parameters
    if name != "interpolation"  # a word, and no word is traced
]


@pytest.mark.parametrize(("function", "traced"), ARGUMENTS)
def test_traced_arguments_are_refused_first(function, traced):
    """Nothing is done with the others, for these are no arguments at all."""
    required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    others = {name: object() for name in required if name != traced}

    def called(tracer):
        for value in (tracer, [1.0, tracer], mv.Counts(np.ones(3), tracer, np.ones(3))):
            with pytest.raises(TypeError, match=f"^{traced}: expected values .* came traced ones. Call it outside jit"):
                function(**others, **{traced: value})

    jax.eval_shape(called, jax.ShapeDtypeStruct((3,), np.float32))


def test_templates_refuse_traced_ids():
    templates = mv.Templates(np.eye(2), np.array([3, 4]))
    with pytest.raises(TypeError, match=r"^ids: .* came traced ones"):
        jax.eval_shape(templates.rows, jax.ShapeDtypeStruct((3,), np.int32))


X, Y, P = np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1]), np.array([[0, 1], [2, 1]])
ON_DEVICE = {
    "pair_cosines": lambda: mv.pair_cosines(X, P),
    "pair_counts": lambda: mv.pair_counts(X, Y),
    "as_norm": lambda: mv.as_norm(X, P, X, top=2),
    "identification": lambda: mv.identification(X, Y, X, Y),
    "retrieval": lambda: mv.retrieval(X, Y),
}


@pytest.mark.parametrize("name", ON_DEVICE)
def test_inside_jit_even_constants_would_be_traced(name):
    def called(_):
        ON_DEVICE[name]()

    with pytest.raises(TypeError, match=r"^features: .* came traced ones. Call it outside jit"):
        jax.eval_shape(called, jnp.zeros(()))
