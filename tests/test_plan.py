"""Plans: the hyperbola, what budgets ask of it, and ramps that follow the noise scale."""

import itertools
import math
import xml.etree.ElementTree as ElementTree
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surge import plan as plans
from surge.evidence import Evidence
from surge.plan import Phase, plan
from surge.theory import planning
from surge.theory.noise import Estimate
from surge.theory.rules import Known

MOVE: dict[str, Any] = {
    "from_batch_size": 64,
    "from_lr": 1e-3,
    "run_steps": 1_000,
    "optimizer": "adam",
}
NOISE = Estimate(500.0, 400.0, 625.0, 100, 500.0, 1.0)
sizes = st.floats(1, 1e5)


@given(sizes, sizes, st.floats(1, 1e6), st.floats(1, 1e5))
def test_steps_and_examples_lie_on_the_hyperbola_through_the_users_run(size, base, steps, noise):
    least = steps / (1 + noise / base)
    said = planning.trade(size, base, steps, noise)
    assert (said.steps / least - 1) * (said.examples / (least * noise) - 1) == pytest.approx(1)
    assert planning.trade(base, base, steps, noise).steps == pytest.approx(steps)


@given(sizes, st.floats(1, 1e5), st.floats(0.01, 100))
def test_a_budget_is_met_exactly_by_its_batch_size(base, noise, share):
    own = planning.trade(base, base, 1000.0, noise)
    for name, size in (
        ("steps", planning.size_for_time(share, base, noise)),
        ("examples", planning.size_for_examples(share, base, noise)),
    ):
        if math.isnan(size):  # below the least that any batch size takes
            end = 1e-9 if name == "examples" else 1e12
            spent = getattr(planning.trade(end, base, 1000.0, noise), name)
            assert spent >= share * getattr(own, name) * (1 - 1e-6)
        else:
            spent = getattr(planning.trade(size, base, 1000.0, noise), name)
            assert spent == pytest.approx(share * getattr(own, name), rel=1e-5)


def test_a_ramp_follows_the_noise_scale_and_spends_the_examples():
    course = [(0.0, 10.0), (1_000.0, 100.0), (100_000.0, 1_000.0)]
    stretches = planning.ramp(course, 64.0, 100.0, 1e5)
    assert sum(one.examples for one in stretches) == pytest.approx(1e5)
    assert [one.batch_size for one in stretches] == [32, 64, 128, 256, 512]  # 50 at 125
    for before, after in itertools.pairwise(stretches):
        assert after.start == pytest.approx(before.start + before.examples)
    assert [one.batch_size for one in planning.ramp([(0, 5.0), (9, 5.0)], 64, 5.0, 1e5)] == [64]


def test_a_plan_from_a_logged_noise_scale():
    said = plan(**MOVE, noise=NOISE, time_budget=0.5, example_budget=1.5)
    assert said.own[1:] == pytest.approx((1_000, 64_000))
    assert said.for_time is not None and said.for_examples is not None
    assert said.for_time.low < said.for_time.value < said.for_time.high
    told = planning.trade(said.for_time.value, 64, 1_000, 500)
    assert told.steps == pytest.approx(500)
    text = "\n".join(plans.lines(said))
    assert "your run" in text and "within the budget of time" in text
    assert "a ramp needs the noise scale at several checkpoints" in text
    with pytest.raises(ValueError, match="a ramp needs"):
        said.schedule(0)
    short = plan(**MOVE, noise=NOISE, time_budget=0.01).for_time
    assert short is not None and "no batch size does" in short.why
    root = ElementTree.fromstring(plans.figure(said))
    assert root.tag.endswith("svg")


def test_the_schedule_is_the_table_at_every_step(monkeypatch):
    known = Known("adam", 500.0, 450.0, 560.0)
    course = ((0.0, 60.0), (6_000.0, 500.0), (60_000.0, 2_000.0))
    evidence = Evidence(None, known, "a checkpoint", [], course=course)
    monkeypatch.setattr(plans, "gathered", lambda *_, **__: evidence)
    said = plan(**MOVE)
    assert [phase.batch_size for phase in said.phases] == sorted(
        {phase.batch_size for phase in said.phases}
    )
    assert said.phases[0].batch_size < 64 < said.phases[-1].batch_size
    total = sum(phase.steps * phase.batch_size for phase in said.phases)
    assert total == pytest.approx(64_000, rel=0.02)
    schedule = jax.jit(said.schedule)
    for phase in said.phases:
        assert isinstance(phase, Phase) and phase.lr.low <= phase.lr.value <= phase.lr.high
        for step in (phase.start, phase.start + phase.steps - 1):
            assert float(schedule(step)) == pytest.approx(phase.lr.value)
            assert int(said.batch_size(step)) == phase.batch_size
        half_life = 0.999 ** (phase.batch_size / 64)
        assert float(said.b2(phase.start)) == pytest.approx(half_life)
    text = plans.lines(said)
    title = next(index for index, line in enumerate(text) if line.startswith("ramp"))
    assert len(text) - title == 1 + len(said.phases)
    at_base = next(phase for phase in said.phases if phase.batch_size == 64)
    assert at_base.lr.value == pytest.approx(1e-3, rel=0.01)
    assert np.all(np.diff([phase.start for phase in said.phases]) > 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run_steps": None}, "give run_steps"),
        ({"noise": None}, "a plan needs a noise scale"),
        ({"time_budget": -1.0}, "a budget must be a share above 0"),
        ({"from_lr": None}, "give from_lr"),
    ],
)
def test_what_a_plan_lacks_is_one_sentence(changes, words):
    with pytest.raises(ValueError, match=words):
        plan(**(MOVE | {"noise": NOISE} | changes))
