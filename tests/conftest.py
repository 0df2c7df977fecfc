"""What every test has: two CPU devices, and memory that is given back."""

import ctypes
import functools
import gc
import sys

import jax
import pytest

# What is said of several devices is tested on several.
jax.config.update("jax_num_cpu_devices", 2)


@pytest.fixture(autouse=True, scope="module")
def memory_is_given_back(request):
    """After each file of tests: compiled programs and arrays would else be held to the end."""
    yield
    ours = [module for name, module in list(sys.modules.items()) if name.startswith("surge")]
    for module in (*ours, request.module):
        for function in vars(module).values():
            if isinstance(function, functools._lru_cache_wrapper):
                function.cache_clear()
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(
            0
        )  # what is free goes back to the system, for the other worker


@pytest.fixture(scope="module")
def no_rank_promotion():
    """An error where arrays of unlike ranks meet unsaid: for numerics, since models broadcast.

    Not a context: the engine compiles in a thread of its own. Strict promotion of dtypes has no
    fixture, since optax.adam does not bear it.
    """
    before = jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_rank_promotion", "raise")
    yield
    jax.config.update("jax_numpy_rank_promotion", before)
