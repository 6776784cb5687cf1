"""What a file's header says of its length, held against the bytes that are there.

libsndfile shortens what promises too much and leaves out what promises too little, without a word. Here a header that
says nothing (a file written into a pipe) is given the length that is there, and one that is wrong is an error.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import BinaryIO, Literal

from shards.errors import AudioError
from shards.layout import Layout, check_layout, check_rate
from shards.limits import check_num_chunks
from shards.tags import skip_tags

_Order = Literal["little", "big"]
_STREAMED_BYTES = 0x7FFFF000
"""Programs that write WAV or AIFF into a pipe declare about this size or more, because they cannot know it."""
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
_SAME_HEADER_BYTES = 16
"""That stand once more behind the samples where files whose headers state no length were joined."""
_MAX_HEADER_BYTES = 1 << 16
_MAX_TAGS_BYTES = 64 << 20
"""With pictures in them."""


@dataclass(frozen=True)
class Samples:
    """Where a file's samples lie."""

    start: int
    stated_bytes: int | None
    """None where the header says nothing."""
    size_fields: tuple[tuple[int, int, int], ...] = ()
    """Where the header would say it: position, width in bytes, and how much more than the samples' bytes it counts."""
    order: _Order = "little"
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


def find_samples(file: BinaryIO, size: int, name: str) -> Samples | None:
    """Return where the samples of a file with `size` bytes lie; None if its format states no length that we know.

    Raises:
        AudioError: if its chunks are damaged, its samples lie in several places, or its header contradicts itself.
    """
    head = _at(file, 0, 40)
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
        if _at(file, 0, _SAME_HEADER_BYTES) in _at(file, samples.start, size):
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
    rest = _at(file, end, min(size - end, _MAX_TAGS_BYTES))
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


def _incomplete(name: str, what: str) -> AudioError:
    return AudioError(f"audio must be readable and whole, but decoding {name} failed: it has no {what}; copy it again")


def _at(file: BinaryIO, position: int, num_bytes: int) -> bytes:
    file.seek(position)
    return file.read(max(0, num_bytes))


def _number(file: BinaryIO, position: int, width: int, order: _Order) -> int:
    return int.from_bytes(_at(file, position, width), order)


# ---------------------------------------------------------------- chunks


@dataclass(frozen=True)
class _Chunk:
    name: bytes
    start: int
    num_bytes: int

    @property
    def end(self) -> int:
        return self.start + self.num_bytes


def _chunks(file: BinaryIO, position: int, size: int, order: _Order, name: str) -> Iterator[_Chunk]:
    """Yield the chunks of RIFF or IFF up to the first that is none.

    Raises:
        AudioError: if there are far too many.
    """
    for number in count():
        if position + 8 > size:
            return
        check_num_chunks(number, name)
        head = _at(file, position, 8)
        if not _is_chunk_name(head[:4]):
            return
        chunk = _Chunk(head[:4], position + 8, int.from_bytes(head[4:], order))
        yield chunk
        position = chunk.end + chunk.num_bytes % 2


def _is_chunk_name(name: bytes) -> bool:
    return len(name) == 4 and all(0x20 <= byte < 0x7F for byte in name)


def _behind_chunks(order: _Order, name: str) -> Callable[[BinaryIO, int, int], int]:
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


def _wave_form(file: BinaryIO, start: int, num_bytes: int, order: _Order) -> _WaveForm:
    if num_bytes < _FORM_BYTES:
        return _WaveForm()
    tag, num_channels, frame_bytes, bits = (_number(file, start + place, 2, order) for place in (0, 2, 12, 14))
    is_extensible = tag == _EXTENSIBLE_TAG
    # The codec's own number then begins a longer name behind.
    tag = _number(file, start + 24, 2, order) if is_extensible else tag
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
            used_bits=_number(file, start + _USED_BITS_AT, 2, order) if is_extensible else 0,
            is_integer=tag == _PCM_TAG,
            is_signed=frame_bytes > num_channels,
            bits_at=start + (14 if order == "little" else 15),
        )
    return _WaveForm(tag, _number(file, start + 4, 4, order), frame_bytes, layout)


def _riff(file: BinaryIO, size: int, name: str) -> Samples:
    magic = _at(file, 0, 4)
    order: _Order = "big" if magic == b"RIFX" else "little"
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
            long_bytes = _number(file, long_at, 8, order)
        elif chunk.name == b"data":
            fields = ((chunk.start - 4, 4, 0), (4, 4, chunk.start - 8))
            stated = chunk.num_bytes
            if magic in (b"RF64", b"BW64") and long_at and stated == 0xFFFFFFFF:
                stated = _UNKNOWN_BYTES if not long_bytes or long_bytes >= _UNKNOWN_BYTES else long_bytes
                fields = ((long_at, 8, 0), (long_at - 8, 8, chunk.start - 8))
            elif stated >= _STREAMED_BYTES and chunk.end > size:
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
    raise _incomplete(name, "data chunk")


def _iff(file: BinaryIO, size: int, name: str) -> Samples:
    wanted, skipped = (b"SSND", 8) if _at(file, 8, 3) == b"AIF" else (b"BODY", 0)
    frame_bytes, count_field, rate_hz, layout = 1, None, None, None
    for chunk in _chunks(file, 12, size, "big", name):
        if chunk.name == b"COMM":
            frame_bytes = _number(file, chunk.start, 2, "big") * ((_number(file, chunk.start + 6, 2, "big") + 7) // 8)
            is_counted = _at(file, chunk.start + 18, 4) in (b"GSM ", b"DWVW")
            count_field = chunk.start + 2 if is_counted else None
            rate_hz = _extended(_at(file, chunk.start + 8, 10))
            layout = _aiff_layout(file, chunk)
        elif chunk.name == wanted:
            is_streamed = chunk.num_bytes >= _STREAMED_BYTES and chunk.end > size
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
    raise _incomplete(name, f"{wanted.decode()} chunk")


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
    codec = _at(file, common.start + 18, 4) if _at(file, 8, 4) == b"AIFC" else b"NONE"
    if codec not in (*_AIFF_STATED, *_AIFF_BITS):
        return None
    num_channels, num_frames, bits = (
        _number(file, common.start + place, width, "big") for place, width in ((0, 2), (2, 4), (6, 2))
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
        num_frames=num_frames if 0 < num_frames < _STREAMED_BYTES else None,
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


def _w64(file: BinaryIO, size: int, name: str) -> Samples:
    position, form, number = 40, _WaveForm(), 0
    while position + 24 <= size:
        check_num_chunks(number := number + 1, name)
        guid = _at(file, position, 16)
        num_bytes = _number(file, position + 16, 8, "little")
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
    raise _incomplete(name, "data chunk")


def _behind_w64_chunks(file: BinaryIO, position: int, size: int, name: str) -> int:
    position, number = min(size, (position + 7) // 8 * 8), 0
    while position + 24 <= size:
        check_num_chunks(number := number + 1, name)
        guid, num_bytes = _at(file, position, 16), _number(file, position + 16, 8, "little")
        if guid == b"data" + _W64_CHUNK or not guid.endswith(_W64_CHUNK[6:]) or not 24 <= num_bytes <= size - position:
            return position
        position = min(size, position + (num_bytes + 7) // 8 * 8)
    return position


_CAF_FLOAT, _CAF_LITTLE = 1, 2


def _caf(file: BinaryIO, size: int, name: str) -> Samples:
    position, frame_bytes, rate_hz, layout, number = 8, 1, None, None, 0
    while position + 12 <= size:
        check_num_chunks(number := number + 1, name)
        kind, num_bytes = _at(file, position, 4), _number(file, position + 4, 8, "big")
        if kind == b"desc":
            frame_bytes = _number(file, position + 12 + 16, 4, "big")
            rate_hz = _whole(struct.unpack(">d", _at(file, position + 12, 8).rjust(8, b"\0"))[0])
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
    raise _incomplete(name, "data chunk")


def _caf_layout(file: BinaryIO, start: int) -> Layout | None:
    codec = _at(file, start + 8, 4)
    flags, frame_bytes, num_frames, num_channels, bits = (
        _number(file, start + place, 4, "big") for place in (12, 16, 20, 24, 28)
    )
    if codec in (b"ulaw", b"alaw"):
        return Layout(num_channels, 8, frame_bytes, is_integer=False)
    if codec != b"lpcm":
        return None
    order: _Order = "little" if flags & _CAF_LITTLE else "big"
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
        kind, num_bytes = _at(file, position, 4), _number(file, position + 4, 8, "big")
        if not _is_chunk_name(kind) or kind in (b"caff", b"data") or num_bytes > size - position - 12:
            return position
        position += 12 + num_bytes
    return position


# ---------------------------------------------------------------- plain headers


def _au(file: BinaryIO, _size: int, _name: str) -> Samples:
    order: _Order = "big" if _at(file, 0, 4) == b".snd" else "little"
    start, stated = _number(file, 4, 4, order), _number(file, 8, 4, order)
    is_unknown = stated >= _STREAMED_BYTES or stated == 0
    rate_hz = _number(file, 16, 4, order)
    return Samples(start, None if is_unknown else stated, ((8, 4, 0),), order, rate_hz=rate_hz)


_SPHERE_FIELD = re.compile(rb"^(\w+) -i (\d{1,12})\s*$", re.MULTILINE)


def _sphere(file: BinaryIO, _size: int, _name: str) -> Samples | None:
    digits = _at(file, 8, 8).strip()
    start = int(digits) if digits.isdigit() else 1024
    header = _at(file, 0, min(start, _MAX_HEADER_BYTES))
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


def _voc(file: BinaryIO, size: int, name: str) -> Samples:
    position, found, number = _number(file, 20, 2, "little"), [], 0
    while position < size and _at(file, position, 1) != b"\0":
        check_num_chunks(number := number + 1, name)
        kind, num_bytes = _number(file, position, 1, "little"), _number(file, position + 1, 3, "little")
        header_bytes = {1: 2, 2: 0, 9: 12}.get(kind)
        if header_bytes is not None:
            layout = _voc_layout(file, position + 4) if kind == _VOC_LONG else None
            found.append(Samples(position + 4 + header_bytes, num_bytes - header_bytes, layout=layout))
        position += 4 + num_bytes
    if not found:
        raise _incomplete(name, "block of sound")
    if len(found) > 1:
        return Samples(found[0].start, None, is_foreign=True)
    stated = max(0, found[0].stated_bytes or 0)
    return replace(found[0], stated_bytes=stated, chunks_follow=lambda _, end, size: min(size, end + 1))


def _voc_layout(file: BinaryIO, start: int) -> Layout | None:
    bits, num_channels, codec = (_number(file, start + place, width, "little") for place, width in _VOC_FORM)
    own_bytes = _VOC_BYTES.get(codec)
    return None if own_bytes is None else Layout(num_channels, bits, num_channels * own_bytes, is_integer=False)


def _endless(header_bytes: int) -> Callable[[BinaryIO, int, str], Samples]:
    return lambda _file, _size, _name: Samples(header_bytes, None)


def _avr(file: BinaryIO, _size: int, _name: str) -> Samples:
    num_channels = 2 if _number(file, 12, 2, "big") else 1
    frame_bytes = num_channels * _number(file, 14, 2, "big") // 8
    return Samples(128, _number(file, 26, 4, "big") * frame_bytes, frame_bytes=frame_bytes)


def _wve(file: BinaryIO, _size: int, _name: str) -> Samples:
    return Samples(32, _number(file, 18, 4, "big"))


_READERS: dict[bytes, Callable[[BinaryIO, int, str], Samples | None]] = {
    **dict.fromkeys((b"RIFF", b"RIFX", b"RF64", b"BW64"), _riff),
    b"FORM": _iff,
    b"riff": _w64,
    b"caff": _caf,
    **dict.fromkeys((b".snd", b"dns."), _au),
    b"NIST_1A": _sphere,
    b"Creative Voice File": _voc,
    b"2BIT": _avr,
    **dict.fromkeys((b" paf", b"fap "), _endless(28)),
    **dict.fromkeys((b"\x64\xa3", b"\x00\x00\xa3\x64", b"\x00\x01\xa3\x64"), _endless(16)),
    b"PVF1": _endless(12),
    b"ALawSoundFile**": _wve,
}
