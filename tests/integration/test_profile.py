"""Where a step's time goes: in every line of metrics, and on request as a profiler's trace."""

import json

import pytest
from tinyruns import ALONE, losses

from metaser.errors import RunError
from metaser.tracking import read_metrics
from metaser.train.run import train

PARTS = {"data", "forward", "backward", "optimizer"}


def test_a_profile_is_a_trace_and_a_table_of_each_stage(corpus, finished, tmp_path):
    assert train(corpus.experiment(tmp_path / "run"), ALONE, profile=True)
    for stage in (1, 2):
        trace = json.loads((tmp_path / f"run/profile/stage{stage}.json").read_text())
        names = [event.get("name") for event in trace["traceEvents"]]
        assert {f"metaser.{part}" for part in PARTS} <= set(names)
        assert any("addmm" in str(name) for name in names)
        # Six steps, of which the first two are left out.
        assert names.count("metaser.optimizer") in (4, 8)
        head, *rows = (tmp_path / f"run/profile/stage{stage}.txt").read_text().splitlines()
        assert head == "mean of 4 steps"
        assert [row.split()[0] for row in rows] == ["data", "forward", "backward", "optimizer", "other", "step"]
        milliseconds = [float(row.split()[1]) for row in rows]
        assert sum(milliseconds[:-1]) == pytest.approx(milliseconds[-1], abs=0.5)
    assert losses(tmp_path / "run") == losses(finished)
    assert "where the time of a step goes, stage 2, mean of 4 steps" in (tmp_path / "run/train.log").read_text()


def test_a_stage_that_is_too_short_to_profile_says_so(corpus, tmp_path):
    assert train(corpus.experiment(tmp_path / "run", "stages.0.num_steps=2"), ALONE, profile=True)
    assert "stage 1, nothing was traced: 2 steps were done" in (tmp_path / "run/train.log").read_text()
    assert not (tmp_path / "run/profile/stage1.json").exists()


def test_a_profile_that_cannot_be_written_is_one_sentence(corpus, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/profile").touch()
    with pytest.raises(RunError, match=r"run/profile cannot be written: .*File exists"):
        train(corpus.experiment(tmp_path / "run"), ALONE, profile=True)


def test_every_step_says_where_its_time_went_and_what_it_needed(finished):
    lines = [line for line in read_metrics(finished / "metrics.jsonl") if "loss" in line]
    for line in lines:
        assert set(line["time_s"]) == PARTS
        assert 0 < sum(line["time_s"].values()) <= line["step_s"]
        assert all(seconds > 0 for seconds in line["time_s"].values())
        assert 0.05 < line["memory_gib"] < 20
    assert lines[0]["lr"].keys() == {"encoder", "heads", "ari"}
    assert lines[0]["lr"]["heads"] == pytest.approx(3e-3 * lines[0]["lr_factor"])
    assert "mfu" not in lines[0]


def test_mfu_is_counted_where_the_peak_is_known(corpus, finished, tmp_path):
    peak_tflops = 0.05
    run = corpus.train(tmp_path / "run", f"parallel.peak_tflops={peak_tflops}")
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    assert losses(run) == losses(finished)
    per_s = {round(line["mfu"] * peak_tflops * 1e12 / line["audio_s_per_s"]) for line in lines if line["stage"] == 1}
    # One number for a stage: operations per second of audio, here of a tiny encoder.
    assert len(per_s) == 1
    assert 1e5 < per_s.pop() < 1e8
