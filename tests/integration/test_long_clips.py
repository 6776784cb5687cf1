"""Clips longer than a window: trained on in parts, judged by all their windows, as `predict` answers them."""

import csv
import json
import logging
import shutil

import pytest
import soundfile as sf
import torch
from tinyruns import ALONE, EXACT, Speech, losses, metaser, read_json
from tones import pack_items

from metaser.config.load import load_experiment
from metaser.eval.protocol import evaluate_run
from metaser.model.metaser import COVERED
from metaser.predict import load_model, predict_files
from metaser.rundir import RunDir
from metaser.sums import write_sums
from metaser.windows import choose_windows
from shards.errors import PlanError
from shards.indexload import load_index
from shards.plan import MicroBatch
from shards.read import read_batches
from shards.schema import RATE_HZ, SourceUtterance, Utterance, make_key

WINDOWED = ("data.window_s=0.4", "data.window_overlap_s=0.1")


@pytest.fixture(scope="module")
def windowed(corpus, tmp_path_factory):
    return corpus.train(tmp_path_factory.mktemp("windowed") / "run", *WINDOWED)


def test_windows_that_hold_every_clip_change_nothing(corpus, finished, tmp_path):
    run = corpus.train(tmp_path / "run", "data.window_s=3")
    assert losses(run) == losses(finished)
    assert read_json(run / "report/report.json") == read_json(finished / "report/report.json")


def test_the_export_says_how_long_a_window_is(finished, windowed):
    # The last stage's longest training clip lasts 0.795 s.
    assert read_json(finished / "best/config.json")["window_s"] == 1.0
    assert choose_windows(load_model(finished)).length == RATE_HZ
    config = read_json(windowed / "best/config.json")
    assert (config["window_s"], config["window_overlap_s"]) == (0.4, 0.1)


def test_an_utterance_is_judged_as_predict_answers_its_file(corpus, windowed, tmp_path):
    with (windowed / "report/predictions.csv").open() as file:
        judged = {row["key"]: row for row in csv.DictReader(file)}
    index = load_index([corpus.shards])
    keys = index.values("key")
    (batch,) = read_batches(
        index, [MicroBatch(torch.tensor([keys.index(key) for key in judged]).numpy())], num_workers=0, timeout_s=9
    )
    files = [tmp_path / f"{number}.wav" for number in range(len(judged))]
    for path, wave, length in zip(files, batch.wave_BT.numpy(), batch.num_samples_B.tolist(), strict=True):
        sf.write(path, wave[:length], RATE_HZ, subtype="FLOAT")
    answers = list(predict_files(load_model(windowed), [str(path) for path in files]))
    assert any(len(answer.windows) > 1 for answer in answers)
    assert len(judged) == 6
    for row, answer in zip(judged.values(), answers, strict=True):
        assert row["emotion.prediction"] == answer.tasks["emotion"]["label"]
        for label, share in answer.tasks["emotion"]["probabilities"].items():
            assert float(row[f"emotion.probability.{label}"]) == pytest.approx(share, abs=1e-4)
        assert row["asr.prediction"] == answer.tasks["asr"]["text"]


def test_other_shards_with_clips_that_fit_no_micro_batch_are_judged_as_predict_answers_them(finished, tmp_path, caplog):
    run = shutil.copytree(finished, tmp_path / "run")
    path = run / "best/config.json"
    path.write_text(json.dumps(read_json(path) | {"window_s": 0.6, "window_overlap_s": 0.2}))
    write_sums(path.parent, COVERED)
    voice = Speech(pitch_hz=150.0, waver_hz=3.0, duration_s=5.0, seed=1)
    utterance = Utterance(key=make_key("other", "long"), corpus="other", source="long.wav", emotion="anger")
    pack_items([SourceUtterance(utterance, voice)], tmp_path / "other")
    config = load_experiment(run / "config.yaml")
    assert config.data.max_micro_batch_s < voice.duration_s
    caplog.set_level(logging.INFO)
    report = evaluate_run(RunDir(run), config, ALONE, shards=str(tmp_path / "other"), allow_overlap=True)
    assert report["num_utterances"] == 1
    assert "(the longest has 5.0 s) are heard in windows of 0.6 s that overlap by 0.2 s" in caplog.text
    sf.write(tmp_path / "long.wav", voice.load()[0], RATE_HZ, subtype="FLOAT")
    (answer,) = predict_files(load_model(run), [str(tmp_path / "long.wav")])
    assert len(answer.windows) > 1
    with (run / "report/other-test/predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["emotion.prediction"] == answer.tasks["emotion"]["label"]
    for label, share in answer.tasks["emotion"]["probabilities"].items():
        assert float(row[f"emotion.probability.{label}"]) == pytest.approx(share, abs=1e-3)


def test_texts_of_cut_clips_are_left_out_and_counted(windowed):
    log = (windowed / "train.log").read_text()
    assert "stage metadata: 19 of 24 training utterances are longer than data.window_s 0.4 and heard in windows" in log
    assert "they have no part in asr" in log


def test_the_cut_into_micro_batches_changes_no_loss(corpus, tmp_path):
    one = corpus.train(tmp_path / "one", *WINDOWED, *EXACT)
    many = corpus.train(tmp_path / "many", *WINDOWED, *EXACT, "data.max_micro_batch_s=0.8")
    for (_, _, first, _), (_, _, second, _) in zip(losses(one), losses(many), strict=True):
        assert first == pytest.approx(second, rel=1e-3)


@pytest.mark.parametrize("limit_s", [0.5, 0.81])
def test_a_clip_that_fits_no_micro_batch_is_refused_before_the_first_step(corpus, tmp_path, limit_s):
    # Dev's longest clip lasts 0.81 s, test's 0.825 s.
    with pytest.raises(PlanError, match=r"set data\.window_s to hear longer clips in windows"):
        corpus.train(tmp_path / "run", f"data.max_micro_batch_s={limit_s}")
    assert not (tmp_path / "run/config.yaml").exists()


def test_predict_answers_by_window_in_every_format(windowed, tmp_path):
    samples = torch.randn(round(1.0 * RATE_HZ), generator=torch.Generator().manual_seed(0)).numpy() * 0.05
    sf.write(tmp_path / "long.wav", samples, RATE_HZ)
    shown = {}
    for name in ("jsonl", "csv", "table"):
        done = metaser("predict", windowed, tmp_path / "long.wav", "--format", name, "--per-window", folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        shown[name] = done.stdout
    found = json.loads(shown["jsonl"])
    assert [(part["start_s"], part["end_s"]) for part in found["windows"]] == [
        (0.0, pytest.approx(0.4)),
        (0.3, pytest.approx(0.7)),
        (0.6, pytest.approx(1.0)),
    ]
    rows = list(csv.DictReader(shown["csv"].splitlines()))
    for part, row in zip(found["windows"], rows, strict=True):
        assert (float(row["start_s"]), float(row["end_s"])) == (part["start_s"], part["end_s"])
        assert row["emotion.label"] == part["emotion"]["label"]
        assert (row["num_windows"], row["error"]) == ("3", "")
    assert [line.split("│")[2].strip() for line in shown["table"].splitlines() if "long.wav" in line] == [
        "3",
        "0.00-0.40 s",
        "0.30-0.70 s",
        "0.60-1.00 s",
    ]
    whole = metaser("predict", windowed, tmp_path / "long.wav", "--format", "csv", folder=tmp_path)
    (row,) = csv.DictReader(whole.stdout.splitlines())
    assert row["emotion.label"] == found["emotion"]["label"]
    for words, option in (
        ("must last 0.1 s or longer, got 0.01", ("--window", "0.01")),
        ("got 'up'", ("--channel", "up")),
    ):
        done = metaser("predict", windowed, tmp_path / "long.wav", *option, folder=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr
