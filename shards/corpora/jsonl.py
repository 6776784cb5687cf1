"""A user's own corpus as JSON Lines, one object per utterance, as NeMo and EmoBox write it; or a JSON list, or Parquet.

Names mean what they do in a table (`shards.corpora.csv`); what an object holds beside is kept in `extra`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shards.corpora.base import Found, own_reader
from shards.corpora.csv import read_own_table
from shards.corpora.options import ReadOptions
from shards.corpora.structured import JSON_SUFFIXES
from shards.errors import CorpusError
from shards.inputfile import ABSENT, fault_of


def _read(source: Path | None, options: ReadOptions) -> Iterator[Found]:
    suffixes = (*JSON_SUFFIXES, ".parquet")
    fault = ABSENT if source is None else fault_of(source, "file")
    if source is None or fault is not None:
        raise CorpusError(f"SOURCE of a jsonl corpus must be a file ({', '.join(suffixes)}), but {source} {fault}")
    if source.suffix.lower() not in suffixes:
        raise CorpusError(f"SOURCE of a jsonl corpus must end in {', '.join(suffixes)}, got {source}; pack it as csv")
    yield from read_own_table(source, options)


READER = own_reader("jsonl", "Audio files listed in JSON Lines", _read)
