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
            "mnist1d": 0.129,
        },
        "sign": {
            "fashion_mnist": 0.128,
            "mnist1d": 0.0941,
        },
        "sgd": {
            "mnist1d": 0.331,
        },
    },
    "sqrt": {
        "adam": {
            "fashion_mnist": 0.0385,
            "gpt2": 0.0582,
            "mnist1d": 0.047,
        },
        "sign": {
            "fashion_mnist": 0.0406,
            "mnist1d": 0.251,
        },
        "sgd": {
            "mnist1d": 0.0712,
        },
    },
    "linear": {
        "adam": {
            "fashion_mnist": 0.456,
            "gpt2": 0.539,
            "mnist1d": 0.465,
        },
        "sign": {
            "fashion_mnist": 0.453,
            "mnist1d": 0.909,
        },
        "sgd": {
            "mnist1d": 0.311,
        },
    },
    "halfway": {
        "adam": {
            "fashion_mnist": 0.0149,
            "gpt2": 0.0247,
            "mnist1d": 0.00544,
        },
        "sign": {
            "fashion_mnist": 0.0112,
            "mnist1d": 0.0831,
        },
        "sgd": {
            "mnist1d": 0.0496,
        },
    },
    "surge with B_simple": {
        "adam": {
            "fashion_mnist": 0.00175,
            "gpt2": 0.00637,
            "mnist1d": 0.00106,
        },
        "sign": {
            "fashion_mnist": 0.0107,
            "mnist1d": 0.078,
        },
        "sgd": {
            "mnist1d": 0.0543,
        },
    },
    "surge, then flat": {
        "adam": {
            "fashion_mnist": 0.00119,
            "gpt2": 0.00637,
            "mnist1d": 0.000793,
        },
        "sign": {
            "fashion_mnist": 0.00897,
            "mnist1d": 0.0873,
        },
        "sgd": {
            "mnist1d": 0.0527,
        },
    },
    "saturating with B_simple": {
        "adam": {
            "fashion_mnist": 0.00796,
            "gpt2": 0.0229,
            "mnist1d": 0.0116,
        },
        "sign": {
            "fashion_mnist": 0.00659,
            "mnist1d": 0.149,
        },
        "sgd": {
            "mnist1d": 0.123,
        },
    },
    "independent law": {
        "adam": {
            "fashion_mnist": 0.437,
            "gpt2": 0.375,
            "mnist1d": 0.343,
        },
        "sign": {
            "fashion_mnist": 0.45,
            "mnist1d": 0.212,
        },
    },
    "measured, K = 1": {
        "adam": {
            "fashion_mnist": 0.188,
            "gpt2": 0.188,
            "mnist1d": 0.187,
        },
        "sign": {
            "fashion_mnist": 0.0232,
            "mnist1d": 0.107,
        },
        "sgd": {
            "mnist1d": 0.0995,
        },
    },
    "one law over a run": {
        "adam": {
            "fashion_mnist": 0.00738,
            "gpt2": 0.00672,
            "mnist1d": 0.00583,
        },
        "sign": {
            "fashion_mnist": 0.0141,
            "mnist1d": 0.158,
        },
        "sgd": {
            "mnist1d": 0.0734,
        },
    },
}
COST: dict[str, tuple[float, ...]] = {
    "low": (0.482, -0.384, 1.14),
    "high": (0.45, 0.0398, 1.38),
}
FAILED = (28, 62)
BEYOND = 2.0
