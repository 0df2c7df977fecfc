"""GPT-2 against transformers' PyTorch GPT-2, published parameter counts, and text in every
shape."""

import gzip
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from surge import pipeline
from surge.optimizers import make_optimizer
from surge.tasks import gpt, gpt_weights, text, windows
from surge.tasks.data import load_rows
from surge.training.dense import run_pieces
from surge.training.grid import plan
from surge.training.lanes import Lanes
from surge.training.run import Cell, Shared, make_train
from surge.workdir import files

SIZE = gpt.Size(vocabulary=97, context=16, width=24, depth=3, heads=4)

PLAN = {
    "learning_rate_ratio": 2.0,
    "batch_sizes": (8,),
    "seeds": 2,
    "max_steps": 40,
    "max_examples": 320,
    "evals": 3,
}


@pytest.fixture(scope="module")
def theirs():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=97,
        n_positions=16,
        n_embd=24,
        n_layer=3,
        n_head=4,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.1 * torch.randn_like(each))
    return model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SURGE_CACHE", str(tmp_path / "cache"))


@pytest.mark.filterwarnings("ignore")
def test_logits_equal_those_of_transformers(theirs, tmp_path):
    torch, safetensors = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    tokens = np.random.default_rng(0).integers(0, 97, 16)
    tensors = {
        name: each.contiguous()
        for name, each in theirs.state_dict().items()
        if name != "lm_head.weight"
    }
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    params = gpt_weights.load_safetensors(str(tmp_path / "model.safetensors"))
    fresh = gpt.GPT(SIZE).init(jax.random.key(0), jnp.asarray(tokens))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)[None]).logits[0].numpy()
    for remat in (False, True):
        logits, _ = gpt.GPT(SIZE, remat=remat).apply(params, jnp.asarray(tokens))
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    logits, _ = gpt.GPT(SIZE, jnp.bfloat16).apply(params, jnp.asarray(tokens))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=0.15 * np.abs(expected).max())


def test_gradients_are_the_same_when_layers_are_recomputed():
    window = jnp.asarray(np.random.default_rng(0).integers(0, 97, 17))
    params = gpt.GPT(SIZE).init(jax.random.key(0), window[:-1])

    def gradients(remat):
        model = gpt.GPT(SIZE, remat=remat)
        return jax.jit(jax.grad(lambda params: gpt.token_losses(model, params, window)[0].mean()))(
            params
        )

    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6),
        *map(gradients, (False, True)),
    )


@pytest.mark.parametrize(("name", "count"), [("gpt2", 124_439_808), ("distilgpt2", 81_912_576)])
def test_parameter_counts_are_the_published_ones(name, count):
    shapes = jax.eval_shape(
        gpt.GPT(gpt.SIZES[name]).init, jax.random.key(0), jnp.zeros(8, jnp.int32)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_weights_that_are_no_gpt2_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tensor wpe\.weight is missing"):
        gpt_weights.convert({"transformer.wte.weight": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="no weights at"):
        gpt_weights.load_safetensors(str(tmp_path / "none"))
    pytest.importorskip("safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        gpt_weights.load_safetensors(str(tmp_path / "model.safetensors"))


def write_weights(path, size, dtype):
    """A GPT of some size in the published format, and its parameters."""
    safetensors = pytest.importorskip("safetensors.numpy")
    params = jax.jit(gpt.GPT(size).init)(jax.random.key(3), jnp.zeros(1, jnp.int32))["params"]
    tensors = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = ".".join(each.key for each in keys).replace("h_", "h.").replace("wpe", "wpe.weight")
        name = (
            name.replace("embedding", "weight")
            .replace("kernel", "weight")
            .replace("scale", "weight")
        )
        tensors[name] = np.asarray(leaf, dtype)
    safetensors.save_file(tensors, path)
    return params


def test_weights_must_fit_and_become_float32(tmp_path):
    path, source = str(tmp_path / "model.safetensors"), tmp_path / "a.txt"
    source.write_text("what is measured need not be assumed. " * 50)
    stored = write_weights(path, gpt.SIZES["tiny"], np.float16)
    task = gpt.text("tiny", str(source), context=16, evaluation_examples=4, weights=path)
    params = task.init(jax.random.key(0))["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(
        params["wpe"], stored["wpe"][:16], atol=1e-3
    )  # positions beyond are never read
    assert np.isfinite(task.loss({"params": params}, task.evaluation[0]))
    for size, sentence in (
        ({"depth": 4}, "depth 4, .* not Size.*depth=2.*: choose another size, vocabulary=256"),
        ({"vocabulary": 300}, "choose size=tiny, vocabulary=300 and a context of at most 64"),
        ({"context": 8}, "choose size=tiny, .* a context of at most 8"),
    ):
        write_weights(path, gpt.SIZES["tiny"]._replace(**size), np.float32)
        with pytest.raises(ValueError, match=sentence):
            gpt.text("tiny", str(source), context=16, evaluation_examples=4, weights=path)


def test_text_is_packed_once_and_follows_its_source(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("héllo")
    tokens = text.text_tokens(str(path))
    assert isinstance(tokens, np.memmap) and bytes(tokens) == "héllo\0".encode()
    cached = set((tmp_path / "cache").iterdir())
    text.text_tokens(str(path))
    assert set((tmp_path / "cache").iterdir()) == cached
    path.write_text("other!!")
    assert bytes(text.text_tokens(str(path))) == b"other!!\0"
    (tmp_path / "directory").mkdir()
    for name in "ba":
        (tmp_path / "directory" / f"{name}.txt").write_text(name)
    assert bytes(text.text_tokens(str(tmp_path / "directory"))) == b"a\0b\0"


def test_each_mistake_in_a_text_is_one_sentence(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        gpt.text("tiny", str(path))
    path.write_text("short")
    with pytest.raises(ValueError, match="shorter than a window of 65"):
        gpt.text("tiny", str(path))
    path.write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"not UTF-8 text .byte 2"):
        gpt.text("tiny", str(path))
    path.write_text("é" * 200)
    with pytest.raises(ValueError, match="token 195, outside the vocabulary of 100"):
        gpt.text("tiny", str(path), vocabulary=100)
    with pytest.raises(ValueError, match="has 317 windows, below evaluation_examples=400"):
        gpt.text("tiny", str(path), evaluation_examples=400)
    with pytest.raises(ValueError, match="no data at /nowhere: give a text file"):
        gpt.text("tiny", "/nowhere")
    with pytest.raises(ValueError, match="no tokenizer at"):
        gpt.text("tiny", str(path), tokenizer="/nowhere/tokenizer.json")
    with pytest.raises(ValueError, match="size must be one of gpt2"):
        gpt.text("huge", str(path))
    with pytest.raises(ValueError, match="attention must be xla or cudnn, got 'flash'"):
        unknown: Any = "flash"
        gpt.text("tiny", str(path), attention=unknown)
    with pytest.raises(ValueError, match=r"is not a tokenizer\.json"):
        gpt.text("tiny", str(path), tokenizer=str(path))


@pytest.mark.filterwarnings("ignore")  # of datasets and its dependencies
def test_local_copy_of_eli5_and_a_tokenizer_file(tmp_path, monkeypatch):
    datasets, tokenizers = pytest.importorskip("datasets"), pytest.importorskip("tokenizers")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    rows = [{"title": "why?", "selftext": "", "answers": {"text": ["so it is", "no"]}}] * 2
    (tmp_path / "eli5").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "eli5" / "train-00000.parquet")
    expected = "why?\n\nso it is\nno"
    assert bytes(text.text_tokens(str(tmp_path / "eli5"))) == f"{expected}\0".encode() * 2
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator([expected], vocab_size=270, special_tokens=["<|endoftext|>"])
    bpe.save(str(tmp_path / "tokenizer.json"))
    tokens = text.text_tokens(str(tmp_path / "eli5"), str(tmp_path / "tokenizer.json"))
    assert bpe.decode(tokens[: len(tokens) // 2].tolist()) == expected and tokens[
        -1
    ] == bpe.token_to_id("<|endoftext|>")


def write_rows(path, texts):
    """Rows with a text column, in the format that the name says."""
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": texts})
    if path.suffix == ".parquet":
        rows.to_parquet(path)
    elif path.suffix == ".csv":
        rows.to_csv(path)
    else:
        lines = "".join(f'{{"text": "{each}"}}\n' for each in texts).encode()
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


@pytest.mark.filterwarnings("ignore")  # of datasets and its dependencies
@pytest.mark.parametrize(
    "name", ["train.parquet", "train.jsonl", "train.json", "train.json.gz", "train.csv"]
)
def test_rows_are_read_as_rows_whatever_lies_beside_them(tmp_path, monkeypatch, name):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    copy = tmp_path / "copy"
    (copy / ".cache").mkdir(parents=True)
    (copy / "README.md").write_text("---\nlicense: mit\n---\nA data set.")
    (copy / ".gitattributes").write_text("*.parquet lfs")
    (copy / ".cache" / "a.txt").write_text("hidden")
    (copy / "prepare.py").write_text("print()")
    write_rows(copy / name, ["one", "two"])
    assert bytes(text.text_tokens(str(copy))) == b"one\0two\0"
    assert bytes(text.text_tokens(str(copy / name))) == b"one\0two\0"
    write_rows(copy / name, ["new", "row"])  # of the same size, so that only its time tells
    assert bytes(text.text_tokens(str(copy))) == b"new\0row\0"


@pytest.mark.filterwarnings("ignore")  # of datasets and its dependencies
def test_a_data_set_saved_to_disk_is_a_local_copy_too(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    rows = datasets.Dataset.from_dict({"text": ["one", "two"]})
    rows.save_to_disk(tmp_path / "rows")
    datasets.DatasetDict(train=rows, test=rows.select([1])).save_to_disk(tmp_path / "splits")
    for name in ("rows", "splits"):
        assert bytes(text.text_tokens(str(tmp_path / name))) == b"one\0two\0"


def test_hidden_files_are_no_text(tmp_path):
    (tmp_path / ".hidden").mkdir()
    for name in (".gitattributes", ".hidden/a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    assert bytes(text.text_tokens(str(tmp_path))) == b"b.txt\0"
    (tmp_path / "b.txt").rename(tmp_path / "b.log")
    assert bytes(text.text_tokens(str(tmp_path / "b.log"))) == b"b.txt\0"  # named, so it is text


def test_packed_text_follows_where_it_is_read_from_and_its_tokenizer(tmp_path, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
        monkeypatch.chdir(tmp_path / name)
        assert bytes(text.text_tokens("a.txt")) == f"{name}\0".encode()
    packed = []
    for words in (["one", "two"], ["two", "one"]):
        rules = tokenizers.Tokenizer(
            tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, words[0])
        )
        rules.save(str(tmp_path / "tokenizer.json"))
        packed.append(text.text_tokens("a.txt", str(tmp_path / "tokenizer.json")).tolist())
    assert packed == [[1], [0]]


def test_hub_names_may_have_a_configuration_and_scripts_are_refused(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*arguments, split):
        asked.append((*arguments, split))
        if "script" in arguments[0]:
            raise RuntimeError("Dataset scripts are no longer supported, but found script.py")
        return [{"text": "row"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert bytes(text.text_tokens("owner/name:config")) == b"row\0"
    text.text_tokens("owner/name", split="test")
    assert asked == [("owner/name", "config", "train"), ("owner/name", None, "test")]
    with pytest.raises(
        ValueError, match=r"load train of owner/script .Dataset scripts are no longer .*: do this"
    ):
        load_rows("owner/script", "train", "do this")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of matplotlib and its dependencies
def test_the_config_runs_from_text_to_report(tmp_path):
    module = runpy.run_path(str(Path(__file__).parent.parent / "configs" / "gpt2.py"))
    (tmp_path / "a.txt").write_text("what is measured need not be assumed. " * 50)
    config = module["get_config"]("quick")
    config.task_args.update(source=str(tmp_path / "a.txt"), context=16, evaluation_examples=16)
    config.optimizers.adam.learning_rates = (4e-3, 2e-2)
    config.update(
        batch_sizes=(4, 8), seeds=1, max_steps=24, max_examples=200, evals=6, stop_loss=2.5
    )
    config.measure.update(max_steps=24, losses=(), examples=64, horizons=(1,), branch_examples=1)
    config.fit.target_losses = (4.0,)
    pipeline.run(config, tmp_path / "run", ("measure", "sweep", "fit", "report"))
    measured = files.read_dataset(tmp_path / "run" / "measure.nc")
    assert (
        measured.loss == pytest.approx(np.log(256), rel=0.02)
        and measured.noise_scale.sel(bound="value").min() > 0
    )
    (fit,) = files.read_json(tmp_path / "run" / "fit.json")["fits"]
    assert all(4e-3 <= point["lr"] <= 2e-2 for point in fit["optimal_lr"])
    assert "One step from single checkpoints" in (tmp_path / "run" / "report.html").read_text()


def test_windows_are_pieces_of_the_training_text():
    tokens = np.arange(100, dtype=np.uint8)
    data = {"tokens": tokens, "window": np.zeros(9, np.uint8)}
    drawn = jax.vmap(windows.draw_window, (None, 0))(
        data, jax.random.split(jax.random.key(0), 1000)
    )
    assert (np.diff(drawn, axis=1) == 1).all() and set(np.asarray(drawn[:, 0])) == set(range(92))


def test_text_larger_than_a_device_is_read_as_it_is_drawn(tmp_path):
    count = 6 * 10**9  # bytes of a sparse file, beyond what 32 bits index
    tokens = np.lib.format.open_memmap(tmp_path / "text.npy", "w+", np.uint8, (count,))
    tokens[-3 * 10**7 :] = 1
    draw = jax.jit(jax.vmap(windows.streamed_window(tokens, 9), (None, 0)))
    drawn = draw((), jax.random.split(jax.random.key(0), 4_000))
    assert drawn.shape == (4_000, 9) and 5 < drawn[:, 0].sum() < 40
    short = np.arange(100, dtype=np.uint8)
    drawn = jax.vmap(windows.streamed_window(short, 9), (None, 0))(
        (), jax.random.split(jax.random.key(0), 2_000)
    )
    assert (np.diff(drawn, axis=1) == 1).all() and set(np.asarray(drawn[:, 0])) == set(range(92))


def test_streamed_text_trains_on_every_lane_of_a_sweep(tmp_path):
    (tmp_path / "a.txt").write_text("what is measured need not be assumed. " * 50)
    task = gpt.text("tiny", str(tmp_path / "a.txt"), context=16, evaluation_examples=8, stream=True)
    assert not jax.tree.leaves(task.data)
    pieces = plan(optimizers={"adam": ("adam", (1e-2, 2e-2))}, **PLAN)
    [(_, result)] = run_pieces(
        task, pieces, jax.random.key(1), stop_loss=0.0, lanes=Lanes("vmap", 1, 2)
    )
    assert (result.loss[..., -1] < result.loss[..., 0] - 1).all()


@pytest.mark.slow
def test_loss_falls_on_the_standard_library(tmp_path, monkeypatch):
    monkeypatch.setattr(
        text, "NOT_OURS", text.NOT_OURS | {"asyncio", "email", "idlelib", "encodings"}
    )
    task = gpt.text("tiny", evaluation_examples=16)
    train = jax.jit(make_train(task, lambda rate, *_: optax.adam(rate), microbatch_size=8))
    cell = Cell(1e-2, jax.random.key(0), 8, np.array([1, 80]))
    result = train(cell, Shared(0.0, task.data, task.evaluation))
    assert result.loss[0] > 4.5 > 3.2 > result.loss[1]


def kneser_ney(train, test, order=5):
    """Probability of each byte of `test` from the `order - 1` before it: interpolated Kneser-Ney
    over `train`."""

    def grams(text, length):
        shifted = (
            text[order - 1 - back : len(text) - back].astype(np.int64) << 8 * back
            for back in range(length)
        )
        return sum(shifted)

    def look_up(table, values, wanted):
        at = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
        return np.where(table[at] == wanted, values[at], 0)

    levels, (known, counts) = [], np.unique(grams(train, order), return_counts=True)
    for length in range(order, 0, -1):
        levels.append((length, known, counts))
        known, counts = np.unique(
            known % 256 ** (length - 1), return_counts=True
        )  # in how many contexts, not times
    probability = np.full(len(test) - order + 1, 1 / 256)
    for length, known, counts in reversed(levels):
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount = once / (once + 2 * twice) if once else 0.5
        contexts, first = np.unique(known >> 8, return_index=True)
        wanted = grams(test, length)
        total = look_up(contexts, np.add.reduceat(counts, first), wanted >> 8)
        kinds = look_up(contexts, np.diff([*first, len(known)]), wanted >> 8)
        seen = np.maximum(look_up(known, counts, wanted) - discount, 0)
        below = probability
        probability = np.where(
            total > 0, (seen + discount * kinds * below) / np.maximum(total, 1), below
        )
    return probability


def test_the_rival_is_a_distribution():
    train = np.random.default_rng(0).integers(97, 101, 3_000).astype(np.uint8)
    for context in (train[:4], np.array([97, 0, 98, 97], np.uint8)):
        rows = [kneser_ney(train, np.append(context, np.uint8(byte)))[0] for byte in range(256)]
        assert sum(rows) == pytest.approx(1) and min(rows) > 0


@pytest.mark.slow
def test_small_gpt_beats_five_grams_on_held_out_text(tmp_path):
    tokens, held = windows.split_held_out(text.text_tokens())
    tokens = tokens[:2_000_000]
    (tmp_path / "train.txt").write_bytes(bytes(tokens))
    task = gpt.text("small", str(tmp_path / "train.txt"))
    # Both predict the last 128 bytes, the rival with all it can use.
    held_windows = windows.windows(held, 256, 4 + 129)
    optimizer = make_optimizer("adam(b1=0.9, b2=0.99, schedule='cosine', warmup=0.05)")
    train = jax.jit(make_train(task, optimizer, microbatch_size=16))
    cell = Cell(3e-3, jax.random.key(0), 16, np.array([2_500]))
    result = train(cell, Shared(0.0, task.data, held_windows[:, 4:]))
    learned = float(result.loss[-1]) / np.log(2)
    bits = -np.log2(kneser_ney(tokens, held_windows[:, 1:].astype(np.uint8).ravel()))
    # Without the four bytes that straddle two windows.
    rival = np.pad(bits, (0, 4)).reshape(256, 132)[:, :128].mean()
    print(f"bits per byte: GPT {learned:.3f}, 5-gram {rival:.3f}")
    assert learned < rival
