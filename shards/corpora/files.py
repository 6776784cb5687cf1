"""What corpus readers share: audio files without a file system's leftovers, and tables as people publish them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from shards.corpora.delimited import delimited_table
from shards.corpora.encodings import read_text_in
from shards.corpora.options import ReadOptions
from shards.errors import CorpusError
from shards.inputfile import ABSENT, fault_of
from shards.schema import Note, Rejection
from shards.shown import shown

_MAX_SHOWN = 300
_BLANKS = " \t\r\n\N{NO-BREAK SPACE}"
"""Not all that `str.strip` takes away: U+0085 is an ellipsis where Windows' text was taken for Latin-1."""


def audio_files(folder: Path, suffixes: Sequence[str] = (".wav",)) -> list[Path]:
    """Return the files of `folder` that end in one of `suffixes` in any case, sorted; none if there is no such folder.

    Hidden files are left out: macOS keeps a `._x.wav`, which is no audio, beside each `x.wav` on foreign disks.

    Raises:
        CorpusError: if the folder cannot be read, or what has its name leads nowhere.
    """
    fault = fault_of(folder, "folder")
    if fault == ABSENT or fault == "is a file, not a folder":
        return []
    try:
        paths = [] if fault is not None else list(folder.iterdir())
    except OSError as error:
        fault = f"cannot be read: {error.strerror}"
    if fault is not None:
        raise CorpusError(f"{folder} must be a folder of audio files, but it {fault}; correct it")
    return sorted(path for path in paths if path.suffix.lower() in suffixes and not path.name.startswith("."))


def has_file(path: Path) -> bool:
    """Return whether a file of a corpus is there.

    Raises:
        CorpusError: if something is there, or may be, that cannot be read as a file.
    """
    fault = fault_of(path, "file")
    if fault not in (None, ABSENT):
        raise CorpusError(f"{path} must be a file that can be read, but it {fault}; correct it")
    return fault is None


class TextFiles:
    """Reads text files of one corpus in whatever encoding they are, and remembers what should be said of it."""

    def __init__(self, options: ReadOptions, usual_encoding: str = "cp1252") -> None:
        """Obey the option `encoding`, which is then every file's; `usual_encoding` is as in `read_text_in`."""
        self._options = options
        self._usual_encoding = usual_encoding
        self._guessed: dict[str, list[Path]] = {}
        self._samples: dict[str, str] = {}

    def read(self, path: Path) -> str:
        """Return a file's content.

        Raises:
            CorpusError: if its encoding cannot be told surely.
        """
        text = read_text_in(path, self._options.encoding, self._usual_encoding)
        if text.is_guess:
            self._guessed.setdefault(text.encoding, []).append(path)
            self._samples.setdefault(text.encoding, text.sample)
        return text.content

    def notes(self) -> Iterator[Note]:
        """Yield which encodings were found out."""
        for encoding, paths in self._guessed.items():
            sample = self._samples[encoding]
            yield Note(
                f"{len(paths)} text files ({paths[0].name}{', ...' if len(paths) > 1 else ''}) are read as {encoding}"
                f"{f' ({sample})' if sample else ''}; if that is wrong, name their encoding with --encoding"
            )


def read_table(
    table: Path,
    columns: Sequence[str],
    options: ReadOptions,
    *,
    key: str,
    is_key: Callable[[str], bool],
    usual_encoding: str = "cp1252",
) -> Iterator[tuple[str, dict[str, str]] | Rejection | Note]:
    """Yield each row's name (`labels.csv row 7`) and its cells by column, blanks around them taken away.

    A row that does not have the header's number of cells is a `Rejection`; what was found out about encoding or quotes
    is a `Note`.

    Args:
        table: The file.
        columns: What the header must name.
        options: `encoding` and `quotes` are obeyed.
        key: The column that says what a row is about.
        is_key: Says whether a cell may stand in `key`; where a cell of several lines holds such rows, a quote is lone.
        usual_encoding: As in `read_text_in`.

    Raises:
        CorpusError: if the table has not all of `columns`, or its encoding or its quotes cannot be told surely.
    """

    def find_fields(names: Sequence[str]) -> dict[str, int]:
        return {"file": names.index(key)} if key in names else {}

    found = delimited_table(table, options, find_fields, is_key, usual_encoding)
    missing = [column for column in columns if column not in found.columns]
    if missing:
        present = shown(", ".join(found.columns), _MAX_SHOWN) or "none"
        raise CorpusError(
            f"{table} must have the columns {', '.join(columns)}, but {', '.join(missing)} is not among its {present}; "
            f"restore the file as published"
        )
    yield from found.notes
    for row in found.rows:
        name = f"{table.name} row {row.number}"
        if row.fault is None:
            yield name, {column: cell.strip(_BLANKS) for column, cell in row.cells.items()}
        else:
            yield Rejection(name, row.fault, "bad row")
