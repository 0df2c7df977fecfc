"""All groups of a table together: the `pooled` part of fit.json, and its sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from surge.theory.fit import Optima, optima
from surge.theory.pooled import PooledFit, fit_pooled
from surge.workdir.files import ResultError, finite_or_none

OWN_ERROR = np.log(2) / 2  # of log ε where a group's runs do not tell one


def of_entry(entry: Mapping[str, Any]) -> Optima | None:
    """The optima of an entry of fit.json; None where no batch size has one inside its rates."""
    points = [point for point in entry["optimal_lr"] if point["lr"] is not None]
    if not any(point["bound"] == 0 for point in points):
        return None
    errors = [OWN_ERROR if point["error"] is None else point["error"] for point in points]
    size, lr, bound = (
        np.array([point[name] for point in points]) for name in ("batch_size", "lr", "bound")
    )
    return optima(size.astype(float), lr, np.array(errors), bound)


def pooled(
    entries: Sequence[Mapping[str, Any]], covariates: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Every law on all groups at once.

    Args:
      entries: of fit.json, one a group.
      covariates: name -> group -> value.

    Returns:
      Plain JSON types: the groups that count, the covariates' geometric means, each law's
      parameters, exponents and error on groups left out, the weights, and the law that is named.

    Raises:
      ResultError: fewer than two groups with an optimum, or covariates that explain nothing.
    """
    optima_of = {str(entry["optimizer"]): of_entry(entry) for entry in entries}
    groups = {name: data for name, data in optima_of.items() if data is not None}
    values = {name: [by_group[group] for group in groups] for name, by_group in covariates.items()}
    try:
        result = fit_pooled([*groups.values()], values)
    except ValueError as error:
        raise ResultError(f"--covariate: {error}") from None
    laws = {name: _law(fit, result.score[name]) for name, fit in result.fits.items()}
    return finite_or_none(
        {
            "groups": [*groups],
            "reference": result.reference,
            "laws": laws,
            "weights": result.weights,
            "best_law": result.best,
            "best_law_why": result.why,
        }
    )


def _law(fit: PooledFit, score: float) -> dict[str, Any]:
    return {
        "params": fit.parameters,
        "intervals": fit.intervals,
        "exponents": fit.exponents,
        "exponent_intervals": fit.exponent_intervals,
        "levels": np.exp(fit.levels).tolist(),
        "score": score,
        "held_out": fit.held_out,
    }


def sentence(stored: Mapping[str, Any]) -> str:
    """The finding of a pooled fit, of the law that is named or that weighs most."""
    weights = stored["weights"]
    name = stored["best_law"] or max(weights, key=lambda law: weights[law])
    law = stored["laws"][name]
    parts = [
        _value(parameter, value, law["intervals"][parameter])
        for parameter, value in law["params"].items()
    ]
    if law["exponents"]:
        means = stored["reference"].items()
        parts.append("at " + ", ".join(f"{column} = {value:.3g}" for column, value in means))
    for column, value in law["exponents"].items():
        parts.append(f"moving as {_value(column + '^', value, law['exponent_intervals'][column])}")
    told = "" if stored["best_law"] else f" (not named: {stored['best_law_why']})"
    return f"{len(stored['groups'])} groups together: {name}{told}; {', '.join(parts)}"


def _value(name: str, value: float, ends: Sequence[float | None]) -> str:
    low, high = ("open" if end is None else f"{end:.3g}" for end in ends)
    return f"{name} {value:.3g} [{low}, {high}]".strip()
