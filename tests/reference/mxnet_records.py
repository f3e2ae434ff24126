"""A RecordIO file that MXNet wrote, as InsightFace's tool calls it, which tests/test_faces_recordio.py reads.

MXNet is not developed any more; 1.9.1 runs with Python 3.11 and an older NumPy. Write tests/reference/mxnet_records.rec
and .idx, beside this script:

    pip install mxnet==1.9.1 "numpy<1.24" pillow && python tests/reference/mxnet_records.py

Read with MXNet what `examples/faces/recordio.py` writes of the same pictures, exit status 1 where they differ:

    python tests/reference/mxnet_records.py --check
"""

import argparse
import pathlib
import struct
import sys
import tempfile
import zlib

import numpy as np

STORED = pathlib.Path(__file__).with_suffix(".rec")
EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
MAGIC = struct.pack("<I", 0xCED7230A)
PICTURES = [3, 1, 4, 2]
"""Of each person."""


def png(picture):
    """Of an RGB picture; stored and not compressed, so that no version of zlib matters."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = picture.shape
    rows = b"".join(b"\0" + row.tobytes() for row in picture)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(rows, 0),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts.items())


def contents():
    """(picture, bytes of its file, labels) of every picture. Some have the magic number, at all places modulo four."""
    random = np.random.default_rng(0)
    for person, count in enumerate(PICTURES):
        for place in range(count):
            picture = random.integers(0, 256, (6, 5, 3), dtype=np.uint8)
            behind = b"".join(b"\1" * gap + MAGIC for gap in range(person + place))
            yield picture, png(picture) + behind, [float(person)] + [0.5] * (place == 2)


def write_with_mxnet(path):
    from mxnet import recordio

    file = recordio.MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "w")

    def write(key, labels, data=b""):
        label = labels[0] if len(labels) == 1 else labels
        file.write_idx(key, recordio.pack(recordio.IRHeader(0, label, key, 0), data))

    for key, (_, data, labels) in enumerate(contents(), start=1):
        write(key, labels, data)
    ends = np.cumsum([1, *PICTURES])
    for person in range(len(PICTURES)):
        write(int(ends[-1]) + person, [float(ends[person]), float(ends[person + 1])])
    write(0, [float(ends[-1]), float(ends[-1] + len(PICTURES))])
    file.close()


def read_with_mxnet(path):
    """(bytes, labels) of every picture, by key and then again in the order of the file."""
    from mxnet import recordio

    file = recordio.MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "r")
    header, _ = recordio.unpack(file.read_idx(0))
    by_key = [recordio.unpack(file.read_idx(key)) for key in range(1, int(header.label[0]))]
    in_order, file = [], recordio.MXRecordIO(str(path), "r")
    while (record := file.read()) is not None:
        in_order.append(recordio.unpack(record))
    with_data = [record for record in in_order if record[1]]
    return [[(data, np.ravel(head.label).tolist()) for head, data in records] for records in (by_key, with_data)]


def check():
    sys.path.insert(0, str(EXAMPLES))
    from faces.recordio import RecordWriter

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "ours.rec"
        with RecordWriter(path) as writer:
            for _, data, labels in contents():
                writer.add(data, labels)
        expected = [(data, labels) for _, data, labels in contents()]
        return all(found == expected for found in read_with_mxnet(path))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="read with MXNet what this project writes")
    if not parser.parse_args().check:
        write_with_mxnet(STORED)
        return 0
    agrees = check()
    print("MXNet reads what was written." if agrees else "MXNet reads something else.")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
