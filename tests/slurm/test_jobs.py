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
    main_process,
    nothing_queued,
    our_tasks,
    saving,
    slurm,
    start_again_at_once,
    state_of,
    submit,
    wait_for_end,
    write_cluster,
)
from tinyruns import (
    REPOSITORY,
    SetVariables,
    dev_metrics,
    error_line,
    losses,
    metaser,
    num_lines,
    read_json,
    wait_until,
)

from launch.nodes import first_node

pytestmark = pytest.mark.cluster

STRATEGIES = {"ddp": (), "zero2": ("parallel.strategy=zero2",)}
"""Overrides by strategy."""


def rarer(*values):
    """A case of `make cluster` alone, where .ci/run is content with the others."""
    return pytest.param(*values, marks=pytest.mark.reliability)


@pytest.fixture(scope="session")
def local_run(tmp_path_factory):
    """Return a function: the run of as many processes on this machine, without SLURM, trained once for all tests."""
    runs = {}

    def run_of(corpus, num_processes, strategy):
        key = corpus, num_processes, strategy
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
    return [start["num_processes"] for start in json.loads((run / "environment.json").read_text())["starts"]]


def assert_same_run(ours, expected):
    """To the last bit, ZeRO's runs included."""
    assert losses(ours) == losses(expected)
    assert dev_metrics(ours) == dev_metrics(expected)
    assert read_json(ours / "report/report.json")["tasks"] == read_json(expected / "report/report.json")["tasks"]


@pytest.mark.parametrize(("tasks_per_node", "strategy"), [(1, "ddp"), (2, "zero2"), rarer(1, "zero2"), rarer(2, "ddp")])
def test_the_demo_submitted_on_two_nodes_equals_local_processes(demo, local_run, tmp_path, tasks_per_node, strategy):
    cluster = write_cluster(tmp_path, tasks_per_node=tasks_per_node, environment_file=str(REPOSITORY / "slurm/env.sh"))
    run = tmp_path / "run"
    job = submit(demo, run, cluster, *STRATEGIES[strategy], folder=tmp_path)
    assert wait_for_end(job) == "COMPLETED", output(run, job)
    assert starts(run) == [2 * tasks_per_node]
    assert_same_run(run, local_run(demo, 2 * tasks_per_node, strategy))


def output(run, job):
    return "\n".join(
        path.read_text(errors="replace")[-3000:] for path in sorted((run / "jobs").glob(f"{job}_*_log.out"))
    )


@pytest.mark.parametrize("strategy", ["zero2", rarer("ddp")])
def test_the_demo_by_plain_sbatch_equals_local_processes(demo, local_run, tmp_path, strategy):
    run = tmp_path / "run"
    job = plain_sbatch("slurm/train.sbatch", demo.yaml, *STRATEGIES[strategy], f"output_dir={run}", folder=tmp_path)
    assert wait_for_end(job) == "COMPLETED", (tmp_path / f"{job}.log").read_text()
    assert_same_run(run, local_run(demo, 2, strategy))


def plain_sbatch(script, *arguments, folder, array=None, python=sys.executable):
    resources = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=10")
    command = [
        "sbatch",
        "--parsable",
        *resources,
        *([array] if array else []),
        f"--output={folder}/%j.log",
        script,
        *map(str, arguments),
    ]
    environment = {**os.environ, "METASER_PYTHON": str(python), "PYTHONPATH": str(REPOSITORY)}
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


@pytest.mark.parametrize(("first", "strategy"), [(0, "ddp"), rarer(1, "ddp"), rarer(2, "ddp"), (1, "zero2")])
def test_a_preempted_job_comes_back_and_its_losses_are_those_of_an_undisturbed_one(
    corpus, local_run, tmp_path, first, strategy
):
    # With DDP every kind comes at every moment, the rarer cases included.
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
    assert_same_run(run, local_run(corpus, 2, strategy))


def test_tasks_in_a_container_meet_and_come_back_without_slurms_commands(corpus, local_run, tmp_path):
    commands, python = tmp_path / "commands", tmp_path / "python"
    commands.mkdir()
    # What a container is to the tasks: nothing of SLURM but its variables.
    python.write_text(f'#!/bin/sh\nexport PATH={commands}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    run = tmp_path / "run"
    job = plain_sbatch("slurm/train.sbatch", corpus.yaml, f"output_dir={run}", folder=tmp_path, python=python)
    with held(run, in_stage(1, 2)):
        slurm("scancel", "--signal=USR1", job)
    start_again_at_once(job)
    said = tmp_path / f"{job}.log"
    assert wait_for_end(job) == "COMPLETED", said.read_text()
    assert f"requeueing job {job}" in said.read_text()
    assert starts(run) == [2, 2]
    assert_same_run(run, local_run(corpus, 2, "ddp"))


def test_the_first_node_is_the_one_that_slurm_names():
    for names in ("metaser[1-2]", "metaser2,metaser1", "gpu[01-03,07],login", "rack[1-2]node[008-010]"):
        assert first_node(names) == slurm("scontrol", "show", "hostnames", names).split()[0]


LONG = ("stages.0.num_steps=100000", "stages.0.eval_every_steps=100000", "stages.0.save_every_steps=100000")


def test_the_time_limit_itself_saves_and_requeues(corpus, tmp_path):
    run = tmp_path / "run"
    job = submit(corpus, run, write_cluster(tmp_path, grace_s=20), *LONG, folder=tmp_path)
    wait_until(lambda: num_lines(run / "metrics.jsonl") > 3, "four steps", JOB_TIMEOUT_S)
    elapsed = slurm("squeue", "--noheader", "--jobs", job, "--format=%M").strip()
    minutes, _, seconds = elapsed.rpartition(":")
    # SLURM looks at the limits every half minute, and never ends a job early.
    slurm(
        "scontrol", "update", f"JobId={job}", f"TimeLimit={1 + int(minutes.rpartition(':')[2]) + (int(seconds) > 20)}"
    )
    wait_until(lambda: state_of(job) == "PENDING", "a requeued job", JOB_TIMEOUT_S)
    assert "stopped by SIGUSR2 and saved" in (run / "train.log").read_text()
    assert list((run / "stage1/checkpoints").glob("step-*")), "a checkpoint"
    assert f"requeueing job {job}" in output(run, job)


def test_without_a_boundary_the_job_is_requeued_before_the_grace_time_ends(corpus, tmp_path):
    run = tmp_path / "run"
    job = submit(corpus, run, write_cluster(tmp_path, grace_s=8), *LONG, folder=tmp_path)
    with held(run, in_stage(1, 2)):
        # The last resort is a thread of the main process; what hangs is the other one.
        (other,) = our_tasks("SLURM_PROCID=1")
        os.kill(other, signal.SIGSTOP)
    try:
        slurm("scancel", "--signal=USR2", job)
        wait_until(lambda: "no boundary came within 8 s" in output(run, job), "the last resort", JOB_TIMEOUT_S)
        wait_until(lambda: state_of(job) != "RUNNING", "a requeued job", JOB_TIMEOUT_S)
    finally:
        if Path(f"/proc/{other}").exists():
            os.kill(other, signal.SIGCONT)
    wait_until(lambda: state_of(job) == "PENDING", "a requeued job", JOB_TIMEOUT_S)


def test_a_node_that_dies_is_waited_for(corpus, local_run, tmp_path):
    run = tmp_path / "run"
    job = submit(corpus, run, write_cluster(tmp_path), folder=tmp_path)
    with held(run, in_stage(1, 4)):
        kill_node("metaser2")
    wait_until(lambda: state_of(job) == "PENDING", "a requeued job", JOB_TIMEOUT_S)
    slurm_local("up.sh")
    start_again_at_once(job)
    assert wait_for_end(job) == "COMPLETED", output(run, job)
    assert len(starts(run)) == 2
    assert_same_run(run, local_run(corpus, 2, "ddp"))


def kill_node(node):
    """Kill the node's tasks, their keepers and its slurmd, all at once as a power cut would."""
    state = Path(os.environ["SLURM_CONF"]).parent
    tasks = our_tasks(f"SLURMD_NODENAME={node}")
    assert tasks
    keepers = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in tasks}
    for pid in [int((state / f"slurmd-{node}.pid").read_text()), *keepers, *tasks]:
        os.kill(pid, signal.SIGKILL)


def slurm_local(script):
    state = Path(os.environ["SLURM_CONF"]).parent
    command = [REPOSITORY / "slurm" / "local" / script, "--state", state]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_failure_of_the_training_is_no_node_failure(corpus, tmp_path):
    run = tmp_path / "run"
    job = submit(corpus, run, write_cluster(tmp_path), *LONG, folder=tmp_path)
    with held(run, in_stage(1, 2)):
        (other,) = our_tasks("SLURM_PROCID=1")
        os.kill(other, signal.SIGKILL)
    assert wait_for_end(job) == "FAILED"
    assert nothing_queued()


def test_a_cancelled_job_saves_and_stays_away(corpus, tmp_path):
    run = tmp_path / "run"
    job = submit(corpus, run, write_cluster(tmp_path), *LONG, folder=tmp_path)
    with held(run, in_stage(1, 2)):
        slurm("scancel", job)
    assert wait_for_end(job) == "CANCELLED"
    wait_until(lambda: "and saved; start again to continue" in (run / "train.log").read_text(), "a save", JOB_TIMEOUT_S)
    assert nothing_queued()


def test_stop_saves_without_a_requeue_and_submitting_again_continues(corpus, local_run, tmp_path):
    run, cluster = tmp_path / "run", write_cluster(tmp_path)
    job = submit(corpus, run, cluster, folder=tmp_path)
    with held(run, in_stage(1, 2)):
        (state,) = status(run, folder=tmp_path)
        assert (state["state"], state["job"], state["progress"]["stage_name"]) == ("running", job, "metadata")
        assert state["progress"]["holder"]["slurm_job"] == job
        refused = error_line(metaser(*again(corpus, run, cluster), folder=tmp_path))
        assert f"run '{run}' is in use by process {main_process(run)} on " in refused
        assert f"SLURM job {job}" in refused
        asked = metaser("stop", run, folder=tmp_path)
        assert asked.returncode == 0, asked.stderr
        # The wish is looked for once a second.
        os.utime(run / ".stop")
    assert wait_for_end(job) == "COMPLETED", output(run, job)
    assert "stopped by metaser stop and saved" in (run / "train.log").read_text()
    (state,) = status(run, folder=tmp_path)
    assert (state["state"], state["job"]) == ("stopped", None)
    assert "is neither" in error_line(metaser("stop", run, folder=tmp_path))

    done = metaser(*again(corpus, run, cluster), "--follow", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing stage" in done.stderr
    assert_same_run(run, local_run(corpus, 2, "ddp"))
    assert [record["executor"] for record in read_json(run / "jobs/submissions.json")["submissions"]] == [
        "slurm",
        "slurm",
    ]


def again(corpus, run, cluster, *overrides):
    return ("submit", corpus.yaml, *overrides, f"output_dir={run}", "--cluster", cluster)


def status(*runs, folder):
    done = metaser("status", *runs, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SECRETS = {"AWS_SECRET_ACCESS_KEY": "hunter2", "HF_TOKEN": "hf_abc", "MASTER_ADDR": "localhost", "RANK": "7"}


def test_a_job_sees_no_secret_of_the_shell_and_all_that_it_needs(corpus, tmp_path):
    run = tmp_path / "run"
    environment_file = tmp_path / "site.sh"
    environment_file.write_text("export FROM_THE_FILE=yes\n")
    wanted = {"HF_HOME": str(tmp_path / "hub"), "MY_SETTING": "3"}
    cluster = write_cluster(tmp_path, environment_file=str(environment_file), pass_environment=["MY_SETTING"])
    submit(corpus, run, cluster, *LONG, folder=tmp_path, before=SetVariables(**SECRETS, **wanted, SBATCH_EXPORT="ALL"))
    with held(run, in_stage(1, 1)):
        tasks = our_tasks()
        assert len(tasks) == 2
        for pid in tasks:
            seen = dict(
                entry.split("=", 1)
                for entry in Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
                if "=" in entry
            )
            # The batch script sets MASTER_ADDR itself, to the job's first node.
            assert {name for name, value in SECRETS.items() if seen.get(name) == value} == set()
            assert not seen.keys() & (SECRETS.keys() - {"MASTER_ADDR"})
            assert {name: seen.get(name) for name in wanted} == wanted
            assert seen["FROM_THE_FILE"] == "yes"
        everything = b"".join(path.read_bytes() for path in (run / "jobs").iterdir())
        assert b"hunter2" not in everything


# ---------------------------------------------------------------- mistakes


class OnlyPath:
    """Hides SLURM's commands."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self):
        os.environ["PATH"] = str(self.folder)


MISTAKES = {
    "partition": ({"partition": "gpus"}, "partition must be one of main, nowhere, got 'gpus'"),
    "gpus": (
        {"gpus_per_node": 4, "tasks_per_node": None},
        "gpus_per_node must be at most 0, the most that a node of partition 'main' has, got 4",
    ),
    "nodes": ({"nodes": 3}, "SLURM refused 'sbatch --test-only"),
    "address": ({"partition": "nowhere", "nodes": 1}, "the name of node 'metaser-nowhere' must resolve to an address"),
    "environment file": (
        {"environment_file": "no/such.sh"},
        "environment_file must be a file, but 'no/such.sh' is not: No such file or directory",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_the_cluster_cannot_give_is_one_sentence_before_anything_is_queued(corpus, tmp_path, mistake):
    changes, words = MISTAKES[mistake]
    done = metaser(*again(corpus, tmp_path / "run", write_cluster(tmp_path, **changes)), folder=tmp_path)
    assert words in error_line(done)
    assert nothing_queued()
    assert not (tmp_path / "run").exists()


def test_without_slurm_on_the_path(corpus, tmp_path):
    command = again(corpus, tmp_path / "run", write_cluster(tmp_path))
    done = metaser(*command, folder=tmp_path, before=OnlyPath(tmp_path))
    assert "SLURM's sbatch must be on the PATH of this host, but is not" in error_line(done)


def test_a_folder_that_cannot_be_written(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    done = metaser(*again(corpus, tmp_path / "file" / "run", write_cluster(tmp_path)), folder=tmp_path)
    assert "output_dir must be a folder, but" in error_line(done)
    assert nothing_queued()


def test_a_folder_whose_job_still_waits(corpus, tmp_path):
    run, cluster = tmp_path / "run", write_cluster(tmp_path, sbatch={"hold": True})
    job = submit(corpus, run, cluster, folder=tmp_path)
    refused = error_line(metaser(*again(corpus, run, cluster), folder=tmp_path))
    assert f"run '{run}' is in use by SLURM job {job} (PENDING)" in refused
    (state,) = status(run, folder=tmp_path)
    assert (state["state"], state["job"], state["progress"]["stage"]) == ("pending", job, 0)
    stopped = metaser("stop", run, folder=tmp_path)
    assert f"job {job} was pending and is cancelled" in stopped.stdout
    assert nothing_queued()


def test_a_run_of_another_experiment_is_refused_before_it_is_queued(corpus, local_run, tmp_path):
    command = again(corpus, local_run(corpus, 2, "ddp"), write_cluster(tmp_path), "seed=5")
    assert "seed from 0 to 5" in error_line(metaser(*command, folder=tmp_path))
    assert nothing_queued()


# ---------------------------------------------------------------- cross-validation

FOLDS = ("data.splits=[{policy: leave_one_out}]", "stages.0.num_steps=2", "stages.1.num_steps=3")


NUM_VOICES = 12


def test_a_cross_validation_of_the_demo_is_an_array_whose_killed_fold_is_run_again_alone(demo, tmp_path):
    root, cluster = tmp_path / "folds", write_cluster(tmp_path, nodes=1)
    command = ("crossval", demo.yaml, *FOLDS, f"output_dir={root}", "--cluster", cluster)
    queued = metaser(*command, folder=tmp_path)
    assert queued.returncode == 0, queued.stderr
    jobs = [line.split(",")[0].removeprefix("job ") for line in queued.stdout.splitlines()]
    array = jobs[0].split("_")[0]
    assert jobs == [f"{array}_{fold}" for fold in range(NUM_VOICES)]

    with held(root / "fold3", in_stage(1, 1)):
        os.kill(main_process(root / "fold3"), signal.SIGKILL)
    assert wait_for_end(jobs[3]) == "FAILED"
    for job in jobs:
        wait_for_end(job)
    states = {Path(state["run"]).name: state["state"] for state in status(root, folder=tmp_path)}
    assert states == {f"fold{fold}": "stopped" if fold == 3 else "finished" for fold in range(NUM_VOICES)}
    assert not (root / "report").exists()

    done = metaser(*command, "--follow", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split()[3] for line in done.stdout.splitlines() if line.startswith("job ")] == ["3"]
    assert [len(starts(root / f"fold{fold}")) for fold in range(NUM_VOICES)] == [
        2 if fold == 3 else 1 for fold in range(NUM_VOICES)
    ]
    report = read_json(root / "report/report.json")
    assert len({fold["group"] for fold in report["folds"]}) == NUM_VOICES
    assert report["num_utterances"] == 600
    assert f"{NUM_VOICES} folds" in done.stdout


def test_plain_sbatch_trains_one_fold_of_an_array(corpus, tmp_path):
    command = ("slurm/crossval.sbatch", corpus.yaml, *FOLDS, f"output_dir={tmp_path}/folds")
    job = plain_sbatch(*command, folder=tmp_path, array="--array=4")
    assert wait_for_end(f"{job}_4") == "COMPLETED"
    report = read_json(tmp_path / "folds/fold4/report/report.json")
    assert report["protocol"]["splits"][0]["fold"] == 4
