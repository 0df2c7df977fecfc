"""Noise scales of layers, against gradients of those layers taken alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surge.gradients.moments import per_example_moments
from surge.measurement import gradient_noise
from surge.theory import noise


class Normed(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(2, name="out")(nn.LayerNorm(name="norm")(nn.tanh(nn.Dense(5, name="in")(inputs))))


def found(model, n=64):
    batch = 1 + jax.random.normal(jax.random.key(0), (n, 3))
    params = model.init(jax.random.key(1), batch[0])
    loss = lambda params, x: jnp.sum((model.apply(params, x) - 1) ** 2)  # noqa: E731
    gradients = jax.vmap(jax.grad(loss), (None, 0))(params, batch)["params"]
    return gradient_noise(loss, params, [batch[::2], batch[1::2]]), gradients


def alone(gradients):
    """b_simple of the leaves of some layers, from their gradients as one long vector."""
    rows = np.concatenate([np.asarray(leaf, float).reshape(len(leaf), -1) for leaf in jax.tree.leaves(gradients)], 1)
    mean = rows.mean(0)
    return noise.b_simple((rows**2).sum(1), rows @ mean, mean @ mean)


def test_each_layer_and_the_normalisation_layers_are_those_taken_alone():
    result, gradients = found(Normed())
    assert set(result.layers) == {"params/in", "params/norm", "params/out"}
    for name, estimate in result.layers.items():
        expected = alone(gradients[name.split("/")[1]])
        np.testing.assert_allclose(estimate[:3], expected[:3], rtol=1e-3)
        assert estimate.n == 64
    np.testing.assert_allclose(result.norms[:3], alone(gradients["norm"])[:3], rtol=1e-3)
    np.testing.assert_allclose(result.b_simple[:3], alone(gradients)[:3], rtol=1e-3)


def test_without_normalisation_layers_there_is_a_reason():
    result, _ = found(nn.Dense(2))
    assert np.isnan(result.norms.value) and result.norms.why == "no normalisation layers"


@pytest.mark.filterwarnings("ignore")  # of Opacus and torch
def test_moments_equal_opacus_on_copied_weights():
    import torch
    from opacus.grad_sample import GradSampleModule

    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(19, 1, 8, 8)).astype(np.float32), rng.integers(0, 3, 19)
    layers = (torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.GroupNorm(2, 4), torch.nn.ReLU(), torch.nn.Flatten())
    peer = torch.nn.Sequential(*layers, torch.nn.Linear(256, 3))

    class Copy(nn.Module):
        @nn.compact
        def __call__(self, image):
            hidden = nn.GroupNorm(2, epsilon=1e-5)(nn.Conv(4, (3, 3))(image[None]))[0]
            return nn.Dense(3)(nn.relu(hidden).transpose(2, 0, 1).reshape(-1))

    def copied(read):
        """Flax's parameters in its own layout from one tensor of each of torch's."""
        kernel, bias, scale, shift, weight, last = (read(each) for each in peer.parameters())
        return {
            "Conv_0": {"kernel": np.moveaxis(kernel, (-4, -3), (-1, -2)), "bias": bias},
            "GroupNorm_0": {"scale": scale, "bias": shift},
            "Dense_0": {"kernel": np.swapaxes(weight, -1, -2), "bias": last},
        }

    def loss(params, example):
        return -nn.log_softmax(Copy().apply({"params": params}, example[0]))[example[1]]

    batch = jnp.asarray(np.moveaxis(inputs, 1, -1)), jnp.asarray(labels)
    moments = per_example_moments(loss, copied(lambda each: each.detach().numpy()), batch, microbatch_size=8)
    sampled = GradSampleModule(peer)
    torch.nn.functional.cross_entropy(sampled(torch.tensor(inputs)), torch.tensor(labels)).backward()
    theirs = copied(lambda each: each.grad_sample.numpy())
    jax.tree.map(lambda ours, rows: np.testing.assert_allclose(ours, rows.mean(0), atol=2e-6), moments.mean, theirs)
    jax.tree.map(
        lambda ours, rows: np.testing.assert_allclose(ours, rows.var(0, ddof=1), rtol=2e-3, atol=1e-6),
        moments.variance,
        theirs,
    )
