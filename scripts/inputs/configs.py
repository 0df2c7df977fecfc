"""Values of a config that are refused: field by field, with words of the sentence."""

import numpy as np

from inputs.case import Input
from surge.config import check, default

SPEC = "adam(b1=0.9, b2=0.999)"


def plain():
    """A config that can be run."""
    config = default()
    config.task = "surge.tasks.quadratic:quadratic"
    config.optimizers = {"adam": {"spec": SPEC, "learning_rates": (1e-3, 1e-1)}}
    config.fit.target_losses = (1.0,)
    return config


def changed(**fields):
    """`plain` with fields changed, a dot in a name written as two underscores."""
    config = plain()
    for path, value in fields.items():
        *parents, name = path.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        with node.unlocked():
            node[name] = value
    return config


BAD = [  # field, value, words
    ("seed", -1, "whole number of at least 0"),
    ("seed", 10**20, "at most 4,294,967,295"),
    ("seed", 10**5000, "too many digits"),
    ("seed", 1.0, "whole number"),
    ("seed", True, "whole number"),
    ("seed", "0", "whole number"),
    ("seed", None, "whole number"),
    ("seed", np.float64(2), "whole number"),
    ("seed", float("nan"), "whole number"),
    ("seeds", 0, "at least 1"),
    ("seeds", 10**9, "more than config.max_cells (100,000)"),
    ("seeds", float("inf"), "whole number"),
    ("seeds", (3,), "whole number"),
    ("task", "", "is empty"),
    ("task", None, "text in quotes"),
    ("task", 3, "text in quotes"),
    ("task", lambda: None, "got a function"),
    ("task_args", 3, "fields with names"),
    ("task_args", {"widths": {1, 2}}, "task_args.widths must be made of numbers"),
    ("task_args", {"activation": lambda x: x}, "task_args.activation must be made of"),
    ("task_args", {"a": {"b": [object()]}}, "task_args.a.b must be made of"),
    ("task_args", {"z": 1j}, "task_args.z must be made of"),
    ("optimizers", {}, "is empty"),
    ("optimizers", None, "fields with names"),
    ("optimizers", ("adam",), "fields with names"),
    ("optimizers__adam", "adam", "optimizers.adam must be fields with names"),
    ("optimizers__adam", {"learning_rates": (1e-3, 1e-1)}, "optimizers.adam lacks spec"),
    ("optimizers__adam", {"spec": SPEC}, "optimizers.adam lacks learning_rates"),
    ("optimizers__adam__spec", "extrap_adam(extrapolation=0.1, workers=8)", "at least 8 examples"),
    ("optimizers__adam__momentum", 0.9, "no field optimizers.adam.momentum"),
    ("optimizers__adam__learning_rate", 0.9, "did you mean learning_rates"),
    ("optimizers__a/b", {"spec": SPEC, "learning_rates": (1e-3, 1e-1)}, "a label is letters"),
    ("optimizers__" + 300 * "a", {"spec": SPEC, "learning_rates": (1e-3, 1e-1)}, "at most 100"),
    ("optimizers__adam__spec", None, "text in quotes"),
    ("optimizers__adam__spec", "adma", "optimizers.adam.spec"),
    ("optimizers__adam__spec", 3, "text in quotes"),
    ("optimizers__adam__learning_rates", 1e-3, "0 < low < high"),
    ("optimizers__adam__learning_rates", (1e-3,), "0 < low < high"),
    ("optimizers__adam__learning_rates", (1e-1, 1e-3), "0 < low < high"),
    ("optimizers__adam__learning_rates", (0.0, 1e-3), "0 < low < high"),
    ("optimizers__adam__learning_rates", (1e-3, float("inf")), "0 < low < high"),
    ("optimizers__adam__learning_rates", (float("nan"), 1.0), "0 < low < high"),
    ("optimizers__adam__learning_rates", ("1e-3", "1e-1"), "0 < low < high"),
    ("optimizers__adam__learning_rates", {1e-3, 1e-1}, "0 < low < high"),
    ("optimizers__adam__learning_rates", (True, 2), "0 < low < high"),
    ("optimizers__adam__learning_rates", (1.1e-3, 1.2e-3), "no power of 1.41421 lies in"),
    ("learning_rate_ratio", 1.0, "above 1"),
    ("learning_rate_ratio", 0.5, "above 1"),
    ("learning_rate_ratio", 1.0000001, "learning rates (config.learning_rate_ratio)"),
    ("learning_rate_ratio", float(np.nextafter(1, 2)), "more than config.max_cells"),
    ("learning_rate_ratio", float("nan"), "finite number"),
    ("learning_rate_ratio", float("inf"), "finite number"),
    ("learning_rate_ratio", 10**400, "finite number"),
    ("learning_rate_ratio", "2", "finite number"),
    ("learning_rate_ratio", True, "finite number"),
    ("master_weights", "bfloat16", "must be 'float32' or 'none'"),
    ("grid", "sparse", "'dense' or 'adaptive'"),
    ("grid", None, "'dense' or 'adaptive'"),
    ("grid", ["dense"], "'dense' or 'adaptive'"),
    ("matmul_precision", "float32", "'highest' or 'high' or 'default'"),
    ("matmul_precision", 32, "'highest' or 'high' or 'default'"),
    ("batch_sizes", 4, "whole numbers of at least 1, got 4"),
    ("batch_sizes", (), "whole numbers of at least 1"),
    ("batch_sizes", (8, -16), "whole numbers of at least 1"),
    ("batch_sizes", (8, 16.0), "whole numbers of at least 1"),
    ("batch_sizes", (8, True), "whole numbers of at least 1"),
    ("batch_sizes", ("a",), "whole numbers of at least 1"),
    ("batch_sizes", {4, 8}, "whole numbers of at least 1"),
    ("batch_sizes", "48", "whole numbers of at least 1"),
    ("batch_sizes", ((4, 8),), "whole numbers of at least 1"),
    ("batch_sizes", (4, 4), "holds a number twice"),
    ("batch_sizes", (10**12,), "at most 2,147,483,647"),
    ("batch_sizes", np.array([0.5]), "whole numbers of at least 1"),
    ("max_steps", 10**12, "at most"),
    ("max_steps", 0, "at least 1"),
    ("max_examples", 100, "allows no step at batch size 1024"),
    ("max_examples", 10**30, "at most"),
    ("evals", 10**9, "at most 10,000"),
    ("evals", None, "whole number"),
    ("stop_loss", float("nan"), "finite number"),
    ("stop_loss", float("-inf"), "finite number"),
    ("stop_loss", None, "finite number"),
    ("stop_loss", 2.0, "lie below config.stop_loss"),
    ("max_cells", 0, "at least 1"),
    ("max_cells", 3, "raise config.max_cells"),
    ("precision", "0.05", "finite number"),
    ("precision", float("nan"), "finite number"),
    ("reach", -1, "at least 0"),
    ("max_examples_total", 0, "at least 1"),
    ("further_steps", 1.5, "whole number"),
    ("branch_loss", None, "finite number"),
    ("branch_loss", 0.123, "is not in config.measure.losses"),
    ("measure", 3, "measure must be fields with names"),
    ("measure", {"optimiser": "adam"}, "no field measure.optimiser: did you mean optimizer"),
    ("measure__optimizer", "lion", "not in config.optimizers"),
    ("measure__optimizer", 3, "text in quotes"),
    ("measure__learning_rate", 0.0, "above 0"),
    ("measure__learning_rate", float("nan"), "finite number"),
    ("measure__batch_size", 0, "at least 1"),
    ("measure__max_steps", -1, "at least 1"),
    ("measure__losses", 1.0, "must be numbers"),
    ("measure__losses", (1.0, "x"), "must be numbers"),
    ("measure__losses", (1.0, float("nan")), "must be numbers"),
    ("measure__losses", (1.0, 1.0), "holds a number twice"),
    ("measure__examples", 8, "at least 16, a multiple of 8"),
    ("measure__examples", 100, "a multiple of 8"),
    ("measure__examples", 8 * 10**12, "at most"),
    ("measure__directions", 12, "a multiple of 8"),
    ("measure__directions", 8 * 10**12, "at most"),
    ("measure__horizons", (), "whole numbers of at least 1"),
    ("measure__horizons", (1, 0), "whole numbers of at least 1"),
    ("measure__branch_examples", 0, "at least 1"),
    ("fit", None, "fit must be fields with names"),
    ("fit__objective", "step", "'steps' or 'loss' or 'fall'"),
    ("fit__objective", {"steps"}, "'steps' or 'loss' or 'fall'"),
    ("fit__objective", "fall", "fit.horizons is empty"),
    ("fit__target_losses", 1.0, "must be numbers"),
    ("fit__target_losses", (), "fit.target_losses is empty"),
    ("fit__target_losses", (1.2, None), "must be numbers"),
    ("fit__target_losses", (10**400,), "must be numbers"),
    ("fit__target_losses", (-1.0,), "lie below config.stop_loss"),
    ("fit__horizons", (0,), "whole numbers of at least 1"),
    ("fit__horizons", 3, "whole numbers of at least 1"),
    ("fit__crossings", (), "words among 'first' or 'half' or 'mean'"),
    ("fit__crossings", "first", "words among"),
    ("fit__crossings", ("first", "last"), "words among"),
    ("fit__crossings", ("mean", "mean"), "twice"),
    ("sedes", 3, "no field sedes: did you mean seeds"),
]


def inputs() -> list[Input]:
    """Each bad value of a config, given to `check`."""
    return [_input(*bad) for bad in BAD]


def _input(field: str, value: object, words: str) -> Input:
    shown = f"{field.replace('__', '.')} = {value!r}" if _is_short(value) else f"{field} = ..."
    return Input("config", shown[:60], lambda: check(changed(**{field: value})), words)


def _is_short(value: object) -> bool:
    """An integer of thousands of digits has no text."""
    return not isinstance(value, int) or abs(value) < 10**30
