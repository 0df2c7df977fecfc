"""Many sweeps together: what is planted is found, and named where each alone cannot tell."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from surge.theory.comparison import compare_laws
from surge.theory.fit import optima
from surge.theory.pooled import EXPONENT, fit_pooled

TOKENS = np.array([1, 3, 10, 30, 100]) * 1e8
MEAN = float(np.exp(np.log(TOKENS).mean()))
KNEE, GROWTH, ERROR = 128.0, 0.45, 0.1
SIZES = 2.0 ** np.arange(5, 11)


def capped(size, knee):
    return np.sqrt(np.minimum(1, size / knee))


def family(seed, error=ERROR, growth=GROWTH, curve=capped):
    """Five sweeps of one shape, each with a level of its own, its knee ∝ tokens^growth."""
    rng = np.random.default_rng(seed)
    groups = []
    for tokens in TOKENS:
        knee = KNEE * (tokens / MEAN) ** growth
        lr = 1e-3 * math.exp(rng.normal()) * curve(SIZES, knee)
        noisy = lr * np.exp(error * rng.normal(size=len(SIZES)))
        groups.append(optima(SIZES, noisy, np.full(len(SIZES), error)))
    return groups


def recovered(repetitions):
    """Repetitions in which exponent and knee are inside 95%, and the laws named."""
    inside = np.zeros(2, int)
    names = []
    for seed in range(repetitions):
        pooled = fit_pooled(family(seed), {"tokens": TOKENS})
        fit = pooled.fits["capped_sqrt"]
        for index, (truth, (low, high)) in enumerate(
            ((GROWTH, fit.exponent_intervals["tokens"]), (KNEE, fit.intervals["b_knee"]))
        ):
            inside[index] += low <= truth <= high
        names.append(pooled.best)
    return inside, names


def test_exponent_and_knee_are_found_and_the_law_is_named():
    inside, names = recovered(10)
    assert (inside >= 9).all()
    assert (
        names.count("capped_sqrt") >= 5 and names.count(None) >= 10 - names.count("capped_sqrt") - 1
    )
    alone = [compare_laws(group.size, np.exp(group.y), group.error) for group in family(0)]
    assert fit_pooled(family(0), {"tokens": TOKENS}).best == "capped_sqrt"
    assert all(comparison.best is None for comparison in alone)


@pytest.mark.slow
def test_exponent_and_knee_are_inside_95_percent_in_90_of_100():
    inside, names = recovered(100)
    assert (inside >= 90).all()
    assert names.count("capped_sqrt") > 50
    # capped_power contains the truth.
    assert sum(name not in ("capped_sqrt", "capped_power", None) for name in names) <= 5


def test_the_fit_is_that_of_a_plain_optimizer():
    """The same likelihood by Nelder-Mead over knee, exponent and all levels."""
    groups = family(3)
    fit = fit_pooled(groups, {"tokens": TOKENS}).fits["mccandlish"]

    def misfit(free):
        alpha, log_noise, growth, *levels = free
        total = 0.0
        for group, tokens, level in zip(groups, TOKENS, levels, strict=True):
            noise = math.exp(log_noise) * (tokens / MEAN) ** growth
            curve = level - alpha * np.log1p(noise / group.size)
            total += (((group.y - curve) / group.error) ** 2).sum()
        return total

    start = [fit.parameters["alpha"], math.log(fit.parameters["b_noise"]), *fit.exponents.values()]
    start = np.array([*start, *fit.levels]) + 0.02
    found = minimize(
        misfit, start, method="Nelder-Mead", options={"maxiter": 20_000, "adaptive": True}
    )
    assert fit.misfit == pytest.approx(found.fun, abs=0.2)
    assert fit.exponents["tokens"] == pytest.approx(found.x[2], abs=0.05)


def test_levels_and_units_do_not_matter():
    groups = family(1)
    scaled = [group._replace(y=group.y + 3.0 * index) for index, group in enumerate(groups)]
    one = fit_pooled(groups, {"tokens": TOKENS})
    other = fit_pooled(scaled, {"tokens": TOKENS * 2048})
    assert other.best == one.best and other.score == pytest.approx(one.score, abs=1e-6)
    assert other.reference["tokens"] == pytest.approx(2048 * one.reference["tokens"])
    assert other.fits["capped_sqrt"].exponents == pytest.approx(one.fits["capped_sqrt"].exponents)


def test_a_covariate_that_explains_nothing_has_an_exponent_around_0():
    pooled = fit_pooled(family(2, growth=0.0), {"tokens": TOKENS})
    low, high = pooled.fits["capped_sqrt"].exponent_intervals["tokens"]
    assert low < 0 < high and high - low < 1


def test_two_covariates():
    """The knee moves with tokens, and not with width, which is not in their order."""
    width = np.array([256, 1024, 128, 512, 2048])
    fit = fit_pooled(family(0, error=0.05), {"tokens": TOKENS, "width": width}).fits["capped_sqrt"]
    low, high = fit.exponent_intervals["tokens"]
    assert low <= GROWTH <= high and high - low < 0.5
    low, high = fit.exponent_intervals["width"]
    assert low <= 0 <= high


def test_groups_that_were_left_out_are_foretold_by_the_law_that_is_true():
    """A surge planted: the rising laws miss groups left out, and it does not."""

    def surge(size, peak):
        root = np.sqrt(size / peak)
        return 2 / (root + 1 / root)

    pooled = fit_pooled(family(0, curve=surge), {"tokens": TOKENS})
    missed = {name: fit.held_out for name, fit in pooled.fits.items()}
    assert missed["surge"] < 1.5 and missed["capped_sqrt"] > 2 and missed["sqrt"] > 3
    assert "capped_sqrt" not in pooled.weights and "surge" in pooled.weights


def test_without_covariates_all_groups_have_one_knee():
    pooled = fit_pooled(family(0, growth=0.0))
    fit = pooled.fits["capped_sqrt"]
    assert fit.exponents == {} and fit.count == 5 + 1
    low, high = fit.intervals["b_knee"]
    assert low < KNEE < high


def test_bounds_of_a_group_count_as_bounds():
    groups = family(4)
    last = groups[4]._replace(
        bound=np.array([0, 0, 0, 0, 1, 1]), y=np.minimum(groups[4].y, groups[4].y[3])
    )
    pooled = fit_pooled([*groups[:4], last], {"tokens": TOKENS})
    low, high = pooled.fits["capped_sqrt"].exponent_intervals["tokens"]
    assert low <= GROWTH <= high


def test_a_law_without_a_batch_size_has_no_exponent():
    fit = fit_pooled(family(0), {"tokens": TOKENS}).fits["power"]
    assert fit.exponents == {} and list(fit.parameters) == ["exponent"]


@pytest.mark.parametrize(
    ("groups", "covariates", "words"),
    [
        (1, {}, "needs at least 2 groups"),
        (5, {"a": TOKENS, "b": TOKENS, "c": TOKENS}, "at most two covariates"),
        (5, {"tokens": [0, 1, 2, 3, 4]}, "covariate tokens must be a finite number above 0"),
        (5, {"tokens": [7] * 5}, "covariate tokens is the same in every group"),
    ],
)
def test_what_cannot_be_pooled_is_refused(groups, covariates, words):
    with pytest.raises(ValueError, match=words):
        fit_pooled(family(0)[:groups], covariates)


def test_intervals_stay_inside_what_was_searched():
    fit = fit_pooled(family(0), {"tokens": TOKENS}).fits["sgd"]
    low, high = fit.exponent_intervals["tokens"]
    assert EXPONENT[0] <= low <= fit.exponents["tokens"] <= high <= EXPONENT[1]
