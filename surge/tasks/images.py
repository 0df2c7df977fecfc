"""Labelled images from IDX files, or through Hugging Face `datasets`."""

import gzip
import struct
from pathlib import Path

import numpy as np

from surge.tasks.data import load_rows

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
HOW = (
    "install Debian's dataset-fashion-mnist, give the directory of its IDX files as `source`, or "
    "name a hub data set, like zalando-datasets/fashion_mnist"
)


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes from an IDX file, gzipped or not.

    The format: http://yann.lecun.com/exdb/mnist.

    Raises:
      ValueError: not an IDX file of unsigned bytes, or of another length than its header says.
    """
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content[:3] != b"\x00\x00\x08" or len(content) < 8:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    ndim = content[3]
    shape = struct.unpack(f">{ndim}I", content[4 : 4 + 4 * ndim])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * ndim)
    if values.size != np.prod(shape):
        raise ValueError(
            f"{path} holds {values.size} values where its header says {shape}: the file is "
            "incomplete"
        )
    return values.reshape(shape)


def checked(
    images: np.ndarray, labels: np.ndarray, shape: tuple[int, ...], classes: int, name: str
) -> dict:
    """{"x": uint8 [n, *shape], "y": int32 [n]}.

    Raises:
      ValueError: no images, images of another shape, as many labels as images are missing, or
        labels out of range.
    """
    if not len(images):
        raise ValueError(f"{name} holds no images")
    if images.shape[1:] != shape:
        raise ValueError(f"{name}: images must have shape {shape}, got {images.shape[1:]}")
    if len(labels) != len(images):
        raise ValueError(f"{name} holds {len(images)} images but {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{name}: labels must be 0 to {classes - 1}, got {labels.min()} to {labels.max()}"
        )
    return {"x": images, "y": labels.astype(np.int32)}


def fashion_mnist_arrays(
    source: str = FASHION_MNIST, split: str = "train"
) -> dict[str, np.ndarray]:
    """Fashion-MNIST: {"x": uint8 [n, 28, 28, 1], "y": int32 [n]}.

    n = 60,000 ("train") or 10,000 ("test").

    Args:
      source: directory of the IDX files, gzipped or not; or a `datasets` name or local copy.
      split: "train" or "test".

    Raises:
      ValueError: the data is missing or broken.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    arrays = []
    for part in ("images-idx3", "labels-idx1"):
        files = sorted(Path(source).glob(f"{prefix}-{part}-ubyte*"))
        if not files:
            return image_rows(source, split, (28, 28, 1), 10, HOW)
        arrays.append(read_idx(files[0]))
    return checked(arrays[0][..., None], arrays[1], (28, 28, 1), 10, source)


def image_rows(
    source: str, split: str, shape: tuple[int, int, int], classes: int, how: str
) -> dict[str, np.ndarray]:
    """Images and labels of a `datasets` data set with an image and a label column.

    Images are made grey or RGB as `shape` [height, width, channels] says: Tiny-ImageNet has a few
    grey ones.

    Raises:
      ValueError: the data is missing, lacks such columns, or does not fit the shape and number of
        classes.
    """
    rows = load_rows(source, split, how)
    label = next(
        (name for name in ("label", "labels", "fine_label") if name in rows.column_names), None
    )
    image = next((name for name in ("image", "img") if name in rows.column_names), None)
    if label is None or image is None:
        raise ValueError(
            f"{source} needs columns image and label, has {', '.join(rows.column_names)}"
        )
    mode = "L" if shape[-1] == 1 else "RGB"
    images = [np.asarray(row.convert(mode)) for row in rows[image]]
    wrong = next((array.shape[:2] for array in images if array.shape[:2] != shape[:2]), None)
    if wrong:
        raise ValueError(f"{source}: images must have shape {shape[:2]}, got {wrong}")
    return checked(
        np.stack(images).reshape(-1, *shape), np.asarray(rows[label]), shape, classes, source
    )
