import json
import os
import shutil
import tarfile
from bisect import bisect_right
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import index_of
from tones import Tone, pack_items, reader, tone, utterance

from shards.errors import FilterError, ShardError
from shards.files import atomic_file, canonical_json
from shards.index import label_tables
from shards.indexload import load_index
from shards.indexwrite import index_row
from shards.labels import AGE_GROUP_BOUNDS_YEARS, AGE_GROUPS
from shards.manifest import read_manifest, write_manifest
from shards.pack import pack_corpus
from shards.plan import MicroBatch
from shards.read import read_batches
from shards.schema import SourceUtterance, Utterance
from shards.survey import verify

V1 = Path(__file__).parent / "v1"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    pack_items([tone(number) for number in range(6)], folder)
    return folder


@pytest.fixture
def folder(packed, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(packed, tmp_path / "copy")


def test_index_points_at_the_bytes_of_every_utterance(packed):
    index = load_index([packed])
    assert index.values("key") == [f"tones/u{number:03d}" for number in range(6)]
    assert index.numbers("shard").tolist() == [0, 0, 0, 0, 1, 1]
    for row, key in enumerate(index.values("key")):
        path = Path(index.shard_places[index.numbers("shard")[row]])
        with tarfile.open(path) as tar, path.open("rb") as file:
            for suffix, part in (("flac", "audio"), ("json", "meta")):
                offset = int(index.numbers(f"{part}_offset")[row])
                num_bytes = int(index.numbers(f"{part}_bytes")[row])
                file.seek(offset)
                assert file.read(num_bytes) == tar.extractfile(f"{key}.{suffix}").read()
    assert index.num_samples.tolist() == [800 + 160 * number for number in range(6)]
    assert index.duration_s.tolist() == [0.05, 0.06, 0.07, 0.08, 0.09, 0.1]


def test_every_metadata_field_comes_back(tmp_path):
    full = {
        "text": "Grüße, 世界",
        "language": "de",
        "emotion": "anger",
        "emotion_votes": {"neutral": 0.25, "anger": 0.75},
        "valence": 1.5,
        "arousal": -0.1,
        "dominance": 3.0,
        "gender": "female",
        "speaker": "03",
        "age": 31.0,
        "style": "scripted",
        "intensity": "strong",
        "session": "2",
        "dialogue": "d1",
        "turn": "7",
        "split": "dev",
    }
    extra = {"take": "a", "rating": 4, "share": 0.5, "clean": True}
    items = [
        SourceUtterance(utterance("full", **full, extra=extra), tone(1).audio),
        SourceUtterance(utterance("void"), tone(2).audio),
    ]
    pack_items(items, tmp_path)
    index = load_index([tmp_path])
    expected = {**full, "speaker": "tones:03", "session": "tones:2", "age_group": "thirties"}
    assert {field: index.values(field) for field in expected} == {
        field: [value, None] for field, value in expected.items()
    }
    assert {name: index.values(f"extra.{name}") for name in extra} == {name: [extra[name], None] for name in extra}
    assert index.values("source") == ["full.wav", "void.wav"]
    assert set(index.fields) == {*expected, "key", "corpus", "source", "duration_s", *(f"extra.{n}" for n in extra)}


def test_unknown_fields_are_refused_with_the_known_ones(packed):
    with pytest.raises(FilterError, match=r"one of key, corpus, .*emotion, .*extra\.take; got 'emotoin'"):
        load_index([packed]).values("emotoin")
    with pytest.raises(FilterError, match=r"got 'extra\.tak'"):
        load_index([packed]).values("extra.tak")


def test_take_keeps_order_paths_and_known_fields(packed):
    index = load_index([packed])
    part = index.take(np.asarray([5, 0]))
    assert part.values("key") == ["tones/u005", "tones/u000"]
    assert part.numbers("shard").tolist() == [1, 0]
    assert part.shard_places == index.shard_places
    assert part.fields == index.fields
    assert len(index.take(np.empty(0, dtype=np.int64))) == 0


def test_several_folders_are_one_index(packed, tmp_path):
    item = tone(1)
    other = Utterance(key="others/u001", corpus="others", speaker="s1", extra={"mic": 2})
    pack_corpus(reader([SourceUtterance(other, item.audio)], "others"), None, tmp_path)
    index = load_index([tmp_path, packed])
    assert index.values("corpus") == ["others"] + ["tones"] * 6
    assert index.numbers("shard").tolist() == [0, 1, 1, 1, 1, 2, 2]
    assert [Path(place).name for place in index.shard_places] == [
        "others-000000.tar",
        "tones-000000.tar",
        "tones-000001.tar",
    ]
    assert index.values("speaker")[:3] == ["others:s1", "tones:s0", "tones:s1"]
    assert index.extra_names == ("mic", "take")


def test_a_key_in_two_folders_is_an_error(packed, folder):
    with pytest.raises(ShardError, match=r"'tones/u000' occurs 2 times in .*; give each corpus once"):
        load_index([packed, folder])


def test_labels_are_counted_per_field(packed):
    tables = label_tables(load_index([packed]))
    assert tables["emotion"] == {"anger": 3, "neutral": 3}
    assert tables["gender"] == {"female": 2, "male": 2}
    assert tables["age_group"] == {"twenties": 6}
    assert "style" not in tables
    assert read_manifest(packed).labels == tables


def test_manifest_says_what_the_folder_holds(packed):
    manifest = read_manifest(packed)
    assert [(shard.name, shard.num_utterances) for shard in manifest.shards] == [
        ("tones-000000.tar", 4),
        ("tones-000001.tar", 2),
    ]
    assert (manifest.licence, manifest.citation, manifest.source, manifest.num_rejected) == (
        "CC0-1.0",
        "nobody",
        None,
        0,
    )
    assert set(manifest.settings.versions) == {"pyarrow", "soundfile", "soxr", "libsndfile"}
    written = (packed / "manifest.json").read_bytes()
    write_manifest(packed, manifest)
    assert (packed / "manifest.json").read_bytes() == written


def test_source_is_a_base_name(tmp_path):
    (tmp_path / "corpus").mkdir()
    pack_corpus(reader([tone(0)]), tmp_path / "corpus" / ".." / "corpus", tmp_path / "out")
    assert read_manifest(tmp_path / "out").source == "corpus"


def _edit(folder, edit):
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), r"is not a shard folder: no manifest.json; pack it with"),
        (shutil.rmtree, r"is not a shard folder: no such directory"),
        (lambda folder: (folder / "manifest.json").write_text("{"), r"manifest.json must be JSON, but"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), r"schema_version of 1, 2, got None"),
        (
            lambda folder: _edit(folder, lambda content: content.update(schema_version=3)),
            r"version of 1, 2, got 3",
        ),
        (lambda folder: _edit(folder, lambda content: content.pop("labels")), r"damaged at labels: Field required"),
        (
            lambda folder: _edit(folder, lambda content: content["index"].update(name="../index.parquet")),
            r"damaged at index.name",
        ),
        (lambda folder: _edit(folder, lambda content: content.update(licence="mine")), r"was changed"),
        (lambda folder: (folder / "tones-000001.tar").unlink(), r"tones-000001.tar must exist"),
        (lambda folder: os.truncate(folder / "tones-000001.tar", 512), r"must have 10240 bytes .* but has 512"),
        (lambda folder: os.truncate(folder / "index.parquet", 9), r"index.parquet must have \d+ bytes .* but has 9"),
        (lambda folder: _flip(folder / "index.parquet"), r"index.parquet must have sha256 .* but has"),
    ],
)
def test_a_damaged_folder_is_refused_with_one_sentence(folder, damage, message):
    damage(folder)
    with pytest.raises(ShardError, match=message) as caught:
        load_index([folder])
    assert "\n" not in str(caught.value)


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_no_folder_at_all_is_refused():
    with pytest.raises(ShardError, match="at least one shard folder"):
        load_index([])


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="stop"), atomic_file(path) as file:
        file.write(b"new")
        raise RuntimeError("stop")
    assert path.read_bytes() == b"old"
    with atomic_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"new"


def test_an_unwritable_folder_is_one_sentence(tmp_path):
    sentence = "absent/a could not be written: No such file or directory"
    with pytest.raises(ShardError, match=sentence), atomic_file(tmp_path / "absent" / "a"):
        pass


def test_json_is_canonical_and_finite():
    assert canonical_json({"b": 1.0, "a": "ü"}) == '{"a":"ü","b":1.0}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("inf"))


def test_index_row_qualifies_speaker_and_session():
    row = index_row(Utterance(key="c/a", corpus="c", speaker="03", session="1"), num_samples=5)
    assert (row["speaker"], row["session"], row["num_samples"], row["extra"]) == ("c:03", "c:1", 5, "{}")


def test_what_schema_version_1_wrote_still_reads(tmp_path):
    # Packed by version 0.1.0: digests in hexadecimal, none of the stored audio.
    index = load_index([V1])
    assert index.values("key") == ["tones/Ses01F%2Eimpro01", "tones/u000", "tones/u001"]
    assert index.values("text") == [None, "Grüße", None]
    assert index.numbers("valence").tolist()[1:] == pytest.approx([np.nan, 2.5], nan_ok=True)
    assert index.values("emotion_votes") == [{"neutral": 1.0, "sadness": 2.0}, None, None]
    assert index.values("audio_sha256") == [None] * 3
    batch = next(read_batches(index, [MicroBatch(np.arange(3))], num_workers=0, timeout_s=1))
    assert batch.problems == ()
    assert batch.num_samples_B.tolist() == [1_000, 800, 960]
    assert batch.wave_BT[2, :960].numpy() == pytest.approx(tone(1).audio.load()[0], abs=1e-4)
    assert verify([V1]) == []
    pack_items([SourceUtterance(Utterance(key="others/a", corpus="others"), Tone(400))], tmp_path, shard_utterances=1)
    both = load_index([tmp_path, V1])
    assert [digest is None for digest in both.values("audio_sha256")] == [False, True, True, True]
    assert both.numbers("shard").tolist() == [0, 1, 1, 2]


def test_damage_in_what_schema_version_1_wrote_is_found(tmp_path):
    copy = shutil.copytree(V1, tmp_path / "copy")
    shard = copy / "tones-000001.tar"
    data = bytearray(shard.read_bytes())
    data[load_index([V1]).numbers("audio_offset")[2] + 300] ^= 1
    shard.write_bytes(data)
    batch = next(read_batches(load_index([copy]), [MicroBatch(np.arange(3))], num_workers=0, timeout_s=1))
    assert "'tones/u001'" in batch.problems[0]
    assert batch.valid_B.tolist() == [True, True, False]


words = st.one_of(st.none(), st.sampled_from(["a", "b", "ü", ""]))
ages = st.one_of(st.none(), st.floats(0, 99))


@given(st.lists(st.tuples(words, ages), min_size=1, max_size=30), st.data())
def test_every_view_of_a_field_tells_the_same(rows, data):
    index = index_of(text=[text for text, _ in rows], age=[age for _, age in rows])
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=40))
    part = index.take(np.asarray(chosen, int))
    for field, column in (("text", 0), ("age", 1)):
        expected = [rows[row][column] for row in chosen]
        codes = part.codes(field)
        assert part.values(field) == list(part.stream(field)) == expected
        assert [None if number < 0 else codes.words[number] for number in codes.numbers] == expected
        assert codes.counts() == {word: expected.count(word) for word in expected if word is not None}
    ages = [rows[row][1] for row in chosen]
    groups = [None if age is None else AGE_GROUPS[bisect_right(AGE_GROUP_BOUNDS_YEARS, age)] for age in ages]
    assert part.values("age_group") == groups
    assert part.take(np.arange(len(chosen))[::-1]).values("key") == part.values("key")[::-1]
