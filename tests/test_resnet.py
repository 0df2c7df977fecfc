"""ResNet against the same layers in torch, on copied weights, with either normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surge.tasks import resnet
from surge.training.run import batch_gradient, evaluate

WIDTHS, BLOCKS, GROUPS = (4, 8), (1, 2), 2


def torch_forward(params, images, groups):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def conv(tree, states, stride=1):
        kernel = torch.tensor(np.asarray(tree["kernel"])).permute(3, 2, 0, 1)
        return functional.conv2d(states, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(tree, states):
        scale, bias = (torch.tensor(np.asarray(tree[name])) for name in ("scale", "bias"))
        if groups:
            return functional.group_norm(states, groups, scale, bias)
        return functional.batch_norm(states, None, None, scale, bias, training=True)

    states = torch.relu(norm(params["norm"], conv(params["stem"], torch.tensor(images).permute(0, 3, 1, 2))))
    for stage, count in enumerate(BLOCKS):
        for index in range(count):
            block, stride = params[f"stage_{stage}_{index}"], 2 if stage and not index else 1
            after = torch.relu(norm(block["norm_1"], conv(block["conv_1"], states, stride)))
            after = norm(block["norm_2"], conv(block["conv_2"], after))
            if "conv_shortcut" in block:
                states = norm(block["norm_shortcut"], conv(block["conv_shortcut"], states, stride))
            states = torch.relu(states + after)
    kernel, bias = (torch.tensor(np.asarray(params["head"][name])) for name in ("kernel", "bias"))
    return (states.mean((2, 3)) @ kernel + bias).numpy()


@pytest.mark.parametrize("groups", [GROUPS, 0])
def test_logits_equal_the_same_layers_in_torch(groups):
    images = np.random.default_rng(0).normal(size=(3, 12, 12, 3)).astype(np.float32)
    model = resnet.ResNet(WIDTHS, BLOCKS, 7, groups)
    params = model.init(jax.random.key(0), images)["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(structure, moved)
    logits, _ = model.apply({"params": params}, images, mutable=["batch_stats"])
    np.testing.assert_allclose(logits, torch_forward(params, images, groups), atol=1e-4)
    if groups:
        np.testing.assert_allclose(model.apply({"params": params}, images[0]), logits[0], atol=1e-5)


def test_resnet18_has_the_known_number_of_parameters():
    shapes = jax.eval_shape(resnet.ResNet(groups=32).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    stem = 64 * 3 * (49 - 9)  # torchvision's stem is 7x7, this one 3x3; its head has 1,000 classes, this one 200
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 11_689_512 - stem - 800 * 513


@pytest.mark.filterwarnings("ignore")  # of datasets and its dependencies
def test_batch_norm_task_has_a_batch_loss_and_no_single_loss(tmp_path, monkeypatch):
    datasets, image = pytest.importorskip("datasets"), pytest.importorskip("PIL.Image")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"image": [image.fromarray(each) for each in pixels], "label": [0, 1] * 4}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data" / "train-00000.parquet")
    options = {"widths": (4,), "blocks": (1,), "shape": (8, 8, 3), "classes": 2, "evaluation_examples": 8}
    for norm in ("group", "batch"):
        task = resnet.tiny_imagenet(str(tmp_path / "data"), norm, **options)
        params = task.init(jax.random.key(0))
        assert np.isfinite(evaluate(task, params, task.evaluation))
        gradient = batch_gradient(task, params, task.data, jax.random.key(1), 4, 4)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    with pytest.raises(ValueError, match="BatchNorm couples"):
        task.loss(params, None)
    with pytest.raises(ValueError, match="norm must be group or batch"):
        resnet.tiny_imagenet(str(tmp_path / "data"), "layer", **options)
    with pytest.raises(ValueError, match="8 rows, fewer than evaluation_examples=9"):
        resnet.tiny_imagenet(str(tmp_path / "data"), **options | {"evaluation_examples": 9})
