"""Headers of a fixed place for everything: AU, NIST SPHERE, Creative Voice and rarer ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import BinaryIO

from shards.header import STREAMED_BYTES, Order, Samples, bytes_at, incomplete, number_at
from shards.layout import Layout
from shards.limits import check_num_chunks

_MAX_HEADER_BYTES = 1 << 16


def read_au(file: BinaryIO, _size: int, _name: str) -> Samples:
    """Return where the samples of an AU lie."""
    order: Order = "big" if bytes_at(file, 0, 4) == b".snd" else "little"
    start, stated = number_at(file, 4, 4, order), number_at(file, 8, 4, order)
    is_unknown = stated >= STREAMED_BYTES or stated == 0
    rate_hz = number_at(file, 16, 4, order)
    return Samples(start, None if is_unknown else stated, ((8, 4, 0),), order, rate_hz=rate_hz)


_SPHERE_FIELD = re.compile(rb"^(\w+) -i (\d{1,12})\s*$", re.MULTILINE)


def read_sphere(file: BinaryIO, _size: int, _name: str) -> Samples | None:
    """Return where the samples of a NIST SPHERE file lie; None if they are compressed."""
    digits = bytes_at(file, 8, 8).strip()
    start = int(digits) if digits.isdigit() else 1024
    header = bytes_at(file, 0, min(start, _MAX_HEADER_BYTES))
    if b"shorten" in header or b"wavpack" in header:
        return None
    fields = {key.decode(): int(value) for key, value in _SPHERE_FIELD.findall(header)}
    num_channels, sample_bytes = fields.get("channel_count", 1), fields.get("sample_n_bytes", 1)
    frame_bytes = num_channels * sample_bytes
    stated = fields.get("sample_count", 0) * frame_bytes
    layout = None
    if b"law" not in header and fields.get("sample_sig_bits", 0) > 8 * sample_bytes:
        layout = Layout(num_channels, 8 * sample_bytes, frame_bytes, used_bits=fields["sample_sig_bits"])
    return Samples(start, stated or None, frame_bytes=frame_bytes, rate_hz=fields.get("sample_rate"), layout=layout)


_VOC_LONG = 9
"""A block that states all of its form, of which `_VOC_FORM` are the places and widths of bits, channels and codec."""
_VOC_FORM = ((4, 1), (5, 1), (6, 2))
_VOC_BYTES = {0: 1, 4: 2, 6: 1, 7: 1}
"""Of a sample, by the codec."""


def read_voc(file: BinaryIO, size: int, name: str) -> Samples:
    """Return where the samples of a Creative Voice file lie."""
    position, found, number = number_at(file, 20, 2, "little"), [], 0
    while position < size and bytes_at(file, position, 1) != b"\0":
        check_num_chunks(number := number + 1, name)
        kind, num_bytes = number_at(file, position, 1, "little"), number_at(file, position + 1, 3, "little")
        header_bytes = {1: 2, 2: 0, 9: 12}.get(kind)
        if header_bytes is not None:
            layout = _voc_layout(file, position + 4) if kind == _VOC_LONG else None
            found.append(Samples(position + 4 + header_bytes, num_bytes - header_bytes, layout=layout))
        position += 4 + num_bytes
    if not found:
        raise incomplete(name, "block of sound")
    if len(found) > 1:
        return Samples(found[0].start, None, is_foreign=True)
    stated = max(0, found[0].stated_bytes or 0)
    return replace(found[0], stated_bytes=stated, chunks_follow=lambda _, end, size: min(size, end + 1))


def _voc_layout(file: BinaryIO, start: int) -> Layout | None:
    bits, num_channels, codec = (number_at(file, start + place, width, "little") for place, width in _VOC_FORM)
    own_bytes = _VOC_BYTES.get(codec)
    return None if own_bytes is None else Layout(num_channels, bits, num_channels * own_bytes, is_integer=False)


def endless(header_bytes: int) -> Callable[[BinaryIO, int, str], Samples]:
    """Return a reader of headers that have a fixed length and state none of the samples."""
    return lambda _file, _size, _name: Samples(header_bytes, None)


def read_avr(file: BinaryIO, _size: int, _name: str) -> Samples:
    """Return where the samples of an Audio Visual Research file lie."""
    num_channels = 2 if number_at(file, 12, 2, "big") else 1
    frame_bytes = num_channels * number_at(file, 14, 2, "big") // 8
    return Samples(128, number_at(file, 26, 4, "big") * frame_bytes, frame_bytes=frame_bytes)


def read_wve(file: BinaryIO, _size: int, _name: str) -> Samples:
    """Return where the samples of a Psion WVE lie."""
    return Samples(32, number_at(file, 18, 4, "big"))
