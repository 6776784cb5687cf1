"""Points in time as tables write them: seconds, clocks, pandas' Timedelta, ISO 8601 durations."""

from __future__ import annotations

import math
import re

_NUMBER = r"[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+"
_PLAIN = re.compile(rf"(?P<number>[+-]?(?:{_NUMBER})(?:[eE][+-]?[0-9]+)?)\s*(?P<unit>ms|msec|s|sec|seconds?)?")
_CLOCK = re.compile(
    rf"(?:(?P<days>[0-9]+) days?,? \+?)?(?:(?P<hours>[0-9]+):)?(?P<minutes>[0-9]{{1,9}}):(?P<seconds>{_NUMBER})"
)
_DAYS = re.compile(r"(?P<days>[0-9]+) days?")
_ISO = re.compile(
    rf"P(?:(?P<days>{_NUMBER})D)?(?:T(?:(?P<hours>{_NUMBER})H)?(?:(?P<minutes>{_NUMBER})M)?(?:(?P<seconds>{_NUMBER})S)?)?"
)
_MAX_SHOWN = 60
_SECONDS_PER = {"days": 86_400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0}


def seconds_in(cell: str, unit_s: float = 1.0) -> float:
    """Return the time that `cell` names, in seconds.

    Args:
        cell: A number, a number with its unit, `mm:ss`, `hh:mm:ss.fff`, `0 days 00:00:01.5` or `PT1.5S`.
        unit_s: Seconds per unit of a number that names none.

    Raises:
        ValueError: if it is none of these, or not finite.
    """
    plain = _PLAIN.fullmatch(cell)
    if plain is not None:
        unit = plain["unit"]
        per_unit_s = unit_s if unit is None else 0.001 if unit.startswith("m") else 1.0
        time_s = float(plain["number"].replace(",", ".")) * per_unit_s
        if not math.isfinite(time_s):
            raise ValueError(f"{cell[:_MAX_SHOWN]!r} is not finite")
        return time_s
    match = _CLOCK.fullmatch(cell) or _DAYS.fullmatch(cell) or _ISO.fullmatch(cell)
    parts = {} if match is None else {name: _number(part) for name, part in match.groupdict().items() if part}
    is_clock = match is not None and match.re is _CLOCK
    if not parts or (is_clock and (parts["seconds"] >= 60 or ("hours" in parts and parts["minutes"] >= 60))):
        raise ValueError(
            f"{cell[:_MAX_SHOWN]!r} is no time such as 1.5, 00:01.5, 01:02:03.5, 0 days 00:00:01.5 or PT1.5S"
        )
    time_s = sum(_SECONDS_PER[name] * number for name, number in parts.items())
    if not math.isfinite(time_s):
        raise ValueError(f"{cell[:_MAX_SHOWN]!r} is not finite")
    return time_s


def _number(digits: str) -> float:
    return float(digits.replace(",", "."))
