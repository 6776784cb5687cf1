"""What a person sees: progress on a terminal, plain lines in a log file; results as tables on stdout."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from shards.shown import ShownRecords, shown

if TYPE_CHECKING:
    from metaser.config.schema import ExperimentConfig
    from metaser.distributed import DistInfo
    from metaser.tracking import OnMetrics

PLAIN_LINE_EVERY_STEPS = 20


@contextmanager
def plain_logging(*, is_main: bool = True) -> Iterator[Console]:
    """Send log messages to stderr: coloured on a terminal, plain lines elsewhere."""
    from transformers.utils.logging import disable_progress_bar

    # Its bars for loading and saving one small file would stand between our lines.
    disable_progress_bar()
    # What it and other libraries say holds words of the files that they read.
    for own in logging.getLogger("transformers").handlers:
        own.addFilter(ShownRecords())
    logging.captureWarnings(True)
    console = Console(stderr=True)
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, rich_tracebacks=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for package in ("metaser", "shards", "launch"):
        logging.getLogger(package).setLevel(logging.INFO if is_main else logging.WARNING)
    handler.addFilter(ShownRecords())
    root.addHandler(handler)
    try:
        yield console
    finally:
        root.removeHandler(handler)
        logging.captureWarnings(False)


@contextmanager
def show_training(experiment: ExperimentConfig, info: DistInfo) -> Iterator[OnMetrics]:
    """Show a training's messages and its progress; yields what wants to hear of every metrics line."""
    with plain_logging(is_main=info.is_main) as console:
        if not info.is_main:
            yield lambda line: None
        elif not console.is_terminal:
            yield _log_line
        else:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            with Progress(*columns, console=console) as progress:
                yield _bars(progress, experiment)


def _bars(progress: Progress, experiment: ExperimentConfig) -> OnMetrics:
    bars: dict[int, TaskID] = {}

    def update(line: dict[str, Any]) -> None:
        if "loss" not in line:
            return
        number = line["stage"]
        stage = experiment.stages[number - 1]
        if number not in bars:
            bars[number] = progress.add_task(f"stage {number} {shown(stage.name)}", total=stage.num_steps, note="")
        note = f"loss {line['loss']:.3f}  {line['audio_s_per_s']:.0f} audio-s/s"
        progress.update(bars[number], completed=line["step"], note=note)

    return update


def _log_line(line: dict[str, Any]) -> None:
    if "loss" in line and (line["step"] % PLAIN_LINE_EVERY_STEPS == 0 or line["step"] == 1):
        logging.getLogger("launch").info(
            "stage %d step %d: loss %.4f, %.0f audio-s/s",
            line["stage"],
            line["step"],
            line["loss"],
            line["audio_s_per_s"],
        )


def show_report(run_folder: str | Path, main_task: str) -> None:
    """Print the table of a run's report to stdout, if the run has one."""
    from metaser.eval.report import read_report, render_table
    from metaser.rundir import RunDir

    report = read_report(RunDir(Path(run_folder)).report)
    if report is not None:
        render_table(report, main_task, Console())
