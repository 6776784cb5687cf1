"""On a real SLURM of two nodes a job gives what local processes give, interrupted or not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from clusterjobs import (
    JOB_TIMEOUT_S,
    evaluating,
    held,
    in_stage,
    last_line,
    main_process,
    our_tasks,
    saving,
    slurm,
    start_again_at_once,
    state_of,
    submit,
    wait_for_end,
    write_cluster,
)
from tinyruns import REPOSITORY, dev_metrics, error_line, losses, metaser, num_lines, read_json, wait_until

pytestmark = pytest.mark.cluster

STRATEGIES = {"ddp": ()}
"""Overrides by strategy; every test of a whole job runs with each."""


@pytest.fixture(scope="session")
def local_run(corpus, tmp_path_factory):
    """Return a function: the run of as many processes on this machine, without SLURM, trained once for all tests."""
    runs = {}

    def run_of(num_processes, strategy):
        key = num_processes, strategy
        if key not in runs:
            folder = tmp_path_factory.mktemp("local")
            cluster = write_cluster(folder, nodes=1, tasks_per_node=num_processes)
            run = folder / "run"
            command = ("submit", corpus.yaml, *STRATEGIES[strategy], f"output_dir={run}", "--cluster", cluster)
            done = metaser(*command, "--local", "--follow", folder=folder)
            assert done.returncode == 0, done.stderr
            assert starts(run) == [num_processes]
            runs[key] = run
        return runs[key]

    return run_of


def starts(run):
    """Return the number of processes of every start."""
    return [start["num_processes"] for start in json.loads((run / "environment.json").read_text())]


def assert_same_run(ours, expected):
    assert losses(ours) == losses(expected)
    assert dev_metrics(ours) == dev_metrics(expected)
    assert read_json(ours / "report/report.json")["tasks"] == read_json(expected / "report/report.json")["tasks"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("tasks_per_node", [1, 2])
def test_a_submitted_job_on_two_nodes_equals_local_processes(corpus, local_run, tmp_path, tasks_per_node, strategy):
    cluster = write_cluster(tmp_path, tasks_per_node=tasks_per_node, environment_file=str(REPOSITORY / "slurm/env.sh"))
    run = tmp_path / "run"
    job = submit(corpus, run, cluster, *STRATEGIES[strategy], folder=tmp_path)
    assert wait_for_end(job) == "COMPLETED", output(run, job)
    assert starts(run) == [2 * tasks_per_node]
    assert_same_run(run, local_run(2 * tasks_per_node, strategy))


def output(run, job):
    return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted((run / "jobs").glob(f"{job}_*_log.out")))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_plain_sbatch_equals_local_processes(corpus, local_run, tmp_path, strategy):
    run = tmp_path / "run"
    job = plain_sbatch("slurm/train.sbatch", corpus.yaml, *STRATEGIES[strategy], f"output_dir={run}", folder=tmp_path)
    assert wait_for_end(job) == "COMPLETED", (tmp_path / f"{job}.log").read_text()
    assert_same_run(run, local_run(2, strategy))


def plain_sbatch(script, *arguments, folder):
    resources = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=10")
    command = ["sbatch", "--parsable", *resources, f"--output={folder}/%j.log", script, *map(str, arguments)]
    environment = {**os.environ, "METASER_PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


KINDS = {
    "requeue": lambda job: slurm("scontrol", "requeue", job),
    "time limit": lambda job: slurm("scancel", "--signal=USR2", job),
    "terminate": lambda job: slurm("scancel", "--signal=TERM", job),
}
"""What ends a job before its end. The second is the signal that SLURM sends ahead of the time limit."""

MOMENTS = {
    "in a save": saving,
    "in stage 1": in_stage(1, 4),
    "in an evaluation": evaluating,
    "in stage 2": in_stage(2, 2),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("first", range(len(KINDS)))
def test_a_preempted_job_comes_back_and_its_losses_are_those_of_an_undisturbed_one(
    corpus, local_run, tmp_path, first, strategy
):
    # Over the three cases every kind comes at every moment.
    run = tmp_path / "run"
    job = submit(corpus, run, write_cluster(tmp_path), *STRATEGIES[strategy], folder=tmp_path)
    for number, moment in enumerate(MOMENTS.values()):
        kind = list(KINDS.values())[(first + number) % len(KINDS)]
        with held(run, moment, known_lines=num_lines(run / "metrics.jsonl") if number else 0):
            kind(job)
        start_again_at_once(job)
        assert "and saved; start again to continue" in (run / "train.log").read_text().splitlines()[-1]
    assert wait_for_end(job) == "COMPLETED", output(run, job)
    assert starts(run) == [2] * (len(MOMENTS) + 1)
    assert_same_run(run, local_run(2, strategy))
