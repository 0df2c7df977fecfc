"""One group among others: it borrows what they have in common, and no more than they are alike."""

import math

import numpy as np
import pandas as pd
import pytest

from surge.suggest import suggest
from surge.tables.pooling import pool_of
from surge.theory.borrowing import borrow
from surge.theory.fit import optima
from surge.theory.transfer import average, psi_grid
from surge.workdir.files import ResultError

TOKENS = np.array([10, 1, 3, 30]) * 1e8  # the first is asked about
LOGS = np.log(TOKENS / np.exp(np.log(TOKENS).mean()))[:, None]
SIZES = 2.0 ** np.arange(5, 11)
ERROR = 0.1


def capped(size, knee):
    return np.sqrt(np.minimum(1, size / knee))


def family(seed, scatter=0.3, few=3):
    """Four sweeps whose knees are 128 · (tokens/mean)^0.45 but for scatter, and the first's knee;
    of the first only the smallest batch sizes were tried."""
    rng = np.random.default_rng(seed)
    knees = 128 * np.exp(0.45 * LOGS[:, 0] + scatter * rng.normal(size=4))
    groups = []
    for index, knee in enumerate(knees):
        sizes = SIZES[:few] if index == 0 else SIZES
        noisy = capped(sizes, knee) * np.exp(rng.normal() + ERROR * rng.normal(size=len(sizes)))
        groups.append(optima(sizes, noisy, np.full(len(sizes), ERROR)))
    return groups, knees[0]


def answer(groups, batch_size=1024.0, base=32.0):
    borrowed = borrow(groups[0], groups[1:], LOGS, batch_size, base)
    return borrowed, average(psi_grid(batch_size, base), borrowed.beliefs)


def covered(repetitions, scatter):
    inside = 0
    widths = []
    for seed in range(repetitions):
        groups, knee = family(seed, scatter)
        _, said = answer(groups)
        inside += said.low <= capped(1024, knee) / capped(32, knee) <= said.high
        widths.append(said.high / said.low)
    return inside, float(np.median(widths))


def test_the_ratio_of_a_group_is_found_beyond_its_own_sizes():
    inside, width = covered(10, 0.3)
    assert inside >= 9 and width < 3.5  # its own three sizes alone leave a factor of 4.8


@pytest.mark.slow
@pytest.mark.parametrize(("scatter", "least"), [(0.0, 95), (0.3, 90), (0.7, 83)])
def test_the_interval_holds_however_alike_groups_are(scatter, least):
    assert covered(100, scatter)[0] >= least


def test_groups_that_scatter_lend_less():
    _, close = answer(family(2, 0.0)[0])
    _, apart = answer(family(2, 1.5)[0])
    assert apart.high / apart.low > close.high / close.low


def test_one_law_without_a_shape_has_the_evidence_of_plain_gaussians():
    """Under √B nothing is shared but the law: evidence is a product over groups."""
    groups, _ = family(0)
    together = [belief for belief in answer(groups)[0].beliefs if belief.name == "sqrt law"]
    place = int(together[0].mass.argmax())
    assert psi_grid(1024.0, 32.0)[place] == pytest.approx(math.log(32) / 2, abs=0.01)
    assert together[0].mass[place] == pytest.approx(1)


def test_weights_are_evidence_and_the_order_of_others_is_of_no_consequence():
    groups, _ = family(1)
    one, said = answer(groups)
    other = borrow(groups[0], groups[:0:-1], LOGS[[0, 3, 2, 1]], 1024.0, 32.0)
    assert sum(belief.weight for belief in one.beliefs) == pytest.approx(1)
    assert other.support == pytest.approx(one.support)
    for a, b in zip(one.beliefs, other.beliefs, strict=True):
        np.testing.assert_allclose(a.mass, b.mass, atol=1e-9)
    assert said.low < said.ratio < said.high


def test_a_group_of_another_shape_is_found_out():
    """Three rise as √ to 1,024; the one asked about is flat."""
    rng = np.random.default_rng(0)
    error = np.full(len(SIZES), 0.05)
    noisy = np.exp(0.05 * rng.normal(size=(4, len(SIZES))))
    rising = [optima(SIZES, SIZES**0.5 * factor, error) for factor in noisy[1:]]
    flat = optima(SIZES, noisy[0], error)
    assert borrow(flat, rising, np.zeros((4, 0)), 1024.0, 32.0).support < 0.1
    assert borrow(rising[0], rising[1:], np.zeros((3, 0)), 1024.0, 32.0).support > 1


def table(path, few=3):
    """Three widths with knees that follow them, and another optimizer that falls."""
    rng = np.random.default_rng(0)
    rows = []
    for name, width, curve in (
        ("adam", 64, lambda size: capped(size, 64)),
        ("adam", 128, lambda size: capped(size, 128)),
        ("adam", 256, lambda size: capped(size, 256)),
        ("sign", 128, lambda size: size**-0.5),
    ):
        sizes = SIZES[:few] if (name, width) == ("adam", 256) else SIZES
        for size in sizes:
            for distance in np.linspace(-1.5, 1.5, 7):
                rate = 0.01 * curve(size) * math.exp(distance + 0.05 * rng.normal())
                off = math.log(rate / (0.01 * curve(size)))
                loss = 1 + 0.2 * off**2 + 0.01 * rng.normal()
                rows.append((name, width, size, rate, loss))
    columns = ["optimizer", "width", "batch_size", "learning_rate", "loss"]
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    return path


def test_a_table_answers_for_the_group_asked_for_informed_by_its_like(tmp_path):
    path = table(tmp_path / "runs.csv")
    move = {"from_batch_size": 32, "from_lr": 1.0, "to_batch_size": 1024, "optimizer": "adam"}
    groups = ["optimizer", "width"]
    with pytest.raises(ResultError, match=r"has 4 groups .*--label takes one of them"):
        suggest(table=path, group=groups, **move)
    said = suggest(table=path, group=groups, label="optimizer=adam, width=256", **move)
    told = said.rests_on[1]
    assert "2 other groups (optimizer=adam, width=64; optimizer=adam, width=128)" in told
    assert "a power of width" in told and "sign" not in told
    truth = float(capped(1024, 256) / capped(32, 256))
    assert said.low < truth < said.high and said.high / said.low < 3
    alone = suggest(table=path, where=["optimizer=adam", "width=256"], **move)
    assert alone.high / alone.low > said.high / said.low
    apart = suggest(table=path, group=groups, label="optimizer=sign, width=128", **move)
    assert len(apart.rests_on) == 1 and apart.high < 0.3  # no like, and its own law falls


def test_a_group_without_an_optimum_has_the_others_answer():
    points = [{"batch_size": size, "lr": 1.0, "error": 0.1, "bound": 0} for size in SIZES]
    entries = [
        {"optimizer": "width=1", "optimal_lr": points},
        {"optimizer": "width=2", "optimal_lr": points},
        {"optimizer": "width=4", "optimal_lr": [points[0] | {"bound": 1}]},
        {"optimizer": "kind=b", "optimal_lr": points},
    ]
    pool = pool_of(entries, "width=4")
    assert pool is not None and pool.own is None and pool.covariates == ("width",)
    beliefs, said = pool.beliefs(1024.0, 32.0)
    assert "no optimum of its own" in said
    told = average(psi_grid(1024.0, 32.0), beliefs)
    assert told.low <= 1 <= told.high < 2
    assert pool_of(entries, "kind=b") is None
