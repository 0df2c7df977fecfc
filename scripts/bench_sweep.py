"""Training steps a second over all cells of a grid: plain loops, as people write them, against the
sweep engine.

    python scripts/bench_sweep.py                               # all workloads: about 15 minutes on
    two cores
    python scripts/bench_sweep.py --workloads=mlp --batches=8

Every contestant trains the same 16 cells (8 learning rates x 2 seeds, Adam) on data of the same
shapes, in a process of its own, for about `--seconds` after a warm-up. Contestants: a plain PyTorch
loop for each cell on all cores (channels last for the CNN), the same under torch.compile, one
PyTorch process for each core, torch.func.vmap over all cells; a jitted JAX step for each cell, a
scanned JAX loop for each cell, and ours. The last column is the speed over that of the best PyTorch
form so far in the table, which ours is judged by.
"""

import atexit
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags
from peers import ROWS, TITLES, jax_task, torch_data, torch_model

from surge.cli import parsed

_WORKLOADS = flags.DEFINE_list("workloads", ["mlp", "wide", "cnn", "gpt"], "what is trained")
_BATCHES = flags.DEFINE_list("batches", ["8", "64", "512"], "examples in a step")
_SECONDS = flags.DEFINE_float("seconds", 4.0, "measured for each contestant")
_ONE = flags.DEFINE_list(
    "one", [], "contestant, workload, batch size: what a child process measures"
)

RATES, SEEDS = 8, 2
TORCH = ("torch loop", "torch compiled", "torch, a process a core", "torch.func")
JAX = ("jax step loop", "jax scanned", "ours")


def timed(step: Callable[[int], Any], seconds: float) -> float:
    """Calls of step(n), which does n steps, a second, after a warm-up."""
    step(3)
    count = 1
    while True:  # what starting a run costs must not count as steps
        started = time.perf_counter()
        step(count)
        spent = time.perf_counter() - started
        if spent > seconds / 2:
            return count / spent
        count = max(count + 1, int(count * min(seconds / spent, 10)))


def torch_loop(
    workload: str, batch: int, seconds: float, compiled: bool = False
) -> tuple[float, float]:
    """Steps a second of one cell after another, and seconds of compilation."""
    import torch

    model, loss = torch_model(workload)
    if workload == "cnn":
        model = model.to(memory_format=torch.channels_last)
    data = torch_data(workload)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=True)
    forward = torch.compile(model) if compiled else model

    def step(count: int) -> None:
        for _ in range(count):
            rows = torch.randint(ROWS, (batch,))
            chosen = {name: each[rows] for name, each in data.items()}
            optimizer.zero_grad()
            loss(forward(chosen["x"]), chosen).backward()
            optimizer.step()

    started = time.perf_counter()
    step(1)
    return timed(step, seconds), time.perf_counter() - started - seconds if compiled else 0.0


def torch_lanes(workload: str, batch: int, seconds: float) -> tuple[float, float]:
    """All cells at once: torch.func's vmap of grad, and Adam written out over stacked
    parameters."""
    import torch
    from torch.func import functional_call, grad, stack_module_state, vmap

    count = RATES * SEEDS
    models = [torch_model(workload) for _ in range(count)]
    model, loss = models[0]
    parameters, _ = stack_module_state([each for each, _ in models])
    parameters = {name: each.detach() for name, each in parameters.items()}
    first, second = (
        {name: torch.zeros_like(each) for name, each in parameters.items()} for _ in range(2)
    )
    data = torch_data(workload)
    gradient = vmap(
        grad(lambda held, chosen: loss(functional_call(model, held, (chosen["x"],)), chosen))
    )
    rates = torch.logspace(-4, -2, count)

    def step(steps: int) -> None:
        for _ in range(steps):
            rows = torch.randint(ROWS, (count, batch))
            with torch.no_grad():
                found = gradient(parameters, {name: each[rows] for name, each in data.items()})
                for name, each in found.items():
                    first[name].mul_(0.9).add_(each, alpha=0.1)
                    second[name].mul_(0.999).addcmul_(each, each, value=0.001)
                    rate = rates.reshape(-1, *[1] * (each.ndim - 1))
                    parameters[name] -= rate * first[name] / (second[name].sqrt() + 1e-8)

    return timed(step, seconds) * count, 0.0


def jax_loop(workload: str, batch: int, seconds: float, scanned: bool) -> tuple[float, float]:
    """One cell after another: a jitted step on a batch that the host picks, or a loop inside one
    program."""
    import jax
    import jax.numpy as jnp
    import optax

    task = jax_task(workload)
    transform = optax.adam(1e-3)
    params = task.init(jax.random.key(0))
    data = jax.tree.map(jnp.asarray, task.data)

    def update(carry: tuple[Any, Any], rows: jax.Array) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        chosen = jax.tree.map(lambda each: each[rows], data)
        found = jax.grad(lambda point: jax.vmap(task.loss, (None, 0))(point, chosen).mean())(params)
        updates, state = transform.update(found, state, params)
        return (optax.apply_updates(params, updates), state), None

    one = jax.jit(lambda carry, rows: update(carry, rows)[0], donate_argnums=0)
    many = jax.jit(lambda carry, rows: jax.lax.scan(update, carry, rows)[0], donate_argnums=0)
    carry, rng = (params, transform.init(params)), np.random.default_rng(0)

    def step(count: int) -> None:
        nonlocal carry
        if scanned:
            for _ in range(-(-count // 16)):
                carry = many(carry, rng.integers(0, ROWS, (16, batch)))
        else:
            for _ in range(count):
                carry = one(carry, rng.integers(0, ROWS, batch))
        jax.block_until_ready(carry)

    started = time.perf_counter()
    step(1)
    compiling = time.perf_counter() - started
    speed = timed(lambda count: step(16 * count), seconds) * 16 if scanned else timed(step, seconds)
    return speed, compiling


def ours(workload: str, batch: int, seconds: float) -> tuple[float, float]:
    """The sweep engine on all cells."""
    from surge.training import grid, hardware
    from surge.training.engine import Engine
    from surge.training.lanes import of_grid

    hardware.one_device_per_core()
    import jax

    rates = tuple(np.geomspace(1e-4, 1e-2, RATES).tolist())
    piece = grid.Piece("adam", "adam", batch, rates, tuple(range(SEEDS)), (1,))
    task = jax_task(workload)
    engine = Engine(task, jax.random.key(0), of_grid(task, [piece]), stop_loss=-np.inf)
    started = time.perf_counter()
    engine.compile(piece).result()
    compiling = time.perf_counter() - started

    def run(count):
        return engine.run(piece._replace(eval_steps=(count,)))

    return timed(run, seconds) * piece.cells, compiling


def measure(contestant: str, workload: str, batch: int, seconds: float) -> tuple[float, float]:
    """Cell-steps a second, and seconds of compilation, in this process."""
    if contestant in JAX:
        if contestant == "ours":
            return ours(workload, batch, seconds)
        return jax_loop(workload, batch, seconds, contestant == "jax scanned")
    if contestant == "torch.func":
        return torch_lanes(workload, batch, seconds)
    return torch_loop(workload, batch, seconds, contestant == "torch compiled")


def child(
    contestant: str, workload: str, batch: str, threads: int | None = None
) -> subprocess.Popen[str]:
    """Starts a process that measures one contestant; `threads` bounds what it may use."""
    command = [
        sys.executable,
        __file__,
        f"--one={contestant},{workload},{batch}",
        f"--seconds={_SECONDS.value}",
    ]
    extra = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    process = subprocess.Popen(
        command, env=os.environ | extra, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    atexit.register(process.kill)
    return process


def outcome(process: subprocess.Popen[str]) -> tuple[float, float, str]:
    out, errors = process.communicate()
    if process.returncode:
        return float("nan"), float("nan"), errors.strip().splitlines()[-1][:80]
    speed, compiling = json.loads(out.splitlines()[-1])
    return speed, compiling, ""


def main(_: list[str]) -> None:
    if _ONE.value:
        contestant, workload, batch = _ONE.value
        print(json.dumps(measure(contestant, workload, int(batch), _SECONDS.value)))
        return
    cores = len(os.sched_getaffinity(0))
    for workload in _WORKLOADS.value:
        for batch in _BATCHES.value:
            print(f"\n{TITLES[workload]}, batch {batch}, {RATES * SEEDS} cells")
            print(f"{'':26}{'cell-steps/s':>14}{'compile s':>11}{'x best torch':>14}", flush=True)
            best = 0.0
            for contestant in (*TORCH, *JAX):
                if contestant == "torch, a process a core":
                    parts = [
                        outcome(each)
                        for each in [child("torch loop", workload, batch, 1) for _ in range(cores)]
                    ]
                    speed, compiling, why = sum(part[0] for part in parts), 0.0, parts[0][2]
                else:
                    speed, compiling, why = outcome(child(contestant, workload, batch))
                if contestant in TORCH and speed > best:
                    best = speed
                print(
                    f"{contestant:26}{speed:14.1f}{compiling:11.1f}{speed / best:14.2f}  {why}",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main, flags_parser=parsed)
