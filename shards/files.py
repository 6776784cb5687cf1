"""Files: hashes of their contents, and what changes when they do."""

from __future__ import annotations

import hashlib
from pathlib import Path

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
