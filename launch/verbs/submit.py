"""`metaser submit`: a training as a SLURM job."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.clusteroptions import with_cluster_options
from launch.words import say, tell, tell_data

if TYPE_CHECKING:
    from launch.submission import Submission
    from metaser.rundir import RunDir

_LOOK_EVERY_S = 2.0
"""For new lines; the scheduler is asked less often."""
_ASK_EVERY_S = 10.0


@with_cluster_options
def submit(
    config: Annotated[str, typer.Argument(help="YAML file of the experiment.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changed values, e.g. stages.0.num_steps=9.")] = None,
    cluster: Annotated[str, typer.Option(help="YAML file of the cluster, e.g. configs/cluster/gpu.yaml.")] = ...,  # type: ignore[assignment]
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the sbatch file and stop.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Show what the job says until it ends.")] = False,
    local: Annotated[bool, typer.Option("--local", help="As many processes on this machine, without SLURM.")] = False,
    changes: tuple[str, ...] = (),
) -> None:
    """Queue a training on a SLURM cluster; the same command continues a run that was stopped."""
    from launch import submission
    from launch.cluster import load_cluster
    from launch.sbatch import sbatch_text, slurm_executor
    from metaser.config.load import load_experiment
    from metaser.errors import ConfigError
    from metaser.rundir import RunDir

    if dry_run and (local or follow):
        raise ConfigError(f"--dry-run starts nothing, so it must come without --{'local' if local else 'follow'}")
    where = load_cluster(cluster, changes)
    expected = f"parallel.expected_num_processes={where.num_tasks}"
    experiment = load_experiment(config, [*(overrides or []), expected])
    run = RunDir(Path(experiment.output_dir))
    executor = slurm_executor(where, run.jobs.absolute(), f"metaser-{run.root.name}")
    if dry_run:
        tell_data(f"{sbatch_text(executor)}\n")
        return
    if not local:
        submission.prepare_checks(where, executor, cluster)
    submission.check_run_folder(run)
    submission.check_continues(run, experiment)
    job = submission.prepare_job(run, experiment, where)
    if local:
        done, started = submission.submit_local(where, run, job)
        _say_where(done, run)
        if follow:
            follow_output(Path(done.output), started.done)
            _end(run, done)
        return
    (done,) = submission.submit_slurm(executor, where, [run], [job])
    _say_where(done, run)
    if follow:
        follow_output(Path(done.output), lambda: job_has_ended(done.job_id))
        _end(run, done)


def _say_where(done: Submission, run: RunDir) -> None:
    what = "job" if done.executor == "slurm" else "local job"
    tell(f"{what} {done.job_id}, run {run.root}")
    root = shlex.quote(str(run.root))
    say(
        f"  what it says   tail -F {shlex.quote(done.output)}",
        f"  how far it is  metaser status {root}",
        f"  curves         tensorboard --logdir {root}",
        f"  stop it        metaser stop {root}",
    )


def job_has_ended(job_id: str) -> bool:
    """Return whether SLURM has nothing more to do for the job."""
    from launch.slurm import JOB_IS_LIVE, job_states

    return job_states([job_id]).get(job_id, "FORGOTTEN") not in JOB_IS_LIVE


def follow_output(path: Path, has_ended: Callable[[], bool]) -> None:
    """Copy what is appended to `path` to stderr until `has_ended()`; Ctrl-C leaves, and the job goes on."""
    position, ask_at = 0, 0.0
    try:
        while True:
            # Before reading, so that nothing said at the end is missed.
            is_over = False
            if time.monotonic() >= ask_at:
                ask_at, is_over = time.monotonic() + _ASK_EVERY_S, has_ended()
            if path.exists():
                with path.open("rb") as file:
                    file.seek(position)
                    # A line that is not at its end comes next time, or when all is over.
                    data = file.read()
                    data = data if is_over else data[: data.rfind(b"\n") + 1]
                    position += len(data)
                if data:
                    say(*data.decode(errors="replace").removesuffix("\n").split("\n"))
            if is_over:
                return
            time.sleep(_LOOK_EVERY_S)
    except KeyboardInterrupt:
        say("", "the job goes on")
        raise typer.Exit from None


def _end(run: RunDir, done: Submission) -> None:
    from launch.cluster import ClusterError
    from metaser.progress import is_finished

    if not is_finished(run):
        raise ClusterError(
            f"job {done.job_id} must have finished run {str(run.root)!r}, but ended before that; see {done.output}, "
            "and submit again to continue"
        )
