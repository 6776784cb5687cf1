"""What a value means, so that two programs' spellings of one value can be told from two values."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from shards.corpora.cells import as_text, split_in
from shards.corpora.identities import tidy
from shards.corpora.times import seconds_in
from shards.labels import canonical_gender, known_emotion

_NUMBER = re.compile(r"[+-]?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?")
"""Not `007`, which is a name."""
_WORDS: Mapping[str, Callable[[str], str | None]] = {
    "emotion": known_emotion,
    "gender": canonical_gender,
    "split": split_in,
}


def meaning_of(column: str, value: Any) -> Hashable:
    """Return the same for `1` and `1.0`, `True` and `true`, two spellings of a time or of a known word."""
    text = tidy(as_text(value))
    known_word = _WORDS.get(column.lower())
    word = None if known_word is None else known_word(text)
    if word is not None:
        return word
    if _NUMBER.fullmatch(text):
        return Decimal(text)
    if text.lower() in ("true", "false"):
        return "truth", text.lower() == "true"
    return _moment(text) or text


def microseconds(cell: str) -> int | str:
    """Return the time that `cell` names, or `cell` itself where it names none."""
    try:
        return round(seconds_in(cell) * 1_000_000)
    except ValueError:
        return cell


def _moment(text: str) -> tuple[str, Hashable] | None:
    """Return the length or the point of time that a text names."""
    if text.isdigit():
        return None
    length = microseconds(text)
    if not isinstance(length, str):
        return "length", length
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return "moment", moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
