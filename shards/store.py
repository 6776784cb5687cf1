"""Bytes of shard folders, wherever they lie: local files by `os.pread`, those behind URLs through a node-local cache.

What a byte *means* is checked by whoever knows it: whole files by their sha256 here, audio by the hash of its samples
in the reader, which asks again (`fresh=True`) before it calls a record damaged.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from shards.cache import RangeCache
from shards.config import RemoteConfig
from shards.errors import RangeError, ShardError
from shards.inputfile import open_regular, read_regular
from shards.remote import RemoteFiles, too_short
from shards.urls import is_url, shown_url

NUM_READS = 3
"""How often a remote range is read before its content counts as damaged; a local disk is asked once."""
PIECE_BYTES = 1 << 20
"""Whole files come in ranges of this size, so that the deadline does not depend on the file's length."""

MAX_UNVERIFIED_BYTES = 64 << 20
"""Of a file that is read whole and whose hash nothing states: a manifest; one of 100,000 shards has 20 MB."""
MAX_VERIFIED_BYTES = 4 << 30
"""Of one whose hash is known: an index, or a list of what was rejected; an index has about 150 bytes a clip."""

_MAX_OPEN_SHARDS = 256
_LONG_BYTES = 64 << 20
"""A range of more is held against the file's length first: memory is not taken for what an index claims."""


def file_size(place: str, remote: RemoteConfig | None = None) -> int:
    """Return the length of a file in bytes.

    Raises:
        ShardError: if it cannot be had.
    """
    if is_url(place):
        return RemoteFiles(remote).size(place)
    try:
        with open_regular(place) as file:
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise _unreadable(place, error) from error


def read_file(
    place: str, remote: RemoteConfig | None = None, *, num_bytes: int | None = None, sha256: str | None = None
) -> bytes:
    """Return a whole file, verified as far as `num_bytes` and `sha256` tell.

    A remote file comes through the cache only when its sha256 is given: nothing else says that a kept copy is current.

    Raises:
        ShardError: if it cannot be read, is longer than any such file, or is not what was promised.
    """
    max_bytes = MAX_UNVERIFIED_BYTES if sha256 is None else MAX_VERIFIED_BYTES
    if num_bytes is not None:
        _check_bound(place, num_bytes, max_bytes)
    if not is_url(place):
        try:
            data = read_regular(place, max_bytes=max_bytes)
        except OSError as error:
            raise _unreadable(place, error) from error
        _check_size(place, len(data), num_bytes)
        _check_hash(place, data, sha256)
        return data
    reader = RangeReader(remote)
    size = num_bytes
    if size is None or sha256 is None:
        size = RemoteFiles(remote).size(place)
        _check_size(place, size, num_bytes)
        _check_bound(place, size, max_bytes)
    pieces = [(place, start, min(PIECE_BYTES, size - start)) for start in range(0, size, PIECE_BYTES)]
    for number in range(NUM_READS):
        data = b"".join(map(_bytes_or_raise, reader.read_many(pieces, fresh=number > 0 or sha256 is None)))
        if sha256 is None or hashlib.sha256(data).hexdigest() == sha256:
            break
    _check_hash(place, data, sha256)
    return data


def _check_size(place: str, found: int, expected: int | None) -> None:
    if expected is not None and found != expected:
        raise ShardError(f"{shown_url(place)} must have {expected} bytes, got {found}; fetch or pack the folder again")


def _check_bound(place: str, num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise ShardError(
            f"{shown_url(place)} must have at most {max_bytes} bytes, but {num_bytes} are stated; fetch or pack the "
            "folder again"
        )


def _check_hash(place: str, data: bytes, expected: str | None) -> None:
    if expected is not None and (found := hashlib.sha256(data).hexdigest()) != expected:
        raise ShardError(
            f"{shown_url(place)} must have sha256 {expected}, but was changed (it has {found}); fetch or pack the "
            "folder again"
        )


class RangeReader:
    """Reads byte ranges of local and remote files; made for reader processes, into which it may be pickled.

    It holds no connection: fsspec keeps one file system per process and options, and makes a new one after a fork.
    """

    def __init__(self, remote: RemoteConfig | None = None) -> None:
        self._remote = remote or RemoteConfig()
        self._files = RemoteFiles(self._remote)
        cache_dir = self._remote.cache_dir
        self._cache = RangeCache(cache_dir, self._remote.cache_max_gb) if cache_dir is not None else None
        self._descriptors: dict[str, int] = {}

    def __reduce__(self) -> tuple[type[RangeReader], tuple[RemoteConfig]]:
        return RangeReader, (self._remote,)

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def num_reads(self, place: str) -> int:
        """Return how often a range of `place` should be read before its content counts as damaged."""
        return NUM_READS if is_url(place) else 1

    def read(self, place: str, offset: int, num_bytes: int, *, fresh: bool = False) -> bytes:
        """Return exactly `num_bytes` bytes of `place` from `offset`.

        Args:
            place: A local path or a URL.
            offset: First byte, from 0.
            num_bytes: Length of the range.
            fresh: Read around the cache and replace what it holds, because that turned out to be corrupt.

        Raises:
            RangeError: if the file ends before the range does.
            ShardError: if the bytes cannot be had.
        """
        if place in self._descriptors or not is_url(place):
            return _bytes_or_raise(self._read_local(place, offset, num_bytes))
        return _bytes_or_raise(self.read_many([(place, offset, num_bytes)], fresh=fresh)[0])

    def read_many(self, ranges: Sequence[tuple[str, int, int]], *, fresh: bool = False) -> list[bytes | RangeError]:
        """Return the bytes of several ranges (place, offset, length); remote ones are requested concurrently.

        Where a file ends before its range does, the error stands in the range's place: the others are good.

        Raises:
            ShardError: if the bytes of a range cannot be had for another reason.
        """
        found: dict[int, bytes | RangeError] = {}
        missing: list[int] = []
        for number, (place, offset, num_bytes) in enumerate(ranges):
            if not is_url(place):
                found[number] = self._read_local(place, offset, num_bytes)
            elif num_bytes == 0:
                found[number] = b""
            elif self._cache and not fresh and (kept := self._cache.get(place, offset, num_bytes)) is not None:
                found[number] = kept
            else:
                missing.append(number)
        for number, data in zip(missing, self._files.read([ranges[number] for number in missing]), strict=True):
            place, offset, _ = ranges[number]
            if self._cache and isinstance(data, bytes):
                self._cache.put(place, offset, data)
            found[number] = data
        return [found[number] for number in range(len(ranges))]

    def _read_local(self, path: str, offset: int, num_bytes: int) -> bytes | RangeError:
        try:
            descriptor = self._descriptor(path)
            if num_bytes > _LONG_BYTES and offset + num_bytes > (size := os.fstat(descriptor).st_size):
                return too_short(path, offset, num_bytes, f"got {max(0, size - offset)}")
            data = os.pread(descriptor, num_bytes, offset)
        except OSError as error:
            raise _unreadable(path, error) from error
        return data if len(data) == num_bytes else too_short(path, offset, num_bytes, f"got {len(data)}")

    def _descriptor(self, path: str) -> int:
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            if len(self._descriptors) >= _MAX_OPEN_SHARDS:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            with open_regular(path) as file:
                descriptor = self._descriptors[path] = os.dup(file.fileno())
        return descriptor


def _bytes_or_raise(found: bytes | RangeError) -> bytes:
    if isinstance(found, RangeError):
        raise found
    return found


def _unreadable(place: str, error: OSError) -> ShardError:
    return ShardError(f"shard {place} must be readable: {error.strerror or error}")
