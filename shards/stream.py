"""Between a file and its samples: bytes that libsndfile decodes, and what takes the samples that come of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
from jaxtyping import Float32

_PIECE_BYTES = 1 << 20
_LONGEST_MATCH = 64


@dataclass(frozen=True)
class Stream:
    """A part of a file that libsndfile decodes from its beginning to its end, and how many samples must come of it."""

    data: bytes | BinaryIO
    num_stated: int | None = None
    """Fewer mean that something is missing; None believes libsndfile."""
    num_samples: int | None = None
    """More are not the stream's own; None takes all that come."""
    num_most: int | None = None
    """More mean that the stated number is wrong."""


class Taker(Protocol):
    """What decoded samples are given to, block by block, so that a long recording never stands in memory as a whole."""

    most_s: float
    """Longer sound is refused."""

    def begin(self) -> None:
        """Forget all blocks that came: they come again, from another decoder."""
        ...

    def take(self, samples: Float32[np.ndarray, "T *channels"], rate_hz: int) -> None:
        """Take the next block, which is never empty; rate and number of channels are those of the first."""
        ...


def found_in(file: BinaryIO, pattern: re.Pattern[bytes], start: int = 0) -> Iterator[int]:
    """Yield where, from `start` on, a pattern of at most 64 bytes stands in a file, which is read by pieces."""
    file.seek(start)
    position, rest, piece = start, b"", b"."
    while piece:
        piece = file.read(_PIECE_BYTES)
        data = rest + piece
        # What begins in the last bytes is found with the next piece.
        end = max(0, len(data) - _LONGEST_MATCH) if piece else len(data)
        first = position - len(rest)
        yield from (first + match.start() for match in pattern.finditer(data) if match.start() < end)
        position, rest = position + len(piece), data[end:]
