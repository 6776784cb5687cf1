"""`metaser status`: what runs are doing."""

from __future__ import annotations

import json as json_module
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from metaser.progress import Progress
    from metaser.rundir import RunDir


@dataclass(frozen=True)
class RunState:
    """One run's row."""

    run: str
    state: str
    """finished, stopped, running (here or on another host), or SLURM's word for its job in lower case."""
    job: str | None
    progress: Progress


def status(
    runs: Annotated[list[str], typer.Argument(help="Folders of runs, or of cross-validations.")],
    json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
) -> None:
    """Show stage, step, speed, time left, last checkpoint and job of each run."""
    states = [read_state(run) for path in runs for run in runs_of(path)]
    if json:
        print(json_module.dumps([asdict(state) for state in states], indent=1))
    else:
        _show(states)


def runs_of(path: str) -> list[RunDir]:
    """Return the run in a folder, or the started or submitted folds of the cross-validation there.

    Raises:
        RunError: if it holds neither.
    """
    from metaser.errors import RunError
    from metaser.eval.crossval import is_crossval
    from metaser.rundir import RunDir

    root = Path(path)
    if is_crossval(root):
        return [RunDir(root / f"fold{fold}") for fold in _fold_numbers(root)]
    run = RunDir(root)
    if not run.is_run() and not run.jobs.is_dir():
        raise RunError(f"RUN must be a run's folder, but {path!r} holds neither config.yaml nor a submission")
    return [run]


def _fold_numbers(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("fold")) for path in root.glob("fold[0-9]*") if path.is_dir())


def read_state(run: RunDir) -> RunState:
    """Return what the run's folder and, where there is one, SLURM say of a run."""
    from launch.submission import live_job
    from metaser.progress import read_progress

    progress = read_progress(run)
    job, word = (live_job(run) if shutil.which("squeue") else None) or (None, None)
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
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        "run", "state", "job", "stage", "step", "loss", "audio-s/s", "left", "last checkpoint", box=box.SIMPLE_HEAD
    )
    for state in states:
        now = state.progress
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
        table.add_row(*map(escape, cells))
    console = Console()
    if not console.is_terminal:
        # In a file or a pipe nothing is gained by breaking paths into lines.
        console.width = max(console.width, 300)
    console.print(table)


def duration(seconds: float) -> str:
    """Return seconds as words of two units: 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    whole = round(seconds)
    for size, unit, small, small_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{whole} s"
