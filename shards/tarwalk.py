"""A tar's bytes in one pass, wherever it lies."""

from __future__ import annotations

import hashlib

from shards.store import PIECE_BYTES, RangeReader
from shards.tarmembers import LOOK_BACK_BYTES


class TarStream:
    """A tar's bytes from its beginning to its end, hashed on the way."""

    def __init__(self, ranges: RangeReader, place: str, num_bytes: int) -> None:
        self.position = 0
        self.num_bytes = num_bytes
        self._ranges = ranges
        self._place = place
        self._piece = b""
        self._piece_start = 0
        self._digest = hashlib.sha256()

    def read(self, count: int) -> bytes:
        """Return the next bytes, fewer at the end.

        Raises:
            ShardError: if they cannot be read.
        """
        count = min(count, self.num_bytes - self.position)
        parts = []
        while count:
            start = self.position - self._piece_start
            part = self._piece[start : start + count]
            if not part:
                self._next_piece()
                continue
            parts.append(part)
            self.position += len(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seek(self, position: int) -> None:
        """Go on to a later byte, at most to the end, or back by at most `LOOK_BACK_BYTES`.

        Raises:
            ShardError: if the bytes before cannot be read.
            ValueError: if it is an earlier one.
        """
        position = min(position, self.num_bytes)
        if position < self._piece_start:
            raise ValueError(f"a tar is read forward, but byte {position} lies before {self._piece_start}")
        while self._piece_start + len(self._piece) < position:
            self._next_piece()
        self.position = position

    def hexdigest(self) -> str:
        """Return the SHA-256 of the whole tar, after reading the rest."""
        self.seek(self.num_bytes)
        return self._digest.hexdigest()

    def _next_piece(self) -> None:
        end = self._piece_start + len(self._piece)
        read = self._ranges.read(self._place, end, min(PIECE_BYTES, self.num_bytes - end), fresh=True)
        self._digest.update(read)
        self._piece = self._piece[-LOOK_BACK_BYTES:] + read
        self._piece_start = end + len(read) - len(self._piece)
