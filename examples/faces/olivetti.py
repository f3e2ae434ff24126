"""The Olivetti faces: 40 people, ten pictures each, from scikit-learn's cache or else from its download."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from faces.pictures import ArrayPictures

DOWNLOAD_SECONDS = 20


class UnavailableError(Exception):
    """A source has no pictures to give; the message says why, in one line."""


def olivetti_faces(seconds: float = DOWNLOAD_SECONDS) -> ArrayPictures:
    """Pictures [400, 64, 64, 1]. Raises `UnavailableError`."""
    try:
        from sklearn.datasets import fetch_olivetti_faces, get_data_home
    except ImportError as error:
        raise UnavailableError("scikit-learn is not installed") from error
    try:
        cache = Path(get_data_home())
        if not any(cache.glob("olivetti*.pkz")):
            _download(cache, seconds)
        pixels, labels = fetch_olivetti_faces(data_home=cache, download_if_missing=False, return_X_y=True)
    except UnavailableError:
        raise
    except Exception as error:  # a damaged file raises whatever its unpickling stumbles over
        raise UnavailableError(f"scikit-learn's cache cannot be used ({type(error).__name__}: {error})") from error
    tones = np.round(np.reshape(pixels, (-1, 64, 64, 1)) * 255).astype(np.uint8)
    names = tuple(f"person {person}" for person in range(np.max(labels) + 1))
    return ArrayPictures(tones, np.asarray(labels, np.int32), names)


def _download(cache: Path, seconds: float) -> None:
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
