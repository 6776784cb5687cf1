"""The limits that docs/security.md states are those of the code."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
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


def test_every_limit_of_the_code_is_stated() -> None:
    """A name that says MAX_ and is no one's private matter bounds what others give."""
    defined = {
        f"{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}.{name}"
        for package in ("shards", "metaser", "launch")
        for path in (ROOT / package).rglob("*.py")
        for name in re.findall(r"^(MAX_[A-Z_]+)\b.*=", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    stated = {f"{module}.{name}" for _, module, name in LIMITS}
    assert defined - stated == {"metaser.eval.figures.MAX_NUMBERED_CELLS"}
