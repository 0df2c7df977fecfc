"""Optimizers by name: a short text becomes an optax chain whose learning rate is an argument.

"adam", "adam(b1=0, b2=0)", "lion(weight_decay=0.1, clip=1.0)", "adamw(schedule='cosine',
warmup=0.05)"
"""

import ast
import difflib
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from surge.theory import scaling as co_scaling

# name -> chain piece that turns a gradient into the direction u; its keywords are what a spec may
# set.
DIRECTIONS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": lambda: optax.identity(),
    "momentum": lambda decay=0.9, nesterov=False: optax.trace(decay, nesterov),
    "sign_sgd": lambda: optax.scale_by_sign(),
    "signum": lambda decay=0.9: optax.chain(optax.ema(decay, debias=False), optax.scale_by_sign()),
    "adam": lambda b1=0.9, b2=0.999, eps=1e-8: optax.scale_by_adam(b1, b2, eps),
    "adamw": lambda b1=0.9, b2=0.999, eps=1e-8: optax.scale_by_adam(b1, b2, eps),
    "lion": lambda b1=0.9, b2=0.99: optax.scale_by_lion(b1, b2),
    "adafactor": lambda decay_rate=0.8: optax.chain(
        optax.scale_by_factored_rms(decay_rate=decay_rate), optax.clip_by_block_rms(1.0)
    ),
    "rmsprop": lambda decay=0.9, eps=1e-8: optax.scale_by_rms(decay, eps),
    "adagrad": lambda eps=1e-7: optax.scale_by_rss(eps=eps),
    "muon": lambda b1=0.9, b2=0.999, beta=0.95: optax.chain(
        optax.contrib.muon(1.0, beta=beta, adam_b1=b1, adam_b2=b2), optax.scale(-1.0)
    ),
}
WEIGHT_DECAY = {"adamw": 1e-4}
TAIL = 5e-3
SCHEDULES = ("constant", "cosine", "wsd")
COMMON = {
    "weight_decay": "decoupled weight decay, multiplied by the learning rate",
    "clip": "largest global norm of the gradient",
    "schedule": "constant, cosine, or wsd (warmup, stable, linear decay over the last fifth)",
    "hold": "steps at the start at learning rate 0, in which the moments settle",
    "warmup": "share of the run over which the learning rate rises linearly from 0",
    "warmup_steps": "the same in steps, at the base batch size where a scaling rule is given",
    "scaling": "co-scaling rule by which decay rates, eps, weight decay and warmup_steps follow the batch size",
    "base_batch_size": "the batch size at which the hyperparameters hold as written",
}
TEXTS = {"schedule": SCHEDULES, "scaling": co_scaling.RULES}
ABOVE_ZERO = ("clip", "base_batch_size")
BELOW_ONE = (*co_scaling.DECAYS, "warmup")


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """Splits "name(keyword=literal, ...)" into its name and keywords.

    Raises:
      ValueError: not of that form, an unknown name or keyword (the message names near matches), or
        a value out of its range.
    """
    try:
        node = ast.parse(spec, mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        keywords = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
    except (SyntaxError, TypeError, ValueError):
        raise ValueError(
            f"optimizer {spec!r} must read name or name(keyword=number, ...), like adam(b1=0)"
        ) from None
    name = call.func.id
    _known(name, DIRECTIONS, "optimizer")
    own = list(inspect.signature(DIRECTIONS[name]).parameters)
    for keyword, value in keywords.items():
        _known(keyword, [*own, *COMMON], f"keyword of {name}")
        _in_range(keyword, value)
    if "scaling" in keywords and "base_batch_size" not in keywords:
        raise ValueError(f"scaling={keywords['scaling']!r} needs base_batch_size, a number above 0")
    if {"warmup", "warmup_steps"} <= keywords.keys():
        raise ValueError(
            "warmup (a share of the run) and warmup_steps exclude each other: give one of them"
        )
    return name, keywords


def _in_range(keyword: str, value: Any) -> None:
    if keyword in TEXTS:
        return _known(str(value), TEXTS[keyword], keyword)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if keyword == "nesterov":
        right, what = isinstance(value, bool), "True or False"
    elif keyword in ABOVE_ZERO:
        right, what = number and 0 < value < math.inf, "a finite number above 0"
    elif keyword in BELOW_ONE:
        right, what = number and 0 <= value < 1, "a number of at least 0 and below 1"
    else:
        right, what = number and 0 <= value < math.inf, "a finite number of at least 0"
    if not right:
        raise ValueError(f"{keyword} must be {what}, got {value!r}")


def _known(name: str, choices: Any, kind: str) -> None:
    if name not in choices:
        near = difflib.get_close_matches(name, choices) or sorted(choices)
        raise ValueError(f"unknown {kind} {name!r}: did you mean {' or '.join(near)}?")


def _shape(schedule: str, warmup_steps: Any, total_steps: Any) -> Callable[[Any], Any]:
    """The learning rate at a step as a share of its full value: above 0 in every step, and 1 in a
    run of one."""

    def share(step: Any) -> Any:
        decaying = jnp.clip(
            (step - warmup_steps) / jnp.maximum(total_steps - warmup_steps, 1), 0, 1
        )
        decay = {
            "constant": 1.0,
            "cosine": jnp.cos(jnp.pi / 2 * decaying)
            ** 2,  # (1 + cos πx)/2, without its cancellation near 0
            "wsd": jnp.minimum((1 - step / total_steps) / 0.2, 1),
        }[schedule]
        return decay * jnp.minimum((step + 1) / jnp.maximum(warmup_steps, 1), 1)

    return share


def make_optimizer(spec: str) -> Callable[[Any, Any, Any], optax.GradientTransformation]:
    """An optax chain from its spec, with the learning rate, batch size and horizon as (traced)
    arguments.

    Args:
      spec: name, or name(keyword=literal, ...); keywords are those of the name's entry in
        DIRECTIONS and COMMON.

    Returns:
      (learning_rate, batch_size, total_steps) -> chain: clip, direction, weight decay, schedule,
      learning rate; with total_steps None there is no schedule, and the full rate throughout.

    Raises:
      ValueError: see `parse`.
    """
    name, keywords = parse(spec)
    scheduled = {"schedule", "warmup", "warmup_steps"} & keywords.keys()

    def optimizer(
        learning_rate: Any, batch_size: Any, total_steps: Any
    ) -> optax.GradientTransformation:
        own, decay, warmup_steps = _moved(name, keywords, batch_size)
        pieces = [optax.clip_by_global_norm(keywords["clip"])] if "clip" in keywords else []
        pieces.append(DIRECTIONS[name](**own))
        if "weight_decay" in keywords or name in WEIGHT_DECAY:
            pieces.append(optax.add_decayed_weights(decay))
        if total_steps is not None and scheduled:
            warmup = keywords["warmup"] * total_steps if "warmup" in keywords else warmup_steps
            pieces.append(
                optax.scale_by_schedule(
                    _shape(keywords.get("schedule", "constant"), warmup, total_steps)
                )
            )
        if total_steps is not None and "hold" in keywords:
            pieces.append(
                optax.scale_by_schedule(lambda step: jnp.where(step < keywords["hold"], 0.0, 1.0))
            )
        return optax.chain(*pieces, optax.scale_by_learning_rate(learning_rate))

    return optimizer


def settled(spec: str, steps: int) -> str:
    """The spec without its schedule, and with moments that settle over some steps before parameters
    move."""
    name, keywords = parse(spec)
    dropped = {"schedule", "warmup", "warmup_steps"}
    kept = {key: value for key, value in keywords.items() if key not in dropped} | {"hold": steps}
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in kept.items())})"


def _moved(name: str, keywords: dict[str, Any], batch_size: Any) -> tuple[dict[str, Any], Any, Any]:
    """The direction's own keywords, weight decay and warmup_steps, as co-scaling has them at a
    batch size."""
    own = {key: value for key, value in keywords.items() if key not in COMMON}
    decay, warmup = (
        keywords.get("weight_decay", WEIGHT_DECAY.get(name, 0.0)),
        keywords.get("warmup_steps", 0),
    )
    if "scaling" not in keywords:
        return own, decay, warmup
    ratio = batch_size / keywords["base_batch_size"]
    given = _defaults(name) | own | {"weight_decay": decay, "warmup_steps": warmup}
    scaled = co_scaling.co_scale(keywords["scaling"], ratio, **given)
    return scaled, scaled.pop("weight_decay"), scaled.pop("warmup_steps")


def _defaults(name: str) -> dict[str, Any]:
    return {
        key: each.default for key, each in inspect.signature(DIRECTIONS[name]).parameters.items()
    }


def bends(spec: str) -> bool:
    """Whether a direction is not linear in the average of gradients that it is taken from: the sign
    of a momentum."""
    return parse(spec)[0] in ("signum", "lion", "muon")


def gradient_weights(spec: str, batch_size: float) -> np.ndarray:
    """How a direction weighs the gradients of the last steps, newest first [k]; the weights sum to
    1.

    1/Σw² is the number of batches that the momentum averages: (1 + β)/(1 − β) for β, 71 for Lion's
    (0.9, 0.99). Steps that weigh less than TAIL of the newest are left out; what divides the
    average (Adam's second moment) is not part of it.

    Raises:
      ValueError: see `parse`.
    """
    name, keywords = parse(spec)
    own = _defaults(name) | _moved(name, keywords, batch_size)[0]
    decay = float(
        own.get({"lion": "b2", "adam": "b1", "adamw": "b1", "muon": "beta"}.get(name, "decay"), 0.0)
    )
    if name == "rmsprop":  # its decay is of the second moment
        decay = 0.0
    series = decay ** np.arange(1 + (int(np.log(TAIL) / np.log(decay)) if 0 < decay < 1 else 0))
    if name == "lion":  # reads the momentum before the newest gradient enters it
        series = np.append(1 - own["b1"], own["b1"] * (1 - decay) * series)
    elif own.get("nesterov", name == "muon"):
        series = decay * series + (np.arange(len(series)) == 0)
    return series / series.sum()
