"""What four papers claim of themselves, at the scale of MNIST-1D's MLP and of a least squares.

    python scripts/zoo_claims.py                  # minutes on two cores; --results is written
    python scripts/zoo_claims.py --only=active

Each claim is one number with a sign, taken seed by seed (all runs of a seed share initialisation
and batches): its mean over seeds and 95% interval by Student's t. Claimed is a positive one:
*reproduced* where the interval is above 0, *not reproduced* where it is below, else *cannot tell*.
Best rates are chosen by the mean over the same seeds, for both sides of a comparison alike.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from scipy import stats

from surge.cli import parsed
from surge.tasks import Task, draw_from_arrays
from surge.tasks.mlp import mnist1d
from surge.training import grid
from surge.training.controllers import step_size
from surge.training.engine import Engine
from surge.training.hardware import enable_compilation_cache, one_device_per_core
from surge.training.lanes import spread
from surge.workdir import files

SEEDS = tuple(range(6))
EPOCH = 16_000
EVALS = 64


class Verdict(NamedTuple):
    """A claim, what was measured of it [seed], positive as claimed, and in words what it is."""

    claim: str
    gain: np.ndarray
    unit: str

    @property
    def interval(self) -> tuple[float, float, float]:
        """Mean, and the ends of its 95% interval."""
        mean = float(self.gain.mean())
        error = self.gain.std(ddof=1) / math.sqrt(len(self.gain))
        reach = float(stats.t.ppf(0.975, len(self.gain) - 1) * error)
        return mean, mean - reach, mean + reach

    @property
    def word(self) -> str:
        """Reproduced, not reproduced, or cannot tell."""
        _, low, high = self.interval
        if not np.isfinite(low + high):
            return "cannot tell"
        return "reproduced" if low > 0 else "not reproduced" if high < 0 else "cannot tell"


def final_losses(
    task: Task,
    spec: str,
    batch_size: int,
    rates: Sequence[float],
    examples: int,
    batches: str = "constant",
) -> np.ndarray:  # [rate, seed]
    """Log loss after so many examples, inf where a run diverged."""
    result = _ran(task, spec, batch_size, rates, examples, batches)
    finite = np.isfinite(result.loss)
    last = finite.shape[-1] - 1 - finite[..., ::-1].argmax(-1)
    loss = np.take_along_axis(result.loss, last[..., None], -1)[..., 0]
    return np.where(result.diverged, np.inf, np.log(loss))


def _ran(
    task: Task,
    spec: str,
    batch_size: int,
    rates: Sequence[float],
    examples: int,
    batches: str = "constant",
) -> grid.PieceResult:
    steps = grid.geometric_steps(examples // batch_size, EVALS)
    piece = grid.Piece(spec, spec, batch_size, tuple(rates), SEEDS, steps)
    if batches != "constant":
        piece = piece._replace(batches=batches, max_examples=examples)
    lanes = spread(task, len(rates), len(SEEDS))
    return Engine(task, jax.random.key(0), lanes, stop_loss=-np.inf).run(piece)


def best(losses: np.ndarray) -> np.ndarray:
    """Of [rate, seed], the row whose mean is lowest."""
    return losses[losses.mean(1).argmin()]


def powers(low: int, high: int) -> list[float]:
    """Powers of two."""
    return [2.0**power for power in range(low, high + 1)]


def active() -> list[Verdict]:
    """ActiveLR: the result depends less on the initial rate."""
    task, rates = mnist1d(), powers(-14, -6)
    found = {}
    for spec in ("adam", f"active(epoch_examples={EPOCH}, base='adam')"):
        losses = final_losses(task, spec, 64, rates, 5 * EPOCH)
        found[spec] = losses[0] - best(losses)
    base, ours = found.values()
    what = "log loss lost at rate 2^-14 against the best rate, Adam's minus Active Adam's; 5 epochs"
    return [Verdict("ActiveLR is flatter in the initial rate", base - ours, what)]


def norm_test() -> list[Verdict]:
    """AdAdaGrad: batches grow, and results are no worse than those of the small batch."""
    task, rates, examples = mnist1d(), powers(-9, -4), 60_000
    arm = "norm_test(eta=0.5, most=1024)"
    follow = "norm_test(eta=0.5, most=1024, follow='surge')"
    fixed = {size: best(final_losses(task, "adam", size, rates, examples)) for size in (16, 256)}
    moving = final_losses(task, "adam", 16, rates, examples, arm)
    with_rate = best(final_losses(task, "adam", 16, rates, examples, follow))
    seen = _ran(task, "adam", 16, rates, examples, arm).examples[moving.mean(1).argmin()]
    steps = np.asarray(grid.geometric_steps(examples // 16, EVALS))
    ended = np.isfinite(seen)
    last = ended.shape[-1] - 1 - ended[..., ::-1].argmax(-1)
    trained = np.take_along_axis(seen, last[:, None], -1)[:, 0]
    growth = np.log(trained / steps[last] / 16)
    unit = "log loss at 60,000 examples, best rates: "
    return [
        Verdict("AdAdaGrad's norm test grows batches", growth, "log mean batch size over B0 = 16"),
        Verdict(
            "with it loss is below that of B = 16 fixed",
            fixed[16] - best(moving),
            f"{unit}fixed 16 minus norm test",
        ),
        Verdict(
            "with it loss is below that of B = 256 fixed",
            fixed[256] - best(moving),
            f"{unit}fixed 256 minus norm test",
        ),
        Verdict(
            "(ours) a rate that follows ε_opt(B) makes it lower",
            best(moving) - with_rate,
            f"{unit}rate left alone minus rate following",
        ),
    ]


def clars() -> list[Verdict]:
    """CLARS without warmup against LARS with, at a large batch."""
    task, size, examples = mnist1d(), 1024, 160_000
    shrunk, loud = powers(0, 8), powers(0, 9)
    lars = final_losses(task, "lars", size, shrunk, examples)
    warm = final_losses(task, "lars(warmup=0.1)", size, shrunk, examples)
    ours = final_losses(task, "clars", size, loud, examples)
    unit = "log loss at 160,000 examples, B = 1024, best rates: "
    return [
        Verdict(
            "CLARS without warmup is better than LARS with",
            best(warm) - best(ours),
            f"{unit}LARS with warmup minus CLARS",
        ),
        Verdict(
            "LARS needs warmup", best(lars) - best(warm), f"{unit}LARS without minus with warmup"
        ),
    ]


def least_squares(rows: int = 300, size: int = 10) -> tuple[Task, dict[str, float]]:
    """Noisy least squares whose evaluation is |θ − θ*|², and the constants of its analysis."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, size)) * np.geomspace(1, 0.5, size)
    y = x @ rng.normal(size=size) + 0.5 * rng.normal(size=rows)
    optimum = np.linalg.lstsq(x, y, rcond=None)[0]
    spectrum = np.linalg.eigvalsh(x.T @ x / rows)
    # The mean over coordinates of half (√2P (θ_k − θ*_k))² is |θ − θ*|².
    unit = math.sqrt(2 * size)
    evaluation = {"x": unit * np.eye(size), "y": unit * optimum}

    def to_float(tree):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)

    task = Task(
        init=lambda key: jnp.zeros(size),
        loss=lambda theta, example: 0.5 * (example["x"] @ theta - example["y"]) ** 2,
        data=to_float({"x": x, "y": y}),
        draw=draw_from_arrays,
        evaluation=to_float(evaluation),
    )
    constants = {
        "rows": rows,
        "smoothness": float(spectrum[-1]),
        "largest": float((x**2).sum(1).max()),
        "convexity": float(spectrum[0]),
        "accuracy": 0.01 * float(optimum @ optimum),
    }
    return task, constants


def optimal_batch() -> list[Verdict]:
    """The optimal batch size of SGD, on line: as cheap as the best fixed batch size."""
    task, known = least_squares()
    bounds = known["rows"], known["smoothness"], known["largest"]
    at_optimum = mean_square_at_optimum(task)
    said = ", ".join(f"{name}={value:.6g}" for name, value in known.items())
    arm = f"optimal_batch({said}, most={known['rows']}, own_rate=True)"
    budget, target = 60_000, known["accuracy"]

    def rate(size: int) -> float:
        """γ(τ) of the paper, with what it takes as known."""
        constants = at_optimum, known["convexity"], target
        return float(step_size(*bounds, size, *constants))

    ours = _cheapest(_ran(task, "sgd", 8, [1.0], budget, arm), target)
    unit = "log examples to |θ − θ*|² of 1% of |θ*|²: best fixed"
    verdicts = []
    for how, rates in (("the paper's rate", None), ("the best rate", powers(-9, -1))):
        cost = {
            size: _cheapest(
                _ran(task, "sgd", size, rates or [rate(size)], budget, "constant"), target
            )
            for size in (1, 4, 16, 64, 256)
        }
        size = min(cost, key=lambda size: cost[size].mean())
        claim = f"the on-line batch size costs at most 1.25 times the best fixed, at {how}"
        slack = cost[size] + math.log(1.25) - ours
        verdicts.append(Verdict(claim, slack, f"{unit} (B = {size}), plus log 1.25, minus on line"))
    return verdicts


def mean_square_at_optimum(task: Task) -> float:
    """Mean of |∇f_i(θ*)|², the noise that stays."""
    x, y = (np.asarray(task.data[name], float) for name in ("x", "y"))
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float((residual**2 * (x**2).sum(1)).mean())


def _cheapest(result: grid.PieceResult, target: float) -> np.ndarray:
    """Log examples to the target [seed], at the rate where they are fewest in the mean."""
    reached = result.loss <= target
    first = reached.argmax(-1)
    examples = np.take_along_axis(result.examples, first[..., None], -1)[..., 0]
    examples = np.where(reached.any(-1), np.log(examples), np.inf)
    return best(examples)


CLAIMS: dict[str, Callable[[], list[Verdict]]] = {
    "optimal_batch": optimal_batch,
    "clars": clars,
    "active": active,
    "norm_test": norm_test,
}


def table(verdicts: Sequence[Verdict]) -> list[str]:
    """Markdown."""
    lines = ["| claim | measured | mean [95%] | seeds | |", "|---|---|---|---|---|"]
    for one in verdicts:
        mean, low, high = one.interval
        value = f"{mean:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(f"| {one.claim} | {one.unit} | {value} | {len(one.gain)} | {one.word} |")
    return lines


def main(_: list[str]) -> None:
    one_device_per_core()
    enable_compilation_cache()
    verdicts: list[Any] = []
    for name in _ONLY.value or CLAIMS:
        made = CLAIMS[name]()
        print(*table(made)[2:], sep="\n", flush=True)
        verdicts += made
    if not _ONLY.value:  # a part is printed only
        text = "\n".join(["# What papers claim of themselves", "", *table(verdicts), ""])
        files.write_bytes(Path(_RESULTS.value), text.encode())


if __name__ == "__main__":
    _RESULTS = flags.DEFINE_string("results", "runs/zoo_claims.md", "where the page goes")
    _ONLY = flags.DEFINE_list("only", [], "names of claims; empty for all")
    app.run(main, flags_parser=parsed)
