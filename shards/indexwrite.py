"""An utterance's row in an index, and the file that holds them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.files import atomic_file, canonical_json
from shards.indexfile import FEW_WORDS, INDEX_SCHEMA, LONG_WORDS, ROWS_PER_GROUP
from shards.schema import Utterance

_MAX_GROUP_CHARS = 64 << 20
"""Of texts and the like, whose characters have up to four bytes: a quarter of a gigabyte at most."""


def index_row(utterance: Utterance, **where: int | str | bytes | None) -> dict[str, Any]:
    """Return an utterance's row; `where` gives shard, offsets, sizes, `num_samples` and digests."""
    fields = utterance.model_dump(mode="json")
    for name in ("speaker", "session"):
        if fields[name] is not None:
            fields[name] = f"{utterance.corpus}:{fields[name]}"
    if utterance.emotion_votes is not None:
        fields["emotion_votes"] = canonical_json(utterance.emotion_votes).decode()
    fields["extra"] = canonical_json(utterance.extra).decode()
    return {**fields, **where}


def write_index(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write `rows`, in the order of their keys, whole or not at all; equal rows give equal bytes.

    A large corpus's rows never stand in memory together.
    """
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(
            file,
            INDEX_SCHEMA,
            version="2.6",
            compression="zstd",
            compression_level=3,
            store_schema=False,
            use_dictionary=list(FEW_WORDS),
        ) as writer,
    ):
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=INDEX_SCHEMA), row_group_size=ROWS_PER_GROUP)


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield rows in groups of which no column takes more than is read."""
    group: list[dict[str, Any]] = []
    num_chars = 0
    for row in rows:
        length = sum(len(row[name] or "") for name in LONG_WORDS)
        if len(group) == ROWS_PER_GROUP or (group and num_chars + length > _MAX_GROUP_CHARS):
            yield group
            group, num_chars = [], 0
        group.append(row)
        num_chars += length
    if group:
        yield group
