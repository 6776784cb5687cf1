"""`metaser tune`: the fastest settings that fit this machine."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Annotated

import typer

from launch.words import say, tell, tell_data

if TYPE_CHECKING:
    from metaser.train.tuning import Outcome, Search, Settings


def tune(
    config: Annotated[str, typer.Argument(help="YAML file of the experiment.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changed values, e.g. data.batch_utterances=64.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, max=86_400, help="How long to search; nothing new is begun afterwards.")
    ] = 240,
) -> None:
    """Find the micro-batches, readers, checkpointing and compilation with which an experiment trains fastest here.

    Steps of every stage are measured in one process, whatever number will train: micro-batch seconds hold for each
    process. What is learned is not touched, and nothing is written.
    """
    from launch.console import plain_logging
    from metaser.config.load import load_experiment

    experiment = load_experiment(config, overrides or [])
    _start_server()
    with plain_logging():
        from metaser.distributed import dist_info
        from metaser.errors import TrainingError
        from metaser.train.tune import tune as search_settings

        if (num_processes := dist_info().num_processes) > 1:
            raise TrainingError(
                f"metaser tune measures one process, but {num_processes} were started; start it without a launcher"
            )
        search = search_settings(experiment, seconds=seconds, on_outcome=_say_outcome)
    _show(search)


def _start_server() -> None:
    """Start the process that trials are forked from: it imports for all, while this one does."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["metaser.train.trial"])
    forkserver.ensure_running()


def _say_outcome(settings: Settings, outcome: Outcome) -> None:
    cells = dict(zip(_TITLES, _cells(settings, outcome), strict=True))
    say(", ".join(f"{title} {cell}" for title, cell in cells.items() if cell and title != "note") + _note(outcome))


def _note(outcome: Outcome) -> str:
    return f": {outcome.problem}" if outcome.problem else ""


_TITLES = ("micro-batch s", "checkpointing", "compiled", "readers", "audio-s/s", "step s", "memory GiB", "note")


def _cells(settings: Settings, outcome: Outcome, note: str = "") -> list[str]:
    numbers = ["", "", ""]
    if outcome.fits:
        numbers = [f"{outcome.audio_s_per_s:.4g}", f"{outcome.step_s:.3g}", f"{outcome.memory_gib:.2f}"]
    return [
        f"{settings.max_micro_batch_s:g}",
        "yes" if settings.activation_checkpointing else "no",
        "yes" if settings.compile_layers else "no",
        str(settings.num_workers),
        *numbers,
        outcome.problem or note,
    ]


def _show(search: Search) -> None:
    from rich import box
    from rich.console import Console

    from metaser.train.tuning import recommended
    from shards.shown import shown_table
    from shards.yamltext import dump_yaml

    best = recommended(search.measured)
    rows = [
        _cells(settings, outcome, "recommended" if settings == best else "")
        for settings, outcome in search.measured.items()
    ]
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 300)
    console.print(shown_table(_TITLES, rows, box=box.SIMPLE_HEAD))
    if search.left_out:
        tell(f"# left out, because {search.seconds:g} s were over: {', '.join(search.left_out)}")
    if best is not None:
        tell_data(dump_yaml(best.to_tree()))
