"""The lists of LFW: pairs.txt and people.txt, and those of the development split; errors name the file and the line."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from faces.pictures import BadFileError


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
