"""An audformat database is put together from its tables, however each is written; no header ends in a traceback."""

import contextlib
import copy
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from corpustrees import write, write_audio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from waysin import read

from shards.errors import CorpusError
from shards.indexload import load_index
from shards.pack import pack_corpus

HEADER = """\
name: small
source: internal
usage: unrestricted
languages: [deu]
license: CC0-1.0
schemes:
  emotion: {dtype: str, labels: [anger, sadness]}
  speaker:
    dtype: int
    labels:
      3: {gender: male, age: 31}
      8: {gender: female, age: 34}
splits:
  train: {type: train}
  test: {type: test}
tables:
  emotion.train:
    type: segmented
    split_id: train
    columns:
      emotion: {scheme_id: emotion, rater_id: gold}
      emotion.confidence: {scheme_id: confidence}
  emotion.test:
    type: segmented
    split_id: test
    columns:
      emotion: {scheme_id: emotion}
  files:
    type: filewise
    columns:
      speaker: {scheme_id: speaker}
      transcription: {}
"""


@pytest.fixture
def database(tmp_path) -> Path:
    for name in ("a", "b"):
        write_audio(tmp_path / "audio" / f"{name}.wav", duration_s=2)
    write(tmp_path / "db.yaml", HEADER)
    write(
        tmp_path / "db.emotion.train.csv",
        "file,start,end,emotion,emotion.confidence\n"
        "audio/a.wav,0 days 00:00:00,0 days 00:00:00.500000,anger,0.9\n"
        "audio/a.wav,0 days 00:00:00.500000,NaT,sadness,\n",
    )
    write(tmp_path / "db.emotion.test.csv", "file,start,end,emotion\naudio/b.wav,0 days 00:00:01,,anger\n")
    write(tmp_path / "db.files.csv", "file,speaker,transcription\naudio/a.wav,3,hallo\naudio/b.wav,8,\n")
    return tmp_path


@pytest.mark.parametrize("name", ["", "db.yaml"])
def test_an_audformat_database_is_put_together_from_its_tables(database, name) -> None:
    items, rejected, said = read("audformat", database / name)
    assert rejected == []
    assert [i.utterance.model_dump(exclude_none=True) for i in items] == [
        {
            "key": key,
            "corpus": "small",
            "source": f"audio/{key.split('/')[2]}.wav",
            "language": "de",
            "emotion": emotion,
            "gender": gender,
            "speaker": speaker,
            "age": age,
            "split": split,
            "extra": extra,
            **text,
        }
        for key, emotion, gender, speaker, age, split, extra, text in (
            (
                "small/audio/a/0-500",
                "anger",
                "male",
                "3",
                31,
                "train",
                {"emotion.confidence": "0.9"},
                {"text": "hallo"},
            ),
            ("small/audio/a/500-end", "sadness", "male", "3", 31, "train", {}, {"text": "hallo"}),
            ("small/audio/b/1000-end", "anger", "female", "8", 34, "test", {}, {}),
        )
    ]
    assert "transcription as text" in said
    assert "says the licence is CC0-1.0; --licence TEXT keeps it" in said


def test_tables_that_contradict_each_other_reject_the_row(database) -> None:
    write(
        database / "db.files.csv", "file,speaker,transcription\naudio/a.wav,3,hallo\naudio/a.wav,8,\naudio/b.wav,8,\n"
    )
    write(database / "db.emotion.test.csv", "file,start,end,emotion\naudio/b.wav,,,anger\naudio/b.wav,,,sadness\n")
    _, rejected, _ = read("audformat", database)
    assert [r.reason for r in rejected] == [
        *["tables must agree, but speaker is 3 and 8"] * 2,
        "tables must agree, but emotion is anger and sadness",
    ]


def test_a_table_of_labels_is_read_as_others_are(database) -> None:
    header = re.sub(r"labels:\n +3: .*\n +8: .*", "labels: people", HEADER)
    write(database / "db.yaml", f"{header}  voices: {{type: filewise, columns: {{gender: {{}}}}}}\n")
    write(database / "db.voices.csv", "file,gender\naudio/a.wav,male\n")
    write(database / "db.people.csv", "speaker,gender,age\n3,,31\n8,female,\n")
    items, rejected, _ = read("audformat", database)
    assert rejected == []
    assert [(i.utterance.gender, i.utterance.age) for i in items] == [("male", 31), ("male", 31), ("female", None)]
    write(database / "db.people.csv", "speaker,gender,age\n3,male\n8,female,34,too much\n")
    with pytest.raises(CorpusError, match=r"db\.people\.csv must be as audformat wrote it, but in row 2 "):
        read("audformat", database)


def test_what_is_no_database_is_refused(database) -> None:
    (database / "db.files.csv").unlink()
    with pytest.raises(CorpusError, match=r"must hold the table files as db\.files\.csv or \.parquet"):
        read("audformat", database)
    write(database / "db.yaml", "- a")
    with pytest.raises(CorpusError, match="must be the header of an audformat database"):
        read("audformat", database)
    write(database / "db.yaml", "a: [")
    with pytest.raises(CorpusError, match="must be YAML that can be read"):
        read("audformat", database)
    with pytest.raises(CorpusError, match=r"not an audformat database: .* must hold db\.yaml"):
        read("audformat", database / "audio")


def test_a_database_packs_to_the_end(database, tmp_path) -> None:
    summary = pack_corpus("audformat", database, tmp_path / "out")
    assert summary.notes[-1] == "3 rows: 3 packed, 0 rejected"
    assert load_index([tmp_path / "out"]).duration_s.tolist() == [0.5, 1.5, 1.0]


# ---------------------------------------------------------------- one thing, written in two ways

TABLES = """\
name: two
tables:
  one: {type: segmented, columns: {emotion: {}}}
  two: {type: segmented, columns: {speaker: {}, ok: {}, weight: {}, seen: {}}}
"""
CSV_TIMES = ("0 days", "0 days 00:00:00", "0 days 00:00:00.000000", "0:00:00", "0.0", "0", "00:00", "")


def two_tables(folder: Path, start: str, second: pa.Table | dict, end: str = "0 days 00:00:01.5") -> Path:
    """Write a segment into two tables, the second one a Parquet file or a row of text."""
    write_audio(folder / "a.wav", duration_s=2)
    write(folder / "db.yaml", TABLES)
    write(folder / "db.one.csv", f"file,start,end,emotion\na.wav,{start},{end},anger\n")
    if isinstance(second, dict):
        write(folder / "db.two.csv", f"{','.join(second)}\n{','.join(second.values())}\n")
    else:
        pq.write_table(second, folder / "db.two.parquet")
    return folder


@pytest.mark.parametrize("end", ["0 days 00:00:01.500000", "1.5", "PT1.5S", "00:01.5", "1500 ms"])
@pytest.mark.parametrize("start", CSV_TIMES)
def test_segments_join_by_their_times_not_by_their_spelling(tmp_path, start, end) -> None:
    second = {"file": "a.wav", "start": "0 days 00:00:00", "end": end, "speaker": "anna"}
    (item,), rejected, _ = read("audformat", two_tables(tmp_path, start, second))
    assert (item.utterance.emotion, item.utterance.speaker, rejected) == ("anger", "anna", [])
    assert item.utterance.key == "two/a/0-1500"


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        (pa.duration("ns"), (0, 1_500_000_000)),
        (pa.duration("ns"), (1, 1_500_000_001)),
        (pa.duration("ms"), (0, 1_500)),
        (pa.float32(), (0, 1.5)),
        (pa.string(), ("0 days", "0 days 00:00:01.500000000")),
        (pa.duration("us"), (None, 1_500_000)),
    ],
)
@pytest.mark.parametrize("start", CSV_TIMES)
def test_csv_and_parquet_join(tmp_path, start, kind, times) -> None:
    start_cell, end_cell = (pa.array([time], kind) for time in times)
    second = pa.table({"file": ["a.wav"], "start": start_cell, "end": end_cell, "speaker": ["anna"]})
    (item,), rejected, _ = read("audformat", two_tables(tmp_path, start, second))
    assert (item.utterance.emotion, item.utterance.speaker, rejected) == ("anger", "anna", [])


def test_files_join_in_any_unicode_form(tmp_path) -> None:
    write_audio(tmp_path / "\u00e9.wav")
    write(tmp_path / "db.yaml", TABLES.replace("segmented", "filewise"))
    write(tmp_path / "db.one.csv", "file,emotion\n\u00e9.wav,anger\n")
    write(tmp_path / "db.two.csv", "file,speaker\ne\u0301.wav,anna\n")
    (item,), rejected, _ = read("audformat", tmp_path)
    assert (item.utterance.emotion, item.utterance.speaker, rejected) == ("anger", "anna", [])


EQUAL = [
    ("speaker", "1", pa.array([1.0])),
    ("speaker", "1.0", pa.array([1], pa.int8())),
    ("speaker", "12345678901234567", pa.array([12_345_678_901_234_567])),
    ("ok", "True", pa.array([True])),
    ("weight", "0.1", pa.array([0.1], pa.float32())),
    ("weight", "1e3", pa.array([1000])),
    ("seen", "2020-01-01", pa.array([18_262 * 86_400_000], pa.timestamp("ms"))),
    ("seen", "2020-01-01 00:00:00+00:00", pa.array([18_262], pa.date32())),
    ("seen", "0 days 00:00:03", pa.array([3000], pa.duration("ms"))),
    ("gender", "Female", pa.array(["f"])),
    ("emotion", "Happy", pa.array(["happiness"])),
    ("split", "validation", pa.array(["dev"])),
]
DIFFERENT = [
    ("speaker", "01", pa.array([1])),
    ("speaker", "12345678901234567", pa.array([12_345_678_901_234_568])),
    ("speaker", "anna", pa.array(["Anna"])),
    ("ok", "True", pa.array([1])),
    ("seen", "2020-01-01", pa.array([18_263], pa.date32())),
    ("gender", "Female", pa.array(["m"])),
]


@pytest.mark.parametrize(
    ("column", "text", "value", "is_equal"), [(*c, True) for c in EQUAL] + [(*c, False) for c in DIFFERENT]
)
def test_tables_agree_on_what_they_mean(tmp_path, column, text, value, is_equal) -> None:
    write_audio(tmp_path / "a.wav")
    write(tmp_path / "db.yaml", TABLES.replace("segmented", "filewise"))
    write(tmp_path / "db.one.csv", f"file,{column}\na.wav,{text}\n")
    pq.write_table(pa.table({"file": ["a.wav"], column: value}), tmp_path / "db.two.parquet")
    items, rejected, _ = read("audformat", tmp_path)
    assert (len(items), len(rejected)) == (is_equal, not is_equal)
    assert all(f"tables must agree, but {column} is " in r.reason for r in rejected)


@pytest.mark.parametrize("speaker", ["3", "3.0"])
def test_labels_are_found_by_what_they_mean(database, speaker) -> None:
    write(database / "db.files.csv", f"file,speaker\naudio/a.wav,{speaker}\naudio/b.wav,8\n")
    items, _, _ = read("audformat", database)
    assert [(i.utterance.speaker, i.utterance.age) for i in items] == [("3", 31), ("3", 31), ("8", 34)]
    write(database / "db.yaml", re.sub(r"labels:\n +3: .*\n +8: .*", "labels: people", HEADER))
    pq.write_table(pa.table({"speaker": [3, 8], "age": [31, 34]}), database / "db.people.parquet")
    assert [i.utterance.age for i in read("audformat", database)[0]] == [31, 31, 34]


def test_a_segment_from_start_to_end_is_the_file(tmp_path) -> None:
    second = {"file": "a.wav", "start": "", "end": "", "emotion": "sadness"}
    _, (rejection,), _ = read("audformat", two_tables(tmp_path, "0 days", second, end="NaT"))
    assert rejection.reason == "tables must agree, but emotion is anger and sadness"


def test_what_is_no_time_is_told(tmp_path) -> None:
    second = {"file": "a.wav", "start": "soon", "end": "1", "speaker": "anna"}
    items, (rejection,), _ = read("audformat", two_tables(tmp_path, "0", second))
    assert len(items) == 1
    assert "start must be a finite number of seconds or a time, but 'soon'" in rejection.reason


# ---------------------------------------------------------------- tables that are not as audformat writes them


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("file,speaker,speaker\naudio/a.wav,3,8\n", "must name each column once, but repeats speaker; restore it"),
        ("file,speaker,speaker \naudio/a.wav,3,8\n", "must name each column once, but repeats speaker; restore it"),
        (",speaker\naudio/a.wav,3\n", "must begin with its index, but its first column has no name"),
    ],
)
def test_a_column_is_never_lost(database, table, words) -> None:
    write(database / "db.files.csv", table)
    with pytest.raises(CorpusError, match=rf"db\.files\.csv {words}"):
        read("audformat", database)


def test_a_label_is_described_once(database) -> None:
    write(database / "db.yaml", re.sub(r"labels:\n +3: .*\n +8: .*", "labels: people", HEADER))
    write(database / "db.people.csv", "speaker,gender\n3,male\n3.0,female\n")
    with pytest.raises(CorpusError, match=r"must describe each label once, but has two rows of '3\.0' that differ"):
        read("audformat", database)


def test_a_value_that_cannot_be_read_is_told_by_table_column_and_row(database) -> None:
    (database / "db.files.csv").unlink()
    born = pa.array([0, 2**30], pa.date32())
    pq.write_table(pa.table({"file": ["audio/a.wav", "audio/b.wav"], "born": born}), database / "db.files.parquet")
    with pytest.raises(CorpusError, match=r"db\.files\.parquet .* in row 2 column born must hold .* with --map born="):
        read("audformat", database)
    items, rejected, _ = read("audformat", database, columns={"born": None})
    assert (len(items), rejected) == (3, [])


# ---------------------------------------------------------------- the header


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (r"emotion: \{dtype.*", "emotion: str", "schemes.emotion must be an object.*, got 'str'"),
        (r"schemes:(?s:.*)splits:", "schemes: [a]\nsplits:", r"schemes must be an object.*, got \['a'\]"),
        (r"columns:\n +emotion: .*\n +emotion\.c.*", "columns: [emotion]", "tables.emotion.train.columns must be"),
        (r"train: \{type: train\}", "train: train", "splits.train must be an object.*, got 'train'"),
        (r"splits:\n.*\n.*", "splits: [train, test]", "splits must be an object"),
        (r"(?s:tables:.*)", "tables: {files: filewise}", "tables.files must be an object.*, got 'filewise'"),
        (r"(?s:tables:.*)", "tables: [files]", "tables must be an object"),
        (r"split_id: train", "split_id: [train]", r"tables.emotion.train.split_id must be a name, got \['train'\]"),
        (r"scheme_id: speaker", "scheme_id: {a: b}", "tables.files.columns.speaker.scheme_id must be a name"),
        (
            r"labels: \[anger, sadness\]",
            "labels: 3",
            "schemes.emotion.labels must be labels or the name of a table of labels, got 3",
        ),
        (r"name: small", "name: [small]", "name must be a name"),
        (r"languages: \[deu\]", "languages: {deu: 1}", r"languages\.0 must be a name"),
    ],
)
def test_a_header_of_another_shape_is_told_where(database, before, after, words) -> None:
    changed = re.sub(before, after, HEADER, count=1)
    assert changed != HEADER
    write(database / "db.yaml", changed)
    with pytest.raises(CorpusError, match=rf"db\.yaml must be the header of an audformat database, but {words}"):
        read("audformat", database)


@pytest.mark.parametrize(
    "text", ["born: 2020-99-99", f"big: {'9' * 5000}", "a: !!bool x", "a: !!timestamp x", "a: &x [*x]", "[" * 5000]
)
def test_values_that_are_none_are_no_yaml(database, text) -> None:
    write(database / "db.yaml", f"{HEADER}\n{text}\n")
    with pytest.raises(CorpusError, match=r"db\.yaml must be YAML that can be read, but "):
        read("audformat", database)


def test_nothing_in_the_header_stands_there_twice(database) -> None:
    write(database / "db.yaml", HEADER.replace("8: {gender", "3: {gender"))
    with pytest.raises(CorpusError, match=r"db\.yaml must be YAML that can be read, but line 12: 3 stands there twice"):
        read("audformat", database)
    merged = HEADER.replace("3: {", "3: &x {").replace("8: {gender: female,", "8: {<<: *x, gender: female,")
    write(database / "db.yaml", merged)
    assert [i.utterance.gender for i in read("audformat", database)[0]] == ["male", "male", "female"]


@pytest.mark.parametrize(("said", "language"), [("deu", "de"), ("[deu]", "de"), ("[deu, eng]", None), ("", None)])
def test_a_language_may_stand_alone(database, said, language) -> None:
    write(database / "db.yaml", HEADER.replace("[deu]", said))
    assert {i.utterance.language for i in read("audformat", database)[0]} == {language}


@pytest.mark.parametrize("known", ["1990-01-01", "[a, b]", "{a: b}", "!!binary YQ==", "!!set {a}", ".nan", "~"])
def test_what_is_known_of_a_label_may_be_anything(database, known) -> None:
    write(database / "db.yaml", HEADER.replace("age: 31", f"born: {known}"))
    items, rejected, _ = read("audformat", database)
    assert (len(items), rejected) == (3, [])
    if known == "1990-01-01":
        assert items[0].utterance.extra["born"] == known


SIGNS = "ab1.:~-\u00e9 \t\n\0[]{}&*!'\"#,"
WORDS = st.text(SIGNS, max_size=9)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | WORDS
KEYS = st.none() | st.booleans() | st.integers() | st.dates() | WORDS
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2))


def places(tree: object) -> list[tuple[object, object]]:
    """Return every (object or list, name or place) below."""
    inside = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    return [(tree, name) for name, _ in inside] + [found for _, item in inside for found in places(item)]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_header_ends_in_a_traceback(database, data) -> None:
    tree = copy.deepcopy(yaml.safe_load(HEADER))
    for _ in range(data.draw(st.integers(1, 2))):
        holder, name = data.draw(st.sampled_from(places(tree) or [({}, 0)]))
        if isinstance(holder, dict) and data.draw(st.booleans()):
            holder[data.draw(KEYS)] = holder.pop(name, None)
        else:
            holder[name] = data.draw(ANYTHING)
    write(database / "db.yaml", yaml.safe_dump(tree, allow_unicode=True))
    with contextlib.suppress(CorpusError):
        read("audformat", database)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(HEADER) - 1), st.integers(0, 8), WORDS)
@example(0, 0, "\x00")
def test_no_text_of_a_header_ends_in_a_traceback(database, start, num_cut, text) -> None:
    (database / "db.yaml").write_bytes(f"{HEADER[:start]}{text}{HEADER[start + num_cut :]}".encode(errors="replace"))
    with contextlib.suppress(CorpusError):
        read("audformat", database)
