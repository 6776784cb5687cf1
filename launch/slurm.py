"""What a SLURM cluster answers: its partitions, what it can give a job, and where its jobs stand.

`python -m launch.slurm train CONFIG` is the earlier name of `python -m launch.job`, in users' sbatch scripts.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from launch.cluster import SHOWN_CHARS, ClusterConfig, ClusterError
from launch.nodes import check_resolves
from shards.inputfile import open_regular
from shards.shown import shown

COMMAND_TIMEOUT_S = 60
_MAX_NAMES_CHECKED = 16


def __getattr__(name: str) -> Any:
    """Return the job's class under the name by which jobs that an earlier version queued have pickled it."""
    if name == "TrainingJob":
        from launch.job import TrainingJob

        return TrainingJob
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def run_command(*command: str, stdin: str | None = None) -> str:
    """Run a SLURM command, which reads `stdin` where given, and return what it printed.

    Raises:
        ClusterError: if it is not installed, fails or does not answer.
    """
    if shutil.which(command[0]) is None:
        raise ClusterError(
            f"SLURM's {command[0]} must be on the PATH of this host, but is not; do this on a login node of the "
            "cluster, outside of any container"
        )
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=COMMAND_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"SLURM must answer {' '.join(command)!r} within {COMMAND_TIMEOUT_S} s, but did not"
        ) from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise ClusterError(f"SLURM refused {' '.join(command)!r}: {said}")
    return done.stdout


def run_for_rows(num_cells: int, *command: str) -> list[list[str]]:
    """Run a SLURM command and return the rows it printed, of `num_cells` cells with | between them.

    Raises:
        ClusterError: as in `run_command`, or if its answer is no such table.
    """
    rows = [line.split("|", num_cells - 1) for line in run_command(*command).splitlines() if line.strip()]
    wrong = next((row for row in rows if len(row) != num_cells), None)
    if wrong is not None:
        raise ClusterError(
            f"SLURM's {command[0]} must answer in rows of {num_cells} words, but said "
            f"{shown(wrong[0], SHOWN_CHARS)!r}; see what {shlex.join(command)} prints"
        )
    return rows


def check_cluster(cluster: ClusterConfig) -> None:
    """Refuse what this cluster cannot give, before anything is queued.

    Raises:
        ClusterError: naming what was asked and what there is.
    """
    if cluster.environment_file is not None:
        _check_file(cluster.environment_file)
    run_command("sbatch", "--version")
    rows = run_for_rows(3, "sinfo", "--noheader", "--format=%R|%G|%D")
    partitions = sorted({name for name, _, _ in rows})
    if cluster.partition is not None and cluster.partition not in partitions:
        raise ClusterError(f"partition must be one of {', '.join(partitions)}, got {cluster.partition!r}")
    here = [row for row in rows if cluster.partition in (None, row[0])]
    most = max((num_gpus(gres) for _, gres, _ in here), default=0)
    if cluster.gpus_per_node > most:
        where = f"partition {cluster.partition!r}" if cluster.partition else "this cluster"
        raise ClusterError(
            f"gpus_per_node must be at most {most}, the most that a node of {where} has, got {cluster.gpus_per_node}"
        )
    if cluster.check_node_names:
        _check_names(cluster.partition)


def _check_file(path: str) -> None:
    try:
        open_regular(path).close()
    except OSError as error:
        raise ClusterError(f"environment_file must be a file, but {path!r} is not: {error.strerror}") from error


def num_gpus(gres: str) -> int:
    """Return the GPUs in SLURM's words such as `gpu:a100:8(S:0-1),nvme:1`."""
    parts = (part.split("(")[0].split(":") for part in gres.split(","))
    return sum(int(part[-1]) for part in parts if part[0] == "gpu" and part[-1].isdecimal())


def _check_names(partition: str | None) -> None:
    """The processes will look for each other under their nodes' names."""
    chosen = (f"--partition={partition}",) if partition else ()
    rows = run_for_rows(2, "sinfo", "--noheader", "--Node", "--format=%N|%P", *chosen)
    # A star marks the default partition.
    names = sorted({name for name, of in rows if partition or of.endswith("*")})
    for name in names[:_MAX_NAMES_CHECKED]:
        check_resolves(
            name,
            "ask the cluster's administrators, or set check_node_names to false if only this host does not know it",
        )


JOB_IS_QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
JOB_IS_LIVE = (*JOB_IS_QUEUED, "RUNNING", "COMPLETING")


def job_states(jobs: Sequence[str]) -> dict[str, str]:
    """Return SLURM's word for each of `jobs` that it still knows; an array's tasks as `ARRAY_TASK`.

    Raises:
        ClusterError: if SLURM does not answer.
    """
    if not jobs:
        return {}
    # Asking for one by one fails for those that are forgotten, hence all of this user's.
    command = ("squeue", "--noheader", "--me", "--array", "--states=all", "--format=%A|%i|%T")
    states: dict[str, str] = {}
    for number, name, state in run_for_rows(3, *command):
        states |= {number: state, name: state}
    return {job: states[job] for job in jobs if job in states}


if __name__ == "__main__":
    from launch.job import main

    main()
