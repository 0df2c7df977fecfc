"""How far off each rule was where it was judged; by scripts/calibrate_rules.py.

JUDGED: rule -> kind of optimizer -> task -> mean squared error of log ε for each squared e-fold of
batch size. COST: c of log(1 + extra steps) = c · (log error)², median and 95% range, for rates that
are too low and too high. FAILED: of the runs at rates too high by more than a factor BEYOND, how
many failed, of how many.
"""

JUDGED: dict[str, dict[str, dict[str, float]]] = {
    "constant": {
        "adam": {
            "mnist1d": 0.146,
            "fashion_mnist": 0.136,
            "gpt2": 0.0719,
        },
        "sgd": {
            "mnist1d": 0.327,
        },
        "sign": {
            "mnist1d": 0.0614,
            "fashion_mnist": 0.121,
        },
    },
    "sqrt": {
        "adam": {
            "mnist1d": 0.0465,
            "fashion_mnist": 0.0548,
            "gpt2": 0.0693,
        },
        "sgd": {
            "mnist1d": 0.0549,
        },
        "sign": {
            "mnist1d": 0.228,
            "fashion_mnist": 0.0278,
        },
    },
    "linear": {
        "adam": {
            "mnist1d": 0.447,
            "fashion_mnist": 0.473,
            "gpt2": 0.567,
        },
        "sgd": {
            "mnist1d": 0.283,
        },
        "sign": {
            "mnist1d": 0.895,
            "fashion_mnist": 0.434,
        },
    },
    "halfway": {
        "adam": {
            "mnist1d": 0.012,
            "fashion_mnist": 0.0196,
            "gpt2": 0.0278,
        },
        "sgd": {
            "mnist1d": 0.0515,
        },
        "sign": {
            "mnist1d": 0.0697,
            "fashion_mnist": 0.00934,
        },
    },
    "surge with B_simple": {
        "adam": {
            "mnist1d": 0.00184,
            "fashion_mnist": 0.0019,
            "gpt2": 0.00839,
        },
        "sgd": {
            "mnist1d": 0.0488,
        },
        "sign": {
            "mnist1d": 0.073,
            "fashion_mnist": 0.0151,
        },
    },
    "surge, then flat": {
        "adam": {
            "mnist1d": 0.00226,
            "fashion_mnist": 0.00222,
            "gpt2": 0.00839,
        },
        "sgd": {
            "mnist1d": 0.0465,
        },
        "sign": {
            "mnist1d": 0.0776,
            "fashion_mnist": 0.0126,
        },
    },
    "saturating with B_simple": {
        "adam": {
            "mnist1d": 0.0117,
            "fashion_mnist": 0.0162,
            "gpt2": 0.0295,
        },
        "sgd": {
            "mnist1d": 0.105,
        },
        "sign": {
            "mnist1d": 0.135,
            "fashion_mnist": 0.00241,
        },
    },
    "independent law": {
        "adam": {
            "mnist1d": 0.37,
            "fashion_mnist": 0.457,
            "gpt2": 0.361,
        },
        "sign": {
            "mnist1d": 0.174,
            "fashion_mnist": 0.442,
        },
    },
    "measured, K = 1": {
        "adam": {
            "mnist1d": 0.207,
            "fashion_mnist": 0.198,
            "gpt2": 0.177,
        },
        "sgd": {
            "mnist1d": 0.0979,
        },
        "sign": {
            "mnist1d": 0.104,
            "fashion_mnist": 0.0207,
        },
    },
    "one law over a run": {
        "adam": {
            "mnist1d": 0.0068,
            "fashion_mnist": 0.015,
            "gpt2": 0.0102,
        },
        "sgd": {
            "mnist1d": 0.0566,
        },
        "sign": {
            "mnist1d": 0.147,
            "fashion_mnist": 0.0149,
        },
    },
}
COST: dict[str, tuple[float, ...]] = {
    "low": (0.36, 0.172, 0.601),
    "high": (0.598, 0.0727, 1.49),
}
FAILED = (32, 60)
BEYOND = 2.0
