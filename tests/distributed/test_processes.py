"""Two and more processes on this machine compute what one does, through every launcher, interrupted or not."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tinyruns import EXACT, REPOSITORY, dev_metrics, losses, num_lines, wait_until

from metaser.train.checkpoint import newest_checkpoint

pytestmark = pytest.mark.distributed

BIN = Path(sys.executable).parent
TORCHRUN = (BIN / "torchrun", "--standalone", "--nproc_per_node")
ACCELERATE = (BIN / "accelerate", "launch", "--multi_gpu", "--num_machines", "1", "--num_processes")
SCRIPT = REPOSITORY / "launch" / "train.py"
LAUNCHERS = {
    "accelerate": (*ACCELERATE, "2", SCRIPT),
    "accelerate -m": (*ACCELERATE, "2", "-m", "launch.train"),
    "torchrun": (*TORCHRUN, "2", SCRIPT),
}
TIMEOUT_S = 150


@contextmanager
def launched(*command):
    """Run `command`, and leave none of its processes behind."""
    process = subprocess.Popen(
        [str(part) for part in command],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        last = str(command[-1])
        # Ranks first: they are told when their launcher dies, and would save.
        for pid in [*job_of(last, "RANK="), *job_of(last)]:
            kill(pid)
        process.communicate(timeout=30)


def job_of(argument, variable=""):
    """Return the processes with `argument` on their command line and, where given, `variable` in their environment."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().decode().split("\0")
            variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if argument in arguments and any(entry.startswith(variable) for entry in variables):
            pids.append(int(folder.name))
    return pids


def kill(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def run_to_end(*command):
    with launched(*command) as process:
        said, _ = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, said


def train(corpus, run, *overrides, launcher="torchrun"):
    code, said = run_to_end(*LAUNCHERS[launcher], corpus.yaml, *overrides, f"output_dir={run}")
    assert code == 0, said
    return run


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    return corpus.train(tmp_path_factory.mktemp("alone") / "run", *EXACT)


@pytest.fixture(scope="module")
def pair(corpus, tmp_path_factory):
    return train(corpus, tmp_path_factory.mktemp("pair") / "run", *EXACT)


def task_results(run):
    return json.loads((run / "report/report.json").read_text())["tasks"]


@pytest.mark.parametrize(
    "launcher", ["accelerate", pytest.param("accelerate -m", marks=pytest.mark.reliability), "torchrun"]
)
def test_two_processes_learn_what_one_does(corpus, alone, pair, tmp_path, launcher):
    run = pair if launcher == "torchrun" else train(corpus, tmp_path / "run", *EXACT, launcher=launcher)
    starts = json.loads((run / "environment.json").read_text())["starts"]
    assert [start["num_processes"] for start in starts] == [2]
    assert [line[:2] for line in losses(run)] == [line[:2] for line in losses(alone)]
    for ours, theirs in zip(losses(run), losses(alone), strict=True):
        assert ours[2] == pytest.approx(theirs[2], rel=1e-4)
        assert ours[3] == pytest.approx(theirs[3], rel=1e-4, abs=1e-6)
    for (*_, ours), (*_, theirs) in zip(dev_metrics(run), dev_metrics(alone), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    ours, theirs = task_results(run), task_results(alone)
    assert ours.keys() == theirs.keys()
    for task in ours:
        assert ours[task]["loss"] == pytest.approx(theirs[task]["loss"], rel=1e-4)
        for metric in {"ua", "wa", "macro_f1", "wer", "cer"} & ours[task].keys():
            assert ours[task][metric] == pytest.approx(theirs[task][metric])


@pytest.mark.reliability
def test_the_same_job_twice_is_the_same_to_the_last_bit(corpus, pair, tmp_path):
    again = train(corpus, tmp_path / "run", *EXACT)
    assert_same_run(again, pair)


def assert_same_run(ours, expected):
    assert losses(ours) == losses(expected)
    assert dev_metrics(ours) == dev_metrics(expected)
    assert (ours / "best/model.safetensors").read_bytes() == (expected / "best/model.safetensors").read_bytes()
    assert task_results(ours) == task_results(expected)


@pytest.mark.parametrize("line", [9, *(pytest.param(line, marks=pytest.mark.reliability) for line in (3, 13))])
def test_a_job_killed_as_a_whole_goes_on_to_the_last_bit(corpus, pair, tmp_path, line):
    run = tmp_path / "run"
    with launched(*LAUNCHERS["torchrun"], corpus.yaml, *EXACT, f"output_dir={run}") as process:
        wait_until(lambda: num_lines(run / "metrics.jsonl") >= line, f"{line} lines", TIMEOUT_S)
    assert process.returncode != 0
    assert_same_run(train(corpus, run, *EXACT), pair)


def test_one_killed_rank_ends_the_job_and_leaves_no_orphan(corpus, tmp_path):
    run = tmp_path / "run"
    long = ("stages.0.num_steps=100000", "stages.0.eval_every_steps=100000")
    with launched(*LAUNCHERS["torchrun"], corpus.yaml, *long, f"output_dir={run}") as process:
        wait_until(lambda: num_lines(run / "metrics.jsonl") > 3, "four steps", TIMEOUT_S)
        kill(job_of(f"output_dir={run}", "RANK=1")[0])
        process.communicate(timeout=TIMEOUT_S)
        assert process.returncode != 0
        wait_until(lambda: not job_of(f"output_dir={run}"), "no process is left", 30)


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGUSR1", marks=pytest.mark.reliability)])
def test_ranks_asked_to_stop_save_together_and_exit_with_0(corpus, tmp_path, name):
    run = tmp_path / "run"
    long = ("stages.0.num_steps=100000", "stages.0.eval_every_steps=100000", "data.num_workers=1")
    with launched(*LAUNCHERS["torchrun"], corpus.yaml, *long, f"output_dir={run}") as process:
        wait_until(lambda: num_lines(run / "metrics.jsonl") > 3, "four steps", TIMEOUT_S)
        # To one rank only: the other must hear of it.
        os.kill(job_of(f"output_dir={run}", "RANK=1")[0], signal.Signals[name])
        said, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    assert newest_checkpoint(run / "stage1/checkpoints").state.step == len(losses(run))
    assert "and saved; start again to continue" in (run / "train.log").read_text()


def test_more_processes_than_utterances(corpus, tmp_path):
    one_clip = 'stages.0.filter=speaker == "tiny:s4" and duration_s < 0.37 or split == "train"'
    code, said = run_to_end(*LAUNCHERS["torchrun"], corpus.yaml, one_clip, f"output_dir={tmp_path / 'run'}")
    assert code != 0
    assert "error: each of the 2 processes needs an utterance, but only 1 are selected" in said
    assert "a bug in MetaSER" not in said


def test_never_resuming_is_no_race_between_the_processes(corpus, tmp_path):
    command = (*LAUNCHERS["torchrun"], corpus.yaml, "--resume", "never", f"output_dir={tmp_path / 'run'}")
    code, said = run_to_end(*command)
    assert code == 0, said
    code, said = run_to_end(*command)
    assert code != 0
    assert "already holds a run" in said


@pytest.mark.parametrize("num_processes", [pytest.param(2, marks=pytest.mark.reliability), 3])
def test_evaluation_is_the_same_on_any_number_of_processes(corpus, alone, num_processes):
    path = alone / "report" / "train" / "report.json"
    reports = []
    for count in (1, num_processes):
        script = Path(__file__).with_name("evaluate_ranks.py")
        code, said = run_to_end(*TORCHRUN, count, script, alone, "train")
        assert code == 0, said
        reports.append(path.read_bytes())
        path.unlink()
    assert reports[0] == reports[1]
    assert json.loads(reports[0])["tasks"]["gender"]["num_utterances"] == 24


def test_a_launcher_that_starts_fewer_processes_than_expected_is_refused(corpus, tmp_path):
    command = (BIN / "accelerate", "launch", "--cpu", "--num_processes", "2", "--num_machines", "1", SCRIPT)
    overrides = ("parallel.expected_num_processes=2", f"output_dir={tmp_path / 'run'}")
    code, said = run_to_end(*command, corpus.yaml, *overrides)
    assert code != 0
    assert "error: parallel.expected_num_processes is 2, but 1 were started" in said
