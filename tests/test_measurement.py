"""Noise scales of layers against gradients of those layers taken alone, and all of a measurement on
the quadratic."""

import runpy
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from scipy.special import erf, erfinv

from surge.config import check
from surge.gradients.moments import per_example_moments
from surge.gradients.noise import gradient_noise
from surge.gradients.steps import StepSample
from surge.measurement import states
from surge.measurement.point import Point
from surge.measurement.stage import measure
from surge.measurement.statistics import STATISTICS, statistic
from surge.measurement.statistics.one_step_laws import estimates
from surge.report import verdicts
from surge.tasks import by_ghosts
from surge.tasks.quadratic import problem, quadratic
from surge.theory import noise
from surge.theory.rivals import one_law
from surge.workdir import files


class Normed(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(2, name="out")(
            nn.LayerNorm(name="norm")(nn.tanh(nn.Dense(5, name="in")(inputs)))
        )


def found(model, n=64):
    batch = 1 + jax.random.normal(jax.random.key(0), (n, 3))
    params = model.init(jax.random.key(1), batch[0])

    def loss(params, x):
        return jnp.sum((model.apply(params, x) - 1) ** 2)

    gradients = jax.vmap(jax.grad(loss), (None, 0))(params, batch)["params"]
    return gradient_noise(loss, params, [batch[::2], batch[1::2]]), gradients


def alone(gradients):
    """b_simple of the leaves of some layers, from their gradients as one long vector."""
    rows = np.concatenate(
        [np.asarray(leaf, float).reshape(len(leaf), -1) for leaf in jax.tree.leaves(gradients)], 1
    )
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
    assert (
        np.isnan(result.norms.value)
        and result.norms.why == "no normalisation layers are recognised"
    )


@pytest.mark.filterwarnings("ignore")  # of Opacus and torch
def test_moments_equal_opacus_on_copied_weights():
    import torch
    from opacus.grad_sample import GradSampleModule

    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(19, 1, 8, 8)).astype(np.float32), rng.integers(0, 3, 19)
    layers = (
        torch.nn.Conv2d(1, 4, 3, padding=1),
        torch.nn.GroupNorm(2, 4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
    )
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
        logits = jnp.asarray(Copy().apply({"params": params}, example[0]))
        return -nn.log_softmax(logits)[example[1]]

    batch = jnp.asarray(np.moveaxis(inputs, 1, -1)), jnp.asarray(labels)
    moments = per_example_moments(
        loss, copied(lambda each: each.detach().numpy()), batch, microbatch_size=8
    )
    sampled = GradSampleModule(peer)
    torch.nn.functional.cross_entropy(
        sampled(torch.tensor(inputs)), torch.tensor(labels)
    ).backward()
    theirs = copied(lambda each: each.grad_sample.numpy())
    jax.tree.map(
        lambda ours, rows: np.testing.assert_allclose(ours, rows.mean(0), atol=2e-6),
        moments.mean,
        theirs,
    )
    jax.tree.map(
        lambda ours, rows: np.testing.assert_allclose(
            ours, rows.var(0, ddof=1), rtol=2e-3, atol=1e-6
        ),
        moments.variance,
        theirs,
    )


P, NOISE, SIZES = 40, 16.0, (16, 64, 256, 1024, 4096)


def measured(directory, task, **changes):
    """What measure.nc holds of a quadratic, H = I + 0.15·11ᵀ with μ = 1 and σ = NOISE at the
    start."""
    config = runpy.run_path(str(Path(__file__).parent.parent / "configs" / "quadratic.py"))[
        "get_config"
    ]()
    config.batch_sizes = SIZES
    config.max_examples = max(SIZES)
    config.optimizers.sgd.learning_rates = (1e-4, 1.0)
    config.measure.update(directions=128, examples=32_768, branch_examples=1)
    config.measure.update(changes)
    experiment = check(config)
    specs = {label: grid.spec for label, grid in experiment.optimizers.items()}
    dataset = measure(
        task, specs, SIZES, experiment.measure, directory / "checkpoints", seed=experiment.seed
    )
    dataset.attrs["config"] = config.to_json()
    files.write_dataset(directory / "measure.nc", dataset)
    return files.read_dataset(directory / "measure.nc")


@pytest.fixture(scope="module")
def along_training(tmp_path_factory):
    """Measured at four losses along a run of gradient descent with hardly any noise: μ stays
    proportional to 1."""
    directory = tmp_path_factory.mktemp("quadratic")
    losses = {
        "optimizer": "sgd",
        "learning_rate": 2e-3,
        "batch_size": 4096,
        "max_steps": 200,
        "losses": (2.0, 1.4, 1.0),
    }
    return measured(directory, quadratic(size=P, noise=NOISE), **losses)


def exact_sign_lr(batch_size, mu):
    """ε_opt of sign descent for equal coordinates: P·μ·e/(D + O·e²) with e = erf(√(B/2)·μ/σ)."""
    trace, coupling = 1.15 * P, 0.15 * P * (P - 1)
    mean = erf(np.sqrt(batch_size / 2) * mu / NOISE)
    return P * mu * mean / (trace + coupling * mean**2)


def assert_near(measured, exact):
    """Every estimate is within a fifth of the truth, and its interval, a tenth wider, holds it."""
    for law in ("measured", "independent", "oracle"):
        value, low, high = (
            measured[f"{law}_lr"].sel(bound=bound).values for bound in ("value", "low", "high")
        )
        np.testing.assert_allclose(value / exact, 1, atol=0.2, err_msg=law)
        assert (low < 1.1 * exact).all() and (high > exact / 1.1).all(), law


def test_laws_curve_and_peak_are_those_of_the_quadratic(along_training):
    for index, loss in enumerate(along_training.loss.values):
        here = along_training.isel(checkpoint=index).sel(optimizer="sign_sgd")
        mu = (loss / along_training.loss.values[0]) ** 0.5  # L = |μ|²/2λ
        exact = exact_sign_lr(np.array(SIZES, float), mu)
        assert_near(here, exact)
        curve = one_law(np.array(SIZES, float), *here.measured_curve.values)
        np.testing.assert_allclose(curve / exact, 1, atol=0.15)
        peak = 2 * (NOISE / mu) ** 2 * erfinv((1.15 / (0.15 * (P - 1))) ** 0.5) ** 2
        assert (
            here.measured_peak.sel(bound="low") <= 1.1 * peak
            and here.measured_peak.sel(bound="high") >= peak / 1.1
        )
        assert along_training.noise_scale.isel(checkpoint=index).sel(
            scale="b_simple", bound="value"
        ).item() == (pytest.approx((NOISE / mu) ** 2, rel=0.15))


def test_what_drifts_with_the_loss_has_the_exponents_of_the_quadratic(along_training):
    value = along_training.drift.sel(bound="value")
    for name in ("noise scale, b_simple", "noise scale, sign (l1)", "validity bound, median"):
        assert value.sel(quantity=name).item() == pytest.approx(-1, abs=0.3), name
    assert value.sel(quantity="r = D/O").item() == pytest.approx(0, abs=0.05)
    assert along_training.drift_n.sel(quantity="noise scale, b_simple") == 4
    norms = along_training.sel(quantity="noise scale, b_simple, normalisation layers")
    assert np.isnan(norms.drift).all() and "fewer than three" in norms.drift_why.item()


@pytest.mark.slow
def test_verdicts_blame_the_independent_law_only_where_noise_is_correlated(
    along_training, tmp_path
):
    found = verdicts.one_step(along_training)
    assert [sentence.split(", ")[0] for sentence in found] == ["sgd", "sign_sgd"]
    assert all("measured directions within a factor 1.0" in sentence for sentence in found)
    correlated = measured(tmp_path, quadratic(size=P, noise=NOISE, correlation=0.5), losses=())
    (_, _, blame) = verdicts.one_step(correlated)
    assert blame.startswith("sign_sgd: the independent law is off by more than a grid step (1.41)")
    assert "at B = 64: its premise of independent" in blame
    ratio = (correlated.independent_lr / correlated.oracle_lr).sel(
        optimizer="sign_sgd", bound="value"
    )
    assert (ratio.sel(batch_size=64) > 2**0.5).all() and (ratio.sel(batch_size=4096) < 2**0.5).all()


def test_few_batch_sizes_with_an_optimum_have_no_curve():
    def of_curvatures(*curvatures):
        """Of one direction's drift and curvature at each batch size, noisy from direction to
        direction."""
        scatter = 1 + 0.1 * np.random.default_rng(0).normal(size=(len(curvatures), 2, 8))
        rates = np.geomspace(0.1, 10, 5)
        samples = [
            StepSample(noise[0], bend * noise[1], np.ones(8), rates, np.ones((5, 8)))
            for bend, noise in zip(curvatures, scatter, strict=True)
        ]
        return estimates(samples, [2**k for k in range(len(curvatures))], None)

    for curvatures in ((-1.0, -1.0), (1.0,), (1.0, 1.0, 1.0, -1.0)):
        found = of_curvatures(*curvatures)
        assert np.isfinite(found.measured_lr).any("bound").sum() == sum(
            each > 0 for each in curvatures
        )
        assert np.isnan(found.measured_curve).all() and np.isnan(found.measured_peak).all()
        assert "fewer than four" in found.measured_peak_why.item()
    assert np.isfinite(of_curvatures(1.0, 1.0, 1.0, 1.0).measured_curve).all()


@pytest.mark.slow
def test_ghost_batches_give_what_single_examples_give_where_nothing_is_coupled(tmp_path):
    single = quadratic(size=P, noise=NOISE)
    batch_loss = by_ghosts(
        lambda theta, batch: jax.vmap(single.loss, (None, 0))(theta, batch).mean(), 4
    )
    coupled = single._replace(batch_loss=batch_loss, ghost=4, evaluation=jnp.zeros((4, P)))
    found = measured(tmp_path, coupled, losses=())
    for scale in ("b_simple", "sign (l1)"):
        estimate = found.noise_scale.sel(scale=scale).squeeze()
        assert estimate.sel(bound="low") < NOISE**2 < estimate.sel(bound="high")
    here = found.isel(checkpoint=0).sel(optimizer="sign_sgd")
    known = problem(size=P, noise=NOISE)
    assert here.validity.sel(quantile=0.5, bound="value").item() == pytest.approx(
        np.pi / 2 * NOISE**2, rel=0.15
    )
    assert here.snr.item() == pytest.approx(1 / NOISE, rel=0.1)
    assert here.b_noise.item() == pytest.approx(
        np.pi * np.trace(known.hessian) / 2 / (0.15 * P * (P - 1) / NOISE**2), rel=0.3
    )
    assert_near(here, exact_sign_lr(np.array(SIZES, float), 1.0))
    assert here.measured_examples.item() % 4 == 0


KNOWN = {  # statistic -> a variable of its, and its dimensions beside the checkpoint
    "noise": ("noise_scale", ("scale", "bound")),
    "signs": ("trace", ()),
    "one_step_laws": ("oracle_lr", ("optimizer", "batch_size", "bound")),
    "branches": ("branch_lr", ("optimizer", "batch_size", "horizon", "bound")),
    "kappas": ("kappa", ("optimizer", "reading", "bound")),
}


def test_every_statistic_is_in_the_table_of_tests():
    assert STATISTICS.keys() == KNOWN.keys()


@pytest.mark.parametrize("name", KNOWN)
def test_a_statistic_is_measured_at_every_checkpoint(along_training, name):
    variable, dimensions = KNOWN[name]
    assert along_training[variable].dims == ("checkpoint", *dimensions)
    assert along_training.sizes["checkpoint"] == 4


def test_kappa_is_that_of_the_quadratic_at_every_checkpoint(along_training):
    exact = 1.15 * P / (1.15 * P + 0.15 * P * (P - 1))  # tr H over sHs of equal coordinates
    sign = along_training.sel(optimizer="sign_sgd", reading="one step")
    assert (sign.kappa.sel(bound="low") < 1.1 * exact).all()
    assert (sign.kappa.sel(bound="high") > exact / 1.1).all()
    height = 1 / (2 * (exact * (1 - exact)) ** 0.5)
    np.testing.assert_allclose(sign.peak_over_plateau.sel(bound="value"), height, rtol=0.15)
    sgd = along_training.sel(optimizer="sgd")
    assert (sgd.peak_over_plateau == 1).all() and np.isinf(sgd.expected_b_peak).all()


def test_states_are_trained_once_and_one_more_statistic_needs_no_training(tmp_path, monkeypatch):
    few = {"directions": 8, "examples": 64, "losses": (2.0,), "learning_rate": 2e-3}
    few |= {"optimizer": "sgd", "batch_size": 4096, "max_steps": 200}
    task = quadratic(size=P, noise=NOISE)
    first = measured(tmp_path, task, **few)

    def refuse(*args):
        raise AssertionError("trained again")

    @statistic
    def twice_the_first(point: Point) -> xr.Dataset:
        return xr.Dataset({"twice": 2 * float(point.params[0])})

    try:
        with monkeypatch.context() as patch:
            patch.setattr(states, "_train", refuse)
            again = measured(tmp_path, task, **few)
            with pytest.raises(AssertionError, match="trained again"):
                measured(tmp_path, task, **few | {"losses": (1.9,)})
    finally:
        STATISTICS.pop("twice_the_first")
    assert again.twice.dims == ("checkpoint",) and again.sizes["checkpoint"] == 2
    xr.testing.assert_identical(again.drop_vars("twice"), first)
