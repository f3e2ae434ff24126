"""An optimiser of which only the sampled class rows know: the others keep their values and their state."""

from typing import Any

import optax

from margin_softmax import _checks, heads, sampling
from margin_softmax.heads import Head
from margin_softmax.sampling import Sample


def lazy_rows(
    inner: optax.GradientTransformation, *, head: Head = heads.blockwise()
) -> optax.GradientTransformationExtraArgs:
    """Partial FC's lazy optimiser: a class row moves, and its state with it, in the steps that sample it.

        rows_t, state_t = inner(gradient, state, rows)     for the classes of the sample
        as they were                                       for all others

    Every row has a state of its own, so that Adam corrects its bias by the number of steps that this row has taken.
    The update is that of `optax`, of the sampled rows and their gradient, with one more argument,

        rows = ms.take_rows(weights, sample)
        updates, state = optimiser.update(row_gradients, state, rows, sample=sample)
        weights = ms.put_rows(weights, optax.apply_updates(rows, updates), sample)

    and no array of the size of the weights is made, of gradients neither; donate the weights and the state.

    `inner` sees one row at a time: a schedule inside counts the steps of the row, a norm inside is that of the row, and
    whatever is drawn inside is drawn alike for all. What belongs to the step or to all rows goes outside:

        optax.chain(
            optax.clip_by_global_norm(1.0), ms.lazy_rows(optax.scale_by_adam()), optax.scale_by_learning_rate(schedule)
        )

    Without this wrapper an `optax` transformation takes the gradient of all weights (see `ms.take_rows`), and rows
    that are not sampled go on by their momentum and decay: the dense meaning, which newer Partial FC code has.

    Args:
      inner: `optax.adam(1e-3)`, or any other whose state has the shape of the weights, or is a number.
      head: that of the sample. Static.

    Returns:
      A transformation whose `init` takes the weights `[C, ...]` (every leaf of the state is `[C, ...]`, too), and whose
      `update` takes the gradient of the sampled rows, the state, the sampled rows, and `sample=`.

    Raises:
      TypeError: `inner` is no `optax` transformation, or `update` is not given what it needs.
      ValueError: rows or gradients are not those of the sample.

    References:
      An et al., Partial FC: Training 10 Million Identities on a Single Machine, ICCV workshops 2021, whose momentum is
      kept by row. Kingma, Ba, Adam: A Method for Stochastic Optimization, ICLR 2015.

    Example:
      >>> optimiser, weights = ms.lazy_rows(optax.sgd(0.5)), jnp.ones((4, 1))
      >>> sample = ms.sample_classes(jax.random.key(0), jnp.array([1, 3]), num_classes=4, num_sampled=2)
      >>> state, rows = optimiser.init(weights), ms.take_rows(weights, sample)
      >>> updates, state = optimiser.update(jnp.array([[1.0], [2.0]]), state, rows, sample=sample)
      >>> ms.put_rows(weights, optax.apply_updates(rows, updates), sample)[:, 0]
      Array([1. , 0.5, 1. , 0. ], dtype=float32)
    """
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise TypeError(f"inner: expected an optax transformation such as optax.adam(1e-3), came {inner!r}.")
    inner = optax.with_extra_args_support(inner)
    head = _checks.head(head)

    def init(params: Any) -> Any:
        sampling.refuse_uneven(params, head)
        return sampling.by_row(inner.init, params, head=head)

    def update(
        updates: Any, state: Any, params: Any = None, *, sample: Sample | None = None, **more: Any
    ) -> tuple[Any, Any]:
        if not isinstance(sample, Sample):
            came = "none" if sample is None else type(sample).__name__
            raise TypeError(
                f"sample: expected that of this step, came {came}. Pass `update(..., sample=sample)`, of "
                "`ms.sample_classes`."
            )
        sampling.refuse_other_rows("updates", updates, sample)
        sampling.refuse_other_rows("params", params, sample)

        def of_row(gradient: Any, own_state: Any, row: Any) -> Any:
            return inner.update(gradient, own_state, row, **more)

        own = sampling.take_rows(state, sample, head=head)
        changes, own = sampling.by_row(of_row, updates, own, params, head=head)
        return changes, sampling.put_rows(state, own, sample, head=head)

    return optax.GradientTransformationExtraArgs(init, update)
