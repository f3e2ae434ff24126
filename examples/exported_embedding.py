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
ROUNDING = 1e-5  # of features of length 1, between two processes on a CPU


class Embedding:
    """What a file holds.

    Attributes:
      shape: `(H, W, channels)` of the pictures, uint8.
      thresholds: false accept rate -> the cosine from which on two pictures are of one person.
      about: whatever else the file says: the pairs that the thresholds were measured on, device, versions.
    """

    def __init__(self, path: Path | str):
        """Reads a file that `write` wrote. Raises OSError, or ValueError where it is none or can be read no more."""
        try:
            with zipfile.ZipFile(path) as archive:
                self.about: dict[str, Any] = json.loads(archive.read(ABOUT))
                function = archive.read(FUNCTION)
            height, width, channels = self.about["shape"]
            thresholds = {float(far): cosine for far, cosine in self.about["thresholds"].items()}
            if self.about["format"] != FORMAT:
                raise ValueError(f"expected format {FORMAT}, came {self.about['format']}")
        except (zipfile.BadZipFile, LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is no exported embedding ({type(error).__name__}: {error}); export it") from error
        try:
            self._function = export.deserialize(bytearray(function))
        except Exception as error:  # of damaged bytes it raises anything
            written = self.about.get("versions", {}).get("jax", "another version")
            raise ValueError(
                f"{path}: JAX {jax.__version__} cannot read what JAX {written} wrote; export it anew ({error})"
            ) from error
        self.shape, self.thresholds = (height, width, channels), thresholds

    def __call__(self, pictures: np.ndarray) -> jax.Array:
        """Unit features `[N, D]` of `pictures` `[N, *shape]`, uint8, at least one. Each new N is compiled."""
        pictures = np.asarray(pictures)
        if pictures.dtype != np.uint8 or pictures.shape[1:] != self.shape or not len(pictures):
            expected = f"uint8 [N, {', '.join(map(str, self.shape))}], N at least 1"
            raise ValueError(f"pictures: expected {expected}; came {pictures.dtype} {list(pictures.shape)}")
        return self._function.call(pictures)


class DifferentError(Exception):
    """A file finds other features than the function that was written; there is none under its name."""


def write(
    path: Path,
    embed: Callable[[jax.Array], jax.Array],
    pictures: np.ndarray,
    thresholds: Mapping[float, float],
    **about: Any,
) -> float:
    """Writes `embed`, which maps uint8 pictures to unit features and holds its weights.

    Another process, which has nothing but the file and this module, finds the features of `pictures`, `[N, H, W,
    channels]`. How far they are from those found here is returned; `DifferentError` is raised where that is too far,
    and the file gets its name only afterwards.
    """
    from whole_files import whole  # not above: the fresh process has this module alone

    shape = pictures.shape[1:]
    symbolic = jax.ShapeDtypeStruct(export.symbolic_shape(f"n, {', '.join(map(str, shape))}"), np.uint8)
    function = export.export(jax.jit(embed), platforms=PLATFORMS)(symbolic).serialize()
    told = {"format": FORMAT, "shape": shape, "thresholds": {str(far): at for far, at in thresholds.items()}, **about}
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        here = np.asarray(jax.jit(embed)(pictures))
    with whole(path) as part:
        with zipfile.ZipFile(part, "w") as archive:
            archive.writestr(FUNCTION, bytes(function))
            archive.writestr(ABOUT, json.dumps(told, indent=1, allow_nan=False))
        try:
            apart = float(np.abs(in_a_fresh_process(part, pictures) - here).max())
        except subprocess.CalledProcessError as error:
            raise DifferentError(f"{path}: a fresh process cannot use it; it was not written") from error
        if not apart <= ROUNDING:
            problem = f"a fresh process finds features that differ by {apart:.1e}"
            raise DifferentError(f"{path}: {problem}; it was not written")
    return apart


def in_a_fresh_process(path: Path, pictures: np.ndarray) -> np.ndarray:
    """The features that another process finds, on the CPU: the accelerator is this one's."""
    searched = map(Path, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    # Some environments have their packages there, and others the modules beside this one.
    installed = [str(place.absolute()) for place in searched if any(place.glob("*.dist-info"))]
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "pictures.npy", Path(folder) / "features.npy"
        np.save(given, pictures)
        # -P: not even the modules beside this one can be imported.
        command = [sys.executable, "-P", __file__, str(path.absolute()), str(given), str(found)]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(installed)}
        subprocess.run(command, check=True, cwd=folder, env=environment)
        return np.load(found)


if __name__ == "__main__":
    _, file, given, found = sys.argv
    np.save(found, np.asarray(Embedding(file)(np.load(given))))
