"""`metaser stop`: save and stop, wherever the run is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from launch.words import tell

if TYPE_CHECKING:
    from metaser.rundir import RunDir

_LOOK_EVERY_S = 0.5


def stop(
    run: Annotated[str, typer.Argument(help="A run's folder, or that of a cross-validation.")],
    wait: Annotated[bool, typer.Option("--wait", help="Return when nobody trains there any more.")] = False,
) -> None:
    """Ask a run to save at its next step and to stop for good; a job that only waits is taken out of the queue."""
    from launch.verbs.status import runs_of
    from metaser.errors import RunError
    from metaser.runlock import lock_holder

    folders = runs_of(run)
    is_any_asked = False
    problems: list[str] = []
    for folder in folders:
        try:
            done = _ask_to_stop(folder)
        except RunError as error:
            # One damaged fold must not keep the others in training.
            problems.append(str(error))
            continue
        if done is not None:
            is_any_asked = True
            tell(f"{folder.root}: {done}")
    if problems:
        raise RunError("; ".join(problems))
    if not is_any_asked:
        raise RunError(_why_nothing_stops(run, folders))
    while wait and any(lock_holder(folder) is not None for folder in folders):
        time.sleep(_LOOK_EVERY_S)


def _why_nothing_stops(run: str, folders: Sequence[RunDir]) -> str:
    from launch.submission import hidden_jobs

    must = "RUN must be in training or in the queue to be stopped, but"
    jobs = [job for folder in folders for job in hidden_jobs(folder)]
    if not jobs:
        return f"{must} {run!r} is neither"
    return (
        f"{must} nobody trains in {run!r}, and whether its SLURM job {', '.join(jobs)} waits cannot be told without "
        "squeue; ask on a host that has SLURM's commands"
    )


def _ask_to_stop(run: RunDir) -> str | None:
    """Return what was done, None if there is nothing to stop."""
    from launch.slurm import JOB_IS_QUEUED, run_command
    from launch.submission import visible_job
    from metaser.errors import RunError
    from metaser.runlock import lock_holder

    job, state = visible_job(run) or (None, None)
    if job is not None and state in JOB_IS_QUEUED:
        run_command("scancel", job)
        return f"job {job} was {state.lower()} and is cancelled"
    holder = lock_holder(run)
    if holder is None and state != "RUNNING":
        return None
    # A file, because it reaches every host that sees the run, and tells a person's wish from a preemption.
    try:
        run.stop_file.touch()
    except OSError as error:
        raise RunError(f"{run.stop_file} must be writable to stop the run, but is not: {error.strerror}") from error
    return f"{holder or f'job {job}'} will save and stop at its next step"
