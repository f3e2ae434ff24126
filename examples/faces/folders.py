"""Faces as a folder of folders, one for each person."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from faces.images import SUFFIXES, decode
from faces.pictures import BadFileError


class FolderPictures:
    """The pictures in a folder that holds one folder for each person; each is read when it is asked for.

    People and pictures are numbered in the order of their names. Whatever else is among a person's pictures is left
    out with a warning, and so are pictures that lie beside the people's folders; other files may lie there (lists, a
    README). Names that begin with a dot are no part of it.

    Args:
      path: the folder: `path/person/picture.jpg`, or another of `faces.images.SUFFIXES`, in capitals or not.
      size: (H, W) to which every picture is resized; without it, all must have the size of the first.
      channels: 1 or 3 (RGB); without it, those that the file of the first picture has. A grey picture can be read
        with three channels; a colour picture is never made grey.

    Attributes:
      labels: `[N]`, int32: the person on each picture.
      names: of the people: of their folders.
      shape: (H, W, channels).

    Raises:
      BadFileError: there is no such folder, nobody in it, a person without a picture, or the first picture is none.
    """

    def __init__(self, path: Path | str, *, size: tuple[int, int] | None = None, channels: int | None = None) -> None:
        if size is not None and not (np.shape(size) == (2,) and all(type(n) is int and n >= 1 for n in size)):
            raise ValueError(f"size: expected (H, W), two whole numbers >= 1, came {size!r}.")
        if channels not in (None, 1, 3):
            raise ValueError(f"channels: expected 1, 3 or None, came {channels!r}.")
        self._path = Path(path)
        self._resized = size is not None
        self.names, self.labels, self._files = _scanned(self._path)
        data, first = self._read(0)
        if channels is None:
            channels = 1 if Image.getmodebase(Image.open(io.BytesIO(data)).mode) == "L" else 3
        height, width = size or first.shape[:2]
        self.shape = height, width, channels

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 of `shape`.

        Raises:
          IndexError: there is no such picture.
          BadFileError: the file is gone, is no picture, has another size, or has colours in a grey set.
        """
        height, width, channels = self.shape
        _, picture = self._read(index)
        if self._resized:
            picture = np.asarray(Image.fromarray(picture).resize((width, height)))
        elif picture.shape[:2] != (height, width):
            raise BadFileError(
                self.file(index),
                f"it is {picture.shape[0]} x {picture.shape[1]} pixels (rows x columns), and the first picture, "
                f"{self.file(0)}, {height} x {width}. Align them, or have them resized: size=({height}, {width}), "
                f"which is --resize {height} {width} of the example.",
            )
        if channels == 3:
            return picture
        if (picture != picture[..., :1]).any():
            raise BadFileError(
                self.file(index),
                f"it has colours, and the pictures of {self._path} have one channel, as the first of them or as "
                "asked for. Read all of them with channels=3, which is --channels 3 of the example.",
            )
        return picture[..., :1].copy()

    def file(self, index: int) -> Path:
        """Where picture `index` is."""
        return self._path / self.names[self.labels[index]] / self._files[index]

    def _read(self, index: int) -> tuple[bytes, np.ndarray]:
        file = self.file(index)
        try:
            data = file.read_bytes()
        except OSError as error:
            raise BadFileError(file, f"it cannot be read: {error.strerror}.") from error
        return data, decode(data, file)


def _scanned(path: Path) -> tuple[tuple[str, ...], np.ndarray, tuple[str, ...]]:
    """The people, the person on each picture, and the name of its file in the person's folder."""
    if not path.is_dir():
        raise BadFileError(path, "there is no such folder. It is to hold one folder of pictures for each person.")
    names, beside = _folders_and_files(path)
    if not names:
        raise BadFileError(path, "there is nobody in it: expected one folder of pictures for each person.")
    left_out = [path / file for file in beside if _is_picture(file)]
    files, labels = [], []
    for label, name in enumerate(names):
        inner, inside = _folders_and_files(path / name)
        pictures = [file for file in inside if _is_picture(file)]
        if not pictures:
            fix = (
                f"It holds folders, such as {inner[0]!r}: is the path one level too high?"
                if inner
                else f"Remove the folder, or add pictures ({', '.join(SUFFIXES)})."
            )
            raise BadFileError(path / name, f"there is no picture of this person. {fix}")
        left_out += [path / name / other for other in (*inner, *(file for file in inside if not _is_picture(file)))]
        files += pictures
        labels += [label] * len(pictures)
    if left_out:
        warnings.warn(
            f"{path}: {len(left_out)} left out, being no picture in a person's folder; first {left_out[0]}.",
            stacklevel=3,
        )
    return tuple(names), np.array(labels, np.int32), tuple(files)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _folders_and_files(path: Path) -> tuple[list[str], list[str]]:
    """Names of both, sorted; without the hidden ones."""
    with os.scandir(path) as entries:
        seen = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    return sorted(name for name, folder in seen if folder), sorted(name for name, folder in seen if not folder)
