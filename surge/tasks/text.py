"""Any text as one memory-mapped file of tokens."""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from surge.tasks.data import cache_directory, load_rows, write_whole

STDLIB = "stdlib"  # the Python standard library's own source: the text that is always there
HOW = "give a text file, a directory of text files, a `datasets` name or local copy, or 'stdlib' as `source`"
NOT_OURS = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "lib2to3"}
LISTED = {".txt", ".md", ".py", ".rst", ".tex", ".html", ".json", ".c", ".h", ""}
ROWS = ("text", "raw_content", "content")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): convert it first") from None


def _files(source: str) -> list[Path]:
    if source == STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        return [path for path in sorted(root.rglob("*.py")) if not NOT_OURS & set(path.relative_to(root).parts)]
    path = Path(source).expanduser()
    if path.is_dir():
        return [each for each in sorted(path.rglob("*")) if each.is_file() and each.suffix in LISTED]
    return [path] if path.is_file() else []


def _row_text(row: dict[str, Any]) -> str:
    """The text of one row: a text column, or ELI5's question with its answers."""
    column = next((name for name in ROWS if name in row), None)
    if column:
        return row[column]
    if "answers" in row and "title" in row:
        return "\n".join([row["title"], row.get("selftext") or "", *row["answers"]["text"]])
    raise ValueError(f"text rows need a column {', '.join(ROWS)}, or ELI5's title and answers; got {', '.join(row)}")


def _documents(source: str, files: list[Path], split: str) -> Iterator[str]:
    if files:
        yield from map(_read, files)
    else:
        yield from map(_row_text, load_rows(source, split, HOW))


def _encode(texts: Iterator[str], tokenizer: str) -> np.ndarray:
    """Tokens of documents in order, each followed by the end of text: byte 0, or the tokenizer's <|endoftext|>."""
    if tokenizer == "bytes":
        parts = [np.frombuffer(text.encode() + b"\0", np.uint8) for text in texts if text]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    if not Path(tokenizer).is_file():
        raise ValueError(f"no tokenizer at {tokenizer}: give 'bytes', or the path of a tokenizer.json")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError(f"{tokenizer} needs Hugging Face tokenizers: pip install 'surge[data]'") from None
    encoder = Tokenizer.from_file(tokenizer)
    end = encoder.token_to_id("<|endoftext|>")
    tokens = [
        token for text in texts if text for token in (*encoder.encode(text).ids, *([] if end is None else [end]))
    ]
    return np.asarray(tokens, np.uint16 if encoder.get_vocab_size() <= 2**16 else np.uint32)


def text_tokens(source: str = STDLIB, tokenizer: str = "bytes", split: str = "train") -> np.ndarray:
    """All tokens of a text [n], memory-mapped from a file that is packed once and kept in the cache.

    Args:
      source: a file, a directory, "stdlib", or a `datasets` name or local copy with a text column (or ELI5's).
      tokenizer: "bytes" (256 tokens), or a `tokenizers` file such as GPT-2's tokenizer.json.
      split: of a `datasets` data set.

    Raises:
      ValueError: no such text, not UTF-8, or empty.
    """
    files = _files(source)
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    name = hashlib.sha256(repr((source, tokenizer, split, stamps)).encode()).hexdigest()[:16]
    path = cache_directory() / f"text-{name}.npy"
    if not path.exists():
        tokens = _encode(_documents(source, files, split), tokenizer)
        if not len(tokens):
            raise ValueError(f"the text of {source} is empty")
        write_whole(path, lambda file: np.save(file, tokens))
    return np.load(path, mmap_mode="r")
