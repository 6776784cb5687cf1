"""What utterances are packed from: told from changed files by name, size and times, or by all their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import Field, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from shards.files import canonical_json, content_sha256, file_stamp
from shards.schema import AudioSource, SourceUtterance, Utterance

MAX_COMPARED_BYTES = 8 << 30
"""Of a source file: six hours of stereo at 96 kHz and 32 bits."""


def original_name(utterance: Utterance) -> str:
    """Return what messages call an utterance: its name in the corpus, else its key."""
    return utterance.source or utterance.key


def identity(item: SourceUtterance, *, with_times: bool) -> bytes:
    """Return what tells an utterance from a changed one, without reading its audio."""
    return canonical_json([item.utterance.model_dump(), _audio_identity(item.audio, with_times)]) + b"\n"


def _audio_identity(audio: AudioSource, with_times: bool) -> list[str]:
    values: list[Any] = [getattr(audio, part.name) for part in _parts_of(audio)]
    described = [_file_identity(value, with_times) if isinstance(value, Path) else repr(value) for value in values]
    return [type(audio).__name__, *described]


def _file_identity(path: Path, with_times: bool) -> str:
    """Return name and size; with the times of change only where it is not published, as every copy has its own."""
    stamp = file_stamp(path)
    if not stamp:
        return f"{path.name} missing"
    return " ".join([path.name, *map(str, stamp if with_times else stamp[:1])])


def source_files(items: Iterable[SourceUtterance]) -> list[Path]:
    """Return the file of each utterance that has one."""
    values = (getattr(item.audio, part.name) for item in items for part in _parts_of(item.audio))
    return [value for value in values if isinstance(value, Path)]


def _parts_of(audio: AudioSource) -> tuple[Field[Any], ...]:
    return fields(audio) if is_dataclass(audio) else ()


@lru_cache(maxsize=4096)
def _content_of(path: Path, stamp: tuple[int, ...]) -> str:
    """Return a file's hash; each of a recording's utterances asks for it."""
    return content_sha256(path, MAX_COMPARED_BYTES)


def sources_sha256(items: Iterable[SourceUtterance]) -> str:
    """Return a hash of the bytes of all files that the utterances lie in, whatever their names and times."""
    found = [_content_of(path, tuple(file_stamp(path))) for path in source_files(items)]
    return hashlib.sha256(canonical_json(found)).hexdigest()
