"""Seeds are added until a sweep can tell: the same after a kill, for a fraction of equal seeds."""

import json
import math
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from surge import pipeline
from surge.config import default
from surge.theory.basin import fit_basins
from surge.theory.objective import StepsTo
from surge.theory.plateau import SPAN, find_plateau
from surge.training.grid import Piece, PieceResult
from surge.training.lanes import Lanes
from surge.training.rounds import examples_of, wanted
from surge.workdir import sweeps

LANES = Lanes("map", 1, 4)
STEPS = tuple(range(1, 400, 2))
RATES = tuple(2.0 ** (power / 2) for power in range(-8, 9))


def piece(size, seeds, noise, rates=RATES):
    """Runs whose loss falls from 4 to 1 fastest at rate 1, in steps with noise of their log."""
    rng = np.random.default_rng([size, *seeds])
    log_steps = 4.5 + 0.15 * np.log(rates)[:, None] ** 2
    log_steps = log_steps + noise * rng.normal(size=(len(rates), len(seeds)))
    loss = 4.0 - 3.0 * np.minimum(np.array(STEPS) / np.exp(log_steps)[..., None], 1.1)
    ended = np.cumsum(loss <= 1.0, -1) > 1
    loss = np.where(ended, np.nan, loss)
    seen = np.where(ended, np.nan, np.array(STEPS) * float(size))
    ran = Piece("sgd", "sgd", size, tuple(rates), tuple(seeds), STEPS)
    return ran, PieceResult(loss, np.zeros(loss.shape[:2], bool), seen)


def until_settled(precision, noises, start=4, budget=math.inf):
    """All pieces when nothing is wanted any more, or affordable."""
    stored = [piece(size, range(start), noise) for size, noise in noises.items()]
    while True:
        left = budget - examples_of(stored)
        still = wanted(stored, (StepsTo(1.0),), precision, LANES)
        chosen = next((each for each in still if each.examples <= left), None)
        if chosen is None:
            return stored, still
        own = chosen.piece
        stored.append(piece(own.batch_size, own.seeds, noises[own.batch_size], own.learning_rates))


def errors(stored):
    size, rate, seed, value = [], [], [], []
    for ran, result in stored:
        rates, seeds = np.meshgrid(ran.learning_rates, ran.seeds, indexing="ij")
        size += [ran.batch_size] * rates.size
        rate += rates.ravel().tolist()
        seed += seeds.ravel().tolist()
        value += StepsTo(1.0).value(result.loss, result.diverged, ran.eval_steps).ravel().tolist()
    optima = fit_basins(*map(np.array, (size, rate, value, seed))).optima
    return {size: optimum.error for size, optimum in optima.items()}


def test_the_precision_is_reached_for_half_of_equal_seeds_and_less():
    noises = {4: 0.1, 16: 0.3, 64: 0.1}
    stored, still = until_settled(0.07, noises)
    assert not still
    assert max(errors(stored).values()) <= 0.07
    for count in range(4, 100, 4):
        equal = [piece(size, range(count), noise) for size, noise in noises.items()]
        if max(errors(equal).values()) <= 0.07:
            break
    assert examples_of(stored) <= 0.5 * examples_of(equal)


def test_more_seeds_are_new_ones_near_the_optimum_in_whole_blocks():
    stored, _ = until_settled(0.08, {4: 0.3})
    assert len(stored) > 2
    seeds = [seed for ran, _ in stored for seed in ran.seeds]
    assert seeds == list(range(len(seeds)))
    for ran, _ in stored[1:]:
        assert len(ran.seeds) % LANES.seeds == 0
        assert len(ran.learning_rates) % 2 == 0
        assert np.abs(np.log(ran.learning_rates)).max() < 1.8


def test_what_the_examples_do_not_reach_to_is_said():
    stored, still = until_settled(0.02, {4: 0.3, 64: 0.3}, budget=1e6)
    assert examples_of(stored) <= 1e6
    assert still and still == sorted(still, key=lambda each: each.in_all)
    for each in still:
        assert each.error > 0.02
        assert each.in_all >= each.examples


def test_the_order_of_what_is_stored_does_not_matter():
    stored = [piece(size, range(4), 0.3) for size in (4, 16, 64)]
    ours = wanted(stored, (StepsTo(1.0),), 0.05, LANES)
    assert ours == wanted(stored[::-1], (StepsTo(1.0),), 0.05, LANES)


def test_an_optimum_on_the_edge_is_no_matter_of_seeds():
    stored = [piece(4, range(4), 0.01, RATES[:5])]
    assert wanted(stored, (StepsTo(1.0),), 1e-6, LANES) == []


@pytest.mark.parametrize(
    ("log_lr", "error", "start", "decided"),
    [
        ([0, 1, 1, 1, 1], 0.03, 16, True),
        ([0, 1, 1, 1, 1], 0.2, math.nan, False),  # nothing is bounded
        ([0, 1, 2, 3, 3], 0.03, 256, False),  # too short
        ([0, 1, 1.1, 1.2, 1.3], 0.01, 256, False),  # a slow rise is none
        ([3, 2, 1, 0, -1], 0.03, math.nan, False),
    ],
)
def test_a_plateau_is_bounded_and_long(log_lr, error, start, decided):
    size = np.array([4.0, 16.0, 64.0, 256.0, 1024.0])
    got = find_plateau(size, np.exp(log_lr), np.full(5, error))
    np.testing.assert_equal(got.start, start)
    assert got.decided == decided
    order = [3, 0, 4, 1, 2]
    shuffled = find_plateau(size[order], np.exp(log_lr)[order], np.full(5, error))
    np.testing.assert_equal(shuffled, got)
    assert SPAN == 16


def test_a_slow_rise_is_rarely_called_a_plateau():
    """Rates that differ by exactly the factor are said to be alike in at most one case of 20."""
    rng = np.random.default_rng(0)
    size = np.array([4.0, 64.0])
    called = 0
    for _ in range(2_000):
        lr = np.exp(np.array([0, np.log(1.2)]) + rng.normal(0, 0.05, 2))
        called += find_plateau(size, lr, np.full(2, 0.05)).decided
    assert called <= 0.06 * 2_000


def experiment() -> ConfigDict:
    config = default()
    config.task = "surge.tasks.quadratic:quadratic"
    config.task_args = {"hessian": "random", "size": 10, "noise": 2.0}
    config.optimizers = {"sgd": {"spec": "sgd", "learning_rates": (0.01, 2.0)}}
    config.measure.optimizer = "sgd"
    config.grid = "adaptive"
    config.batch_sizes = (4, 16)
    config.seeds = 4
    config.max_steps = 200
    config.max_examples = 3_200
    config.evals = 24
    config.stop_loss = 1.0
    config.fit.target_losses = (1.0,)
    config.precision = 0.12
    config.max_examples_total = 1_000_000
    return config


def contents(workdir):
    return {path.name: sweeps.read_piece(path) for path in sorted((workdir / "sweep").glob("*.nc"))}


@pytest.mark.parametrize("reach", [0, pytest.param(64, marks=pytest.mark.slow)])
def test_a_sweep_that_was_killed_goes_on_to_the_same_seeds_and_sizes(tmp_path, reach):
    """Whatever piece it was killed in: the files that were there are a prefix of what is run."""
    config = experiment()
    config.reach = reach
    pipeline.run(config, tmp_path / "whole", ["sweep"])
    whole = contents(tmp_path / "whole")
    assert any("-s4" in name for name in whole)
    assert ("sgd-b64.nc" in whole) == bool(reach)
    files = sorted(
        (tmp_path / "whole" / "sweep").glob("*.nc"), key=lambda path: path.stat().st_mtime_ns
    )
    killed = tmp_path / "killed"
    (killed / "sweep").mkdir(parents=True)
    for path in files[: len(files) // 2]:
        shutil.copy(path, killed / "sweep")
    pipeline.run(config, killed, ["sweep"])
    again = contents(killed)
    assert again.keys() == whole.keys()
    for name, ran in again.items():
        assert ran.equals(whole[name])
    stored = json.loads(next(iter(whole.values())).attrs["config"])
    assert stored["precision"] == 0.12
