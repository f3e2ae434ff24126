"""LFW from its public pictures and lists, or as scikit-learn has downloaded it; as a command, an archive of it.

python -m faces.convert_lfw PICTURES --out lfw.npz
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from faces.folders import FolderPictures
from faces.lfw import Lfw, refuse_strays, write_lfw
from faces.lfw_lists import LIST_FILES, Lists, PairList, PeopleList, find_lists, read_pairs, read_people
from faces.pictures import BadFileError

CROP = (70, 195), (78, 172)
"""Rows and columns of the usual 250 x 250 pixels that scikit-learn takes, to half the size."""

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
    refuse_strays(lfw, places)
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m faces.convert_lfw",
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
