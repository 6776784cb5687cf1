import json
import os

import pytest

from metaser.errors import RunError
from metaser.progress import read_progress
from metaser.rundir import RunDir
from metaser.runlock import LockHolder, RunLock, last_holder, lock_holder

EXPERIMENT = """
output_dir: x
data: {shards: y}
model: {coattention: {form: none}}
tasks: [{name: emotion, kind: classification}]
stages:
  - {name: first, train: [heads], weights: {emotion: 1}, num_steps: 10}
  - {name: second, train: [heads], weights: {emotion: 1}, num_steps: 20}
"""


def step(stage, number, **more):
    return {"stage": stage, "step": number, "loss": 1 / number, "audio_s_per_s": 100.0, "step_s": 0.5, **more}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.yaml").write_text(EXPERIMENT)
    return RunDir(tmp_path)


def write(run, *lines, tail=""):
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


def test_a_run_before_its_first_step_stands_at_stage_0(run):
    found = read_progress(run)
    assert (found.stage, found.step, found.remaining_s, found.checkpoint, found.holder) == (0, 0, None, None, None)


def test_time_left_counts_the_rest_of_this_stage_and_all_later_ones(run):
    write(
        run, *(step(1, number) for number in range(1, 5)), {"stage": 1, "step": 4, "dev": {}}, tail='{"stage": 1, "st'
    )
    found = read_progress(run)
    assert (found.stage, found.stage_name, found.step, found.num_steps) == (1, "first", 4, 10)
    assert (found.loss, found.audio_s_per_s, found.remaining_s) == (0.25, 100.0, (6 + 20) * 0.5)
    assert not found.is_finished


def test_speed_is_that_of_the_present_stage(run):
    write(run, step(1, 10, step_s=99.0), step(2, 1, step_s=2.0))
    assert read_progress(run).remaining_s == 19 * 2.0


def test_only_the_end_of_a_long_file_is_read_and_its_first_half_line_left_out(run):
    write(run, *(step(1, 1, padding="x" * 999) for _ in range(500)), step(2, 20))
    assert (read_progress(run).stage, read_progress(run).step) == (2, 20)


def test_finished_is_trained_to_the_end_and_evaluated(run):
    write(run, step(2, 20))
    assert not read_progress(run).is_finished
    run.report.mkdir()
    (run.report / "report.json").write_text("{}")
    assert read_progress(run).is_finished
    write(run, step(2, 19))
    assert not read_progress(run).is_finished


DAMAGE = {
    "garbage": b"garbage\n",
    "zeros": b"\0" * 512 + b"\n",
    "binary": b"\x80\x04\xff\n",
    "no object": b"[1]\n",
    "no stage": b'{"step": 1, "loss": 1.0}\n',
    "stage 9": b'{"stage": 9, "step": 1, "loss": 1.0, "audio_s_per_s": 1.0, "step_s": 1.0}\n',
    "no speed": b'{"stage": 1, "step": 1, "loss": 1.0}\n',
}


@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE)
def test_damaged_metrics_are_one_sentence(run, data):
    write(run, step(1, 1))
    with run.metrics.open("ab") as file:
        file.write(data)
    with pytest.raises(RunError, match=r"metrics\.jsonl .+, got "):
        read_progress(run)


def test_metrics_that_are_a_folder_are_one_sentence(run):
    run.metrics.mkdir()
    with pytest.raises(RunError, match=r"metrics\.jsonl must be readable, but is not: it is a folder, not a file"):
        read_progress(run)


@pytest.mark.parametrize("data", [b"garbage", b"[1]", b'{"a": 1}', b"\x80\xff", b'{"host": "a"', b"\0\0"])
def test_a_damaged_lock_is_one_sentence_and_does_not_keep_a_training_out(run, data):
    (run.root / ".lock").write_bytes(data)
    assert lock_holder(run) is None
    with pytest.raises(RunError, match=r"\.lock is damaged: "):
        last_holder(run)
    lock = RunLock(run)
    assert lock_holder(run).pid == os.getpid()
    (run.root / ".lock").write_bytes(data)
    with pytest.raises(RunError, match=r"\.lock is damaged: "):
        RunLock(run)
    lock.release()


def test_a_checkpoint_that_is_gone_when_it_is_looked_at_is_none(run):
    for step in (1, 2):
        (run.checkpoints(1) / f"step-{step:06d}").mkdir(parents=True)
    (run.checkpoints(1) / "step-000009").symlink_to("nowhere")
    found = read_progress(run).checkpoint
    assert (found.stage, found.step) == (1, 2)


def test_the_newest_checkpoint_is_that_of_the_last_stage_that_has_one(run):
    for stage, number in ((1, 8), (1, 10), (2, 4), (2, 12)):
        (run.checkpoints(stage) / f"step-{number:06d}").mkdir(parents=True)
    (run.checkpoints(2) / ".step-000016.tmp").mkdir()
    found = read_progress(run).checkpoint
    assert (found.stage, found.step) == (2, 12)
    assert 0 <= found.age_s < 60


def test_who_holds_the_lock_is_known_while_and_after_it_is_held(run, monkeypatch):
    assert (lock_holder(run), last_holder(run)) == (None, None)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    lock = RunLock(run)
    expected = LockHolder(os.uname().nodename, os.getpid(), "17")
    assert (lock_holder(run), last_holder(run)) == (expected, expected)
    assert read_progress(run).holder == expected
    lock.release()
    assert (lock_holder(run), last_holder(run)) == (None, expected)
    RunLock(run).release()
