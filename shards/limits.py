"""How much work and memory audio may take, by the size of its file: looked at before either is spent."""

from __future__ import annotations

import math

from shards.errors import AudioError
from shards.schema import RATE_HZ

MAX_FILE_BYTES = 288 << 20
"""Of a file that is read whole, as MP3 and OGG are: two hours at 320 kbit/s. Plain samples and FLAC are read by
parts."""
MAX_CLIP_S = 14_400
"""Of sound that is heard as one, four hours: as floats at 16 kHz they take 0.9 GB. Packing them took 1.0 GiB in all, as
samples of 16 bits and FLAC, verifying them 1.4 GiB, and hearing them beside torch 1.8 GiB."""
MAX_VALUES = 1 << 30
"""Samples of all channels, and samples at 16 kHz, that are decoded of one file: 18 hours of these, of which any parts
may be packed; three hours of stereo at 48 kHz."""
FREE_VALUES = 1 << 27
"""What the smallest file may hold: two hours at 16 kHz, a quarter of an hour of stereo at 48 kHz three times over."""
VALUES_PER_BYTE = 64
"""What each byte may add; Opus at 6 kbit/s, which becomes 48,000 samples a second, has as many. Speech in FLAC has one,
silence in FLAC may have a thousand."""
MAX_CHANNELS = 256
MAX_CHUNKS = 10_000
"""Of a container, or of what follows its samples; what programs write has a few dozen."""
MAX_JOINED = 10_000
"""Files joined one after another, which are decoded one by one."""


def most_values(num_bytes: int) -> int:
    """Return how many samples a file of `num_bytes` bytes may hold, over all its channels."""
    return min(MAX_VALUES, FREE_VALUES + VALUES_PER_BYTE * num_bytes)


def check_num_samples(
    num_samples: int, num_channels: int, rate_hz: int, num_bytes: int, name: str, most_s: float = math.inf
) -> None:
    """Refuse more sound than a file's size makes likely: kilobytes of silence may be decoded to days.

    Args:
        num_samples: Of each channel.
        num_channels: How many there are.
        rate_hz: Their rate; lower ones than 16 kHz become more samples later.
        num_bytes: Of the file.
        name: What errors call it.
        most_s: How long all that is heard of it may last.

    Raises:
        AudioError: if so, or if there are too many channels.
    """
    if num_channels > MAX_CHANNELS:
        raise AudioError(
            f"audio must have at most {MAX_CHANNELS} channels, but {name} has {num_channels}; take out those of speech"
        )
    num_values = max(num_samples * num_channels, num_samples * RATE_HZ // max(1, rate_hz))
    most = most_values(num_bytes)
    if num_values > most:
        raise AudioError(
            f"audio must hold at most {most} samples in a file of {num_bytes} bytes ({FREE_VALUES} and "
            f"{VALUES_PER_BYTE} a byte, never more than {MAX_VALUES}; in all channels, or at {RATE_HZ} Hz), but {name} "
            "holds more; cut it, or leave its silence out"
        )
    if num_samples > most_s * rate_hz:
        raise too_long(name, most_s)


def too_long(name: str, most_s: float) -> AudioError:
    """Return the error of sound that is heard as one and is longer than `most_s`."""
    return AudioError(f"audio that is heard as one must last at most {most_s:g} s, but {name} is longer; cut it")


def check_file_size(num_bytes: int, name: str) -> None:
    """Refuse files that are too long to be read whole.

    Raises:
        AudioError: if this is one.
    """
    if num_bytes > MAX_FILE_BYTES:
        raise AudioError(
            f"audio that is read whole must have at most {MAX_FILE_BYTES} bytes, but {name} has {num_bytes}; cut it"
        )


def check_num_chunks(number: int, name: str) -> None:
    """Refuse containers of more parts than any program writes.

    Raises:
        AudioError: if there are so many.
    """
    if number > MAX_CHUNKS:
        raise AudioError(f"audio must have at most {MAX_CHUNKS} chunks, but {name} has more; convert it again")


def check_num_joined(number: int, name: str) -> None:
    """Refuse more files joined into one than are decoded one by one.

    Raises:
        AudioError: if there are so many.
    """
    if number > MAX_JOINED:
        raise AudioError(f"audio must join at most {MAX_JOINED} streams, but {name} joins more; convert it again")
