"""What lies where, when all devices train one network: class rows split, the batch split, the rest on each.

A device computes the features of its part of the batch and, for all of the batch, the logits of its part of the
classes. Elsewhere nothing changes: the arrays stay whole to those who write the program, and JAX splits its work.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import margin_softmax as ms

AXIS = "devices"


def all_devices() -> Mesh:
    """The devices of all processes, in a row."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def head_over(mesh: Mesh) -> ms.Head:
    return ms.sharded(AXIS, mesh=mesh)


class UnevenError(Exception):
    """A batch cannot be split over the devices; the message says why, in one line."""


def refuse_uneven(batch: int, mesh: Mesh | None) -> None:
    if mesh is not None and batch % mesh.size:
        raise UnevenError(f"a batch of {batch} pictures cannot be split evenly over {mesh.size} devices")


def lay_out(mesh: Mesh | None, *modules: nnx.Pytree) -> None:
    """What each process has whole comes to lie on the devices of all; without a mesh it stays as it is."""

    def laid_out(leaf, sharding):
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])

    _update(mesh, modules, laid_out)


def keep_in_place(mesh: Mesh | None, *modules: nnx.Pytree) -> None:
    """The same inside `jit`: what a step returns lies as what it got."""
    _update(mesh, modules, jax.lax.with_sharding_constraint)


def _update(mesh: Mesh | None, modules: tuple[nnx.Pytree, ...], function: Callable[[Any, NamedSharding], Any]) -> None:
    if mesh is None:
        return
    for module in modules:
        state = nnx.state(module)
        nnx.update(
            module, jax.tree.map_with_path(lambda path, leaf: function(leaf, _sharding(path, leaf, mesh)), state)
        )


def of_all_processes(mesh: Mesh | None, batch: Any) -> Any:
    """What each process has of a batch, as one batch."""
    if mesh is None:
        return batch
    return jax.tree.map(lambda part: jax.make_array_from_process_local_data(NamedSharding(mesh, P(AXIS)), part), batch)


def split(examples: Any, mesh: Mesh | None) -> Any:
    """What belongs to examples, inside `jit`: a part of the batch on each device."""
    return examples if mesh is None else jax.lax.with_sharding_constraint(examples, NamedSharding(mesh, P(AXIS)))


def _sharding(path: Any, leaf: Any, mesh: Mesh) -> NamedSharding:
    # Class weights, and whatever an optimiser has of them. Rows that are no multiple of the devices cannot be split
    # where they lie: each device then keeps all of them, and still works on its share alone.
    of_classes = "classes" in jax.tree_util.keystr(path) and leaf.ndim > 1 and leaf.shape[0] % mesh.size == 0
    return NamedSharding(mesh, P(AXIS) if of_classes else P())
