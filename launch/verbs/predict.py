"""`metaser predict`: emotion probabilities for audio files."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from launch.words import say, tell_data, tell_json

if TYPE_CHECKING:
    from metaser.predict import FilePrediction


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
) -> None:
    """Print what a trained model says of audio files."""
    from launch.console import plain_logging
    from metaser.predict import choose_channel, load_model, predict_files
    from metaser.windows import choose_windows

    with plain_logging():
        chosen = choose_channel(channel)
        loaded = load_model(model)
        windowing = choose_windows(loaded, window, overlap)
        predictions = _noted(predict_files(loaded, audio, windowing=windowing, channel=chosen))
        if output_format == "jsonl":
            failed = _print_jsonl(predictions)
        elif output_format == "csv":
            columns = [f"{spec.name}.{column}" for spec in loaded.task_specs for column in _columns(spec)]
            failed = _print_csv(predictions, columns, per_window=per_window)
        else:
            failed = _print_table(predictions, loaded.config.main_task, per_window=per_window)
    if failed:
        raise typer.Exit(2)


def _noted(predictions: Iterator[FilePrediction]) -> Iterator[FilePrediction]:
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
    # Last, so that a task of one of these names keeps its place.
    return line | prediction.tasks


def _columns(spec: Any) -> list[str]:
    if spec.kind == "classification":
        return ["label", *(_share_column(label) for label in spec.labels)]
    return ["text"] if spec.kind == "ctc" else list(spec.labels)


def _share_column(label: str) -> str:
    # A class may be called so, too.
    return "probability.label" if label == "label" else label


def _print_csv(predictions: Iterator[FilePrediction], columns: list[str], *, per_window: bool) -> bool:
    from metaser.eval.predictions import csv_line
    from shards.shown import shown

    # A program reads line ends in a name, where a terminal would obey them.
    is_read_by_person = sys.stdout.isatty()

    def write(cells: Iterable[Any]) -> None:
        tell_data(csv_line(shown(cell) if is_read_by_person and isinstance(cell, str) else cell for cell in cells))

    failed = False
    times = ["start_s", "end_s"] if per_window else []
    names = ["file", "duration_s", *columns, "error", "channel", "num_windows", *times]
    write(names)
    for prediction in predictions:
        failed |= prediction.error is not None
        row = {
            "file": prediction.file,
            "duration_s": prediction.duration_s,
            "error": prediction.error,
            "channel": prediction.channel,
            "num_windows": len(prediction.windows) or None,
        }
        if per_window and prediction.windows:
            for window in prediction.windows:
                times_s = {"start_s": window.start_s, "end_s": window.end_s}
                write(map((row | times_s | _csv_cells(window.tasks)).get, names))
        else:
            write(map((row | _csv_cells(prediction.tasks)).get, names))
    return failed


def _csv_cells(tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for task, values in tasks.items():
        shares = values.get("probabilities", {})
        cells |= {f"{task}.{name}": value for name, value in values.items() if name != "probabilities"}
        cells |= {f"{task}.{_share_column(label)}": share for label, share in shares.items()}
    return cells


def _print_table(predictions: Iterator[FilePrediction], main_task: str, *, per_window: bool) -> bool:
    from rich.console import Console

    from shards.shown import shown_table

    rows = list(predictions)
    good = [row for row in rows if row.error is None]
    if good:
        main = good[0].tasks[main_task]
        labels = list(main.get("probabilities", {}))
        others = [task for task in good[0].tasks if task != main_task]
        has_channels = any(row.channel is not None for row in good)
        has_windows = any(len(row.windows) > 1 for row in good)
        where = [*(["channel"] if has_channels else []), *(["windows"] if has_windows or per_window else [])]
        titles = ["file", *where, *([main_task, *labels] if labels else list(main)), *others]
        lines = []
        for row in good:
            for part, tasks in _parts(row, per_window=per_window):
                place = [
                    *([str(row.channel or "")] if has_channels else []),
                    *([part] if len(where) > has_channels else []),
                ]
                lines.append([row.file, *place, *_cells(tasks, main_task, labels, others)])
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


def _cells(tasks: dict[str, dict[str, Any]], main_task: str, labels: list[str], others: list[str]) -> list[str]:
    if not tasks:
        return ["silent"]
    values = tasks[main_task]
    if labels:
        main = [values["label"], *(f"{values['probabilities'][label]:.3f}" for label in labels)]
    else:
        main = [f"{value:.3f}" for value in values.values()]
    return [*main, *(_brief(tasks[task]) for task in others)]


def _brief(values: dict[str, Any]) -> str:
    if "label" in values:
        return f"{values['label']} {values['probabilities'][values['label']]:.2f}"
    return values["text"] if "text" in values else " ".join(f"{value:.2f}" for value in values.values())
