"""The class-parallel head: each device has a share of the classes, and no device the logits of all of them.

Features, labels and whatever belongs to an example are the same on all devices; what each finds of its classes are
parts of a reduction, `[B]` each, which merge. So what devices tell each other does not grow with the classes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from margin_softmax import heads
from margin_softmax.heads import Blockwise, Classes


@dataclasses.dataclass(frozen=True)
class Sharded:
    """Classes split over mesh axes; see `sharded`."""

    axis_name: str | tuple[str, ...]
    inner: Blockwise
    mesh: Mesh | None = None

    def num_classes(self, weights):
        return weights.shape[0] * (self.shards() if self.is_inside() else 1)

    def place(self, tree):
        """The same on every device: one gather of what was split over a data axis, and of its gradient one sum."""
        if self.is_inside():
            self._refuse_unknown()
            for leaf in jax.tree.leaves(tree):
                self._refuse_split(leaf)
            return tree
        return jax.tree.map(lambda leaf: self.constrained(leaf, P()), tree)

    def own(self, function, rows, classes, labels):
        dtype = jax.tree.leaves(rows)[0].dtype

        def local(classes, labels):
            at = labels - self._first(classes)
            here = (at >= 0) & (at < classes.weights.shape[0])

            def masked(leaf):
                return jnp.where(jnp.expand_dims(here, range(1, leaf.ndim)), leaf, jnp.zeros((), leaf.dtype))

            # Of all devices one has the label's class; the others add 0.
            return jax.lax.psum(
                jax.tree.map(masked, heads.take(classes, jnp.where(here, at, 0), dtype)), self.axis_name
            )

        return function(rows, self.over(local, (P(self.axis_name), P()), P())(self._padded(classes), labels))

    def others(self, reduction, logits, rows, classes, labels):
        num_classes, rows = self.num_classes(classes.weights), heads.only_used(logits, rows, classes)
        return _sharded(self, num_classes, logits, reduction, rows, self._padded(classes), labels)

    def _context(self) -> Mesh | AbstractMesh:
        mesh = jax.sharding.get_abstract_mesh()
        # Where it is this very mesh that is set, its Explicit axes may be the compiler's for a while: it says so, and
        # the one given here does not.
        if self.mesh is not None and dict(self.mesh.shape) != dict(mesh.shape):
            mesh = self.mesh
        missing = [axis for axis in self._axes() if axis not in mesh.axis_names]
        if missing:
            came = f"axes {mesh.axis_names}" if mesh.axis_names else "no mesh"
            raise ValueError(
                f"axis_name: expected axes of the mesh, came {missing[0]!r} and {came}. "
                "Pass `mesh=`, or call inside `with jax.set_mesh(mesh):`."
            )
        return mesh

    def _axes(self) -> tuple[str, ...]:
        return (self.axis_name,) if isinstance(self.axis_name, str) else self.axis_name

    def shards(self) -> int:
        """How many devices share the classes."""
        return functools.reduce(lambda n, axis: n * self._context().shape[axis], self._axes(), 1)

    def is_inside(self) -> bool:
        """Whether the caller has mapped the axis already, in a `shard_map` of its own."""
        return set(self._axes()) <= set(jax.sharding.get_abstract_mesh().manual_axes)

    def _refuse_unknown(self):
        if not set(self._axes()) <= heads.varying(jax.lax.axis_index(self.axis_name)):
            raise ValueError(
                "axis_name: expected a `shard_map` that keeps track of what differs from device to device, came one "
                "with `check_vma=False`, in which gradients would be silently wrong. Leave `check_vma` at True."
            )

    def _refuse_split(self, leaf):
        split = set(self._axes()) & heads.varying(leaf)
        if split:
            raise ValueError(
                f"features: expected the same examples along {sorted(split)}, over which the classes are split, came "
                "others on each device. Gather them first: `jax.lax.all_gather(x, axis, tiled=True)`."
            )

    def _first(self, classes: Classes):
        """Id of the first class of this device."""
        return (jax.lax.axis_index(self.axis_name) * classes.weights.shape[0]).astype(jnp.int32)

    def _padded(self, classes: Classes) -> Classes:
        """With rows of zeros up to the same number on every device; they are never counted."""
        if self.is_inside():
            return classes
        missing = -classes.weights.shape[0] % self.shards()

        def padded(leaf):
            if missing:
                leaf = jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))
            return self.constrained(leaf, P(self.axis_name))

        return jax.tree.map(padded, classes)

    def constrained(self, leaf, spec):
        """The array, on the devices as `spec` says; on Auto and on Explicit axes."""
        leaf, mesh = jnp.asarray(leaf), self._context()
        sharding = NamedSharding(mesh, spec)
        if any(kind == AxisType.Explicit for kind in mesh.axis_types):
            return jax.sharding.reshard(leaf, sharding)
        return jax.lax.with_sharding_constraint(leaf, sharding)

    def over(self, function, in_specs, out_specs):
        """`function` on every device of its share; as it is where the caller has mapped the axis."""
        if self.is_inside():
            return function
        return jax.shard_map(function, mesh=self._context(), in_specs=in_specs, out_specs=out_specs)


INNER = Blockwise()


def sharded(axis_name: str | tuple[str, ...], inner: Blockwise = INNER, mesh: Mesh | None = None) -> Sharded:
    """Classes split over the devices of a mesh axis: no device holds all class weights, nor any logits but its own.

    Each device goes through its share of the classes block by block and the parts merge: per step the features and
    labels are gathered, the own class rows, the parts of the reduction and the feature gradient are summed, `[B, D]`
    or less each. Nothing that devices tell each other grows with C. The loss is the same as on one device.

    Call it on global arrays inside `jit`, with the mesh given here or set by `jax.set_mesh`; its axes may be Auto or
    Explicit. Weights are best placed with `NamedSharding(mesh, P(axis_name))`; C need not be a multiple of the axis,
    though placing them then needs rows of padding, which is a copy. Inside a `shard_map` of the caller's that maps the
    axis, weights are the device's own rows, `[C / n, D]`, labels stay those of all C classes, and the examples must be
    the same along the axis. A `shard_map` that maps another axis should map this one, too: where it is left to the
    compiler, JAX 0.10 and 0.12 do not lower the gradient.

    Args:
      axis_name: mesh axis over which the classes are split, or several.
      inner: how a device goes through its classes.
      mesh: the mesh; None takes the one that is set.

    Returns:
      A head.

    Raises:
      TypeError: `axis_name` is no name, or `inner` no `ms.blockwise()`.

    Example:
      >>> mesh = jax.sharding.Mesh(jax.devices(), ("classes",))
      >>> x, w, y = jnp.ones((2, 3)), jnp.eye(5, 3), jnp.array([0, 4])
      >>> ms.margin_loss(x, w, y, ms.arcface(0.5, scale=8.0), head=ms.sharded("classes", mesh=mesh)).shape
      (2,)
    """
    axes = (axis_name,) if isinstance(axis_name, str) else axis_name
    if not (isinstance(axes, tuple) and axes and all(isinstance(axis, str) for axis in axes)):
        raise TypeError(f"axis_name: expected the name of a mesh axis, or a tuple of them, came {axis_name!r}.")
    if not isinstance(inner, Blockwise):
        raise TypeError(f"inner: expected ms.blockwise(), which runs on each device, came {type(inner).__name__}.")
    return Sharded(axis_name, inner, mesh)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sharded(head: Sharded, num_classes: int, logits, reduction, rows, classes, labels):
    head = dataclasses.replace(head, inner=dataclasses.replace(head.inner, memory=0))
    return _sharded_fwd(head, num_classes, logits, reduction, rows, classes, labels)[0]


def _sharded_fwd(head, num_classes, logits, reduction, rows, classes, labels):
    axis = head.axis_name

    def local(reduction, rows, classes, labels):
        shard = heads.Shard(head._first(classes), num_classes)
        part, kept = heads.forward(head.inner.plan(rows, classes), logits, reduction, rows, classes, labels, shard)
        part = functools.reduce(reduction.merge, _every(part, axis, head.shards()))
        return reduction.total(part), kept

    in_specs, out_specs = (P(), P(), P(axis), P()), (P(), P(axis))
    total, kept = head.over(local, in_specs, out_specs)(reduction, rows, classes, labels)
    return total, (reduction, rows, classes, labels, total, kept)


def _every(part, axis, shards):
    """The parts of all devices. Each adds its own to zeros in the others' places: that is the same on all, provably."""

    def all_of(leaf):
        place = (jnp.arange(shards, dtype=jnp.int32) == jax.lax.axis_index(axis)).reshape(-1, *[1] * leaf.ndim)
        return jnp.where(place, leaf[None], jnp.zeros((), leaf.dtype))

    parts = jax.lax.psum(jax.tree.map(all_of, part), axis)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], parts) for i in range(shards)]


def _sharded_bwd(head, num_classes, logits, residuals, total_bar):
    reduction, rows, classes, labels, total, kept = residuals
    axis = head.axis_name

    def local(reduction, rows, classes, labels, total, kept, total_bar):
        shard = heads.Shard(head._first(classes), num_classes)
        bars = heads.backward(
            head.inner.plan(rows, classes), logits, reduction, rows, classes, labels, shard, total, kept, total_bar
        )
        return heads.summed_as(bars, (rows, classes))

    in_specs = (P(), P(), P(axis), P(), P(), P(axis), P())
    bars = head.over(local, in_specs, (P(), P(axis)))(reduction, rows, classes, labels, total, kept, total_bar)
    return jax.tree.map(jnp.zeros_like, reduction), *bars, None


_sharded.defvjp(_sharded_fwd, _sharded_bwd)
