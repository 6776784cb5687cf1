"""Answers of other systems under our protocol: tables of predictions, classifiers of transformers, linear baselines."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from tinyruns import error_line, metaser, read_json
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

WORDS = ("angry", "happy", "calm", "sad")


def rows_of(run):
    with (run / "report/predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_table(path, header, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def test_a_runs_own_predictions_as_a_table_get_its_own_numbers(corpus, finished, tmp_path):
    expected = read_json(finished / "report/report.json")["tasks"]["emotion"]
    rows = rows_of(finished)
    labels = [name.removeprefix("emotion.probability.") for name in rows[0] if name.startswith("emotion.probability.")]
    shares = [[row["key"], *(row[f"emotion.probability.{label}"] for label in labels)] for row in rows]
    words = dict(zip(labels, WORDS, strict=True))
    said = [[row["key"], words[row["emotion.prediction"]], "more"] for row in rows]
    mapped = ["--labels", ",".join(f"{word}={label}" for label, word in words.items())]
    for name, header, cells, more in (
        ("shares", ["key", *labels], shares, []),
        ("prefixed", ["key", *(f"emotion.probability.{label}" for label in labels)], shares, []),
        ("words", ["key", "prediction", "other"], [*said, ["unknown", "?", ""]], mapped),
    ):
        table = write_table(tmp_path / f"{name}.csv", header, cells)
        command = ("evaluate", corpus.yaml, f"output_dir={tmp_path / name}", "--predictions", table, *more)
        result = metaser(*command, folder=tmp_path)
        assert result.returncode == 0, result.stderr
        report = read_json(tmp_path / name / "report/report.json")
        for metric in ("ua", "wa", "macro_f1", "confusion", "num_utterances"):
            assert report["tasks"]["emotion"][metric] == expected[metric], (name, metric)
        assert report["protocol"]["speaker_overlap"] is None
        assert f"judged from {name}.csv" in result.stdout
    told = json.loads(metaser("compare", finished, tmp_path / "words", "--json", folder=tmp_path).stdout)
    assert told["differences"]["words"]["ua"]["difference"] == 0


@pytest.mark.parametrize(
    ("header", "change", "words"),
    [
        (["utterance", "prediction"], {}, "must have a column key, but"),
        (["key", "said"], {}, "must have a column prediction, or one for each of anger"),
        (["key", "prediction"], {"word": "joy"}, "has 'joy'; say with --labels WORD=LABEL"),
        (["key", "prediction"], {"drop": True}, "must have every judged utterance, but"),
        (["key", "prediction"], {"twice": True}, "must have each key once"),
        (["key", "anger", "happiness", "neutral", "sadness"], {"shares": ["0.5"] * 4}, "that sum to 1"),
        (["key", "anger", "happiness", "neutral", "sadness"], {"shares": ["nan"] * 4}, "that sum to 1"),
        (["key", "anger", "happiness", "neutral", "sadness"], {"shares": ["a", "0", "0", "1"]}, "must hold numbers"),
    ],
)
def test_a_table_that_does_not_fit_is_one_sentence(corpus, finished, tmp_path, header, change, words):
    keys = [row["key"] for row in rows_of(finished)]
    cells = [[key, *change.get("shares", [change.get("word", "anger")])] for key in keys]
    cells = cells[1:] if change.get("drop") else [*cells, cells[0]] if change.get("twice") else cells
    table = write_table(tmp_path / "table.csv", header, cells)
    result = metaser("evaluate", corpus.yaml, f"output_dir={tmp_path / 'out'}", "--predictions", table, folder=tmp_path)
    assert result.returncode == 2, result.stderr
    assert words in error_line(result)
    assert not (tmp_path / "out/report").exists()


def test_options_that_do_not_go_together_and_folders_that_hold_a_run_are_refused(corpus, finished, tmp_path):
    table = write_table(tmp_path / "table.csv", ["key", "prediction"], [["a", "anger"]])
    for arguments, words in (
        ((corpus.yaml, "--predictions", table, "--hf", tmp_path), "must come alone"),
        ((corpus.yaml, "--predictions", table, "--shards", tmp_path), "must come alone"),
        ((finished, "a=b"), "belong to --predictions or --hf"),
        (
            (corpus.yaml, "--predictions", tmp_path / "gone.csv", f"output_dir={tmp_path / 'o'}"),
            "must be a readable table",
        ),
        ((corpus.yaml, "--predictions", table, f"output_dir={finished}"), "holds a training, whose files stay"),
        ((corpus.yaml, "--hf", tmp_path / "gone", f"output_dir={tmp_path / 'o'}"), "must be a folder with a model"),
        (
            (corpus.yaml, "--hf", tmp_path, f"output_dir={tmp_path / 'o'}"),
            "must be an audio classifier of transformers",
        ),
    ):
        result = metaser("evaluate", *arguments, folder=tmp_path)
        assert (result.returncode, words in error_line(result)) == (2, True), (arguments, result.stderr)


def test_a_classifier_of_transformers_is_judged_on_each_clip_alone(corpus, finished, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    form = {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    names = dict(enumerate((*WORDS, "surprised")))
    config = Wav2Vec2Config(**sizes, **form, id2label=names, label2id={name: number for number, name in names.items()})
    model = Wav2Vec2ForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "model")
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    extractor.save_pretrained(tmp_path / "model")
    command = ("evaluate", corpus.yaml, f"output_dir={tmp_path / 'out'}", "--hf", tmp_path / "model")
    refused = metaser(*command, folder=tmp_path)
    assert refused.returncode == 2
    assert "has none for anger, happiness, neutral, sadness; it has angry" in error_line(refused)
    mapped = "angry=anger,happy=happiness,calm=neutral,sad=sadness"
    result = metaser(*command, "--labels", mapped, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    report = read_json(tmp_path / "out/report/report.json")["tasks"]["emotion"]
    assert report["num_utterances"] == 6
    rows = rows_of(tmp_path / "out")
    shares = np.asarray(
        [[float(row[f"emotion.probability.{label}"]) for label in ("anger", "sadness")] for row in rows]
    )
    assert len(np.unique(shares.round(6), axis=0)) > 1
    true, said = zip(*((row["emotion.reference"], row["emotion.prediction"]) for row in rows), strict=True)
    assert report["ua"] == pytest.approx(balanced_accuracy_score(true, said))


def test_baselines_are_judged_as_runs_are(corpus, finished, tmp_path):
    split = "data.splits=[{policy: stored}]"
    result = metaser("baseline", "functionals", corpus.yaml, split, f"output_dir={tmp_path / 'f'}", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    report = read_json(tmp_path / "f/report/report.json")
    assert report["tasks"]["emotion"]["num_utterances"] == 6
    assert report["protocol"]["speaker_overlap"] is False
    assert any("logistic regression over 62 functionals, C = " in note for note in report["protocol"]["notes"])
    again = metaser("baseline", "functionals", corpus.yaml, split, f"output_dir={tmp_path / 'f'}", folder=tmp_path)
    assert again.stdout == result.stdout
    probe = metaser("baseline", "probe", corpus.yaml, f"output_dir={tmp_path / 'p'}", folder=tmp_path)
    assert probe.returncode == 2
    assert "a probe needs an encoder that is trained already, got kind 'logmel'" in error_line(probe)
    numbers = metaser(
        "baseline", "functionals", corpus.yaml, "main_task=asr", f"output_dir={tmp_path / 'q'}", folder=tmp_path
    )
    assert numbers.returncode == 2
