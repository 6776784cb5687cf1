"""`metaser predict`: emotion probabilities for audio files."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from launch.words import say, tell_data, tell_json

if TYPE_CHECKING:
    from metaser.predict import FilePrediction
    from metaser.tasks.spec import TaskSpec


def predict(
    model: Annotated[str, typer.Argument(help="A run's folder or an exported model's.")],
    audio: Annotated[
        list[str], typer.Argument(help="Audio files: WAV, FLAC, MP3, OGG, ... at any rate, of any length.")
    ],
    output_format: Annotated[Literal["table", "csv", "jsonl"], typer.Option("--format")] = "table",
    window: Annotated[
        float | None,
        typer.Option(help="Seconds that are heard at once; longer files are cut.  [default: as the model was trained]"),
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(help="Seconds that neighbouring windows share.  [default: a quarter of the window]")
    ] = None,
    per_window: Annotated[
        bool, typer.Option("--per-window", help="A row per window (table, csv); jsonl always lists the windows.")
    ] = False,
    channel: Annotated[
        str, typer.Option(help="What to hear of several channels: a number from 1, left, right, each, or mix.")
    ] = "mix",
    text: Annotated[
        list[str] | None,
        typer.Option(help="What is said, for every view that reads; given once for each file, in their order."),
    ] = None,
) -> None:
    """Print what a trained model says of audio files."""
    from launch.console import plain_logging
    from metaser.predict import choose_channel, load_model, predict_files
    from metaser.windows import choose_windows

    with plain_logging():
        chosen = choose_channel(channel)
        loaded = load_model(model)
        windowing = choose_windows(loaded, window, overlap)
        predictions = _with_notes_shown(
            predict_files(loaded, audio, windowing=windowing, channel=chosen, texts=text or ())
        )
        if output_format == "jsonl":
            failed = _print_jsonl(predictions)
        elif output_format == "csv":
            reads = loaded.reads_text
            failed = _print_csv(predictions, loaded.task_specs, per_window=per_window, with_text=reads)
        else:
            failed = _print_table(predictions, loaded.task_specs, loaded.config.main_task, per_window=per_window)
    if failed:
        raise typer.Exit(2)


def _with_notes_shown(predictions: Iterator[FilePrediction]) -> Iterator[FilePrediction]:
    for prediction in predictions:
        for note in prediction.notes:
            say(f"note: {note}")
        yield prediction


def _print_jsonl(predictions: Iterator[FilePrediction]) -> bool:
    failed = False
    for prediction in predictions:
        failed |= prediction.error is not None
        tell_json(_json_line(prediction))
    return failed


def _json_line(prediction: FilePrediction) -> dict[str, Any]:
    line: dict[str, Any] = {"file": prediction.file}
    if prediction.channel is not None:
        line["channel"] = prediction.channel
    if prediction.error is not None:
        return line | {"error": prediction.error}
    windows = [
        {"start_s": window.start_s, "end_s": window.end_s, **({"silent": True} if window.is_silent else window.tasks)}
        for window in prediction.windows
    ]
    line |= {"duration_s": prediction.duration_s, "num_channels": prediction.num_channels, "windows": windows}
    if prediction.text is not None:
        line["text"] = prediction.text
    # Last, so that a task of one of these names keeps its place.
    return line | prediction.tasks


def _print_csv(
    predictions: Iterator[FilePrediction], specs: Sequence[TaskSpec], *, per_window: bool, with_text: bool
) -> bool:
    from metaser.eval.predictions import csv_line
    from shards.shown import shown

    # A program reads line ends in a name, where a terminal would obey them.
    is_read_by_person = sys.stdout.isatty()

    def write(cells: Iterable[Any]) -> None:
        tell_data(csv_line(shown(cell) if is_read_by_person and isinstance(cell, str) else cell for cell in cells))

    failed = False
    times = ["start_s", "end_s"] if per_window else []
    names = ["file", "duration_s", *_csv_columns(specs), "error", "channel", "num_windows", *times]
    names += ["text"] if with_text else []
    write(names)
    for prediction in predictions:
        failed |= prediction.error is not None
        row = {
            "file": prediction.file,
            "duration_s": prediction.duration_s,
            "error": prediction.error,
            "channel": prediction.channel,
            "num_windows": len(prediction.windows) or None,
            "text": prediction.text,
        }
        if per_window and prediction.windows:
            for window in prediction.windows:
                times_s = {"start_s": window.start_s, "end_s": window.end_s}
                write(map((row | times_s | _csv_cells(specs, window.tasks)).get, names))
        else:
            write(map((row | _csv_cells(specs, prediction.tasks)).get, names))
    return failed


def _csv_cells(specs: Sequence[TaskSpec], tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the answers by the names of `_csv_columns`; a silent window has none."""
    from metaser.tasks.kinds import kind_of

    cells = [cell for spec in specs if spec.name in tasks for cell in kind_of(spec).answer_cells(tasks[spec.name])]
    return dict(zip(_csv_columns(specs), cells, strict=True)) if cells else {}


def _csv_columns(specs: Sequence[TaskSpec]) -> list[str]:
    from metaser.tasks.kinds import kind_of

    return [f"{spec.name}.{column}" for spec in specs for column in kind_of(spec).answer_columns(spec)]


def _print_table(
    predictions: Iterator[FilePrediction], specs: Sequence[TaskSpec], main_task: str, *, per_window: bool
) -> bool:
    from rich.console import Console

    from metaser.tasks.kinds import kind_of
    from shards.shown import shown_table

    rows = list(predictions)
    good = [row for row in rows if row.error is None]
    if good:
        main = next(spec for spec in specs if spec.name == main_task)
        others = [spec for spec in specs if spec.name != main_task]
        has_channels = any(row.channel is not None for row in good)
        has_windows = any(len(row.windows) > 1 for row in good)
        where = [*(["channel"] if has_channels else []), *(["windows"] if has_windows or per_window else [])]
        wide = kind_of(main).wide(good[0].tasks[main_task])
        titles = ["file", *where, *(title or main_task for title in wide), *(spec.name for spec in others)]
        lines = []
        for row in good:
            for part, tasks in _parts(row, per_window=per_window):
                place = [
                    *([str(row.channel or "")] if has_channels else []),
                    *([part] if len(where) > has_channels else []),
                ]
                lines.append([row.file, *place, *_cells(main, others, tasks)])
        Console().print(shown_table(titles, lines))
    for row in rows:
        if row.error is not None:
            say(f"error: {row.error}")
    return len(good) < len(rows)


def _parts(row: FilePrediction, *, per_window: bool) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Yield which part of a file, and what was said of it: the whole, then each window if asked for."""
    yield str(len(row.windows)), row.tasks
    for window in row.windows if per_window else ():
        yield f"{window.start_s:.2f}-{window.end_s:.2f} s", window.tasks


def _cells(main: TaskSpec, others: Sequence[TaskSpec], tasks: dict[str, dict[str, Any]]) -> list[str]:
    from metaser.tasks.kinds import kind_of

    if not tasks:
        return ["silent"]
    wide = kind_of(main).wide(tasks[main.name])
    return [*wide.values(), *(kind_of(spec).brief(tasks[spec.name]) for spec in others)]
