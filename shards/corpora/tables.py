"""A table as rows of cells by column, whatever it was written in; how many rows there are is counted twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import CorpusError
from shards.schema import Note

MAX_COLUMNS = 10_000
"""Acoustic features that tables hold beside labels are up to 6,373."""
MAX_NAME_CHARS = 1_000


@dataclass(frozen=True)
class Row:
    """One record of a table."""

    number: int
    """As a spreadsheet counts, from 1, the header included."""
    cells: Mapping[str, Any]
    """By column; text, or what JSON and Parquet hold."""
    fault: str | None = None
    """Why it is no row of this table, or None."""
    is_comment: bool = False
    """Whether it begins with #, so that it may be a comment; it is a row where its audio exists."""
    name: str | None = None
    """What to call it, where its number says nothing."""


@dataclass(frozen=True)
class Table:
    """All records of a file."""

    path: Path
    columns: tuple[str, ...]
    """Names without blanks around them; "" where there is none."""
    rows: tuple[Row, ...]
    notes: tuple[Note, ...] = ()


def check_columns(path: Path, names: Sequence[str]) -> None:
    """Refuse tables of more columns, or of longer names, than anybody reads.

    Raises:
        CorpusError: if this is one.
    """
    if len(names) > MAX_COLUMNS:
        raise CorpusError(f"{path} must have at most {MAX_COLUMNS} columns, but has {len(names)}; leave some out")
    longest = max(map(len, names), default=0)
    if longest > MAX_NAME_CHARS:
        raise CorpusError(
            f"{path} must name its columns in at most {MAX_NAME_CHARS} characters, but one name has {longest}; are "
            "its line ends lost?"
        )


def checked(table: Table, num_records: int) -> Table:
    """Return `table`, whose rows must be as many as were counted in another way.

    Raises:
        CorpusError: if they are not: some row would be lost.
    """
    if len(table.rows) != num_records:
        raise CorpusError(
            f"{table.path} must be read row by row, but {num_records} rows stand in it and {len(table.rows)} were "
            'found; say with --quotes whether its " enclose cells (double) or are characters like others (none)'
        )
    return table
