"""ResNet against the same layers in torch, on copied weights, with either normalisation."""

import runpy
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from slowly import slow

from surge.config import check
from surge.gradients.noise import gradient_noise
from surge.measurement.stage import measure
from surge.tasks import by_ghosts, ghost_batches, resnet
from surge.training.run import evaluate
from surge.training.step import batch_gradient

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

    states = torch.relu(
        norm(params["norm"], conv(params["stem"], torch.tensor(images).permute(0, 3, 1, 2)))
    )
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


@pytest.mark.parametrize("groups", [0, *slow(GROUPS)])
def test_logits_equal_the_same_layers_in_torch(groups):
    images = np.random.default_rng(0).normal(size=(3, 12, 12, 3)).astype(np.float32)
    model = resnet.ResNet(WIDTHS, BLOCKS, 7, groups)
    params = model.init(jax.random.key(0), images)["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    params = jax.tree.unflatten(structure, moved)
    logits, _ = model.apply({"params": params}, images, mutable=["batch_stats"])
    np.testing.assert_allclose(logits, torch_forward(params, images, groups), atol=1e-4)
    if groups:
        alone = jnp.asarray(model.apply({"params": params}, images[0]))
        np.testing.assert_allclose(alone, logits[0], atol=1e-5)


def test_resnet18_has_the_known_number_of_parameters():
    shapes = jax.eval_shape(
        resnet.ResNet(groups=32).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    )
    stem = (
        64 * 3 * (49 - 9)
    )  # torchvision's stem is 7x7, this one 3x3; its head has 1,000 classes, this one 200
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 11_689_512 - stem - 800 * 513


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A directory of 16 small images in Tiny-ImageNet's format, and what describes them."""
    datasets, image = pytest.importorskip("datasets"), pytest.importorskip("PIL.Image")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"image": [image.fromarray(each) for each in pixels], "label": [0, 1] * 8}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(
        tmp_path / "data" / "train-00000.parquet"
    )
    return str(tmp_path / "data"), {
        "widths": (4,),
        "blocks": (1,),
        "shape": (8, 8, 3),
        "classes": 2,
        "evaluation_examples": 16,
    }


@pytest.mark.filterwarnings("ignore")  # of datasets and its dependencies
@pytest.mark.parametrize("dtype", ["bfloat16", *slow("float32")])
def test_either_norm_has_finite_losses_and_gradients_in_float32(images, dtype):
    source, options = images
    for norm in ("group", "batch"):
        task = resnet.tiny_imagenet(source, norm, ghost=4, dtype=dtype, **options)
        params = jax.jit(task.init)(jax.random.key(0))
        assert np.isfinite(jax.jit(partial(evaluate, task))(params, task.evaluation))
        gradient = jax.jit(partial(batch_gradient, task, batch_size=8, microbatch_size=4))(
            params, task.data, jax.random.key(1)
        )
        for leaf in jax.tree.leaves((params, gradient)):
            assert np.isfinite(leaf).all() and leaf.dtype == jnp.float32


@pytest.mark.filterwarnings("ignore")  # of datasets and its dependencies
def test_each_mistake_is_one_sentence(images):
    source, options = images
    with pytest.raises(ValueError, match="norm must be group or batch"):
        resnet.tiny_imagenet(source, "layer", **options)
    with pytest.raises(ValueError, match="ghost must be a whole number of at least 1, got 0"):
        resnet.tiny_imagenet(source, "batch", ghost=0, **options)
    with pytest.raises(ValueError, match="16 rows, fewer than evaluation_examples=17"):
        resnet.tiny_imagenet(source, **options | {"evaluation_examples": 17})
    with pytest.raises(ValueError, match="BatchNorm couples"):
        resnet.tiny_imagenet(source, "batch", **options).loss({}, None)


@pytest.mark.filterwarnings("ignore")  # of datasets and its dependencies
@pytest.mark.slow
def test_batch_norm_takes_its_statistics_over_ghost_batches(images):
    source, options = images
    task = resnet.tiny_imagenet(source, "batch", ghost=4, **options)
    params = jax.jit(task.init)(jax.random.key(0))
    whole = resnet.tiny_imagenet(source, "batch", ghost=16, **options)
    parts = [
        jax.tree.map(lambda leaf, i=i: leaf[i : i + 4], task.evaluation) for i in range(0, 16, 4)
    ]
    assert task.batch_loss is not None and whole.batch_loss is not None
    losses = [task.batch_loss(params, part) for part in parts]
    np.testing.assert_allclose(task.batch_loss(params, task.evaluation), np.mean(losses), rtol=1e-5)
    assert abs(whole.batch_loss(params, task.evaluation) - np.mean(losses)) > 1e-4
    single = ghost_batches(task)
    np.testing.assert_allclose(
        jax.vmap(single.loss, (None, 0))(params, single.evaluation), losses, rtol=1e-5
    )
    drawn = single.draw(task.data, jax.random.key(1))
    assert drawn["x"].shape == (4, 8, 8, 3) and by_ghosts(single.loss, 4)(
        params, drawn
    ) == single.loss(params, drawn)


@pytest.mark.filterwarnings("ignore")  # of datasets and its dependencies
def test_gradient_noise_of_batch_norm_is_that_of_a_loop_over_ghost_batches(images):
    source, options = images
    task = ghost_batches(resnet.tiny_imagenet(source, "batch", ghost=4, **options))
    params = jax.jit(task.init)(jax.random.key(0))
    batches = [
        jax.vmap(task.draw, (None, 0))(task.data, jax.random.split(jax.random.key(i), 3))
        for i in range(2)
    ]
    found = gradient_noise(task.loss, params, batches, 4)
    gradient = jax.jit(lambda ghost: ravel_pytree(jax.grad(task.loss)(params, ghost))[0])
    rows = np.stack(
        [
            gradient(jax.tree.map(lambda leaf, i=i: leaf[i], batch))
            for batch in batches
            for i in range(3)
        ]
    )
    rows = rows.astype(float)
    np.testing.assert_allclose(ravel_pytree(found.moments.mean)[0], rows.mean(0), atol=1e-5)
    np.testing.assert_allclose(
        ravel_pytree(found.moments.variance)[0], rows.var(0, ddof=1), rtol=1e-3, atol=1e-7
    )
    trace = 4 * rows.var(0, ddof=1).sum()  # of Σ of one example
    assert found.b_simple.numerator == pytest.approx(trace, rel=1e-3) and found.b_simple.n == 24


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of datasets and its dependencies
def test_batch_norm_goes_through_the_measure_stage(images, tmp_path):
    source, options = images
    path = Path(__file__).parent.parent / "configs" / "tiny_imagenet.py"
    config = runpy.run_path(str(path))["get_config"]("quick")
    config.batch_sizes = (4, 8)
    config.measure.update(losses=(), batch_size=4, examples=128, branch_examples=1)
    task = resnet.tiny_imagenet(source, "batch", ghost=4, **options)
    experiment = check(config)
    specs = {label: grid.spec for label, grid in experiment.optimizers.items()}
    found = measure(
        task,
        specs,
        experiment.batch_sizes,
        experiment.measure,
        tmp_path / "checkpoints",
        seed=experiment.seed,
    )
    scale = found.noise_scale.sel(scale="b_simple", bound="value").item()
    assert 0 < scale < 1e4 and found.layer.size > 3
    assert found.measured_lr.shape == (1, 1, 2, 3)
