"""Probes: the next rate is the one that tells most, planted rates are found, and runs resume."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy import integrate, stats

from surge.probe import DENSE
from surge.suggest import suggest
from surge.tasks.quadratic import quadratic
from surge.theory import probing
from surge.theory.probing import Hypotheses, Try, hypotheses
from surge.theory.transfer import psi_grid
from surge.training.probe import NARROW, Goal, run_probe
from surge.workdir.files import ResultError

GRID = psi_grid(1024, 64)
LONGEST = 5_000.0


def prior(middle=0.7, width=0.7):
    mass = stats.norm.pdf(GRID, middle, width)
    return hypotheses(GRID, mass / mass.sum())


KNOWN = prior()
TRIES = [Try(0.69, 5.1, 8.5), Try(1.39, 5.4, 6.5), Try(1.39, math.nan, 6.5), Try(0.0, 5.9, 6.5)]


def one(psi, low=0.5, high=0.4, noise=0.1):
    """A single hypothesis."""
    single = np.ones((1, 1))
    return Hypotheses(
        psi * single, np.ones(1), low * single, high * single, noise * single, np.ones(1)
    )


def recovered(seed, psi, low=0.5, high=0.4, noise=0.1):
    """Whether a planted optimum is inside the interval of a simulated probe, and its runs."""
    rng = np.random.default_rng(seed)
    tries = []
    while len(tries) < 10:
        _, bottom, top = probing.interval(KNOWN, tries)
        if top - bottom <= NARROW:
            break
        rate = probing.next_rate(KNOWN, tries, LONGEST)
        limit = probing.limit_of(tries, LONGEST)
        distance = rate - psi
        steps = 5 + (low if distance < 0 else high) * distance**2 + noise * rng.normal()
        failed = distance > math.log(2) and rng.random() < 0.45
        tries.append(Try(rate, math.nan if failed or steps > limit else steps, limit))
    _, bottom, top = probing.interval(KNOWN, tries)
    return bottom <= psi <= top, len(tries)


def test_the_likelihood_is_that_of_an_integral_over_the_level():
    """Runs that arrived, one of them twice at a rate: a Gaussian integral done by quadrature."""
    psi, noise = 0.9, 0.1
    arrived = [Try(0.69, 5.1, 8.5), Try(1.39, 5.4, 6.5), Try(0.0, 5.9, 6.5)]
    shape = [
        (0.4 if rate > psi else 0.5) * (rate - psi) ** 2 for rate in (run.rate for run in arrived)
    ]
    errors = np.hypot(noise, probing.SHAPE_ERROR * np.array(shape))

    def density(level):
        centres = level + np.array(shape)
        return stats.norm.pdf([run.steps for run in arrived], centres, errors).prod()

    whole = integrate.quad(density, 2, 8, points=[5.0])[0] * (1 - probing.SLIPS) ** 3
    whole *= (1 - 28 / 62) / (1 - probing.SLIPS) if 1.39 - psi > math.log(2) else 1
    told = probing.log_likelihood(one(psi), arrived)[0, 0]
    # A constant of the density is left out: (2π)^-(n−1)/2.
    assert told - math.log(2 * math.pi) == pytest.approx(math.log(whole), abs=1e-4)


def test_runs_of_one_rate_share_the_error_of_the_parabola():
    """Their likelihood is that of the joint normal distribution, for any level."""
    psi, noise, level = 0.0, 0.1, 5.0
    steps = np.array([5.9, 6.0, 6.2])
    extra = 0.4 * 1.4**2
    covariance = noise**2 * np.eye(3) + (probing.SHAPE_ERROR * extra) ** 2
    # A run at the optimum that is beyond doubt tells the level.
    sure = [Try(psi, level, 9.0)] * 4_000
    tries = [*sure, *(Try(1.4, value, 9.0) for value in steps)]
    told = probing.log_likelihood(one(psi), tries) - probing.log_likelihood(one(psi), sure)
    truth = stats.multivariate_normal(np.full(3, level + extra), covariance).logpdf(steps)
    constant = 3 * math.log1p(-probing.SLIPS) if math.log(2) > 1.4 else 3 * math.log(1 - 28 / 62)
    # 2π, and the count of a cell's mean, are common to all hypotheses and left out.
    common = -1.5 * math.log(2 * math.pi) - 0.5 * math.log(3)
    assert told[0, 0] == pytest.approx(truth - common + constant, abs=0.01)


def test_information_is_that_of_simulated_outcomes():
    rng = np.random.default_rng(0)
    rate, limit = 1.04, 6.5
    now = probing.posterior(KNOWN, TRIES)
    draws = rng.choice(now.size, 1_500, p=now.ravel())
    level = probing._level(KNOWN, TRIES)
    said = probing._forecast(KNOWN, rate)
    assert not any(math.isclose(run.rate, rate) for run in TRIES)
    middle = (level.middle + said.extra).ravel()[draws]
    error = np.sqrt(level.error**2 + KNOWN.noise**2 + said.shape**2).ravel()[draws]
    steps = rng.normal(middle, error)
    failed = rng.random(len(draws)) < np.broadcast_to(said.fails, now.shape).ravel()[draws]
    steps = np.where(failed | (steps > limit), np.nan, steps)
    before = stats.entropy(now.sum(1))
    after = []
    for value in steps[:300]:
        there = probing.posterior(KNOWN, [*TRIES, Try(rate, float(value), limit)])
        after.append(stats.entropy(there.sum(1)))
    told = probing.information(KNOWN, TRIES, rate, limit)
    assert told == pytest.approx(before - np.mean(after), abs=0.06)


def test_nothing_is_told_where_nothing_is_open():
    single = one(0.5)
    assert probing.information(single, TRIES, 1.0, 6.0) == pytest.approx(0, abs=1e-12)


def test_a_rate_tried_already_tells_less_than_a_new_one_as_far_away():
    tries = [Try(0.7, 5.0, 8.0), *[Try(1.4, 5.3, 6.4)] * 3]
    again = probing.information(KNOWN, tries, 1.4, 6.4)
    first = probing.information(KNOWN, [tries[0]], 1.4, 6.4)
    assert again < 0.6 * first


def test_planted_optima_are_inside_the_interval_of_a_probe():
    rng = np.random.default_rng(1)
    results = [recovered(seed, 0.7 + 0.7 * rng.normal()) for seed in range(3)]
    assert all(inside for inside, _ in results)
    assert np.mean([runs for _, runs in results]) < 9


@pytest.mark.slow
@pytest.mark.parametrize(
    "basin", [{"low": 0.3, "high": 0.9}, {"low": 1.2, "high": 0.3}, {"noise": 0.25}]
)
def test_planted_optima_are_inside_whatever_the_basin(basin):
    rng = np.random.default_rng(0)
    results = [recovered(seed, 0.7 + 0.7 * rng.normal(), **basin) for seed in range(40)]
    assert sum(inside for inside, _ in results) >= 36


TASK = quadratic(noise=2.0)
GOAL = Goal("sgd", 64, 0.01, 0.1, 6_400.0, 16_000.0)


@pytest.fixture(scope="module")
def whole():
    return [*run_probe(TASK, GOAL, KNOWN, jax.random.key(0))]


def test_a_probe_keeps_to_its_budget_and_goes_on_to_the_same_result(whole):
    assert len(whole) >= 2
    assert sum(run.examples for run in whole) <= GOAL.budget
    again = [*run_probe(TASK, GOAL, KNOWN, jax.random.key(0), done=whole[:1])]
    assert again == whole[1:]


def test_a_probe_of_a_task_narrows_the_answer_and_is_kept(tmp_path):
    move: dict[str, Any] = {
        "from_batch_size": 4,
        "from_lr": 0.005,
        "to_batch_size": 64,
        "optimizer": "sgd",
    }
    asked: dict[str, Any] = {"target_loss": 0.1, "run_examples": 1_600}
    asked |= {"probe_file": tmp_path / "probe.json"}
    before = suggest(**move)
    said = suggest(**move, probe=TASK, **asked)
    assert said.high / said.low < before.high / before.low
    assert "a probe:" in said.rests_on[0] and said.probe is not None
    assert 0 < said.probe.share <= 0.05
    dense = 1_600 * math.prod(DENSE)
    assert said.probe.examples == pytest.approx(said.probe.share * dense)
    stored = json.loads(Path(asked["probe_file"]).read_text())
    assert sum(run["examples"] for run in stored["runs"]) == said.probe.examples
    assert suggest(**move, probe=TASK, **asked).lr == said.lr
    with pytest.raises(ResultError, match="holds another probe"):
        suggest(**move, probe=TASK, **(asked | {"target_loss": 0.2}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_loss": None}, "give target_loss"),
        ({"run_examples": None}, "give run_examples"),
        ({"run_examples": 10}, "at least to_batch_size"),
        ({"budget": 5.0}, "budget must be a share"),
        ({"probe": "surge.tasks.mlp:nothing"}, "has no function nothing"),
        ({"branch": True}, "give workdir"),
    ],
)
def test_what_a_probe_lacks_is_one_sentence(tmp_path, changes, words):
    asked: dict[str, Any] = {"target_loss": 1.0, "run_examples": 1e5, "probe": TASK}
    asked |= {"probe_file": tmp_path / "probe.json"} | changes
    with pytest.raises(ValueError, match=words):
        suggest(from_batch_size=4, from_lr=0.02, to_batch_size=64, optimizer="sgd", **asked)
