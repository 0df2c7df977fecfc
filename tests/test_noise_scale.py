"""The noise scale of planted steps is recovered."""

import numpy as np
import pytest

from surge.theory.noise_scale import fit_noise_scale


def test_log_method_is_unbiased_where_the_papers_reads_15_to_20_percent_low():
    rng = np.random.default_rng(4)
    size = np.geomspace(2, 256, 8)
    read = {"log": [], "paper": []}
    for _ in range(400):
        steps = 100 * (1 + 40 / size) * np.exp(0.2 * rng.normal(size=len(size)))
        for method, values in read.items():
            values.append(fit_noise_scale(size, steps, method).b_noise)
    log, paper = (np.nanmedian(read[method]) for method in ("log", "paper"))
    print(f"planted 40: log {log:.1f}, paper {paper:.1f}")
    assert log == pytest.approx(40, rel=0.05)
    assert 0.8 * 40 <= paper <= 0.85 * 40


def test_noise_scale_without_noise_is_exact():
    size = np.geomspace(4, 4096, 11)
    for method in ("log", "paper"):
        fit = fit_noise_scale(size, 100 * (1 + 40 / size), method)
        assert (fit.b_noise, fit.s_min, fit.e_min) == pytest.approx((40, 100, 4000), rel=0.01)
    assert fit_noise_scale(size, 1e4 / size).why.startswith("S falls as 1/B")
    assert "fewer than three" in fit_noise_scale(size[:2], size[:2]).why
    with pytest.raises(ValueError, match="log or paper"):
        fit_noise_scale(size, size, "guess")
