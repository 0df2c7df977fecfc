"""From where a fall counts: halves of the evaluation set, running means, shared states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import KEY, TASK, planned

from surge.optimizers import make_optimizer
from surge.tasks import Task, draw_from_arrays
from surge.theory.objective import RUNNING, FallAfter, LossAfter
from surge.training.dense import run_pieces
from surge.training.grid import values
from surge.training.protocol import Protocol, branched
from surge.training.run import evaluate
from surge.training.step import batch_gradient

pytestmark = pytest.mark.usefixtures("no_rank_promotion")
SMALL = {"batch_sizes": (8,), "seeds": 2, "optimizers": {"sgd": ("sgd", (0.1, 0.4))}}


def ran(task=TASK, stop_loss=-np.inf, protocol=None, pieces=None):
    pieces = pieces or planned(**SMALL)
    options = {"protocol": protocol} if protocol else {}
    ((piece, result),) = run_pieces(task, pieces, KEY, stop_loss=stop_loss, **options)
    return piece, result


def examples_task():
    """Four numbers, each an example; the two halves of the evaluation differ by much."""
    data = {"x": jnp.asarray([0.0, 1.0, 4.0, 5.0])}

    def loss(params, example):
        return (params - example["x"]) ** 2

    return Task(lambda key: jnp.float32(9.0), loss, data, draw_from_arrays, data)


def test_one_half_of_the_evaluation_set_is_recorded_beside_all():
    task = examples_task()
    _, plain = ran(task)
    _, split = ran(task, protocol=Protocol(halves=True))
    np.testing.assert_allclose(split.loss, plain.loss, rtol=1e-6)
    assert plain.half_loss is None
    mean = 2.5
    spread = 4.25  # of all four about their mean, where the first two have 0.25 about 0.5
    params = mean + np.sqrt(split.loss - spread) * np.sign(split.half_loss - split.loss)
    assert split.half_loss is not None
    np.testing.assert_allclose(split.half_loss, (params - 0.5) ** 2 + 0.25, rtol=1e-3)


def test_a_run_goes_on_for_further_steps():
    piece, whole = ran()
    stop = float(np.median(whole.loss[..., 5]))
    _, more = ran(stop_loss=stop, protocol=Protocol(further_steps=20))
    steps = np.array(piece.eval_steps)
    for run in np.ndindex(whole.diverged.shape):
        below = np.flatnonzero(whole.loss[run] <= stop)
        last = len(steps) - 1
        if len(below):
            last = min(int(np.searchsorted(steps, steps[below[0]] + 20)), last)
        np.testing.assert_allclose(more.loss[run][: last + 1], whole.loss[run][: last + 1])
        assert np.isnan(more.loss[run][last + 1 :]).all()


@pytest.mark.parametrize("spec", ["sgd", "adam(b1=0.5, b2=0.9)"])
def test_all_runs_branch_from_one_state(spec):
    """After so many steps at rate 0 the first evaluations of a tiny rate are that state's loss."""
    params = jax.tree.map(lambda leaf: leaf + 0.5, TASK.init(KEY))
    shape = jax.eval_shape(TASK.init, KEY)
    (piece,) = planned(**SMALL | {"optimizers": {"one": (spec, (1e-7, 1e-6))}})
    shifted = branched(piece, shape)
    held = shifted.start_step
    assert (held > 0) == (spec != "sgd")
    assert shifted.eval_steps == tuple(held + step for step in piece.eval_steps)
    _, result = ran(protocol=Protocol(params=params), pieces=[shifted])
    start = float(evaluate(TASK, params, TASK.evaluation))
    np.testing.assert_allclose(result.loss[..., 0], start, rtol=1e-4)
    got = values(LossAfter(start, piece.eval_steps[3]), shifted, result)
    np.testing.assert_allclose(got, result.loss[..., 3], rtol=1e-6)


def test_a_branch_of_sgd_is_a_plain_loop():
    params = jax.tree.map(lambda leaf: leaf + 0.5, TASK.init(KEY))
    (piece,) = planned(**SMALL)
    _, result = ran(protocol=Protocol(params=params), pieces=[piece])
    data_key = jax.random.split(jax.random.fold_in(KEY, 1))[1]
    transform = make_optimizer("sgd")(piece.learning_rates[0], 8, piece.eval_steps[-1])
    state = transform.init(params)
    for index in range(piece.eval_steps[2]):
        key = jax.random.fold_in(data_key, index)
        gradient = batch_gradient(TASK, params, TASK.data, key, 8, 8)
        updates, state = transform.update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    want = evaluate(TASK, params, TASK.evaluation)
    np.testing.assert_allclose(result.loss[0, 1, 2], want, rtol=1e-4)


def test_crossings_of_known_runs():
    steps = (1, 2, 3, 4, 5, 6, 7, 8)
    loss = np.array([5.0, 1.0, 5.0, 1.5, 1.5, 1.5, 1.0, 0.5])
    half = np.array([5.0, 5.0, 5.0, 5.0, 1.0, 1.0, 1.0, 0.5])
    never = np.zeros((), bool)
    assert FallAfter(2.0, 1).value(loss, never, steps) == 4.0  # the dip at step 2
    # Judged on one half it is step 5, where the other half reads 2, and 2 again a step later.
    assert FallAfter(2.0, 1, "half").value(loss, never, steps, half) == 0.0
    assert RUNNING == 5  # the mean of five is 2.8 at step 5 and 2.1 at 6, so it falls from 7 on
    assert FallAfter(2.2, 1, "mean").value(loss, never, steps) == -0.5
    with pytest.raises(ValueError, match="no loss of one half"):
        FallAfter(2.0, 1, "half").value(loss, never, steps)


def test_what_luck_selects():
    """Runs that go nowhere, with luck of the examples: only the literal form sees them rise."""
    rng = np.random.default_rng(0)
    halves = 2.0 + rng.normal(0, 1, (2, 4_000, 40))
    diverged = np.zeros(4_000, bool)

    def rise(crossing):
        fall = FallAfter(1.4, 10, crossing)
        got = fall.value(halves.mean(0), diverged, np.arange(1, 41), halves[0])
        return np.mean(got[np.isfinite(got)])

    assert rise("first") > 0.6  # back to 2 from 1.4 or less
    assert abs(rise("half")) < 0.1
    assert abs(rise("mean")) < 0.1
