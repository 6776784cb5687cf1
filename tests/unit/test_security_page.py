"""The limits that docs/security.md states are those of the code."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
ROW = re.compile(r"^\| [^|]+ \| ([^|]+) \| `([a-z_.]+)\.([A-Z_]+)` \|$", re.MULTILINE)
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def value_of(text: str) -> float | tuple[float, ...]:
    """Return what the page writes as 1 GiB, 10,000, 2^27 or 1 to 9."""
    if " to " in text:
        return tuple(map(float, text.replace(",", "").split(" to ")))
    number, _, unit = text.replace(",", "").partition(" ")
    base, _, power = number.partition("^")
    value = float(base) ** int(power) if power else float(base)
    return value * UNITS[unit] if unit else value


LIMITS = ROW.findall(PAGE.read_text())


def test_the_page_has_the_limits() -> None:
    table = PAGE.read_text().partition("## Limits")[2].partition("\n## ")[0]
    assert len(LIMITS) == sum(line.startswith("| ") for line in table.splitlines()) - 1 > 5


@pytest.mark.parametrize(("stated", "module", "name"), LIMITS)
def test_a_limit_is_as_stated(stated: str, module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) == value_of(stated)
