"""Data in its own formats through the very loaders that real data goes through, and a sentence for
each mistake."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from surge.tasks import cnn, data, images, linear, mlp, text


def write_idx(path: Path, array: np.ndarray, zipped: bool = True) -> None:
    content = (
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )
    path.write_bytes(gzip.compress(content) if zipped else content)


def write_fashion(
    directory: Path, pixels: np.ndarray, labels: np.ndarray, zipped: bool = True
) -> str:
    end = ".gz" if zipped else ""
    write_idx(directory / f"train-images-idx3-ubyte{end}", pixels, zipped)
    write_idx(directory / f"train-labels-idx1-ubyte{end}", labels, zipped)
    return str(directory)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_come_back_as_written(tmp_path, pixels, zipped):
    source = write_fashion(tmp_path, pixels, np.arange(6), zipped)
    arrays = images.fashion_mnist_arrays(source)
    np.testing.assert_array_equal(arrays["x"][..., 0], pixels)
    np.testing.assert_array_equal(arrays["y"], np.arange(6))


def test_each_mistake_in_idx_files_is_one_sentence(tmp_path, pixels):
    def refused(match, *arguments):
        with pytest.raises(ValueError, match=match):
            images.fashion_mnist_arrays(write_fashion(tmp_path, *arguments))

    refused("shape .28, 28, 1., got .27, 28, 1", pixels[:, 1:], np.arange(6))
    refused("labels must be 0 to 9, got 5 to 10", pixels, np.arange(5, 11))
    with pytest.raises(ValueError, match="has 6 rows, fewer than evaluation_examples=7"):
        cnn.fashion_mnist(
            source=write_fashion(tmp_path, pixels, np.arange(6)), evaluation_examples=7
        )
    refused("6 images but 5 labels", pixels, np.arange(5))
    refused("holds no images", pixels[:0], np.arange(0))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x09abc")
    )
    with pytest.raises(ValueError, match="file is incomplete"):
        images.fashion_mnist_arrays(str(tmp_path))
    with pytest.raises(ValueError, match="install Debian's dataset-fashion-mnist"):
        images.fashion_mnist_arrays("/nowhere")


@pytest.mark.parametrize("task", [mlp.mnist1d, linear.mnist1d])
def test_an_evaluation_does_not_shrink_with_the_data(task):
    with pytest.raises(ValueError, match="has 16 rows, fewer than evaluation_examples=1024"):
        task(examples=20)
    assert len(task(examples=20, evaluation_examples=16).evaluation["y"]) == 16


def write_parquet(directory: Path, pixels: np.ndarray, labels: list[int]) -> str:
    datasets, image = pytest.importorskip("datasets"), pytest.importorskip("PIL.Image")
    columns = {"image": [image.fromarray(each) for each in pixels], "label": labels}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    directory.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(
        directory / "train-00000-of-00001.parquet"
    )
    return str(directory)


@pytest.mark.filterwarnings("ignore")  # of datasets and its dependencies
def test_local_copy_of_a_hub_data_set_loads_as_the_hub_does(tmp_path, pixels, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = write_parquet(tmp_path / "grey", pixels, list(range(6)))
    np.testing.assert_array_equal(images.fashion_mnist_arrays(source)["x"][..., 0], pixels)
    coloured = images.image_rows(source, "train", (28, 28, 3), 10, "how")
    np.testing.assert_array_equal(coloured["x"], np.repeat(pixels[..., None], 3, -1))
    with pytest.raises(ValueError, match=r"must have shape .64, 64., got .28, 28"):
        images.image_rows(source, "train", (64, 64, 3), 10, "how")
    with pytest.raises(ValueError, match="labels must be 0 to 4, got 0 to 5"):
        images.image_rows(source, "train", (28, 28, 1), 5, "how")
    with pytest.raises(ValueError, match="cannot load nosplit"):
        images.image_rows(source, "nosplit", (28, 28, 1), 10, "how")


def test_generated_data_that_is_damaged_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SURGE_CACHE", str(tmp_path))
    made, _ = data.mnist1d_arrays(100, seed=3)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    other = tmp_path / "other.npz"
    np.savez(other, x=np.zeros((80, 40)), y=np.zeros(80), x_test=np.zeros((20, 40)), y_test="no")
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (content[:500], b"", b"not an archive", bytes(flipped), other.read_bytes()):
        path.write_bytes(damaged)
        again, _ = data.mnist1d_arrays(100, seed=3)
        np.testing.assert_array_equal(again["x"], made["x"])
        assert path.read_bytes() == content


def test_packed_text_that_is_damaged_is_packed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SURGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("abc")
    assert bytes(text.text_tokens(str(tmp_path / "a.txt"))) == b"abc\0"
    (path,) = (tmp_path / "cache").iterdir()
    content = path.read_bytes()
    flipped = [bytearray(content) for _ in range(3)]
    for damaged, place in zip(flipped, (20, content.index(b"abc"), -1), strict=True):
        damaged[place] ^= 1
    for damaged in (b"", content[:-2], content[:20], *map(bytes, flipped)):
        path.write_bytes(damaged)
        assert bytes(text.text_tokens(str(tmp_path / "a.txt"))) == b"abc\0"
        assert path.read_bytes() == content
