"""Noise scales: their parts are unbiased, and their intervals cover the truth."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from surge.theory import noise
from surge.theory.noise_scale import fit_noise_scale

SIZE, TRUTH = 2000, 469.0  # parameters; tr Σ/|μ|²


def gradients(n, rng):
    """Gaussian gradients with |μ|² = 1 and tr Σ = TRUTH, as their |g|², ⟨g, ḡ⟩ and |ḡ|²."""
    mu = np.full(SIZE, 1 / np.sqrt(SIZE))
    rows = mu + rng.normal(size=(n, SIZE)) * np.sqrt(TRUTH / SIZE)
    mean = rows.mean(0)
    return (rows**2).sum(1), rows @ mean, float(mean @ mean)


@pytest.mark.parametrize("n", [256, pytest.param(4096, marks=pytest.mark.slow)])
def test_b_simple_covers_the_truth_and_the_plug_in_does_not(n):
    rng, covered, plugged = np.random.default_rng(0), [], []
    for _ in range(200):
        norms, alignments, square = gradients(n, rng)
        estimate = noise.b_simple(norms, alignments, square)
        covered.append(estimate.low <= TRUTH <= estimate.high)
        plugged.append((norms.mean() - square) / square)
    assert 0.9 <= np.mean(covered) <= 0.99
    assert np.median(plugged) < 0.95 * TRUTH


def test_the_jackknife_is_exact():
    rng = np.random.default_rng(1)
    rows = rng.normal(3.0, 1.0, (9, 5))
    mean = rows.mean(0)

    def parts(rows):
        n = len(rows)
        signal = ((rows.sum(0) ** 2).sum() - (rows**2).sum()) / (n * (n - 1))
        return np.array([(rows**2).sum(1).mean() - signal, signal])

    estimate = noise.b_simple((rows**2).sum(1), rows @ mean, mean @ mean)
    assert [estimate.numerator, estimate.denominator] == pytest.approx(parts(rows))
    left_out = np.stack([parts(np.delete(rows, i, 0)) for i in range(9)], 1)
    numerator, denominator = parts(rows)
    by_hand = noise.ratio(numerator, denominator, np.cov(left_out, ddof=0) * 8, 9)
    assert (estimate.low, estimate.high) == pytest.approx((by_hand.low, by_hand.high))


def test_numerator_and_denominator_are_unbiased():
    rng = np.random.default_rng(2)
    found = [noise.b_simple(*gradients(32, rng)) for _ in range(300)]
    for name, truth in (("numerator", TRUTH), ("denominator", 1.0)):
        values = np.array([getattr(each, name) for each in found])
        assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(len(values))


def test_undefined_has_a_reason():
    no_signal = noise.b_simple(np.ones(4), np.zeros(4), 0.0)
    assert np.isnan(no_signal.value) and "take more examples" in no_signal.why
    broken = noise.b_simple(np.array([1, np.nan, 1, 1]), np.ones(4), 1.0)
    assert np.isnan(broken.value) and "example 1 " in broken.why
    assert "too few" in noise.b_simple(np.ones(2), np.ones(2), 1.0).why


def test_an_insignificant_denominator_leaves_the_interval_open():
    estimate = noise.ratio(10.0, 1.0, np.diag([1.0, 1.0]), 100)
    assert np.isinf(estimate.high) and 0 < estimate.low < 10


def test_two_batch_estimator():
    rng = np.random.default_rng(3)
    mu = np.full(SIZE, 1 / np.sqrt(SIZE))

    def norms(size, count):
        return ((mu + rng.normal(size=(count, SIZE)) * np.sqrt(TRUTH / SIZE / size)) ** 2).sum(1)

    covered = []
    for _ in range(100):
        estimate = noise.two_batch(norms(8, 40), norms(512, 40), 8, 512)
        covered.append(estimate.low <= TRUTH <= estimate.high)
    assert 0.88 <= np.mean(covered) <= 1
    with pytest.raises(ValueError, match="big_size > small_size"):
        noise.two_batch(np.ones(3), np.ones(3), 8, 8)


def test_sign_noise_scale_covers_the_truth_where_signal_is_clear():
    rng = np.random.default_rng(4)
    mu, sigma, n = rng.normal(size=500), rng.uniform(1, 3, 500), 20_000
    truth = (sigma.sum() / np.abs(mu).sum()) ** 2
    covered = []
    for _ in range(100):
        one, other = (mu + rng.normal(size=500) * sigma / np.sqrt(n / 2) for _ in range(2))
        estimate = noise.sign_noise_scale(one, other, sigma, n)
        covered.append(estimate.low <= truth <= estimate.high)
    assert np.mean(covered) >= 0.85
    opposed = noise.sign_noise_scale(np.ones(3), -np.ones(3), np.ones(3), 10)
    assert np.isnan(opposed.value) and opposed.why


def test_validity_quantiles_leave_out_dead_parameters():
    mean, std = np.array([1.0, 0.0, 2.0]), np.array([1.0, 0.0, 2.0])
    found = noise.validity_quantiles(mean, std, 10**8, np.array([0.0, 1.0]))
    assert found == pytest.approx(np.full((2, 3), np.pi / 2), rel=1e-3)
    assert np.isnan(noise.validity_quantiles(mean, 0 * std, 9, np.array([0.5]))).all()


@pytest.mark.parametrize("n", [64, 4_096])
def test_validity_intervals_hold_the_true_quantiles_where_the_plug_in_hits_its_ceiling(n):
    rng = np.random.default_rng(0)
    mean, std, quantiles = (
        rng.normal(size=2_000) / 30,
        np.exp(rng.normal(size=2_000) / 2),
        np.array([0.05, 0.5, 0.9]),
    )
    truth = np.quantile(np.pi * std**2 / (2 * mean**2), quantiles)
    for _ in range(20):
        measured = mean + std * rng.normal(size=2_000) / n**0.5
        value, low, high = noise.validity_quantiles(measured, std, n, quantiles).T
        assert (low < truth).all() and (truth < high).all()
    if n == 64:
        assert value[1] < truth[1] / 3 and high[1] == np.inf


def test_histogram_shares_sum_to_one_and_match_the_quantiles():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=5000), np.exp(rng.normal(size=5000))
    edges = np.logspace(-2, 4, 31)
    shares = noise.validity_histogram(mean, std, edges)
    assert shares.sum() == pytest.approx(1)
    median = noise.validity_quantiles(mean, std, 100, np.array([0.5]))[0, 0]
    assert shares[edges[1:] <= median].sum() <= 0.5 <= shares[edges[:-1] <= median].sum()
    assert np.isnan(noise.validity_histogram(mean, 0 * std, edges)).all()


# Degenerate gradients


def identical(rows):
    """No noise at all."""
    return np.repeat(rows[:1], len(rows), 0)


def nearly_identical(rows):
    return identical(rows) * (1 + np.float32(1e-7) * np.sign(rows))


def opposite(rows):
    """No signal at all."""
    return np.concatenate([rows, -rows])


def one_outlier(rows):
    return np.concatenate([0 * rows, rows[:1]])


def one_parameter(rows):
    return rows[:, :1]


KINDS = (np.copy, identical, nearly_identical, opposite, one_outlier, one_parameter, np.zeros_like)


def is_ordered(value, low, high, why=""):
    """An interval around the value, or a reason for having none."""
    if math.isnan(value):
        return bool(why)
    return 0 <= low <= value <= high


@hypothesis.given(
    st.sampled_from(KINDS),
    st.integers(3, 9),
    st.integers(1, 4),
    st.sampled_from([1e-18, 1e-3, 1.0, 1e12]),
    st.integers(0, 2**16),
)
@hypothesis.settings(deadline=None, max_examples=300, derandomize=True)
def test_every_noise_scale_lies_in_its_interval(kind, n, size, scale, seed):
    rng = np.random.default_rng(seed)
    rows = kind((scale * rng.normal(1, 2, (n, size))).astype(np.float32))
    n = len(rows)
    mean = rows.mean(0)
    squares = (rows**2).sum(1)
    whole = noise.b_simple(squares, rows @ mean, float((mean.astype(float) ** 2).sum()))
    assert is_ordered(*whole[:3], whole.why), whole
    if kind is identical and scale > 1e-9:
        assert whole.low == 0 and whole.high < 1e-3

    std = rows.std(0, ddof=1).astype(float)
    sign = noise.sign_noise_scale(rows[0::2].mean(0), rows[1::2].mean(0), std, n)
    assert is_ordered(*sign[:3], sign.why), sign
    batches = noise.two_batch(squares, squares[::-1] / 4, 1, 8)
    assert is_ordered(*batches[:3], batches.why), batches

    ends = noise.validity_quantiles(mean, std, n, np.array([0.0, 0.5, 1.0]))
    assert np.isnan(ends).all() or (ends[:, 1] <= ends[:, 0]).all()
    assert np.isnan(ends).all() or (ends[:, 0] <= ends[:, 2]).all()
    steps = 1 + np.floor(np.abs(rows[:, 0]) / scale)
    fit = fit_noise_scale(2.0 ** np.arange(n), steps)
    assert is_ordered(fit.b_noise, fit.low, fit.high, fit.why), fit
