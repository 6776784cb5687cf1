"""Bytes of shard folders (interim: local only)."""

from __future__ import annotations

import os
from typing import Any

from shards.errors import ShardError


class RangeReader:
    """Reads byte ranges, each file opened once; goes to reader processes without what it has open."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    def read(self, place: str, offset: int, num_bytes: int, *, fresh: bool = False) -> bytes:
        """Return the bytes of a range; fewer where the file ends."""
        if place not in self._descriptors:
            try:
                self._descriptors[place] = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise ShardError(f"shard {place} must be readable: {error.strerror}") from error
        return os.pread(self._descriptors[place], num_bytes, offset)

    def __getstate__(self) -> dict[str, Any]:
        return {"_descriptors": {}}

    @staticmethod
    def is_remote(place: str) -> bool:
        """Return whether `place` is a URL."""
        return "://" in place
