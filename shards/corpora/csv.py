"""Anybody's own corpus: a table with a column `file` and any metadata columns, in whatever form programs write tables.

A column named like a field of `Utterance`, or by a usual other name, is that field; `start`, `end` and `duration` cut a
part out of the file, `channel` takes one channel of it, `key` names the utterance, everything else is kept in `extra`.
A blank cell is absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.corpora.base import Found, own_reader
from shards.corpora.columns import columns_of
from shards.corpora.delimited import delimited_table
from shards.corpora.identities import tidy
from shards.corpora.options import ReadOptions
from shards.corpora.parquet import parquet_table
from shards.corpora.paths import find_audio, has_audio_suffix
from shards.corpora.rows import Place, found_in, place_of
from shards.corpora.structured import JSON_SUFFIXES, json_table
from shards.corpora.tables import Table
from shards.errors import CorpusError
from shards.inputfile import ABSENT, fault_of


def read_any_table(path: Path, place: Place, options: ReadOptions) -> Table:
    """Return the table in a file, which its suffix says to be JSON Lines, Parquet or else separated cells.

    Raises:
        CorpusError: if it is not, or cannot be read surely.
    """
    suffix = path.suffix.lower()
    if suffix in JSON_SUFFIXES:
        return json_table(path, options)
    if suffix == ".parquet":
        return parquet_table(path, options)

    def find_fields(names: Sequence[str]) -> dict[str, int]:
        said = {name: field for name, field in options.columns.items() if tidy(name) in names}
        try:
            fields = columns_of(path, names, said).fields
        except CorpusError:  # these are not its columns, or not all that is wrong; both are told when it is read
            return {}
        return {field: names.index(name) for name, field in fields.items()}

    def is_audio(cell: str) -> bool:
        return has_audio_suffix(cell) or find_audio(place.folders, cell) is not None

    return delimited_table(path, options, find_fields, is_audio)


def read_own_table(source: Path, options: ReadOptions) -> Iterator[Found]:
    """Yield what the rows of a user's table are."""
    place = place_of(source, options, tidy(source.stem))
    yield from found_in(read_any_table(source, place, options), place, options)


def _read(source: Path | None, options: ReadOptions) -> Iterator[Found]:
    fault = ABSENT if source is None else fault_of(source, "file")
    if source is None or fault is not None:
        raise CorpusError(f"SOURCE of a csv corpus must be a table (.csv or .tsv), but {source} {fault}")
    if source.suffix.lower() in (*JSON_SUFFIXES, ".parquet"):
        raise CorpusError(f"SOURCE of a csv corpus must be a table (.csv or .tsv), got {source}; pack it as jsonl")
    yield from read_own_table(source, options)


READER = own_reader("csv", "A table of audio files", _read)
