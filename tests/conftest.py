"""Strict settings for every test: no silent promotion of dtypes or ranks, no NaN, warnings are errors."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_nans", True)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Every compiled program in a cache holds memory maps, of which a process has only so many."""
    yield
    jax.clear_caches()
