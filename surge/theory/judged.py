"""How far off each rule was where it was judged; by scripts/calibrate_rules.py.

JUDGED: rule -> kind of optimizer -> task -> mean squared error of log ε for each squared e-fold of
batch size. COST: c of log(1 + extra steps) = c · (log error)², median and 95% range, for rates that
are too low and too high. FAILED: of the runs at rates too high by more than a factor BEYOND, how
many failed, of how many.
"""

JUDGED: dict[str, dict[str, dict[str, float]]] = {
    "constant": {
        "adam": {
            "fashion_mnist": 0.121,
            "gpt2": 0.0778,
            "mnist1d": 0.13,
        },
        "sign": {
            "fashion_mnist": 0.128,
            "mnist1d": 0.094,
        },
        "sgd": {
            "mnist1d": 0.331,
        },
    },
    "sqrt": {
        "adam": {
            "fashion_mnist": 0.0386,
            "gpt2": 0.0584,
            "mnist1d": 0.0468,
        },
        "sign": {
            "fashion_mnist": 0.0406,
            "mnist1d": 0.253,
        },
        "sgd": {
            "mnist1d": 0.0707,
        },
    },
    "linear": {
        "adam": {
            "fashion_mnist": 0.456,
            "gpt2": 0.539,
            "mnist1d": 0.464,
        },
        "sign": {
            "fashion_mnist": 0.453,
            "mnist1d": 0.912,
        },
        "sgd": {
            "mnist1d": 0.311,
        },
    },
    "halfway": {
        "adam": {
            "fashion_mnist": 0.0149,
            "gpt2": 0.0246,
            "mnist1d": 0.00566,
        },
        "sign": {
            "fashion_mnist": 0.0112,
            "mnist1d": 0.0839,
        },
        "sgd": {
            "mnist1d": 0.0494,
        },
    },
    "surge with B_simple": {
        "adam": {
            "fashion_mnist": 0.00174,
            "gpt2": 0.00635,
            "mnist1d": 0.00101,
        },
        "sign": {
            "fashion_mnist": 0.0107,
            "mnist1d": 0.0788,
        },
        "sgd": {
            "mnist1d": 0.0539,
        },
    },
    "surge, then flat": {
        "adam": {
            "fashion_mnist": 0.00118,
            "gpt2": 0.00635,
            "mnist1d": 0.000778,
        },
        "sign": {
            "fashion_mnist": 0.00897,
            "mnist1d": 0.0882,
        },
        "sgd": {
            "mnist1d": 0.0524,
        },
    },
    "saturating with B_simple": {
        "adam": {
            "fashion_mnist": 0.00798,
            "gpt2": 0.023,
            "mnist1d": 0.0115,
        },
        "sign": {
            "fashion_mnist": 0.00656,
            "mnist1d": 0.15,
        },
        "sgd": {
            "mnist1d": 0.122,
        },
    },
    "independent law": {
        "adam": {
            "fashion_mnist": 0.437,
            "gpt2": 0.375,
            "mnist1d": 0.344,
        },
        "sign": {
            "fashion_mnist": 0.45,
            "mnist1d": 0.211,
        },
    },
    "measured, K = 1": {
        "adam": {
            "fashion_mnist": 0.188,
            "gpt2": 0.188,
            "mnist1d": 0.187,
        },
        "sign": {
            "fashion_mnist": 0.0233,
            "mnist1d": 0.108,
        },
        "sgd": {
            "mnist1d": 0.0995,
        },
    },
    "one law over a run": {
        "adam": {
            "fashion_mnist": 0.0074,
            "gpt2": 0.00674,
            "mnist1d": 0.00575,
        },
        "sign": {
            "fashion_mnist": 0.0141,
            "mnist1d": 0.159,
        },
        "sgd": {
            "mnist1d": 0.0729,
        },
    },
}
COST: dict[str, tuple[float, ...]] = {
    "low": (0.482, -0.356, 1.13),
    "high": (0.444, 0.0535, 1.42),
}
FAILED = (28, 62)
BEYOND = 2.0
