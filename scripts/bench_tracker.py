"""What surge.Tracker costs a training step, side by side: python scripts/bench_tracker.py

The same Adam steps of an MLP, without it, with a handful of examples every so many steps, and with
gradients of micro-batches. Ways take turns, so that what else the machine does meets all of them;
the table has the median over rounds, and the quartiles of the ratio within a round.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from surge import Tracker, cli

WIDTH = flags.DEFINE_integer("width", 512, "Of both hidden layers.")
BATCH = flags.DEFINE_integer("batch_size", 512, "Examples a step.")
EXAMPLES = flags.DEFINE_integer("examples", 32, "In a reading.")
EVERY = flags.DEFINE_integer("every", 100, "Steps from one reading of examples to the next.")
MICRO = flags.DEFINE_integer("micro_batches", 8, "In a step of optax.MultiSteps.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Of all ways in turn.")
FEATURES = 64


def init(width: int) -> list[jax.Array]:
    sizes = [FEATURES, width, width, 1]
    keys = jax.random.split(jax.random.key(0), 3)
    return [
        jax.random.normal(key, shape) / shape[0] ** 0.5
        for key, shape in zip(keys, pairwise(sizes), strict=True)
    ]


def loss(params: list[jax.Array], x: jax.Array) -> jax.Array:
    """Of one example."""
    first, second, last = params
    hidden = jax.nn.relu(jax.nn.relu(x @ first) @ second)
    return ((hidden @ last)[0] - jnp.sin(x.sum())) ** 2


def mean_loss(params: list[jax.Array], x: jax.Array) -> jax.Array:
    return jax.vmap(loss, (None, 0))(params, x).mean()


def steps(
    optimizer: Any, tracker: Tracker | None, count: int, params: Any, state: Any, x: jax.Array
) -> Any:
    """`count` steps, and after the last of them a reading of examples where there is a tracker."""

    def one(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(mean_loss)(params, x), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(one, (params, state), length=count)
    if tracker is None:
        return params, state
    seen = tracker.from_examples(loss, params, x[: EXAMPLES.value])
    return params, state, tracker.update(tracker.init(), seen)


def ways() -> dict[str, tuple[Callable[[], Any], str]]:
    """Name -> a run of EVERY steps or so, and the way that it is held against."""
    params = init(WIDTH.value)
    x = jax.random.normal(jax.random.key(1), (BATCH.value, FEATURES))
    adam = optax.adam(1e-3)
    multi = optax.MultiSteps(optax.adam(1e-3), MICRO.value)
    small = x[: BATCH.value // MICRO.value]
    watched = Tracker.of(params, ("b_simple",)).around(multi, len(small))
    plain = "without"
    micro = f"{MICRO.value} micro-batches, without"

    def run(optimizer: Any, tracker: Tracker | None, count: int, x: jax.Array) -> Callable:
        program = jax.jit(partial(steps, optimizer, tracker, count))
        return partial(program, params, optimizer.init(params), x)

    every = EVERY.value
    reading = f"{EXAMPLES.value} examples every {every} steps"
    return {
        plain: (run(adam, None, every, x), plain),
        f"{reading}: b_simple": (run(adam, Tracker.of(params, ("b_simple",)), every, x), plain),
        f"{reading}: and sign": (run(adam, Tracker.of(params), every, x), plain),
        micro: (run(multi, None, every, small), micro),
        f"{MICRO.value} micro-batches: b_simple": (run(watched, None, every, small), micro),
    }


def main() -> None:
    runs = ways()
    for run, _ in runs.values():
        jax.block_until_ready(run())
    seconds = {name: [] for name in runs}
    for _ in range(ROUNDS.value):
        for name, (run, _) in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    print(
        f"{jax.devices()[0].device_kind}, MLP {FEATURES}-{WIDTH.value}-{WIDTH.value}-1, "
        f"batch size {BATCH.value}, {EVERY.value} gradients a run, {ROUNDS.value} rounds\n"
    )
    print("| way | ms a gradient | more than without [quartiles] |\n| --- | --- | --- |")
    for name, (_, base) in runs.items():
        ratio = np.divide(seconds[name], seconds[base]) - 1
        low, middle, high = np.quantile(ratio, (0.25, 0.5, 0.75))
        each = 1e3 * np.median(seconds[name]) / EVERY.value
        more = "" if name == base else f"{middle:+.1%} [{low:+.1%}, {high:+.1%}]"
        print(f"| {name} | {each:.3f} | {more} |")


if __name__ == "__main__":
    cli.parsed(sys.argv)
    main()
