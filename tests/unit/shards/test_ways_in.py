"""Folders of classes, AudioFolders, JSON Lines and Parquet become corpora as they lie."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpustrees import write, write_audio
from waysin import read

from shards.errors import CorpusError

# ---------------------------------------------------------------- folders


def test_folders_are_classes(tmp_path) -> None:
    root = tmp_path / "my calls"
    for name in ("Wut/1.wav", "Wut/deep/2.FLAC", "joyful/1.mp3", "joyful/.hidden.wav", ".trash/x/1.wav", "loose.wav"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    write(root / "Wut" / "notes.txt", "no audio")
    items, rejected, said = read("folder", root)
    assert [(i.utterance.key, i.utterance.emotion, i.utterance.split) for i in items] == [
        ("my%20calls/Wut/1", "anger", None),
        ("my%20calls/Wut/deep/2", "anger", None),
        ("my%20calls/joyful/1", "joyful", None),
    ]
    assert items[1].utterance.source == "Wut/deep/2.FLAC"
    assert [(r.kind, Path(r.source).name) for r in rejected] == [("no class", "loose.wav")]
    assert "folders of my calls are taken for emotions: Wut (2), joyful (1)" in said


def test_files_of_one_key_are_called_by_their_names(tmp_path) -> None:
    for name in ("anger/1.flac", "anger/1.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    _, (rejection,), _ = read("folder", tmp_path, name="c")
    assert rejection.source == str(tmp_path / "anger" / "1.wav")
    assert f"has the same key 'c/anger/1' as {tmp_path / 'anger' / '1.flac'}" in rejection.reason


def test_folders_may_be_nested_in_splits(tmp_path) -> None:
    for name in ("train/anger/1.wav", "validation/anger/1.wav", "test/sad/1.wav", "train/2.wav", "spare/anger/1.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    items, rejected, said = read("folder", tmp_path, name="c")
    assert [(i.utterance.key, i.utterance.emotion, i.utterance.split) for i in items] == [
        ("c/test/sad/1", "sadness", "test"),
        ("c/train/anger/1", "anger", "train"),
        ("c/validation/anger/1", "anger", "dev"),
    ]
    assert sorted(r.kind for r in rejected) == ["no class", "no split"]
    assert "folders are taken for splits: test as test, train as train, validation as dev" in said


def test_a_folder_without_audio_is_refused(tmp_path) -> None:
    for source in (None, tmp_path / "nowhere"):
        with pytest.raises(CorpusError, match="SOURCE of a folder corpus must be a folder with audio"):
            read("folder", source)
    with pytest.raises(CorpusError, match=r"must hold audio in folders named by emotion, or metadata\.csv"):
        read("folder", tmp_path)


FORMS = {
    "csv": lambda path, rows: write(path, "file_name,label\n" + "".join(f"{n},{v}\n" for n, v in rows)),
    "jsonl": lambda path, rows: write(path, "".join(json.dumps({"file_name": n, "label": v}) + "\n" for n, v in rows)),
    "parquet": lambda path, rows: pq.write_table(
        pa.table({"file_name": [r[0] for r in rows], "label": [r[1] for r in rows]}), path
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("corpus", ["folder", "audiofolder"])
def test_an_audiofolder_is_read_by_its_table(tmp_path, form, corpus) -> None:
    for split in ("train", "test"):
        for name in ("a", "b", "unnamed"):
            write_audio(tmp_path / split / f"{name}.wav")
        FORMS[form](tmp_path / split / f"metadata.{form}", [("a.wav", "Happy"), ("b.wav", "sad"), ("gone.wav", "sad")])
    items, rejected, said = read(corpus, tmp_path, name="hf")
    assert [(i.utterance.key, i.utterance.emotion, i.utterance.split) for i in items] == [
        ("hf/test/a", "happiness", "test"),
        ("hf/test/b", "sadness", "test"),
        ("hf/train/a", "happiness", "train"),
        ("hf/train/b", "sadness", "train"),
    ]
    assert [r.kind for r in rejected] == ["row without audio", "audio without row"] * 2
    assert "file_name as file, label as emotion" in said


def test_an_audiofolder_with_one_table(tmp_path) -> None:
    write_audio(tmp_path / "data" / "a.wav")
    write(tmp_path / "metadata.csv", "file_name,transcription\ndata/a.wav,hello\n")
    (item,), rejected, _ = read("audiofolder", tmp_path, name="hf")
    assert (item.utterance.key, item.utterance.text, rejected) == ("hf/data/a", "hello", [])
    write(tmp_path / "metadata.jsonl", "{}")
    with pytest.raises(CorpusError, match=r"must hold one table, but has metadata\.csv and metadata\.jsonl"):
        read("audiofolder", tmp_path)


# ---------------------------------------------------------------- AudioFolders at any depth


def layout(root: Path, *names: str) -> Path:
    """Make empty files; readers do not decode them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("top", "train", "test"),
    [
        ("", "train", "test"),
        ("data/", "train", "test"),
        ("data/v1/", "training", "eval"),
        ("data/", "train-clean", "my_test"),
        ("data/", "train/audio", "test/audio"),
    ],
)
def test_tables_are_found_at_any_depth(tmp_path, form, top, train, test) -> None:
    for folder in (train, test):
        layout(tmp_path / top / folder, "a.wav", "b.wav")
        FORMS[form](tmp_path / top / folder / f"metadata.{form}", [("a.wav", "Happy"), ("b.wav", "sad")])
    items, rejected, said = read("audiofolder", tmp_path, name="hf")
    assert rejected == []
    assert {(i.utterance.source, i.utterance.emotion, i.utterance.split) for i in items} == {
        (f"{top}{folder}/{name}.wav", emotion, split)
        for folder, split in ((train, "train"), (test, "test"))
        for name, emotion in (("a", "happiness"), ("b", "sadness"))
    }
    assert "are taken for splits" in said


def test_one_table_may_be_about_the_files_of_all_splits(tmp_path) -> None:
    layout(tmp_path / "data", "train/a.wav", "test/b.wav", "c.wav")
    table = "file_name,split\ntrain/a.wav,\ntest/b.wav,dev\nc.wav,\n"
    write(tmp_path / "data" / "metadata.csv", table)
    items, rejected, said = read("audiofolder", tmp_path)
    assert [(i.utterance.split, rejected) for i in items] == [("train", []), ("dev", []), (None, [])]
    assert "1 utterances have no split: they lie in no split's folder" in said


def test_a_file_is_in_one_table(tmp_path) -> None:
    layout(tmp_path, "train/a.wav", "train/b.wav", "spare/c.wav")
    write(tmp_path / "metadata.csv", "file_name\ntrain/a.wav\n")
    write(tmp_path / "train" / "metadata.csv", "file_name\na.wav\n../train/b.wav\n")
    items, rejected, _ = read("audiofolder", tmp_path)
    assert [i.utterance.split for i in items] == ["train", "train"]
    assert sorted(r.reason for r in rejected) == [
        "a file must be in one table, but a.wav is in metadata.csv and train/metadata.csv",
        "no usable row of metadata.csv is about c.wav",
    ]


def test_a_file_beside_splits_that_no_table_names_is_told(tmp_path) -> None:
    layout(tmp_path, "data/train/a.wav", "spare/x.wav", "y.wav")
    write(tmp_path / "data" / "train" / "metadata.csv", "file_name\na.wav\n")
    (_,), rejected, _ = read("audiofolder", tmp_path)
    assert [r.reason for r in rejected] == ["no table is about x.wav", "no table is about y.wav"]


def test_parts_of_one_file_may_be_in_two_tables(tmp_path) -> None:
    layout(tmp_path, "long.wav")
    for split, start in (("train", 0), ("test", 1)):
        write(tmp_path / split / "metadata.csv", f"file_name,start,end\n../long.wav,{start},{start + 1}\n")
    items, rejected, _ = read("audiofolder", tmp_path)
    assert [(i.utterance.split, rejected) for i in items] == [("test", []), ("train", [])]


@pytest.mark.parametrize("top", ["", "data/", "data/v1/"])
def test_splits_of_classes_are_found_at_any_depth(tmp_path, top) -> None:
    layout(tmp_path / top, "train/anger/1.wav", "eval/sad/2.wav")
    items, rejected, _ = read("folder", tmp_path)
    assert [(i.utterance.emotion, i.utterance.split, rejected) for i in items] == [
        ("sadness", "test", []),
        ("anger", "train", []),
    ]


def test_splits_may_lie_in_classes(tmp_path) -> None:
    layout(tmp_path, "anger/train/1.wav", "sad/train/2.wav", "sad/test/3.wav")
    items, _, said = read("folder", tmp_path)
    assert [(i.utterance.emotion, i.utterance.split) for i in items] == [
        ("anger", "train"),
        ("sadness", "test"),
        ("sadness", "train"),
    ]
    assert "folders are taken for splits: train as train, test as test" in said
    layout(tmp_path, "anger/anna/4.wav")
    assert {i.utterance.split for i in read("folder", tmp_path)[0]} == {None}


@pytest.mark.parametrize(
    "names",
    [
        ("data/anger/1.wav", "data/sad/2.wav"),
        ("en/train/anger/1.wav", "de/train/anger/2.wav"),
        ("data/v1/anger/1.wav", "data/v1/sad/1.wav"),
    ],
)
def test_folders_around_classes_are_no_emotions(tmp_path, names) -> None:
    layout(tmp_path, *names)
    with pytest.raises(CorpusError, match=r"must hold folders named by emotion or split, but .* holds more folders"):
        read("folder", tmp_path)


def test_a_class_may_have_folders_if_it_is_said_to_be_one(tmp_path) -> None:
    layout(tmp_path, "joyful/anna/1.wav", "joyful/ben/2.wav")
    with pytest.raises(CorpusError, match=r"say with --labels which emotion joyful is"):
        read("folder", tmp_path)
    items, _, _ = read("folder", tmp_path, labels={"Joyful": "happiness"})
    assert {i.utterance.emotion for i in items} == {"happiness"}


def test_tables_by_another_name_are_told(tmp_path) -> None:
    layout(tmp_path, "anger/1.wav", "train_metadata.csv")
    assert "tables are not read unless they are called metadata.csv" in read("folder", tmp_path)[2]


def test_links_are_followed_but_not_in_circles(tmp_path) -> None:
    layout(tmp_path / "elsewhere", "1.wav")
    root = tmp_path / "root"
    root.mkdir()
    (root / "anger").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    assert [i.utterance.key for i in read("folder", root)[0]] == ["root/anger/1"]


# ---------------------------------------------------------------- JSON Lines


def test_json_lines_hold_what_tables_hold(tmp_path) -> None:
    for name in ("a", "b"):
        write_audio(tmp_path / f"{name}.wav")
    rows = [
        {"audio_filepath": "a.wav", "offset": 0.01, "duration": 0.05, "text": "hello", "speaker": 3.0, "age": 31},
        {"audio_filepath": "b.wav", "speaker": None, "age": float("nan"), "ok": True, "box": [1, 2], "emotion": "Wut"},
    ]
    path = write(tmp_path / "mine.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    (first, second), rejected, _ = read("jsonl", path)
    assert rejected == []
    assert (first.audio.start_s, first.audio.end_s, first.utterance.speaker) == (0.01, 0.060000000000000005, "3")
    assert (first.utterance.age, second.utterance.age, second.utterance.speaker) == (31, None, None)
    assert second.utterance.extra == {"ok": True, "box": "[1, 2]"}
    listed = write(tmp_path / "mine.json", json.dumps(rows[1:]))
    (item,), _, _ = read("jsonl", listed)
    assert item.utterance.emotion == "anger"


def test_emobox_counts_channels_and_lies_below_its_root(tmp_path) -> None:
    write_audio(tmp_path / "downloads" / "emodb" / "wav" / "03a02Wb.wav")
    row = {
        "key": "emodb-03a02Wb",
        "dataset": "emodb",
        "wav": "downloads/emodb/wav/03a02Wb.wav",
        "type": "raw",
        "sample_rate": 16000,
        "num_frame": 1600.0,
        "task": "category",
        "length": 0.1,
        "emo": "boredem",
        "channel": 2,
    }
    path = write(tmp_path / "data" / "emodb" / "fold_1" / "emodb_test_fold_1.jsonl", json.dumps(row) + "\n")
    (item,), rejected, said = read("jsonl", path, name="emodb-box")
    assert (item.utterance.key, item.utterance.emotion, item.audio.channel) == (
        "emodb-box/emodb-03a02Wb",
        "boredom",
        None,
    )
    assert rejected == []
    assert f"the audio of 1 rows lies in {tmp_path}" in said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "a line must hold a JSON object"),
        ("[1]", r"a row must be a JSON object, got '\[1\]'"),
        ('{"file": "a.wav", "file": "b.wav"}', "it names file twice"),
        ("[" * 100_000, "a line must hold a JSON object"),
    ],
)
def test_lines_that_are_no_objects_are_rejected_alone(tmp_path, line, words) -> None:
    write_audio(tmp_path / "a.wav")
    path = write(tmp_path / "mine.jsonl", f'{{"file": "a.wav"}}\n{line}\n')
    (_,), (rejection,), _ = read("jsonl", path)
    assert (rejection.source, rejection.kind) == ("mine.jsonl row 2", "bad row")
    assert re.search(words, rejection.reason)


def test_a_list_is_no_value(tmp_path) -> None:
    write_audio(tmp_path / "a.wav")
    path = write(tmp_path / "mine.jsonl", '{"file": "a.wav", "emotion": ["angry", "sad"]}\n')
    _, (rejection,), _ = read("jsonl", path)
    assert rejection.reason == 'emotion must be one value, got ["angry", "sad"]'


def test_files_go_to_the_reader_that_knows_them(tmp_path) -> None:
    with pytest.raises(CorpusError, match=r"got .*x\.csv; pack it as csv"):
        read("jsonl", write(tmp_path / "x.csv", "file\n"))
    with pytest.raises(CorpusError, match=r"got .*x\.jsonl; pack it as jsonl"):
        read("csv", write(tmp_path / "x.jsonl", "{}"))
    with pytest.raises(CorpusError, match=r"x\.parquet must be a Parquet file"):
        read("jsonl", write(tmp_path / "x.parquet", "PAR"))
    with pytest.raises(CorpusError, match="must be JSON, one object a line or one list"):
        read("jsonl", write(tmp_path / "x.json", "[1,"))
