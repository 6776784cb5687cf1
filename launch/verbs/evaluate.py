"""`metaser evaluate`: a run's best model on a split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.words import tell_json

if TYPE_CHECKING:
    from metaser.config.schema import ExperimentConfig


def evaluate(
    run: Annotated[str, typer.Argument(help="A run's folder; with --predictions or --hf an experiment's YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Of that file: changed values.")] = None,
    shards: Annotated[str | None, typer.Option(help="Other shards than the run was trained on.")] = None,
    split: Annotated[str, typer.Option(help="train, dev, test, or all.")] = "test",
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Judge what the run was trained on, too; the report says so.")
    ] = False,
    predictions: Annotated[
        str | None, typer.Option(help="Judge this table instead: key, and prediction or a column for each label.")
    ] = None,
    hf: Annotated[str | None, typer.Option(help="Judge this audio classifier of transformers instead.")] = None,
    labels: Annotated[list[str] | None, typer.Option(help="What its words mean: WORD=LABEL,...")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Evaluate a run's best model and print the table."""
    from launch.console import plain_logging
    from metaser.config.load import load_experiment
    from metaser.distributed import DistInfo
    from metaser.errors import ConfigError
    from metaser.eval.protocol import evaluate_run
    from metaser.rundir import existing_run

    if predictions is not None or hf is not None:
        if shards is not None or allow_overlap or (predictions is not None and hf is not None):
            raise ConfigError("--predictions and --hf must come alone, without --shards and --allow-overlap")
        config = load_experiment(run, overrides or [])
        with plain_logging():
            report = _judge_foreign(config, predictions, hf, labels or [], split)
        _tell(report, config.main_task, json=json)
        return
    if overrides or labels:
        raise ConfigError(
            f"changed values and --labels belong to --predictions or --hf, got {[*(overrides or []), *(labels or [])]}"
        )
    run_dir = existing_run(run)
    config = load_experiment(run_dir.config)
    with plain_logging():
        report = evaluate_run(
            run_dir, config, DistInfo(0, 1, 0), shards=shards, split=split, allow_overlap=allow_overlap
        )
    _tell(report, config.main_task, json=json)


def _judge_foreign(
    config: ExperimentConfig, predictions: str | None, hf: str | None, labels: list[str], split: str
) -> dict[str, Any]:
    from metaser.distributed import DistInfo
    from metaser.eval.foreign import classifier_scores, judge_scores, table_scores
    from metaser.processes import Processes
    from shards.corpora.said import labels_said

    words = labels_said(labels)
    if predictions is not None:
        return judge_scores(
            config, table_scores(Path(predictions), words), f"judged from {Path(predictions).name}", split=split
        )
    processes = Processes(config.parallel, DistInfo(0, 1, 0))
    try:
        scores = classifier_scores(str(hf), words, config, processes.device)
        return judge_scores(config, scores, f"the classifier in {Path(str(hf)).name}", split=split)
    finally:
        processes.close()


def _tell(report: dict[str, Any], main_task: str, *, json: bool) -> None:
    from rich.console import Console

    from metaser.eval.report import render_table

    if json:
        tell_json(report, indent=1)
    else:
        render_table(report, main_task, Console())
