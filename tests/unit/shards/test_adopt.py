"""Shards that others wrote become a corpus without being copied, and whatever is odd in them is named."""

import io
import json
import tarfile

import numpy as np
import pytest
import soundfile as sf
from decoded import decode, prepare
from tones import folder_bytes, pack_items, tone

from shards.adopt import adopt_shards
from shards.corpora.options import ReadOptions
from shards.errors import CorpusError, ShardError
from shards.indexload import load_index
from shards.manifest import read_manifest
from shards.plan import MicroBatch
from shards.read import read_batches
from shards.survey import verify


def encoded(frequency_hz, container="WAV", rate_hz=16_000, num_channels=1, duration_s=0.2):
    wave = 0.4 * np.sin(2 * np.pi * frequency_hz * np.arange(round(rate_hz * duration_s)) / rate_hz)
    buffer = io.BytesIO()
    sf.write(buffer, np.stack([wave] * num_channels, axis=1), rate_hz, format=container)
    return buffer.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def waves(index):
    (batch,) = read_batches(index, [MicroBatch(np.arange(len(index)))], num_workers=0, timeout_s=1)
    assert batch.problems == ()
    return [wave[:length].numpy() for wave, length in zip(batch.wave_BT, batch.num_samples_B, strict=True)]


FORMATS = {
    "a": ("wav", encoded(300, "WAV", 44_100, 2)),
    "b": ("flac", encoded(400, "FLAC", 96_000)),
    "c": ("ogg", encoded(500, "OGG", 22_050)),
    "d": ("mp3", encoded(600, "MP3", 16_000)),
}


@pytest.fixture
def foreign(tmp_path):
    """Two shards by webdataset's own writer, in four formats at four rates."""
    webdataset = pytest.importorskip("webdataset")
    folder = tmp_path / "my corpus"
    folder.mkdir()
    for number, names in enumerate(("ab", "cd")):
        with webdataset.TarWriter(str(folder / f"x.y-{number}.tar")) as writer:
            for name in names:
                suffix, data = FORMATS[name]
                meta = {"emotion": "Happy", "age": 30 + number, "speaker": name, "camera": 2, "path": ["no", "scalar"]}
                writer.write({"__key__": f"part/{name}", suffix: data, "json": meta, "txt": f"word {name}", "cls": 3})
    return folder


def test_shards_by_webdataset_are_adopted_in_place_and_read_as_packing_would_have_stored_them(foreign):
    before = folder_bytes(foreign)
    summary = adopt_shards(foreign, foreign, num_workers=2)
    assert (summary.num_utterances, summary.num_shards, summary.corpus) == (4, 2, "my%20corpus")
    after = folder_bytes(foreign)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"index.parquet", "manifest.json", "rejected.jsonl"}
    index = load_index([foreign])
    assert index.values("key") == [f"my%20corpus/part/{name}" for name in "abcd"]
    assert index.values("text") == [f"word {name}" for name in "abcd"]
    assert index.values("emotion") == ["happiness"] * 4
    assert index.values("age") == [30, 30, 31, 31]
    assert index.values("speaker")[0] == "my%20corpus:a"
    assert index.values("extra.camera") == [2] * 4
    assert index.extra_names == ("camera",)
    for wave, (_, data) in zip(waves(index), FORMATS.values(), strict=True):
        np.testing.assert_array_equal(wave, prepare(*decode(data, "")))
    assert verify([foreign]) == []
    assert adopt_shards(foreign, foreign).was_complete


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 48_000])
def test_adopted_opus_is_read_at_48_khz_whatever_rate_its_head_states(tmp_path, rate_hz):
    wave = np.random.default_rng(0).normal(size=rate_hz).astype(np.float32) * 0.1
    buffer = io.BytesIO()
    sf.write(buffer, wave, rate_hz, format="OGG", subtype="OPUS")
    write_tar(tmp_path / "a.tar", {"a.opus": buffer.getvalue(), "a.json": b'{"emotion": "sad"}'})
    adopt_shards(tmp_path, tmp_path)
    samples, decoded_hz = decode(buffer.getvalue(), "a")
    assert decoded_hz == 48_000
    (adopted,) = waves(load_index([tmp_path]))
    np.testing.assert_array_equal(adopted, prepare(samples, decoded_hz))
    assert verify([tmp_path]) == []


def test_adopted_from_elsewhere_the_manifest_holds_the_way_to_the_tars(foreign, tmp_path):
    out = tmp_path / "out" / "deeper"
    adopt_shards(foreign, out)
    assert sorted(path.name for path in out.iterdir()) == ["index.parquet", "manifest.json", "rejected.jsonl"]
    assert read_manifest(out).tars == "../../my corpus"
    assert len(waves(load_index([out]))) == 4
    tar = foreign / "x.y-1.tar"
    data = bytearray(tar.read_bytes())
    data[load_index([out]).numbers("audio_offset")[3] + 400] ^= 4
    tar.write_bytes(data)
    (problem,) = verify([out])
    assert "'my%20corpus/part/d'" in problem


def test_a_plain_tar_of_files_is_a_shard(tmp_path):
    files = tmp_path / "files" / "sub"
    files.mkdir(parents=True)
    for name in ("one", "two"):
        (files / f"{name}.wav").write_bytes(encoded(300 if name == "one" else 350))
        (files / f"{name}.emotion").write_text("sad\n")
    (tmp_path / "shards").mkdir()
    # Sorted, as WebDataset wants it: what belongs together stands together.
    with tarfile.open(tmp_path / "shards" / "plain.tar", "w") as tar:
        tar.add(tmp_path / "files", ".")
    adopt_shards(tmp_path / "shards", tmp_path / "shards")
    index = load_index([tmp_path / "shards"])
    assert index.values("key") == ["shards/sub/one", "shards/sub/two"]
    assert index.values("emotion") == ["sadness", "sadness"]


def test_our_own_shards_come_back_with_all_that_they_hold(tmp_path):
    pack_items([tone(number) for number in range(6)], tmp_path / "packed")
    adopt_shards(tmp_path / "packed", tmp_path / "adopted")
    packed, adopted = load_index([tmp_path / "packed"]), load_index([tmp_path / "adopted"])
    for name in (*packed.fields, "audio_offset", "audio_bytes", "meta_offset", "num_samples", "pcm_sha256"):
        assert adopted.values(name) == packed.values(name), name
    assert all(np.array_equal(a, b) for a, b in zip(waves(packed), waves(adopted), strict=True))
    assert verify([tmp_path / "adopted"]) == []


GOOD = {"good.wav": encoded(440)}
BAD = {
    "no audio": ({"x.json": b"{}"}, r"x: a key must hold one audio member, got \.json \(row without audio\)"),
    "two": ({"x.wav": encoded(300), "x.flac": encoded(300, "FLAC")}, r"one audio member, got \.flac, \.wav"),
    "text": ({"x.wav": b"RIFF of nothing"}, "decoding .* failed"),
    "label": ({"x.wav": encoded(300), "x.split": b"holdout"}, "got 'holdout'"),
    "text in GBK": ({"x.wav": encoded(300), "x.speaker": "王".encode("gbk")}, "text must be UTF-8, but"),
    "deep json": ({"x.wav": encoded(300), "x.json": b"[" * 100_000}, "must be JSON"),
    "list": ({"x.wav": encoded(300), "x.json": b"[1]"}, "must hold an object, got '"),
    "broken json": ({"x.wav": encoded(300), "x.json": b"{"}, "must be JSON"),
    "several values": ({"x.wav": encoded(300), "x.json": b'{"emotion": ["sad", "calm"]}'}, "emotion must be one value"),
    "half a sign": ({"x.wav": encoded(300), "x.json": b'{"speaker": "\\ud800"}'}, "Unicode text"),
    "nan": ({"x.wav": encoded(300), "x.json": b'{"rating": NaN}'}, "finite numbers"),
    "number": ({"x.wav": encoded(300), "x.json": b'{"age": "old"}'}, "age must be a finite number, got 'old'"),
    "ours": (
        {"x.wav": encoded(300), "x.json": json.dumps({"schema_version": 2, "key": "../x", "corpus": "c"}).encode()},
        r"a key must match c/.*, got '\.\./x'",
    ),
    "long": ({f"{'y' * 91}.wav": encoded(300)}, "must have 1 to 90 bytes"),
    "silence": ({"x.wav": b"RIFF" + encoded(0)[4:]}, "samples are zero"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_odd_thing_is_one_sentence_or_one_line_in_the_list(tmp_path, name):
    members, message = BAD[name]
    write_tar(tmp_path / "a.tar", {**GOOD, **members})
    with pytest.raises(CorpusError, match=message) as caught:
        adopt_shards(tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    summary = adopt_shards(tmp_path, tmp_path / "out", on_bad="skip")
    assert summary.num_utterances == 1
    assert sum(summary.num_rejected_by_kind.values()) == 1


def test_what_stands_twice_under_one_key_is_rejected_not_overwritten(tmp_path):
    write_tar(tmp_path / "a.tar", GOOD)
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for data in (encoded(300), encoded(310)):
            member = tarfile.TarInfo("x.wav")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(CorpusError, match=r"x: a key must hold each member once, got \.wav twice"):
        adopt_shards(tmp_path, tmp_path / "out")


def test_foreign_files_in_place_are_not_overwritten(tmp_path):
    write_tar(tmp_path / "a.tar", GOOD)
    (tmp_path / "index.parquet").write_text("my own table")
    with pytest.raises(ShardError, match=r"OUT must hold no index\.parquet of others"):
        adopt_shards(tmp_path, tmp_path)
    assert (tmp_path / "index.parquet").read_text() == "my own table"


def test_what_is_read_as_something_else_is_said_and_names_are_composed(tmp_path):
    members = {
        "a.wav": encoded(300),
        "a.json": json.dumps({"label": "Wut", "speaker": "Ju\u0308rgen", "gender": "nan", "emotoin": "x"}).encode(),
        "a.cls": b"3",
        "b.wav": encoded(310),
        "b.json": json.dumps({"emotion": "Joyful", "speaker": "J\u00fcrgen", "text": "null"}).encode(),
    }
    write_tar(tmp_path / "a.tar", members)
    summary = adopt_shards(
        tmp_path, tmp_path / "out", options=ReadOptions(labels={"joyful": "happiness"}, licence="CC0")
    )
    index = load_index([tmp_path / "out"])
    assert index.values("emotion") == ["anger", "happiness"]
    assert {name.split(":")[1] for name in index.values("speaker")} == {"J\u00fcrgen"}
    assert index.values("gender") == [None, None]
    assert index.values("text") == [None, "null"]
    said = " | ".join((*summary.notes, *summary.warnings))
    for words in (
        "fields are read by their usual names: emotion label (1)",
        "kept as extra, with the field that may be meant: extra emotoin as emotion (1)",
        "members of tars that mean nothing here are left alone: member .cls (1)",
        "count as absent: gender nan (1)",
        "joyful as happiness (1)",
        "texts that may be a word for a missing value are kept: text null (1)",
    ):
        assert words in said, said
    assert read_manifest(tmp_path / "out").licence == "CC0"
    with pytest.raises(CorpusError, match="but for --labels and --licence, got --map, --channel; leave"):
        adopt_shards(tmp_path, tmp_path / "other", options=ReadOptions(columns={"a": "text"}, channel=1))


def test_our_own_shards_with_decomposed_names_are_adopted_composed(tmp_path):
    meta = {"schema_version": 2, "key": "c/x", "corpus": "c", "speaker": "Ju\u0308rgen"}
    pack_items([tone(1)], tmp_path / "packed")
    with tarfile.open(tmp_path / "packed" / "tones-000000.tar") as tar:
        flac, described = (tar.extractfile(member).read() for member in tar)
    meta = {**json.loads(described), **meta}
    (tmp_path / "old").mkdir()
    write_tar(tmp_path / "old" / "a.tar", {"x.flac": flac, "x.json": json.dumps(meta).encode()})
    adopt_shards(tmp_path / "old", tmp_path / "adopted")
    assert load_index([tmp_path / "adopted"]).values("speaker") == ["c:J\u00fcrgen"]
    assert verify([tmp_path / "adopted"]) == []


def test_links_and_broken_tars_are_refused(tmp_path):
    write_tar(tmp_path / "a.tar", GOOD)
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        link = tarfile.TarInfo("evil.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(CorpusError, match=r"evil\.wav: a member must be a plain file, not a link"):
        adopt_shards(tmp_path, tmp_path / "out")
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:3_000])
    with pytest.raises(CorpusError, match=r"a\.tar: a shard must be a whole, uncompressed tar, but"):
        adopt_shards(tmp_path, tmp_path / "out")


def test_finished_tars_are_not_looked_through_again(tmp_path):
    write_tar(tmp_path / "a.tar", GOOD)
    write_tar(tmp_path / "b.tar", {"x.wav": b"no audio"})
    with pytest.raises(CorpusError, match="x: "):
        adopt_shards(tmp_path, tmp_path)
    write_tar(tmp_path / "b.tar", {"x.wav": encoded(300)})
    assert adopt_shards(tmp_path, tmp_path).num_kept_shards == 1


def test_one_key_in_two_tars_is_refused(tmp_path):
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", GOOD)
    with pytest.raises(CorpusError, match=r"every key must stand once, but '.*/good' occurs 2 times"):
        adopt_shards(tmp_path, tmp_path / "out")
    with pytest.raises(ShardError, match=r"no manifest\.json"):
        load_index([tmp_path / "out"])


def test_folders_without_tars_are_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"must be a folder of WebDataset shards, but .*nowhere does not exist"):
        adopt_shards(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"has none \(a\.tar\.gz is compressed, and bytes inside it"):
        adopt_shards(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("suffix", ["m4a", "webm", "wma", "mp4", "aac", "3gp", "W64"])
def test_every_suffix_of_sound_is_audio(tmp_path, suffix):
    """What is in the member is told by its content, which here is a WAV file's."""
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "a.tar", "w") as tar:
        member = tarfile.TarInfo(f"x.{suffix}")
        member.size = len(encoded(440))
        tar.addfile(member, io.BytesIO(encoded(440)))
    assert adopt_shards(tmp_path / "shards", tmp_path / "out").num_utterances == 1


def test_a_video_beside_its_sound_is_not_read(tmp_path):
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "a.tar", "w") as tar:
        for name, data in (("x.mp4", b"pictures"), ("x.wav", encoded(440))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    summary = adopt_shards(tmp_path / "shards", tmp_path / "out")
    assert summary.num_utterances == 1
    assert any(".mp4" in note for note in summary.notes)
