"""What a notebook asks of a model of its own: gradient noise at one point, and the learning rate
that it implies."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from surge.gradients import one_step
from surge.gradients.independent import SignSummary, flat_hessian, independent_law, sign_summary
from surge.gradients.moments import GradientMoments
from surge.measurement import GROUPS, QUANTILES, gradient_noise
from surge.optimizers import make_optimizer
from surge.tasks import draw_from_arrays
from surge.theory.noise import Estimate


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
      measured: label -> measured one-step law of each optimizer at each batch size.
    """

    moments: GradientMoments
    b_simple: Estimate
    sign: Estimate
    validity: dict[float, list[float]]
    closed_form: SignSummary | None
    independent: one_step.OneStepLR | None
    measured: dict[str, one_step.OneStepLR]


def measure(
    loss_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    batches: Iterable[Any],
    *,
    optimizers: Mapping[str, str] | None = None,
    batch_sizes: Sequence[int] = (1, 4, 16, 64, 256, 1024),
    directions: int = 32,
    seed: int = 0,
) -> Measurement:
    """Noise scales of a model at `params`, and the one-step optimal learning rate of optimizers
    there.

    Every batch is held at once; gradients are streamed. Losses are over all the examples given, so
    those are also what steps are drawn from.

    Args:
      loss_fn: (params, example) -> scalar loss of ONE example.
      params: pytree of arrays.
      batches: pytrees of arrays with a common leading axis, in all at least 8 examples; more narrow
        the intervals.
      optimizers: label -> spec, like {"adam": "adam(b1=0.9, b2=0.999)"}; None measures noise alone.
      batch_sizes: B [b] at which the laws are taken.
      directions: sampled at each batch size, a multiple of 8.
      seed: of what is drawn.

    Raises:
      ValueError: no examples or fewer than 8, a loss that is not a scalar, an unknown optimizer.
    """
    steps = {label: make_optimizer(spec) for label, spec in (optimizers or {}).items()}
    examples = _joined(list(batches))
    shape = jax.eval_shape(loss_fn, params, jax.tree.map(lambda leaf: leaf[0], examples)).shape
    if shape:
        raise ValueError(
            f"loss_fn must return a scalar, the loss of one example; it returns shape {shape}"
        )
    shares = [
        jax.tree.map(itemgetter(slice(start, None, GROUPS)), examples) for start in range(GROUPS)
    ]
    noise = gradient_noise(loss_fn, params, shares)
    probe_key, step_key = jax.random.split(jax.random.key(seed))
    closed_form = independent = None
    measured = {}
    if steps:
        hessian = flat_hessian(loss_fn, params, examples, probe_key)
        closed_form = sign_summary(hessian, noise.groups)
        independent = independent_law(hessian, noise.groups, batch_sizes)
        point = loss_fn, params, draw_from_arrays, examples, examples
        found = one_step.sample_steps(*point, steps, batch_sizes, step_key, count=directions)
        measured = {
            label: one_step.measured_law(samples) for label, samples in found.samples.items()
        }
    validity = dict(zip(QUANTILES, noise.validity.tolist(), strict=True))
    return Measurement(
        noise.moments, noise.b_simple, noise.sign, validity, closed_form, independent, measured
    )


def _joined(batches: list[Any]) -> Any:
    """All batches as one."""
    examples = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches) if batches else ()
    lengths = {leaf.shape[0] for leaf in jax.tree.leaves(examples)}
    if len(lengths) > 1:
        raise ValueError(
            f"the arrays of a batch must share their leading axis, got lengths {sorted(lengths)}"
        )
    if not lengths or min(lengths) < GROUPS:
        raise ValueError(
            f"the batches hold {min(lengths, default=0)} examples: surge.measure needs at least {GROUPS}"
        )
    return examples
