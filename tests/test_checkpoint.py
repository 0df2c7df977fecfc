"""Training states on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
