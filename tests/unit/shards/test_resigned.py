"""Folders of another writer: every hash is right and something else is not, which verification and opening tell."""

import hashlib
import io
import json
import os
import random
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from decoded import decode, prepare
from hypothesis import given
from hypothesis import strategies as st
from resigned import edit_manifest, edit_table, resign, with_value, write_manifest
from tones import pack_items, tone

from shards.adopt import adopt_shards
from shards.audio import pcm16, pcm_sha256
from shards.config import StoredSplit
from shards.errors import InputError, ShardError
from shards.index import label_tables
from shards.indexfile import INDEX_SCHEMA
from shards.indexload import load_index
from shards.manifest import read_manifest
from shards.parquetpages import Chunk, PageError, read_footer, read_pages
from shards.plan import MicroBatch
from shards.read import read_batches
from shards.schema import Rejection
from shards.splits import assign_splits
from shards.survey import survey, verify

NUMBERS = [None, -1, 0, 2**31 - 1, 2**31, 2**62, float("nan"), float("inf")]
WORDS = [
    None,
    "",
    "x" * (1 << 21),
    "\x1b[31m",
    "[" * 1_000,
    '{"a": NaN}',
    '{"a": 1, "a": 2}',
    '{"anger": -1}',
    b"\xed\xa0\x80",
]
DIGESTS = [None, bytes(32)]
OTHER_TYPES = [
    pa.int8(),
    pa.int64(),
    pa.float32(),
    pa.binary(),
    pa.list_(pa.int64()),
    pa.struct([("a", pa.int32())]),
    pa.null(),
]
"""A column of another type; for one of these each column stays as it is."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    described = {"text": "hello", "emotion_votes": {"anger": 1.0}, "valence": 1.0}
    items = [*(tone(number, **described) for number in range(6)), Rejection("row 3", "has no audio", "no audio")]
    pack_items(items, folder, on_bad="skip")
    return folder


@pytest.fixture
def folder(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "copy")


def use(folder: Path) -> None:
    """Do what trainings, evaluations and `inspect` do with a folder; errors are of the input."""
    index = load_index([folder])
    survey(index, [read_manifest(folder)])
    for name in index.fields:
        index.values(name)
        index.codes(name)
    assign_splits(index, [StoredSplit()], allow_speaker_overlap=True, allow_recording_overlap=True)
    list(read_batches(index, [MicroBatch(np.arange(len(index)))], num_workers=0, timeout_s=1))


def refusals(folder: Path) -> list[str]:
    """Return what verification says, one line each, after using the folder as far as that goes."""
    try:
        use(folder)
    except InputError as error:
        assert "\n" not in str(error)
    found = verify([folder])
    assert not any("\n" in problem for problem in found)
    return found


def test_a_folder_that_is_signed_anew_and_not_changed_verifies(folder):
    resign(folder)
    assert refusals(folder) == []


# ---------------------------------------------------------------- the index


def _bytes_as_words(table: pa.Table, name: str, value: bytes) -> pa.Table:
    """Return a table with bytes that are no UTF-8 in a column of words, which pyarrow itself does not write."""
    values = [None if word is None else word.encode() for word in table.column(name).to_pylist()]
    data = pa.array([value, *values[1:]], pa.binary())
    words = pa.Array.from_buffers(pa.string(), len(data), data.buffers(), data.null_count)
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), words)


@pytest.mark.parametrize("name", INDEX_SCHEMA.names)
def test_no_value_of_a_column_is_believed_that_the_tar_does_not_hold(packed, tmp_path, name):
    kind = INDEX_SCHEMA.field(name).type
    before = pq.read_table(packed / "index.parquet").column(name)[0].as_py()
    for number, value in enumerate(WORDS if kind == pa.string() else DIGESTS if kind == pa.binary(32) else NUMBERS):
        folder = shutil.copytree(packed, tmp_path / str(number))
        try:
            if isinstance(value, bytes) and kind == pa.string():
                edit_table(folder, lambda table, value=value: _bytes_as_words(table, name, value))
            else:
                edit_table(folder, lambda table, value=value: with_value(table, name, value))
        except (pa.ArrowException, OverflowError, ValueError):
            continue  # The column cannot hold it.
        assert bool(refusals(folder)) == (value != before), f"{name} = {value!r:.60}"


@pytest.mark.parametrize("name", INDEX_SCHEMA.names)
def test_a_column_of_another_type_or_name_or_none_is_refused_at_opening(packed, tmp_path, name):
    def recast(table: pa.Table, other: pa.DataType) -> pa.Table:
        try:
            column = table.column(name).cast(other)
        except pa.ArrowException:
            column = pa.nulls(len(table), other)
        return table.set_column(table.schema.get_field_index(name), pa.field(name, other), column)

    names, kind = INDEX_SCHEMA.names, INDEX_SCHEMA.field(name).type
    others = [other for other in OTHER_TYPES if other != kind and (kind, other) != (pa.int32(), pa.int8())]
    edits = [lambda table, other=other: recast(table, other) for other in others]
    edits.append(lambda table: table.drop_columns([name]))
    edits.append(lambda table: table.rename_columns([f"{other}2" if other == name else other for other in names]))
    edits.append(lambda table: table.append_column(f"{name}2", table.column(name)))
    folder = shutil.copytree(packed, tmp_path / "copy")
    for edit in edits:
        shutil.copy(packed / "index.parquet", folder)
        edit_table(folder, edit)
        with pytest.raises(ShardError, match=r"index\.parquet must be the table that .* describes"):
            load_index([folder])


def _is_same(one: Path, other: Path) -> bool:
    tables = [pq.read_table(folder / "index.parquet") for folder in (one, other)]
    return tables[0].schema.names == tables[1].schema.names and tables[0].to_pylist() == tables[1].to_pylist()


def _counted_anew(folder: Path) -> None:
    """Make all counts of the manifest those of its index."""
    table = pq.read_table(folder / "index.parquet")
    shards, num_samples = (table.column(name).to_pylist() for name in ("shard", "num_samples"))

    def recount(manifest):
        manifest["index"]["num_utterances"] = len(table)
        for number, record in enumerate(manifest["shards"]):
            lengths = [length for shard, length in zip(shards, num_samples, strict=True) if shard == number]
            record.update(num_utterances=len(lengths), duration_s=sum(lengths) / 16_000)
        manifest["labels"]["corpus"] = {"tones": len(table)}
        manifest["labels"] = {"corpus": {"tones": len(table)}}

    edit_manifest(folder, recount)
    try:
        tables = label_tables(load_index([folder]))
    except ShardError:
        return
    edit_manifest(folder, lambda manifest: manifest.update(labels=tables))


TABLES = {
    "every row twice": (lambda table: pa.concat_tables([table, table]), "order of the"),
    "every row twice, side by side": (
        lambda table: table.take(sorted([*range(6)] * 2)),
        r"rows 0 and 1 have the same bytes \(6 such pairs\)",
    ),
    "a row missing": (lambda table: table.slice(0, 5), r"'tones/u005\.flac' of .* no row names it"),
    "the first row missing": (lambda table: table.slice(1), r"'tones/u000\.flac' of .* no row names it"),
    "only the first shard": (lambda table: table.slice(0, 4), r"'tones/u004\.flac' of .* no row names it"),
    "another order": (lambda table: table.take([1, 0, 2, 3, 4, 5]), "rows in the order of their keys"),
    "two places exchanged": (
        lambda table: with_value(with_value(table, "audio_offset", 512), "audio_offset", 512, row=1),
        "have the same bytes",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_rows_that_are_not_those_of_the_tars_are_found_though_all_counts_agree(folder, name):
    edit, message = TABLES[name]
    edit_table(folder, edit)
    _counted_anew(folder)
    problems = refusals(folder)
    assert problems
    assert any(re.search(message, problem) for problem in problems), problems


@pytest.mark.parametrize("name", ["text", "emotion", "speaker", "source", "valence", "extra", "split"])
def test_values_of_two_rows_exchanged_are_found(folder, packed, name):
    column = pq.read_table(packed / "index.parquet").column(name).to_pylist()
    other = next((row for row, value in enumerate(column) if value != column[0]), None)
    if other is None:
        pytest.skip("all rows have one value")

    def exchange(table):
        return with_value(with_value(table, name, column[other]), name, column[0], row=other)

    edit_table(folder, exchange)
    problems = refusals(folder)
    assert len(problems) == 2
    assert all(f"the {name} of its metadata differs from the index" in problem for problem in problems)


def test_damaged_tables_with_right_hashes_are_one_sentence(packed, tmp_path):
    """Bits turned and ends cut; what is read of them is what was packed, or nothing."""
    generator = random.Random(5)
    data = (packed / "index.parquet").read_bytes()
    folder = shutil.copytree(packed, tmp_path / "copy")
    for number in range(60):
        changed = bytearray(data[: generator.randrange(len(data))] if number % 5 == 0 else data)
        for _ in range(generator.choice([1, 1, 4])):
            if changed:
                changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
        (folder / "index.parquet").write_bytes(changed)
        resign(folder)
        problems = refusals(folder)
        assert problems or _is_same(packed, folder)


def test_nested_and_huge_tables_are_refused_before_they_are_read(folder):
    many = pa.table({f"c{number}": [0] for number in range(5_000)})
    pq.write_table(many, folder / "index.parquet")
    resign(folder)
    assert "5000 columns instead of 28" in refusals(folder)[0]
    data = (folder / "index.parquet").read_bytes()
    (folder / "index.parquet").write_bytes(data[:-8] + (1 << 31).to_bytes(4, "little") + data[-4:])
    resign(folder)
    assert "bytes of footer, got 2147483648" in refusals(folder)[0]


def test_a_long_word_in_every_row_is_refused_before_it_is_unpacked(folder):
    """A dictionary holds it once, in a kilobyte: 18 GB of text."""
    count = 20_000
    table = pq.read_table(folder / "index.parquet")
    columns = {
        name: pa.array([table.column(name)[0].as_py()] * count, table.schema.field(name).type)
        for name in table.schema.names
    }
    columns["key"] = pa.array([f"tones/u{number:07d}" for number in range(count)])
    columns["shard"] = pa.array([0] * count, pa.int32())
    columns["audio_offset"] = pa.array([512 + 2_048 * number for number in range(count)])
    columns["text"] = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), ["x" * 900_000])
    pq.write_table(pa.table(columns), folder / "index.parquet", compression="zstd", store_schema=False)
    os.truncate(folder / "tones-000000.tar", 2_048 * (count + 1))
    resign(folder)
    duration_s = count * table.column("num_samples")[0].as_py() / 16_000

    def counted(manifest):
        del manifest["shards"][1:]
        manifest["shards"][0].update(num_utterances=count, duration_s=duration_s)
        manifest["index"].update(num_utterances=count)
        manifest["labels"] = {"corpus": {"tones": count}}

    edit_manifest(folder, counted)
    index = load_index([folder])
    with pytest.raises(
        ShardError, match=r"at most 536870912 bytes a column .* but text takes 18000000000 in 20000 rows"
    ):
        index.values("text")


@pytest.mark.parametrize("compression", ["zstd", "snappy", "none"])
def test_pages_are_found_where_pyarrow_finds_them(packed, tmp_path, compression):
    table = pa.concat_tables([pq.read_table(packed / "index.parquet")] * 50)
    for version in ("1.0", "2.0"):
        path = tmp_path / f"{version}.parquet"
        pq.write_table(
            table,
            path,
            compression=compression,
            data_page_version=version,
            row_group_size=100,
            data_page_size=100,
            write_batch_size=50,
        )
        data = path.read_bytes()
        chunks = read_footer(data[-8 - int.from_bytes(data[-8:-4], "little") : -8])
        metadata = pq.read_metadata(path)
        assert [len(group) for group in chunks] == [metadata.num_columns] * metadata.num_row_groups
        for number, group in enumerate(chunks):
            for place, chunk in enumerate(group):
                stated = metadata.row_group(number).column(place)
                pages = read_pages(io.BytesIO(data), chunk, stated.num_values)
                assert (chunk.num_bytes, pages.num_values) == (stated.total_compressed_size, 100)
                assert pages.has_dictionary == stated.has_dictionary_page == pages.begins_with_dictionary
                assert 0 < pages.unpacked_bytes <= stated.total_uncompressed_size


@given(st.binary(max_size=200), st.integers(-5, 300), st.integers(-5, 300))
def test_bytes_that_are_no_pages_are_an_error(data, start, num_bytes):
    for read in (lambda: read_footer(data), lambda: read_pages(io.BytesIO(data), Chunk(start, num_bytes), 10)):
        try:
            read()
        except PageError as error:
            assert str(error)


# ---------------------------------------------------------------- the manifest


MANIFEST_VALUES = [None, -1, 0, 2**63, True, [], {}, "", "x", 1e308, [[]], {"a": {"b": -1}}, "\ud800", "../x", "a\nb"]
DESCRIBING = {
    "sources_sha256",
    "licence",
    "citation",
    "source",
    "corpus",
    "fingerprint",
    "warnings",
    "notes",
    "seed",
    "versions",
}
"""Fields of words and settings that nothing in the folder contradicts."""


def _paths(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from _paths(item, (*path, name))


def test_no_value_of_the_manifest_is_believed_that_the_folder_does_not_hold(packed, tmp_path):
    original = json.loads((packed / "manifest.json").read_text())
    folder = shutil.copytree(packed, tmp_path / "copy")
    for path in list(_paths(original))[1:]:
        for value in MANIFEST_VALUES:
            changed = json.loads(json.dumps(original))
            place = changed
            for name in path[:-1]:
                place = place[name]
            if path == ("sha256",) or place[path[-1]] == value:
                continue
            place[path[-1]] = value
            write_manifest(folder, changed)
            try:
                read_manifest(folder)
            except ShardError as error:
                assert "\n" not in str(error)
                continue
            assert DESCRIBING & {*path} or path[-1] in ("shard_utterances", "max_duration_s") or verify([folder]), path
    for name in original.keys() - {"sources_sha256"}:
        changed = {other: value for other, value in original.items() if other != name}
        (folder / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(ShardError, match=name):
            read_manifest(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "deeper than 64"),
        ('{"schema_version": 2, "schema_version": 2}', "names schema_version twice"),
        ('{"schema_version": NaN}', "no number of JSON"),
        ('{"schema_version": ' + "9" * 5_000 + "}", "5000 digits"),
        ('{"schema_version": true}', "schema_version of 1, 2, got True"),
        ('{"schema_version": 2.0}', r"schema_version of 1, 2, got 2\.0"),
        ("\ufeff{}", "must be JSON"),
        ("", "must be JSON"),
        ('{"schema_version": "\\ud800"}', "lone surrogate"),
    ],
)
def test_what_is_no_manifest_is_one_sentence(folder, text, message):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ShardError, match=message) as caught:
        read_manifest(folder)
    assert "\n" not in str(caught.value)


MANIFESTS = {
    "a tar twice": (lambda m: m["shards"].append(m["shards"][0]), "2 times among 3 shards"),
    "more utterances": (lambda m: m["index"].update(num_utterances=7), "have 6 utterances and its index 7"),
    "counts moved": (
        lambda m: (m["shards"][0].update(num_utterances=3), m["shards"][1].update(num_utterances=3)),
        "4 rows lie in tones-000000.tar, which has 3 utterances",
    ),
    "more than fit": (
        lambda m: (
            m["shards"][0].update(num_utterances=1_000),
            m["index"].update(num_utterances=1_002),
            m["labels"].update(corpus={"tones": 1_002}),
        ),
        "1000 utterances in 10240 bytes",
    ),
    "longer": (lambda m: m["shards"][1].update(duration_s=9.5), "last 0.19 s, and the manifest says 9.5"),
    "other labels": (lambda m: m["labels"].update(gender={"female": 6}), "gender is 'female' in 2 rows and not in 6"),
    "no labels": (lambda m: m.update(labels={}), "name the corpus of 0 of 6"),
    "other corpus": (lambda m: m["labels"].update(corpus={"x": 6}), "corpus is 'tones' in 6 rows and not in 0"),
    "unknown label": (lambda m: m["labels"].update(mood={"x": 1}), "'mood', which is none of"),
    "more names": (lambda m: m.update(extra_names=["other", "take"]), "only the manifest has 'other'"),
    "fewer names": (lambda m: m.update(extra_names=[]), "only the index has 'take'"),
    "more rejected": (lambda m: m["num_rejected_by_kind"].update({"no audio": 2}), "1 rejections of 1 kinds and not 2"),
    "too long": (lambda m: m["settings"].update(max_duration_s=0.01), "an utterance lasts 0.1 s, and the manifest"),
    "elsewhere": (lambda m: m.update(tars="/etc"), "tars lie in '/etc'"),
    "other files": (lambda m: m["rejected"].update(name="index.parquet"), "not index.parquet and rejected.jsonl"),
    "unknown field": (lambda m: m.update(more=1), "damaged at more"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_contradicts_the_folder_is_refused(folder, name):
    edit, message = MANIFESTS[name]
    edit_manifest(folder, edit)
    assert message in refusals(folder)[0]


# ---------------------------------------------------------------- the tars


def _members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def _write(path: Path, members, **header) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in header.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))


def _with_json(edit):
    def change(members):
        name, data = members[1]
        changed = edit(data)
        # As long as before, so that the index still points at it.
        assert len(changed) <= len(data)
        return [members[0], (name, changed + b" " * (len(data) - len(changed))), *members[2:]]

    return change


TARS = {
    "a member more": (lambda members: [*members, ("tones/more.flac", members[0][1])], "no row names it"),
    "a folder more": (lambda members: [*members, ("notes.txt", b"")], "'notes.txt' of .* no row names it"),
    "renamed": (lambda members: [("tones/u00x.flac", members[0][1]), *members[1:]], "is called 'tones/u00x.flac'"),
    "json renamed": (lambda members: [members[0], ("tones/u001.json", members[1][1]), *members[2:]], "is called"),
    "moved": (lambda members: [("tones/first.txt", b""), *members], "no member of the tar begins where"),
    "longer": (
        lambda members: [(members[0][0], members[0][1] + b"\0"), *members[1:]],
        r"its member has \d+ bytes, and the index says \d+",
    ),
    "other label": (_with_json(lambda data: data.replace(b'"anger"', b'"fear"')), "metadata differs"),
    "a name twice": (
        _with_json(lambda data: data.replace(b'"arousal":null,"corpus"', b'"corpus":"x","corpus"')),
        "names corpus twice",
    ),
    "nan": (_with_json(lambda data: data.replace(b'"age":20.0', b'"age":NaN')), "no number of JSON"),
    "a list": (_with_json(lambda data: b"[]"), "metadata cannot be read"),
    "no json": (_with_json(lambda data: b"{"), "metadata must be JSON"),
    "deep": (_with_json(lambda data: b"[" * len(data)), "metadata must be JSON"),
    "a field more": (_with_json(lambda data: data.replace(b'"arousal":null', b'"mood":null')), "cannot be read"),
    "half a sign": (_with_json(lambda data: data.replace(b'"hello"', rb'"\ud8a"')), "metadata must be JSON"),
}


@pytest.mark.parametrize("name", TARS)
def test_a_tar_that_holds_something_else_than_its_rows_is_refused(folder, name):
    edit, message = TARS[name]
    path = folder / "tones-000000.tar"
    _write(path, edit(_members(path)))
    resign(folder)
    problems = refusals(folder)
    assert any(re.search(message, problem) for problem in problems), problems


def test_headers_of_tars_are_read_as_tarfile_reads_them(folder):
    path = folder / "tones-000000.tar"
    before = _members(path)
    _write(path, before, mtime=1.5, uname="someone" * 20)
    with tarfile.open(path) as tar:
        offsets = {member.name: member.offset_data for member in tar}

    def moved(table):
        for row in range(4):
            for part, suffix in (("audio", "flac"), ("meta", "json")):
                offset = offsets[f"{table.column('key')[row].as_py()}.{suffix}"]
                table = with_value(table, f"{part}_offset", offset, row=row)
        return table

    edit_table(folder, moved)
    assert refusals(folder) == []


def test_damaged_tars_with_right_hashes_are_one_sentence(packed, tmp_path):
    generator = random.Random(3)
    data = (packed / "tones-000001.tar").read_bytes()
    used = max(offset for offset in range(0, len(data), 512) if any(data[offset : offset + 512])) + 512
    folder = shutil.copytree(packed, tmp_path / "copy")
    for number in range(30):
        changed = bytearray(data)
        # Headers and metadata as often as the audio.
        position = generator.choice(range(0, used, 512)) + generator.randrange(512)
        changed[position] ^= 1 << generator.randrange(8)
        (folder / "tones-000001.tar").write_bytes(changed)
        resign(folder)
        assert refusals(folder) or not data[position], f"{number}: byte {position}"


REJECTED = [
    (b"", "must hold what manifest.json counts"),
    (b"{", "line 1 of .* must be JSON"),
    (b"[]\n", "must have kind, reason, source and no more"),
    (b'{"kind":"no audio","reason":1,"source":"row 3"}\n', "must have words only"),
    (b'{"kind":"no audio","reason":"x","source":"row 3","more":1}\n', "and no more"),
    (b'{"kind":"no audio","reason":"x","source":"\\ud800"}\n', "lone surrogate"),
    (b'{"kind":"other","reason":"x","source":"row 3"}\n', "must hold what manifest.json counts"),
]


@pytest.mark.parametrize(("data", "message"), REJECTED)
def test_the_list_of_rejections_is_read_and_counted(folder, data, message):
    (folder / "rejected.jsonl").write_bytes(data)
    resign(folder)
    (problem,) = refusals(folder)
    assert re.search(message, problem)


# ---------------------------------------------------------------- adopted tars, and other kinds of file


def test_a_sample_that_neither_is_a_row_nor_rejected_is_found(packed, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    members = _members(packed / "tones-000000.tar")
    _write(source / "a.tar", [(name, data) for name, data in members if name.endswith(".flac")])
    adopt_shards(source, source)
    assert verify([source]) == []
    edit_table(source, lambda table: table.slice(1))
    corpus = {"source": 3}
    edit_manifest(
        source,
        lambda m: (
            m["index"].update(num_utterances=3),
            m["shards"][0].update(num_utterances=3, duration_s=m["shards"][0]["duration_s"] - 0.05),
            m.update(labels={"corpus": corpus}),
        ),
    )
    (problem,) = verify([source])
    assert "'tones/u000.flac'" in problem
    assert "must have a row or be rejected" in problem


def test_a_sample_under_the_name_of_another_is_found(packed, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    members = _members(packed / "tones-000000.tar")
    _write(source / "a.tar", [(name, data) for name, data in members if name.endswith(".flac")])
    adopt_shards(source, source)
    edit_table(source, lambda table: with_value(table, "source", "tones/u001"))
    (problem,) = verify([source])
    assert "its member is called 'tones/u000.flac'" in problem


@pytest.mark.parametrize("name", ["manifest.json", "index.parquet", "rejected.jsonl", "tones-000000.tar"])
def test_a_folder_or_a_pipe_in_place_of_a_file_is_one_sentence(folder, name):
    for make in (Path.mkdir, os.mkfifo):
        path = folder / name
        path.unlink() if path.is_file() or path.is_fifo() else path.rmdir() if path.is_dir() else None
        make(path)
        (problem,) = refusals(folder)
        assert name in problem


def test_a_key_in_two_folders_is_found_whatever_their_labels_say(packed, tmp_path):
    folders = [shutil.copytree(packed, tmp_path / name) for name in "ab"]
    with pytest.raises(ShardError, match="occurs 2 times"):
        load_index(folders)
    assert any("occurs 2 times" in problem for problem in verify(folders))


# ---------------------------------------------------------------- the form of the audio


OTHER_FORMS = {
    "OGG": (48_000, 2, "OGG", "VORBIS", "begins with b'OggS'"),
    "WAV": (16_000, 1, "WAV", "PCM_16", "begins with b'RIFF'"),
    "stereo": (16_000, 2, "FLAC", "PCM_16", "is FLAC of 16000 Hz, 2 channels and 16 bits"),
    "rate": (48_000, 1, "FLAC", "PCM_16", "is FLAC of 48000 Hz, 1 channels and 16 bits"),
    "bits": (16_000, 1, "FLAC", "PCM_24", "is FLAC of 16000 Hz, 1 channels and 24 bits"),
}


@pytest.mark.parametrize("kind", OTHER_FORMS)
def test_audio_in_another_form_than_packing_writes_is_one_sentence(tmp_path, kind):
    """All hashes are right, and the samples are those that the index says."""
    rate_hz, num_channels, container, codec, words = OTHER_FORMS[kind]
    pack_items([tone(number) for number in range(4)], tmp_path)
    rows, members = pq.read_table(tmp_path / "index.parquet").to_pylist(), []
    with tarfile.open(tmp_path / "tones-000000.tar") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]
    with tarfile.open(tmp_path / "tones-000000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, row in enumerate(rows):
            buffer = io.BytesIO()
            wave = 0.1 * np.sin(np.arange(rate_hz // 10) / 9).astype(np.float32)
            sf.write(buffer, np.stack([wave] * num_channels, axis=1), rate_hz, format=container, subtype=codec)
            pcm = pcm16(prepare(*decode(buffer.getvalue(), "clip")))
            row.update(num_samples=len(pcm), pcm_sha256=pcm_sha256(pcm))
            audio = buffer.getvalue() if number else members[0][1]
            if not number:
                kept = rows[0] = pq.read_table(tmp_path / "index.parquet").to_pylist()[0]
                row = kept
            meta = json.loads(members[2 * number + 1][1])
            meta.update(num_samples=row["num_samples"], pcm_sha256=row["pcm_sha256"].hex())
            for name, data in (
                (members[2 * number][0], audio),
                (members[2 * number + 1][0], json.dumps(meta).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                what = name.rpartition(".")[2].replace("json", "meta").replace("flac", "audio")
                row.update({f"{what}_offset": tar.offset + 512, f"{what}_bytes": len(data)})
                tar.addfile(member, io.BytesIO(data))
            row["audio_sha256"] = hashlib.sha256(audio).digest()
    edit_table(tmp_path, lambda table: pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
    _counted_anew(tmp_path)
    (problem,) = verify([tmp_path])
    assert problem.startswith(
        "all audio must be stored as FLAC of 16000 Hz, 1 channels and 16 bits, but 'tones/u001' in "
    )
    assert problem.endswith(f"{words} (3 such utterances)")
