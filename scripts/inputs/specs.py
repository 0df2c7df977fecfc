"""Specs of optimizers that are refused, with words of the sentence."""

from functools import partial

from inputs.case import Input
from surge.optimizers import make_optimizer

BAD = {
    "": "must read name",
    "adam(": "must read name",
    "adam(b1=0.9": "must read name",
    "adam)b1=0.9(": "must read name",
    "adam(0.9, 0.999)": "must read name",
    "adam(b1=0.9, b1=0.8)": "b1 twice",
    "adam(b1=0.9)(b2=0.9)": "must read name",
    "adam(b1=x)": "must read name",
    "adam(b1=1/2)": "must read name",
    "adam(b1=__import__('os').getpid())": "must read name",
    "adam(**{'b1': 0.9})": "must read name",
    "import os": "must read name",
    "adam\nsgd": "must read name",
    "adam(b1=" + "(" * 300 + ")" * 300 + ")": "must read name",
    "adma": "did you mean",
    "Adam": "did you mean",
    "torch.optim.Adam": "must read name",
    "sgdm": "did you mean momentum",
    "nesterov": "momentum(nesterov=True)",
    "adam(lr=1e-3)": "the learning rate is no part of a spec",
    "adam(betas=(0.9, 0.999))": "write b1=0.9, b2=0.999",
    "adam(beta1=0.9)": "did you mean",
    "adam(epsilon=1e-8)": "write eps",
    "adamw(wd=0.1)": "write weight_decay",
    "sgd(momentum=0.9)": "momentum(decay=0.9",
    "adam(b1=1.0)": "below 1",
    "adam(b1=-0.1)": "at least 0",
    "adam(b1='0.9')": "must be",
    "adam(b1=True)": "must be",
    "adam(b1=None)": "must be",
    "adam(b1=[0.9])": "must be",
    "adam(b1=0.9j)": "must be",
    "adam(b2=1e400)": "must be",
    "adam(eps=-1e-8)": "at least 0",
    "adam(clip=0)": "above 0",
    "adam(clip=1e999)": "above 0",
    "adam(warmup=1.5)": "below 1",
    "adam(warmup=0.1, warmup_steps=10)": "exclude each other",
    "adam(schedule='linear')": "unknown schedule",
    "adam(schedule=3)": "unknown schedule",
    "adam(scaling='sde')": "needs base_batch_size",
    "adam(scaling='sed', base_batch_size=8)": "unknown scaling",
    "adam(scaling='sde', base_batch_size=0)": "above 0",
    "adamw(decay_independent=1)": "True or False",
    "nowhere.module:function": "No module named",
    "surge.optimizers:nothing": "has no function nothing",
    "surge.optimizers:__name__": "has no function",
    ":adam": "must read name",
    "optax:": "must read name",
}


def inputs() -> list[Input]:
    """Each of them, given to `make_optimizer`."""
    return [
        Input("spec", repr(spec)[:60], partial(make_optimizer, spec), words)
        for spec, words in BAD.items()
    ]
