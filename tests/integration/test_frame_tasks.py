"""A task that answers for every frame, through training, evaluation and prediction."""

import csv
import json

import pytest
import soundfile as sf
from tinyruns import Speech, clip, dev_metrics, losses, metaser, pack_clips, read_json
from tones import pack_items

from metaser.tasks.frames import parse_frames
from metaser.tracking import read_metrics

TASK = "{name: speech, kind: frames, field: extra.speech}"
WITH_FRAMES = (
    f"tasks=[{{name: emotion, kind: classification}}, {{name: asr, kind: ctc}}, {TASK}]",
    "stages.0.weights={asr: 1.0, speech: 1.0}",
    "stages.1.weights={emotion: 1.0, speech: 0.5}",
    "stages.0.augment.speed.probability=0.6",
    "stages.0.select=speech.f1",
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    clips = [clip(number) if number % 5 == 4 else clip(number, extra={"speech": "0.1-0.25"}) for number in range(36)]
    folder = tmp_path_factory.mktemp("frames") / "shards"
    pack_items(clips, folder)
    return folder


@pytest.fixture(scope="module")
def run(corpus, shards, tmp_path_factory):
    return corpus.train(tmp_path_factory.mktemp("run") / "run", f"data.shards={shards}", *WITH_FRAMES)


def test_frames_are_learned_judged_and_chosen_by(run):
    assert all(by_task["speech"] > 0 for *_, by_task in losses(run))
    chosen = [dev["tasks"]["speech"]["f1"] for stage, _, dev in dev_metrics(run) if stage == 1]
    assert len(chosen) == 2 and all(0 <= f1 <= 1 for f1 in chosen)
    report = read_json(run / "report/report.json")
    assert report["tasks"]["speech"]["num_frames"] > report["tasks"]["speech"]["num_frames_with"] > 0
    assert "F1" in (run / "report/report.md").read_text()
    with (run / "report/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        said, true = (row[f"speech.{side}"] for side in ("prediction", "reference"))
        num_frames = len(parse_frames(said))
        assert abs(num_frames - float(row["duration_s"]) * 50) <= 2
        assert not true or len(parse_frames(true)) == num_frames
    assert 0 < sum(bool(row["speech.reference"]) for row in rows) < len(rows)


def test_padding_and_windows_keep_every_frame(corpus, shards, run, tmp_path):
    whole = read_json(run / "report/report.json")["tasks"]["speech"]
    done = metaser("evaluate", run, "--json", folder=tmp_path)
    assert json.loads(done.stdout)["tasks"]["speech"] == whole
    windowed = corpus.train(
        tmp_path / "windowed", f"data.shards={shards}", *WITH_FRAMES, "data.window_s=0.4", "data.window_overlap_s=0.1"
    )
    cut = read_json(windowed / "report/report.json")["tasks"]["speech"]
    assert (cut["num_utterances"], cut["num_frames"]) == (whole["num_utterances"], whole["num_frames"])
    # Intervals are those of the whole clip, so that its windows teach nothing.
    assert sum(line.get("losses", {}).get("speech", 0) == 0 for line in read_metrics(windowed / "metrics.jsonl")) > 0


def test_predict_answers_for_every_frame(run, tmp_path):
    samples, rate_hz = Speech(120.0, 3.0, 0.6, 1).load()
    sf.write(tmp_path / "a.wav", samples, rate_hz)
    done = metaser("predict", run, tmp_path / "a.wav", "--format", "jsonl", folder=tmp_path)
    said = json.loads(done.stdout)["speech"]["frames"]
    assert len(parse_frames(said)) in (29, 30)
    table = metaser("predict", run, tmp_path / "a.wav", folder=tmp_path).stdout
    assert f"{parse_frames(said).mean():.0%}" in table
    told = metaser("predict", run, tmp_path / "a.wav", "--format", "csv", folder=tmp_path).stdout
    cells = next(csv.DictReader(told.splitlines()))
    assert cells["speech.frames"] == said


def test_intervals_that_are_none_stop_before_the_first_step(corpus, tmp_path):
    shards = pack_clips(tmp_path / "shards", extra={"speech": "from 0.1 to 0.3"})
    done = metaser(
        "train", corpus.yaml, f"output_dir={tmp_path / 'run'}", f"data.shards={shards}", *WITH_FRAMES, folder=tmp_path
    )
    assert done.returncode == 2
    assert "intervals must look like" in done.stderr and "'from'" in done.stderr
    assert not (tmp_path / "run/metrics.jsonl").exists()
