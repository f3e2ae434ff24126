"""One of several processes of a training step with the classes split over all of them; see test_processes.py."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import margin_softmax as ms
from table import examples


def main(address: str, processes: int, process: int) -> None:
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)  # as conftest.py has it
    jax.distributed.initialize(address, processes, process, initialization_timeout=60)
    assert jax.process_count() == processes
    mesh = jax.make_mesh((jax.device_count(),), ("classes",), axis_types=(jax.sharding.AxisType.Auto,))
    x, w, y = examples(8, 24, 5, 0.4)

    def spread(array, spec):
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])

    def total(x, w, y, head):
        losses = ms.margin_loss(x, w, y, ms.curricularface(0.3, 0.5, 8.0), head=head)
        return losses.sum(), losses

    def step(head):
        return jax.jit(lambda x, w, y: jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(x, w, y, head))

    (_, losses), bars = step(ms.sharded("classes", mesh=mesh))(
        spread(x, P("classes")), spread(w, P("classes")), spread(y, P("classes"))
    )
    (_, expected), expected_bars = step(ms.dense())(jnp.asarray(x), jnp.asarray(w), jnp.asarray(y))
    for ours, theirs in zip((losses, *bars), (expected, *expected_bars), strict=True):
        whole = multihost_utils.process_allgather(ours, tiled=True)
        np.testing.assert_allclose(whole, theirs, rtol=1e-10, atol=1e-10 * np.abs(theirs).max())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
