"""Audio in folders that say what it is: `anger/1.wav`, `train/anger/1.wav`, or Hugging Face's AudioFolder.

A folder (or each split's folder) with `metadata.csv`, `.jsonl` or `.parquet` is an AudioFolder: its rows are the
utterances. Without, the folder that a file lies in is its emotion. Hidden files are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.audio import AudioFile
from shards.corpora.base import Found, own_reader
from shards.corpora.cells import split_in
from shards.corpora.csv import read_any_table
from shards.corpora.identities import tidy
from shards.corpora.options import ReadOptions, flag
from shards.corpora.rows import Place, found_in
from shards.corpora.tables import Row, Table
from shards.errors import CorpusError
from shards.schema import Note, Rejection, RowCount, SourceUtterance, make_key
from shards.suffixes import AUDIO_SUFFIXES

_METADATA = tuple(f"metadata.{suffix}" for suffix in ("csv", "tsv", "jsonl", "parquet"))


@dataclass(frozen=True)
class _Part:
    """The corpus, or its part for one split."""

    folder: Path
    split: str | None

    @property
    def prefix(self) -> tuple[str, ...]:
        return () if self.split is None else (self.folder.name,)

    @property
    def metadata(self) -> Path | None:
        """The AudioFolder's table."""
        found = [self.folder / name for name in _METADATA if (self.folder / name).is_file()]
        if len(found) > 1:
            raise CorpusError(
                f"{self.folder} must hold one table, but has {found[0].name} and {found[1].name}; keep one"
            )
        return found[0] if found else None


def read_folder(source: Path | None, options: ReadOptions) -> Iterator[Found]:
    """Yield an utterance for every audio file, and a rejection for those that nothing is said of."""
    if source is None or not source.is_dir():
        raise CorpusError(f"SOURCE of a folder corpus must be a folder with audio in it, but {source} is none")
    corpus = options.name or tidy(source.resolve().name)
    make_key(corpus)
    parts = _parts(source)
    if not any(part.metadata or _audio_below(part.folder) for part in parts):
        raise CorpusError(
            f"SOURCE of a folder corpus must hold audio in folders named by emotion, or {_METADATA[0]}, but {source} "
            "has neither; give the folder that holds them"
        )
    if any(part.metadata for part in parts):
        for part in parts:
            yield from _listed(part, corpus, options)
        return
    strange = [name for name in ("columns", "encoding", "quotes", "audio") if name in options.given]
    if strange:
        raise CorpusError(f"{flag(strange[0])} must be about a table, but {source} holds none; leave it out")
    yield from _classes(source, parts, corpus, options)


def _parts(source: Path) -> list[_Part]:
    """Return the splits' folders, or the corpus as one part; folders beside splits are told when they are met."""
    folders = _folders(source)
    by_split = [(folder, split_in(folder.name)) for folder in folders]
    whole = _Part(source, None)
    if whole.metadata is not None or not any(split for _, split in by_split):
        return [whole]
    return [_Part(folder, split) for folder, split in by_split if split is not None]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _audio_below(folder: Path) -> list[Path]:
    """Return all audio files below `folder`, sorted, without hidden ones and what hidden folders hold."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _listed(part: _Part, corpus: str, options: ReadOptions) -> Iterator[Found]:
    """Yield the rows of an AudioFolder's table, and its files that no row names."""
    files = _audio_below(part.folder)
    named = set()
    if part.metadata is not None:
        given = {} if part.split is None else {"split": part.split}
        folder = options.audio or part.folder
        place = Place(corpus, (folder,), given=given, prefix=part.prefix)
        for found in found_in(read_any_table(part.metadata, place, options), place, options):
            if isinstance(found, SourceUtterance) and isinstance(found.audio, AudioFile):
                named.add(found.audio.path)
            yield found
    yield from _unnamed([path for path in files if path not in named], part)


def _unnamed(files: list[Path], part: _Part) -> Iterator[Found]:
    """Yield a rejection for each file that no row is about."""
    table = "no table" if part.metadata is None else f"no usable row of {part.metadata.name}"
    for path in files:
        yield Rejection(str(path), f"{table} is about {path.name}", "audio without row")
    if files:
        yield RowCount(len(files), "files without a row")


def _classes(source: Path, parts: list[_Part], corpus: str, options: ReadOptions) -> Iterator[Found]:
    """Yield the files of folders that are named by emotion."""
    rows: list[Row] = []
    loose: list[Path] = []
    for part in parts:
        for path in _audio_below(part.folder):
            inside = path.relative_to(part.folder)
            name = path.relative_to(source).as_posix()
            if len(inside.parts) == 1:
                loose.append(path)
                continue
            cells = {"file": name, "emotion": inside.parts[0]}
            split = {} if part.split is None else {"split": part.split}
            rows.append(Row(len(rows) + 1, {**cells, **split}, name=str(path)))
    outside = [path for path in _audio_below(source) if not any(path.is_relative_to(part.folder) for part in parts)]
    table = Table(source, ("file", "emotion", "split"), tuple(rows))
    place = Place(corpus, (source,))
    for found in found_in(table, place, options):
        yield found if not isinstance(found, RowCount) else RowCount(found.number, "files")
    yield from _described(source, parts, rows)
    for path in loose:
        reason = f"a file must lie in a folder named by its emotion, but {path.name} lies in {path.parent.name}"
        yield Rejection(str(path), reason, "no class")
    for path in outside:
        reason = f"a file must lie in a split's folder ({', '.join(part.folder.name for part in parts)}) like others"
        yield Rejection(str(path), reason, "no split")
    if loose or outside:
        yield RowCount(len(loose) + len(outside), "files outside the classes")


def _described(source: Path, parts: list[_Part], rows: list[Row]) -> Iterator[Note]:
    counts = Counter(str(row.cells["emotion"]) for row in rows)
    if counts:
        shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:20])
        yield Note(f"folders of {source.name} are taken for emotions: {shown}")
    splits = {part.folder.name: part.split for part in parts if part.split is not None}
    if splits:
        yield Note(f"folders are taken for splits: {', '.join(f'{name} as {split}' for name, split in splits.items())}")


READER = own_reader("folder", "Audio in folders named by emotion", read_folder)
