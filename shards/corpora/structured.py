"""Tables as JSON Lines (or one JSON list) and Parquet hold them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shards.corpora.encodings import read_text_in
from shards.corpora.identities import tidy
from shards.corpora.options import ReadOptions
from shards.corpora.tables import Row, Table, checked
from shards.errors import CorpusError
from shards.schema import Note

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_MAX_SHOWN = 60


class _RepeatedNameError(ValueError):
    """An object names something twice."""


def json_table(path: Path, options: ReadOptions) -> Table:
    """Return the objects in a file, one a line, or all in one list; a line that is none is a faulty row.

    Raises:
        CorpusError: if the encoding cannot be told, or a list is no JSON.
    """
    text = read_text_in(path, options.encoding)
    notes = [Note(f"{path.name} is read as {text.encoding}; name another with --encoding")] if text.is_guess else []
    if text.content.lstrip().startswith("["):
        rows = [_row(number, item) for number, item in enumerate(_listed(path, text.content), start=1)]
        return Table(path, _columns(rows), tuple(rows), tuple(notes))
    # Not str.splitlines, which also cuts at signs that JSON allows in its strings.
    lines = text.content.replace("\r\n", "\n").split("\n")
    rows = [_parsed(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    num_lines = sum(not line.isspace() for line in text.content.split("\n") if line)
    return checked(Table(path, _columns(rows), tuple(rows), tuple(notes)), num_lines)


def parquet_table(path: Path) -> Table:
    """Return the rows of a Parquet file.

    Raises:
        CorpusError: if it is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path} must be a Parquet file, but is not ({error}); write it again") from error
    rows = [_row(number, item) for number, item in enumerate(table.to_pylist(), start=1)]
    return checked(Table(path, _columns(rows), tuple(rows)), pq.read_metadata(path).num_rows)


def _listed(path: Path, content: str) -> list[Any]:
    try:
        items = json.loads(content, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path} must be JSON, one object a line or one list of them, but {error}") from error
    return list(items)


def _parsed(number: int, line: str) -> Row:
    try:
        return _row(number, json.loads(line, object_pairs_hook=_object))
    except (ValueError, RecursionError) as error:
        return Row(number, {}, f"a line must hold a JSON object, but {error}: {line.strip()[:_MAX_SHOWN]!r}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise _RepeatedNameError(f"it names {', '.join(repeated)} twice")
    return dict(pairs)


def _row(number: int, item: Any) -> Row:
    if not isinstance(item, dict):
        return Row(number, {}, f"a row must be a JSON object, got {str(item)[:_MAX_SHOWN]!r}")
    return Row(number, {tidy(name): value for name, value in item.items()})


def _columns(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for row in rows for name in row.cells if name))
