"""The grid: the same data whatever the devices, blocks and forms; few programs; adaptive against dense."""

import logging
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surge.optimizers import make_optimizer
from surge.tasks.quadratic import quadratic
from surge.training import sweep
from surge.training.adaptive import run_adaptive, steps_to
from surge.training.run import State, make_train

KEY = jax.random.key(0)
TASK = quadratic(size=6, noise=2.0)
GRID = {
    "optimizers": {"sgd": ("sgd", (0.02, 0.7))},
    "learning_rate_ratio": 2**0.5,
    "batch_sizes": (8, 64),
    "seeds": 3,
    "max_steps": 60,
    "max_examples": 640,
    "evals": 12,
}
PIECES = sweep.plan(**GRID)


def collected(pieces, **options):
    return {
        piece.batch_size: result for piece, result in sweep.run_pieces(TASK, pieces, KEY, stop_loss=-np.inf, **options)
    }


@pytest.fixture(scope="module")
def dense():
    return collected(PIECES)


def test_plan():
    assert [piece.batch_size for piece in PIECES] == [64, 8]
    assert PIECES[0].eval_steps == (1, 2, 3, 4, 5, 7, 8, 10)
    assert PIECES[1].eval_steps[-1] == 60
    rates = PIECES[0].learning_rates
    np.testing.assert_allclose(np.diff(np.log2(rates)), 0.5, rtol=1e-9)
    assert 0.02 <= rates[0] < 0.03 < 0.49 < rates[-1] <= 0.7
    assert PIECES[1].cells == 3 * len(rates)
    assert PIECES[1].examples == 3 * len(rates) * 60 * 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizers": {"sgd": ("sgd", (0.3, 0.31))}}, "no power of"),
        ({"max_examples": 32}, "no step at batch size 64"),
    ],
)
def test_a_grid_that_holds_nothing_says_so(change, words):
    with pytest.raises(ValueError, match=words):
        sweep.plan(**GRID | change)


def test_a_cell_equals_the_run_done_alone(dense):
    piece = PIECES[1]
    train = jax.jit(make_train(TASK, make_optimizer("sgd"), microbatch_size=8))
    steps = jnp.asarray(piece.eval_steps, jnp.int32)
    for rate, seed in ((0, 0), (3, 2), (len(piece.learning_rates) - 1, 1)):
        key, learning_rate = jax.random.fold_in(KEY, seed), jnp.float32(piece.learning_rates[rate])
        alone = train(learning_rate, key, 8, steps, -jnp.inf, TASK.data, TASK.evaluation)
        np.testing.assert_allclose(dense[8].loss[rate, seed], alone.loss, rtol=2e-5)
        assert dense[8].diverged[rate, seed] == alone.diverged


@pytest.mark.parametrize(
    "options", [{"block": (1, 1)}, {"block": (2, 2)}, {"form": "map"}], ids=["one by one", "two by two", "map"]
)
def test_blocks_and_forms_give_the_same_data(dense, options):
    for size, result in collected(PIECES, **options).items():
        np.testing.assert_allclose(result.loss, dense[size].loss, rtol=2e-5, equal_nan=True)
        np.testing.assert_array_equal(result.diverged, dense[size].diverged)


def test_pieces_do_not_depend_on_their_company(dense):
    again = collected(PIECES[1:])
    np.testing.assert_array_equal(again[8].loss, dense[8].loss)


def test_one_device_gives_the_same_data(dense, tmp_path):
    program = (
        "import numpy as np, tests_sweep as t; "
        "r = t.collected(t.PIECES[1:]); import jax; assert jax.local_device_count() == 1; "
        f"np.save({str(tmp_path / 'loss.npy')!r}, r[8].loss)"
    )
    source = f"import sys; import importlib.util as u; s = u.spec_from_file_location('tests_sweep', {__file__!r}); "
    source += "m = u.module_from_spec(s); sys.modules['tests_sweep'] = m; s.loader.exec_module(m); "
    subprocess.run([sys.executable, "-c", source + program], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "loss.npy"), dense[8].loss, rtol=2e-5)


def test_few_programs_serve_every_batch_size(monkeypatch):
    made = []
    compile_one = sweep.Engine._compile
    monkeypatch.setattr(
        sweep.Engine, "_compile", lambda self, *args: made.append(args[1:]) or compile_one(self, *args)
    )
    sizes = (1, 2, 8, 16, 64, 100, 128, 256, 320)
    pieces = sweep.plan(**GRID | {"batch_sizes": sizes, "optimizers": {"sgd": ("sgd", (0.1, 0.2))}, "seeds": 1})
    assert len(list(sweep.run_pieces(TASK, pieces, KEY, stop_loss=-np.inf))) == len(sizes)
    assert len(made) == 2


def test_short_memory_makes_smaller_blocks_and_says_so(dense, monkeypatch, caplog):
    compile_one = sweep.Engine._compile

    def little(self, piece, size, block):
        if block[0] * block[1] > 6:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return compile_one(self, piece, size, block)

    monkeypatch.setattr(sweep.Engine, "_compile", little)
    with caplog.at_level(logging.WARNING):
        result = collected(PIECES[1:])[8]
    np.testing.assert_allclose(result.loss, dense[8].loss, rtol=2e-5)
    assert "out of memory: going on with 2 learning rates x 3 seeds" in caplog.text


def test_other_failures_are_not_hidden(monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(sweep.Engine, "_compile", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        collected(PIECES[1:])


def test_runs_branch_from_a_state(dense):
    optimizer = make_optimizer("sgd")(0.1, 8, 60)
    params = TASK.init(KEY) / 2
    start = State(params, optimizer.init(params), jnp.int32(5))
    piece = sweep.Piece("sgd", "sgd", 8, (0.1, 0.2), (0, 1), (6, 7))
    ((_, result),) = sweep.run_pieces(TASK, [piece], KEY, stop_loss=-np.inf, start=start)
    assert result.loss.shape == (2, 2, 2)
    data_key = jax.random.split(jax.random.fold_in(KEY, 1))[1]
    keys = [jax.random.fold_in(jax.random.fold_in(data_key, 5), i) for i in range(8)]
    gradient = sum(jax.grad(TASK.loss)(params, TASK.draw(TASK.data, key)) for key in keys) / 8
    want = TASK.loss(params - 0.2 * gradient, jnp.zeros(6))
    assert result.loss[1, 1, 0] == pytest.approx(float(want), rel=1e-5)


def test_steps_to():
    loss = np.array([[4.0, 2.0, 1.0], [4.0, 3.0, 2.5], [0.5, 0.4, np.nan]])
    got = steps_to(loss, (1, 4, 16), 1.5)
    np.testing.assert_allclose(got, [np.log(8), np.inf, 0])


def test_adaptive_finds_the_dense_optimum_for_less():
    grid = GRID | {"optimizers": {"sgd": ("sgd", (0.001, 2.0))}, "batch_sizes": (8, 16, 32, 64), "max_examples": 2560}
    pieces, targets = sweep.plan(**grid), (0.4, 0.2)
    wide = dict(sweep.run_pieces(TASK, pieces, KEY, stop_loss=0.2))
    narrow = list(run_adaptive(TASK, pieces, KEY, ratio=2**0.5, targets=targets, stop_loss=0.2, done={}))

    def spent(piece, result):
        ran = np.isfinite(result.loss).sum(-1)
        return np.sum(np.asarray(piece.eval_steps)[np.maximum(ran, 1) - 1]) * piece.batch_size

    for piece, (found, result) in zip(reversed(pieces), narrow, strict=True):
        for target in targets:
            values = steps_to(wide[piece].loss, piece.eval_steps, target).mean(-1)
            ours = steps_to(result.loss, piece.eval_steps, target).mean(-1)
            if np.isfinite(values.min()):
                assert found.learning_rates[ours.argmin()] == piece.learning_rates[values.argmin()]
                assert 0 < ours.argmin() < len(ours) - 1
    cost = sum(spent(*each) for each in narrow) / sum(spent(*each) for each in wide.items())
    assert cost < 0.4


def test_adaptive_follows_an_optimum_beyond_the_bounds():
    (piece,) = sweep.plan(**GRID | {"optimizers": {"sgd": ("sgd", (0.004, 0.04))}, "batch_sizes": (64,)})
    ((found, result),) = run_adaptive(TASK, [piece], KEY, ratio=2**0.5, targets=(None,), stop_loss=-np.inf, done={})
    best = result.loss[..., -1].mean(-1).argmin()
    assert found.learning_rates[best] > 0.05
    assert best < len(found.learning_rates) - 1


def test_one_device_per_core_and_cache_are_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    sweep.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "surge" / "programs")
    jax.config.update("jax_compilation_cache_dir", before)
