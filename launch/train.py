"""Start a training: `metaser train`, and the script for `accelerate launch launch/train.py CONFIG` and torchrun.

Reader processes re-import this file, so nothing heavy is imported at its top.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from metaser.config.schema import ExperimentConfig
    from metaser.distributed import DistInfo
    from metaser.train.stop import StopRequest

if __name__ == "__main__":
    # A launcher puts launch/ on sys.path; our packages lie one level up.
    sys.path[0] = str(Path(__file__).resolve().parents[1])


def train(
    config: Annotated[str, typer.Argument(help="YAML file of the experiment.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changed values, e.g. stages.0.num_steps=9.")] = None,
    resume: Annotated[
        Literal["auto", "never"], typer.Option(help="auto continues a started run; never refuses one.")
    ] = "auto",
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved experiment and stop.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Trace a few steps of every stage into the run's folder `profile`.")
    ] = False,
) -> None:
    """Train every stage of an experiment, then evaluate; continues where it was interrupted."""
    from metaser.config.load import dump_experiment, load_experiment

    experiment = load_experiment(config, overrides or [])
    if print_config:
        from launch.words import tell_data

        tell_data(dump_experiment(experiment))
        return

    from launch.console import show_report
    from metaser.distributed import dist_info

    info = dist_info(expected_num_processes=experiment.parallel.expected_num_processes)
    if start_training(experiment, info, resume, profile=profile) and info.is_main:
        show_report(experiment.output_dir, experiment.main_task)


def start_training(
    experiment: ExperimentConfig,
    info: DistInfo,
    resume: Literal["auto", "never"],
    *,
    profile: bool = False,
    stop_request: StopRequest | None = None,
) -> bool:
    """Train in this process, showing progress; return False when stopped on request."""
    from launch.console import show_training
    from metaser.train.run import train as run_training
    from shards.parentdeath import terminate_with_parent

    if info.num_processes > 1:
        terminate_with_parent()
    with show_training(experiment, info) as on_metrics:
        return run_training(
            experiment, info, resume=resume, on_metrics=on_metrics, profile=profile, stop_request=stop_request
        )


if __name__ == "__main__":
    from launch.exits import App, exit_with_code

    app = App(name="launch/train.py", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(train)
    exit_with_code(app)
