"""Naive second implementations, and frozen copies of code that data were made with."""

import math
from itertools import pairwise

import numpy as np


def first_steps_to(loss, eval_steps, target):
    """log(steps) [...] as the first adaptive sweeps were judged: frozen, to the bit."""
    logs = np.log(eval_steps)
    reached = loss <= target
    first = reached.argmax(-1)
    before = np.maximum(first - 1, 0)
    high, low = (
        np.take_along_axis(loss, index[..., None], -1)[..., 0] for index in (before, first)
    )
    share = np.where(first > 0, (high - target) / np.where(high > low, high - low, 1.0), 1.0)
    return np.where(reached.any(-1), logs[before] + share * (logs[first] - logs[before]), np.inf)


def first_last_loss(loss, diverged):
    """Loss [...] where each run ended, as the first sweeps were judged: frozen."""
    last = np.isfinite(loss).cumsum(-1).argmax(-1)
    return np.where(diverged, np.inf, np.take_along_axis(loss, last[..., None], -1)[..., 0])


def first_rows_value(loss, diverged, steps, target):
    """Values [optimizer, batch, rate, seed] as the first fits took them from a sweep's arrays.

    Frozen: loss [optimizer, batch, rate, seed, eval], diverged without eval, steps [optimizer,
    batch, eval]; nan where a run did not get there.
    """
    if target is None:
        position = np.where(np.isfinite(loss), np.arange(loss.shape[-1]), 0)
        carried = np.take_along_axis(loss, np.maximum.accumulate(position, -1), -1)
        return np.where(diverged == 0, carried[..., -1], np.nan)
    steps = np.log(steps)[:, :, None, None]
    below = loss <= target
    first = below.argmax(-1, keepdims=True)
    before = np.maximum(first - 1, 0)

    def at(array, index):
        return np.take_along_axis(np.broadcast_to(array, below.shape), index, -1)[..., 0]

    drop = at(loss, before) - at(loss, first)
    share = np.where(drop > 0, (at(loss, before) - target) / np.where(drop > 0, drop, 1.0), 1.0)
    log_steps = at(steps, before) + share * (at(steps, first) - at(steps, before))
    return np.log(np.where(below.any(-1), np.exp(log_steps), np.nan))


def further_fall(loss, diverged, eval_steps, target, steps):
    """`FallAfter` of one run, evaluation by evaluation."""
    recorded = [
        (at, value) for at, value in zip(eval_steps, loss, strict=True) if math.isfinite(value)
    ]
    if diverged:
        recorded = recorded[:-1]  # what it diverged with, as far as the record says
    crossed = [(at, value) for at, value in recorded if value <= target]
    if not crossed:
        return math.inf
    start, low = crossed[0]
    for (since, before), (at, after) in pairwise(recorded):
        if since < start + steps <= at:
            share = (start + steps - since) / (at - since)
            return before + share * (after - before) - low
    return math.inf if diverged else math.nan
