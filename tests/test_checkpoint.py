"""Training states on disk."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from surge.training import checkpoint
from surge.training.run import State


def test_a_state_comes_back_as_it_was(tmp_path):
    params = {"layer": {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3, jnp.bfloat16)}}
    state = State(params, optax.adam(0.1).init(params), jnp.int32(7))
    checkpoint.save(tmp_path, "loss-1.0", state)
    got = checkpoint.restore(tmp_path, "loss-1.0", jax.tree.map(jnp.zeros_like, state))
    assert jax.tree.structure(got) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, got, state)


def test_saving_again_replaces(tmp_path):
    for value in (1.0, 2.0):
        checkpoint.save(tmp_path, "state", {"a": jnp.float32(value)})
    assert checkpoint.restore(tmp_path, "state", {"a": jnp.float32(0)})["a"] == 2.0


def test_a_full_disk_is_an_error_of_the_system_and_leaves_nothing(tmp_path):
    """A limit on file size stands in for a full disk."""
    state = {"a": jnp.arange(40_000.0)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "state.orbax-checkpoint-tmp").mkdir()  # of a process that was killed
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            checkpoint.save(tmp_path, "state", state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.filename == str(tmp_path / "state")
    assert not list(tmp_path.iterdir())
    checkpoint.save(tmp_path, "state", state)
    got = checkpoint.restore(tmp_path, "state", jax.tree.map(jnp.zeros_like, state))
    np.testing.assert_array_equal(got["a"], state["a"])
