"""Strict settings for every test: no silent promotion of dtypes or ranks, no NaN, warnings are errors."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_nans", True)
jax.config.update("jax_num_cpu_devices", 8)


def pytest_addoption(parser):
    parser.addoption("--devices", type=int, choices=range(1, 9), default=4, help="that all margins are sharded over")


@pytest.hookimpl(tryfirst=True)  # before the fixtures of a module, some of which compile
def pytest_runtest_setup(item):
    """Quick compilation, for most programs here run for an instant; as users have it where a test is `optimised`.

    Those are the tests about digits, about memory, and about what a page shows.
    """
    quick = item.get_closest_marker("optimised") is None
    if jax.config.read("jax_disable_most_optimizations") != quick:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Every compiled program in a cache holds memory maps, of which a process has only so many."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def as_users_have_it():
    """Flax and Optax promote dtypes and ranks; only this package promises not to."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def pytest_sessionfinish(session):
    """A skipped test proves nothing: it fails the run unless it stands on the list, with its reason."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    lines = (pathlib.Path(__file__).parent / "skips.txt").read_text().splitlines()
    allowed = {line.split()[0] for line in lines if line and not line.startswith("#")}
    unlisted = [r.nodeid for r in reporter.stats.get("skipped", ()) if r.nodeid not in allowed]
    if unlisted:
        reporter.write_line(f"\nskipped, and not on tests/skips.txt: {', '.join(unlisted)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
