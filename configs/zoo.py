"""Twelve published optimizers and their partners on MNIST-1D's MLP; batch sizes that move.

    python -m surge.main --config=configs/zoo.py                # optimizers at fixed batch sizes
    python -m surge.main --config=configs/zoo.py:quick          # the same, shorter and coarser
    python -m surge.main --config=configs/zoo.py:full           # ten seeds, to B = 4,096
    python -m surge.main --config=configs/zoo.py:arms           # fixed against moving batch sizes
    python -m surge.main --config=configs/zoo.py:arms-quick
    python scripts/zoo.py --workdir=runs/zoo                    # the table of the optimizers
    python scripts/zoo_claims.py                                # what papers claim of themselves

Optimizers are judged by the steps to a loss, so that each has a curve ε_opt(B). Arms are judged by
the loss after equal examples, at their best rate; each is run with the rate left alone and with the
rate following the law of the noise scale.
"""

from ml_collections import ConfigDict

from surge.config import default

EPOCH = 16_000  # examples of MNIST-1D that are trained on
SYSTEMS = {  # label -> spec, and the lowest and highest rate
    "sgd": ("sgd", (3e-2, 4.0)),
    "extrap_sgd": ("extrap_sgd(extrapolation=0.1, workers=4)", (3e-2, 4.0)),
    "adam": ("adam", (7e-4, 3e-2)),
    "extrap_adam": ("extrap_adam(extrapolation=0.1, workers=4)", (7e-4, 3e-2)),
    "tom": ("tom", (7e-4, 3e-2)),
    "eve": ("eve", (7e-4, 3e-2)),
    "examplewise_adam": ("examplewise_adam", (3e-3, 3e-1)),
    "madam": ("madam", (1e-3, 6e-2)),
    "lamadam": ("lamadam", (1e-3, 6e-2)),
    "active": (f"active(epoch_examples={EPOCH}, base='adam')", (7e-4, 3e-2)),
    "adalomo": ("adalomo", (4e-3, 2e-1)),
    "adagrad_norm": ("adagrad_norm", (6e-2, 4.0)),
    "lars": ("lars", (1.0, 60.0)),
    "clars": ("clars", (0.5, 60.0)),
}
ARMS = {  # label -> batches; `most` and how the rate follows are added
    "doubling": "every=0.15",
    "ramp": "shares=(0.1, 0.3, 0.6), batch_sizes=(64, 256, 1024)",
    "norm_test": "eta=0.5",
    "inner_product_test": "theta=0.5",
    "augmented": "theta=0.5, nu=1.0",
    "noise_scale": "share=1.0",
}
MOST = 1024


def get_config(variant: str = "") -> ConfigDict:
    variants = ("", "quick", "full", "arms", "arms-quick")
    if variant not in variants:
        choices = ", ".join(variants[1:])
        raise ValueError(f"{__file__} has no variant {variant!r}: choose {choices}, or none")
    config = default()
    config.task = "surge.tasks.mlp:mnist1d"
    config.task_args = {
        "model": "mlp",
        "widths": (100, 100),
        "examples": 20_000,
        "evaluation_examples": 1_024,
    }
    config.learning_rate_ratio = 2.0
    config.grid = "adaptive"
    config.seeds = 4
    config.max_steps = 6_000
    config.max_examples = 200_000
    config.evals = 48
    config.measure.optimizer = "adam"
    config.measure.batch_size = 64
    config.measure.losses = (1.6,)
    config.measure.max_steps = 4_000
    config.measure.examples = 4_096
    config.measure.horizons = (1,)
    if variant.startswith("arms"):
        _arms(config)
    else:
        _systems(config)
    if variant == "full":
        config.seeds = 10
        config.batch_sizes = (16, 64, 256, 1024, 4096)
        config.max_examples = 2_000_000
    if variant.endswith("quick"):
        config.seeds = 2
        config.max_examples = 60_000
        config.max_steps = 3_000
        config.measure.examples = 1_024
        config.measure.directions = 16
        config.measure.branch_examples = 1
    return config


def _systems(config: ConfigDict) -> None:
    config.optimizers = {
        label: {"spec": spec, "learning_rates": rates} for label, (spec, rates) in SYSTEMS.items()
    }
    config.batch_sizes = (16, 64, 256, 1024)
    config.stop_loss = 1.5
    config.fit.target_losses = (1.5,)


def _arms(config: ConfigDict) -> None:
    spec, rates = SYSTEMS["adam"]
    own = {"spec": spec, "learning_rates": rates}
    config.optimizers = {"adam": own}
    for name, keywords in ARMS.items():
        for follow in ("constant", "surge"):
            batches = f"{name}({keywords}, most={MOST}, follow='{follow}')"
            config.optimizers[f"{name}.{follow}"] = own | {"batches": batches}
    config.batch_sizes = (16, 64, 256, 1024)
    config.evals = 128  # a batch that grows covers many examples between late steps
    config.fit.objective = "loss"
