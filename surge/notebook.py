"""How results show themselves in a notebook: the tables and sentences of a page, as HTML."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surge.report.formats import DASH, count, estimate, interval, listed, number, percent
from surge.report.markup import Prose, Table, fragment

if TYPE_CHECKING:
    from surge.api import Measurement
    from surge.suggestion import Suggestion

RULES = {"sqrt": "√B", "linear": "linear", "constant": "unchanged"}
LONG_RUN = 1  # row of κ over a run


def of_measurement(measured: "Measurement") -> str:
    """Noise scales, the reach of the small-batch law, κ, and one-step rates."""
    blocks: list[Any] = [_noise(measured), _validity(measured)]
    if measured.kappa:
        blocks.append(_kappas(measured.kappa))
    for told, rates in (
        ("True one-step optimal learning rate", measured.oracle),
        ("Measured law of one step", measured.measured),
    ):
        if rates:
            blocks.append(_rates(told, rates, measured.batch_sizes))
    return fragment(blocks)


def _noise(measured: "Measurement") -> Table:
    kinds = {"B_simple = tr Σ/|μ|²": measured.b_simple, "of signs, (‖σ‖₁/‖μ‖₁)²": measured.sign}
    rows = [(name, estimate(found[:3], found.why or DASH)) for name, found in kinds.items()]
    examples = count(measured.b_simple.n)
    header = ("noise scale", "examples, with 95% interval")
    return Table(f"Noise scales, from {examples} examples", header, rows)


def _validity(measured: "Measurement") -> Table:
    rows = [(percent(quantile), estimate(found)) for quantile, found in measured.validity.items()]
    return Table(
        "πσ²/2μ² of the parameters: far below it the small-batch law holds",
        ("quantile", "examples, with 95% interval"),
        rows,
    )


def _kappas(kappas: Mapping[str, Any]) -> Table:
    rows = [
        (
            label,
            estimate(found.kappa[LONG_RUN], found.why or DASH),
            estimate(found.peak_over_plateau[LONG_RUN]),
        )
        for label, found in kappas.items()
    ]
    header = ("optimizer", "κ", "peak / rate at large B")
    return Table("κ over a run: below ½ the best rate rises and falls again", header, rows)


def _rates(told: str, rates: Mapping[str, Any], batch_sizes: Any) -> Table:
    """One-step rates by batch size and optimizer."""

    def cell(found: Any, index: int) -> str:
        bounds = (found.lr[index], found.low[index], found.high[index])
        return estimate(bounds, found.why[index] or DASH)

    rows = [
        (count(size), *(cell(found, index) for found in rates.values()))
        for index, size in enumerate(batch_sizes)
    ]
    return Table(f"{told}, with 95% interval", ("batch size", *rates), rows)


def of_suggestion(said: "Suggestion") -> str:
    """The rate, what it rests on, what rules of thumb would cost, and a line to paste."""
    answer = said.why or f"learning rate {number(said.lr)} {interval(said.low, said.high)}"
    lead = f"Batch size {count(said.from_batch_size)} → {count(said.to_batch_size)}"
    blocks: list[Any] = [Prose(answer, "answer", lead)]
    if said.rests_on:
        blocks.append(Prose(f"It rests on {listed(said.rests_on)}.", "note"))
    blocks.append(_rules(said))
    blocks += [Prose(sentence, "warning") for sentence in said.warnings]
    if not said.why:
        blocks.append(Prose(said.paste, "paste"))
    return fragment(blocks)


def _rules(said: "Suggestion") -> Table:
    def cost(value: float) -> str:
        return f"{value:+.0%}" if said.unit == "steps" else f"{value:+.2g}"

    rows = [
        (
            RULES.get(name, name),
            number(rule.lr),
            f"{cost(rule.cost)} [{cost(rule.low)}, {cost(rule.high)}]",
            f"{rule.fails:.0%}",
        )
        for name, rule in said.alternatives.items()
    ]
    header = ("rule of thumb", "rate", f"more {said.unit}, with 95% interval", "fails in")
    return Table("What rules of thumb would cost", header, rows)
