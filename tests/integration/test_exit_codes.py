"""Whatever a user gets wrong: exit code 2 and one sentence that holds the value, no traceback."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from tinyruns import TIMEOUT_S, SetVariables, error_line, metaser, pack_clips, write_experiment
from transformers import Wav2Vec2Config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.shards=nowhere"], r"nowhere"),
        (["data.shards=FOLDER"], r"FOLDER"),
        (["data.batch_size=3"], r"data.batch_size: unknown key \(value 3\)"),
        (["seed=many"], r"seed: .*integer.*got 'many'"),
        (["stages.0.train=[tail]"], r"trains unknown parameter groups \['tail'\]"),
        (["stages.0.train=[encoder.layers.0-7]"], r"got 'encoder.layers.0-7'"),
        (["tasks.0.labels=[anger, neutral]"], r"task 'emotion'.* found \{'happiness': \d+, 'sadness': \d+\}"),
        (["tasks.3={name: style, kind: classification, field: intensity}"], r"none of its \d+ training .* intensity"),
        (["stages.0.filter=shoe_size > 3"], r"shoe_size"),
        (["data.max_micro_batch_s=0.5"], r"the longest clip \(0.8\d s\), got 0.5"),
        (
            ["model.encoder={kind: huggingface, name: FOLDER/encoder}"],
            r"FOLDER/encoder', an encoder folder without",
        ),
        (["parallel.expected_num_processes=2"], r"expected_num_processes is 2, but 1 were started"),
        (["output_dir=FOLDER/file"], r"output_dir must be a folder, but '.*file' is a file"),
        (["stages.7.num_steps=3"], r"one of the items 0 to 1, got '7'"),
        (["nonsense"], r"must look like a.b=value, got 'nonsense'"),
        (["stages.1.select=emotion.uar"], r"by a metric .* \(loss, emotion.loss, .*emotion.ua, .*got 'emotion.uar'"),
        (["stages.0.select=emotion.ua"], r"stage 'metadata' must select by .* got 'emotion.ua'"),
        (
            ["parallel.strategy=zero2", "parallel.extra={zero_optimization: 3}"],
            r"extra must be settings that DeepSpeed takes, got \{'zero_optimization': 3\}",
        ),
        (
            ["parallel.strategy=zero2", "parallel.extra={zero_optimization: {reduce_bucket_size: -5}}"],
            r"settings that DeepSpeed takes, got .* -5",
        ),
    ],
)
def test_train(corpus, tmp_path, overrides, words):
    Wav2Vec2Config().save_pretrained(tmp_path / "encoder")
    (tmp_path / "file").touch()
    given = [override.replace("FOLDER", str(tmp_path)) for override in overrides]
    said = error_line(metaser("train", corpus.yaml, f"output_dir={tmp_path / 'run'}", *given, folder=tmp_path))
    assert re.search(words.replace("FOLDER", str(tmp_path)), said), said
    # A mistake must not tie the folder to the experiment that has it.
    assert not list(tmp_path.rglob("config.yaml"))


FIRST_OF_TWO = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"LOCAL_RANK": "0"}, "must be set together to integers, got {'RANK': None, "),
        (FIRST_OF_TWO | {"LOCAL_RANK": "-3"}, "LOCAL_RANK must be below WORLD_SIZE, got -3 and 2"),
        (FIRST_OF_TWO, "MASTER_ADDR to a host and MASTER_PORT to a port, got None and ''"),
        (FIRST_OF_TWO | {"MASTER_ADDR": "localhost", "MASTER_PORT": "99999"}, "got 'localhost' and '99999'"),
        (
            FIRST_OF_TWO | {"MASTER_ADDR": "no.such.invalid", "MASTER_PORT": "2999"},
            "MASTER_ADDR must resolve to an address, but 'no.such.invalid' does not",
        ),
    ],
)
def test_train_with_half_a_launcher_s_variables(corpus, tmp_path, variables, words):
    command = ("train", corpus.yaml, f"output_dir={tmp_path / 'run'}")
    assert words in error_line(metaser(*command, folder=tmp_path, before=SetVariables(**variables)))


def test_train_compiled_without_a_compiler(corpus, tmp_path):
    command = ("train", corpus.yaml, f"output_dir={tmp_path / 'run'}", "parallel.compile_layers=true")
    said = error_line(metaser(*command, folder=tmp_path, before=SetVariables(PATH=str(tmp_path), CXX=None)))
    assert "parallel.compile_layers true needs a C++ compiler" in said
    assert not list(tmp_path.rglob("config.yaml"))


def test_train_says_nothing_on_stdout_but_the_report(corpus, tmp_path):
    done = metaser("train", corpus.yaml, f"output_dir={tmp_path / 'run'}", folder=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("test: 6 utterances")


def test_train_without_its_config(tmp_path):
    assert "'nowhere.yaml' is not: No such file" in error_line(metaser("train", "nowhere.yaml", folder=tmp_path))


def test_train_on_speakers_that_are_tested(tmp_path):
    yaml = write_experiment(tmp_path / "tiny.yaml", pack_clips(tmp_path / "shards", speaker="s0"))
    said = error_line(metaser("train", yaml, f"output_dir={tmp_path / 'run'}", folder=tmp_path))
    assert "must not share speakers, but 1 do (first: 'tiny:s0')" in said


def test_evaluate(finished, tmp_path):
    said = error_line(metaser("evaluate", tmp_path / "nowhere", folder=tmp_path))
    assert f"'{tmp_path / 'nowhere'}' does not exist" in said
    assert "holds no config.yaml" in error_line(metaser("evaluate", tmp_path, folder=tmp_path))
    said = error_line(metaser("evaluate", finished, "--split", "holiday", folder=tmp_path))
    assert "must be one of train, dev, test or all, got 'holiday'" in said
    said = error_line(metaser("evaluate", finished, "--shards", tmp_path / "nowhere", folder=tmp_path))
    assert str(tmp_path / "nowhere") in said


def test_evaluate_before_there_is_a_model(corpus, finished, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text((finished / "config.yaml").read_text())
    assert "has no best model yet" in error_line(metaser("evaluate", tmp_path / "run", folder=tmp_path))


def test_predict_without_a_model(tmp_path):
    assert "'nowhere' does not exist" in error_line(metaser("predict", "nowhere", "a.wav", folder=tmp_path))
    assert "holds no config.json" in error_line(metaser("predict", tmp_path, "a.wav", folder=tmp_path))


BAD = {
    "missing.wav": None,
    "text.wav": b"this is no audio",
    "empty.wav": b"",
}


def test_predict_names_bad_files_and_goes_on_with_the_others(finished, tmp_path):
    for name, data in BAD.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
    sf.write(tmp_path / "good.wav", 0.1 * np.sin(np.arange(8000) / 9), 16_000)
    sf.write(tmp_path / "nan.wav", np.full(8000, np.nan), 16_000, subtype="FLOAT")
    sf.write(tmp_path / "short.wav", np.full(80, 0.1), 16_000)
    bad = [tmp_path / name for name in (*BAD, "nan.wav", "short.wav")]
    done = metaser("predict", finished, *bad, tmp_path / "good.wav", folder=tmp_path)
    assert done.returncode == 2
    assert "good.wav" in done.stdout
    said = done.stderr.splitlines()
    assert len(said) == len(bad)
    for line, path in zip(said, bad, strict=True):
        assert line.startswith("error: ")
        assert str(path) in line


def table_of(folder, **files):
    for name, samples in files.items():
        sf.write(folder / f"{name}.wav", samples, 16_000, subtype="FLOAT")
    (folder / "table.csv").write_text("file,emotion\n" + "".join(f"{name}.wav,anger\n" for name in files))
    return folder / "table.csv"


def test_pack_a_folder_that_is_no_such_corpus(tmp_path):
    for corpus in ("emodb", "an4", "csv"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        for source in ("nowhere", tmp_path / "empty"):
            assert str(source) in error_line(metaser("pack", corpus, source, tmp_path / "out", folder=tmp_path))
    said = error_line(metaser("pack", "timit", tmp_path / "empty", tmp_path / "out", folder=tmp_path))
    assert "CORPUS must be one of emodb, ravdess, iemocap," in said
    assert "got 'timit'" in said


@pytest.mark.parametrize("fault", ["truncated", "nan", "zero length", "not audio"])
def test_pack_bad_audio(tmp_path, fault):
    tone = 0.1 * np.sin(np.arange(8000) / 9)
    bad = {"nan": np.full(8000, np.nan), "zero length": np.empty(0)}.get(fault, tone)
    table = table_of(tmp_path, good=tone, bad=bad)
    if fault == "truncated":
        os.truncate(tmp_path / "bad.wav", 9000)
    elif fault == "not audio":
        (tmp_path / "bad.wav").write_text("words")
    done = metaser("pack", "csv", table, tmp_path / "out", "--workers", 1, folder=tmp_path)
    assert str(tmp_path / "bad.wav") in error_line(done)
    skipped = metaser("pack", "csv", table, tmp_path / "kept", "--workers", 1, "--on-bad", "skip", folder=tmp_path)
    assert skipped.returncode == 0
    assert "now holds 1 utterances" in skipped.stdout
    assert "bad.wav" in (tmp_path / "kept/rejected.jsonl").read_text()


def test_pack_a_label_that_is_no_split(tmp_path):
    table = table_of(tmp_path, one=np.full(8000, 0.1))
    table.write_text(table.read_text().replace("emotion", "split").replace("anger", "holdout"))
    said = error_line(metaser("pack", "csv", table, tmp_path / "out", "--workers", 1, folder=tmp_path))
    assert "'holdout'" in said


def test_inspect(tmp_path):
    assert "nowhere" in error_line(metaser("inspect", "nowhere", folder=tmp_path))
    assert str(tmp_path) in error_line(metaser("inspect", tmp_path, folder=tmp_path))


def test_the_installed_command_is_the_same(tmp_path):
    command = [Path(sys.executable).with_name("metaser"), "train", tmp_path / "nowhere.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=tmp_path)
    assert error_line(done) == done.stderr.strip()
    assert done.stdout == ""
