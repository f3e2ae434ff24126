"""The face-embedding example, run as a person would: train, interrupt, resume, refuse."""

import json
import signal

import jax
import numpy as np
import pytest

import face_data
import face_embedding
import margin_expression
import margin_softmax as ms
import pair_verification
from face_training import Run
from rendered_faces import rendered_faces

PEOPLE = ["--data", "rendered", "--people", "8"]
FIGURES = {"loss.png", "roc.png", "cosines.png", "faces.png"}


@pytest.fixture(autouse=True)
def _as_users_have_it():
    """Flax and Optax promote dtypes and ranks; only this package promises not to."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run(out, steps, *more):
    assert face_embedding.main([*PEOPLE, "--steps", str(steps), "--out", str(out), *more]) == 0
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        out = tmp_path_factory.mktemp("uninterrupted")
        return out, run(out, 4)


def test_a_run_reports_draws_and_keeps(uninterrupted, capsys):
    out, results = uninterrupted
    assert {path.name for path in out.iterdir()} == {*FIGURES, "results.json", "checkpoints"}
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in FIGURES)
    assert results["steps"] == len(results["losses"]) == 4
    assert np.all(np.isfinite(results["losses"]))
    for when in ("raw_pixels", "before_training", "after_training"):
        assert {"accuracy", "eer", "tar_at_far_1e2", "tar_at_far_1e3"} <= results[when].keys()
    assert 0 <= results["after_training"]["training_accuracy"] <= 1
    assert results["versions"]["jax"] == jax.__version__
    for word in ("samples/s", "loss", "learning rate", "target", "nearest other", "norm", "left"):
        assert word in results["log"][-1]


def same_result(one, other):
    assert one["losses"] == other["losses"]
    assert one["after_training"] == other["after_training"]


def test_resuming_goes_on_to_the_same_bits(uninterrupted, tmp_path, capsys):
    run(tmp_path, 2)
    results = run(tmp_path, 4, "--resume")
    assert "Resumed after step 2." in capsys.readouterr().out
    same_result(results, uninterrupted[1])


def test_an_interrupted_run_keeps_its_last_step(uninterrupted, tmp_path, capsys, monkeypatch):
    advance = Run.advance

    def interrupted(self):
        told = advance(self)
        if self.step == 3:
            signal.raise_signal(signal.SIGINT)
        return told

    with monkeypatch.context() as patched:
        patched.setattr(Run, "advance", interrupted)
        assert face_embedding.main([*PEOPLE, "--steps", "4", "--out", str(tmp_path)]) == 128 + signal.SIGINT
    printed = capsys.readouterr().out
    assert "step 3 is kept" in printed
    assert "--resume" in printed
    same_result(run(tmp_path, 4, "--resume"), uninterrupted[1])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(uninterrupted, tmp_path, capsys):
    run(tmp_path, 4)
    files = [path for path in (tmp_path / "checkpoints" / "4").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    results = run(tmp_path, 4, "--resume")
    printed = capsys.readouterr().out
    assert "The checkpoint of step 4 is damaged" in printed
    assert "Resumed after step 3." in printed
    same_result(results, uninterrupted[1])


def test_another_configuration_is_not_resumed(uninterrupted, tmp_path):
    out, _ = uninterrupted
    with pytest.raises(SystemExit, match=r"margin was .*arcface.*, is 'plain"):
        run(out, 6, "--resume", "--margin", "plain()")


def test_the_heads_train_alike(uninterrupted, tmp_path):
    dense = run(tmp_path, 4, "--head", "dense")
    np.testing.assert_allclose(dense["losses"], uninterrupted[1]["losses"], rtol=1e-3)


def test_without_olivetti_the_example_says_why_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    olivetti_faces = face_data.olivetti_faces
    monkeypatch.setattr(face_data, "olivetti_faces", lambda: olivetti_faces(seconds=0.01))
    faces = face_data.load_faces("auto", fold=0, seed=0, people=8)
    assert faces.source == "rendered"
    (line,) = capsys.readouterr().out.splitlines()
    assert "not in scikit-learn's cache, nor downloaded within 0.01 s" in line
    assert not list(tmp_path.iterdir())
    with pytest.raises(face_data.UnavailableError):
        face_data.load_faces("olivetti", fold=0, seed=0)


@pytest.mark.parametrize("interleaved", [False, True])
def test_nobody_is_both_trained_on_and_verified(interleaved):
    labels = np.repeat(np.arange(40), 10)
    pictures = labels[:, None, None] + np.zeros((1, 2, 2))
    verified = []
    for fold in range(face_data.FOLDS):
        faces = face_data.split_people("olivetti", pictures, labels, fold, interleaved)
        trained_on, left_out = (set(p[:, 0, 0]) for p in (faces.pictures, faces.verified_pictures))
        assert not trained_on & left_out
        assert len(trained_on | left_out) == 40
        assert faces.people == len(trained_on) == 30
        verified += left_out
    assert sorted(verified) == list(range(40))


@pytest.mark.parametrize(
    "text",
    ["plain()", "arcface", "arcface(margin=0.3, scale=16)", "normface(10)", "straight_through(arcface(0.5))",
     "combined(1, 0.3, 0.2, scale=32)", "a_softmax(margin=4, blend=blend_schedule(gamma=1))"],
)  # fmt: skip
def test_every_margin_can_be_written(text):
    assert isinstance(margin_expression.margin_at(text)(3), ms.Margin)


def test_a_schedule_in_the_text_follows_the_step():
    margin_at = margin_expression.margin_at("a_softmax(margin=4, blend=blend_schedule(gamma=1, minimum=0))")
    expected = ms.a_softmax(4, blend=ms.blend_schedule(gamma=1, minimum=0)(9))
    assert jax.tree.leaves(margin_at(9)) == jax.tree.leaves(expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [("arc(0.5)", "'arc' is no margin"), ("arcface(", "not of the form"), ("arcface(m=0.5)", "'m'"),
     ("3.0", "is not a margin"), ("__import__('os')", "neither a number"), ("arcface(margin=28.6)", "degrees"),
     ("arcface(margin=[0.5])", "neither a number")],
)  # fmt: skip
def test_what_is_no_margin_is_refused(text, words):
    with pytest.raises(ValueError, match="(?s).*" + words):
        margin_expression.margin_at(text)


def test_verification_agrees_with_scikit_learn():
    from sklearn.metrics import roc_curve

    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 5)
    features = random.normal(size=(12, 8))[labels] + 1.2 * random.normal(size=(60, 8))
    genuine, impostor = pair_verification.pair_cosines(features, labels)
    assert len(genuine) == 12 * 10
    assert len(genuine) + len(impostor) == 60 * 59 // 2
    same = np.repeat([True, False], [len(genuine), len(impostor)])
    far, tar, thresholds = roc_curve(same, np.concatenate([genuine, impostor]), drop_intermediate=False)
    result = pair_verification.verification(genuine, impostor)
    crossing = np.argmax(far >= 1 - tar)
    assert result.eer == pytest.approx((far[crossing] + 1 - tar[crossing]) / 2)
    assert result.threshold == pytest.approx(thresholds[crossing])
    assert result.tar_at_far_1e2 == pytest.approx(tar[far <= 1e-2].max())
    assert result.tar_at_far_1e3 == pytest.approx(tar[far <= 1e-3].max())
    assert result.accuracy == pytest.approx(np.max(tar + 1 - far) / 2)
    assert 0.05 < result.eer < 0.4


def test_rendered_faces_are_people():
    """Any number of them, the same from the same key, and hard: raw pixels confuse one pair in five to two in five."""
    pictures, labels = rendered_faces(jax.random.key(0), people=40, pictures=5)
    again, _ = rendered_faces(jax.random.key(0), people=40, pictures=5)
    assert pictures.shape == (200, 64, 64)
    assert np.all((np.asarray(pictures) >= 0) & (np.asarray(pictures) <= 1))
    np.testing.assert_array_equal(pictures, again)
    pairs = pair_verification.pair_cosines(np.asarray(pictures).reshape(200, -1), np.asarray(labels))
    assert 0.2 <= pair_verification.verification(*pairs).eer <= 0.4
