"""What a file's header says of its length, held against the bytes that are there.

libsndfile shortens what promises too much and leaves out what promises too little, without a word. Here a header that
says nothing (a file written into a pipe) is given the length that is there, and one that is wrong is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from shards.chunkheaders import read_caf, read_iff, read_riff, read_w64
from shards.errors import AudioError
from shards.header import Samples, bytes_at
from shards.layout import check_layout, check_rate
from shards.plainheaders import endless, read_au, read_avr, read_sphere, read_voc, read_wve
from shards.tags import skip_tags

_SAME_HEADER_BYTES = 16
"""That stand once more behind the samples where files whose headers state no length were joined."""
_MAX_TAGS_BYTES = 64 << 20
"""With pictures in them."""


def find_samples(file: BinaryIO, size: int, name: str) -> Samples | None:
    """Return where the samples of a file with `size` bytes lie; None if its format states no length that we know.

    Raises:
        AudioError: if its chunks are damaged, its samples lie in several places, or its header contradicts itself.
    """
    head = bytes_at(file, 0, 40)
    reader = next((reader for magic, reader in _READERS.items() if head.startswith(magic)), None)
    found = None if reader is None else reader(file, size, name)
    if found is not None and found.for_sndfile:
        if found.rate_hz is not None:
            check_rate(found.rate_hz, name)
        if found.layout is not None:
            check_layout(found.layout, found.stated_bytes, name)
    return found


def check_length(file: BinaryIO, size: int, samples: Samples, name: str) -> int:
    """Hold the stated length against the file's; return where the file ends without tags that others wrote behind it.

    Raises:
        AudioError: if bytes are missing, or some follow that are no part of the format.
    """
    if samples.stated_bytes is None:
        if bytes_at(file, 0, _SAME_HEADER_BYTES) in bytes_at(file, samples.start, size):
            raise AudioError(f"audio must be one file, but {name} holds its header twice; were files joined? Split it")
        return size
    end = samples.start + samples.stated_bytes
    if end > size:
        raise AudioError(
            f"audio must be whole, but {name} is truncated: its header promises {end - size} bytes more than its "
            f"{size}; copy it again"
        )
    if samples.chunks_follow is not None:
        end = samples.chunks_follow(file, end, size)
    rest = bytes_at(file, end, min(size - end, _MAX_TAGS_BYTES))
    num_unknown = size - end - skip_tags(rest, 0)
    if num_unknown >= max(2, samples.frame_bytes):
        joined = f", the first {rest[:4]!r}" if rest[:4].isalnum() else ""
        raise AudioError(
            f"audio must be as long as its header says, but {name} goes on for {num_unknown} bytes behind the "
            f"{samples.stated_bytes} bytes of samples that it states{joined}; were files joined, or is the header "
            "wrong? Convert it again"
        )
    return end


def with_length(data: bytes, samples: Samples) -> bytes:
    """Return the file with the length that is there in the header that says nothing."""
    if samples.stated_bytes is not None or not samples.size_fields:
        return data
    whole = bytearray(data)
    num_bytes = max(0, len(data) - samples.start)
    for position, width, more in samples.size_fields:
        # Four bytes cannot say more; libsndfile then reads to the end.
        stated = min(num_bytes + more, (1 << 8 * width) - 1)
        whole[position : position + width] = stated.to_bytes(width, samples.order)
    return bytes(whole)


_READERS: dict[bytes, Callable[[BinaryIO, int, str], Samples | None]] = {
    **dict.fromkeys((b"RIFF", b"RIFX", b"RF64", b"BW64"), read_riff),
    b"FORM": read_iff,
    b"riff": read_w64,
    b"caff": read_caf,
    **dict.fromkeys((b".snd", b"dns."), read_au),
    b"NIST_1A": read_sphere,
    b"Creative Voice File": read_voc,
    b"2BIT": read_avr,
    **dict.fromkeys((b" paf", b"fap "), endless(28)),
    **dict.fromkeys((b"\x64\xa3", b"\x00\x00\xa3\x64", b"\x00\x01\xa3\x64"), endless(16)),
    b"PVF1": endless(12),
    b"ALawSoundFile**": read_wve,
}
