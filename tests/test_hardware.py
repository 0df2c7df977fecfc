"""What the devices want: size classes, memory, and programs kept between processes."""

import os

import jax
import jax.numpy as jnp
import pytest
from grids import PIECES, TASK

from surge.training import hardware
from surge.training.lanes import of_grid


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


def test_devices_stay_as_they_are_where_jax_has_computed(monkeypatch):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    before = jax.devices()
    monkeypatch.setattr(hardware, "cores", lambda: len(before) + 1)
    hardware.one_device_per_core()
    assert jax.devices() == before


def test_cores_are_counted_on_systems_that_know_no_affinity(monkeypatch):
    assert 1 <= hardware.cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert hardware.cores() == os.cpu_count()


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


def test_the_compilation_cache_is_on_and_a_users_own_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.values["jax_compilation_cache_dir"]
    for given, want in (
        (None, str(tmp_path / "surge" / "programs")),
        ("/somewhere/else", "/somewhere/else"),
    ):
        # where JAX_COMPILATION_CACHE_DIR is read into
        jax.config.update("jax_compilation_cache_dir", given)
        hardware.enable_compilation_cache()
        directory = jax.config.values["jax_compilation_cache_dir"]
        jax.config.update("jax_compilation_cache_dir", before)
        assert directory == want
