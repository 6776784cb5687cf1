"""Whichever process is asked to stop first, all of them know the true reason."""

import os
import signal
from pathlib import Path

import pytest
from tinyruns import num_lines, ranks, wait_until

from metaser.distributed import dist_info
from metaser.rundir import RunDir
from metaser.train.run import train
from metaser.train.stop import StopRequest

pytestmark = pytest.mark.distributed

LONG = ("stages.0.num_steps=100000", "stages.0.eval_every_steps=100000", "stages.0.save_every_steps=100000")


def train_where_the_main_process_cannot_see_the_file(config):
    info = dist_info()
    file = Path("/nowhere/.stop") if info.is_main else RunDir(Path(config.output_dir)).stop_file
    with StopRequest(file) as request:
        is_done = train(config, info, stop_request=request)
    print(f"done {is_done}, {request.reason}, final {request.is_by_person}")


@pytest.mark.parametrize("reason", ["metaser stop", "SIGUSR2"])
def test_the_process_that_logs_is_told_the_reason(corpus, tmp_path, reason):
    run = tmp_path / "run"
    with ranks(
        2, train_where_the_main_process_cannot_see_the_file, corpus.experiment(run, *LONG), folder=tmp_path / "said"
    ) as job:
        wait_until(lambda: num_lines(run / "metrics.jsonl") > 2, "three steps")
        if reason == "metaser stop":
            (run / ".stop").touch()
        else:
            os.kill(job.processes[1].pid, signal.Signals[reason])
        assert job.join() == [0, 0], job.said()
    assert f"stopped by {reason} and saved; start again to continue" in (run / "train.log").read_text()
    assert job.said().count(f"done False, {reason}, final {reason == 'metaser stop'}\n") == 2
