"""Update directions of any optimizer at any batch size, from one pool of gradients."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from surge.gradients.batch import Draw, mean_gradient, weighted
from surge.gradients.curvature import LossFn, cast_like, widened
from surge.gradients.wide import DEVICES, everywhere, worth_it
from surge.optimizers import Optimizer, update
from surge.optimizers.rule import Stationary
from surge.optimizers.step import ExampleMoments

GROUPS = 8  # of directions, independent of each other: what intervals are taken over
WIDTH = 64  # examples in a mini-batch of the pool; the noise of a larger one is scaled
MICROBATCH = 8  # of them differentiated at once where a smaller batch may be wanted
# Examples behind a centre, in units of those behind a direction. With as many of either, directions
# of a group share all their noise, and the optimum of eight that are left reads 1.4 times too high.
AMPLE = 4
LANES = 16  # mini-batches, or directions, side by side
MEMORY = 64  # steps of an optimizer with a state before a direction is taken: at least these


class Pool(NamedTuple):
    """Gradients that directions are made of, in GROUPS groups that share no draw.

    Attributes:
      centre: mean gradient of all examples of each group [GROUPS, ...].
      variance: of the gradient of one example, from all mini-batches of all groups.
      members: gradients of its first mini-batches, of `drawn` examples each [GROUPS, members, ...].
      size: N, examples behind a centre.
      drawn: examples behind a member.
      norms: of each group the mean norm of gradients of a few examples, a pytree of scalars
        [GROUPS]; None where no optimizer asks.
    """

    centre: Any
    variance: Any
    members: Any
    size: int
    drawn: int
    norms: Any = None


class PoolSource:
    """The pool of one checkpoint, whose members may be of any number of examples.

    A smaller batch is part of a larger.

    Args:
      loss_fn: (params, example) -> scalar.
      params: the checkpoint.
      draw: (data, key) -> one training example.
      data: what draw picks from.
      key: of all draws.
      members: mini-batches kept for a group, at least 2.
      size: least number of examples behind a centre: κB of the largest direction asked for.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        params: Any,
        draw: Draw,
        data: Any,
        key: jax.Array,
        *,
        members: int,
        size: int,
    ):
        batches, self._count = max(members, -(-size // WIDTH)), members
        if worth_it():
            gradients = everywhere(_wide_members, loss_fn, draw, members)
            means = everywhere(_wide_centre, loss_fn, draw)
        else:
            gradients = partial(_members, loss_fn, draw, members)
            means = partial(_centre, loss_fn, draw)
        self._members = partial(gradients, params, data, key)
        full = self._members(WIDTH)
        self._centre = partial(means, params, data, key)
        mean = jax.tree.map(lambda leaf: leaf.mean(1), full)
        square = jax.tree.map(lambda leaf: WIDTH * (leaf.shape[1] - 1) * leaf.var(1, ddof=1), full)
        centre, square = self._centre(batches * WIDTH, members, (mean, square))
        variance = jax.tree.map(lambda leaf: leaf.mean(0) / (batches - 1), square)
        self._nothing = jax.tree.map(jnp.zeros_like, (mean, square))
        self._known_norms: dict[int, Any] = {}
        self._full = Pool(centre, variance, full, batches * WIDTH, WIDTH)
        self._pool = self._full
        self.examples = GROUPS * batches * WIDTH  # that were differentiated

    def at(self, batch_size: int) -> Pool:
        """With members of batch_size examples, or of WIDTH if that is fewer.

        Only the last pool is kept.
        """
        drawn = min(batch_size, WIDTH)
        if drawn == WIDTH:
            self._pool = self._full
        elif drawn != self._pool.drawn:
            self._pool = self._full._replace(members=self._members(drawn), drawn=drawn)
            self.examples += GROUPS * self._count * drawn
        return self._pool

    def for_update(self, optimizer: Optimizer, batch_size: int) -> Pool:
        """What `directions` of an optimizer and batch size are made of."""
        pool = self.at(batch_size)
        size = optimizer.examples(batch_size)
        if "moments" in optimizer.needs:
            pool = pool._replace(norms=self._norms(min(optimizer.norm_batch, batch_size)))
        if not optimizer.bends or size > pool.size - WIDTH:
            return pool
        self.examples += GROUPS * size
        return pool._replace(centre=self._centre(size, 0, self._nothing)[0], size=size)

    def _norms(self, drawn: int) -> Any:
        """Mean norms of gradients of so many examples."""
        if drawn not in self._known_norms:
            self._known_norms[drawn] = _mean_norms(self._members(drawn))
            self.examples += GROUPS * self._count * drawn
        return self._known_norms[drawn]


@jax.jit
def _mean_norms(members: Any) -> Any:
    """Of gradients [GROUPS, members, ...] of each array [GROUPS]."""
    return jax.tree.map(
        lambda leaf: jnp.sqrt((leaf**2).sum(tuple(range(2, leaf.ndim)))).mean(1), members
    )


@partial(jax.jit, static_argnames=("loss_fn", "draw", "members", "devices"))
def _members(loss_fn, draw, members, params, data, key, drawn, devices=None) -> Any:
    """Gradients of the first mini-batches of each group [GROUPS, members, ...]."""
    keys = jax.vmap(lambda group: jax.vmap(partial(jax.random.fold_in, group))(jnp.arange(members)))

    def one(key: jax.Array) -> Any:
        batch = params, data, key, drawn, MICROBATCH
        return mean_gradient(weighted(loss_fn), draw, *batch, devices=devices)

    flat = jax.lax.map(one, keys(jax.random.split(key, GROUPS)).reshape(-1), batch_size=LANES)
    apart = jax.tree.map(lambda leaf: leaf.reshape(GROUPS, members, *leaf.shape[1:]), flat)
    return widened(apart)


@partial(jax.jit, static_argnames=("loss_fn", "draw", "devices"))
def _centre(loss_fn, draw, params, data, key, size, done, known, devices=None) -> Any:
    """Each group's mean gradient over the first `size` examples, and its squared deviations.

    Mini-batches come in order; the squares of their deviations are summed, times their examples: on
    average, by all but one of them, the variance of one example [GROUPS, ...]. Both are known of
    the first `done` mini-batches.
    """

    def group(pair: tuple[jax.Array, tuple[Any, Any]]) -> tuple[Any, Any]:
        key, moments = pair

        def add(index: jax.Array, moments: tuple[Any, Any]) -> tuple[Any, Any]:
            mean, square = moments
            drawn = jnp.minimum(size - index * WIDTH, WIDTH)
            width = WIDTH // (jax.lax.axis_size(devices) if devices else 1)
            batch = params, data, jax.random.fold_in(key, index), drawn, max(width, 1)
            new = mean_gradient(weighted(loss_fn), draw, *batch, devices=devices)
            share = drawn / (index * WIDTH + drawn)
            after = jax.tree.map(lambda old, leaf: old + (leaf - old) * share, mean, new)
            square = jax.tree.map(
                lambda total, leaf, old, now: total + drawn * (leaf - old) * (leaf - now),
                square,
                new,
                mean,
                after,
            )
            return cast_like((after, square), moments)

        return jax.lax.fori_loop(done, -(-size // WIDTH), add, moments)

    return jax.lax.map(group, (jax.random.split(key, GROUPS), known))


# On all devices, which share each mini-batch.
_wide_members = partial(_members, devices=DEVICES)
_wide_centre = partial(_centre, devices=DEVICES)


def directions(
    params: Any, pool: Pool, optimizer: Optimizer, batch_size: int, key: jax.Array, *, count: int
) -> Any:
    """Sampled update directions u at stationary optimizer state: the step is θ − εu.

    Parameters stay put while the optimizer is fed mini-batch gradients; its last update is taken. A
    gradient is ḡ + c·d: ḡ is the centre of the direction's group, d a member's deviation from the
    group's members. c makes up for B above the members' size, and leaves room for the noise of ḡ
    itself. An optimizer without a state takes members of B examples as they are. The optimizer's
    moments start at their stationary means, so that β2 = 0.999 needs no thousands of steps. Moments
    of single examples, where it asks for them, are their means: they have no noise of their own.

    Directions of different groups are independent, so intervals taken over groups count all noise.
    A momentum averages the deviations of κ = 1/Σw² batches, but not ḡ's noise, of N examples: every
    direction's own average deviation is drawn in by a factor √((N − κB)/(N − B)), after which
    directions have the covariance of B examples a step whatever the correlations between
    coordinates. That takes N >= κB, and N well above it for directions that differ within a group.

    Args:
      params: the checkpoint.
      pool: `PoolSource.for_update(optimizer, batch_size)`.
      optimizer: what makes a direction of gradients; total steps is None here.
      batch_size: B.
      key: of the order in which deviations are met.
      count: how many directions; k is of group k % GROUPS.

    Returns:
      Pytree like params with a leading axis [count].
    """
    weights = optimizer.weights(batch_size)
    transform = optimizer(1.0, batch_size, None)
    stateful = jax.tree.leaves(jax.eval_shape(transform.init, params))
    steps = max(len(weights), MEMORY) if stateful else 1
    return _directions(
        optimizer, count, steps, params, pool, jnp.asarray(batch_size), jnp.asarray(weights), key
    )


@partial(jax.jit, static_argnames=("optimizer", "count", "steps"))
def _directions(
    optimizer: Optimizer,
    count: int,
    steps: int,
    params: Any,
    pool: Pool,
    batch_size: jax.Array,
    weights: jax.Array,
    key: jax.Array,
) -> Any:
    params = widened(params)
    transform = optimizer(1.0, batch_size, None)
    members = jax.tree.leaves(pool.members)[0].shape[1]
    average = jax.tree.map(lambda leaf: leaf.mean(1), pool.members)
    raw = (steps == 1) & (pool.drawn == batch_size)  # exact, so that zeros stay zeros
    room = pool.drawn * (1 / batch_size - 1 / pool.size)
    stretch = jnp.where(raw, 1.0, jnp.sqrt(jnp.maximum(room, 0) * members / (members - 1)))
    centre = jax.tree.map(partial(jnp.where, raw), average, pool.centre)
    noise = jax.tree.map(lambda leaf, mean: stretch * (leaf - mean[:, None]), pool.members, average)
    # Ratios of whole numbers are float64 where jax_enable_x64 is set.
    noise = cast_like(noise, pool.members)
    variance = cast_like(jax.tree.map(lambda leaf: leaf / batch_size, pool.variance), params)
    behind = batch_size / (weights**2).sum()  # examples behind a direction, κB
    spare = jnp.maximum(pool.size - behind, 0) / jnp.maximum(pool.size - batch_size, 1)
    drawn_in = 1 - jnp.sqrt(jnp.minimum(spare, 1))

    def sample(key: jax.Array, index: jax.Array) -> Any:
        group = index % GROUPS
        ours = jax.tree.map(lambda leaf: leaf[group], centre)
        deviations = jax.tree.map(lambda leaf: leaf[group], noise)
        second = jax.tree.map(lambda mean, spread: mean**2 + spread, ours, variance)
        fresh = transform.init(params)
        start = cast_like(optimizer.settle(fresh, ours, second, params, batch_size), fresh)
        moments = None
        if pool.norms is not None:
            norms = jax.tree.map(lambda leaf: leaf[group], pool.norms)
            at = Stationary(ours, second, params, batch_size)
            moments = ExampleMoments(at.example_second(), norms, None, batch_size)
        # Without memory each direction has a batch of its own, as far as the pool goes.
        one = (index // GROUPS % members)[None]
        picks = one if steps == 1 else jax.random.randint(key, (steps,), 0, members)
        if len(weights) > 1:
            shares = jnp.zeros(members).at[picks[::-1][: len(weights)]].add(weights)

            def offset(leaf: jax.Array, mean: jax.Array) -> jax.Array:
                return mean - drawn_in * jnp.tensordot(shares, leaf, 1)

            ours = cast_like(jax.tree.map(offset, deviations, ours), params)

        def step(carry: tuple[Any, Any], pick: jax.Array) -> tuple[tuple[Any, Any], None]:
            grads = jax.tree.map(lambda mean, leaf: mean + leaf[pick], ours, deviations)
            updates, state = update(transform, grads, carry[0], params, moments=moments)
            return cast_like((state, updates), carry), None

        (_, updates), _ = jax.lax.scan(step, (start, jax.tree.map(jnp.zeros_like, params)), picks)
        return jax.tree.map(jnp.negative, updates)

    keys = jax.random.split(key, count)
    return jax.lax.map(lambda pair: sample(*pair), (keys, jnp.arange(count)), batch_size=LANES)
