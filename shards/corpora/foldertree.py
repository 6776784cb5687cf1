"""What lies below a folder, and which folders are splits by their names."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.corpora.cells import split_in
from shards.errors import CorpusError
from shards.labels import known_emotion
from shards.suffixes import AUDIO_SUFFIXES

_HUB_WORDS = {"eval": "test", "evaluation": "test"}
"""What Hugging Face's datasets call a split, besides the usual words."""

_MAX_VISITS = 100
"""Twenty folders with two links to the next in each are a million ways to the last."""


def files_below(folder: Path) -> list[Path]:
    """Return all files below `folder`, sorted, without hidden ones and what hidden folders hold.

    Raises:
        CorpusError: if a folder cannot be read, whose files would be lost, or links lead to it again and again.
    """
    try:
        return sorted(_files_below(folder))
    except OSError as error:
        raise CorpusError(
            f"{error.filename} must be a folder that can be read, but cannot: {error.strerror}"
        ) from error


def _files_below(source: Path) -> Iterator[Path]:
    # Not by recursion, to which the depth of folders would be a limit.
    folders: list[tuple[Path, frozenset[tuple[int, int]]]] = [(source, frozenset())]
    num_visits: Counter[tuple[int, int]] = Counter()
    while folders:
        folder, above = folders.pop()
        status = folder.stat()
        real = (status.st_dev, status.st_ino)
        num_visits[real] += 1
        if num_visits[real] > _MAX_VISITS:
            raise CorpusError(
                f"a folder must be reached in at most {_MAX_VISITS} ways, but links lead to {folder} in more; remove "
                "them"
            )
        if real in above:  # a link to a folder that it lies in
            continue
        for path in folder.iterdir():
            if path.name.startswith("."):
                continue
            if path.is_dir():
                folders.append((path, above | {real}))
            else:
                # Also what is no file: whoever opens it says so.
                yield path


def is_audio(path: Path) -> bool:
    """Return whether a file ends as sound does."""
    return path.suffix.lower() in AUDIO_SUFFIXES


@dataclass(frozen=True)
class AudioTree:
    """The folders with audio in or below them."""

    inner: Mapping[Path, Sequence[Path]]
    """The folders in a folder."""
    direct: Collection[Path]
    """Folders with audio in them."""

    @classmethod
    def of(cls, source: Path, audio: Iterable[Path]) -> AudioTree:
        """Return the tree below `source`."""
        inner: dict[Path, dict[Path, None]] = defaultdict(dict)
        direct = dict.fromkeys(path.parent for path in audio)
        for folder in direct:
            while folder != source:
                inner[folder.parent][folder] = None
                folder = folder.parent
        return cls({folder: sorted(folders) for folder, folders in inner.items()}, direct.keys())

    def folders_in(self, folder: Path) -> Sequence[Path]:
        """Return the folders in `folder`, sorted."""
        return self.inner.get(folder, ())

    def only_holds_folders(self, folder: Path) -> bool:
        """Return whether all of a folder's audio lies deeper."""
        return folder not in self.direct and bool(self.folders_in(folder))


def split_named(name: str) -> str | None:
    """Return the split that a folder's name says, as in `train`, `test-clean` and `my_eval`, or None."""
    whole = split_in(name)
    if whole is not None or known_emotion(name) is not None:
        return whole
    words = re.split(r"[-._ 0-9]+", name.lower())
    found = {_HUB_WORDS.get(word) or split_in(word) for word in words} - {None}
    return found.pop() if len(found) == 1 else None


def split_folder(source: Path, path: Path) -> Path | None:
    """Return the first folder on the way from `source` to `path` (itself included) that is a split, or None."""
    if not path.is_relative_to(source):
        return None
    way = [path, *path.parents][: len(path.relative_to(source).parts)]
    return next((folder for folder in reversed(way) if split_named(folder.name) is not None), None)
