"""From an experiment and a cluster to a queued job: checks, the sbatch file, the record in the run's folder."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.cluster import JOB_IS_LIVE, PASSED_VARIABLES, ClusterConfig, ClusterError, ask, check_cluster, job_states
from launch.slurm import TrainingJob
from metaser.config.load import dump_experiment
from metaser.config.schema import ExperimentConfig
from metaser.errors import RunError
from metaser.provenance import git_state
from metaser.rundir import RunDir, last_holder, lock_holder

if TYPE_CHECKING:
    from submitit import Job, SlurmExecutor

_LAUNCHER_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
RECORDS = "submissions.json"


@dataclass(frozen=True)
class Submission:
    """One line of a run's `jobs/submissions.json`."""

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


# ---------------------------------------------------------------- the sbatch file


def slurm_executor(cluster: ClusterConfig, folder: Path, name: str) -> SlurmExecutor:
    """Return submitit's executor, which asks for what `cluster` says and lets nothing else of this shell through."""
    import submitit

    class Executor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            """The sbatch file can be shown on a host without SLURM; submitting is refused before, in our words."""
            return 2

    executor = Executor(folder, max_num_timeout=cluster.max_requeues)
    further: dict[str, str | int | bool] = {
        "export": ",".join((*PASSED_VARIABLES, *cluster.pass_environment)),
        "requeue": True,
        **cluster.sbatch,
    }
    settings: dict[str, Any] = {
        "job_name": name,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.num_tasks_per_node,
        "gpus_per_node": cluster.gpus_per_node or None,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": None if cluster.mem_gb is None else f"{round(cluster.mem_gb * 1024)}M",
        "time": cluster.time_min,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "signal_delay_s": cluster.grace_s,
        "array_parallelism": cluster.max_parallel_folds,
        "stderr_to_stdout": True,
        "wckey": None,
        "setup": list(_setup(cluster)),
        "srun_args": list(_srun_arguments(cluster)),
        "additional_parameters": further,
    }
    executor.update_parameters(**{key: value for key, value in settings.items() if value is not None})
    # submitit fills in its own name here where nothing is given.
    executor.parameters["wckey"] = None
    return executor


def _setup(cluster: ClusterConfig) -> Iterator[str]:
    yield from (f"module load {shlex.quote(module)}" for module in cluster.modules)
    if cluster.environment_file is not None:
        yield f"source {shlex.quote(str(Path(cluster.environment_file).absolute()))}"
    # srun does not take it over from sbatch since SLURM 22.05: without it every task gets one core.
    yield f"export SRUN_CPUS_PER_TASK={cluster.cpus_per_task}"


def _srun_arguments(cluster: ClusterConfig) -> Iterator[str]:
    # The tasks see what the lines above have set; of the submitting shell that holds only what --export let through.
    yield from ("--export=ALL", "--kill-on-bad-exit=1")
    if cluster.container_image is not None:
        here = Path.cwd()
        yield from (f"--container-image={cluster.container_image}", f"--container-mounts={here}:{here}")
        yield f"--container-workdir={here}"


def sbatch_text(executor: SlurmExecutor) -> str:
    """Return the sbatch file that `executor` would submit."""
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


# ---------------------------------------------------------------- checks


def check_run_folder(run: RunDir) -> None:
    """Refuse a run's folder that cannot be written or is in use.

    Raises:
        RunError: saying by whom.
        ClusterError: if SLURM does not say whether an earlier job is alive.
    """
    try:
        run.jobs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run.jobs):
            pass
    except OSError as error:
        raise RunError(f"output_dir must be writable, but {str(run.root)!r} is not: {error.strerror}") from error
    holder = lock_holder(run)
    job = None if holder is not None else live_job(run)
    in_use = str(holder) if holder is not None else f"SLURM job {job[0]} ({job[1]})" if job is not None else None
    if in_use is not None:
        raise RunError(
            f"run {str(run.root)!r} is in use by {in_use}; stop it with `metaser stop {run.root}` or choose another "
            "output_dir"
        )


def live_job(run: RunDir) -> tuple[str, str] | None:
    """Return the SLURM job that waits or runs for this run, and SLURM's word for its state; None if there is none.

    It is the one that was submitted last, or the one that trained here last, which plain sbatch may have started.

    Raises:
        ClusterError: if SLURM does not answer.
    """
    last, holder = last_submission(run), last_holder(run)
    jobs = [last.job_id] if last is not None and last.executor == "slurm" else []
    if holder is not None and holder.slurm_job is not None:
        jobs.append(holder.slurm_job)
    states = job_states(jobs)
    return next(((job, states[job]) for job in jobs if states.get(job) in JOB_IS_LIVE), None)


def check_continues(run: RunDir, experiment: ExperimentConfig) -> None:
    """Refuse to continue a run with another experiment.

    Raises:
        RunError: naming every changed value.
    """
    if run.is_run():
        from metaser.config.load import load_experiment
        from metaser.train.run import refuse_changes

        refuse_changes(load_experiment(run.config), experiment, run)


def check_sbatch(text: str) -> None:
    """Let SLURM itself judge the sbatch file, without queueing it.

    Raises:
        ClusterError: with SLURM's words.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(text)
        file.flush()
        with clean_environment():
            ask("sbatch", "--test-only", file.name)


@contextmanager
def clean_environment() -> Iterator[None]:
    """Hide what would change the meaning of an sbatch file: options in variables, and the job we may be in."""
    prefixes = ["SBATCH_", "SRUN_", "SUBMITIT_"]
    if "SLURM_JOB_ID" in os.environ:
        prefixes.append("SLURM_")
    hidden = {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(tuple(prefixes)) and name != "SLURM_CONF") or name in _LAUNCHER_VARIABLES
    }
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


# ---------------------------------------------------------------- submitting


def write_experiment(run: RunDir, experiment: ExperimentConfig) -> Path:
    """Write the resolved experiment into the run's folder, so that editing its file does not reach a queued job.

    Raises:
        RunError: if the folder cannot be written.
    """
    path = run.jobs / f"experiment-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.yaml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump_experiment(experiment))
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
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

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


def submit_local(cluster: ClusterConfig, run: RunDir, job: TrainingJob) -> tuple[Submission, Job[None]]:
    """Start as many processes on this machine as the cluster's job would have."""
    import submitit

    executor = submitit.LocalExecutor(run.jobs.absolute(), max_num_timeout=cluster.max_requeues)
    executor.update_parameters(
        tasks_per_node=cluster.num_tasks,
        gpus_per_node=cluster.gpus_per_node * cluster.nodes,
        timeout_min=cluster.time_min,
        signal_delay_s=cluster.grace_s,
        stderr_to_stdout=True,
    )
    with clean_environment():
        started: Job[None] = executor.submit(job)
    return _record(run, job, started, cluster, "local"), started


def _record(run: RunDir, job: TrainingJob, queued: Job[None], cluster: ClusterConfig, executor: str) -> Submission:
    submission = Submission(
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        job_id=str(queued.job_id),
        executor=executor,
        host=os.uname().nodename,
        command=sys.argv,
        experiment=job.experiment,
        output=str(queued.paths.stdout),
        cluster=cluster.model_dump(mode="json"),
        git=git_state(),
    )
    records = [*_read_records(run), asdict(submission)]
    temporary = run.jobs / f".{RECORDS}.tmp"
    temporary.write_text(json.dumps(records, indent=1))
    temporary.replace(run.jobs / RECORDS)
    return submission


def _read_records(run: RunDir) -> list[dict[str, Any]]:
    path = run.jobs / RECORDS
    records: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return records


def last_submission(run: RunDir) -> Submission | None:
    """Return how the run was submitted last, None if it never was."""
    records = _read_records(run)
    return Submission(**records[-1]) if records else None


def prepare_checks(cluster: ClusterConfig, executor: SlurmExecutor) -> None:
    """Refuse what the cluster cannot give, in our words where we have some, else in SLURM's."""
    check_cluster(cluster)
    check_sbatch(sbatch_text(executor))
