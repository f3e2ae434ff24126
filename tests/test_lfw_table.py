"""The table of LFW, from a small archive of the same layout: a run, what is kept of it, and the tables."""

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
    mean = np.mean([json.loads(file.read_text())["after_training"]["normalised"]["accuracy"] for file in files[:2]])
    assert f"ArcFace: `arcface(margin=0.2, scale=16)` | {mean:.3f} (" in printed
    monkeypatch.setattr(lfw_table, "measure", None)  # what is kept is not measured again
    assert lfw_table.main(arguments) == 0

    files[0].write_text(json.dumps({**result, "epochs": 7}))
    with pytest.raises(SystemExit):
        lfw_table.main(arguments)
    assert "expected runs that agree on epochs, came" in capsys.readouterr().err


def test_machines_share_the_runs(archive, tmp_path, monkeypatch, capsys):
    def measured(trial, lfw):
        return {**trial._asdict(), "after_training": {"normalised": {"accuracy": 0.5}}}

    monkeypatch.setattr(lfw_table, "measure", measured)
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
