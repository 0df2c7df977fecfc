"""What the devices want: how many, how much memory, micro-batches of which sizes."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from surge.gradients.products import plan
from surge.tasks import Task

# Size classes: one compiled program for each optimizer and class serves every batch size. On two
# cores an example of the MNIST-1D MLP costs half as much at 32 as at 8, a quarter less at 128 than
# at 32, and a twentieth less at 256.
MICROBATCHES = (8, 32, 128)
# On CPU the smallest class alone, where an example is many rows of a product with the same weights
# (a convolution's positions, a text's tokens): 8 fill the product, more leave the cache. That takes
# a fifth to a third off a step.
ROWS, FLOPS = 10, 5e5  # of an example's gradient, at least
MEMORY_SHARE = 0.8  # of a device's memory, for the arguments and temporaries of one program
MICROBATCH_SHARE = 0.25  # of an accelerator's memory, for the activations of one micro-batch
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Backend(NamedTuple):
    """What programs for one kind of device are made with; rounding need not be a plain loop's.

    Attributes:
      options: of the compiler.
      rewrites: products of matrices take the form that the backend's library is fast for.
      fills: a run of many parameters fills a device, so that runs take turns on it.
      microbatches: sizes of micro-batches that a program is compiled for.
    """

    options: Mapping[str, Any] | None
    rewrites: bool
    fills: bool
    microbatches: tuple[int, ...]


BACKENDS = {
    # Level 1 compiles a sweep's programs twice as fast; matrix products are library calls either
    # way.
    "cpu": Backend({"xla_backend_optimization_level": 1}, True, True, MICROBATCHES),
    # Kernels are the compiler's own there, so it keeps its level, and products stay as written:
    # transposes are free. One run of any size leaves room beside it. Sizes double once more, since
    # a step is mostly launches. None of this has been measured.
    "gpu": Backend(None, False, False, (*MICROBATCHES, 512)),
    # The same, and 8 rows are the least that its matrix unit takes.
    "tpu": Backend(None, False, False, (*MICROBATCHES, 512)),
}


def backend() -> Backend:
    """Of the devices at hand; an unknown kind counts as a GPU."""
    return BACKENDS.get(jax.default_backend(), BACKENDS["gpu"])


def enable_compilation_cache() -> None:
    """Keeps compiled programs between processes, in the user's cache directory.

    A cache that JAX has been given (by JAX_COMPILATION_CACHE_DIR, say) stays as it is.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(root) / "surge" / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def set_matmul_precision(precision: str) -> None:
    """Of float32 products from here on, in every thread; on a CPU programs stay as they are."""
    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", precision)


def one_device_per_core() -> None:
    """Splits the host into a device for each core; call before JAX first computes.

    Other backends are unmoved, and so are a count that the user has set and a process, like that
    of a notebook, in which JAX has computed already.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores())


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # on Linux alone
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> str:
    """The devices at hand, as files of results name them."""
    return f"{jax.local_device_count()} x {jax.devices()[0].device_kind}"


def parameters(task: Task) -> int:
    """How many a task's model has."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0))))


def example_shapes(task: Task) -> tuple[Any, Any]:
    """Shapes of the parameters and of one example."""
    key = jax.random.key(0)
    return jax.eval_shape(task.init, key), jax.eval_shape(task.draw, task.data, key)


def size_classes(task: Task) -> tuple[int, ...]:
    """Micro-batch sizes, increasing.

    Those that are fastest here and that memory has room for, or the ghost batch where a batch loss
    couples it.
    """
    if task.batch_loss is not None:
        return (task.ghost,)
    sizes = backend().microbatches
    shapes = example_shapes(task)
    if jax.default_backend() != "cpu":
        room = int(MICROBATCH_SHARE * device_bytes() / plan(task.loss, *shapes).activations)
        # A model of which the smallest class is too many takes the power of two that fits.
        return tuple(size for size in sizes if size <= room) or (
            1 << max(room, 1).bit_length() - 1,
        )
    costs = jax.jit(jax.grad(task.loss)).lower(*shapes).cost_analysis() or {}
    products = 6 * parameters(task)  # of one row: two each, forward once and backward twice
    if costs.get("flops", 0.0) > max(FLOPS, ROWS * products):
        return sizes[:1]
    return sizes


def microbatch(task: Task, classes: Sequence[int], batch_size: int) -> int:
    """The largest of the size classes within the batch, or the smallest.

    Raises:
      ValueError: the task couples ghost batches, and the batch is not a whole number of them.
    """
    if task.batch_loss is not None and batch_size % task.ghost:
        raise ValueError(
            f"batch size {batch_size} is no multiple of the {task.ghost} examples of a ghost batch"
        )
    return max((size for size in classes if size <= batch_size), default=classes[0])


def device_bytes() -> float:
    """Memory of one device, all of it.

    By what is free at the moment, blocks would be a matter of timing.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    return (min(host, int(limit)) if limit.isdigit() else host) / jax.local_device_count()


def short_of_memory(error: Exception) -> bool:
    """Whether an error says that host or device memory ran out."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
