"""The paper's 5-layer CNN on Fashion-MNIST, and convolutions that are fast inside loops."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from surge.tasks import Task, draw_from_arrays, first_rows
from surge.tasks.images import FASHION_MNIST, fashion_mnist_arrays


class Conv(nn.Module):
    """Square convolution [..., H, W, C] -> [..., H', W', features].

    Zero-padded by (size - 1) // 2 like torch's. Of every window of pool x pool outputs the largest
    is given; what fills no window is dropped. On CPU it is patches and one matrix product: XLA's
    own convolution loses its fast path inside loops (8x slower) and with a kernel for each lane
    under vmap (15x). The parameters are those of `nn.Conv`.
    """

    features: int
    size: int = 3
    stride: int = 1
    pool: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        shape = (self.size, self.size, inputs.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        convolve = self.patches if jax.default_backend() == "cpu" else self.native
        outputs = convolve(inputs.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            outputs = outputs + bias.astype(self.dtype)
        return outputs

    def patches(self, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        """The places of a pooling window side by side, and no others: pooling is their maximum."""
        margin = (self.size - 1) // 2
        spatial = [(0, 0)] * (inputs.ndim - 3) + [(margin, margin), (margin, margin), (0, 0)]
        padded = jnp.pad(inputs, spatial)

        step = self.stride * self.pool
        height, width = (
            ((edge - self.size) // self.stride + 1) // self.pool for edge in padded.shape[-3:-1]
        )
        reach = range(self.size + self.stride * (self.pool - 1))
        views = {
            (row, column): padded[
                ..., row : row + step * height : step, column : column + step * width : step, :
            ]
            for row in reach
            for column in reach
        }

        offsets = [self.stride * place for place in range(self.pool)]
        places = [(down, right) for down in offsets for right in offsets]
        taps = [
            jnp.concatenate([views[row + down, column + right] for down, right in places], -2)
            for row in range(self.size)
            for column in range(self.size)
        ]
        product = jnp.concatenate(taps, -1) @ kernel.reshape(-1, self.features)
        outputs = jnp.split(product, len(places), -2)
        rows = [reduce(jnp.maximum, outputs[right :: self.pool]) for right in range(self.pool)]
        return reduce(jnp.maximum, rows)

    def native(self, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        margin = (self.size - 1) // 2
        # Inside pmap JAX cannot batch a convolution again over kernels alone (issue 32157): nor are
        # they alone, so.
        inputs = inputs + 0 * jax.lax.stop_gradient(kernel[0, 0, 0, 0])
        batch = inputs.reshape(-1, *inputs.shape[-3:])
        numbers = jax.lax.conv_dimension_numbers(
            batch.shape, kernel.shape, ("NHWC", "HWIO", "NHWC")
        )
        outputs = jax.lax.conv_general_dilated(
            batch,
            kernel,
            (self.stride, self.stride),
            [(margin, margin)] * 2,
            dimension_numbers=numbers,
        )
        outputs = outputs.reshape(*inputs.shape[:-3], *outputs.shape[1:])
        # A maximum of one would cost a gradient too.
        return outputs if self.pool == 1 else _max_pool(outputs, self.pool)


def _max_pool(inputs: jax.Array, pool: int) -> jax.Array:
    """By reshaping, whose gradient needs no scatter."""
    height, width = (edge // pool for edge in inputs.shape[-3:-1])
    whole = inputs[..., : height * pool, : width * pool, :]
    windows = whole.reshape(*inputs.shape[:-3], height, pool, width, pool, inputs.shape[-1])
    return windows.max((-4, -2))


class CNN(nn.Module):
    """Three convolutions with 2x2 pooling and ReLU, then two dense layers: the paper's five."""

    channels: Sequence[int] = (16, 32, 64)
    hidden: int = 128
    classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        for features in self.channels:
            inputs = nn.relu(Conv(features, pool=2, dtype=self.dtype)(inputs))
        flat = inputs.reshape(*inputs.shape[:-3], -1)
        hidden = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(flat))
        return nn.Dense(self.classes, dtype=self.dtype)(hidden).astype(jnp.float32)


def image_loss(
    apply: Callable[..., Any], mean: Sequence[float], std: Sequence[float]
) -> Callable[[Any, Any], jax.Array]:
    """Mean cross-entropy of images {"x": uint8 [..., H, W, C], "y": [...]}.

    They are standardised by mean and std of a channel.
    """

    def loss(params: Any, example: Any) -> jax.Array:
        pixels = (example["x"].astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)
        logits = apply(params, pixels)
        return optax.softmax_cross_entropy_with_integer_labels(logits, example["y"]).mean()

    return loss


def fashion_mnist(
    channels: Sequence[int] = (16, 32, 64),
    hidden: int = 128,
    source: str = FASHION_MNIST,
    evaluation_examples: int = 1_024,
    dtype: str = "float32",
) -> Task:
    """Fashion-MNIST (Xiao et al., arXiv 1708.07747) with the 5-layer CNN.

    Losses are of training images.

    Raises:
      ValueError: the data is missing or broken, see `images.fashion_mnist_arrays`, or smaller than
        the evaluation.
    """
    train = fashion_mnist_arrays(source)
    model = CNN(tuple(channels), hidden, dtype=jnp.dtype(dtype))
    return Task(
        init=lambda key: model.init(key, jnp.zeros((28, 28, 1))),
        loss=image_loss(model.apply, (0.2860,), (0.3530,)),
        data=train,
        draw=draw_from_arrays,
        evaluation=first_rows(train, evaluation_examples, source),
    )
