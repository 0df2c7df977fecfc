"""The grid: the same data whatever the devices and lanes; few programs; adaptive against
dense."""

import logging
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surge.optimizers import make_optimizer
from surge.tasks.mlp import mnist1d
from surge.tasks.quadratic import quadratic
from surge.theory.objective import FinalLoss, StepsTo
from surge.theory.optimum import optimal_lr
from surge.training import engine, hardware
from surge.training.adaptive import run_adaptive
from surge.training.dense import run_pieces
from surge.training.engine import Engine
from surge.training.grid import plan
from surge.training.lanes import Lanes, of_grid
from surge.training.run import Cell, Shared, State, make_train

pytestmark = pytest.mark.usefixtures("no_rank_promotion")
KEY = jax.random.key(0)
TASK = quadratic(size=6, noise=2.0)
SHARED = Shared(-np.inf, TASK.data, TASK.evaluation)
GRID = {
    "optimizers": {"sgd": ("sgd", (0.02, 0.7))},
    "learning_rate_ratio": 2**0.5,
    "batch_sizes": (8, 64),
    "seeds": 3,
    "max_steps": 60,
    "max_examples": 640,
    "evals": 12,
}
PIECES = plan(**GRID)
WIDE = {
    "optimizers": {"sgd": ("sgd", (0.001, 2.0))},
    "batch_sizes": (4, 8, 16, 32),
    "max_steps": 200,
}
WIDE |= {"max_examples": 1600, "evals": 24}
SEARCHED = quadratic(hessian="random", size=10, noise=2.0)
TARGETS = (1.5, 1.0)
STEPS = tuple(map(StepsTo, TARGETS))


def collected(pieces, **options):
    return {
        piece.batch_size: result
        for piece, result in run_pieces(TASK, pieces, KEY, stop_loss=-np.inf, **options)
    }


def by_size(runs):
    return {piece.batch_size: (piece, result) for piece, result in runs}


def adaptive(task=SEARCHED, grid=WIDE, objectives=STEPS, stop_loss=TARGETS[-1], done=()):
    pieces = plan(**GRID | grid)
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
def dense():
    return collected(PIECES)


@pytest.fixture(scope="module")
def narrow():
    return adaptive()


def test_plan():
    assert [piece.batch_size for piece in PIECES] == [64, 8]
    assert PIECES[0].eval_steps == (1, 2, 3, 4, 5, 7, 8, 10)
    assert PIECES[1].eval_steps[-1] == 60
    rates = PIECES[0].learning_rates
    np.testing.assert_allclose(np.diff(np.log2(rates)), 0.5, rtol=1e-9)
    assert 0.02 <= rates[0] < 0.03 < 0.49 < rates[-1] <= 0.7
    assert PIECES[1].cells == 3 * len(rates)
    assert PIECES[1].examples == 3 * len(rates) * 60 * 8


def test_plan_from_a_later_step():
    """Horizons count from there, in examples (here at batch size 64) or in steps (at 8)."""
    later = plan(**GRID, start_step=100)
    assert [piece.eval_steps[-1] for piece in later] == [110, 160]
    assert later[0].eval_steps[0] == 101
    assert [piece.examples for piece in later] == [piece.examples for piece in PIECES]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizers": {"sgd": ("sgd", (0.3, 0.31))}}, "no power of"),
        ({"max_examples": 32}, "no step at batch size 64"),
    ],
)
def test_a_grid_that_holds_nothing_says_so(change, words):
    with pytest.raises(ValueError, match=words):
        plan(**GRID | change)


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


def counting(advance, lengths):
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
    pieces = plan(**GRID | {"optimizers": optimizers, "batch_sizes": (8,)})
    left = [piece for piece in pieces if piece.optimizer == "narrow"]
    assert of_grid(TASK, pieces) != of_grid(TASK, left)
    options = {"stop_loss": -np.inf, "lanes": of_grid(TASK, pieces)}
    whole, resumed = (dict(run_pieces(TASK, each, KEY, **options)) for each in (pieces, left))
    for piece, result in resumed.items():
        np.testing.assert_array_equal(result.loss, whole[piece].loss)


def test_a_resumed_adaptive_grid_is_the_same_to_the_last_bit(narrow):
    left = adaptive(done={size: narrow[size] for size in (4, 8)})
    assert left.keys() == {16, 32}
    for size, (found, result) in left.items():
        assert found == narrow[size][0]
        np.testing.assert_array_equal(result.loss, narrow[size][1].loss)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """dense[8] and narrow, from a process with one device."""
    path = tmp_path_factory.mktemp("one") / "results.pickle"
    program = f"""
import pickle, sys
import jax
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_sweep as tests
assert jax.local_device_count() == 1
with open({str(path)!r}, "wb") as file:
    pickle.dump((tests.collected(tests.PIECES[1:])[8], tests.adaptive()), file)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    return pickle.loads(path.read_bytes())


def test_one_device_gives_the_same_data(dense, one_device):
    np.testing.assert_allclose(one_device[0].loss, dense[8].loss, rtol=2e-5)


def test_one_device_takes_the_same_path_to_the_same_adaptive_optima(narrow, one_device):
    assert [ran for ran, _ in one_device[1].values()] == [ran for ran, _ in narrow.values()]
    ours, theirs = optima(narrow), optima(one_device[1])
    assert ours.keys() == theirs.keys()
    for cell, found in ours.items():
        assert found[:3] == pytest.approx(theirs[cell][:3], rel=1e-3, nan_ok=True)


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
    pieces = plan(**GRID | {"batch_sizes": sizes, "optimizers": optimizers, "seeds": 1})
    assert len(list(run_pieces(TASK, pieces, KEY, stop_loss=-np.inf))) == 2 * len(sizes)
    assert sorted(made) == 3 * ["momentum"] + 3 * ["sgd"]
    assert sorted(begun) == ["momentum", "sgd"]  # where runs begin is the same for every size class


def test_size_classes_and_form_follow_what_an_example_costs():
    wide, tall = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((300, 300), (400, 300)))

    def task(loss, data):
        """A weight of 90,000 parameters, of products with one vector or with the rows of an
        example."""
        return TASK._replace(
            init=lambda key: jax.random.normal(key, wide.shape),
            loss=loss,
            draw=lambda data, key: data,
            data=data,
        )

    vector = task(lambda weight, x: ((x @ weight) ** 2).sum(), jnp.zeros(wide.shape[0]))
    rows = task(lambda weight, x: ((x @ weight) ** 2).sum(), jnp.zeros(tall.shape))
    assert hardware.size_classes(vector) == hardware.MICROBATCHES and hardware.size_classes(
        rows
    ) == (8,)
    rates = len(PIECES[0].learning_rates)
    assert of_grid(TASK, PIECES) == ("vmap", -(-rates // jax.local_device_count()), 3)
    assert of_grid(vector, PIECES) == ("map", 1, 3)


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

        return programs._replace(advance=advance)

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


@pytest.mark.parametrize(
    ("limit", "gibibytes"), [("max", 8), (str(3 * 2**30), 3), (str(2**63), 8), (None, 8)]
)
def test_blocks_are_judged_by_all_memory_not_by_what_is_free(
    monkeypatch, tmp_path, limit, gibibytes
):
    pages = {"SC_PHYS_PAGES": 2**21, "SC_PAGE_SIZE": 2**12}
    monkeypatch.setattr(
        hardware.os, "sysconf", pages.__getitem__
    )  # a KeyError where free pages are asked for
    monkeypatch.setattr(hardware, "CGROUP_LIMIT", tmp_path / "memory.max")
    if limit is not None:
        hardware.CGROUP_LIMIT.write_text(limit + "\n")
    assert hardware.device_bytes() == gibibytes * 2**30 / jax.local_device_count()


def test_an_accelerator_says_how_much_memory_it_has(monkeypatch):
    class Device:
        memory_stats = staticmethod(lambda: {"bytes_limit": 100, "bytes_in_use": 90})

    monkeypatch.setattr(hardware.jax, "local_devices", lambda: [Device])
    assert hardware.device_bytes() == 100


def test_a_ghost_batch_is_of_one_size_whatever_the_batch():
    coupled = TASK._replace(batch_loss=lambda params, batch: jnp.float32(0))
    assert {
        hardware.microbatch(coupled, hardware.size_classes(coupled), size)
        for size in (16, 48, 176, 1024)
    } == {16}
    assert hardware.size_classes(coupled._replace(ghost=4)) == (4,)
    with pytest.raises(
        ValueError, match="batch size 181 is no multiple of the 16 examples of a ghost batch"
    ):
        hardware.microbatch(coupled, (16,), 181)
    classes = hardware.size_classes(TASK)
    assert [hardware.microbatch(TASK, classes, size) for size in (1, 8, 63, 64, 181, 999)] == [
        8,
        8,
        32,
        32,
        128,
        128,
    ]


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
    (piece,) = plan(**GRID | ends | {"optimizers": {"adam": ("adam", (0.03, 0.3))}})
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
    runs = run_pieces(SEARCHED, plan(**GRID | WIDE), KEY, stop_loss=TARGETS[-1])
    assert_same_for_less(narrow, by_size(runs), STEPS)


@pytest.mark.slow
def test_adaptive_finds_the_dense_optima_of_an_mlp_for_less():
    task, targets = mnist1d(widths=(64, 64), examples=5_000, evaluation_examples=512), (1.4, 1.1)
    grid = {
        "optimizers": {"adam": ("adam", (3e-4, 1e-1))},
        "batch_sizes": (8, 16, 32, 64, 128, 256),
    }
    grid |= {"max_steps": 1000, "max_examples": 50_000, "evals": 40}
    runs = run_pieces(task, plan(**GRID | grid), KEY, stop_loss=targets[-1])
    steps = tuple(map(StepsTo, targets))
    assert_same_for_less(adaptive(task, grid, steps, targets[-1]), by_size(runs), steps)


def test_adaptive_judges_runs_that_ended_early_by_their_last_loss():
    grid = {"optimizers": {"sgd": ("sgd", (0.004, 4.0))}, "batch_sizes": (64,)}
    (piece,) = plan(**GRID | grid)
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


def test_the_compilation_cache_is_on_and_a_users_own_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    for given, want in (
        (None, str(tmp_path / "surge" / "programs")),
        ("/somewhere/else", "/somewhere/else"),
    ):
        jax.config.update(
            "jax_compilation_cache_dir", given
        )  # where JAX_COMPILATION_CACHE_DIR is read into
        hardware.enable_compilation_cache()
        found = jax.config.jax_compilation_cache_dir
        jax.config.update("jax_compilation_cache_dir", before)
        assert found == want
