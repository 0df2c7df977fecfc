"""A config is checked before anything is made: types first, then ranges, sizes and names."""

import dataclasses
import json
import time
import tracemalloc

import ml_collections
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs.configs import BAD, SPEC, changed, plain

from surge.config import ConfigError, Experiment, check, default
from surge.theory.objective import FallAfter, FinalLoss, StepsTo

MEBIBYTE = 2**20


@pytest.mark.parametrize(("field", "value", "words"), BAD, ids=range(len(BAD)))
def test_a_bad_value_is_one_sentence_and_nothing_is_made(field, value, words):
    config = changed(**{field: value})
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(ConfigError) as caught:
            check(config)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 1
    assert peak < MEBIBYTE
    sentence = str(caught.value)
    assert words in sentence
    assert field.split("__")[0] in sentence
    assert len(sentence.splitlines()) == 1 and len(sentence) < 500


def test_enough_bad_values_are_tried():
    assert len(BAD) >= 100
    declared = {field.name for field in dataclasses.fields(Experiment)}
    assert declared <= {field.split("__")[0] for field, _, _ in BAD}


def test_a_grid_of_many_runs_is_asked_for():
    assert check(changed(seeds=5_000, max_cells=10**6)).seeds == 5_000
    with pytest.raises(ConfigError, match=r"has 325,000 runs, 13 learning rates .* x 5 .* x 5,000"):
        check(changed(seeds=5_000))


def test_numbers_of_numpy_become_plain_ones():
    config = changed(
        seeds=np.int64(3),
        seed=np.uint32(7),
        stop_loss=np.float32(0.5),
        batch_sizes=np.array([4, 8]),
        task_args={"widths": (np.int32(4),), "scale": np.float32(2)},
        measure__losses=(np.float64(2.0), np.int16(1)),
        optimizers__adam__learning_rates=(np.float32(0.25), 1),
    )
    experiment = check(config)
    assert experiment.batch_sizes == (4, 8)
    assert experiment.measure.losses == (2.0, 1.0)
    assert experiment.optimizers["adam"].learning_rates == (0.25, 1.0)
    for value in (experiment.seeds, experiment.seed, *experiment.batch_sizes):
        assert type(value) is int
    assert json.loads(json.dumps(experiment.plain()))["task_args"] == {"widths": [4], "scale": 2.0}


def test_a_whole_number_may_stand_for_another_one_and_be_overridden():
    config = plain()
    config.stop_loss = 1
    assert type(config.stop_loss) is float  # or a flag would read 0.5 as no whole number


def test_a_misspelt_field_is_an_error_where_it_is_written():
    config = default()
    with pytest.raises(AttributeError, match="no field sedes: did you mean seeds"):
        config.sedes = 3
    with pytest.raises(AttributeError, match="did you mean directions"):
        config.measure.direction = 8


def test_a_config_without_some_field_has_its_default():
    bare = {
        "task": "module:task",
        "optimizers": {"adam": {"spec": SPEC, "learning_rates": (1e-3, 1e-1)}},
        "fit": {"objective": "loss"},
    }
    experiment = check(ml_collections.ConfigDict(bare))
    assert experiment == check(bare)
    assert experiment.plain() == default().to_dict() | experiment.plain()
    assert experiment.lacking()["optimizers"] == {"adam": {"batches": "constant"}}
    assert experiment.evals == default().evals
    assert experiment.measure.horizons == default().measure.horizons


def test_an_experiment_survives_json():
    experiment = check(plain())
    assert check(json.loads(json.dumps(experiment.plain()))) == experiment


def test_an_experiment_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        check(plain()).seed = 3  # pyrefly: ignore


def test_objectives():
    assert check(changed(fit__objective="loss")).objectives == (FinalLoss(),)
    steps = changed(fit__target_losses=(2.0, 1.0))
    assert check(steps).objectives == (StepsTo(2.0), StepsTo(1.0))
    falls = changed(fit__objective="fall", fit__horizons=(10, 100))
    assert check(falls).objectives == (FallAfter(1.0, 10), FallAfter(1.0, 100))
    with pytest.raises(ConfigError, match=r"must be below config\.max_steps"):
        check(changed(fit__objective="fall", fit__horizons=(10_000,)))


NAMES = st.text(st.characters(exclude_characters="."), max_size=3)  # ConfigDict has no dots
anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.complex_numbers(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(NAMES, inner, max_size=2),
    ),
    max_leaves=4,
)
PATHS = [
    *(field.name for field in dataclasses.fields(Experiment)),
    *(f"measure__{name}" for name in default().measure),
    *(f"fit__{name}" for name in default().fit),
    "optimizers__adam__spec",
    "optimizers__adam__learning_rates",
]


@given(st.sampled_from(PATHS), anything)
def test_any_value_is_taken_or_refused(path, value):
    try:
        experiment = check(changed(**{path: value}))
    except ConfigError:
        return
    json.dumps(experiment.plain())
