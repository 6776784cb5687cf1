"""A database in audformat: `db.yaml`, and a table of files or of segments for each thing that is known of them.

All tables are put together: what is known of a file holds for its segments, too. A table's split, and what a scheme
knows of its labels (a speaker's gender and age), are columns like others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shards.corpora.base import Found, own_reader
from shards.corpora.cells import split_in
from shards.corpora.csv import read_any_table
from shards.corpora.identities import tidy
from shards.corpora.missing import is_missing
from shards.corpora.options import ReadOptions
from shards.corpora.rows import Place, found_in
from shards.corpora.tables import Row, Table
from shards.errors import CorpusError
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

_Index = tuple[str, str, str]


@dataclass
class _Database:
    """What all tables say, by file and by segment."""

    folder: Path
    header: Mapping[str, Any]
    options: ReadOptions
    files: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    segments: dict[_Index, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    conflicts: dict[str, dict[str, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))
    """Different values of one column, by row and column."""
    misc: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """What tables of labels know of each, by table and label."""
    columns: dict[str, None] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def add_table(self, name: str, description: Mapping[str, Any]) -> None:
        """Take in one table's rows."""
        table = _read_table(self.folder, name, self.options)
        self.notes += table.notes
        schemes = {column: self._attributes(about) for column, about in (description.get("columns") or {}).items()}
        split = self._split(description)
        for row in table.rows:
            cells = _known({column: cell for column, cell in row.cells.items() if column not in _INDEX})
            for column, attributes in schemes.items():
                known = attributes.get(str(cells.get(column)), {})
                cells |= {name: value for name, value in known.items() if name not in cells}
            file, start, end = (str(row.cells.get(part) or "") for part in _INDEX)
            self._add((file, start, end), {**cells, **split})

    def _add(self, index: _Index, cells: Mapping[str, Any]) -> None:
        file, start, end = index
        is_whole = _is_blank(start) and _is_blank(end)
        known = self.files[file] if is_whole else self.segments[file, start, end]
        name = file if is_whole else f"{file} from {start} to {end}"
        for column, value in cells.items():
            self.columns[column] = None
            before = known.setdefault(column, value)
            if str(before) != str(value):
                self.conflicts[name][column] |= {str(before), str(value)}

    def _split(self, description: Mapping[str, Any]) -> dict[str, str]:
        split_id = description.get("split_id")
        if split_id is None:
            return {}
        kind = ((self.header.get("splits") or {}).get(split_id) or {}).get("type") or split_id
        split = split_in(str(kind))
        return {} if split is None else {"split": split}

    def _attributes(self, about: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
        """Return what a column's scheme knows of each of its labels."""
        scheme = (self.header.get("schemes") or {}).get((about or {}).get("scheme_id")) or {}
        labels = scheme.get("labels")
        if isinstance(labels, str):
            return self._misc(labels)
        if not isinstance(labels, dict):
            return {}
        return {str(label): _known(known) for label, known in labels.items() if isinstance(known, dict)}

    def _misc(self, name: str) -> dict[str, dict[str, Any]]:
        """Return what a table of labels knows of each, which stands in its first column."""
        if name not in self.misc:
            table = _read_table(self.folder, name, self.options)
            self.notes += table.notes
            rows = [list(row.cells.items()) for row in table.rows]
            self.misc[name] = {str(label): _known(dict(known)) for (_, label), *known in rows}
        return self.misc[name]

    def rows(self) -> Iterator[Row]:
        """Yield a row for every segment, and for every file without any."""
        cut = {file for file, _, _ in self.segments}
        whole = [(file, "", "") for file in self.files if file not in cut]
        for number, (file, start, end) in enumerate(sorted({*self.segments, *whole}), start=1):
            name = file if (file, start, end) in whole else f"{file} from {start} to {end}"
            cells = {**self.files.get(file, {}), **self.segments.get((file, start, end), {})}
            index = {"file": file, "start": start, "end": end}
            yield Row(number, {**cells, **index}, self._fault(name) or self._fault(file), name=f"{_HEADER}: {name}")

    def _fault(self, name: str) -> str | None:
        conflicts = self.conflicts.get(name)
        if not conflicts:
            return None
        column, values = next(iter(conflicts.items()))
        return f"tables must agree, but {column} is {' and '.join(sorted(values))}"


def _read(source: Path | None, options: ReadOptions) -> Iterator[Found]:
    folder = source.parent if source is not None and source.name == _HEADER else source
    if folder is None or not (folder / _HEADER).is_file():
        raise CorpusError(f"not an audformat database: {source} must hold {_HEADER}; pack a single table as csv")
    header = _header(folder / _HEADER)
    database = _Database(folder, header, options)
    for name, description in (header.get("tables") or {}).items():
        database.add_table(str(name), description or {})
    corpus = options.name or tidy(str(header.get("name") or folder.resolve().name))
    make_key(corpus)
    languages = [str(code) for code in header.get("languages") or []]
    given = {"language": _SHORT_CODES.get(languages[0], languages[0])} if len(languages) == 1 else {}
    table = Table(folder / _HEADER, (*_INDEX, *database.columns), tuple(database.rows()), tuple(database.notes))
    place = Place(corpus, (options.audio or folder,), given=given)
    yield from found_in(table, place, options)
    if header.get("license") and options.licence is None:
        yield Note(f"{_HEADER} says the licence is {header['license']}; --licence TEXT keeps it in the manifest")


def _header(path: Path) -> Mapping[str, Any]:
    try:
        header = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise CorpusError(f"{path} must be YAML, but {' '.join(str(error).split())}") from error
    if not isinstance(header, dict) or not isinstance(header.get("tables"), dict):
        raise CorpusError(f"{path} must be the header of an audformat database, but names no tables")
    return header


def _read_table(folder: Path, name: str, options: ReadOptions) -> Table:
    for suffix in ("csv", "parquet"):
        path = folder / f"db.{name}.{suffix}"
        if path.is_file():
            table = read_any_table(path, Place("", (folder,)), options.model_copy(update={"columns": {}}))
            faulty = next((row for row in table.rows if row.fault is not None), None)
            if faulty is not None:
                raise CorpusError(
                    f"{path} must be as audformat wrote it, but in row {faulty.number} {faulty.fault}; restore it"
                )
            return table
    raise CorpusError(
        f"{folder} must hold the table {name} as db.{name}.csv or .parquet, but does not; save it in one of these forms"
    )


def _known(cells: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in cells.items() if not _is_blank(value)}


def _is_blank(value: Any) -> bool:
    """Return whether a cell holds nothing; no time at the end (NaT) means the end of the file."""
    return value is None or not str(value).strip() or is_missing("", str(value).strip())


READER = own_reader("audformat", "A database in audformat", _read)
