"""A trained embedding in one file: pictures in, unit features out, on any device, without the code that trained it.

The file is a zip archive of the function as `jax.export` serialises it, its weights included, and of a JSON object
that says what pictures it takes and at which cosine two of them are taken for one person. Any number of pictures at
once; CPU, CUDA and TPU.
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

PLATFORMS = "cpu", "cuda", "tpu"
FUNCTION, ABOUT = "embedding.jax", "about.json"
FORMAT = 1


class Embedding:
    """What a file holds.

    Attributes:
      shape: `(H, W, channels)` of the pictures, uint8.
      thresholds: false accept rate -> the cosine from which on two pictures are of one person.
      about: whatever else the file says: loss, data, versions.
    """

    def __init__(self, path: Path | str):
        try:
            with zipfile.ZipFile(path) as archive:
                self.about = json.loads(archive.read(ABOUT))
                function = archive.read(FUNCTION)
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise ValueError(f"{path} is no exported embedding: {error}") from error
        if self.about["format"] != FORMAT:
            raise ValueError(f"{path}: expected format {FORMAT}, came {self.about['format']}; export it anew")
        self.shape: tuple[int, int, int] = tuple(self.about["shape"])
        self.thresholds = {float(far): cosine for far, cosine in self.about["thresholds"].items()}
        self._function = export.deserialize(bytearray(function))

    def __call__(self, pictures: np.ndarray) -> jax.Array:
        """Unit features `[N, D]` of `pictures` `[N, *shape]`, uint8."""
        if pictures.dtype != np.uint8 or pictures.shape[1:] != self.shape:
            expected = f"uint8 [N, {', '.join(map(str, self.shape))}]"
            raise ValueError(f"pictures: expected {expected}, came {pictures.dtype} {list(pictures.shape)}")
        return self._function.call(pictures)


def write(
    path: Path,
    embed: Callable[[jax.Array], jax.Array],
    shape: tuple[int, int, int],
    thresholds: Mapping[float, float],
    **about: Any,
) -> None:
    """Writes `embed`, which maps uint8 `[N, *shape]` to unit features and holds its weights."""
    pictures = jax.ShapeDtypeStruct(export.symbolic_shape(f"n, {', '.join(map(str, shape))}"), np.uint8)
    function = export.export(jax.jit(embed), platforms=PLATFORMS)(pictures).serialize()
    told = {"format": FORMAT, "shape": shape, "thresholds": {str(far): at for far, at in thresholds.items()}, **about}
    partial = path.with_name(f"{path.name}.partial")
    with zipfile.ZipFile(partial, "w") as archive:
        archive.writestr(FUNCTION, bytes(function))
        archive.writestr(ABOUT, json.dumps(told, indent=1))
    os.replace(partial, path)


def in_a_fresh_process(path: Path, pictures: np.ndarray) -> np.ndarray:
    """The features that another process finds, which has nothing but the file, this module and the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "pictures.npy", Path(folder) / "features.npy"
        np.save(given, pictures)
        command = [sys.executable, __file__, str(path), str(given), str(found)]
        subprocess.run(command, check=True, cwd=folder)
        return np.load(found)


if __name__ == "__main__":
    _, file, given, found = sys.argv
    np.save(found, np.asarray(Embedding(file)(np.load(given))))
