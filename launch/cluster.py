"""What a job asks of a SLURM cluster, typed, and what the cluster says of it before anything is queued."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from metaser.config.load import load_section
from shards.config import Section
from shards.errors import InputError

COMMAND_TIMEOUT_S = 60
_MAX_NAMES_CHECKED = 16


class ClusterError(InputError):
    """The cluster cannot or must not be used as asked."""


class ClusterConfig(Section):
    """Where a training runs: `configs/cluster/*.yaml`. What it computes is the experiment's matter."""

    nodes: PositiveInt = 1
    gpus_per_node: NonNegativeInt = 0
    """One training process per GPU."""
    tasks_per_node: PositiveInt | None = None
    """Training processes on each node, where there are no GPUs; with GPUs it follows from these."""
    cpus_per_task: PositiveInt = 1
    """The training process and its `data.num_workers` readers."""
    mem_gb: PositiveFloat | None = None
    """Of each node; None takes the partition's default."""
    time_min: PositiveInt
    """After so long the job is stopped, requeued and goes on."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    """Node features, as in `--constraint`."""
    grace_s: PositiveInt = 300
    """The warning comes so long before the time is over. A step and a save must fit in."""
    modules: tuple[str, ...] = ()
    """Loaded by `module load` before the training starts."""
    container_image: str | None = None
    """Image for srun's `--container-image` (the Pyxis plugin); MetaSER must be installed in it under the same path."""
    container_mounts: tuple[str, ...] = ()
    """What the container sees beside the working directory and the run: folders with shards or encoders, as `PATH` or
    `PATH:PATH_INSIDE`."""
    environment_file: str | None = None
    """A shell file sourced by the job: NCCL's settings, for example `slurm/env.sh`."""
    pass_environment: tuple[str, ...] = ()
    """Variables of the submitting shell that reach the job, beside `PASSED_VARIABLES`."""
    max_requeues: NonNegativeInt = 100
    """How often a job may start again by itself."""
    max_parallel_folds: PositiveInt = 16
    """Folds of one cross-validation that run at the same time."""
    check_node_names: bool = True
    """Refuse to submit when a node's name does not resolve on this host; false where login nodes know none of them."""
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """Further options of sbatch by their long names, e.g. `{exclude: node7}`."""

    @model_validator(mode="after")
    def _check(self) -> ClusterConfig:
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            raise ValueError(
                f"tasks_per_node must be left out where there are GPUs (one task each: {self.gpus_per_node}), "
                f"got {self.tasks_per_node}"
            )
        if self.grace_s >= 60 * self.time_min:
            raise ValueError(f"grace_s must be shorter than time_min ({60 * self.time_min} s), got {self.grace_s}")
        return self

    @property
    def num_tasks_per_node(self) -> int:
        """Training processes on each node."""
        return self.gpus_per_node or self.tasks_per_node or 1

    @property
    def num_tasks(self) -> int:
        """Training processes in all."""
        return self.nodes * self.num_tasks_per_node


PASSED_VARIABLES = (
    *(
        "HOME",
        "USER",
        "LOGNAME",
        "PATH",
        "LANG",
        "LC_ALL",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
    ),
    *("MODULEPATH", "MODULESHOME", "LMOD_CMD", "OMP_NUM_THREADS", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE"),
)
"""All that a job sees of the submitting shell: where programs and caches lie, and nothing that may be a secret."""


def load_cluster(path: str | Path) -> ClusterConfig:
    """Return the cluster described in the YAML file at `path`.

    Raises:
        ConfigError: if it cannot be read or values are wrong.
    """
    return load_section(ClusterConfig, path, name="--cluster", whole="the cluster")


def ask(*command: str, stdin: str | None = None) -> str:
    """Return what a SLURM command printed, which reads `stdin` where given.

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
            command, input=stdin, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"SLURM must answer {' '.join(command)!r} within {COMMAND_TIMEOUT_S} s, but did not"
        ) from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise ClusterError(f"SLURM refused {' '.join(command)!r}: {said}")
    return done.stdout


def check_cluster(cluster: ClusterConfig) -> None:
    """Refuse what this cluster cannot give, before anything is queued.

    Raises:
        ClusterError: naming what was asked and what there is.
    """
    if cluster.environment_file is not None:
        _check_file(cluster.environment_file)
    ask("sbatch", "--version")
    rows = [line.split("|") for line in ask("sinfo", "--noheader", "--format=%R|%G|%D").splitlines()]
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
        is_file = Path(path).is_file()
    except OSError as error:
        raise ClusterError(f"environment_file must be a file, but {path!r} is not: {error.strerror}") from error
    if not is_file:
        raise ClusterError(f"environment_file must be a file, but {path!r} is not one")


def num_gpus(gres: str) -> int:
    """Return the GPUs in SLURM's words such as `gpu:a100:8(S:0-1),nvme:1`."""
    parts = (part.split("(")[0].split(":") for part in gres.split(","))
    return sum(int(part[-1]) for part in parts if part[0] == "gpu" and part[-1].isdecimal())


def _check_names(partition: str | None) -> None:
    """The processes will look for each other under their nodes' names."""
    chosen = ("--partition", partition) if partition else ()
    rows = ask("sinfo", "--noheader", "--Node", "--format=%N|%P", *chosen).splitlines()
    # A star marks the default partition.
    names = sorted({name for name, of in (row.split("|") for row in rows) if partition or of.endswith("*")})
    for name in names[:_MAX_NAMES_CHECKED]:
        check_resolves(
            name,
            "ask the cluster's administrators, or set check_node_names to false if only this host does not know it",
        )


def check_resolves(name: str, remedy: str) -> None:
    """Refuse a node's name that means nothing here; `remedy` says what to do then.

    Raises:
        ClusterError: if it does not resolve.
    """
    try:
        socket.getaddrinfo(name, None)
    except socket.gaierror as error:
        raise ClusterError(
            f"the name of node {name!r} must resolve to an address, because the processes meet there, but on "
            f"{socket.gethostname()} it does not: {error.strerror}; {remedy}"
        ) from None


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
    rows = ask("squeue", "--noheader", "--me", "--array", "--states=all", "--format=%A|%i|%T").splitlines()
    states: dict[str, str] = {}
    for row in rows:
        number, name, state = row.split("|")
        states |= {number: state, name: state}
    return {job: states[job] for job in jobs if job in states}
