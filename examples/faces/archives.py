"""Archives of arrays, `.npz`: nothing in them is run, and a small one fills no memory."""

import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

# Of a file, and of what is unpacked from it. LFW's pictures take 40 MB as scikit-learn cuts them, 2.5 GB uncut.
MOST_BYTES = 2**32
SIGNATURE = b"PK"


def is_archive(path: Path | str) -> bool:
    """By its first bytes, whatever its name."""
    with open(path, "rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def read_arrays(file: IO[bytes], keys: Collection[str], most: int) -> dict[str, np.ndarray]:
    """The arrays of an archive, by their keys, some of `keys`. All is looked at before anything is unpacked.

    Raises:
      ValueError: it has other keys, unpacks to more than `most` bytes, or is packed as NumPy does not pack. Of a
        damaged archive Python and NumPy raise anything else.
    """
    with zipfile.ZipFile(file) as archive:  # anything else NumPy takes for a pickle, and says so
        members = archive.infolist()
    size = sum(member.file_size for member in members)
    if size > most:
        raise ValueError(f"expected at most {most:,} bytes unpacked, came {size:,}")
    # Python unpacks the other kinds by pieces of the file, whatever size these come to.
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        raise ValueError("expected members stored or deflated, as NumPy writes them, came others")
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        others = set(arrays.files).difference(keys)
        if others:
            raise ValueError(f"expected the keys {', '.join(keys)}; came {', '.join(sorted(others))} too")
        return {key: np.asarray(arrays[key]) for key in arrays.files}
