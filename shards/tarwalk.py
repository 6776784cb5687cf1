"""The members of a tar, in one pass over its bytes, wherever it lies; what contradicts them is an error."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from shards.shown import shown
from shards.store import PIECE_BYTES, RangeReader

BLOCK_BYTES = 512
MAX_LONG_HEADER_BYTES = 1 << 20
"""Of long names and pax records before one member."""

_PLAIN = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _SPARSE = b"L", b"K", b"x", b"g", b"S"
_PAX_RECORD = re.compile(rb"([0-9]{1,7}) ([^=]{1,1000})=")
_PAX_SPARSE = b"GNU.sparse."
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_ZEROS = bytes(BLOCK_BYTES)


class TarFormatError(ValueError):
    """A tar that is not whole, or no tar; the message says where and why."""


@dataclass(frozen=True)
class Member:
    """A file, a link or a folder in a tar."""

    name: str
    offset: int
    """Of its first byte in the tar."""
    num_bytes: int
    is_plain: bool
    """Whether it is a file whose bytes all stand there."""

    @property
    def stem(self) -> str:
        """Its name up to the first dot behind its folder, which WebDataset calls the key."""
        folder, slash, base = self.name.rpartition("/")
        return folder + slash + base.partition(".")[0]

    @property
    def suffix(self) -> str:
        """What follows that dot."""
        return self.name.rpartition("/")[2].partition(".")[2]


class TarStream:
    """A tar's bytes from its beginning to its end, hashed on the way."""

    def __init__(self, ranges: RangeReader, place: str, num_bytes: int) -> None:
        self.position = 0
        self.num_bytes = num_bytes
        self._ranges = ranges
        self._place = place
        self._piece = b""
        self._piece_start = 0
        self._digest = hashlib.sha256()

    def take(self, count: int) -> bytes:
        """Return the next bytes.

        Raises:
            TarFormatError: if there are fewer.
            ShardError: if they cannot be read.
        """
        self._check_left(count)
        parts = []
        while count:
            start = self.position - self._piece_start
            part = self._piece[start : start + count]
            if not part:
                self._next_piece()
                continue
            parts.append(part)
            self.position += len(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip_to(self, position: int) -> None:
        """Go on to a later byte.

        Raises:
            TarFormatError: if it is behind the end.
            ShardError: if the bytes before cannot be read.
        """
        self._check_left(position - self.position)
        while self._piece_start + len(self._piece) < position:
            self._next_piece()
        self.position = position

    def hexdigest(self) -> str:
        """Return the SHA-256 of the whole tar, after reading the rest."""
        self.skip_to(self.num_bytes)
        return self._digest.hexdigest()

    def _check_left(self, count: int) -> None:
        if not 0 <= count <= self.num_bytes - self.position:
            raise TarFormatError(f"it ends before the {count} bytes from {self.position}")

    def _next_piece(self) -> None:
        self._piece_start += len(self._piece)
        count = min(PIECE_BYTES, self.num_bytes - self._piece_start)
        self._piece = self._ranges.read(self._place, self._piece_start, count, fresh=True)
        self._digest.update(self._piece)


def members(stream: TarStream) -> Iterator[Member]:
    """Yield the members of a tar up to its end mark; until the next one, `stream` may be asked for a member's bytes.

    Raises:
        TarFormatError: if a header is damaged, or a member is not whole.
        ShardError: if bytes cannot be read.
    """
    common: dict[bytes, bytes] = {}
    own = _Heading()
    while stream.position < stream.num_bytes:
        start = stream.position
        block = stream.take(BLOCK_BYTES)
        if block == _ZEROS:
            break
        found = _member(block, stream, own, common)
        if found is None:
            continue
        own = _Heading()
        member, end = found
        if end > stream.num_bytes:
            raise TarFormatError(f"{shown(member.name, 100)!r} at byte {start} goes on behind its end")
        yield member
        stream.skip_to(min(end + -end % BLOCK_BYTES, stream.num_bytes))
    if own.num_bytes:
        raise TarFormatError(f"no member follows the long name before byte {stream.position}")


@dataclass
class _Heading:
    """What stands before a member."""

    name: str | None = None
    pax: dict[bytes, bytes] = field(default_factory=dict)
    num_bytes: int = 0


def _member(block: bytes, stream: TarStream, own: _Heading, common: dict[bytes, bytes]) -> tuple[Member, int] | None:
    """Return what a header begins, and where its data ends; None if that belongs to the next member."""
    start = stream.position - BLOCK_BYTES
    _check_sum(block, start)
    kind, num_bytes = block[156:157], _number(block[124:136], start)
    if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
        own.num_bytes += BLOCK_BYTES + num_bytes
        if own.num_bytes > MAX_LONG_HEADER_BYTES:
            raise TarFormatError(
                f"names and records of over {MAX_LONG_HEADER_BYTES} bytes stand before one member at {start}"
            )
        data = stream.take(num_bytes)
        stream.skip_to(min(stream.position + -num_bytes % BLOCK_BYTES, stream.num_bytes))
        if kind == _LONG_NAME:
            own.name = _text(data.partition(b"\0")[0])
        elif kind != _LONG_LINK:
            (own.pax if kind == _PAX else common).update(_pax_records(data, start))
        return None
    pax = {**common, **own.pax}
    if b"size" in pax:
        num_bytes = _number(pax[b"size"], start, base=10)
    is_extended = kind == _SPARSE and block[482] != 0
    while is_extended:
        is_extended = stream.take(BLOCK_BYTES)[504] != 0
    name = _text(pax[b"path"]) if b"path" in pax else own.name
    name = _header_name(block, kind) if name is None else name
    is_folder = kind == b"5" or (kind == b"\0" and name.endswith("/"))
    is_plain = kind in _PLAIN and not is_folder and _PAX_SPARSE not in pax
    data_bytes = 0 if kind in _WITHOUT_DATA or is_folder else num_bytes
    return Member(name, stream.position, num_bytes, is_plain), stream.position + data_bytes


def _header_name(block: bytes, kind: bytes) -> str:
    name, prefix = (part.partition(b"\0")[0] for part in (block[:100], block[345:500]))
    return _text(prefix + b"/" + name if prefix and kind not in (_LONG_NAME, _LONG_LINK, _SPARSE) else name)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _check_sum(block: bytes, start: int) -> None:
    stated = _number(block[148:156], start)
    plain = block[:148] + b" " * 8 + block[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in plain)
    if stated not in (sum(plain), signed):
        raise TarFormatError(f"what stands at byte {start} is no header of a member")


def _number(data: bytes, start: int, base: int = 8) -> int:
    if data[:1] == b"\x80" and base == 8:
        return int.from_bytes(data[1:], "big")
    match = re.fullmatch(rb"([0-9]{1,19})", data) if base == 10 else _OCTAL.match(data)
    if match is None or (base == 8 and not _is_padding(data[match.end() :])):
        raise TarFormatError(f"what stands at byte {start} states {shown(repr(data[:40]))} as a number")
    return int(match[1] or b"0", base)


def _is_padding(data: bytes) -> bool:
    return not data.strip(b" \0")


def _pax_records(data: bytes, start: int) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    position = 0
    while position < len(data) and data[position] != 0:
        match = _PAX_RECORD.match(data, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise TarFormatError(f"what stands at byte {start} is no list of pax records")
        name = _PAX_SPARSE if match[2].startswith(_PAX_SPARSE) else match[2]
        if name in (b"path", b"size", _PAX_SPARSE):
            found[name] = data[match.end() : end - 1]
        position = end
    return found
