"""What a spec may say, and what a wrong one is told."""

import sys
import types
from typing import Any

import numpy as np
import optax
import pytest

from surge.optimizers import Rule, make_optimizer
from surge.optimizers.spec import parse, text_of


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("adma", "did you mean adam"),
        ("adam(beta1=0.9)", "did you mean b1"),
        ("adam(0.9)", "must read"),
        ("adam(b1=", "must read"),
        ("__import__('os')", "must read"),
        ("adam({[]: 1})", "must read"),
        ("adam(b1={[]: 1})", "must read"),
        (
            "sgd(schedule='linear')",
            "unknown schedule 'linear': did you mean constant or cosine or wsd",
        ),
        ("sgd(schedule=3)", "unknown schedule '3'"),
        ("sgd(warmup=2)", "^warmup must be a number of at least 0 and below 1, got 2$"),
        ("sgd(warmup='x')", "^warmup must be a number of at least 0 and below 1, got 'x'$"),
        ("sgd(warmup=0.1, warmup_steps=3)", "exclude each other"),
        ("adam(b1='x')", "^b1 must be a number of at least 0 and below 1, got 'x'$"),
        ("adam(b1=True)", "b1 must be a number"),
        ("adam(b1=2.0)", "b1 must be a number of at least 0 and below 1, got 2.0"),
        ("adam(b2=1)", "b2 must be"),
        ("momentum(decay=1.0)", "decay must be"),
        ("momentum(nesterov='yes')", "nesterov must be True or False"),
        ("muon(beta=-0.1)", "beta must be"),
        ("adam(eps=-1e-8)", "^eps must be a finite number of at least 0, got -1e-08$"),
        ("adam(weight_decay=1e999)", "weight_decay must be a finite number of at least 0, got inf"),
        ("adam(weight_decay=None)", "weight_decay must be"),
        ("adam(clip=-1)", "^clip must be a finite number above 0, got -1$"),
        ("adam(clip=0)", "clip must be a finite number above 0"),
        ("sgd(hold=-1)", "hold must be"),
        ("adafactor(decay_rate='x')", "decay_rate must be"),
        ("adam(scaling='sde')", "base_batch_size"),
        (
            "adam(scaling='sde', base_batch_size=0)",
            "base_batch_size must be a finite number above 0",
        ),
        ("adam(scaling='sd', base_batch_size=8)", "did you mean sde"),
        ("adam(scaling=1, base_batch_size=8)", "unknown scaling '1'"),
        ("lamb", "for one of your own give module:function"),
        ("nesterov", r"did you mean momentum\(nesterov=True\)"),
        ("sgd(momentum=0.9)", r"write momentum\(decay=0.9"),
        ("adam(betas=(0.9, 0.99))", "write b1=0.9, b2=0.999"),
        ("adam(lr=0.1)", "the learning rate is no part of a spec"),
        ("adam(decay_mask=1, weight_decay=0.1)", "decay_mask must be True or False"),
        ("adam(decay_mask=True)", "decay_mask says how weights decay: give weight_decay"),
        (
            "adam(weight_decay=0.1, decay_independent=True, scaling='sde', base_batch_size=8)",
            "leave out decay_independent",
        ),
    ],
)
def test_a_wrong_spec_says_what_is_right(spec, words):
    with pytest.raises(ValueError, match=words):
        make_optimizer(spec)


def test_parse():
    spec = parse("adam(b1=0, eps=1e-6, clip=1.0)")
    assert (
        spec.name == "adam" and spec.own == {"b1": 0, "eps": 1e-6} and spec.common == {"clip": 1.0}
    )
    assert parse(text_of(spec.name, spec.own | spec.common)) == spec


@pytest.fixture
def mine(monkeypatch):
    """A module of a user's own."""
    module: Any = types.ModuleType("mine")
    module.halved = lambda factor=0.5: optax.scale(factor)
    module.momentum = lambda decay=0.9: optax.trace(decay)
    module.whole = lambda decay=0.9, **others: make_optimizer("momentum").entry(decay)
    module.half = lambda: Rule(optax.trace(0.9), weights=lambda: np.ones(1))
    module.broken = lambda: optax.scale(1 / 0)
    module.number = lambda: 3
    module.text = "text"
    monkeypatch.setitem(sys.modules, "mine", module)


def test_an_optimizer_of_ones_own_is_named_as_a_task_is(mine):
    optimizer = make_optimizer("mine:halved(factor=0.25, weight_decay=0.1)")
    updates, _ = optimizer(2.0, 8, 10).update(4.0, optimizer(2.0, 8, 10).init(1.0), 1.0)
    assert updates == pytest.approx(-2.0 * (0.25 * 4.0 + 0.1))
    assert optimizer.weights(8).tolist() == [1.0] and not optimizer.sign_like
    assert optimizer.held(3).spec == "mine:halved(factor=0.25, weight_decay=0.1, hold=3)"
    assert len(make_optimizer("mine:whole(decay=0.5, more=1)").weights(8)) == 8


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mine:momentum", "^optimizer mine:momentum has a state: return a surge.optimizers.Rule"),
        ("mine:half", "mine:half has a state"),
        ("mine:number", "must return a surge.optimizers.Rule .* not int$"),
        ("mine:text", "module mine has no function text$"),
        ("mine:nothing()", "module mine has no function nothing$"),
        ("nowhere:adam", "No module named 'nowhere'; the module must be importable from here$"),
        ("mine:halved(fctor=2)", "unknown keyword of mine:halved 'fctor': did you mean factor"),
        ("mine:halved(0.5)", "must read"),
        (":halved", "must read"),
        ("mine:", "must read"),
    ],
)
def test_a_wrong_optimizer_of_ones_own_says_what_is_right(mine, spec, words):
    with pytest.raises(ValueError, match=words):
        make_optimizer(spec)


def test_a_bug_in_a_function_of_ones_own_keeps_its_traceback(mine):
    with pytest.raises(ZeroDivisionError):
        make_optimizer("mine:broken")
