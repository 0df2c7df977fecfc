"""Numbers and intervals for people: the digits they have, thousands apart, a dash for none."""

import math
from collections.abc import Iterable
from typing import Any

DASH = "–"
DIGITS = 3  # of a value; its interval shows the same decimals
LARGEST = 1e9  # from which on a number is written with an exponent
SMALLEST = 1e-5  # below which it is, too


def number(value: float | None, digits: int = DIGITS) -> str:
    """A number at `digits` significant digits; a dash where it is undefined."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return _fixed(value, _decimals(value, digits))


def count(value: float | None) -> str:
    """A whole number in full, such as a batch size."""
    whole = value is not None and math.isfinite(value) and float(value).is_integer()
    return f"{int(value):,}" if whole else number(value)  # pyrefly: ignore


def interval(low: float | None, high: float | None, decimals: int | None = None) -> str:
    """An interval, open where one bound is missing; a dash where both are: it is undefined."""
    if all(bound is None or math.isnan(bound) for bound in (low, high)):
        return DASH
    shown = [
        end if bound is None or math.isnan(bound) else _end(bound, decimals)
        for bound, end in ((low, "-∞"), (high, "∞"))
    ]
    return f"[{shown[0]}, {shown[1]}]"


def estimate(bounds: Iterable[Any], undefined: str = DASH) -> str:
    """Value, low and high: the value with its interval, which has the value's own digits."""
    value, low, high = (None if bound is None else float(bound) for bound in bounds)
    if value is None or not math.isfinite(value):
        return undefined
    whole = interval(low, high, _decimals(value, DIGITS))
    return f"{number(value)} {'(no interval)' if whole == DASH else whole}"


def percent(share: float | None) -> str:
    """A share at two decimals of a percent; a dash where it is undefined."""
    return DASH if share is None or math.isnan(share) else f"{share:.2%}"


def listed(items: Iterable[Any]) -> str:
    """a, b and c."""
    words = [str(item) for item in items]
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _end(bound: float, decimals: int | None) -> str:
    """An end of an interval: two digits at least, and one more than a value has at most."""
    if math.isinf(bound) or decimals is None:
        return number(bound, 2)
    fewest = _decimals(bound, 2)
    most = _decimals(bound, DIGITS)
    return _fixed(bound, min(max(decimals, fewest), most))


def _decimals(value: float, digits: int) -> int:
    """Decimals that leave a number its significant digits."""
    if value == 0:
        return 0
    rounded = float(f"{value:.{digits - 1}e}")
    return max(digits - 1 - math.floor(math.log10(abs(rounded))), 0)


def _fixed(value: float, decimals: int) -> str:
    size = abs(value)
    if size >= LARGEST or 0 < size < SMALLEST:
        mantissa, _, exponent = f"{value:.{DIGITS - 1}e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    if size >= 10**DIGITS:  # digits that are not known are not shown: 86,640 is 86,600
        value = float(f"{value:.{DIGITS - 1}e}")
    return f"{value:,.{decimals}f}"
