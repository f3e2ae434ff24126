"""The figure of features on the circle: its files, its margins, and a run that stops, goes on and draws."""

import gzip
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import feature_circle
import margin_softmax as ms
from mnist_files import read_idx, read_mnist

pytestmark = pytest.mark.usefixtures("as_users_have_it")

SIDE, COUNT, TESTED = 8, 128, 40


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def made_up():
    random = np.random.default_rng(0)
    sets = {}
    for part, count in (("train", COUNT), ("t10k", TESTED)):
        sets[f"{part}-images-idx3-ubyte"] = random.integers(0, 256, (count, SIDE, SIDE), np.uint8)
        sets[f"{part}-labels-idx1-ubyte"] = np.arange(count, dtype=np.uint8) % 10
    return sets


def written(folder, *, zipped=(), **changed):
    """The four files in a folder, some of them compressed, some with other bytes."""
    for name, array in made_up().items():
        content = changed.get(name.replace("-", "_"), idx(array))
        if content is not None:
            packed = name in zipped
            (folder / f"{name}.gz" if packed else folder / name).write_bytes(
                gzip.compress(content) if packed else content
            )
    return folder


@pytest.mark.parametrize("zipped", [(), tuple(made_up())])
def test_mnist_is_read_plain_and_compressed(tmp_path, zipped):
    digits = read_mnist(written(tmp_path, zipped=zipped))
    for ours, array in zip(digits, made_up().values(), strict=True):
        np.testing.assert_array_equal(ours, array)
    assert [part.dtype for part in digits] == [np.uint8, np.int32] * 2


LABELS, PICTURES = (made_up()[name] for name in ("t10k-labels-idx1-ubyte", "t10k-images-idx3-ubyte"))
BAD = {
    "missing": ({"t10k_labels_idx1_ubyte": None}, "expected a file t10k-labels-idx1-ubyte or .*four files"),
    "empty": ({"t10k_labels_idx1_ubyte": b""}, "t10k-labels-idx1-ubyte, byte 0: expected 8 bytes of header"),
    "magic": ({"train_images_idx3_ubyte": b"\x89PNG" + bytes(99)}, "byte 0: expected 00 00 08 03, .* came 89 50 4e 47"),
    "swapped": ({"t10k_images_idx3_ubyte": idx(LABELS) + bytes(9)}, "00 00 08 03, .* pictures, came 00 00 08 01"),
    "reals": ({"t10k_labels_idx1_ubyte": b"\0\0\x0d\x01" + bytes(9)}, "expected 00 00 08 01, .* came 00 00 0d 01"),
    "cut": ({"t10k_images_idx3_ubyte": idx(PICTURES)[:-5]}, "byte 2571: expected 2576 bytes in all.* came 2571"),
    "longer": ({"t10k_labels_idx1_ubyte": idx(LABELS) + b"\0"}, "byte 48: expected 48 bytes in all.* came 49"),
    "none": ({"t10k_images_idx3_ubyte": idx(PICTURES[:0])}, r"byte 4: expected a length above 0, .* \(0, 8, 8\)"),
    "counts": ({"t10k_labels_idx1_ubyte": idx(LABELS[:-1])}, "expected 40 labels, .* came 39"),
    "not a digit": ({"t10k_labels_idx1_ubyte": idx(np.where(LABELS == 4, np.uint8(11), LABELS))},
                    "byte 12: expected a digit from 0 to 9, came 11. 4 of 40"),
    "sizes": ({"t10k_images_idx3_ubyte": idx(PICTURES[:, 1:])}, r"of one size, came \(8, 8\) .*\(7, 8\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_not_mnist_are_refused(name, tmp_path):
    changed, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        read_mnist(written(tmp_path, **changed))


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-9], lambda c: b"no gzip" + c, lambda c: c[:12] + b"\xff" * 9 + c[21:]]
)
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    path = tmp_path / "labels.gz"
    path.write_bytes(damage(gzip.compress(idx(LABELS))))
    with pytest.raises(ValueError, match=r"labels\.gz: expected a complete gzip file"):
        read_idx(path, axes=1)


def test_scikit_learn_s_digits_are_divided_once_and_for_all():
    digits = feature_circle.load_digits("digits")
    assert [len(part) for part in digits] == [1348, 1348, 449, 449]
    assert (digits.pictures.min(), digits.pictures.max()) == (0, 255)
    assert set(digits.test_labels.tolist()) == set(range(10))
    for ours, again in zip(digits, feature_circle.load_digits("digits"), strict=True):
        np.testing.assert_array_equal(ours, again)


@pytest.mark.parametrize("source", ["mnist", "mnist:", "digit", "cifar:x"])
def test_other_data_are_refused(source, capsys):
    with pytest.raises(SystemExit):
        feature_circle.main(["--data", source])
    assert "expected digits or mnist:FOLDER" in capsys.readouterr().err


SCALE = feature_circle.SCALE
BY_NAME = {
    ("am_softmax", 0.2, 0.25): ms.am_softmax(0.0, SCALE),
    ("am_softmax", 0.2, 0.5): ms.am_softmax(0.1, SCALE),
    ("am_softmax", 0.2, 1.0): ms.am_softmax(0.2, SCALE),
    ("arcface", 0.5, 1.0): ms.arcface(0.5, SCALE),
    ("l_softmax", 4, 0.0): ms.l_softmax(4, blend=1000.0),
    ("a_softmax", 3, 1.0): ms.a_softmax(3, blend=1000 / 7**5),
}


@pytest.mark.parametrize("panel", BY_NAME, ids=str)
def test_panels_are_the_margins_that_they_name(panel):
    ours, expected = feature_circle.margin_at(*panel), BY_NAME[panel]
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for number, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(number, other, rtol=1e-5)


WITHOUT_A_MARGIN = {
    ("l_softmax", 1, 1.0): lambda x, w, c: x * w * c,
    ("a_softmax", 1, 0.5): lambda x, w, c: x * c,
    ("am_softmax", 0.0, 1.0): lambda x, w, c: SCALE * c,
}


@pytest.mark.parametrize("panel", WITHOUT_A_MARGIN, ids=str)
def test_the_first_column_has_no_margin(panel):
    x, w = np.random.default_rng(0).normal(size=(2, 12, 2))
    logits = ms.margin_logits(np.float32(x), np.float32(w), jnp.arange(12), feature_circle.margin_at(*panel))
    lengths = np.linalg.norm(x, axis=1)[:, None], np.linalg.norm(w, axis=1)
    expected = WITHOUT_A_MARGIN[panel](*lengths, x @ w.T / (lengths[0] * lengths[1]))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_every_loss_has_its_panel():
    of = {
        family: [p.margin for p in feature_circle.PANELS if p.family == family]
        for _, family, _ in feature_circle.PANELS
    }
    assert of["l_softmax"] == of["a_softmax"] == [1, 2, 3, 4]
    assert {"am_softmax", "arcface"} <= set(of)


def test_accuracy_and_angle_are_those_of_the_features():
    x = jnp.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.2]])
    w = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    labels = jnp.array([0, 1, 1])
    cosine = feature_circle.measured(feature_circle.Panel("", "arcface", 0.5), x, w, labels)
    assert (cosine.accuracy, cosine.degrees) == (1.0, pytest.approx(np.degrees(np.arctan(1 / 1.2)) / 3, rel=1e-5))
    linear = feature_circle.measured(feature_circle.Panel("", "l_softmax", 1), x, w, labels)
    assert linear.accuracy == pytest.approx(2 / 3)  # the longer row wins the third


def test_a_run_draws_goes_on_where_it_was_and_compiles_once_a_family(tmp_path, monkeypatch, capsys):
    panels = [p for p in feature_circle.PANELS if p.family == "am_softmax"]
    traced = []
    margin_at = feature_circle.margin_at
    monkeypatch.setattr(feature_circle, "PANELS", panels)
    monkeypatch.setattr(feature_circle, "WIDTHS", (4,))
    monkeypatch.setattr(feature_circle, "HIDDEN", 8)
    monkeypatch.setattr(feature_circle, "margin_at", lambda *a: traced.append(a) or margin_at(*a))
    (tmp_path / "mnist").mkdir()
    written(tmp_path / "mnist")
    cache, figure = tmp_path / "cache", tmp_path / "figures" / "circle.png"
    command = ["--data", f"mnist:{tmp_path / 'mnist'}", "--epochs", "2", "--cache", str(cache), "--out", str(figure)]
    with jax.debug_nans(False):
        assert feature_circle.main(command) == 0
    assert len(traced) == 1
    told = capsys.readouterr().out
    assert all(f"{panel.title:36}test accuracy 0." in told for panel in panels)
    first = figure.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert {path.name for path in cache.iterdir()} == {"am_softmax_0.npz", "am_softmax_0.2.npz"}

    trained = []
    train = feature_circle.train
    monkeypatch.setattr(feature_circle, "train", lambda panel, *a, **k: trained.append(panel) or train(panel, *a, **k))
    assert feature_circle.main(command) == 0
    assert trained == []
    assert figure.read_bytes() == first

    monkeypatch.setattr(feature_circle, "draw", lambda *_: None)
    kept = dict(np.load(cache / "am_softmax_0.2.npz"))
    (cache / "am_softmax_0.2.npz").unlink()
    assert feature_circle.main(command) == 0
    assert trained == panels[1:]
    for name, value in np.load(cache / "am_softmax_0.2.npz").items():
        np.testing.assert_array_equal(value, kept[name])
    assert feature_circle.main([*command, "--seed", "1"]) == 0
    assert trained == [panels[1], *panels]
    (cache / "am_softmax_0.npz").write_bytes(b"PK\3\4")
    with pytest.raises(SystemExit):
        feature_circle.main(command)
    assert "am_softmax_0.npz: expected a panel that an earlier run kept" in capsys.readouterr().err
