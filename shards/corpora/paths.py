"""Audio found by the name that a table gives it, in whichever Unicode form the disk has it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

from shards.suffixes import AUDIO_SUFFIXES


def find_audio(folders: Sequence[Path], name: str) -> Path | None:
    """Return the file that `name` means, relative to the first of `folders` that has it, or None."""
    for folder in folders:
        for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
            path = _found(folder, spelled)
            if path is not None:
                return path
    return None


def _found(folder: Path, name: str) -> Path | None:
    forms = (name,) if name.isascii() else (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
    for form in dict.fromkeys(forms):
        if _is_file(folder / form):
            return folder / form
    return None if name.isascii() else _found_by_part(folder, PurePosixPath(name))


def _found_by_part(folder: Path, name: PurePosixPath) -> Path | None:
    """Return the file whose folders and name each are in a Unicode form of their own."""
    path = folder
    for part in name.parts:
        if part in ("..", name.anchor) or part.isascii():
            path = path / part
            continue
        entry = _entries(path).get(unicodedata.normalize("NFC", part))
        if entry is None:
            return None
        path = path / entry
    return path if _is_file(path) else None


@lru_cache(maxsize=64)
def _entries(folder: Path) -> dict[str, str]:
    """Return the names in a folder by their composed form."""
    try:
        return {unicodedata.normalize("NFC", path.name): path.name for path in sorted(folder.iterdir())}
    except OSError:
        return {}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        # A name longer than the file system allows, a folder nobody may enter, a NUL byte.
        return False


def has_audio_suffix(name: str) -> bool:
    """Return whether a name ends as sound does."""
    return PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES
