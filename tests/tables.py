"""Indices made from columns, for tests that look at metadata and not at audio."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from shards.index import Index
from shards.indexcolumns import Columns
from shards.indexfile import INDEX_SCHEMA


def index_of(**columns: list[Any]) -> Index:
    """Return an index with `columns`; every other field is absent, and keys count up where none are given."""
    count = len(next(iter(columns.values())))
    columns.setdefault("key", [f"c/{number:04d}" for number in range(count)])
    columns.setdefault("corpus", ["c"] * count)
    columns.setdefault("num_samples", [16_000] * count)
    columns.setdefault("extra", ["{}"] * count)
    table = {name: columns.get(name, [None] * count) for name in INDEX_SCHEMA.names}
    return Index(Columns([pa.table(table, schema=INDEX_SCHEMA)], [0]), ())
