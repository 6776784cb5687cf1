"""Tables of separated cells, as spreadsheets, pandas, R and Common Voice write them.

The one question that matters is whether a `"` encloses a cell or is a character: taken wrongly, a lone one swallows the
rows up to the next. Both readings are made and compared; where neither is surely right, the table is refused.
"""

from __future__ import annotations

import csv
import io
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.corpora.encodings import read_text_in
from shards.corpora.identities import tidy
from shards.corpora.options import ReadOptions
from shards.corpora.tables import Row, Table, check_columns, checked
from shards.errors import CorpusError
from shards.schema import Note

_SEPARATORS = (",", ";", "\t", "|")
_LINE_END = re.compile(r"\r\n|\n|\r")
_DECLARED = re.compile(r'"?sep=(?P<separator>.)"?(?:\r\n|\n|\r|$)', re.IGNORECASE)
"""Excel's first line."""
_NO_SEPARATORS = " \"'\\\0_"
_MAX_SHOWN = 60
_MAX_COMMENTS = 10_000

_LITERAL = '" is a character like any other'
_ESCAPED = '" encloses cells, and \\ stands before one that does not'
_BLANKS = 'blanks before a " that encloses a cell are no part of it'

IsAudio = Callable[[str], bool]
FindFields = Callable[[Sequence[str]], Mapping[str, int]]


@dataclass(frozen=True)
class _Form:
    """How quotes enclose cells."""

    escape: str | None = None
    skips_blanks: bool = False
    """Whether blanks may stand before the quote."""

    @property
    def said(self) -> str:
        """What is unusual about it."""
        return " and ".join([_ESCAPED] * (self.escape is not None) + [_BLANKS] * self.skips_blanks)


@dataclass(frozen=True)
class _Reading:
    """One way to cut the text into records: the cells of each, blank ones included."""

    records: list[list[str]]
    num_lines: list[int]
    """Lines that each record takes."""
    form: _Form | None
    """How `"` encloses cells; None: it is a character like any other."""
    error: str | None = None
    """Where the quotes do not match."""


def delimited_table(
    path: Path, options: ReadOptions, find_fields: FindFields, is_audio: IsAudio, usual_encoding: str | None = None
) -> Table:
    """Return the table in a text file; encoding, separator, quotes and line ends are found out unless given.

    Args:
        path: The file.
        options: `encoding` and `quotes` are obeyed.
        find_fields: Given the header, says in which places which fields stand.
        is_audio: Says whether a cell names an audio file.
        usual_encoding: As in `read_text_in`.

    Raises:
        CorpusError: if the encoding or the quotes cannot be told surely.
    """
    text = read_text_in(path, options.encoding, usual_encoding)
    notes = []
    if text.is_guess:
        notes.append(
            Note(
                f"the table {path.name} is read as {text.encoding}{f' ({text.sample})' if text.sample else ''}; "
                "if that is wrong, name its encoding with --encoding"
            )
        )
    content, declared = _without_declaration(path, text.content)
    content, num_skipped = _from_header(path, content, declared, find_fields)
    separator = declared or _separator(path, content, find_fields)
    if not content:
        return Table(path, (), (), tuple(notes))
    reading = _read(path, content, separator, options, find_fields, is_audio)
    said = _LITERAL if reading.form is None else reading.form.said
    if said and '"' in content:
        notes.append(Note(f"in {path.name}, {said}"))
    header = [tidy(cell) for cell in reading.records[0]]
    header[:1] = [name.removeprefix("#").strip() for name in header[:1]]
    check_columns(path, header)
    # Columns at the end that have no name come of a separator there; what stands in them would be a row out of step.
    num_named = max((place for place, name in enumerate(header, start=1) if name), default=0)
    rows = [
        _row(number, cells, header, num_named)
        for number, cells in enumerate(reading.records[1:], start=num_skipped + 2)
        if any(map(str.strip, cells))
    ]
    notes += _nameless(path, header, reading.records[1:])
    table = Table(path, tuple(header), tuple(rows), tuple(notes))
    return checked(table, _num_records(content, separator, reading.form) - 1)


def _without_declaration(path: Path, content: str) -> tuple[str, str | None]:
    declared = _DECLARED.match(content)
    if declared is None:
        return content, None
    if declared["separator"].isalnum() or declared["separator"] in _NO_SEPARATORS:
        raise CorpusError(
            f"the first line of {path} must declare what separates cells, a sign such as , or ;, got "
            f"{declared['separator']!r}; correct or remove it"
        )
    return content[declared.end() :], declared["separator"]


def _from_header(path: Path, content: str, declared: str | None, find_fields: FindFields) -> tuple[str, int]:
    """Return the text from the header on, and how many lines stand before it: blank ones and comments."""
    num_skipped = num_comments = start = 0
    while start < len(content):
        end = _LINE_END.search(content, start)
        line = content[start : len(content) if end is None else end.start()]
        if line.strip() and not (line.startswith("#") and not _is_header(line, declared, find_fields)):
            break
        num_comments += line.startswith("#")
        if num_comments > _MAX_COMMENTS:
            raise CorpusError(
                f"{path} must have at most {_MAX_COMMENTS} lines of comment above its header, but has more; remove them"
            )
        start = len(content) if end is None else end.end()
        num_skipped += 1
    return content[start:], num_skipped


def _is_header(line: str, declared: str | None, find_fields: FindFields) -> bool:
    """Return whether a line that begins with # names a column of files, as some programs write headers."""
    separators = (declared,) if declared else _SEPARATORS
    return any("file" in find_fields(_names(line, separator)) for separator in separators)


def _names(line: str, separator: str) -> list[str]:
    return [tidy(cell.strip().strip('"')).removeprefix("#").strip() for cell in line.split(separator)]


def _separator(path: Path, content: str, find_fields: FindFields) -> str:
    """Return what separates cells: what makes the header name a column of files, and most columns."""
    header = _LINE_END.split(content, maxsplit=1)[0]
    of_suffix = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    unquoted = re.sub(r'"[^"]*"', "", header)

    def fitness(separator: str) -> tuple[bool, int, bool]:
        has_file = "file" in find_fields(_names(header, separator))
        return has_file, unquoted.count(separator), separator == of_suffix

    return max(_SEPARATORS, key=fitness)


# ---------------------------------------------------------------- quotes


def _read(
    path: Path, content: str, separator: str, options: ReadOptions, find_fields: FindFields, is_audio: IsAudio
) -> _Reading:
    """Return the right reading."""
    literal = _literal(content, separator)
    if '"' not in content or options.quotes == "none":
        return literal
    quoted = _enclosed(content, separator)
    if options.quotes == "double":
        return _whole(path, quoted)
    is_header_quoted = any(cell.strip().startswith('"') for cell in _first_line(content).split(separator))
    if is_header_quoted and quoted.error is not None:
        return _whole(path, quoted)
    header = quoted.records[0] if is_header_quoted else literal.records[0]
    width = len(header)
    fields = find_fields([tidy(name) for name in header])
    torn = [cells for cells in literal.records[1:] if _is_torn(cells, width, separator)]
    swallowed = _swallowed(quoted, literal, width, fields.get("file"), is_audio)
    encloses = is_header_quoted or (quoted.form is not None and quoted.form.escape is not None)
    if quoted.error is None and not swallowed:
        if encloses or torn or not (separator == "\t" and _are_said(quoted, literal, separator, fields.get("text"))):
            return quoted
        return literal
    if not torn and not encloses:
        return literal
    if quoted.error is not None:
        return _whole(path, quoted)
    raise CorpusError(
        f'{path} must be read in one way, but a " may enclose cells or stand for itself: read as enclosing, one cell '
        f"holds the whole row {swallowed!r}; correct its quotes, or say what they are with --quotes double or --quotes "
        "none"
    )


def _is_torn(cells: Sequence[str], width: int, separator: str) -> bool:
    """Return whether a row is none as it stands, and quotes that enclose cells may be why."""
    line = separator.join(cells)
    if '"' not in line or _has_width(cells, width):
        return False
    alone = _enclosed(line, separator)
    # A row with a cell too many has it in either reading; a lone quote may end what another line begins.
    return (
        line.count('"') % 2 == 1
        or alone.error is not None
        or len(alone.records) != 1
        or len(alone.records[0]) != len(cells)
    )


def _whole(path: Path, quoted: _Reading) -> _Reading:
    if quoted.error is not None:
        raise CorpusError(
            f"{path} must be a well-formed table, but its {quoted.error}; correct its quotes, or pass --quotes none "
            "where they are characters like any other"
        )
    return quoted


def _first_line(content: str) -> str:
    return _LINE_END.split(content, maxsplit=1)[0]


def _literal(content: str, separator: str) -> _Reading:
    records = [line.split(separator) for line in _LINE_END.split(content)]
    # No column's name has quotes, whatever they are in the rows.
    header = _enclosed(_first_line(content), separator)
    if header.error is None and header.records:
        records[0] = header.records[0]
    return _Reading(records, [1] * len(records), None)


def _enclosed(content: str, separator: str) -> _Reading:
    """Return the reading in which `"` encloses cells, in the least unusual form that leaves fewest quotes outside."""
    usual = _quoted(content, separator, _Form())
    has_blanks = re.search(rf'(?:^|{re.escape(separator)}) +"', content, re.MULTILINE) is not None
    escapes, blanks = (None, "\\") if '\\"' in content else (None,), (False, True) if has_blanks else (False,)
    forms = [_Form(escape, skips_blanks) for escape in escapes for skips_blanks in blanks]
    readings = [usual, *(_quoted(content, separator, form) for form in forms[1:])]
    return min((reading for reading in readings if reading.error is None), key=_num_quotes_outside, default=usual)


def _num_quotes_outside(reading: _Reading) -> int:
    """Return how many cells begin with blanks and a quote."""
    return sum(cell[:1] == " " and cell.lstrip(" ")[:1] == '"' for cells in reading.records for cell in cells)


def _quoted(content: str, separator: str, form: _Form) -> _Reading:
    reader = csv.reader(
        io.StringIO(content, newline=""),
        delimiter=separator,
        strict=True,
        doublequote=form.escape is None,
        escapechar=form.escape,
        skipinitialspace=form.skips_blanks,
    )
    records, num_lines, before = [], [], 0
    try:
        for cells in reader:
            records.append(cells)
            num_lines.append(reader.line_num - before)
            before = reader.line_num
    except csv.Error as error:
        return _Reading(records, num_lines, form, f"line {before + 1} is not ({error})")
    return _Reading(records, num_lines, form)


def _has_width(cells: Sequence[str], width: int) -> bool:
    return len(cells) == width or (len(cells) > width and not any(map(str.strip, cells[width:])))


def _swallowed(
    quoted: _Reading, literal: _Reading, width: int, file_column: int | None, is_audio: IsAudio
) -> str | None:
    """Return a line that may be a row by itself, but lies in the record of another row; or None.

    One line of a record may look like its row: where the cell of several lines is the first or the last.
    """
    if file_column is None:
        return None
    line = 0
    for record, num_lines in zip(quoted.records, quoted.num_lines, strict=True):
        lines = literal.records[line : line + num_lines] if num_lines > 1 else []
        named = [(name, cells) for cells in lines if is_audio(name := _name_in(cells, width, file_column))]
        others = named if named and named[0][0] != _name_in(record, 0, file_column) else named[1:]
        if others:
            return " ".join(others[0][1])[:_MAX_SHOWN]
        line += num_lines
    return None


def _name_in(cells: Sequence[str], width: int, file_column: int) -> str:
    """Return what a row has in the column of files; nothing where it is too short to be one of `width`."""
    is_row = len(cells) > file_column and (len(cells) > 1 or width <= 1)
    # A row that NUL bytes damage is a row.
    return tidy(cells[file_column].strip("\0")).strip('"').strip() if is_row else ""


def _are_said(quoted: _Reading, literal: _Reading, separator: str, text_column: int | None) -> bool:
    """Return whether quotes enclose cells that need none, in the column of texts alone.

    A program that quotes cells leaves such a cell alone, or quotes the header and other columns, too. So `"Nein"` is
    what somebody says, quotes included.
    """
    needless = set()
    line = 0
    for cells, num_lines in zip(quoted.records, quoted.num_lines, strict=True):
        if num_lines == 1:
            raw_cells = literal.records[line]
            for column, (cell, raw) in enumerate(zip(cells, raw_cells, strict=False)):
                if len(raw) > 1 and raw == f'"{cell}"' and separator not in cell:
                    needless.add(column)
        line += num_lines
    return needless == {text_column}


# ---------------------------------------------------------------- rows


def _row(number: int, cells: list[str], header: Sequence[str], num_named: int) -> Row:
    width = len(header)
    kept = list(cells)
    while len(kept) > num_named and not kept[-1].strip():
        kept.pop()
    fault = None
    if not num_named <= len(kept) <= width:
        fault = f"a row must have the header's {width} cells, got {len(cells)}"
    elif len(kept) > num_named:
        fault = f"a row must end where the names of columns end, but goes on with {kept[-1][:_MAX_SHOWN]!r}"
    elif any("\0" in cell for cell in kept):
        fault = "a row must be text, but holds a NUL byte"
    by_name = {name: cell for name, cell in zip(header, kept, strict=False) if name}
    return Row(number, by_name, fault, is_comment=cells[0].lstrip().startswith("#"))


def _nameless(path: Path, header: Sequence[str], records: Sequence[Sequence[str]]) -> list[Note]:
    """Return what to say of columns without a name that hold something; the first is often a row's number."""
    num_named = max((place for place, name in enumerate(header, start=1) if name), default=0)
    places = [place for place, name in enumerate(header[:num_named]) if not name and place > 0]
    num_cells = sum(
        bool(cells[place].strip()) for cells in records for place in places[: bisect_left(places, len(cells))]
    )
    if not num_cells:
        return []
    return [Note(f"the table {path.name} has {num_cells} cells in columns without a name, which are left out", True)]


def _num_records(content: str, separator: str, form: _Form | None) -> int:
    """Return the number of records that are not blank, counted without cutting any into cells."""
    edge = re.escape(separator)
    if form is not None:
        inside = '[^"]|""' if form.escape is None else r'[^"\\]|\\.'
        before = " *" if form.skips_blanks else ""
        enclosed = re.compile(rf'(?<![^{edge}\r\n]){before}"(?P<cell>(?:{inside})*)"(?=[{edge}\r\n]|$)', re.DOTALL)
        content = enclosed.sub(lambda match: "x" if match["cell"].strip() else "", content)
    is_blank = re.compile(rf"[\s{edge}]*")
    return sum(is_blank.fullmatch(line) is None for line in _LINE_END.split(content))
