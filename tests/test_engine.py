"""Pieces of a grid: the same data whatever the devices and lanes, with few programs."""

import logging
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import KEY, PIECES, SHARED, TASK, collected, on_one_device, planned

from surge.optimizers import make_optimizer
from surge.training import engine, hardware
from surge.training.dense import run_pieces
from surge.training.engine import Engine
from surge.training.lanes import Lanes, of_grid
from surge.training.run import Cell, State, make_train

pytestmark = pytest.mark.usefixtures("no_rank_promotion")


@pytest.fixture(scope="module")
def dense():
    return collected(PIECES)


def test_a_cell_equals_the_run_done_alone(dense):
    piece = PIECES[1]
    train = jax.jit(make_train(TASK, make_optimizer("sgd"), microbatch_size=8))
    steps = jnp.asarray(piece.eval_steps, jnp.int32)
    for rate, seed in ((0, 0), (3, 2), (len(piece.learning_rates) - 1, 1)):
        key, learning_rate = jax.random.fold_in(KEY, seed), jnp.float32(piece.learning_rates[rate])
        alone = train(Cell(learning_rate, key, 8, steps), SHARED)
        np.testing.assert_allclose(dense[8].loss[rate, seed], alone.loss, rtol=2e-5)
        assert dense[8].diverged[rate, seed] == alone.diverged
        np.testing.assert_array_equal(dense[8].examples[rate, seed], 8 * np.asarray(steps))


@pytest.mark.parametrize(
    "options",
    [{"lanes": Lanes("vmap", 1, 1)}, {"lanes": Lanes("vmap", 2, 2)}, {"lanes": Lanes("map", 1, 3)}],
    ids=["one by one", "two by two", "map"],
)
def test_blocks_and_forms_give_the_same_data(dense, options):
    for size, result in collected(PIECES, **options).items():
        np.testing.assert_allclose(result.loss, dense[size].loss, rtol=2e-5, equal_nan=True)
        np.testing.assert_array_equal(result.diverged, dense[size].diverged)


def test_one_device_gives_the_same_data(dense, tmp_path):
    expression = "test_engine.collected(test_engine.PIECES[1:])[8]"
    alone = on_one_device(expression, tmp_path / "result.pickle")
    np.testing.assert_allclose(alone.loss, dense[8].loss, rtol=2e-5)


@pytest.mark.parametrize(
    "shape", [Lanes("map", 1, 1), Lanes("map", 2, 3), Lanes("vmap", 2, 3)], ids=str
)
def test_calls_may_end_anywhere(monkeypatch, shape):
    """A call a step against a call a run, with lanes that diverge, reach the loss that is sought,
    or do neither."""
    piece = PIECES[1]._replace(learning_rates=(0.002, 0.004, 0.3, 5.0))
    results = []
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(engine, "CALL_SECONDS", seconds)
        runs = Engine(TASK, KEY, shape, stop_loss=0.9)
        programs, lengths = runs.compile(piece).result(), []
        counted = programs._replace(advance=counting(programs.advance, lengths))
        compiled = SimpleNamespace(result=lambda counted=counted: counted)
        monkeypatch.setattr(runs, "compile", lambda *_, compiled=compiled: compiled)
        results.append(runs.run(piece))
        assert max(lengths) == 1 if seconds == 0 else max(lengths) > 40
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert results[0].diverged.any()
    ends = np.isfinite(results[0].loss).all(-1)
    assert ends.any() and not ends.all()


def counting(advance, lengths) -> Any:
    def counted(*arguments):
        since, until = arguments[-2:]
        lengths.append(int(until) - int(since))
        return advance(*arguments)

    return counted


def test_a_long_block_says_how_far_it_is(monkeypatch, caplog):
    monkeypatch.setattr(engine, "SAY_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        collected(PIECES[1:])
    assert "sgd at batch size 8: step 60 of 60" in caplog.text


def test_pieces_do_not_depend_on_their_company(dense):
    again = collected(PIECES[1:])
    np.testing.assert_array_equal(again[8].loss, dense[8].loss)


def test_a_resumed_grid_is_the_same_to_the_last_bit():
    optimizers = {"wide": ("sgd", (0.02, 0.7)), "narrow": ("momentum", (0.02, 0.07))}
    pieces = planned(optimizers=optimizers, batch_sizes=(8,))
    left = [piece for piece in pieces if piece.optimizer == "narrow"]
    assert of_grid(TASK, pieces) != of_grid(TASK, left)
    options = {"stop_loss": -np.inf, "lanes": of_grid(TASK, pieces)}
    whole, resumed = (dict(run_pieces(TASK, each, KEY, **options)) for each in (pieces, left))
    for piece, result in resumed.items():
        np.testing.assert_array_equal(result.loss, whole[piece].loss)


def test_three_programs_an_optimizer_serve_every_batch_size(monkeypatch):
    made, begun = [], []
    compile_one, compile_begin = Engine._compile, engine.compile_begin
    monkeypatch.setattr(
        engine,
        "compile_begin",
        lambda *args, **form: begun.append(args[1]) or compile_begin(*args, **form),
    )
    monkeypatch.setattr(
        Engine,
        "_compile",
        lambda self, *args: made.append(args[0].optimizer) or compile_one(self, *args),
    )
    sizes = (1, 2, 3, 8, 16, 48, 64, 100, 128, 181, 256, 320)
    optimizers = {"sgd": ("sgd", (0.1, 0.2)), "momentum": ("momentum", (0.1, 0.2))}
    pieces = planned(batch_sizes=sizes, optimizers=optimizers, seeds=1)
    assert len(list(run_pieces(TASK, pieces, KEY, stop_loss=-np.inf))) == 2 * len(sizes)
    assert sorted(made) == 3 * ["momentum"] + 3 * ["sgd"]
    assert sorted(begun) == ["momentum", "sgd"]  # where runs begin is the same for every size class


def test_runs_of_any_length_share_one_program_and_its_memory():
    runs = Engine(TASK, KEY, Lanes("vmap", 1, 1), stop_loss=-np.inf)
    short, long = (PIECES[1]._replace(eval_steps=steps) for steps in ((1,), (1, 100, 10**6)))
    assert runs.compile(short).result() is runs.compile(long).result()


def test_data_stay_on_the_devices(monkeypatch):
    task, seen, compile_one = TASK._replace(data=np.asarray(TASK.data)), [], Engine._compile

    def guarded(self, *args):
        programs = compile_one(self, *args)

        def advance(*arguments):
            seen.append(arguments[2].data)
            with jax.transfer_guard("disallow"):
                return programs.advance(*arguments)

        replaced: Any = advance
        return programs._replace(advance=replaced)

    monkeypatch.setattr(Engine, "_compile", guarded)
    runs = Engine(task, KEY, Lanes("vmap", 1, 1), stop_loss=-np.inf)
    runs.run(PIECES[1]._replace(seeds=(0,)))
    assert len(seen) > 2 and all(each is seen[0] for each in seen)
    assert len(seen[0].addressable_shards) == jax.local_device_count()


def starve(monkeypatch, fits):
    compile_one = Engine._compile

    def little(self, piece, shape, start):
        if not fits(self.size(piece), shape):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return compile_one(self, piece, shape, start)

    monkeypatch.setattr(Engine, "_compile", little)


def test_short_memory_makes_smaller_blocks_of_the_programs_that_need_them(
    dense, monkeypatch, caplog
):
    starve(monkeypatch, lambda size, shape: size == 8 or shape.rates * shape.seeds <= 6)
    with caplog.at_level(logging.WARNING):
        result = collected(PIECES)
    np.testing.assert_allclose(result[64].loss, dense[64].loss, rtol=2e-5)
    np.testing.assert_array_equal(result[8].loss, dense[8].loss)
    assert "out of memory: going on with 2 learning rates x 3 seeds" in caplog.text


def test_a_run_that_does_not_fit_ends_in_a_sentence(monkeypatch):
    one_run = r"^one run does not fit in memory \(sgd at batch size 8\): "
    with monkeypatch.context() as patch, pytest.raises(MemoryError, match=one_run):
        patch.setattr(hardware, "device_bytes", lambda: 1.0)
        collected(PIECES[1:], lanes=Lanes("vmap", 1, 1))
    starve(monkeypatch, lambda *_: False)
    with pytest.raises(MemoryError, match=one_run):
        collected(PIECES[1:])


def test_other_failures_are_not_hidden(monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(Engine, "_compile", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        collected(PIECES[1:])


def test_runs_branch_from_a_state_of_parameters_and_optimizer():
    train = jax.jit(make_train(TASK, make_optimizer("adam"), microbatch_size=8))

    def alone(*steps):
        key = jax.random.fold_in(KEY, 1)
        return train(Cell(jnp.float32(0.1), key, 8, jnp.asarray(steps, jnp.int32)), SHARED)

    whole, start = alone(5, 9), alone(4, 5).state
    ends = {"max_steps": 4, "evals": 3, "batch_sizes": (8,), "start_step": 5}
    (piece,) = planned(**ends, optimizers={"adam": ("adam", (0.03, 0.3))})
    assert piece.eval_steps == (6, 7, 9)
    piece = piece._replace(learning_rates=(0.1, 0.2))
    runs = Engine(TASK, KEY, Lanes("vmap", 1, 2), stop_loss=-np.inf)
    branch = runs.run(piece, start=start)
    assert branch.loss[0, 1, -1] == pytest.approx(float(whole.loss[-1]), rel=2e-5)
    assert branch.examples[0, 1].tolist() == [8, 16, 32]
    forgot = State(start.params, jax.tree.map(jnp.zeros_like, start.opt_state), start.step)
    other = runs.run(piece, start=forgot)
    assert abs(other.loss[0, 1, -1] / branch.loss[0, 1, -1] - 1) > 1e-3
    assert np.isfinite(runs.run(piece).loss).all()  # the same engine, from initialisation
    with pytest.raises(ValueError, match="from step 5: the first eval, at 5, must be later"):
        runs.run(piece._replace(eval_steps=(5, 9)), start=start)
