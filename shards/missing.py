"""Words that programs and people write where they have no value."""

from __future__ import annotations

_WORDS = frozenset(
    {
        "#n/a",
        "#na",
        "-",
        "--",
        "---",
        ".",
        "<na>",
        "?",
        "??",
        "???",
        "missing",
        "n.a.",
        "n/a",
        "na",
        "nan",
        "nat",
        "nil",
        "none",
        "not available",
        "null",
        "undefined",
        "unk",
        "unknown",
        "\N{EN DASH}",
        "\N{EM DASH}",
    }
)
_NAMES = frozenset({"Na", "Nan", "Nat", "Nil"})
"""Spelled as people are; no program writes a missing value so."""
_NO_EMOTION = frozenset({"xxx", "no agreement"})
"""What IEMOCAP and its descendants write where annotators disagree."""
NAMING_FIELDS = frozenset({"speaker", "session", "dialogue", "turn", "key"})
"""Fields whose values are names."""


def is_missing(field: str, word: str) -> bool:
    """Return whether `word` says that `field` has no value."""
    lowered = word.lower()
    if field == "emotion" and lowered in _NO_EMOTION:
        return True
    return lowered in _WORDS and not may_be_name(field, word)


def may_be_name(field: str, word: str) -> bool:
    """Return whether `word` looks like a word for missing, but is spelled as a name where names stand."""
    return field in NAMING_FIELDS and word in _NAMES
