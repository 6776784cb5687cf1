"""`metaser status`: what runs are doing."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.words import say, tell_json

if TYPE_CHECKING:
    from metaser.progress import RunProgress
    from metaser.rundir import RunDir


@dataclass(frozen=True)
class RunState:
    """One run's row."""

    run: str
    state: str
    """finished, stopped, running (here or on another host), SLURM's word for its job in lower case, or damaged."""
    job: str | None
    progress: RunProgress | None
    damage: str | None = None
    """Which of its files cannot be read, and why; without these nothing else is known."""


def status(
    runs: Annotated[list[str], typer.Argument(help="Folders of runs, or of cross-validations.")],
    json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
) -> None:
    """Show stage, step, speed, time left, last checkpoint and job of each run."""
    from metaser.errors import RunError

    states: list[RunState] = []
    refused: dict[str, RunError] = {}
    for path in runs:
        try:
            states += _states_of(path)
        except RunError as error:
            refused[path] = error
    if not states:
        raise RunError("; ".join(map(str, refused.values())))
    for why in refused.values():
        say(f"left out: {why}")
    if json:
        tell_json([_finite(asdict(state)) for state in states], indent=1)
    else:
        _show(states)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as JSON has them: of a step that was skipped, the loss is no number."""
    progress = values["progress"]
    if progress is not None and progress["loss"] is not None and not math.isfinite(progress["loss"]):
        values = {**values, "progress": {**progress, "loss": None}}
    return values


def _states_of(path: str) -> list[RunState]:
    from metaser.errors import ConfigError, RunError
    from metaser.eval.crossval import read_crossval
    from metaser.rundir import RunDir

    states = [read_state(run) for run in runs_of(path)]
    root = RunDir(Path(path))
    if root.is_crossval():
        try:
            read_crossval(root.root)
        except (ConfigError, RunError) as error:
            return [RunState(path, "damaged", None, None, str(error)), *states]
    if not states:
        raise RunError(f"RUN must be in training or have been, but of the cross-validation {path!r} no fold has")
    return states


def runs_of(path: str) -> list[RunDir]:
    """Return the run in a folder, or the started or submitted folds of the cross-validation there.

    Raises:
        RunError: if it holds neither, or cannot be read.
    """
    from metaser.errors import RunError
    from metaser.eval.crossval import fold_runs
    from metaser.rundir import RunDir, refuse_no_folder
    from metaser.runfiles import reading

    run = RunDir(Path(path))
    refuse_no_folder(path)
    with reading(run.root):
        if run.is_crossval():
            return list(fold_runs(run.root).values())
        if not run.is_run() and not run.jobs.is_dir():
            raise RunError(f"RUN must be a run's folder, but {path!r} holds neither config.yaml nor a submission")
    return [run]


def read_state(run: RunDir) -> RunState:
    """Return what the run's folder and, where there is one, SLURM say of a run; or that the folder is damaged."""
    from launch.submission import visible_job
    from metaser.errors import ConfigError, RunError
    from metaser.progress import read_progress
    from metaser.runfiles import reading

    try:
        with reading(run.root):
            progress = read_progress(run)
            job, word = visible_job(run) or (None, None)
    except (ConfigError, RunError) as error:
        return RunState(str(run.root), "damaged", None, None, str(error))
    if progress.is_finished and progress.holder is None:
        state = "finished"
    elif word is not None:
        state = word.lower()
    elif progress.holder is not None:
        state = "running"
    else:
        state = "stopped"
    return RunState(str(run.root), state, job, progress)


def _show(states: list[RunState]) -> None:
    from rich import box
    from rich.console import Console

    from shards.shown import shown_table

    titles = ["run", "state", "job", "stage", "step", "loss", "audio-s/s", "left", "last checkpoint"]
    if any(state.damage for state in states):
        titles.append("damage")
    rows = []
    for state in states:
        now = state.progress
        if now is None:
            rows.append([state.run, state.state, *["-"] * 7, state.damage or ""])
            continue
        checkpoint = now.checkpoint
        cells = [
            state.run,
            state.state,
            state.job or (str(now.holder) if now.holder else "-"),
            f"{now.stage} {now.stage_name}" if now.stage else "-",
            f"{now.step}/{now.num_steps}" if now.stage else "-",
            "-" if now.loss is None else f"{now.loss:.4g}",
            "-" if now.audio_s_per_s is None else f"{now.audio_s_per_s:.0f}",
            "-" if now.remaining_s is None or state.state == "finished" else duration(now.remaining_s),
            f"{checkpoint.stage}/{checkpoint.step}, {duration(checkpoint.age_s)} ago" if checkpoint else "-",
        ]
        rows.append(cells)
    console = Console()
    if not console.is_terminal:
        # In a file or a pipe nothing is gained by breaking paths into lines.
        console.width = max(console.width, 300)
    console.print(shown_table(titles, rows, box=box.SIMPLE_HEAD))


def duration(seconds: float) -> str:
    """Return seconds as words of two units: 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    whole = round(seconds)
    for size, unit, small, small_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{whole} s"
