"""Rows of the table of bad inputs, a few of each quick kind, and the judge of rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from inputs import configs, models, specs, tables
from inputs.case import BYTES, LETTERS, SECONDS, Input, Outcome, fault, sentence

ROOT = Path(__file__).parent.parent
# Inputs are met in forks, which must come before a device is touched: in a process of its own.
DRIVER = """
import json, sys
sys.path.insert(0, "scripts")
from inputs import commands, configs, specs, tables
from inputs.case import fault, meet

chosen = [
    *configs.inputs()[:2],
    *specs.inputs()[:2],
    *commands.inputs()[:1],
    *(one for one in tables.inputs() if one.name in ("two values of N are mixed", "latin-1",
      "decimal commas", "fit_table --sequence_length=0", "a loss that is the same everywhere")),
]
for one in chosen:
    outcome = meet(one)
    print(json.dumps([one.name, outcome.code, one.refused, fault(one, outcome), outcome.said]))
"""
REFUSAL = Input("spec", "name", lambda: None, "did you mean")


def test_ten_rows_are_right():
    command = [sys.executable, "-W", "ignore", "-c", DRIVER]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 10
    for name, code, refused, wrong, said in rows:
        assert not wrong, (name, wrong, said)
        assert code == (2 if refused else 0)


@pytest.mark.parametrize(
    ("outcome", "wrong"),
    [
        (Outcome(2, "did you mean adam?", 0.1, 1), ""),
        (Outcome(0, "did you mean adam?", 0.1, 1), "accepted in silence"),
        (Outcome(1, "Traceback (most recent call last)\nKeyError", 0.1, 1), "a traceback"),
        (Outcome(2, "wrong", 0.1, 1), "does not say 'did you mean'"),
        (Outcome(139, "", 0.1, 1), "exit code 139"),
        (Outcome(2, "did you mean adam?", SECONDS + 1, 1), "more than 30 s"),
        (Outcome(2, "did you mean adam?", 0.1, BYTES + 1), "more than 2 GiB"),
        (Outcome(2, "did you mean" + "a" * LETTERS, 0.1, 1), "a sentence of 1012 letters"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(outcome, wrong):
    assert fault(REFUSAL, outcome) == wrong


def test_an_answer_that_must_come_and_does_not():
    wanted = REFUSAL._replace(refused=False)
    assert fault(wanted, Outcome(2, "did you mean adam?", 0.1, 1)) == "refused"
    assert fault(wanted, Outcome(0, "did you mean adam?", 100.0, 2 * BYTES)) == ""


def test_the_sentence_of_a_row_is_the_programs_own():
    assert sentence("warning: old\nsurge: no such file\n") == "surge: no such file"
    assert sentence("Traceback\n  File x\nKeyError: 3") == "KeyError: 3"


def test_inputs_are_many_and_none_stands_twice():
    all_of_them = [*configs.inputs(), *specs.inputs(), *tables.inputs(), *models.inputs()]
    assert len(all_of_them) >= 150
    names = [(one.kind, one.name) for one in all_of_them]
    assert len({*names}) >= len(names) - 15  # values that are written alike, as 1 and True
