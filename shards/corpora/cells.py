"""Metadata as people write it, in a table's cells or beside the audio in a tar, turned into an utterance's fields."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from shards.corpora.files import finite_number
from shards.errors import CorpusError
from shards.labels import STYLES, canonical_emotion, canonical_gender
from shards.schema import METADATA_FIELDS, SPLITS

_NUMBERS = ("valence", "arousal", "dominance", "age")


class CellError(Exception):
    """A cell that cannot be what its name says; `kind` is a category to count by."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def number_in(name: str, cell: str) -> float:
    """Return the number in `cell`, with a decimal point or comma.

    Raises:
        CellError: if it is none, or not finite.
    """
    try:
        return finite_number(cell)
    except ValueError as error:
        raise CellError("bad number", f"{name} must be a finite number, got {cell!r}") from error


def metadata_in(cells: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of `Utterance` that `cells` name; words from fixed lists in their one spelling.

    Raises:
        CellError: if a cell holds something else.
    """
    words = {name: cells[name] for name in METADATA_FIELDS if name in cells}
    numbers = {name: number_in(name, words[name]) for name in _NUMBERS if name in words}
    try:
        return {**words, **numbers, **_labels(words)}
    except CorpusError as error:
        raise CellError("unknown label", str(error)) from error


def _labels(words: Mapping[str, str]) -> dict[str, str | dict[str, float]]:
    labels: dict[str, str | dict[str, float]] = {}
    if "emotion" in words:
        labels["emotion"] = canonical_emotion(words["emotion"])
    if "gender" in words:
        labels["gender"] = canonical_gender(words["gender"])
    for name, allowed in (("style", STYLES), ("split", SPLITS)):
        if name in words:
            labels[name] = words[name].lower()
            if labels[name] not in allowed:
                raise CellError("unknown label", f"{name} must be one of {', '.join(allowed)}, got {words[name]!r}")
    if "emotion_votes" in words:
        labels["emotion_votes"] = _votes(words["emotion_votes"])
    return labels


def _votes(cell: str) -> dict[str, float]:
    try:
        votes = json.loads(cell, parse_int=float)
    except ValueError:
        votes = None
    if not isinstance(votes, dict) or not all(isinstance(v, float) and 0 <= v < math.inf for v in votes.values()):
        raise CellError("bad number", f'emotion_votes must be JSON like {{"anger": 2, "neutral": 1}}, got {cell!r}')
    total: dict[str, float] = {}
    for word, share in votes.items():
        emotion = canonical_emotion(word)
        total[emotion] = total.get(emotion, 0.0) + share
    return total
