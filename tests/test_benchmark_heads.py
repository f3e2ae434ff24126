"""The benchmark of heads: its command, what it keeps, and what it says of what could not run."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import benchmark_heads
import head_candidates
import margin_softmax as ms
from head_candidates import CANDIDATES, DoesNotFitError, Examples, Shape


def test_one_command_makes_tables_pictures_and_a_file_for_each_shape(tmp_path, monkeypatch, capsys):
    def too_large(examples, limit):
        raise DoesNotFitError("3.0 GiB")

    monkeypatch.setitem(CANDIDATES, "dense", too_large)
    monkeypatch.setitem(sys.modules, "tokamax", None)
    monkeypatch.setattr(benchmark_heads, "CANDIDATES", dict(CANDIDATES))
    command = ["--out", str(tmp_path), "--repetitions", "2", "--shape", "8,4,50", "--shape", "8,4,70"]
    for name in ("baseline", "dense", "blockwise", "sharded", "tokamax"):
        command += ["--candidate", name]
    assert benchmark_heads.main([*command, "--block-size", "16"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("does not fit: needs 3.0 GiB") == 4
    assert "Not run: tokamax: not run: tokamax is not installed." in printed
    assert "blocks of 16" in printed
    for name in ("heads.md", "time.png", "memory.png"):
        assert (tmp_path / name).stat().st_size > 500
    files = sorted(tmp_path.glob("*.json"))
    assert len(files) == 2
    result = json.loads(files[0].read_text())
    assert result["shape"] == [8, 4, 50]
    assert set(result["seconds"]) == {"bare products", "baseline", "blockwise", "sharded", "blocks of 16"}
    assert all(len(times) == 2 and min(times) > 0 for times in result["seconds"].values())
    assert {"device", "processor", "versions", "load", "load_after", "seed"} <= set(result)

    def again(trial):
        raise AssertionError("it was measured before")

    monkeypatch.setattr(benchmark_heads, "measure", again)
    assert benchmark_heads.main([*command, "--block-size", "16"]) == 0
    assert capsys.readouterr().out == printed[printed.index("float32, 2 rounds") :]
    monkeypatch.setattr(benchmark_heads, "SCALE", 32.0)
    with pytest.raises(SystemExit, match=r"B8-D4-C50.*made_by loss was \[0\.35, 64\.0\], is \[0\.35, 32\.0\]"):
        benchmark_heads.main([*command, "--block-size", "16"])


def test_candidates_compute_one_loss():
    examples = head_candidates.examples_of(Shape(8, 4, 50), "float32", 0)
    in_heads = [head_candidates.in_head(head) for head in (ms.dense(), ms.blockwise())]
    losses = [loss(*examples) for loss in (head_candidates.baseline, *in_heads)]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_what_does_not_fit_is_known_before_it_runs():
    examples = head_candidates.examples_of(Shape(8, 4, 50), "float32", 0)
    with pytest.raises(DoesNotFitError, match="GiB"):
        head_candidates.compiled(head_candidates.baseline, examples, limit=1000)


def test_the_floor_is_measured_in_pieces_where_its_products_do_not_fit(monkeypatch):
    seen = []
    monkeypatch.setattr(jax, "block_until_ready", seen.append)
    examples = Examples(jnp.ones((2, 3)), jnp.ones((10, 3)), jnp.zeros(2, jnp.int32))
    head_candidates.bare_products(examples, limit=4 * 2 * 5 * 4).run()
    assert [array.shape for array in seen] == [(2, 5), (2, 3), (5, 3)] * 2


def test_a_training_step_tells_time_and_memory(tmp_path, capsys):
    assert benchmark_heads.main(["--out", str(tmp_path), "--training-step", "8,4,50", "--repetitions", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "training-step.json").read_text())
    assert len(told["seconds"]) == 2
    assert told["losses"][-1] < told["losses"][0]
    assert told["peak_resident_gib"] > 0.01


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shape", "8,4"], "three whole numbers >= 1 as B,D,C, came '8,4'"),
        (["--shape", "8,0,5"], "came '8,0,5'"),
        (["--candidate", "sparse"], "came 'sparse'"),
        (["--repetitions", "0"], "at least 1, came 0"),
        (["--block-size", "-5"], "at least 1, came -5"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, words, capsys):
    with pytest.raises(SystemExit):
        benchmark_heads.main(arguments)
    assert words in capsys.readouterr().err
