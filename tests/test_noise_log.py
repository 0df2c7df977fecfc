"""The noise scale from logged norms: right where it is known, a reason where it is not."""

import gzip
import json
import math
import struct

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surge.noise import Reading, from_norms, logged
from surge.suggest import suggest
from surge.tables import events
from surge.theory import smoothing
from surge.theory.noise import Estimate
from surge.theory.rules import Known
from surge.theory.transfer import from_rules
from surge.workdir.files import ResultError

MOVE = {"from_batch_size": 256, "from_lr": 3e-4, "to_batch_size": 2048}


def planted(rows, b_simple=100.0, small=32, count=8, drift=0.0, size=50, seed=0):
    """|G|² of batches of `small` (their mean) and of all `count` of them, |μ| drifting to 1."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=size)
    mean /= np.linalg.norm(mean)
    height = np.exp(drift * (np.arange(rows) - rows + 1) / rows)
    noise = rng.normal(size=(rows, count, size)) * math.sqrt(b_simple / size / small)
    gradients = mean * height[:, None, None] + noise
    return (gradients**2).sum(2).mean(1), (gradients.mean(1) ** 2).sum(1)


@pytest.fixture(scope="module")
def table():
    small, big = planted(400)
    return pd.DataFrame({"step": np.arange(400), "g_small_sq": small, "g_big_sq": big})


def test_exact_norms_give_the_exact_scale():
    """|μ|² = 2 and tr Σ = 30."""
    found = from_norms(np.full(9, 2 + 30 / 4), np.full(9, 2 + 30 / 64), 4, 64)
    assert found[:3] == pytest.approx((15, 15, 15))


@pytest.mark.parametrize("drift", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize(("rows", "b_simple"), [(8, 100.0), (60, 100.0), (60, 2000.0)])
def test_intervals_cover_also_where_the_signal_drifts(rows, b_simple, drift):
    found = [
        from_norms(*planted(rows, b_simple, drift=drift, seed=seed), 32, 256) for seed in range(200)
    ]
    told = [one for one in found if not one.why]
    inside = np.mean([one.low <= b_simple <= one.high for one in told])
    print(f"{rows} rows, B_simple {b_simple:g}, drift {drift:g}: {inside:.3f} of {len(told)}")
    assert inside >= 0.92


def test_smoothing_is_of_the_parts_and_never_of_their_ratio():
    """A part that is below zero in many rows tells nothing there, and all of it in the mean."""
    small, big = planted(4000, b_simple=3000.0)
    signal = (256 * big - 32 * small) / 224
    assert (signal < 0).mean() > 0.05
    found = from_norms(small, big, 32, 256)
    assert found.low < 3000 < found.high < 4 * found.low


def test_sums_are_those_of_a_loop():
    rows = np.random.default_rng(3).normal(size=(30, 3))
    found = smoothing.smoothed(rows, 5.0)
    weight = [0.5 ** ((29 - index) / 5) for index in range(30)]
    mean = [
        sum(w * row[k] for w, row in zip(weight, rows, strict=True)) / sum(weight) for k in range(3)
    ]
    np.testing.assert_allclose(found.mean, mean)
    product = sum(
        w * (row[0] - mean[0]) * (row[2] - mean[2]) for w, row in zip(weight, rows, strict=True)
    )
    assert found.scatter[0, 2] == pytest.approx(product)


@given(st.floats(1e-6, 1e6), st.integers(1, 64))
def test_neither_the_units_of_the_loss_nor_of_the_batch_matter(scale, unit):
    small, big = planted(20)
    plain = from_norms(small, big, 32, 256)
    scaled = from_norms(scale * small, scale * big, 32 * unit, 256 * unit)
    np.testing.assert_allclose(scaled[:3], unit * np.array(plain[:3]), rtol=1e-6)


def test_what_is_undefined_has_a_reason():
    rng = np.random.default_rng(0)
    assert "3 readings are too few" in from_norms([9.0] * 3, [2.0] * 3, 32, 512).why
    swapped = from_norms(1 + 0.1 * rng.random(50), 2 + 0.1 * rng.random(50), 32, 512)
    assert "the noise reads" in swapped.why and math.isnan(swapped.value)
    lost = from_norms(40 + rng.random(50), 1 + rng.random(50), 32, 512)
    assert "take more" in lost.why
    for sizes, match in (((512, 32), "0 < small < big"), ((32, math.inf), "0 < small < big")):
        with pytest.raises(ValueError, match=match):
            from_norms([1.0] * 9, [1.0] * 9, *sizes)
    with pytest.raises(ValueError, match="not below 0"):
        from_norms([-1.0] * 9, [1.0] * 9, 32, 512)
    with pytest.raises(ValueError, match="one number a row"):
        from_norms([1.0] * 9, [1.0] * 8, 32, 512)
    with pytest.raises(ValueError, match="half_life"):
        from_norms([1.0] * 9, [1.0] * 9, 32, 512, 0.0)


def test_rows_that_are_not_finite_are_left_out(table):
    broken = table.copy()
    broken.loc[[3, 100], "g_small_sq"] = [math.nan, math.inf]
    kept = broken[np.isfinite(broken.g_small_sq)]
    found = from_norms(broken.g_small_sq, broken.g_big_sq, 32, 256, 50.0)
    assert found == from_norms(kept.g_small_sq, kept.g_big_sq, 32, 256, 50.0)


def varint(value):
    """As protocol buffers write a whole number, by base 128 digits."""
    digits = [value & 127]
    while value := value >> 7:
        digits.append(value & 127)
    return bytes([*(digit | 128 for digit in digits[:-1]), digits[-1]])


def field(number, content):
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def scalar(step, tag, value, as_tensor=False):
    """An Event with one summary value, as TensorBoard's writers of either kind make it."""
    number = varint(2 << 3 | 5) + struct.pack("<f", value)
    if as_tensor:
        number = field(8, field(1, 1) + field(2, b"") + field(4, struct.pack("<f", value)))
    summary = field(1, field(1, tag.encode()) + number)
    return varint(1 << 3 | 1) + struct.pack("<d", 1e9 + step) + field(2, step) + field(5, summary)


def records(messages):
    return b"".join(
        struct.pack("<QI", len(message), 0) + message + b"\0" * 4 for message in messages
    )


def write(path, table, kind):
    """The table as a trainer keeps it."""
    rows = table.to_dict("records")
    if kind == "csv":
        table.to_csv(path / "log.csv", index=False)
        return path / "log.csv"
    if kind == "jsonl.gz":
        text = "\n".join(json.dumps(row) for row in rows)
        (path / "log.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        return path / "log.jsonl.gz"
    version = varint(1 << 3 | 1) + struct.pack("<d", 1e9) + field(3, b"brain.Event:2")
    messages = [
        scalar(int(row["step"]), tag, row[tag], kind == "tensors")
        for row in rows
        for tag in ("g_small_sq", "g_big_sq")
    ]
    folder = path / "run"
    folder.mkdir()
    # The last record is still being written.
    data = records([version, *messages]) + struct.pack("<QI", 50, 0) + b"half"
    (folder / "events.out.tfevents.1.host").write_bytes(data)
    return folder


@pytest.mark.parametrize("kind", ["csv", "jsonl.gz", "events", "tensors"])
def test_a_log_is_read_however_it_was_kept(kind, table, tmp_path):
    path = write(tmp_path, table, kind)
    found = logged(path, 32, 256)
    same = from_norms(table.g_small_sq, table.g_big_sq, 32, 256)
    np.testing.assert_allclose(found.b_simple[:3], same[:3], rtol=1e-5)
    assert found.b_simple.low < 100 < found.b_simple.high
    assert found.said == f"400 of 400 rows of {path.name} (g_small_sq and g_big_sq)"


def test_each_mistake_in_a_log_is_one_sentence(table, tmp_path):
    path = tmp_path / "log.csv"
    table.rename(columns={"g_small_sq": "local", "g_big_sq": "global"}).to_csv(path, index=False)
    with pytest.raises(ResultError, match="--small_column takes one of step, local, global"):
        logged(path, 32, 256)
    with pytest.raises(ResultError, match="no column 'gone'"):
        logged(path, 32, 256, "gone", "global")
    with pytest.raises(ValueError, match="--small=32 --big=512"):
        logged(path)
    assert logged(path, 32, 256, "local", "global").b_simple.n > 1000
    (tmp_path / "events.out.tfevents.1").write_bytes(b"\x09\0\0\0\0\0\0\0abcdnonsense and more")
    with pytest.raises(ResultError, match="not an event file"):
        events.read(tmp_path / "events.out.tfevents.1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultError, match="no event file"):
        logged(tmp_path / "empty", 32, 256)


def test_a_log_enters_the_rules_as_a_checkpoint_does(table, tmp_path):
    path = write(tmp_path, table, "csv")
    alone = suggest(**MOVE)
    told = suggest(**MOVE, noise=path, small=32, big=256)
    scale = from_norms(table.g_small_sq, table.g_big_sq, 32, 256)
    assert told == suggest(**MOVE, noise=scale)._replace(rests_on=told.rests_on)
    assert told.lr < alone.lr  # both batch sizes are beyond a noise scale of 100
    assert "400 of 400 rows of log.csv" in told.rests_on[0] and "B_simple" in told.rests_on[0]
    assert (told.overhead.low, told.overhead.value) == pytest.approx(
        (scale.low / 5, scale.value / 5)
    )
    reading = Reading({"b_simple": scale}, {}, 400, 0)
    assert suggest(**MOVE, noise=reading).lr == told.lr
    with pytest.raises(ValueError, match="the reading has sign, and not b_simple"):
        suggest(**MOVE, noise=Reading({"sign": scale}, {}, 400, 0))


@pytest.mark.parametrize("high", [2000.0, math.inf])
def test_a_wider_interval_of_the_scale_widens_the_answer(high):
    def width(low, high):
        said = suggest(**MOVE, noise=Estimate(700.0, low, high, 100, 700.0, 1.0))
        return said.high / said.low

    assert width(600.0, 800.0) < width(100.0, high)
    beliefs = from_rules(2048, 256, Known("adam", 700.0, 100.0, high))
    assert all(np.isfinite(belief.mass).all() for belief in beliefs)


def test_an_undefined_scale_is_a_warning_and_no_evidence():
    nothing = from_norms([1.0] * 3, [1.0] * 3, 32, 512)
    told = suggest(**MOVE, noise=nothing)
    assert told.lr == suggest(**MOVE).lr
    assert any("too few" in sentence for sentence in told.warnings)
