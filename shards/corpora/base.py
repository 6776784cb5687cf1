"""What every corpus module provides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from shards.corpora.options import NO_OPTIONS, ReadOptions, flag
from shards.errors import CorpusError
from shards.inputfile import ABSENT, fault_of
from shards.schema import Note, Rejection, RowCount, SourceUtterance

OWNERS_LICENCE = "as its owner says"
Found = SourceUtterance | Rejection | Note | RowCount
Read = Callable[[Path | None, int], Iterator[Found]]


@dataclass(frozen=True)
class CorpusReader:
    """How one corpus lies on disk.

    `read(source, seed)` yields a `SourceUtterance` for every utterance and a `Rejection` for everything that looks like
    one and is not usable, in a fixed order; between them a `Note` for what a user should know, and a `RowCount` for
    what must be accounted for. It raises `CorpusError` when `source` is not this corpus at all.
    `source` is None for corpora that are made, not read.
    """

    name: str
    title: str
    licence: str
    citation: str
    read: Read
    with_options: Callable[[ReadOptions], CorpusReader] | None = None
    """The same reader with other options; None where it obeys none."""
    obeys: frozenset[str] = frozenset()
    """The options that it obeys; `channel`, which is every reader's, aside."""


def own_reader(
    name: str,
    title: str,
    read: Callable[[Path | None, ReadOptions], Iterator[Found]],
    options: ReadOptions = NO_OPTIONS,
) -> CorpusReader:
    """Return a reader of data that belongs to the user, and obeys `options`."""
    return CorpusReader(
        name=name,
        title=title,
        licence=options.licence or OWNERS_LICENCE,
        citation="",
        read=lambda source, _seed: read(source, options),
        with_options=lambda others: own_reader(name, title, read, others),
        obeys=frozenset(ReadOptions.model_fields),
    )


def in_folder(title: str, read: Read) -> Read:
    """Return what reads a corpus that lies in a folder, and says so where SOURCE is none."""

    def checked(source: Path | None, seed: int) -> Iterator[Found]:
        fault = None if source is None else fault_of(source, "folder")
        # Of what is absent the reader says what it looked for.
        if fault not in (None, ABSENT):
            raise CorpusError(f"SOURCE must be the folder of {title}, but {source} {fault}")
        return read(source, seed)

    return checked


def published_reader(
    name: str,
    title: str,
    licence: str,
    citation: str,
    read: Callable[[Path | None, ReadOptions], Iterator[Found]],
    options: ReadOptions = NO_OPTIONS,
    obeys: frozenset[str] = frozenset({"encoding", "quotes"}),
) -> CorpusReader:
    """Return a reader of a corpus whose text files copying and spreadsheets may have changed."""
    return CorpusReader(
        name=name,
        title=title,
        licence=licence,
        citation=citation,
        read=in_folder(title, lambda source, _seed: read(source, options)),
        with_options=lambda others: published_reader(name, title, licence, citation, read, others, obeys),
        obeys=obeys,
    )


CORPORA = (
    "emodb",
    "ravdess",
    "iemocap",
    "crema-d",
    "msp-podcast",
    "meld",
    "nemo",
    "an4",
    "folder",
    "audiofolder",
    "audformat",
    "jsonl",
    "csv",
    "demo",
)


def corpus_reader(name: str, options: ReadOptions = NO_OPTIONS) -> CorpusReader:
    """Return the reader of the corpus called `name`.

    Raises:
        CorpusError: if no such corpus is known, or it has a published form and `options` would read it otherwise.
    """
    if name not in CORPORA:
        raise CorpusError(f"CORPUS must be one of {', '.join(CORPORA)} or wds, got {name!r}")
    reader: CorpusReader = import_module(f"shards.corpora.{name.replace('-', '_')}").READER
    of_own_data = [option for option in options.given if option != "channel" and option not in reader.obeys]
    if of_own_data:
        raise CorpusError(
            f"{', '.join(map(flag, of_own_data))} must be about data of your "
            f"own, but corpus {name!r} is read as it was published; leave it out"
        )
    return reader if reader.with_options is None else reader.with_options(options)
