"""Linear regression on real data: moments and Hessian in closed form."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from surge.tasks import Task, draw_from_arrays, first_rows
from surge.tasks.data import mnist1d_arrays


class Exact(NamedTuple):
    """At one θ, over the whole data set: mean gradient mu [P], covariance and hessian [P, P]."""

    mu: np.ndarray
    covariance: np.ndarray
    hessian: np.ndarray


def exact(data: dict[str, np.ndarray], theta: np.ndarray) -> Exact:
    """The population that is drawn from with replacement, of data {"x": [n, P], "y": [n]}."""
    x = np.asarray(data["x"], float)
    y = np.asarray(data["y"], float)
    residuals = x @ np.asarray(theta, float) - y
    gradients = residuals[:, None] * x
    return Exact(gradients.mean(0), np.cov(gradients.T, bias=True), x.T @ x / len(x))


def mnist1d(examples: int = 20_000, evaluation_examples: int = 1_024, seed: int = 42) -> Task:
    """Least squares for the standardised label of MNIST-1D, from its signal and a constant.

    Starts at 0.

    Raises:
      ValueError: too few examples, see `data.mnist1d_arrays`, or fewer than the evaluation's.
    """
    train, _ = mnist1d_arrays(examples, seed)
    x = np.concatenate([train["x"], np.ones((len(train["x"]), 1), np.float32)], 1)
    y = ((train["y"] - train["y"].mean()) / train["y"].std()).astype(np.float32)
    data = {"x": x, "y": y}
    return Task(
        init=lambda key: jnp.zeros(x.shape[1]),
        loss=lambda theta, example: 0.5 * (example["x"] @ theta - example["y"]) ** 2,
        data=data,
        draw=draw_from_arrays,
        evaluation=first_rows(data, evaluation_examples, "MNIST-1D's training part"),
    )
