"""What happens to the others when one process dies, cannot write, or is asked to stop."""

import os
import signal
import time

import pytest
import torch
from tinyruns import LimitMemory, dev_metrics, losses, num_lines, ranks, train_ranks, training, wait_until

import metaser.train.step as step
from metaser.config.load import load_experiment
from metaser.config.schema import ParallelConfig
from metaser.distributed import dist_info
from metaser.errors import TrainingError
from metaser.monitor import HEARTBEAT_S
from metaser.processes import Processes
from metaser.train.checkpoint import newest_checkpoint
from metaser.train.run import train

pytestmark = pytest.mark.distributed

LONG = ("stages.0.num_steps=100000", "stages.0.eval_every_steps=100000", "stages.0.save_every_steps=5")


@pytest.mark.parametrize(
    ("strategy", "victim"),
    [
        ("ddp", 0),
        ("zero3", 2),
        *(
            pytest.param(*case, marks=pytest.mark.reliability)
            for case in [("ddp", 1), ("ddp", 2), ("zero3", 0), ("zero3", 1)]
        ),
    ],
)
def test_a_rank_that_dies_ends_the_job_within_a_minute_with_its_name_and_last_words(corpus, tmp_path, strategy, victim):
    run = tmp_path / "run"
    given = (f"output_dir={run}", f"parallel.strategy={strategy}", *LONG)
    with training(3, corpus.yaml, *given, folder=tmp_path / "said") as job:
        wait_until(lambda: num_lines(run / "metrics.jsonl") > 10, "ten steps")
        pid = job.processes[victim].pid
        # The monitor tells of a new position with a heartbeat, and hears of it with the next.
        time.sleep(2.5 * HEARTBEAT_S)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        codes = job.join(60)
        assert time.monotonic() - killed < 60
    assert codes[victim] == -signal.SIGKILL
    for rank in {0, 1, 2} - {victim}:
        assert codes[rank] == 2
        said = (job.folder / f"rank-{rank}.txt").read_text()
        assert "Traceback" not in said
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert f"all processes must live until the training is done, but rank {victim} (pid {pid} on " in line
        assert "it was killed, or died without a word, in step " in line or "the store where the processes" in line
    assert newest_checkpoint(run / "stage1/checkpoints").state.step >= 5


def train_with_little_memory_on_rank_1(experiment, run):
    if os.environ["RANK"] == "1":
        LimitMemory(500 << 20)()
    train(load_experiment(experiment, [f"output_dir={run}", *MONSTROUS]), dist_info())


MONSTROUS = ("model.encoder.feed_forward=65536", "model.encoder.num_layers=2", "stages.0.num_steps=1")
MONSTROUS += ("data.batch_utterances=48", "data.max_micro_batch_s=60")


def test_a_rank_that_lacks_memory_ends_the_job_with_what_to_change(corpus, tmp_path):
    """Its micro-batch, about half of 24 clips, needs about 900 MB."""
    with ranks(2, train_with_little_memory_on_rank_1, corpus.yaml, tmp_path / "run", folder=tmp_path / "said") as job:
        assert job.join(120) == [2, 2], job.said()
    for rank in (0, 1):
        said = (job.folder / f"rank-{rank}.txt").read_text()
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert "a micro-batch must fit the memory, but one of 1" in line and " clips, the longest of 0." in line
        assert ("all processes must live until the training is done, but rank 1 (pid" in line) == (rank == 0)


def fail_on_rank_1():
    processes = Processes(ParallelConfig(device="cpu"), dist_info())
    with processes.monitored():
        if processes.info.rank == 1:
            time.sleep(1)
            raise TrainingError("the coffee must be hot, but it is cold; heat it")
        processes.all_reduce(torch.ones(1))


def hang_on_rank_0():
    processes = Processes(ParallelConfig(device="cpu"), dist_info())
    with processes.monitored():
        if processes.info.rank == 1:
            time.sleep(1)
            raise TrainingError("the coffee must be hot, but it is cold; heat it")
        time.sleep(600)


@pytest.mark.parametrize("target", [fail_on_rank_1, hang_on_rank_0])
def test_a_rank_that_fails_tells_the_others_why_even_if_they_wait_for_ever(tmp_path, target):
    with ranks(2, target, folder=tmp_path) as job:
        assert job.join(60) == [2, 2], job.said()
    ours, theirs = ((tmp_path / f"rank-{rank}.txt").read_text() for rank in (0, 1))
    assert theirs.splitlines()[-1] == "error: the coffee must be hot, but it is cold; heat it"
    assert "but rank 1 (pid " in ours
    assert "has ended: TrainingError: the coffee must be hot, but it is cold; heat it; start again" in ours
    assert "Traceback" not in ours


def train_stopped_by_rank_1(config, in_warm_up, line):
    """Train; rank 1 is asked to stop in its warm-up, or when the run has `line` lines of metrics."""
    info = dist_info()
    if info.rank == 1:
        method = "warm_up" if in_warm_up else "run"
        original = getattr(step.StepRunner, method)
        calls = []

        def stopped(self, *arguments, **options):
            calls.append(method)
            if in_warm_up or len(calls) == line:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *arguments, **options)

        setattr(step.StepRunner, method, stopped)
    train(config, info)


@pytest.fixture(scope="module")
def pair(corpus, tmp_path_factory):
    return train_ranks(2, corpus.yaml, tmp_path_factory.mktemp("pair") / "run")


def test_ranks_asked_to_stop_in_the_warm_up_stop_there(corpus, pair, tmp_path):
    run = tmp_path / "run"
    with ranks(2, train_stopped_by_rank_1, corpus.experiment(run), True, 0, folder=tmp_path / "said") as job:
        assert job.join() == [0, 0], job.said()
    assert losses(run) == []
    train_ranks(2, corpus.yaml, run)
    assert losses(run) == losses(pair)


def test_ranks_asked_to_stop_before_an_evaluation_stop_in_it(corpus, pair, tmp_path):
    run = tmp_path / "run"
    with ranks(2, train_stopped_by_rank_1, corpus.experiment(run), False, 3, folder=tmp_path / "said") as job:
        assert job.join() == [0, 0], job.said()
    assert (len(losses(run)), dev_metrics(run)) == (3, [])
    state = newest_checkpoint(run / "stage1/checkpoints").state
    assert (state.step, state.evaluated_step) == (3, 0)
    train_ranks(2, corpus.yaml, run)
    assert (losses(run), dev_metrics(run)) == (losses(pair), dev_metrics(pair))


def test_a_disk_that_refuses_the_main_process_ends_all_with_its_sentence(corpus, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".best.tmp").write_text("in the way")
    with training(2, corpus.yaml, f"output_dir={run}", folder=tmp_path / "said") as job:
        assert job.join() == [2, 2], job.said()
    for rank in (0, 1):
        said = (job.folder / f"rank-{rank}.txt").read_text().splitlines()
        assert said[-1].startswith(f"error: {run / 'best'} cannot be written: ")
    assert newest_checkpoint(run / "stage2/checkpoints").state.step == 3
