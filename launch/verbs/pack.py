"""`metaser pack`: a corpus as it lies on disk, turned into shards."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from shards.publish import PackSummary

_CORPUS_HELP = (
    "What SOURCE holds: emodb, ravdess, iemocap, crema-d, msp-podcast, meld, nemo or an4 as published; of your own csv "
    "(a table), jsonl, folder (classes, or an AudioFolder), audiofolder, audformat; wds for WebDataset shards to adopt "
    "where they lie; demo for the embedded corpus."
)
_DEFAULT_WORKERS = min(8, os.cpu_count() or 1)


def pack(
    corpus: Annotated[str, typer.Argument(help=_CORPUS_HELP)],
    source: Annotated[str, typer.Argument(help="Its folder as published, a table for csv and jsonl, - for demo.")],
    out: Annotated[str, typer.Argument(help="Shard folder to write.")],
    on_bad: Annotated[
        Literal["raise", "skip"],
        typer.Option("--on-bad", help="Stop at unusable utterances, or list them in rejected.jsonl."),
    ] = "raise",
    workers: Annotated[int, typer.Option(min=1, help="Processes that decode and encode.")] = _DEFAULT_WORKERS,
    seed: Annotated[int, typer.Option(help="For corpora that are made.")] = 0,
    column_map: Annotated[
        list[str] | None,
        typer.Option(
            "--map", metavar="COLUMN=FIELD", help="What a column is; nothing behind = leaves it out. Repeatable."
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD=EMOTION,...", help="What emotions' words mean, or a YAML file of that. Repeatable."),
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Of text files, such as gbk or cp1252.")] = None,
    quotes: Annotated[
        Literal["auto", "double", "none"], typer.Option(help='Whether " in a table encloses a cell.')
    ] = "auto",
    channel: Annotated[str | None, typer.Option(help="Take this channel: a number from 1, left or right.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Folder of the audio, if it is not beside the table.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the corpus, if not the table's or the folder's.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of your own data, kept in the manifest.")] = None,
    max_duration: Annotated[float, typer.Option(min=0.1, help="Seconds; longer utterances are left out.")] = 60.0,
) -> None:
    """Pack a corpus into shards; a repeated call finishes what a killed one began."""
    from shards.adopt import ADOPTED, adopt_shards
    from shards.corpora.options import ReadOptions
    from shards.corpora.said import channel_number, columns_said, labels_said
    from shards.pack import pack_corpus

    options = ReadOptions(
        columns=columns_said(column_map or []),
        labels=labels_said(labels or []),
        encoding=encoding,
        quotes=quotes,
        channel=None if channel is None else channel_number(channel),
        audio=audio,
        name=name,
        licence=licence,
    )
    run: Callable[..., PackSummary]
    if corpus == ADOPTED:
        run, unit = partial(adopt_shards, Path(source)), "bytes"
    else:
        run, unit = partial(pack_corpus, corpus, None if source == "-" else Path(source), seed=seed), "utterances"
    with _progress(unit) as progress:
        summary = run(
            out=Path(out),
            on_bad=on_bad,
            num_workers=workers,
            max_duration_s=max_duration,
            options=options,
            progress=progress,
        )
    print(describe(summary))


def describe(summary: PackSummary) -> str:
    """Return what was packed as one paragraph, and a line for each thing that was decided on the way."""
    minutes = summary.duration_s / 60
    length = f"{minutes:.1f} min" if minutes < 60 else f"{minutes / 60:.1f} h"
    held = "already holds" if summary.was_complete else "now holds"
    parts = [
        f"{summary.folder} {held} {summary.num_utterances} utterances ({length}) of {summary.corpus} in "
        f"{summary.num_shards} shards."
    ]
    if summary.was_complete:
        beside = "" if summary.not_compared is None else f"; {summary.not_compared}"
        parts.append(f"Nothing was left to do{beside}.")
    elif summary.num_kept_shards:
        parts.append(f"{summary.num_kept_shards} of them were finished by an earlier run.")
    if summary.num_rejected_by_kind:
        counts = ", ".join(f"{kind}: {count}" for kind, count in summary.num_rejected_by_kind.items())
        parts.append(f"Left out, listed in rejected.jsonl: {counts}.")
    parts += [f"Warning: {warning}." for warning in (*summary.doubts, *summary.warnings)]
    return "\n".join([" ".join(parts), *(f"{note[:1].upper()}{note[1:]}." for note in summary.notes)])


@contextmanager
def _progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that draws a bar on a terminal, and writes a line now and then into a log."""
    if not sys.stderr.isatty():
        yield partial(_log_line, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("packing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("packing", total=None)
        yield lambda num_done, num_all: bar.update(task, completed=num_done, total=num_all)


def _log_line(unit: str, num_done: int, num_all: int) -> None:
    print(f"packed {num_done} of {num_all} {unit}", file=sys.stderr, flush=True)
