"""`metaser baseline`: a linear model in place of a training, judged by the same report."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


def baseline(
    kind: Annotated[
        Literal["functionals", "probe"],
        typer.Argument(help="62 acoustic functionals, or a layer of the experiment's encoder as it is."),
    ],
    config: Annotated[str, typer.Argument(help="YAML file of the experiment.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changed values, e.g. output_dir=runs/probe.")] = None,
) -> None:
    """Fit a logistic regression to an experiment's training utterances, choose on dev, judge and print the table."""
    from rich.console import Console

    from launch.console import plain_logging
    from metaser.config.load import load_experiment
    from metaser.distributed import DistInfo
    from metaser.eval.baseline import judge_baseline
    from metaser.eval.report import render_table
    from metaser.processes import Processes

    experiment = load_experiment(config, overrides or [])
    with plain_logging():
        processes = Processes(experiment.parallel, DistInfo(0, 1, 0))
        try:
            report = judge_baseline(experiment, kind, processes)
        finally:
            processes.close()
    render_table(report, experiment.main_task, Console())
