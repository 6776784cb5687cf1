"""A training inside a SLURM job: what submitit pickles, what every task of the job does, and how the job is requeued.

`python -m launch.job train CONFIG [a.b=c ...]` is the same without submitit, for sbatch scripts: slurm/train.sbatch.

The tasks of the job are the processes that train together. SLURM's signals set a flag in each; at the next boundary all
save together, and the main process asks the batch script to requeue the job: a task may run in a container, where
SLURM's commands are not. No collective call happens in a signal handler.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.cluster import ClusterError
from launch.nodes import check_resolves, first_node
from launch.words import say
from shards.signals import STOP_SIGNALS

if TYPE_CHECKING:
    from metaser.train.stop import StopRequest

SUBMITIT_SIGNAL = signal.SIGUSR2
"""What submitit asks SLURM to send ahead of the time limit, and what its own handler waits for."""
_FIRST_PORT, _NUM_PORTS = 20_000, 10_000
_MAX_MARGIN_S = 30.0
_FORCED_REQUEUE_CODE = 1

REQUEUE_FILE = "METASER_REQUEUE_FILE"
"""Names the file by which a task asks the batch script to queue the job again after srun."""

KeptHandler = Callable[[int, Any], Any] | None


@dataclass(frozen=True)
class TrainingJob:
    """One training as paths and strings: what is pickled and started again after every preemption."""

    folder: str
    """Where the job runs; relative paths in the experiment start here."""
    experiment: str
    """YAML file of the experiment."""
    overrides: tuple[str, ...] = ()
    grace_s: float = 300.0
    """From the warning to the end."""
    max_requeues: int = 100
    crossval: str | None = None
    """The folder of the cross-validation that this training is a fold of."""

    def __call__(self) -> None:
        """Train in this task of the job."""
        from launch.exits import exit_code

        code = exit_code(lambda: _run(self))
        if code:
            # Not an exception: submitit would print a traceback after the sentence that says it all.
            sys.exit(code)

    def checkpoint(self) -> Any:
        """Return what submitit starts after a requeue: the same, which finds its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _run(job: TrainingJob) -> None:
    os.chdir(job.folder)
    handler = signal.getsignal(SUBMITIT_SIGNAL)
    kept = handler if callable(handler) else None
    with ExitStack() as until_the_end:
        with _stop_signals_blocked():
            # Imports torch, which takes seconds: a signal must not end the process meanwhile.
            from launch.console import show_report
            from launch.train import start_training
            from metaser.config.load import load_experiment
            from metaser.distributed import dist_info
            from metaser.rundir import RunDir
            from metaser.train.stop import StopRequest

            experiment = load_experiment(job.experiment, job.overrides)
            run = RunDir(Path(experiment.output_dir))
            stop = until_the_end.enter_context(StopRequest(run.stop_file))
        export_ranks()
        check_requeue_file(job.max_requeues)
        info = dist_info(expected_num_processes=experiment.parallel.expected_num_processes)
        with _requeue_before_grace_ends(job, stop, is_main=info.is_main):
            is_done = start_training(experiment, info, "auto", stop_request=stop)
        if not info.is_main:
            return
        if not is_done:
            _requeue_unless_stopped(job, stop, kept)
            return
        show_report(run.root, experiment.main_task)
        if job.crossval is not None:
            _report_folds(Path(job.crossval))


def _say(text: str) -> None:
    """Add a line to the job's output."""
    say(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Deliver the stop signals at the end of the block."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _report_folds(root: Path) -> None:
    from metaser.eval.crossval import read_crossval, write_crossval

    plan = read_crossval(root)
    # The last fold to finish writes the table; two that finish together write the same.
    if not plan.missing:
        write_crossval(plan)


# ---------------------------------------------------------------- where the processes meet


def export_ranks() -> None:
    """Set for the training what a launcher would: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    Raises:
        ClusterError: if this is no job, or the first node's name does not resolve.
    """
    variables = _local_ranks() if is_local_job() else _slurm_ranks()
    os.environ.update({name: str(value) for name, value in variables.items()})


def is_local_job() -> bool:
    """Return whether submitit started this process on its own machine, without SLURM."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "local"


def _local_ranks() -> dict[str, object]:
    return {
        "RANK": _number("SUBMITIT_LOCAL_GLOBALID"),
        "WORLD_SIZE": _number("SUBMITIT_LOCAL_NTASKS"),
        "LOCAL_RANK": _number("SUBMITIT_LOCAL_LOCALID"),
        # All of them are on this machine.
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": master_port(_number("SUBMITIT_LOCAL_JOB_ID"), 0),
    }


def _number(name: str, default: str | None = None) -> int:
    """Return the number in the environment's variable `name`."""
    value = os.environ.get(name, default)
    if value is None or not value.isdecimal():
        raise ClusterError(f"{name} must be a whole number, got {value!r}")
    return int(value)


_SLURM_VARIABLES = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_PROCID", "SLURM_JOB_NODELIST")


def _slurm_ranks() -> dict[str, object]:
    environment = os.environ
    absent = [name for name in _SLURM_VARIABLES if name not in environment]
    if absent:
        raise ClusterError(
            f"a task of a SLURM job must know its place, but {', '.join(absent)} is not set; start it by srun "
            "in an sbatch script (slurm/train.sbatch) or by `metaser submit`"
        )
    master = environment.get("MASTER_ADDR") or first_node(environment["SLURM_JOB_NODELIST"])
    check_resolves(
        master, "ask the cluster's administrators, or export an address that does as MASTER_ADDR in the batch script"
    )
    return {
        "RANK": _number("SLURM_PROCID"),
        "WORLD_SIZE": _number("SLURM_NTASKS"),
        "LOCAL_RANK": _number("SLURM_LOCALID"),
        "MASTER_ADDR": master,
        "MASTER_PORT": _number("MASTER_PORT", str(master_port(_number("SLURM_JOB_ID"), num_restarts()))),
    }


def num_restarts() -> int:
    """Return how often SLURM has started this job again."""
    return _number("SLURM_RESTART_COUNT", "0")


def master_port(job_id: int, restarts: int) -> int:
    """Return a port of the job's own, because jobs may share a node; below the range that outgoing connections use."""
    return _FIRST_PORT + (7 * job_id + restarts) % _NUM_PORTS


# ---------------------------------------------------------------- how the job is requeued


def _requeue_unless_stopped(job: TrainingJob, stop: StopRequest, kept: KeptHandler) -> None:
    """Queue the saved training again, unless a person wanted it to stop. Only the main process calls this."""
    if stop.is_by_person:
        _say("stopped for good by `metaser stop`; submit again to continue")
    elif is_local_job():
        # submitit's controller starts the tasks again when one exits with its code; anything but its own signal
        # comes from a person.
        if stop.reason == SUBMITIT_SIGNAL.name and kept is not None:
            kept(SUBMITIT_SIGNAL, None)
    else:
        ask_for_requeue(job.max_requeues)


def check_requeue_file(max_requeues: int) -> None:
    """Refuse a job that should start again by itself, but could not.

    Raises:
        ClusterError: if no batch script listens.
    """
    if max_requeues and not is_local_job() and not os.environ.get(REQUEUE_FILE):
        raise ClusterError(
            f"{REQUEUE_FILE} must name the file by which the batch script is asked to queue this job again, but is not "
            "set; set it as slurm/train.sbatch does, or set METASER_MAX_REQUEUES to 0"
        )


def ask_for_requeue(max_requeues: int) -> bool:
    """Ask the batch script to put this job back into the queue; return False if it has started too often.

    Raises:
        ClusterError: if the file that asks cannot be written.
    """
    job = os.environ["SLURM_JOB_ID"]
    if num_restarts() >= max_requeues:
        _say(f"job {job} has started again {num_restarts()} times, which is max_requeues: submit it again")
        return False
    try:
        Path(os.environ[REQUEUE_FILE]).touch()
    except OSError as error:
        raise ClusterError(
            f"{REQUEUE_FILE} must be writable, but {os.environ[REQUEUE_FILE]!r} is not: {error.strerror}; the run is "
            "saved, submit it again"
        ) from error
    _say(f"asked the batch script to requeue job {job}")
    return True


@contextmanager
def _requeue_before_grace_ends(job: TrainingJob, stop: StopRequest, *, is_main: bool) -> Iterator[None]:
    """Requeue shortly before the grace time ends if no boundary came; the last periodic checkpoint then holds."""
    if not is_main or is_local_job():
        yield
        return
    # Python's own handlers wait until the main thread leaves a collective call, which it may never do; the number of
    # the signal is written here at once.
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_requeue_at_deadline, args=(reading, job, stop), name="requeue", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writing.close()
        thread.join()
        reading.close()


def _requeue_at_deadline(signals: socket.socket, job: TrainingJob, stop: StopRequest) -> None:
    """Wait for a stop signal, then for the end of the training, which closes `signals`; requeue if it does not come."""
    while stop.reason is None:
        received = signals.recv(1)
        if not received:
            return
        if received[0] in STOP_SIGNALS:
            break
    deadline = time.monotonic() + job.grace_s - min(_MAX_MARGIN_S, job.grace_s / 4)
    while (left := deadline - time.monotonic()) > 0:
        signals.settimeout(left)
        with suppress(TimeoutError):
            if not signals.recv(1):
                return
    if not stop.is_by_person:
        _say(f"no boundary came within {job.grace_s:g} s of grace: requeueing without a save")
        if ask_for_requeue(job.max_requeues):
            # srun ends the other tasks, and the batch script goes on after it.
            os._exit(_FORCED_REQUEUE_CODE)


def main() -> None:
    """`train CONFIG [a.b=c ...]` in a task of a job."""
    from launch.exits import exit_with_code

    def act() -> None:
        grace_s = float(_number("METASER_GRACE_S", "300"))
        max_requeues = _number("METASER_MAX_REQUEUES", "100")
        match sys.argv[1:]:
            case ["train", config, *overrides]:
                _run(TrainingJob(str(Path.cwd()), config, tuple(overrides), grace_s, max_requeues))
            case given:
                raise ClusterError(f"launch.job takes `train CONFIG [a.b=c ...]`, got {given}")

    exit_with_code(act)


if __name__ == "__main__":
    main()
