"""Scalars of TensorBoard's event files, read without TensorBoard.

A file is a row of records: length, its check sum, an Event message, its check sum. Of the messages
(tensorflow/core/util/event.proto, framework/summary.proto and tensor.proto) few fields matter:
step, and each summary value's tag and number.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from surge.workdir.files import ResultError

MARK = "tfevents"  # in the name of every such file
HEADER = 12  # bytes before a message
FOOTER = 4  # and after it
VARINT = 0  # wire types of protocol buffers
BYTES = 2
LENGTHS = {1: 8, 5: 4}  # of the wire types that have one, in bytes
STEP = 2  # fields of Event
SUMMARY = 5
VALUE = 1  # of Summary
TAG = 1  # of Summary.Value
SIMPLE = 2
TENSOR = 8
DTYPE = 1  # of TensorProto
CONTENT = 4
FLOATS = 5
DOUBLES = 6
DTYPES = {1: "<f4", 2: "<f8"}


def is_log(path: Path) -> bool:
    """Whether it is an event file, or a folder, in which such are looked for."""
    return path.is_dir() or MARK in path.name


def read(path: Path) -> pd.DataFrame:
    """The scalars of an event file or of all those under a folder: a row a step, a column a tag.

    Of two values of one tag and step the later one counts, as where a run was resumed.

    Raises:
      ResultError: no file, no scalars, or a file that is not one.
    """
    files = sorted(path.rglob(f"*{MARK}*")) if path.is_dir() else [path]
    if not files or not path.exists():
        raise ResultError(f"{path} holds no event file of TensorBoard (*{MARK}*)")
    rows = [row for file in files for row in _scalars(file)]
    if not rows:
        raise ResultError(f"{path} holds no scalars")
    table = pd.DataFrame(rows, columns=["step", "tag", "value"])
    wide = table.groupby(["step", "tag"]).value.last().unstack("tag")
    return wide.rename_axis(columns=None).reset_index()


def _scalars(file: Path) -> Iterator[tuple[int, str, float]]:
    """Step, tag and value of each scalar; a file still being written ends where it is whole."""
    data = file.read_bytes()
    start = 0
    try:
        while start + HEADER < len(data):
            (length,) = struct.unpack_from("<Q", data, start)
            message = data[start + HEADER : start + HEADER + length]
            if len(message) < length:
                return
            yield from _of_event(message)
            start += HEADER + length + FOOTER
    except (IndexError, UnicodeDecodeError, ValueError, struct.error):
        raise ResultError(f"{file} is not an event file of TensorBoard") from None


def _of_event(message: bytes) -> Iterator[tuple[int, str, float]]:
    steps = [field.whole for field in _fields(message) if field.number == STEP]
    for summary in _contents(message, SUMMARY):
        for value in _contents(summary, VALUE):
            number = _number(value)
            if number is not None:
                yield sum(steps), _contents(value, TAG)[0].decode(), number


def _number(value: bytes) -> float | None:
    """Of one summary value; None where it is no scalar."""
    for simple in _contents(value, SIMPLE):
        return struct.unpack("<f", simple)[0]
    for tensor in _contents(value, TENSOR):
        kinds = [DTYPES.get(field.whole) for field in _fields(tensor) if field.number == DTYPE]
        kind = kinds[0] if kinds else None
        content = b"".join(b"".join(_contents(tensor, one)) for one in (CONTENT, FLOATS, DOUBLES))
        if kind is not None and len(content) == np.dtype(kind).itemsize:
            return float(np.frombuffer(content, kind)[0])
    return None


class _Field(NamedTuple):
    """Of a protocol buffer: a whole number or a content."""

    number: int
    whole: int
    content: bytes


def _contents(message: bytes, number: int) -> list[bytes]:
    return [field.content for field in _fields(message) if field.number == number]


def _fields(message: bytes) -> Iterator[_Field]:
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == VARINT:
            value, at = _varint(message, at)
            yield _Field(key >> 3, value, b"")
            continue
        if wire == BYTES:
            length, at = _varint(message, at)
        elif wire in LENGTHS:
            length = LENGTHS[wire]
        else:
            raise ValueError(f"wire type {wire}")
        yield _Field(key >> 3, 0, message[at : at + length])
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, and where it ends."""
    value = 0
    shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
