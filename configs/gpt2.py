"""GPT-2 124M on any text with Adam: the optimal learning rate at the scale where people ask for it.

    python -m surge.main --config=configs/gpt2.py          # full on an accelerator, quick on a CPU
    python -m surge.main --config=configs/gpt2.py:quick    # two cores
    python -m surge.main --config=configs/gpt2.py:full     # 124M parameters

Not a row of the paper's table: its text experiment (arXiv 2405.14578, section 3) on the full model.
Measured (an earlier :quick of four batch sizes and two seeds, on two CPU cores): to 2.8 nats per
byte Adam's optimum is 1.5e-3 [4.8e-4, 2.1e-3] at B = 1 and 4.1e-3 [3.7e-3, 4.5e-3] at 64, and
does not fall between. The :quick of today has eight batch sizes, and adds seeds until it is precise
or has spent its examples: that was not run. At the checkpoint of that loss the measured law falls
from 3.2e-3 to 1.7e-3, as the one-step oracle's optimum does: one step is not the sweep
(docs/results/predictions, where 1/(√(B_simple/B) + √(B/B_simple)) is within a factor 1.27 of this
sweep's ratios). Full scale was not run here: no accelerator.

Data: the Python standard library's own source as bytes, which is always there; any text with
--config.task_args.source=FILE, DIRECTORY or a hub name. A published checkpoint is measured, at
either scale, with --config.task_args.weights=model.safetensors --config.task_args.size=gpt2
--config.task_args.vocabulary=50257 --config.task_args.tokenizer=tokenizer.json.
"""

from ml_collections import ConfigDict

from surge.config import default, scale


def get_config(variant: str = "") -> ConfigDict:
    config = default()
    config.task = "surge.tasks.gpt:text"
    config.task_args = {
        "size": "gpt2",
        "source": "stdlib",
        "tokenizer": "bytes",
        "vocabulary": 256,
        "context": 1_024,
        "weights": "",
        "evaluation_examples": 64,
        "dtype": "bfloat16",
        "attention": "xla",
        "remat": True,
        "stream": False,  # True: tokens stay in their memory-mapped file
    }
    config.optimizers = {
        "adam": {"spec": "adam(b1=0.9, b2=0.999)", "learning_rates": (3e-5, 3e-3)},
    }
    config.batch_sizes = tuple(2**k for k in range(10))
    config.max_examples = 200_000
    config.stop_loss = 1.2
    config.measure.learning_rate = 3e-4
    config.measure.max_steps = 5_000
    config.measure.losses = (2.0, 1.5, 1.2)
    config.measure.examples = 512
    config.fit.target_losses = (2.0, 1.5, 1.2)

    if scale(variant, __file__) == "quick":
        config.task_args.dtype = "float32"
        config.task_args.remat = False
        config.task_args.size = "tiny"
        config.task_args.context = 32
        config.optimizers.adam.learning_rates = (4e-4, 2e-2)
        config.learning_rate_ratio = 2.0
        config.grid = "adaptive"
        config.batch_sizes = (1, 2, 4, 8, 16, 32, 64, 128)
        config.seeds = 2
        config.precision = 0.1
        config.max_examples_total = 4_000_000
        config.max_steps = 2_000
        config.max_examples = 30_000
        config.evals = 32
        config.stop_loss = 2.8
        config.measure.learning_rate = 4e-3
        config.measure.batch_size = 16
        config.measure.max_steps = 1_000
        config.measure.losses = (2.8,)
        config.measure.directions = 8
        config.measure.branch_examples = 20_000
        config.fit.target_losses = (3.1, 2.8)
    return config
