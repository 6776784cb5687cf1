"""Tars of others, odd and hostile: every recording is packed or rejected by name, and nothing of others is touched."""

import gzip
import hashlib
import io
import json
import os
import socket
import tarfile

import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from resigned import edit_manifest, edit_table, resign, with_value
from tones import folder_bytes

from shards.adopt import adopt_shards
from shards.adoptjob import AdoptJob
from shards.corpora.options import ReadOptions
from shards.errors import CorpusError, ShardError
from shards.index import label_tables
from shards.indexload import load_index
from shards.manifest import Settings, read_manifest
from shards.samples import MAX_BESIDE_BYTES, MAX_RECORDING_BYTES
from shards.survey import verify


def recording(number, num_samples=400):
    buffer = io.BytesIO()
    samples = 0.3 * np.random.default_rng(number).standard_normal(num_samples)
    sf.write(buffer, samples, 16_000, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


RECORDINGS = [recording(number) for number in range(12)]


def tar_of(members, form=tarfile.GNU_FORMAT):
    """Return a tar of (name, bytes), (name, target of a link) or (name, None), a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.LNKTYPE, content
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


def adopted(folder, out, **tars):
    """Adopt tars by name; return the summary, the digests of what was packed, and what was rejected."""
    folder.mkdir(exist_ok=True)
    for name, data in tars.items():
        (folder / f"{name}.tar").write_bytes(data)
    summary = adopt_shards(folder, out, on_bad="skip")
    assert verify([out]) == []
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == sum(summary.num_rejected_by_kind.values())
    packed = {bytes(digest) for digest in load_index([out]).values("audio_sha256")}
    assert len(packed) == summary.num_utterances
    return summary, packed, rejected


def digest(data):
    return hashlib.sha256(data).digest()


stems = st.sampled_from(
    ["a", "b", "A", "ä", "a\u0308", "./a", "p/a", "p//a", "../a", "/a", "x" * 120, "\x1b[31m", "c d"]
)
suffixes = st.sampled_from(["flac", "FLAC", "wav", "left.flac", "json", "JSON", "txt", "speaker", "cls", "mp4", ""])
contents = st.sampled_from([*range(len(RECORDINGS)), "meta", "folder", "link", "empty"])


def _member(number, stem, suffix, content):
    name = f"{stem}.{suffix}" if suffix else stem
    if content == "folder":
        return f"{name}/", None
    if content == "link":
        return name, "elsewhere.flac"
    if content == "empty":
        return name, b""
    is_sound = suffix.lower().endswith(("flac", "wav", "mp4"))
    return name, RECORDINGS[number] if is_sound else b'{"emotion": "anger"}' if "json" in name.lower() else b"calm"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(stems, suffixes, contents), max_size=9),
    st.lists(st.tuples(stems, suffixes, contents), max_size=2),
)
def test_every_recording_is_packed_or_rejected_by_name(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("odd")
    listed = [[("good.flac", RECORDINGS[11])], [], []]
    number = 0
    for place, found in enumerate((first, second), start=1):
        for member in found:
            listed[place].append(_member(number, *member))
            number += 1
    (folder / "in").mkdir()
    summary, packed, rejected = adopted(
        folder / "in", folder / "out", **{f"t{place}": tar_of(members) for place, members in enumerate(listed)}
    )
    sources = [line["source"] for line in rejected]
    noted = " ".join(read_manifest(folder / "out").notes)
    for name, content in (member for members in listed for member in members):
        if not isinstance(content, bytes) or content not in RECORDINGS or digest(content) in packed:
            continue
        stem = name.rpartition("/")[0] + "/" * ("/" in name) + name.rpartition("/")[2].partition(".")[0]
        shown = stem.replace("\x1b", "\\x1b")
        # A video beside its sound is left alone, and counted.
        assert any(shown in source for source in sources) or (name.endswith(".mp4") and ".mp4" in noted), (
            name,
            sources,
        )
    assert summary.num_utterances >= 1


def test_a_recording_that_stands_twice_is_rejected_twice_and_others_are_packed(tmp_path):
    twice = tar_of([("u.flac", RECORDINGS[0]), ("u.flac", RECORDINGS[1]), ("v.flac", RECORDINGS[2])])
    summary, packed, rejected = adopted(tmp_path / "in", tmp_path / "out", a=twice)
    assert packed == {digest(RECORDINGS[2])}
    assert summary.num_rejected_by_kind == {"repeated member": 2}
    assert {line["source"] for line in rejected} == {"a.tar: u"}


def test_a_recording_without_a_name_before_its_first_dot_is_rejected(tmp_path):
    tar = tar_of([(".flac", RECORDINGS[0]), ("v.flac", RECORDINGS[1]), ("./.json", b"{}")])
    summary, packed, _ = adopted(tmp_path / "in", tmp_path / "out", a=tar)
    assert packed == {digest(RECORDINGS[1])}
    assert summary.num_rejected_by_kind["bad key"] == 1


@pytest.mark.parametrize(
    ("parts", "kind", "words"),
    [
        ([("u.json", b'{"emotion": "anger"}'), ("u.json", b'{"emotion": "fear"}')], "repeated member", ".json twice"),
        ([("u.json", b"{}"), ("u.JSON", b"{}")], "repeated member", ".json twice"),
        ([("u.txt", b"one"), ("u.txt", b"two")], "repeated member", ".txt twice"),
        (
            [("u.json", b'{"text": "' + b"x" * MAX_BESIDE_BYTES + b'"}')],
            "too large",
            "1048588 bytes, but at most 1048576",
        ),
        ([("u.speaker", b"x" * (MAX_BESIDE_BYTES + 1))], "too large", "at most 1048576 are read of a .speaker"),
        ([("u.json", "elsewhere")], "bad member", "a hard link"),
        ([("u.json", b'{"emotion": "anger", "emotion": "fear"}')], "bad metadata", "it names emotion twice"),
        ([("u.json", b'{"a":' * 5_000)], "bad metadata", "u: .json must be JSON"),
        ([("u.json", b'{"a":' + b"[" * 100 + b"]" * 100 + b"}")], "bad metadata", "deeper than 64"),
        ([("u.json", b'{"age": ' + b"9" * 5_000 + b"}")], "bad metadata", "5000 digits, but at most 100"),
        ([("u.age", b"9" * 100_000)], "bad number", "age must be a finite number"),
        ([("u.json", b'{"schema_version": 2, "key": "c/u", "corpus": "c"}')], "bad metadata", "about other audio"),
        ([("u.json", b'{"schema_version": 99, "key": "c/u", "corpus": "c"}')], "bad metadata", "one of 1, 2, got 99"),
        ([("u.json", b'{"schema_version": true, "key": "c/u", "corpus": "c"}')], "bad metadata", "got True"),
    ],
)
def test_labels_are_not_lost_in_silence(tmp_path, parts, kind, words):
    data = tar_of([("a.flac", RECORDINGS[0]), ("u.flac", RECORDINGS[1]), *parts, ("v.flac", RECORDINGS[2])])
    _, packed, (line,) = adopted(tmp_path / "in", tmp_path / "out", a=data)
    assert packed == {digest(RECORDINGS[0]), digest(RECORDINGS[2])}
    assert line["kind"] == kind
    assert line["source"].startswith("a.tar: u")
    assert words in f"u: {line['reason']}"
    assert len(line["reason"]) < 500


def test_keys_of_two_tars_are_packed_once_and_counted(tmp_path):
    summary, packed, rejected = adopted(
        tmp_path / "in",
        tmp_path / "out",
        a=tar_of([("u.flac", RECORDINGS[0]), ("v.flac", RECORDINGS[1]), ("./u.flac", RECORDINGS[2])]),
        b=tar_of([("v.flac", RECORDINGS[3]), ("w.flac", RECORDINGS[4])]),
    )
    assert packed == {digest(RECORDINGS[number]) for number in (0, 1, 4)}
    assert summary.num_rejected_by_kind == {"duplicate key": 2}
    assert [line["source"] for line in rejected] == ["a.tar: ./u", "b.tar: v"]
    assert [shard.num_utterances for shard in read_manifest(tmp_path / "out").shards] == [2, 1]
    assert adopt_shards(tmp_path / "in", tmp_path / "out", on_bad="skip").was_complete


def test_a_tar_that_is_cut_loses_no_recording_in_silence(tmp_path):
    whole = tar_of(
        [
            (f"u{number}.{suffix}", data)
            for number in range(3)
            for suffix, data in (("flac", RECORDINGS[number]), ("txt", b"said"))
        ]
    )
    good = tar_of([("g.flac", RECORDINGS[11])])
    for number, cut in enumerate(range(0, len(whole), 331)):
        _, packed, rejected = adopted(tmp_path / f"in{number}", tmp_path / f"out{number}", a=whole[:cut], g=good)
        named = [line["source"] for line in rejected]
        begun = [f"u{place}" for place in range(3) if whole.index(f"u{place}.flac".encode()) + 512 <= cut]
        for key in begun:
            is_named = any(key in line["source"] + line["reason"] for line in rejected)
            assert is_named or digest(RECORDINGS[int(key[1])]) in packed, (cut, key)
        assert len(packed) == 4 or "a.tar" in named, cut


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("b.tar", lambda path: os.mkfifo(path), "it is a named pipe"),
        ("b.tar", lambda path: path.mkdir(), "it is a folder"),
        ("b.tar", lambda path: path.symlink_to("/dev/zero"), "it is a device"),
        ("b.tar", lambda path: path.symlink_to("nowhere"), "No such file"),
        ("b.tar", lambda path: path.symlink_to("b.tar"), "Too many levels"),
        ("b.tar", lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "No such device or address"),
        ("b.tar", lambda path: path.write_bytes(b""), "it is empty"),
        ("b.tar", lambda path: path.write_bytes(gzip.compress(b"x" * 5_000)), "compressed"),
        ("b.tar.gz", lambda path: path.write_bytes(b""), "an uncompressed tar"),
        ("B.TAR", lambda path: path.write_bytes(b""), "rename"),
        ("b\n.tar", lambda path: path.write_bytes(b""), "no control character"),
        ("b\\.tar", lambda path: path.write_bytes(b""), "or backslash"),
        ("b" * 240 + ".tar", lambda path: path.write_bytes(b""), "at most 200 bytes, 244 here"),
        (os.fsdecode(b"b\xff.tar"), lambda path: path.write_bytes(b""), "Unicode text"),
    ],
)
def test_what_is_called_a_tar_and_is_none_is_one_rejection(tmp_path, monkeypatch, name, make, words):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    make((tmp_path / "in" / name).relative_to(tmp_path / "in"))
    _, packed, (line,) = adopted(tmp_path / "in", tmp_path / "out", a=tar_of([("u.flac", RECORDINGS[0])]))
    assert packed == {digest(RECORDINGS[0])}
    assert words in line["reason"]
    with pytest.raises(CorpusError, match=r"pass --on-bad skip") as caught:
        adopt_shards(tmp_path / "in", tmp_path / "other")
    assert "\n" not in str(caught.value)


def test_empty_and_joined_tars_and_a_recording_that_is_no_suffix_of_its_key(tmp_path):
    members = [("u.flac", RECORDINGS[0]), ("u.left.flac", RECORDINGS[1])]
    _, packed, (line,) = adopted(
        tmp_path / "in", tmp_path / "out", a=bytes(10_240), b=tar_of(members) + tar_of([("v.flac", RECORDINGS[2])])
    )
    assert packed == {digest(RECORDINGS[0]), digest(RECORDINGS[2])}
    assert line["source"] == "b.tar: u.left.flac"


def test_a_recording_beyond_the_limit_is_not_read(tmp_path):
    (tmp_path / "in").mkdir()
    first = tarfile.TarInfo("u.flac")
    first.size = len(RECORDINGS[0])
    member = tarfile.TarInfo("v.wav")
    member.size = MAX_RECORDING_BYTES + 512
    head = first.tobuf() + RECORDINGS[0] + bytes(-first.size % 512) + member.tobuf()
    with (tmp_path / "in" / "a.tar").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + member.size + 1024)
    _, packed, (line,) = adopted(tmp_path / "in", tmp_path / "out")
    assert packed == {digest(RECORDINGS[0])}
    assert (line["source"], line["reason"]) == (
        "a.tar: v",
        f"v.wav has {MAX_RECORDING_BYTES + 512} bytes, but at most {MAX_RECORDING_BYTES} are read of a .wav",
    )


# ---------------------------------------------------------------- what belongs to others

FOREIGN = {
    "index.parquet": lambda path: path.write_text("my own table"),
    "rejected.jsonl": lambda path: path.write_text("my own list"),
    "manifest.json": lambda path: path.write_text("{}"),
    ".packing": lambda path: path.write_text("my own file"),
    ".packing/notes.txt": lambda path: (path.parent.mkdir(), path.write_text("mine")),
    ".packing/lock": lambda path: (path.parent.mkdir(), path.symlink_to("/etc/hostname")),
    ".packing/owner": lambda path: (path.parent.mkdir(), path.write_text("me")),
    ".index.parquet.tmp": lambda path: path.write_text("my own table"),
    ".manifest.json.tmp": lambda path: path.symlink_to("precious"),
}


@pytest.mark.parametrize("name", [*FOREIGN, "linked state", "thesis.tex", "a-000000.tar"])
@pytest.mark.parametrize("place", ["in", "out"])
def test_files_of_others_are_neither_overwritten_nor_removed(tmp_path, name, place):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "x.tar").write_bytes(tar_of([("u.flac", RECORDINGS[0])]))
    out = tmp_path / place
    out.mkdir(exist_ok=True)
    (out / "precious").write_text("precious")
    if name == "linked state":
        (tmp_path / "elsewhere").mkdir()
        (out / ".packing").symlink_to(tmp_path / "elsewhere")
    else:
        FOREIGN.get(name, lambda path: path.write_text("mine"))(out / name)
    before = folder_bytes(tmp_path)
    if place == "in" and name == "thesis.tex":
        adopt_shards(folder, out)
        assert folder_bytes(tmp_path).items() >= before.items()
        return
    if place == "in" and name == "a-000000.tar":
        with pytest.raises(CorpusError, match=r"a-000000\.tar: a shard must be a whole"):
            adopt_shards(folder, out)
        return
    with pytest.raises(ShardError) as caught:
        adopt_shards(folder, out)
    assert "\n" not in str(caught.value)
    assert folder_bytes(tmp_path) == before


def test_a_tar_with_other_bytes_of_the_same_length_is_noticed(tmp_path):
    adopted(tmp_path / "in", tmp_path / "out", a=tar_of([("u.txt", b"one"), ("u.flac", RECORDINGS[0])]))
    path = tmp_path / "in" / "a.tar"
    times = path.stat()
    path.write_bytes(tar_of([("u.txt", b"two"), ("u.flac", RECORDINGS[0])]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ShardError, match=r"a\.tar must be as .*manifest\.json says, but its bytes were changed"):
        adopt_shards(tmp_path / "in", tmp_path / "out", on_bad="skip")


def test_a_tar_that_changes_while_it_is_read_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.tar"
    path.write_bytes(tar_of([("u.flac", RECORDINGS[0])]))
    job = AdoptJob(path, "in", Settings(seed=0, shard_utterances=0, max_duration_s=60, versions={}))
    assert job.stamp
    path.write_bytes(tar_of([("u.flac", RECORDINGS[1])]))
    with pytest.raises(ShardError, match="must stay as it is while it is read"):
        job.run()


# ---------------------------------------------------------------- what lies beside adopted audio


BESIDE = {
    "a": (0, {"json": b'{"emotion": "ang", "age": 30, "mood": "x"}', "txt": b"hello"}),
    "b": (1, {"emotion": b"ang", "speaker": b"7", "txt": b"there"}),
    "c": (2, {"json": b'{"emotion_votes": {"anger": 2}, "valence": 0.5}', "gender": b"f"}),
    "d": (3, {}),
}


@pytest.fixture(params=[{}, {"ang": "sadness"}, {"ang": None}], ids=["plain", "labels", "no label"])
def beside(request, tmp_path):
    members = [
        (f"{stem}.{suffix}", data)
        for stem, (number, others) in BESIDE.items()
        for suffix, data in {"flac": RECORDINGS[number], **others, "cls": b"9"}.items()
    ]
    (tmp_path / "x.tar").write_bytes(tar_of(members))
    adopt_shards(tmp_path, tmp_path, options=ReadOptions(labels=request.param))
    assert verify([tmp_path]) == []
    return tmp_path


@pytest.mark.parametrize(
    ("row", "name", "value"),
    [
        (0, "text", "hullo"),
        (0, "emotion", "joy"),
        (0, "age", 31.0),
        (0, "extra", '{"mood":"y"}'),
        (1, "speaker", None),
        (1, "text", None),
        (2, "valence", -0.5),
        (2, "gender", "male"),
        (3, "text", "hello"),
        (3, "emotion", "anger"),
        (3, "emotion_votes", '{"anger":2.0}'),
        (3, "extra", '{"mood":"x"}'),
        (3, "source", "c"),
    ],
)
def test_rows_that_say_something_else_than_lies_beside_the_audio_are_found(beside, row, name, value):
    corpus = beside.name
    value = f"{corpus}:{value}" if name == "speaker" and value else value
    edit_table(beside, lambda table: with_value(table, name, value, row))

    def recount(manifest):
        index = load_index([beside])
        manifest.update(labels=label_tables(index), extra_names=["mood"])

    edit_manifest(beside, recount)
    problems = [problem for problem in verify([beside]) if "extra that" not in problem]
    assert problems
    assert any(f"its {name} is not what lies beside its audio" in p or "its member is called" in p for p in problems)


def test_a_sample_that_adopting_would_reject_is_no_row(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar_of([("a.flac", RECORDINGS[0]), ("a.age", b"30"), ("b.flac", RECORDINGS[1])]))
    adopt_shards(tmp_path, tmp_path)
    data = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(data.replace(b"30" + bytes(510), b"xx" + bytes(510)))
    resign(tmp_path)
    (problem,) = verify([tmp_path])
    assert "adopting would reject it (age must be a finite number" in problem
