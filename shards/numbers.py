"""Numbers as tables write them, where a table of text is all that there is."""

from __future__ import annotations

import math
import re

from shards.missing import is_missing
from shards.shown import shown

_MAX_SHOWN = 60


def finite_number(cell: str) -> float:
    """Return the number in `cell`, with a decimal point or comma.

    Raises:
        ValueError: if it is none, or not finite.
    """
    try:
        value = float(cell.replace(",", ".").replace("_", "?"))
    except ValueError:
        raise ValueError(f"{shown(cell, _MAX_SHOWN)!r} is none") from None
    if not math.isfinite(value):
        raise ValueError(f"{shown(cell, _MAX_SHOWN)!r} is not finite")
    return value


def number_of(value: object) -> float | None:
    """Return the number that a value is or that a text says; NaN where a word says that there is none.

    None if it is no number.
    """
    if not isinstance(value, str):
        return value if isinstance(value, int | float) else None
    if is_missing("", value):
        return math.nan
    try:
        return int(value) if re.fullmatch("[+-]?[0-9]{1,300}", value) else finite_number(value)
    except ValueError:
        return None
