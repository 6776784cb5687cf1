"""One person, one spelling: the Unicode form of words, numbers as spreadsheets write them, and what is nearly equal."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping

from shards.schema import Utterance

_NUMBERED = re.compile(r"(?P<whole>[+-]?[0-9]+)\.0+")
_INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")
_WORD_FIELDS = (
    "text",
    "language",
    "emotion",
    "gender",
    "speaker",
    "style",
    "intensity",
    "session",
    "dialogue",
    "turn",
)


def tidy(text: str) -> str:
    """Return `text` in Unicode's composed form (NFC), without blanks and invisible signs around it."""
    if text.isascii():
        return text.strip()
    first, end = 0, len(text)
    while first < end and unicodedata.category(text[first]) in _INVISIBLE:
        first += 1
    while first < end and unicodedata.category(text[end - 1]) in _INVISIBLE:
        end -= 1
    return unicodedata.normalize("NFC", text[first:end])


def plain_name(name: str) -> str:
    """Return `3` for `3.0`, which is what a column of numbers with a gap becomes in a spreadsheet."""
    match = _NUMBERED.fullmatch(name)
    return name if match is None else match["whole"]


def composed(utterance: Utterance) -> Utterance:
    """Return an utterance whose words are in NFC, however its corpus writes them."""
    words = {name: getattr(utterance, name) for name in _WORD_FIELDS}
    changed: dict[str, object] = {
        name: unicodedata.normalize("NFC", word)
        for name, word in words.items()
        if isinstance(word, str) and not unicodedata.is_normalized("NFC", word)
    }
    votes = utterance.emotion_votes
    if votes is not None and not all(unicodedata.is_normalized("NFC", word) for word in votes):
        changed["emotion_votes"] = {unicodedata.normalize("NFC", word): votes[word] for word in votes}
    return utterance.model_copy(update=changed) if changed else utterance


def nearly_equal(counts: Mapping[str, int]) -> list[list[str]]:
    """Return groups of names that differ in case, blanks, punctuation, accents' form or leading zeros only."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in counts:
        groups[_folded(name)].append(name)
    return [sorted(names) for folded, names in sorted(groups.items()) if folded and len(names) > 1]


def _folded(name: str) -> str:
    compatible = unicodedata.normalize("NFKC", name).casefold()
    # What stands between digits tells 1-11 and 11-1 apart.
    parted = re.sub(r"(?<=[0-9])[\W_]+(?=[0-9])", ".", compatible)
    letters = "".join(sign for sign in parted if sign.isalnum() or sign == "." or unicodedata.category(sign) == "Mn")
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", re.sub(r"(?<![0-9])\.|\.(?![0-9])", "", letters))


def shown(words: Iterable[tuple[str, int]], limit: int = 12) -> str:
    """Return words and their counts as `anger (3), joy (1)`, the first `limit` of them."""
    listed = [f"{word} ({count})" for word, count in words]
    rest = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest
