"""The table of the Olivetti faces: which runs it takes, and what it says of a difference."""

import math

import numpy as np
import pytest

import margin_table
from face_recipes import SMALL
from faces.pictures import ArrayPictures
from measured_runs import surroundings


def faces():
    labels = np.repeat(np.arange(4), 2).astype(np.int32)
    return ArrayPictures(np.arange(8 * 16, dtype=np.uint8).reshape(8, 4, 4, 1), labels, tuple("abcd"))


def made_up(trial):
    """In place of a run; each loss's EER is a little below that of plain softmax, by fold and seed, its TAR above."""
    less = 0.0 if trial.margin == "plain()" else 0.004 + 0.0001 * trial.seed
    eer, tar = 0.1 + 0.01 * trial.fold - less, 0.6 + 0.01 * trial.fold + 10 * less
    figures = dict.fromkeys(margin_table.METRICS, 0.5) | {"eer": eer, "tar_at_far_1e2": tar}
    return {**trial._asdict(), **surroundings(), "raw_pixels": figures, "after_training": figures}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(margin_table, "olivetti_faces", faces)
    monkeypatch.setattr(margin_table, "measure", made_up)
    return ["--out", str(tmp_path / "runs"), "--table", str(tmp_path / "t.md")]


def test_differences_have_the_digits_that_tell_them_from_their_error(arguments, capsys):
    assert margin_table.main(arguments) == 0
    less = [-(0.004 + 0.0001 * seed) for seed in range(3)] * 4
    mean, error = np.mean(less), np.std(less, ddof=1) / math.sqrt(12)
    printed = capsys.readouterr().out
    assert printed.count(f"| {mean:+.4f} ± {error:.4f} | {-10 * mean:+.3f} ± {10 * error:.3f} |") == 5
    assert f"{mean:+.4f} ± {error:.4f}" == "-0.0041 ± 0.0000"
    assert {line.count("|") for line in printed.splitlines() if line.startswith("|")} == {8}
    here = surroundings()
    assert f"on {here['device']}, {here['cores']} core" in printed


@pytest.mark.parametrize("more", [[], ["--choose"]])
def test_runs_of_other_pictures_or_another_recipe_are_refused_before_any_is_made(
    more, arguments, tmp_path, monkeypatch, capsys
):
    assert margin_table.main([*arguments, *more]) == 0
    files = sorted((tmp_path / "runs").iterdir())
    for file in files[:-1]:  # whichever is left: all are looked at before the first is made
        file.unlink()
    monkeypatch.setattr(margin_table, "measure", None)
    for name, value, words in (
        ("SMALL", SMALL._replace(features=64), "made_by recipe features was 128, is 64"),
        ("olivetti_faces", lambda: ArrayPictures(faces().array[::-1], faces().labels, faces().names),
         "made_by pictures was "),
    ):  # fmt: skip
        with monkeypatch.context() as changed:
            changed.setattr(margin_table, name, value)
            with pytest.raises(SystemExit):
                margin_table.main([*arguments, *more])
        told = capsys.readouterr().err
        assert f"{files[-1]}: expected a run of these data and settings" in told
        assert words in told
