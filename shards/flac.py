"""FLAC whose stated number of samples is wrong or missing, and several files joined."""

from __future__ import annotations

import re

from shards.stream import Stream

BEGINNING = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
"""The magic and the header of STREAMINFO, which always comes first."""
HEAD_BYTES = 26
_TOTAL = slice(21, HEAD_BYTES)
"""The low half of the first of these bytes and all others count the samples."""


def streams(data: bytes) -> list[Stream]:
    """Return each joined file without its number of samples, so that it is decoded to its end, with that number."""
    starts = [match.start() for match in BEGINNING.finditer(data)] or [0]
    ends = [*starts[1:], len(data)]
    return [_uncounted(data[start:end]) for start, end in zip(starts, ends, strict=True)]


def _uncounted(data: bytes) -> Stream:
    stated, head = uncounted(data[: _TOTAL.stop])
    return Stream(head + data[_TOTAL.stop :], stated)


def uncounted(head: bytes) -> tuple[int, bytes]:
    """Return the number of samples that a file's first 26 bytes state, and these bytes without it."""
    total = head[_TOTAL]
    blank = bytes([total[0] & 0xF0 if total else 0, 0, 0, 0, 0])
    return int.from_bytes(total, "big") & ((1 << 36) - 1), head[: _TOTAL.start] + blank
