"""DistilGPT2 on text, β = (0, 0) and (.9, .999): rows 3 and 4 of arXiv 2405.14578's Table 1.

    python -m surge.main --config=configs/distilgpt2.py          # by the devices found
    python -m surge.main --config=configs/distilgpt2.py:quick    # two cores
    python -m surge.main --config=configs/distilgpt2.py:full     # the paper's batch sizes, seeds

The paper's claims: both follow the surge form; McCandlish's law with α = 0.5 is also suitable.
Measured (:quick, --stages=sweep,fit; two CPU cores, 191 s): to 2.9 nats per byte the optimum of
β = (0, 0) is 1.8e-3 [1.6e-3, 2.1e-3] at B = 4, 3.7e-3 [3.1e-3, 4.4e-3] at 32 and 3.8e-3 [3.3e-3,
4.4e-3] at 128; that of (.9, .999) goes from 2.8e-3 [2.2e-3, 3.5e-3] to 4.3e-3 [3.5e-3, 5.3e-3].
These data do not tell a later fall from a plateau. B_noise of β = (0, 0) is 5.9 [4.6, 7.5] at loss
3.1 and 19 [11, 30] at 2.9. See docs/results. The small GPT has 2.051 bits per byte of held-out
text, a five-gram model 2.125 (pytest -m slow tests/test_gpt.py).

Full scale names a hub for ELI5-Category and reads bytes; the paper's tokens need GPT-2's tokenizer
file, given by --config.task_args.tokenizer=tokenizer.json --config.task_args.vocabulary=50257. For
the paper's linear grids of learning rates, to 5.5e-4 and 1.09e-3, it has powers of √2 from half to
twice their range. Not run here: there is no accelerator, and the data set is not on this machine. A
published checkpoint is measured with --config.task_args.weights=model.safetensors
--config.task_args.size=distilgpt2 beside these two. Quick scale: the Python standard library's own
source as bytes, which is always there.
"""

from ml_collections import ConfigDict

from surge.config import default, scale


def get_config(variant: str = "") -> ConfigDict:
    config = default()
    config.task = "surge.tasks.gpt:text"
    config.task_args = {
        "size": "distilgpt2",
        "source": "dany0407/eli5_category",
        "tokenizer": "bytes",
        "vocabulary": 256,
        "context": 128,
        "weights": "",
        "evaluation_examples": 1_024,
        "dtype": "bfloat16",
        "attention": "xla",
        "remat": False,
        "stream": False,  # True: tokens stay in their memory-mapped file
    }
    config.optimizers = {
        "sign": {"spec": "adam(b1=0, b2=0)", "learning_rates": (5e-6, 1.1e-3)},
        "adam": {"spec": "adam(b1=0.9, b2=0.999)", "learning_rates": (5e-6, 2.2e-3)},
    }
    config.batch_sizes = tuple(range(4, 115, 10))
    config.seeds = 30
    config.max_steps = 20_000
    config.stop_loss = 1.4
    config.measure.optimizer = "sign"
    config.measure.learning_rate = 1e-4
    config.measure.losses = (2.0, 1.6, 1.4)
    config.fit.target_losses = (2.0, 1.6, 1.4)

    if scale(variant, __file__) == "quick":
        config.task_args.source = "stdlib"
        config.task_args.dtype = "float32"
        config.task_args.size = "tiny"
        config.task_args.context = 32
        config.task_args.evaluation_examples = 64
        config.optimizers.adam.learning_rates = (4e-4, 2e-2)
        config.optimizers.sign.learning_rates = (2e-4, 1.7e-2)
        config.grid = "adaptive"
        config.batch_sizes = (4, 8, 16, 32, 64, 128)
        config.seeds = 3
        config.max_steps = 800
        config.max_examples = 20_000
        config.evals = 24
        config.stop_loss = 2.9
        config.measure.learning_rate = 2e-3
        config.measure.batch_size = 16
        config.measure.max_steps = 1_000
        config.measure.losses = (2.9,)
        config.measure.examples = 512
        config.measure.directions = 8
        config.measure.horizons = (1,)
        config.measure.branch_examples = 20_000
        config.fit.target_losses = (3.1, 2.9)
    return config
