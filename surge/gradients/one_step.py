"""ε_opt(B) from one checkpoint: the paper's independent law, the measured law, and the truth they approximate.

All three take one optimizer step θ − εu from the same point and are judged by the mean loss over one
evaluation batch. The independent law knows u only through per-parameter means; the measured law samples it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy import stats

from surge.gradients.curvature import LossFn, along, hutchinson, hvp, mean_loss
from surge.gradients.moments import GradientMoments, merge
from surge.theory.laws import Hessian, sign_mean

POOL_BATCHES = (8, 64)  # a mini-batch of the pool holds at most these; beyond, its noise is scaled
GROUPS = 8  # of directions, independent of each other: what intervals are taken over
MEMORY = 64  # optimizer steps before a direction is taken, where the optimizer has a memory: at least these
MOMENTS = (optax.ScaleByAdamState, optax.ScaleByRmsState, optax.ScaleByLionState, optax.EmaState)


class OneStepLR(NamedTuple):
    """ε_opt at each batch size [b] with its 95% interval, the gain ΔL at it, n samples, and reasons where nan."""

    lr: np.ndarray
    low: np.ndarray
    high: np.ndarray
    gain: np.ndarray
    n: int
    why: list[str]


def _result(drift: np.ndarray, curvature: np.ndarray, low: np.ndarray, high: np.ndarray, n: int) -> OneStepLR:
    """a/q [b] with its interval, undefined with a reason where the step has no minimum."""
    good = (curvature > 0) & (drift > 0)
    safe = np.where(good, curvature, 1.0)
    lr, low, high, gain = (np.where(good, each, np.nan) for each in (drift / safe, low, high, drift**2 / (2 * safe)))
    reasons = np.where(curvature <= 0, "no curvature along the step: q <= 0", "the step does not descend: a <= 0")
    why = ["" if fine else str(reason) for fine, reason in zip(good, reasons, strict=True)]
    return OneStepLR(lr, low, high, gain, n, why)


def flat_hessian(loss_fn: LossFn, params: Any, batch: Any, key: jax.Array, *, probes: int = 32) -> Hessian:
    """Hessian of the mean loss over the raveled parameters [P]: Hutchinson's diagonal, products by autodiff.

    Args:
      loss_fn: (params, example) -> scalar.
      params: where.
      batch: examples that the loss is the mean over.
      key: of the Hutchinson probes.
      probes: how many.
    """
    unravel = ravel_pytree(params)[1]
    diagonal = ravel_pytree(hutchinson(loss_fn, params, batch, key, probes).diagonal)[0]
    return Hessian(diagonal, lambda vector: ravel_pytree(hvp(loss_fn, params, batch, unravel(vector)))[0])


def independent_law(hessian: Hessian, groups: Sequence[GradientMoments], batch_sizes: Sequence[int]) -> OneStepLR:
    """Sign descent with independent coordinates (the paper, Theorem 2) from per-example moments.

    Quadratic forms in the noisy means take their two factors from disjoint halves of the examples; the interval is
    a jackknife over the groups. Gaussian gradients and independent coordinates are assumed: real ones are not.

    Args:
      hessian: over the raveled parameters, see `flat_hessian`.
      groups: moments of an even number, at least 4, of disjoint sets of examples.
      batch_sizes: B [b].

    Returns:
      OneStepLR; n is the number of examples.
    """
    halves = groups[0::2], groups[1::2]
    pairs = [halves]
    for left_out in range(len(halves[0])):
        one, other = ([*half[:left_out], *half[left_out + 1 :]] for half in halves)
        pairs.append((one, other))
    found = jax.jit(partial(_cross_parts, hessian.product))  # one program for all pairs
    sizes = jnp.asarray(batch_sizes, float)
    parts = np.array([found(hessian.diagonal, *_flat_halves(*pair), sizes) for pair in pairs])  # [1 + g, 2, b]
    g = len(parts) - 1
    ratios = parts[:, 0] / parts[:, 1]
    spread = ((ratios[1:] - ratios[1:].mean(0)) ** 2).sum(0)
    error = np.sqrt((g - 1) / g * spread) * stats.t.ppf(0.975, g - 1)
    low, high = np.maximum(ratios[0] - error, 0), ratios[0] + error
    return _result(parts[0, 0], parts[0, 1], low, high, sum(int(each.n) for each in groups))


class SignSummary(NamedTuple):
    """What the closed forms of sign descent need of a checkpoint (Li et al., arXiv 2405.14578, Theorem 2, re-derived).

    mu_l1 = Σ|μ|, trace D = Σ H_ii, off_diagonal O = s'Hs' − D, snr s, and b_noise and max_lr of the small-batch
    surge, inf where its K is not positive. Products of means are taken between disjoint halves of the examples.
    """

    mu_l1: float
    trace: float
    off_diagonal: float
    snr: float
    b_noise: float
    max_lr: float

    @property
    def r(self) -> float:
        """D/O: between 0 and 1 the law has a peak; inf for a diagonal Hessian."""
        return self.trace / self.off_diagonal if self.off_diagonal else np.inf


def sign_summary(hessian: Hessian, groups: Sequence[GradientMoments]) -> SignSummary:
    """The closed forms' coefficients from moments of disjoint sets of examples, as `independent_law` takes them."""
    mu_a, mu_b, variance = _flat_halves(groups[0::2], groups[1::2])
    sigma = jnp.sqrt(variance)
    ratio_a, ratio_b = (jnp.where(sigma > 0, mu / jnp.where(sigma > 0, sigma, 1.0), 0.0) for mu in (mu_a, mu_b))

    def off(one: jax.Array, other: jax.Array) -> float:
        return float(one @ hessian.product(other) - (one * other * hessian.diagonal).sum())

    mu_l1 = 0.5 * float(jnp.sign(mu_a) @ mu_b + jnp.sign(mu_b) @ mu_a)
    aligned, trace, coupling = float(ratio_a @ mu_b), float(hessian.diagonal.sum()), off(ratio_a, ratio_b)
    peaked = coupling > 0 and trace > 0
    return SignSummary(
        mu_l1=mu_l1,
        trace=trace,
        off_diagonal=off(jnp.sign(mu_a), jnp.sign(mu_b)),
        snr=aligned / mu_l1,
        b_noise=np.pi * trace / (2 * coupling) if peaked else np.inf,
        max_lr=aligned / (2 * np.sqrt(trace * coupling)) if peaked else np.inf,
    )


def _flat_halves(one: Sequence[GradientMoments], other: Sequence[GradientMoments]) -> tuple[jax.Array, ...]:
    """Mean [P] of either half and variance [P] of both."""
    first, second = _merged(one), _merged(other)
    return tuple(ravel_pytree(each)[0] for each in (first.mean, second.mean, merge(first, second).variance))


def _cross_parts(product: Callable, diagonal: Any, mu_a: Any, mu_b: Any, variance: Any, sizes: Any) -> jax.Array:
    """a and q [2, b] with every product of means taken between two disjoint sets of examples."""
    sigma = jnp.sqrt(variance)

    def at(size: jax.Array) -> jax.Array:
        one, other = sign_mean(size, mu_a, sigma), sign_mean(size, mu_b, sigma)
        drift = 0.5 * (one @ mu_b + other @ mu_a)
        return jnp.stack([drift, one @ product(other) + ((1 - one * other) * diagonal).sum()])

    return jax.lax.map(at, sizes).T


def _merged(groups: Sequence[GradientMoments]) -> GradientMoments:
    total = groups[0]
    for each in groups[1:]:
        total = merge(total, each)
    return total


def directions(
    loss_fn: LossFn,
    params: Any,
    draw: Callable[[jax.Array], Any],
    transform: optax.GradientTransformation,
    batch_size: jax.Array | int,
    key: jax.Array,
    *,
    count: int,
    width: int,
    members: int,
    batches: jax.Array | int,
    weights: jax.Array,
    steps: int,
) -> Any:
    """Sampled update directions u at stationary optimizer state: the step is θ − εu at learning rate ε.

    Parameters stay put while the optimizer is fed mini-batch gradients; its last update is taken. A gradient is
    ḡ + c·d: ḡ is the mean over `batches` mini-batches of at most `width` examples, d the deviation of one of the
    first `members` of them. c makes up for B above width, and leaves room for the noise of ḡ itself. The
    optimizer's moments start at their stationary means, so that β2 = 0.999 needs no thousands of steps.

    Each of GROUPS groups of directions has its own ḡ and d, so that directions of different groups are independent
    and intervals taken over groups count all noise. A momentum averages the deviations of κ = 1/Σw² batches, but not
    ḡ's noise, of N examples: every direction's own average deviation is drawn in by a factor
    √((N − κB)/(N − B)), after which directions have the covariance of B examples a step whatever the correlations
    between coordinates. That takes N >= κB.

    Args:
      loss_fn: (params, example) -> scalar.
      params: the checkpoint.
      draw: key -> one training example.
      transform: optimizer at learning rate 1.
      batch_size: B.
      key: of everything drawn.
      count: how many directions.
      width: most examples in a mini-batch of the pool.
      members: deviations kept for a group, at least 2.
      batches: mini-batches in a group's ḡ, at least members.
      weights: how an update weighs the gradients of the last steps, newest first [w]; sum 1.
      steps: optimizer steps before a direction is taken, at least w; 1 for an optimizer without state.

    Returns:
      Pytree like params with a leading axis [count].
    """
    pool_key, run_key = jax.random.split(key)
    drawn = jnp.minimum(batch_size, width)
    weight = (jnp.arange(width) < drawn) / drawn
    centre, noise = _pool(loss_fn, params, draw, weight, pool_key, members, batches)
    size = batches * drawn  # N
    raw = (batches == members) & (drawn == batch_size)  # exact, so that zeros stay zeros
    stretch = jnp.sqrt(jnp.maximum(drawn * (1 / batch_size - 1 / size), 0) * members / (members - 1))
    noise = jax.tree.map(lambda leaf: leaf * jnp.where(raw, 1.0, stretch), noise)
    second = jax.tree.map(lambda mean, each: (mean**2).mean(0) + (each**2).mean((0, 1)), centre, noise)
    spare = jnp.maximum(size - batch_size / (weights**2).sum(), 0) / jnp.maximum(size - batch_size, 1)
    drawn_in = 1 - jnp.sqrt(jnp.minimum(spare, 1))

    def sample(key: jax.Array, index: jax.Array) -> Any:
        group = index % GROUPS
        ours, deviations = (jax.tree.map(lambda leaf: leaf[group], each) for each in (centre, noise))
        start = _stationary(transform.init(params), ours, second)
        # Without memory each direction has a batch of its own, as far as the pool goes.
        one = (index // GROUPS % members)[None]
        picks = one if steps == 1 else jax.random.randint(key, (steps,), 0, members)
        if len(weights) > 1:
            shares = jnp.zeros(members).at[picks[::-1][: len(weights)]].add(weights)
            offset = lambda leaf, mean: mean - drawn_in * jnp.tensordot(shares, leaf, 1)  # noqa: E731
            ours = jax.tree.map(offset, deviations, ours)

        def step(carry: tuple[Any, Any], pick: jax.Array) -> tuple[tuple[Any, Any], None]:
            grads = jax.tree.map(lambda mean, each: mean + each[pick], ours, deviations)
            updates, state = transform.update(grads, carry[0], params)
            return (state, updates), None

        (_, updates), _ = jax.lax.scan(step, (start, jax.tree.map(jnp.zeros_like, params)), picks)
        return jax.tree.map(jnp.negative, updates)

    keys = jax.random.split(run_key, count)
    return jax.lax.map(lambda pair: sample(*pair), (keys, jnp.arange(count)), batch_size=16)


def _pool(loss_fn, params, draw, weight, key, members, batches) -> tuple[Any, Any]:
    """Each group's mean gradient [GROUPS, ...] and its members' deviations from their mean [GROUPS, members, ...]."""

    def gradient(key: jax.Array) -> Any:
        examples = jax.vmap(draw)(jax.random.split(key, len(weight)))
        return jax.grad(lambda point: weight @ jax.vmap(loss_fn, (None, 0))(point, examples))(params)

    def group(key: jax.Array) -> tuple[Any, Any]:
        of = partial(jax.random.fold_in, key)
        pool = jax.lax.map(gradient, jax.vmap(of)(jnp.arange(members)), batch_size=16)
        mean = jax.tree.map(lambda leaf: leaf.mean(0), pool)

        def add(index: jax.Array, mean: Any) -> Any:
            return jax.tree.map(lambda old, new: old + (new - old) / (index + 1), mean, gradient(of(index)))

        return jax.lax.fori_loop(members, batches, add, mean), jax.tree.map(jnp.subtract, pool, mean)

    return jax.lax.map(group, jax.random.split(key, GROUPS))


def _stationary(state: Any, first: Any, second: Any) -> Any:
    """Optimizer state whose moments are at their means and whose bias correction is over."""
    late = jnp.asarray(10**6, jnp.int32)

    def moved(node: Any) -> Any:
        if isinstance(node, optax.ScaleByAdamState):
            return node._replace(mu=first, nu=second, count=late)
        if isinstance(node, optax.ScaleByRmsState):
            return node._replace(nu=second)
        if isinstance(node, optax.ScaleByLionState):
            return node._replace(mu=first)
        if isinstance(node, optax.EmaState):
            return node._replace(ema=first)
        return node

    return jax.tree.map(moved, state, is_leaf=lambda node: isinstance(node, MOMENTS))


class StepSample(NamedTuple):
    """What directions say at one batch size: a_k and q_k [k], and the true loss; k belongs to group k % GROUPS."""

    drift: np.ndarray
    curvature: np.ndarray
    start: np.ndarray  # loss before the step
    rates: np.ndarray  # [e] learning rates of the oracle
    loss: np.ndarray  # [e, k] true loss at each
    examples: int = 0  # training examples that were differentiated


@partial(jax.jit, static_argnames=("loss_fn", "draw", "optimizer", "count", "width", "members", "steps"))
def _sample(
    loss_fn, draw, optimizer, count, width, members, steps, params, data, evaluation, batch_size, batches, weights, key
):
    transform = optimizer(1.0, batch_size, None)
    found = directions(
        loss_fn,
        params,
        partial(draw, data),
        transform,
        batch_size,
        key,
        count=count,
        width=width,
        members=members,
        batches=batches,
        weights=weights,
        steps=steps,
    )
    descent = jax.tree.map(jnp.negative, found)
    slopes = jax.lax.map(lambda u: along(loss_fn, params, evaluation, u), descent, batch_size=8)
    a, q = -slopes.slope.mean(), slopes.bend.mean()
    middle = jnp.where((a > 0) & (q > 0), a / jnp.where(q > 0, q, 1.0), 1e-3)
    rates = middle * 2.0 ** jnp.linspace(-2.4, 2.4, 13)
    after = mean_loss(loss_fn, evaluation)

    def losses(rate: jax.Array) -> jax.Array:
        step = lambda u: after(jax.tree.map(lambda leaf, each: leaf + rate * each, params, u))  # noqa: E731
        return jax.lax.map(step, descent, batch_size=8)

    return -slopes.slope, slopes.bend, slopes.loss, rates, jax.lax.map(losses, rates)


def sample_steps(
    loss_fn: LossFn,
    params: Any,
    draw: Callable[[Any, jax.Array], Any],
    data: Any,
    evaluation: Any,
    optimizer: Callable[[Any, Any, Any], optax.GradientTransformation],
    batch_sizes: Sequence[int],
    key: jax.Array,
    *,
    count: int,
    weights: Callable[[int], np.ndarray] = lambda _: np.ones(1),
) -> list[StepSample]:
    """Samples directions at each batch size and looks along them: derivatives at 0, and the true loss on a grid.

    Args:
      loss_fn: (params, example) -> scalar.
      params: the checkpoint.
      draw: (data, key) -> one training example.
      data: what draw picks from.
      evaluation: batch whose mean loss is the truth.
      optimizer: (learning rate, batch size, total steps) -> optax transformation; total steps is None.
      batch_sizes: B [b].
      key: of everything drawn.
      count: directions for each B.
      weights: batch size -> how an update weighs the last gradients, see `directions`; the default has no momentum.

    Returns:
      A StepSample for each batch size.

    Raises:
      ValueError: count is not a multiple of GROUPS.
    """
    if count % GROUPS:
        raise ValueError(f"count must be a multiple of {GROUPS}, got {count}")
    members = max(count // GROUPS, 2)
    stateful = bool(jax.tree.leaves(jax.eval_shape(optimizer(1.0, 1, None).init, params)))
    samples = []
    for size in batch_sizes:
        weight = weights(size)
        width = next((each for each in POOL_BATCHES if size <= each), POOL_BATCHES[-1])
        # A group's mean over N >= κB examples: see `directions`.
        batches = max(members, int(np.ceil(size / (weight**2).sum() / min(size, width))))
        steps = max(len(weight), MEMORY) if stateful else 1
        arguments = params, data, evaluation, jnp.asarray(size), jnp.asarray(batches), jnp.asarray(weight), key
        out = _sample(loss_fn, draw, optimizer, count, width, members, steps, *arguments)
        examples = GROUPS * batches * min(size, width)
        drift, curvature, start, rates, loss = (np.asarray(each, float) for each in out)
        samples.append(StepSample(drift, curvature, start, rates, loss, examples))
    return samples


def _by_group(values: np.ndarray) -> np.ndarray:
    """Means over all directions, then with each group left out: [..., k] -> [1 + GROUPS, ...]."""
    grouped = values.reshape(*values.shape[:-1], -1, GROUPS).mean(-2)
    total = grouped.mean(-1, keepdims=True)
    return np.moveaxis(np.concatenate([total, (total * GROUPS - grouped) / (GROUPS - 1)], -1), -1, 0)


def _jackknifed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of the first row from the rows with one group left out [1 + GROUPS, b], in the logarithm."""
    logs = np.log(np.where(values > 0, values, np.nan))
    spread = np.sqrt((GROUPS - 1) / GROUPS * ((logs[1:] - logs[1:].mean(0)) ** 2).sum(0))
    reach = stats.t.ppf(0.975, GROUPS - 1) * spread
    # A group whose removal turns the sign says nothing of the size: the interval is open.
    known = np.isfinite(reach)
    return (
        np.where(known, values[0] * np.exp(-np.where(known, reach, 0)), 0.0),
        np.where(known, values[0] * np.exp(np.where(known, reach, 0)), np.inf),
    )


def measured_law(samples: Sequence[StepSample]) -> OneStepLR:
    """ε_opt = mean a_k / mean q_k at each B, with a jackknife over groups: no Gaussian, no independent coordinates."""
    a, q = (_by_group(np.stack(each)) for each in zip(*((one.drift, one.curvature) for one in samples), strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = _jackknifed(a / q)
    return _result(a[0], q[0], low, high, len(samples[0].drift))


def one_step_oracle(samples: Sequence[StepSample]) -> OneStepLR:
    """argmin over ε of the true mean loss after one step, with a jackknife over groups of directions.

    The lowest point of a grid of ratio 2^0.4 around a/q, refined by a parabola in ε; nan with a reason where
    it lies on the grid's edge, a factor 5.3 from a/q.
    """
    rates, heights, why = [], [], []
    for each in samples:
        rate, height = _lowest(each.rates, _by_group(each.loss))
        inside = each.rates[0] < rate[0] < each.rates[-1]
        rates.append(rate if inside else np.full_like(rate, np.nan))
        heights.append(float(each.start.mean()) - height[0])
        why.append("" if inside else "the lowest loss is on the edge of the grid around a/q")
    found = np.stack(rates, -1)
    low, high = _jackknifed(found)
    undefined = ~np.isfinite(found[0])
    low, high = (np.where(undefined, np.nan, each) for each in (low, high))
    return OneStepLR(found[0], low, high, np.array(heights), len(samples[0].drift), why)


def _lowest(rates: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rate and height of the lowest point of each row of loss [r, e], by a parabola in ε through its neighbours."""
    filled = np.where(np.isfinite(loss), loss, np.inf)
    best = filled.argmin(1)
    middle = np.clip(best, 1, len(rates) - 2)
    row = np.arange(len(loss))
    left, right = (rates[middle + shift] - rates[middle] for shift in (-1, 1))
    before, after = (filled[row, middle + shift] - filled[row, middle] for shift in (-1, 1))
    fine = (best == middle) & np.isfinite(before) & np.isfinite(after) & (before + after > 0)
    before, after = (np.where(fine, each, 1.0) for each in (before, after))
    # Through (left, before), (0, 0), (right, after).
    offset = 0.5 * (right**2 * before - left**2 * after) / (right * before - left * after)
    return np.where(fine, rates[middle] + offset, rates[best]), filled[row, best]
