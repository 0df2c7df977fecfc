"""From one batch size to another: rules, laws, their averages, and intervals that hold."""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from surge.theory import judged, rules, transfer
from surge.theory.comparison import compare_laws
from surge.theory.fit import fit_law
from surge.theory.rules import RULES, Known
from surge.theory.transfer import Belief, average, from_laws, from_rules, psi_grid
from surge.workdir.files import read_json

SCRIPT = Path(__file__).parent.parent / "scripts" / "calibrate_rules.py"
calibrate_rules = SimpleNamespace(**runpy.run_path(str(SCRIPT)))

SIZES = 2.0 ** np.arange(2, 12)
MEASURED = Known(
    "adam",
    b_simple=500.0,
    sizes=tuple(SIZES),
    independent=tuple(SIZES**-0.1),
    measured=tuple(1 / (np.sqrt(64 / SIZES) + np.sqrt(SIZES / 64))),
    noise_gain=1 / 19,
)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(sorted(RULES)), *[st.floats(4, 2048)] * 3)
def test_every_rule_is_a_ratio(name, one, two, three):
    """No move is no change, and two moves are one: but for "halfway", which leaves from B0."""
    rule = RULES[name]
    assert rule(one, one, MEASURED) == pytest.approx(0, abs=1e-12)
    if name != "halfway":
        stepwise = rule(three, two, MEASURED) + rule(two, one, MEASURED)
        # A curve between its sizes is a straight line in log-log, which composes too.
        assert stepwise == pytest.approx(rule(three, one, MEASURED), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "down", "up"),
    [
        ("constant", 1, 1),
        ("sqrt", 0.5, 2),
        ("linear", 0.25, 4),
        ("halfway", 0.5, math.sqrt(2)),
        ("surge with B_simple", 0.8, 0.8),
        ("surge, then flat", 0.8, 1),
        ("saturating with B_simple", math.sqrt(2 / 5), math.sqrt(8 / 5)),
    ],
)
def test_rules_have_their_known_ratios(name, down, up):
    known = Known("adam", b_simple=16.0)
    assert math.exp(RULES[name](4, 16, known)) == pytest.approx(down)
    assert math.exp(RULES[name](64, 16, known)) == pytest.approx(up)


def test_a_rule_without_its_number_has_no_answer():
    said = {name: rule(64, 16, Known("adam")) for name, rule in RULES.items()}
    assert {name for name, value in said.items() if math.isfinite(value)} == set(rules.ALONE)


def test_curves_end_where_they_were_measured():
    assert math.isnan(rules.measured_rule(4096, 64, MEASURED))
    assert math.isnan(rules.measured_rule(64, 2, MEASURED))


def test_the_one_law_over_a_run_is_foretold_by_one_step():
    """A planted curve with κ = 1.6, read one step ahead at Adam's k = 1/19: over a run k = 1."""
    noise, kappa, gain = 640.0, 1.6, 1 / 19

    def curve(size, k):
        return np.sqrt(1 + noise / size) / (1 + k * kappa * noise / size)

    known = Known("adam", sizes=tuple(SIZES), measured=tuple(curve(SIZES, gain)), noise_gain=gain)
    planted = rules.one_step_shape(known.sizes, known.measured)
    assert planted == pytest.approx((noise, gain * kappa), rel=0.06)
    for size in (4.0, 16.0, 1024.0):
        told = math.exp(rules.long_run_rule(size, 64.0, known))
        assert told == pytest.approx(curve(size, 1) / curve(64.0, 1), rel=0.05)
    capped = known._replace(cap=1.5)
    assert math.exp(rules.long_run_rule(1024.0, 64.0, capped)) == pytest.approx(1.5)
    assert rules.stability_cap(1000.0, 0.9) == pytest.approx(0.038)  # 38/sharpness at β1 = 0.9


def test_the_table_is_what_its_command_makes_of_the_judgement():
    assert calibrate_rules.TABLE.read_text() == calibrate_rules.text()


def test_the_judged_errors_are_those_of_a_plain_loop():
    """Recomputed from the stored rows, for a rule whose ratios were written before the sweeps."""
    squares = []
    for row in calibrate_rules.json.loads((calibrate_rules.STORED / "judgement.json").read_text()):
        told = row["rule"] == "surge with B_simple" and row["optimizer"] == "adam"
        if told and row["experiment"] == "mnist1d":
            squares.append((row["log_error"] / math.log(row["batch_size"] / 64)) ** 2)
    stored = judged.JUDGED["surge with B_simple"]["adam"]["mnist1d"]
    assert len(squares) == 5 and stored == pytest.approx(np.mean(squares), rel=5e-3)


@pytest.mark.parametrize(("measured", "off"), [(True, 1.2), (False, 1.4)])
def test_intervals_hold_the_judged_moves_of_a_task_that_was_left_out(measured, off):
    inside, factors = [], []
    for move in calibrate_rules.moves():
        known = move.known if measured else Known(move.known.kind)
        beliefs = from_rules(move.batch_size, move.base, known, left_out=move.task)
        said = average(psi_grid(move.batch_size, move.base), beliefs)
        inside.append(said.low <= move.swept <= said.high)
        factors.append(abs(math.log(said.ratio / move.swept)))
    assert len(inside) == 25 and np.mean(inside) >= 0.9
    assert math.exp(np.median(factors)) < off


def test_what_was_measured_narrows_the_interval():
    grid = psi_grid(1024, 64)
    alone = average(grid, from_rules(1024, 64, Known("adam")))
    told = average(grid, from_rules(1024, 64, Known("adam", b_simple=800.0)))
    assert told.high / told.low < alone.high / alone.low
    never_judged = average(grid, from_rules(1024, 64, Known("")))
    assert never_judged.high / never_judged.low > alone.high / alone.low


def test_an_interval_of_b_simple_widens_the_answer():
    grid = psi_grid(1024, 64)
    known = Known("adam", 800.0, 100.0, 6400.0)
    exact = average(grid, from_rules(1024, 64, known._replace(b_simple_low=math.nan)))
    loose = average(grid, from_rules(1024, 64, known))
    assert loose.low < exact.low and loose.high > exact.high


@settings(deadline=None, max_examples=20)
@given(st.floats(1, 1e5), st.floats(1, 1e5))
def test_beliefs_are_distributions(batch_size, base):
    beliefs = from_rules(batch_size, base, Known("adam", b_simple=300.0))
    assert sum(belief.weight for belief in beliefs) == pytest.approx(1)
    for belief in beliefs:
        assert belief.mass.sum() == pytest.approx(1) and (belief.mass >= 0).all()


def test_the_same_batch_size_is_the_same_rate():
    said = average(psi_grid(64, 64), from_rules(64, 64, Known("adam")))
    assert said.ratio == said.low == said.high == pytest.approx(1, abs=transfer.STEP)


def test_spread_is_a_student_t_of_tasks():
    """Against the textbook: total over freedom, and wide where little was judged."""
    squares = [0.01, 0.04]
    found = transfer.spread(squares)
    assert found.scale == pytest.approx(math.sqrt((2 * 0.01 + 0.05) / 4)) and found.freedom == 4
    half = [stats.t.ppf(0.975, each.freedom) * each.scale for each in (found, transfer.spread([]))]
    assert half[1] == pytest.approx(stats.t.ppf(0.975, 2) * 0.1)


def normal(grid, middle, deviation):
    mass = np.exp(-(((grid - middle) / deviation) ** 2) / 2)
    return mass / mass.sum()


def test_the_average_holds_the_spread_between_rivals():
    grid = psi_grid(256, 16)
    one, other = normal(grid, 0.0, 0.05), normal(grid, 1.0, 0.05)
    said = average(grid, [Belief("one", 0.5, one), Belief("other", 0.5, other)])
    assert said.low < 0.95 < math.e < said.high
    told = average(grid, [Belief("one", 0.99, one), Belief("other", 0.01, other)])
    assert told.high < 1.2  # a rival of 1% is beyond 95%


def test_two_kinds_of_evidence_multiply():
    grid = psi_grid(256, 16)
    one = [Belief("sweep", 1.0, normal(grid, 0.4, 0.2))]
    other = [Belief("checkpoint", 1.0, normal(grid, 0.0, 0.4))]
    said = average(grid, one, other)
    precision = 1 / 0.2**2 + 1 / 0.4**2
    assert math.log(said.ratio) == pytest.approx(0.4 / 0.2**2 / precision, abs=0.01)
    half = math.log(said.high / said.low) / 2
    assert half == pytest.approx(1.96 / math.sqrt(precision), abs=0.01)
    nowhere = [Belief("checkpoint", 1.0, normal(grid, -5.0, 0.1))]
    assert "contradict" in average(grid, one, nowhere).why
    assert math.isnan(average(grid, [], []).ratio)


def test_a_profile_does_not_depend_on_how_shapes_are_parametrised():
    grid = psi_grid(256, 16)
    even = np.linspace(0, 1, 400)
    uneven = even**3
    masses = [transfer.profile_mass(grid, psi, ((psi - 0.5) / 0.2) ** 2) for psi in (even, uneven)]
    quantiles = [average(grid, [Belief("", 1.0, mass)])[:3] for mass in masses]
    assert quantiles[0] == pytest.approx(quantiles[1], rel=0.01)
    # Excess 1 is the end of a 95% interval: so it is again.
    assert quantiles[0][2] == pytest.approx(math.exp(0.7), rel=0.01)


def test_a_sweeps_laws_hold_the_planted_ratio():
    """Power law planted in sweeps with their own errors: the ratio at 4 times their end."""
    size, error, truth = 2.0 ** np.arange(4, 10), np.full(6, 0.1), 4 ** (0.4 * 3)
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        lr = size**0.4 * np.exp(error * rng.normal(size=6))
        fits = {"power": fit_law("power", size, lr, error)}
        beliefs = from_laws(fits, {"power": 1.0}, 2048.0, 32.0)
        said = average(psi_grid(2048, 32), beliefs)
        hits += said.low <= truth <= said.high
    assert hits >= 52


def test_a_cap_is_not_known_better_than_its_law_was_at_the_optima():
    size = 4.0 ** np.arange(6)
    lr = np.minimum(size, 64.0) * np.exp([0.0, 0.1, -0.1, 0.1, -0.2, 0.1])
    fits = {"capped_power": fit_law("capped_power", size, lr, np.full(6, 0.1))}
    plateau = average(psi_grid(1024, 256), from_laws(fits, {"capped_power": 1.0}, 1024.0, 256.0))
    assert plateau.low < 0.85 and plateau.high > 1.15
    itself = average(psi_grid(64, 64), from_laws(fits, {"capped_power": 1.0}, 64.0, 64.0))
    assert itself.low == itself.high == 1.0


def left_out(points, target):
    """(swept − told, half width of both intervals) of log ε(B)/ε(B0), B left out of the sweep."""
    base = points[len(points) // 2]
    kept = [point for point in points if point is not target]
    size, lr, error, bound = (
        np.array([point[name] for point in kept], float)
        for name in ("batch_size", "lr", "error", "bound")
    )
    comparison = compare_laws(size, lr, error, bound)
    weights = {name: comparison.weights[name] for name in comparison.remaining}
    move = (float(target["batch_size"]), float(base["batch_size"]))
    said = average(psi_grid(*move), from_laws(comparison.fits, weights, *move))
    swept = math.log(target["lr"] / base["lr"])
    noise = 1.96 * math.hypot(target["error"], base["error"])
    middle = math.log(said.low * said.high) / 2
    return swept - middle, math.hypot(math.log(said.high / said.low) / 2, noise)


def test_laws_of_judged_sweeps_foretell_batch_sizes_that_were_left_out():
    gaps = []
    for path in calibrate_rules.STORED.parent.rglob("*fit.json"):
        for entry in read_json(path)["fits"]:
            points = [point for point in entry["optimal_lr"] if point["lr"] is not None]
            inside = [point for point in points if point["bound"] == 0 and point["error"]]
            if len(inside) >= 5:
                ends = (inside[0], inside[-1])  # where laws are continued beyond the sweep
                gaps += [left_out(inside, target) for target in ends]
    assert len(gaps) >= 20
    assert np.mean([abs(gap) <= half for gap, half in gaps]) >= 0.9
    assert np.median([half for _, half in gaps]) < 1


def test_kinds_are_told_by_name_or_spec():
    assert rules.kind_of("adamw(b1=0.9)") == "adam" and rules.kind_of("lion") == "sign"
    assert rules.kind_of("muon") == ""
