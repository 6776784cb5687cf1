"""What corpus readers share: audio files without a file system's leftovers, and tables as people publish them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.errors import CorpusError
from shards.schema import Rejection

_BLANKS = " \t\r\n\N{NO-BREAK SPACE}"
"""Not all that `str.strip` takes away: U+0085 is an ellipsis where Windows' text was taken for Latin-1."""


def audio_files(folder: Path, suffixes: Sequence[str] = (".wav",)) -> list[Path]:
    """Return the files of `folder` that end in one of `suffixes` in any case, sorted; none if there is no such folder.

    Hidden files are left out: macOS keeps a `._x.wav`, which is no audio, beside each `x.wav` on foreign disks.
    """
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )


def read_text(path: Path) -> str:
    """Return a text file's content, UTF-8 with or without a byte order mark, or else Latin-1."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def table_rows(table: Path) -> list[tuple[int, list[str]]]:
    """Return the rows that are not blank, numbered from 1 as spreadsheets do; the delimiter is found out.

    Raises:
        CorpusError: if the quotes do not match.
    """
    text = read_text(table)
    first_line = text.partition("\n")[0]
    delimiter = "\t" if table.suffix.lower() == ".tsv" else max(",;\t", key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return [(number, cells) for number, cells in enumerate(reader, start=1) if any(map(str.strip, cells))]
    except csv.Error as error:
        raise CorpusError(
            f"{table} must be a well-formed table, but its line {reader.line_num} is not ({error}); correct its quotes"
        ) from error


def read_table(table: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]] | Rejection]:
    """Yield each row's name (`labels.csv row 7`) and its cells by column, blanks around them taken away.

    A row that does not have the header's number of cells is a `Rejection`.

    Raises:
        CorpusError: if the table has not all of `columns`, or is not well-formed.
    """
    rows = table_rows(table)
    header = [cell.strip() for cell in rows[0][1]] if rows else []
    missing = [column for column in columns if column not in header]
    if missing:
        raise CorpusError(
            f"{table} must have the columns {', '.join(columns)}, but {', '.join(missing)} is not among its "
            f"{', '.join(header) or 'none'}; restore the file as published"
        )
    for number, cells in rows[1:]:
        name = f"{table.name} row {number}"
        if len(cells) == len(header):
            yield name, {column: cell.strip(_BLANKS) for column, cell in zip(header, cells, strict=True)}
        else:
            yield Rejection(name, f"a row must have the header's {len(header)} cells, got {len(cells)}", "bad row")


def finite_number(cell: str) -> float:
    """Return the number in `cell`, with a decimal point or comma.

    Raises:
        ValueError: if it is none, or not finite.
    """
    value = float(cell.replace(",", ".").replace("_", "?"))
    if not math.isfinite(value):
        raise ValueError(f"{cell!r} is not finite")
    return value
