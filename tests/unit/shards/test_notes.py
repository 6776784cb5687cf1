"""What an interrupted packing left is kept only where it is true; what was wrong is packed again, and said."""

import copy
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_adopt_hostile import RECORDINGS, tar_of
from tones import Broken, folder_bytes, pack_items, tone, utterance

from shards.adopt import adopt_shards
from shards.errors import InputError, ShardError
from shards.files import canonical_json
from shards.manifest import read_manifest
from shards.pack import pack_corpus
from shards.packfolder import STATE_FOLDER
from shards.schema import SourceUtterance
from shards.survey import verify

ITEMS = [*(tone(number) for number in range(9)), SourceUtterance(utterance("u0zz"), Broken("hiss"))]


def _stop(num_done, num_all):
    if num_done == num_all:
        raise KeyboardInterrupt


def _pack(out, **options):
    return pack_items(ITEMS, out, on_bad="skip", **options)


def _adopt(out, **options):
    return adopt_shards(out.parent / "tars", out, on_bad="skip", **options)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """By way of packing: a folder all of whose shards are finished, and what it would have become."""
    found = {}
    for way in (_pack, _adopt):
        folder = tmp_path_factory.mktemp(way.__name__)
        (folder / "tars").mkdir()
        members = [
            (f"{key}.{suffix}", data)
            for key, number in (("a", 0), ("b", 1), ("c", 2))
            for suffix, data in (("flac", RECORDINGS[number]), ("json", b'{"emotion": "anger", "age": 30}'))
        ]
        (folder / "tars" / "x.tar").write_bytes(tar_of([*members, ("d.flac", b"no sound")]))
        (folder / "tars" / "y.tar").write_bytes(tar_of([("e.flac", RECORDINGS[3]), ("f.flac", RECORDINGS[4])]))
        with pytest.raises(KeyboardInterrupt):
            way(folder / "out", progress=_stop)
        way(folder / "whole")
        found[way] = folder
    return found


def _resumed(way, interrupted, damage):
    """Damage a copy of the folder and pack again: the result is as if nothing had been, or refused."""
    # Beside the whole one: what is adopted lies where it lay.
    out = interrupted[way] / "damaged"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(interrupted[way] / "out", out)
    is_damaged = damage(out)
    before = folder_bytes(out)
    try:
        summary = way(out)
    except InputError as error:
        assert "\n" not in str(error)
        assert not (out / "manifest.json").exists()
        assert folder_bytes(out) == before
        return None
    finally:
        whole = folder_bytes(interrupted[way] / "whole")
    assert folder_bytes(out) == whole
    assert verify([out]) == []
    assert is_damaged in (None, bool(summary.doubts))
    return summary


ways = st.sampled_from([_pack, _adopt])
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("way", [_pack, _adopt])
def test_what_is_whole_is_kept(way, interrupted):
    kept = _resumed(way, interrupted, lambda out: False)
    assert kept.num_kept_shards == len(read_manifest(interrupted[way] / "whole").shards)


@quick
@given(ways, st.data())
def test_a_changed_byte_anywhere_is_never_published(interrupted, way, data):
    def damage(out):
        path = data.draw(
            st.sampled_from(sorted(path for path in out.rglob("*") if path.is_file() and path.name != "lock"))
        )
        content = bytearray(path.read_bytes())
        if not content:
            return
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content[: data.draw(st.sampled_from([len(content), at]))])
        return

    _resumed(way, interrupted, damage)


def _leaves(value, path=()):
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield from _leaves(child, (*path, name))


odd_values = st.sampled_from(
    [None, -1, 0, 1, 2**40, 10**30, 1.5, True, "", "x", "0" * 64, [], {}, [[]], {"a": 1}, "anger"]
)


@quick
@given(ways, st.booleans(), st.sampled_from(["remove", "set", "twice"]), st.data())
def test_a_note_that_says_something_else_is_never_published(interrupted, way, is_signed, how, data):
    """Signed again or not; of a signed one only what nothing but a decoder could tell may differ."""

    def damage(out):
        path = data.draw(st.sampled_from(sorted((out / STATE_FOLDER).glob("*.tar.json"))))
        note = json.loads(path.read_bytes())
        del note["sha256"]
        changed = copy.deepcopy(note)
        unprovable = ("audio", "sources_sha256")
        where = data.draw(st.sampled_from([leaf for leaf in _leaves(note) if leaf and leaf[0] not in unprovable]))
        # The digest of samples that an adopted tar does not hold itself.
        if is_signed and way is _adopt and where[-1] == "pcm_sha256":
            return None
        *parents, name = where
        holder = changed
        for parent in parents:
            holder = holder[parent]
        if how == "set":
            holder[name] = data.draw(odd_values)
        elif how == "remove":
            del holder[name]
        elif isinstance(holder, list):
            holder.insert(name, copy.deepcopy(holder[name]))
        body = canonical_json(changed)
        sha256 = hashlib.sha256(body).hexdigest() if is_signed else json.loads(path.read_bytes())["sha256"]
        path.write_bytes(body[:-1] + f',"sha256":"{sha256}"}}'.encode())
        # 1 and 1.0 are one number.
        return None if changed == note else True

    _resumed(way, interrupted, damage)


def _sign(path, edit):
    """Change a note and sign it again."""
    note = json.loads(path.read_bytes())
    del note["sha256"]
    edit(note)
    body = canonical_json(note)
    path.write_bytes(body[:-1] + f',"sha256":"{hashlib.sha256(body).hexdigest()}"}}'.encode())


def _reject_a_row(note):
    row = note["rows"].pop()
    note["rejections"].append({"source": row["key"], "reason": "hiss", "kind": "unusable audio"})
    note["shard"]["num_utterances"] -= 1
    note["shard"]["duration_s"] = sum(row["num_samples"] for row in note["rows"]) / 16_000


def _lengthen_a_row(note):
    note["rows"][0]["num_samples"] += 2
    note["shard"]["duration_s"] = sum(row["num_samples"] for row in note["rows"]) / 16_000


@pytest.mark.parametrize("way", [_pack, _adopt])
@pytest.mark.parametrize(
    "edit",
    [
        _reject_a_row,
        _lengthen_a_row,
        lambda note: note["rows"][0].update(emotion="joy"),
        lambda note: note["rows"][0].update(audio_sha256="0" * 64),
        lambda note: note["rejections"].append(note["rejections"][0] if note["rejections"] else ["a", "b", "c"]),
        lambda note: note.update(rejections=[]),
    ],
    ids=["row rejected", "length", "label", "digest", "rejected twice", "nothing rejected"],
)
def test_a_signed_note_of_something_else_is_packed_again(interrupted, way, edit):
    def damage(out):
        before = [path.read_bytes() for path in _notes(out)]
        for path in _notes(out):
            _sign(path, edit)
        return before != [path.read_bytes() for path in _notes(out)]

    _resumed(way, interrupted, damage)


def test_what_only_decoding_tells_of_a_signed_note_verification_finds(interrupted):
    out = interrupted[_adopt] / "damaged"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(interrupted[_adopt] / "out", out)
    for path in _notes(out):
        _sign(path, lambda note: note["rows"][0].update(pcm_sha256="0" * 64))
    assert _adopt(out).num_kept_shards == 2
    assert [problem.partition(": ")[2] for problem in verify([out])] == [
        "audio does not decode to the samples that were packed"
    ] * 2


def _notes(out):
    return sorted((out / STATE_FOLDER).glob("*.tar.json"))


@pytest.mark.parametrize("way", [_pack, _adopt])
@pytest.mark.parametrize(
    "damage",
    [
        lambda out: _notes(out)[0].write_bytes(b""),
        lambda out: _notes(out)[0].write_bytes(b"[" * 100_000),
        lambda out: _notes(out)[0].write_bytes(b'{"stamp": ' + b"9" * 1_000_000 + b"}"),
        lambda out: _notes(out)[0].write_bytes(b'{"stamp": "\\ud800"}'),
        lambda out: _notes(out)[0].write_bytes(_notes(out)[1].read_bytes()),
        lambda out: shutil.copy(_notes(out)[1], _notes(out)[0]),
        lambda out: (_notes(out)[0].unlink(), os.mkfifo(out / STATE_FOLDER / "x.tar.json")),
        lambda out: (_notes(out)[0].unlink(), (out / STATE_FOLDER / "x.tar.json").symlink_to("/dev/zero")),
        lambda out: (out / STATE_FOLDER / "lock").unlink(),
        lambda out: (out / STATE_FOLDER / "owner").unlink(),
        lambda out: (out / STATE_FOLDER / "owner").write_text('{"corpus": "other"}'),
    ],
)
def test_a_note_that_is_none_is_packed_again_or_refused(interrupted, way, damage):
    _resumed(way, interrupted, lambda out: (damage(out), None)[1])


def test_what_was_packed_again_is_said(interrupted):
    def lose_a_row(out):
        path = _notes(out)[1]
        note = json.loads(path.read_bytes())
        note["rows"].pop()
        path.write_bytes(canonical_json(note))
        return True

    summary = _resumed(_pack, interrupted, lose_a_row)
    (doubt,) = summary.doubts
    assert doubt.startswith("tones-000001.tar was packed again, because ")
    assert "must match its own sha256" in doubt


def test_a_note_that_changes_while_others_are_packed_is_not_published(tmp_path):
    def progress(num_done, num_all):
        if num_done == num_all:
            path = _notes(tmp_path)[0]
            path.write_bytes(path.read_bytes().replace(b'"take', b'"tale'))

    with pytest.raises(ShardError, match="must match its own sha256"):
        _pack(tmp_path, progress=progress)
    assert not (tmp_path / "manifest.json").exists()
    assert _pack(tmp_path).num_kept_shards == 2


def test_a_tar_that_is_cut_while_others_are_packed_is_not_published(tmp_path):
    def progress(num_done, num_all):
        if num_done == num_all:
            os.truncate(tmp_path / "tones-000000.tar", 512)

    with pytest.raises(ShardError, match=r"tones-000000\.tar must keep its .* bytes .* but has 512"):
        _pack(tmp_path, progress=progress)
    assert _pack(tmp_path).num_kept_shards == 2


# ---------------------------------------------------------------- other sound of the same length


def _write(folder, seed):
    folder.mkdir(exist_ok=True)
    for number in range(4):
        samples = 0.1 * np.random.default_rng((seed, number)).standard_normal(3_000)
        sf.write(folder / f"{number}.wav", samples, 16_000)
    (folder / "t.csv").write_text("file,emotion\n" + "".join(f"{number}.wav,anger\n" for number in range(4)))
    return folder / "t.csv"


@pytest.mark.parametrize("keeps_time", [True, False])
@pytest.mark.parametrize("is_complete", [True, False])
def test_other_sound_of_the_same_length_is_noticed(tmp_path, keeps_time, is_complete):
    table = _write(tmp_path / "in", 0)
    if is_complete:
        pack_corpus("csv", table, tmp_path / "out")
        assert pack_corpus("csv", table, tmp_path / "out").was_complete
    else:
        with pytest.raises(KeyboardInterrupt):
            pack_corpus("csv", table, tmp_path / "out", progress=_stop)
    times = {path: path.stat() for path in (tmp_path / "in").iterdir()}
    _write(tmp_path / "in", 1)
    for path, status in times.items():
        if keeps_time:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    if is_complete:
        with pytest.raises(ShardError, match="was packed from other sound"):
            pack_corpus("csv", table, tmp_path / "out")
        return
    summary = pack_corpus("csv", table, tmp_path / "out")
    assert summary.num_kept_shards == 0
    pack_corpus("csv", table, tmp_path / "fresh")
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "fresh")


def test_a_copy_of_the_corpus_elsewhere_is_the_same_corpus(tmp_path):
    table = _write(tmp_path / "in", 0)
    pack_corpus("csv", table, tmp_path / "out")
    shutil.copytree(tmp_path / "in", tmp_path / "copy")
    shutil.rmtree(tmp_path / "in")
    assert pack_corpus("csv", tmp_path / "copy" / "t.csv", tmp_path / "out", num_workers=2).was_complete


def test_of_a_folder_by_an_earlier_version_it_is_said_what_was_not_compared(tmp_path):
    from shards.manifest import write_manifest

    table = _write(tmp_path / "in", 0)
    pack_corpus("csv", table, tmp_path / "out")
    write_manifest(tmp_path / "out", read_manifest(tmp_path / "out").model_copy(update={"sources_sha256": None}))
    summary = pack_corpus("csv", table, tmp_path / "out")
    assert summary.was_complete
    assert "the sound of the source files was not compared" in summary.not_compared


def test_a_complete_folder_with_other_bytes_of_the_same_length_is_not_called_complete(tmp_path):
    _pack(tmp_path)
    for name in ("tones-000001.tar", "rejected.jsonl"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ShardError, match=rf"{name} must be as .* says, but its bytes were changed"):
            _pack(tmp_path)
        (tmp_path / name).write_bytes(data)
    assert _pack(tmp_path).was_complete
