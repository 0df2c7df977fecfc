"""The same models for surge and for PyTorch, on arrays of the same shapes: what the benchmarks
train."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

ROWS = 4_096
TITLES = {
    "mlp": "MNIST-1D MLP 40-100-100-10",
    "wide": "MLP 784-256-256-10",
    "cnn": "CNN on 28x28 images",
    "resnet": "GroupNorm ResNet 16-32-64 on 32x32 images",
    "gpt": "GPT, 4 layers of 128, 128 tokens",
}


def arrays(workload: str) -> dict[str, np.ndarray]:
    """Data of the workload's shapes: what is drawn does not change the speed."""
    rng = np.random.default_rng(0)
    if workload == "gpt":
        return {"x": rng.integers(0, 256, (ROWS, 129), dtype=np.uint8)}
    shape = {"mlp": (40,), "wide": (784,), "cnn": (28, 28, 1), "resnet": (32, 32, 3)}[workload]
    images = workload in ("cnn", "resnet")
    values = (
        rng.integers(0, 256, (ROWS, *shape), dtype=np.uint8)
        if images
        else rng.normal(size=(ROWS, *shape))
    )
    return {"x": values if images else values.astype(np.float32), "y": rng.integers(0, 10, ROWS)}


def torch_model(workload: str, tied: bool = True) -> tuple[Any, Callable[[Any, Any], Any]]:
    """A module and the loss (module's output, batch) of its mean over a batch; `tied` embeddings
    are GPT's."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    if workload in ("mlp", "wide"):
        sizes = (40, 100, 100, 10) if workload == "mlp" else (784, 256, 256, 10)
        layers = [
            each for a, b in itertools.pairwise(sizes) for each in (nn.Linear(a, b), nn.ReLU())
        ]
        return nn.Sequential(*layers[:-1]), lambda out, batch: F.cross_entropy(out, batch["y"])
    if workload == "cnn":
        sizes = (1, 16, 32, 64)
        layers = [
            each
            for a, b in itertools.pairwise(sizes)
            for each in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        ]
        head = (nn.Flatten(), nn.Linear(576, 128), nn.ReLU(), nn.Linear(128, 10))
        return nn.Sequential(*layers, *head), lambda out, batch: F.cross_entropy(out, batch["y"])

    if workload == "resnet":

        class Basic(nn.Module):
            def __init__(self, before: int, after: int, stride: int):
                super().__init__()
                self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
                self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
                self.norms = nn.ModuleList(nn.GroupNorm(8, after) for _ in range(2))
                shortcut = (nn.Conv2d(before, after, 1, stride, bias=False), nn.GroupNorm(8, after))
                self.shortcut = nn.Sequential(*shortcut) if stride > 1 else nn.Identity()

            def forward(self, x: Any) -> Any:
                hidden = F.relu(self.norms[0](self.first(x)))
                return F.relu(self.norms[1](self.second(hidden)) + self.shortcut(x))

        stem = (nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.GroupNorm(8, 16), nn.ReLU())
        body = (
            Basic(16, 16, 1),
            Basic(16, 32, 2),
            Basic(32, 64, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        return nn.Sequential(*stem, *body, nn.Linear(64, 10)), lambda out, batch: F.cross_entropy(
            out, batch["y"]
        )

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.LayerNorm(128), nn.LayerNorm(128)
            self.qkv, self.out = nn.Linear(128, 384), nn.Linear(128, 128)
            self.up, self.down = nn.Linear(128, 512), nn.Linear(512, 128)

        def forward(self, x: Any) -> Any:
            heads = [
                each.unflatten(-1, (4, 32)).transpose(-3, -2)
                for each in self.qkv(self.first(x)).chunk(3, -1)
            ]
            attended = F.scaled_dot_product_attention(*heads, is_causal=True)
            x = x + self.out(attended.transpose(-3, -2).flatten(-2))
            return x + self.down(F.gelu(self.up(self.second(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(256, 128), nn.Embedding(128, 128)
            self.blocks, self.norm = nn.ModuleList(Block() for _ in range(4)), nn.LayerNorm(128)
            if not tied:
                self.head = nn.Linear(128, 256, bias=False)

        def forward(self, tokens: Any) -> Any:
            x = self.tokens(tokens) + self.positions(torch.arange(128).expand(tokens.shape))
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.tokens.weight.T if tied else self.head(self.norm(x))

    return Model(), lambda out, batch: F.cross_entropy(out.flatten(0, -2), batch["y"].flatten())


def torch_data(workload: str) -> dict[str, Any]:
    import torch

    data = arrays(workload)
    if workload == "gpt":
        tokens = torch.from_numpy(data["x"].astype(np.int64))
        return {"x": tokens[:, :-1], "y": tokens[:, 1:]}
    x = torch.from_numpy(data["x"])
    if workload in ("cnn", "resnet"):
        x = (x.float() / 255).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    return {"x": x, "y": torch.from_numpy(data["y"])}


def jax_task(workload: str) -> Any:
    import jax
    import jax.numpy as jnp
    import optax

    from surge.tasks import Task, draw_from_arrays, gpt, mlp
    from surge.tasks.cnn import CNN, image_loss
    from surge.tasks.resnet import ResNet

    data = arrays(workload)
    if workload == "gpt":
        model = gpt.GPT(gpt.SIZES["small"])
        data, shape = data["x"], (128,)

        def loss(params, row):
            return gpt.token_losses(model, params, row)[0].mean()

        def init(key):
            return model.init(key, jnp.zeros(shape, jnp.int32))
    elif workload in ("cnn", "resnet"):
        model = CNN() if workload == "cnn" else ResNet((16, 32, 64), (1, 1, 1), 10, 8)
        loss = image_loss(model.apply, (0.0,), (1.0,))

        def init(key):
            return model.init(key, jnp.zeros(data["x"].shape[1:]))
    else:
        model = mlp.MLP((100, 100) if workload == "mlp" else (256, 256))
        entropy = optax.softmax_cross_entropy_with_integer_labels

        def loss(params, row):
            return entropy(jnp.asarray(model.apply(params, row["x"])), row["y"])

        def init(key):
            return model.init(key, jnp.zeros(data["x"].shape[1:]))

    evaluation = jax.tree.map(
        lambda each: each[:1], data
    )  # next to none: what ours is held against has none
    return Task(init, loss, data, draw_from_arrays, evaluation)
