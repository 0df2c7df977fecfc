"""Processes that work is sent to: the only file that imports Ray."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
from absl import logging

RETRIES = 5  # of a job whose worker was lost, on another one
Given = TypeVar("Given")
Result = TypeVar("Result")


class LostWorkers(Exception):
    """Work that no worker has brought to an end; the message is one sentence."""


class Cluster:
    """Workers of a Ray cluster, each with the devices that a run of this process would have.

    Args:
      address: of a running cluster; "" starts one on this machine, which ends with the block.

    Raises:
      LostWorkers: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str):
        if importlib.util.find_spec("ray") is None:
            raise LostWorkers("--launcher=ray needs Ray: pip install 'surge[ray]'")
        import ray  # pyrefly: ignore

        self._ray = ray
        try:
            ray.init(
                address=address or "local",
                runtime_env={"env_vars": _environment()},
                log_to_driver=False,
                include_dashboard=None if address else False,
                configure_logging=False,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"--ray_address={address}" if address else "this machine"
            raise LostWorkers(f"no Ray cluster at {where}: {error}") from error
        logging.info("ray: %s", ray.cluster_resources())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ray.shutdown()

    def map(self, work: Callable[[Given], Result], jobs: Iterable[Given]) -> Iterator[Result]:
        """The results of jobs, in the order in which they are done.

        A job whose worker dies, or whose machine goes, is done again by another, RETRIES times.
        What a job raises is raised here.

        Raises:
          LostWorkers: the workers of a job were lost too often.
        """
        task = self._ray.remote(max_retries=RETRIES, **_resources())(work)
        waiting: Sequence[Any] = [task.remote(job) for job in jobs]
        while waiting:
            [ready], waiting = self._ray.wait(waiting)
            yield self._result(ready)

    def _result(self, ready: Any) -> Any:
        try:
            return self._ray.get(ready)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise LostWorkers(
                f"workers were lost {RETRIES + 1} times over one piece of the sweep "
                f"({type(error).__name__}): what was finished is kept, and the same command goes on"
            ) from error


def _resources() -> dict[str, Any]:
    """What a worker takes of its machine: all that one process would use."""
    kind = jax.default_backend()
    if kind == "gpu":
        return {"num_gpus": jax.local_device_count(), "num_cpus": 1}
    if kind == "tpu":
        return {"resources": {"TPU": jax.local_device_count()}, "num_cpus": 1}
    return {"num_cpus": min(jax.local_device_count(), os.cpu_count() or 1)}


def _environment() -> dict[str, str]:
    """As many CPU devices as here, since the shape of a block is by devices, and the same cache."""
    cache = jax.config.values["jax_compilation_cache_dir"]
    chosen = {"JAX_NUM_CPU_DEVICES": str(jax.local_device_count())}
    if jax.default_backend() != "cpu":
        chosen = {"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}
    least = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    kept = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(least),
    }
    path = os.pathsep.join(filter(None, sys.path))  # a task may be a module of the user's own
    return chosen | (kept if cache else {}) | {"PYTHONPATH": path}
