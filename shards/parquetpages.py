"""What a column of a Parquet file unpacks to, as its pages say: known before a byte is unpacked.

The list at a file's end may understate it, and pyarrow takes as much memory as the pages ask for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import pyarrow as pa

_HEAD_BYTES = 64 << 10
"""Of a page's header; with its smallest and largest value, those that pyarrow writes have 0.1 kB."""
_MAX_DEPTH = 8
_MAX_PAGES, _FEW_VALUES = 100, 16
"""So many pages, and one more for each so many values; writers put thousands into one."""
_DATA, _INDEX, _DICTIONARY, _DATA_2 = range(4)
_FROM_DICTIONARY = (2, 8)
_NUM_VALUES, _ENCODING, _ENCODING_2 = 1, 2, 4
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


class PageError(ValueError):
    """Pages that are none; the message says why."""


class Chunk(NamedTuple):
    """Where the pages of one column in one group of rows lie."""

    start: int
    num_bytes: int


def read_footer(data: bytes) -> list[list[Chunk]]:
    """Return, group by group, where the columns lie, as the list at a file's end says.

    pyarrow ends the process where it is asked for a column of which that list says nothing.

    Raises:
        PageError: if that is no such list, or says nothing of a column.
    """
    groups = _Reader(data).struct(0).get(4)
    if not isinstance(groups, list):
        raise PageError("the list at its end has no groups of rows")
    return [_chunks(group, number) for number, group in enumerate(groups)]


def _chunks(group: dict[int, Any], number: int) -> list[Chunk]:
    columns = group.get(1)
    if not isinstance(columns, list):
        raise PageError(f"group {number} of its rows has no columns")
    found = []
    for column in columns:
        meta = column.get(3)
        if not isinstance(meta, dict):
            raise PageError(f"group {number} of its rows does not say where its columns lie")
        num_bytes, start, dictionary = (meta.get(field) for field in (7, 9, 11))
        if not isinstance(num_bytes, int) or not isinstance(start, int):
            raise PageError(f"group {number} of its rows does not say where its columns lie")
        if isinstance(dictionary, int) and 0 < dictionary < start:
            start = dictionary
        found.append(Chunk(start, num_bytes))
    return found


@dataclass(frozen=True)
class Pages:
    """The pages of one column in one group of rows."""

    num_values: int
    unpacked_bytes: int
    """Of all together; a value of a dictionary counts once."""
    has_dictionary: bool
    begins_with_dictionary: bool
    """Whether the values of the first page stand in a dictionary."""


def read_pages(file: IO[bytes] | pa.NativeFile, chunk: Chunk, num_values: int) -> Pages:
    """Return what the pages of a column in one group say that they hold, up to `num_values` values.

    Raises:
        PageError: if they are no pages.
    """
    start, end = chunk.start, chunk.start + chunk.num_bytes
    found = unpacked_bytes = num_pages = 0
    has_dictionary = False
    encodings: list[Any] = []
    while found < num_values and start < end:
        file.seek(max(0, start))
        reader = _Reader(file.read(min(_HEAD_BYTES, end - start)))
        header = reader.struct(0)
        kind, unpacked, packed = (header.get(number) for number in (1, 2, 3))
        if not (isinstance(kind, int) and isinstance(unpacked, int) and isinstance(packed, int)):
            raise PageError(f"no page begins at byte {start}")
        start += reader.position + packed
        if unpacked < 0 or packed < 0 or start > end:
            raise PageError(f"a page of {packed} bytes ends behind its column at byte {end}")
        unpacked_bytes += unpacked
        has_dictionary |= kind == _DICTIONARY
        if kind in (_DATA, _DATA_2):
            values = header.get(5 if kind == _DATA else 8)
            values = values if isinstance(values, dict) else {}
            count = values.get(_NUM_VALUES)
            if not isinstance(count, int) or count < 0:
                raise PageError(f"the page before byte {start} does not say how many values it has")
            encodings.append(values.get(_ENCODING if kind == _DATA else _ENCODING_2))
            found += count
        num_pages += 1
        if num_pages > _MAX_PAGES + num_values // _FEW_VALUES:
            raise PageError(f"{num_pages} pages hold {found} of {num_values} values")
    return Pages(found, unpacked_bytes, has_dictionary, bool(encodings) and encodings[0] in _FROM_DICTIONARY)


class _Reader:
    """Thrift's compact form, as far as headers of pages use it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def struct(self, depth: int) -> dict[int, Any]:
        """Return the whole numbers, structs and lists of structs in a struct, by their field's number."""
        if depth > _MAX_DEPTH:
            raise PageError("a page's header is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            number = number + step if step else self._number()
            fields[number] = self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind in (_I16, _I32, _I64):
            return self._number()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            head = self._byte()
            count, of_kind = head >> 4, head & 15
            count = self._varint() if count == 15 else count
            of_kind = _BYTE if of_kind in (_TRUE, _FALSE) else of_kind
            found = [self._value(of_kind, depth + 1) for _ in range(min(count, len(self._data)))]
            return found if of_kind == _STRUCT else None
        if kind not in (_BYTE, _DOUBLE, _BINARY):
            raise PageError("a page's header has a field of no known kind")
        count = self._varint() if kind == _BINARY else 8 if kind == _DOUBLE else 1
        self.position += count
        if self.position > len(self._data):
            raise PageError("a page's header is cut or too long")
        return None

    def _byte(self) -> int:
        if self.position >= len(self._data):
            raise PageError("a page's header is cut or too long")
        self.position += 1
        return self._data[self.position - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise PageError("a page's header has a number that is too long")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
