"""OGG as a row of pages: each is checked, and streams joined one after another (chained) are told apart."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import AudioError
from shards.inputfile import open_regular
from shards.limits import check_num_joined
from shards.tags import skip_tags

_HEADER_BYTES = 27
_IS_FIRST = 2
_IS_LAST = 4
_MAX_PAGE_BYTES = 27 + 255 + 255 * 255
_OPUS_HEAD = b"OpusHead"
_OPUS_RATE_AT = 12
_OPUS_RATE_HZ = 48_000
"""What Opus is decoded at; the rate in its head is that of the sound it was made from, or anything (RFC 7845, 5.1)."""
_CHECKSUM = slice(22, 26)
_UNKNOWN = (1 << 64) - 1
_CONTINUES = 1
_OPUS_SAMPLES = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4
"""At 48 kHz, by the configuration that a packet begins with."""
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass
class _Link:
    """One chained part: a stream, or several side by side."""

    start: int
    end: int = 0
    first_packets: dict[int, bytes] = field(default_factory=dict)
    """By serial number."""
    next_pages: dict[int, int] = field(default_factory=dict)
    granules: dict[int, int] = field(default_factory=dict)
    opus_samples: int = 0
    """In the packets of an Opus stream so far."""
    opus_before_last_page: int = 0
    has_tags: bool = False
    has_data: bool = False


@dataclass(frozen=True)
class OggStreams:
    """What lies in an OGG file."""

    parts: list[bytes]
    """One after another in time, those of Opus with 48 kHz in their head."""
    codecs: frozenset[str]
    """As in `Theora`; libsndfile reads Vorbis, Opus and FLAC."""
    has_several_at_once: bool


def read_pages(data: bytes, name: str) -> OggStreams:
    """Check every page and return the streams.

    libsndfile leaves out damaged pages and all streams but the first without a word.

    Raises:
        AudioError: if a page is cut, damaged or missing, or time runs backwards.
    """
    links: list[_Link] = []
    position = 0
    while position < len(data):
        if data[position : position + 4] != b"OggS":
            following = skip_tags(data, position)
            if following == position:
                raise _damaged(name, position, "no OGG page stands there")
            position = following
            continue
        position = _read_page(data, position, links, name)
    for link in links:
        if len(link.first_packets) == 1 and _codec(next(iter(link.first_packets.values()))) == "Opus":
            _check_opus_length(link, name)
    return OggStreams(
        parts=[_part(data, link) for link in links],
        codecs=frozenset(_codec(packet) for link in links for packet in link.first_packets.values()),
        has_several_at_once=any(len(link.first_packets) > 1 for link in links),
    )


def lacks_end(path: Path) -> bool:
    """Return whether this is an OGG file whose last page is not marked as its stream's end.

    Recorders of phones leave the mark out, and live streams have no end; but a file that was cut between two pages
    lacks it as well, and nothing else tells. Call it on files that decode.
    """
    with open_regular(path) as file:
        if file.read(4) != b"OggS":
            return False
        file.seek(max(0, path.stat().st_size - 2 * _MAX_PAGE_BYTES))
        return not _ends(file.read())


def begins_with_opus(data: bytes) -> bool:
    """Return whether the first stream of a file's bytes is one of Opus."""
    return data.startswith(b"OggS") and _OPUS_HEAD in data[: _HEADER_BYTES + 256]


def bytes_lack_end(data: bytes) -> bool:
    """Return `lacks_end` of a whole file's bytes."""
    return data.startswith(b"OggS") and not _ends(data)


def _ends(data: bytes) -> bool:
    flags = data[data.rfind(b"OggS") + 5 :][:1]
    return bool(flags and flags[0] & _IS_LAST)


def _read_page(data: bytes, start: int, links: list[_Link], name: str) -> int:
    """Take in a page; return its end."""
    header = data[start : start + _HEADER_BYTES]
    sizes = data[start + _HEADER_BYTES : start + _HEADER_BYTES + header[26]] if len(header) == _HEADER_BYTES else b""
    end = start + _HEADER_BYTES + len(sizes) + sum(sizes)
    if len(header) < _HEADER_BYTES or len(sizes) < header[26] or end > len(data):
        raise AudioError(f"audio must be whole, but {name} is truncated: its last OGG page is cut; copy it again")
    blank = data[start : start + _CHECKSUM.start] + bytes(4) + data[start + _CHECKSUM.stop : end]
    if _checksum(blank) != int.from_bytes(header[_CHECKSUM], "little"):
        raise _damaged(name, start, "the OGG page's checksum differs")
    granule, serial, number = (int.from_bytes(header[a:b], "little") for a, b in ((6, 14), (14, 18), (18, 22)))
    if header[5] & _IS_FIRST:
        if not links or links[-1].has_data:
            links.append(_Link(start))
            check_num_joined(len(links), name)
        check_num_joined(len(links[-1].first_packets), name)
        links[-1].first_packets[serial] = data[start + _HEADER_BYTES + len(sizes) : end]
    elif not links:
        raise _damaged(name, start, "the stream's first OGG page is missing")
    else:
        links[-1].has_data = True
    link = links[-1]
    if number != link.next_pages.get(serial, number):
        raise _damaged(name, start, f"OGG page {link.next_pages[serial]} is missing")
    if granule != _UNKNOWN:
        if granule < link.granules.get(serial, 0):
            raise _damaged(name, start, "time runs backwards from one OGG page to the next")
        link.granules[serial] = granule
    if link.has_data:
        link.opus_before_last_page = link.opus_samples
        durations = _opus_durations(data[start:end], sizes)
        # The first packet behind the head has the tags.
        link.opus_samples += sum(durations if link.has_tags else durations[1:])
        link.has_tags = link.has_tags or bool(durations)
    link.next_pages[serial] = number + 1
    link.end = end
    return end


def _opus_durations(page: bytes, sizes: bytes) -> list[int]:
    """Return the samples of each Opus packet that begins in a page."""
    position, is_beginning = _HEADER_BYTES + len(sizes), not page[5] & _CONTINUES
    durations = []
    for size in sizes:
        if is_beginning and size:
            code = page[position] & 3
            num_frames = page[position + 1] & 0x3F if code == 3 and size > 1 else 1 if code == 0 else 2
            durations.append(num_frames * _OPUS_SAMPLES[page[position] >> 3])
        is_beginning = size < 255
        position += size
    return durations


def _part(data: bytes, link: _Link) -> bytes:
    """Return a chained part; libsndfile would decode Opus at the rate in its head."""
    part = data[link.start : link.end]
    first = next(iter(link.first_packets.values()))
    if len(link.first_packets) > 1 or _codec(first) != "Opus" or len(first) < _OPUS_RATE_AT + 4:
        return part
    start = _HEADER_BYTES + part[26]
    head = first[:_OPUS_RATE_AT] + _OPUS_RATE_HZ.to_bytes(4, "little") + first[_OPUS_RATE_AT + 4 :]
    page = part[: _CHECKSUM.start] + bytes(4) + part[_CHECKSUM.stop : start] + head
    checksum = _checksum(page).to_bytes(4, "little")
    return page[: _CHECKSUM.start] + checksum + page[_CHECKSUM.stop :] + part[len(page) :]


def _check_opus_length(link: _Link, name: str) -> None:
    stated = max(link.granules.values(), default=0)
    if not link.opus_before_last_page < stated <= link.opus_samples:
        raise AudioError(
            f"audio must be as long as its header says, but the last OGG page of {name} states {stated} samples and "
            f"the packets hold {link.opus_samples}; convert it again"
        )


def _damaged(name: str, position: int, what: str) -> AudioError:
    return AudioError(f"audio must be whole, but {name} is damaged at byte {position}: {what}; copy it again")


def _checksum(page: bytes) -> int:
    """Return OGG's CRC-32, which is zlib's with every bit order reversed, and without its inversions."""
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def _codec(packet: bytes) -> str:
    known = {
        b"\x01vorbis": "Vorbis",
        _OPUS_HEAD: "Opus",
        b"\x7fFLAC": "FLAC",
        b"Speex": "Speex",
        b"\x80theora": "Theora",
    }
    return next((codec for start, codec in known.items() if packet.startswith(start)), "an unknown codec")
