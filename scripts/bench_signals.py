"""What an optimizer's per-example signals cost, in mean gradients of the same batch.

    python scripts/bench_signals.py           # a minute or two on two cores
    python scripts/bench_signals.py --repeats=3 --workloads=mlp

Side by side in one process, call by call in turn, so that a busy machine slows all alike: the mean
gradient, the signals (E g², norms, squared norms) from one backward pass, the same with inner
products, and the naive form, vmap(grad) and sums.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from peers import jax_task

from surge.cli import parsed
from surge.gradients.signals import example_moments
from surge.tasks import Task
from surge.training.step import batch_gradient

EXAMPLES = {"mlp": (2_048, 128), "cnn": (128, 32), "gpt": (16, 8)}  # B, micro-batch


def contestants(task: Task, size: int, micro: int) -> dict[str, Callable[[Any], Any]]:
    """Name -> a jitted function of parameters."""
    key = jax.random.key(1)
    point = task.loss, task.draw

    def gradient(params: Any) -> Any:
        return batch_gradient(task, params, task.data, key, size, micro)

    def signals(params: Any, inner: bool = False) -> Any:
        return example_moments(*point, params, task.data, key, size, micro, inner=inner)

    def naive(params: Any) -> Any:
        def part(index: jax.Array | int) -> Any:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index * micro + jnp.arange(micro))
            examples = jax.vmap(task.draw, (None, 0))(task.data, keys)
            each = jax.vmap(jax.grad(task.loss), (None, 0))(params, examples)

            def norms(leaf):
                return jnp.sqrt((leaf.reshape(micro, -1) ** 2).sum(1)).sum()

            squares = jax.tree.map(lambda leaf: (leaf**2).sum(0), each)
            total = jax.tree.map(lambda leaf: leaf.sum(0), each)
            return total, squares, jax.tree.map(norms, each)

        def add(index, total):
            return jax.tree.map(jnp.add, total, part(index))

        return jax.lax.fori_loop(1, size // micro, add, part(0))

    return {
        "mean gradient": jax.jit(gradient),
        "signals": jax.jit(signals),
        "signals, inner products": jax.jit(lambda params: signals(params, inner=True)),
        "naive vmap(grad)": jax.jit(naive),
    }


def main(_: list[str]) -> None:
    print("| model | B | what | seconds | mean gradients |")
    print("|---|---|---|---|---|")
    for workload in _WORKLOADS.value:
        task = jax_task(workload)
        size, micro = EXAMPLES[workload]
        params = task.init(jax.random.key(0))
        made = contestants(task, size, micro)
        seconds: dict[str, list[float]] = {name: [] for name in made}
        for turn in range(1 + _REPEATS.value):
            for name, function in made.items():
                begun = time.perf_counter()
                jax.block_until_ready(function(params))
                if turn:  # the first call compiles
                    seconds[name].append(time.perf_counter() - begun)
        floor = seconds["mean gradient"]
        for name, taken in seconds.items():
            ratios = [own / base for own, base in zip(taken, floor, strict=True)]
            ratio = statistics.median(ratios)
            print(
                f"| {workload} | {size} | {name} | {statistics.median(taken):.4f} | {ratio:.2f} |"
            )


if __name__ == "__main__":
    _REPEATS = flags.DEFINE_integer("repeats", 15, "rounds that the medians are of")
    _WORKLOADS = flags.DEFINE_list("workloads", list(EXAMPLES), "models")
    app.run(main, flags_parser=parsed)
