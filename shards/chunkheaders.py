"""Headers made of chunks: WAVE in its forms (RIFF, RF64, Wave64), AIFF and SVX, Apple's CAF."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import BinaryIO

from shards.errors import AudioError
from shards.header import STREAMED_BYTES, Order, Samples, bytes_at, incomplete, number_at
from shards.layout import Layout
from shards.limits import check_num_chunks

_UNKNOWN_BYTES = 1 << 62
_MPEG_TAGS = (0x50, 0x55)
"""WAVE's numbers for MPEG audio."""
_SNDFILE_TAGS = (0x01, 0x02, 0x03, 0x06, 0x07, 0x11, 0x31, 0x38, 0x40)
"""Those of the codecs that libsndfile reads in WAVE: PCM, MS ADPCM, float, A-law, u-law, IMA, GSM, NMS, G.721."""
_PCM_TAG, _FLOAT_TAG, _LAW_TAGS = 0x01, 0x03, (0x06, 0x07)
_SPEEX_TAG = 0xA109
_EXTENSIBLE_TAG = 0xFFFE
_FORM_BYTES = 16
"""Of the part of WAVE's `fmt ` chunk that all codecs have."""
_USED_BITS_AT = 18
_GSM_TAG = 0x31
_GSM_BLOCK_SAMPLES = 320
_W64_CHUNK = bytes.fromhex("f3acd3118cd100c04f8edb8a")


@dataclass(frozen=True)
class _Chunk:
    name: bytes
    start: int
    num_bytes: int

    @property
    def end(self) -> int:
        return self.start + self.num_bytes


def _chunks(file: BinaryIO, position: int, size: int, order: Order, name: str) -> Iterator[_Chunk]:
    """Yield the chunks of RIFF or IFF up to the first that is none.

    Raises:
        AudioError: if there are far too many.
    """
    for number in count():
        if position + 8 > size:
            return
        check_num_chunks(number, name)
        head = bytes_at(file, position, 8)
        if not _is_chunk_name(head[:4]):
            return
        chunk = _Chunk(head[:4], position + 8, int.from_bytes(head[4:], order))
        yield chunk
        position = chunk.end + chunk.num_bytes % 2


def _is_chunk_name(name: bytes) -> bool:
    return len(name) == 4 and all(0x20 <= byte < 0x7F for byte in name)


def _behind_chunks(order: Order, name: str) -> Callable[[BinaryIO, int, int], int]:
    def behind(file: BinaryIO, position: int, size: int) -> int:
        """Return the end of the chunks at `position`, which may lie behind a byte of padding."""
        for start in (position, position + 1):
            end = start
            for chunk in _chunks(file, start, size, order, name):
                if chunk.name in (b"data", b"RIFF", b"RIFX", b"FORM", b"SSND", b"BODY") or chunk.end > size:
                    break
                end = min(size, chunk.end + chunk.num_bytes % 2)
            if end > start:
                return end
        return position

    return behind


@dataclass(frozen=True)
class _WaveForm:
    """What WAVE's `fmt ` chunk says."""

    tag: int = 0
    rate_hz: int | None = None
    frame_bytes: int = 1
    layout: Layout | None = None


def _wave_form(file: BinaryIO, start: int, num_bytes: int, order: Order) -> _WaveForm:
    if num_bytes < _FORM_BYTES:
        return _WaveForm()
    tag, num_channels, frame_bytes, bits = (number_at(file, start + place, 2, order) for place in (0, 2, 12, 14))
    is_extensible = tag == _EXTENSIBLE_TAG
    # The codec's own number then begins a longer name behind.
    tag = number_at(file, start + 24, 2, order) if is_extensible else tag
    layout = None
    if tag in _LAW_TAGS:
        # Whatever it says of their bits, they have 8.
        layout = Layout(num_channels, 8, frame_bytes, order, is_integer=False)
    elif tag in (_PCM_TAG, _FLOAT_TAG):
        layout = Layout(
            num_channels,
            bits,
            frame_bytes,
            order,
            used_bits=number_at(file, start + _USED_BITS_AT, 2, order) if is_extensible else 0,
            is_integer=tag == _PCM_TAG,
            is_signed=frame_bytes > num_channels,
            bits_at=start + (14 if order == "little" else 15),
        )
    return _WaveForm(tag, number_at(file, start + 4, 4, order), frame_bytes, layout)


def read_riff(file: BinaryIO, size: int, name: str) -> Samples:
    """Return where the samples of a WAVE lie: RIFF, RIFX, RF64 or BW64."""
    magic = bytes_at(file, 0, 4)
    order: Order = "big" if magic == b"RIFX" else "little"
    form, long_bytes, long_at = _WaveForm(), 0, 0
    for chunk in _chunks(file, 12, size, order, name):
        if chunk.name == b"fmt ":
            form = _wave_form(file, chunk.start, chunk.num_bytes, order)
            if form.tag == _SPEEX_TAG:
                raise AudioError(
                    f"audio must be of a codec that can be decoded, but {name} is Speex in WAV, of which ffmpeg "
                    "decodes the first packet alone; convert it with what wrote it"
                )
        elif chunk.name == b"ds64":
            long_at = chunk.start + 8
            long_bytes = number_at(file, long_at, 8, order)
        elif chunk.name == b"data":
            fields = ((chunk.start - 4, 4, 0), (4, 4, chunk.start - 8))
            stated = chunk.num_bytes
            if magic in (b"RF64", b"BW64") and long_at and stated == 0xFFFFFFFF:
                stated = _UNKNOWN_BYTES if not long_bytes or long_bytes >= _UNKNOWN_BYTES else long_bytes
                fields = ((long_at, 8, 0), (long_at - 8, 8, chunk.start - 8))
            elif stated >= STREAMED_BYTES and chunk.end > size:
                stated = _UNKNOWN_BYTES
            rest = _behind_chunks(order, name)(file, chunk.start, size)
            is_unfinished = stated == 0 and rest < size
            return Samples(
                chunk.start,
                None if stated == _UNKNOWN_BYTES or is_unfinished else stated,
                fields,
                order,
                _behind_chunks(order, name),
                is_mpeg=form.tag in _MPEG_TAGS,
                is_foreign=form.tag not in (*_MPEG_TAGS, *_SNDFILE_TAGS),
                block_samples=_GSM_BLOCK_SAMPLES if form.tag == _GSM_TAG else None,
                frame_bytes=form.frame_bytes,
                rate_hz=form.rate_hz,
                layout=form.layout,
            )
    raise incomplete(name, "data chunk")


def read_iff(file: BinaryIO, size: int, name: str) -> Samples:
    """Return where the samples of an AIFF, an AIFF-C or an 8SVX lie."""
    wanted, skipped = (b"SSND", 8) if bytes_at(file, 8, 3) == b"AIF" else (b"BODY", 0)
    frame_bytes, count_field, rate_hz, layout = 1, None, None, None
    for chunk in _chunks(file, 12, size, "big", name):
        if chunk.name == b"COMM":
            frame_bytes = number_at(file, chunk.start, 2, "big") * (
                (number_at(file, chunk.start + 6, 2, "big") + 7) // 8
            )
            is_counted = bytes_at(file, chunk.start + 18, 4) in (b"GSM ", b"DWVW")
            count_field = chunk.start + 2 if is_counted else None
            rate_hz = _extended(bytes_at(file, chunk.start + 8, 10))
            layout = _aiff_layout(file, chunk)
        elif chunk.name == wanted:
            is_streamed = chunk.num_bytes >= STREAMED_BYTES and chunk.end > size
            is_unfinished = (
                chunk.num_bytes <= skipped and _behind_chunks("big", name)(file, chunk.start + skipped, size) < size
            )
            fields: tuple[tuple[int, int, int], ...] = (
                (chunk.start - 4, 4, skipped),
                (4, 4, chunk.start + skipped - 8),
            )
            return Samples(
                chunk.start + skipped,
                None if is_streamed or is_unfinished else max(0, chunk.num_bytes - skipped),
                fields,
                "big",
                _behind_chunks("big", name),
                frame_bytes=frame_bytes,
                count_field=count_field,
                rate_hz=rate_hz,
                layout=layout,
            )
    raise incomplete(name, f"{wanted.decode()} chunk")


_AIFF_BITS = {
    **dict.fromkeys((b"fl32", b"FL32", b"in32", b"23ni"), 32),
    **dict.fromkeys((b"fl64", b"FL64"), 64),
    **dict.fromkeys((b"in24", b"42n1", b"42ni"), 24),
    **dict.fromkeys((b"ulaw", b"ULAW", b"alaw", b"ALAW", b"raw "), 8),
}
"""Of a sample, by the codec's name."""
_AIFF_STATED = (b"NONE", b"twos", b"sowt")
"""Codecs whose bits the header states."""
_AIFF_BELIEVED = (b"in24", b"in32", b"42n1", b"42ni", b"23ni", b"raw ")
"""Codecs for which libsndfile believes it as well."""


def _aiff_layout(file: BinaryIO, common: _Chunk) -> Layout | None:
    codec = bytes_at(file, common.start + 18, 4) if bytes_at(file, 8, 4) == b"AIFC" else b"NONE"
    if codec not in (*_AIFF_STATED, *_AIFF_BITS):
        return None
    num_channels, num_frames, bits = (
        number_at(file, common.start + place, width, "big") for place, width in ((0, 2), (2, 4), (6, 2))
    )
    own_bits = _AIFF_BITS.get(codec, bits)
    is_integer = codec in (*_AIFF_STATED, *_AIFF_BELIEVED)
    return Layout(
        num_channels,
        bits if is_integer else own_bits,
        num_channels * ((own_bits + 7) // 8),
        "little" if codec in (b"sowt", b"42n1", b"42ni", b"23ni") else "big",
        is_integer=is_integer,
        is_signed=codec != b"raw ",
        num_frames=num_frames if 0 < num_frames < STREAMED_BYTES else None,
    )


def _extended(number: bytes) -> int | None:
    """Return the whole part of a number of 80 bits, None if it is not all there."""
    if len(number) < 10:
        return None
    exponent = int.from_bytes(number[:2], "big")
    mantissa = int.from_bytes(number[2:], "big")
    shift = (exponent & 0x7FFF) - 16_383 - 63
    most = mantissa >> -shift if shift < 0 else mantissa << min(shift, 64)
    return -most if exponent >> 15 else most


def read_w64(file: BinaryIO, size: int, name: str) -> Samples:
    """Return where the samples of a Sony Wave64 lie."""
    position, form, number = 40, _WaveForm(), 0
    while position + 24 <= size:
        check_num_chunks(number := number + 1, name)
        guid = bytes_at(file, position, 16)
        num_bytes = number_at(file, position + 16, 8, "little")
        if guid[:4] == b"fmt ":
            form = _wave_form(file, position + 24, num_bytes - 24, "little")
        if guid == b"data" + _W64_CHUNK:
            is_unknown = num_bytes >= _UNKNOWN_BYTES or num_bytes <= 24 < size - position
            fields = ((position + 16, 8, 24), (16, 8, position + 24))
            stated = None if is_unknown else num_bytes - 24
            return Samples(
                position + 24,
                stated,
                fields,
                "little",
                partial(_behind_w64_chunks, name=name),
                frame_bytes=form.frame_bytes,
                rate_hz=form.rate_hz,
                layout=form.layout,
            )
        if num_bytes < 24:
            break
        position += (num_bytes + 7) // 8 * 8
    raise incomplete(name, "data chunk")


def _behind_w64_chunks(file: BinaryIO, position: int, size: int, name: str) -> int:
    position, number = min(size, (position + 7) // 8 * 8), 0
    while position + 24 <= size:
        check_num_chunks(number := number + 1, name)
        guid, num_bytes = bytes_at(file, position, 16), number_at(file, position + 16, 8, "little")
        if guid == b"data" + _W64_CHUNK or not guid.endswith(_W64_CHUNK[6:]) or not 24 <= num_bytes <= size - position:
            return position
        position = min(size, position + (num_bytes + 7) // 8 * 8)
    return position


_CAF_FLOAT, _CAF_LITTLE = 1, 2


def read_caf(file: BinaryIO, size: int, name: str) -> Samples:
    """Return where the samples of an Apple CAF lie."""
    position, frame_bytes, rate_hz, layout, number = 8, 1, None, None, 0
    while position + 12 <= size:
        check_num_chunks(number := number + 1, name)
        kind, num_bytes = bytes_at(file, position, 4), number_at(file, position + 4, 8, "big")
        if kind == b"desc":
            frame_bytes = number_at(file, position + 12 + 16, 4, "big")
            rate_hz = _whole(struct.unpack(">d", bytes_at(file, position + 12, 8).rjust(8, b"\0"))[0])
            layout = _caf_layout(file, position + 12)
        if kind == b"data":
            start = position + 16
            is_unknown = num_bytes >= _UNKNOWN_BYTES or (
                num_bytes <= 4 and _behind_caf_chunks(file, start, size, name) < size
            )
            stated = None if is_unknown else num_bytes - 4
            fields = ((position + 4, 8, 4),)
            return Samples(
                start,
                stated,
                fields,
                "big",
                partial(_behind_caf_chunks, name=name),
                frame_bytes=frame_bytes,
                rate_hz=rate_hz,
                layout=layout,
            )
        position += 12 + num_bytes
    raise incomplete(name, "data chunk")


def _caf_layout(file: BinaryIO, start: int) -> Layout | None:
    codec = bytes_at(file, start + 8, 4)
    flags, frame_bytes, num_frames, num_channels, bits = (
        number_at(file, start + place, 4, "big") for place in (12, 16, 20, 24, 28)
    )
    if codec in (b"ulaw", b"alaw"):
        return Layout(num_channels, 8, frame_bytes, is_integer=False)
    if codec != b"lpcm":
        return None
    order: Order = "little" if flags & _CAF_LITTLE else "big"
    # A packet of several would make no difference, but is not allowed either.
    return Layout(
        num_channels,
        bits,
        frame_bytes // max(1, num_frames),
        order,
        is_integer=not flags & _CAF_FLOAT,
        bits_at=start + 31,
    )


def _whole(number: float) -> int:
    return int(number) if math.isfinite(number) else 0


def _behind_caf_chunks(file: BinaryIO, position: int, size: int, name: str) -> int:
    number = 0
    while position + 12 <= size:
        check_num_chunks(number := number + 1, name)
        kind, num_bytes = bytes_at(file, position, 4), number_at(file, position + 4, 8, "big")
        if not _is_chunk_name(kind) or kind in (b"caff", b"data") or num_bytes > size - position - 12:
            return position
        position += 12 + num_bytes
    return position
