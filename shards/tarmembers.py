"""What lies in a tar, told from its headers alone, each checked before it is believed.

`tarfile` ends without a word where a header is damaged, reads long names by recursion, and believes any size. Here a
header costs as much as its 512 bytes, whatever it claims.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from shards.shown import shown

BLOCK_BYTES = 512
LOOK_BACK_BYTES = 1 << 16
MAX_NAME_BYTES = 4096
"""Of a member; no longer one can be a path on Linux."""
MAX_PAX_BYTES = 1 << 20
"""Of the records before one member; attributes and access lists of file systems have at most 64 kB each."""

_MAX_SHOWN = 200
_FOLDER_TYPE, _SPARSE_TYPE = b"5", b"S"
_NAMED_TYPES = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a named pipe"}
"""None of them has data, whatever its size says."""
_LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_SUN, _PAX_OF_ALL = b"L", b"K", b"x", b"X", b"g"
_ZEROS = bytes(BLOCK_BYTES)
_MANY_ZEROS = bytes(LOOK_BACK_BYTES)
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_RECORD = re.compile(rb"([1-9][0-9]{0,7}) ([^=]+)=", re.DOTALL)
_PACKED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))


class BrokenTarError(ValueError):
    """A tar cannot be read beyond some byte; the message says where and why."""

    def __init__(self, reason: str, *, is_behind_end: bool = False) -> None:
        super().__init__(reason)
        self.is_behind_end = is_behind_end
        """Whether the tar had come to its end before, so that nothing of it is missing."""


@dataclass(frozen=True)
class TarMember:
    """One member: its name as it stands there, and where its data lies."""

    name: str
    offset: int
    num_bytes: int
    is_folder: bool = False
    fault: str | None = None
    """Why it cannot be read as a plain file, although the tar goes on behind it."""

    @property
    def is_plain(self) -> bool:
        """Whether it is a file whose bytes all stand there."""
        return not self.is_folder and self.fault is None

    @property
    def stem(self) -> str:
        """Its name up to the first dot behind its folder, which WebDataset calls the key."""
        folder, slash, base = self.name.rpartition("/")
        return folder + slash + base.partition(".")[0]

    @property
    def suffix(self) -> str:
        """What follows that dot."""
        return self.name.rpartition("/")[2].partition(".")[2]


class Forward(Protocol):
    """What is read from its beginning to its end."""

    def seek(self, position: int, /) -> object:
        """Go on to a later byte, or back by at most `LOOK_BACK_BYTES`."""
        ...

    def read(self, count: int, /) -> bytes:
        """Return the next bytes, fewer at the end."""
        ...


@dataclass
class _Before:
    """What the headers before a member's own say of it."""

    kinds: set[bytes] = field(default_factory=set)
    name: bytes | None = None
    records: dict[bytes, bytes] = field(default_factory=dict)
    fault: str | None = None


def tar_members(file: Forward, size: int) -> Iterator[TarMember]:
    """Yield the members of an uncompressed tar, in order; where tars are joined, those of all.

    Args:
        file: The tar; between two members its position may be changed, within the one that came last.
        size: Its length in bytes.

    Raises:
        BrokenTarError: where the tar cannot be read any further, or has no end.
    """
    if size == 0:
        raise BrokenTarError("it is empty")
    position, before, is_ended = 0, _Before(), False
    while position < size:
        header = _block(file, position)
        if header == _ZEROS:
            if before.kinds:
                raise BrokenTarError(f"it ends at byte {position} between a member's headers")
            position, is_ended = _behind_zeros(file, position + BLOCK_BYTES), True
            continue
        if not _has_sum(header):
            raise BrokenTarError(_no_header(header, position), is_behind_end=is_ended)
        is_ended = False
        kind = header[156:157]
        start, stated = position + BLOCK_BYTES, _stated_size(header, position)
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_SUN, _PAX_OF_ALL):
            _check_inside("a header of a long name or of records", start, stated, size)
            _note(before, kind, file, start, stated)
            position = start + _padded(stated)
            continue
        start = _behind_sparse_map(file, header, start, size) if kind == _SPARSE_TYPE else start
        member = _member(header, kind, start, stated, before)
        _check_inside(shown(member.name, _MAX_SHOWN), start, member.num_bytes, size)
        yield member
        position, before = start + _padded(member.num_bytes), _Before()
    if before.kinds:
        raise BrokenTarError(f"it ends at byte {position} between a member's headers")
    if not is_ended:
        raise BrokenTarError(f"it has no block of zeros at its end, byte {size}, so that it was cut there")


def _block(file: Forward, position: int) -> bytes:
    file.seek(position)
    return file.read(BLOCK_BYTES)


def _has_sum(header: bytes) -> bool:
    stated = _number(header[148:156])
    rest = header[:148] + b" " * 8 + header[156:]
    # Some old writers summed signed bytes.
    return stated == sum(rest) or stated == sum(rest) - 256 * sum(byte > 127 for byte in rest)


def _no_header(block: bytes, position: int) -> str:
    packed = next((name for magic, name in _PACKED if position == 0 and block.startswith(magic)), None)
    if packed is not None:
        return f"it is compressed ({packed}), and bytes inside it cannot be reached: unpack it"
    if len(block) < BLOCK_BYTES:
        return f"it is cut at byte {position + len(block)}, inside a block of {BLOCK_BYTES} bytes"
    return f"what stands at byte {position} is no header of a tar (its checksum is wrong)"


def _number(digits: bytes) -> int | None:
    """Return a number as headers hold it, None if it is none."""
    if digits[:1] == b"\x80":
        return int.from_bytes(digits[1:], "big")
    found = _OCTAL.fullmatch(digits)
    return None if found is None else int(found[1] or b"0", 8)


def _stated_size(header: bytes, position: int) -> int:
    size = _number(header[124:136])
    if size is None:
        raise BrokenTarError(f"the header at byte {position} states no size")
    return size


def _check_inside(what: str, start: int, num_bytes: int, size: int) -> None:
    if start + num_bytes > size:
        raise BrokenTarError(f"{what} claims {num_bytes} bytes from byte {start} on, but the tar has {size} in all")


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _behind_zeros(file: Forward, position: int) -> int:
    """Return where the next block begins that is not all zeros, or the end."""
    while piece := file.read(LOOK_BACK_BYTES):
        # Compared, because to strip takes fifty times as long.
        if piece != _MANY_ZEROS[: len(piece)]:
            return position + (len(piece) - len(piece.lstrip(b"\0"))) // BLOCK_BYTES * BLOCK_BYTES
        position += len(piece)
    return position


def _behind_sparse_map(file: Forward, header: bytes, start: int, size: int) -> int:
    """Return where the data of a sparse member begins: its map may go on in further blocks."""
    goes_on = header[482]
    while goes_on and start < size:
        goes_on = _block(file, start).ljust(BLOCK_BYTES, b"\0")[504]
        start += BLOCK_BYTES
    return start


def _note(before: _Before, kind: bytes, file: Forward, start: int, num_bytes: int) -> None:
    """Take up what a header says of the member that follows."""
    fault: str | None
    most = MAX_NAME_BYTES if kind in (_LONG_NAME, _LONG_LINK) else MAX_PAX_BYTES
    if num_bytes > most:
        fault = f"it has a header of {num_bytes} bytes for its name or its records, but at most {most} are read"
    elif kind != _PAX_OF_ALL and kind in before.kinds:
        fault = "it has two headers of one kind for its name or its records"
    else:
        file.seek(start)
        fault = _take_up(before, kind, file.read(num_bytes), start)
    before.kinds.add(kind)
    before.fault = before.fault or fault


def _take_up(before: _Before, kind: bytes, data: bytes, start: int) -> str | None:
    if kind == _LONG_NAME:
        before.name = data.partition(b"\0")[0]
        return None
    if kind == _LONG_LINK:
        return None
    records = _records(data)
    if records is None:
        return "its records cannot be read"
    if kind == _PAX_OF_ALL:
        if records.keys() & {b"path", b"size"} or any(name.startswith(b"GNU.sparse.") for name in records):
            raise BrokenTarError(f"the records before byte {start} give all members one name or size")
        return None
    before.records = records
    return None


def _records(data: bytes) -> dict[bytes, bytes] | None:
    """Return the records of a pax header by name, None if they are none."""
    found: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        record = _RECORD.match(data, position, position + MAX_PAX_BYTES)
        if record is None:
            return None if data[position:].strip(b"\0") else found
        end = position + int(record[1])
        if not record.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            return None
        found[record[2]] = data[record.end() : end - 1]
        position = end
    return found


def _member(header: bytes, kind: bytes, start: int, stated: int, before: _Before) -> TarMember:
    records, fault = before.records, before.fault
    is_sparse = kind == _SPARSE_TYPE or any(name.startswith(b"GNU.sparse.") for name in records)
    name = records.get(b"GNU.sparse.name") or records.get(b"path") or before.name or _own_name(header)
    if b"size" in records:
        if re.fullmatch(rb"[0-9]{1,20}", records[b"size"]):
            stated = int(records[b"size"])
        else:
            fault = fault or "its records state no size"
    if len(name) > MAX_NAME_BYTES:
        fault = fault or f"its name has {len(name)} bytes, but at most {MAX_NAME_BYTES} are read"
    if b"\0" in name:
        fault = fault or "its name holds a NUL"
    is_folder = kind == _FOLDER_TYPE or (kind == b"\0" and name.endswith(b"/"))
    if kind in _NAMED_TYPES:
        fault = fault or f"a member must be a plain file, not a link or a device, but it is {_NAMED_TYPES[kind]}"
    elif is_sparse:
        fault = fault or "a member must be a plain file, but it is stored with its holes left out (sparse)"
    elif not is_folder and kind not in (b"0", b"\0", b"7"):
        fault = fault or f"a member must be a plain file, but it is of type {kind!r}"
    has_data = not is_folder and kind not in _NAMED_TYPES
    shortened = name[:MAX_NAME_BYTES].decode("utf-8", "surrogateescape")
    return TarMember(shortened, start, stated if has_data else 0, is_folder and fault is None, fault)


def _own_name(header: bytes) -> bytes:
    name, prefix = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
    # Where GNU tar wrote the header, other things stand in place of the prefix.
    return prefix + b"/" + name if header[257:263] == b"ustar\0" and prefix else name
