"""What a finished run is good for: its report, and predictions for any audio file."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr
import torch
from safetensors.torch import load_file, save_file
from tinyruns import ALONE, Speech, clip, losses, metaser, num_lines, pack_clips, read_json
from tones import pack_items

from metaser.config.load import load_experiment
from metaser.errors import ModelError
from metaser.eval.protocol import evaluate_run
from metaser.model.metaser import MetaSERModel
from metaser.rundir import RunDir
from shards.labels import FOUR_EMOTIONS
from shards.schema import RATE_HZ


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_folder_holds_what_it_promises(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "environment.json", "train.log", "metrics.jsonl", "tensorboard", "best", "report"} <= names
    assert len(losses(finished)) == 12
    assert {path.name for path in (finished / "best").iterdir()} == {
        *("config.json", "model.safetensors", "SHA256SUMS", "README.md")
    }
    pictures = {path.name for path in (finished / "report").glob("*.png")}
    assert pictures == {"confusion.png", "curves.png", "ari_task.png"}


def test_evaluate_prints_the_report_it_writes(run, tmp_path):
    trained = read_json(run / "report/report.json")
    done = metaser("evaluate", run, "--json", folder=tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout) == read_json(run / "report/report.json") == trained
    assert trained["split"] == "test"
    assert trained["tasks"]["emotion"]["num_utterances"] == 6


def test_evaluate_prints_a_table(run, tmp_path):
    done = metaser("evaluate", run, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    ua = read_json(run / "report/report.json")["tasks"]["emotion"]["ua"]
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("│ emotion")]
    assert f"{ua:.3f}" in row


def test_evaluating_another_split_leaves_the_report_alone(run, tmp_path):
    before = (run / "report/report.json").read_bytes()
    done = metaser("evaluate", run, "--split", "dev", "--json", folder=tmp_path)
    assert done.returncode == 0
    found = read_json(run / "report/dev/report.json")
    assert json.loads(done.stdout) == found
    assert found["split"] == "dev"
    assert (run / "report/report.json").read_bytes() == before
    # The numbers of training itself at the selected step.
    selected = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ua = max(line["dev"]["tasks"]["emotion"]["ua"] for line in selected if "dev" in line and line["stage"] == 2)
    assert found["tasks"]["emotion"]["ua"] == pytest.approx(ua)


def test_evaluating_other_shards_compares_their_speakers_with_those_trained_on(run, tmp_path):
    before = (run / "report/report.json").read_bytes()
    pack_clips(tmp_path / "same", speaker="s0", split="test")
    done = metaser("evaluate", run, "--shards", tmp_path / "same", folder=tmp_path)
    assert done.returncode == 2
    assert "must hold no speaker of the training set, but 1 are (first: 'tiny:s0')" in done.stderr
    new = [clip(number, speaker="s9", split="test") for number in range(36)]
    new = [replace(item, audio=replace(item.audio, seed=100 + number)) for number, item in enumerate(new)]
    pack_items(new, tmp_path / "other")
    done = metaser("evaluate", run, "--shards", tmp_path / "other", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == read_json(run / "report/other-test/report.json")
    assert json.loads(done.stdout)["tasks"]["gender"]["num_utterances"] == 36
    assert (run / "report/report.json").read_bytes() == before


def write_audio(folder):
    """Write one voice in several formats, rates and channels; return the files."""
    samples, _ = Speech(150.0, 6.0, 0.8, 1).load()
    files = []
    for suffix, rate_hz, num_channels in (
        ("wav", 8_000, 1),
        ("wav", 16_000, 1),
        ("wav", 44_100, 2),
        ("flac", 48_000, 2),
        ("mp3", 22_050, 1),
        ("mp3", 44_100, 2),
        ("ogg", 16_000, 2),
        ("ogg", 48_000, 1),
    ):
        time_s = np.arange(round(0.8 * rate_hz)) / rate_hz
        wave = np.interp(time_s, np.arange(len(samples)) / RATE_HZ, samples)
        path = folder / f"{suffix}-{rate_hz}-{num_channels}.{suffix}"
        sf.write(path, np.stack([wave] * num_channels, axis=1), rate_hz)
        files.append(path)
    return files


def test_predict_understands_any_format_rate_and_number_of_channels(finished, tmp_path):
    files = write_audio(tmp_path)
    done = metaser("predict", finished, *files, "--format", "jsonl", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["file"] for row in rows] == [str(path) for path in files]
    for row in rows:
        # MP3 adds a little silence at both ends.
        assert row["duration_s"] == pytest.approx(0.8, abs=0.15 if "mp3" in row["file"] else 1e-3)
        for task, labels in (("emotion", FOUR_EMOTIONS), ("gender", ("female", "male"))):
            probabilities = row[task]["probabilities"]
            assert tuple(probabilities) == labels
            assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
            assert row[task]["label"] == max(probabilities, key=probabilities.get)
        assert isinstance(row["asr"]["text"], str)
        assert list(row["emotion"]["probabilities"].values()) == pytest.approx(direct(finished, row["file"]), abs=1e-5)


def direct(run, path):
    samples, rate_hz = sf.read(path, dtype="float32", always_2d=True)
    wave_BT = torch.from_numpy(soxr.resample(samples.mean(axis=1), rate_hz, RATE_HZ))[None]
    model = MetaSERModel.from_pretrained(run / "best").eval()
    with torch.inference_mode():
        logits = model(wave_BT, torch.tensor([wave_BT.shape[1]])).logits["emotion"]
    return logits.softmax(dim=-1)[0].tolist()


def test_the_formats_say_the_same(finished, tmp_path):
    (tmp_path / "bad.wav").write_text("words")
    files = [write_audio(tmp_path)[1], tmp_path / "bad.wav"]
    shown = {}
    for name in ("jsonl", "csv", "table"):
        done = metaser("predict", finished / "best", *files, "--format", name, folder=tmp_path)
        assert done.returncode == 2
        shown[name] = done.stdout
    good, bad = (json.loads(line) for line in shown["jsonl"].splitlines())
    assert "bad.wav" in bad["error"]
    good_row, bad_row = csv.DictReader(io.StringIO(shown["csv"]))
    assert bad_row["error"] == bad["error"]
    assert good_row["error"] == ""
    assert good_row["emotion.label"] == good["emotion"]["label"]
    for label, share in good["emotion"]["probabilities"].items():
        assert float(good_row[f"emotion.{label}"]) == share
        assert f"{share:.3f}" in shown["table"]
    assert good["emotion"]["label"] in shown["table"]
    assert num_lines(tmp_path / "stderr.txt") == 1


def test_a_damaged_best_model_is_not_judged(finished, tmp_path):
    run = RunDir(shutil.copytree(finished, tmp_path / "run"))
    weights = run.best / "model.safetensors"
    tensors = load_file(weights)
    lost = next(name for name in tensors if name.startswith("heads."))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, weights, {"format": "pt"})
    for words in (f"every weight, .*without {lost}", r"model\.safetensors"):
        with pytest.raises(ModelError, match=words):
            evaluate_run(run, load_experiment(run.config), ALONE)
        weights.write_bytes(b"damaged")
