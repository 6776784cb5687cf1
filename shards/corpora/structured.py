"""Tables as JSON Lines (or one JSON list) hold them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shards.corpora.encodings import read_text_in
from shards.corpora.identities import tidy
from shards.corpora.options import ReadOptions
from shards.corpora.tables import Row, Table, checked
from shards.errors import CorpusError
from shards.jsontext import RepeatedNameError, parse_json, unique
from shards.schema import Note

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_MAX_SHOWN = 60


def json_table(path: Path, options: ReadOptions) -> Table:
    """Return the objects in a file, one a line, or all in one list; a line that is none is a faulty row.

    Raises:
        CorpusError: if the encoding cannot be told, a list is no JSON, or no line is an object.
    """
    text = read_text_in(path, options.encoding)
    notes = [Note(f"{path.name} is read as {text.encoding}; name another with --encoding")] if text.is_guess else []
    if text.content.lstrip().startswith("["):
        rows = [_row(number, item) for number, item in enumerate(_listed(path, text.content), start=1)]
        _check_lines(path, text.content, rows)
        return Table(path, _columns(rows), tuple(rows), tuple(notes))
    # Not str.splitlines, which also cuts at signs that JSON allows in its strings.
    lines = text.content.replace("\r\n", "\n").split("\n")
    rows = [_parsed(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    _check_lines(path, text.content, rows)
    num_lines = sum(not line.isspace() for line in text.content.split("\n") if line)
    return checked(Table(path, _columns(rows), tuple(rows), tuple(notes)), num_lines)


def _listed(path: Path, content: str) -> list[Any]:
    try:
        items = parse_json(content, allow_nan=True)
    except ValueError as error:
        raise CorpusError(f"{path} must be JSON, one object a line or one list of them, but {error}") from error
    return list(items)


def _parsed(number: int, line: str) -> Row:
    try:
        return _row(number, parse_json(line, allow_nan=True))
    except ValueError as error:
        return Row(number, {}, f"a line must hold a JSON object, but {error}: {line.strip()[:_MAX_SHOWN]!r}")


def _row(number: int, item: Any) -> Row:
    if not isinstance(item, dict):
        return Row(number, {}, f"a row must be a JSON object, got {str(item)[:_MAX_SHOWN]!r}")
    pairs = [(tidy(name), value) for name, value in item.items()]
    try:
        return Row(number, unique(pairs))
    except RepeatedNameError as error:
        return Row(number, dict(pairs), f"a row must name each thing once, but {error}")


def _check_lines(path: Path, content: str, rows: Sequence[Row]) -> None:
    """Refuse a file that is something else as a whole, such as JSON that is written for the eye.

    Raises:
        CorpusError: if its first object goes over several lines, or no row is an object.
    """
    if not rows or rows[0].fault is None:
        return
    num_lines = _num_lines_of_object(content)
    if num_lines == 1 and any(row.fault is None or row.cells for row in rows):
        return
    first = f"row {rows[0].number} is none: {rows[0].fault}"
    what = first if num_lines == 1 else f"its first object goes over {num_lines} lines"
    raise CorpusError(
        f"{path} must have one JSON object per line, or all in one list, but {what}; write each utterance on a line"
    )


def _num_lines_of_object(content: str) -> int:
    """Return how many lines the object takes with which `content` begins; 1 where it begins with none."""
    start = len(content) - len(content.lstrip())
    try:
        item, end = json.JSONDecoder().raw_decode(content, start)
    except (ValueError, RecursionError):
        return 1
    return content.count("\n", start, end) + 1 if isinstance(item, dict) else 1


def _columns(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for row in rows for name in row.cells if name))
