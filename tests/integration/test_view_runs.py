"""A run whose emotion stream meets a second encoder of the sound and one of the text, from shards to `predict`."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import soundfile as sf
import torch
from safetensors.torch import load_file
from textfolders import save_bert, with_views
from tinyruns import ALONE, Speech, TinyCorpus, dev_metrics, error_line, losses, metaser, pack_clips, ranks, read_json

from metaser.config.schema import ExperimentConfig
from metaser.model.metaser import build_model
from metaser.predict import load_model, predict_files
from metaser.train.initial import load_initial_weights
from metaser.train.run import train


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def run(corpus: TinyCorpus, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus.train(tmp_path_factory.mktemp("views") / "run", *with_views(bert))


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    samples, rate_hz = Speech(120.0, 3.0, 0.5, 1).load()
    sf.write(tmp_path / "a.wav", samples, rate_hz)
    return tmp_path / "a.wav"


def test_views_rest_in_the_first_stage_and_move_in_the_second(run: Path) -> None:
    first, begun, last = (
        load_file(run / f"stage{stage}/checkpoints/step-{step:06d}/model.safetensors")
        for stage, step in ((1, 4), (1, 6), (2, 6))
    )
    views = [name for name in last if name.startswith("views.")]
    assert all(torch.equal(first[name], begun[name]) for name in views)
    statistics = {f"views.pitch.{name}_V" for name in ("mean", "deviation")}
    assert all(torch.equal(begun[name], last[name]) for name in statistics)
    at_rest = {name.rsplit(".", 1)[0] for name in {*views} - statistics if torch.equal(begun[name], last[name])}
    # No gradient reaches what adds the same to all scores of a query.
    assert all(name.endswith("attention.self.key") or name.endswith("k_proj") for name in at_rest), at_rest


def test_the_report_says_what_was_read(run: Path) -> None:
    report = read_json(run / "report/report.json")
    notes = report["protocol"]["notes"]  # type: ignore[index]
    assert "the view 'words' read the field 'text' of 6 of the 6 utterances" in notes
    assert "the view 'pitch' read 3 fields ('extra.pitch_hz' first) of 6 of the 6 utterances" in notes


def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(
    corpus: TinyCorpus, bert: Path, run: Path, tmp_path: Path
) -> None:
    begun = tmp_path / "run"
    config = corpus.experiment(begun, *with_views(bert))
    # Between two checkpoints of the second stage, which has one each two steps.
    with ranks(1, die_after, config, 11, folder=tmp_path / "said") as job:
        assert job.join() == [-signal.SIGKILL], job.said()
    corpus.train(begun, *with_views(bert))
    assert losses(begun) == losses(run) and dev_metrics(begun) == dev_metrics(run)
    exported = [(folder / "best/model.safetensors").read_bytes() for folder in (begun, run)]
    assert exported[0] == exported[1]


def die_after(config: ExperimentConfig, num_lines: int) -> None:
    """Train in this process until so many lines of metrics are written."""
    lines: list[object] = []

    def on_metrics(metrics: dict[str, object]) -> None:
        lines.append(metrics)
        if len(lines) == num_lines:
            os.kill(os.getpid(), signal.SIGKILL)

    train(config, ALONE, on_metrics=on_metrics)


def test_what_is_said_counts(run: Path, recording: Path) -> None:
    model = load_model(run)
    answers = {}
    for text in ("an so", "ne no", ""):
        (answer,) = predict_files(model, [str(recording)], texts=[text])
        answers[text] = answer.tasks["emotion"]["probabilities"]
    (without,) = predict_files(model, [str(recording)])
    assert answers["an so"] != answers["ne no"] != answers[""] == without.tasks["emotion"]["probabilities"]
    assert any("was given no text for" in note for note in without.notes)


def test_predict_on_the_command_line(run: Path, recording: Path, tmp_path: Path) -> None:
    texts = ("--text", "an, so", "--text", "ne")
    done = metaser("predict", run, recording, recording, *texts, "--format", "csv", folder=tmp_path)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["text"] for row in rows] == ["an, so", "ne"]
    notes = done.stderr.splitlines()
    assert len(notes) == 2 and all("numbers beside the sound" in note for note in notes)
    assert rows[0]["emotion.anger"] != rows[1]["emotion.anger"]
    lines = metaser("predict", run, recording, "--text", "ne", "--format", "jsonl", folder=tmp_path).stdout
    assert json.loads(lines)["text"] == "ne"
    few = metaser("predict", run, recording, recording, "--text", "ne", folder=tmp_path)
    assert "once for each file, in their order, got 1 for 2" in error_line(few)


def test_a_model_that_only_hears_takes_no_text(finished: Path, recording: Path, tmp_path: Path) -> None:
    done = metaser("predict", finished, recording, "--text", "ne", folder=tmp_path)
    assert "this one only hears, got 'ne'; leave it out" in error_line(done)


def test_a_swapped_tokenizer_is_refused(run: Path, recording: Path, tmp_path: Path) -> None:
    export = tmp_path / "best"
    export.mkdir()
    for path in (run / "best").iterdir():
        (export / path.name).write_bytes(path.read_bytes())
    save_bert(tmp_path / "other", words=("so", "no", "an", "ha", "ne", "sa"))
    (export / "tokenizer_words.json").write_bytes((tmp_path / "other/tokenizer.json").read_bytes())
    done = metaser("predict", export, recording, folder=tmp_path)
    assert "must be the tokenizer that the model was trained with" in error_line(done)
    (export / "tokenizer_words.json").unlink()
    assert "tokenizer_words.json" in error_line(metaser("predict", export, recording, folder=tmp_path))


def test_other_shards_without_texts_are_judged_without(run: Path, tmp_path: Path) -> None:
    shards = pack_clips(tmp_path / "shards", text=None, split="test")
    done = metaser("evaluate", run, "--shards", shards, "--allow-overlap", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    report = read_json(run / "report/shards-test/report.json")
    assert "of 0 of the 36 utterances" in " ".join(report["protocol"]["notes"])  # type: ignore[index]


@pytest.mark.parametrize("field", ["extra.hypothesis", "text"])
def test_a_view_with_nothing_to_read_is_refused(field: str, bert: Path, corpus: TinyCorpus, tmp_path: Path) -> None:
    shards = pack_clips(tmp_path / "shards", text=None)
    overrides = (
        f"data.shards={shards}",
        f"output_dir={tmp_path / 'run'}",
        f"model.views={{words: {{kind: text, name: {bert}, field: {field}}}}}",
        *("stages.0.weights={gender: 1.0}", "stages.1.weights={emotion: 1.0}"),
        "tasks=[{name: emotion, kind: classification}, {name: gender, kind: classification}]",
    )
    done = metaser("train", corpus.yaml, "--", *overrides, folder=tmp_path)
    assert f"no training utterance has anything in the field '{field}'" in error_line(done)
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_field_of_numbers_is_no_text(bert: Path, corpus: TinyCorpus, run: Path, tmp_path: Path) -> None:
    shards = pack_clips(tmp_path / "shards", extra={"number": 5})
    overrides = (
        f"data.shards={shards}",
        f"output_dir={tmp_path / 'run'}",
        f"model.views={{words: {{kind: text, name: {bert}, field: extra.number}}}}",
    )
    done = metaser("train", corpus.yaml, "--", *overrides, folder=tmp_path)
    assert "'extra.number' of the shards holds 5" in error_line(done)


def test_views_are_told_in_the_card(run: Path) -> None:
    card = (run / "best/README.md").read_text()
    assert "View `mel`: a transformer of 1 layers over log-mel frames" in card
    assert "View `words`: " in card and "reads `text`" in card and "--text WORDS" in card


def test_views_are_taken_over_if_their_form_is_the_same(
    bert: Path, corpus: TinyCorpus, run: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(bert, tmp_path / "moved")
    other = save_bert(tmp_path / "other", words=("so", "no", "an", "ha", "ne", "sa"))
    for folder, is_loaded in ((moved, True), (other, False)):
        config = corpus.experiment(tmp_path / "run", *with_views(folder), "model.views.mel.dropout=0")
        specs = load_model(run).task_specs
        model = build_model(config.model, specs, "emotion")
        said = load_initial_weights(model, str(run))
        assert ("views.words" in said.loaded) == is_loaded and ("views.words" in said.fresh) != is_loaded
        assert "views.mel" in said.loaded


def test_the_statistics_are_those_of_the_training_utterances(run: Path, corpus: TinyCorpus) -> None:
    weights = load_file(run / "best/model.safetensors")
    # Speakers 0 to 3, half of them at 120 Hz, half at 180; every third utterance has no number.
    training = [number for number in range(36) if number % 6 < 4 and number % 3]
    assert weights["views.pitch.mean_V"].tolist() == pytest.approx([150, sum(training) / len(training), 0])
    assert weights["views.pitch.deviation_V"][0].item() == pytest.approx(30)
