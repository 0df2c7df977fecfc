"""Any text as one memory-mapped file of tokens."""

import hashlib
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from surge.tasks.data import cache_directory, is_sealed, load_rows, write_sealed

STDLIB = "stdlib"  # the Python standard library's own source: the text that is always there
HOW = (
    "give a text file, a directory of text files, a `datasets` name or local copy, or 'stdlib' as "
    "`source`"
)
NOT_OURS = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "lib2to3"}
LISTED = {".txt", ".md", ".py", ".rst", ".tex", ".html", ".c", ".h", ""}
TABLES = (
    ".parquet",
    ".arrow",
    ".jsonl",
    ".csv",
    ".json",
    ".json.gz",
    ".jsonl.gz",
    ".json.zst",
    ".jsonl.zst",
)
ROWS = ("text", "raw_content", "content")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start}): convert it first"
        ) from None


def _files(source: str) -> list[Path]:
    """All that a local source holds, but for hidden files; nothing for a name on a hub."""
    if source == STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        return [
            path
            for path in sorted(root.rglob("*.py"))
            if not NOT_OURS & set(path.relative_to(root).parts)
        ]
    path = Path(source).expanduser().resolve()
    if path.is_dir():
        inside = [(file, file.relative_to(path).parts) for file in sorted(path.rglob("*"))]
        return [
            file
            for file, parts in inside
            if file.is_file() and not any(part.startswith(".") for part in parts)
        ]
    return [path] if path.is_file() else []


def _row_text(row: dict[str, Any]) -> str:
    """The text of one row: a text column, or ELI5's question with its answers."""
    column = next((name for name in ROWS if name in row), None)
    if column:
        return row[column]
    if "answers" in row and "title" in row:
        return "\n".join([row["title"], row.get("selftext") or "", *row["answers"]["text"]])
    raise ValueError(
        f"text rows need a column {', '.join(ROWS)}, or ELI5's title and answers; got "
        f"{', '.join(row)}"
    )


def _documents(source: str, files: list[Path], split: str) -> Iterator[str]:
    # A local copy of a data set has a README and the like beside its rows: rows win.
    if not files or any(path.name.endswith(TABLES) for path in files):
        yield from map(_row_text, load_rows(source, split, HOW))
    else:
        yield from map(_read, [path for path in files if path.suffix in LISTED] or files)


def _encoder(rules: Path | None) -> tuple[Any, Callable[[str], np.ndarray]]:
    """(dtype, document -> its tokens and the end of text: byte 0, or <|endoftext|>)."""
    if rules is None:
        return np.uint8, lambda text: np.frombuffer(text.encode() + b"\0", np.uint8)
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError(
            f"{rules} needs Hugging Face tokenizers: pip install 'surge[data]'"
        ) from None
    try:
        encoder = Tokenizer.from_file(str(rules))
    except Exception as error:  # the class itself is all that tokenizers raises
        raise ValueError(f"{rules} is not a tokenizer.json ({error})") from None
    end = encoder.token_to_id("<|endoftext|>")
    dtype = np.uint16 if encoder.get_vocab_size() <= 2**16 else np.uint32
    closing = [] if end is None else [end]
    return dtype, lambda text: np.asarray([*encoder.encode(text).ids, *closing], dtype)


def _pack(file: IO[bytes], texts: Iterator[str], rules: Path | None) -> int:
    """Writes the tokens of documents to a .npy file, one by one; returns their number."""
    dtype, encode = _encoder(rules)
    count = 0

    def head() -> None:  # as long for every count: NumPy leaves room for the array to grow
        layout = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, layout)

    head()
    for tokens in (encode(text) for text in texts if text):
        file.write(tokens.tobytes())
        count += len(tokens)
    file.seek(0)
    head()
    return count


def _stamp(path: Path) -> tuple[str, int, int]:
    return str(path), path.stat().st_size, path.stat().st_mtime_ns


def text_tokens(source: str = STDLIB, tokenizer: str = "bytes", split: str = "train") -> np.ndarray:
    """All tokens of a text [n], memory-mapped.

    The file is packed once and kept in the cache. It is packed again when a local file that it is
    made from, or the tokenizer's, has changed, or where its digest says that it is damaged.

    Args:
      source: a text file; a directory of them; a file or directory of rows with a text column (or
        ELI5's) in a format of `datasets`, or a name on its hub, as owner/name or
        owner/name:configuration; or "stdlib".
      tokenizer: "bytes" (256 tokens), or a `tokenizers` file such as GPT-2's tokenizer.json.
      split: of a `datasets` data set.

    Raises:
      ValueError: no such text or tokenizer, not UTF-8, or empty.
    """
    files = _files(source)
    rules = None
    if tokenizer != "bytes":
        rules = Path(tokenizer).expanduser().resolve()
        if not rules.is_file():
            raise ValueError(
                f"no tokenizer at {tokenizer}: give 'bytes', or the path of a tokenizer.json"
            )
    made_from = [_stamp(path) for path in files] or source, rules and _stamp(rules), split
    name = hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]
    path = cache_directory() / f"text-{name}.npy"

    def write(file: IO[bytes]) -> None:
        if not _pack(file, _documents(source, files, split), rules):
            raise ValueError(f"the text of {source} is empty")

    if not is_sealed(path):
        write_sealed(path, write)
    return np.load(path, mmap_mode="r")
