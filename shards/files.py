"""Files: written whole or not at all, hashed, and told from changed ones; loads no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from shards.errors import ShardError
from shards.inputfile import open_regular
from shards.schema import MAX_FILE_BYTES

_READ_BYTES = 1 << 20


def file_stamp(path: Path) -> list[int]:
    """Return what changes when a file does, whatever is done to its time; nothing if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def content_sha256(path: Path, most: int | None = None) -> str:
    """Return the SHA-256 of a file, or of its first `most` bytes, in hexadecimal; a word if it is unreadable."""
    digest = hashlib.sha256()
    left = MAX_FILE_BYTES if most is None else most
    try:
        with open_regular(path) as file:
            # Most files of sound are smaller than the piece that `hashlib.file_digest` makes room for.
            while piece := file.read(min(_READ_BYTES, left)):
                digest.update(piece)
                left -= len(piece)
    except OSError:
        return "unreadable"
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return `value` as compact UTF-8 JSON with sorted keys.

    Raises:
        ValueError: if it holds a number that is not finite, or text that is not Unicode.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a regular file, in hexadecimal.

    Raises:
        OSError: if it cannot be read.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_file(path: Path, *, draft: Path | None = None, is_durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a file that appears under `path` only when the block ends well; until then what was there stays.

    Args:
        path: The name that readers know.
        draft: Where the bytes stand until then, in the same folder; by default `.NAME.tmp`, which is one process's.
        is_durable: Whether the file must survive a power cut from then on, which costs waiting for the disk.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.tmp") if draft is None else draft
    try:
        with draft.open("wb") as file:
            yield file
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
        if is_durable:
            sync(path.parent)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file of a shard folder as `whole_file` does.

    Raises:
        ShardError: if the disk is full or the folder cannot be written.
    """
    try:
        with whole_file(path) as file:
            yield file
    except OSError as error:
        raise ShardError(
            f"{path} could not be written: {error.strerror or error}; whatever is finished is kept, so make room (or "
            "the folder writable) and run the same command again"
        ) from error


def sync(path: Path) -> None:
    """Return when the disk has a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
