"""A picture in the bytes of a file, and as an array."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from faces.pictures import BadFileError

# A small file may claim any size, and is believed when memory is set aside for it.
MOST_PIXELS = 2**26
# Others that Pillow knows run programs, or were never used for photographs.
FORMATS = "JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP"
SUFFIXES = tuple(sorted(suffix for suffix, format in Image.registered_extensions().items() if format in FORMATS))
MODES = "1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"


def decode(data: bytes, file: Path | str, offset: int | None = None, *, grey: bool = False) -> np.ndarray:
    """The picture in `data`, uint8 `[H, W, 3]` (RGB), or `[H, W, 1]` where `grey`.

    It stands as its EXIF orientation says, as OpenCV and MXNet have it. Of an animation it is the first picture.
    `file` and `offset` say where the data is from, for the error.

    Raises:
      BadFileError: the data is no picture, or not all of one; it has more than `MOST_PIXELS`; it is transparent
        somewhere, and so has no colour there; its tones are of more than eight bits, and Pillow would clip them.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _refuse(image)
            image = ImageOps.exif_transpose(image)
            return _opaque(image, "L" if grey else "RGB")
    except Exception as error:  # of a damaged file Pillow raises anything
        reason = str(error).removesuffix(".") or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"there is none; they begin with {bytes(data[:8])!r}"  # Pillow's words name an object in memory
        words = f"expected a picture ({', '.join(FORMATS)}) in {len(data):,} bytes, but {reason}."
        raise BadFileError(file, words, offset) from error


def _refuse(image: Image.Image) -> None:
    height, width = image.height, image.width
    if height * width > MOST_PIXELS:
        raise ValueError(f"it claims {height} x {width} pixels, more than {MOST_PIXELS:,}")
    if image.mode not in MODES:
        raise ValueError(f"its tones are of more than eight bits (mode {image.mode}); convert it first")


def _opaque(image: Image.Image, mode: str) -> np.ndarray:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise ValueError("it is transparent somewhere; give it a background first")
    array = np.array(image.convert(mode))
    return array if array.ndim == 3 else array[..., None]


def in_channels(pictures: np.ndarray, *, grey: bool) -> np.ndarray:
    """Pictures, uint8 `[N, H, W, 1 or 3]`, with as many channels as `decode` gives them, and in its tones."""
    if pictures.shape[3] == (1 if grey else 3):
        return pictures
    if grey:
        return np.stack([np.array(Image.fromarray(picture).convert("L"))[..., None] for picture in pictures])
    return np.repeat(pictures, 3, axis=3)


def encode(picture: np.ndarray, format: str = "JPEG", quality: int = 95) -> bytes:
    """The file, 'JPEG' or 'PNG', of a picture: uint8 `[H, W, 3]` (RGB) or `[H, W, 1]`.

    A PNG holds it to the bit, and takes no notice of `quality`, from 1 to 100.

    Raises:
      TypeError: the picture is not uint8.
      ValueError: its shape is another, or there is no such format or quality.
    """
    if format not in ("JPEG", "PNG"):
        raise ValueError(f"format: expected 'JPEG' or 'PNG', came {format!r}.")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality: expected a number from 1 to 100, came {quality!r}.")
    if picture.dtype != np.uint8:
        raise TypeError(f"picture: expected uint8, tones from 0 to 255, came {picture.dtype}.")
    if picture.ndim != 3 or picture.shape[2] not in (1, 3) or picture.size == 0:
        raise ValueError(f"picture: expected shape [H, W, 3] or [H, W, 1], came {picture.shape}.")
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    file = io.BytesIO()
    image.save(file, format, **({"quality": quality} if format == "JPEG" else {}))
    return file.getvalue()


def read_image(path: Path | str, *, grey: bool = False) -> np.ndarray:
    """The picture in a file, as `decode` has it; raises `BadFileError`."""
    return decode(Path(path).read_bytes(), path, grey=grey)
