"""Fine-grained mixture of experts: the last row of arXiv 2405.14578's Table 1, reduced.

    python -m surge.main --config=configs/moe.py          # full on an accelerator, quick on a CPU
    python -m surge.main --config=configs/moe.py:quick    # two cores
    python -m surge.main --config=configs/moe.py:full     # GPT-2's width, 6 of 64 experts active

Full scale has the paper's batch sizes, 192k to 12M tokens of context 1,024, its 10 seeds, and for
its linear grid of learning rates, 2e-6 to 6e-5, powers of √2 that cover it. Not run here: no
accelerator. It is a cluster's work. Measured (:quick, --stages=sweep,fit; two CPU cores, 146 s): to
2.9 nats per byte Adam's optimum is 3.2e-3 [2.6e-3, 4.0e-3] at B = 4, 5.4e-3 [4.6e-3, 6.5e-3] at 32
and 6.0e-3 [5.0e-3, 7.1e-3] at 64: it rises, and no fall is seen.

Data: the Python standard library's own source as bytes, which is always there; any text with
--config.task_args.source=FILE, DIRECTORY or a hub name. The paper trains on RedPajama-v2: give the
directory of its documents (*.json.gz) as source; its hub entry is a script, which current
`datasets` does not run.

The balance loss is over each sequence, so per-example gradients are exact;
--config.task_args.balance_over=batch couples examples as trainers do, in ghost batches of
task_args.ghost of them, which are what is then measured.
"""

from ml_collections import ConfigDict

from surge.config import default, scale


def get_config(variant: str = "") -> ConfigDict:
    config = default()
    config.task = "surge.tasks.moe:text"
    config.task_args = {
        "size": "gpt2",
        "source": "stdlib",
        "tokenizer": "bytes",
        "vocabulary": 256,
        "context": 1_024,
        "routed": 64,
        "active": 6,
        "shared": 2,
        "hidden": 384,
        "balance": 0.01,
        "balance_over": "sequence",
        "ghost": 16,
        "evaluation_examples": 64,
        "dtype": "bfloat16",
        "remat": True,
        "stream": False,  # True: tokens stay in their memory-mapped file
    }
    config.optimizers = {
        "adam": {"spec": "adam(b1=0.9, b2=0.999)", "learning_rates": (1.9e-6, 6.2e-5)},
    }
    config.batch_sizes = tuple(192 * 2**k for k in range(7))
    config.seeds = 10
    config.max_examples = 12_288_000
    config.stop_loss = 1.2
    config.measure.learning_rate = 3e-5
    config.measure.batch_size = 192
    config.measure.losses = (2.0, 1.5, 1.2)
    config.measure.examples = 512
    config.fit.target_losses = (2.0, 1.5, 1.2)

    if scale(variant, __file__) == "quick":
        config.task_args.dtype = "float32"
        config.task_args.remat = False
        config.task_args.routed = 8
        config.task_args.active = 2
        config.task_args.shared = 1
        config.task_args.hidden = 32
        config.task_args.ghost = 4
        config.task_args.size = "tiny"
        config.task_args.context = 32
        config.optimizers.adam.learning_rates = (4e-4, 2e-2)
        config.grid = "adaptive"
        config.batch_sizes = (4, 8, 16, 32, 64)
        config.seeds = 3
        config.max_steps = 800
        config.max_examples = 12_000
        config.evals = 24
        config.stop_loss = 2.9
        config.measure.learning_rate = 4e-3
        config.measure.batch_size = 16
        config.measure.max_steps = 1_000
        config.measure.losses = (2.9,)
        config.measure.directions = 8
        config.measure.horizons = (1,)
        config.measure.branch_examples = 20_000
        config.fit.target_losses = (3.1, 2.9)
    return config
