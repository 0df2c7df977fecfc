"""Per-example gradient moments against one plain gradient of the same examples, and against their
peers.

    python scripts/bench_moments.py                     # about 8 minutes on two cores
    python scripts/bench_moments.py --workloads=cnn

Every contestant but the plain gradients yields the same statistics of each parameter (mean,
variance, count of signs; "no signs" leaves the last out) and the squared norm of each example's
gradient, in a process of its own: seconds are the median of several calls after a warm-up, memory
is the growth of the process's peak over what it held before. The plain gradient of the same
framework is the floor; "x floor" is against it on as many devices.
"""

import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from absl import app, flags
from peers import TITLES, jax_task, torch_data, torch_model

from surge.cli import parsed

_WORKLOADS = flags.DEFINE_list("workloads", ["mlp", "cnn", "resnet", "gpt"], "models")
_REPEATS = flags.DEFINE_integer("repeats", 7, "calls that the median is of")
_ONE = flags.DEFINE_list("one", [], "contestant, workload: what a child process measures")

EXAMPLES = {"mlp": 4_096, "cnn": 512, "resnet": 256, "gpt": 64}
CONTESTANTS = {  # name -> (devices, floor)
    "jax gradient": (1, "jax gradient"),
    "ours": (1, "jax gradient"),
    "ours, no signs": (1, "jax gradient"),
    "naive vmap(grad)": (1, "jax gradient"),
    "jax-privacy": (1, "jax gradient"),
    "jax gradient, a device a core": (2, "jax gradient, a device a core"),
    "ours, a device a core": (2, "jax gradient, a device a core"),
    "ours, no signs, a device a core": (2, "jax gradient, a device a core"),
    "torch gradient": (1, "torch gradient"),
    "torch.func vmap(grad)": (1, "torch gradient"),
    "Opacus": (1, "torch gradient"),
    "BackPACK": (1, "torch gradient"),
}


def jax_contestant(name: str, workload: str) -> Callable[[], Any]:
    """A call that computes everything and waits for it."""
    import jax
    import jax.numpy as jnp

    from surge.gradients.moments import merge, per_example_moments

    task, n = jax_task(workload), EXAMPLES[workload]
    params = task.init(jax.random.key(0))
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[:n]), task.data)
    devices = jax.local_device_count()
    dealt = jax.tree.map(lambda leaf: leaf.reshape(devices, n // devices, *leaf.shape[1:]), batch)

    def mean_loss(params: Any, batch: Any) -> jax.Array:
        return jax.vmap(task.loss, (None, 0))(params, batch).mean()

    def naive(params: Any, batch: Any) -> Any:
        found = jax.vmap(jax.grad(task.loss), (None, 0))(params, batch)
        norms = sum((leaf**2).sum(tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(found))
        return jax.tree.map(
            lambda leaf: (leaf.mean(0), leaf.var(0, ddof=1), jnp.sign(leaf).sum(0)), found
        ), norms

    if name == "jax-privacy":
        from jax_privacy import clipping

        def summed(grads):
            return jax.tree.map(lambda leaf: (leaf, leaf**2, jnp.sign(leaf)), grads)

        naive = clipping.clipped_grad(
            task.loss,
            l2_clip_norm=float("inf"),
            keep_batch_dim=False,
            pre_clipping_transform=summed,
            return_grad_norms=True,
            microbatch_size=16,
        )
    if name in ("naive vmap(grad)", "jax-privacy"):
        program = jax.jit(naive)
        return lambda: jax.block_until_ready(program(params, batch))
    if name.startswith("ours"):

        def moments(params: Any, batch: Any) -> Any:
            found = per_example_moments(task.loss, params, batch)
            return (
                found._replace(sign_sum=(), zeros=()) if "no signs" in name else found
            )  # what is not asked for

        if devices == 1:
            program = jax.jit(moments)
            return lambda: jax.block_until_ready(program(params, batch))
        parts = jax.pmap(moments, in_axes=(None, 0))
        both = jax.jit(
            lambda found: merge(*(jax.tree.map(itemgetter(each), found) for each in (0, 1)))
        )
        return lambda: jax.block_until_ready(both(parts(params, dealt)))
    program = jax.pmap(jax.grad(mean_loss), in_axes=(None, 0))
    return lambda: jax.block_until_ready(program(params, dealt))


def torch_contestant(name: str, workload: str) -> Callable[[], Any]:
    import torch
    from torch.func import functional_call, grad, vmap

    model, loss = torch_model(
        workload, tied=name not in ("Opacus", "BackPACK")
    )  # hooks do not see tied weights
    n = EXAMPLES[workload]
    batch = {key: each[:n] for key, each in torch_data(workload).items()}

    def statistics_of(gradients: list[Any]) -> Any:
        norms = sum(each.flatten(1).square().sum(1) for each in gradients)
        return [(each.mean(0), each.var(0), each.sign().sum(0)) for each in gradients], norms

    if name == "torch gradient":
        return lambda: torch.autograd.grad(loss(model(batch["x"]), batch), list(model.parameters()))
    if name == "torch.func vmap(grad)":
        held = {key: each.detach() for key, each in model.named_parameters()}

        def one(held: Any, example: Any) -> Any:
            single = {key: each[None] for key, each in example.items()}
            return loss(functional_call(model, held, (single["x"],)), single)

        return lambda: statistics_of(list(vmap(grad(one), (None, 0))(held, batch).values()))
    if name == "Opacus":
        from opacus.grad_sample import GradSampleModule

        sampled = GradSampleModule(model, loss_reduction="mean")

        def opacus() -> Any:
            sampled.zero_grad()
            loss(sampled(batch["x"]), batch).backward()
            return statistics_of([each.grad_sample for each in sampled.parameters()])

        return opacus
    import backpack
    from backpack.extensions import BatchGrad

    extended = backpack.extend(model)
    criterion = backpack.extend(torch.nn.CrossEntropyLoss())

    def with_backpack() -> Any:
        with backpack.backpack(BatchGrad()):
            criterion(extended(batch["x"]), batch["y"]).backward()
        return statistics_of([n * each.grad_batch for each in extended.parameters()])

    return with_backpack


def measure(name: str, workload: str) -> tuple[float, float]:
    """Seconds of one call, and MiB that the process's peak grew by."""
    own = jax_contestant if name.startswith(("jax", "ours", "naive")) else torch_contestant
    call = own(name, workload)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    call()
    taken = []
    for _ in range(_REPEATS.value):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken), (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    ) / 1024


def child(name: str, workload: str, devices: int) -> tuple[float, float, str]:
    """What a fresh process measures, or why it could not."""
    module = {"BackPACK": "backpack", "jax-privacy": "jax_privacy", "Opacus": "opacus"}.get(name)
    if module and importlib.util.find_spec(module) is None:
        return float("nan"), float("nan"), "not installed"
    command = [
        sys.executable,
        "-W",
        "ignore",
        __file__,
        f"--one={name.replace(',', ';')},{workload}",
    ]
    extra = {"JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(
        [*command, f"--repeats={_REPEATS.value}"],
        env=os.environ | extra,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return float("nan"), float("nan"), done.stderr.strip().splitlines()[-1][:90]
    return *json.loads(done.stdout.splitlines()[-1]), ""


def main(_: list[str]) -> None:
    if _ONE.value:
        name, workload = _ONE.value
        print(json.dumps(measure(name.replace(";", ","), workload)))
        return
    for workload in _WORKLOADS.value:
        print(f"\n{TITLES[workload]}, {EXAMPLES[workload]} examples")
        print(f"{'':32}{'seconds':>10}{'examples/s':>12}{'x floor':>9}{'peak MiB':>10}", flush=True)
        seconds: dict[str, float] = {}
        for name, (devices, floor) in CONTESTANTS.items():
            seconds[name], memory, why = child(name, workload, devices)
            rate = EXAMPLES[workload] / seconds[name]
            share = seconds[name] / seconds[floor]
            print(
                f"{name:32}{seconds[name]:10.4f}{rate:12.0f}{share:9.2f}{memory:10.0f}  {why}",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main, flags_parser=parsed)
