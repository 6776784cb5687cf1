"""The rows of a user's own table, whatever it was written in, turned into utterances; each is one or is rejected."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from shards.audio import AudioFile
from shards.corpora.base import Found
from shards.corpora.cells import CellError, CellReader, as_text, cell_of, labels_of, number_in, split_in
from shards.corpora.columns import Columns, columns_of, without
from shards.corpora.identities import tidy
from shards.corpora.options import ReadOptions
from shards.corpora.paths import find_audio
from shards.corpora.said import SIDES
from shards.corpora.tables import Row, Table
from shards.corpora.times import seconds_in
from shards.errors import CorpusError
from shards.inputfile import fault_of
from shards.missing import is_missing
from shards.schema import Note, Rejection, RowCount, SourceUtterance, StatedDuration, Utterance, make_key
from shards.shown import shown
from shards.suffixes import AUDIO_SUFFIXES

_UPWARDS = 4
"""Folders above a table in which its audio is looked for."""
_MAX_SHOWN = 60
_MAX_REASON = 400
_FITTING: dict[str, Callable[[str], object]] = {
    "split": split_in,
    "valence": partial(number_in, "valence"),
    "arousal": partial(number_in, "arousal"),
    "dominance": partial(number_in, "dominance"),
}
"""What must read some cell of a column that has one of these fields' usual other names. Not times: without them a
part would be the whole."""
_AGE_WORDS = frozenset(
    {
        *("child", "teens", "twenties", "thirties", "fourties", "forties", "fifties"),
        *("sixties", "seventies", "eighties", "nineties", "adult", "senior"),
    }
)
"""Common Voice's are among them, misspelling included."""


@dataclass(frozen=True)
class Place:
    """Where the audio of a table lies, and what its utterances are called."""

    corpus: str
    folders: tuple[Path, ...]
    """Searched in this order."""
    above: tuple[Path, ...] = ()
    """Searched next, but only for names with folders in them: `a.wav` somewhere above would be another."""
    given: Mapping[str, str] = field(default_factory=dict)
    """Fields that hold for all rows which do not say otherwise."""
    prefix: tuple[str, ...] = ()
    """Of keys and sources."""


def place_of(path: Path, options: ReadOptions, corpus: str) -> Place:
    """Return where the audio of the table at `path` is looked for: where the user says, beside it, in `clips`, above.

    Raises:
        CorpusError: if the corpus's name can stand in no key.
    """
    corpus = options.name or corpus
    make_key(corpus)  # a name that no key can carry is the table's fault, not each row's
    if options.audio is not None:
        fault = fault_of(options.audio, "folder")
        if fault is not None:
            raise CorpusError(f"--audio must be a folder, but {options.audio} {fault}")
        return Place(corpus, (options.audio,))
    folder = path.parent
    return Place(corpus, (folder, folder / "clips"), above=tuple(folder.resolve().parents[:_UPWARDS]))


def found_in(table: Table, place: Place, options: ReadOptions) -> Iterator[Found]:
    """Yield an utterance or a rejection for every row, then what there is to know about the table.

    Raises:
        CorpusError: if the table has no column of files, or a row would be lost.
    """
    columns = _with_fitting_aliases(table, columns_of(table.path, table.columns, options.columns), options)
    reader = _RowReader(table, place, columns, CellReader(labels_of(options.labels)))
    num_found = 0
    for row in table.rows:
        found = reader.found(row)
        if found is not None:
            num_found += 1
            yield found
    num_records = len(table.rows) - len(reader.comment_lines)
    if num_found != num_records:
        raise CorpusError(f"each of {num_records} rows of {table.path} must be read or rejected, but {num_found} were")
    yield from (*table.notes, *columns.notes, *reader.notes())
    yield RowCount(num_records)


def _with_fitting_aliases(table: Table, columns: Columns, options: ReadOptions) -> Columns:
    """Return `columns` without those that have a field's usual other name, but not its values."""
    said = {tidy(name) for name in options.columns}
    aliases = {name: field for name, field in columns.fields.items() if name.lower() != field and name not in said}
    strange = [name for name, field in aliases.items() if field in _FITTING and not _fits(table, name, _FITTING[field])]
    if not strange:
        return columns
    return without(columns, table.path, strange, "they hold other things, so --map must say if they are")


def _fits(table: Table, column: str, reads: Callable[[str], object]) -> bool:
    """Return whether any cell reads; one that does not, among others that do, is a bad cell."""
    cells = [tidy(as_text(row.cells.get(column))) for row in table.rows if row.fault is None]
    values = [cell for cell in cells if cell and not is_missing("", cell)]
    return not values or any(_reads(reads, cell) for cell in values)


def _reads(reads: Callable[[str], object], cell: str) -> bool:
    try:
        return reads(cell) is not None
    except CellError:
        return False


@dataclass
class _RowReader:
    table: Table
    place: Place
    columns: Columns
    cells: CellReader
    comment_lines: list[int] = field(default_factory=list)
    _rows_by_key: dict[str, Row] = field(default_factory=dict)
    _places: Counter[Path] = field(default_factory=Counter)
    _other_durations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._extra_places = {name: place for place, name in enumerate(self.columns.extra)}
        self._is_from_zero = self._counts_channels_from_zero()

    def found(self, row: Row) -> SourceUtterance | Rejection | None:
        """Return what a row is; None for a comment."""
        name = row.name or f"{self.table.path.name} row {row.number}"
        if row.is_comment and (row.fault is not None or self._audio(row) is None):
            self.comment_lines.append(row.number)
            return None
        if row.fault is not None:
            return Rejection(name, row.fault, "bad row")
        try:
            item = self._item(name, row)
        except CellError as error:
            return Rejection(name, str(error), error.kind)
        earlier = self._rows_by_key.setdefault(item.utterance.key, row)
        return item if earlier is row else self._duplicate(name, item.utterance.key, row, earlier)

    def notes(self) -> Iterator[Note]:
        """Yield what was decided about the rows."""
        yield from self.cells.tally.notes(self.cells.labels)
        if self.comment_lines:
            first = self.comment_lines[0]
            yield Note(f"{len(self.comment_lines)} lines that begin with # are comments (first: row {first})")
        if self._other_durations:
            yield Note(
                f"{len(self._other_durations)} rows have a duration that is not from start to end (first: "
                f"{self._other_durations[0]}); their end is taken",
                is_warning=True,
            )
        for folder, count in self._places.items():
            if folder != self.place.folders[0]:
                yield Note(f"the audio of {count} rows lies in {folder}, not beside the table")
        if self.columns.column("channel") is not None:
            base = "0" if self._is_from_zero else "1"
            yield Note(f"channels are counted from {base}")

    # ------------------------------------------------------------ one row

    def _item(self, name: str, row: Row) -> SourceUtterance:
        values = {name: value for name, value in row.cells.items() if value is not None}
        fields = {name: found for name, found in self.columns.fields.items() if name in values}
        by_field = {found: cell_of(name, found, values[name]) for name, found in fields.items()}
        given = {name: cell for name, cell in self.place.given.items() if not by_field.get(name, "").strip()}
        cells = self.cells.present({**by_field, **given})
        if "file" not in cells:
            raise CellError("row without audio", "the column file must name the audio, but is blank")
        path = self._audio(row)
        if path is None:
            looked = self.place.folders[0] / cells["file"]
            raise CellError("row without audio", f"{cells['file']} is no file (looked for {looked})")
        start_s, end_s = self._times(name, cells)
        channel = self._channel(cells)
        key = self._key(cells, start_s, end_s, channel)
        extra = self._extra(row)
        if cells.get("age", "").lower() in _AGE_WORDS:
            # A decade is no age, and is not lost.
            extra["age"] = cells.pop("age")
            self.cells.tally.add("extra", "age", str(extra["age"]))
        metadata = self.cells.metadata(cells)
        source = "/".join((*self.place.prefix, by_field["file"].strip()))
        identity = {"key": key, "corpus": make_key(self.place.corpus), "source": source}
        utterance = Utterance.model_validate({**identity, **metadata, "extra": extra})
        self._places[self._folder_of(cells["file"], path)] += 1
        stated = self._stated(row) if start_s is None and end_s is None else None
        return SourceUtterance(utterance, AudioFile(path, start_s, end_s, channel), stated)

    def _extra(self, row: Row) -> dict[str, str | float | int | bool]:
        # By the row's names: where each row of JSON has names of its own, there are as many columns as rows.
        names = sorted(self._extra_places.keys() & row.cells.keys(), key=self._extra_places.__getitem__)
        found = ((name, _as_extra(row.cells[name])) for name in names)
        return {name: value for name, value in found if value is not None and cell_of(name, name, value) is not None}

    def _audio(self, row: Row) -> Path | None:
        column = self.columns.column("file")
        name = "" if column is None or row.cells.get(column) is None else as_text(row.cells[column]).strip()
        if not name:
            return None
        has_folders = len(PurePosixPath(name.replace("\\", "/")).parts) > 1
        folders = (*self.place.folders, *(self.place.above if has_folders else ()))
        return find_audio(folders, name) or find_audio(folders, tidy(name))

    def _folder_of(self, name: str, path: Path) -> Path:
        depth = len(PurePosixPath(name.replace("\\", "/")).parts)
        return self.place.folders[0] if PurePosixPath(name).is_absolute() else path.parents[depth - 1]

    def _times(self, row: str, cells: Mapping[str, str]) -> tuple[float | None, float | None]:
        start_s, end_s = (self._time_s(name, cells[name]) if name in cells else None for name in ("start", "end"))
        if "duration" in cells and end_s is None:
            duration_s = self._time_s("duration", cells["duration"])
            if duration_s <= 0:
                raise CellError("bad number", f"duration must be above 0, got {cells['duration']!r}")
            end_s = (start_s or 0.0) + duration_s
        elif "duration" in cells and end_s is not None:
            stated = _stated_in(cells["duration"], self.columns.units_s.get("duration", 1.0))
            if stated is None or not stated.agrees(end_s - (start_s or 0.0)):
                self._other_durations.append(f"{row}: {cells['duration']}")
        if (start_s or 0.0) < 0 or (end_s is not None and end_s <= (start_s or 0.0)):
            raise CellError("bad number", f"start and end must satisfy 0 <= start < end, got {start_s} and {end_s}")
        return start_s, end_s

    def _stated(self, row: Row) -> StatedDuration | None:
        cell = row.cells.get(self.columns.file_duration or "")
        return _stated_in(tidy(as_text(cell)), self.columns.units_s.get("duration", 1.0))

    def _time_s(self, name: str, cell: str) -> float:
        try:
            return seconds_in(cell, self.columns.units_s.get(name, 1.0))
        except ValueError as error:
            raise CellError(
                "bad number", f"{name} must be a finite number of seconds or a time, but {error}"
            ) from error

    def _channel(self, cells: Mapping[str, str]) -> int | None:
        if "channel" not in cells:
            return None
        number = _channel_number(cells["channel"])
        if number is None:
            raise CellError("bad number", f"channel must be a number, left or right, got {cells['channel']!r}")
        is_side = cells["channel"].lower() in SIDES
        return number + 1 if self._is_from_zero and not is_side else number

    def _counts_channels_from_zero(self) -> bool:
        column = self.columns.column("channel")
        cells = [as_text(row.cells[column]) for row in self.table.rows if column and row.cells.get(column) is not None]
        return any(_channel_number(tidy(cell)) == 0 for cell in cells)

    def _key(self, cells: Mapping[str, str], start_s: float | None, end_s: float | None, channel: int | None) -> str:
        try:
            return make_key(self.place.corpus, *_key_parts(self.place, cells, start_s, end_s, channel))
        except CorpusError as error:
            raise CellError("bad key", shown(str(error), _MAX_REASON)) from error

    def _duplicate(self, name: str, key: str, row: Row, earlier: Row) -> Rejection:
        other = earlier.name or f"row {earlier.number}"
        if row.cells == earlier.cells:
            return Rejection(name, f"repeats {other} word for word", "duplicate row")
        named = dict.fromkeys((*earlier.cells, *row.cells))
        columns = [column for column in named if row.cells.get(column) != earlier.cells.get(column)]
        first = columns[0]
        values = f"{_shown(earlier.cells.get(first))} and {_shown(row.cells.get(first))}"
        more = f" and {len(columns) - 1} more columns" if len(columns) > 1 else ""
        return Rejection(
            name,
            f"has the same key {key!r} as {other}, but another {first} ({values}){more}",
            "duplicate key",
        )


def _stated_in(cell: str, unit_s: float) -> StatedDuration | None:
    """Return the duration that a cell states, as exactly as it is written; None if it states none."""
    try:
        duration_s = seconds_in(cell, unit_s)
    except ValueError:
        return None
    is_exact = unit_s < 1 or re.search("[.,]", cell) is not None
    return StatedDuration(duration_s, 0.1 if is_exact else 1.0)


def _channel_number(cell: str) -> int | None:
    side = SIDES.get(cell.lower())
    if side is not None:
        return side
    try:
        number = float(cell)
    except ValueError:
        return None
    return int(number) if 0 <= number < 1000 and number == int(number) else None


def _key_parts(
    place: Place, cells: Mapping[str, str], start_s: float | None, end_s: float | None, channel: int | None
) -> list[str]:
    if "key" in cells:
        return [*place.prefix, cells["key"]]
    path = PurePosixPath(cells["file"])
    parts = [*place.prefix, *(path.with_suffix("") if path.suffix.lower() in AUDIO_SUFFIXES else path).parts]
    if start_s is not None or end_s is not None:
        parts.append(f"{_milliseconds(start_s or 0.0)}-{'end' if end_s is None else _milliseconds(end_s)}")
    if channel is not None:
        parts.append(f"channel{channel}")
    return parts


def _milliseconds(time_s: float) -> int:
    return round(time_s * 1000)


def _as_extra(value: Any) -> str | float | int | bool | None:
    """Return a value as `extra` holds it; None where there is none."""
    if isinstance(value, str):
        return tidy(value) or None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float) else as_text(value)


def _shown(value: Any) -> str:
    return repr(as_text(value)[:_MAX_SHOWN])
