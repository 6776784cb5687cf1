"""Byte ranges of remote files, kept on a node's own disk for all the processes that read there.

One file per range: ranks draw clips in random order, so whole shards would bring the entire corpus to every node
within the first steps, while the clips of one node are a fraction of it. An entry is written under a temporary name and
renamed, and carries a hash over its address and bytes that every reading checks, so no lock and no fsync is needed:
what a crash, a power cut or a worn disk leaves behind is a miss, never other bytes. Entries are spread over 256
folders, each bounded on its own, so that keeping the bound looks at a 256th of the cache. The oldest go first: every
clip is read once per epoch, so the time of its last use says nothing about the next.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from pathlib import Path

from shards.files import whole_file

log = logging.getLogger(__name__)

NUM_FOLDERS = 256
_SEAL_BYTES = 32
_TEMPORARY = ".tmp"
_ABANDONED_S = 3600.0
"""A temporary file of this age belongs to a process that was killed."""


class RangeCache:
    """A bounded cache in `folder`; any trouble with its disk is a warning, once, and never an error.

    Args:
        folder: Created when first needed; any number of processes may share it.
        max_gb: Bound in 10^9 bytes. A range longer than a 256th of it is not kept.
    """

    def __init__(self, folder: str | Path, max_gb: float) -> None:
        self._folder = Path(folder)
        self._folder_limit = int(max_gb * 1e9) // NUM_FOLDERS
        self._unchecked: dict[Path, int] = {}
        """Bytes that this process wrote into a folder since it last looked at the folder's size."""
        self._is_writable = True
        self._has_warned = False

    def get(self, place: str, offset: int, num_bytes: int) -> bytes | None:
        """Return the bytes that were put under this address, None where there are none or they were damaged."""
        if num_bytes > self._folder_limit:
            return None
        try:
            entry = _read_up_to(self._path(place, offset, num_bytes), _SEAL_BYTES + num_bytes + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(error)
            return None
        data = entry[_SEAL_BYTES:]
        return data if entry[:_SEAL_BYTES] == _seal(place, offset, num_bytes, data) else None

    def put(self, place: str, offset: int, data: bytes) -> None:
        """Keep `data`, replacing what stands under its address."""
        size = _SEAL_BYTES + len(data)
        if not self._is_writable or size > self._folder_limit:
            return
        path = self._path(place, offset, len(data))
        draft = path.with_name(f"{path.name}.{os.getpid()}{_TEMPORARY}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path, draft=draft, is_durable=False) as file:
                file.write(_seal(place, offset, len(data), data) + data)
            self._bound(path.parent, size)
        except OSError as error:
            self._is_writable = False
            self._warn(error)

    def _path(self, place: str, offset: int, num_bytes: int) -> Path:
        name = hashlib.sha256(_address(place, offset, num_bytes)).hexdigest()
        return self._folder / name[:2] / name[2:]

    def _bound(self, folder: Path, size: int) -> None:
        """Delete the oldest entries of `folder` if it is too large, looking once per 64th of its limit written."""
        unchecked = self._unchecked.get(folder, self._folder_limit) + size
        self._unchecked[folder] = unchecked
        if unchecked < self._folder_limit // 64:
            return
        self._unchecked[folder] = 0
        entries, total = [], 0
        for entry in os.scandir(folder):
            try:
                stat = entry.stat()
            except FileNotFoundError:  # another process was faster
                continue
            if entry.name.endswith(_TEMPORARY) and time.time() - stat.st_mtime < _ABANDONED_S:
                continue
            entries.append((stat.st_mtime_ns, stat.st_size, Path(entry.path)))
            total += stat.st_size
        # Room for what this and other processes write before they look again.
        enough = self._folder_limit * 15 // 16
        if total <= enough:
            return
        for _, entry_size, path in sorted(entries):
            path.unlink(missing_ok=True)
            total -= entry_size
            if total <= enough:
                return

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning("cache %s: %s; reading goes on without it", self._folder, error.strerror or error)


def _read_up_to(path: Path, num_bytes: int) -> bytes:
    """Return the beginning of a file; nothing of a pipe, for whose writer it does not wait."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, num_bytes)
    finally:
        os.close(descriptor)


def _address(place: str, offset: int, num_bytes: int) -> bytes:
    return f"{place}\n{offset}\n{num_bytes}\n".encode()


def _seal(place: str, offset: int, num_bytes: int, data: bytes) -> bytes:
    return hashlib.sha256(_address(place, offset, num_bytes) + data).digest()
