"""What one checkpoint says: gradient moments, noise scales, and ε_opt(B) by three estimates."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from absl import logging
from jax.flatten_util import ravel_pytree

from surge.config import ConfigError, Experiment
from surge.gradients import curvature, independent, one_step
from surge.gradients.moments import GradientMoments, merge, per_example_moments
from surge.optimizers import Optimizer, make_optimizer
from surge.tasks import Task, count_rows, ghost_batches
from surge.theory import noise
from surge.theory.comparison import compare_laws
from surge.theory.drift import power_law
from surge.theory.peak import find_peak
from surge.training import checkpoint
from surge.training.branch import BranchOracle
from surge.training.grid import geometric_steps
from surge.training.hardware import microbatch, size_classes
from surge.training.run import Cell, Run, Shared, State, make_advance, make_begin

GROUPS = 8  # disjoint sets of examples that the independent law is jackknifed over
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BOUNDS = ("value", "low", "high")
SCALES = ("b_simple", "sign (l1)", "b_simple, normalisation layers")
VALIDITY_EDGES = np.logspace(-2, 8, 21)  # of the histogram of πσ²/2μ²
CURVE = ("max_lr", "b_turn", "kappa")  # of the one law through the measured law
_draw = jax.jit(lambda draw, data, keys: jax.vmap(draw, (None, 0))(data, keys), static_argnums=0)
_layer_alignments = jax.jit(curvature.layer_alignments, static_argnames=("loss_fn", "layers"))
NO_SURGE = one_step.MeasuredSurge(
    np.full(3, np.nan),
    np.full(3, np.nan),
    0,
    "the form is stated for the sign of the gradient and for Adam",
)
FEWEST = (
    len(CURVE) + 1
)  # batch sizes with a known optimum: through fewer points the curve is arbitrary


def train_to_losses(config: Experiment, task: Task, directory: Path) -> list[tuple[State, float]]:
    """Trains one run, and saves the state at its start and each time the loss first falls to a
    level.

    Args:
      config: its `measure` names the optimizer, learning rate, batch size, longest run and loss
        levels.
      task: what is trained.
      directory: of the checkpoints; what is there already is replaced.

    Returns:
      (state, loss on the evaluation subset) of each level that was reached, the start first.
    """
    chosen = config.measure
    optimizer = make_optimizer(config.optimizers[chosen.optimizer].spec)
    size = microbatch(task, size_classes(task), chosen.batch_size)
    begin = jax.jit(make_begin(task, optimizer))
    advance = jax.jit(make_advance(task, optimizer, microbatch_size=size))
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    steps = np.asarray(geometric_steps(chosen.max_steps, 64), np.int32)
    cell = Cell(chosen.learning_rate, key, chosen.batch_size, steps)
    shared = Shared(-np.inf, task.data, task.evaluation)
    trained: Run = begin(cell, shared)
    reached = [(trained.state, float(trained.start_loss))]
    for level in sorted((each for each in chosen.losses if each < reached[0][1]), reverse=True):
        going = trained._replace(ended=jnp.zeros((), bool))
        sought = shared._replace(stop_loss=level)
        trained = advance(going, cell, sought, trained.state.step, steps[-1])
        if trained.diverged or not trained.ended:
            logging.info("measure: loss %g is not reached in %d steps", level, chosen.max_steps)
            break
        reached.append((trained.state, float(trained.loss[np.isfinite(trained.loss)][-1])))
    for state, loss in reached:
        checkpoint.save(directory, f"step-{int(state.step)}", state)
        logging.info("measure: checkpoint at step %d, loss %.3g", state.step, loss)
    return reached


def run(config: Experiment, task: Task, directory: Path) -> xr.Dataset:
    """Trains to the chosen losses and measures there.

    Where only a batch of examples has a loss, its ghost batches stand in for examples: moments are
    those of mini-batches. Whatever counts examples does so nonetheless.

    Returns:
      Dataset with dims checkpoint, optimizer, batch_size, horizon, scale, quantile, quantity and
      bound (value, low, high); its attribute `verdicts` holds the sentences that the numbers amount
      to.
    """
    states = train_to_losses(config, task, directory)
    single, unit = (task, 1) if task.batch_loss is None else (ghost_batches(task), task.ghost)
    optimizers = _measurable(config, unit)
    branch_key = jax.random.fold_in(jax.random.key(config.seed), 2_000_000)
    branch = BranchOracle(task, branch_key, config.measure.branch_examples)
    rows = []
    for index, (state, loss) in enumerate(states):
        key = jax.random.fold_in(jax.random.key(config.seed), 1_000_000 + index)
        row = _checkpoint(config, single, unit, state.params, optimizers, branch, key)
        rows.append(row.assign(loss=loss, step=int(state.step)))
        logging.info("measure: %d of %d checkpoints done", index + 1, len(states))
    dataset = xr.concat(rows, "checkpoint", combine_attrs="override")
    dataset = dataset.merge(_drift(dataset))
    found = verdicts(dataset, config.learning_rate_ratio)
    dataset.attrs = {"optimizer": config.measure.optimizer, "verdicts": json.dumps(found)}
    return dataset


def _measurable(config: Experiment, unit: int) -> dict[str, Optimizer]:
    """The optimizers whose directions can be sampled.

    Raises:
      ConfigError: there are none.
    """
    made = {
        label: make_optimizer(chosen.spec).counted_in(unit)
        for label, chosen in config.optimizers.items()
    }
    kept = {label: one for label, one in made.items() if "gradient_fn" not in one.needs}
    for label in made.keys() - kept:
        logging.info("measure: %s takes gradients at points of its own, and is left out", label)
    if not kept:
        raise ConfigError(
            "config.optimizers holds only such as take gradients at points of their own, which"
            " cannot be measured: add one that does not, or give --stages=sweep,fit,report"
        )
    return kept


def _checkpoint(
    config: Experiment,
    task: Task,
    unit: int,
    params: Any,
    optimizers: dict[str, Optimizer],
    branch: BranchOracle,
    key: jax.Array,
) -> xr.Dataset:
    """One row: `task` is of single units, each of `unit` examples."""
    chosen = config.measure
    example_key, probe_key, step_key = jax.random.split(key, 3)
    size, units = chosen.examples // GROUPS // unit, [each // unit for each in config.batch_sizes]
    batches = [
        _draw(task.draw, task.data, jax.random.split(each, size))
        for each in jax.random.split(example_key, GROUPS)
    ]
    found = gradient_noise(task.loss, params, batches, unit)
    hessian = independent.flat_hessian(task.loss, params, task.evaluation, probe_key)
    formula = independent.independent_law(hessian, found.groups, units)
    summary = independent.sign_summary(hessian, found.groups)
    summary = summary._replace(snr=summary.snr / unit**0.5, b_noise=summary.b_noise * unit)
    dataset = _noise(found).assign(summary._asdict() | {"r": summary.r})
    point = task.loss, params, task.draw, task.data, task.evaluation
    steps = one_step.sample_steps(*point, optimizers, units, step_key, count=chosen.directions)
    # A second derivative along a direction, on the evaluation batch, costs about what a gradient of
    # it does.
    curvatures = len(units) * chosen.directions * count_rows(task.evaluation)
    rows = []
    for label, samples in steps.samples.items():
        spec = config.optimizers[label].spec
        # The paper's formula is for the sign of the gradient: it has nothing to say of SGD.
        estimates = _estimates(config, samples, formula if optimizers[label].sign_like else None)
        estimates = estimates.assign(measured_examples=unit * (steps.examples + curvatures))
        rows.append(estimates.assign(_branches(config, branch, spec, params, samples)))
    stacked = xr.concat(rows, "optimizer").assign_coords(optimizer=list(optimizers))
    return dataset.merge(stacked).assign_coords(bound=list(BOUNDS), scale=list(SCALES))


def _estimates(
    config: Experiment,
    samples: list[one_step.StepSample],
    formula: one_step.OneStepLR | None,
) -> xr.Dataset:
    """One optimizer's one-step estimates, and the peak of the measured one."""
    measured = one_step.measured_law(samples)
    laws = {
        "independent": formula,
        "measured": measured,
        "oracle": one_step.one_step_oracle(samples),
    }
    nothing = np.full((len(config.batch_sizes), len(BOUNDS)), np.nan)
    values = {
        f"{name}_lr": (
            ("batch_size", "bound"),
            nothing if law is None else np.stack([law.lr, law.low, law.high], -1),
        )
        for name, law in laws.items()
    }
    known = np.isfinite(measured.lr) & (measured.low > 0) & np.isfinite(measured.high)
    sizes, lr = np.asarray(config.batch_sizes, float)[known], measured.lr[known]
    error = np.log(measured.high[known] / measured.low[known]) / (2 * 1.96)
    comparison = compare_laws(sizes, lr, error)
    peak = find_peak(sizes, lr, error, comparison)
    surge = (
        one_step.measured_surge(samples, config.batch_sizes) if formula is not None else NO_SURGE
    )
    curve = (
        comparison.fits["one_law"].parameters
        if len(sizes) >= FEWEST
        else dict.fromkeys(CURVE, np.nan)
    )
    return xr.Dataset(
        values
        | {
            "measured_curve": ("parameter", [curve[each] for each in CURVE]),
            "measured_surge": (
                ("surge_parameter", "bound"),
                np.stack([surge.max_lr, surge.b_noise]),
            ),
            "measured_surge_why": ((), surge.why),
            "measured_peak": ("bound", np.array([peak.value, peak.low, peak.high])),
            "measured_peak_why": ((), peak.why),
        },
        coords={
            "batch_size": list(config.batch_sizes),
            "parameter": list(CURVE),
            "surge_parameter": ["max_lr", "b_noise"],
        },
    )


def _branches(
    config: Experiment,
    branch: BranchOracle,
    spec: str,
    params: Any,
    samples: list[one_step.StepSample],
) -> dict[str, Any]:
    """ε_opt(B; K) of one optimizer, nan where the budget has no room for it or the optimum is at
    the grid's edge."""
    centres, horizons = one_step.measured_law(samples).lr, tuple(config.measure.horizons)
    values, examples = np.full((len(centres), len(horizons), len(BOUNDS)), np.nan), 0
    for index, (size, centre) in enumerate(zip(config.batch_sizes, centres, strict=True)):
        found = branch(spec, params, size, float(centre), horizons)
        examples += found.examples
        for position, horizon in enumerate(horizons):
            optimum = found.optima.get(horizon)
            if optimum is not None and not optimum.at_edge:
                values[index, position] = optimum.lr, optimum.low, optimum.high
    return {
        "branch_lr": (("batch_size", "horizon", "bound"), values),
        "branch_examples": ((), examples),
        "horizon": list(horizons),
    }


def _drift(dataset: xr.Dataset) -> xr.Dataset:
    """Exponents of what moves with the training loss."""
    loss = dataset.loss.values
    series = {
        f"noise scale, {scale}": dataset.noise_scale.sel(scale=scale, bound="value")
        for scale in SCALES
    }
    series |= {
        "validity bound, median": dataset.validity.sel(quantile=0.5, bound="value"),
        "r = D/O": dataset.r,
    }
    series |= {"B_noise of the independent law": dataset.b_noise}
    peaks = dataset.measured_peak.sel(bound="value")
    series |= {
        f"B_peak measured, {each}": peaks.sel(optimizer=each) for each in dataset.optimizer.values
    }
    fits = [power_law(loss, each.values) for each in series.values()]
    return xr.Dataset(
        {
            "drift": (
                ("quantity", "bound"),
                np.array([[fit.value, fit.low, fit.high] for fit in fits]),
            ),
            "drift_n": ("quantity", [fit.n for fit in fits]),
            "drift_why": ("quantity", [fit.why for fit in fits]),
        },
        coords={"quantity": list(series), "bound": list(BOUNDS)},
    )


class GradientNoise(NamedTuple):
    """What gradients of single examples say of noise.

    Attributes:
      groups: moments of each batch.
      moments: of the gradients of all examples.
      b_simple: tr Σ/|μ|², noise scale of SGD.
      sign: noise scale of sign descent.
      validity: QUANTILES over parameters of πσ²/2μ² [q, 3]: value, low and high.
      histogram: shares of parameters between VALIDITY_EDGES of it.
      layers: name -> tr Σ/|μ|² of that layer's parameters alone.
      norms: tr Σ/|μ|² of all normalisation layers' parameters together.
    """

    groups: list[GradientMoments]
    moments: GradientMoments
    b_simple: noise.Estimate
    sign: noise.Estimate
    validity: np.ndarray
    histogram: np.ndarray
    layers: dict[str, noise.Estimate]
    norms: noise.Estimate


def gradient_noise(
    loss_fn: Any, params: Any, batches: Sequence[Any], unit: int = 1
) -> GradientNoise:
    """Moments and noise scales from disjoint batches of examples, at least two.

    Args:
      loss_fn: (params, example) -> scalar.
      params: pytree of arrays.
      batches: pytrees [n, ...].
      unit: examples behind each of the n, where it is a ghost batch: Σ is then `unit` times that of
        its gradients.
    """
    examples = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches)
    groups = [per_example_moments(loss_fn, params, batch) for batch in batches]
    total, halves = groups[0], list(groups[:2])
    for index, each in enumerate(groups[1:], 1):
        total = merge(total, each)
        if index > 1:
            halves[index % 2] = merge(halves[index % 2], each)
    flat = lambda tree: np.asarray(ravel_pytree(tree)[0], float)  # noqa: E731
    mean, std, n = flat(total.mean), (unit * flat(total.variance)) ** 0.5, unit * int(total.n)
    names, normal = _layers(params)
    unique = list(dict.fromkeys(names))
    layers = tuple(unique.index(name) for name in names)
    alignments = np.asarray(_layer_alignments(loss_fn, params, examples, total.mean, layers), float)
    norms, squares = np.zeros_like(alignments), np.zeros(len(unique))
    leaves = zip(
        layers, jax.tree.leaves(total.square_norms), jax.tree.leaves(total.mean), strict=True
    )
    for layer, norm, average in leaves:
        norms[layer] += np.asarray(norm, float)
        squares[layer] += float((np.asarray(average, float) ** 2).sum())

    def scale(chosen: Sequence[int]) -> noise.Estimate:
        if not len(chosen):
            return noise.undefined(n, np.nan, np.nan, "no normalisation layers")
        picked = list(chosen)
        found = noise.b_simple(
            norms[picked].sum(0), alignments[picked].sum(0), float(squares[picked].sum())
        )
        counted = {
            name: unit * getattr(found, name) for name in ("value", "low", "high", "n", "numerator")
        }
        return found._replace(**counted)

    return GradientNoise(
        groups=groups,
        moments=total,
        b_simple=scale(range(len(unique))),
        sign=noise.sign_noise_scale(flat(halves[0].mean), flat(halves[1].mean), std, n),
        validity=noise.validity_quantiles(mean, std, n, np.array(QUANTILES)),
        histogram=noise.validity_histogram(mean, std, VALIDITY_EDGES),
        layers={name: scale([index]) for index, name in enumerate(unique)},
        norms=scale([index for index, name in enumerate(unique) if name in normal]),
    )


def _layers(params: Any) -> tuple[list[str], set[str]]:
    """The layer of each leaf, by its path but for the last key, and those that normalise: Flax
    gives them `scale`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    names = [
        path.rpartition("/")[0] or path or "params" for path in paths
    ]  # a bare array has no path
    return names, {path.rpartition("/")[0] for path in paths if path.endswith("/scale")}


def _noise(found: GradientNoise) -> xr.Dataset:
    scales, layers = (found.b_simple, found.sign, found.norms), found.layers
    return xr.Dataset(
        {
            "noise_scale": (
                ("scale", "bound"),
                np.array([[each.value, each.low, each.high] for each in scales]),
            ),
            "noise_scale_why": ("scale", [each.why for each in scales]),
            "layer_noise": (
                ("layer", "bound"),
                np.array([[e.value, e.low, e.high] for e in layers.values()]),
            ),
            "layer_noise_why": ("layer", [each.why for each in layers.values()]),
            "validity": (("quantile", "bound"), found.validity),
            "validity_share": ("validity_bin", found.histogram),
            "zero_share": ((), float(np.mean(ravel_pytree(found.moments.zero_share)[0]))),
        },
        coords={
            "quantile": list(QUANTILES),
            "layer": list(layers),
            "validity_bin": VALIDITY_EDGES[:-1],
        },
    )


def verdicts(dataset: xr.Dataset, ratio: float) -> list[str]:
    """For each optimizer how far each estimate is from the true one-step optimum, and where
    independence fails.

    Args:
      dataset: with independent_lr, measured_lr and oracle_lr.
      ratio: of learning rates that is a step of the grid.
    """
    sentences = []
    truth = dataset.oracle_lr.sel(bound="value")
    for optimizer in dataset.optimizer.values:
        parts = []
        for name in ("measured", "independent"):
            ratios = (dataset[f"{name}_lr"].sel(bound="value") / truth).sel(optimizer=optimizer)
            off = np.exp(np.abs(np.log(ratios.values[np.isfinite(ratios.values)])))
            if off.size:
                what = "measured directions" if name == "measured" else "the independent law"
                parts.append(
                    f"{what} within a factor {np.median(off):.2f} (worst {off.max():.2f}, n = {off.size})"
                )
        if parts:
            sentences.append(
                f"{optimizer}, one step from a checkpoint: {'; '.join(parts)} of the true optimum."
            )
        sentences += _independence(dataset.sel(optimizer=optimizer), ratio)
    return sentences


def _independence(dataset: xr.Dataset, ratio: float) -> list[str]:
    """The sentence on the batch sizes at which one optimizer's independent law is off by much, and
    not by chance."""
    law, truth = dataset.independent_lr, dataset.oracle_lr
    much = np.abs(np.log(law / truth)).sel(bound="value") > np.log(ratio)
    apart = (law.sel(bound="low") > truth.sel(bound="high")) | (
        law.sel(bound="high") < truth.sel(bound="low")
    )
    off = (much & apart).any("checkpoint")
    if not off.any():
        return []
    sizes = ", ".join(str(size) for size in dataset.batch_size.values[off.values])
    return [
        f"{dataset.optimizer.item()}: the independent law is off by more than a grid step ({ratio:.2f}), its interval "
        f"apart from the truth's, at B = {sizes}: its premise of independent Gaussian gradients does not hold there."
    ]
