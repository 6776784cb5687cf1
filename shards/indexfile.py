"""`index.parquet` as it lies there: read by column, and each piece of a column checked before it is believed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.errors import ShardError
from shards.jsontext import JsonTextError, parse_json
from shards.limits import MAX_CLIP_S
from shards.parquetpages import Chunk, PageError, read_footer, read_pages
from shards.schema import (
    MAX_FILE_BYTES,
    MAX_TEXT_BYTES,
    MAX_WORD_BYTES,
    METADATA_FIELDS,
    RATE_HZ,
    SPLITS,
)
from shards.shown import shown

NUMBERS = ("valence", "arousal", "dominance", "age")
DIGEST = pa.binary(32)
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("corpus", pa.string()),
        ("shard", pa.int32()),
        ("audio_offset", pa.int64()),
        ("audio_bytes", pa.int64()),
        ("audio_sha256", DIGEST),
        ("meta_offset", pa.int64()),
        ("meta_bytes", pa.int64()),
        ("num_samples", pa.int64()),
        ("pcm_sha256", DIGEST),
        ("source", pa.string()),
        *((name, pa.float64() if name in NUMBERS else pa.string()) for name in METADATA_FIELDS),
        ("extra", pa.string()),
    ]
)
MAX_AUDIO_BYTES = 512 << 20
"""Of one utterance as it is stored; four hours that cannot be made shorter have 0.46 GB."""
MAX_META_BYTES = 8 << 20
"""Of one utterance's JSON; a text, a source, votes and `extra` of their greatest length take half of it."""
MAX_COLUMN_BYTES = 512 << 20
"""Of one column in one group of rows, unpacked; 131,072 texts of 4,096 bytes."""
ROWS_PER_GROUP = 1 << 17
"""As packing writes them, and as a large table is looked through."""
MAX_FOOTER_BYTES = 4 << 20
"""Of `index.parquet`, which lists its pieces there; that of ten million utterances has 0.3 MB."""

_REQUIRED = (
    "key",
    "corpus",
    "shard",
    "audio_offset",
    "audio_bytes",
    "audio_sha256",
    "num_samples",
    "pcm_sha256",
    "extra",
)
_LOWEST = {"shard": 0, "audio_offset": 512, "audio_bytes": 1, "meta_offset": 512, "meta_bytes": 2, "num_samples": 1}
_HIGHEST = {
    "shard": (1 << 31) - 1,
    "audio_offset": MAX_FILE_BYTES,
    "audio_bytes": MAX_AUDIO_BYTES,
    "meta_offset": MAX_FILE_BYTES,
    "meta_bytes": MAX_META_BYTES,
    "num_samples": MAX_CLIP_S * RATE_HZ,
}
_MANY_WORDS = ("key", "source", "text")
"""Nearly as many different values as rows."""
FEW_WORDS = tuple(field.name for field in INDEX_SCHEMA if field.type == pa.string() and field.name not in _MANY_WORDS)
"""Stored and read as numbers and a list of words, which is faster for these and slower for all other columns."""
LONG_WORDS = ("source", "text", "emotion_votes", "extra")
"""Columns whose values may be as long as a text."""
_PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError)
"""All that pyarrow raises for the sake of a file's content: cut, damaged, or of types that cannot be what is asked."""
_PARQUET_TYPES = {
    pa.string(): ("BYTE_ARRAY", ("STRING",)),
    pa.int32(): ("INT32", ("NONE", "INT")),
    pa.int64(): ("INT64", ("NONE", "INT")),
    pa.float64(): ("DOUBLE", ("NONE",)),
    DIGEST: ("FIXED_LEN_BYTE_ARRAY", ("NONE",)),
}
_MAGIC_BYTES = 8
_MAX_COLUMNS_OR_GROUPS = 100_000
_MAX_SHOWN_CHARS = 60
AGAIN = "pack or copy the folder again"


class IndexFile:
    """The table of one shard folder."""

    def __init__(
        self,
        file: pq.ParquetFile,
        place: str,
        *,
        version: int,
        num_shards: int,
        source: Path | pa.Buffer,
        chunks: list[list[Chunk]],
    ) -> None:
        """Take a file that is open, and has been checked as `opened` does."""
        self._file = file
        self._source = source
        self._chunks = chunks
        self._place = place
        self._version = version
        self._num_shards = num_shards
        self.num_rows = int(file.metadata.num_rows)

    @classmethod
    def opened(cls, source: Path | pa.Buffer, place: str, *, version: int, num_shards: int, num_rows: int) -> IndexFile:
        """Return the table in a file or in memory; its columns are checked as they are read.

        Args:
            source: The file, whose bytes are those that were written.
            place: What errors call it.
            version: Schema version, which says what columns there must be.
            num_shards: How many tars the rows may name.
            num_rows: What the manifest says.

        Raises:
            ShardError: if it is no table, or not one with these columns and so many rows.
        """
        try:
            with _stream(source) as stream:
                footer = _footer(stream, place)
            chunks = read_footer(footer)
            limits = {
                "thrift_string_size_limit": MAX_FOOTER_BYTES,
                "thrift_container_size_limit": _MAX_COLUMNS_OR_GROUPS,
            }
            # Not mapped: ten million utterances' pages would count as this process's memory.
            file = pq.ParquetFile(source if isinstance(source, Path) else pa.BufferReader(source), **limits)
            fault = _schema_fault(file, version) or _rows_fault(file.metadata, num_rows, chunks)
            if fault is not None:
                raise ShardError(f"{place} must be the table that docs/data-format.md describes, but {fault}; {AGAIN}")
            file = _reopened(source, file.metadata, FEW_WORDS)
        except _PARQUET_ERRORS as error:
            raise _unreadable(place, error) from error
        return cls(file, place, version=version, num_shards=num_shards, source=source, chunks=chunks)

    def pieces(self, name: str) -> Iterator[pa.Array]:
        """Yield one column piece by piece; what schema version 1 wrote otherwise is turned into today's form.

        Words come as strings or as a dictionary of strings.

        Raises:
            ShardError: if the column cannot be read, or a value is none that the column may have.
        """
        if name not in _columns(self._version):
            yield pa.nulls(self.num_rows, INDEX_SCHEMA.field(name).type)
            return
        start = 0
        for group in range(self._file.metadata.num_row_groups):
            end = start + self._file.metadata.row_group(group).num_rows
            try:
                table = self._file_for(name, group).read_row_group(group, [name])
                chunks = [_as_stored(chunk, name) for chunk in table.column(0).chunks]
            except _PARQUET_ERRORS as error:
                raise _unreadable(f"column {name} of {self._place}", error) from error
            for chunk in chunks:
                self._check(name, chunk, start)
                yield chunk.cast(pa.string()) if name in _MANY_WORDS else chunk
                start += len(chunk)
            if start != end:
                raise ShardError(f"{self._place} must have {end} rows of {name}, but has {start}; {AGAIN}")

    def _file_for(self, name: str, group: int) -> pq.ParquetFile:
        """Return what reads a column in one group of rows into not much more memory than its pages take.

        Raises:
            ShardError: if the pages take too much.
            PageError: if they are none.
        """
        rows = self._file.metadata.row_group(group)
        chunk = self._chunks[group][list(_columns(self._version)).index(name)]
        with _stream(self._source) as stream:
            pages = read_pages(stream, chunk, rows.num_rows)
        if pages.num_values != rows.num_rows:
            raise PageError(f"the pages of group {group} hold {pages.num_values} of {rows.num_rows} values")
        if pages.unpacked_bytes > MAX_COLUMN_BYTES:
            raise self._too_large(name, pages.unpacked_bytes, rows.num_rows)
        if name not in _MANY_WORDS or not pages.has_dictionary:
            return self._file
        # One long word in a dictionary may stand in every row.
        by_dictionary = _reopened(self._source, self._file.metadata, [name])
        if pages.begins_with_dictionary:
            batch = next(by_dictionary.iter_batches(1, row_groups=[group], columns=[name]), None)
            if batch is None:
                raise PageError(f"the pages of group {group} hold no values")
            longest = pc.max(pc.binary_length(batch.column(0).dictionary)).as_py() or 0
            if longest * rows.num_rows <= MAX_COLUMN_BYTES:
                return self._file
        return by_dictionary

    def _too_large(self, name: str, num_bytes: int, num_rows: int) -> ShardError:
        return ShardError(
            f"{self._place} must unpack to at most {MAX_COLUMN_BYTES} bytes a column in one group of rows, but {name} "
            f"takes {num_bytes} in {num_rows} rows; pack or copy the folder again"
        )

    def _check(self, name: str, piece: pa.Array, start: int) -> None:
        if piece.null_count and name in _REQUIRED and name in _columns(self._version):
            self._refuse(name, "a value in every row", piece.is_null(), piece, start)
        if pa.types.is_string(_values_type(piece)):
            self._check_words(name, piece, start)
        elif name in _LOWEST:
            lowest, highest = _LOWEST[name], self._highest(name)
            found = pc.min_max(piece)
            if found["min"].is_valid and not lowest <= found["min"].as_py() <= found["max"].as_py() <= highest:
                outside = pc.or_(pc.less(piece, lowest), pc.greater(piece, highest))
                self._refuse(name, f"numbers of {lowest} to {highest}", outside, piece, start)
        elif name in NUMBERS and not pc.all(pc.is_finite(piece), min_count=0).as_py():
            self._refuse(name, "finite numbers or null", pc.invert(pc.is_finite(piece)), piece, start)

    def _highest(self, name: str) -> int:
        return self._num_shards - 1 if name == "shard" else _HIGHEST[name]

    def _check_words(self, name: str, piece: pa.Array, start: int) -> None:
        words = piece.dictionary if pa.types.is_dictionary(piece.type) else piece
        try:
            piece.validate(full=True)
            words.validate(full=True)
        except _PARQUET_ERRORS as error:
            raise _unreadable(f"column {name} of {self._place}", error) from error
        longest = pc.max(pc.binary_length(words)).as_py() or 0
        if longest * len(piece) > MAX_COLUMN_BYTES and words is not piece:
            num_bytes = pc.sum(pc.cast(pc.binary_length(words).take(piece.indices), pa.int64())).as_py() or 0
            if num_bytes > MAX_COLUMN_BYTES:
                raise self._too_large(name, num_bytes, len(piece))
        most = MAX_TEXT_BYTES if name in LONG_WORDS else MAX_WORD_BYTES
        if longest > most:
            lengths = pc.binary_length(piece.cast(pa.large_string()))
            self._refuse(name, f"at most {most} bytes in a row", pc.greater(lengths, most), piece, start)
        if name == "split" and not set(words.unique().to_pylist()) <= {*SPLITS, None}:
            known = pc.is_in(piece.cast(pa.string()), value_set=pa.array([*SPLITS, None]))
            self._refuse(name, f"{', '.join(SPLITS)} or null", pc.invert(known), piece, start)

    def _refuse(self, name: str, what: str, is_wrong: pa.Array, piece: pa.Array, start: int) -> None:
        rows = np.flatnonzero(is_wrong.fill_null(False).to_numpy(zero_copy_only=False))
        if not len(rows):
            return
        value = shown(repr(piece[int(rows[0])].as_py()), _MAX_SHOWN_CHARS)
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        raise ShardError(
            f"{self._place} must have {what} in column {name}, but row {start + rows[0]}{more} has {value}; {AGAIN}"
        )


def parsed_votes(text: str) -> dict[str, float]:
    """Return the votes that a row holds as JSON.

    Raises:
        ShardError: if it holds something else.
    """
    votes = _object(text, "emotion_votes")
    if not all(type(share) in (int, float) and 0 <= share < math.inf for share in votes.values()):
        raise _no_object("emotion_votes", text, "of numbers from 0")
    return votes


def parsed_extra(text: str) -> dict[str, str | float | int | bool]:
    """Return what a row holds beside the usual fields.

    Raises:
        ShardError: if it is not what may stand there.
    """
    extra = _object(text, "extra")
    if not all(isinstance(value, str | int | float) for value in extra.values()):
        raise _no_object("extra", text, "of words, numbers, true and false")
    return extra


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except JsonTextError as error:
        raise ShardError(
            f"every row's {name} must be JSON, but of {shown(text, _MAX_SHOWN_CHARS)!r} {error}; {AGAIN}"
        ) from error
    if not isinstance(found, dict):
        raise _no_object(name, text, "")
    return found


def _no_object(name: str, text: str, what: str) -> ShardError:
    wanted = f"a JSON object {what}".rstrip()
    return ShardError(f"every row's {name} must be {wanted}, but one is {shown(text, _MAX_SHOWN_CHARS)}; {AGAIN}")


def _footer(stream: IO[bytes] | pa.NativeFile, place: str) -> bytes:
    """Return the list of pieces at a table's end; one that is far too long is refused before it is parsed."""
    stream.seek(0, 2)
    end = stream.tell() - _MAGIC_BYTES
    stream.seek(max(0, end))
    num_bytes = int.from_bytes(stream.read(4), "little")
    if num_bytes > MAX_FOOTER_BYTES:
        raise ShardError(f"{place} must have at most {MAX_FOOTER_BYTES} bytes of footer, got {num_bytes}; {AGAIN}")
    if num_bytes > end:
        raise PageError(f"its footer of {num_bytes} bytes is cut")
    stream.seek(end - num_bytes)
    return bytes(stream.read(num_bytes))


def _stream(source: Path | pa.Buffer) -> IO[bytes] | pa.NativeFile:
    return source.open("rb") if isinstance(source, Path) else pa.BufferReader(source)


def _reopened(source: Path | pa.Buffer, metadata: pq.FileMetaData, words: Sequence[str]) -> pq.ParquetFile:
    place = source if isinstance(source, Path) else pa.BufferReader(source)
    return pq.ParquetFile(place, metadata=metadata, read_dictionary=words)


def _columns(version: int) -> dict[str, pa.DataType]:
    """Return the columns that a schema version has."""
    columns = {field.name: field.type for field in INDEX_SCHEMA}
    if version == 1:
        del columns["audio_sha256"]
        columns["pcm_sha256"] = pa.string()
    return columns


def _schema_fault(file: pq.ParquetFile, version: int) -> str | None:
    wanted = _columns(version)
    if file.metadata.num_columns != len(wanted):
        return f"has {file.metadata.num_columns} columns instead of {len(wanted)}"
    for number, (name, kind) in enumerate(wanted.items()):
        column = file.schema.column(number)
        physical, logical = _PARQUET_TYPES[kind]
        found_name = shown(column.path, _MAX_SHOWN_CHARS)
        if column.path != name:
            return f"column {number} is {found_name!r} instead of {name}"
        if column.max_repetition_level or column.max_definition_level > 1:
            return f"column {name} is a list or nested"
        is_right = column.physical_type == physical and column.logical_type.type in logical
        if not is_right or (kind == DIGEST and column.length != kind.byte_width):
            length = f"({column.length})" if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else ""
            return f"column {name} is {column.physical_type}{length} ({column.logical_type.type}) instead of {kind}"
    return None


def _rows_fault(metadata: pq.FileMetaData, num_rows: int, chunks: Sequence[Sequence[Chunk]]) -> str | None:
    if {len(group) for group in chunks} - {metadata.num_columns} or len(chunks) != metadata.num_row_groups:
        return "lacks columns in some of its groups of rows"
    if metadata.num_rows != num_rows:
        return f"has {metadata.num_rows} rows, and the manifest states {num_rows} utterances"
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    return None if sum(sizes) == num_rows and min(sizes) > 0 else f"has groups of {min(sizes)} to {max(sizes)} rows"


def _as_stored(chunk: pa.Array, name: str) -> pa.Array:
    kind = INDEX_SCHEMA.field(name).type
    if kind == DIGEST and pa.types.is_string(_values_type(chunk)):
        return pa.array([None if text is None else bytes.fromhex(text) for text in chunk.to_pylist()], DIGEST)
    if kind == pa.string() and pa.types.is_dictionary(chunk.type):
        return chunk.cast(pa.dictionary(pa.int32(), pa.string()))
    return chunk.cast(kind)


def _values_type(piece: pa.Array) -> pa.DataType:
    return piece.type.value_type if pa.types.is_dictionary(piece.type) else piece.type


def _unreadable(place: str, error: Exception) -> ShardError:
    reason = shown(" ".join(str(error).split()), 200) or type(error).__name__
    return ShardError(f"{place} must be readable as Parquet, but {reason}; {AGAIN}")
