"""A picture as the bytes of a file: what is read back, and what is refused."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from faces.images import MOST_PIXELS, decode, encode, in_channels, read_image
from faces.pictures import BadFileError


def picture(height=9, width=7, channels=3, seed=0):
    """Smooth, as JPEG likes them, and different in every channel."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / 10
    waves = [np.sin(rows * random.uniform(1, 2) + columns + random.uniform(0, 6)) for _ in range(channels)]
    return (127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def png(height, width, *, pixels=b"", depth=8, kind=2):
    """Written from the definition of PNG."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def saved(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_channels_are_red_green_and_blue():
    data = png(1, 2, pixels=b"\0" + bytes([255, 10, 20, 30, 40, 255]))
    np.testing.assert_array_equal(decode(data, "x"), [[[255, 10, 20], [30, 40, 255]]])
    weights = np.array([0.299, 0.587, 0.114])
    grey = decode(data, "x", grey=True)
    assert grey.shape == (1, 2, 1)
    np.testing.assert_allclose(grey[..., 0], decode(data, "x") @ weights, atol=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_is_exact_and_a_jpeg_is_near(channels):
    x = picture(40, 31, channels)
    colour = np.broadcast_to(x, (40, 31, 3))
    np.testing.assert_array_equal(decode(encode(x, "PNG"), "x"), colour)
    jpeg = decode(encode(x), "x").astype(int)
    assert 0 < np.abs(jpeg - colour).mean() < 3
    assert np.abs(decode(encode(x, quality=30), "x") - colour.astype(int)).mean() > np.abs(jpeg - colour).mean()


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_in_memory_have_the_channels_that_decoding_would_give_them(channels, grey):
    pictures = np.stack([picture(40, 31, channels, seed) for seed in range(3)])
    decoded = np.stack([decode(encode(one, "PNG"), "x", grey=grey) for one in pictures])
    np.testing.assert_array_equal(in_channels(pictures, grey=grey), decoded)


def test_a_picture_stands_as_its_exif_says():
    x = picture(5, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # its first row is the right-hand side
    data = saved(Image.fromarray(x), exif=exif)
    np.testing.assert_array_equal(decode(data, "x"), np.rot90(x, -1))


def test_opaque_pictures_of_other_modes_are_read():
    x = picture()
    opaque = np.concatenate([x, np.full((9, 7, 1), 255, np.uint8)], axis=2)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(opaque)), "x"), x)
    palette = Image.fromarray(x).quantize(16)
    np.testing.assert_array_equal(decode(saved(palette), "x"), np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(decode(b"P5 2 1 255\n\x07\xf0", "x")[0, :, 1], [7, 240])


def jpeg_cut_in_half():
    data = encode(picture(64, 64))
    return data[: len(data) // 2]


BAD = {
    "empty": (b"", "0 bytes, but there is none; they begin with b''"),
    "text": (b"<html>404</html>", "16 bytes, but there is none; they begin with b'<html>40'"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "there is none"),
    "cut head": (encode(picture(), "PNG")[:20], "there is none|Truncated"),
    "cut": (encode(picture(64, 64), "PNG")[:-900], "truncated"),
    "cut jpeg": (jpeg_cut_in_half(), "(?i)truncated"),
    "damaged": (encode(picture(64, 64), "PNG").replace(b"IDAT", b"IDAT\x55", 1), "."),
    "vast": (png(8192, MOST_PIXELS // 8192 + 1, pixels=b"\0"), "it claims 8192 x 8193 pixels, more than 67,108,864"),
    "vaster": (png(2**30, 2**30, pixels=b"\0"), "pixels"),
    "transparent": (saved(Image.new("RGBA", (3, 3), (9, 9, 9, 254))), "transparent somewhere"),
    "transparent palette": (saved(Image.new("P", (3, 3)), transparency=0), "transparent somewhere"),
    "sixteen bits": (png(1, 1, pixels=bytes(3), depth=16, kind=0), "more than eight bits"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_refused_with_file_and_offset(name):
    data, words = BAD[name]
    with pytest.raises(BadFileError, match=words) as caught:
        decode(data, "faces/7.bin", 1234)
    assert str(caught.value).startswith("faces/7.bin, at byte 1,234: expected a picture")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_file_is_read_and_named(tmp_path):
    x = picture()
    (tmp_path / "x.png").write_bytes(encode(x, "PNG"))
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), x)
    (tmp_path / "y.png").write_bytes(b"no")
    with pytest.raises(BadFileError, match=r"y\.png: expected a picture"):
        read_image(str(tmp_path / "y.png"))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((picture() / np.float32(255),), TypeError, "picture: expected uint8, tones from 0 to 255, came float32"),
        ((picture()[..., 0],), ValueError, r"picture: expected shape \[H, W, 3\] .* came \(9, 7\)"),
        ((picture(channels=4),), ValueError, r"came \(9, 7, 4\)"),
        ((picture()[:0],), ValueError, r"came \(0, 7, 3\)"),
        ((picture(), "EPS"), ValueError, "format: expected 'JPEG' or 'PNG', came 'EPS'"),
        ((picture(), "JPEG", 101), ValueError, "quality: expected a number from 1 to 100, came 101"),
    ],
)
def test_what_cannot_be_a_file_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        encode(*arguments)
