"""RecordIO files of pictures, as MXNet and InsightFace have them: `train.rec`, and its index `train.idx` beside it.

A record is

    uint32 magic | uint32 kind * 2^29 + length | data | zeros up to a multiple of four bytes

where kind is 0 for a whole record. Data that holds the magic, at a multiple of four bytes, is split there, and the
magic left out: kind is 1 for its first part, 3 for the last, 2 for those between. The data of a picture is

    uint32 flag | float32 label | uint64 id | uint64 id2 | as many float32 labels as flag says | JPEG or PNG

of which `label` counts where flag is 0. The index has lines of a key, a tab and the byte at which the record begins.

In InsightFace's files the keys of pictures count from 1. Other records have two labels and no picture: one for each
person, with the first key of their pictures and the one after the last; and the header, under key 0, with the first
key of a person's record and the one after the last. Files that im2rec made, or shuffled ones, hold pictures alone.
"""

import itertools
import mmap
import os
import re
import struct
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from faces.images import decode, encode
from faces.pictures import BadFileError

MAGIC = 0xCED7230A
PART = struct.Struct("<II")
HEAD = struct.Struct("<IfQQ")
LENGTHS = 2**29
# From here on two whole numbers may be one float32, and so two people one label.
NUMBERS = 2**24


class Record(NamedTuple):
    """What a record holds. `labels` is `[K]`, float32: first the person, then what the file's maker put there."""

    labels: np.ndarray
    id: int
    id2: int
    data: bytes


class RecordPictures:
    """The pictures of a `.rec` file, each read when it is asked for; `names` are the numbers that people have there.

    On opening it reads the head of every record, for the labels. Without an index beside it the records are searched
    for, which takes far longer; `write_index` does so once. A file `property` beside it, if any, must agree.
    Threads may share it, and it may be pickled: what comes back opens the file anew.

    Args:
      path: of the `.rec` file, or of a folder with a `train.rec`.

    Raises:
      BadFileError: the file, its index or its `property` is not what it should be; the index does not name every
        record; a label is not a whole number, is negative, or so large that float32 may have rounded it.
    """

    def __init__(self, path: Path | str):
        self.path = _in_folder(Path(path))
        self._open()
        index = self.path.with_suffix(".idx")
        keys, offsets = read_index(index) if index.exists() else index_of(self.path)
        heads = _heads(self._file, self.path, keys, offsets)
        _refuse_gaps(self.path, index, offsets, heads.ends, os.fstat(self._file).st_size)
        rows = self._with_pictures(keys, offsets, heads)
        self.keys, self.offsets = keys[rows], offsets[rows]
        numbers, self.labels = self._people(heads.labels[rows])
        self.names = tuple(str(int(number)) for number in numbers)
        height, width, channels = self._decoded(0).shape
        self.shape = height, width, channels
        _refuse_other_property(self.path.with_name("property"), self.shape, int(numbers[-1]))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> np.ndarray:
        picture = self._decoded(index)
        if picture.shape != self.shape:
            words = f"expected shape {self.shape}, that of the first picture, came {picture.shape}. Resize them first."
            raise BadFileError(self._name_of(index), words, int(self.offsets[index]))
        return picture

    def record(self, index: int) -> Record:
        """All that the file has of a picture, further labels among it."""
        name, offset = self._name_of(index), int(self.offsets[index])
        return _unpacked(_joined(self._file, name, offset)[0], name, offset)

    def _decoded(self, index: int) -> np.ndarray:
        data = self.record(index).data
        return decode(data, self._name_of(index), int(self.offsets[index]))

    def _name_of(self, index: int) -> str:
        return _record_name(self.path, self.keys[index])

    def _with_pictures(self, keys, offsets, heads) -> np.ndarray:
        """The rows of the index whose records are pictures."""
        rows = np.flatnonzero(~heads.empty)
        if keys[0] == 0 and heads.empty[0]:
            name, offset = _record_name(self.path, 0), int(offsets[0])
            header = _unpacked(_joined(self._file, name, offset)[0], name, offset)
            _refuse_other_keys(keys[rows], header.labels, name, offset)
        elif len(rows) < len(keys):
            empty = int(np.flatnonzero(heads.empty)[0])
            words = "expected a picture, as no header has key 0 and says which records have none; came 0 bytes of it."
            raise BadFileError(_record_name(self.path, keys[empty]), words, int(offsets[empty]))
        return rows

    def _people(self, labels) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of people in the file, ascending, and `[N]`, which of them is on each picture."""
        wrong = np.flatnonzero(~((labels >= 0) & (labels < NUMBERS) & (labels == np.floor(labels))))
        if wrong.size:
            first = int(wrong[0])
            words = (
                f"expected a person's number as label, a whole one from 0 to {NUMBERS - 1:,}, came {labels[first]}. "
                "Labels are float32, which holds no larger ones for certain."
            )
            raise BadFileError(self._name_of(first), words, int(self.offsets[first]))
        numbers, people = np.unique(labels, return_inverse=True)
        return numbers, people.astype(np.int32)

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open()


def _in_folder(path: Path) -> Path:
    """The `.rec` file: of a folder, by which InsightFace's configurations name their data, its `train.rec`."""
    if not path.is_dir():
        return path
    if not (path / "train.rec").is_file():
        raise BadFileError(path, "expected a .rec file, or a folder with train.rec, came one without. Name the file.")
    return path / "train.rec"


def _record_name(path: Path, key) -> str:
    return f"{path}, record {key}"


def _read(file: int, name: str, length: int, offset: int) -> bytes:
    """As many bytes as asked for, or those up to the end of the file."""
    try:
        # Not `read`: other threads, and processes that were forked, move the file's own position.
        return os.pread(file, length, offset)
    except OSError as error:
        raise BadFileError(name, f"it cannot be read: {error.strerror}.", offset) from error


def _joined(file: int, name: str, offset: int) -> tuple[bytes, int]:
    """The data of the record at `offset`, from all of its parts, and where the next record begins."""
    parts: list[bytes] = []
    while True:
        head = _read(file, name, PART.size, offset)
        if len(head) < PART.size:
            raise BadFileError(name, f"expected a record of at least {PART.size} bytes, came {len(head)}.", offset)
        magic, kind_and_length = PART.unpack(head)
        kind, length = divmod(kind_and_length, LENGTHS)
        if magic != MAGIC:
            words = f"expected a record, which begins with {MAGIC:#x}, came {magic:#x}. Is this the file's own index?"
            raise BadFileError(name, words, offset)
        if kind not in ((2, 3) if parts else (0, 1)):
            expected = "a further part of the record (kind 2 or 3)" if parts else "a record's beginning (kind 0 or 1)"
            raise BadFileError(name, f"expected {expected}, came kind {kind}.", offset)
        padded = length + -length % 4
        data = _read(file, name, padded, offset + PART.size)
        if len(data) < padded:
            words = f"expected {padded:,} bytes of a record, came {len(data):,}: the file is cut off."
            raise BadFileError(name, words, offset)
        parts.append(data[:length])
        offset += PART.size + padded
        if kind in (0, 3):
            return MAGIC.to_bytes(4, "little").join(parts), offset


def _unpacked(data: bytes, name: str, offset: int) -> Record:
    flag, label, id_, id2 = HEAD.unpack_from(data) if len(data) >= HEAD.size else (0, 0.0, 0, 0)
    begin = HEAD.size + 4 * flag
    if len(data) < begin:
        raise BadFileError(name, f"expected {begin:,} bytes of labels at least, came {len(data):,}.", offset)
    labels = np.frombuffer(data, "<f4", flag, HEAD.size) if flag else np.array([label], np.float32)
    return Record(labels, id_, id2, data[begin:])


class _Heads(NamedTuple):
    """`[N]` each: the first label, whether there is no picture, and where the next record begins."""

    labels: np.ndarray
    empty: np.ndarray
    ends: np.ndarray


def _heads(file: int, path: Path, keys: np.ndarray, offsets: np.ndarray, at_once: int = 2**16) -> _Heads:
    """The heads of all records, without a step of Python for each: there are millions."""
    size = os.fstat(file).st_size
    labels, ends = np.empty(len(keys), np.float32), np.empty(len(keys), np.int64)
    empty, sound = np.empty(len(keys), bool), np.empty(len(keys), bool)
    if size < PART.size + HEAD.size:
        raise BadFileError(path, f"expected records of {PART.size + HEAD.size} bytes and more, came {size} bytes.", 0)
    with _mapped(file, path) as mapped:
        words = np.frombuffer(mapped, "<u4", size // 4)
        for begin in range(0, len(keys), at_once):
            some = slice(begin, begin + at_once)
            labels[some], empty[some], ends[some], sound[some] = _plain_heads(words, offsets[some])
        del words  # holds `mapped` open
    for row in np.flatnonzero(~sound):  # split, and so rare; or wrong, and `_joined` says what is
        name, offset = _record_name(path, keys[row]), int(offsets[row])
        data, ends[row] = _joined(file, name, offset)
        record = _unpacked(data, name, offset)
        labels[row], empty[row] = record.labels[0], not record.data
    return _Heads(labels, empty, ends)


def _mapped(file: int, path: Path) -> mmap.mmap:
    try:
        return mmap.mmap(file, 0, prot=mmap.PROT_READ)
    except OSError as error:
        words = f"it cannot be mapped into memory: {error.strerror}. Copy it to a disk of this machine."
        raise BadFileError(path, words, 0) from error


def _plain_heads(words, offsets) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `_Heads`, of records that are whole; and which are. `words` is the file, as uint32."""
    places = offsets[:, None] // 4 + np.array([0, 1, 2, 3, 8])
    magic, kind_and_length, flag, label, first = words[np.minimum(places, len(words) - 1)].T
    kind, length = np.divmod(kind_and_length, np.uint32(LENGTHS))
    least = HEAD.size + 4 * flag.astype(np.int64)
    end = offsets + PART.size + length + -length.astype(np.int64) % 4
    sound = (magic == MAGIC) & (kind == 0) & (length >= least) & (offsets % 4 == 0) & (end <= 4 * len(words))
    return np.where(flag > 0, first, label).view(np.float32), length == least, end, sound


def _refuse_gaps(path: Path, index: Path, offsets: np.ndarray, ends: np.ndarray, size: int) -> None:
    """Each record must begin where another ends, or the rest of the file would be left out without a word."""
    order = np.argsort(offsets, kind="stable")  # takes one pass where they are almost in order
    begins, expected = np.append(offsets[order], size), np.append(0, ends[order])
    wrong = np.flatnonzero(begins != expected)
    if wrong.size:
        begin, gap = int(begins[wrong[0]]), int(expected[wrong[0]])
        came = f"one at byte {begin:,}" if wrong[0] < len(offsets) else f"none, and the file goes on to byte {begin:,}"
        words = f"expected the next record that {index.name} names, came {came}. Is that index its own, and whole?"
        fix = "Make it anew by faces.recordio.write_index, or remove it: the records are then searched for."
        raise BadFileError(path, f"{words} {fix}", gap)


def _refuse_other_keys(keys: np.ndarray, labels: np.ndarray, name: str, offset: int) -> None:
    """Pictures must have the keys that the header says: all from 1 to the one before its first label."""
    if len(labels) != 2:
        words = f"expected two labels, as no picture is in it and key 0 is the header's, came {len(labels)}."
        raise BadFileError(name, words, offset)
    gaps = np.flatnonzero(keys != np.arange(1, len(keys) + 1))
    # The header is float32 as well, and rounded in files of more than 2^24 pictures.
    if len(keys) == 0 or gaps.size or np.float32(len(keys) + 1) != labels[0]:
        missing = int(gaps[0]) + 1 if gaps.size else len(keys) + 1
        came = f"there is none under {missing}" if missing < labels[0] else f"they go on to {len(keys)}"
        words = f"it says that pictures have the keys 1 to {labels[0] - 1:.0f}, but {came}."
        raise BadFileError(name, f"{words} Is this the file's own index, and is it whole?", offset)


def _refuse_other_property(path: Path, shape: tuple[int, int, int], largest: int) -> None:
    """A file `property`, where there is one, has the number of people, the height and the width of pictures."""
    if not path.exists():
        return
    text = path.read_bytes()
    match = re.fullmatch(rb"\s*(\d{1,9}),(\d{1,9}),(\d{1,9})\s*", text)
    if match is None:
        raise BadFileError(path, f"expected people, height and width, such as 10572,112,112, came {text[:40]!r}.", 0)
    people, *size = map(int, match.groups())
    if tuple(size) != shape[:2]:
        raise BadFileError(path, f"says pictures of {size[0]} x {size[1]}; they are {shape[0]} x {shape[1]}.", 0)
    if largest >= people:
        raise BadFileError(path, f"says {people:,} people, numbered from 0; there is a number {largest:,}.", 0)


NO_INDEX_LINE = re.compile(rb"^(?!\d{1,18}[\t ]+\d{1,18}\r?\n|\Z)", re.MULTILINE)


def read_index(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """The keys of an `.idx` file, ascending, and where their records begin: int64 `[N]`; raises `BadFileError`."""
    text = Path(path).read_bytes()
    text += b"" if text.endswith(b"\n") else b"\n"
    wrong = NO_INDEX_LINE.search(text)
    if wrong:
        line = text[wrong.start() : wrong.start() + 80].split(b"\n")[0]
        raise BadFileError(path, f"expected lines of a key, a tab and an offset, came {line!r}.", wrong.start())
    table = np.fromstring(text, np.int64, sep=" ").reshape(-1, 2)
    order = np.argsort(table[:, 0], kind="stable")
    table = table[order]
    twice = np.flatnonzero(np.diff(table[:, 0]) == 0)
    if twice.size:
        again = len(b"".join(text.splitlines(keepends=True)[: order[twice[0] + 1]]))
        words = f"expected every key once, came {table[twice[0], 0]} twice. Make the index anew, by write_index."
        raise BadFileError(path, words, again)
    return table[:, 0].copy(), table[:, 1].copy()


def index_of(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """As `read_index`, from the `.rec` file itself, which is walked from its beginning to its end.

    The key of a record is its id, as InsightFace and im2rec write it; where two have one id, keys count from 0.
    """
    path = Path(path)
    file = os.open(path, os.O_RDONLY)
    try:
        ids, offsets, offset, size = [], [], 0, os.fstat(file).st_size
        while offset < size:
            id_, end = _id_at(file, path, offset, size)
            ids.append(id_)
            offsets.append(offset)
            offset = end
    finally:
        os.close(file)
    if not ids:
        raise BadFileError(path, "expected records, came 0 bytes.", 0)
    distinct = len(set(ids)) == len(ids) and max(ids) < 2**63
    keys = np.array(ids if distinct else range(len(ids)), np.int64)
    order = np.argsort(keys)
    return keys[order], np.array(offsets, np.int64)[order]


def _id_at(file: int, path: Path, offset: int, size: int) -> tuple[int, int]:
    """The id of a record, and where the next begins; little is read of records that are whole."""
    head = _read(file, str(path), PART.size + HEAD.size, offset)
    if len(head) == PART.size + HEAD.size:
        magic, length = PART.unpack_from(head)  # of kind 0, or else more than any length
        end = offset + PART.size + length + -length % 4
        if magic == MAGIC and HEAD.size <= length < LENGTHS and end <= size:
            return HEAD.unpack_from(head, PART.size)[2], end
    data, end = _joined(file, str(path), offset)
    return _unpacked(data, str(path), offset).id, end


def write_index(path: Path | str) -> Path:
    """Makes the `.idx` beside a `.rec` file anew, and returns its path; raises `BadFileError`."""
    target = Path(path).with_suffix(".idx")
    lines = (f"{key}\t{offset}\n" for key, offset in zip(*index_of(path), strict=True))
    part = _part(target)
    part.write_text("".join(lines))
    part.replace(target)
    return target


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


class RecordWriter:
    """Writes a `.rec` file and its `.idx`. They have names ending in `.part` until both are whole.

        with RecordWriter("train.rec") as writer:
            writer.add(encode(picture), label)

    Leaving the block by an exception leaves nothing. Files of those names are replaced.

    Args:
      path: of the `.rec` file.
      header: with the header and the records of people, as InsightFace has them: keys count from 1, and the pictures
        of a person must come one after another. Otherwise pictures alone, with keys from 0.
    """

    def __init__(self, path: Path | str, *, header: bool = True):
        self.path, self.header = Path(path), header
        if self.path.suffix != ".rec":
            raise ValueError(f"path: expected a name that ends in .rec, came {self.path.name!r}.")
        self.index = self.path.with_suffix(".idx")
        self._next = 1 if header else 0
        self._starts: dict[int, int] = {}
        self._last = -1

    def __enter__(self) -> "RecordWriter":
        self._records, self._lines = open(_part(self.path), "wb"), open(_part(self.index), "w")
        return self

    def __exit__(self, exception, *_: object) -> None:
        try:
            if exception is None:
                self._finish()
        finally:
            for file, path in (self._records, self.path), (self._lines, self.index):
                file.close()
                _part(path).unlink(missing_ok=True)

    def add(self, data: bytes, label: int | Sequence[float] | np.ndarray) -> None:
        """Adds a picture, as the bytes of its file.

        Args:
          data: such as `faces.images.encode` makes.
          label: the number of the person on it, or several labels with that number first.

        Raises:
          ValueError: the number is not whole, negative, or not below 2^24, beyond which float32 merges numbers; the
            data is empty or too long; the person was there before others, and the file is to have a header.
        """
        person = np.asarray(label).reshape(-1)[:1].astype(np.float64)
        if not (person.size and 0 <= person[0] < NUMBERS and float(person[0]).is_integer()):
            words = f"label: expected a person's number, a whole one from 0 to {NUMBERS - 1:,}, came {label!r}."
            raise ValueError(f"{words} The file has float32 labels: number people without gaps.")
        if len(data) == 0:
            raise ValueError("data: expected the bytes of a picture, came none.")
        if self.header:
            self._start(int(person[0]))
        self._write(self._next, label, data)
        self._next += 1

    def _start(self, person: int) -> None:
        if person in self._starts and person != self._last:
            words = f"label: {person} came before, and others since; expected a person's pictures one after another."
            raise ValueError(f"{words} Sort them by label, or pass header=False.")
        self._starts.setdefault(person, self._next)
        self._last = person
        if self._next + 1 + len(self._starts) > NUMBERS:
            raise ValueError(f"header: its float32 holds keys to {NUMBERS:,} only, came more. Pass header=False.")

    def _write(self, key: int, label, data: bytes) -> None:
        labels = np.asarray(label, "<f4")
        one = labels.ndim == 0
        head = HEAD.pack(0, labels, key, 0) if one else HEAD.pack(labels.size, 0, key, 0) + labels.tobytes()
        framed = _framed(head + data)
        self._lines.write(f"{key}\t{self._records.tell()}\n")
        self._records.write(framed)

    def _finish(self) -> None:
        if self._next == int(self.header):
            raise ValueError("RecordWriter: expected at least one picture, came none. Add one.")
        if self.header:
            first = self._next
            self._write(0, [first, first + len(self._starts)], b"")
            for key, ends in enumerate(itertools.pairwise([*self._starts.values(), first]), start=first):
                self._write(key, ends, b"")
        for file in self._records, self._lines:
            file.flush()
            os.fsync(file.fileno())
        # At no moment is there the index of another file.
        self.index.unlink(missing_ok=True)
        _part(self.path).replace(self.path)
        _part(self.index).replace(self.index)


def _framed(data: bytes) -> bytes:
    """The record of `data`, split where it holds the magic."""
    if len(data) >= LENGTHS:
        raise ValueError(f"data: expected less than {LENGTHS:,} bytes, with its labels, came {len(data):,}.")
    cuts = 4 * np.flatnonzero(np.frombuffer(data, "<u4", len(data) // 4) == MAGIC)
    begins, ends = [0, *(cuts + 4).tolist()], [*cuts.tolist(), len(data)]
    kinds = [1, *[2] * (len(cuts) - 1), 3] if len(cuts) else [0]
    parts = [
        PART.pack(MAGIC, kind * LENGTHS + end - begin) + data[begin:end]
        for kind, begin, end in zip(kinds, begins, ends, strict=True)
    ]
    return b"".join(parts) + bytes(-len(data) % 4)


def write_records(
    path: Path | str,
    pictures: Iterable[np.ndarray | bytes],
    labels: Iterable[int | Sequence[float] | np.ndarray],
    *,
    header: bool = True,
    format: str = "JPEG",
    quality: int = 95,
) -> None:
    """A `.rec` file and its `.idx` of all `pictures`, arrays or the bytes of files; see `RecordWriter` and `encode`."""
    with RecordWriter(path, header=header) as writer:
        for number, (picture, label) in enumerate(itertools.zip_longest(pictures, labels)):
            if picture is None or label is None:
                came = "pictures" if label is None else "labels"
                raise ValueError(f"labels: expected one for each picture, came more {came}, from number {number} on.")
            writer.add(picture if isinstance(picture, bytes) else encode(picture, format, quality), label)
