"""Batches in the order of a seed, read ahead by grain: batch n is a function of the seed and of n."""

from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from faces.pictures import Pictures

# Decoding lets go of the interpreter's lock, and so threads are enough. Every batch read ahead is memory.
THREADS = 4
BATCHES_AHEAD = 4


class FaceBatch(NamedTuple):
    """Pictures, uint8 `[B, H, W, channels]`; their people, `[B]`; their numbers in the training set, `[B]`."""

    pictures: np.ndarray
    labels: np.ndarray
    examples: np.ndarray


class _Numbered:
    """A source for grain."""

    def __init__(self, pictures: Pictures):
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> FaceBatch:
        return FaceBatch(self.pictures[index], self.pictures.labels[index], np.asarray(index, np.int32))

    def __repr__(self) -> str:
        return f"{type(self.pictures).__name__} of {len(self)}"


def batches(
    pictures: Pictures, batch: int, seed: int, *, start: int = 0, process: int = 0, processes: int = 1
) -> Iterator[FaceBatch]:
    """Endless batches from number `start` on; every picture comes once before one comes again.

    Of several processes each gets its part of every batch, so that together they have what one would have.
    """
    data = grain.MapDataset.source(_Numbered(pictures)).seed(seed).shuffle().repeat().batch(batch // processes)
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=BATCHES_AHEAD)
    iterator = iter(data[process::processes].to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator
