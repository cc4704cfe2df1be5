"""Numbers as files of annotations write them: in ASCII digits, and never what Python alone takes for a number."""

import re
from typing import Any

_WHOLE = re.compile(r"[+-]?[0-9]{1,4000}(\.0)?")  # int() refuses longer ones
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def read_whole(value: Any) -> int | None:
    """Read 7, 7.0, "7" or "7.0" as 7; None for anything else, such as True, 7.5, "1_12" or "\u0667"."""
    if isinstance(value, str):
        return int(value.removesuffix(".0")) if _WHOLE.fullmatch(value) else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_number(value: Any) -> float | None:
    """Read an int, a float or a decimal number in text; None for anything else, such as True, "nan" or "1_2"."""
    if isinstance(value, str):
        return float(value) if _DECIMAL.fullmatch(value) else None
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:
        return None
