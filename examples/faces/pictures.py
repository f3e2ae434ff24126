"""The two forms that every source of faces takes: pictures to train on, and pairs to verify."""

import dataclasses
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np


class Pictures(Protocol):
    """Pictures by number, each with the person on it. They may be read from a file anew at each access."""

    @property
    def labels(self) -> np.ndarray:
        """The person on each picture, `[N]`, int32: numbered from 0 without gaps."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Of each person, as the source has it."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(H, W, channels)` of every picture; one channel or three (RGB)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 of `shape`; raises `BadFileError`."""
        ...


class Pairs(NamedTuple):
    """Pairs of pictures, of one person or of two.

    Attributes:
      name: of the set, as it is to appear in a log.
      pictures: uint8 `[N, H, W, channels]`.
      pairs: `[M, 2]`, numbers of pictures.
      same: `[M]`, bool.
      fold: `[M]`, numbers of the folds of a cross-validation; None where the source has none.
    """

    name: str
    pictures: np.ndarray
    pairs: np.ndarray
    same: np.ndarray
    fold: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class ArrayPictures:
    """Pictures that are in memory: `[N, H, W, channels]`, uint8."""

    array: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width, channels = self.array.shape[1:]
        return height, width, channels

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.array[index]


class BadFileError(Exception):
    """A file is not what it should be; the message names it, and the byte at which that shows."""

    # All three are the exception's `args`: it may be raised in a worker process, and comes back pickled.
    def __init__(self, file: Path | str, message: str, offset: int | None = None):
        super().__init__(str(file), message, offset)

    def __str__(self) -> str:
        file, message, offset = self.args
        return f"{file}: {message}" if offset is None else f"{file}, at byte {offset:,}: {message}"
