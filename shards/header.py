"""Where a file's samples lie as its header says, and the numbers that headers are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Literal

from shards.errors import AudioError
from shards.layout import Layout

Order = Literal["little", "big"]
STREAMED_BYTES = 0x7FFFF000
"""Programs that write WAV or AIFF into a pipe declare about this size or more, because they cannot know it."""


@dataclass(frozen=True)
class Samples:
    """Where a file's samples lie."""

    start: int
    stated_bytes: int | None
    """None where the header says nothing."""
    size_fields: tuple[tuple[int, int, int], ...] = ()
    """Where the header would say it: position, width in bytes, and how much more than the samples' bytes it counts."""
    order: Order = "little"
    chunks_follow: Callable[[BinaryIO, int, int], int] | None = None
    """Returns where what can stand behind the samples ends."""
    frame_bytes: int = 1
    is_mpeg: bool = False
    """Whether they are a row of MPEG frames."""
    is_foreign: bool = False
    """Whether they lie in several places or are of a codec that libsndfile lacks."""
    block_samples: int | None = None
    """Samples of each `frame_bytes`, of a codec of which libsndfile takes a byte of padding for one more block."""
    count_field: int | None = None
    """Where the header states the number of samples of a codec that libsndfile decodes no further than that."""
    rate_hz: int | None = None
    """As the header says, where we look for it."""
    layout: Layout | None = None
    """How plain samples lie."""

    @property
    def for_sndfile(self) -> bool:
        """Whether libsndfile may read the header as it is."""
        return not self.is_mpeg and not self.is_foreign


def incomplete(name: str, what: str) -> AudioError:
    """Return the error of a file that lacks `what`."""
    return AudioError(f"audio must be readable and whole, but decoding {name} failed: it has no {what}; copy it again")


def bytes_at(file: BinaryIO, position: int, num_bytes: int) -> bytes:
    """Return `num_bytes` bytes at `position`, or what there is of them."""
    file.seek(position)
    return file.read(max(0, num_bytes))


def number_at(file: BinaryIO, position: int, width: int, order: Order) -> int:
    """Return the whole number of `width` bytes at `position`."""
    return int.from_bytes(bytes_at(file, position, width), order)
