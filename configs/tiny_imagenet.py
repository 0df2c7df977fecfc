"""ResNet-18 on Tiny-ImageNet, Adam with β = (0, 0): row 2 of arXiv 2405.14578's Table 1.

    python -m surge.main --config=configs/tiny_imagenet.py          # by the devices found
    python -m surge.main --config=configs/tiny_imagenet.py:quick    # two cores
    python -m surge.main --config=configs/tiny_imagenet.py:full     # the paper's sizes, 100 seeds

The paper's claim: at lower target losses B_noise, and the peak with it, lies further right.
Not run here, at either scale: the data set is not on this machine, and there is no accelerator.
Tests send rows in its format through its loader, and hold the network against torch's layers on
copied weights. Full scale: for the paper's linear grid of learning rates, 1e-4 to 7.9e-4, powers of
√2 from half to twice that. Data: the hub data set that `source` names, or
--config.task_args.source=DIRECTORY of a local copy; without either a sentence says how to get it.

Quick scale narrows the network, not the data. The BatchNorm variant, --config.task_args.norm=batch,
takes statistics over ghost batches of task_args.ghost images, which are what is then measured
(mini-batch moments). Batch sizes are multiples of that, as those of :quick are; at full scale add
--config.batch_sizes="(16,48,80,112,144,176,208,240,272,304,336,368)".
"""

from ml_collections import ConfigDict

from surge.config import default, scale


def get_config(variant: str = "") -> ConfigDict:
    config = default()
    config.task = "surge.tasks.resnet:tiny_imagenet"
    config.task_args = {
        "source": "zh-plus/tiny-imagenet",
        "norm": "group",
        "ghost": 16,
        "widths": (64, 128, 256, 512),
        "blocks": (2, 2, 2, 2),
        "shape": (64, 64, 3),
        "classes": 200,
        "evaluation_examples": 2_048,
        "dtype": "bfloat16",
    }
    config.optimizers = {
        "sign": {"spec": "adam(b1=0, b2=0)", "learning_rates": (5e-5, 1.6e-3)},
    }
    config.batch_sizes = tuple(range(16, 377, 33))
    config.seeds = 100
    config.max_steps = 20_000
    config.stop_loss = 3.5
    config.measure.optimizer = "sign"
    config.measure.learning_rate = 3e-4
    config.measure.losses = (4.5, 4.0, 3.5)
    config.fit.target_losses = (4.5, 4.0, 3.5)

    if scale(variant, __file__) == "quick":
        config.task_args.widths = (8, 16, 32, 64)
        config.task_args.blocks = (1, 1, 1, 1)
        config.task_args.dtype = "float32"
        config.task_args.evaluation_examples = 256
        config.learning_rate_ratio = 2.0
        config.batch_sizes = (16, 64, 256)
        config.seeds = 2
        config.max_steps = 500
        config.max_examples = 10_000
        config.evals = 16
        config.stop_loss = 4.8
        config.measure.max_steps = 200
        config.measure.losses = (5.0,)
        config.measure.examples = 128
        config.measure.directions = 8
        config.measure.branch_examples = 20_000
        config.fit.target_losses = (5.0, 4.8)
    return config
