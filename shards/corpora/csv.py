"""Anybody's own corpus: a table with a column `file` and any metadata columns, separated by commas, semicolons or tabs.

A column named like a field of `Utterance` is that field, `start` and `end` (seconds) cut a part out of the file, `key`
names the utterance, everything else is kept in `extra`. A blank cell is absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from shards.audio import AudioFile
from shards.corpora.base import CorpusReader
from shards.corpora.files import finite_number, table_rows
from shards.errors import CorpusError
from shards.labels import STYLES, canonical_emotion, canonical_gender
from shards.schema import METADATA_FIELDS, SPLITS, Rejection, SourceUtterance, Utterance, make_key

_NUMBERS = ("valence", "arousal", "dominance", "age", "start", "end")
_COLUMNS = frozenset({"file", "key", "start", "end", *METADATA_FIELDS})
_AUDIO_SUFFIXES = frozenset({".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".sph", ".wav"})
"""Left out of keys. Any other suffix stays, because in `Ses01F.impro01` it tells utterances apart."""


class _RowError(Exception):
    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def _read(source: Path | None, _seed: int) -> Iterator[SourceUtterance | Rejection]:
    if source is None or not source.is_file():
        raise CorpusError(f"SOURCE of a csv corpus must be a table (.csv or .tsv), but {source} is no file")
    rows = table_rows(source)
    columns = _header(source, rows[0][1] if rows else [])
    make_key(source.stem)  # a name that no key can carry is the table's fault, not each row's
    for number, cells in rows[1:]:
        try:
            yield _item(source, columns, cells)
        except _RowError as error:
            yield Rejection(f"{source.name} row {number}", str(error), error.kind)


def _header(table: Path, cells: list[str]) -> list[str]:
    columns = [cell.strip() for cell in cells]
    columns = [name.lower() if name.lower() in _COLUMNS else name for name in columns]
    if "file" not in columns:
        raise CorpusError(f"{table} must have a column file, but its first row is {', '.join(columns) or 'empty'}")
    repeated = sorted({name for name in columns if name and columns.count(name) > 1})
    if repeated:
        raise CorpusError(f"{table} must name each column once, but repeats {', '.join(repeated)}; rename them")
    return columns


def _item(table: Path, columns: list[str], cells: list[str]) -> SourceUtterance:
    if len(cells) != len(columns):
        raise _RowError("bad row", f"a row must have the header's {len(columns)} cells, got {len(cells)}")
    # Columns without a name are spreadsheets' row numbers or trailing separators.
    row = {name: cell.strip() for name, cell in zip(columns, cells, strict=True) if name and cell.strip()}
    if "file" not in row:
        raise _RowError("row without audio", "the column file must name the audio, but is blank")
    numbers = {name: _number(name, row[name]) for name in _NUMBERS if name in row}
    start_s, end_s = numbers.pop("start", None), numbers.pop("end", None)
    if (start_s or 0.0) < 0 or (end_s is not None and end_s <= (start_s or 0.0)):
        raise _RowError("bad number", f"start and end must satisfy 0 <= start < end, got {start_s} and {end_s}")
    path = table.parent / row["file"]
    if not _is_file(path):
        raise _RowError("row without audio", f"{row['file']} is no file (looked for {path})")
    words = {name: row[name] for name in METADATA_FIELDS if name in row and name not in numbers}
    try:
        key = make_key(table.stem, *_key_parts(row, start_s, end_s))
    except CorpusError as error:
        raise _RowError("bad key", str(error)) from error
    try:
        labels = _labels(words)
    except CorpusError as error:
        raise _RowError("unknown label", str(error)) from error
    extra = {name: cell for name, cell in row.items() if name not in _COLUMNS}
    identity = {"key": key, "corpus": make_key(table.stem), "source": row["file"]}
    utterance = Utterance.model_validate({**identity, **words, **numbers, **labels, "extra": extra})
    return SourceUtterance(utterance, AudioFile(path, start_s, end_s))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system allows, a folder nobody may enter
        return False


def _number(name: str, cell: str) -> float:
    try:
        return finite_number(cell)
    except ValueError as error:
        raise _RowError("bad number", f"{name} must be a finite number, got {cell!r}") from error


def _labels(words: dict[str, str]) -> dict[str, str | dict[str, float]]:
    """Return the fields whose words come from a fixed list."""
    labels: dict[str, str | dict[str, float]] = {}
    if "emotion" in words:
        labels["emotion"] = canonical_emotion(words["emotion"])
    if "gender" in words:
        labels["gender"] = canonical_gender(words["gender"])
    for name, allowed in (("style", STYLES), ("split", SPLITS)):
        if name in words:
            labels[name] = words[name].lower()
            if labels[name] not in allowed:
                raise _RowError("unknown label", f"{name} must be one of {', '.join(allowed)}, got {words[name]!r}")
    if "emotion_votes" in words:
        labels["emotion_votes"] = _votes(words["emotion_votes"])
    return labels


def _votes(cell: str) -> dict[str, float]:
    try:
        votes = json.loads(cell, parse_int=float)
    except ValueError:
        votes = None
    if not isinstance(votes, dict) or not all(isinstance(v, float) and 0 <= v < math.inf for v in votes.values()):
        raise _RowError("bad number", f'emotion_votes must be JSON like {{"anger": 2, "neutral": 1}}, got {cell!r}')
    total: dict[str, float] = {}
    for word, share in votes.items():
        emotion = canonical_emotion(word)
        total[emotion] = total.get(emotion, 0.0) + share
    return total


def _key_parts(row: dict[str, str], start_s: float | None, end_s: float | None) -> list[str]:
    if "key" in row:
        return [row["key"]]
    path = PurePosixPath(row["file"])
    parts = list((path.with_suffix("") if path.suffix.lower() in _AUDIO_SUFFIXES else path).parts)
    if start_s is not None or end_s is not None:
        parts.append(f"{_milliseconds(start_s or 0.0)}-{'end' if end_s is None else _milliseconds(end_s)}")
    return parts


def _milliseconds(time_s: float) -> int:
    return round(time_s * 1000)


READER = CorpusReader(
    name="csv",
    title="A table of audio files",
    licence="as its owner says",
    citation="",
    read=_read,
)
