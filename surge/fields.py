"""A field of the config, said once: its default, its type and its range.

Each function here declares one field of a frozen dataclass; `read` turns what a user gave into
values of the declared types, or into one sentence.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Reader = Callable[[str, Any], Any]  # (name of the field, what was given) -> its value

MANY = 2**31 - 1  # what compiled programs count with, int32
LONG = 2**53  # whole numbers that a float holds exactly
SHOWN = 60  # characters of a refused value in a sentence
SCALARS = (bool, int, float, str, type(None))


class ConfigError(ValueError):
    """A config that cannot be run; the message is one sentence for the user."""


def whole(default: int, *, least: int = 0, most: int = MANY, factor: int = 1) -> Any:
    """A whole number from `least` to `most`, a multiple of `factor`."""
    return _field(default, _whole(least, most, factor))


def wholes(default: tuple[int, ...], *, empty: bool = False) -> Any:
    """Different whole numbers of at least 1; at least one of them, unless `empty`."""

    def reader(name: str, value: Any) -> tuple[int, ...]:
        numbers = _sequence(value)
        good = numbers is not None and all(_is_whole(item) and item > 0 for item in numbers)
        if numbers is None or not good or not (numbers or empty):
            raise ConfigError(
                f"config.{name} must be whole numbers of at least 1, got {shown(value)}"
            )
        return _different(name, tuple(_whole(1, MANY, 1)(name, item) for item in numbers))

    return _field(default, reader)


def number(default: float, *, above: float = -math.inf, most: float = math.inf) -> Any:
    """A finite number in (above, most]."""

    def reader(name: str, value: Any) -> float:
        value = unwrapped(value)
        if not _is_number(value):
            raise ConfigError(f"config.{name} must be a finite number, got {shown(value)}")
        if not above < value <= most:
            limit = f"above {above:g}" if value <= above else f"at most {most:g}"
            raise ConfigError(f"config.{name} must be {limit}, got {shown(value)}")
        return float(value)

    return _field(default, reader)


def numbers(default: tuple[float, ...]) -> Any:
    """Different finite numbers, possibly none."""

    def reader(name: str, value: Any) -> tuple[float, ...]:
        items = _sequence(value)
        if items is None or not all(map(_is_number, items)):
            raise ConfigError(f"config.{name} must be numbers, like (1.5, 1.0), got {shown(value)}")
        return _different(name, tuple(map(float, items)))

    return _field(default, reader)


def bounds(name: str, value: Any) -> tuple[float, float]:
    """Reads two finite numbers, 0 < low < high."""
    ends = _sequence(value)
    good = ends is not None and len(ends) == 2 and all(map(_is_number, ends))
    if ends is None or not good or not 0 < ends[0] < ends[1]:
        raise ConfigError(f"config.{name} must be 0 < low < high, got {shown(value)}")
    return float(ends[0]), float(ends[1])


def choice(default: str, *others: str) -> Any:
    """One of the words given, the first of which is the default."""
    words = (default, *others)

    def reader(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            allowed = " or ".join(map(repr, words))
            raise ConfigError(f"config.{name} must be {allowed}, got {shown(value)}")
        return value

    return _field(default, reader)


def words(default: tuple[str, ...], allowed: tuple[str, ...]) -> Any:
    """Different words of those allowed, at least one."""

    def reader(name: str, value: Any) -> tuple[str, ...]:
        chosen = _sequence(value)
        if not chosen or not all(isinstance(word, str) and word in allowed for word in chosen):
            known = " or ".join(map(repr, allowed))
            raise ConfigError(f"config.{name} must be words among {known}, got {shown(value)}")
        return _different(name, tuple(chosen))

    return _field(default, reader)


def text(default: str) -> Any:
    """A text that is not empty, where the config is run."""
    return _field(default, read_text)


def read_text(name: str, value: Any) -> str:
    """Reads a text that is not empty."""
    if not isinstance(value, str):
        raise ConfigError(f"config.{name} must be a text in quotes, got {shown(value)}")
    if not value:
        raise ConfigError(f"config.{name} is empty")
    return value


def entries(reader: Reader) -> Any:
    """What stands under labels of the user's own, each read by `reader`; none by default."""
    return dataclasses.field(default_factory=dict, metadata={"read": reader})


def part(kind: type) -> Any:
    """A dataclass of fields within a dataclass."""

    def reader(name: str, value: Any) -> Any:
        return read(kind, value, f"{name}.")

    return dataclasses.field(default_factory=kind, metadata={"read": reader, "part": kind})


def read(kind: type, given: Any, prefix: str = "") -> Any:
    """A dataclass from the values given for its fields; a field that is absent keeps its default.

    Raises:
      ConfigError: a field is of another type or outside its range, or there is no such field.
    """
    values = mapping(prefix.rstrip("."), given)
    declared = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in declared:
            raise ConfigError(no_field(f"{prefix}{name}", str(name), declared))
    defaults = kind()
    chosen = {}
    for name, field in declared.items():
        value = values.get(name, getattr(defaults, name))
        if dataclasses.is_dataclass(value) and name not in values:
            value = {}
        chosen[name] = field.metadata["read"](f"{prefix}{name}", value)
    return kind(**chosen)


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """Reads names and values."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        where = f"config.{name}" if name else "the config"
        raise ConfigError(f"{where} must be fields with names, like a dict, got {shown(value)}")
    return value


def read_plain(name: str, value: Any) -> Any:
    """Numbers, texts, True, False, None, and tuples, lists and dicts of them: what JSON holds."""
    value = unwrapped(value)
    if isinstance(value, SCALARS):
        return value
    if isinstance(value, list | tuple):
        return type(value)(read_plain(name, item) for item in value)
    if isinstance(value, Mapping):
        items = mapping(name, value).items()
        return {key: read_plain(f"{name}.{key}", item) for key, item in items}
    raise ConfigError(
        f"config.{name} must be made of numbers, texts, tuples and dicts, got {shown(value)}"
    )


def no_field(path: str, name: str, names: Sequence[str] | Mapping[str, Any]) -> str:
    """The sentence about a field that a config does not have."""
    near = difflib.get_close_matches(name, list(names)) or list(names)
    return f"the config has no field {path}: did you mean {' or '.join(near) or 'its parent'}?"


def unwrapped(value: Any) -> Any:
    """A plain number in place of a numpy one, a list in place of an array."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def shown(value: Any) -> str:
    """A refused value, as short as a sentence can bear it."""
    if not isinstance(value, (*SCALARS, tuple, list, dict, set)):
        return f"a {type(value).__name__}"
    try:
        written = repr(value)
    except ValueError:  # Python writes no number of more than some thousand digits
        return f"a {type(value).__name__} of too many digits"
    return written if len(written) <= SHOWN else f"{written[:SHOWN]}..."


def _field(default: Any, reader: Reader) -> Any:
    return dataclasses.field(default=default, metadata={"read": reader})


def _whole(least: int, most: int, factor: int) -> Reader:
    also = f", a multiple of {factor}" if factor > 1 else ""

    def reader(name: str, value: Any) -> int:
        value = unwrapped(value)
        if not _is_whole(value) or value < least or value % factor:
            raise ConfigError(
                f"config.{name} must be a whole number of at least {least}{also}; "
                f"got {shown(value)}"
            )
        if value > most:
            raise ConfigError(f"config.{name} must be at most {most:,}, got {shown(value)}")
        return value

    return reader


def _sequence(value: Any) -> list[Any] | None:
    value = unwrapped(value)
    return [unwrapped(item) for item in value] if isinstance(value, list | tuple) else None


def _different(name: str, values: tuple) -> tuple:
    if len(set(values)) < len(values):
        raise ConfigError(f"config.{name} holds a number twice: {shown(values)}")
    return values


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """A finite number; one too large for a float is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
