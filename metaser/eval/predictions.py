"""`predictions.csv`: one row per utterance with all that its results say, written and read back.

Numbers are written so that reading gives the same ones. An empty cell is what is not there. Text that begins with `=`,
`+`, `-` or `@`, in full width, too, would be a formula to a spreadsheet: an apostrophe stands before it. What a
terminal obeys is written out, ESC as a backslash and `x1b`. `read_predictions` gives the texts themselves.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from metaser.errors import RunError
from metaser.rundir import PREDICTIONS, REPORT
from metaser.runfiles import read_bytes
from metaser.sums import SUMS, SumsError, check_sum, read_sums
from metaser.tasks.kind import exact, finite
from metaser.tasks.kinds import kind_of
from metaser.tasks.results import TaskResult, UtteranceResult
from metaser.tasks.spec import TaskConfig, TaskSpec
from shards.inputfile import MAX_TEXT_BYTES
from shards.shown import shown

log = logging.getLogger(__name__)
# The frames of an hour, or its transcript, are longer than the 128 KiB that the module allows.
csv.field_size_limit(MAX_TEXT_BYTES)

"""What is read back of a report."""
_ROUNDING = 1e-3
_GROUP = "group."
"""Before the names of the columns that say which group an utterance belongs to."""


def read_covered(path: Path) -> bytes | None:
    """Return the bytes of a report's file, compared with the checksums beside it; None if there is no such file.

    Reports of earlier versions have no checksums, which is said.

    Raises:
        RunError: if they are others.
    """
    data = read_bytes(path, max_bytes=MAX_TEXT_BYTES)
    if data is None:
        return None
    try:
        sums = read_sums(path.parent, (REPORT, PREDICTIONS))
        if sums is not None:
            check_sum(path, sha256(data).hexdigest(), sums)
    except SumsError as error:
        raise RunError(f"{error}; evaluate the run again with `metaser evaluate`") from error
    if sums is None and path.name == REPORT:
        log.warning("%s holds no %s: whether its files are as they were written cannot be checked", path.parent, SUMS)
    return data


def predictions_csv(results: Sequence[UtteranceResult], specs: Sequence[TaskSpec]) -> str:
    """Return the file's text: rows by key; columns of every task that any utterance has an answer for."""
    fields = sorted({field for result in results for field in result.groups} - {"corpus"})
    answered = [spec for spec in specs if any(spec.name in result.tasks for result in results)]
    header = ["key", "corpus", "speaker", *(f"{_GROUP}{field}" for field in fields), "duration_s"]
    for spec in answered:
        header += [f"{column}.{side}" for column in kind_of(spec).columns(spec) for side in ("reference", "prediction")]
        header += [f"{spec.name}.probability.{label}" for label in kind_of(spec).shares(spec)]
    rows: list[list[str | None]] = [[*header]]
    for result in sorted(results, key=lambda result: result.key):
        row = [result.key, result.corpus, result.speaker, *(result.groups.get(field) for field in fields)]
        row.append(exact(result.duration_s))
        for spec in answered:
            row += _cells(spec, result.tasks.get(spec.name))
        rows.append(row)
    return "".join(csv_line(row) for row in rows)


def csv_line(row: Iterable[object]) -> str:
    """Return the row with its line feed; None is an empty cell, and text is written as the module says."""
    line = io.StringIO()
    # The csv module quotes what its line terminator holds, and readers end a row at a lone carriage return, too.
    csv.writer(line, lineterminator="\r\n").writerow([_escaped_cell(cell) for cell in row])
    return line.getvalue().removesuffix("\r\n") + "\n"


_NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?")
_FORMULA = re.compile(r"'*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]")
"""The last four are the first four in full width, which spreadsheets of East Asia take for them."""
_WRITTEN_OUT = re.compile(r"\\(\\|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_LINE_SIGNS = re.compile(r"([\t\r\n]+)")
"""Are quoted as in any CSV."""


def _escaped_cell(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    parts = _LINE_SIGNS.split(cell)
    if any(shown(part) != part for part in parts[::2]) or _WRITTEN_OUT.search(cell):
        parts[::2] = [shown(part.replace("\\", "\\\\")) for part in parts[::2]]
        cell = "".join(parts)
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def _read(cell: str) -> str:
    """Return the text of which `_escaped_cell` made `cell`."""
    if cell[:1] == "'" and _FORMULA.match(cell):
        cell = cell[1:]
    return _WRITTEN_OUT.sub(lambda match: "\\" if match[1] == "\\" else chr(int(match[1][1:], 16)), cell)


def _cells(spec: TaskSpec, task: TaskResult | None) -> list[str | None]:
    kind = kind_of(spec)
    num_shares = len(kind.shares(spec))
    if task is None:
        return [None] * (2 * len(kind.columns(spec)) + num_shares)
    shares = [None] * num_shares if task.probabilities is None else [exact(share) for share in task.probabilities]
    return [*kind.cells(task), *shares]


def read_predictions(path: Path, tasks: Sequence[TaskConfig]) -> tuple[list[TaskSpec], list[UtteranceResult]]:
    """Return the tasks that the file has answers for and its utterances; losses are not in it.

    Raises:
        RunError: if the file cannot be read or is no such table.
    """
    data = read_covered(path)
    if data is None:
        raise RunError(f"{path} is damaged: it is gone; evaluate the fold again with `metaser evaluate`")
    try:
        reader = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
        rows = ([_read(cell) for cell in row] for row in reader)
        header = next(rows, [])
        _refuse_repeated("column", header)
        specs = [spec for task in tasks if (spec := _spec(task, header)) is not None]
        results = [_result(_cells_by_name(header, row), specs) for row in rows if row]
        _refuse_repeated("key", [result.key for result in results])
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise RunError(
            f"{path} is damaged: {shown(repr(error), 200)}; evaluate the fold again with `metaser evaluate`"
        ) from error
    return specs, results


def _refuse_repeated(what: str, words: Sequence[str]) -> None:
    if repeated := [word for word, count in Counter(words).items() if count > 1]:
        raise ValueError(f"{what} {repeated[0]!r} stands there twice")


def _spec(task: TaskConfig, header: Sequence[str]) -> TaskSpec | None:
    prefix = f"{task.name}.probability."
    labels = tuple(name.removeprefix(prefix) for name in header if name.startswith(prefix))
    # Where no label is in the header, the task's field stands for them.
    fields = task.metadata_fields
    spec = TaskSpec(name=task.name, kind=task.kind, fields=fields, labels=labels or fields)
    return spec if f"{kind_of(spec).columns(spec)[0]}.prediction" in header else None


def _cells_by_name(header: Sequence[str], row: Sequence[str]) -> dict[str, str]:
    if len(row) != len(header):
        raise ValueError(f"the row of {row[0]!r} has {len(row)} cells, but the header {len(header)}")
    return dict(zip(header, row, strict=True))


def _result(row: Mapping[str, str], specs: Sequence[TaskSpec]) -> UtteranceResult:
    groups = {name.removeprefix(_GROUP): cell or None for name, cell in row.items() if name.startswith(_GROUP)}
    tasks = {spec.name: task for spec in specs if (task := _task(row, spec)) is not None}
    return UtteranceResult(
        key=row["key"],
        corpus=row["corpus"],
        speaker=row["speaker"] or None,
        groups={**groups, "corpus": row["corpus"]},
        # Earlier files have neither groups nor durations.
        duration_s=finite(row.get("duration_s") or "0"),
        tasks=tasks,
    )


def _task(row: Mapping[str, str], spec: TaskSpec) -> TaskResult | None:
    """Return the answer; None where a stage's filter kept the utterance from this task."""
    kind = kind_of(spec)
    references = [row[f"{column}.reference"] or None for column in kind.columns(spec)]
    predictions = [row[f"{column}.prediction"] for column in kind.columns(spec)]
    if not any([*references, *predictions]):
        return None
    cells = [row[f"{spec.name}.probability.{label}"] for label in kind.shares(spec)]
    try:
        return kind.parse(spec, references, predictions, _probabilities(cells))
    except ValueError as error:
        raise ValueError(f"in the row of {row['key']!r} {error}") from error


def _probabilities(cells: Sequence[str]) -> tuple[float, ...] | None:
    if not any(cells):
        return None
    shares = tuple(map(finite, cells))
    if min(shares) < 0 or abs(sum(shares) - 1) > _ROUNDING:
        raise ValueError(f"probabilities must be 0 or more and sum to 1, got a sum of {sum(shares):g}")
    return shares
