"""Hugging Face's AudioFolder: tables called `metadata`, at any depth, each about the files in and below its folder."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from shards.audio import AudioFile
from shards.corpora.base import Found
from shards.corpora.csv import read_any_table
from shards.corpora.foldertree import split_folder, split_named
from shards.corpora.options import ReadOptions
from shards.corpora.rows import Place, found_in
from shards.errors import CorpusError
from shards.schema import Note, Rejection, RowCount, SourceUtterance

TABLES = tuple(f"metadata.{suffix}" for suffix in ("csv", "tsv", "jsonl", "parquet"))


@dataclass
class FolderTables:
    """All tables below a folder, and what they say of its files."""

    source: Path
    tables: Sequence[Path]
    audio: Sequence[Path]
    corpus: str
    options: ReadOptions
    _by_part: dict[AudioFile, Path] = field(default_factory=dict)
    """The table that is about a file, or about a part of one."""
    _splits: dict[Path, str] = field(default_factory=dict)
    """What folders are taken for."""
    _num_without_split: int = 0

    def found(self) -> Iterator[Found]:
        """Yield the rows of each table, then the files below it that no row of any is about.

        Raises:
            CorpusError: if a folder has two tables.
        """
        self._check_single()
        rows = {table: list(self._rows(table)) for table in self.tables}
        unnamed = self._unnamed()
        for table, found in rows.items():
            yield from found
            yield from _told(unnamed.get(table, ()), f"no usable row of {table.relative_to(self.source)}")
        yield from _told(unnamed.get(None, ()), "no table")
        if self._splits:
            taken = ", ".join(f"{path.relative_to(self.source)} as {split}" for path, split in self._splits.items())
            yield Note(f"folders are taken for splits: {taken}")
        if self._splits and self._num_without_split:
            yield Note(f"{self._num_without_split} utterances have no split: they lie in no split's folder", True)

    def _check_single(self) -> None:
        by_folder: dict[Path, Path] = {}
        for table in self.tables:
            other = by_folder.setdefault(table.parent, table)
            if other != table:
                raise CorpusError(
                    f"{table.parent} must hold one table, but has {other.name} and {table.name}; keep one"
                )

    def _rows(self, table: Path) -> Iterator[Found]:
        prefix = table.parent.relative_to(self.source).parts
        place = Place(self.corpus, (self.options.audio or table.parent,), prefix=prefix)
        for found in found_in(read_any_table(table, place, self.options), place, self.options):
            if isinstance(found, SourceUtterance) and isinstance(found.audio, AudioFile):
                yield self._row(found, found.audio, table)
            else:
                yield found

    def _row(self, found: SourceUtterance, audio: AudioFile, table: Path) -> SourceUtterance | Rejection:
        path = _plain(audio.path)
        other = self._by_part.setdefault(replace(audio, path=path), table)
        if other != table:
            both = " and ".join(str(one.relative_to(self.source)) for one in (other, table))
            return Rejection(str(path), f"a file must be in one table, but {path.name} is in {both}", "duplicate row")
        if found.utterance.split is not None:
            return found
        folder = split_folder(self.source, path.parent) or split_folder(self.source, table.parent)
        split = None if folder is None else split_named(folder.name)
        if folder is None or split is None:
            self._num_without_split += 1
            return found
        self._splits[folder] = split
        return SourceUtterance(found.utterance.model_copy(update={"split": split}), found.audio)

    def _unnamed(self) -> dict[Path | None, list[Path]]:
        """Return the files that no row is about, by the table that is the nearest above them."""
        named = {audio.path for audio in self._by_part}
        by_folder = {table.parent: table for table in self.tables}
        unnamed: dict[Path | None, list[Path]] = defaultdict(list)
        for path in self.audio:
            if _plain(path) not in named:
                unnamed[next((by_folder[folder] for folder in path.parents if folder in by_folder), None)].append(path)
        return unnamed


def _told(files: Sequence[Path], what: str) -> Iterator[Found]:
    for path in files:
        yield Rejection(str(path), f"{what} is about {path.name}", "audio without row")
    if files:
        yield RowCount(len(files), "files without a row")


def _plain(path: Path) -> Path:
    """Return a path without `..`, by which a table may name what lies beside its folder."""
    return Path(os.path.normpath(path))
