"""How a header says that plain samples lie in their bytes.

It says so more than once, and libsndfile believes one of its fields without a look at the others: samples of 16 bits
become noise where it says 8 or 24. What contradicts itself is an error, unless the samples show what is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from shards.errors import AudioError

_RATES_HZ = (1_000, 1_000_000)
_MIXED_BITS, _MIXED_BYTES = 24, 4
"""Samples of 24 bits, each with a byte of zeros below it, as some editors write them."""
_BLOCK_SAMPLES = 1 << 20
_FEW_BYTES = 2
"""Of padding that a container may count as samples."""


@dataclass(frozen=True)
class Layout:
    """What a header says of samples that stand for themselves, each in a place of its own."""

    num_channels: int
    bits: int
    """Of a sample, or of the place that it has."""
    frame_bytes: int
    """Of one sample of every channel."""
    order: Literal["little", "big"] = "little"
    used_bits: int = 0
    """Of those, where the header tells them apart."""
    is_integer: bool = True
    is_signed: bool = True
    bits_at: int | None = None
    """Position of the lowest byte of `bits` in the header."""
    num_frames: int | None = None
    """Samples of each channel, where the header states them beside the number of bytes."""

    @property
    def sample_bytes(self) -> int:
        """Bytes from one sample to the next."""
        return self.frame_bytes // max(1, self.num_channels)

    @property
    def num_spare(self) -> int:
        """Bits of a sample's bytes that it does not use."""
        return 8 * self.sample_bytes - (self.used_bits or self.bits) if self.is_integer else 0

    @property
    def is_mixed(self) -> bool:
        """Whether each sample of 24 bits has four bytes."""
        is_wide = (self.bits, self.frame_bytes) == (_MIXED_BITS, _MIXED_BYTES * self.num_channels)
        return self.is_integer and self.bits_at is not None and is_wide


def check_rate(rate_hz: int, name: str) -> None:
    """Refuse rates of no sound.

    Raises:
        AudioError: if this is one.
    """
    if not _RATES_HZ[0] <= rate_hz <= _RATES_HZ[1]:
        raise AudioError(
            f"audio must have a rate of {_RATES_HZ[0]} to {_RATES_HZ[1]} Hz, but the header of {name} says {rate_hz}; "
            "correct it"
        )


def check_layout(layout: Layout, num_bytes: int | None, name: str) -> None:
    """Refuse a header that contradicts itself.

    Args:
        layout: What it says of the samples.
        num_bytes: What it says that all of them take, if it does.
        name: What errors call the file.

    Raises:
        AudioError: if a sample's bytes are not those that its bits and channels take, or all bytes not those of the
            stated number of samples.
    """
    agrees = layout.bits > 0 and layout.frame_bytes == layout.num_channels * ((layout.bits + 7) // 8)
    if layout.num_channels == 0 or not (agrees or layout.is_mixed):
        raise _contradiction(layout, name, "which cannot all be true")
    if layout.used_bits > layout.bits and layout.is_integer:
        raise _contradiction(layout, name, f"and that {layout.used_bits} of the bits are used")
    if layout.num_spare and not layout.is_signed:
        raise _contradiction(layout, name, "and nothing says where in its byte a sample lies")
    if layout.num_frames is None or num_bytes is None:
        return
    if abs(num_bytes - layout.num_frames * layout.frame_bytes) > max(_FEW_BYTES, layout.frame_bytes):
        raise _contradiction(layout, name, f"and {layout.num_frames} of these in {num_bytes} bytes")


def check_spare_bits(data: bytes, layout: Layout, name: str) -> None:
    """Refuse samples that lie at the low end of their bytes, where they are taken for far quieter ones.

    Args:
        data: The samples alone.
        layout: How they lie; without spare bits they are right.
        name: What errors call the file.

    Raises:
        AudioError: if the bits that should be spare are in use, and either no sample needs the high ones, or there is a
            whole byte too many.
    """
    if not layout.num_spare:
        return
    lowest, highest, uses_spare = 0, 0, False
    block_bytes = _BLOCK_SAMPLES * layout.sample_bytes
    for start in range(0, len(data), block_bytes):
        values = _integers(data[start : start + block_bytes], layout)
        uses_spare = uses_spare or bool((values & ((1 << layout.num_spare) - 1)).any())
        lowest, highest = min(lowest, int(values.min(initial=0))), max(highest, int(values.max(initial=0)))
    bits = layout.used_bits or layout.bits
    # A negative one that was not extended to the high bits is read as a positive one.
    is_low = lowest >= -(1 << bits - 1) and highest < 1 << bits
    if uses_spare and (is_low or layout.is_mixed):
        raise _contradiction(layout, name, "and the samples are not at the high end of theirs")


def with_mixed_bits(data: bytes, layout: Layout) -> bytes:
    """Return a file whose header says that samples of 24 bits in four bytes have 32, as they have with their zeros.

    libsndfile reads such a file as one of 24 bits in three bytes, or guesses.
    """
    if not layout.is_mixed or layout.bits_at is None:
        return data
    return data[: layout.bits_at] + bytes([8 * _MIXED_BYTES]) + data[layout.bits_at + 1 :]


def _integers(data: bytes, layout: Layout) -> np.ndarray:
    width = layout.sample_bytes
    columns = np.frombuffer(data[: len(data) // width * width], np.uint8).reshape(-1, width)
    columns = columns[:, ::-1] if layout.order == "little" else columns
    values: np.ndarray = columns[:, 0].astype(np.int8).astype(np.int64)
    for place in range(1, width):
        values = values << 8 | columns[:, place]
    return values


def _contradiction(layout: Layout, name: str, why: str) -> AudioError:
    return AudioError(
        f"audio must be stored as its header says, but that of {name} states samples of {layout.bits} bits, "
        f"{layout.num_channels} channels and {layout.frame_bytes} bytes for one sample of each, {why}; correct it, or "
        "convert the file again"
    )
