"""Rival laws against known values, and what every one of them must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surge.theory import rivals
from surge.theory.rivals import LAWS


def test_saturating_surge_at_the_ends_of_r():
    sizes, r = jnp.asarray([1.0, 100.0]), jnp.asarray([-0.5, 0.0, 1e-6, 0.25, 1.0, 7.0])
    values = rivals.saturating_surge(sizes[:, None], 1.0, 50.0, r)
    assert jnp.isnan(values[:, 0]).all() and (values[:, 1] == 0).all() and (values[:, 2:] > 0).all()
    peaks, slopes = jax.vmap(jax.value_and_grad(rivals.saturating_peak_size, 1), (None, 0))(50.0, r)
    assert (
        jnp.isnan(peaks[:2]).all() and jnp.isfinite(peaks[2:4]).all() and jnp.isinf(peaks[4:]).all()
    )
    assert jnp.isfinite(slopes).all() and slopes[3] > 0


def test_surge_has_the_table_of_theory():
    table = {2: 0.943, 3: 0.866, 4: 0.800, 6: 0.700, 10: 0.575, 30: 0.353}
    for k, share in table.items():
        assert float(rivals.surge(k * 7.0, 1.0, 7.0)) == pytest.approx(share, abs=1e-3)
        assert float(rivals.surge(7.0 / k, 1.0, 7.0)) == pytest.approx(share, abs=1e-3)


NAMED = {"max_lr": 1e-3, "b_noise": 50.0, "alpha": 0.7, "exponent": 0.5, "b_scale": 50.0, "r": 0.1}


@pytest.mark.parametrize("name", LAWS)
def test_rival_laws_transform(name):
    law, sizes = LAWS[name], jnp.asarray([1e-3, 2.0, 200.0, 1e12])
    parameters = {each: NAMED[each] for each in law.parameters}
    direct = law.function(sizes, **parameters)
    assert jnp.isfinite(direct).all()
    mapped = jax.jit(jax.vmap(lambda size: law.function(size, **parameters)))(sizes)
    np.testing.assert_allclose(mapped, direct, rtol=1e-6)
    slopes = jax.grad(lambda values: law.function(sizes, **values).sum())(parameters)
    assert all(np.isfinite(each) for each in slopes.values())


@pytest.mark.parametrize("name", LAWS)
def test_peaks_take_parameters_in_order_or_by_name_and_have_reasons(name):
    law = LAWS[name]
    values = [NAMED[each] for each in law.parameters]
    (by_order, why), by_name = (
        law.peak(*values),
        law.peak(**dict(zip(law.parameters, values, strict=True))),
    )
    np.testing.assert_equal((by_order, why), by_name)
    assert isinstance(by_order, float) and np.isfinite(by_order) == (why == "")


def test_peaks_that_depend_on_a_parameter():
    assert LAWS["surge"].peak(1.0, 64.0) == (64.0, "")
    assert np.isnan(LAWS["power"].peak(1.0, -0.5)[0])
    for r, reason in ((2.0, "at least 1"), (-1.0, "not positive")):
        value, why = LAWS["saturating_surge"].peak(1.0, 9.0, r)
        assert not np.isfinite(value) and reason in why
