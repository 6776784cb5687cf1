"""Audio in folders that say what it is: `anger/1.wav`, `train/anger/1.wav`, or Hugging Face's AudioFolder.

A folder with `metadata.csv`, `.jsonl` or `.parquet` somewhere in it is an AudioFolder: the rows of these tables are the
utterances. Without, the folder that a file lies in is its emotion. Hidden files are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.corpora.base import Found, own_reader
from shards.corpora.foldertables import TABLES, FolderTables
from shards.corpora.foldertree import AudioTree, files_below, is_audio, split_named
from shards.corpora.identities import tidy
from shards.corpora.options import ReadOptions, flag
from shards.corpora.rows import Place, found_in
from shards.corpora.tables import Row, Table
from shards.emotionwords import folded
from shards.errors import CorpusError
from shards.inputfile import ABSENT, fault_of
from shards.labels import known_emotion
from shards.schema import Note, Rejection, RowCount, make_key

_TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".xlsx")


@dataclass(frozen=True)
class _Part:
    """The corpus, or its part for one split."""

    folder: Path
    split: str | None


def read_folder(source: Path | None, options: ReadOptions) -> Iterator[Found]:
    """Yield an utterance for every audio file, and a rejection for those that nothing is said of."""
    fault = ABSENT if source is None else fault_of(source, "folder")
    if source is None or fault is not None:
        raise CorpusError(f"SOURCE of a folder corpus must be a folder with audio in it, but {source} {fault}")
    corpus = options.name or tidy(source.resolve().name)
    make_key(corpus)
    files = files_below(source)
    audio = [path for path in files if is_audio(path)]
    tables = [path for path in files if path.name in TABLES]
    if not audio and not tables:
        raise CorpusError(
            f"SOURCE of a folder corpus must hold audio in folders named by emotion, or {TABLES[0]}, but {source} "
            "has neither; give the folder that holds them"
        )
    if tables:
        yield from FolderTables(source, tables, audio, corpus, options).found()
        return
    strange = [name for name in ("columns", "encoding", "quotes", "audio") if name in options.given]
    if strange:
        raise CorpusError(f"{flag(strange[0])} must be about a table, but {source} holds none; leave it out")
    yield from _classes(source, audio, corpus, options)
    yield from _unread(source, files)


def _parts(source: Path, tree: AudioTree, labels: Collection[str]) -> list[_Part]:
    """Return the splits' folders, or the corpus as one part; folders beside splits are told when they are met.

    Raises:
        CorpusError: if the folders at the top cannot be emotions.
    """
    folders = tree.folders_in(source)
    by_split = [_Part(folder, split) for folder in folders if (split := split_named(folder.name)) is not None]
    if by_split:
        return by_split
    # A folder that holds nothing but folders and has no emotion's name, such as `data/train`, may be there for these.
    wraps = [folder for folder in folders if tree.only_holds_folders(folder) and not _is_emotion(folder.name, labels)]
    if len(folders) == 1 and wraps:
        parts = _parts(folders[0], tree, labels)
        if any(part.split for part in parts):
            return parts
    has_splits = any(split_named(inner.name) for folder in wraps for inner in tree.folders_in(folder))
    if wraps and (len(folders) == 1 or has_splits):
        inside = ", ".join(inner.name for inner in tree.folders_in(wraps[0])[:3])
        raise CorpusError(
            f"SOURCE of a folder corpus must hold folders named by emotion or split, but {wraps[0]} is neither and "
            f"holds more folders ({inside}); give {wraps[0]}, or say with --labels which emotion {wraps[0].name} is"
        )
    return [_Part(source, None)]


def _is_emotion(name: str, labels: Collection[str]) -> bool:
    return known_emotion(name) is not None or folded(name) in map(folded, labels)


def _has_splits_in_classes(source: Path, tree: AudioTree) -> bool:
    """Return whether the folders are `anger/train` rather than `train/anger`, all of them."""
    classes = tree.folders_in(source)
    inner = [folder for emotion in classes for folder in tree.folders_in(emotion)]
    return all(map(tree.only_holds_folders, classes)) and all(split_named(folder.name) for folder in inner)


def _classes(source: Path, audio: Sequence[Path], corpus: str, options: ReadOptions) -> Iterator[Found]:
    """Yield the files of folders that are named by emotion."""
    tree = AudioTree.of(source, audio)
    parts = _parts(source, tree, options.labels)
    has_inner_splits = parts == [_Part(source, None)] and _has_splits_in_classes(source, tree)
    rows: list[Row] = []
    loose: list[Path] = []
    splits: dict[str, str | None] = {str(part.folder.relative_to(source)): part.split for part in parts if part.split}
    for part in parts:
        for path in [path for path in audio if path.is_relative_to(part.folder)]:
            inside = path.relative_to(part.folder)
            if len(inside.parts) == 1:
                loose.append(path)
                continue
            split = part.split
            if has_inner_splits and len(inside.parts) > 2:
                split = splits[inside.parts[1]] = split_named(inside.parts[1])
            cells = {"file": path.relative_to(source).as_posix(), "emotion": inside.parts[0], "split": split}
            rows.append(Row(len(rows) + 1, cells, name=str(path)))
    outside = [path for path in audio if not any(path.is_relative_to(part.folder) for part in parts)]
    table = Table(source, ("file", "emotion", "split"), tuple(rows))
    place = Place(corpus, (source,))
    for found in found_in(table, place, options):
        yield found if not isinstance(found, RowCount) else RowCount(found.number, "files")
    yield from _described(source, splits, rows)
    for path in loose:
        reason = f"a file must lie in a folder named by its emotion, but {path.name} lies in {path.parent.name}"
        yield Rejection(str(path), reason, "no class")
    for path in outside:
        reason = f"a file must lie in a split's folder ({', '.join(splits)}) like others"
        yield Rejection(str(path), reason, "no split")
    if loose or outside:
        yield RowCount(len(loose) + len(outside), "files outside the classes")


def _described(source: Path, splits: Mapping[str, str | None], rows: Sequence[Row]) -> Iterator[Note]:
    counts = Counter(str(row.cells["emotion"]) for row in rows)
    if counts:
        shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:20])
        yield Note(f"folders of {source.name} are taken for emotions: {shown}")
    if splits:
        yield Note(f"folders are taken for splits: {', '.join(f'{name} as {split}' for name, split in splits.items())}")


def _unread(source: Path, files: Sequence[Path]) -> Iterator[Note]:
    """Yield which files look as if they described the audio, but are not read."""
    names = [
        str(path.relative_to(source))
        for path in files
        if "metadata" in path.name.lower() and path.suffix.lower() in _TABLE_SUFFIXES
    ]
    if names:
        shown = f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
        yield Note(f"tables are not read unless they are called {', '.join(TABLES)}: {shown}; pack it as csv", True)


READER = own_reader("folder", "Audio in folders named by emotion", read_folder)
