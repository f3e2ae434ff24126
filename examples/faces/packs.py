"""Verification packs, `lfw.bin` and the like: a pickle of InsightFace's with the pictures of pairs and who is the same.

The pickle is `(pictures, same)`: pair i is of the pictures 2i and 2i + 1, each the bytes of a file, and same[i] says
whether they are of one person. A pickle is a program: it may name any function that Python can import and have it
called, as `pickle.load` does. Here no call is made. The few that NumPy and Python write for bytes and numbers are
written down and understood afterwards; at any other name the file is refused.

    python -m faces.packs lfw.bin lfw.npz

makes an archive of it that is no program, which `read_pack` reads as well.
"""

import argparse
import contextlib
import functools
import io
import math
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from faces.archives import MOST_BYTES, is_archive, read_arrays
from faces.images import decode, encode, in_channels
from faces.pictures import BadFileError, Pairs

NAMES = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}
NUMBERS = {"b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"}
NEEDLESS = {
    "a name by a number": (pickle.EXT1, pickle.EXT2, pickle.EXT4),
    "an instance": (pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX),
    # To hash a key that is nested deeply, Python goes down into it until the process dies.
    "a dictionary": (pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS),
    "a set": (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET),
}
AT_THE_END = "This byte is where the pickle ends: the place of what is wrong is not known."
# Bytes and text, by the bytes between the opcode and what it holds: of a length, or a quote.
HOLDING = {
    0: (pickle.UNICODE,),
    1: (pickle.STRING, pickle.SHORT_BINSTRING, pickle.SHORT_BINBYTES, pickle.SHORT_BINUNICODE),
    4: (pickle.BINSTRING, pickle.BINBYTES, pickle.BINUNICODE),
    8: (pickle.BINBYTES8, pickle.BINUNICODE8),
}


def read_pack(path: Path | str, *, grey: bool = False) -> Pairs:
    """The pairs of a `.bin` file, or of the `.npz` archive that was made of one; named as the file is.

    A `.bin` has no folds, which InsightFace takes one after another from the pairs. Pictures may be `bytes`, the `str`
    of Python 2, or uint8 arrays as OpenCV's `imencode` makes them; who is the same, bool, NumPy's, or 0 and 1; the
    protocol any from 0 to 5. An archive is known by its first bytes.

    Args:
      path: of the file.
      grey: one channel instead of three.

    Raises:
      BadFileError: the file is no such pickle, or asks for what no pack needs; there are not two pictures for each
        entry of `same`; a picture cannot be read or is of another size than the first; it is all too much. As
        `load_pairs`, for an archive.
    """
    path = Path(path)
    if is_archive(path):
        pairs = load_pairs(path)
        return pairs._replace(name=path.stem, pictures=in_channels(pairs.pictures, grey=grey))
    if path.stat().st_size > MOST_BYTES:
        raise BadFileError(path, f"expected at most {MOST_BYTES:,} bytes, came {path.stat().st_size:,}.")
    content = path.read_bytes()
    items, same = _understood(path, _unpickled(path, content), len(content))
    pictures = np.empty((0, 0, 0, 0), np.uint8)
    for number, item in enumerate(items):
        name = f"{path}, picture {number}"
        try:
            file = _file(item)
        except ValueError as error:
            raise _wrong(name, f"expected the bytes of a file: {error}.", item, len(content)) from error
        picture = decode(file, name, _place(item), grey=grey)
        if number == 0:
            pictures = _room(path, len(items), picture.shape)
        if picture.shape != pictures.shape[1:]:
            words = f"expected shape {pictures.shape[1:]}, that of picture 0, came {picture.shape}. Resize them first."
            raise BadFileError(name, words, _place(item))
        pictures[number] = picture
    return Pairs(path.stem, pictures, np.arange(len(items)).reshape(-1, 2), same)


def _room(path: Path, number: int, shape: tuple[int, ...]) -> np.ndarray:
    # The pack may name one picture any number of times, in two bytes each.
    if number * math.prod(shape) > MOST_BYTES:
        raise BadFileError(path, f"expected at most {MOST_BYTES:,} bytes of pictures, came {number:,} of {shape}.")
    return np.empty((number, *shape), np.uint8)


class _Bytes(bytes):
    """As bytes, with the byte of the pickle at which they begin: two that are equal stand at two places."""

    place: int


class _Text(str):
    """As `_Bytes`."""

    place: int


class _Name:
    """One of `NAMES`."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class _Call:
    """A call that the pickle asks for, and the state that it would give to the result."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple[object, ...]):
        self.name, self.arguments, self.state = name, arguments, None

    def __setstate__(self, state: object) -> None:
        self.state = state


def _refuse(what: str, _: object = None) -> NoReturn:
    raise pickle.UnpicklingError(f"it asks for {what}, which no pack needs and which may be harmful")


def _with_place(load: Callable[[Any], None], before: int) -> Callable[[Any], None]:
    def placed(unpickler: Any) -> None:
        place = unpickler.tell() + before
        load(unpickler)
        held = unpickler.stack[-1]
        unpickler.stack[-1] = held = _Bytes(held) if isinstance(held, bytes) else _Text(held)
        held.place = place

    return placed


# Written in Python: where the one in C sets aside memory as the file says, this one reads what there is.
class _Unpickler(pickle._Unpickler):
    def __init__(self, stream: io.BytesIO):
        super().__init__(stream, encoding="bytes")
        self.tell = stream.tell

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NAMES:
            _refuse(f"{module}.{name}")
        return _Name(name)

    def _note(self: Any) -> None:
        """A call is noted. Making one, of what is none, could fail with a message as large as what is unpickled."""
        arguments, name = self.stack.pop(), self.stack[-1]
        if not (isinstance(name, _Name) and isinstance(arguments, tuple)):
            _refuse("a call of what is no name, or with what is no tuple")
        self.stack[-1] = _Call(name.name, arguments)

    def _name(self: Any) -> None:
        self.stack[-2:] = [str(item) if isinstance(item, _Text) else item for item in self.stack[-2:]]
        pickle._Unpickler.dispatch[pickle.STACK_GLOBAL[0]](self)  # of `str` itself, and of nothing derived from it

    def _pass_over_frame(self) -> None:
        self.read(8)  # pyright: ignore[reportAttributeAccessIssue]: frames are for reading ahead

    dispatch = pickle._Unpickler.dispatch | {
        pickle.FRAME[0]: _pass_over_frame,
        **{
            code[0]: _with_place(pickle._Unpickler.dispatch[code[0]], before)
            for before, codes in HOLDING.items()
            for code in codes
        },
        pickle.BYTEARRAY8[0]: _with_place(pickle._Unpickler.dispatch[pickle.BINBYTES8[0]], 8),
        pickle.STACK_GLOBAL[0]: _name,
        pickle.REDUCE[0]: _note,
        **{code[0]: functools.partial(_refuse, what) for what, codes in NEEDLESS.items() for code in codes},
    }


def _unpickled(path: Path, content: bytes) -> object:
    """What the pickle holds, with `_Call` where it asks for one."""
    stream = io.BytesIO(content)
    try:
        tree = _Unpickler(stream).load()
    except Exception as error:  # of a damaged pickle it raises anything
        ended = stream.tell() == len(content) and not isinstance(error, pickle.UnpicklingError)
        reason = "it ends" if ended else str(error) or type(error).__name__
        raise BadFileError(path, f"expected a pickle of (pictures, same), but {reason}.", stream.tell()) from error
    if stream.tell() < len(content):
        words = f"expected the end, as the pickle has ended, came {len(content) - stream.tell():,} bytes more."
        raise BadFileError(path, words, stream.tell())
    return tree


def _understood(path: Path, tree: object, end: int) -> tuple[Sequence[object], np.ndarray]:
    """The pictures, as the pickle has them, and `[M]`, bool, who is the same. `end` is where the pickle ends."""

    def wrong(words):
        return BadFileError(path, f"{words} {AT_THE_END}", end)

    if not (isinstance(tree, tuple | list) and len(tree) == 2 and isinstance(tree[0], tuple | list)):
        raise wrong("expected a pickle of (pictures, same), a list and a list; came another.")
    items, same = tree[0], _same(path, tree[1], end)
    if len(items) % 2:
        raise wrong(f"expected two pictures for each pair, came {len(items):,}, an odd number.")
    if len(items) != 2 * len(same):
        came = f"{len(items):,} pictures and {len(same):,} entries of same"
        raise wrong(f"expected two pictures for each pair, came {came}.")
    if not items:
        raise wrong("expected at least one pair, came none.")
    return items, same


def _same(path: Path, tree: object, end: int) -> np.ndarray:
    try:
        items = tree if isinstance(tree, tuple | list) else _array(tree).tolist()
    except ValueError as error:
        raise _wrong(path, f"expected a list of who is the same: {error}.", tree, end) from error
    same = []
    for number, item in enumerate(items):
        try:
            same.append(_flag(item))
        except ValueError as error:
            words = f"expected True or False, or 1 or 0, for pair {number}, whether it is of one person: {error}."
            raise _wrong(path, words, item if items is tree else tree, end) from error
    return np.array(same, bool)


def _wrong(name: Path | str, words: str, item: object, end: int) -> BadFileError:
    place = _place(item)
    if place is None:
        return BadFileError(name, f"{words} {AT_THE_END}", end)
    return BadFileError(name, words, place)


def _place(item: object) -> int | None:
    """The byte of the pickle at which the bytes or the text of an item begin; None where it has neither."""
    with contextlib.suppress(ValueError):
        item = _parts(item)[0]
    if isinstance(item, _Call) and item.name == "encode" and item.arguments:
        item = item.arguments[0]
    return item.place if isinstance(item, _Bytes | _Text) else None


def _flag(item: object) -> bool:
    number = item if isinstance(item, int) else _array(item).item()
    if number not in (0, 1):
        raise ValueError("came another number")
    return number == 1


def _file(item: object) -> bytes:
    array = _array(item) if isinstance(item, _Call) and item.name != "encode" else None
    if array is None:
        return _bytes(item)
    if array.dtype != np.uint8:
        raise ValueError(f"came an array of {array.dtype}")
    return array.tobytes()


def _array(item: object) -> np.ndarray:
    """One of NumPy's, of one axis, as it pickles them; also its scalars."""
    data, dtype, shape = _parts(item)
    array = np.frombuffer(_bytes(data), _dtype(dtype))
    # OpenCV made [n, 1], and makes [n].
    if [size for size in shape if size != 1] != [array.size] * (array.size != 1):
        raise ValueError(f"came {array.size:,} numbers that are to have another shape")
    return array


def _parts(item: object) -> tuple[object, object, tuple[object, ...]]:
    """Data, dtype and shape of an array or a scalar of NumPy's."""
    match item:
        case _Call(name="_reconstruct", state=(_, tuple(shape), dtype, _, data)):
            return data, dtype, shape
        case _Call(name="_frombuffer", arguments=(data, dtype, tuple(shape), _)):
            return data, dtype, shape
        case _Call(name="scalar", arguments=(dtype, data)):
            return data, dtype, (1,)
    raise ValueError(f"came {_kind(item)}")


def _dtype(item: object) -> np.dtype:
    match item:
        case _Call(name="dtype", arguments=(str() | bytes() as code, *_), state=(_, str() | bytes() as order, *_)):
            code, order = (text.decode("latin-1") if isinstance(text, bytes) else text for text in (code, order))
            if code in NUMBERS and order in ("|", "<", ">"):
                return np.dtype(order + code)
    raise ValueError("came an array of neither booleans nor integers")


def _bytes(item: object) -> bytes:
    match item:
        case bytes():
            return item
        case _Call(name="encode", arguments=(str() as text, "latin1")):  # what Python 3 writes for Python 2
            return text.encode("latin-1")
    raise ValueError(f"came {_kind(item)}")


def _kind(item: object) -> str:
    if isinstance(item, _Call):
        return f"a call of {item.name}"
    return next((kind.__name__ for kind in (bytes, str) if isinstance(item, kind)), type(item).__name__)


def write_pack(
    path: Path | str,
    pairs: Pairs,
    *,
    format: str = "JPEG",
    quality: int = 95,
    arrays: bool = False,
    protocol: int = 4,
) -> None:
    """A `.bin` file of `pairs`, in their order. It has no room for folds, nor for which pairs share a picture.

    Args:
      path: of the file; it has its name when it is whole.
      pairs: such as `read_pack` returns.
      format: of pictures, 'JPEG' or 'PNG'.
      quality: of JPEG, from 1 to 100.
      arrays: pictures as uint8 arrays, as InsightFace's newer packs have them, instead of `bytes`.
      protocol: of the pickle.

    Raises:
      ValueError: the pairs are not as `Pairs` says, or there are none; there is no such format, quality or protocol.
    """
    _refuse_unsound(pairs)
    files: dict[int, Any] = {}
    for number in np.unique(pairs.pairs).tolist():
        file = encode(pairs.pictures[number], format, quality)
        files[number] = np.frombuffer(file, np.uint8) if arrays else file
    with _whole(Path(path)) as file:
        pickle.dump(([files[n] for n in pairs.pairs.reshape(-1).tolist()], pairs.same.tolist()), file, protocol)


def _refuse_unsound(pairs: Pairs) -> None:
    pictures, numbers, same, fold = pairs[1:]
    if pictures.dtype != np.uint8 or pictures.shape[3:] not in ((1,), (3,)) or pictures.size == 0:
        words = f"came {pictures.dtype}, {pictures.shape}"
        raise ValueError(f"pairs.pictures: expected uint8, [N, H, W, 1 or 3], of one pixel at least, {words}.")
    if numbers.dtype.kind not in "iu" or numbers.ndim != 2 or numbers.shape[1] != 2 or len(numbers) == 0:
        words = f"came {numbers.dtype}, {numbers.shape}"
        raise ValueError(f"pairs.pairs: expected integers, [M, 2], of one pair at least, {words}.")
    if not 0 <= numbers.min() <= numbers.max() < len(pictures):
        words = f"came {numbers.min()} to {numbers.max()}"
        raise ValueError(f"pairs.pairs: expected numbers of pictures, 0 to {len(pictures) - 1}, {words}.")
    if same.dtype != bool or same.shape != (len(numbers),):
        words = f"came {same.dtype}, {same.shape}"
        raise ValueError(f"pairs.same: expected bool, [M] = ({len(numbers)},), {words}.")
    if fold is not None and fold.shape != same.shape:
        raise ValueError(f"pairs.fold: expected None or [M] = ({len(numbers)},), came {fold.shape}.")


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which gets its name when it is whole."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def save_pairs(path: Path | str, pairs: Pairs) -> None:
    """An `.npz` archive of pairs, pictures and all; `load_pairs` reads it. Raises ValueError as `write_pack`."""
    _refuse_unsound(pairs)
    arrays: dict[str, Any] = {name: value for name, value in pairs._asdict().items() if value is not None}
    with _whole(Path(path)) as file:
        np.savez_compressed(file, **arrays)


def load_pairs(path: Path | str) -> Pairs:
    """The pairs that `save_pairs` wrote, with their name and their folds. Nothing in the archive is run.

    Raises:
      BadFileError: the archive is damaged, holds other arrays, or unpacks to more than `MOST_BYTES`.
    """
    with open(path, "rb") as file:
        try:
            arrays: dict[str, Any] = read_arrays(file, Pairs._fields, MOST_BYTES)
            pairs = Pairs(**arrays)._replace(name=str(arrays["name"]))
            _refuse_unsound(pairs)
        except Exception as error:  # of a damaged archive it raises anything
            raise BadFileError(path, f"expected an archive that save_pairs wrote, but {error}.") from error
    return pairs


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m faces.packs", description="Makes an archive of a pack of pairs.")
    parser.add_argument("pack", type=Path, help="a .bin file; nothing in it is run")
    parser.add_argument("archive", type=Path, help="the .npz file to write")
    parser.add_argument("--grey", action="store_true", help="one channel instead of three")
    options = parser.parse_args(arguments)
    try:
        pairs = read_pack(options.pack, grey=options.grey)
        save_pairs(options.archive, pairs)
    except (BadFileError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.archive}: {len(pairs.same):,} pairs, {int(pairs.same.sum()):,} of them of one person.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
