"""What every test has: two CPU devices, and memory that is given back."""

import ctypes
import functools
import gc
import os
import sys
from pathlib import Path

# Most of a test is compilation. Programs are kept on disk, for the other worker, for the programs
# that tests start, and for the next run; a cache that the user has named stays as it is.
PROGRAMS = Path(__file__).parent.parent / ".pytest_cache" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax  # noqa: E402
import pytest  # noqa: E402

# What is said of several devices is tested on several.
jax.config.update("jax_num_cpu_devices", 2)

STATISTICS = Path("/proc/self/statm")  # where there is one: on Linux
HELD = 2**30  # bytes; a test that leaves more behind has its programs dropped at once


def held() -> int:
    """Bytes of memory that this process has, 0 where the system does not say."""
    if not STATISTICS.exists():
        return 0
    return int(STATISTICS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def drop_programs() -> None:
    """Compiled programs and what is not referred to any more, back to the system."""
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # else it is kept for this process, and the other lacks it


@pytest.fixture(autouse=True)
def large_programs_are_dropped():
    yield
    if held() > HELD:
        drop_programs()


@pytest.fixture(autouse=True, scope="module")
def memory_is_given_back(request):
    """After each file: programs, and what functions of ours and of its tests have cached."""
    yield
    ours = [module for name, module in list(sys.modules.items()) if name.startswith("surge")]
    for module in (*ours, request.module):
        for function in vars(module).values():
            if isinstance(function, functools._lru_cache_wrapper):
                function.cache_clear()
    drop_programs()


@pytest.fixture(scope="module")
def no_rank_promotion():
    """An error where arrays of unlike ranks meet unsaid: for numerics, since models broadcast.

    Not a context: the engine compiles in a thread of its own. Strict promotion of dtypes has no
    fixture, since optax.adam does not bear it.
    """
    before = jax.config.values["jax_numpy_rank_promotion"]
    jax.config.update("jax_numpy_rank_promotion", "raise")
    yield
    jax.config.update("jax_numpy_rank_promotion", before)
