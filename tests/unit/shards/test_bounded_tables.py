"""Tables, lists and folders take time and memory by their size, and what is no file is refused by name."""

import json
import os
import random
import resource
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.corpora.base import corpus_reader
from shards.corpora.encodings import read_text_in
from shards.corpora.foldertree import files_below
from shards.corpora.said import channel_number
from shards.corpora.times import seconds_in
from shards.errors import CorpusError
from shards.numbers import finite_number, number_of
from shards.schema import Rejection

MAX_S = 10


@pytest.fixture
def folder(tmp_path):
    sf.write(tmp_path / "a.wav", [random.Random(0).uniform(-0.1, 0.1) for _ in range(1_600)], 16_000)
    return tmp_path


def reasons(source: Path, corpus: str) -> Counter:
    """Return what a reader makes of `source`, the rejections by their reasons; it must be quick."""
    started = time.monotonic()
    try:
        found = list(corpus_reader(corpus).read(source, 0))
    finally:
        assert time.monotonic() - started < MAX_S
    assert all(len(str(item)) < 10_000 for item in found)
    return Counter(item.reason if isinstance(item, Rejection) else type(item).__name__ for item in found)


@pytest.mark.parametrize(
    "above",
    ["\n" * 300_000, "# none\n" * 9_000, (" " * 2_000 + "\n") * 200],
    ids=["blank lines", "comments", "lines of blanks"],
)
def test_lines_above_a_header_take_time_by_their_number(folder, above):
    (folder / "t.csv").write_text(f"{above}file,emotion\na.wav,anger\n")
    assert reasons(folder / "t.csv", "csv")["SourceUtterance"] == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("# none\n" * 20_000 + "file\na.wav\n", "at most 10000 lines of comment above its header"),
        ("file," + ",".join(f"x{number}" for number in range(20_000)), "at most 10000 columns, but has 20001"),
        ("file," + "y" * 2_000_000, "at most 1000 characters, but one name has 2000000; are its line ends lost"),
        ("sep= \nfile emotion\na.wav anger" + " " * 100_000, "a sign such as , or ;, got ' '"),
        ('sep="\nfile"emotion\n', "a sign such as , or ;, got '\"'"),
    ],
    ids=["comments", "columns", "one line", "blank as separator", "quote as separator"],
)
def test_tables_beyond_what_anybody_reads_are_refused_in_one_sentence(folder, content, words):
    (folder / "t.csv").write_text(content)
    with pytest.raises(CorpusError) as refused:
        reasons(folder / "t.csv", "csv")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_rows_of_json_with_names_of_their_own_are_refused_as_columns(folder):
    (folder / "t.jsonl").write_text("".join(f'{{"file": "a.wav", "x{number}": 1}}\n' for number in range(20_000)))
    with pytest.raises(CorpusError, match="at most 10000 columns, but has 20001"):
        reasons(folder / "t.jsonl", "jsonl")


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("age", "9" * 5_000, "age must be a finite number, got '999"),
        ("start", "9" * 5_000 + ":00:00", "start must be a finite number of seconds or a time, but '999"),
        ("start", "9" * 400 + " days", "start must be a finite number of seconds or a time, but '999"),
        ("emotion_votes", '{"anger": ' + "9" * 5_000 + "}", "emotion_votes must be JSON like"),
        ("emotion_votes", "[" * 40_000 + "]" * 40_000, "emotion_votes must be JSON like"),
        ("emotion_votes", '{"anger": true}', "emotion_votes must be JSON like"),
        ("emotion_votes", '{"anger": 1e300}', "emotion_votes must be JSON like"),
        ("emotion_votes", '{"anger": NaN}', "emotion_votes must be JSON like"),
        ("emotion_votes", '{"anger": 1, "anger": 2}', "emotion_votes must be JSON like"),
        ("text", "y" * 200_000, "text must have at most 100000 characters, but has 200000"),
        ("note", "y" * 200_000, "note must have at most 100000 characters, but has 200000"),
        ("split", "y" * 90_000, "split must be one of train, dev, test, got 'yyy"),
    ],
)
def test_a_hostile_cell_rejects_its_row_alone(folder, column, cell, reason):
    (folder / "b.wav").symlink_to(folder / "a.wav")
    rows = ({"file": "a.wav", column: cell}, {"file": "b.wav"})
    (folder / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = reasons(folder / "t.jsonl", "jsonl")
    assert found.pop("SourceUtterance") == 1
    assert any(word.startswith(reason) for word in found)
    assert max(map(len, found)) < 500


@given(st.text("0123456789.,:eE+-PTDHMS _dayms", max_size=40), st.integers(1, 2_000))
@settings(max_examples=200)
def test_times_and_numbers_are_finite_or_refused(cell, times):
    for text in (cell, cell * times):
        for read in (seconds_in, finite_number):
            try:
                assert abs(read(text)) < float("inf")
            except ValueError as error:
                assert len(str(error)) < 300
        number = number_of(text)
        assert number is None or number != number or abs(float(number)) < float("inf")


def test_a_channel_of_many_digits_is_none():
    with pytest.raises(CorpusError, match="must be a number from 1, left or right"):
        channel_number("9" * 5_000)


@pytest.mark.parametrize(
    "content",
    [b"1" * 300_000 + b"\xe9\n", b"caf\xe9 " * 100_000, b"a\xe9" * 100_000, bytes(range(128, 255)) * 2_000],
)
def test_the_encoding_of_long_lines_is_found_out_or_not_in_seconds(tmp_path, content):
    (tmp_path / "t.txt").write_bytes(content)
    started = time.monotonic()
    try:
        assert len(read_text_in(tmp_path / "t.txt").sample) < 200
    except CorpusError as refused:
        assert len(str(refused)) < 1_000
    assert time.monotonic() - started < MAX_S


# ---------------------------------------------------------------- Parquet


def repeated(value: str | None, count: int) -> pa.Array:
    """Return `count` times one value, in a few bytes."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value], pa.string()))


def nulls(count: int) -> pa.Array:
    """Return one list of `count` nulls."""
    return pa.ListArray.from_arrays([0, count], pa.nulls(count, pa.int8()))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"file": repeated("a.wav", 2_000_000)}, "rows, but states 2000000"),
        (
            {"file": ["a.wav"], "x": nulls(12_000_000)},
            "but states 12000001",
        ),
        ({"file": ["a.wav"], **{f"x{number}": [1] for number in range(10_000)}}, "at most 10000 columns"),
    ],
    ids=["rows", "values", "columns"],
)
def test_a_parquet_file_that_becomes_far_more_than_it_is_is_refused(folder, columns, words):
    pq.write_table(pa.table(columns), folder / "t.parquet", compression="zstd")
    with pytest.raises(CorpusError) as refused:
        reasons(folder / "t.parquet", "jsonl")
    assert words in str(refused.value)


def test_a_long_text_that_rows_of_parquet_repeat_is_kept_once(folder):
    pq.write_table(pa.table({"file": repeated("a" * 1_000_000, 5_000)}), folder / "t.parquet", compression="zstd")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = reasons(folder / "t.parquet", "jsonl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # KiB
    assert found["file must have at most 100000 characters, but has 1000000"] == 5_000


def lists_of(text: str | bytes, num_rows: int, num_items: int) -> pa.Array:
    items = pa.DictionaryArray.from_arrays(pa.array([0] * num_rows * num_items, pa.int32()), pa.array([text]))
    return pa.ListArray.from_arrays(pa.array(range(0, num_rows * num_items + 1, num_items), pa.int32()), items)


@pytest.mark.parametrize(
    "column",
    [
        lists_of("x" * 99_000, 200, 100),
        lists_of(b"\xff" * 99_000, 200, 100),
        pa.StructArray.from_arrays([lists_of("x" * 99_000, 200, 100)], ["tags"]),
        pa.ListArray.from_arrays(pa.array(range(201), pa.int32()), lists_of("x" * 99_000, 200, 100)),
        pa.MapArray.from_arrays(
            pa.array(range(0, 20_001, 100), pa.int32()),
            pa.array(map(str, range(20_000))),
            repeated("x" * 99_000, 20_000),
        ),
        pa.StructArray.from_arrays([repeated("x" * 400_000, 5_000)], ["a"]),
    ],
    ids=["list", "bytes", "list in struct", "list in list", "map", "struct"],
)
def test_texts_that_lists_of_parquet_repeat_are_bounded_over_the_table(folder, column):
    table = pa.table({"file": ["a.wav"] * len(column), "tags": column})
    pq.write_table(table, folder / "t.parquet", compression="zstd")
    size = (folder / "t.parquet").stat().st_size
    most = (256 << 20) + 64 * size
    with pytest.raises(
        CorpusError, match=rf"of {size} bytes, must hold at most {most} bytes of text, but its rows and"
    ):
        reasons(folder / "t.parquet", "jsonl")


# ---------------------------------------------------------------- what is no file


@pytest.mark.parametrize(
    ("kind", "what"),
    [("pipe", "it is a named pipe"), ("endless", "it is a device"), ("loop", "Too many levels of symbolic links")],
)
def test_text_that_is_no_file_is_refused_at_once(tmp_path, kind, what):
    path = tmp_path / "t.txt"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "endless" else path.name)
    with pytest.raises(CorpusError, match=f"must be text that can be read, but cannot: {what}"):
        read_text_in(path)


def test_sound_that_is_no_file_is_one_rejection_of_its_folder(folder):
    for name in ("anger", "joy"):
        (folder / "x" / name).mkdir(parents=True)
    (folder / "x" / "anger" / "a.wav").symlink_to(folder / "a.wav")
    os.mkfifo(folder / "x" / "joy" / "pipe.wav")
    (folder / "x" / "joy" / "endless.wav").symlink_to("/dev/zero")
    (folder / "x" / "joy" / "gone.wav").symlink_to("nowhere")
    found = reasons(folder / "x", "folder")
    assert found["SourceUtterance"] == 1
    assert sum("is no file" in reason for reason in found) == 3


def test_a_table_of_a_folder_that_is_a_pipe_is_told(folder):
    os.mkfifo(folder / "metadata.csv")
    with pytest.raises(CorpusError, match=r"metadata.csv must be text .* it is a named pipe"):
        reasons(folder, "audiofolder")


def test_links_that_multiply_folders_are_refused(tmp_path):
    for level in range(20):
        (tmp_path / f"d{level}").mkdir()
        for name in "ab":
            (tmp_path / f"d{level}" / name).symlink_to(tmp_path / f"d{level + 1}")
    (tmp_path / "d20").mkdir()
    with pytest.raises(CorpusError, match="a folder must be reached in at most 100 ways"):
        reasons(tmp_path, "folder")


def test_folders_may_lie_deep(folder):
    deep = folder / "x"
    for _ in range(1_100):
        deep.mkdir()
        deep = deep / "d"
    (deep.parent / "a.txt").write_text("")
    assert files_below(folder / "x") == [deep.parent / "a.txt"]
    (deep.parent / "a.txt").unlink()
    while deep.parent != folder:  # which pytest could not clear away
        deep = deep.parent
        deep.rmdir()


# ---------------------------------------------------------------- published forms


def test_lines_of_blanks_cost_an4_and_iemocap_no_time(folder):
    (folder / "etc").mkdir()
    for split, line in (("train", "<s>" + " " * 200_000 + "x"), ("test", "A (w)")):
        (folder / "etc" / f"an4_{split}.fileids").write_text(f"s/p/{split}\n")
        (folder / "etc" / f"an4_{split}.transcription").write_text(f"{line}\n")
    with pytest.raises(CorpusError, match="must hold words and an id in brackets per line, got '<s> "):
        reasons(folder, "an4")
    session = folder / "Session1"
    labels = session / "dialog" / "EmoEvaluation"
    labels.mkdir(parents=True)
    rows = ("[" + " - " * 60_000, "[1 - 2]" + " " * 60_000, "[1 - 2]\ta\tb\t[" + "1," * 60_000)
    (labels / "Ses01F_impro01.txt").write_text("\n".join(rows))
    found = reasons(folder, "iemocap")
    assert sum(reason.startswith("a line must be [start - end]") for reason in found.elements()) == 3
