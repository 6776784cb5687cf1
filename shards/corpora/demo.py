"""The embedded corpus as a corpus like any other; it is made, not read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shards.corpora.base import CorpusReader
from shards.demo import utterances
from shards.schema import Rejection, SourceUtterance


def _read(source: Path | None, seed: int) -> Iterator[SourceUtterance | Rejection]:
    return utterances(seed)


READER = CorpusReader(
    name="demo",
    title="MetaSER's embedded corpus",
    licence="CC0-1.0",
    citation="Spoken by eSpeak NG (GPL-3.0-or-later), which does not cover its output.",
    read=_read,
)
