"""Models of one's own, as `surge.measure` is given them: losses, parameters and batches."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import surge
from inputs.case import Input
from surge.gradients.batch import mean_gradient, weighted
from surge.tasks import draw_from_arrays

ROWS, INPUTS, HIDDEN = 64, 6, 8
BROKEN = 37  # the example that has no gradient
SIZES = (4, 16)

Loss = Callable[[Any, Any], Any]


def batch() -> dict[str, np.ndarray]:
    """A regression: y is the sine of the sum of x."""
    x = np.random.default_rng(0).normal(size=(ROWS, INPUTS)).astype(np.float32)
    return {"x": x, "y": np.sin(x.sum(1))}


def params(**more: Any) -> dict[str, Any]:
    """Of one hidden layer, and whatever else."""
    rng = np.random.default_rng(1)
    a = rng.normal(size=(INPUTS, HIDDEN)).astype(np.float32) / 2
    b = rng.normal(size=HIDDEN).astype(np.float32) / 2
    return {"a": a, "b": b, **more}


def loss(weights: Any, example: Any) -> jax.Array:
    """Squared error of one example."""
    return (jnp.tanh(example["x"] @ weights["a"]) @ weights["b"] - example["y"]) ** 2


@jax.custom_vjp
def _reversed_only(x: jax.Array) -> jax.Array:
    return jnp.tanh(x)


_reversed_only.defvjp(
    lambda x: (jnp.tanh(x), x), lambda x, cotangent: (cotangent * (1 - jnp.tanh(x) ** 2),)
)


def custom(weights: Any, example: Any) -> jax.Array:
    """The same loss, which has a reverse mode alone."""
    return (_reversed_only(example["x"] @ weights["a"]) @ weights["b"] - example["y"]) ** 2


def inputs() -> list[Input]:
    """All of them."""
    return [*_refused(), *_arguments(), *_right(), *_described()]


def refused(
    name: str,
    words: str,
    loss_fn: Loss = loss,
    weights: Any = None,
    batches: Any = None,
    **options: Any,
) -> Input:
    """A model that `measure` must refuse."""

    def act() -> None:
        held = params() if weights is None else weights
        if callable(held.get("odd")):
            held["odd"] = held["odd"]()  # what touches a device is made in the child
        surge.measure(loss_fn, held, [batch()] if batches is None else batches, **options)

    return Input("model", name, act, words)


def _key() -> jax.Array:
    return jax.random.key(0)


def _refused() -> list[Input]:
    """Losses, parameters and batches that are none."""
    losses = {
        "a loss with auxiliary outputs": (lambda p, e: (loss(p, e), {"x": 1}), "auxiliary outputs"),
        "a loss of two numbers": (lambda p, e: loss(p, e) * jnp.ones(2), "shape (2,)"),
        "a loss of shape (1,)": (lambda p, e: loss(p, e)[None], "shape (1,)"),
        "a whole number for a loss": (lambda p, e: jnp.int32(1), "int32"),
        "a complex loss": (lambda p, e: 1j * loss(p, e), "complex64"),
        "None for a loss": (lambda p, e: None, "must return a scalar"),
        "a loss of a whole batch": (lambda p, e: e["x"][:, 0] @ e["y"], "ONE example"),
        "a loss that raises": (lambda p, e: {}["key"], "KeyError"),
        "a loss that branches on a value": (
            lambda p, e: loss(p, e) if e["y"] > 0 else 0.0,
            "ONE example",
        ),
        "a loss in numpy": (lambda p, e: np.sum(np.asarray(p["a"])), "loss_fn raises"),
        "a loss of one argument": (lambda p: 0.0, "loss_fn raises TypeError"),
        "no function for a loss": (3, "loss_fn"),
    }
    leaves = {
        "a whole number": np.int32(3),
        "a mask": np.ones(3, bool),
        "a key": _key,
        "a function": lambda: jnp.tanh,
        "a text": "relu",
        "complex": np.ones(3, np.complex64),
        "objects": np.array([None]),
        "an int": 3,
    }
    x, y = batch()["x"], batch()["y"]
    batches = {
        "no batch": ([], "hold 0 examples"),
        "an empty batch": ([{"x": x[:0], "y": y[:0]}], "is empty"),
        "7 examples": ([{"x": x[:7], "y": y[:7]}], "at least 8"),
        "unlike lengths": ([{"x": x, "y": y[:9]}], "leading axis"),
        "a batch not in a list": (batch(), "[batch]"),
        "an array not in a list": (x, "[batch]"),
        "a tuple not in a list": ((x, y), "[batch]"),
        "texts beside arrays": ([{**batch(), "id": np.array(["a"] * ROWS)}], "not of numbers"),
        "objects for numbers": ([{"x": x.astype(object), "y": y}], "not of numbers"),
        "a number beside arrays": ([{**batch(), "t": 3.0}], "leading axis"),
        "lists for arrays": ([{"x": x.tolist(), "y": y.tolist()}], "leading axis"),
        "batches of unlike form": ([batch(), {"x": x, "y": y[:, None]}], "one form"),
        "batches of unlike keys": ([batch(), {"x": x}], "one form"),
        "None for batches": (0, "batches must be"),
    }
    return [
        *(refused(name, words, made) for name, (made, words) in losses.items()),
        *(
            refused(f"{name} among the parameters", "params['odd']", weights=params(odd=leaf))
            for name, leaf in leaves.items()
        ),
        refused("no parameters", "hold no arrays", weights={}),
        *(refused(name, words, batches=made) for name, (made, words) in batches.items()),
    ]


def _arguments() -> list[Input]:
    """Arguments of `measure` that are out of range."""
    options = {
        "optimizers": ({"a": "adamm"}, {"a": 3}, ["adam"], "adam", {"a": ""}),
        "batch_sizes": ((), (0,), (-4,), 4, ("4",), (4.5,), (float("nan"),), None),
        "directions": (0, 12, -8, 8.0, "8", None),
        "seed": (-1, 0.5, "0", 2**80, None),
    }
    asked = {"optimizers": {"adam": "adam"}}
    return [
        refused(f"{name}={value!r}", _word(name, value), **{**asked, name: value})
        for name, values in options.items()
        for value in values
    ]


def _word(name: str, value: Any) -> str:
    """What the sentence about an argument names."""
    return "adamm" if value == {"a": "adamm"} else "optimizer" if name == "optimizers" else name


def right(name: str, loss_fn: Loss, weights: Any, batches: Any = None, **options: Any) -> Input:
    """A model whose noise scale must be that of a loop over its examples."""

    def act() -> str:
        found = surge.measure(
            loss_fn, weights, [batch()] if batches is None else batches, **options
        )
        wanted = b_simple(loss_fn, weights)
        assert np.isclose(found.b_simple.value, wanted, rtol=0.02), (found.b_simple, wanted)
        return f"b_simple {found.b_simple.value:.4g} is right"

    return Input("model", name, act, "is right", refused=False)


def b_simple(loss_fn: Loss, weights: Any) -> float:
    """tr Σ/|μ|² in float64, from one gradient at a time."""
    examples = batch()
    gradient = jax.jit(jax.grad(loss_fn))
    rows = []
    for index in range(ROWS):
        one = gradient(weights, {name: leaf[index] for name, leaf in examples.items()})
        rows.append(np.concatenate([np.ravel(leaf).astype(float) for leaf in jax.tree.leaves(one)]))
    trace = np.var(rows, axis=0, ddof=1).sum()
    return trace / ((np.mean(rows, axis=0) ** 2).sum() - trace / ROWS)


def _right() -> list[Input]:
    """Models that are measured."""
    halves = [{name: leaf[part::2] for name, leaf in batch().items()} for part in (0, 1)]
    return [
        right("a plain model", loss, params()),
        right("two batches", loss, params(), halves),
        right("a generator of batches", loss, params(), (one for one in halves)),
        right(
            "examples of numpy float64",
            loss,
            params(),
            [{name: leaf.astype(float) for name, leaf in batch().items()}],
        ),
        right("None among the parameters", loss, params(frozen=None)),
        right("a custom_vjp, noise alone", custom, params()),
        right("parameters that the loss ignores", loss, params(idle=np.ones(3, np.float32))),
        right("a loss of bfloat16 inside", lambda p, e: loss(p, e).astype(jnp.float32), params()),
        right(
            "one optimizer",
            loss,
            params(),
            optimizers={"sgd": "sgd"},
            batch_sizes=SIZES,
            directions=8,
        ),
    ]


def described(name: str, words: str, act: Callable[[], Any]) -> Input:
    """A model whose answer must say why it is undefined, or what it is."""
    return Input("model", name, act, words, refused=False)


def _described() -> list[Input]:
    """Models with something about them that the answer must say."""
    broken = batch()
    broken["x"][BROKEN] = np.nan
    brief: dict[str, Any] = {"batch_sizes": SIZES, "directions": 8}
    sgd = {**brief, "optimizers": {"sgd": "sgd"}}
    bf16 = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params())
    return [
        described(
            "one example is nan", f"example {BROKEN}", partial(_whys, loss, params(), broken)
        ),
        described(
            "one example is nan, with an optimizer",
            "not finite",
            partial(_whys, loss, params(), broken, **sgd),
        ),
        described(
            "a loss that is infinite",
            "not finite",
            partial(_whys, lambda p, e: loss(p, e) / 0.0, params(), batch()),
        ),
        described(
            "a gradient of zero",
            "every gradient is zero",
            partial(_whys, lambda p, e: 0.0 * loss(p, e), params(), batch()),
        ),
        described(
            "a constant loss",
            "every gradient is zero",
            partial(_whys, lambda p, e: jnp.float32(1), params(), batch()),
        ),
        described(
            "one parameter",
            "Estimate",
            partial(
                _whys, lambda p, e: (p * e["x"][0] - e["y"]) ** 2, np.float32(0.5), batch(), **sgd
            ),
        ),
        described(
            "8 examples all alike",
            "Estimate",
            partial(
                _whys,
                loss,
                params(),
                {name: np.repeat(leaf[:1], 8, 0) for name, leaf in batch().items()},
            ),
        ),
        described(
            "noise of 1e30",
            "Estimate",
            partial(_whys, lambda p, e: 1e15 * loss(p, e), params(), batch()),
        ),
        described("bfloat16 parameters", "Estimate", partial(_whys, loss, bf16, batch(), **sgd)),
        described(
            "muon on a model with biases",
            "lr",
            partial(_laws, params(c=np.zeros(HIDDEN, np.float32)), "muon"),
        ),
        described(
            "a custom_vjp with an optimizer",
            "OneStepLR",
            partial(_whys, custom, params(), batch(), **sgd),
        ),
        described("65,536 sums in bfloat16", "1.00", _accumulated),
    ]


def _whys(loss_fn: Loss, weights: Any, examples: Any, **options: Any) -> str:
    """Each estimate of a measurement with its reason."""
    found = surge.measure(loss_fn, weights, [examples], **options)
    laws = [f"{label}: {law}" for label, law in found.measured.items()]
    return "; ".join([f"b_simple {found.b_simple}", f"sign {found.sign}", *laws])


def _laws(weights: Any, spec: str) -> str:
    """The measured law of one optimizer."""

    def biased(p: Any, e: Any) -> jax.Array:
        hidden = jnp.tanh(e["x"] @ p["a"] + p["c"])
        return (hidden @ p["b"] - e["y"]) ** 2

    options: dict[str, Any] = {"batch_sizes": SIZES, "directions": 8}
    law = surge.measure(biased, weights, [batch()], optimizers={"it": spec}, **options).measured[
        "it"
    ]
    assert np.isfinite(law.lr).any(), law
    return f"lr {law.lr}"


def _accumulated() -> str:
    """The mean gradient of a batch of 65,536 examples whose mean is 1."""
    x = 1 + 0.1 * np.random.default_rng(0).normal(size=(4096, 4)).astype(np.float32)
    gradient = jax.jit(mean_gradient, static_argnums=(0, 1, 6))
    mean = gradient(
        weighted(lambda p, e: p.astype(jnp.float32) @ e),
        draw_from_arrays,
        jnp.zeros(4, jnp.bfloat16),
        x,
        jax.random.key(0),
        65_536,
        512,
    )
    return f"{float(mean[0]):.2f}"
