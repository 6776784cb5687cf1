"""Metadata as people write it, in a table's cells or beside the audio in a tar, turned into an utterance's fields."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shards.corpora.identities import is_shortened, plain_code, plain_name, tidy
from shards.corpora.tally import Tally
from shards.emotionwords import folded
from shards.errors import CorpusError
from shards.jsontext import JsonTextError, parse_json
from shards.labels import STYLES, canonical_gender, known_emotion, language_code, own_emotion
from shards.missing import NAMING_FIELDS, is_missing, may_be_name
from shards.numbers import finite_number
from shards.schema import METADATA_FIELDS, SPLITS

_NUMBERS = ("valence", "arousal", "dominance", "age")
_MAX_SHOWN = 60
MAX_CELL_CHARS = 100_000
"""Of what a row says in one place; an hour of speech has half as many."""
_MAX_VOTES = 1e9
"""For one emotion; no corpus has asked so many people."""
_SPLIT_WORDS = {
    "training": "train",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "devel": "dev",
    "development": "dev",
    "testing": "test",
}


class CellError(Exception):
    """A cell that cannot be what its name says; `kind` is a category to count by."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def as_text(value: Any) -> str:
    """Return a value as a table of text would hold it."""
    if value is None:
        return ""
    if isinstance(value, bool | int | float | list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def cell_of(name: str, field_name: str, value: Any) -> str:
    """Return the value that a field has under `name`, as a table of text would hold it.

    Raises:
        CellError: if it is several values, bytes, or longer than anything that is said of an utterance.
    """
    if isinstance(value, list | tuple | dict | bytes) and field_name != "emotion_votes":
        raise CellError("bad value", f"{name} must be one value, got {as_text(value)[:_MAX_SHOWN]}")
    text = as_text(value)
    if len(text) > MAX_CELL_CHARS:
        raise CellError("bad value", f"{name} must have at most {MAX_CELL_CHARS} characters, but has {len(text)}")
    return text


def number_in(name: str, cell: str) -> float:
    """Return the number in `cell`, with a decimal point or comma.

    Raises:
        CellError: if it is none, or not finite.
    """
    try:
        return finite_number(cell)
    except ValueError as error:
        raise CellError("bad number", f"{name} must be a finite number, got {_cut(cell)}") from error


def split_in(cell: str) -> str | None:
    """Return the split that a word names, or None."""
    lowered = cell.lower()
    split = _SPLIT_WORDS.get(lowered, lowered)
    return split if split in SPLITS else None


@dataclass
class CellReader:
    """Reads cells, and counts what it reads as something else than they say."""

    labels: Mapping[str, str | None] = field(default_factory=dict)
    """What an emotion's word means to this corpus, before the usual meaning; None: no emotion."""
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self._labels = {_alike(word): (word, meaning) for word, meaning in self.labels.items()}

    def present(self, cells: Mapping[str, str]) -> dict[str, str]:
        """Return the cells that hold a value, tidied; words for a missing one are absent.

        They stay in a text, and as an emotion where the user says what they mean.
        """
        found = {}
        for name, cell in cells.items():
            word = tidy(cell)
            if not word:
                continue
            if name == "text":
                found[name] = self._text(word)
            elif self._is_no_value(name, word):
                self.tally.add("missing", name, word)
            else:
                found[name] = self._name(name, word) if name in NAMING_FIELDS else word
        return found

    def _is_no_value(self, name: str, word: str) -> bool:
        """Tell whether `word` says that there is none; an emotion's may have a meaning that the user gave."""
        return is_missing(name, word) and not (name == "emotion" and _alike(word) in self._labels)

    def metadata(self, cells: Mapping[str, str]) -> dict[str, Any]:
        """Return the fields of `Utterance` that `cells`, as `present` returns them, name.

        Raises:
            CellError: if a cell holds something else.
        """
        words = {name: cells[name] for name in METADATA_FIELDS if name in cells}
        numbers = {name: number_in(name, words[name]) for name in _NUMBERS if name in words}
        return {**words, **numbers, **self._fixed_words(words)}

    def _text(self, word: str) -> str:
        if is_missing("text", word):
            self.tally.add("kept text", "text", word)
        return word

    def _name(self, name: str, word: str) -> str:
        if may_be_name(name, word):
            self.tally.add("kept name", name, word)
        if is_shortened(word):
            self.tally.add("shortened number", name, word)
        plain = plain_name(word)
        if plain != word and name != "key":
            self.tally.add("number as name", name, word, plain)
            return plain
        return word

    def _fixed_words(self, words: Mapping[str, str]) -> dict[str, str | dict[str, float] | None]:
        found: dict[str, str | dict[str, float] | None] = {}
        if "emotion" in words:
            found["emotion"] = self.emotion(words["emotion"])
        if "gender" in words:
            found["gender"] = self._read_as("gender", words["gender"], canonical_gender(words["gender"]))
        if "style" in words:
            found["style"] = words["style"].lower()
            if found["style"] not in STYLES:
                raise CellError(
                    "unknown label", f"style must be one of {', '.join(STYLES)}, got {_cut(words['style'])}"
                )
        if "language" in words:
            found["language"] = self._language(words["language"])
        if "split" in words:
            split = split_in(words["split"])
            if split is None:
                raise CellError(
                    "unknown label", f"split must be one of {', '.join(SPLITS)}, got {_cut(words['split'])}"
                )
            found["split"] = self._read_as("split", words["split"], split)
        if "emotion_votes" in words:
            found["emotion_votes"] = self._votes(words["emotion_votes"])
        return found

    def emotion(self, word: str) -> str | None:
        """Return the one spelling of an emotion, the inventory's where it is known."""
        if _alike(word) in self._labels:
            said, meaning = self._labels[_alike(word)]
            self.tally.add("read as", "emotion", said, meaning or "absent")
            return meaning
        known = known_emotion(word)
        if known is not None:
            return self._read_as("emotion", word, known)
        own = own_emotion(plain_code(word))
        is_number = re.fullmatch(r"[+-]?[0-9.,]+", own) is not None
        self.tally.add("number as label" if is_number else "own word", "emotion", own)
        return own

    def _language(self, word: str) -> str:
        code = language_code(word)
        if code is None:
            self.tally.add("no code", "language", word)
            return word
        return self._read_as("language", word, code)

    def _read_as(self, name: str, word: str, meaning: str) -> str:
        if word.lower() != meaning.lower():
            self.tally.add("read as", name, word, meaning)
        return meaning

    def _votes(self, cell: str) -> dict[str, float] | None:
        """Return the votes by emotion, or None where there are none; null is no vote."""
        try:
            votes = parse_json(cell)
        except JsonTextError:
            votes = None
        if isinstance(votes, dict):
            # Columnar files fill in what a row does not name.
            votes = {word: share for word, share in votes.items() if share is not None}
        if not isinstance(votes, dict) or not all(map(_is_share, votes.values())):
            raise CellError(
                "bad number", f'emotion_votes must be JSON like {{"anger": 2, "neutral": 1}}, got {_cut(cell)}'
            )
        total: dict[str, float] = {}
        for word, share in votes.items():
            emotion = None if not word.strip() or self._is_no_value("emotion", word) else self.emotion(word)
            if emotion is not None:
                total[emotion] = total.get(emotion, 0.0) + float(share)
        return total or None


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_VOTES


def _cut(cell: str) -> str:
    return repr(cell[:_MAX_SHOWN])


def _alike(word: str) -> str:
    """Return what an emotion's word is compared by: a number's sign counts, its zero decimals do not."""
    plain = plain_code(unicodedata.normalize("NFKC", word).strip())
    return plain if re.fullmatch(r"[+-]?[0-9.,]+", plain) else folded(plain) or plain


def labels_of(labels: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return what words mean, the meanings in their one spelling.

    Raises:
        CorpusError: if one word means two emotions.
    """
    found: dict[str, tuple[str, str | None]] = {}
    for word, meaning in labels.items():
        spelled = None if meaning is None else known_emotion(meaning) or own_emotion(meaning)
        said, before = found.setdefault(_alike(word), (word, spelled))
        if before != spelled:
            raise CorpusError(f"--labels must give a word one meaning, but {said} and {word} are the same word")
    return dict(found.values())
