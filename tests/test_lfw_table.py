"""The table of LFW, from a small archive of the same layout: a run, what is kept of it, and the tables."""

import functools
import json
import math

import numpy as np
import optax
import pytest
from flax import nnx

import lfw_table
import margin_softmax as ms
from face_recipes import SMALL
from faces.lfw import Lfw, read_lfw, write_lfw
from measured_runs import surroundings

pytestmark = pytest.mark.usefixtures("as_users_have_it")

PEOPLE, PICTURES, FOLDS = 20, 3, 10


class Light(nnx.Module):
    """In place of the networks, which their own tests compile."""

    def __init__(self, shape, features, *, rngs):
        self.shape, self.features = shape, features
        self.linear = nnx.Linear(math.prod(shape), features, rngs=rngs)

    def __call__(self, pictures, key=None):
        return self.linear(pictures.reshape(len(pictures), -1))


def pairs_of(people):
    """Each person's first two pictures, then the first of each with the first of the next."""
    first = PICTURES * np.asarray(people)
    genuine = np.stack([first, first + 1], 1)
    return np.concatenate([genuine, np.stack([first, np.roll(first, 1)], 1)]), np.repeat([True, False], len(people))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Faces of noise, each person about a picture of his or her own; two people in each fold."""
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(PEOPLE), PICTURES).astype(np.int32)
    own = random.integers(0, 256, (PEOPLE, 8, 8, 1))
    pictures = (0.5 * own[label] + 0.5 * random.integers(0, 256, (len(label), 8, 8, 1))).astype(np.uint8)
    folds = [pairs_of([2 * fold, 2 * fold + 1]) for fold in range(FOLDS)]
    trained, tested = pairs_of(range(12)), pairs_of(range(12, PEOPLE))
    path = tmp_path_factory.mktemp("lfw") / "lfw.npz"
    lfw = Lfw(
        pictures, label, tuple(f"Person_{p:02}" for p in range(PEOPLE)),
        np.tile(np.arange(1, 4), PEOPLE).astype(np.int16),
        np.concatenate([pairs for pairs, _ in folds]), np.concatenate([same for _, same in folds]),
        np.repeat(np.arange(FOLDS), 4), *trained, *tested,
        person_fold=np.arange(PEOPLE) // 2, person_is_dev_test=np.arange(PEOPLE) >= 12,
    )  # fmt: skip
    write_lfw(path, lfw)
    return path


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    recipe = SMALL._replace(size=(8, 8), backbone=Light, features=16, batch=12)
    recipe = recipe._replace(steps=lambda pictures: 3, learning_rate=lambda steps: optax.constant_schedule(1e-3))
    monkeypatch.setattr(lfw_table, "RESIDUAL", recipe)
    monkeypatch.setattr(lfw_table, "LOSSES", {"plain softmax": "plain()", "ArcFace": "arcface(margin=0.2, scale=16)"})


def test_losses_are_measured_once_and_tabled(archive, tmp_path, monkeypatch, capsys):
    arguments = [
        "--lfw",
        str(archive),
        "--out",
        str(tmp_path / "runs"),
        "--table",
        str(tmp_path / "t.md"),
        "--seeds",
        "0",
        "1",
    ]
    assert lfw_table.main(arguments) == 0
    files = sorted((tmp_path / "runs").iterdir())
    assert len(files) == 4
    result = json.loads(files[0].read_text())
    assert (result["people"], result["pictures"], result["steps"]) == (12, 36, 3)

    trained, known, tested = read_lfw(archive).development()

    def rows(pictures):
        flat = np.float64(pictures.reshape(len(pictures), -1))
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    people = np.stack([rows(trained.array)[trained.labels == person].mean(0) for person in range(12)])
    people /= np.linalg.norm(people, axis=1, keepdims=True)
    cosines, normalised = [], []
    for pairs in (known, tested):
        one, other = np.moveaxis(rows(pairs.pictures)[pairs.pairs], 1, 0)
        cosines.append(np.sum(one * other, 1))
        sides = [(cosines[-1] - (to := side @ people.T).mean(1)) / to.std(1) for side in (one, other)]
        normalised.append(np.mean(sides, 0))
    for kind, (of_known, of_tested) in (("cosine", cosines), ("normalised", normalised)):
        accepting_one = np.max(of_known[~known.same])  # of twelve, 10 % is one
        best = ms.verification.best_accuracy(of_known, known.same).threshold
        for key, threshold in (("accuracy", accepting_one), ("accuracy_training_pairs", best)):
            right = (of_tested >= threshold * (1 - 1e-5)) == tested.same
            assert result["raw_pixels"][kind][key] == np.mean(right), (kind, key)

    printed = capsys.readouterr().out
    assert "| plain softmax: `plain()` |" in printed
    assert len({line.count("|") for line in printed.splitlines() if line.startswith("|")}) == 1
    mean = np.mean([json.loads(file.read_text())["after_training"]["normalised"]["accuracy"] for file in files[:2]])
    assert f"ArcFace: `arcface(margin=0.2, scale=16)` | {mean:.3f} (" in printed
    monkeypatch.setattr(lfw_table, "measure", None)  # what is kept is not measured again
    assert lfw_table.main(arguments) == 0

    files[0].write_text(json.dumps({**result, "device": "another"}))
    with pytest.raises(SystemExit):
        lfw_table.main(arguments)
    assert "expected runs that agree on device, those still to be made here among them, came" in capsys.readouterr().err


def development(archive, tmp_path, *more):
    return ["--lfw", str(archive), "--out", str(tmp_path / "runs"), "--table", str(tmp_path / "t.md"), *more]


def made_up(trial, archive, accuracy=0.5):
    """In place of a run."""
    figures = dict.fromkeys(("accuracy", "accuracy_training_pairs", "accuracy_test_pairs", "eer", "auc"), accuracy)
    scores = {"cosine": figures, "normalised": figures}
    return {
        **trial._asdict(), **surroundings(), "people": 12, "pictures": 36, "steps": 3, "seconds": 60.0,
        "raw_pixels": scores, "after_training": scores,
    }  # fmt: skip


def refused(arguments, capsys):
    with pytest.raises(SystemExit):
        lfw_table.main(arguments)
    return capsys.readouterr().err


def test_runs_of_another_archive_or_other_settings_are_refused_before_any_is_made(
    archive, tmp_path, monkeypatch, capsys
):
    arguments = development(archive, tmp_path)
    monkeypatch.setattr(lfw_table, "measure", made_up)
    assert lfw_table.main(arguments) == 0
    kept = lfw_table.Trial("plain()", 0).file(tmp_path / "runs")
    for file in (tmp_path / "runs").iterdir():
        if file != kept:
            file.unlink()  # so that there is something to be made, which must not be
    monkeypatch.setattr(lfw_table, "measure", None)
    lfw = read_lfw(archive)
    write_lfw(tmp_path / "other.npz", lfw._replace(pictures=lfw.pictures[::-1]))
    told = refused(development(tmp_path / "other.npz", tmp_path), capsys)
    assert f"{kept}: expected a run of these data and settings" in told
    assert "made_by archive was " in told
    assert "Delete it, or give another folder by --out" in told
    recipe = lfw_table.RESIDUAL
    for name, value, words in (
        ("ZOOMS", (1.0,), "made_by zooms was [0.93, 1.0, 1.07], is [1.0]"),
        ("FALSE_ACCEPTS", 0.01, "made_by false_accepts was 0.1, is 0.01"),
        ("RESIDUAL", recipe._replace(batch=13), "made_by recipe batch was 12, is 13"),
        ("RESIDUAL", recipe._replace(changes=recipe.changes._replace(turn=(0.0, 0.0))),
         "made_by recipe changes turn was [-0.17, 0.17], is [0.0, 0.0]"),
        ("RESIDUAL", recipe._replace(optimiser=functools.partial(recipe.optimiser, weight_decay=0.5)),
         "made_by recipe optimiser weight_decay was 0.05, is 0.5"),
    ):  # fmt: skip
        with monkeypatch.context() as changed:
            changed.setattr(lfw_table, name, value)
            assert words in refused(arguments, capsys)


def test_columns_and_text_say_on_which_pairs_things_were_chosen(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lfw_table, "measure", functools.partial(made_up, accuracy=0.9))
    assert lfw_table.main(development(archive, tmp_path)) == 0
    printed = capsys.readouterr().out
    for column in (
        "accuracy, threshold: 10 % of the training impostors",
        "of plain cosines, threshold: 10 % of the training impostors",
        "at the training pairs' best threshold",
        "at the test pairs' own best threshold",
        "EER of the test pairs",
    ):
        assert f"| {column} |" in printed
    assert "were chosen by looking at these very test pairs" in printed
    error = (0.9 * 0.1 / 16) ** 0.5  # pairs of eight people, two for each
    assert f"Of 16 pairs an accuracy of 0.900 has a standard error of {error:.3f}" in printed
    here = surroundings()
    assert f"on {here['device']}, {here['cores']} core" in printed
    assert f" of {here['processor']}, with python " in printed


def test_folds_say_what_they_share_with_the_development_split(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lfw_table, "measure", made_up)
    assert lfw_table.main(development(archive, tmp_path, "--folds", "arcface(margin=0.2, scale=16)")) == 0
    # Eight genuine pairs, and every second of the ring of eight impostor pairs, are those of the folds of two people.
    shared = "of those 16 pairs 12 are also pairs of the folds, and of their 8 people 8 are in them."
    assert shared in capsys.readouterr().out
    names = "pairs_dev_train", "pairs_dev_train_same", "pairs_dev_test", "pairs_dev_test_same"
    without = read_lfw(archive)._replace(**dict.fromkeys(names))
    assert lfw_table.of_shared_people(without).endswith("scores were chosen.")


def test_folds_that_the_archive_lacks_are_refused_before_any_training(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lfw_table, "measure", None)
    lfw, path = read_lfw(archive), tmp_path / "few.npz"
    halved = {key: getattr(lfw, key) // 2 for key in ("person_fold", "pairs_10folds_fold")}
    write_lfw(path, lfw._replace(**halved))
    told = refused(development(path, tmp_path, "--folds", "plain()"), capsys)
    assert "--folds: expected an archive with 10 folds, came one with 5. Make it anew" in told


@pytest.mark.parametrize("seeds", [["0", "0"], ["-1"], [str(2**32)]])
def test_seeds_that_would_be_one_are_refused(seeds, archive, tmp_path, capsys):
    told = refused(development(archive, tmp_path, "--seeds", *seeds), capsys)
    assert f"--seeds: expected different numbers from 0 to 4294967295, came [{', '.join(seeds)}]" in told


def test_machines_share_the_runs(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lfw_table, "measure", made_up)
    arguments = ["--lfw", str(archive), "--table", str(tmp_path / "t.md"), "--part"]
    for part in ("1/2", "2/2"):
        assert lfw_table.main([*arguments, part, "--out", str(tmp_path / part[0])]) == 0
    one, two = ({file.name for file in (tmp_path / part).iterdir()} for part in "12")
    assert len(one) == len(two) == 3
    assert not one & two
    assert not (tmp_path / "t.md").exists()
    for wrong in ("0/2", "3/2", "1", "a/2", "1/-2"):
        with pytest.raises(SystemExit):
            lfw_table.main([*arguments, wrong])
        assert f"expected one like 1/3, 2/3 or 3/3, came '{wrong}'" in capsys.readouterr().err


def test_ten_folds_have_a_mean_with_its_standard_error(archive, tmp_path, capsys):
    arguments = ["--lfw", str(archive), "--out", str(tmp_path / "runs"), "--table", str(tmp_path / "t.md")]
    assert lfw_table.main([*arguments, "--folds", "arcface(margin=0.2, scale=16)"]) == 0
    results = [json.loads(file.read_text()) for file in (tmp_path / "runs").iterdir()]
    assert sorted(result["fold"] for result in results) == list(range(FOLDS))
    assert {result["people"] for result in results} == {PEOPLE - 2}
    accuracies = [result["after_training"]["normalised"]["accuracy"] for result in results]
    mean, error = np.mean(accuracies), np.std(accuracies, ddof=1) / np.sqrt(FOLDS)
    assert f"| {mean:.4f} ± {error:.4f} |" in capsys.readouterr().out
