"""One person, one spelling: the Unicode form of words, numbers as spreadsheets write them, and what is nearly equal."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal

from shards.schema import Utterance

_NUMBERED = re.compile(r"(?P<whole>[+-]?[0-9]+)[.,]0+")
_GROUPED = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:[.,' ][0-9]{3})+")
"""Thousands set apart, or three decimals."""
_DECIMAL = re.compile(r"[+-]?[0-9]{1,25}(?:[.,][0-9]{0,25})?(?:e[+-]?[0-9]{1,3})?")
_SHORTENED = re.compile(r"[+-]?[0-9](?:[.,][0-9]+)?[eE]\+[0-9]+")
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
    """Return `3` for `3.0` or `3,0`, which is what a column of numbers with a gap becomes in a spreadsheet.

    `3.000` may be three thousand, and stays.
    """
    return name if _GROUPED.fullmatch(name) else plain_code(name)


def plain_code(code: str) -> str:
    """Return a class's number without zero decimals; no class is the thousandth."""
    match = _NUMBERED.fullmatch(code)
    return code if match is None else match["whole"]


def is_shortened(name: str) -> bool:
    """Return whether a name is a long number as spreadsheets show it, `1.23E+10`: one word for many."""
    return _SHORTENED.fullmatch(name) is not None


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
    """Return groups of names that differ only in case, blanks, punctuation, accents' form or how a number is written.

    A name may be `corpus:name`.
    """
    linked: dict[str, str] = {}
    for name in counts:
        first, *others = _keys(name)
        for other in others:
            linked[_end(linked, other)] = _end(linked, first)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in counts:
        groups[_end(linked, next(_keys(name)))].append(name)
    return sorted(sorted(names) for key, names in groups.items() if key and len(names) > 1)


def _end(linked: Mapping[str, str], key: str) -> str:
    while linked.get(key, key) != key:
        key = linked[key]
    return key


def _keys(name: str) -> Iterator[str]:
    """Yield what equals that of another name which may be meant: first its letters, then the numbers it may be."""
    compatible = unicodedata.normalize("NFKC", name).casefold()
    compatible = "".join(str(unicodedata.decimal(sign, sign)) for sign in compatible)
    yield _folded(compatible)
    corpus, _, number = compatible.rpartition(":")
    if _DECIMAL.fullmatch(number):
        value = abs(Decimal(number.replace(",", "."))).normalize()
        if value == value.to_integral_value():
            yield f"{corpus}:{value}"
    if _GROUPED.fullmatch(number):
        yield f"{corpus}:{Decimal(re.sub('[^0-9]', '', number)[:25]).normalize()}"


def _folded(compatible: str) -> str:
    # What stands between digits tells 1-11 and 11-1 apart.
    parted = re.sub(r"(?<=[0-9])[\W_]+(?=[0-9])", ".", compatible)
    letters = "".join(sign for sign in parted if sign.isalnum() or sign == "." or unicodedata.category(sign) == "Mn")
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", re.sub(r"(?<![0-9])\.|\.(?![0-9])", "", letters))


def shown(words: Iterable[tuple[str, int]], limit: int = 12) -> str:
    """Return words and their counts as `anger (3), joy (1)`, the first `limit` of them."""
    listed = [f"{word} ({count})" for word, count in words]
    rest = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest
