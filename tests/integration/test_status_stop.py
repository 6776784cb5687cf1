"""`metaser status` and `metaser stop` on real runs."""

import json
import os
import shutil

import pytest
from tinyruns import ALONE, TIMEOUT_S, error_line, metaser, num_lines, started, wait_until

import metaser.train.run as training
from metaser.train.checkpoint import newest_checkpoint

LONG = ("stages.0.num_steps=100000", "stages.0.eval_every_steps=100000", "stages.0.save_every_steps=100000")


def status(*runs, folder):
    done = metaser("status", *runs, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def train(config):
    training.train(config, ALONE)


def test_a_run_in_training_is_seen_and_stopped(corpus, tmp_path):
    run = tmp_path / "run"
    with started(train, corpus.experiment(run, *LONG)) as process:
        wait_until(lambda: num_lines(run / "metrics.jsonl") > 3, "four steps")
        (state,) = status(run, folder=tmp_path)
        now = state["progress"]
        assert (state["state"], now["stage"], now["stage_name"], now["num_steps"]) == (
            "running",
            1,
            "metadata",
            100_000,
        )
        assert now["step"] > 3
        assert now["remaining_s"] > 0
        assert now["audio_s_per_s"] > 0
        assert now["holder"] == {"host": os.uname().nodename, "pid": process.pid, "slurm_job": None}

        asked = metaser("stop", run, "--wait", folder=tmp_path)
        assert asked.returncode == 0, asked.stderr
        assert asked.stdout.startswith(f"{run}: process {process.pid} on ")
        process.join(TIMEOUT_S)
        assert process.exitcode == 0
    (state,) = status(run, folder=tmp_path)
    assert state["state"] == "stopped"
    assert state["progress"]["step"] == newest_checkpoint(run / "stage1/checkpoints").state.step
    assert "stopped by metaser stop and saved" in (run / "train.log").read_text()
    assert "must be in training or in the queue to be stopped" in error_line(metaser("stop", run, folder=tmp_path))


def test_an_old_wish_to_stop_does_not_stop_the_next_start(corpus, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.stop").touch()
    corpus.train(tmp_path / "run")


def test_finished_runs_stand_in_one_table(finished, tmp_path):
    done = metaser("status", finished, finished, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if str(finished) in line]
    assert [row[:7] for row in rows] == [[str(finished), "finished", "-", "2", "emotion", "6/6", rows[0][6]]] * 2


@pytest.mark.parametrize("verb", ["status", "stop"])
def test_a_folder_that_is_no_run(tmp_path, verb):
    assert "neither config.yaml nor a submission" in error_line(metaser(verb, tmp_path, folder=tmp_path))
    assert "/nothing' does not exist" in error_line(metaser(verb, tmp_path / "nothing", folder=tmp_path))


def test_without_squeue_a_job_that_may_wait_is_named(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    job = dict.fromkeys(("time", "host", "experiment", "output"), "")
    job |= {"job_id": "4711", "executor": "slurm", "command": [], "cluster": {}, "git": None}
    (run / "jobs").mkdir(exist_ok=True)
    (run / "jobs/submissions.json").write_text(json.dumps([job]))
    words = "whether its SLURM job 4711 waits cannot be told without squeue"
    assert words in error_line(metaser("stop", run, folder=tmp_path))
