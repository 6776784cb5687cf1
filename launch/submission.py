"""From an experiment and a cluster to a queued job: checks, submitting, the record in the run's folder."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from launch.cluster import ClusterConfig, ClusterError
from launch.job import TrainingJob
from launch.sbatch import clean_environment, sbatch_text
from launch.slurm import JOB_IS_LIVE, check_cluster, job_states, run_command, run_for_rows
from metaser.config.load import dump_experiment, load_experiment
from metaser.config.schema import ExperimentConfig
from metaser.continuing import refuse_changes
from metaser.errors import RunError
from metaser.provenance import git_state
from metaser.rundir import RunDir, refuse_crossval, refuse_output_dir
from metaser.runfiles import read_json, reading, write_whole
from metaser.runlock import last_holder, lock_holder
from metaser.sums import sealed_json, sealed_yaml
from shards.shown import shown

if TYPE_CHECKING:
    from submitit import Job, SlurmExecutor


@dataclass(frozen=True)
class Submission:
    """One entry of a run's `jobs/submissions.json`."""

    time: str
    job_id: str
    executor: str
    """`slurm` or `local`, whose job id is a process id."""
    host: str
    command: list[str]
    experiment: str
    """The resolved experiment that the job reads."""
    output: str
    """What the main process says."""
    cluster: dict[str, Any]
    git: dict[str, Any] | None
    """Commit and difference of the code at the time of submission."""


@dataclass(frozen=True)
class _Submissions:
    """What `jobs/submissions.json` holds; earlier versions wrote the list alone."""

    submissions: list[Submission]


_validate_submissions = TypeAdapter(_Submissions | list[Submission]).validate_json


# ---------------------------------------------------------------- checks


def check_run_folder(run: RunDir) -> None:
    """Refuse a run's folder that is in use, or that of a cross-validation; whether it can be written shows later.

    Raises:
        RunError: saying by whom.
        ClusterError: if SLURM does not say whether an earlier job is alive.
    """
    if not refuse_output_dir(run):
        return
    with reading(run.root):
        refuse_crossval(run)
    holder = lock_holder(run)
    job = None if holder is not None else live_job(run)
    in_use = str(holder) if holder is not None else f"SLURM job {job[0]} ({job[1]})" if job is not None else None
    if in_use is not None:
        raise RunError(
            f"run {str(run.root)!r} is in use by {in_use}; stop it with `metaser stop {shlex.quote(str(run.root))}` or "
            "choose another output_dir"
        )


def live_job(run: RunDir) -> tuple[str, str] | None:
    """Return the SLURM job that waits or runs for this run, and SLURM's word for its state; None if there is none.

    It is the one that was submitted last, or the one that trained here last, which plain sbatch may have started.

    Raises:
        ClusterError: if SLURM does not answer.
        RunError: if the run's own record of it is damaged.
    """
    return _first_live(_jobs_of(run))


def visible_job(run: RunDir) -> tuple[str, str] | None:
    """Return what `live_job` does where this host has SLURM's commands, else None; the run's record is read anyway.

    Raises:
        ClusterError: if SLURM does not answer.
        RunError: if the run's own record of it is damaged.
    """
    jobs = _jobs_of(run)
    return _first_live(jobs) if shutil.which("squeue") else None


def hidden_jobs(run: RunDir) -> list[str]:
    """Return the SLURM jobs that may wait or run for this run, of which nothing can be told without SLURM's commands.

    Raises:
        RunError: if the run's own record of them is damaged.
    """
    return [] if shutil.which("squeue") else _jobs_of(run)


def _jobs_of(run: RunDir) -> list[str]:
    last, holder = last_submission(run), last_holder(run)
    jobs = [last.job_id] if last is not None and last.executor == "slurm" else []
    return [*jobs, holder.slurm_job] if holder is not None and holder.slurm_job is not None else jobs


def _first_live(jobs: list[str]) -> tuple[str, str] | None:
    states = job_states(jobs)
    return next(((job, states[job]) for job in jobs if states.get(job) in JOB_IS_LIVE), None)


def check_continues(run: RunDir, experiment: ExperimentConfig) -> None:
    """Refuse to continue a run with another experiment.

    Raises:
        RunError: naming every changed value.
    """
    if run.is_run():
        refuse_changes(load_experiment(run.config), experiment, run)


def prepare_checks(cluster: ClusterConfig, executor: SlurmExecutor, source: str) -> None:
    """Refuse what the cluster cannot give, in our words where we have some, else in SLURM's about the file `source`.

    Raises:
        ClusterError: with the reason.
    """
    check_cluster(cluster)
    with clean_environment():
        try:
            run_command("sbatch", "--test-only", stdin=sbatch_text(executor))
        except ClusterError as error:
            raise ClusterError(f"the cluster must give what {source!r} asks for, but {error}") from error


# ---------------------------------------------------------------- submitting


def write_experiment(run: RunDir, experiment: ExperimentConfig) -> Path:
    """Write the resolved experiment into the run's folder, so that editing its file does not reach a queued job.

    Raises:
        RunError: if the folder cannot be written.
    """
    path = run.submitted_experiment(time.strftime("%Y%m%dT%H%M%S", time.gmtime()))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, sealed_yaml(dump_experiment(experiment)))
    except OSError as error:
        raise RunError(f"output_dir must be writable, but {str(run.root)!r} is not: {error.strerror}") from error
    return path


def prepare_job(
    run: RunDir, experiment: ExperimentConfig, cluster: ClusterConfig, crossval: str | None = None
) -> TrainingJob:
    """Return the job that trains `experiment`; `crossval` is the folder of the cross-validation that it belongs to."""
    return TrainingJob(
        folder=str(Path.cwd()),
        experiment=str(write_experiment(run, experiment).absolute()),
        grace_s=float(cluster.grace_s),
        max_requeues=cluster.max_requeues,
        crossval=crossval,
    )


def submit_slurm(
    executor: SlurmExecutor, cluster: ClusterConfig, runs: Sequence[RunDir], jobs: Sequence[TrainingJob]
) -> list[Submission]:
    """Queue the jobs, several as one array, and note each in its run's folder.

    Raises:
        ClusterError: if SLURM refuses.
        RunError: if the folder cannot be written; nothing stays queued.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    before = _queued_from(executor.folder)

    def cancel() -> None:
        if new := _queued_from(executor.folder) - before:
            run_command("scancel", *sorted(new))

    with _cancelled_on_failure(executor.folder, cancel):
        try:
            with clean_environment():
                if len(jobs) == 1:
                    queued = [executor.submit(jobs[0])]
                else:
                    with executor.batch():
                        queued = [executor.submit(job) for job in jobs]
        except (FailedJobError, FailedSubmissionError) as error:
            raise ClusterError(f"SLURM refused the job: {' '.join(str(error).split())}") from error
        return [_record(*each, cluster, "slurm") for each in zip(runs, jobs, queued, strict=True)]


def _queued_from(folder: Path) -> set[str]:
    """Return this user's jobs whose sbatch files lie in `folder`."""
    rows = run_for_rows(2, "squeue", "--noheader", "--me", "--format=%A|%o")
    return {job for job, command in rows if Path(command).parent == folder}


@contextmanager
def _cancelled_on_failure(folder: Path, cancel: Callable[[], None]) -> Iterator[None]:
    """Cancel what the block has started but not recorded: neither `status` nor `stop` would find it."""
    try:
        yield
    except BaseException as error:
        cancel()
        if isinstance(error, OSError):
            raise RunError(
                f"output_dir must be writable to record a job, but {str(folder)!r} is not: {error.strerror}; nothing "
                "stays submitted"
            ) from error
        raise


def submit_local(cluster: ClusterConfig, run: RunDir, job: TrainingJob) -> tuple[Submission, Job[None]]:
    """Start as many processes on this machine as the cluster's job would have.

    Raises:
        RunError: if the folder cannot be written; nothing stays started.
    """
    import submitit

    started: list[Job[None]] = []

    def end() -> None:
        for local in started:
            os.kill(int(local.job_id), signal.SIGTERM)

    with _cancelled_on_failure(run.jobs, end):
        executor = submitit.LocalExecutor(run.jobs.absolute(), max_num_timeout=cluster.max_requeues)
        executor.update_parameters(
            tasks_per_node=cluster.num_tasks,
            gpus_per_node=cluster.gpus_per_node * cluster.nodes,
            timeout_min=cluster.time_min,
            signal_delay_s=cluster.grace_s,
            stderr_to_stdout=True,
        )
        # As in a job of SLURM's. On two cores the demo's two processes took two minutes with one thread each; with two
        # threads each they were not done after nine.
        os.environ.setdefault("OMP_NUM_THREADS", str(cluster.cpus_per_task))
        with clean_environment():
            started.append(executor.submit(job))
        return _record(run, job, started[0], cluster, "local"), started[0]


def _record(run: RunDir, job: TrainingJob, queued: Job[None], cluster: ClusterConfig, executor: str) -> Submission:
    submission = Submission(
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        job_id=str(queued.job_id),
        executor=executor,
        host=os.uname().nodename,
        command=[shown(argument) for argument in sys.argv],
        experiment=job.experiment,
        output=str(queued.paths.stdout),
        cluster=cluster.model_dump(mode="json"),
        git=git_state(),
    )
    records = [*_submissions(run), submission]
    write_whole(run.submissions, sealed_json(asdict(_Submissions(records))))
    return submission


def _submissions(run: RunDir) -> list[Submission]:
    found = read_json(run.submissions, _validate_submissions) or []
    return found if isinstance(found, list) else found.submissions


def last_submission(run: RunDir) -> Submission | None:
    """Return how the run was submitted last, None if it never was.

    Raises:
        RunError: if the record of it is damaged.
    """
    return next(reversed(_submissions(run)), None)
