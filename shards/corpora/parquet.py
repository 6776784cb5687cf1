"""Tables as Parquet holds them; a value that Python has no form for is read as text, or makes its row a faulty one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from shards.corpora.identities import tidy
from shards.corpora.options import ReadOptions
from shards.corpora.tables import Row, Table, checked
from shards.errors import CorpusError
from shards.jsontext import unique

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
        with path.open("rb") as stream:
            file = pq.ParquetFile(stream)
            num_rows = file.metadata.num_rows
            table = file.read()
            names = [tidy(name) for name in table.column_names]
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(f"{path} must be a Parquet file that can be read, but {reason}; write it again") from error
    left_out = {tidy(name) for name, field in options.columns.items() if field is None}
    columns = {
        name: _values(column)
        for name, column in zip(names, table.columns, strict=True)
        if name and name not in left_out
    }
    rows = [_row(place + 1, [(name, values[place]) for name, values in columns.items()]) for place in range(len(table))]
    return checked(Table(path, tuple(names), tuple(rows)), num_rows)


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
    if _is_plain(column.type):
        try:
            return list(column.to_pylist())
        except UnicodeDecodeError:
            pass  # one of them; which one is found below
    return [_readable(scalar) for scalar in column]


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
    except (pa.ArrowException, ValueError, OverflowError, NotImplementedError) as error:
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
