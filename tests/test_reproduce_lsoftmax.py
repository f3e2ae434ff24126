"""L-Softmax's table of MNIST: its networks, schedules and figures, and a small run of the command, kept and tabled."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.metrics import roc_curve

import lsoftmax_training as training
import margin_softmax as ms
import reproduce_lsoftmax as table
from mnist_files import Digits


@pytest.fixture(autouse=True)
def _as_users_have_it():
    """Flax and Optax promote dtypes and ranks; only this package promises not to."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def shapes_of(trunk, side, features):
    model = nnx.eval_shape(lambda: training.Network(trunk, side, side, features, 10, nnx.Rngs(0)))
    kernels = [leaf.shape for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)) if leaf.ndim > 1]
    pictures = jax.ShapeDtypeStruct((3, side, side), jnp.uint8)
    return sorted(kernels), nnx.eval_shape(lambda m, p: m(p), model, pictures).shape


def test_the_paper_s_network_has_ten_convolutions_of_64_and_256_features():
    kernels, out = shapes_of(training.PaperTrunk, 28, 256)
    assert kernels == sorted([(3, 3, 1, 64), *[(3, 3, 64, 64)] * 9, (64 * 4 * 4, 256), (10, 256)])
    assert out == (3, 256)


@pytest.mark.parametrize(("side", "numbers"), [(28, 7 * 7 * 64), (8, 2 * 2 * 64)])
def test_the_reduced_network_has_three_convolutions(side, numbers):
    kernels, out = shapes_of(training.ReducedTrunk, side, 16)
    assert kernels == sorted([(3, 3, 4, 32), (3, 3, 32, 64), (3, 3, 64, 64), (numbers, 16), (10, 16)])
    assert out == (3, 16)


def test_squares_keep_every_pixel_in_its_place():
    tones = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    ours = training.squares(jnp.asarray(tones))
    assert ours.shape == (2, 2, 3, 4)
    for i, row, column, channel in np.ndindex(ours.shape):
        assert ours[i, row, column, channel] == tones[i, 2 * row + channel // 2, 2 * column + channel % 2]


@pytest.mark.parametrize("steps", [18_000, 3000])
def test_the_learning_rate_falls_at_two_thirds_and_five_sixths(steps):
    rate = training.learning_rate(steps)
    falls = [0, steps * 12 // 18 - 1, steps * 12 // 18 + 1, steps * 15 // 18 - 1, steps * 15 // 18 + 1, steps - 1]
    np.testing.assert_allclose([rate(step) for step in falls], [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-5)


def test_weight_decay_is_for_what_has_rows():
    parameters = {"kernel": jnp.full((2, 3), 4.0), "scale": jnp.ones(3), "slope": jnp.float32(0.25)}
    tx = training.optimiser(18_000)
    updates, _ = tx.update(optax.tree.zeros_like(parameters), tx.init(parameters), parameters)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 5e-4 * 4.0, rtol=1e-5)
    assert updates["scale"].max() == updates["slope"] == 0


def l_softmax(x, w, label, m, blend):
    """The annealed loss from its definition, in float64."""
    logits = w @ x
    length = np.linalg.norm(x) * np.linalg.norm(w[label])
    angle = np.arccos(logits[label] / length)
    k = min(math.floor(m * angle / np.pi), m - 1)
    psi = (-1) ** k * np.cos(m * angle) - 2 * k
    logits[label] = (blend * logits[label] + length * psi) / (1 + blend)
    return np.log(np.exp(logits).sum()) - logits[label]


@pytest.mark.parametrize(("step", "steps"), [(0, 18_000), (12_000, 18_000), (2000, 3000), (2999, 3000)])
@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_losses_are_l_softmax_with_the_annealing_of_the_authors(m, step, steps):
    random = np.random.default_rng(m)
    x, w = random.normal(size=(6, 5)), random.normal(size=(4, 5))
    labels = np.arange(6) % 4
    margin = training.margin_at(jnp.float32(m), step, steps)
    ours = ms.margin_loss(jnp.float32(x), jnp.float32(w), jnp.asarray(labels), margin)
    blend = 1000 * (1 + 2.5e-5 * step * 18_000 / steps) ** -35
    expected = [l_softmax(a, w, label, m, blend) for a, label in zip(x, labels, strict=True)]
    # The power of 35 has the rounding of its base, 6e-8, 35 times; the rest is that of logits of about 10.
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_batches_take_every_example_once_before_any_twice():
    ours = training.batches(10, 4, seed=3)
    taken = np.concatenate([next(ours) for _ in range(10)])
    for epoch in taken.reshape(4, 10):
        assert sorted(epoch) == list(range(10))
    assert (taken[:10] != taken[10:20]).any()
    np.testing.assert_array_equal(next(training.batches(10, 4, seed=3)), taken[:4])


def test_angles_are_those_to_the_means_of_directions():
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(12, 3)), np.arange(12) % 3 + 7
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = [directions[labels == digit].mean(0) for digit in (7, 8, 9)]
    means = np.stack([mean / np.linalg.norm(mean) for mean in means])
    within = np.degrees(np.arccos(np.sum(directions * means[labels - 7], axis=1))).mean()
    between = np.degrees(np.arccos((means @ means.T)[np.triu_indices(3, 1)])).min()
    ours = table.angles(features.astype(np.float32), labels)
    assert ours == {"within": pytest.approx(within, rel=1e-4), "between": pytest.approx(between, rel=1e-4)}


def test_unknown_digits_are_verified_over_all_pairs():
    random = np.random.default_rng(1)
    labels = np.arange(60) % 3
    features = random.normal(size=(60, 4)) + 2 * np.eye(4)[labels]
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    i, j = np.triu_indices(60, 1)
    far, tar, _ = roc_curve(
        labels[i] == labels[j], np.sum(directions[i] * directions[j], axis=1), drop_intermediate=False
    )
    ours = table.verified(features.astype(np.float32), labels)
    nearest = np.argmin(np.abs(far - (1 - tar)))
    # Between two neighbouring points lies at most one pair of either kind: 570 are genuine, 1,200 are not.
    assert ours["eer"] == pytest.approx((far[nearest] + 1 - tar[nearest]) / 2, abs=1 / 570)
    assert ours["tar"] == pytest.approx(tar[far <= 0.01].max(), abs=1.5 / 570)


class Light(nnx.Module):
    """In place of the trunks, whose shapes are tested above: it compiles in an instant."""

    def __init__(self, height, width, *, rngs):
        self.numbers = height * width

    def __call__(self, tones):
        return tones.reshape(len(tones), -1)


def made_up():
    """Digits of noise around a picture for each."""
    random = np.random.default_rng(0)
    own = random.integers(0, 256, (10, 8, 8))
    sets = []
    for count in (100, 60):
        labels = random.permutation(np.arange(count, dtype=np.int32) % 10)
        sets += [((own[labels] + random.integers(0, 256, (count, 8, 8))) // 2).astype(np.uint8), labels]
    return Digits(*sets)


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "load_digits", lambda source: made_up())
    small = [
        p._replace(trunk=Light, features=8, batch=16, steps=6) for p in (table.BUNDLED, table.REDUCED, table.PAPER)
    ]
    monkeypatch.setattr(table, "PROTOCOLS", {protocol.name: protocol for protocol in small})
    places = ["--out", str(tmp_path / "runs"), "--table", str(tmp_path / "tables" / "t.md")]

    def run(*arguments):
        assert table.main([*places, *arguments]) == 0
        return (tmp_path / "tables" / "t.md").read_text()

    return run


def cells_of(text):
    """The rows of both tables by their first cell and their number of cells."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return {(cells[0], len(cells)): cells[1:] for cells in lines if cells}


def test_a_command_trains_on_seven_digits_or_ten_compiles_twice_and_is_tabled(command, tmp_path, monkeypatch):
    seen, traced, models = [], [], []
    train, embed, margin_at = table.train, table.embed, training.margin_at

    def watched(protocol, pictures, labels, margin, seed, tick):
        seen.append((protocol.name, sorted(set(labels.tolist())), margin, seed))
        return train(protocol, pictures, labels, margin, seed, tick)

    monkeypatch.setattr(table, "LOSSES", {"softmax": 1, "L-Softmax, m = 4": 4})
    monkeypatch.setattr(table, "train", watched)
    monkeypatch.setattr(table, "embed", lambda model, pictures: models.append((model, pictures)) or embed(*models[-1]))
    monkeypatch.setattr(training, "margin_at", lambda *a: traced.append(a) or margin_at(*a))
    text = command("--seeds", "0", "1")
    known = {"open": list(range(7)), "closed": list(range(10))}
    assert seen == [("bundled", known[t], m, s) for t in known for s in (0, 1) for m in (1, 4)]
    assert len(traced) == 2

    files = [json.loads(file.read_text()) for file in (tmp_path / "runs").iterdir()]
    results = {(file["task"], file["margin"], file["seed"]): file for file in files}
    assert len(results) == 8
    digits = made_up()
    unknown = digits.test_pictures[digits.test_labels > 6]
    for (_, trained_on, m, seed), (model, pictures) in zip(seen, models, strict=True):
        task = "open" if len(trained_on) == 7 else "closed"
        np.testing.assert_array_equal(pictures, unknown if task == "open" else digits.test_pictures)
        # At first the loss is blended out to a thousandth, so that the seed's network and batch make it.
        first = [results[task, n, seed]["last_losses"][0] for n in (1, m)]
        assert first[1] == pytest.approx(first[0], rel=0.02)
        assert abs(results[task, m, 1 - seed]["last_losses"][0] / first[1] - 1) > 0.02
        if task == "closed":
            tones = (np.float64(pictures) - 127.5).reshape(len(pictures), -1) / 127.5
            x = tones @ np.float64(model.linear.kernel[...])
            x = (x - model.norm.mean[...]) / np.sqrt(model.norm.var[...] + 1e-5)
            x = x * model.norm.scale[...] + model.norm.bias[...]
            x = np.where(x > 0, x, x * model.rectify.negative_slope[...])
            error = np.mean((x @ np.float64(model.classes[...]).T).argmax(1) != digits.test_labels)
            assert results[task, m, seed]["figures"]["error"] == error < 0.9

    rows = cells_of(text)
    for task, keys, width in (("open", ("eer", "tar"), 10), ("closed", ("error",), 8)):
        cells = rows["L-Softmax, m = 4", width]
        for at, key in enumerate(keys):
            ours, softmax = ([100 * results[task, m, s]["figures"][key] for s in (0, 1)] for m in (4, 1))
            less = np.subtract(ours, softmax)
            assert cells[at] == f"{np.mean(ours):.2f} ± {np.std(ours, ddof=1) / np.sqrt(2):.2f}"
            sign = "+" if less.mean() >= 0 else ""
            assert cells[len(keys) + 2 + at] == f"{sign}{less.mean():.2f} ± {np.std(less, ddof=1) / np.sqrt(2):.2f}"
        assert cells[-2] == "2"

    monkeypatch.setattr(table, "measure", None)  # what is kept is not measured again
    assert command("--seeds", "0", "1") == text


def test_what_was_not_run_says_so_and_what_diverged_too(command, tmp_path, monkeypatch):
    def measured(trial, digits):
        figures = None if trial.margin == 4 else dict(eer=0.1, tar=0.5, error=0.0031, within=10.0, between=40.0)
        return {
            **trial._asdict(),
            **dict(device="a device", cores=2, processor="a kind", versions={"jax": "1"}),
            **dict(seconds=90.0, figures=figures, last_losses=[1.0]),
        }

    monkeypatch.setattr(table, "measure", measured)
    text = command("--data", "mnist:x", "--seeds", "0", "--paper", "--tasks", "closed")
    reduced, paper = text.split("## MNIST, the paper's network and schedule, 6 steps of 16")
    assert (
        reduced.count("| not run |") == 4 * 7 // 2 + 2
    )  # neighbours share a bar: of 4, 3 cells 2 and 2 times, by loss
    assert "Not run." in reduced
    assert "| L-Softmax, m = 3 | 0.31 | 0.31 | 10.0 | 40.0 | +0.00 | +0.0 | 1 | 1.5 |" in paper
    assert "| L-Softmax, m = 4 | 0.31 | diverged | diverged | diverged |  |  | 0, 1 diverged | 1.5 |" in paper
    assert "Made on a device, 2 cores of a kind, with jax 1." in paper
    files = sorted(file.name for file in (tmp_path / "runs").iterdir())
    assert files == [f"paper-closed-m{m}-seed0.json" for m in (1, 2, 3, 4)]
    assert command("--data", "mnist:x", "--seeds", "0", "--only-table") == text
    assert sorted(file.name for file in (tmp_path / "runs").iterdir()) == files


@pytest.mark.parametrize("where", ["loss", "features"])
def test_a_run_that_is_not_finite_has_no_figures(where, monkeypatch):
    class Model:
        classes = np.ones((10, 4))

    bad = {"loss": 1.0, "features": 1.0} | {where: np.nan}
    monkeypatch.setattr(table, "train", lambda *_: (Model, [2.0, bad["loss"]]))
    monkeypatch.setattr(table, "embed", lambda model, pictures: np.full((len(pictures), 4), bad["features"]))
    assert table.measure(table.Trial("bundled", "closed", 4, 0), made_up())["figures"] is None


def test_files_of_other_runs_are_refused_before_anything_is_trained(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table, "measure", None)
    trial = table.Trial("bundled", "open", 2, 1)
    path = trial.file(tmp_path / "runs")
    path.parent.mkdir()
    other = table.made_by(trial, table.checksums(made_up())) | {"steps": 7}
    for content, words in (
        (json.dumps({**trial._asdict(), "made_by": other}), "expected a run of these data and settings"),
        ('{"made_by": ', "expected the JSON of a run"),
        ("[]", "expected the JSON of a run"),
    ):
        path.write_text(content)
        with pytest.raises(SystemExit):
            command()
        told = capsys.readouterr().err
        assert f"{path}: {words}" in told
        assert "Delete it" in told


WRONG = {
    "paper on digits": (["--paper"], "--paper: expected --data mnist:FOLDER with it"),
    "a seed twice": (["--seeds", "1", "1"], r"--seeds: expected different numbers from 0 to 4294967295, came [1, 1]"),
    "a negative seed": (["--seeds", "-1"], r"--seeds: expected different numbers from 0 to 4294967295, came [-1]"),
    "other data": (["--data", "cifar"], "expected digits or mnist:FOLDER"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_refused(name, capsys):
    arguments, words = WRONG[name]
    with pytest.raises(SystemExit):
        table.main(arguments)
    assert words in capsys.readouterr().err


def test_pictures_that_make_no_table_are_refused(monkeypatch):
    digits = made_up()
    monkeypatch.setattr(table, "load_digits", lambda source: digits._replace(pictures=digits.pictures[:, :, 1:]))
    with pytest.raises(ValueError, match="multiples of 4, came 8 x 7"):
        table.load("mnist:x")
    without = digits._replace(test_labels=np.where(digits.test_labels == 8, 9, digits.test_labels))
    monkeypatch.setattr(table, "load_digits", lambda source: without)
    with pytest.raises(ValueError, match="at least 2 of each digit to test on, came 0 of 8"):
        table.load("mnist:x")
