"""What reports claim of the utterances that they judge, whatever the corpus says of itself and wherever it lies."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tinyruns import Speech, TinyCorpus, clip, error_line, make_corpus, metaser, pack_clips, read_json, write_experiment
from tones import pack_items

from shards.schema import make_key

FORBIDDEN = ("unseen speaker", '"speaker_overlap": false', "0 speakers", "share no speaker", "no speaker in two")


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def items(corpus, *, numbers=range(36), new_audio=True, **changes):
    """Clips under another corpus's name; with `new_audio` they are other recordings."""
    for number in numbers:
        item = clip(number, **{"split": None, **changes})
        identity = {"corpus": corpus, "key": make_key(corpus, f"x{number:03d}")}
        audio = replace(item.audio, seed=1000 + number) if new_audio else item.audio
        assert isinstance(audio, Speech)
        yield replace(item, utterance=item.utterance.model_copy(update=identity), audio=audio)


def evaluated(run, shards, *arguments, folder, code=0):
    done = metaser("evaluate", run, "--shards", shards, "--json", *arguments, folder=folder)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else error_line(done)


def test_unknown_speakers_are_never_called_unseen(tmp_path):
    pack_clips(tmp_path / "shards", speaker=None)
    yaml = write_experiment(tmp_path / "tiny.yaml", tmp_path / "shards")
    TinyCorpus(tmp_path / "shards", yaml).train(tmp_path / "run", "stages.0.num_steps=1", "stages.1.num_steps=1")
    said = ""
    for split in ("dev", "test"):
        done = metaser("evaluate", tmp_path / "run", "--split", split, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        said += done.stdout
    said += metaser("inspect", tmp_path / "shards", folder=tmp_path).stdout
    report = read_json(tmp_path / "run/report/report.json")
    assert report["protocol"]["speaker_overlap"] is None
    assert report["protocol"]["num_speakers"] == {"train": None, "dev": None, "test": None}
    assert report["protocol"]["num_utterances_without_speaker"] == {"train": 24, "dev": 6, "test": 6}
    texts = [path for path in (tmp_path / "run").rglob("*") if path.suffix in (".json", ".md", ".log", ".csv")]
    assert {"report.json", "report.md", "README.md", "train.log", "data.json"} <= {path.name for path in texts}
    for text in (said, *(path.read_text() for path in texts)):
        assert not [words for words in FORBIDDEN if words in text.lower()], text
    assert "unknown whether these speakers were trained on" in said
    assert "the speakers of 6 of 6 utterances here and of 30 of 30 that made the model are unknown" in said
    assert "no recording and no file is in both" in said
    assert "speakers unknown" in said


def test_training_recordings_are_known_under_any_corpus_and_speakers(run, tmp_path):
    pack_items(items("other", new_audio=False, speaker="x"), tmp_path / "other")
    # The shards that it was trained on are gone; the run knows its recordings.
    config = run / "config.yaml"
    # Without the checksum above it.
    lines = config.read_text().split("\n")[1:]
    config.write_text("\n".join("  shards: gone" if "shards:" in line else line for line in lines))
    words = evaluated(run, tmp_path / "other", folder=tmp_path, code=2)
    # Those of the test speaker neither trained nor chose.
    assert "must hold no recording that trained the model or chose its weights, but 30 of 36 did" in words
    report = evaluated(run, tmp_path / "other", "--allow-overlap", folder=tmp_path)
    assert report["protocol"]["speaker_overlap"] is True
    assert report["protocol"]["num_recordings_in_two_splits"] == 30
    text = (run / "report/other-test/report.md").read_text()
    assert "speaker overlap" in text
    assert "30 of 36 recordings trained the model or chose its weights" in text
    (run / "trained_on.parquet").unlink()
    report = evaluated(run, tmp_path / "other", folder=tmp_path)
    assert report["protocol"]["speaker_overlap"] is None
    assert "could not be checked: the run has no trained_on.parquet" in report["protocol"]["notes"][0]


def test_a_run_without_a_record_is_compared_with_its_shards(run, tmp_path):
    (run / "trained_on.parquet").unlink()
    (run / "data.json").unlink()
    pack_items(items("other", new_audio=False, numbers=[0, 5]), tmp_path / "other")
    assert "but 1 of 2 did" in evaluated(run, tmp_path / "other", folder=tmp_path, code=2)


def test_another_corpus_counts_whole_or_by_its_own_split(run, tmp_path):
    pack_items(items("whole", speaker="w"), tmp_path / "whole")
    protocol = evaluated(run, tmp_path / "whole", folder=tmp_path)["protocol"]
    assert protocol["speaker_overlap"] is False
    assert protocol["used"] == (
        "36 of 36 used, because corpus 'whole' has no split of its own and counts whole; 31 of them for emotion, "
        "because 5 have no label that it knows"
    )
    assert "--split all" in evaluated(run, tmp_path / "whole", "--split", "dev", folder=tmp_path, code=2)

    parts = [*items("parts", numbers=range(10), split="train"), *items("parts", numbers=range(10, 36), split="test")]
    pack_items(parts, tmp_path / "parts")
    shown = metaser("evaluate", run, "--shards", tmp_path / "parts", folder=tmp_path)
    assert "26 of 36 used, because 10 of corpus 'parts' stand in other parts of its own split" in shown.stdout
    assert read_json(run / "report/parts-test/report.json")["num_utterances"] == 26
    report = evaluated(run, tmp_path / "parts", "--split", "all", folder=tmp_path)
    assert report["num_utterances"] == 36
    assert report["protocol"]["used"].startswith("36 of 36 used, because all were asked for")

    mixed = [*items("mixed", numbers=range(10), split="test"), *items("mixed", numbers=range(10, 36))]
    pack_items(mixed, tmp_path / "mixed")
    words = evaluated(run, tmp_path / "mixed", folder=tmp_path, code=2)
    assert "must be known for every utterance, but 26 of 36 have no split of their own" in words


def test_names_of_other_corpora_are_a_hint_and_unknown_speakers_no_claim(run, tmp_path):
    pack_items(items("named", speaker="S0"), tmp_path / "named")
    protocol = evaluated(run, tmp_path / "named", folder=tmp_path)["protocol"]
    assert (protocol["speaker_overlap"], protocol["num_equal_speaker_names"]) == (None, 1)
    assert "called like speakers of another corpus" in " ".join(protocol["notes"])

    some = [*items("some", numbers=range(3), speaker="new"), *items("some", numbers=range(3, 36), speaker=None)]
    pack_items(some, tmp_path / "some")
    protocol = evaluated(run, tmp_path / "some", folder=tmp_path)["protocol"]
    assert protocol["speaker_overlap"] is None
    assert "the speakers of 33 of 36 utterances here and of 0 of 30" in " ".join(protocol["notes"])


def test_what_labels_leave_out_is_counted(run, tmp_path):
    nothing = {"text": None, "emotion": None, "gender": None, "style": None}
    mute = [*items("mute", numbers=range(30)), *items("mute", numbers=range(30, 33), **nothing)]
    pack_items([*mute, *items("mute", numbers=range(33, 36), emotion=None)], tmp_path / "mute")
    protocol = evaluated(run, tmp_path / "mute", folder=tmp_path)["protocol"]
    assert protocol["num_left_out"] == {"other splits": 0, "filter": 0, "no label": 3}
    assert "33 of 36 used, because" in protocol["used"]
    assert "3 have no label that a task of a stage knows; 26 of them for emotion, because 7" in protocol["used"]


def test_all_of_its_own_shards_include_what_it_was_trained_on(run, corpus, tmp_path):
    done = metaser("evaluate", run, "--split", "all", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "all: 36 utterances, speaker overlap" in done.stdout
    assert "36 of 36 used, because all were asked for: 24 of train, 6 of dev, 6 of test" in done.stdout
    assert "30 of 36 recordings trained the model or chose its weights" in done.stdout
    # A copy of its shards is still its own: the run's rules hold.
    shutil.copytree(corpus.shards, tmp_path / "copy")
    protocol = evaluated(run, tmp_path / "copy", folder=tmp_path)["protocol"]
    assert protocol["used"].startswith("6 of 36 used, because 30 stand in other splits")
    assert protocol["speaker_overlap"] is False


def test_a_recording_in_two_splits_stops_the_training(tmp_path):
    corpus = make_corpus(tmp_path)
    twin = clip(0, split="test", speaker="s9")
    identity = {"key": make_key("tiny", "twin")}
    twin = replace(twin, utterance=twin.utterance.model_copy(update=identity))
    pack_items([*(clip(number) for number in range(36)), twin], tmp_path / "twins")
    arguments = (corpus.yaml, f"data.shards={tmp_path / 'twins'}", f"output_dir={tmp_path / 'run'}")
    words = error_line(metaser("train", *arguments, folder=tmp_path))
    assert "'tiny/twin' in test = 'tiny/u000' in train" in words and "data.allow_recording_overlap" in words
    assert not (tmp_path / "run/config.yaml").exists()
