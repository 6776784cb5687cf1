"""`metaser predict`: emotion probabilities for audio files."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from metaser.predict import FilePrediction


def predict(
    model: Annotated[str, typer.Argument(help="A run's folder or an exported model's.")],
    audio: Annotated[list[str], typer.Argument(help="Audio files: WAV, FLAC, MP3, OGG, ... at any rate.")],
    output_format: Annotated[Literal["table", "csv", "jsonl"], typer.Option("--format")] = "table",
) -> None:
    """Print what a trained model says of audio files."""
    from launch.console import plain_logging
    from metaser.predict import load_model, predict_files

    with plain_logging():
        loaded = load_model(model)
        main_task = loaded.config.main_task
        if output_format == "jsonl":
            failed = _print_jsonl(predict_files(loaded, audio))
        elif output_format == "csv":
            columns = [f"{spec.name}.{column}" for spec in loaded.task_specs for column in _columns(spec)]
            failed = _print_csv(predict_files(loaded, audio), columns)
        else:
            failed = _print_table(predict_files(loaded, audio), main_task)
    if failed:
        raise typer.Exit(2)


def _print_jsonl(predictions: Any) -> bool:
    failed = False
    for prediction in predictions:
        failed |= prediction.error is not None
        line = {"file": prediction.file, "duration_s": prediction.duration_s, **prediction.tasks}
        if prediction.error is not None:
            line = {"file": prediction.file, "error": prediction.error}
        print(json.dumps(line, ensure_ascii=False), flush=True)
    return failed


def _columns(spec: Any) -> list[str]:
    if spec.kind == "classification":
        return ["label", *spec.labels]
    return ["text"] if spec.kind == "ctc" else list(spec.labels)


def _print_csv(predictions: Any, columns: list[str]) -> bool:
    failed = False
    writer = csv.DictWriter(sys.stdout, ["file", "duration_s", *columns, "error"], restval="", lineterminator="\n")
    writer.writeheader()
    for prediction in predictions:
        failed |= prediction.error is not None
        row = {"file": prediction.file, "duration_s": prediction.duration_s, "error": prediction.error}
        for task, values in prediction.tasks.items():
            flat = {**values, **values.get("probabilities", {})}
            row |= {f"{task}.{name}": value for name, value in flat.items() if name != "probabilities"}
        writer.writerow(row)
    return failed


def _print_table(predictions: Any, main_task: str) -> bool:
    from rich.console import Console
    from rich.table import Table

    rows: list[FilePrediction] = list(predictions)
    good = [row for row in rows if row.error is None]
    if good:
        main = good[0].tasks[main_task]
        labels = list(main.get("probabilities", {}))
        others = [task for task in good[0].tasks if task != main_task]
        table = Table("file", *([main_task, *labels] if labels else list(main)), *others)
        for row in good:
            values = row.tasks[main_task]
            cells = (
                [values["label"], *(f"{values['probabilities'][label]:.3f}" for label in labels)]
                if labels
                else [f"{value:.3f}" for value in values.values()]
            )
            table.add_row(row.file, *cells, *(_brief(row.tasks[task]) for task in others))
        Console().print(table)
    for row in rows:
        if row.error is not None:
            print(f"error: {row.error}", file=sys.stderr)
    return len(good) < len(rows)


def _brief(values: dict[str, Any]) -> str:
    if "label" in values:
        return f"{values['label']} {values['probabilities'][values['label']]:.2f}"
    return values["text"] if "text" in values else " ".join(f"{value:.2f}" for value in values.values())
