"""Laws fitted to optima, with intervals.

Every law is a scale times a shape with at most two parameters, so a fit is a search over a grid of
shapes, all at once, with the scale solved for, and over finer grids where the best ones lie.
Intervals are profile likelihood; an end that the search did not reach is open, and says so.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import chdtri, log_ndtr, stdtrit

from surge.theory.rivals import LAWS, Law

CONFIDENCE = 0.95
QUANTILE = float(chdtri(1, 1 - CONFIDENCE))
COARSE = {0: 1, 1: 201, 2: 61}  # points along each shape parameter, by their number
FINE = {0: 1, 1: 101, 2: 31}
REFINEMENTS = 2
KEPT = 4.0  # of the excess: finer grids cover the shapes below it
ERROR_FLOOR = 0.03  # of log ε: no law is exact, and no basin is a parabola
MISJUDGED = 4.0  # factor by which squared errors may be too small; beyond, all laws are wrong
NEWTON = 8  # steps to the scale where optima are bounds
HUBER = 2.5  # scatters beyond which a residual counts linearly, where errors are unknown


class Optima(NamedTuple):
    """Optima that laws are fitted to.

    Attributes:
      size: B [n].
      y: log ε_opt [n].
      error: standard errors of y [n].
      bound: 0 where y is an optimum, +1 where it is at least y, -1 where it is at most y [n].
      known: whether the errors were given; else they are one common error, of the residuals.
    """

    size: np.ndarray
    y: np.ndarray
    error: np.ndarray
    bound: np.ndarray
    known: bool

    @property
    def weight(self) -> np.ndarray:
        """1/error² of the optima, 0 for bounds [n]."""
        return (self.bound == 0) / self.error**2


class Fit(NamedTuple):
    """One law fitted to n optima.

    Attributes:
      law: name in LAWS.
      parameters: by name.
      intervals: 95% interval of each parameter.
      derived: name -> (value, low, high) of what else the law says.
      opened: parameter -> why its interval has no end on one side or both.
      residuals: of log ε [n].
      misfit: -2 log likelihood: χ² of the optima, and what the bounds add to it.
      shapes: shape parameters that were tried [g, k].
      scale: log of the best scale of each shape [g].
      lines: log ε of each shape at the data [g, n].
      critical: misfit above the best shape's at the end of a 95% interval of one parameter.
      excess: misfit above the best shape's in units of it, at most 1 in such an interval [g].
    """

    law: str
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    derived: dict[str, tuple[float, float, float]]
    opened: dict[str, str]
    residuals: np.ndarray
    misfit: float
    shapes: np.ndarray
    scale: np.ndarray
    lines: np.ndarray
    critical: float
    excess: np.ndarray


def optima(
    batch_size: np.ndarray,
    lr: np.ndarray,
    error: np.ndarray | None = None,
    bound: np.ndarray | None = None,
) -> Optima:
    """Checked arrays of optima; arguments as those of `fit_law`."""
    size = np.asarray(batch_size, float)
    rate = np.asarray(lr, float)
    for what, values in (("batch size", size), ("learning rate", rate)):
        wrong = values[~((values > 0) & np.isfinite(values))]
        if len(wrong):
            raise ValueError(f"each {what} must be finite and above 0, got {wrong[0]}")
    bounds = np.zeros(len(rate), int) if bound is None else np.asarray(bound, int)
    if not (bounds == 0).any():
        raise ValueError("a law needs at least one batch size with a known optimum")
    if error is None:
        return Optima(size, np.log(rate), np.ones(len(rate)), bounds, False)
    errors = np.maximum(np.asarray(error, float), ERROR_FLOOR)
    return Optima(size, np.log(rate), errors, bounds, True)


def fit_law(
    name: str,
    batch_size: np.ndarray,
    lr: np.ndarray,
    error: np.ndarray | None = None,
    bound: np.ndarray | None = None,
) -> Fit:
    """Fits one law to log ε by maximum likelihood.

    Errors that are not given are one common error, and outliers then count less (Huber's weights).

    Args:
      name: in LAWS.
      batch_size: B [n].
      lr: ε_opt [n], > 0.
      error: standard errors of log ε [n]; None: equal and unknown.
      bound: 0 where lr is an optimum, +1 where the optimum is at least lr, -1 where it is at most
        lr [n]; None: all are optima.

    Raises:
      ValueError: no optimum, or a batch size or rate that is not finite and above 0.
    """
    data = optima(batch_size, lr, error, bound)
    if not data.known:
        data = _with_common_error(name, data)
    return fit_optima(name, data)


def fit_optima(name: str, data: Optima) -> Fit:
    """`fit_law` of checked optima whose errors are known or estimated."""
    law = LAWS[name]
    shapes, logs = coarse(name, tuple(data.size))
    critical = _critical(law, data)
    freedom = max(_freedom(law, data), 1)
    # From the whole range to finer grids where the best shapes lie; the last one is kept.
    for refinement in range(REFINEMENTS + 1):
        scale, misfit = profile(data, logs)
        best = int(misfit.argmin())
        # Errors that are too small for the law are enlarged until it is just plausible.
        inflation = max(1.0, misfit[best] / chdtri(freedom, 1 - CONFIDENCE))
        excess = (misfit - misfit[best]) / (critical * inflation)
        if not law.bounds or refinement == REFINEMENTS:
            break
        box = _box(law, shapes, excess)
        shapes = _grid(law, box, FINE[len(law.bounds)])
        logs = log_shapes(law, shapes, data.size)
    lines = logs + scale[:, None]
    critical *= inflation
    half = math.sqrt(critical / data.weight.sum())
    inside = excess <= 1
    parameters = {"max_lr": math.exp(scale[best])}
    intervals = {"max_lr": _exp(scale[inside].min() - half, scale[inside].max() + half)}
    opened = {}
    for index, parameter in enumerate(law.bounds):
        column = shapes[:, index]
        parameters[parameter] = float(column[best])
        ends = _limits(law, parameter, data.size)
        intervals[parameter], why = interval(column[inside], column, ends)
        if why:
            opened[parameter] = why
    derived = {
        key: _derived(form, shapes, best, inside, form(*coarse(name, tuple(data.size))[0].T).max())
        for key, form in law.derived.items()
    }
    residuals = data.y - lines[best]
    return Fit(
        name,
        parameters,
        intervals,
        derived,
        opened,
        residuals,
        float(misfit[best]),
        shapes,
        scale,
        lines,
        critical,
        excess,
    )


def _freedom(law: Law, data: Optima) -> int:
    return int((data.bound == 0).sum()) - len(law.parameters)


def _critical(law: Law, data: Optima) -> float:
    """χ² above the best shape's at the end of a 95% interval; inf where nothing tells the error."""
    if data.known:
        return QUANTILE
    freedom = _freedom(law, data)
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) ** 2 if freedom > 0 else math.inf


def _with_common_error(name: str, data: Optima) -> Optima:
    """The same with the error that one law's residuals have, larger for those that stand out."""
    freedom = max(_freedom(LAWS[name], data), 1)
    _, logs = coarse(name, tuple(data.size))
    exact = data.bound == 0
    for _ in range(4):
        scale, misfit = profile(data, logs)
        best = misfit.argmin()
        residuals = np.abs(data.y - logs[best] - scale[best])
        # 1.4826 medians are a standard deviation of what is Gaussian, whatever stands out.
        scatter = 1.4826 * np.median(residuals[exact]) * math.sqrt(exact.sum() / freedom)
        scatter = max(scatter, ERROR_FLOOR / 3)
        beyond = np.maximum(residuals / (HUBER * scatter), 1.0)
        data = data._replace(error=scatter * np.sqrt(beyond))
    return data


def _limits(law: Law, parameter: str, size: np.ndarray) -> tuple[float, float]:
    """Range that a parameter is searched in."""
    low, high = law.bounds[parameter]
    return (low * size.min(), high * size.max()) if parameter.startswith("b_") else (low, high)


def _grid(law: Law, box: Mapping[str, tuple[float, float]], count: int) -> np.ndarray:
    """Shapes in a box [g, k]; evenly by ratio along parameters whose range spans many of them."""
    axes = []
    for name, (low, high) in law.bounds.items():
        space = np.geomspace if 0 < 100 * low < high else np.linspace
        axes.append(space(*box[name], count))
    if not axes:
        return np.zeros((1, 0))
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))


@functools.lru_cache(maxsize=256)
def coarse(name: str, sizes: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """All shapes of a law that a fit begins with [g, k], and their logarithm at the data [g, n]."""
    law = LAWS[name]
    size = np.array(sizes)
    box = {parameter: _limits(law, parameter, size) for parameter in law.bounds}
    shapes = _grid(law, box, COARSE[len(law.bounds)])
    return shapes, log_shapes(law, shapes, size)


def log_shapes(law: Law, shapes: np.ndarray, batch_size: np.ndarray) -> np.ndarray:
    """log of the law at scale 1 for each row of shape parameters [g, n]."""
    named = {name: shapes[:, index, None] for index, name in enumerate(law.bounds)}
    values = np.log(law.function(batch_size[None], 1.0, **named))
    return np.broadcast_to(values, (len(shapes), len(batch_size)))


def profile(data: Optima, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best log scale of every shape, and its misfit, both [g]."""
    gap = data.y - logs
    weight = data.weight
    total = weight.sum()
    middle = gap @ weight / total
    misfit = ((gap - middle[:, None]) ** 2) @ weight
    beyond = data.bound != 0
    if not beyond.any():
        return middle, misfit
    # A bound's likelihood is Φ(z): the truth lies beyond it, by how much is open. Newton's method
    # finds the scale that optima and bounds agree on; Φ underflows where its logarithm does not.
    side = data.bound[beyond] / data.error[beyond]
    scale = middle
    for _ in range(NEWTON):
        z = side * (scale[:, None] - gap[:, beyond])
        hazard = np.exp(-(z**2) / 2 - log_ndtr(z)) / math.sqrt(2 * math.pi)
        slope = total * (scale - middle) - hazard @ side
        bend = total + (hazard * (z + hazard)) @ side**2
        scale = scale - slope / bend
    z = side * (scale[:, None] - gap[:, beyond])
    return scale, misfit + total * (scale - middle) ** 2 - 2 * log_ndtr(z).sum(1)


def _box(law: Law, shapes: np.ndarray, excess: np.ndarray) -> dict[str, tuple[float, float]]:
    """Ends of the shapes that are kept, rounded outwards to the next ones tried."""
    kept = shapes[excess <= KEPT]
    box = {}
    for index, name in enumerate(law.bounds):
        points = np.unique(shapes[:, index])
        low, high = points.searchsorted((kept[:, index].min(), kept[:, index].max()))
        box[name] = (points[max(low - 1, 0)], points[min(high + 1, len(points) - 1)])
    return box


def interval(
    inside: np.ndarray, tried: np.ndarray, limits: tuple[float, float]
) -> tuple[tuple[float, float], str]:
    """Ends of an interval, rounded outwards to what was tried, and why an end of it is open."""
    points = np.unique(tried)
    first, last = points.searchsorted((inside.min(), inside.max()))
    low = float(points[max(first - 1, 0)])
    high = float(points[min(last + 1, len(points) - 1)])
    ended = []
    if low <= limits[0] + 1e-9 * abs(limits[0]):
        low = 0.0 if limits[0] > 0 else -math.inf
        ended.append(f"{limits[0]:.3g}")
    if high >= limits[1] - 1e-9 * abs(limits[1]):
        high = math.inf
        ended.append(f"{limits[1]:.3g}")
    why = f"the search ended at {' and '.join(ended)}" if ended else ""
    return (low, high), why


def _derived(
    form: Callable[..., np.ndarray],
    shapes: np.ndarray,
    best: int,
    inside: np.ndarray,
    limit: float,
) -> tuple[float, float, float]:
    """Value and interval of what a law says; no upper end where the search had none."""
    values = form(*shapes.T)
    high = float(values[inside].max())
    return float(values[best]), float(values[inside].min()), high if high < limit else math.inf


def _exp(low: float, high: float) -> tuple[float, float]:
    with np.errstate(over="ignore"):  # an end that errors leave open is infinite
        return float(np.exp(low)), float(np.exp(high))
