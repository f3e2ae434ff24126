"""The four files of MNIST, in the idx format, plain or compressed by gzip.

An idx file is two zero bytes, a byte for the type of its numbers (8: unsigned bytes), a byte for the number of its
axes, the length of each axis as four bytes, big end first, and then the numbers themselves.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

UNSIGNED_BYTES = 8
AXES = {1: "labels", 3: "pictures"}


class Digits(NamedTuple):
    """Pictures `[N, H, W]` of bytes and the digits on them `[N]`, to train on and to test on."""

    pictures: np.ndarray
    labels: np.ndarray
    test_pictures: np.ndarray
    test_labels: np.ndarray


def read_mnist(folder: str | Path) -> Digits:
    """All of MNIST, from a folder that holds its four files; whatever does not fit raises `ValueError`."""
    folder = Path(folder)
    arrays = []
    for part in ("train", "t10k"):
        pictures_file, labels_file = (_find(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        pictures, labels = read_idx(pictures_file, axes=3), read_idx(labels_file, axes=1)
        if len(pictures) != len(labels):
            raise ValueError(
                f"{labels_file}: expected {len(pictures)} labels, as many as {pictures_file.name} has pictures, "
                f"came {len(labels)}. The two files are not of one set."
            )
        wrong = np.flatnonzero(labels > 9)
        if wrong.size:
            raise ValueError(
                f"{labels_file}, byte {8 + wrong[0]}: expected a digit from 0 to 9, came {labels[wrong[0]]}. "
                f"{wrong.size} of {labels.size} labels are wrong."
            )
        arrays += [pictures, labels.astype(np.int32)]
    digits = Digits(*arrays)
    if digits.pictures.shape[1:] != digits.test_pictures.shape[1:]:
        raise ValueError(
            f"{folder}: expected pictures of one size, came {digits.pictures.shape[1:]} to train on and "
            f"{digits.test_pictures.shape[1:]} to test on."
        )
    return digits


def read_idx(path: str | Path, *, axes: int) -> np.ndarray:
    """The unsigned bytes of an idx file with so many axes, as an array."""
    path = Path(path)
    content = _content(path)
    head = 4 + 4 * axes
    if len(content) < head:
        raise ValueError(f"{path}, byte {len(content)}: expected {head} bytes of header, and the file ends here.")
    expected = bytes([0, 0, UNSIGNED_BYTES, axes])
    if content[:4] != expected:
        raise ValueError(
            f"{path}, byte 0: expected {expected.hex(' ')}, which begins an idx file of {AXES.get(axes, 'bytes')}, "
            f"came {content[:4].hex(' ')}. Is it another file, or not unpacked?"
        )
    shape = tuple(int(length) for length in np.frombuffer(content, ">u4", axes, offset=4))
    if 0 in shape:
        raise ValueError(f"{path}, byte {4 + 4 * shape.index(0)}: expected a length above 0, came shape {shape}.")
    if len(content) != head + math.prod(shape):
        raise ValueError(
            f"{path}, byte {min(len(content), head + math.prod(shape))}: expected {head + math.prod(shape)} bytes in "
            f"all, for shape {shape}, came {len(content)}. Fetch the file again."
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def _find(folder, name):
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(f"{folder}: expected a file {name} or {name}.gz, came a folder without one. MNIST has four files.")


def _content(path):
    raw = path.read_bytes()
    if path.suffix != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path}: expected a complete gzip file, came one of {len(raw)} bytes that does not unpack: {error} "
            "Fetch the file again."
        ) from None
