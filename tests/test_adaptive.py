"""The search against the dense grid: the same optima, for a fraction of the examples."""

import numpy as np
import pytest
from grids import KEY, TASK, on_one_device, planned

from surge.tasks.mlp import mnist1d
from surge.tasks.quadratic import quadratic
from surge.theory.basin import optimal_lr
from surge.theory.objective import FinalLoss, StepsTo
from surge.training import adaptive as adaptive_search
from surge.training.adaptive import run_adaptive
from surge.training.dense import run_pieces

pytestmark = pytest.mark.usefixtures("no_rank_promotion")
WIDE = {
    "optimizers": {"sgd": ("sgd", (0.001, 2.0))},
    "batch_sizes": (4, 8, 16, 32),
    "max_steps": 200,
    "max_examples": 1600,
    "evals": 24,
}
SEARCHED = quadratic(hessian="random", size=10, noise=2.0)
TARGETS = (1.5, 1.0)
STEPS = tuple(map(StepsTo, TARGETS))


def by_size(runs):
    return {piece.batch_size: (piece, result) for piece, result in runs}


def adaptive(task=SEARCHED, grid=WIDE, objectives=STEPS, stop_loss=TARGETS[-1], done=()):
    pieces = planned(**grid)
    kept = {piece: done[piece.batch_size] for piece in pieces if piece.batch_size in done}
    options = {"ratio": 2**0.5, "objectives": objectives, "stop_loss": stop_loss, "done": kept}
    return by_size(run_adaptive(task, pieces, KEY, **options))


def optimum(piece, value):
    """Of values [rate, seed]."""
    rate, seed = (
        each.ravel() for each in np.meshgrid(piece.learning_rates, piece.seeds, indexing="ij")
    )
    return optimal_lr(rate, value.ravel(), seed)


def optima(runs, objectives=STEPS):
    """(batch size, objective) -> Optimum."""
    return {
        (size, objective): optimum(
            piece, objective.value(result.loss, result.diverged, piece.eval_steps)
        )
        for size, (piece, result) in runs.items()
        for objective in objectives
    }


def spent(piece, result):
    """Training examples, each run to its own end."""
    ran = np.isfinite(result.loss).sum(-1)
    return np.sum(np.asarray(piece.eval_steps)[np.maximum(ran, 1) - 1]) * piece.batch_size


@pytest.fixture(scope="module")
def narrow():
    return adaptive()


def test_a_resumed_adaptive_grid_is_the_same_to_the_last_bit(narrow):
    left = adaptive(done={size: narrow[size] for size in (4, 8)})
    assert left.keys() == {16, 32}
    for size, (found, result) in left.items():
        assert found == narrow[size][0]
        np.testing.assert_array_equal(result.loss, narrow[size][1].loss)


def test_one_device_takes_the_same_path_to_the_same_optima(narrow, tmp_path):
    alone = on_one_device("test_adaptive.adaptive()", tmp_path / "runs.pickle")
    assert [ran for ran, _ in alone.values()] == [ran for ran, _ in narrow.values()]
    ours = optima(narrow)
    theirs = optima(alone)
    assert ours.keys() == theirs.keys()
    for cell in ours:
        assert ours[cell][:3] == pytest.approx(theirs[cell][:3], rel=1e-3, nan_ok=True)


def assert_same_for_less(narrow, wide, objectives):
    ours, theirs = optima(narrow, objectives), optima(wide, objectives)
    compared = [(ours[cell], want) for cell, want in theirs.items() if np.isfinite(want.lr)]
    assert len(compared) >= 8
    for got, want in compared:
        assert want.low <= got.lr <= want.high and got.low <= want.lr <= got.high
        assert not got.at_edge
    assert sum(spent(*each) for each in narrow.values()) < 0.4 * sum(
        spent(*each) for each in wide.values()
    )


def test_adaptive_finds_the_dense_optima_for_less(narrow):
    runs = run_pieces(SEARCHED, planned(**WIDE), KEY, stop_loss=TARGETS[-1])
    assert_same_for_less(narrow, by_size(runs), STEPS)


@pytest.mark.slow
def test_adaptive_finds_the_dense_optima_of_an_mlp_for_less():
    task, targets = mnist1d(widths=(64, 64), examples=5_000, evaluation_examples=512), (1.4, 1.1)
    grid = {
        "optimizers": {"adam": ("adam", (3e-4, 1e-1))},
        "batch_sizes": (8, 16, 32, 64, 128, 256),
    }
    grid |= {"max_steps": 1000, "max_examples": 50_000, "evals": 40}
    runs = run_pieces(task, planned(**grid), KEY, stop_loss=targets[-1])
    steps = tuple(map(StepsTo, targets))
    assert_same_for_less(adaptive(task, grid, steps, targets[-1]), by_size(runs), steps)


def test_adaptive_judges_runs_that_ended_early_by_their_last_loss():
    grid = {"optimizers": {"sgd": ("sgd", (0.004, 4.0))}, "batch_sizes": (64,)}
    (piece,) = planned(**grid)
    ((_, wide),) = run_pieces(TASK, [piece], KEY, stop_loss=0.6)
    assert (np.isnan(wide.loss[..., -1]) & (wide.diverged == 0)).any() and wide.diverged.any()
    ((found, result),) = adaptive(TASK, grid, (FinalLoss(),), 0.6).values()
    want = optimum(piece, FinalLoss().value(wide.loss, wide.diverged, piece.eval_steps))
    got = optimum(found, FinalLoss().value(result.loss, result.diverged, found.eval_steps))
    assert got.lr == pytest.approx(want.lr, rel=0.05)
    assert not got.at_edge


def test_adaptive_follows_an_optimum_beyond_the_bounds():
    grid = {"optimizers": {"sgd": ("sgd", (0.004, 0.04))}, "batch_sizes": (64,)}
    ((found, result),) = adaptive(TASK, grid, (FinalLoss(),), -np.inf).values()
    best = result.loss[..., -1].mean(-1).argmin()
    assert found.learning_rates[best] > 0.05
    assert best < len(found.learning_rates) - 1


def test_an_optimum_between_two_rates_is_run_itself():
    """The lowest vertex may round to a rate whose neighbours alone were run."""
    known: dict = dict.fromkeys((-4, -2, -1, 1, 2, 4), ())
    inside = range(-8, 9)
    wanted, _ = adaptive_search._next([(0, 1.0)], known, (4, 2, 1), inside)
    assert wanted == {0}
    wanted, _ = adaptive_search._next([(0, 1.0)], known | {0: ()}, (4, 2, 1), inside)
    assert wanted == set()
