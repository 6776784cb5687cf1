"""The embedded corpus as a corpus to pack: made from the seed, not read from anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shards import demo
from shards.corpora.base import CorpusReader
from shards.errors import CorpusError
from shards.schema import Rejection, SourceUtterance


def _read(source: Path | None, seed: int) -> Iterator[SourceUtterance | Rejection]:
    if source not in (None, Path("-")):
        raise CorpusError(f"the embedded corpus is made, not read: SOURCE must be -, got {source}")
    yield from demo.utterances(seed)


READER = CorpusReader(
    name="demo",
    title="Embedded synthetic corpus, spoken by eSpeak NG",
    licence="Apache-2.0",
    citation="eSpeak NG, https://github.com/espeak-ng/espeak-ng",
    read=_read,
)
