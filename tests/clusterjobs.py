"""Jobs on the local two-node cluster: start, watch, hold at a chosen moment, start again at once after a requeue."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
from tinyruns import TinyCorpus, metaser, num_lines, wait_until

from metaser.tracking import read_metrics

JOB_TIMEOUT_S = 180.0
"""From queueing to the end of a tiny training with four processes, on a busy machine."""

MESSAGES_ARRIVE_WITHIN_S = 2.0


def slurm(*command: object) -> str:
    """Run a SLURM command and return what it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def state_of(job: str) -> str:
    """Return SLURM's word for the job."""
    return slurm("squeue", "--noheader", "--states=all", "--jobs", job, "--format=%T").strip()


def write_cluster(folder: Path, **changes: object) -> Path:
    """Write a cluster's YAML: two nodes with a task each, and what `changes` say."""
    settings = {"nodes": 2, "tasks_per_node": 1, "time_min": 10, "partition": "main", "grace_s": 60, **changes}
    settings = {key: value for key, value in settings.items() if value is not None}
    path = folder / f"cluster-{abs(hash(tuple(map(str, settings.items()))))}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def submit(corpus: TinyCorpus, run: Path, cluster: Path, *overrides: object, folder: Path, before=None) -> str:
    """Queue the tiny experiment by `metaser submit` and return the job's id."""
    done = metaser(
        "submit", corpus.yaml, *overrides, f"output_dir={run}", "--cluster", cluster, folder=folder, before=before
    )
    assert done.returncode == 0, done.stderr
    word, job, *_ = done.stdout.replace(",", "").split()
    assert word == "job", done.stdout
    return job


@contextmanager
def cancelled_at_the_end() -> Iterator[None]:
    """Leave no job behind."""
    try:
        yield
    finally:
        slurm("scancel", "--user", os.environ.get("USER", "root"))
        for pid in our_tasks(whole_job=True):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(nothing_queued, "an empty queue", 60)


def our_tasks(*entries: str, whole_job: bool = False) -> list[int]:
    """Return the processes that train in a job and have `entries` in their environment.

    With `whole_job` also the batch script, its srun and what belongs to neither.
    """
    wanted = {"SLURM_JOB_ID", *(() if whole_job else ("SLURM_STEP_ID",))}
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if wanted <= {entry.partition("=")[0] for entry in variables} and set(entries) <= set(variables):
            pids.append(int(folder.name))
    return pids


def nothing_queued() -> bool:
    """Return whether the queue is empty."""
    return not slurm("squeue", "--noheader").strip()


def wait_for_end(job: str) -> str:
    """Wait until the job is over and return SLURM's word for how."""
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    wait_until(lambda: state_of(job) in over, f"the end of job {job}", JOB_TIMEOUT_S)
    return state_of(job)


def start_again_at_once(job: str) -> None:
    """Wait until the job is back in the queue and start it now, not in two minutes as SLURM would."""
    wait_until(lambda: state_of(job) == "PENDING", f"job {job} in the queue again", JOB_TIMEOUT_S)
    # SLURM says so while the job's batch script is still ending on another node than the one that failed. A start at
    # that moment, which its two minutes would not allow, miscounts the job's nodes (seen with 22.05).
    wait_until(lambda: not our_tasks(f"SLURM_JOB_ID={job}", whole_job=True), f"no process of job {job}", 60)
    wait_until(lambda: num_idle_nodes() == 2, "two idle nodes", 60)
    time.sleep(MESSAGES_ARRIVE_WITHIN_S)
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now")


def num_idle_nodes() -> int:
    """Return how many nodes have no job."""
    return len(slurm("sinfo", "--noheader", "--Node", "--partition=main", "--states=idle", "--format=%N").split())


def main_process(run: Path) -> int:
    """Return the process that has locked the run."""
    pid: int = json.loads((run / ".lock").read_text())["pid"]
    return pid


def last_line(run: Path) -> dict[str, object]:
    """Return the last whole line of metrics, {} if there is none."""
    return (list(read_metrics(run / "metrics.jsonl")) or [{}])[-1]


def in_stage(stage: int, step: int) -> Callable[[Path], bool]:
    """Return whether the run has done `step` of `stage`, but not its last."""

    def holds(run: Path) -> bool:
        line = last_line(run)
        return line.get("stage") == stage and step <= int(str(line["step"])) < 6

    return holds


def evaluating(run: Path) -> bool:
    """Return whether an evaluation has begun and has not ended: each is due after a third step."""
    line = last_line(run)
    return "loss" in line and int(str(line["step"])) % 3 == 0


def saving(run: Path) -> bool:
    """Return whether a checkpoint is being written."""
    return any(True for _ in run.glob("stage*/checkpoints/.step-*.tmp"))


@contextmanager
def held(run: Path, moment: Callable[[Path], bool], known_lines: int = 0) -> Iterator[None]:
    """Stop the main process at the first `moment` after `known_lines` lines of metrics; it goes on after the block."""
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while True:
        assert time.monotonic() < deadline, f"the moment did not come: {(run / 'train.log').read_text()[-2000:]}"
        if num_lines(run / "metrics.jsonl") > known_lines and moment(run):
            pid = main_process(run)
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda pid=pid: _is_stopped(pid), "a stopped process", 10)
            if moment(run):
                break
            # It was faster.
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.0005)
    try:
        yield
    finally:
        # SLURM's own way of ending a job wakes it, too; it may be gone already.
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
