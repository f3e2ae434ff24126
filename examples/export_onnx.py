"""The trained embedding as ONNX, for runtimes without JAX.

    python examples/face_embedding.py --out run --export run/embedding.zip
    pip install jax2onnx
    python examples/export_onnx.py run

`run/embedding.zip` says what pictures the network takes and what features it finds; its weights are those of the latest
checkpoint. The file that is written is run by ONNX Runtime, and kept only if it finds the same features.
"""

import argparse
import functools
import importlib
import json
import logging
import operator
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax import Array
from jax import numpy as jnp

from compare_faces import picture
from exported_embedding import Embedding
from face_network import Backbone, Shape
from face_recipes import RECIPES, Recipe
from face_training import frozen
from faces.pictures import BadFileError
from training_checkpoints import Checkpoints
from whole_files import whole

NOISE = 8
ROUNDING = 1e-5  # of features of length 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="what face_embedding.py had as --out")
    parser.add_argument("--embedding", type=Path, help="what it had as --export (default: embedding.zip in RUN)")
    parser.add_argument("--out", type=Path, help="file to write (default: embedding.onnx in RUN)")
    parser.add_argument("--pictures", nargs="+", type=Path, default=[], help="to compare features on, besides noise")
    options = parser.parse_args(arguments)
    out = options.out or options.run / "embedding.onnx"
    try:
        converter, runtime = packages()
        embedding = Embedding(options.embedding or options.run / "embedding.zip")
        recipe, weights = latest(options.run / "checkpoints")
        backbone = trained(recipe, weights, embedding.shape)
        pictures = [noise(embedding.shape), *(picture(path, embedding.shape, False)[None] for path in options.pictures)]
    except (ImportError, BadFileError, ValueError, OSError) as error:
        parser.error(str(error))
    given = np.concatenate(pictures)
    unit_features = of_pictures(backbone, embedding.shape)
    description = jax.ShapeDtypeStruct(("n", *embedding.shape), np.uint8)
    model = converter.to_onnx(
        unit_features, [description], model_name="embedding", input_names=["pictures"], output_names=["features"]
    )
    del model.graph.value_info[:]  # shapes of what lies between, some of them wrong; runtimes infer their own
    model.metadata_props.add(key="about", value=json.dumps(embedding.about))
    expected = np.asarray(embedding(given))
    with whole(out) as part:
        part.write_bytes(model.SerializeToString())
        found = run(runtime, part, given)
        apart = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
        if not apart <= ROUNDING:
            reason = f"its features differ by {apart:.1e} from those of the exported embedding; is that of this run?"
            parser.exit(1, f"Not written: {reason}\n")
    print(f"Written to {out}. Its features of {len(given)} pictures are those of JAX, but for {apart:.0e}.")
    return 0


def packages() -> tuple[Any, Any]:
    """jax2onnx, which has ONNX Runtime with it."""
    for talkative in ("jax2onnx", "onnx_ir"):  # of other libraries that it could convert, each with a traceback
        logging.getLogger(talkative).setLevel(logging.ERROR)
    try:
        return importlib.import_module("jax2onnx"), importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed: pip install jax2onnx") from error


def latest(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a run, and the weights and statistics of its backbone, by name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there are no checkpoints; expected the --out of face_embedding.py")
    with Checkpoints(folder) as checkpoints:
        kept = checkpoints.latest()
        if kept is None:
            raise FileNotFoundError(f"{folder}: there is no sound checkpoint")
        step, record = kept
        # A run on a GPU is converted without one.
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        restore = ocp.args.Composite(state=ocp.args.StandardRestore(fallback_sharding=here))
        state = checkpoints.manager.restore(step, args=restore)["state"]
        return RECIPES[record["configuration"]["recipe"]], state["model"]["backbone"]


def trained(recipe: Recipe, weights: Any, shape: Shape) -> Backbone:
    """The backbone that was trained, for pictures `shape`."""
    backbone = recipe.backbone(recipe.shape(shape), recipe.features, rngs=nnx.Rngs(0))

    def kept(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        value: Any = functools.reduce(operator.getitem, name.split("/"), weights)
        if jnp.shape(value) != jnp.shape(leaf):
            raise ValueError(f"{name}: expected shape {jnp.shape(leaf)}, the checkpoint has {jnp.shape(value)}")
        return value

    nnx.update(backbone, jax.tree.map_with_path(kept, nnx.state(backbone)))
    return backbone


def of_pictures(backbone: Backbone, shape: Shape) -> Callable[[Array], Array]:
    """`frozen`, with nothing in it that jax2onnx does not know: it has no resizing that averages."""
    unit_features = frozen(backbone)
    sides = list(zip(shape[:2], backbone.shape[:2], strict=True))
    if all(side % seen == 0 for side, seen in sides):
        return unit_features
    # Resizing is linear, first down and then across: what it does to unit vectors is all that it does.
    down, across = (
        np.asarray(jax.image.resize(jnp.eye(side), (seen, side), "linear", antialias=True)) for side, seen in sides
    )

    def of_resized(pictures):
        return unit_features(jnp.einsum("hi,wj,nijc->nhwc", down, across, pictures / jnp.float32(255)))

    return of_resized


def noise(shape: Shape) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (NOISE, *shape), np.uint8)


def run(runtime: Any, path: Path, pictures: np.ndarray) -> np.ndarray:
    """Features from ONNX Runtime: of the first picture alone, then of the others, so that the batch must be free."""
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = [session.run(["features"], {"pictures": part})[0] for part in (pictures[:1], pictures[1:])]
    return np.concatenate(parts)


if __name__ == "__main__":
    sys.exit(main())
