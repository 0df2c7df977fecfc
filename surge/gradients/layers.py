"""The layers of a model, read off the structure of its parameters."""

from typing import Any, NamedTuple

import jax

# Last keys of what a normalisation multiplies by: of Flax and Haiku, and of those who go by torch's
# names, where a weight of one axis multiplies elementwise.
SCALES = ("scale", "gamma")
ELEMENTWISE = ("weight", "w")
WRAPPERS = ("value", "raw_value")  # what some libraries put around an array


class Layers(NamedTuple):
    """The layers of a pytree of parameters.

    Attributes:
      names: of each layer, the path of its parameters but for the last key.
      of: the layer of each leaf, counted from 0.
      normalising: which are normalisations.
    """

    names: list[str]
    of: tuple[int, ...]
    normalising: list[int]


def layers_of(params: Any) -> Layers:
    """Groups leaves that share all but the last key of their paths.

    Args:
      params: pytree of arrays or their shapes.
    """
    paths = [_keys(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    names = ["/".join(path[:-1]) or "/".join(path) or "params" for path in paths]
    unique = list(dict.fromkeys(names))
    of = tuple(unique.index(name) for name in names)
    scaled = {
        layer
        for layer, path, leaf in zip(of, paths, jax.tree.leaves(params), strict=True)
        if path and _scales(path[-1], leaf)
    }
    return Layers(unique, of, sorted(scaled))


def _keys(path: Any) -> list[str]:
    keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
    while len(keys) > 1 and keys[-1] in WRAPPERS:
        keys.pop()
    return keys


def _scales(key: str, leaf: Any) -> bool:
    """Whether a leaf multiplies its layer's inputs one by one."""
    return key in SCALES or (key in ELEMENTWISE and leaf.ndim == 1)
