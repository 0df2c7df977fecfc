"""What a short text says of an optimizer.

"adam", "adam(b1=0, b2=0)", "lion(weight_decay=0.1, clip=1.0)", "adamw(schedule='cosine',
warmup=0.05)", or for one of your own "module:function(keyword=value)"
"""

import ast
import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from surge.optimizers.rule import ENTRIES
from surge.theory import scaling

SCHEDULES = ("constant", "cosine", "wsd")
COMMON = {
    "weight_decay": "decoupled weight decay, multiplied by the learning rate",
    "decay_independent": "True: weight decay is not multiplied by the learning rate",
    "decay_mask": "True: only arrays of two or more axes decay, no biases and no norms",
    "clip": "largest global norm of the gradient",
    "schedule": "constant, cosine, or wsd (warmup, stable, linear decay over the last fifth)",
    "hold": "steps at the start at learning rate 0, in which the moments settle",
    "warmup": "share of the run over which the learning rate rises linearly from 0",
    "warmup_steps": "the same in steps, at the base batch size where a scaling rule is given",
    "scaling": "rule by which decay rates, eps, weight decay and warmup_steps follow B",
    "base_batch_size": "the batch size at which the hyperparameters hold as written",
}
TEXTS = {"schedule": SCHEDULES, "scaling": scaling.RULES}
SWITCHES = ("decay_independent", "decay_mask")
ABOVE_ZERO = ("clip", "base_batch_size")
BELOW_ONE = (*scaling.DECAYS, "momentum", "beta_low", "beta_high", "warmup")
BATCH_SIZE = "batch_size"  # what a function may ask for and no spec may say
UNMOVED = ("beta_low", "beta_high", "base", "extrapolation")  # by the rules of co-scaling
OWN = "for one of your own give module:function"
NO_RATE = "the learning rate is no part of a spec: a sweep varies it, see learning_rates"
POINTERS = {  # what other libraries call it
    "lr": NO_RATE,
    "learning_rate": NO_RATE,
    "betas": "write b1=0.9, b2=0.999",
    "epsilon": "write eps=1e-8",
    "wd": "write weight_decay=0.1",
    "max_grad_norm": "write clip=1.0",
}
ALIASES = {  # and what other libraries call an optimizer
    "sgdm": "momentum",
    "heavy_ball": "momentum",
    "nesterov": "momentum(nesterov=True)",
    "signsgd": "sign_sgd",
    "maxva": "madam or lamadam",
    "laprop": "lamadam, of which it is the case of equal bounds",
}


class Spec(NamedTuple):
    """A text taken apart: entry(**own) is the rule, common holds keywords that all share."""

    name: str
    entry: Callable[..., Any]
    own: dict[str, Any]
    common: dict[str, Any]

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Of the entry, by name."""
        return inspect.signature(self.entry).parameters


def parse(text: str) -> Spec:
    """Splits "name(keyword=literal, ...)" or "module:function(keyword=literal, ...)".

    Raises:
      ValueError: not of that form, an unknown name or keyword (the message names near matches), or
        a value out of its range.
    """
    name, keywords = split(text)
    function = _imported(name) if ":" in name else _entry(name)
    parameters = dict(inspect.signature(function).parameters)
    parameters.pop(BATCH_SIZE, None)
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    own = {key: value for key, value in keywords.items() if key not in COMMON or key in parameters}
    common = {key: value for key, value in keywords.items() if key not in own}
    for keyword, value in own.items():
        if not takes_any:
            _known(keyword, parameters, name)
        if ":" not in name:
            _in_range(keyword, value, parameters[keyword].default)
    for keyword, value in common.items():
        _in_range(keyword, value)
    _consistent(name, parameters, own, common)
    return Spec(name, function, own, common)


def text_of(name: str, keywords: dict[str, Any]) -> str:
    """The text that `parse` splits into these."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in keywords.items())})"


def split(
    text: str, what: str = "optimizer", example: str = "adam(b1=0)"
) -> tuple[str, dict[str, Any]]:
    """Name and keywords of a text; `what` it is of, and an example, are for messages.

    Raises:
      ValueError: it does not read name(keyword=literal, ...).
    """
    name, bracket, rest = text.strip().partition("(")
    module, colon, function = name.partition(":")
    dotted = function if colon else name
    try:
        # What stands before the bracket is no expression where it holds a colon.
        call = ast.parse(f"{'f' if colon else name}{bracket}{rest}", mode="eval").body
        if isinstance(call, ast.Name):
            call = ast.Call(call, [], [])
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        if not dotted.isidentifier() or (colon and not module):
            raise ValueError
        if any(one.arg is None for one in call.keywords):
            raise ValueError
        keywords = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    except (SyntaxError, TypeError, ValueError):
        raise ValueError(
            f"{what} {text!r} must read name or name(keyword=number, ...), like {example}"
        ) from None
    given = [one.arg for one in call.keywords]
    twice = [keyword for keyword in keywords if given.count(keyword) > 1]
    if twice:
        raise ValueError(f"{what} {text!r} gives {twice[0]} twice")
    return name, keywords


def _entry(name: str) -> Callable[..., Any]:
    if name in ENTRIES:
        return ENTRIES[name]
    if name in ALIASES:
        raise ValueError(f"unknown optimizer {name!r}: did you mean {ALIASES[name]}?")
    raise ValueError(f"unknown optimizer {name!r}: {near(name, ENTRIES)} ({OWN})")


def _imported(name: str) -> Callable[..., Any]:
    """The function that module:function names.

    Raises:
      ValueError: there is none.
    """
    module_name, _, function = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"optimizer {name!r}: {error}; the module must be importable from here"
        ) from error
    if not callable(getattr(module, function, None)):
        raise ValueError(f"optimizer {name!r}: module {module_name} has no function {function}")
    return getattr(module, function)


def _known(keyword: str, parameters: Iterable[str], name: str) -> None:
    if keyword in parameters:
        return
    if name == "sgd" and keyword in ("momentum", "nesterov"):
        advice = "write momentum(decay=0.9, nesterov=False)"
    else:
        advice = POINTERS.get(keyword) or near(keyword, [*parameters, *COMMON])
    raise ValueError(f"unknown keyword of {name} {keyword!r}: {advice}")


def near(name: str, choices: Iterable[str]) -> str:
    """The question that names near matches."""
    near = difflib.get_close_matches(name, list(choices)) or sorted(choices)
    return f"did you mean {' or '.join(near)}?"


def _in_range(keyword: str, value: Any, default: Any = None) -> None:
    if keyword in TEXTS:
        if str(value) not in TEXTS[keyword]:
            raise ValueError(
                f"unknown {keyword} {str(value)!r}: {near(str(value), TEXTS[keyword])}"
            )
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if keyword in SWITCHES or isinstance(default, bool):
        right, what = isinstance(value, bool), "True or False"
    elif isinstance(default, str):
        right, what = isinstance(value, str), f"a text, like {default!r}"
    elif isinstance(default, int):
        right, what = isinstance(value, int) and number and value > 0, "a whole number above 0"
    elif keyword in ABOVE_ZERO:
        right, what = number and 0 < value < math.inf, "a finite number above 0"
    elif keyword in BELOW_ONE:
        right, what = number and 0 <= value < 1, "a number of at least 0 and below 1"
    else:
        right, what = number and 0 <= value < math.inf, "a finite number of at least 0"
    if not right:
        raise ValueError(f"{keyword} must be {what}, got {value!r}")


def _consistent(
    name: str,
    parameters: Mapping[str, inspect.Parameter],
    own: dict[str, Any],
    common: dict[str, Any],
) -> None:
    """Raises ValueError where keywords need or exclude each other."""
    for keyword, one in parameters.items():
        named = one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        if named and one.default is one.empty and keyword not in own:
            raise ValueError(f"{name} needs {keyword}, like {name}({keyword}=...)")
    if "scaling" in common and "base_batch_size" not in common:
        raise ValueError(f"scaling={common['scaling']!r} needs base_batch_size, a number above 0")
    if {"warmup", "warmup_steps"} <= common.keys():
        raise ValueError(
            "warmup (a share of the run) and warmup_steps exclude each other: give one of them"
        )
    unmoved = parameters.keys() & set(UNMOVED) | own.keys() & {"momentum"}
    if "scaling" in common and unmoved:
        raise ValueError(f"no scaling rule is known for {' and '.join(sorted(unmoved))} of {name}")
    if "scaling" in common and common.get("decay_independent"):
        raise ValueError(
            "scaling moves a weight decay that is multiplied by the learning rate: leave out"
            " decay_independent"
        )
