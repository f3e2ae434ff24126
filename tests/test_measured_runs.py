"""Many runs, one file each: which files are taken for an answer, and which are refused."""

import argparse
import json
import os
from typing import NamedTuple

import pytest

import measured_runs
from measured_runs import OtherRunError, Seeds, in_file_name, measure_all


class Trial(NamedTuple):
    margin: str
    seed: int

    def file(self, folder):
        return folder / f"{in_file_name(self.margin)}-seed{self.seed}.json"


MADE_BY = {"data": 17, "recipe": {"batch": 64, "sizes": (8, 8)}}
TRIALS = [Trial("plain()", 0), Trial("plain()", 1), Trial("arcface(margin=0.2)", 0)]


def measured(folder, trials=TRIALS, made_by=MADE_BY, measure=None, alike=()):
    def result(trial):
        return {**trial._asdict(), "device": "here", "figure": trial.seed + 0.5}

    return measure_all(
        trials,
        folder,
        measure or result,
        made_by=lambda trial: made_by,
        program=lambda trial: trial.margin,
        told=lambda trial, result: str(trial),
        alike=alike,
    )


def never(trial):
    raise AssertionError("nothing was to be measured")


def test_what_was_measured_is_kept_with_what_made_it(tmp_path):
    results = measured(tmp_path / "runs")
    assert [(r["margin"], r["seed"], r["figure"]) for r in results] == [(*t, t.seed + 0.5) for t in TRIALS]
    assert {json.dumps(r["made_by"]) for r in results} == {json.dumps(MADE_BY)}
    assert measured(tmp_path / "runs", measure=never) == results
    assert len(list((tmp_path / "runs").iterdir())) == 3


OTHERS = {
    "another number": ({**MADE_BY, "data": 18}, "made_by data was 17, is 18"),
    "one within": (
        {**MADE_BY, "recipe": {"batch": 64, "sizes": (8, 9)}},
        "made_by recipe sizes was [8, 8], is [8, 9]",
    ),
    "one more": ({**MADE_BY, "zooms": 3}, "made_by zooms was nothing, is 3"),
    "one less": ({"recipe": MADE_BY["recipe"]}, "made_by data was 17, is nothing"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_other_settings_is_refused_before_anything_is_measured(name, tmp_path):
    made_by, words = OTHERS[name]
    measured(tmp_path, TRIALS[2:])
    with pytest.raises(OtherRunError) as refused:
        measured(tmp_path, made_by=made_by, measure=never)
    told = str(refused.value)
    assert told.startswith(f"{TRIALS[2].file(tmp_path)}: expected a run of these data and settings")
    assert f"({words})" in told
    assert told.endswith("Delete it, or give another folder by --out.")


def test_two_margins_of_one_file_name_are_not_taken_for_each_other(tmp_path):
    one, other = Trial("arcface(margin=-0.1)", 0), Trial("arcface(margin=+0.1)", 0)
    assert one.file(tmp_path) == other.file(tmp_path)
    measured(tmp_path, [one])
    with pytest.raises(OtherRunError, match=r"margin was arcface\(margin=-0\.1\), is arcface\(margin=\+0\.1\)"):
        measured(tmp_path, [other], measure=never)


@pytest.mark.parametrize(
    "content", ["", '{"margin": ', "[]", "3", "null", '{"margin": "plain()", "seed": 1}', "\0" * 40,
                '{"margin": "plain()", "seed": 1, "made_by": 3}', '{"made_by": {}}'],
)  # fmt: skip
def test_a_damaged_file_or_one_without_a_record_is_named_before_anything_is_measured(content, tmp_path):
    file = TRIALS[1].file(tmp_path)
    file.write_text(content)
    with pytest.raises(OtherRunError, match=r"seed1\.json: expected .*Delete it, or give another folder by --out"):
        measured(tmp_path, measure=never)


def test_runs_of_two_places_make_no_table_and_none_is_made_in_vain(tmp_path, monkeypatch):
    measured(tmp_path, TRIALS[:1])
    monkeypatch.setattr(measured_runs, "surroundings", lambda: {"device": "elsewhere"})
    assert len(measured(tmp_path, TRIALS[:1], measure=never, alike=["device"])) == 1
    with pytest.raises(OtherRunError, match=r"agree on device, .* came elsewhere and here in"):
        measured(tmp_path, measure=never, alike=["device"])


def test_a_stopped_command_leaves_whole_files_alone(tmp_path):
    def stopped(trial):
        if trial.seed:
            raise KeyboardInterrupt
        return trial._asdict()

    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, measure=stopped)
    assert list(tmp_path.iterdir()) == [TRIALS[0].file(tmp_path)]


def test_margins_as_file_names():
    assert in_file_name("am_softmax(margin=0.1, scale=16)") == "am_softmax_margin=0.1__scale=16_"


@pytest.mark.parametrize("seeds", [["0", "0"], ["1", "-1"], [str(2**32)]])
def test_seeds_that_repeat_or_are_none_are_refused(seeds, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", action=Seeds, default=(0, 1))
    assert parser.parse_args([]).seeds == (0, 1)
    assert parser.parse_args(["--seeds", "3", "0"]).seeds == [3, 0]
    with pytest.raises(SystemExit):
        parser.parse_args(["--seeds", *seeds])
    expected = f"--seeds: expected different numbers from 0 to 4294967295, came [{', '.join(seeds)}]"
    assert expected in capsys.readouterr().err


def test_surroundings_tell_the_cores_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5, 6}, raising=False)
    here = measured_runs.surroundings()
    assert here["cores"] == 3
    assert here["processor"]
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert measured_runs.cores() == 7


def test_each_place_is_told_once():
    one = {"device": "cpu", "cores": 1, "processor": "a kind", "versions": {"jax": "1", "numpy": "2"}}
    other = one | {"device": "gpu", "cores": 16}
    expected = "cpu, 1 core of a kind, with jax 1, numpy 2; and on gpu, 16 cores of a kind, with jax 1, numpy 2"
    assert measured_runs.places([one, other, one]) == expected
