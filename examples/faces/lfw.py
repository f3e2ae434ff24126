"""Labeled Faces in the Wild: its two protocols, and one compact archive of its pictures.

`python -m faces.convert_lfw PICTURES --out lfw.npz` makes the archive from the public pictures and the lists beside
them.

References:
  G. B. Huang, M. Ramesh, T. Berg, E. Learned-Miller, "Labeled Faces in the Wild: A Database for Studying Face
  Recognition in Unconstrained Environments", University of Massachusetts, Amherst, Technical Report 07-49, 2007.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from faces.archives import MOST_BYTES, read_arrays
from faces.pictures import ArrayPictures, BadFileError, Pairs


class Split(NamedTuple):
    """What to train on, pairs to set a threshold by, and pairs of other people to test on."""

    train: ArrayPictures
    train_pairs: Pairs
    test_pairs: Pairs


class Lfw(NamedTuple):
    """LFW in memory. Pairs are rows of `pictures`; what a source lacks is None.

    Attributes:
      pictures: uint8 `[N, H, W, channels]`, sorted by person, then number.
      label: `[N]`, int32, the person.
      names: of the people, sorted, with underscores.
      image_number: `[N]`, from 1, as in the name of the file.
      pairs_10folds, pairs_10folds_same, pairs_10folds_fold: `[6000, 2]`, `[6000]`, `[6000]`: "View 2".
      pairs_dev_train, pairs_dev_train_same, pairs_dev_test, pairs_dev_test_same: "View 1".
      person_fold: for each person, the fold of View 2.
      person_is_dev_test: for each person, whether View 1 tests on him or her.
    """

    pictures: np.ndarray
    label: np.ndarray
    names: tuple[str, ...]
    image_number: np.ndarray
    pairs_10folds: np.ndarray | None = None
    pairs_10folds_same: np.ndarray | None = None
    pairs_10folds_fold: np.ndarray | None = None
    pairs_dev_train: np.ndarray | None = None
    pairs_dev_train_same: np.ndarray | None = None
    pairs_dev_test: np.ndarray | None = None
    pairs_dev_test_same: np.ndarray | None = None
    person_fold: np.ndarray | None = None
    person_is_dev_test: np.ndarray | None = None

    def development(self, *, min_pictures: int = 2) -> Split:
        """View 1: the development-training people, their pairs, and pairs of the development-test people.

        A source without lists of people has those of the pairs only: then nobody else is trained on.

        Args:
          min_pictures: people with fewer are not trained on; the others are numbered anew. 1 keeps everybody.

        Raises:
          ValueError: the source has no development pairs, or nobody has so many pictures.
        """
        if self.pairs_dev_train is None:
            raise ValueError(
                "This LFW has no development pairs. Make it anew with pairsDevTrain.txt and pairsDevTest.txt, and with "
                "peopleDevTrain.txt and peopleDevTest.txt; or use `fold`."
            )
        return Split(
            self._training(self.groups_of_people()[1] == 0, min_pictures),
            self._pairs("lfw-dev-train", self.pairs_dev_train, self.pairs_dev_train_same),
            self._pairs("lfw-dev-test", self.pairs_dev_test, self.pairs_dev_test_same),
        )

    def fold(self, k: int, *, min_pictures: int = 2) -> Split:
        """View 2: the people of every fold but `k`, their pairs, and the pairs of fold `k`.

        Args:
          k: from 0 to `folds` - 1, in LFW's own lists 9.
          min_pictures: as in `development`.

        Raises:
          ValueError: the source has no folds or no such fold, or nobody has so many pictures.
        """
        pairs, same, fold = self._view_2()
        if k not in range(self.folds):
            raise ValueError(
                f"k: expected a fold from 0 to {self.folds - 1}, came {k!r}. This LFW has {self.folds} folds; with the "
                "pairs.txt and people.txt of its authors it has ten."
            )
        groups, test = self.groups_of_people()[0], fold == k
        return Split(
            self._training((groups >= 0) & (groups != k), min_pictures),
            self._pairs(f"lfw-not-fold-{k}", pairs[~test], same[~test], fold[~test]),
            self._pairs(f"lfw-fold-{k}", pairs[test], same[test], fold[test]),
        )

    @property
    def folds(self) -> int:
        """How many folds View 2 has: ten in LFW's own lists, and 0 where the source lacks them."""
        return 0 if self.pairs_10folds_fold is None else int(self.pairs_10folds_fold.max()) + 1

    def ten_folds(self) -> Pairs:
        """All pairs of View 2, for a network trained on other people; raises ValueError if the source has none."""
        return self._pairs("lfw", *self._view_2())

    def _view_2(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pairs, same, fold = self.pairs_10folds, self.pairs_10folds_same, self.pairs_10folds_fold
        if pairs is None or same is None or fold is None:
            raise ValueError("This LFW has no folds. Make it anew with pairs.txt and people.txt; or use `development`.")
        return pairs, same, fold

    def groups_of_people(self) -> tuple[np.ndarray, np.ndarray]:
        """For each person, the fold of View 2, and 0 (train) or 1 (test) of View 1; -1 where nothing says it."""
        ten = self.person_fold, self.pairs_10folds, self.pairs_10folds_fold
        if self.pairs_dev_train is None:
            return self._groups(*ten), self._groups(self.person_is_dev_test, None, None)
        dev = [self.pairs_dev_train, self.pairs_dev_test]
        is_test = np.repeat([0, 1], [len(pairs) for pairs in dev])
        return self._groups(*ten), self._groups(self.person_is_dev_test, np.concatenate(dev), is_test)

    def _groups(self, known, pairs, group):
        if known is not None:
            return known.astype(np.int32)
        groups = np.full(len(self.names), -1, np.int32)
        if pairs is not None:
            groups[self.label[pairs]] = group[:, None]
        return groups

    def _training(self, people: np.ndarray, min_pictures: int) -> ArrayPictures:
        count = np.bincount(self.label, minlength=len(self.names))
        kept = people & (count >= min_pictures)
        if not kept.any():
            most = count[people].max(initial=0)
            raise ValueError(f"min_pictures: nobody to train on has {min_pictures}; the most are {most}.")
        rows, renumbered = kept[self.label], np.cumsum(kept, dtype=np.int32) - 1
        names = tuple(name for name, keep in zip(self.names, kept, strict=True) if keep)
        return ArrayPictures(self.pictures[rows], renumbered[self.label[rows]], names)

    def _pairs(self, name, pairs, same, fold=None) -> Pairs:
        used, numbers = np.unique(pairs, return_inverse=True)
        return Pairs(name, self.pictures[used], numbers.reshape(-1, 2), same, fold)


def write_lfw(path: Path | str, lfw: Lfw) -> None:
    """The archive, compressed; it has its name only once it is whole.

    Its keys are the fields of `Lfw`, but for the pictures: `images_delta` holds their differences along rows and
    columns, modulo 256, which compress better; `[N, H, W]` if they have one channel.
    """
    path = Path(path)
    arrays: dict[str, Any] = {key: _compact(key, value) for key, value in lfw._asdict().items() if value is not None}
    delta = arrays.pop("pictures")
    for axis in (1, 2):
        delta = np.diff(delta, axis=axis, prepend=np.uint8(0))
    arrays["images_delta"] = delta[..., 0] if delta.shape[-1] == 1 else delta
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            np.savez_compressed(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _compact(key: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or key == "pictures":
        return array
    small = np.uint8 if key.endswith("fold") else np.int16
    return array.astype(small if array.max(initial=0) <= np.iinfo(small).max else np.int32)


def read_lfw(path: Path | str) -> Lfw:
    """LFW from its archive.

    Raises:
      BadFileError: there is none; it is damaged; a key is missing, or of something else; the arrays contradict one
        another, or unpack to more than `MOST_BYTES`.
    """
    arrays = _Arrays(Path(path))
    grey = arrays.get("images_delta").ndim == 3
    delta = arrays.checked("images_delta", "u", None, None, None, *(() if grey else (3,)))
    names = arrays.checked("names", "U", None)
    label = arrays.checked("label", "iu", len(delta)).astype(np.int32)
    arrays.expect(delta.dtype == np.uint8, f"images_delta: expected uint8, came {delta.dtype}")
    arrays.expect(
        np.array_equal(np.unique(label), np.arange(len(names))),
        f"label: expected pictures of each of the people 0 to {len(names) - 1} of names, and of no other",
    )
    pictures = np.cumsum(np.cumsum(delta, axis=2, dtype=np.uint8), axis=1, dtype=np.uint8)
    lfw = Lfw(
        pictures[..., None] if grey else pictures,
        label,
        tuple(names.tolist()),
        arrays.checked("image_number", "iu", len(delta)),
        **_pairs_of_archive(arrays, label),
        **{
            key: arrays.checked(key, kinds, len(names))
            for key, kinds in (("person_fold", "iu"), ("person_is_dev_test", "b"))
            if key in arrays.found
        },
    )
    refuse_strays(lfw, {key: (arrays.path, f"{key}, row", 0) for key in PAIRS if key in arrays.found})
    return lfw


PAIRS = "pairs_10folds", "pairs_dev_train", "pairs_dev_test"
KEYS = "images_delta", *Lfw._fields[1:]


def _pairs_of_archive(arrays: "_Arrays", label: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    for key in PAIRS:
        if key not in arrays.found:
            continue
        pairs = arrays.checked(key, "iu", None, 2)
        same = arrays.checked(f"{key}_same", "b", len(pairs))
        arrays.expect(
            len(pairs) > 0 and pairs.min() >= 0 and pairs.max() < len(label),
            f"{key}: expected rows of pictures, from 0 to {len(label) - 1}",
        )
        people = label[pairs]
        arrays.expect(
            np.array_equal(people[:, 0] == people[:, 1], same), f"{key}_same: label says otherwise of the people"
        )
        found |= {key: pairs.astype(np.int32), f"{key}_same": same}
        if key == "pairs_10folds":
            fold = found[f"{key}_fold"] = arrays.checked(f"{key}_fold", "iu", len(pairs))
            numbers = np.unique(fold)
            arrays.expect(
                np.array_equal(numbers, np.arange(len(numbers))),
                f"{key}_fold: expected pairs of every fold from 0 to the last, came {numbers.tolist()}",
            )
    arrays.expect(
        ("pairs_dev_train" in found) == ("pairs_dev_test" in found),
        "pairs_dev_train and pairs_dev_test: expected both or none",
    )
    return found


class _Arrays:
    """Of an archive, each checked when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.found = read_arrays(file, KEYS, MOST_BYTES)
        except Exception as error:  # a damaged archive raises anything
            made = "expected an archive of LFW, made by `python -m faces.convert_lfw`"
            raise BadFileError(path, f"{made}, but {type(error).__name__}: {error}.") from error

    def expect(self, right: bool, otherwise: str) -> None:
        if not right:
            raise BadFileError(self.path, f"{otherwise}. Make it anew by `python -m faces.convert_lfw`.")

    def get(self, key: str) -> np.ndarray:
        self.expect(key in self.found, f"it lacks {key!r}, and holds {', '.join(self.found) or 'nothing'}")
        return self.found[key]

    def checked(self, key: str, kinds: str, *shape: int | None) -> np.ndarray:
        array = self.get(key)
        fits = len(array.shape) == len(shape) and all(n in (m, None) for m, n in zip(array.shape, shape, strict=True))
        words = f"[{', '.join('any' if n is None else str(n) for n in shape)}]"
        self.expect(
            fits and array.dtype.kind in kinds,
            f"{key}: expected shape {words} of kind {kinds!r}, came {array.shape} of {array.dtype}",
        )
        return array


def refuse_strays(lfw: Lfw, places: dict[str, tuple[Path, str, int]]) -> None:
    """Refuses pairs of people of another group: whoever is tested on would be trained on.

    `places` says of each kind of pairs its file, what an entry is called there, and the number of the first.
    """
    folds, dev = lfw.groups_of_people()
    for key, groups, group in (
        ("pairs_10folds", folds, lfw.pairs_10folds_fold),
        ("pairs_dev_train", dev, 0),
        ("pairs_dev_test", dev, 1),
    ):
        if key not in places:
            continue
        people = lfw.label[getattr(lfw, key)]
        group = np.resize(np.asarray(group), len(people))
        wrong = groups[people] != group[:, None]
        if wrong.any():
            entry, side = np.argwhere(wrong)[0]
            person = people[entry, side]
            file, word, first = places[key]
            raise BadFileError(
                file,
                f"{word} {entry + first}: this pair is in group {group[entry]}, and {lfw.names[person]} in group "
                f"{groups[person]} (groups: the folds from 0; or 0, training, and 1, test). A person who is in two "
                "would be trained on and tested on: these lists do not belong together.",
            )
