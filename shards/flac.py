"""FLAC whose stated number of samples is wrong or missing, and several files joined."""

from __future__ import annotations

import re

from shards.stream import Stream

_BEGINNING = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
"""The magic and the header of STREAMINFO, which always comes first."""
_TOTAL = slice(21, 26)
"""The low half of the first of these bytes and all others count the samples."""


def streams(data: bytes) -> list[Stream]:
    """Return each joined file without its number of samples, so that it is decoded to its end, with that number."""
    starts = [match.start() for match in _BEGINNING.finditer(data)] or [0]
    ends = [*starts[1:], len(data)]
    return [_uncounted(data[start:end]) for start, end in zip(starts, ends, strict=True)]


def _uncounted(data: bytes) -> Stream:
    total = data[_TOTAL]
    stated = int.from_bytes(total, "big") & ((1 << 36) - 1)
    blank = bytes([total[0] & 0xF0 if total else 0, 0, 0, 0, 0])
    return Stream(data[: _TOTAL.start] + blank + data[_TOTAL.stop :], stated)
