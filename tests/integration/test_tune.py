"""`metaser tune`: what it prints trains, nothing is written, and memory never runs out."""

import json
import multiprocessing
import os
import re

import pytest
import yaml
from tinyruns import TIMEOUT_S, SetVariables, error_line, files_below, metaser, read_json, started

from metaser.train.trial import OUT_OF_MEMORY, run_trial


class WithoutCompiler(SetVariables):
    """Lets a command run in a folder and find no compiler there."""

    def __init__(self, folder):
        super().__init__(PATH=str(folder), CXX=None)
        self.folder = folder

    def __call__(self):
        super().__call__()
        os.chdir(self.folder)


def merged(tree, changes):
    return {
        **tree,
        **{
            name: merged(tree.get(name, {}), value) if isinstance(value, dict) else value
            for name, value in changes.items()
        },
    }


def test_the_lines_that_it_prints_train_and_nothing_is_written(corpus, tmp_path):
    (work := tmp_path / "work").mkdir()
    done = metaser(
        "tune", corpus.yaml, "output_dir=run", "--seconds", 12, folder=tmp_path, before=WithoutCompiler(work)
    )
    assert done.returncode == 0, done.stderr
    assert files_below(work) == []
    table, _, lines = done.stdout.partition("\ndata:\n")
    assert re.search(r"audio-s/s +step s +memory GiB", table)
    assert table.count("recommended") == 1
    chosen = yaml.safe_load(f"data:\n{lines}")
    assert set(chosen["data"]) == {"max_micro_batch_s", "num_workers"}
    assert set(chosen["parallel"]) == {"compile_layers", "activation_checkpointing"}
    assert chosen["data"]["max_micro_batch_s"] >= 0.8
    path = tmp_path / "tuned.yaml"
    path.write_text(yaml.safe_dump(merged(yaml.safe_load(corpus.yaml.read_text()), chosen)))
    few = ("stages.0.num_steps=1", "stages.1.num_steps=1")
    trained = metaser("train", path, f"output_dir={tmp_path / 'run'}", *few, folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert read_json(tmp_path / "run/report/report.json")["num_utterances"] == 6


WIDE = ("model.encoder.feed_forward=65536", "data.max_micro_batch_s=8")
"""Weights of 17 MB, and about 500 MB of activations for a micro-batch of the eight longest clips."""


@pytest.mark.parametrize(
    ("overrides", "num_bytes", "problem"), [(WIDE, 300 << 20, OUT_OF_MEMORY), ((), 1 << 40, None)], ids=str
)
def test_a_trial_that_needs_more_than_is_at_hand_says_so(corpus, tmp_path, overrides, num_bytes, problem):
    ours, theirs = multiprocessing.Pipe(duplex=False)
    config = corpus.experiment(tmp_path / "run", *overrides)
    with started(run_trial, theirs, config, num_bytes, 2, 1.0) as process:
        theirs.close()
        outcome = json.loads(ours.recv_bytes())
        process.join(TIMEOUT_S)
        assert process.exitcode == 0
    assert outcome["problem"] == problem
    assert (outcome["audio_s_per_s"] > 0) == (outcome["num_steps"] == 2) == (problem is None)
    assert not (tmp_path / "run").exists()


def test_mistakes_are_told_as_by_train(corpus, tmp_path):
    assert "unknown key (value 3)" in error_line(metaser("tune", corpus.yaml, "data.batch_size=3", folder=tmp_path))
    said = error_line(metaser("tune", corpus.yaml, "data.shards=nowhere", folder=tmp_path))
    assert "nowhere" in said
    place = SetVariables(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="2999")
    said = error_line(metaser("tune", corpus.yaml, folder=tmp_path, before=place))
    assert "metaser tune measures one process, but 2 were started" in said
