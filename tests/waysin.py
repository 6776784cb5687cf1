"""What a reader of data that belongs to the user finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shards.corpora.base import corpus_reader
from shards.corpora.options import ReadOptions
from shards.schema import Note, Rejection, RowCount, SourceUtterance


def read(corpus: str, source: Path | None, **options: Any) -> tuple[list[SourceUtterance], list[Rejection], str]:
    """Return what a reader finds: items, rejections, notes; what it announces is what it finds."""
    found = list(corpus_reader(corpus, ReadOptions(**options)).read(source, 0))
    items = [item for item in found if isinstance(item, SourceUtterance)]
    rejections = [item for item in found if isinstance(item, Rejection)]
    assert sum(item.number for item in found if isinstance(item, RowCount)) == len(items) + len(rejections)
    return items, rejections, " | ".join(item.text for item in found if isinstance(item, Note))
