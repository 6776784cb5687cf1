"""The model card: what it says for runs of every kind, and that nothing in names can break it."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tinyruns import EXPERIMENT

from metaser.config.load import parse_experiment
from metaser.eval.card import model_card
from metaser.record import DataRecord, FolderRecord, PartRecord
from metaser.rundir import RunDir
from metaser.tasks.spec import TaskSpec

SPECS = (
    TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=("anger", "neutral")),
    TaskSpec(name="asr", kind="ctc", fields=("text",), labels=("<blank>", "<unk>", "a", "b")),
)
PROTOCOL = {
    "splits": [],
    "speaker_overlap": None,
    "num_utterances": {"train": 30, "dev": 4, "test": 6},
    "num_speakers": {"train": 2, "dev": None, "test": None},
    "num_utterances_without_speaker": {"train": 3, "dev": 4, "test": 6},
    "num_recordings_in_two_splits": 0,
    "num_files_in_two_splits": 0,
}


def part(corpus, split, num_utterances, num_speakers, num_without_speaker, languages=()):
    counts = dict.fromkeys(languages, num_utterances)
    return PartRecord(corpus, split, num_utterances, 3600.0, num_speakers, num_without_speaker, counts, {})


def make_run(folder: Path, *, corpus="mine", licence="CC0", protocol=PROTOCOL, languages=("de",)):
    folder.mkdir(exist_ok=True)
    run = RunDir(folder)
    parts = (
        part(corpus, "train", 30, 2, 3, languages),
        part(corpus, "dev", 4, 0, 4, languages),
        part(corpus, "test", 6, 0, 6),
    )
    folders = (FolderRecord("data", "0" * 64, "csv", (corpus,), licence, "somebody, 2020"),)
    run.data.write_text(json.dumps(asdict(DataRecord(folders, parts, protocol))), encoding="utf-8")
    lines = []
    for step, ua in ((3, 0.5), (6, 0.75), (9, 0.75)):
        task = {"num_utterances": 4, "loss": 1.0, "wa": ua, "ua": ua, "macro_f1": ua, "ua_interval_95": [0.25, 1.0]}
        lines.append({"stage": 2, "step": step, "dev": {"loss": 1.0, "tasks": {"emotion": task}}})
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def experiment(*, num_stages=2, **changes):
    tree = yaml.safe_load(EXPERIMENT)
    tree["tasks"] = tree["tasks"][:2]
    for stage in tree["stages"]:
        stage["weights"] = {name: weight for name, weight in stage["weights"].items() if name in ("emotion", "asr")}
    tree["stages"] = tree["stages"][-num_stages:]
    return parse_experiment(yaml.safe_dump({**tree, **changes}), "here")


REPORT = {
    "split": "test",
    "num_utterances": 6,
    "tasks": {
        "emotion": {"num_utterances": 6, "wa": 0.5, "ua": 0.625, "macro_f1": 0.4, "ua_interval_95": [0.5, 0.75]},
        "asr": {"num_utterances": 5, "wer": 1.5, "cer": 0.75},
    },
    "protocol": {
        "speaker_overlap": None,
        "used": "6 of 9 used, because 3 are | others",
        "notes": ["the speakers of 6"],
    },
}


def header(card):
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def test_the_card_tells_what_was_done_and_how_well(tmp_path):
    card = model_card(make_run(tmp_path), experiment(), SPECS, REPORT)
    assert "in 2 stages: `metadata`, then `emotion`. The main task is emotion." in card
    assert "| 1 | metadata | 6 | encoder, ari, heads | asr (1) | all with a label for a task | loss |" in card
    assert "a transformer of 2 layers over log-mel frames, trained from scratch" in card
    assert "| mine | train | 30 | 1.00 | 2, unknown for 3 utterances | de |" in card
    assert "| mine | test | 6 | 1.00 | unknown | unknown |" in card
    assert "| mine | csv | CC0 | somebody, 2020 |" in card
    assert "whether they share speakers is unknown; those of 13 utterances are unknown." in card
    assert "Dev, at step 6 of the last stage, chosen by emotion.ua = 0.7500:" in card
    assert "| emotion | 4 | WA 0.750, UA 0.750, macro-F1 0.750 | 0.250 to 1.000 |" in card
    assert "Test, 6 utterances:" in card
    assert "| emotion | 6 | WA 0.500, UA 0.625, macro-F1 0.400 | 0.500 to 0.750 |" in card
    assert "| asr | 5 | WER 1.500, CER 0.750 | - |" in card
    assert "6 of 9 used, because 3 are \\| others." in card
    assert "People of the test set may have been trained on" in card
    assert header(card)["language"] == ["de"]


def test_one_stage_is_one_stage_and_before_the_end_nothing_is_said_of_test(tmp_path):
    config = experiment(num_stages=1)
    run = make_run(tmp_path, protocol=PROTOCOL | {"speaker_overlap": False})
    run.metrics.write_text(run.metrics.read_text().replace('"stage": 2', '"stage": 1'))
    card = model_card(run, config, SPECS)
    assert "Trained by MetaSER in one stage: `emotion`." in card
    assert "two stages" not in card and "2 stages" not in card
    assert "Test: not judged yet." in card
    assert "no speaker in two of them" in card


def test_a_pre_trained_encoder_is_named_with_its_licence(tmp_path):
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# An encoder\n")
    encoder = {"kind": "huggingface", "name": str(folder), "revision": "v2"}
    model = {"encoder": encoder, "coattention": {"form": "none"}}
    card = model_card(make_run(tmp_path / "run"), experiment(model=model), SPECS)
    assert f"`{folder}`, revision v2, pre-trained; its licence: mit" in card
    assert "base_model" not in header(card)
    encoder["name"] = "microsoft/wavlm-large"
    card = model_card(make_run(tmp_path / "run"), experiment(model=model), SPECS)
    assert header(card)["base_model"] == "microsoft/wavlm-large"
    assert "its licence: see there, not known here" in card


@given(words=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
@pytest.mark.filterwarnings("error")
def test_no_name_breaks_the_header_or_a_table(tmp_path_factory, words):
    folder = tmp_path_factory.getbasetemp() / "card"
    run = make_run(folder, corpus=words, licence=words, languages=(words,))
    card = model_card(run, experiment(), SPECS, REPORT)
    assert all(re.fullmatch("[a-z]{2,3}", code) for code in header(card).get("language", ()))
    tables = [line for line in card.split("\n") if line.startswith("| ") and "30" in line]
    assert [line.replace("\\\\", "").replace("\\|", "").count("|") for line in tables] == [7]


def test_only_codes_of_languages_stand_in_the_header(tmp_path):
    run = make_run(tmp_path / "run", languages=("EN", "de", "pt-BR", "zh_Hant", "German", "deutsch", "?"))
    assert header(model_card(run, experiment(), SPECS, REPORT))["language"] == ["de", "en", "pt", "zh"]
