"""The sbatch file of a training: what a cluster's values become in it, and what of the shell must not reach it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.cluster import PASSED_VARIABLES, ClusterConfig, ClusterError
from launch.job import REQUEUE_FILE
from metaser.errors import RunError
from shards.shown import shown

if TYPE_CHECKING:
    from submitit import SlurmExecutor

_LAUNCHER_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def slurm_executor(cluster: ClusterConfig, folder: Path, name: str) -> SlurmExecutor:
    """Return submitit's executor, which asks for what `cluster` says and lets nothing else of this shell through.

    Raises:
        ClusterError: if submitit is not installed.
        RunError: if SLURM would not take `folder` as it is.
    """
    _check_path(folder.parent, "output_dir", "%\\", "SLURM replaces in paths")
    if cluster.container_image is not None:
        for path, name in ((folder.parent, "output_dir"), (Path.cwd(), "the current folder")):
            _check_path(path, name, ",:", "srun takes for its own in mounts of a container")
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"jobs need submitit, which must be installed, but is not ({error}); pip install 'metaser[slurm]'"
        ) from error

    class Executor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            """The sbatch file can be shown on a host without SLURM; submitting is refused before, in our words."""
            return 2

    executor = Executor(folder, max_num_timeout=cluster.max_requeues)
    further: dict[str, str | int | bool] = {
        "export": ",".join((*PASSED_VARIABLES, *cluster.pass_environment)),
        # Without it a preempted job would be queued again, too.
        "requeue" if cluster.max_requeues else "no-requeue": True,
        **cluster.sbatch,
    }
    further = {name: value for name, value in further.items() if value is not False}
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
        "setup": list(_setup(cluster, folder)),
        "srun_args": list(_srun_arguments(cluster, folder)),
        "teardown": _TEARDOWN.splitlines(),
        "additional_parameters": further,
    }
    executor.update_parameters(**{key: value for key, value in settings.items() if value is not None})
    # submitit fills in its own name here where nothing is given.
    executor.parameters["wckey"] = None
    return executor


def _check_path(path: Path, name: str, taken: str, why: str) -> None:
    """Refuse a path that would not reach the job as it is."""
    if shown(str(path)) != str(path):
        raise RunError(f"{name} must hold no control characters and line ends, got {str(path)!r}")
    found = next((sign for sign in taken if sign in str(path)), None)
    if found is not None:
        raise RunError(f"{name} must hold no {found}, which {why}, got {str(path)!r}")


_TEARDOWN = f"""\
code=$?
# A job that was preempted is queued again by SLURM itself, and one that was cancelled is meant to end.
if [[ -e ${REQUEUE_FILE} ]]; then
    rm -f "${REQUEUE_FILE}"
    state=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format=%T)
    if [[ $state == RUNNING ]]; then
        echo "requeueing job $SLURM_JOB_ID"
        scontrol requeue "$SLURM_JOB_ID" || echo "job $SLURM_JOB_ID is not queued again: submit it again to continue"
    else
        echo "job $SLURM_JOB_ID is ${{state:-unknown to squeue}}: SLURM decides whether it starts again"
    fi
fi
exit "$code"
"""


def _setup(cluster: ClusterConfig, folder: Path) -> Iterator[str]:
    yield from (f"module load {shlex.quote(module)}" for module in cluster.modules)
    if cluster.environment_file is not None:
        yield f"source {shlex.quote(str(Path(cluster.environment_file).absolute()))}"
    # srun does not take it over from sbatch since SLURM 22.05: without it every task gets one core.
    yield f"export SRUN_CPUS_PER_TASK={cluster.cpus_per_task}"
    # Otherwise every task starts as many threads as the node has cores.
    yield f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{cluster.cpus_per_task}}}"
    yield "# A container has no SLURM commands; what srun's tasks need of SLURM comes from here: the first node's name,"
    yield 'export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"'
    yield "# where they meet, and a requeue: the main task leaves this file, which is looked for when srun has ended."
    yield f'export {REQUEUE_FILE}={shlex.quote(str(folder))}/requeue-"$SLURM_JOB_ID"'
    yield f'rm -f "${REQUEUE_FILE}"'


def _srun_arguments(cluster: ClusterConfig, folder: Path) -> Iterator[str]:
    # The tasks see what the lines above have set; of the submitting shell that holds only what --export let through.
    yield from ("--export=ALL", "--kill-on-bad-exit=1")
    if cluster.container_image is not None:
        here = Path.cwd()
        ours = [here] if folder.is_relative_to(here) else [here, folder.parent]
        mounts = ",".join([*(f"{path}:{path}" for path in ours), *cluster.container_mounts])
        yield from (f"--container-image={cluster.container_image}", f"--container-mounts={mounts}")
        yield f"--container-workdir={here}"


def sbatch_text(executor: SlurmExecutor) -> str:
    """Return the sbatch file that `executor` would submit."""
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


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
