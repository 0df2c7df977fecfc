"""All groups of a table together: the `pooled` part of fit.json, its sentence, and what a group
borrows from the others."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from surge.tables.reading import number
from surge.theory.borrowing import borrow
from surge.theory.fit import Optima, optima
from surge.theory.pooled import PooledFit, fit_pooled
from surge.theory.transfer import Belief
from surge.workdir.files import ResultError, finite_or_none

OWN_ERROR = np.log(2) / 2  # of log ε where a group's runs do not tell one
MOST_COVARIATES = 2  # that a pooled fit takes
UNLIKE = 0.1  # Bayes factor for a group being one of the others, below which it borrows nothing


class Pool(NamedTuple):
    """A sweep that is asked about, and others that tell something of it.

    Attributes:
      own: optima of the one that is asked about; None where it has none.
      others: label -> optima.
      covariates: what the law's batch sizes may move with.
      relative: log of the covariates of the one that is asked about, and of each other [1 + g, c].
    """

    own: Optima | None
    others: dict[str, Optima]
    covariates: tuple[str, ...]
    relative: np.ndarray

    def beliefs(self, batch_size: float, base: float) -> tuple[list[Belief], str]:
        """What the laws say of ψ, and on what; none where the others have another shape."""
        others = [*self.others.values()]
        borrowed = borrow(self.own, others, self.relative, batch_size, base)
        names = f"{len(others)} other group{'s' * (len(others) > 1)} ({'; '.join(self.others)})"
        if borrowed.support < UNLIKE:
            return [], (
                f"its own runs alone: {names} have another shape (Bayes factor "
                f"{borrowed.support:.2g} for one family)"
            )
        knee = f", its batch sizes a power of {' and '.join(self.covariates)}"
        told = f"Bayes factor {borrowed.support:.2g} for one family"
        return borrowed.beliefs, (
            f"a family with {names}{knee if self.covariates else ''}, as alike as these are: "
            f"{told if self.own else 'it has no optimum of its own'}"
        )


def pool_of(entries: Sequence[Mapping[str, Any]], label: str) -> Pool | None:
    """What a group of a table may borrow: of the groups that differ from it by numbers only.

    An optimizer, a data set or a schedule is a word, and says nothing of another one; a width or a
    number of tokens is a number, and the law's batch sizes may be a power of it.

    Args:
      entries: of fit.json, one a group.
      label: of the group that is asked about.

    Returns:
      None where no other group with an optimum is like it.
    """
    optima_of = {str(entry["optimizer"]): of_entry(entry) for entry in entries}
    own = optima_of.pop(label)
    asked = _values(label)
    others = {
        name: data
        for name, data in optima_of.items()
        if data is not None and _words(_values(name)) == _words(asked)
    }
    if not others:
        return None
    values = [asked, *map(_values, others)]
    numbers = {column: [number(group[column]) for group in values] for column in asked}
    moving = [
        column
        for column, column_values in numbers.items()
        if min(column_values) > 0 and len(set(column_values)) > 1
    ][:MOST_COVARIATES]
    logs = np.log([numbers[column] for column in moving]).reshape(len(moving), len(values))
    centred = logs - logs.mean(1, keepdims=True)
    return Pool(own, others, tuple(moving), centred.T)


def _values(label: str) -> dict[str, str]:
    """Column -> value of a group's label."""
    parts = [part.partition("=") for part in label.split(", ")]
    return {column: value for column, _, value in parts}


def _words(values: Mapping[str, str]) -> dict[str, str]:
    """The columns of a label that are no numbers."""
    return {name: value for name, value in values.items() if not np.isfinite(number(value))}


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
