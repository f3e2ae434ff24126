"""The pictures of a run: who is trained on, and which pairs are verified.

Sources by name: scikit-learn's Olivetti faces, faces that the example renders itself, LFW, a folder with one folder
for each person, and RecordIO files. Verification packs come beside them. People who are verified are never trained on,
where a source says who is who; a pack does not.
"""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import margin_softmax as ms
from faces.convert_lfw import lfw_of_scikit_learn
from faces.folders import FolderPictures
from faces.lfw import Lfw, read_lfw
from faces.olivetti import UnavailableError, olivetti_faces
from faces.packs import read_pack
from faces.pictures import ArrayPictures, BadFileError, Pairs, Pictures
from faces.recordio import RecordPictures
from rendered_faces import rendered_faces

FOLDS = 4
RENDERED_PEOPLE = 120
RENDERED_PICTURES = 10
VERIFICATION_FOLDS = 10
MOST_VERIFIED = 3_000  # pictures of people left out: 4.5 million pairs

OF_SCIKIT_LEARN = "scikit-learn"
NAMED = "auto", "olivetti", "rendered"
FILES: dict[str, Callable[[Path, "Choice"], Pictures]] = {
    "folder": lambda path, choice: FolderPictures(path, size=choice.resized, channels=choice.channels),
    "rec": lambda path, choice: RecordPictures(path),
}


class Faces(NamedTuple):
    """Whom a run sees.

    Attributes:
      source: its name.
      training: pictures with their people.
      validation: sets of pairs; the first is the one that a run reports.
    """

    source: str
    training: Pictures
    validation: tuple[Pairs, ...]

    @property
    def people(self) -> int:
        return len(self.training.names)


class Choice(NamedTuple):
    """What of a source is wanted.

    Attributes:
      fold: which quarter of the people is verified; LFW has divisions of its own.
      people: how many are rendered.
      seed: of who is rendered.
      interleaved: fold k has every fourth person, and not a quarter in a row.
      resized: `(H, W)` to which the pictures of a folder are brought; None where all are of one size.
      channels: 1 or 3, in which the pictures of a folder are read; None for those of the first.
    """

    fold: int = 0
    people: int = RENDERED_PEOPLE
    seed: int = 0
    interleaved: bool = False
    resized: tuple[int, int] | None = None
    channels: int | None = None


def load_faces(source: str, choice: Choice = Choice(), validation: Sequence[str] = ()) -> Faces:  # noqa: B008
    """The faces of `source`: 'auto', 'olivetti', 'rendered', 'lfw:FILE', 'folder:PATH' or 'rec:FILE'.

    'lfw:scikit-learn' is LFW as scikit-learn has downloaded it.

    `validation` has packs, or the archives made of them, as 'bin:FILE'. Where there are some, nobody of a folder or a
    RecordIO file is left out of the training. Raises ValueError for what is no source or has nobody to tell apart,
    `UnavailableError` where 'olivetti' was asked for by name and is not there, `BadFileError`.
    """
    kind, path = source_of(source)
    if kind == "lfw":
        training, _, tested = archive_of(path).development()
        tested = tested._replace(fold=even_folds(tested.same))  # its list has those of one person first
        faces = Faces(source, training, (tested,))
    elif kind in FILES:
        pictures = FILES[kind](path, choice)
        faces = Faces(source, pictures, ()) if validation else left_out(source, pictures, choice)
    else:
        faces = left_out(*_made_or_found(kind, choice), choice)
    if faces.people < 2:
        raise ValueError(
            f"{source}: expected at least 2 people to train on, whom the loss tells apart; came {faces.people}. "
            "Add pictures of others."
        )
    return with_packs(faces, validation)


def archive_of(path: Path) -> Lfw:
    """LFW; raises `BadFileError`, which has the command where the pictures came in place of their archive."""
    if str(path) == OF_SCIKIT_LEARN:
        return lfw_of_scikit_learn()
    if path.is_dir():
        pictures = path.resolve()  # the command is given in another folder
        raise BadFileError(
            path,
            "expected an archive of LFW, came a folder. In the folder of the examples `python -m faces.convert_lfw "
            f"{shlex.quote(str(pictures))} --out {shlex.quote(f'{pictures}.npz')}` makes one of the public pictures.",
        )
    return read_lfw(path)


def with_packs(faces: Faces, validation: Sequence[str]) -> Faces:
    """Reads the packs, in the tones of the training: grey where that is grey. Raises ValueError for another size
    or a name that is taken.
    """
    shape = faces.training.shape
    packs = []
    for path in map(pack_path, validation):
        packs.append(read_pack(path, grey=shape[2] == 1))
        if packs[-1].name in {pairs.name for pairs in (*faces.validation, *packs[:-1])}:
            raise ValueError(f"{path}: expected sets of different names, came two {packs[-1].name!r}; rename one")
        if packs[-1].pictures.shape[1:] != shape:
            came, expected = (" x ".join(map(str, size)) for size in (packs[-1].pictures.shape[1:], shape))
            raise ValueError(f"{path}: expected pictures of {expected} as in the training, came {came}")
    return faces._replace(validation=(*faces.validation, *packs))


def source_of(text: str) -> tuple[str, Path]:
    """(kind, path) of a source; the path of those that have none is '.'. Raises ValueError."""
    kind, colon, path = text.partition(":")
    if kind in NAMED and not colon:
        return kind, Path()
    if kind in (*FILES, "lfw") and path:
        return kind, Path(path).expanduser()  # a shell expands `~` at the start of a word only
    expected = ", ".join((*NAMED, "lfw:FILE", *(f"{kind}:PATH" for kind in FILES)))
    raise ValueError(f"expected one of {expected}; came {text!r}")


def pack_path(text: str) -> Path:
    kind, _, path = text.partition(":")
    if kind != "bin" or not path:
        raise ValueError(f"expected bin:FILE, a verification pack; came {text!r}")
    return Path(path).expanduser()


def _made_or_found(kind: str, choice: Choice) -> tuple[str, ArrayPictures]:
    if kind in ("auto", "olivetti"):
        try:
            return "olivetti", olivetti_faces()
        except UnavailableError as reason:
            if kind == "olivetti":
                raise
            print(f"No Olivetti faces: {reason}. Going on with rendered faces.")
    tones, labels = rendered_faces(jax.random.key(choice.seed), choice.people, RENDERED_PICTURES)
    pictures = np.round(np.asarray(tones)[..., None] * 255).astype(np.uint8)
    names = tuple(f"rendered {person}" for person in range(choice.people))
    return "rendered", ArrayPictures(pictures, np.asarray(labels, np.int32), names)


def left_out(source: str, pictures: Pictures, choice: Choice) -> Faces:
    """Trains on three quarters of the people, and verifies all pairs of pictures of the others.

    Fold k of P people verifies those from k P / 4 up to (k + 1) P / 4, or k, k + 4, k + 8, ... if interleaved.
    """
    people, labels = len(pictures.names), pictures.labels
    fold_of = labels % FOLDS if choice.interleaved else labels.astype(np.int64) * FOLDS // people
    verified = fold_of == choice.fold
    count = int(verified.sum())
    if people < 2 * FOLDS:
        raise ValueError(f"{source}: expected at least {2 * FOLDS} people, two for each fold; came {people}")
    if count > MOST_VERIFIED:
        raise ValueError(
            f"{source}: a quarter of its people have {count:,} pictures, too many to verify all pairs of them (at most "
            f"{MOST_VERIFIED:,}). Give verification packs, or a smaller set of pairs to verify, by --validate."
        )
    pairs, same = ms.verification.all_pairs(labels[verified])
    if np.sum(same) < 2:
        raise ValueError(
            f"{source}: the people left out have {np.sum(same)} pairs of one person, too few to verify (at least 2). "
            "Give verification packs by --validate, or take another --fold."
        )
    name = f"{source}, people left out"
    held = Pairs(name, _read(pictures, np.flatnonzero(verified)), pairs, same, even_folds(same))
    return Faces(source, SomePictures(pictures, np.flatnonzero(~verified)), (held,))


def even_folds(same: np.ndarray) -> np.ndarray:
    """Folds of a cross-validation, each with its share of both kinds: neighbouring pairs may all be of one kind."""
    fold = np.empty(len(same), np.int32)
    for kind in (same, ~same):
        fold[kind] = np.arange(np.sum(kind)) % VERIFICATION_FOLDS
    return fold


def _read(pictures: Pictures, chosen: np.ndarray) -> np.ndarray:
    if isinstance(pictures, ArrayPictures):
        return pictures.array[chosen]
    return np.stack([pictures[int(index)] for index in chosen])


class SomePictures:
    """Some pictures of another source; the people who are left are numbered anew."""

    def __init__(self, pictures: Pictures, chosen: np.ndarray):
        self.pictures, self.chosen, self.shape = pictures, chosen, pictures.shape
        people, labels = np.unique(pictures.labels[chosen], return_inverse=True)
        self.labels, self.names = labels.astype(np.int32), tuple(pictures.names[person] for person in people)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.pictures[int(self.chosen[index])]
