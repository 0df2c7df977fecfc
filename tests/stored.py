"""Stored results that tests of the report draw from: whole, empty, undefined."""

import numpy as np
import xarray as xr

from surge.entries import fit_entry
from surge.theory.objective import FinalLoss, StepsTo
from surge.workdir import files, sweeps

SIZES = (4, 16, 64, 256)
RATES = tuple(2.0**power for power in range(-8, 1))
SEEDS = (0, 1, 2)
ATTRIBUTES = {"config": '{"grid": "dense"}', "versions": '{"surge": "0.1"}', "devices": "2 x cpu"}


def best(size):
    """A surge that peaks at 64."""
    return 0.1 * 2 / (np.sqrt(64 / size) + np.sqrt(size / 64))


def store_sweep(workdir, optimizer="adam", rates=RATES, broken=()):
    """Runs whose loss falls fastest at `best`, to the same 1.0 at any size; those of `broken` sizes
    all diverge."""
    rng = np.random.default_rng(0)
    steps = np.array([1, 4, 16, 64, 256])
    for size in SIZES:
        slowness = (
            1 + np.log(np.array(rates) / best(size))[:, None, None] ** 2
        )  # [learning_rate, seed, eval]
        noise = np.exp(0.02 * rng.normal(size=(1, len(SEEDS), 1)))
        loss = 1 + 2 * np.exp(-steps / (10 * slowness * noise * (1 + 60 / size)))
        diverged = np.full(loss.shape[:2], size in broken)
        loss = np.where(diverged[..., None], np.nan, loss)
        seen = np.where(np.isfinite(loss), steps * size, np.nan)
        dataset = sweeps.piece_dataset(
            optimizer, size, rates, SEEDS, steps, loss, diverged, seen, ATTRIBUTES
        )
        files.write_dataset(sweeps.sweep_path(workdir, optimizer, size), dataset)


def store_fits(workdir, optimizer="adam", targets=(2.0, 1.5)):
    sweep = sweeps.open_sweep(workdir)
    entries = [
        fit_entry(
            sweeps.rows(sweep, optimizer, objective),
            objective.judged_by,
            optimizer=optimizer,
            target_loss=objective.target_loss,
        )
        for objective in (FinalLoss() if target is None else StepsTo(target) for target in targets)
    ]
    files.write_json(workdir / "fit.json", {"fits": entries})
    return entries


def measurement(losses=(3.0, 1.6), optimizers=("adam", "sgd"), **changed):
    """What the measure stage stores: SGD has no independent law, the second horizon no room, one
    layer no number."""
    bounds = np.array([1.0, 0.8, np.inf])
    lr = np.broadcast_to(
        np.array([best(size) for size in SIZES])[:, None] * [1, 0.7, 1.5], (len(losses), 2, 4, 3)
    )
    adam = np.array([1, np.nan])[:, None, None]
    horizon = np.array([1, np.nan])[:, None]
    each = {
        "loss": ("checkpoint", list(losses)),
        "step": ("checkpoint", [10 * index for index in range(len(losses))]),
        "noise_scale": (
            ("checkpoint", "scale", "bound"),
            np.tile([100 * bounds, np.nan * bounds], (len(losses), 1, 1)),
        ),
        "noise_scale_why": (
            ("checkpoint", "scale"),
            [["", "no normalisation layers"]] * len(losses),
        ),
        "layer_noise": (
            ("checkpoint", "layer", "bound"),
            np.tile([50 * bounds, np.nan * bounds], (len(losses), 1, 1)),
        ),
        "layer_noise_why": (("checkpoint", "layer"), [["", "the mean may be zero"]] * len(losses)),
        "validity": (
            ("checkpoint", "quantile", "bound"),
            np.tile([10 * bounds], (len(losses), 1, 1)),
        ),
        "validity_share": (("checkpoint", "validity_bin"), np.full((len(losses), 4), 0.25)),
        "zero_share": ("checkpoint", np.zeros(len(losses))),
        "drift": (("quantity", "bound"), np.full((1, 3), np.nan)),
        "drift_n": ("quantity", [2]),
        "drift_why": ("quantity", ["defined at fewer than three losses"]),
        "independent_lr": (("checkpoint", "optimizer", "batch_size", "bound"), lr * adam * 1.1),
        "measured_lr": (("checkpoint", "optimizer", "batch_size", "bound"), lr * 0.9),
        "oracle_lr": (("checkpoint", "optimizer", "batch_size", "bound"), lr),
        "branch_lr": (
            ("checkpoint", "optimizer", "batch_size", "horizon", "bound"),
            lr[:, :, :, None] * horizon * adam[..., None],
        ),
        "measured_curve": (
            ("checkpoint", "optimizer", "parameter"),
            np.tile([0.1, 900.0, 0.1], (len(losses), 2, 1)),
        ),
        "measured_surge": (
            ("checkpoint", "optimizer", "surge_parameter", "bound"),
            np.tile([[0.1, 0.09, 0.11], [40.0, 30.0, 50.0]], (len(losses), 2, 1, 1)),
        ),
        "measured_surge_why": (("checkpoint", "optimizer"), [["", ""]] * len(losses)),
        "measured_peak": (
            ("checkpoint", "optimizer", "bound"),
            np.tile([np.inf, 9.0, np.inf], (len(losses), 2, 1)),
        ),
        "measured_peak_why": (
            ("checkpoint", "optimizer"),
            [["no significant fall"] * 2] * len(losses),
        ),
        "measured_examples": (("checkpoint", "optimizer"), np.full((len(losses), 2), 1e4)),
        "branch_examples": (("checkpoint", "optimizer"), np.full((len(losses), 2), 1e5)),
    }
    summary = {
        "mu_l1": 30.0,
        "trace": 100.0,
        "off_diagonal": 400.0,
        "snr": 0.1,
        "b_noise": 40.0,
        "max_lr": 0.1,
        "r": 0.25,
    }
    each |= {
        name: ("checkpoint", np.full(len(losses), value))
        for name, value in (summary | changed).items()
    }
    each |= {
        "kappa": (
            ("checkpoint", "optimizer", "reading", "bound"),
            np.tile([[0.05, 0.04, 0.06], [0.8, 0.6, 1.1]], (len(losses), 2, 1, 1)),
        ),
        "kappa_why": (("checkpoint", "optimizer"), [["", ""]] * len(losses)),
        "peak_over_plateau": (
            ("checkpoint", "optimizer", "reading", "bound"),
            np.tile([[2.3, 2.1, 2.6], [1.0, 1.0, 1.0]], (len(losses), 2, 1, 1)),
        ),
    }
    coords = {
        "reading": ["one step", "long run"],
        "optimizer": list(optimizers),
        "batch_size": list(SIZES),
        "surge_parameter": ["max_lr", "b_noise"],
        "horizon": [1, 4],
        "bound": ["value", "low", "high"],
        "scale": ["b_simple", "normalisation"],
        "layer": ["first", "last"],
        "quantile": [0.5],
        "quantity": ["r = D/O"],
        "validity_bin": np.logspace(0, 3, 4),
    }
    return xr.Dataset(
        each,
        coords,
        ATTRIBUTES | {"optimizer": "adam"},
    )
