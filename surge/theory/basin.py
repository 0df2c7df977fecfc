"""One basin for all batch sizes: where each one's learning rate is best, with errors that hold."""

import math
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from surge.theory.optimum import Optimum

LARGEST_SHARE = 0.3  # of runs that may fail at a rate that still counts: failed / (runs + 1)
FEWEST = 5  # rates within a window, where there are so many
WINDOWS = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0)  # half widths in log ε
SKEW_SPREAD = 1.0  # of skews over problems: 0 is a parabola in log ε, 1 one in ε
CURVATURE_SPREAD = 1.0  # of log curvatures about a power of B
MISFIT_LEVEL = 0.1  # a window is too wide where the basin's form is refused at this level
SHAPE_LEVEL = 0.01  # each batch size is alone where one shape is refused at this level
ITERATIONS = 30
TERMS = 4  # of the shape: skew, and coefficients of u|u|, u⁴ and u⁵
LADDER = (1, 2)
TINY = 1e-10  # of the variance of the values: noise is taken to be at least this


class Basins(NamedTuple):
    """The optimum of each batch size, and the shape that their basins share.

    Attributes:
      optima: of each batch size.
      skew: p of the basin A/2 ((ε/ε_opt)^p − 1)²/p² + ...: 0 is a parabola in log ε, 1 one in ε;
        nan where each batch size has its own.
      skew_error: standard error of it.
      window: half width in log ε of what the fit looks at.
      shared: one shape is fitted to all batch sizes.
      why: reason where it is not, else "".
    """

    optima: dict[float, Optimum]
    skew: float
    skew_error: float
    window: float
    shared: bool
    why: str


class _Runs(NamedTuple):
    size: np.ndarray  # [n] index of the batch size
    x: np.ndarray  # [n] log ε
    y: np.ndarray  # [n] value
    level: np.ndarray  # [n] index of what has a level of its own: a seed, or a batch size
    cluster: np.ndarray  # [n] index of what is independent: a seed, or a run
    rates: np.ndarray  # [sizes, most] log ε that were run, inf beyond
    prior: np.ndarray  # [sizes, sizes] precision of log curvatures


class _Basin(NamedTuple):
    centre: np.ndarray  # [sizes] log ε_opt
    bend: np.ndarray  # [sizes] log curvature
    shape: np.ndarray  # [TERMS]


class _Fit(NamedTuple):
    basin: _Basin
    error: np.ndarray  # [sizes] of the centre
    freedom: np.ndarray  # [sizes] of the error
    skew_error: float
    height: np.ndarray  # [sizes] value at the centre
    used: np.ndarray  # [sizes] runs within the window
    misfit: float  # p-value of terms left out
    one_shape: float  # p-value of one skew
    window: float


def _centred(runs: _Runs, weight: np.ndarray, column: np.ndarray) -> np.ndarray:
    """A column [n] less its weighted mean in each level."""
    total = np.bincount(runs.level, weight)
    mean = np.bincount(runs.level, weight * column) / np.where(total > 0, total, 1.0)
    return column - mean[runs.level]


def _unit(z: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Basin of curvature 1 [n], its slope in z [n], its derivatives by the shape [n, TERMS]."""
    skew, kink, fourth, fifth = shape
    grown = np.clip(skew * z, -30, 30)
    near = abs(skew) < 1e-4
    u = z * (1 + grown / 2 + grown**2 / 6) if near else np.expm1(grown) / skew
    by_skew = z**2 / 2 + skew * z**3 / 3 if near else (z * np.exp(grown) - u) / skew
    height = u**2 / 2 + kink * u * np.abs(u) / 2 + fourth * u**4 / 4 + fifth * u**5 / 5
    slope = u + kink * np.abs(u) + fourth * u**3 + fifth * u**4
    return (
        height,
        slope * np.exp(grown),
        np.stack([slope * by_skew, u * np.abs(u) / 2, u**4 / 4, u**5 / 5], 1),
    )


def _kernel(runs: _Runs, centre: np.ndarray, window: float) -> np.ndarray:
    """Weight of each run [n]: tricube in its distance from the optimum."""
    far = np.sort(np.abs(runs.rates - centre[:, None]), 1)
    known = np.isfinite(far).sum(1)
    last = far[np.arange(len(far)), np.minimum(FEWEST, known) - 1]
    reach = np.maximum(window, 1.25 * last)[runs.size]
    return np.clip(1 - (np.abs(runs.x - centre[runs.size]) / reach) ** 3, 0, None) ** 3


def _variance(runs: _Runs, weight: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Noise of one run in each batch size [sizes], half of it pooled."""
    sizes = len(runs.rates)
    inside = weight > 0
    squares = np.bincount(runs.size, weight * residual**2, sizes)
    count = np.bincount(runs.size, inside, sizes)
    levels = np.bincount(_levels(runs, inside), minlength=sizes)
    mean_weight = np.bincount(runs.size, weight, sizes) / np.maximum(count, 1)
    freedom = np.maximum(count - levels - 2, 0.5)
    own = squares / np.maximum(mean_weight, 1e-12) / freedom
    pooled = (own * freedom).sum() / freedom.sum()
    floor = TINY * max(np.var(runs.y), 1e-30)
    return np.maximum((own * freedom + pooled * 4) / (freedom + 4), floor)


def _levels(runs: _Runs, inside: np.ndarray) -> np.ndarray:
    """Batch size of each level that has a run inside."""
    first = np.unique(runs.level[inside], return_index=True)[1]
    return runs.size[inside][first]


def _columns(runs: _Runs, basin: _Basin) -> tuple[np.ndarray, np.ndarray]:
    """Basin [n], and its derivatives [n, 2 + TERMS] by centre, bend and shape."""
    z = runs.x - basin.centre[runs.size]
    height, slope, by_shape = _unit(z, basin.shape)
    bend = np.exp(basin.bend)[runs.size]
    return bend * height, bend[:, None] * np.column_stack([-slope, height, by_shape])


def _gram(runs: _Runs, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Sums over the runs of each batch size [sizes, c, d] of left [n, c] times right [n, d]."""
    sizes = len(runs.rates)
    starts = np.searchsorted(runs.size, np.arange(sizes))
    return np.stack(
        [
            a.T @ b
            for a, b in zip(np.split(left, starts[1:]), np.split(right, starts[1:]), strict=True)
        ]
    )


def _spread_out(blocks: np.ndarray) -> np.ndarray:
    """One matrix [2 sizes + TERMS, ...] of the blocks [sizes, 2 + TERMS, 2 + TERMS]."""
    sizes = len(blocks)
    whole = np.zeros((2 * sizes + TERMS,) * 2)
    for index, block in enumerate(blocks):
        at = _at(sizes, index)
        whole[np.ix_(at, at)] += block
    return whole


def _at(sizes: int, index: int) -> np.ndarray:
    return np.r_[index, sizes + index, 2 * sizes : 2 * sizes + TERMS]


def _prior(runs: _Runs, terms: int) -> np.ndarray:
    sizes = len(runs.rates)
    whole = np.zeros((2 * sizes + TERMS,) * 2)
    whole[sizes : 2 * sizes, sizes : 2 * sizes] = runs.prior
    whole[2 * sizes, 2 * sizes] = 1 / SKEW_SPREAD**2
    return whole


def _solve(runs: _Runs, start: _Basin, window: float, terms: int) -> _Fit | None:
    sizes = len(runs.rates)
    active = np.arange(2 * sizes + terms)
    basin = start
    low = runs.rates.min(1)
    high = np.where(np.isfinite(runs.rates), runs.rates, -np.inf).max(1)
    prior = _prior(runs, terms)
    step = np.inf
    for iteration in range(ITERATIONS):
        kernel = _kernel(runs, basin.centre, window)
        height, columns = _columns(runs, basin)
        residual = _centred(runs, kernel, runs.y - height)
        variance = _variance(runs, kernel, residual)
        weight = kernel / variance[runs.size]
        columns = np.stack([_centred(runs, kernel, column) for column in columns.T], 1)
        bread = _spread_out(_gram(runs, columns * weight[:, None], columns)) + prior
        scores = _gram(runs, columns * weight[:, None], residual[:, None])[:, :, 0]
        score = np.concatenate([scores[:, 0], scores[:, 1], scores[:, 2:].sum(0)])
        point = np.concatenate([basin.centre, basin.bend, basin.shape])
        score = score - prior @ point
        if step < 1e-6 or iteration == ITERATIONS - 1:
            break
        inner = bread[np.ix_(active, active)]
        damp = 1e-9 * np.diag(np.diag(inner)) + 1e-12 * np.eye(len(active))
        move = np.zeros(len(point))
        move[active] = np.linalg.solve(inner + damp, score[active])
        limit = np.concatenate([np.full(sizes, 0.35), np.full(sizes, 1.0), [0.7, 0.3, 0.5, 0.5]])
        move = np.clip(move, -limit, limit)
        step = np.abs(move).max()
        centre = np.clip(basin.centre + move[:sizes], low - 2, high + 2)
        bend = basin.bend + move[sizes : 2 * sizes]
        shape = basin.shape + move[2 * sizes :]
        shape[0] = np.clip(shape[0], -4, 4)
        shape[1] = np.clip(shape[1], -0.95, 0.95)
        basin = _Basin(centre, bend, shape)
    inverse = np.zeros_like(bread)
    inverse[np.ix_(active, active)] = np.linalg.pinv(bread[np.ix_(active, active)], hermitian=True)
    ratio, freedom = _noise(runs, weight, residual, columns, inverse)
    squares = _gram(runs, columns * weight[:, None], columns * weight[:, None])
    meat = _spread_out(squares * ratio[:, None, None])
    covariance = inverse @ (meat + prior) @ inverse
    error = np.sqrt(np.diag(covariance))
    levels = runs.y - height - residual
    inside = kernel > 0
    value = np.bincount(runs.size, levels * inside, sizes) / np.bincount(runs.size, inside, sizes)
    used = np.bincount(runs.size, inside, sizes)
    extra = np.arange(2 * sizes + terms, 2 * sizes + TERMS)
    misfit = _refused(bread, meat, prior, score, inverse, extra, freedom.sum())
    gram = _gram(runs, columns * weight[:, None], columns)
    one_shape = _own_skews(
        gram, squares, ratio, meat + prior, score, scores, inverse, freedom.sum()
    )
    if step > 1e-3:
        return None
    return _Fit(
        basin, error[:sizes], freedom, error[2 * sizes], value, used, misfit, one_shape, window
    )


def _own_skews(gram, squares, ratio, noise, score, scores, inverse, freedom) -> float:
    """p-value of one skew for all batch sizes."""
    sizes = len(gram)
    if sizes < 2:
        return 1.0
    width = len(inverse)
    own, cross = np.zeros((sizes - 1, width)), np.zeros((sizes - 1, width))
    for index in range(sizes - 1):
        own[index, _at(sizes, index)] = gram[index, 2]
        cross[index, _at(sizes, index)] = ratio[index] * squares[index, 2]
    project = -own @ inverse
    alone = np.diag(ratio[:-1] * squares[:-1, 2, 2])
    total = project @ noise @ project.T + project @ cross.T + cross @ project.T + alone
    value = scores[:-1, 2] + project @ score
    statistic = value @ np.linalg.pinv(total, hermitian=True) @ value
    return float(stats.f.sf(statistic / (sizes - 1), sizes - 1, max(freedom, 1)))


def _refused(bread, meat, prior, score, inverse, extra, freedom) -> float:
    """p-value of extra columns, from their scores where they are 0."""
    if not len(extra):
        return 1.0
    project = -bread[extra] @ inverse
    project[:, extra] += np.eye(len(extra))
    noise = project @ (meat + prior) @ project.T
    statistic = score[extra] @ np.linalg.pinv(noise, hermitian=True) @ score[extra]
    return float(stats.f.sf(statistic / len(extra), len(extra), max(freedom, 1)))


def fit_basins(
    batch_size: np.ndarray,
    learning_rate: np.ndarray,
    value: np.ndarray,
    seed: np.ndarray | None = None,
) -> Basins:
    """Optimal learning rate of each batch size."""
    batch_size = np.asarray(batch_size, float)
    learning_rate = np.asarray(learning_rate, float)
    value = np.asarray(value, float)
    sizes = np.unique(batch_size)
    alone = np.arange(len(value)) if seed is None else np.unique(seed, return_inverse=True)[1]
    order = np.lexsort((value, alone if seed is not None else value, learning_rate, batch_size))
    batch_size, learning_rate, value = batch_size[order], learning_rate[order], value[order]
    seeds = None if seed is None else alone[order]
    x = np.log(learning_rate)
    counts = _counts(batch_size, x, value)
    fitted = []
    optima: dict[float, Optimum] = {}
    for size in sizes.tolist():
        here = batch_size == size
        few = _few(x[here], value[here], counts[here])
        if few is None:
            fitted.append(size)
        else:
            optima[size] = few
    why, fit = "", None
    if fitted:
        chosen = np.isin(batch_size, fitted)
        runs = _runs(
            batch_size[chosen],
            x[chosen],
            value[chosen],
            counts[chosen],
            None if seeds is None else seeds[chosen],
        )
        fit = _best(runs)
        groups = [(fitted, runs, fit)]
        if len(fitted) > 1 and (fit is None or fit.one_shape < SHAPE_LEVEL):
            why = "no one shape: each alone"
            groups = []
            for size in fitted:
                chosen = batch_size == size
                runs = _runs(
                    batch_size[chosen],
                    x[chosen],
                    value[chosen],
                    counts[chosen],
                    None if seeds is None else seeds[chosen],
                )
                groups.append(([size], runs, _best(runs)))
        for names, runs, one in groups:
            for index, size in enumerate(names):
                here = batch_size == size
                optima[size] = _optimum(one, index, runs, x[here], value[here], counts[here])
    shared = len(fitted) > 1 and not why
    if fit is None or why:
        return Basins(dict(sorted(optima.items())), math.nan, math.nan, math.nan, shared, why)
    return Basins(
        dict(sorted(optima.items())), fit.basin.shape[0], fit.skew_error, fit.window, shared, why
    )


def _counts(batch_size, x, value):
    """Runs count [n]: finite, at a rate where not too many failed."""
    cell = np.unique(np.stack([batch_size, x]), axis=1, return_inverse=True)[1].ravel()
    runs = np.bincount(cell)
    failed = np.bincount(cell, ~np.isfinite(value))
    return np.isfinite(value) & (failed <= LARGEST_SHARE * (runs + 1))[cell]


def _few(x, value, counts):
    rates = np.unique(x[counts])
    nan = math.nan
    if not len(rates):
        return Optimum(nan, nan, nan, nan, 0, 0, nan, 0, "no learning rate reached the target")
    if len(rates) < 3:
        means = [value[counts & (x == rate)].mean() for rate in rates]
        best = int(np.argmin(means))
        return Optimum(
            math.exp(rates[best]),
            nan,
            nan,
            nan,
            int(rates[best] == x.max()) - int(rates[best] == x.min()),
            1,
            means[best],
            int(counts.sum()),
            "fewer than three learning rates reached the target: refine the grid",
        )
    return None


def _runs(batch_size, x, value, counts, seeds):
    names, size = np.unique(batch_size[counts], return_inverse=True)
    x, y = x[counts], value[counts]
    level = size.copy()
    cluster = np.arange(len(x)) + len(names)
    if seeds is not None:
        seeds = seeds[counts]
        for index in range(len(names)):
            here = size == index
            pairs = np.unique(np.stack([seeds[here], x[here]]), axis=1)[0]
            own = len(np.unique(pairs))
            if own > 1 and len(pairs) >= 2 * own:
                label = np.unique(seeds[here], return_inverse=True)[1]
                level[here] = level.max() + 1 + len(names) + label
                cluster[here] = cluster.max() + 1 + label
    level = np.unique(level, return_inverse=True)[1]
    own = [np.unique(x[size == index]) for index in range(len(names))]
    most = max(map(len, own))
    rates = np.stack([np.pad(each, (0, most - len(each)), constant_values=np.inf) for each in own])
    trend = np.column_stack([np.ones(len(names)), np.log(names)])
    prior = (np.eye(len(names)) - trend @ np.linalg.pinv(trend)) / CURVATURE_SPREAD**2
    return _Runs(size, x, y, level, cluster, rates, prior)


def _start(runs):
    sizes = len(runs.rates)
    centre, bend = np.empty(sizes), np.empty(sizes)
    y = runs.y
    if len(np.unique(runs.level)) > sizes:  # levels and rates, by turns
        for _ in range(3):
            cell = np.unique(np.stack([runs.size, runs.x]), axis=1, return_inverse=True)[1].ravel()
            mean = np.bincount(cell, y) / np.bincount(cell)
            rest = y - mean[cell]
            y = y - (np.bincount(runs.level, rest) / np.bincount(runs.level))[runs.level]
    for index in range(sizes):
        own = runs.size == index
        x, v = runs.x[own], y[own]
        rates = runs.rates[index][np.isfinite(runs.rates[index])]
        best = (np.inf, rates[0])
        for at in rates:
            far = np.sort(np.abs(rates - at))
            reach = max(0.7, 1.5 * far[min(2, len(far) - 1)])
            weight = np.clip(1 - (np.abs(x - at) / reach) ** 3, 0, None) ** 3
            z = x - at
            s0, s1, s2 = weight.sum(), (weight * z).sum(), (weight * z * z).sum()
            t0, t1 = (weight * v).sum(), (weight * z * v).sum()
            height = (s2 * t0 - s1 * t1) / (s0 * s2 - s1 * s1)
            best = min(best, (height, at))
        centre[index] = best[1]
        far = np.sort(np.abs(rates - best[1]))
        reach = max(1.4, 1.25 * far[min(FEWEST, len(far)) - 1])
        near = np.abs(x - best[1]) <= reach
        curvature = np.polyfit(x[near] - best[1], v[near], 2)[0] * 2
        bend[index] = curvature
    positive = bend[bend > 0]
    typical = np.median(positive) if len(positive) else 1.0
    bend = np.log(np.maximum(bend, typical / 5))
    return _Basin(centre, bend, np.zeros(TERMS))


def _best(runs):
    start = _start(runs)
    candidates = []
    for window in WINDOWS:
        for terms in LADDER:
            fit = _solve(runs, start, window, terms)
            if fit is not None:
                candidates.append(fit)
    if not candidates:
        return None
    good = [fit for fit in candidates if fit.misfit > MISFIT_LEVEL] or candidates[:1]
    return min(
        good,
        key=lambda fit: (
            np.log(np.maximum(fit.error, 1e-12)).mean() if np.isfinite(fit.error).all() else np.inf
        ),
    )


def _optimum(fit, index, runs, x, value, counts):
    nan = math.nan
    if fit is None:
        cells = np.unique(x[counts])
        means = np.array([value[counts & (x == rate)].mean() for rate in cells])
        best = int(means.argmin())
        return Optimum(
            math.exp(cells[best]), nan, nan, nan, 0, 1, means[best], int(counts.sum()), "no basin"
        )
    centre, error = fit.basin.centre[index], fit.error[index]
    half = stats.t.ppf(0.975, max(fit.freedom[index], 1)) * error
    lr, low, high = np.exp([centre, centre - half, centre + half])
    bound, why = 0, ""
    top, bottom = x[counts].max(), x[counts].min()
    if centre > top:
        lr = math.exp(top)
        low = min(low, lr)
        if top == x.max():
            bound, high, why = (
                1,
                np.inf,
                "the optimum lies beyond the highest rate: extend the grid",
            )
    if centre < bottom:
        lr = math.exp(bottom)
        high = max(high, lr)
        if bottom == x.min():
            bound, low, why = -1, 0.0, "the optimum lies beyond the lowest rate: extend the grid"
    return Optimum(lr, low, high, error, bound, 1, fit.height[index], int(fit.used[index]), why)


def _noise(runs, weight, residual, columns, inverse):
    """Noise in the direction of each centre relative to the weights [sizes], and its freedom."""
    sizes = len(runs.rates)
    ratio, freedom = np.full(sizes, np.nan), np.zeros(sizes)
    for index in range(sizes):
        own = (runs.size == index) & (weight > 0)
        at = _at(sizes, index)
        local = inverse[np.ix_(at, at)]
        paired = len(np.unique(runs.level[own])) > 1
        w, x = weight[own], columns[own]
        total = w.sum()
        hat = np.zeros((len(at) + 1,) * 2)
        hat[:-1, :-1] = local
        hat[-1, -1] = 0.0 if paired else 1 / total
        x = np.column_stack([x, np.ones(len(x))])
        q = w * (x[:, :-1] @ local[0])
        cluster = np.unique(runs.cluster[own], return_inverse=True)[1]
        score = np.bincount(cluster, q * residual[own])
        m = np.stack([np.bincount(cluster, w * q * column) for column in x.T], 1)
        t = np.stack([np.bincount(cluster, q * column) for column in x.T], 1) @ hat
        n = (x * (w**2)[:, None]).T @ x
        diagonal = np.bincount(cluster, q**2)
        low_left = np.concatenate([m, t], 1)
        c = len(at) + 1
        kernel = np.zeros((2 * c, 2 * c))
        kernel[:c, c:] = -np.eye(c)
        kernel[c:, :c] = -np.eye(c)
        kernel[c:, c:] = n
        own_low = np.einsum("gi,ij,gj->g", low_left, kernel, low_left)
        trace = (diagonal + own_low).sum()
        inner = kernel @ (low_left.T @ low_left)
        frobenius = (diagonal**2).sum() + 2 * (diagonal * own_low).sum() + np.trace(inner @ inner)
        if trace > 1e-9 * diagonal.sum() and frobenius > 0:
            ratio[index] = (score**2).sum() / trace
            freedom[index] = trace**2 / frobenius
    return _moderated(ratio, freedom)


def _moderated(ratio, freedom):
    """Noise [sizes] drawn towards what batch sizes have in common, and its freedom (Smyth 2004)."""
    known = np.isfinite(ratio) & (freedom > 0.5) & (ratio > 0)
    if not known.any():
        return np.full(len(ratio), np.nan), np.zeros(len(ratio))
    r, d = ratio[known], freedom[known]
    logs = np.log(r) - special.digamma(d / 2) + np.log(d / 2)
    excess = np.var(logs, ddof=1) - special.polygamma(1, d / 2).mean() if len(r) > 1 else 0.0
    total = d.sum()
    prior = 2 * _trigamma_inverse(excess) if excess > 0 else np.inf
    middle = np.average(r, weights=d)
    if np.isfinite(prior):
        middle = math.exp(logs.mean() + special.digamma(prior / 2) - math.log(prior / 2))
    own = np.where(known, freedom, 0.0)
    prior = min(prior, 1e6)
    moderated = (own * np.where(known, ratio, 0.0) + prior * middle) / (own + prior)
    return moderated, np.minimum(own + prior, total)


def _trigamma_inverse(y: float) -> float:
    x = 0.5 + 1 / y
    for _ in range(20):
        tri = special.polygamma(1, x)
        x += tri * (1 - tri / y) / special.polygamma(2, x)
    return x
