"""One file that holds an embedding, read by a process that knows nothing else, and the command that compares faces."""

import json
import os
import pathlib
import tempfile
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

import compare_faces
import exported_embedding
from faces.images import encode

SHAPE = (6, 5, 1)
THRESHOLDS = {0.1: 0.25, 0.01: 0.75}
PICTURES = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), np.uint8)
WEIGHTS = np.random.default_rng(1).normal(size=(30, 8)).astype(np.float32)


def embed(pictures):
    tones = pictures.reshape(pictures.shape[0], -1).astype(jnp.float32) / jnp.float32(255)
    features = (tones - jnp.float32(0.5)) @ WEIGHTS
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def by_hand(pictures):
    features = (pictures.reshape(len(pictures), -1) / 255 - 0.5) @ WEIGHTS.astype(np.float64)
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "embedding.zip"
    apart = exported_embedding.write(path, embed, PICTURES, THRESHOLDS, loss="arcface", measured_on="six pairs")
    assert apart <= exported_embedding.ROUNDING
    return path


def test_a_fresh_process_finds_the_same_features_for_any_number_of_pictures(file):
    embedding = exported_embedding.Embedding(file)
    assert embedding.thresholds == THRESHOLDS
    assert embedding.about["loss"] == "arcface"
    for count in (1, 4):
        np.testing.assert_allclose(embedding(PICTURES[:count]), by_hand(PICTURES[:count]), atol=1e-5)
    np.testing.assert_allclose(exported_embedding.in_a_fresh_process(file, PICTURES), by_hand(PICTURES), atol=1e-5)
    assert {path.name for path in file.parent.iterdir()} == {"embedding.zip"}


def test_it_is_lowered_for_every_platform(file):
    from jax import export

    with zipfile.ZipFile(file) as archive:
        function = export.deserialize(bytearray(archive.read(exported_embedding.FUNCTION)))
    assert function.platforms == ("cpu", "cuda", "tpu")


def test_other_pictures_and_other_files_are_refused(file, tmp_path):
    embedding = exported_embedding.Embedding(file)
    for wrong in (PICTURES[..., 0], PICTURES.astype(np.float32), PICTURES[:0], [[0]]):
        with pytest.raises(ValueError, match=r"pictures: expected uint8 \[N, 6, 5, 1\], N at least 1; came"):
            embedding(wrong)
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(ValueError, match=r"text\.zip is no exported embedding"):
        exported_embedding.Embedding(tmp_path / "text.zip")


ABOUT = {"format": 1, "shape": SHAPE, "thresholds": {"0.1": 0.5}, "versions": {"jax": "0.4.1"}}


@pytest.mark.parametrize(
    ("about", "words"),
    [(ABOUT | {"format": 2}, "expected format 1, came 2"), ({}, "KeyError: 'shape'"), ([], "TypeError"),
     (ABOUT | {"shape": [1, 2]}, "ValueError: not enough"), (ABOUT | {"thresholds": 3}, "AttributeError"),
     (ABOUT, "cannot read what JAX 0.4.1 wrote; export it anew")],
)  # fmt: skip
def test_what_a_file_lacks_is_said(about, words, tmp_path):
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
        archive.writestr("about.json", json.dumps(about))
        archive.writestr("embedding.jax", b"cut off")
    with pytest.raises(ValueError, match=rf"(?s)e\.zip.*{words}"):
        exported_embedding.Embedding(tmp_path / "e.zip")


def test_a_file_that_finds_other_features_gets_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(exported_embedding, "in_a_fresh_process", lambda path, pictures: by_hand(pictures) + 1e-3)
    with pytest.raises(exported_embedding.DifferentError, match=r"differ by 1\.0e-03; it was not written"):
        exported_embedding.write(tmp_path / "e.zip", embed, PICTURES, THRESHOLDS)
    assert not list(tmp_path.iterdir())


def test_the_fresh_process_has_what_is_installed_and_nothing_of_the_examples(tmp_path, monkeypatch):
    """It runs this very file under another name, which reports what it can import."""
    probe = "import importlib.util as u, sys, numpy as np\nnames = 'faces', 'face_training', 'jax', 'by_path'\n"
    probe += "np.save(sys.argv[3], [u.find_spec(name) is not None for name in names])\n"
    folder = pathlib.Path(exported_embedding.__file__).parent
    (tmp_path / "by_path-1.0.dist-info").mkdir()
    (tmp_path / "by_path.py").touch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(folder), str(tmp_path)]))
    with tempfile.NamedTemporaryFile("w", suffix=".py", dir=folder) as beside:
        beside.write(probe)
        beside.flush()
        monkeypatch.setattr(exported_embedding, "__file__", beside.name)
        found = exported_embedding.in_a_fresh_process(pathlib.Path("any"), PICTURES)
    assert found.tolist() == [False, False, True, True]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for index, picture in enumerate([*PICTURES[:2], PICTURES[0]]):
        paths.append(folder / f"{index}.png")
        paths[-1].write_bytes(encode(picture, "PNG"))
    (folder / "wide.png").write_bytes(encode(np.repeat(PICTURES[0], 2, 1), "PNG"))
    (folder / "large.png").write_bytes(encode(np.repeat(np.repeat(PICTURES[0], 2, 0), 2, 1), "PNG"))
    return folder


def told(capsys, file, *arguments):
    assert compare_faces.main(["--embedding", str(file), *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_faces_are_compared(file, images, capsys):
    names = [images / f"{index}.png" for index in range(3)]
    expected = by_hand(PICTURES[[0, 1, 0]]) @ by_hand(PICTURES[[0, 1, 0]]).T
    printed = told(capsys, file, *names)
    assert "Thresholds are from six pairs" in printed
    assert f"{names[0]}  {names[2]}  1.000  one person" in printed
    assert f"{names[0]}  {names[1]}  {expected[0, 1]:.3f}  two people" in printed
    for row, line in zip(expected, printed.splitlines()[1:4], strict=True):
        np.testing.assert_allclose([float(number) for number in line.split()[2:]], row, atol=6e-4)
    assert "At a false accept rate of\n0.01 two pictures are of one person from a cosine of 0.750 on" in printed
    answer = json.loads(told(capsys, file, *names, "--json", "--far", "0.1"))
    np.testing.assert_allclose(answer["cosines"], expected, atol=1e-5)
    assert answer["threshold"] == 0.25
    assert answer["measured_on"] == "six pairs"
    assert answer["same"] == (expected >= 0.25).tolist()
    halved = json.loads(told(capsys, file, names[0], images / "large.png", "--resize", "--json"))
    assert halved["cosines"][0][1] > 0.8


def test_the_smallest_rate_of_the_file_is_taken_where_none_is_asked_for(images, tmp_path, capsys):
    """Of LFW's 500 impostor pairs there is one rate alone."""
    exported_embedding.write(tmp_path / "lfw.zip", embed, PICTURES, {0.1: 0.5}, measured_on="lfw-dev-test")
    names = images / "0.png", images / "2.png"
    assert "At a false accept rate of\n0.1 two pictures are" in told(capsys, tmp_path / "lfw.zip", *names)
    answer = json.loads(told(capsys, tmp_path / "lfw.zip", *names, "--json"))
    assert (answer["far"], answer["threshold"]) == (0.1, 0.5)


@pytest.mark.parametrize(
    ("more", "words"),
    [(["0.png"], "at least two pictures"), (["0.png", "large.png"], "came 12 x 10. Cut the face out"),
     (["0.png", "1.png", "--far", "0.5"], "one of those measured, 0.1, 0.01; came 0.5"),
     (["0.png", "wide.png", "--resize"], "came 6 x 10. Cut the face out as the pictures of the training were "),
     (["0.png", "none.png"], "none.png")],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(more, words, file, images, capsys):
    with pytest.raises(SystemExit):
        compare_faces.main(
            ["--embedding", str(file), *(str(images / word) if word.endswith("png") else word for word in more)]
        )
    assert words in capsys.readouterr().err


def test_without_an_embedding_the_command_that_writes_one_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare_faces.main(["--embedding", str(tmp_path / "none.zip"), "a.png", "b.png"])
    assert "none.zip; face_embedding.py --export FILE writes one" in capsys.readouterr().err
