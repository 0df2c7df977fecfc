"""ResNet-18 (He et al., arXiv 1512.03385) in its form for 64x64 images, and Tiny-ImageNet."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from surge.tasks import Task, by_ghosts, draw_from_arrays, first_rows
from surge.tasks.cnn import Conv, image_loss
from surge.tasks.images import image_rows

HOW = "give a local copy's directory as `source`, or a hub name like zh-plus/tiny-imagenet"
MEAN = (0.4802, 0.4481, 0.3975)
STD = (0.2770, 0.2691, 0.2821)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the shape changes."""

    features: int
    stride: int
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        conv = partial(Conv, self.features, use_bias=False, dtype=self.dtype)
        outputs = nn.relu(self.norm(name="norm_1")(conv(stride=self.stride, name="conv_1")(inputs)))
        outputs = self.norm(name="norm_2")(conv(name="conv_2")(outputs))
        if inputs.shape != outputs.shape:
            shortcut = conv(size=1, stride=self.stride, name="conv_shortcut")(inputs)
            inputs = self.norm(name="norm_shortcut")(shortcut)
        return nn.relu(inputs + outputs)


class ResNet(nn.Module):
    """A 3x3 stem without pooling, stages of basic blocks, mean, dense.

    [..., H, W, channels] -> [..., classes].

    Attributes:
      widths: of the stages; each but the first halves the resolution.
      blocks: in each stage; (2, 2, 2, 2) is ResNet-18.
      classes: number of outputs.
      groups: of GroupNorm; 0 is BatchNorm with the statistics of the batch given, which couples its
        examples.
      dtype: of the computation; statistics stay float32.
    """

    widths: Sequence[int] = (64, 128, 256, 512)
    blocks: Sequence[int] = (2, 2, 2, 2)
    classes: int = 200
    groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        if self.groups:
            norm = partial(
                nn.GroupNorm,
                self.groups,
                epsilon=1e-5,
                reduction_axes=(-3, -2, -1),
                dtype=self.dtype,
            )
        else:
            norm = partial(nn.BatchNorm, use_running_average=False, epsilon=1e-5, dtype=self.dtype)
        stem = Conv(self.widths[0], use_bias=False, dtype=self.dtype, name="stem")(inputs)
        states = nn.relu(norm(name="norm")(stem))
        for stage, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for index in range(count):
                stride = 2 if stage and not index else 1
                name = f"stage_{stage}_{index}"
                states = BasicBlock(width, stride, norm, self.dtype, name=name)(states)
        return nn.Dense(self.classes, name="head")(states.mean((-3, -2)).astype(jnp.float32))


def _no_single_loss(params: Any, example: Any) -> jax.Array:
    raise ValueError(
        "BatchNorm couples the examples of a batch: there is no loss of one; choose norm='group'"
    )


def tiny_imagenet(
    source: str = "zh-plus/tiny-imagenet",
    norm: str = "group",
    ghost: int = 16,
    widths: Sequence[int] = (64, 128, 256, 512),
    blocks: Sequence[int] = (2, 2, 2, 2),
    shape: tuple[int, int, int] = (64, 64, 3),
    classes: int = 200,
    evaluation_examples: int = 1_024,
    dtype: str = "float32",
) -> Task:
    """Tiny-ImageNet (64x64, 200 classes) with ResNet-18.

    Or images of another shape, from any image data set.

    Args:
      source: `datasets` name on the hub, or a local copy.
      norm: "group", or "batch" with mini-batch moments only: a variant without per-example
        gradients.
      ghost: examples that BatchNorm takes its statistics over, which batch sizes must be multiples
        of.
      widths: see ResNet.
      blocks: see ResNet.
      shape: [height, width, channels] of the images.
      classes: of the labels.
      evaluation_examples: training images that losses are reported on.
      dtype: of the computation.

    Raises:
      ValueError: an unknown norm, or data that is missing, of another shape, or too small.
    """
    if norm not in ("group", "batch"):
        raise ValueError(f"norm must be group or batch, got {norm!r}")
    train = image_rows(source, "train", tuple(shape), classes, HOW)
    groups = min(32, *widths) if norm == "group" else 0
    model = ResNet(tuple(widths), tuple(blocks), classes, groups, jnp.dtype(dtype))

    def init(key: jax.Array) -> Any:
        return {"params": model.init(key, jnp.zeros((1, *shape)))["params"]}

    def apply(params: Any, pixels: jax.Array) -> jax.Array:
        return model.apply(params, pixels, mutable=["batch_stats"])[0]

    channels = slice(None) if shape[-1] == 3 else slice(1)
    loss = image_loss(apply, MEAN[channels], STD[channels])
    return Task(
        init=init,
        loss=loss if groups else _no_single_loss,
        data=train,
        draw=draw_from_arrays,
        evaluation=first_rows(train, evaluation_examples, source),
        batch_loss=None if groups else by_ghosts(loss, ghost),
        ghost=ghost,
    )
