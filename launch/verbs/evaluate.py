"""`metaser evaluate`: a run's best model on a split."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.words import tell_json


def evaluate(
    run: Annotated[str, typer.Argument(help="A run's folder.")],
    shards: Annotated[str | None, typer.Option(help="Other shards than the run was trained on.")] = None,
    split: Annotated[str, typer.Option(help="train, dev, test, or all.")] = "test",
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Judge what the run was trained on, too; the report says so.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Evaluate a run's best model and print the table."""
    from rich.console import Console

    from launch.console import plain_logging
    from metaser.config.load import load_experiment
    from metaser.distributed import DistInfo
    from metaser.eval.protocol import evaluate_run
    from metaser.eval.report import render_table
    from metaser.rundir import existing_run

    run_dir = existing_run(run)
    config = load_experiment(run_dir.config)
    with plain_logging():
        report = evaluate_run(
            run_dir, config, DistInfo(0, 1, 0), shards=shards, split=split, allow_overlap=allow_overlap
        )
    if json:
        tell_json(report, indent=1)
    else:
        render_table(report, config.main_task, Console())
