"""`metaser submit --local`: as many processes on this machine as a cluster would give the job."""

import os
import signal

import pytest
from clusterjobs import held, in_stage, main_process, write_cluster
from tinyruns import SetVariables, dev_metrics, losses, metaser, read_json, wait_until

from metaser.progress import is_finished
from metaser.rundir import RunDir

pytestmark = pytest.mark.distributed
TIMEOUT_S = 150


def submit(corpus, run, *options, folder, **changes):
    command = ("submit", corpus.yaml, f"output_dir={run}", "--cluster", write_cluster(folder, **changes), "--local")
    # The tests' own setting would hide what a user's shell does not say.
    return metaser(*command, *options, folder=folder, before=SetVariables(OMP_NUM_THREADS=None))


def test_a_local_job_comes_back_after_the_warning_of_its_time_limit(corpus, tmp_path):
    calm, run = tmp_path / "calm", tmp_path / "run"
    done = submit(corpus, calm, "--follow", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "local job " in done.stdout

    assert submit(corpus, run, folder=tmp_path).returncode == 0
    with held(run, in_stage(1, 3)):
        os.kill(main_process(run), signal.SIGUSR2)
    wait_until(lambda: is_finished(RunDir(run)), "the end of the run", TIMEOUT_S)
    starts = read_json(run / "environment.json")["starts"]
    assert [(start["num_processes"], start["num_threads"]) for start in starts] == [(2, 1), (2, 1)]
    assert "stopped by SIGUSR2 and saved" in (run / "train.log").read_text()
    assert losses(run) == losses(calm)
    assert dev_metrics(run) == dev_metrics(calm)


def test_what_is_wrong_with_the_data_is_one_sentence_and_the_job_ends(corpus, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "empty").mkdir()
    command = ("submit", corpus.yaml, f"data.shards={tmp_path}/empty", f"output_dir={tmp_path}/run")
    done = metaser(*command, "--cluster", write_cluster(tmp_path), "--local", "--follow", folder=tmp_path)
    words = error_line_of_job(done)
    assert "must have finished run" in words
    assert "error: " in done.stderr.replace(words, "")
    assert "Traceback" not in done.stderr


def error_line_of_job(done):
    assert done.returncode == 2, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")][-1]
