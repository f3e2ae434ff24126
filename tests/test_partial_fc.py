"""The example of Partial FC: a run, small; what is kept of it; and the table."""

import json
import math

import jax
import numpy as np
import pytest
from flax import nnx

import partial_fc
import partial_fc_training
from partial_fc_training import Trial

pytestmark = pytest.mark.usefixtures("as_users_have_it")


class Light(nnx.Module):
    """In place of the face network's backbone, which its own tests compile."""

    def __init__(self, shape, features, *, rngs):
        self.shape, self.features = shape, features
        self.linear = nnx.Linear(math.prod(shape), features, rngs=rngs)
        self.norm = nnx.BatchNorm(features, rngs=rngs)

    def __call__(self, pictures, key=None):
        return self.norm(self.linear(pictures.reshape(len(pictures), -1)))


def noise(persons, picture_key, grain_key, size):
    del grain_key
    return jax.random.uniform(picture_key, (persons.shape[1], size, size))


def test_a_run_is_measured_and_kept(tmp_path, monkeypatch, capsys):
    for module in (partial_fc, partial_fc_training):
        monkeypatch.setattr(module, "BATCH", 8)
        monkeypatch.setattr(module, "portraits", noise)
    monkeypatch.setattr(partial_fc_training, "SmallBackbone", Light)
    monkeypatch.setattr(partial_fc, "ARMS", (partial_fc.Arm(0.1, 0.9, corrected=True),))
    monkeypatch.setattr(partial_fc, "UNSEEN_PEOPLE", 4)
    arguments = ["--identities", "80", "--steps", "40", "--seeds", "0", "--out", str(tmp_path / "runs")]
    arguments += ["--table", str(tmp_path / "table.md")]
    assert partial_fc.main(arguments) == 0
    (file,) = (tmp_path / "runs").iterdir()
    result = json.loads(file.read_text())
    assert np.all(np.isfinite(result["losses"]))
    assert len(result["losses"]) == 40
    assert result["class_part"]["kept_bytes"] == 2 * 4 * 80 * 128 + 4  # rows, momentum, and the number of steps
    assert "10 % of the rows, momentum 0.9, corrected" in capsys.readouterr().out
    monkeypatch.setattr(partial_fc, "measure", None)  # what is kept is not measured again
    assert partial_fc.main(arguments) == 0
    with pytest.raises(SystemExit):
        partial_fc.main(["--identities", "79"])
    capsys.readouterr()
    for setting, value, words in (
        ("BATCH", 7, "made_by batch was 8, is 7"), ("UNSEEN_PEOPLE", 3, "made_by unseen was [4, 5], is [3, 5]"),
    ):  # fmt: skip
        with monkeypatch.context() as changed:
            changed.setattr(partial_fc, setting, value)
            with pytest.raises(SystemExit):
                partial_fc.main(arguments)
        told = capsys.readouterr().err
        assert f"{file}: expected a run of these data and settings" in told
        assert words in told


def test_a_seed_twice_is_refused(capsys):
    with pytest.raises(SystemExit):
        partial_fc.main(["--seeds", "0", "0"])
    assert "--seeds: expected different numbers from 0 to 4294967295, came [0, 0]" in capsys.readouterr().err


def test_the_table_takes_differences_seed_by_seed():
    def result(arm, seed, eer):
        class_part = {"seconds": 0.01, "temporary_bytes": 2**20, "kept_bytes": 2**20}
        return {
            **Trial(*arm, seed, 20_000, 600)._asdict(),
            "device": "cpu", "cores": 2, "processor": "a kind", "versions": {"jax": "1"},
            "raw_pixels": {"eer": 0.4}, "after_training": {"eer": eer}, "seconds_per_step": 0.1,
            "class_part": class_part,
        }  # fmt: skip

    every, tenth = partial_fc.Arm(1.0, 0.9), partial_fc.Arm(0.1, 0.9)
    eers = {every: (0.04, 0.05, 0.06), tenth: (0.05, 0.08, 0.07)}
    results = {arm: [result(arm, seed, eer) for seed, eer in enumerate(eers[arm])] for arm in eers}
    lines = partial_fc.table(results).splitlines()
    assert lines[0].startswith("20,000 people, 600 steps of 256 pictures, seeds 0, 1, 2; ArcFace with margin 0.2")
    assert lines[4].startswith("| raw pixels | 0.4000 (0.0000) |")
    assert lines[5].startswith("| all rows, momentum 0.9 | 0.0500 (0.0100) | 0.12 |  | 100 ms | 10.0 ms | 1.0 MiB |")
    assert "| 0.0667 (0.0153) | 0.17 | +0.0167 ± 0.0067 |" in lines[6]
    assert lines[-1] == "Made by `python examples/partial_fc.py` on cpu, 2 cores of a kind, with jax 1."
