"""A noisy quadratic whose every answer is known: does the swept one-step optimum obey the exact
sign law?

    python -m surge.main --config=configs/quadratic.py            # H = I + c·11ᵀ: the surge
    python -m surge.main --config=configs/quadratic.py:diagonal   # H diagonal: no surge, B_noise is
    infinite
    python -m surge.main --config=configs/quadratic.py:correlated # Σ correlated: the independent
    law fails
    python -m surge.main --config=configs/quadratic.py:quick      # fewer seeds
    python -m surge.main --config=configs/quadratic.py:full       # more seeds and batch sizes

Found here (two CPU cores, 27 s from a cold start): sign descent's optimum rises from 0.038 at B = 1
to 0.115 at 16 and 64, then falls to 0.065 at 1024, within 10% of the exact law everywhere and
within 1% from B = 16 on; the fitted peak is 33 [26, 37] where the exact one is 32. SGD's only
rises. With the diagonal Hessian no peak is seen. With noise of correlation 0.3 the law for
independent coordinates reads 0.080 at B = 4 and 0.118 at 16, where the true one-step optimum is
0.020 [0.009, 0.044] and 0.047 [0.038, 0.058]; the measured law is right, and the sweep follows it:
0.040 [0.028, 0.050] at 16.

One optimizer step from one point, many seeds: the loss after it is judged, not the time to a
target.
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    variants = ("", "diagonal", "correlated", "quick", "full")
    if variant not in variants:
        raise ValueError(
            f"configs/quadratic.py has no variant {variant!r}: choose {', '.join(variants[1:])}, or none"
        )
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "surge.tasks.quadratic:quadratic"
    config.task_args = {
        "hessian": "diagonal" if variant == "diagonal" else "rank_one",
        "correlation": 0.3 if variant == "correlated" else 0.0,
    }

    config.optimizers = {
        "sign_sgd": {"spec": "sign_sgd", "learning_rates": (1e-3, 4.0)},
        "sgd": {"spec": "sgd", "learning_rates": (1e-4, 4.0)},
    }
    config.learning_rate_ratio = 2**0.5
    config.grid = "dense"  # or "adaptive": only around each optimum, for a fraction of the examples
    config.batch_sizes = (1, 4, 16, 64, 256, 1024)
    config.seeds = 256
    config.max_steps = 1
    config.max_examples = 1024
    config.evals = 1
    config.stop_loss = 0.0  # never reached: every run is judged after its one step

    config.measure = {
        "optimizer": "sign_sgd",
        "learning_rate": 1e-3,
        "batch_size": 64,
        "max_steps": 1,
        "losses": (),  # at the start only
        "examples": 65_536,
        "directions": 256,
        "horizons": (1,),
        "branch_examples": 400_000,
    }
    config.fit = {"objective": "loss", "target_losses": ()}

    if variant == "quick":
        config.seeds = 64
    elif variant == "full":
        config.batch_sizes = tuple(2**k for k in range(11))
        config.seeds = 1024
    return config
