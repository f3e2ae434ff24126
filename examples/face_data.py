"""The pictures of the face example: whose they are, who is trained on, who is verified.

Two sources, one form: scikit-learn's Olivetti faces (40 people, ten pictures each), and faces that the example
renders itself. People are divided into four equal folds in the order of their labels; the people of the verified
fold are never in the training set.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from rendered_faces import rendered_faces

SOURCES = "auto", "olivetti", "rendered"
FOLDS = 4
DOWNLOAD_SECONDS = 20
RENDERED_PEOPLE = 120
RENDERED_PICTURES = 10


class Faces(NamedTuple):
    """Pictures `[N, 64, 64]` with tones from 0 to 1, and the people on them `[N]`.

    The people of `labels` are numbered from 0; those of `verified_labels` keep the numbers of the source.
    """

    source: str
    pictures: np.ndarray
    labels: np.ndarray
    verified_pictures: np.ndarray
    verified_labels: np.ndarray

    @property
    def people(self) -> int:
        return int(self.labels.max()) + 1


class UnavailableError(Exception):
    """A source has no pictures to give; the message says why, in one line."""


def load_faces(source: str, *, fold: int, seed: int, people: int = RENDERED_PEOPLE, interleaved: bool = False) -> Faces:
    """The faces of `source`: 'olivetti', 'rendered', or 'auto', the first that is available.

    `people` and `seed` choose who is rendered. Raises `UnavailableError` where 'olivetti' was asked for by name.
    """
    if source in ("auto", "olivetti"):
        try:
            return split_people("olivetti", *olivetti_faces(), fold, interleaved)
        except UnavailableError as reason:
            if source == "olivetti":
                raise
            print(f"No Olivetti faces: {reason}. Going on with rendered faces.")
    pictures, labels = rendered_faces(jax.random.key(seed), people, RENDERED_PICTURES)
    return split_people("rendered", np.asarray(pictures), np.asarray(labels), fold, interleaved)


def split_people(source: str, pictures: np.ndarray, labels: np.ndarray, fold: int, interleaved: bool) -> Faces:
    """Fold k of P people verifies those from k P / 4 up to (k + 1) P / 4, or k, k + 4, k + 8, ... if interleaved."""
    people = int(labels.max()) + 1
    fold_of = labels % FOLDS if interleaved else labels * FOLDS // people
    verified = fold_of == fold
    _, relabelled = np.unique(labels[~verified], return_inverse=True)
    return Faces(source, pictures[~verified], relabelled.astype(np.int32), pictures[verified], labels[verified])


def olivetti_faces(seconds: float = DOWNLOAD_SECONDS) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [400, 64, 64] and labels [400], from scikit-learn's cache or else from its download."""
    try:
        from sklearn.datasets import fetch_olivetti_faces, get_data_home
    except ImportError as error:
        raise UnavailableError("scikit-learn is not installed") from error
    try:
        cache = Path(get_data_home())
        if not any(cache.glob("olivetti*.pkz")):
            _download_olivetti(cache, seconds)
        pixels, labels = fetch_olivetti_faces(data_home=cache, download_if_missing=False, return_X_y=True)
    except UnavailableError:
        raise
    except Exception as error:  # a damaged file raises whatever its unpickling stumbles over
        raise UnavailableError(f"scikit-learn's cache cannot be used ({type(error).__name__}: {error})") from error
    return np.reshape(pixels, (-1, 64, 64)), np.asarray(labels, np.int32)


def _download_olivetti(cache: Path, seconds: float) -> None:
    """Downloads into a folder of its own and moves the complete file: nothing half-done is ever in the cache."""
    # A process, because only a process can be ended at a time limit: a stalled connection outlives socket timeouts.
    fetch = "import sys; from sklearn.datasets import fetch_olivetti_faces as fetch; fetch(data_home=sys.argv[1])"
    with tempfile.TemporaryDirectory(dir=cache, prefix="olivetti-download-") as folder:
        command = [sys.executable, "-c", fetch, folder]
        try:
            subprocess.run(command, timeout=seconds, check=True, capture_output=True, text=True)
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(f"not in scikit-learn's cache, nor downloaded within {seconds:g} s") from error
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip() or "no reason given").splitlines()[-1]
            raise UnavailableError(f"not in scikit-learn's cache, and the download failed ({reason})") from error
        for file in Path(folder).glob("olivetti*.pkz"):
            os.replace(file, cache / file.name)
