"""What a user says about data of their own on the command line, as `ReadOptions` hold it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from shards.errors import CorpusError

SIDES = {"left": 1, "l": 1, "right": 2, "r": 2}
"""Channels as people call them."""
_MAX_DIGITS = 9


def columns_said(pairs: Sequence[str]) -> dict[str, str | None]:
    """Return what columns are, from `label=emotion`; nothing behind `=` leaves the column out.

    Raises:
        CorpusError: if one is no such pair, or a column is said to be two things.
    """
    columns: dict[str, str | None] = {}
    for pair in pairs:
        column, separator, meaning = pair.rpartition("=")
        if not separator or not column.strip():
            raise CorpusError(f"--map must be COLUMN=FIELD, such as label=emotion, got {pair!r}")
        _put(columns, column, meaning.strip().lower() or None, "--map")
    return columns


def labels_said(parts: Sequence[str]) -> dict[str, str | None]:
    """Return what emotions' words mean, from `Wut=anger,joyful=happiness` or the name of a YAML file.

    Raises:
        CorpusError: if one is neither, or a word is said to mean two emotions.
    """
    labels: dict[str, str | None] = {}
    for part in parts:
        for word, meaning in _pairs(part):
            _put(labels, word, meaning, "--labels")
    return labels


def channel_number(said: str) -> int:
    """Return the number of a channel, counted from 1.

    Raises:
        CorpusError: if `said` is no number above 0, nor left or right.
    """
    is_number = said.isascii() and said.isdigit() and len(said) <= _MAX_DIGITS
    number = SIDES.get(said.lower()) or (int(said) if is_number else 0)
    if number < 1:
        raise CorpusError(f"--channel must be a number from 1, left or right, got {said!r}")
    return number


def _put(said: dict[str, str | None], word: str, meaning: str | None, option: str) -> None:
    word = word.strip()
    if said.setdefault(word, meaning) != meaning:
        raise CorpusError(f"{option} must say one thing of {word!r}, got {said[word]!r} and {meaning!r}")


def _pairs(part: str) -> list[tuple[str, str | None]]:
    if Path(part).suffix.lower() in (".yaml", ".yml"):
        return _listed(Path(part))
    pairs = [pair.partition("=") for pair in part.split(",") if pair.strip()]
    if not pairs or not all(separator and word.strip() for word, separator, _ in pairs):
        raise CorpusError(f"--labels must be WORD=EMOTION,... or a .yaml file, got {part!r}")
    return [(word, meaning.strip() or None) for word, _, meaning in pairs]


def _listed(path: Path) -> list[tuple[str, str | None]]:
    try:
        # As strings: YAML would take 010 for 8 and no for false.
        listed = yaml.load(path.read_bytes(), Loader=yaml.BaseLoader)  # noqa: S506
    except OSError as error:
        raise CorpusError(f"--labels must name a file that can be read, but {path} cannot: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise CorpusError(f"{path} must be YAML, but {' '.join(str(error).split())}") from error
    if not isinstance(listed, dict) or not all(isinstance(meaning, str) for meaning in listed.values()):
        raise CorpusError(f"{path} must give an emotion for each word, such as `Wut: anger`")
    return [(word, None if meaning.lower() in ("", "null", "~") else meaning) for word, meaning in listed.items()]
