"""RecordIO files, made by hand from the description of the format, and what of them is refused."""

import concurrent.futures
import copy
import errno
import itertools
import multiprocessing
import os
import pickle
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from faces import recordio
from faces.images import decode, encode
from faces.pictures import BadFileError
from faces.recordio import RecordPictures, RecordWriter, index_of, read_index, write_index, write_records
from reference import mxnet_records

MAGIC = b"\x0a\x23\xd7\xce"
EXAMPLES = Path(recordio.__file__).parents[1]


def file_of(number, size=(6, 5)):
    """A small PNG, different for every number."""
    random = np.random.default_rng(number)
    return encode(random.integers(0, 256, (*size, 3), dtype=np.uint8), "PNG")


def part(data, kind=0):
    return MAGIC + struct.pack("<I", kind << 29 | len(data)) + data + b"\0" * (-len(data) % 4)


def data_of(label, key, picture=b"", more=()):
    """As MXNet packs it: with labels behind the head, the head's own is 0."""
    labels = [label, *more] if more else []
    head = struct.pack("<IfQQ", len(labels), 0 if labels else label, key, 0)
    return head + b"".join(struct.pack("<f", x) for x in labels) + picture


def written(folder, records, name="train", index=True):
    """A `.rec` of (key, bytes of a record) and its `.idx`."""
    path = folder / f"{name}.rec"
    path.write_bytes(b"".join(data for _, data in records))
    if index:
        path.with_suffix(".idx").write_text("".join(lines_of(records)))
    return path


def lines_of(records):
    offsets = itertools.accumulate((len(data) for _, data in records), initial=0)
    return [f"{key}\t{offset}\n" for (key, _), offset in zip(records, offsets, strict=False)]


PEOPLE = [4, 4, 4, 9, 9, 700]


def insightface(more=()):
    """Pictures, header and people in the order in which InsightFace's tool writes them."""
    pictures = [(k, part(data_of(person, k, file_of(k), more))) for k, person in enumerate(PEOPLE, start=1)]
    people = [(7, 1, 4), (8, 4, 6), (9, 6, 7)]
    return [
        *pictures,
        (0, part(data_of(7, 0, more=[10]))),
        *((key, part(data_of(first, key, more=[end]))) for key, first, end in people),
    ]


def shuffled():
    """Pictures alone, with keys from 0 and the ids that they had."""
    order = [3, 6, 1, 5, 2, 4]
    return [(k, part(data_of(PEOPLE[i - 1], i, file_of(i)))) for k, i in enumerate(order)], order


def test_a_file_that_mxnet_wrote_is_read():
    """tests/reference/mxnet_records.py wrote it, and has MXNet read what this project writes."""
    pictures, expected = RecordPictures(mxnet_records.STORED), list(mxnet_records.contents())
    assert len(pictures) == len(expected)
    assert pictures.names == ("0", "1", "2", "3")
    for index, (picture, data, labels) in enumerate(expected):
        record = pictures.record(index)
        assert (record.data, record.labels.tolist()) == (data, labels)
        np.testing.assert_array_equal(pictures[index], picture)
    indexed = read_index(mxnet_records.STORED.with_suffix(".idx"))
    np.testing.assert_array_equal(index_of(mxnet_records.STORED), indexed)


@pytest.mark.parametrize("more", [(), (1.0,)], ids=["one label", "two labels"])
def test_pictures_and_people_of_a_file_with_a_header(tmp_path, more):
    pictures = RecordPictures(written(tmp_path, insightface(more)))
    assert len(pictures) == 6
    assert pictures.names == ("4", "9", "700")
    assert pictures.labels.dtype == np.int32
    np.testing.assert_array_equal(pictures.labels, [0, 0, 0, 1, 1, 2])
    assert pictures.shape == (6, 5, 3)
    for i in range(6):
        np.testing.assert_array_equal(pictures[i], decode(file_of(i + 1), ""))
        record = pictures.record(i)
        np.testing.assert_array_equal(record.labels, [PEOPLE[i], *more])
        assert (record.id, record.id2, record.data) == (i + 1, 0, file_of(i + 1))
    with pytest.raises(IndexError):
        pictures[6]


@pytest.mark.parametrize("first_key", [0, 40])
def test_a_file_without_a_header_is_all_pictures(tmp_path, first_key):
    records, order = shuffled()
    pictures = RecordPictures(written(tmp_path, [(first_key + key, data) for key, data in records]))
    np.testing.assert_array_equal([pictures.record(i).id for i in range(6)], order)
    numbers = [int(pictures.names[label]) for label in pictures.labels]
    np.testing.assert_array_equal(numbers, [PEOPLE[i - 1] for i in order])


def test_the_first_picture_may_have_two_labels_and_no_header(tmp_path):
    records = [(k, part(data_of(k, k, file_of(k), more=[0.5]))) for k in range(3)]
    pictures = RecordPictures(written(tmp_path, records))
    assert [float(pictures.record(k).labels[1]) for k in range(3)] == [0.5] * 3


def with_magic_at(*places):
    """A picture's file that holds the magic at these bytes, counted from its end; the PNG ends before."""
    tail = bytearray(64)
    for place in places:
        tail[place : place + 4] = MAGIC
    picture = file_of(1)
    return picture + bytes(-len(picture) % 4) + bytes(tail)


def split_by_hand(data):
    """The parts of a record between its aligned magics."""
    parts, begin = [], 0
    for place in range(0, len(data) - 3, 4):
        if data[place : place + 4] == MAGIC:
            parts.append(data[begin:place])
            begin = place + 4
    parts.append(data[begin:])
    kinds = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    return b"".join(part(data, kind) for data, kind in zip(parts, kinds, strict=True))


MAGICS = {"one": (8,), "two in a row": (8, 12), "three": (0, 20, 60), "unaligned": (9,), "at the end": (60,)}


@pytest.mark.parametrize("places", MAGICS.values(), ids=MAGICS)
def test_a_record_with_the_magic_in_it_is_joined_and_split(tmp_path, places):
    picture = with_magic_at(*places)
    data = data_of(5, 0, picture)
    by_hand = written(tmp_path, [(0, split_by_hand(data)), (1, part(data_of(6, 1, file_of(2))))])
    pictures = RecordPictures(by_hand)
    assert pictures.record(0).data == picture
    np.testing.assert_array_equal(pictures[0], decode(file_of(1), ""))
    assert pictures.names == ("5", "6")
    np.testing.assert_array_equal(index_of(by_hand), read_index(by_hand.with_suffix(".idx")))
    write_records(tmp_path / "ours.rec", [picture, file_of(2)], [5, 6], header=False)
    assert (tmp_path / "ours.rec").read_bytes() == by_hand.read_bytes()


def test_the_magic_may_be_in_a_records_head(tmp_path):
    """As an id, and as a second label."""
    magic = int.from_bytes(MAGIC, "little")
    (as_label,) = struct.unpack("<f", MAGIC)
    data = [data_of(3, magic, file_of(1)), data_of(2, 1, file_of(2), more=[as_label]), data_of(1, 2, file_of(3))]
    path = written(tmp_path, [(k, split_by_hand(d)) for k, d in enumerate(data)])
    assert path.read_bytes()[: 8 + 8] == part(data[0][:8], 1)
    pictures = RecordPictures(path)
    assert pictures.names == ("1", "2", "3")
    assert pictures.record(0).id == magic
    assert pictures.record(1).labels[1] == np.float32(as_label)
    keys, _ = index_of(path)
    np.testing.assert_array_equal(keys, [1, 2, magic])


def test_the_writer_makes_the_files_that_were_made_by_hand(tmp_path):
    by_hand = written(tmp_path, insightface(), "hand")
    ours = tmp_path / "ours.rec"
    write_records(ours, [file_of(k) for k in range(1, 7)], PEOPLE)
    assert ours.read_bytes() == by_hand.read_bytes()
    assert ours.with_suffix(".idx").read_bytes() == by_hand.with_suffix(".idx").read_bytes()
    aligned = written(tmp_path, insightface(more=(1.0,)), "aligned")
    write_records(ours, [file_of(k) for k in range(1, 7)], [[person, 1] for person in PEOPLE])
    assert ours.read_bytes() == aligned.read_bytes()


def test_arrays_are_written_and_read(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (4, 8, 7, 3), dtype=np.uint8)
    write_records(tmp_path / "a.rec", x, np.array([2, 0, 1, 2]), header=False, format="PNG")
    pictures = RecordPictures(str(tmp_path / "a.rec"))
    np.testing.assert_array_equal(np.stack([pictures[i] for i in range(4)]), x)
    np.testing.assert_array_equal(pictures.labels, [2, 0, 1, 2])
    write_records(tmp_path / "a.rec", pictures, pictures.labels, header=False)  # its own file: whole before renamed
    assert RecordPictures(tmp_path / "a.rec").record(3).data[:2] == b"\xff\xd8"


@pytest.mark.parametrize("kind", ["insightface", "shuffled"])
def test_a_lost_index_is_found_again(tmp_path, kind):
    records = insightface() if kind == "insightface" else [(i, data) for (_, data), i in zip(*shuffled(), strict=True)]
    path = written(tmp_path, records)
    index = path.with_suffix(".idx")
    expected, of_people = read_index(index), RecordPictures(path).labels
    index.unlink()
    np.testing.assert_array_equal(RecordPictures(path).labels, of_people)
    assert not index.exists()
    assert write_index(path) == index
    np.testing.assert_array_equal(read_index(index), expected)


def test_records_of_equal_ids_are_numbered(tmp_path):
    path = written(tmp_path, [(k, part(data_of(k, 7, file_of(k)))) for k in range(3)], index=False)
    np.testing.assert_array_equal(index_of(path)[0], [0, 1, 2])


def test_workers_and_threads_read_the_same(tmp_path):
    """Each process that it is pickled for opens the file anew; threads do not disturb one another."""
    records = [(k, part(data_of(k % 3, k, file_of(k)))) for k in range(20)]
    pictures = RecordPictures(written(tmp_path, records))
    expected = [decode(file_of(k), "") for k in range(20)]
    assert b"_file" not in pickle.dumps(pictures)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        read = list(threads.map(pictures.__getitem__, list(range(20)) * 10))
    np.testing.assert_array_equal(read, expected * 10)
    spawned = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawned) as processes:
        np.testing.assert_array_equal(list(processes.map(pictures.__getitem__, range(20), chunksize=20)), expected)
    twin = copy.deepcopy(pictures)
    file = pictures._file
    del pictures
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)
    np.testing.assert_array_equal(twin[19], expected[19])


FORKS = """
import os, sys
from faces.recordio import RecordPictures
pictures = RecordPictures(sys.argv[1])
expected = [pictures[i].tobytes() for i in range(len(pictures))]
forked = []
for _ in range(4):
    process = os.fork()
    if process == 0:
        right = all(pictures[i].tobytes() == data for _ in range(50) for i, data in enumerate(expected))
        os._exit(0 if right else 1)
    forked.append(process)
sys.exit(1 if any([os.waitpid(process, 0)[1] for process in forked]) else 0)
"""


def test_forked_processes_read_the_same(tmp_path):
    """They have one open file, and with it one position in it. Here JAX has threads, and must not be forked."""
    path = written(tmp_path, [(k, part(data_of(k % 3, k, file_of(k)))) for k in range(20)])
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", FORKS, str(path)], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_system_cannot_read_is_a_bad_file(tmp_path, monkeypatch):
    """A training ends in order on a bad file alone, and a disk may go while it runs."""
    path = written(tmp_path, insightface())
    pictures = RecordPictures(path)

    def fails(*_, **__):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", fails)
        with pytest.raises(BadFileError, match=rf"record 3, {at(3)}it cannot be read: Stale file handle"):
            pictures[2]
        with pytest.raises(BadFileError, match=r"train.rec, at byte 0: it cannot be read: Stale"):
            index_of(path)
    monkeypatch.setattr(recordio.mmap, "mmap", fails)
    with pytest.raises(BadFileError, match=r"train.rec, at byte 0: it cannot be mapped into memory: Stale"):
        RecordPictures(path)


def test_a_folder_stands_for_its_train_rec(tmp_path):
    path = written(tmp_path, insightface())
    assert RecordPictures(str(tmp_path)).path == path
    path.rename(tmp_path / "other.rec")
    with pytest.raises(BadFileError, match=rf"^{tmp_path}: expected a .rec file, or a folder with train.rec, came one"):
        RecordPictures(tmp_path)


def without(*lines):
    return lambda text: b"".join(line for i, line in enumerate(text.splitlines(True)) if i not in lines)


GAPS = {  # the lines that are lost, the number of the record that is missed there, and what comes in its place
    "the first": ([0], 0, "one at byte {1}"),
    "the first two": ([0, 1], 0, "one at byte {2}"),
    "in the middle": ([2], 2, "one at byte {3}"),
    "two": ([1, 4], 1, "one at byte {2}"),
    "the last": ([5], 5, "none, and the file goes on to byte {6}"),
    "the last three": ([3, 4, 5], 3, "none, and the file goes on to byte {6}"),
}


@pytest.mark.parametrize("is_split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("name", GAPS)
def test_an_index_that_has_lost_lines_is_refused(tmp_path, name, is_split):
    """Training on what is left of the pictures would go on without a word."""
    lost, missed, came = GAPS[name]
    picture = with_magic_at(8, 20) if is_split else file_of(1)
    records = [(k, split_by_hand(data_of(k, k, picture + bytes(4 * k)))) for k in range(6)]
    path = written(tmp_path, records)
    places = [f"{place:,}" for place in np.cumsum([0, *(len(data) for _, data in records)])]
    index = path.with_suffix(".idx")
    whole = index.read_bytes()
    index.write_bytes(without(*lost)(whole))
    words = rf"train.rec, at byte {places[missed]}: expected the next record that train.idx names, came "
    with pytest.raises(BadFileError, match=rf"{words}{came.format(*places)}\. .*write_index, or remove it"):
        RecordPictures(path)
    write_index(path)
    assert index.read_bytes() == whole
    assert len(RecordPictures(path)) == 6


def test_records_may_stand_in_another_order_than_their_keys(tmp_path):
    path = written(tmp_path, [(k, part(data_of(k, k, file_of(k)))) for k in (3, 0, 2, 1)])
    assert RecordPictures(path).names == ("0", "1", "2", "3")
    assert [RecordPictures(path).record(i).id for i in range(4)] == [0, 1, 2, 3]


def test_labels_of_more_records_than_are_read_at_once(tmp_path):
    labels = np.random.default_rng(0).integers(0, 50, 1000)
    data = [part(data_of(person, k, b"\x89PNG" * (k % 5 + 1))) for k, person in enumerate(labels)]
    path = written(tmp_path, list(enumerate(data)))
    keys, offsets = read_index(path.with_suffix(".idx"))
    with path.open("rb") as file:
        heads = recordio._heads(file.fileno(), path, keys, offsets, at_once=64)
    np.testing.assert_array_equal(heads.labels, labels)
    assert not heads.empty.any()
    np.testing.assert_array_equal(heads.ends, [*offsets[1:], path.stat().st_size])


SOUND = insightface()
MORE = 10, b"\0" * 12
OFFSETS = {int(key): int(offset) for key, offset in map(str.split, lines_of([*SOUND, MORE]))}


def damaged(change, key=3):
    """The file with the bytes of one record changed, its index as it was made."""

    def make(folder):
        path = written(folder, SOUND)
        content = bytearray(path.read_bytes())
        begin = OFFSETS[key]
        content[begin:] = change(bytes(content[begin:]))
        path.write_bytes(content)

    return make


def index_with(change):
    def make(folder):
        index = written(folder, SOUND).with_suffix(".idx")
        index.write_bytes(change(index.read_bytes()))

    return make


def replaced(key, data):
    return lambda folder: written(folder, [(k, data if k == key else d) for k, d in SOUND])


def with_property(text):
    def make(folder):
        written(folder, SOUND)
        (folder / "property").write_text(text)

    return make


def at(key):
    return f"at byte {OFFSETS[key]:,}: "


BAD = {
    "magic": (damaged(lambda b: b"\xff" + b[1:]), rf"train.rec, record 3, {at(3)}expected .* 0xced7230a, came 0xced72"),
    "cut head": (damaged(lambda b: b[:7], 9), rf"record 9, {at(9)}expected a record of at least 8 bytes, came 7"),
    "cut": (damaged(lambda b: b[:-2], 9), rf"record 9, {at(9)}expected 32 bytes of a record, came 30"),
    "short": (replaced(2, part(b"x" * 23)), rf"record 2, {at(2)}expected 24 bytes of labels at least, came 23"),
    "labels": (replaced(2, part(struct.pack("<IfQQ", 9, 0, 0, 0) + b"abcd")), "expected 60 bytes of labels .* came 28"),
    "all labels": (replaced(2, part(struct.pack("<IfQQ", 2**32 - 1, 0, 0, 0))), "expected 17,179,869,204 bytes"),
    "middle": (replaced(2, part(data_of(4, 2, file_of(2)), 2)), r"record's beginning \(kind 0 or 1\), came kind 2"),
    "no end": (replaced(2, part(data_of(4, 2, file_of(2)), 1)), r"a further part of .* \(kind 2 or 3\), came kind 0"),
    "another kind": (replaced(2, part(data_of(4, 2, file_of(2)), 5)), r"kind 0 or 1\), came kind 5"),
    "empty": (lambda folder: written(folder, SOUND).write_bytes(b""), "train.rec.* came 0 bytes"),
    "three bytes": (lambda folder: written(folder, SOUND).write_bytes(MAGIC[:3]), "32 bytes and more, came 3 bytes"),
    "three bytes, no index": (lambda f: written(f, [(1, MAGIC[:3])], index=False), "at least 8 bytes, came 3"),
    "empty, no index": (lambda folder: written(folder, [], index=False), "expected records, came 0 bytes"),
    "no index, cut": (
        lambda folder: written(folder, [*SOUND[:2], (3, SOUND[2][1][:50])], index=False),
        rf"train.rec, {at(3)}expected .* bytes of a record, came 42",
    ),
    "key is missing": (
        index_with(lambda text: text.replace(b"5\t", b"55\t")),
        rf"train.rec, record 0, {at(0)}it says .* keys 1 to 6, but there is none under 5. Is this the file's own index",
    ),
    "last key is missing": (
        index_with(lambda text: text.replace(b"6\t", b"66\t")),
        "keys 1 to 6, but there is none under 6",
    ),
    "picture is not in index": (index_with(without(4)), rf"rec, {at(5)}.* names, came one at byte {OFFSETS[6]:,}"),
    "header is not in index": (index_with(without(6)), rf"rec, {at(0)}.* names, came one at byte {OFFSETS[7]:,}"),
    "nor are people": (index_with(without(6, 7, 8, 9)), rf"rec, {at(0)}.* names, came none, and the file goes on"),
    "one record twice": (
        index_with(lambda text: text.replace(b"2\t%d" % OFFSETS[2], b"2\t0")),
        rf"train.rec, {at(2)}expected the next record that train.idx names, came one at byte 0\.",
    ),
    "more than records": (
        lambda folder: written(folder, [*SOUND, MORE]).with_suffix(".idx").write_text("".join(lines_of(SOUND))),
        rf"train.rec, {at(10)}.* names, came none, and the file goes on to byte {OFFSETS[10] + 12:,}",
    ),
    "no picture in it": (replaced(5, part(data_of(9, 5))), "but there is none under 5"),
    "more pictures": (replaced(0, part(data_of(6, 0, more=[9]))), "keys 1 to 5, but they go on to 6"),
    "no pictures": (lambda f: written(f, [(0, part(data_of(1, 0, more=[1])))]), "keys 1 to 0, but .* go on to 0"),
    "header's labels": (replaced(0, part(data_of(7, 0))), "expected two labels, .* came 1"),
    "header is NaN": (replaced(0, part(data_of(np.nan, 0, more=[1]))), "keys 1 to nan"),
    "past the end": (
        index_with(lambda text: text.replace(b"2\t", b"2\t9")),
        rf"record 2, at byte 9,{OFFSETS[2]}: expected a record of at least 8 bytes, came 0",
    ),
    "inside": (index_with(lambda text: text.replace(b"\n2\t", b"\n2\t1")), "record 2, .* expected a record, which"),
    "between words": (index_with(lambda text: text.replace(b"1\t0", b"1\t1")), "record 1, at byte 1: expected a recor"),
    "huge offset": (index_with(lambda text: text.replace(b"1\t0", b"1\t" + b"9" * 18)), "record 1, .* came 0"),
    "no number": (index_with(lambda text: text.replace(b"1\t0", b"one\t0")), "train.idx, at byte 0: .* came b'one.t0'"),
    "no number later": (index_with(lambda text: b"1\t0\n2\t1e3\n"), "idx, at byte 4: .* came b'2.t1e3'"),
    "negative": (index_with(lambda text: b"1\t0\n2\t-8\n"), "idx, at byte 4: expected lines of a key, a tab and an"),
    "one column": (index_with(lambda text: b"1\n2\n3\n4\n"), "idx, at byte 0: .* came b'1'"),
    "no line": (index_with(lambda text: b""), "idx, at byte 0: expected lines .* came b''"),
    "too large": (index_with(lambda text: b"1\t" + b"9" * 19), "idx, at byte 0: "),
    "twice": (
        index_with(lambda text: text.replace(b"\n", b"\r\n").replace(b"8\t", b"3\t0\r\n8\t")),
        rf"train.idx, at byte {8 + len(''.join(lines_of(SOUND)[:8]))}: expected every key once, came 3 twice",
    ),
    "negative label": (replaced(4, part(data_of(-1, 4, file_of(4)))), rf"record 4, {at(4)}.* to 16,777,215, came -1"),
    "half a label": (replaced(4, part(data_of(0.5, 4, file_of(4)))), "came 0.5. Labels are float32"),
    "label is NaN": (replaced(4, part(data_of(np.nan, 4, file_of(4)))), "came nan"),
    "label is infinite": (replaced(4, part(data_of(np.inf, 4, file_of(4)))), "came inf"),
    "large label": (replaced(4, part(data_of(2**24 + 1, 4, file_of(4)))), "from 0 to 16,777,215, came 16777216"),
    "undecodable": (replaced(1, part(data_of(4, 1, b"no picture"))), "rec, record 1, at byte 0: expected a picture"),
    "property": (with_property("about 700 people"), "property, at byte 0: expected people, height and width"),
    "property's size": (with_property("701,112,112\n"), "property.* 112 x 112; they are 6 x 5"),
    "property's people": (with_property("700,6,5"), "property.* 700 people, numbered from 0; there is a number 700"),
    "empty without header": (
        lambda folder: written(folder, [(k, part(data_of(1, k, file_of(k) if k != 3 else b""))) for k in (1, 2, 3)]),
        "rec, record 3, at byte .*: expected a picture, as no header",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_such_file_is_refused_with_file_and_offset(tmp_path, name):
    make, words = BAD[name]
    make(tmp_path)
    with pytest.raises(BadFileError, match=words):
        RecordPictures(tmp_path / "train.rec")


def test_a_property_that_agrees_is_no_matter(tmp_path):
    with_property("701,6,5\n")(tmp_path)
    assert len(RecordPictures(tmp_path / "train.rec")) == 6


def test_a_label_just_below_the_limit_is_read(tmp_path):
    path = written(tmp_path, [(k, part(data_of(2**24 - 2 + k, k, file_of(k)))) for k in range(2)])
    assert RecordPictures(path).names == ("16777214", "16777215")


def test_a_rounded_header_of_very_many_pictures_is_understood():
    keys = np.arange(1, 2**24 + 6)
    recordio._refuse_other_keys(keys, np.array([len(keys) + 1, 2**25], np.float32), "x", 0)
    with pytest.raises(BadFileError, match="there is none under 16777222"):
        recordio._refuse_other_keys(keys, np.array([len(keys) + 3, 2**25], np.float32), "x", 0)


def test_a_later_picture_that_is_wrong_is_named_when_it_is_read(tmp_path):
    sizes = {1: (6, 5), 2: (6, 6), 3: (6, 5)}
    data = [(k, part(data_of(0, k, file_of(k, size)))) for k, size in sizes.items()]
    pictures = RecordPictures(written(tmp_path, [*data, (4, part(data_of(0, 4, b"junk")))]))
    assert pictures[2].shape == (6, 5, 3)
    offset = len(data[0][1])
    with pytest.raises(
        BadFileError, match=rf"rec, record 2, at byte {offset}: expected shape \(6, 5, 3\), .*\(6, 6, 3\)"
    ):
        pictures[1]
    with pytest.raises(BadFileError, match=r"record 4, at byte .*: expected a picture"):
        pictures[3]


def test_random_damage_is_never_anything_but_a_bad_file(tmp_path):
    path = written(tmp_path, insightface())
    content, index = path.read_bytes(), path.with_suffix(".idx").read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damage, text = bytearray(content), bytearray(index)
        target = damage if random.random() < 0.8 else text
        for place in random.integers(len(target), size=random.integers(1, 4)):
            target[place] = random.integers(256)
        path.write_bytes(damage[: random.integers(len(damage))] if random.random() < 0.2 else damage)
        path.with_suffix(".idx").write_bytes(text)
        try:
            pictures = RecordPictures(path)
            assert all(pictures[i].shape == pictures.shape for i in range(len(pictures)))
        except BadFileError:
            refused += 1
    assert refused > 30


def first_then(error):
    yield file_of(1)
    raise error


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    path = written(tmp_path, insightface())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ZeroDivisionError):
        write_records(path, first_then(ZeroDivisionError()), [0, 0])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_writer_that_is_killed_leaves_no_half_file(tmp_path):
    script = """
import sys, time
from faces.recordio import RecordWriter
with RecordWriter(sys.argv[1]) as writer:
    for _ in range(100):
        writer.add(b"picture" * 1000, 0)
    print("half", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "train.rec")]
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        assert not (tmp_path / "train.rec").exists()
        process.send_signal(signal.SIGKILL)
    assert {file.name for file in tmp_path.iterdir()} == {"train.rec.part", "train.idx.part"}
    write_records(tmp_path / "train.rec", [file_of(1)], [0])
    assert {file.name for file in tmp_path.iterdir()} == {"train.rec", "train.idx"}
    assert len(RecordPictures(tmp_path / "train.rec")) == 1


def add(folder, data, labels, **options):
    write_records(folder / "x.rec", [data] * len(labels), labels, **options)


REFUSED = {
    "large": (lambda f: add(f, b"x", [2**24]), r"label: .* from 0 to 16,777,215, came 16777216"),
    "negative": (lambda f: add(f, b"x", [-1]), "label: .* came -1"),
    "half": (lambda f: add(f, b"x", [0.5]), "label: .* came 0.5"),
    "NaN": (lambda f: add(f, b"x", [np.nan]), "label: .* came nan"),
    "no label": (lambda f: add(f, b"x", [[]]), "label: .* came"),
    "no data": (lambda f: add(f, b"", [0]), "data: expected the bytes of a picture"),
    "apart": (lambda f: add(f, b"x", [3, 4, 3]), "label: 3 came before, .* header=False"),
    "none": (lambda f: add(f, b"x", []), "expected at least one picture"),
    "fewer labels": (lambda f: write_records(f / "x.rec", [b"x"] * 3, [0, 1]), "labels: .* pictures, from number 2"),
    "more labels": (lambda f: write_records(f / "x.rec", [b"x"], [0, 1]), "labels: .* more labels, from number 1"),
    "name": (lambda f: RecordWriter(f / "x.idx"), "path: expected a name that ends in .rec, came 'x.idx'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, name):
    call, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


def test_keys_that_the_header_could_not_hold_are_refused(tmp_path):
    with RecordWriter(tmp_path / "x.rec") as writer:
        writer.add(b"x", 0)
        writer._next = 2**24 - 1
        with pytest.raises(ValueError, match="keys to 16,777,216 only"):
            writer.add(b"x", 0)


def test_data_that_no_length_can_say_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(recordio, "LENGTHS", 100)
    add(tmp_path, bytes(99 - 24), [0], header=False)
    with pytest.raises(ValueError, match="data: expected less than 100 bytes, with its labels, came 100"):
        add(tmp_path, bytes(100 - 24), [0], header=False)
