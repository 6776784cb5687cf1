"""A database in audformat: `db.yaml`, and a table of files or of segments for each thing that is known of them.

All tables are put together: what is known of a file holds for its segments, too. A table's split, and what a scheme
knows of its labels (a speaker's gender and age), are columns like others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.corpora.audformatheader import AudformatHeader, AudformatTable, read_header
from shards.corpora.base import Found, own_reader
from shards.corpora.cells import as_text, split_in
from shards.corpora.csv import read_any_table
from shards.corpora.files import has_file
from shards.corpora.identities import tidy
from shards.corpora.meaning import meaning_of, microseconds
from shards.corpora.options import ReadOptions
from shards.corpora.rows import Place, found_in
from shards.corpora.tables import Row, Table
from shards.errors import CorpusError
from shards.missing import is_missing
from shards.schema import Note, make_key

_HEADER = "db.yaml"
_INDEX = ("file", "start", "end")
_SHORT_CODES = {
    "ara": "ar",
    "ces": "cs",
    "cmn": "zh",
    "dan": "da",
    "deu": "de",
    "ell": "el",
    "eng": "en",
    "fas": "fa",
    "fin": "fi",
    "fra": "fr",
    "hin": "hi",
    "hun": "hu",
    "ita": "it",
    "jpn": "ja",
    "kor": "ko",
    "nld": "nl",
    "pol": "pl",
    "por": "pt",
    "rus": "ru",
    "spa": "es",
    "swe": "sv",
    "tur": "tr",
    "urd": "ur",
    "zho": "zh",
}
"""BCP 47 wants the shorter of a language's codes; audformat writes the one of three letters."""

_Time = int | str | None
"""In microseconds; what is no time as it stands there, to be told of; None where there is none."""
_Index = tuple[str, _Time, _Time]


@dataclass
class _Database:
    """What all tables say, by file and by segment."""

    folder: Path
    header: AudformatHeader
    options: ReadOptions
    files: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    segments: dict[_Index, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    spelled: dict[_Index, tuple[str, str, str]] = field(default_factory=dict)
    """Each segment as the first table writes it; tables may write one in different ways."""
    conflicts: dict[_Index, dict[str, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))
    """Different values of one column, by row and column."""
    misc: dict[str, dict[Hashable, dict[str, Any]]] = field(default_factory=dict)
    """What tables of labels know of each, by table and label."""
    columns: dict[str, None] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._names = frozenset(path.name for path in self.folder.iterdir())
        self._left_out = {tidy(name) for name, field_name in self.options.columns.items() if field_name is None}

    def add_table(self, name: str, description: AudformatTable) -> None:
        """Take in one table's rows."""
        table = self._table(name)
        self.columns |= {column: None for column in table.columns if column in self._left_out}
        schemes = {column: self._attributes(column, description) for column in description.columns}
        split = self._split(description)
        for row in table.rows:
            cells = _known({column: cell for column, cell in row.cells.items() if column not in _INDEX})
            for column, attributes in schemes.items():
                known = attributes.get(meaning_of("", cells.get(column)), {})
                cells |= {name: value for name, value in known.items() if name not in cells}
            index = self._index(row)
            cells = {column: value for column, value in cells.items() if column not in self._left_out}
            self._add(index, self._known_of(index), {**cells, **split})

    def _table(self, name: str) -> Table:
        table = _read_table(self.folder, self._names, name, self.options, self._left_out)
        self.notes += table.notes
        return table

    def _index(self, row: Row) -> _Index:
        spelled = [as_text(row.cells.get(part)) for part in _INDEX]
        file, start, end = (tidy(cell) for cell in spelled)
        if _is_blank(start) and _is_blank(end):
            return self._named((file, None, None), (spelled[0], "", ""))
        start_us = 0 if _is_blank(start) else microseconds(start)
        end_us = None if _is_blank(end) else microseconds(end)
        return self._named((file, start_us, end_us), (spelled[0], spelled[1], spelled[2]))

    def _named(self, index: _Index, spelled: tuple[str, str, str]) -> _Index:
        self.spelled.setdefault(index, spelled)
        return index

    def _known_of(self, index: _Index) -> dict[str, Any]:
        return self.files[index[0]] if index[1:] == (None, None) else self.segments[index]

    def _add(self, index: _Index, known: dict[str, Any], cells: Mapping[str, Any]) -> None:
        for column, value in cells.items():
            self.columns[column] = None
            before = known.setdefault(column, value)
            if before is not value and meaning_of(column, before) != meaning_of(column, value):
                self.conflicts[index][column] |= {as_text(before), as_text(value)}

    def _split(self, description: AudformatTable) -> dict[str, str]:
        split = split_in(self.header.split_word(description) or "")
        return {} if split is None else {"split": split}

    def _attributes(self, column: str, table: AudformatTable) -> Mapping[Hashable, Mapping[str, Any]]:
        """Return what a column's scheme knows of each of its labels."""
        labels = self.header.labels(column, table)
        if isinstance(labels, str):
            return self._misc(labels)
        return {meaning_of("", label): _known(known) for label, known in labels.items()}

    def _misc(self, name: str) -> dict[Hashable, dict[str, Any]]:
        """Return what a table of labels knows of each, which stands in its first column."""
        if name in self.misc:
            return self.misc[name]
        table = self._table(name)
        label_column = table.columns[0] if table.columns else ""
        found: dict[Hashable, dict[str, Any]] = {}
        for row in table.rows:
            known = {column: cell for column, cell in row.cells.items() if column != label_column}
            label = meaning_of("", row.cells.get(label_column))
            if found.setdefault(label, known) != known:
                raise CorpusError(
                    f"{table.path} must describe each label once, but has two rows of "
                    f"{as_text(row.cells.get(label_column))!r} that differ; keep one"
                )
        self.misc[name] = {label: _known(known) for label, known in found.items()}
        return self.misc[name]

    def rows(self) -> Iterator[Row]:
        """Yield a row for every segment, and for every file without any."""
        cut = {file for file, _, _ in self.segments}
        whole: list[_Index] = [(file, None, None) for file in self.files if file not in cut]
        for number, index in enumerate(sorted([*self.segments, *whole], key=_order), start=1):
            of_file = self.files.get(index[0], {})
            of_segment = self.segments.get(index, {})
            if index[1:] == (0, None):
                # From its start to its end it is the file, of which two things are said.
                self._add(index, dict(of_segment), of_file)
            file, start, end = self.spelled[index]
            name = file if index[1:] == (None, None) else f"{file} from {start} to {end}"
            cells = {**of_file, **of_segment, "file": file, "start": start, "end": end}
            fault = self._fault(index) or self._fault((index[0], None, None))
            yield Row(number, cells, fault, name=f"{_HEADER}: {name}")

    def _fault(self, index: _Index) -> str | None:
        conflicts = self.conflicts.get(index)
        if not conflicts:
            return None
        column, values = next(iter(conflicts.items()))
        return f"tables must agree, but {column} is {' and '.join(sorted(values))}"


def _order(index: _Index) -> tuple[str, tuple[bool, int, str], tuple[bool, int, str]]:
    file, start, end = index
    return file, _time_order(start), _time_order(end)


def _time_order(time: _Time) -> tuple[bool, int, str]:
    return isinstance(time, str), time if isinstance(time, int) else -1, time if isinstance(time, str) else ""


def _read(source: Path | None, options: ReadOptions) -> Iterator[Found]:
    folder = source.parent if source is not None and source.name == _HEADER else source
    if folder is None or not has_file(folder / _HEADER):
        raise CorpusError(f"not an audformat database: {source} must hold {_HEADER}; pack a single table as csv")
    header = read_header(folder / _HEADER)
    database = _Database(folder, header, options)
    for name, description in header.tables.items():
        database.add_table(name, description)
    corpus = options.name or tidy(header.name or folder.resolve().name)
    make_key(corpus)
    languages = header.languages
    given = {"language": _SHORT_CODES.get(languages[0], languages[0])} if len(languages) == 1 else {}
    rows = tuple(database.rows())
    table = Table(folder / _HEADER, (*_INDEX, *database.columns), rows, tuple(database.notes))
    place = Place(corpus, (options.audio or folder,), given=given)
    yield from found_in(table, place, options)
    if header.license and options.licence is None:
        yield Note(f"{_HEADER} says the licence is {header.license}; --licence TEXT keeps it in the manifest")


def _read_table(
    folder: Path, files: Collection[str], name: str, options: ReadOptions, left_out: Collection[str]
) -> Table:
    # Looked for among the names of the folder: that of a table may hold a path.
    file = next((file for suffix in ("csv", "parquet") if (file := f"db.{name}.{suffix}") in files), None)
    path = None if file is None else folder / file
    if path is None:
        raise CorpusError(
            f"{folder} must hold the table {name} as db.{name}.csv or .parquet, but does not; save it in one of these "
            "forms"
        )
    table = read_any_table(path, Place("", (folder,)), options.model_copy(update={"columns": dict.fromkeys(left_out)}))
    faulty = next((row for row in table.rows if row.fault is not None), None)
    if faulty is not None:
        raise CorpusError(
            f"{path} must be as audformat wrote it, but in row {faulty.number} {faulty.fault}; restore it"
        )
    repeated = [column for column, count in Counter(table.columns).items() if column and count > 1]
    if repeated:
        raise CorpusError(f"{path} must name each column once, but repeats {', '.join(repeated)}; restore it")
    if table.columns and not table.columns[0]:
        raise CorpusError(f"{path} must begin with its index, but its first column has no name; restore it")
    return table


def _known(cells: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in cells.items() if not _is_blank(value)}


def _is_blank(value: Any) -> bool:
    """Return whether a cell holds nothing; no time at the end (NaT) means the end of the file."""
    return value is None or not str(value).strip() or is_missing("", str(value).strip())


READER = own_reader("audformat", "A database in audformat", _read)
