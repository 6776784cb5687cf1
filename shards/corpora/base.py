"""What every corpus module provides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from shards.errors import CorpusError
from shards.schema import Rejection, SourceUtterance


@dataclass(frozen=True)
class CorpusReader:
    """How one corpus lies on disk.

    `read(source, seed)` yields a `SourceUtterance` for every utterance and a `Rejection` for everything that looks like
    one and is not usable, in a fixed order. It raises `CorpusError` when `source` is not this corpus at all.
    `source` is None for corpora that are made, not read.
    """

    name: str
    title: str
    licence: str
    citation: str
    read: Callable[[Path | None, int], Iterator[SourceUtterance | Rejection]]


CORPORA = ("emodb", "ravdess", "iemocap", "crema-d", "msp-podcast", "meld", "nemo", "an4", "csv", "demo")


def corpus_reader(name: str) -> CorpusReader:
    """Return the reader of the corpus called `name`.

    Raises:
        CorpusError: if no such corpus is known.
    """
    if name not in CORPORA:
        raise CorpusError(f"CORPUS must be one of {', '.join(CORPORA)} or wds, got {name!r}")
    reader: CorpusReader = import_module(f"shards.corpora.{name.replace('-', '_')}").READER
    return reader
