"""`metaser crossval` on this machine: real folds in processes of their own."""

import json

import pytest
from tinyruns import TinyCorpus, clip, error_line, metaser, read_json, write_experiment
from tones import pack_items

from metaser.rundir import RunDir
from metaser.runlock import RunLock

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def three_speakers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    pack_items([clip(number, split=None) for number in range(36) if number % 6 < 3], folder / "shards")
    yaml = write_experiment(folder / "tiny.yaml", folder / "shards")
    return TinyCorpus(folder / "shards", yaml)


def test_a_fold_that_failed_is_run_again_alone(three_speakers, tmp_path):
    root = tmp_path / "folds"
    steps = ("stages.0.num_steps=2", "stages.1.num_steps=3", "data.splits=[{policy: leave_one_out}]")
    command = ("crossval", three_speakers.yaml, *steps, f"output_dir={root}", "--parallel", "3")
    lock = RunLock(RunDir(root / "fold1"))
    refused = error_line(metaser(*command, folder=tmp_path))
    assert "every fold must finish, but 1 of 3 did not, fold 1 with exit code 2 (error: run " in refused
    assert "is in use by process" in refused
    lock.release()
    states = json.loads(metaser("status", root, "--json", folder=tmp_path).stdout)
    assert [state["state"] for state in states] == ["finished", "stopped", "finished"]
    assert not (root / "report").exists()

    done = metaser(*command, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 folds, 1 to train" in done.stderr
    assert [len(read_json(root / f"fold{fold}/environment.json")["starts"]) for fold in range(3)] == [1, 1, 1]
    report = read_json(root / "report/report.json")
    assert [fold["group"] for fold in report["folds"]] == ["tiny:s0", "tiny:s1", "tiny:s2"]
    assert report["num_utterances"] == 18
    again = metaser(*command, folder=tmp_path)
    assert "3 folds, 0 to train" in again.stderr
    assert again.stdout == done.stdout
