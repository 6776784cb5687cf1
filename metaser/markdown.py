"""Words of others in Markdown: they make no table, no link, no HTML and no line of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from shards.shown import shown

_OBEYED = re.compile(r"([|<>`\\\[\]*~]|&(?=[#\w])|:(?=//)|(?<=www)\.|(?<=[\w.+-])@(?=\w))", re.IGNORECASE)
"""Addresses become links where they stand, too."""
_BACKTICKS = re.compile("`+")


def plain(text: str) -> str:
    """Return words as one line of which Markdown takes nothing for its own."""
    return _OBEYED.sub(r"\\\1", shown(" ".join(text.split())))


def code(text: str) -> str:
    """Return words as one line of code, in which Markdown reads nothing; not for tables."""
    line = shown(" ".join(text.split()))
    fence = "`" * (1 + max(map(len, _BACKTICKS.findall(line)), default=0))
    return f"{fence}{line}{fence}" if fence == "`" else f"{fence} {line} {fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], rule: str = "---") -> list[str]:
    """Return the lines of a table of plain words; `rule` is that of all columns but the first."""
    rules = ["---", *[rule] * (len(header) - 1)]
    lines = [[plain(cell) for cell in header], rules, *([plain(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]
