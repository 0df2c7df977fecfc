"""A GPT whose layers are recomputed or scanned: moments by products, in memory without n."""

import bench_layers
import jax
import numpy as np
import pytest
from slowly import slow

from surge.gradients.moments import per_example_moments
from surge.gradients.products import plan
from surge.tasks import gpt

SIZE = gpt.Size(vocabulary=32, context=8, width=16, depth=2, heads=2)
N = 6


def stacked_gradients(given):
    return jax.jit(jax.vmap(jax.grad(given.loss), (None, 0)))(given.params, given.rows)


@pytest.mark.parametrize("form", ["scan", *slow("remat", "scan of remat")])
def test_moments_are_those_of_stacked_gradients(form):
    given = bench_layers.problem(form, SIZE, N)
    moments = per_example_moments(given.loss, given.params, given.rows, microbatch_size=3)
    gradients = stacked_gradients(given)
    paths = jax.tree_util.tree_leaves_with_path(gradients)
    leaves = map(jax.tree.leaves, (moments.mean, moments.square, moments.square_norms))
    for (path, rows), mean, square, norms in zip(paths, *leaves, strict=True):
        rows = np.asarray(rows, np.float64)
        scale = max(np.abs(rows).max(), 1e-3)
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-4, atol=1e-5 * scale, err_msg=name)
        deviations = N * rows.var(0)
        np.testing.assert_allclose(
            square, deviations, rtol=1e-3, atol=1e-5 * scale**2, err_msg=name
        )
        sums = (rows.reshape(N, -1) ** 2).sum(1)
        np.testing.assert_allclose(norms, sums, rtol=1e-4, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("form", ["scan of remat", *slow("plain", "remat", "scan")])
def test_no_kernel_needs_single_gradients(form):
    given = bench_layers.problem(form, SIZE, N)
    found = plan(given.loss, given.params, given.rows[0])
    paths = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(given.params)
    ]
    kernels = {index for index, path in enumerate(paths) if "kernel" in path}
    assert len(kernels) == (4 if "scan" in form else 4 * SIZE.depth)
    assert not kernels & found.read


@pytest.mark.slow
@pytest.mark.parametrize("form", ["remat", "scan"])
def test_memory_does_not_grow_with_the_examples(form):
    given = bench_layers.problem(form, SIZE, N)
    program = jax.jit(
        lambda params, rows: per_example_moments(given.loss, params, rows, microbatch_size=4)
    )
    few, many = (bench_layers.temporaries(program, given, times) for times in (4, 40))
    norms = 4 * 36 * N * len(jax.tree.leaves(given.params)) / 2**20  # the only results per example
    assert many - few <= 2 * norms + 0.01
