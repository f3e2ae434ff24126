"""Labeled Faces in the Wild: its lists, its two protocols, and one compact archive of its pictures.

`python -m faces.lfw PICTURES --out lfw.npz` makes the archive from the public pictures and the lists beside them.

References:
  G. B. Huang, M. Ramesh, T. Berg, E. Learned-Miller, "Labeled Faces in the Wild: A Database for Studying Face
  Recognition in Unconstrained Environments", University of Massachusetts, Amherst, Technical Report 07-49, 2007.
"""

import argparse
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from faces.folders import FolderPictures
from faces.pictures import ArrayPictures, BadFileError, Pairs

CROP = (70, 195), (78, 172)
"""Rows and columns of the usual 250 x 250 pixels that scikit-learn takes, to half the size."""


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
          k: from 0 to 9.
          min_pictures: as in `development`.

        Raises:
          ValueError: the source has no folds or no such fold, or nobody has so many pictures.
        """
        pairs, same, fold = self._view_2()
        if k not in range(fold.max() + 1):
            raise ValueError(f"k: expected a fold from 0 to {fold.max()}, came {k!r}.")
        groups, test = self.groups_of_people()[0], fold == k
        return Split(
            self._training((groups >= 0) & (groups != k), min_pictures),
            self._pairs(f"lfw-not-fold-{k}", pairs[~test], same[~test], fold[~test]),
            self._pairs(f"lfw-fold-{k}", pairs[test], same[test], fold[test]),
        )

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


class PairList(NamedTuple):
    """What pairs.txt, pairsDevTrain.txt and pairsDevTest.txt say; entry i stands on line i + 2.

    Attributes:
      path: of the file.
      pairs: (name, number, name, number) for each pair.
      same: `[M]`, bool.
      fold: `[M]`, from 0; None in a development list.
    """

    path: Path
    pairs: tuple[tuple[str, int, str, int], ...]
    same: np.ndarray
    fold: np.ndarray | None


class PeopleList(NamedTuple):
    """What people.txt, peopleDevTrain.txt and peopleDevTest.txt say.

    Attributes:
      path: of the file.
      names: of the people, in the order of the file.
      counts: of the pictures of each.
      fold: `[P]`, from 0; None in a development list.
      lines: on which each stands, counted from 1.
    """

    path: Path
    names: tuple[str, ...]
    counts: tuple[int, ...]
    fold: np.ndarray | None
    lines: tuple[int, ...]


def read_pairs(path: Path | str) -> PairList:
    """The pairs of a list: the folds and the pairs of each kind in a fold on line 1, or the latter alone.

    Raises:
      BadFileError: names the line.
    """
    path = Path(path)
    lines = _lines(path)
    fields = lines[0].split()
    header = [number for number in map(_whole, fields) if number is not None]
    if len(fields) not in (1, 2) or len(header) != len(fields):
        raise _bad_line(path, 1, "the number of folds and the pairs of each kind in a fold, or the latter alone", lines)
    folds, each = header if len(header) == 2 else (1, header[0])
    if len(lines) - 1 != 2 * each * folds:
        raise BadFileError(
            path,
            f"line 1 announces {folds} x ({each} + {each}) = {2 * each * folds} pairs, and {len(lines) - 1} lines "
            "follow. It may have been cut off: get it anew.",
        )
    same = np.arange(len(lines) - 1) // each % 2 == 0
    pairs = tuple(_pair(path, number, lines, bool(same[number - 2])) for number in range(2, len(lines) + 1))
    return PairList(path, pairs, same, np.arange(len(pairs)) // (2 * each) if len(header) == 2 else None)


def _pair(path: Path, number: int, lines: list[str], same: bool) -> tuple[str, int, str, int]:
    fields = lines[number - 1].split()
    if len(fields) == (3 if same else 4):
        one, first, other, second = fields[0], _whole(fields[1]), fields[0 if same else 2], _whole(fields[-1])
        if first and second and (one == other) == same and (one, first) != (other, second):
            return one, first, other, second
    expected = "two pictures of one person, `name number number`"
    raise _bad_line(path, number, expected if same else "two people, `name number name number`", lines)


def read_people(path: Path | str) -> PeopleList:
    """The people of a list: how many on line 1; or the folds there, and how many before the people of each.

    Raises:
      BadFileError: names the line.
    """
    path = Path(path)
    lines = _lines(path)
    folds = len(lines) > 1 and len(lines[1].split()) == 1
    people: dict[str, tuple[int, int, int]] = {}  # name: pictures, fold, line
    at = 1 if folds else 0
    for fold in range(_announced(path, 1, lines) if folds else 1):
        count = _announced(path, at + 1, lines)
        if at + 1 + count > len(lines):
            raise BadFileError(
                path,
                f"line {at + 1} announces {count} people, and {len(lines) - at - 1} lines follow. "
                "It may have been cut off: get it anew.",
            )
        for number in range(at + 2, at + 2 + count):
            name, pictures = _person(path, number, lines)
            if name in people:
                raise BadFileError(path, f"line {number}: {name} was on line {people[name][2]} already.")
            people[name] = pictures, fold, number
        at += 1 + count
    if at < len(lines):
        raise _bad_line(path, at + 1, "the end of the file, after all who were announced", lines)
    counts, fold_of, numbers = zip(*people.values(), strict=True)
    return PeopleList(path, tuple(people), counts, np.array(fold_of) if folds else None, numbers)


def _person(path: Path, number: int, lines: list[str]) -> tuple[str, int]:
    fields = lines[number - 1].split()
    pictures = _whole(fields[1]) if len(fields) == 2 else None
    if pictures is None:
        raise _bad_line(path, number, "a person and the number of his or her pictures, `name number`", lines)
    return fields[0], pictures


def _announced(path: Path, number: int, lines: list[str]) -> int:
    count = _whole(lines[number - 1]) if number <= len(lines) else None
    if count is None:
        raise _bad_line(path, number, "a number: of folds on line 1, or of the people who follow", lines)
    return count


def _whole(field: str) -> int | None:
    """A whole number >= 1, or None."""
    field = field.strip()
    return int(field) or None if field.isascii() and field.isdigit() and len(field) < 10 else None


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadFileError(path, f"it cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadFileError(path, "it is no text in UTF-8.", error.start) from error
    # Not `splitlines`, which counts other characters too as the end of a line.
    lines = text.replace("\r\n", "\n").rstrip().split("\n")
    if lines == [""]:
        raise BadFileError(path, "it is empty. Get it anew.")
    return lines


def _bad_line(path: Path, number: int, expected: str, lines: list[str]) -> BadFileError:
    came = repr(lines[number - 1]) if number <= len(lines) else "the end of the file"
    return BadFileError(path, f"line {number}: expected {expected}; came {came}.")


class Lists(NamedTuple):
    """Where the lists of LFW are; None for one that is not used."""

    pairs: Path | None = None
    people: Path | None = None
    pairs_dev_train: Path | None = None
    pairs_dev_test: Path | None = None
    people_dev_train: Path | None = None
    people_dev_test: Path | None = None


LIST_FILES = (
    "pairs.txt", "people.txt", "pairsDevTrain.txt", "pairsDevTest.txt", "peopleDevTrain.txt", "peopleDevTest.txt",
)  # fmt: skip


def find_lists(folder: Path | str) -> Lists:
    """Those that lie in the folder of the pictures or beside it, under their usual names."""
    places = Path(folder), Path(folder).absolute().parent
    found = ([place / name for place in places if (place / name).is_file()] for name in LIST_FILES)
    return Lists(*(paths[0] if paths else None for paths in found))


Crop = tuple[tuple[int, int], tuple[int, int]]


def lfw_of_pictures(
    folder: Path | str,
    lists: Lists,
    *,
    crop: Crop | None = CROP,
    size: tuple[int, int] | None = None,
    color: bool = False,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Lfw:
    """LFW from the public pictures, `folder/name/name_0001.jpg`; by default as scikit-learn takes them.

    Args:
      folder: of the pictures.
      lists: of pairs and people; see `find_lists`.
      crop: rows and columns, (first, end) of both; None for all of them.
      size: (H, W) to which the cut-out is resized; half of it by default.
      color: keep red, green and blue, rather than their mean.
      progress: wraps the numbers of the pictures, as `tqdm` does.

    Raises:
      BadFileError: a picture or a list is not what it should be, or they do not belong together; names the line.
      ValueError: the crop does not lie in the pictures.
    """
    source = FolderPictures(folder, channels=3)
    crop, size = _checked_crop(crop, size, source.shape)
    rows = _rows(source)
    # The lists first: they tell at once what the pictures would tell after minutes.
    empty = np.empty((len(source), *size, 3 if color else 1), np.uint8)
    numbers = np.array([number for _, number in rows], np.int32)
    lfw = _with_lists(Lfw(empty, source.labels, source.names, numbers), lists, rows)
    for row in progress(range(len(source))):
        empty[row] = _cut(source[row], crop, size, color)
    return lfw


def _cut(picture: np.ndarray, crop: Crop, size: tuple[int, int], color: bool) -> np.ndarray:
    (top, bottom), (left, right) = crop
    image = Image.fromarray(picture[top:bottom, left:right])
    image = image.resize((size[1], size[0]))
    pixels = np.asarray(image)
    return pixels if color else np.rint(pixels.mean(axis=2, keepdims=True)).astype(np.uint8)


def _checked_crop(crop, size, shape) -> tuple[Crop, tuple[int, int]]:
    (top, bottom), (left, right) = crop or ((0, shape[0]), (0, shape[1]))
    if not (0 <= top < bottom <= shape[0] and 0 <= left < right <= shape[1]):
        raise ValueError(
            f"crop: rows {top}:{bottom} and columns {left}:{right} do not lie in pictures of {shape[0]} rows and "
            f"{shape[1]} columns. The usual ones suit the public 250 x 250; give others, or None for the whole."
        )
    size = size or ((bottom - top) // 2, (right - left) // 2)
    if min(size) < 1:
        raise ValueError(f"size: expected (H, W), both >= 1, came {size}.")
    return ((top, bottom), (left, right)), size


def _rows(source: FolderPictures) -> dict[tuple[str, int], int]:
    """The row of every picture by its person's name and its number, in their order."""
    rows: dict[tuple[str, int], int] = {}
    for row, label in enumerate(source.labels):
        file, name = source.file(row), source.names[label]
        match = re.fullmatch(re.escape(name) + "_([0-9]{4})", file.stem)
        if match is None or int(match[1]) == 0:
            raise BadFileError(file, f"expected a name such as {name}_0001.jpg in this folder.")
        if (name, int(match[1])) in rows:
            raise BadFileError(file, f"its folder holds two pictures {file.stem}. Keep one of them.")
        rows[name, int(match[1])] = row
    return rows


def _with_lists(lfw: Lfw, lists: Lists, rows: dict[tuple[str, int], int]) -> Lfw:
    for one, other in (("pairs_dev_train", "pairs_dev_test"), ("people_dev_train", "people_dev_test")):
        if (getattr(lists, one) is None) != (getattr(lists, other) is None):
            raise ValueError(f"lists: {one} and {other} belong together; give both, or none of them.")
    if lists.people is not None:
        people = read_people(lists.people)
        lfw = lfw._replace(person_fold=_group_of_people(lfw, [people], _folds(people)))
    if lists.people_dev_train is not None and lists.people_dev_test is not None:
        both = [read_people(lists.people_dev_train), read_people(lists.people_dev_test)]
        for people in both:
            _refuse_folds(people)
        is_test = np.repeat([False, True], [len(people.names) for people in both])
        lfw = lfw._replace(person_is_dev_test=_group_of_people(lfw, both, is_test))
    places = {}
    for key, path in (
        ("pairs_10folds", lists.pairs),
        ("pairs_dev_train", lists.pairs_dev_train),
        ("pairs_dev_test", lists.pairs_dev_test),
    ):
        if path is None:
            continue
        listed = read_pairs(path)
        lfw = lfw._replace(**{key: _pairs_of_rows(listed, rows), f"{key}_same": listed.same})
        if key == "pairs_10folds":
            lfw = lfw._replace(pairs_10folds_fold=_folds(listed))
        else:
            _refuse_folds(listed)
        places[key] = path, "line", 2
    _refuse_strays(lfw, places)
    return lfw


def _folds(listed: PairList | PeopleList) -> np.ndarray:
    if listed.fold is None:
        raise BadFileError(listed.path, "it is a development list, without folds. Give pairs.txt or people.txt.")
    return listed.fold


def _refuse_folds(listed: PairList | PeopleList) -> None:
    if listed.fold is not None:
        raise BadFileError(listed.path, "it has folds, so it is no development list, such as pairsDevTest.txt.")


def _pairs_of_rows(listed: PairList, rows: dict[tuple[str, int], int]) -> np.ndarray:
    pairs = np.empty((len(listed.pairs), 2), np.int32)
    for entry, (one, first, other, second) in enumerate(listed.pairs):
        for side, key in enumerate([(one, first), (other, second)]):
            if key not in rows:
                numbers = sum(name == key[0] for name, _ in rows)
                raise BadFileError(
                    listed.path,
                    f"line {entry + 2}: there is no picture {key[0]}_{key[1]:04}, and of {key[0]} there are {numbers}. "
                    "The pictures are incomplete, or the list is of others.",
                )
            pairs[entry, side] = rows[key]
    return pairs


def _group_of_people(lfw: Lfw, lists: list[PeopleList], group: np.ndarray) -> np.ndarray:
    """`[P]`: the group of each entry of the lists, in the order of the names; all must agree with the pictures."""
    count = dict(zip(lfw.names, np.bincount(lfw.label).tolist(), strict=True))
    entries = [
        (people.path, *entry)
        for people in lists
        for entry in zip(people.names, people.counts, people.lines, strict=True)
    ]
    group_of = {}
    for (path, name, pictures, line), its_group in zip(entries, group, strict=True):
        if count.get(name, 0) != pictures:
            raise BadFileError(
                path,
                f"line {line}: {pictures} pictures of {name}, and of {name} there are {count.get(name, 0)}. "
                "The pictures are incomplete, or the list is of others.",
            )
        if name in group_of:
            raise BadFileError(path, f"line {line}: {name} is in {lists[0].path} already.")
        group_of[name] = its_group
    for name in count:
        if name not in group_of:
            raise BadFileError(lists[-1].path, f"{name}, of whom there are {count[name]} pictures, is on no list.")
    return np.array([group_of[name] for name in lfw.names])


def _refuse_strays(lfw: Lfw, places: dict[str, tuple[Path, str, int]]) -> None:
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


def lfw_of_scikit_learn(
    data_home: Path | str | None = None,
    *,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Lfw:
    """LFW from the pictures that scikit-learn has downloaded, cut out as it does. Nothing is downloaded.

    It keeps no lists of people. With people.txt, peopleDevTrain.txt and peopleDevTest.txt put into its `lfw_home`,
    all people are trained on; without, those of the training pairs.

    Args:
      data_home: scikit-learn's folder; by default `$SCIKIT_LEARN_DATA`, or else `~/scikit_learn_data`.
      progress: as in `lfw_of_pictures`.

    Raises:
      BadFileError: the pictures are not there, or are not what they should be.
    """
    data_home = Path(data_home or os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")).expanduser()
    for folder in (data_home / "lfw_home" / "lfw_funneled", data_home / "lfw_home" / "lfw"):
        if folder.is_dir():
            return lfw_of_pictures(folder, find_lists(folder), progress=progress)
    raise BadFileError(
        data_home / "lfw_home",
        "scikit-learn has no pictures of LFW here. It downloads them (200 MB) by "
        f"`sklearn.datasets.fetch_lfw_pairs(data_home={str(data_home)!r})`.",
    )


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
      BadFileError: there is none; it is damaged; a key is missing; or the arrays contradict one another.
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
    _refuse_strays(lfw, {key: (arrays.path, f"{key}, row", 0) for key in PAIRS if key in arrays.found})
    return lfw


PAIRS = "pairs_10folds", "pairs_dev_train", "pairs_dev_test"


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
            found[f"{key}_fold"] = arrays.checked(f"{key}_fold", "iu", len(pairs))
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
                with zipfile.ZipFile(file):  # anything else NumPy takes for a pickle, and says so
                    file.seek(0)
                with np.load(file, allow_pickle=False) as archive:
                    self.found = {key: np.asarray(archive[key]) for key in archive.files}
        except Exception as error:  # a damaged archive raises anything
            words = f"expected an archive of LFW, made by `python -m faces.lfw`, but {type(error).__name__}: {error}."
            raise BadFileError(path, words) from error

    def expect(self, right: bool, otherwise: str) -> None:
        if not right:
            raise BadFileError(self.path, f"{otherwise}. Make it anew by `python -m faces.lfw`.")

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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m faces.lfw",
        description="One compact archive from the public pictures of LFW and its lists.",
        epilog="The lists are looked for in the folder and beside it under their usual names. pairs.txt and people.txt "
        "must be there; without the development lists the archive lacks that protocol.",
    )
    parser.add_argument("pictures", type=Path, help="the folder that holds name/name_0001.jpg")
    for field, file in zip(Lists._fields, LIST_FILES, strict=True):
        parser.add_argument(f"--{field.replace('_', '-')}", type=Path, metavar="FILE", help=file)
    parser.add_argument("--out", type=Path, required=True, help="the archive, such as lfw.npz")
    parser.add_argument(
        "--crop", type=_crop, default=CROP, metavar="ROWS,COLUMNS", help="such as 70:195,78:172 (the default), or all"
    )
    parser.add_argument("--size", type=_size, metavar="H,W", help="of the pictures made (half of the crop)")
    parser.add_argument("--color", action="store_true", help="keep red, green and blue, rather than their mean")
    options = parser.parse_args(arguments)
    found = find_lists(options.pictures)
    lists = Lists(*(getattr(options, field) or getattr(found, field) for field in Lists._fields))
    if not options.out.absolute().parent.is_dir():
        parser.error(f"--out: there is no folder {options.out.absolute().parent}.")
    for field, file in zip(("pairs", "people"), LIST_FILES, strict=False):
        if getattr(lists, field) is None:
            parser.error(f"{file} is not in {options.pictures}, nor beside it. Say where it is: --{field} FILE.")
    try:
        lfw = lfw_of_pictures(
            options.pictures, lists, crop=options.crop, size=options.size, color=options.color, progress=tqdm
        )
        write_lfw(options.out, lfw)
    except (BadFileError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {len(lfw.pictures):,} pictures of {len(lfw.names):,} people, {lfw.pictures.shape[1:]}.")
    missing = [file for file, path in zip(LIST_FILES, lists, strict=True) if path is None]
    if missing:
        print(f"Not found, so not in it: {', '.join(missing)}.")
    return 0


def _crop(text: str) -> Crop | None:
    match = re.fullmatch(r"(\d+):(\d+),(\d+):(\d+)", text, re.ASCII)
    if text == "all":
        return None
    if match is None:
        raise argparse.ArgumentTypeError(f"expected ROWS,COLUMNS, such as 70:195,78:172, or all; came {text!r}")
    top, bottom, left, right = map(int, match.groups())
    return (top, bottom), (left, right)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*),([1-9]\d*)", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected H,W, two whole numbers >= 1, such as 62,47; came {text!r}")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    sys.exit(main())
