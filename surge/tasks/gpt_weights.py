"""Published GPT-2 checkpoints as parameters of `surge.tasks.gpt.GPT`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def convert(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of `GPT`, float32, from tensors named as transformers names GPT-2's.

    Raises:
      ValueError: a tensor is missing.
    """
    arrays = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    params: dict[str, Any] = {}

    def put(path: str, tensor: str) -> None:
        if tensor not in arrays:
            raise ValueError(f"not the weights of a GPT-2: tensor {tensor} is missing")
        *parents, last = path.split("/")
        place = params
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = jnp.asarray(arrays[tensor], jnp.float32)

    put("wte/embedding", "wte.weight")
    put("wpe", "wpe.weight")
    depth = len({name.split(".")[1] for name in arrays if name.startswith("h.")})
    norms = ["ln_f", *(f"h_{index}/{name}" for index in range(depth) for name in ("ln_1", "ln_2"))]
    parts = ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj")
    layers = [f"h_{index}/{name}" for index in range(depth) for name in parts]
    for path in (*norms, *layers):
        theirs = path.replace("h_", "h.", 1).replace("/", ".")
        put(f"{path}/{'scale' if path in norms else 'kernel'}", f"{theirs}.weight")
        put(f"{path}/bias", f"{theirs}.bias")
    return {"params": params}


def load_safetensors(path: str) -> dict[str, Any]:
    """Parameters of `GPT` from a published checkpoint's model.safetensors.

    Raises:
      ValueError: no such file, `safetensors` is not installed, or not a GPT-2.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise ValueError(f"{path} needs safetensors: pip install safetensors") from None
    if not Path(path).is_file():
        raise ValueError(f"no weights at {path}: give the path of a GPT-2's model.safetensors")
    try:
        return convert(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error})") from None


def load_weights(path: str, model: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a model from a published checkpoint, cut to the model's context.

    Args:
      path: of a model.safetensors.
      model: a `GPT`.
      sizes: name -> shape that a sentence may suggest where the checkpoint is of another.

    Raises:
      ValueError: no such weights, see `load_safetensors`, or they are of a model of another shape.
    """
    params = load_safetensors(path)
    held = params["params"]
    context, width = held["wpe"].shape
    vocabulary = len(held["wte"]["embedding"])
    depth = sum(name.startswith("h_") for name in held)
    held["wpe"] = held["wpe"][: model.size.context]
    wanted = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(1, jnp.int32))
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, wanted):
        alike = [name for name, size in sizes.items() if (size.width, size.depth) == (width, depth)]
        choice = " or ".join(f"size={name}" for name in alike) or "another size"
        raise ValueError(
            f"{path} holds a GPT of width {width}, depth {depth}, vocabulary {vocabulary} and "
            f"context {context}, not {model.size}: choose {choice}, vocabulary={vocabulary} and a "
            f"context of at most {context}"
        )
    return params
