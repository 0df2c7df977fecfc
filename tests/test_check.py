"""Each mistake in a task, or in a model of one's own, is a sentence saying what would be right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import surge
from surge.tasks import Task, draw_from_arrays, make_task
from surge.tasks.check import TaskError, as_examples, as_params, check_loss, check_task

ROWS = np.ones((9, 2), np.float32)


def loss(params, example):
    return params @ example


GOOD = Task(lambda key: jnp.ones(2), loss, ROWS, draw_from_arrays, ROWS)


def raising(*args):
    raise RuntimeError("the disk is gone")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"init": raising}, r"init raises RuntimeError: the disk is gone\n.*test_check.py"),
        ({"draw": raising}, r"draw raises RuntimeError"),
        ({"loss": raising}, r"loss_fn raises RuntimeError"),
        ({"init": lambda key: jnp.ones(2, jnp.int32)}, "params is int32, which has no gradient"),
        ({"init": lambda key: jnp.ones(2, jnp.complex64)}, "must be real"),
        ({"init": lambda key: {}}, "hold no arrays"),
        ({"loss": lambda params, example: params * example}, r"returns shape \(2,\)"),
        ({"data": ROWS[:0]}, "data is empty"),
        ({"evaluation": ROWS[:0]}, "evaluation is empty"),
        ({"evaluation": (ROWS, ROWS[:5])}, r"share their leading axis, got lengths \[5, 9\]"),
        ({"evaluation": np.ones((9, 3), np.float32)}, r"\(3,\) where draw makes \(2,\)"),
        (
            {"batch_loss": lambda params, batch: batch @ params, "ghost": 3},
            r"batch_loss must return a scalar.* shape \(3,\)",
        ),
    ],
)
def test_a_task_that_cannot_be_trained_is_a_sentence(change, said):
    with pytest.raises(TaskError, match=f"(?s){said}"):
        check_task(GOOD._replace(**change))


@pytest.mark.parametrize(
    "task, arguments",
    [
        ("surge.tasks.quadratic:quadratic", {}),
        ("surge.tasks.mlp:mnist1d", {}),
    ],
)
def test_tasks_that_can_be_trained_pass(task, arguments):
    check_task(GOOD)
    check_task(make_task(task, **arguments))


@pytest.mark.parametrize(
    "leaf, said",
    [
        (jnp.int32(3), "int32, which has no gradient: close over it"),
        (np.ones(3, bool), "bool, which has no gradient"),
        (jax.random.key(0), "has no gradient"),
        (jnp.tanh, "no array: close over it"),
        ("relu", "a str, no array"),
        (np.ones(2, np.complex64), "real and imaginary parts as two arrays"),
    ],
)
def test_a_leaf_that_is_no_real_floating_array_is_named(leaf, said):
    with pytest.raises(TaskError, match=rf"params\['layer'\]\['odd'\] is .*{said}"):
        as_params({"layer": {"odd": leaf, "w": np.ones(2, np.float32)}})


def test_leaves_that_mean_an_array_become_one():
    params = as_params({"w": np.ones(2, np.float32), "scale": 1.0, "frozen": None})
    assert params["scale"].dtype == jnp.float32 and params["frozen"] is None
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "batches, said",
    [
        ([], "hold 0 examples"),
        ({"x": ROWS}, r"give a single one as \[batch\]"),
        (ROWS, r"give a single one as \[batch\]"),
        ((ROWS, ROWS[:, 0]), r"one form, .* give a single batch as \[batch\]"),
        ([{"x": ROWS, "id": np.array(["a"] * 9)}], r"\['id'\] is an array of <U1, not of numbers"),
        ([{"x": ROWS.astype(object)}], r"\['x'\] is an array of object"),
        ([{"x": ROWS, "t": 3.0}], r"\['t'\] is a float without a leading axis"),
        ([{"x": ROWS.tolist()}], "is a float without a leading axis"),
        ([(ROWS, ROWS[:8])], "share their leading axis"),
    ],
)
def test_batches_that_are_no_arrays_of_examples_are_a_sentence(batches, said):
    with pytest.raises(TaskError, match=said):
        as_examples(batches)


@pytest.mark.parametrize(
    "made, said",
    [
        (lambda params, example: (params @ example, {"accuracy": 1.0}), "leave out auxiliary"),
        (lambda params, example: jnp.int32(1), "returns int32"),
        (lambda params, example: 1j * (params @ example), "returns complex64"),
        (lambda params, example: example.shape[1] * params.sum(), "ONE example"),
    ],
)
def test_a_loss_that_is_no_real_scalar_is_a_sentence(made, said):
    with pytest.raises(TaskError, match=said):
        check_loss(made, jnp.ones(2), ROWS[0])


def test_a_mistake_in_ones_own_loss_shows_its_own_lines_and_none_of_ours():
    def mistaken(params, example):
        return params @ example[:1]

    with pytest.raises(TaskError) as caught:
        surge.measure(mistaken, jnp.ones(2), [ROWS])
    assert "return params @ example[:1]" in str(caught.value)
    assert str(caught.value).count("File ") == 1
