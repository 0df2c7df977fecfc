"""What the paper's rows cost at full scale, on paper: from their programs and grids, no device.

    python scripts/cost_of_paper.py                  # about a minute

Of each config's :full variant: the runs and examples of its grid (at most: runs end at stop_loss),
the operations that the compiler counts in the gradient of one example, and the bytes that one step
of Adam must move, 32 for each parameter. A step takes the longer of both, computed at MFU of the
peak and moved at BANDWIDTH of the roof, which are assumptions and no measurements: no program here
has run on an accelerator. Hours; "longest" is the share of the longest piece, which one node of
eight devices runs.
"""

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app

from surge.cli import parsed
from surge.config import check
from surge.sweep import plan
from surge.tasks import gpt, moe
from surge.tasks.cnn import CNN
from surge.tasks.resnet import ResNet
from surge.training.grid import Piece

CONFIGS = Path(__file__).parent.parent / "configs"
NODE = 8  # devices that one piece can be shared out to
MFU = 0.4
BANDWIDTH = 0.25
STEP_BYTES = 32  # of a float32 parameter: it, two moments and the gradient, read and written
RUN_BYTES = 20  # of a parameter that a run holds, see surge.training.lanes.run_bytes


class Device(NamedTuple):
    """Peak operations a second by dtype (float32 without shortcuts), bytes a second, memory."""

    bfloat16: float
    float32: float
    bandwidth: float
    memory: float


H100 = Device(989e12, 67e12, 3.35e12, 80e9)
V5E = Device(197e12, 197e12 / 6, 0.819e12, 16e9)  # a float32 product is six of bfloat16
MACHINES = {"1 H100": (H100, 1), "v5e-8": (V5E, 8), "64 H100": (H100, 64)}


class Row(NamedTuple):
    """Of one workload: parameters, operations of an example's gradient, dtype, pieces."""

    parameters: int
    flops: float
    dtype: str
    pieces: list[Piece]

    def seconds(self, device: Device) -> list[float]:
        """Of each piece on one device."""
        peak = device.bfloat16 if self.dtype == "bfloat16" else device.float32
        moved = STEP_BYTES * self.parameters / (BANDWIDTH * device.bandwidth)
        example = self.flops / (MFU * peak)
        return [
            piece.cells * piece.eval_steps[-1] * max(piece.batch_size * example, moved)
            for piece in self.pieces
        ]


def rows() -> Iterator[tuple[str, Row]]:
    """Label -> each row of the paper's table, by the configs that state them."""
    for name in ("fashion_mnist", "tiny_imagenet", "distilgpt2", "moe"):
        config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]("full")
        args = config.task_args.to_dict()
        init, loss, example = problem(name, args)
        params = jax.eval_shape(init, jax.random.key(0))
        cost = jax.jit(jax.grad(loss)).lower(params, example).cost_analysis() or {}
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        pieces = plan(check(config))
        for label in config.optimizers:
            its = [piece for piece in pieces if piece.optimizer == label]
            yield f"{name} {label}", Row(count, cost["flops"], args["dtype"], its)


def problem(name: str, args: dict[str, Any]) -> tuple[Any, Any, Any]:
    """init, loss, and the shape of one example; without data, and without recomputing."""
    dtype = jnp.dtype(args["dtype"])
    if name == "fashion_mnist":
        return images(CNN(args["channels"], args["hidden"], dtype=dtype), (28, 28, 1))
    if name == "tiny_imagenet":
        widths, blocks, classes = (args[part] for part in ("widths", "blocks", "classes"))
        return images(ResNet(widths, blocks, classes, dtype=dtype), args["shape"])
    if name == "moe":
        task = moe.text(**args | {"remat": False, "evaluation_examples": 1})
    else:
        known = {"source": "stdlib", "evaluation_examples": 1}  # not the source's own: no network
        task = gpt.text(**args | known)
    example = jax.eval_shape(task.draw, task.data, jax.random.key(0))
    return task.init, task.loss, example


def images(model: Any, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """A classifier of images."""

    def loss(params: Any, example: tuple[jax.Array, jax.Array]) -> jax.Array:
        image, label = example
        return -jax.nn.log_softmax(jnp.asarray(model.apply(params, image)))[label]

    image = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    label = jax.ShapeDtypeStruct((), jnp.int32)
    return lambda key: model.init(key, jnp.zeros(shape)), loss, (image, label)


def hours(row: Row, device: Device, count: int) -> float:
    """Where pieces are shared out, none can take less than its part of the longest."""
    seconds = row.seconds(device)
    together = max(sum(seconds) / count, max(seconds) / min(count, NODE))
    return together / 3600


def main(_: list[str]) -> None:
    columns = ("parameters", "GFLOP", "runs", "examples", *MACHINES, "longest", "GB a run")
    print(f"{'':20}" + "".join(f"{column:>12}" for column in columns))
    for label, row in rows():
        seconds = row.seconds(H100)
        numbers = (
            row.parameters,
            row.flops / 1e9,
            sum(piece.cells for piece in row.pieces),
            sum(piece.examples for piece in row.pieces),
            *(hours(row, *machine) for machine in MACHINES.values()),
            max(seconds) / sum(seconds),
            RUN_BYTES * row.parameters / 1e9,
        )
        print(f"{label:20}" + "".join(f"{number:12.3g}" for number in numbers), flush=True)


if __name__ == "__main__":
    app.run(main, flags_parser=parsed)
