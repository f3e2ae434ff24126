"""Are these pictures of one person? Asked of an embedding that `face_embedding.py --export` wrote.

    python examples/face_embedding.py --out run --export run/embedding.zip
    python examples/compare_faces.py --embedding run/embedding.zip one.png another.png third.png

Prints the cosine of every two pictures, and what follows from it at the threshold of a false accept rate. Pictures must
be cut out as those of the training were; `--resize` only brings them to size.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from exported_embedding import Embedding
from faces.images import read_image
from faces.pictures import BadFileError


def picture(path: Path, shape: tuple[int, int, int], resize: bool) -> np.ndarray:
    """uint8 of `shape`. Raises ValueError for another size, unless it may be resized, and for other proportions."""
    height, width, channels = shape
    read = read_image(path, grey=channels == 1)
    if read.shape[:2] == (height, width):
        return read
    same_proportions = abs(read.shape[0] * width - read.shape[1] * height) < max(height, width)
    if not (resize and same_proportions):
        allowed = ", or give --resize" if same_proportions else ""
        raise ValueError(
            f"{path}: expected {height} x {width} pixels, came {read.shape[0]} x {read.shape[1]}. Cut the face out as "
            f"the pictures of the training were (faces.alignment){allowed}."
        )
    image = Image.fromarray(read[..., 0] if channels == 1 else read)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).reshape(shape)


def rate_and_threshold(embedding: Embedding, far: float | None) -> tuple[float, float]:
    """The rate asked for, or else the smallest that was measured, and its threshold. Raises ValueError."""
    if not embedding.thresholds:
        raise ValueError("--far: the embedding has no threshold at all: it was exported with too few impostor pairs")
    if far is None:
        far = min(embedding.thresholds)
    if far not in embedding.thresholds:
        rates = ", ".join(f"{rate:g}" for rate in embedding.thresholds)
        raise ValueError(f"--far: expected one of those measured, {rates}; came {far:g}")
    return far, embedding.thresholds[far]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="two or more pictures of a face")
    parser.add_argument(
        "--embedding", type=Path, default=Path("face_embedding_run/embedding.zip"), help="(default: %(default)s)"
    )
    parser.add_argument("--far", type=float, help="false accept rate (default: the smallest of the file)")
    parser.add_argument("--resize", action="store_true", help="bring pictures to the size that is expected")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    options = parser.parse_args(arguments)
    if len(options.images) < 2:
        parser.error("expected at least two pictures")
    try:
        if not options.embedding.exists():
            raise ValueError(f"there is no {options.embedding}; face_embedding.py --export FILE writes one")
        embedding = Embedding(options.embedding)
        far, least = rate_and_threshold(embedding, options.far)
        pictures = np.stack([picture(path, embedding.shape, options.resize) for path in options.images])
    except (BadFileError, ValueError, OSError) as error:
        parser.error(str(error))
    features = np.asarray(embedding(pictures))
    cosines = features @ features.T
    measured_on = embedding.about.get("measured_on", "pairs that the file does not name")
    if options.json:
        told = {
            "images": list(map(str, options.images)),
            "cosines": cosines.tolist(),
            "far": far,
            "threshold": least,
            "measured_on": measured_on,
        }
        print(json.dumps(told | {"same": (cosines >= least).tolist()}, indent=1))
        return 0
    print(matrix(cosines, options.images))
    print(f"\nThresholds are from {measured_on}, and hold for pictures like those. At a false accept rate of")
    print(f"{far:g} two pictures are of one person from a cosine of {least:.3f} on:")
    for first, second in zip(*np.triu_indices(len(cosines), k=1), strict=True):
        cosine = cosines[first, second]
        found = "one person" if cosine >= least else "two people"
        print(f"{options.images[first]}  {options.images[second]}  {cosine:.3f}  {found}")
    return 0


def matrix(cosines: np.ndarray, images: list[Path]) -> str:
    names = [f"{place} {path.name}" for place, path in enumerate(images, start=1)]
    width = max(map(len, names))
    head = " " * width + "".join(f"{place:>8}" for place in range(1, len(names) + 1))
    rows = (
        f"{name:<{width}}{''.join(f'{cosine:8.3f}' for cosine in row)}"
        for name, row in zip(names, cosines, strict=True)
    )
    return "\n".join([head, *rows])


if __name__ == "__main__":
    sys.exit(main())
