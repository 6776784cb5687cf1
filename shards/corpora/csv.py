"""Anybody's own corpus: a table with a column `file` and any metadata columns, separated by commas, semicolons or tabs.

A column named like a field of `Utterance` is that field, `start` and `end` (seconds) cut a part out of the file, `key`
names the utterance, everything else is kept in `extra`. A blank cell is absent.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from shards.audio import AudioFile
from shards.corpora.base import CorpusReader
from shards.corpora.cells import CellError, metadata_in, number_in
from shards.corpora.files import table_rows
from shards.errors import CorpusError
from shards.schema import METADATA_FIELDS, Rejection, SourceUtterance, Utterance, make_key

_COLUMNS = frozenset({"file", "key", "start", "end", *METADATA_FIELDS})
_AUDIO_SUFFIXES = frozenset({".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".sph", ".wav"})
"""Left out of keys. Any other suffix stays, because in `Ses01F.impro01` it tells utterances apart."""


def _read(source: Path | None, _seed: int) -> Iterator[SourceUtterance | Rejection]:
    if source is None or not source.is_file():
        raise CorpusError(f"SOURCE of a csv corpus must be a table (.csv or .tsv), but {source} is no file")
    rows = table_rows(source)
    columns = _header(source, rows[0][1] if rows else [])
    make_key(source.stem)  # a name that no key can carry is the table's fault, not each row's
    for number, cells in rows[1:]:
        try:
            yield _item(source, columns, cells)
        except CellError as error:
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
        raise CellError("bad row", f"a row must have the header's {len(columns)} cells, got {len(cells)}")
    # Columns without a name are spreadsheets' row numbers or trailing separators.
    row = {name: cell.strip() for name, cell in zip(columns, cells, strict=True) if name and cell.strip()}
    if "file" not in row:
        raise CellError("row without audio", "the column file must name the audio, but is blank")
    start_s, end_s = (number_in(name, row[name]) if name in row else None for name in ("start", "end"))
    if (start_s or 0.0) < 0 or (end_s is not None and end_s <= (start_s or 0.0)):
        raise CellError("bad number", f"start and end must satisfy 0 <= start < end, got {start_s} and {end_s}")
    path = table.parent / row["file"]
    if not _is_file(path):
        raise CellError("row without audio", f"{row['file']} is no file (looked for {path})")
    try:
        key = make_key(table.stem, *_key_parts(row, start_s, end_s))
    except CorpusError as error:
        raise CellError("bad key", str(error)) from error
    extra = {name: cell for name, cell in row.items() if name not in _COLUMNS}
    identity = {"key": key, "corpus": make_key(table.stem), "source": row["file"]}
    utterance = Utterance.model_validate({**identity, **metadata_in(row), "extra": extra})
    return SourceUtterance(utterance, AudioFile(path, start_s, end_s))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system allows, a folder nobody may enter
        return False


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
