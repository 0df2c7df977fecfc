"""Gradient moments of a GPT whose layers are recomputed or run by a scan, against those without.

    python scripts/bench_layers.py                    # about 3 minutes on two cores
    python scripts/bench_layers.py --size=tiny --examples=8 --repeats=1

Every form has the same parameters and losses. The floor is the fastest plain gradient of the same
form: of the whole batch at once, or in the micro-batches that the moments take. "x without" is
against the moments of the plain form; all numbers are medians of calls taken in turn in one
process, so that other work on the machine meets all alike. Memory is what the compiler plans for
temporaries, for these examples and for four times as many.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import app, flags

from surge.cli import parsed
from surge.gradients.batch import weighted
from surge.gradients.moments import _automatic, per_example_moments
from surge.gradients.products import plan
from surge.tasks import gpt

_SIZE = flags.DEFINE_string("size", "small", "of gpt.SIZES")
_EXAMPLES = flags.DEFINE_integer("examples", 32, "in the batch")
_REPEATS = flags.DEFINE_integer("repeats", 5, "calls that a median is of")

FORMS = {
    "plain": (False, False),
    "remat": (True, False),
    "scan": (False, True),
    "scan of remat": (True, True),
}


class Layers(nn.Module):
    """The layers of a GPT by a scan over their stacked parameters."""

    size: gpt.Size
    remat: bool

    @nn.compact
    def __call__(self, states: jax.Array) -> jax.Array:
        block = nn.remat(gpt.Block, prevent_cse=False) if self.remat else gpt.Block
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.size.depth,
        )
        layers = stack(self.size, jnp.float32, "xla", gpt.FeedForward, name="h")
        return layers(states)[0]


class ScannedGPT(nn.Module):
    """`gpt.GPT` with its layers by a scan."""

    size: gpt.Size
    remat: bool

    @nn.compact
    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        normal = nn.initializers.normal(0.02)
        embed = nn.Embed(self.size.vocabulary, self.size.width, embedding_init=normal, name="wte")
        positions = self.param("wpe", normal, (self.size.context, self.size.width))
        states = Layers(self.size, self.remat, name="layers")(
            embed(tokens) + positions[: len(tokens)]
        )
        states = nn.LayerNorm(epsilon=1e-5, name="ln_f")(states)
        return states @ embed.embedding.T, jnp.zeros(0)


class Problem(NamedTuple):
    """loss(params, row), parameters, and rows [n, T + 1] of tokens."""

    loss: Callable[[Any, Any], jax.Array]
    params: Any
    rows: jax.Array


def problem(form: str, size: gpt.Size, examples: int) -> Problem:
    """One form of the model; all have the same parameters, stacked where layers are scanned."""
    remat, scanned = FORMS[form]
    keys = jax.random.split(jax.random.key(0), 2)
    rows = jax.random.randint(keys[0], (examples, size.context + 1), 0, size.vocabulary)
    model = ScannedGPT(size, remat) if scanned else gpt.GPT(size, remat=remat)
    params = gpt.GPT(size).init(keys[1], rows[0, :-1])
    if scanned:
        params = stacked(params, size.depth)

    def loss(params: Any, row: jax.Array) -> jax.Array:
        return gpt.token_losses(model, params, row)[0].mean()

    return Problem(loss, params, rows)


def stacked(params: Any, depth: int) -> Any:
    """A GPT's parameters in the layout of `ScannedGPT`."""
    inside = dict(params["params"])
    blocks = [inside.pop(f"h_{index}") for index in range(depth)]
    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return {"params": inside | {"layers": {"h": layers}}}


def contestants(given: Problem, size: int) -> dict[str, Any]:
    """Name -> jitted (params, rows) -> anything."""
    n = len(given.rows)

    def whole(params: Any, rows: Any) -> Any:
        def mean(params):
            return jax.vmap(given.loss, (None, 0))(params, rows).mean()

        return jax.grad(mean)(params)

    def micro(params: Any, rows: Any) -> Any:
        def add(total: Any, part: Any) -> tuple[Any, None]:
            weight = jnp.full(size, 1 / n)
            gradient = jax.grad(weighted(given.loss))(params, part, weight)
            return jax.tree.map(jnp.add, total, gradient), None

        parts = rows.reshape(n // size, size, -1)
        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)[0]

    def moments(params: Any, rows: Any) -> Any:
        return per_example_moments(given.loss, params, rows)

    return {
        name: jax.jit(one)
        for name, one in (("whole", whole), ("micro", micro), ("moments", moments))
    }


def temporaries(program: Any, given: Problem, times: int) -> float:
    """MiB that the compiler plans for so many times the rows."""
    rows = jax.ShapeDtypeStruct((times * len(given.rows), given.rows.shape[1]), given.rows.dtype)
    return program.lower(given.params, rows).compile().memory_analysis().temp_size_in_bytes / 2**20


def main(_: list[str]) -> None:
    size = gpt.SIZES[_SIZE.value]
    problems = {form: problem(form, size, _EXAMPLES.value) for form in FORMS}
    programs = {}
    for form, given in problems.items():
        found = plan(given.loss, given.params, given.rows[0])
        micro = min(len(given.rows), _automatic(given.params, found))
        programs[form] = contestants(given, micro)
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(_REPEATS.value + 1):
        for form, given in problems.items():
            for name, program in programs[form].items():
                started = time.perf_counter()
                jax.block_until_ready(program(given.params, given.rows))
                if turn:  # the first compiles
                    taken = time.perf_counter() - started
                    seconds.setdefault((form, name), []).append(taken)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    print(f"GPT {_SIZE.value}, {_EXAMPLES.value} examples of {size.context} tokens")
    columns = "whole s", "micro s", "moments s", "x floor", "x without", "MiB", "MiB 4n"
    print(f"{'':14}" + "".join(f"{column:>11}" for column in columns))
    for form, given in problems.items():
        whole, micro, moments = (medians[form, name] for name in ("whole", "micro", "moments"))
        memory = [temporaries(programs[form]["moments"], given, times) for times in (1, 4)]
        ratios = moments / min(whole, micro), moments / medians["plain", "moments"]
        print(
            f"{form:14}{whole:11.3f}{micro:11.3f}{moments:11.3f}{ratios[0]:11.2f}{ratios[1]:11.2f}"
            f"{memory[0]:11.0f}{memory[1]:11.0f}",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main, flags_parser=parsed)
