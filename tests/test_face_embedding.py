"""The face-embedding example, run as a person would: train, interrupt, resume, refuse."""

import functools
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import face_data
import face_embedding
import face_loop
import face_training
import face_verification
import margin_softmax as ms
import margin_table
from exported_embedding import Embedding, write
from face_batches import batches
from face_network import ResidualBackbone
from face_recipes import RESIDUAL, SMALL
from face_training import Progress, Run
from face_verification import Scores, Validation, scores_of
from faces import convert_lfw, olivetti
from faces.images import encode
from faces.packs import write_pack
from faces.pictures import ArrayPictures, Pairs
from faces.recordio import write_records
from margin_expression import margin_at, margin_names
from margin_state import MADE_UP, MADE_UP_FEATURES, MarginState, made_up_batch, trial
from rendered_faces import rendered_faces
from test_faces_lfw import put_files, put_pictures
from training_checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("as_users_have_it")

ROOT = pathlib.Path(__file__).resolve().parents[1]
PEOPLE = ["--data", "rendered", "--people", "8"]
FIGURES = {"loss.png", "angles.png", "roc.png", "cosines.png", "worst.png", "faces.png"}


def run(out, steps, *more, data=PEOPLE, draw=False):
    with pytest.MonkeyPatch.context() as patched:
        if not draw:
            patched.setattr(face_embedding, "draw", lambda *_: None)
        assert face_embedding.main([*data, "--steps", str(steps), "--out", str(out), *more]) == 0
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    return out, run(out, 4, "--export", str(out / "embedding.zip"), draw=True)


def test_a_run_reports_draws_and_keeps(uninterrupted, capsys):
    out, results = uninterrupted
    assert {path.name for path in out.iterdir()} == {*FIGURES, "results.json", "checkpoints", "embedding.zip"}
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in FIGURES)
    assert results["steps"] == len(results["losses"]) == 4
    assert np.all(np.isfinite(results["losses"]))
    assert np.shape(results["angles"]) == (4, 2)
    for when in ("raw_pixels", "before_training", "after_training"):
        assert {"accuracy", "eer", "tar_at_far_1e2", "tar_at_far_1e3"} <= results[when].keys()
    assert 0 <= results["after_training"]["training_accuracy"] <= 1
    assert results["versions"]["jax"] == jax.__version__
    for word in ("samples/s", "loss", "learning rate", "target", "nearest other", "norm", "left"):
        assert word in results["log"][-4]
    for line, word in zip(results["log"][-3:], ("XNorm", "Accuracy-Flip", "Accuracy-Highest"), strict=True):
        assert line.startswith(f"[rendered, people left out][4]{word}: ")


def test_what_is_exported_is_what_was_verified(uninterrupted):
    """The features of the file have the error rate that was reported; the run had a fresh process find them, too."""
    out, results = uninterrupted
    embedding = Embedding(out / "embedding.zip")
    held = face_data.load_faces("rendered", face_data.Choice(people=8)).validation[0]
    scores = scores_of(embedding(held.pictures), held)
    assert scores.figures().eer == pytest.approx(results["after_training"]["eer"], abs=1e-3)
    assert set(embedding.thresholds) == {0.1}  # of the 100 impostor pairs ten are accepted; one would be chance
    for far, threshold in embedding.thresholds.items():
        assert np.mean(scores.scores[~held.same] >= threshold + 1e-5) <= far
    assert embedding.about["versions"]["jax"] == jax.__version__


def same_result(one, other):
    assert one["losses"] == other["losses"]
    assert one["angles"] == other["angles"]
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


def test_two_processes_train_as_one(uninterrupted, tmp_path):
    """With what Slurm tells its tasks; every second class row and every second picture is the other's."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    slurm |= {"JAX_COORDINATOR_PORT": str(port), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    slurm |= {"PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("", "examples"))}
    script = "import face_embedding as f; f.draw = lambda *_: None; raise SystemExit(f.main())"
    command = [sys.executable, "-c", script, *PEOPLE, "--steps", "4", "--out", str(tmp_path), "--distributed"]
    tasks = [
        subprocess.Popen(
            command,
            env=os.environ | slurm | {"SLURM_PROCID": place, "SLURM_LOCALID": place},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in ("0", "1")
    ]
    try:
        said = [task.communicate(timeout=300) for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    assert [task.returncode for task in tasks] == [0, 0], said
    assert "2 devices in 2 processes" in said[0][0]
    assert not [line for line in said[1][0].splitlines() if "Gloo" not in line]
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "checkpoints"}
    results = json.loads((tmp_path / "results.json").read_text())
    np.testing.assert_allclose(results["losses"], uninterrupted[1]["losses"], rtol=1e-4)
    for name, value in results["after_training"].items():
        expected = uninterrupted[1]["after_training"][name]
        assert value is expected is None or value == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [(["--head", "sharded"], "Not started: a batch of 60 pictures cannot be split evenly over 8 devices", None),
     (["--distributed", "--head", "dense"], 2, "--distributed: expected --head sharded, came dense"),
     (["--distributed"], 2, "--distributed: MASTER_PORT, RANK came without MASTER_ADDR, WORLD_SIZE")],
)  # fmt: skip
def test_devices_that_cannot_share_the_work_are_refused(more, error, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit) as refused:
        face_embedding.main([*PEOPLE, "--out", str(tmp_path), *more])
    assert str(error) in str(refused.value)
    assert words is None or words in capsys.readouterr().err


def test_without_olivetti_the_example_says_why_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    monkeypatch.setattr(face_data, "olivetti_faces", lambda: olivetti.olivetti_faces(seconds=0.01))
    faces = face_data.load_faces("auto", face_data.Choice(people=8))
    assert faces.source == "rendered"
    (line,) = capsys.readouterr().out.splitlines()
    assert "not in scikit-learn's cache, nor downloaded within 0.01 s" in line
    assert not list(tmp_path.iterdir())
    with pytest.raises(olivetti.UnavailableError):
        face_data.load_faces("olivetti")
    monkeypatch.setattr(margin_table, "olivetti_faces", face_data.olivetti_faces)
    with pytest.raises(SystemExit):
        margin_table.main(["--out", str(tmp_path)])
    assert "the Olivetti faces cannot be had: not in scikit-learn's cache" in capsys.readouterr().err


@pytest.mark.parametrize("interleaved", [False, True])
def test_nobody_is_both_trained_on_and_verified(interleaved):
    labels = np.repeat(np.arange(40), 10)
    pictures = ArrayPictures(
        np.uint8(labels)[:, None, None, None] + np.zeros((1, 2, 2, 1), np.uint8),
        np.int32(labels),
        tuple(map(str, range(40))),
    )
    verified = []
    for fold in range(face_data.FOLDS):
        faces = face_data.left_out("olivetti", pictures, face_data.Choice(fold, interleaved=interleaved))
        trained_on = {int(faces.training[index][0, 0, 0]) for index in range(len(faces.training))}
        assert all(faces.training.names[label] in map(str, trained_on) for label in faces.training.labels)
        left_out = set(faces.validation[0].pictures[:, 0, 0, 0].tolist())
        assert not trained_on & left_out
        assert len(trained_on | left_out) == 40
        assert faces.people == len(trained_on) == 30
        verified += left_out
    assert sorted(verified) == list(range(40))


@pytest.fixture(scope="module")
def faces():
    return face_data.load_faces("rendered", face_data.Choice(people=8))


def a_run(faces, margin):
    return Run(faces.training, SMALL, margin, "blockwise", 0)


def advanced(run, steps):
    for _ in range(steps):
        run.advance()
    return run


def carried(run):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(run.model.margin_state)))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [("adaface(margin=kappaface_margins(margin=0.3), scale=update_adacos())",
      {"update_adaface", "update_kappaface", "kappaface_margins", "update_adacos"}),
     ("focal(sphereface2(scale=16))", {"bias"})],
)  # fmt: skip
def test_what_a_margin_carries_and_learns_resumes_to_the_same_bits(text, pieces, faces, tmp_path):
    straight = advanced(a_run(faces, text), 4)
    interrupted = advanced(a_run(faces, text), 2)
    resumed = a_run(faces, text)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, interrupted.model, interrupted.optimizer, {})
        checkpoints.restore(2, resumed.model, resumed.optimizer)
    state = carried(resumed)
    assert {name for kind in state.values() for name in kind} == pieces
    jax.tree.map(np.testing.assert_array_equal, state, carried(interrupted))

    resumed.losses = list(interrupted.losses)
    assert advanced(resumed, 2).losses == straight.losses
    jax.tree.map(np.testing.assert_array_equal, carried(resumed), carried(straight))
    assert all(np.any(now != then) for now, then in zip(*map(jax.tree.leaves, (carried(resumed), state)), strict=True))


def test_what_is_dropped_is_a_function_of_the_step(faces, tmp_path):
    """The other network, its other optimiser, and its dropout: they resume to the same bits."""
    backbone = functools.partial(ResidualBackbone, widths=(8, 8, 8), blocks=(1, 1), dropout=0.5)
    recipe = RESIDUAL._replace(backbone=backbone, batch=8)

    def new():
        return Run(faces.training, recipe, "arcface(margin=0.2, scale=16)", "blockwise", 0)

    straight, interrupted, resumed = advanced(new(), 3), advanced(new(), 2), new()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, interrupted.model, interrupted.optimizer, {})
        checkpoints.restore(2, resumed.model, resumed.optimizer)
    resumed.losses = list(interrupted.losses)
    assert advanced(resumed, 1).losses == straight.losses
    pictures, key = jnp.zeros((2, 64, 64, 1)), jax.random.key(0)
    one, same, other = (straight.model(pictures, key) for key in (key, key, jax.random.key(1)))
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other)


def test_training_moves_what_a_margin_carries_and_evaluation_does_not(faces):
    run = a_run(faces, "normface(scale=update_adacos())")
    start = carried(run)
    assert start["carried"]["update_adacos"] == pytest.approx(ms.adacos(faces.people).scale)
    assert np.isfinite(float(run.advance().loss))
    trained = carried(run)
    assert trained != start
    face_embedding.evaluate(run, faces)
    assert carried(run) == trained


def test_the_table_of_kappaface_is_made_once_per_epoch():
    at, batch = margin_at("arcface(kappaface_margins())", MADE_UP), made_up_batch(MADE_UP)
    state = MarginState(at(0), MADE_UP, MADE_UP_FEATURES)
    tables = []
    for step in (0, 1, 5, 6, 7):  # 21 pictures, four at a time
        state.complete(at(step), batch._replace(step=step, examples=batch.examples + 2 * step))
        tables.append(np.asarray(state.carried["kappaface_margins"][...]))
    assert [bool(np.any(after != before)) for before, after in itertools.pairwise(tables)] == [
        False,
        False,
        True,
        False,
    ]


def test_adaptive_margins_are_rewarded_and_bounded():
    state = MarginState(margin_at("adaptive_face(scale=16)", MADE_UP)(0), MADE_UP, MADE_UP_FEATURES)
    state.learned["margins"][...] = np.linspace(-1, 2, 6, dtype=np.float32)
    state.bound()
    np.testing.assert_allclose(state.learned["margins"][...], [0, 0, 0.2, 0.8, 1, 1], atol=1e-6)
    assert float(state.penalty()) == pytest.approx(-35)


def test_a_bias_starts_as_its_loss_has_it():
    for text, start in {
        "focal(sphereface2(0.3, scale=16, kind='A'))": ms.sphereface2_bias(6, 0.3, 16, kind="A"),
        "unified_cross_entropy(scale=16)": ms.unified_cross_entropy_bias(6),
    }.items():
        state = MarginState(margin_at(text, MADE_UP)(0), MADE_UP, MADE_UP_FEATURES)
        assert float(state.learned["bias"][...]) == pytest.approx(start)


# The shortest text of those that have no defaults.
SPELLINGS = {"temperature": "temperature(2)", "normface": "normface(16)", "combined": "combined(1, 0.3, 0)"}
SPELLINGS |= {name: f"{name}(arcface)" for name in ("straight_through", "focal", "interclass_filter")}


def same_program(text):
    """Whether a second step, whose numbers are others, would be compiled again."""
    first, second = (jax.tree.structure(margin_at(text, MADE_UP)(step)) for step in (0, 1))
    return first == second and hash(first) == hash(second)


@pytest.mark.parametrize("name", margin_names())
def test_every_margin_can_be_written(name):
    text = SPELLINGS.get(name, f"{name}()")
    assert isinstance(trial(text), ms.Margin)
    assert same_program(text)


@pytest.mark.parametrize(
    "text",
    ["arcface", "combined(1, 0.3, 0.2, scale=32)", "a_softmax(margin=4, blend=annealing('a_softmax_casia'))",
     "curricularface(0.3, 16)", "adaface(0.3, 16, clip=True, state=update_adaface(momentum=0.9))",
     "cifp(threshold=0.2)",
     "cifp(0.2, 16, threshold=cifp_threshold(rate=0.1))", "elastic_cosface(0.3, 16, angle=observe().angle)",
     "sphereface2(kind='A', margin=margin_warmup(0.3, 0, 100), scale=16)", "unified_cross_entropy(bias=3.5)",
     "magface(16, norms=(1, 51), margins=(0.2, 0.5), regularizer=5)", "mv_softmax(curricularface(0.3, 16), t=0.3)",
     "interclass_filter(arcface(frequency_margins(0.1, 0.3), 16), -0.1, to_zero=True)",
     "sphereface_r(1.3, feature_norm='none', version=2)", "intertopk(ldam_margins(), 16, k=3)"],
)  # fmt: skip
def test_what_else_can_be_written(text):
    assert isinstance(trial(text), ms.Margin)
    assert same_program(text)


def test_a_schedule_in_the_text_follows_the_step():
    at = margin_at("a_softmax(margin=4, blend=blend_schedule(gamma=1, minimum=0))", MADE_UP)
    expected = ms.a_softmax(4, blend=ms.blend_schedule(gamma=1, minimum=0)(9))
    assert jax.tree.leaves(at(9)) == jax.tree.leaves(expected)


def test_a_table_in_the_text_is_looked_up_by_class():
    margin = trial("arcface(margin=frequency_margins(0.1, 0.3), scale=16)")
    np.testing.assert_allclose(jax.tree.leaves(margin)[0], ms.frequency_margins(MADE_UP.counts, 0.1, 0.3)[:4])


@pytest.mark.parametrize(
    ("text", "words"),
    [("arc(0.5)", "'arc' is no margin"), ("arcface(", "not of the form"), ("arcface(m=0.5)", "'m'"),
     ("3.0", "is not a margin"), ("__import__('os')", "'__import__' is no margin"), ("arcface(margin=28.6)", "degrees"),
     ("arcface(margin=[0.5])", "neither a number"), ("arcface(margin='0.5')", "real number"),
     ("arcface(margin=margin_warmup(28.6, 0, 100))", "degrees"), ("ldam_margins()", "is not a margin"),
     ("normface()", "'scale'"), ("adaface(state=3)", "AdaFaceState"), ("adaptive_face(margins=0.3)", "margins: "),
     ("sphereface2(kind='B')", "kind"), ("observe().logits", "neither a number"),
     ("combined(1, kappaface_margins(), kappaface_margins(gamma=1))", "asked for 2 times"),
     ("kappaface(margins=0.3)", "margins: ")],
)  # fmt: skip
def test_what_is_no_margin_is_refused(text, words):
    with pytest.raises(ValueError, match="(?s).*" + words):
        trial(text)


def test_rendered_faces_are_people():
    """Any number of them, the same from the same key, and hard: raw pixels confuse one pair in five to two in five."""
    pictures, labels = rendered_faces(jax.random.key(0), people=40, pictures=5)
    again, _ = rendered_faces(jax.random.key(0), people=40, pictures=5)
    assert pictures.shape == (200, 64, 64)
    assert np.all((np.asarray(pictures) >= 0) & (np.asarray(pictures) <= 1))
    np.testing.assert_array_equal(pictures, again)
    pairs, same = ms.verification.all_pairs(np.asarray(labels))
    cosines = ms.verification.pair_cosines(np.asarray(pictures).reshape(200, -1), pairs)
    assert 0.2 <= ms.verification.eer(cosines, same) <= 0.4
    assert Scores(np.asarray(cosines), same).figures().tar_at_far_1e3 is not None


def test_batches_go_through_every_picture_and_may_start_anywhere(faces):
    pictures = faces.training
    epoch = len(pictures) // 20
    first, again, other, later = (
        [next(stream).examples for _ in range(2 * epoch)]
        for stream in (
            batches(pictures, 20, 0),
            batches(pictures, 20, 0),
            batches(pictures, 20, 1),
            batches(pictures, 20, 0, start=2),
        )
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(np.concatenate(first) != np.concatenate(other))
    np.testing.assert_array_equal(first[2:], later[:-2])
    for half in (first[:epoch], first[epoch:]):
        np.testing.assert_array_equal(np.sort(np.concatenate(half)), np.arange(len(pictures)))
    assert np.any(np.concatenate(first[:epoch]) != np.concatenate(first[epoch:]))
    batch = next(batches(pictures, 20, 0, start=3))
    np.testing.assert_array_equal(batch.labels, pictures.labels[batch.examples])
    np.testing.assert_array_equal(batch.pictures, [pictures[int(index)] for index in batch.examples])


def test_processes_share_each_batch(faces):
    one = batches(faces.training, 20, 0, start=1)
    parts = [batches(faces.training, 20, 0, start=1, process=process, processes=4) for process in range(4)]
    for _ in range(5):
        joined = np.concatenate([next(part).examples for part in parts])
        np.testing.assert_array_equal(joined, next(one).examples)


def test_records_train_and_packs_verify(faces, tmp_path, capsys):
    """Files of the formats that people have; the last line of each set says its best accuracy so far."""
    held = faces.validation[0]
    chosen = np.concatenate([np.flatnonzero(held.same)[:30], np.flatnonzero(~held.same)[:30]])
    pairs = Pairs("held", held.pictures, held.pairs[chosen], held.same[chosen])
    write_pack(tmp_path / "held.bin", pairs, format="PNG")
    pictures = [np.repeat(faces.training[index], 3, -1) for index in range(len(faces.training))]
    write_records(tmp_path / "train.rec", pictures, faces.training.labels)
    command = ["--data", f"rec:{tmp_path / 'train.rec'}", "--validate", f"bin:{tmp_path / 'held.bin'}"]
    command += ["--recipe", "small", "--steps", "2", "--validate-every", "1", "--out", str(tmp_path / "out")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(face_embedding, "draw", lambda *_: None)
        assert face_embedding.main(command) == 0
    printed = capsys.readouterr().out
    accuracies = re.findall(r"\[held\]\[\d\]Accuracy-Flip: (\d\.\d{5})\+-\d\.\d{5}", printed)
    highest = re.findall(r"\[held\]\[\d\]Accuracy-Highest: (\d\.\d{5})", printed)
    norms = re.findall(r"\[held\]\[\d\]XNorm: \d+\.\d{6}", printed)
    assert len(accuracies) == len(highest) == len(norms) == 2
    assert highest[-1] == max(accuracies)


def noise(count, *shape):
    return np.random.default_rng(3).integers(0, 256, (count, *shape), np.uint8)


def test_lfw_trains_and_every_set_has_its_figures(tmp_path):
    """Those of the second are what the exported file finds, which resizes 62 x 47 pixels to 32 x 32."""
    put_pictures(tmp_path / "lfw")
    put_files(tmp_path, pairsDevTest="2\nFlo_G\t1\t2\nCy_D\t1\t2\nCy_D\t2\tGus_H\t1\nEd_F\t1\tBo_C\t1\n")
    data, more = [f"{kind}:{tmp_path / name}" for kind, name in (("lfw", "lfw.npz"), ("bin", "p.bin"))]
    assert convert_lfw.main([str(tmp_path / "lfw"), "--out", str(tmp_path / "lfw.npz")]) == 0
    pairs = Pairs("p", noise(24, 62, 47, 1), np.arange(24).reshape(-1, 2), np.tile([True, False], 6))
    write_pack(tmp_path / "p.bin", pairs, format="PNG")
    command = ["--data", data, "--validate", more, "--recipe", "small", "--export", str(tmp_path / "e.zip")]
    results = run(tmp_path / "out", 2, data=command)
    assert results["configuration"]["shape"] == [62, 47, 1]
    assert (results["configuration"]["people"], results["configuration"]["pictures"]) == (3, 9)
    found = scores_of(Embedding(tmp_path / "e.zip")(pairs.pictures), pairs).figures()
    after = results["after_training"]
    del after["training_accuracy"]
    assert results["validation"] == {"lfw-dev-test": after, "p": pytest.approx(found._asdict(), abs=1e-4)}


def test_a_folder_trains_in_the_channels_asked_for_and_a_quarter_is_verified(tmp_path):
    pictures = noise(32, 24, 20, 3)
    pictures[0] = pictures[0, ..., :1]
    for index, picture in enumerate(pictures):
        person = tmp_path / "faces" / f"{index // 4}"
        person.mkdir(parents=True, exist_ok=True)
        (person / f"{index}.png").write_bytes(encode(picture if index else picture[..., :1], "PNG"))
    source = f"folder:{tmp_path / 'faces'}"
    command = ["--data", source, "--recipe", "small", "--fold", "0"]
    with pytest.raises(SystemExit, match=r"Not started: .*1\.png: it has colours.* --channels 3 "):
        run(tmp_path / "out", 2, data=command)
    results = run(tmp_path / "out", 2, "--channels", "3", data=command)
    assert results["configuration"]["shape"] == [24, 20, 3]
    assert (results["configuration"]["people"], results["configuration"]["pictures"]) == (6, 24)
    assert results["configuration"]["validation"] == [f"{source}, people left out, 28 pairs"]


def test_a_residual_network_is_exported_for_any_number_of_pictures_to_be_resized(tmp_path):
    shape = RESIDUAL.shape((62, 47, 1))
    assert shape == (64, 48, 1)
    embed = face_training.frozen(ResidualBackbone(shape, 8, widths=(4, 4, 4), blocks=(1, 1), rngs=nnx.Rngs(0)))
    write(tmp_path / "e.zip", embed, noise(3, 62, 47, 1), {})
    embedding = Embedding(tmp_path / "e.zip")
    np.testing.assert_allclose(embedding(noise(2, 62, 47, 1)), jax.jit(embed)(noise(2, 62, 47, 1)), atol=1e-5)


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--data", "faces"], "--data: expected one of auto, olivetti"), (["--data", "rec:"], "rec:PATH; came 'rec:'"),
     (["--resize", "8", "8"], "--resize: for --data folder:PATH alone"),
     (["--data", "rec:a.rec", "--channels", "3"], "--channels: for --data folder:PATH alone; came with rec:a.rec"),
     (["--data", "folder:faces", "--channels", "2"], "--channels: invalid choice"),
     (["--validate", "lfw.bin"], "--validate: expected bin:FILE"), (["--validate-every", "0"], "expected at least 1")],
)  # fmt: skip
def test_sources_that_are_none_are_refused(more, words, capsys):
    with pytest.raises(SystemExit):
        face_embedding.main(more)
    assert words in capsys.readouterr().err


def test_a_file_that_turns_out_bad_ends_the_run_and_loses_nothing(faces, tmp_path, monkeypatch):
    pictures = [np.repeat(faces.training[index], 3, -1) for index in range(len(faces.training))]
    for index, picture in enumerate(pictures):
        person = tmp_path / "faces" / f"person {faces.training.labels[index]}"
        person.mkdir(parents=True, exist_ok=True)
        (person / f"{index}.png").write_bytes(encode(picture, "PNG"))
    command = ["--data", f"folder:{tmp_path / 'faces'}", "--steps", "9", "--recipe", "small", "--out", str(tmp_path)]
    same, different = [[i, i + 1] for i in range(0, 20, 2)], [[i, i + 10] for i in range(10)]
    pairs = Pairs("p", np.stack(pictures[:20]), np.array(same + different), np.repeat([True, False], 10))
    write_pack(tmp_path / "p.bin", pairs)
    bad = tmp_path / "faces" / "person 1" / "12.png"

    def cut(self, advance=Run.advance):
        if self.step == 2:
            bad.write_bytes(bad.read_bytes()[:100])
        return advance(self)

    monkeypatch.setattr(Run, "advance", cut)
    with pytest.raises(SystemExit, match=r"is kept\. .*12\.png"):
        face_embedding.main([*command, "--validate", f"bin:{tmp_path / 'p.bin'}"])
    assert any((tmp_path / "checkpoints").iterdir())


def test_sets_of_one_name_are_refused_and_a_home_is_found(faces, tmp_path, monkeypatch):
    """Under one name their lines in a log would not be told apart."""
    held = faces.validation[0]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_pack(tmp_path / folder / "p.bin", Pairs("p", held.pictures, held.pairs[:4], held.same[:4]))
    monkeypatch.setenv("HOME", str(tmp_path))
    trained = faces._replace(validation=())
    assert [pairs.name for pairs in face_data.with_packs(trained, ["bin:~/a/p.bin"]).validation] == ["p"]
    with pytest.raises(ValueError, match="two 'p'; rename one"):
        face_data.with_packs(trained, ["bin:~/a/p.bin", "bin:~/b/p.bin"])
    assert face_data.source_of("folder:~/faces") == ("folder", tmp_path / "faces")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"missing\.rec"):
        face_embedding.main(["--data", f"rec:{tmp_path / 'missing.rec'}", "--out", str(tmp_path)])


def test_a_folder_in_place_of_lfws_archive_is_refused_with_the_command_that_makes_one(tmp_path, monkeypatch):
    (tmp_path / "lfw faces").mkdir()
    monkeypatch.chdir(tmp_path)
    made = f"python -m faces.convert_lfw '{tmp_path / 'lfw faces'}' --out '{tmp_path / 'lfw faces.npz'}'"
    with pytest.raises(SystemExit, match=f"Not started: lfw faces: expected an archive of LFW.*{re.escape(made)}"):
        face_embedding.main(["--data", "lfw:lfw faces", "--out", str(tmp_path)])


def test_one_person_is_refused_before_training(faces, tmp_path):
    (tmp_path / "faces" / "one").mkdir(parents=True)
    (tmp_path / "faces" / "one" / "1.png").write_bytes(encode(faces.training[0], "PNG"))
    held = faces.validation[0]
    write_pack(tmp_path / "p.bin", held._replace(pairs=held.pairs[::5], same=held.same[::5], fold=None))
    data, pack = f"folder:{tmp_path / 'faces'}", f"bin:{tmp_path / 'p.bin'}"
    with pytest.raises(SystemExit, match=f"Not started: {data}: expected at least 2 people to train on.*; came 1"):
        face_embedding.main(["--data", data, "--validate", pack, "--out", str(tmp_path)])


class Timed:
    """A run, a set of pairs and checkpoints, on a clock that they alone put on: steps take two seconds."""

    now, batch, highest = 0, 10, 0
    model = optimizer = None
    learning_rate, history = float, dict

    def __init__(self):
        self.losses, self.angles = [], []

    @property
    def step(self):
        return len(self.losses)

    def fetch(self):
        pass

    def advance(self):
        self.now += 2 if self.losses else 600  # the first is compiled
        self.losses.append(1.0)
        return Progress(1.0, 1.0, 1.0, 1.0)

    def lines(self, model, step):
        self.now += 70
        return []

    def save(self, *_):
        self.now += 90


def test_speed_and_time_left_are_those_of_the_steps_alone(monkeypatch):
    timed, record = Timed(), {"log": []}
    monkeypatch.setattr(face_loop, "time", types.SimpleNamespace(perf_counter=lambda: timed.now))
    assert face_loop.train(timed, face_loop.Plan(20, (timed,), 3), timed, record) is None
    assert timed.now == 600 + 19 * 2 + 7 * 70 + 5 * 90
    told = [(line.split("  ")[1], line.split("  ")[-1]) for line in record["log"]]
    assert told == [("5 samples/s", f"{2 * left} s left") for left in range(18, -1, -2)]


def insightface_accuracies(features, same):
    """Of InsightFace's `calculate_roc`, from its definition; pair i is of the rows 2 i and 2 i + 1."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    distances, thresholds = np.sum((features[::2] - features[1::2]) ** 2, axis=1), np.arange(0, 4, 0.01)
    accuracies = []
    for tested in np.array_split(np.arange(len(same)), 10):
        others = np.setdiff1d(np.arange(len(same)), tested)
        right = [np.mean((distances[others] < threshold) == same[others]) for threshold in thresholds]
        accuracies.append(np.mean((distances[tested] < thresholds[np.argmax(right)]) == same[tested]))
    return accuracies


def test_the_three_lines_are_insightfaces(monkeypatch):
    random = np.random.default_rng(4)
    same = np.tile(np.repeat([True, False], 20), 12)
    upright, mirrored = random.normal(size=(2, 2 * len(same), 8))
    for half in (upright, mirrored):
        half[1::2][same] = half[::2][same] + 0.9 * random.normal(size=(same.sum(), 8))
    norms = (np.linalg.norm(upright, axis=1) + np.linalg.norm(mirrored, axis=1)) / 2
    monkeypatch.setattr(face_verification, "embed", lambda *_: (np.float32(upright + mirrored), norms))
    pairs = Pairs("made", np.zeros((2 * len(same), 1, 1, 1), np.uint8), np.arange(2 * len(same)).reshape(-1, 2), same)
    accuracies = insightface_accuracies(upright + mirrored, same)
    cosines = ms.verification.pair_cosines(np.float32(upright + mirrored), pairs.pairs)
    exact = ms.verification.kfold_accuracy(cosines, same)
    assert f"{exact.mean:.5f}" != f"{np.mean(accuracies):.5f}"  # else this could not fail
    assert Validation(pairs, highest=0.99).lines(None, 7) == [
        f"[made][7]XNorm: {np.mean(norms):.6f}",
        f"[made][7]Accuracy-Flip: {np.mean(accuracies):.5f}+-{np.std(accuracies):.5f}",
        "[made][7]Accuracy-Highest: 0.99000",
    ]


SETS = {
    "all pairs": ms.verification.all_pairs(np.arange(23))[0],
    "a few, in disorder": np.random.default_rng(1).permutation(23)[:22].reshape(-1, 2),
    "neighbours, some twice": np.array([[0, 1], [2, 3], [0, 1], [22, 21], [7, 7]]),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_raw_pixels_are_cosines_whose_floats_are_few_and_made_seldom(name, at_once, monkeypatch):
    pictures = np.random.default_rng(0).integers(0, 256, (23, 5, 4, 3), np.uint8)
    pictures[4] = 0
    pairs = Pairs("p", pictures, SETS[name], np.arange(len(SETS[name])) % 2 == 0)
    made, as_floats = [], face_verification.as_floats
    monkeypatch.setattr(face_verification, "as_floats", lambda *some: made.append(as_floats(*some)) or made[-1])
    monkeypatch.setattr(face_verification, "FLOAT_BYTES", at_once * 4 * pictures[0].size)
    scores = face_verification.raw_pixels(pairs)
    flat = pictures.reshape(23, -1).astype(np.float32)
    np.testing.assert_allclose(scores.scores, ms.verification.pair_cosines(flat, pairs.pairs), atol=1e-6)
    np.testing.assert_array_equal(scores.same, pairs.same)
    assert {rows.shape for rows in made} == {(min(at_once, 23), 60)}
    first, second = (-(-len(np.unique(side)) // at_once) for side in pairs.pairs.T)
    assert len(made) <= first * (1 + second)  # and not once for each pair


def test_features_are_sums_over_both_images_and_norms_their_means(faces):
    run, pictures = a_run(faces, "plain()"), faces.validation[0].pictures[:3]
    features, norms = face_training.embed(run.model, pictures)
    run.model.eval()
    seen = face_training.standardise(face_training.as_seen(jnp.asarray(pictures), (32, 32)))
    upright, mirrored = (np.float64(run.model(both)) for both in (seen, seen[:, :, ::-1]))
    np.testing.assert_allclose(features, upright + mirrored, atol=1e-4)
    lengths = [np.linalg.norm(each, axis=1) for each in (upright, mirrored)]
    np.testing.assert_allclose(norms, np.mean(lengths, axis=0), rtol=1e-5)
    unit = face_training.frozen(run.model.backbone)(pictures)
    directions = (upright + mirrored) / np.linalg.norm(upright + mirrored, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, directions, atol=1e-5)


@pytest.mark.parametrize("recipe", [SMALL, RESIDUAL])
def test_the_record_of_a_recipe_has_its_numbers(recipe):
    record = json.loads(json.dumps(recipe.record()))
    assert record.keys() == {*recipe._fields} - {"margin"}
    assert record["backbone"]["widths"] == ([16, 32, 64] if recipe is SMALL else [64, 64, 128, 256])
    assert record["optimiser"]["weight_decay"] == 0.05
    assert record["learning_rate"]["peak"] == (3e-3 if recipe is SMALL else 1.5e-2)
    assert record["changes"]["turn"] == list(recipe.changes.turn)
    longer = recipe._replace(steps=functools.partial(recipe.steps, **{"steps" if recipe is SMALL else "epochs": 640}))
    assert longer.steps(256) > recipe.steps(256)
    assert longer.record() != recipe.record()


def test_each_fold_has_its_share_of_both_kinds(faces):
    held = faces.validation[0]
    for kind in (held.same, ~held.same):
        counts = np.bincount(held.fold[kind], minlength=10)
        assert counts.sum() == kind.sum()
        assert np.ptp(counts) <= 1


def test_people_of_one_picture_are_not_verified():
    labels = np.arange(8)
    pictures = ArrayPictures(np.zeros((8, 2, 2, 1), np.uint8), np.int32(labels), tuple(map(str, labels)))
    with pytest.raises(ValueError, match="0 pairs of one person"):
        face_data.left_out("folder:people", pictures, face_data.Choice())


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--data", "lfw:lfw.npz", "--fold", "1"], "--fold: nobody is left out"),
     (["--data", "rec:a.rec", "--validate", "bin:a.bin", "--fold", "0"], "--fold: nobody is left out"),
     (["--data", "folder:faces", "--people", "9"], "--people: for --data rendered alone"),
     (["--seed", "-1"], "--seed: expected a whole number from 0"), (["--seed", str(2**33)], "--seed: expected"),
     (["--out", __file__], "--out: "), (["--export", str(ROOT)], "--export: expected a file")],
)  # fmt: skip
def test_options_that_would_be_ignored_or_fail_late_are_refused(more, words, capsys):
    with pytest.raises(SystemExit):
        face_embedding.main(more)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--people", "9", "--steps", "5"], "another one .*190 pairs.*, is .*435 pairs"),
        (["--steps", "3"], "4 steps are done"),
    ],
)
def test_a_resumed_run_has_the_same_pictures_and_goes_on(more, words, uninterrupted):
    out, _ = uninterrupted
    with pytest.raises(SystemExit, match=f"Not resumed: .*{words}"):
        face_embedding.main([*PEOPLE, "--out", str(out), "--resume", *more])
