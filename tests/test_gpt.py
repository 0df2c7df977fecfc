"""GPT-2 against transformers' PyTorch GPT-2, published parameter counts, and text in every shape."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from surge.tasks import gpt, text
from surge.training.run import make_train

SIZE = gpt.Size(vocabulary=97, context=16, width=24, depth=3, heads=4)


@pytest.fixture(scope="module")
def theirs():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=97, n_positions=16, n_embd=24, n_layer=3, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
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
    tensors = {name: each.contiguous() for name, each in theirs.state_dict().items() if name != "lm_head.weight"}
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    params = gpt.load_safetensors(str(tmp_path / "model.safetensors"))
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


@pytest.mark.parametrize(("name", "count"), [("gpt2", 124_439_808), ("distilgpt2", 81_912_576)])
def test_parameter_counts_are_the_published_ones(name, count):
    shapes = jax.eval_shape(gpt.GPT(gpt.SIZES[name]).init, jax.random.key(0), jnp.zeros(8, jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_weights_that_are_no_gpt2_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tensor wpe\.weight is missing"):
        gpt.convert({"transformer.wte.weight": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="no weights at"):
        gpt.load_safetensors(str(tmp_path / "none"))


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
    assert bpe.decode(tokens[: len(tokens) // 2].tolist()) == expected and tokens[-1] == bpe.token_to_id(
        "<|endoftext|>"
    )


def test_windows_are_pieces_of_the_training_text():
    tokens = np.arange(100, dtype=np.uint8)
    data = {"tokens": tokens, "window": np.zeros(9, np.uint8)}
    drawn = jax.vmap(gpt.draw_window, (None, 0))(data, jax.random.split(jax.random.key(0), 1000))
    assert (np.diff(drawn, axis=1) == 1).all() and set(np.asarray(drawn[:, 0])) == set(range(92))


def test_loss_falls_on_the_standard_library(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "NOT_OURS", text.NOT_OURS | {"asyncio", "email", "idlelib", "encodings"})
    task = gpt.text("tiny", evaluation_examples=16)
    train = jax.jit(make_train(task, lambda rate, *_: optax.adam(rate), microbatch_size=8))
    result = train(1e-2, jax.random.key(0), 8, np.array([1, 80]), 0.0, task.data, task.evaluation)
    assert result.loss[0] > 4.5 > 3.2 > result.loss[1]
