"""Verification packs: every way in which they were pickled, and pickles that are refused without being run."""

import copyreg
import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faces import packs
from faces.images import decode, encode
from faces.packs import load_pairs, main, read_pack, save_pairs, write_pack
from faces.pictures import BadFileError, Pairs

RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (6, 7, 5, 3), dtype=np.uint8)
FILES = [encode(picture, "PNG") for picture in PICTURES]
SAME = [True, False, True]


def python2(files, same, protocol):
    """As Python 2 pickles lists of `str` and `bool`."""
    if protocol == 0:
        strings = b"".join(b"S" + repr(file).encode()[1:] + b"\na" for file in files)
        return b"((l" + strings + b"(l" + b"".join(b"I%02d\na" % flag for flag in same) + b"t."
    strings = b"".join(
        b"U" + bytes([len(f)]) + f if len(f) < 256 else b"T" + struct.pack("<i", len(f)) + f for f in files
    )
    if protocol == 1:
        return b"(](" + strings + b"e](" + b"".join(b"I%02d\n" % flag for flag in same) + b"et."
    return b"\x80\x02](" + strings + b"e](" + b"".join(b"\x88" if flag else b"\x89" for flag in same) + b"e\x86."


FLAVOURS = {
    "bytes": lambda: list(FILES),
    "arrays": lambda: [np.frombuffer(file, np.uint8).copy() for file in FILES],
    "columns": lambda: [np.frombuffer(file, np.uint8).reshape(-1, 1) for file in FILES],
    "tuple": lambda: tuple(FILES),
    "mixed": lambda: [FILES[0], *(np.frombuffer(file, np.uint8) for file in FILES[1:])],
}
FLAGS = {
    "bool": SAME,
    "numpy's": [np.bool_(flag) for flag in SAME],
    "int": [int(flag) for flag in SAME],
    "int64": [np.int64(flag) for flag in SAME],
    "an array": np.array(SAME),
    "an array of int": np.array(SAME, ">i4"),
    "a tuple": tuple(SAME),
}


def check(path, pictures=PICTURES):
    pairs = read_pack(path)
    assert pairs.name == path.stem
    np.testing.assert_array_equal(pairs.pictures, pictures)
    np.testing.assert_array_equal(pairs.pairs, [[0, 1], [2, 3], [4, 5]])
    assert pairs.same.dtype == bool
    np.testing.assert_array_equal(pairs.same, SAME)
    assert pairs.fold is None


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_flavour_and_protocol_is_read(tmp_path, flavour, protocol):
    path = tmp_path / "lfw.bin"
    for flags in FLAGS.values():
        content = pickle.dumps((FLAVOURS[flavour](), flags), protocol)
        path.write_bytes(content)
        check(path)
        if protocol < 4:  # names are lines of text
            path.write_bytes(content.replace(b"numpy._core.", b"numpy.core."))
            check(path)


@pytest.mark.parametrize("protocol", range(3))
def test_packs_of_python_2_are_read(tmp_path, protocol):
    content = python2(FILES, SAME, protocol)
    assert pickle.loads(content, encoding="bytes") == (FILES, SAME)
    (tmp_path / "cfp_fp.bin").write_bytes(content)
    check(tmp_path / "cfp_fp.bin")


@pytest.mark.parametrize("arrays", [False, True])
def test_what_is_written_is_read_and_also_by_others(tmp_path, arrays):
    pairs = Pairs("x", PICTURES, np.array([[5, 0], [1, 1], [0, 5]]), np.array([False, True, False]))
    path = tmp_path / "x.bin"
    write_pack(path, pairs, format="PNG", arrays=arrays)
    files, same = pickle.loads(path.read_bytes())  # as InsightFace does
    assert same == [False, True, False]
    np.testing.assert_array_equal([decode(bytes(file), "") for file in files], PICTURES[[5, 0, 1, 1, 0, 5]])
    read = read_pack(path)
    np.testing.assert_array_equal(read.pictures, PICTURES[[5, 0, 1, 1, 0, 5]])
    np.testing.assert_array_equal(read.same, pairs.same)
    write_pack(path, read, quality=90)
    assert pickle.loads(path.read_bytes())[0][0][:2] == b"\xff\xd8"
    assert read_pack(path, grey=True).pictures.shape == (6, 7, 5, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["x.bin"]


class Asks:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def dotted(module, name, *arguments):
    """A call of a name with dots in it, which only this opcode reaches."""
    strings = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name, *map(str, arguments))]
    return b"\x80\x04" + strings[0] + strings[1] + b"\x93(" + b"".join(strings[2:]) + b"tR."


LIVE = {
    **{
        f"os.system, protocol {n}": lambda m, n=n: pickle.dumps(([Asks(os.system, f"touch {m}"), *FILES[1:]], SAME), n)
        for n in range(6)
    },
    "eval": lambda m: pickle.dumps((FILES, [Asks(eval, f"open({str(m)!r}, 'w').close()"), False, True])),
    "exec": lambda m: pickle.dumps((FILES, Asks(exec, f"open({str(m)!r}, 'w').close()")), 2),
    "a process": lambda m: pickle.dumps(Asks(subprocess.getoutput, f"touch {m}")),
    "numpy": lambda m: pickle.dumps(Asks(np.memmap, str(m), "u1", "w+", 0, 1), 0),
    "getattr": lambda m: b"".join((
        b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'mkdir'\ntR(S'", bytes(m), b"'\ntR.")),
    "inst": lambda m: b"(S'" + bytes(m) + b"'\nios\nmkdir\n.",
    "obj": lambda m: b"(cos\nmkdir\nS'" + bytes(m) + b"'\no.",
    "dots": lambda m: dotted("os", "path.os.mkdir", m),
    "state": lambda m: pickle.dumps(Asks(__import__("functools").partial, os.mkdir, str(m)))[:-1] + b")R.",
}  # fmt: skip


@pytest.mark.parametrize("name", LIVE)
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(tmp_path, name):
    marker, path = tmp_path / "marker", tmp_path / "lfw.bin"
    path.write_bytes(LIVE[name](marker))
    pickle.loads(path.read_bytes(), encoding="ASCII")
    assert marker.exists()  # it is live
    marker.rmdir() if marker.is_dir() else marker.unlink()
    with pytest.raises(BadFileError, match=r"lfw\.bin, at byte .* it asks for .*, which no pack needs"):
        read_pack(path)
    assert not marker.exists()


def test_a_name_that_was_registered_by_number_is_refused(tmp_path):
    """Where it was used before, no unpickler is asked for it again."""
    path, marker = tmp_path / "lfw.bin", tmp_path / "marker"
    path.write_bytes(b"\x80\x02\x82\xf0(S'" + bytes(marker) + b"'\ntR.")
    copyreg.add_extension("os", "mkdir", 0xF0)
    try:
        pickle.loads(path.read_bytes())
        marker.rmdir()
        with pytest.raises(BadFileError, match="it asks for a name by a number"):
            read_pack(path)
    finally:
        copyreg.remove_extension("os", "mkdir", 0xF0)
        copyreg.clear_extension_cache()
    assert not marker.exists()


DEEP = b")" + b"\x85" * 200_000
"""A tuple of a tuple of a tuple."""
WIDE = b")" + b"2\x86" * 40
"""A tuple of two tuples of two tuples, each the same: small in memory, and vast when it is written out."""
HARD_ON_PYTHON = {
    "hash of a key": (b"}" + DEEP + b"Ns.", "it asks for a dictionary"),
    "hash of keys": (b"}(" + DEEP + b"Nu.", "it asks for a dictionary"),
    "hash of a pair": (b"(" + DEEP + b"Nd.", "it asks for a dictionary"),
    "hash in a set": (b"\x8f(" + DEEP + b"\x90.", "it asks for a set"),
    "hash in a frozen set": (b"(" + DEEP + b"\x91.", "it asks for a set"),
    "a call of it": (DEEP + b"NR.", "it asks for a call of what is no name"),
    "a call of what is vast": (WIDE + b"NR.", "it asks for a call of what is no name"),
    "a call with it": (b"cnumpy\ndtype\n" + DEEP + b"R.", "a list and a list; came another"),
    "a call with what is vast": (b"cnumpy\ndtype\nX\x09\x00\x00\x00argumentsR.", "it asks for a call of what is no na"),
    "an instance of it": (WIDE + b")\x81.", "it asks for an instance"),
    "the whole": (DEEP + b".", "a list and a list; came another"),
    "lists": (b"]" * 100_000 + b"a" * 99_999 + b".", "a list and a list; came another"),
    "a list of itself": (b"]q\x00h\x00ah\x00h\x00\x86.", "for pair 0, .* came list"),
    "pictures": (b"](" + DEEP + b"Ne](\x88e\x86.", "picture 0, at byte .*: expected the bytes of a file: came tuple"),
    "who is the same": (b"](NNe](" + DEEP + b"e\x86.", "for pair 0, .* came tuple"),
    "a shape": (b"](NNe](cnumpy.core.numeric\n_frombuffer\n(C\x01\x01cnumpy\ndtype\nU\x02b1\x85R(NU\x01|tb("
                + DEEP + b"tU\x01CtRe\x86.", "for pair 0, .* another shape"),
    "calls": (b"cnumpy\ndtype\n)R" + b"q\x000cnumpy\ndtype\nh\x00\x85R" * 50_000 + b".", "a list; came another"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARD_ON_PYTHON)
def test_what_is_deep_or_vast_ends_neither_the_process_nor_the_memory(tmp_path, name):
    opcodes, words = HARD_ON_PYTHON[name]
    (tmp_path / "lfw.bin").write_bytes(b"\x80\x02" + opcodes)
    tracemalloc.start()
    try:
        with pytest.raises(BadFileError, match=f"(?s){words}") as caught:
            read_pack(tmp_path / "lfw.bin")
        assert tracemalloc.get_traced_memory()[1] < 10**8
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 500


def test_calls_of_the_names_that_are_known_are_not_made(tmp_path):
    """A codec that takes long, an array that fills the memory, a class in a dtype's place."""
    path = tmp_path / "lfw.bin"
    for call in (
        dotted("_codecs", "encode", "x" * 100, "idna"),
        b"cnumpy\nndarray\n(I1000000000000\ntR.",
        b"cnumpy\ndtype\n(cnumpy\nndarray\ntR.",
    ):
        path.write_bytes(b"((l" + call[2 if call[:1] == b"\x80" else 0 : -1] + b"aS'x'\na(lI01\nat.")
        with pytest.raises(BadFileError, match=r"picture 0, at byte .*: expected the bytes of a file: came a call"):
            read_pack(path)


CLAIMS = {
    "a place among notes": b"(S'x'\nr\xff\xff\xff\xff" + FILES[0],
    "bytes": b"\x8e" + struct.pack("<Q", 2**40) + FILES[0],
    "text": b"\x8d" + struct.pack("<Q", 2**40) + FILES[0],
    "an array of bytes": b"\x96" + struct.pack("<Q", 2**40) + FILES[0],
    "a frame": b"\x95" + struct.pack("<Q", 2**40) + FILES[0],
    "a number": b"\x8b" + struct.pack("<i", 2**31 - 1) + FILES[0],
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_small_file_fills_no_memory(tmp_path, name):
    path = tmp_path / "lfw.bin"
    path.write_bytes(b"\x80\x05" + CLAIMS[name])
    tracemalloc.start()
    try:
        with pytest.raises(BadFileError):
            read_pack(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_picture_that_is_named_many_times_is_held_once(tmp_path):
    """A million bytes of text, which become bytes again at each of two thousand names."""
    text = b"\x8d" + struct.pack("<Q", 2 * 10**6) + b"\xc3\xbf" * 10**6 + b"q\x00"
    call = b"c_codecs\nencode\nq\x01(h\x00X\x06\x00\x00\x00latin1tR"
    again = b"h\x01(h\x00X\x06\x00\x00\x00latin1tR"
    same = b"](" + b"\x88" * 1000 + b"e"
    (tmp_path / "x.bin").write_bytes(b"\x80\x02](" + text + b"0" + call + again * 1999 + b"e" + same + b"\x86.")
    tracemalloc.start()
    try:
        with pytest.raises(BadFileError, match=r"picture 0, at byte 13: expected a picture .* in 1,000,000 b"):
            read_pack(tmp_path / "x.bin")
        assert tracemalloc.get_traced_memory()[1] < 3 * 10**7
    finally:
        tracemalloc.stop()


def test_there_is_a_limit_on_files_and_on_pictures(tmp_path, monkeypatch):
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps(([FILES[0]] * 1000, [True] * 500)))
    assert len(read_pack(path).pictures) == 1000
    monkeypatch.setattr(packs, "MOST_BYTES", 1000 * 7 * 5 * 3 - 1)
    with pytest.raises(BadFileError, match="at most 104,999 bytes of pictures, came 1,000 of"):
        read_pack(path)
    monkeypatch.setattr(packs, "MOST_BYTES", 99)
    with pytest.raises(BadFileError, match=r"lfw\.bin: expected at most 99 bytes, came"):
        read_pack(path)


def of(files, same, protocol=4):
    return pickle.dumps((files, same), protocol)


SMALL = encode(PICTURES[0][1:], "PNG")
END = "at byte {end}: "
UNKNOWN = "This byte is where the pickle ends: the place of what is wrong is not known"
BAD = {
    "empty": (b"", r"at byte 0: expected a pickle of \(pictures, same\), but it ends"),
    "cut": (of(FILES, SAME)[:-300], "at byte .*, but it ends"),
    "cut at the end": (of(FILES, SAME)[:-1], "at byte .*, but it ends"),
    "cut python 2": (python2(FILES, SAME, 2)[:-400], "at byte .*: expected a pickle"),
    "no pickle": (FILES[0], "at byte .*: expected a pickle"),
    "more": (of(FILES, SAME) + b"xyz", "at byte .*: expected the end, as the pickle has ended, came 3 bytes more"),
    "persistent": (b"Pabc\n.", "at byte .*: expected a pickle .* persistent"),
    "buffer": (b"\x80\x05\x97.", "expected a pickle .* out-of-band"),
    "another thing": (pickle.dumps([FILES]), f"{END}.*a list and a list; came another"),
    "a dictionary": (pickle.dumps({"bins": FILES}), "at byte .*: .*it asks for a dictionary, which no pack needs"),
    "a dictionary of text": (pickle.dumps({"bins": FILES}, 0), "it asks for a dictionary, which no pack needs"),
    "a set": (pickle.dumps({3}), "it asks for a set, which no pack needs"),
    "a frozen set": (pickle.dumps((FILES, frozenset(SAME))), "it asks for a set, which no pack needs"),
    "three": (pickle.dumps((FILES, SAME, 1)), "a list and a list; came another"),
    "pictures are a number": (pickle.dumps((3, SAME)), "a list and a list; came another"),
    "odd": (of(FILES[:5], SAME), f"lfw.bin, {END}expected two pictures .*, came 5, an odd number. {UNKNOWN}"),
    "fewer pictures": (of(FILES[:4], SAME), f"{END}.*came 4 pictures and 3 entries of same"),
    "fewer entries": (of(FILES, SAME[:2]), f"{END}.*came 6 pictures and 2 entries of same"),
    "none": (of([], []), f"{END}expected at least one pair, came none. {UNKNOWN}"),
    "not 0 or 1": (of(FILES, [1, 0, 2]), f"{END}.*for pair 2, whether it is .*: came another number. {UNKNOWN}"),
    "vast": (of(FILES, [1, 10**5000, 0]), "for pair 1, .* came another number"),
    "array not 0 or 1": (of(FILES, np.array([1, 0, -1])), "for pair 2, .* came another number"),
    "half": (of(FILES, [1, 0.5, 0]), "for pair 1, .* came float"),
    "reals": (of(FILES, np.ones(3)), "who is the same: came an array of neither booleans nor integers"),
    "None": (of(FILES, [True, None, True]), f"{END}.*for pair 1, .* came NoneType. {UNKNOWN}"),
    "bytes": (of(FILES, [True, b"yes", True]), "for pair 1, .* came bytes"),
    "no list": (of(FILES, 3), f"{END}expected a list of who is the same: came int. {UNKNOWN}"),
    "no picture at all": (of([*FILES[:5], None], SAME), f"picture 5, {END}.* of a file: came NoneType. {UNKNOWN}"),
    "reals as picture": (of([np.ones(9), *FILES[1:]], SAME), "picture 0, at .* neither booleans nor integers"),
    "wide array": (of([np.ones(9, int), *FILES[1:]], SAME), "picture 0, at .* came an array of int64"),
    "a picture of numbers": (of([*PICTURES], SAME), "picture 0, at .* came 105 numbers that are to have another"),
    "empty picture": (of([*FILES[:4], b"", FILES[5]], SAME), "picture 4, at byte .*: expected a picture .* in 0 bytes"),
    "sizes": (of([*FILES[:5], SMALL], SAME), r"picture 5, at byte .*: expected shape \(7, 5, 3\), .* \(6, 5, 3\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_pack_is_refused_with_file_and_place(tmp_path, name):
    content, words = BAD[name]
    (tmp_path / "lfw.bin").write_bytes(content)
    words = words.replace("{end}", f"{len(content):,}")
    with pytest.raises(BadFileError, match=f"(?s){words}") as caught:
        read_pack(tmp_path / "lfw.bin")
    assert str(caught.value).startswith(str(tmp_path / "lfw.bin"))


def bmp(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "BMP")
    return file.getvalue()


def arrays(files):
    return [np.frombuffer(file, np.uint8).copy() for file in files]


PLAIN = [bmp(picture) for picture in PICTURES]
# Some stand in the pack before, in other pictures and between them; and each with another of the same length.
WRONG = {
    "junk": (b"no picture", b"No picture"),
    "two bytes": (b"C\0", b"D\0"),
    "a letter": (b"a", b"c"),
    "a zero": (b"\0", b"1"),
    "an earlier one's beginning": (PLAIN[2][:40], b"C" + PLAIN[2][1:40]),
    "another size": (bmp(PICTURES[4][1:]), b"C" + bmp(PICTURES[4][1:])[1:]),
}
WRITTEN = {
    **{f"bytes, protocol {n}": lambda files, n=n: of(files, SAME, n) for n in range(6)},
    **{f"arrays, protocol {n}": lambda files, n=n: of(arrays(files), SAME, n) for n in range(6)},
    **{f"Python 2, protocol {n}": lambda files, n=n: python2(files, SAME, n) for n in range(3)},
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("way", WRITTEN)
def test_the_byte_of_a_wrong_picture_is_where_it_stands(tmp_path, way, wrong):
    """There the pickle first differs from that of another picture."""
    content, other = (WRITTEN[way]([*PLAIN[:4], file, PLAIN[5]]) for file in WRONG[wrong])
    place = next(place for place, (one, another) in enumerate(zip(content, other, strict=True)) if one != another)
    (tmp_path / "lfw.bin").write_bytes(content)
    with pytest.raises(BadFileError, match=f"picture 4, at byte {place:,}: "):
        read_pack(tmp_path / "lfw.bin")


ENTRIES = {
    "text": ([*FILES[:5], "no bytes"], SAME, b"no bytes", "bytes of a file: came str"),
    "numbers": ([*FILES[:5], np.arange(50, 59)], SAME, np.arange(50, 59).tobytes(), "came an array of int64"),
    "a flag": (FILES, [True, np.int64(2**40 + 3), False], struct.pack("<q", 2**40 + 3), "for pair 1, "),
    "flags": (FILES, np.array([1, 0, 2**40 + 3]), struct.pack("<qqq", 1, 0, 2**40 + 3), "for pair 2, "),
    "text for flags": (FILES, "true, false, true", b"true, false", "who is the same: came str"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_the_byte_of_another_entry_is_where_its_data_stands(tmp_path, name):
    files, same, data, words = ENTRIES[name]
    content = of(files, same)
    (tmp_path / "lfw.bin").write_bytes(content)
    with pytest.raises(BadFileError, match=f"at byte {content.index(data):,}: .*{words}"):
        read_pack(tmp_path / "lfw.bin")


def test_random_damage_is_never_anything_but_a_bad_file(tmp_path):
    contents = [of(FILES, SAME), of(FLAVOURS["arrays"](), FLAGS["numpy's"], 2), python2(FILES, SAME, 0)]
    random = np.random.default_rng(0)
    refused = 0
    for number in range(200):
        damage = bytearray(contents[number % len(contents)])
        # Between the pictures too, of which there is little.
        places = np.flatnonzero(np.frombuffer(damage, np.uint8) < 128) if number % 2 else np.arange(len(damage))
        for place in random.choice(places, random.integers(1, 4)):
            damage[place] = random.integers(256)
        (tmp_path / "x.bin").write_bytes(damage[: random.integers(len(damage))] if number % 5 == 0 else damage)
        try:
            assert read_pack(tmp_path / "x.bin").pictures.shape[0] == 6
        except BadFileError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("fold", [None, np.array([0, 0, 1])])
def test_pairs_are_kept_in_an_archive(tmp_path, fold):
    pairs = Pairs("agedb_30", PICTURES, np.array([[0, 5], [1, 4], [2, 2]]), np.array(SAME), fold)
    save_pairs(tmp_path / "a.npz", pairs)
    loaded = load_pairs(tmp_path / "a.npz")
    assert loaded.name == "agedb_30"
    for ours, theirs in zip(loaded[1:4], pairs[1:4], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (loaded.fold is None) if fold is None else np.array_equal(loaded.fold, fold)


def test_a_pack_becomes_an_archive_on_the_command_line(tmp_path, capsys):
    (tmp_path / "lfw.bin").write_bytes(of(FILES, SAME))
    examples = Path(packs.__file__).parents[1]
    command = [sys.executable, "-m", "faces.packs", str(tmp_path / "lfw.bin"), str(tmp_path / "lfw.npz")]
    done = subprocess.run(command, cwd=examples, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'lfw.npz'}: 3 pairs, 2 of them of one person.\n"
    np.testing.assert_array_equal(load_pairs(tmp_path / "lfw.npz").pictures, PICTURES)
    assert main([str(tmp_path / "lfw.bin"), str(tmp_path / "grey.npz"), "--grey"]) == 0
    assert load_pairs(tmp_path / "grey.npz").pictures.shape == (6, 7, 5, 1)


def test_the_command_line_says_what_is_wrong_and_leaves_nothing(tmp_path, capsys):
    (tmp_path / "bad.bin").write_bytes(of(FILES[:5], SAME))
    (tmp_path / "lfw.bin").write_bytes(of(FILES, SAME))
    for pack, archive, words in (
        ("bad.bin", "out.npz", f"error: {tmp_path / 'bad.bin'}, at byte "),
        ("missing.bin", "out.npz", "missing.bin"),
        ("lfw.bin", "missing/out.npz", "missing/out.npz"),
    ):
        assert main([str(tmp_path / pack), str(tmp_path / archive)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert words in err
    assert {file.name for file in tmp_path.iterdir()} == {"bad.bin", "lfw.bin"}


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("made_grey", [False, True])
def test_an_archive_is_read_where_a_pack_is(tmp_path, grey, made_grey):
    """As the pack itself would be, but for the colours that `--grey` has left out; and under the name of its file."""
    (tmp_path / "lfw.bin").write_bytes(of(FILES, SAME))
    read = read_pack(tmp_path / "lfw.bin", grey=made_grey)
    save_pairs(tmp_path / "other.npz", read._replace(fold=np.array([0, 1, 1])))
    pairs = read_pack(tmp_path / "other.npz", grey=grey)
    assert pairs.name == "other"
    for ours, theirs in zip(pairs[2:], (read.pairs, SAME, [0, 1, 1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert pairs.pictures.shape == (6, 7, 5, 1 if grey else 3)
    expected = read_pack(tmp_path / "lfw.bin", grey=grey or made_grey).pictures
    np.testing.assert_array_equal(pairs.pictures, np.broadcast_to(expected, pairs.pictures.shape))


def test_an_archive_has_the_limit_of_a_pack(tmp_path, monkeypatch):
    save_pairs(tmp_path / "x.npz", Pairs("x", 0 * PICTURES, np.array([[0, 1]]), np.array([True])))
    monkeypatch.setattr(packs, "MOST_BYTES", 1000)
    with pytest.raises(BadFileError, match=r"x\.npz: expected an archive .*at most 1,000 bytes unpacked, came 1,"):
        read_pack(tmp_path / "x.npz")


GOOD = {"name": np.array("x"), "pictures": PICTURES, "pairs": np.array([[0, 1]]), "same": np.array([True])}
CUTS = {
    "cut": lambda data: data[:-100],
    "damaged": lambda data: data.replace(PICTURES.tobytes(), PICTURES[::-1].tobytes()),
    "empty": lambda data: b"",
    "no archive": lambda data: b"\x93NUMPY" + data[6:],
}
ARCHIVES = {
    **dict.fromkeys(CUTS, GOOD),
    "no pictures": {name: value for name, value in GOOD.items() if name != "pictures"},
    "more": GOOD | {"more": np.ones(1)},
    "an object": GOOD | {"same": np.array([os.system], object)},
    "reals": GOOD | {"pictures": PICTURES / 255},
    "two channels": GOOD | {"pictures": PICTURES[..., :2]},
    "no pixels": GOOD | {"pictures": PICTURES[:, :0]},
    "beyond": GOOD | {"pairs": np.array([[0, 6]])},
    "before": GOOD | {"pairs": np.array([[-1, 0]])},
    "fewer": GOOD | {"same": np.ones(0, bool)},
    "no folds": GOOD | {"fold": np.ones(2, int)},
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_what_is_no_such_archive_is_refused(tmp_path, name):
    path = tmp_path / "x.npz"
    np.savez(path, **ARCHIVES[name])
    if name in CUTS:
        path.write_bytes(CUTS[name](path.read_bytes()))
    with pytest.raises(BadFileError, match=r"x\.npz: expected an archive that save_pairs wrote, but"):
        load_pairs(path)


UNSOUND = {
    "none": ({"pairs": np.zeros((0, 2), int), "same": np.zeros(0, bool)}, "pairs.pairs: .* of one pair at least"),
    "beyond": ({"pairs": np.array([[0, 6]])}, "pairs.pairs: expected numbers of pictures, 0 to 5, came 0 to 6"),
    "before": ({"pairs": np.array([[0, -1]])}, "pairs.pairs: .* came -1 to 0"),
    "triples": ({"pairs": np.array([[0, 1, 2]])}, "pairs.pairs: expected integers, .* came int64, "),
    "fewer": ({"same": np.ones(0, bool)}, r"pairs.same: expected bool, \[M\] = \(1,\), came bool, \(0,\)"),
    "numbers": ({"same": np.ones(1, int)}, "pairs.same: expected bool, .* came int64"),
    "reals": ({"pictures": PICTURES / 255}, "pairs.pictures: expected uint8, .* came float64"),
    "channels": ({"pictures": PICTURES[..., :2]}, r"pairs.pictures: .*1 or 3.* came uint8, \(6, 7, 5, 2\)"),
    "folds": ({"fold": np.ones(2, int)}, r"pairs.fold: expected None or \[M\] = \(1,\), came \(2,\)"),
}


@pytest.mark.parametrize("write", [write_pack, save_pairs])
@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_pairs_are_refused(tmp_path, name, write):
    change, words = UNSOUND[name]
    pairs = Pairs("x", PICTURES, np.array([[0, 1]]), np.array([True]))._replace(**change)
    with pytest.raises(ValueError, match=words):
        write(tmp_path / "x", pairs)
    assert not list(tmp_path.iterdir())


def test_a_failure_on_the_way_leaves_the_file_that_was_there(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"before")
    with pytest.raises(ValueError, match="protocol"):
        write_pack(tmp_path / "x.bin", Pairs("x", PICTURES, np.array([[0, 1]]), np.array([True])), protocol=99)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("x.bin", b"before")]
