"""Tags that music players write before and behind audio of any format: they are no audio, and no damage."""

from __future__ import annotations

import re

_ID3V1_BYTES = 128
_ZEROS = re.compile(rb"\0{1,4096}+(?!\0)")
"""More are what a download has not filled yet."""
_APE_FOOTER_BYTES = 32


def skip_tags(data: bytes, position: int) -> int:
    """Return the first position behind tags and a few zero bytes at `position`; `position` where there are none."""
    while True:
        following = _skip_one(data, position)
        if following == position:
            return position
        position = min(following, len(data))


def _skip_one(data: bytes, position: int) -> int:
    head = data[position : position + 32]
    if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 0x80:
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        return position + 10 + size + (10 if head[5] & 0x10 else 0)
    if head[:3] == b"TAG" and len(data) - position >= _ID3V1_BYTES:
        return position + _ID3V1_BYTES
    if head[:8] == b"APETAGEX" and len(head) == _APE_FOOTER_BYTES:
        size = int.from_bytes(head[12:16], "little")
        is_header = head[23] & 0x20
        return position + (_APE_FOOTER_BYTES + size if is_header else _APE_FOOTER_BYTES)
    if head[:11] == b"LYRICSBEGIN":
        end = data.find(b"LYRICS200", position)
        return position if end < 0 else end + 9
    zeros = _ZEROS.match(data, position)
    return position if zeros is None else zeros.end()


def without_end_tags(data: bytes) -> bytes:
    """Return `data` without the tags of fixed length that players write behind audio."""
    end = len(data)
    if data[max(0, end - _ID3V1_BYTES) : end].startswith(b"TAG"):
        end -= _ID3V1_BYTES
    footer = data[max(0, end - _APE_FOOTER_BYTES) : end]
    if footer.startswith(b"APETAGEX"):
        end -= int.from_bytes(footer[12:16], "little")
        if data[max(0, end - _APE_FOOTER_BYTES) : max(0, end)].startswith(b"APETAGEX"):
            end -= _APE_FOOTER_BYTES
    return data if end == len(data) else data[: max(0, end)]
