"""What becomes ONNX: the network of a checkpoint, in terms that jax2onnx knows. Converting needs jax2onnx."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import export_onnx
from face_network import FaceNetwork
from face_recipes import SMALL
from face_training import embed, frozen
from training_checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("as_users_have_it")


@pytest.fixture(scope="module")
def network():
    """Statistics are none that a network begins with."""
    backbone = SMALL.backbone((32, 32, 1), SMALL.features, rngs=nnx.Rngs(0))
    drawn = np.random.default_rng(0)
    changed = jax.tree.map(
        lambda leaf: jnp.asarray(drawn.uniform(0.5, 1.5, leaf.shape), leaf.dtype), nnx.state(backbone)
    )
    nnx.update(backbone, changed)
    return FaceNetwork(backbone, 3, nnx.Module(), rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    optimizer = nnx.Optimizer(network, optax.sgd(0.1), wrt=nnx.Param)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(7, network, optimizer, {"configuration": {"recipe": "small"}})
    return folder


def pictures(shape):
    return np.random.default_rng(2).integers(0, 256, (3, *shape), np.uint8)


def unit(features):
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def test_the_network_of_a_checkpoint_finds_the_same_features(network, folder):
    recipe, weights = export_onnx.latest(folder)
    again = export_onnx.trained(recipe, weights, (32, 32, 1))
    given = pictures((32, 32, 1))
    expected = np.asarray(embed(network, given)[0], np.float64)
    np.testing.assert_allclose(jax.jit(export_onnx.of_pictures(again, (32, 32, 1)))(given), unit(expected), atol=1e-5)


@pytest.mark.parametrize("shape", [(45, 38, 1), (30, 64, 1)])
def test_resizing_by_products_is_resizing(network, shape):
    given = pictures(shape)
    np.testing.assert_allclose(
        jax.jit(export_onnx.of_pictures(network.backbone, shape))(given),
        jax.jit(frozen(network.backbone))(given),
        atol=1e-5,
    )


def test_nothing_is_resized_where_jax2onnx_looks(network, monkeypatch):
    by_products, as_it_is = export_onnx.of_pictures(network.backbone, (45, 38, 1)), frozen(network.backbone)

    def refuse(*_, **__):
        raise NotImplementedError("resize with antialias=True")

    monkeypatch.setattr(jax.image, "resize", refuse)
    with pytest.raises(NotImplementedError):
        jax.make_jaxpr(as_it_is)(pictures((45, 38, 1)))
    jax.make_jaxpr(by_products)(pictures((45, 38, 1)))


def test_another_network_is_refused(folder):
    recipe, weights = export_onnx.latest(folder)
    with pytest.raises(ValueError, match=r"stem/kernel/value: expected shape \(3, 3, 3, 16\), the checkpoint has"):
        export_onnx.trained(recipe, weights, (32, 32, 3))


def test_what_is_missing_is_named(folder, tmp_path, monkeypatch, capsys):
    with pytest.raises(FileNotFoundError, match=r"none: there are no checkpoints; expected the --out of"):
        export_onnx.latest(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(SystemExit):
        export_onnx.main([str(folder.parent)])
    assert "jax2onnx is not installed: pip install jax2onnx" in capsys.readouterr().err
