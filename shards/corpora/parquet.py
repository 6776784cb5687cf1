"""Tables as Parquet holds them; a value that Python has no form for is read as text, or makes its row a faulty one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from shards.corpora.cells import MAX_CELL_CHARS
from shards.corpora.identities import tidy
from shards.corpora.options import ReadOptions
from shards.corpora.tables import Row, Table, check_columns, checked
from shards.errors import CorpusError
from shards.inputfile import open_regular
from shards.jsontext import unique

_FREE_ROWS = 100_000
"""Rows that the smallest file may hold; each byte of it may add one."""
_FREE_VALUES, _VALUES_PER_BYTE = 10_000_000, 64
_FREE_BYTES = 256 << 20
"""Decompressed, on top of 64 for each of the file."""
_MAX_TEXT_BYTES = 4 * MAX_CELL_CHARS
_EPOCH = datetime(1970, 1, 1)
_DAY_S = 86_400
_DECIMALS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
"""Of a second, by unit."""


class _Unreadable:
    """A value that cannot be read."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def parquet_table(path: Path, options: ReadOptions) -> Table:
    """Return the rows of a Parquet file, without the columns that `options` leave out.

    Raises:
        CorpusError: if it is none that can be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_regular(path) as stream:
            metadata = pq.read_metadata(stream)
            num_bytes = os.fstat(stream.fileno()).st_size
            _check_bounds(path, metadata, num_bytes)
            num_rows = metadata.num_rows
            # A text that many rows repeat stays one text.
            file = pq.ParquetFile(stream, metadata=metadata, read_dictionary=_texts(metadata))
            table = file.read()
            names = [tidy(name) for name in table.column_names]
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise CorpusError(f"{path} must be a Parquet file that can be read, but {reason}; write it again") from error
    check_columns(path, names)
    left_out = {tidy(name) for name, field in options.columns.items() if field is None}
    wanted = {name: column for name, column in zip(names, table.columns, strict=True) if name and name not in left_out}
    try:
        _check_unpacked(path, wanted.values(), num_bytes)
    except pa.ArrowException as error:
        raise CorpusError(f"{path} must be a Parquet file that can be read, but {error}; write it again") from error
    columns = {name: _values(column) for name, column in wanted.items()}
    rows = [_row(place + 1, [(name, values[place]) for name, values in columns.items()]) for place in range(len(table))]
    return checked(Table(path, tuple(names), tuple(rows)), num_rows)


def _check_bounds(path: Path, metadata: Any, num_bytes: int) -> None:
    """Refuse what becomes far more than its file: a few bytes may state a value for millions of rows.

    Raises:
        CorpusError: if this is such a file.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    bounds = (
        ("rows", metadata.num_rows, _FREE_ROWS + num_bytes),
        (
            "values",
            sum(group.column(place).num_values for group in groups for place in range(group.num_columns)),
            _FREE_VALUES + _VALUES_PER_BYTE * num_bytes,
        ),
        ("bytes", sum(group.total_byte_size for group in groups), _FREE_BYTES + _VALUES_PER_BYTE * num_bytes),
    )
    for what, number, most in bounds:
        if number > most:
            raise _too_much(path, num_bytes, what, most, f"states {number}")


def _too_much(path: Path, num_bytes: int, what: str, most: int, found: str) -> CorpusError:
    return CorpusError(
        f"{path}, a Parquet file of {num_bytes} bytes, must hold at most {most} {what}, but {found}; write it again "
        "with what is needed alone"
    )


def _check_unpacked(path: Path, columns: Iterable[Any], num_bytes: int) -> None:
    """Refuse texts of which the file holds a few, but its rows and lists far too many.

    Raises:
        CorpusError: if they are.
    """
    most = _FREE_BYTES + _VALUES_PER_BYTE * num_bytes
    unpacked_bytes = sum(
        _unpacked_bytes(chunk) for column in columns if not _is_shared(column) for chunk in column.chunks
    )
    if unpacked_bytes > most:
        raise _too_much(path, num_bytes, "bytes of text", most, f"its rows and lists repeat it to {unpacked_bytes}")


def _is_shared(column: Any) -> bool:
    """Return whether equal texts of a column's rows become one text of Python's."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type) or not pa.types.is_string(column.type.value_type):
        return False
    try:
        for chunk in column.chunks:
            chunk.dictionary.validate(full=True)
    except pa.ArrowException:
        return False  # no UTF-8
    return True


def _unpacked_bytes(array: Any) -> int:
    """Return how many bytes of text a column's values take, each counted as often as it stands there."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _unpacked_bytes(array.storage)
    if pa.types.is_dictionary(kind):
        if not _is_text(kind.value_type):
            return 0
        return pc.sum(pc.cast(pc.binary_length(array.dictionary), pa.int64()).take(array.indices)).as_py() or 0
    if pa.types.is_map(kind):
        return _unpacked_bytes(array.keys) + _unpacked_bytes(array.items)
    if pa.types.is_nested(kind):
        parts = array.flatten()
        return sum(map(_unpacked_bytes, parts)) if pa.types.is_struct(kind) else _unpacked_bytes(parts)
    return pc.sum(pc.cast(pc.binary_length(array), pa.int64())).as_py() or 0 if _is_text(kind) else 0


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return any(
        is_kind(kind) for is_kind in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    )


def _texts(metadata: Any) -> list[str]:
    """Return the columns that hold text or bytes, those inside lists and objects, too."""
    columns = (metadata.schema.column(place) for place in range(metadata.num_columns))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _row(number: int, cells: Iterable[tuple[str, Any]]) -> Row:
    readable = {}
    fault = None
    for name, value in cells:
        if isinstance(value, _Unreadable):
            fault = fault or f"column {name} {value.reason}; leave the column out with --map {name}="
        else:
            readable[name] = value
    return Row(number, readable, fault)


def _values(column: Any) -> Sequence[Any]:
    """Return a column's values as text, numbers, lists and objects, those that cannot be read as `_Unreadable`."""
    if _is_shared(column):
        return [value for chunk in column.chunks for value in _looked_up(chunk)]
    if _is_plain(column.type):
        try:
            return list(column.to_pylist())
        except UnicodeDecodeError:
            pass  # one of them; which one is found below
    return [_readable(scalar) for scalar in column]


def _looked_up(chunk: Any) -> Iterator[str | None]:
    """Yield each row's text of a dictionary; the same object for equal ones."""
    words = chunk.dictionary.to_pylist()
    return (None if place is None else words[place] for place in chunk.indices.to_pylist())


def _is_plain(kind: Any) -> bool:
    """Return whether Python has all values of a type; at once is much faster than one by one."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_plain(kind.value_type) or types.is_float32(kind.value_type)
    is_text = types.is_string(kind) or types.is_large_string(kind)
    return is_text or any(is_kind(kind) for is_kind in (types.is_integer, types.is_boolean, types.is_float64))


def _readable(scalar: Any) -> Any:
    import pyarrow as pa

    try:
        return _value(scalar)
    except (pa.ArrowException, ValueError, OverflowError, NotImplementedError, MemoryError) as error:
        return _Unreadable(f"must hold what can be read, but a {scalar.type} cannot ({' '.join(str(error).split())})")


def _value(scalar: Any) -> Any:
    import pyarrow as pa

    if not scalar.is_valid:
        return None
    if str(scalar.type) == "extension<arrow.uuid>":
        return str(scalar.as_py())
    if isinstance(scalar, pa.DictionaryScalar | pa.ExtensionScalar):
        return _value(scalar.value)
    if isinstance(scalar, pa.StructScalar):
        return unique([(field.name, _value(scalar[place])) for place, field in enumerate(scalar.type)])
    if isinstance(scalar, pa.MapScalar):
        return unique([(str(_value(entry[0])), _value(entry[1])) for entry in scalar.values])
    if isinstance(scalar, pa.StringScalar | pa.BinaryScalar) and scalar.as_buffer().size > _MAX_TEXT_BYTES:
        raise ValueError(f"it has {scalar.as_buffer().size} bytes, but at most {_MAX_TEXT_BYTES} are read")
    if isinstance(scalar, pa.ListScalar) and len(scalar.values) > MAX_CELL_CHARS:
        raise ValueError(f"it has {len(scalar.values)} items, but at most {MAX_CELL_CHARS} are read")
    if isinstance(scalar, pa.ListScalar):
        return [_value(item) for item in scalar.values]
    if isinstance(scalar, pa.DurationScalar):
        # With its unit: a column's name may say that its plain numbers are milliseconds.
        return f"{_shortest(Decimal(scalar.value).scaleb(-_DECIMALS[scalar.type.unit]))} s"
    if isinstance(scalar, pa.TimestampScalar):
        zone = "" if scalar.type.tz is None else "+00:00"
        return f"{_moment(scalar.value, _DECIMALS[scalar.type.unit])}{zone}"
    if isinstance(scalar, pa.Date32Scalar):
        return str((_EPOCH + timedelta(days=scalar.value)).date())
    if isinstance(scalar, pa.Date64Scalar):
        return str((_EPOCH + timedelta(milliseconds=scalar.value)).date())
    if isinstance(scalar, pa.Time32Scalar | pa.Time64Scalar):
        return _time_of_day(scalar.value, _DECIMALS[scalar.type.unit])
    for is_short, short in ((pa.types.is_float32, np.float32), (pa.types.is_float16, np.float16)):
        if is_short(scalar.type):
            # As it is written elsewhere: 0.1, not the nearest float64 to the nearest of fewer bits.
            return float(str(short(scalar.as_py())))
    return _plain(scalar.as_py())


def _plain(value: Any) -> Any:
    """Return numbers of other forms as int or float, and bytes that are UTF-8 as text, which some programs mean."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value


def _shortest(number: Decimal) -> str:
    return f"{number.normalize():f}"


def _moment(ticks: int, decimals: int) -> str:
    """Return a point in time, `ticks` of 10^-decimals seconds after 1970, to its last digit."""
    seconds, rest = divmod(ticks, 10**decimals)
    fraction = f".{rest:0{decimals}d}".rstrip("0") if rest else ""
    return f"{_EPOCH + timedelta(seconds=seconds)}{fraction}"


def _time_of_day(ticks: int, decimals: int) -> str:
    if not 0 <= ticks < _DAY_S * 10**decimals:
        raise OverflowError(f"{ticks} is beyond a day")
    return _moment(ticks, decimals).rpartition(" ")[2]
