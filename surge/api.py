"""What a notebook asks of its own model: gradient noise at a point, and the rate it implies."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from surge.fields import MANY
from surge.gradients import one_step
from surge.gradients.directions import GROUPS
from surge.gradients.independent import SignSummary, flat_hessian, independent_law, sign_summary
from surge.gradients.kappa import Kappa, of_optimizer
from surge.gradients.moments import GradientMoments
from surge.gradients.noise import QUANTILES, gradient_noise
from surge.gradients.ratio import as_mean
from surge.gradients.steps import sample_steps
from surge.optimizers import make_optimizer
from surge.tasks import draw_from_arrays
from surge.tasks.check import as_examples, as_params, check_loss, check_weight
from surge.theory.noise import Estimate

MOST_DIRECTIONS = 2**20  # at each batch size
MOST_SEED = 2**32 - 1


class Measurement(NamedTuple):
    """What the gradients of single examples say at one point.

    Attributes:
      moments: of the gradients of all examples; leaves shaped like params.
      b_simple: tr Σ/|μ|² in examples, McCandlish's noise scale, with its 95% interval.
      sign: (‖σ‖₁/‖μ‖₁)² in examples, the noise scale of sign descent, with its 95% interval.
      validity: quantile -> [value, low, high] of πσ²/2μ² over parameters, in examples: the
        small-batch law holds far below it.
      closed_form: coefficients of sign descent's closed forms; None where no optimizer was asked
        for.
      independent: the paper's formula for sign descent at each batch size; None likewise.
      measured: label -> measured one-step law a/q of each optimizer at each batch size.
      oracle: label -> the true one-step optimum that the laws approximate: where they differ, this
        is right.
      kappa: label -> whether each optimizer's optimum is to be expected to rise and fall again.
      batch_sizes: B [b] of the laws.
    """

    moments: GradientMoments
    b_simple: Estimate
    sign: Estimate
    validity: dict[float, list[float]]
    closed_form: SignSummary | None = None
    independent: one_step.OneStepLR | None = None
    measured: Mapping[str, one_step.OneStepLR] = MappingProxyType({})
    oracle: Mapping[str, one_step.OneStepLR] = MappingProxyType({})
    kappa: Mapping[str, Kappa] = MappingProxyType({})
    batch_sizes: Sequence[int] = ()

    def _repr_html_(self) -> str:
        from surge.notebook import of_measurement  # which imports figures

        return of_measurement(self)


def measure(
    loss_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    batches: Iterable[Any],
    *,
    optimizers: Mapping[str, str] | None = None,
    batch_sizes: Sequence[int] = (1, 4, 16, 64, 256, 1024),
    directions: int = 32,
    seed: int = 0,
    weight: Callable[[Any], jax.Array] | None = None,
) -> Measurement:
    """Noise scales of a model at `params`, and one-step optimal learning rates there.

    Every batch is held at once; gradients are streamed. Losses are over all the examples given, so
    those are also what steps are drawn from.

    Args:
      loss_fn: (params, example) -> scalar loss of ONE example.
      params: pytree of real floating arrays.
      batches: pytrees of arrays with a common leading axis, of numpy, JAX or torch, in all at least
        8 examples; more narrow the intervals.
      optimizers: label -> spec, like {"adam": "adam(b1=0.9, b2=0.999)"}; None measures noise alone.
      batch_sizes: B [b] at which the laws are taken.
      directions: sampled at each batch size, a multiple of 8.
      seed: of what is drawn.
      weight: example -> how much its loss counts, such as its tokens: the loss is then
        Σ weight · loss / Σ weight (`surge.gradients.ratio`). None: examples count alike.

    Raises:
      ValueError: no examples or fewer than 8, a leaf of params that is no real floating array, a
        loss that raises or is no real scalar, an unknown optimizer, or another argument out of its
        range.

    Example:
      Gradients with mean 1 and variance 4 in each of 3 coordinates: tr Σ/|μ|² is 12/3.

      >>> rows = np.random.default_rng(0).normal(1, 2, (4096, 3)).astype(np.float32)
      >>> found = measure(lambda params, row: row @ params, np.zeros(3, np.float32), [rows])
      >>> bool(found.b_simple.low < 4 < found.b_simple.high)
      True
    """
    _check_arguments(optimizers, batch_sizes, directions, seed)
    chosen = {label: make_optimizer(spec) for label, spec in (optimizers or {}).items()}
    params = as_params(params)
    examples = as_examples(batches)
    count = jax.tree.leaves(examples)[0].shape[0]
    if count < GROUPS:
        raise ValueError(
            f"the batches hold {count} examples: surge.measure needs at least {GROUPS}"
        )
    check_loss(loss_fn, params, jax.tree.map(itemgetter(0), examples))
    if weight is not None:
        check_weight(weight, jax.tree.map(itemgetter(0), examples))
        loss_fn = as_mean(loss_fn, weight, params, examples)
    # Dealt out by turns, so that groups are alike also where examples are sorted.
    dealt = [slice(start, None, GROUPS) for start in range(GROUPS)]
    shares = [jax.tree.map(itemgetter(part), examples) for part in dealt]
    order = np.concatenate([np.arange(count)[part] for part in dealt])
    noise = gradient_noise(loss_fn, params, shares, order=order)
    measurement = Measurement(
        moments=noise.moments,
        b_simple=noise.b_simple,
        sign=noise.sign,
        validity=dict(zip(QUANTILES, noise.validity.tolist(), strict=True)),
    )
    if not chosen:
        return measurement
    probe_key, step_key = jax.random.split(jax.random.key(seed))
    hessian = flat_hessian(loss_fn, params, examples, probe_key)
    samples = sample_steps(
        loss_fn,
        params,
        draw_from_arrays,
        examples,
        examples,
        chosen,
        batch_sizes,
        step_key,
        count=directions,
    ).samples
    return measurement._replace(
        batch_sizes=tuple(batch_sizes),
        closed_form=sign_summary(hessian, noise.groups),
        independent=independent_law(hessian, noise.groups, batch_sizes),
        measured={label: one_step.measured_law(steps) for label, steps in samples.items()},
        oracle={label: one_step.one_step_oracle(steps) for label, steps in samples.items()},
        kappa={
            label: of_optimizer(steps, batch_sizes, chosen[label], noise.b_simple.value)
            for label, steps in samples.items()
        },
    )


def _check_arguments(optimizers: Any, batch_sizes: Any, directions: Any, seed: Any) -> None:
    """Raises ValueError where one of them is not of its type, or out of its range."""
    named = isinstance(optimizers, Mapping) and all(map(_is_text, optimizers.values()))
    if optimizers is not None and not named:
        raise ValueError(
            f'optimizers must be label -> spec, like {{"adam": "adam(b1=0.9)"}}; got {optimizers!r}'
        )
    listed = isinstance(batch_sizes, Sequence | np.ndarray) and len(batch_sizes) > 0
    if not listed or not all(_is_whole(size, 1, MANY) for size in batch_sizes):
        raise ValueError(
            "batch_sizes must be whole numbers of at least 1 and at most "
            f"{MANY:,}, got {batch_sizes!r}"
        )
    if not _is_whole(directions, GROUPS, MOST_DIRECTIONS) or directions % GROUPS:
        raise ValueError(
            f"directions must be a multiple of {GROUPS}, at least {GROUPS} and at most "
            f"{MOST_DIRECTIONS:,}; got {directions!r}"
        )
    if not _is_whole(seed, 0, MOST_SEED):
        raise ValueError(f"seed must be a whole number from 0 to {MOST_SEED:,}, got {seed!r}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any, least: int, most: int) -> bool:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and least <= int(value) <= most
