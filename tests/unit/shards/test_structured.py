"""JSON Lines and Parquet hold what a table of text holds; what cannot be read is told by column and row."""

import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpustrees import write, write_audio
from hypothesis import given
from hypothesis import strategies as st
from waysin import read

from shards.corpora.options import ReadOptions
from shards.corpora.parquet import parquet_table
from shards.corpora.times import seconds_in
from shards.errors import CorpusError


def parquet(folder: Path, **columns) -> Path:
    """Write a table of as many rows as each column has, with a file for each."""
    num_rows = len(next(iter(columns.values())))
    for row in range(num_rows):
        write_audio(folder / f"{row}.wav")
    path = folder / "mine.parquet"
    pq.write_table(pa.table({"file": [f"{row}.wav" for row in range(num_rows)], **columns}), path)
    return path


# ---------------------------------------------------------------- Parquet: times

TIMES_S = ("0", "0.05")


@pytest.mark.parametrize(
    ("name", "kind", "values"),
    [
        ("start", pa.duration("s"), [0, 0]),
        ("start", pa.duration("ms"), [0, 50]),
        ("start", pa.duration("us"), [0, 50_000]),
        ("start", pa.duration("ns"), [1, 50_000_001]),
        ("start_ms", pa.duration("ns"), [0, 50_000_000]),
        ("start_ms", pa.int16(), [0, 50]),
        ("start", pa.decimal128(10, 3), [Decimal("0"), Decimal("0.050")]),
        ("start", pa.float16(), [np.float16(0), np.float16(0.05)]),
        ("start", pa.float32(), [0, 0.05]),
        ("start", pa.time32("ms"), [0, 50]),
        ("start", pa.time64("ns"), [0, 50_000_000]),
        ("start", pa.binary(), [b"0", b"0.05"]),
        ("start", pa.dictionary(pa.int8(), pa.string()), TIMES_S),
    ],
)
def test_times_of_any_type_are_read(tmp_path, name, kind, values) -> None:
    (first, second), rejected, _ = read("jsonl", parquet(tmp_path, **{name: pa.array(values, kind)}))
    assert rejected == []
    assert first.audio.start_s == pytest.approx(0, abs=1e-8)
    assert second.audio.start_s == pytest.approx(values[1] and 0.05, abs=1e-4)


@given(st.integers(-(2**40), 2**40), st.sampled_from(("s", "ms", "us", "ns")))
def test_a_duration_means_the_same_seconds_as_its_text(tmp_path_factory, ticks, unit) -> None:
    path = tmp_path_factory.getbasetemp() / "duration.parquet"
    pq.write_table(pa.table({"start": pa.array([ticks], pa.duration(unit))}), path)
    (row,) = parquet_table(path, ReadOptions()).rows
    exact = ticks / {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[unit]
    assert seconds_in(row.cells["start"]) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (pa.duration("ns"), 1_500_000_001, "1.500000001 s"),
        (pa.duration("ns"), 1_500_000_000, "1.5 s"),
        (pa.timestamp("ns"), 1_500_000_001, "1970-01-01 00:00:01.500000001"),
        (pa.timestamp("us", tz="Mars/Olympus"), 1_500_000, "1970-01-01 00:00:01.5+00:00"),
        (pa.timestamp("us", tz="Europe/Berlin"), 0, "1970-01-01 00:00:00+00:00"),
        (pa.time64("ns"), 1_500_000_001, "00:00:01.500000001"),
        (pa.date32(), 1, "1970-01-02"),
        (pa.date64(), 86_400_000, "1970-01-02"),
        (pa.decimal128(10, 2), Decimal("1.50"), 1.5),
        (pa.decimal128(10, 2), Decimal("3.00"), 3),
        (pa.float32(), 0.1, 0.1),
        (pa.binary(), "Zoë".encode(), "Zoë"),
        (pa.list_(pa.duration("ns")), [1], '["0.000000001 s"]'),
        (pa.map_(pa.string(), pa.int8()), [("a", 1)], '{"a": 1}'),
    ],
)
def test_values_that_python_has_no_form_for_are_kept_beside(tmp_path, kind, value, text) -> None:
    (item,), rejected, _ = read("jsonl", parquet(tmp_path, born=pa.array([value], kind)))
    assert (item.utterance.extra, rejected) == ({"born": text}, [])


def unreadable_text() -> pa.Array:
    ends = (0).to_bytes(4, "little") + (1).to_bytes(4, "little") + (2).to_bytes(4, "little")
    return pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(ends), pa.py_buffer(b"a\xff")])


@pytest.mark.parametrize(
    "values",
    [
        pa.array([0, 2**30], pa.date32()),
        pa.array([0, -(2**30)], pa.date32()),
        pa.array([0, 2**62], pa.timestamp("us")),
        pa.array([0, 2**60], pa.time64("us")),
        pa.array([[0], [2**62]], pa.list_(pa.timestamp("ms"))),
        unreadable_text(),
    ],
    ids=lambda values: str(values.type),
)
def test_a_value_that_cannot_be_read_is_told_by_column_and_row(tmp_path, values) -> None:
    path = parquet(tmp_path, born=values)
    (_,), (rejection,), _ = read("jsonl", path)
    assert rejection.source == "mine.parquet row 2"
    assert rejection.reason.startswith("column born must hold what can be read, but a ")
    assert rejection.reason.endswith("leave the column out with --map born=")
    items, rejected, _ = read("jsonl", path, columns={"born": None})
    assert (len(items), rejected) == (2, [])


@pytest.mark.skipif(not hasattr(pa, "uuid"), reason="this pyarrow has no type for UUIDs")
def test_a_uuid_may_be_a_name(tmp_path) -> None:
    path = parquet(tmp_path, speaker=pa.array([bytes(range(16))], pa.binary(16)).cast(pa.uuid()))
    (item,), _, _ = read("jsonl", path)
    assert item.utterance.speaker == "00010203-0405-0607-0809-0a0b0c0d0e0f"


def test_bytes_are_no_name(tmp_path) -> None:
    _, (rejection,), _ = read("jsonl", parquet(tmp_path, speaker=[b"\xff"]))
    assert rejection.reason == "speaker must be one value, got b'\\xff'"


# ---------------------------------------------------------------- votes


@pytest.mark.parametrize(
    "kind",
    [
        pa.struct([("anger", pa.int64()), ("sad", pa.float32())]),
        pa.map_(pa.string(), pa.int64()),
        pa.map_(pa.string(), pa.decimal128(3, 1)),
    ],
)
def test_votes_are_an_object_or_a_map(tmp_path, kind) -> None:
    votes = [{"anger": 2, "sad": None}, {"anger": None, "sad": 1}, {"anger": None, "sad": None}, None]
    rows = [vote and list(vote.items()) if pa.types.is_map(kind) else vote for vote in votes]
    items, rejected, _ = read("jsonl", parquet(tmp_path, emotion_votes=pa.array(rows, kind)))
    assert rejected == []
    assert [item.utterance.emotion_votes for item in items] == [{"anger": 2}, {"sadness": 1}, None, None]


def test_null_is_no_vote_in_json_and_in_a_table(tmp_path) -> None:
    write_audio(tmp_path / "0.wav")
    lines = write(tmp_path / "a.jsonl", '{"file": "0.wav", "emotion_votes": {"anger": 2, "joy": null}}\n')
    table = write(tmp_path / "a.csv", 'file,emotion_votes\n0.wav,"{""anger"": 2, ""joy"": null}"\n')
    for corpus, path in (("jsonl", lines), ("csv", table)):
        (item,), rejected, _ = read(corpus, path)
        assert (item.utterance.emotion_votes, rejected) == ({"anger": 2}, [])


# ---------------------------------------------------------------- names that stand twice


@pytest.mark.parametrize("second", ["speaker", "speaker ", " speaker", "\ufeffspeaker", "speaker\u00a0"])
def test_a_name_that_stands_twice_is_never_one_value(tmp_path, second) -> None:
    write_audio(tmp_path / "a.wav")
    line = f'{{"file": "a.wav"}}\n{{"file": "a.wav", "speaker": "anna", {json.dumps(second)}: "ben"}}\n'
    _, (rejection,), _ = read("jsonl", write(tmp_path / "mine.jsonl", line))
    assert "it names speaker twice" in rejection.reason
    _, (rejection,), _ = read("audiofolder", write(tmp_path / "f" / "metadata.jsonl", line).parent, audio=tmp_path)
    assert "it names speaker twice" in rejection.reason
    table = pa.table([["a.wav"], ["anna"], ["ben"]], names=["file", "speaker", second])
    pq.write_table(table, tmp_path / "mine.parquet")
    write(tmp_path / "mine.csv", f"file,speaker,{second}\na.wav,anna,ben\n")
    for corpus, name in (("jsonl", "mine.parquet"), ("csv", "mine.csv")):
        with pytest.raises(CorpusError, match=r"must name each column once, but repeats speaker; rename them"):
            read(corpus, tmp_path / name)


# ---------------------------------------------------------------- files that are something else


@pytest.mark.parametrize("indent", [1, 4, "\t"])
@pytest.mark.parametrize("opening", ["", "\n\n", "  "])
def test_json_that_is_written_for_the_eye_is_named_so(tmp_path, indent, opening) -> None:
    rows = "\n".join(json.dumps({"file": f"{row}.wav", "box": {"a": [1]}}, indent=indent) for row in range(2))
    path = write(tmp_path / "mine.jsonl", opening + rows)
    with pytest.raises(CorpusError, match=r"must have one JSON object per line, or .* its first object goes over \d+"):
        read("jsonl", path)
    holding_a_row = write(tmp_path / "holding.jsonl", '{\n"file": "0.wav",\n"box":\n{"file": 1}\n}\n')
    with pytest.raises(CorpusError, match=r"its first object goes over 5 lines"):
        read("jsonl", holding_a_row)
    listed = write(tmp_path / "mine.json", json.dumps([{"file": "0.wav"}], indent=indent))
    write_audio(tmp_path / "0.wav")
    assert len(read("jsonl", listed)[0]) == 1


@pytest.mark.parametrize("content", ["file,emotion\na.wav,anger\n", '"a.wav"\n', "{\n", "1\n2\n"])
def test_lines_of_something_else_are_shown(tmp_path, content) -> None:
    with pytest.raises(
        CorpusError, match=r"must have one JSON object per line, or all in one list, but row 1 is none: a (line|row) "
    ):
        read("jsonl", write(tmp_path / "mine.jsonl", content))


def test_a_parquet_file_without_rows_has_columns(tmp_path) -> None:
    pq.write_table(
        pa.table({"file": pa.array([], pa.string()), "mood": pa.array([], pa.string())}), tmp_path / "a.parquet"
    )
    items, rejected, said = read("jsonl", tmp_path / "a.parquet")
    assert (items, rejected) == ([], [])
    assert "mood" in said


def test_a_file_that_is_no_parquet_is_told_as_such(tmp_path) -> None:
    for content in ("", "PAR", f"PAR1{'x' * 100}PAR1"):
        with pytest.raises(CorpusError, match="must be a Parquet file that can be read, but "):
            read("jsonl", write(tmp_path / "a.parquet", content))


UNITS = ("s", "ms", "us", "ns")
TICKING = [
    *(pa.duration(unit) for unit in UNITS),
    *(pa.timestamp(unit, zone) for unit in UNITS for zone in (None, "UTC", "Mars/Olympus")),
    *(pa.date32(), pa.date64(), pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
]


@pytest.mark.parametrize("kind", TICKING, ids=str)
def test_no_count_of_ticks_ends_in_a_traceback(tmp_path, kind) -> None:
    most = 2 ** (kind.bit_width - 1) - 1
    plain = pa.int32() if kind.bit_width == 32 else pa.int64()
    # A thousandth: Parquet has no seconds and multiplies them.
    ticks = [0, 1, -1, most // 2000, -most // 2000, None]
    path = parquet(tmp_path, seen=pa.array(ticks, plain).view(kind))
    items, rejected, _ = read("jsonl", path)
    assert len(items) + len(rejected) == len(ticks)
    assert "seen" not in items[-1].utterance.extra
