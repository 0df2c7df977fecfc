"""Cells x steps per second of a sweep, side by side: PyTorch loops, plain JAX loops, and the engine.

    python scripts/bench_sweep.py --workload=mnist1d --batch=8 [--lanes=16] [--seconds=3]

Every form trains with Adam on the same shapes, drawing its batches from data in memory. Needs the extra `test`.
"""

import argparse
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch

from surge.optimizers import make_optimizer
from surge.tasks import Task, cnn, draw_from_arrays, gpt, mlp
from surge.training import sweep
from surge.training.run import batch_gradient, make_train

SHAPES = {"mnist1d": (40,), "mlp784": (784,), "cnn": (28, 28, 1), "gpt": (129,)}
WIDTHS = {"mnist1d": (100, 100), "mlp784": (256, 256)}


def arrays(workload: str, count: int = 4096) -> dict[str, np.ndarray]:
    """Random examples of a workload's shape: speed does not depend on what they show."""
    rng, shape = np.random.default_rng(0), SHAPES[workload]
    if workload == "gpt":
        return {"x": rng.integers(0, 256, (count, *shape)), "y": np.zeros(count, int)}
    return {"x": rng.normal(size=(count, *shape)).astype(np.float32), "y": rng.integers(0, 10, count)}


def jax_task(workload: str) -> Task:
    data = jax.tree.map(jnp.asarray, arrays(workload))
    evaluation = jax.tree.map(lambda leaf: leaf[:8], data)
    if workload == "gpt":
        model: nn.Module = gpt.GPT(gpt.SIZES["small"])
        return Task(
            lambda key: model.init(key, jnp.zeros(128, jnp.int32)),
            lambda params, example: gpt.token_losses(model, params, example["x"])[0].mean(),
            data,
            draw_from_arrays,
            evaluation,
        )
    model = cnn.CNN() if workload == "cnn" else mlp.MLP(WIDTHS[workload])
    loss = cnn.image_loss(model.apply, (0.0,), (1 / 255,))
    return Task(lambda key: model.init(key, data["x"][0]), loss, data, draw_from_arrays, evaluation)


class TorchGPT(torch.nn.Module):
    """transformers' GPT-2 at the small size; logits only."""

    def __init__(self):
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        shape = gpt.SIZES["small"]
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        sizes = {"n_positions": shape.context, "n_embd": shape.width, "n_layer": shape.depth, "n_head": shape.heads}
        self.body = GPT2LMHeadModel(GPT2Config(vocab_size=shape.vocabulary, use_cache=False, **sizes, **dropout))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.body(input_ids=tokens).logits


def torch_model(workload: str) -> torch.nn.Module:
    layers: list[torch.nn.Module] = []
    if workload == "gpt":
        return TorchGPT()
    if workload == "cnn":
        for inside, outside in ((1, 16), (16, 32), (32, 64)):
            layers += [torch.nn.Conv2d(inside, outside, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
        layers.append(torch.nn.Flatten())
        sizes = (576, 128, 10)
    else:
        sizes = (*SHAPES[workload], *WIDTHS[workload], 10)
    for inside, outside in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(inside, outside), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def torch_data(workload: str, channels_last: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    data = arrays(workload)
    inputs, labels = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    if workload == "cnn":
        inputs = inputs.permute(0, 3, 1, 2)
        inputs = inputs.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return (inputs[:, :-1], inputs[:, 1:]) if workload == "gpt" else (inputs, labels)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def timed(step: Callable[[], Any], seconds: float, cells: int = 1) -> tuple[float, float]:
    """(cell-steps per second, seconds of the first step) of a step that is repeated."""
    begun = time.perf_counter()
    step()
    first, count, begun = time.perf_counter() - begun, 0, time.perf_counter()
    while time.perf_counter() < begun + seconds:
        step()
        count += 1
    return cells * count / (time.perf_counter() - begun), first


def torch_step(workload: str, batch: int, channels_last: bool = False, compiled: bool = False) -> Callable[[], Any]:
    inputs, labels = torch_data(workload, channels_last)
    model = torch_model(workload)
    model = model.to(memory_format=torch.channels_last) if channels_last else model
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    run = torch.compile(lambda x, y: cross_entropy(model(x), y)) if compiled else None

    def step() -> None:
        rows = torch.randint(len(inputs), (batch,))
        loss = run(inputs[rows], labels[rows]) if run else cross_entropy(model(inputs[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def torch_lanes(workload: str, batch: int, lanes: int) -> Callable[[], Any]:
    """torch.func: stacked parameters, one vmapped gradient, Adam written out over the stack."""
    from torch.func import functional_call, grad, stack_module_state, vmap

    inputs, labels = torch_data(workload)
    base = torch_model(workload)
    params, _ = stack_module_state([torch_model(workload) for _ in range(lanes)])
    params = {name: value.detach() for name, value in params.items()}
    first, second = ({name: torch.zeros_like(value) for name, value in params.items()} for _ in range(2))
    gradients = vmap(grad(lambda p, x, y: cross_entropy(functional_call(base, p, (x,)), y)), (0, None, None))
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        rows = torch.randint(len(inputs), (batch,))
        for name, gradient in gradients(params, inputs[rows], labels[rows]).items():
            first[name].lerp_(gradient, 0.1)
            second[name].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            scale = (second[name] / (1 - 0.999**count)).sqrt_().add_(1e-8)
            params[name].addcdiv_(first[name], scale, value=-1e-3 / (1 - 0.9**count))

    return step


def _one_core(arguments: tuple[str, int, bool, float]) -> float:
    workload, batch, channels_last, seconds = arguments
    torch.set_num_threads(1)
    return timed(torch_step(workload, batch, channels_last), seconds)[0]


def torch_processes(workload: str, batch: int, seconds: float) -> float:
    """Sum over one single-threaded process per core."""
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        return sum(pool.map(_one_core, [(workload, batch, workload == "cnn", seconds)] * cores, chunksize=1))


def jax_step(task: Task, batch: int) -> Callable[[], Any]:
    transform = make_optimizer("adam")(1e-3, batch, 1)
    params = task.init(jax.random.key(0))
    carry = params, transform.init(params), jnp.zeros((), jnp.int32)

    @jax.jit
    def advance(params: Any, state: Any, index: jax.Array) -> Any:
        key = jax.random.fold_in(jax.random.key(0), index)
        updates, state = transform.update(batch_gradient(task, params, task.data, key, batch, batch), state, params)
        return jax.tree.map(jnp.add, params, updates), state, index + 1

    def step() -> None:
        nonlocal carry
        carry = jax.block_until_ready(advance(*carry))

    return step


def jax_scan(task: Task, batch: int, seconds: float) -> tuple[float, float]:
    train = jax.jit(make_train(task, make_optimizer("adam"), microbatch_size=batch))

    def run(steps: int) -> float:
        begun = time.perf_counter()
        at, rest = jnp.array([steps]), (-jnp.inf, task.data, task.evaluation)
        jax.block_until_ready(train(1e-3, jax.random.key(0), batch, at, *rest))
        return time.perf_counter() - begun

    first = run(1)
    steps = max(1, int(seconds / max(run(1), 1e-4)))
    steps = max(1, int(steps * seconds / run(steps))) if steps > 1 else 1
    return steps / run(steps), first


def ours(task: Task, batch: int, lanes: int, seconds: float) -> tuple[float, float]:
    rates = tuple(1e-3 * 1.01**index for index in range(lanes))
    engine = sweep.Engine(task, jax.random.key(0), stop_loss=-np.inf, block=(-(-lanes // jax.local_device_count()), 1))

    def run(steps: int) -> float:
        begun = time.perf_counter()
        engine.run(sweep.Piece("adam", "adam", batch, rates, (0,), (steps,)))
        return time.perf_counter() - begun

    first, steps = run(1), 1
    while (spent := run(steps)) < seconds / 2:
        steps = int(steps * min(20, 1 + seconds / spent))
    return lanes * steps / spent, first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=SHAPES, default="mnist1d")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    workload, batch, lanes, seconds = options.workload, options.batch, options.lanes, options.seconds
    sweep.one_device_per_core()
    rows = {"torch loop": timed(torch_step(workload, batch), seconds)}
    rows["torch loop, compiled"] = timed(torch_step(workload, batch, compiled=True), seconds)
    if workload == "cnn":
        rows["torch loop, channels last"] = timed(torch_step(workload, batch, channels_last=True), seconds)
    rows["torch.func"] = timed(torch_lanes(workload, batch, lanes), seconds, lanes)
    rows["torch, a process per core"] = torch_processes(workload, batch, seconds), 0.0
    best = max(rate for rate, _ in rows.values())
    task = jax_task(workload)
    rows["jax step loop"] = timed(jax_step(task, batch), seconds)
    rows["jax scanned loop"] = jax_scan(task, batch, seconds)
    rows["surge"] = ours(task, batch, lanes, seconds)
    print(f"{workload}, batch {batch}, {lanes} lanes: cell-steps/s, seconds to the first, share of the best torch")
    for name, (rate, first) in rows.items():
        print(f"  {name:28} {rate:10.1f} {first:8.2f} s {rate / best:8.2f}", flush=True)


if __name__ == "__main__":
    main()
