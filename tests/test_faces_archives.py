"""Archives of arrays: what is read, and what is refused before any of it is unpacked."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from faces.archives import MOST_BYTES, is_archive, read_arrays

ARRAYS = {"pictures": np.arange(12, dtype=np.uint8).reshape(3, 4), "name": np.array("x")}


def packed(compression=zipfile.ZIP_DEFLATED, **arrays):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for key, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array)
            archive.writestr(f"{key}.npy", member.getvalue())
    return file


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_they_were_written(tmp_path, write):
    write(tmp_path / "x.npz", **ARRAYS)
    with open(tmp_path / "x.npz", "rb") as file:
        read = read_arrays(file, ("name", "pairs", "pictures"), MOST_BYTES)
    assert read.keys() == ARRAYS.keys()
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(read[key], array)
        assert read[key].dtype == array.dtype


def test_an_archive_is_known_by_its_first_bytes(tmp_path):
    np.savez(tmp_path / "x.npz", **ARRAYS)
    (tmp_path / "x.npz").rename(tmp_path / "x.bin")
    assert is_archive(tmp_path / "x.bin")
    for content in (b"", b"P", b"\x80\x02"):
        (tmp_path / "y.npz").write_bytes(content)
        assert not is_archive(tmp_path / "y.npz")


def test_what_would_fill_the_memory_is_refused_before_it_is_unpacked():
    """64 MB of zeros in 64 kB; and such a part of each of four members."""
    zeros = np.zeros(2**26, np.uint8)
    bomb = packed(pictures=zeros)
    assert len(bomb.getvalue()) < 2**17
    parts = packed(**dict.fromkeys("abcd", zeros[: 2**24]))
    tracemalloc.start()
    try:
        for file, keys in ((bomb, ["pictures"]), (parts, "abcd")):
            with pytest.raises(ValueError, match=r"expected at most 60,000,000 bytes unpacked, came 67,10"):
                read_arrays(file, keys, most=6 * 10**7)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert read_arrays(bomb, ["pictures"], most=7 * 10**7)["pictures"].shape == (2**26,)


def claims(size):
    """An archive whose directory says that a member of 64 MB unpacks to `size` bytes."""
    content = bytearray(packed(pictures=np.zeros(2**26, np.uint8)).getvalue())
    place = content.rindex(b"PK\x01\x02") + 24
    content[place : place + 4] = size.to_bytes(4, "little")
    return io.BytesIO(content)


def test_a_size_that_is_claimed_is_kept():
    file = claims(1000)
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, zipfile.BadZipFile)):
            read_arrays(file, ["pictures"], MOST_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 2**26 + 2**20  # set aside for the array, of which little is read
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packing_that_numpy_does_not_use_is_refused(compression):
    with pytest.raises(ValueError, match="expected members stored or deflated, as NumPy writes them"):
        read_arrays(packed(compression, **ARRAYS), ARRAYS, MOST_BYTES)


def test_other_keys_are_refused():
    with pytest.raises(ValueError, match="expected the keys pictures, pairs; came more, name too"):
        read_arrays(packed(**ARRAYS, more=np.ones(1)), ["pictures", "pairs"], MOST_BYTES)


def test_an_object_is_refused():
    file = io.BytesIO()
    np.savez(file, name=np.array([print], object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_arrays(file, ["name"], MOST_BYTES)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x93NUMPY\1\0", b"\x80\x02]."])
def test_what_is_no_archive_is_refused(content):
    with pytest.raises(zipfile.BadZipFile):
        read_arrays(io.BytesIO(content), ["name"], MOST_BYTES)
