"""Files that have their names only once they are whole: what is cut off by a crash or a loss of power has another."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path`, to be written to; the file there is called `path` at the end, or deleted at an exception.

    Whatever was called `path` before stays until then.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # else the name could reach the disk before what it names
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
