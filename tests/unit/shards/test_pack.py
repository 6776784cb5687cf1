import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from tones import Broken, Tone, folder_bytes, pack_items, reader, tone, utterance

from shards.adopt import adopt_shards
from shards.audio import AudioFile, decode_stored, pcm16, pcm_sha256
from shards.corpora.base import CorpusReader
from shards.errors import CorpusError, ShardError
from shards.indexload import load_index
from shards.manifest import read_manifest
from shards.pack import pack_corpus
from shards.packfolder import STATE_FOLDER
from shards.schema import Rejection, SourceUtterance, Utterance
from shards.survey import verify

TESTS = Path(__file__).parents[2]


def stored_pcm(flac, num_samples):
    samples = np.empty(num_samples, np.float32)
    decode_stored(flac, samples)
    return pcm16(samples)


def test_the_same_corpus_packs_into_the_same_bytes_in_any_order_and_on_any_number_of_processes(tmp_path):
    items = [tone(number) for number in range(10)]
    pack_items(items, tmp_path / "one")
    pack_items(items[::-1], tmp_path / "reversed")
    pack_items(items, tmp_path / "two", num_workers=2)
    packed = folder_bytes(tmp_path / "one")
    assert sorted(packed) == [
        "index.parquet",
        "manifest.json",
        "rejected.jsonl",
        *(f"tones-00000{number}.tar" for number in range(3)),
    ]
    assert folder_bytes(tmp_path / "reversed") == packed
    assert folder_bytes(tmp_path / "two") == packed


def test_shards_are_plain_tar_with_fixed_headers(tmp_path):
    pack_items([tone(number) for number in range(4)], tmp_path)
    with tarfile.open(tmp_path / "tones-000000.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members[:3]] == ["tones/u000.flac", "tones/u000.json", "tones/u001.flac"]
        assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
            (0, 0, 0, "", 0o644)
        }
        flac = tar.extractfile("tones/u001.flac").read()
        meta = json.load(tar.extractfile("tones/u001.json"))
    assert sf.info(io.BytesIO(flac)).subtype == "PCM_16"
    expected = pcm16(Tone(201, 960).load()[0])
    assert np.array_equal(stored_pcm(flac, 960), expected)
    assert meta["pcm_sha256"] == pcm_sha256(expected).hex()
    assert meta["num_samples"] == 960
    assert (meta["schema_version"], meta["key"], meta["speaker"], meta["text"]) == (2, "tones/u001", "s1", None)


def test_webdataset_reads_shards_unchanged(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    # Two keys that webdataset's cut at the first dot would merge, were they not encoded.
    dotted = [SourceUtterance(utterance(f"Ses01F.impro0{number}", text="a"), Tone(300 + number)) for number in (1, 2)]
    pack_items([*dotted, *(tone(number) for number in range(5))], tmp_path)
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == load_index([tmp_path]).values("key")
    for sample in samples:
        meta = json.loads(sample["json"])
        assert meta["key"] == sample["__key__"]
        assert pcm_sha256(stored_pcm(sample["flac"], meta["num_samples"])).hex() == meta["pcm_sha256"]


# ---------------------------------------------------------------- killed and repeated

SLOW_PACKING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tones import pack_items, tone
if __name__ == "__main__":
    pack_items([tone(n, delay_s=0.02) for n in range(24)], Path(sys.argv[2]), num_workers=int(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def slow_items():
    return [tone(number, delay_s=0.02) for number in range(24)]


@pytest.fixture(scope="module")
def uninterrupted(slow_items, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    pack_items(slow_items, folder, num_workers=1)
    return folder_bytes(folder)


@pytest.mark.parametrize(("num_workers", "num_finished"), [(1, 0), (1, 1), (1, 5), (2, 2)])
def test_a_killed_packing_goes_on_where_it_was_and_ends_in_the_same_bytes(
    tmp_path, slow_items, uninterrupted, num_workers, num_finished
):
    script = tmp_path / "slow_packing.py"
    script.write_text(SLOW_PACKING)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, str(script), str(TESTS), str(out), str(num_workers)],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        start_new_session=True,
    )
    try:
        notes = out / STATE_FOLDER
        _wait(lambda: notes.exists() and len(list(notes.glob("*.json"))) >= num_finished, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # Workers must end with their parent; the group is empty once they have.
        _wait(lambda: not _group_lives(process.pid))
    finally:
        if _group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    assert not (out / "manifest.json").exists(), "the kill came too late to test anything"
    with pytest.raises(ShardError, match=r"no manifest\.json"):
        load_index([out])

    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    summary = pack_items(slow_items, out)
    assert summary.num_kept_shards >= num_finished
    assert folder_bytes(out) == uninterrupted
    untouched = sum((out / name).stat().st_mtime_ns == changed for name, changed in kept.items())
    assert untouched == summary.num_kept_shards


def _wait(condition, process=None):
    # Each worker imports torch before its first shard, on machines that others may keep busy.
    for _ in range(6_000):
        if condition():
            return
        assert process is None or process.poll() is None, "the packing ended before it could be killed"
        time.sleep(0.01)
    raise AssertionError("waited 60 s")


def _group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _stop(num_done, num_all):
    if num_done == num_all:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("licence", "progress", "error", "published"),
    [
        ("CC0-1.0", _stop, KeyboardInterrupt, []),
        # Not text, which is noticed when the manifest is made: after the index, before the manifest.
        (None, None, ValueError, ["index.parquet", "rejected.jsonl"]),
    ],
)
def test_an_end_between_the_last_shard_and_the_manifest_costs_no_shard(tmp_path, licence, progress, error, published):
    items = [tone(number) for number in range(10)]
    pack_items(items, tmp_path / "whole")
    out = tmp_path / "out"
    corpus = CorpusReader("tones", "Tones", licence, "nobody", lambda source, seed: iter(items))
    with pytest.raises(error):
        pack_corpus(corpus, None, out, shard_utterances=4, progress=progress)
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".tar") == [STATE_FOLDER, *published]
    assert pack_items(items, out).num_kept_shards == 3
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")


def test_a_finished_folder_is_left_alone(tmp_path):
    items = [tone(number) for number in range(5)]
    first = pack_items(items, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    second = pack_items(items, tmp_path)
    assert (first.was_complete, second.was_complete) == (False, True)
    assert second.num_utterances == 5
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


def test_a_finished_folder_that_lost_bytes_is_not_called_complete(tmp_path):
    items = [tone(number) for number in range(5)]
    pack_items(items, tmp_path)
    os.truncate(tmp_path / "tones-000001.tar", 1024)
    with pytest.raises(ShardError, match=r"tones-000001.tar must have 10240 bytes .* but has 1024"):
        pack_items(items, tmp_path)


def test_an_unfinished_shard_is_packed_anew_when_its_source_changed(tmp_path):
    wav = tmp_path / "a.wav"
    out = tmp_path / "out"
    bad = SourceUtterance(utterance("zz"), Broken("header damaged"))
    items = [tone(0), tone(1), tone(2), SourceUtterance(utterance("a"), AudioFile(wav)), bad]
    _write_wav(wav, 0.5)
    with pytest.raises(CorpusError, match="header damaged"):
        pack_items(items, out)
    _write_wav(wav, 0.25)
    os.utime(wav, ns=(1, 1))
    summary = pack_items(items[:-1], out)
    assert summary.num_kept_shards == 0
    row = load_index([out]).values("key").index("tones/a")
    expected = pcm16(AudioFile(wav).load()[0])
    assert load_index([out]).values("pcm_sha256")[row] == pcm_sha256(expected)


def test_a_shard_that_stopped_packing_is_tried_again(tmp_path):
    class Permitted(Tone):
        is_permitted = False

        def load(self):
            return super().load() if self.is_permitted else Broken("permission denied").load()

    items = [SourceUtterance(utterance("a"), Permitted(300))]
    with pytest.raises(CorpusError, match="permission denied"):
        pack_items(items, tmp_path)
    Permitted.is_permitted = True
    assert pack_items(items, tmp_path).num_utterances == 1


def test_one_process_at_a_time_packs_into_a_folder(tmp_path):
    def items():
        yield tone(0)

    class SecondPacker(Tone):
        def load(self):
            with pytest.raises(ShardError, match="another is at work"):
                pack_items(items(), tmp_path)
            return super().load()

    summary = pack_items([SourceUtterance(utterance("a"), SecondPacker(300))], tmp_path)
    assert summary.num_utterances == 1


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda out: (out / "thesis.tex").write_text("precious"), r"has 'thesis.tex' \(1 such files\)"),
        (lambda out: (out / "emodb-000000.tar").write_text("precious"), "has 'emodb-000000.tar'"),
        (lambda out: (out / "tones-000000.tar").write_text("precious"), "has 'tones-000000.tar'"),
        (lambda out: (out / "index.parquet").write_text("precious"), "has 'index.parquet'"),
        (lambda out: (out / "rejected.jsonl").write_text("precious"), "has 'rejected.jsonl'"),
        (lambda out: (out / ".index.parquet.tmp").write_text("precious"), "has '.index.parquet.tmp'"),
        (lambda out: (out / STATE_FOLDER).write_text("precious"), "has '.packing'"),
        (lambda out: (out / STATE_FOLDER).symlink_to("."), "has '.packing'"),
        (lambda out: ((out / STATE_FOLDER).mkdir(), (out / STATE_FOLDER / "x").write_text("mine")), "has '.packing'"),
        (lambda out: (out / "manifest.json").mkdir(), "has 'manifest.json'"),
        (lambda out: pack_corpus(reader([tone(0)], "other"), None, out), "'tones', but .* holds 'other'"),
        (lambda out: pack_items([tone(0), tone(1)], out), "was packed from other utterances"),
        (lambda out: pack_items([tone(0)], out, seed=1), "with other settings"),
    ],
)
def test_foreign_files_and_other_corpora_are_not_overwritten(tmp_path, prepare, message):
    prepare(tmp_path)
    before = folder_bytes(tmp_path)
    with pytest.raises(ShardError, match=message):
        pack_items([tone(0)], tmp_path)
    assert folder_bytes(tmp_path) == before


@pytest.mark.parametrize("name", ["index.parquet", "rejected.jsonl", "thesis.tex"])
def test_what_others_put_into_an_unfinished_folder_is_not_overwritten(tmp_path, name):
    with pytest.raises(KeyboardInterrupt):
        pack_items([tone(0)], tmp_path, progress=_stop)
    (tmp_path / name).write_text("precious")
    before = folder_bytes(tmp_path)
    with pytest.raises(ShardError, match=f"has '{name}'"):
        pack_items([tone(0)], tmp_path)
    assert folder_bytes(tmp_path) == before
    (tmp_path / name).unlink()
    assert pack_items([tone(0)], tmp_path).num_kept_shards == 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"age": 151.0}, "age must be 0 to 150 years, got 151"),
        ({"age": -1.0}, "age must be 0 to 150 years, got -1"),
        ({"emotion": "x" * 5_000}, "emotion must have at most 4096 bytes, got 5000"),
        ({"speaker": "x" * 4_095}, "speaker must have at most 4096 bytes, got 4101"),
        ({"text": "x" * (1 << 20) + "y"}, "text must have at most 1048576 bytes, got 1048577"),
        ({"extra": {"a": "x" * (1 << 20)}}, "extra must have at most 1048576 bytes"),
    ],
)
def test_what_an_index_must_not_hold_is_rejected_by_name(tmp_path, metadata, message):
    items = [tone(0), SourceUtterance(utterance("odd", **metadata), Tone(300))]
    with pytest.raises(CorpusError, match=f"odd.wav: {message}"):
        pack_items(items, tmp_path)
    assert pack_items(items, tmp_path, on_bad="skip").num_utterances == 1
    assert verify([tmp_path]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_duration_s": float("nan")}, "--max-duration must be .* got nan"),
        ({"max_duration_s": float("inf")}, "--max-duration must be .* got inf"),
        ({"max_duration_s": 1e9}, "--max-duration must be a number of seconds up to 14400"),
        ({"seed": 10**30}, "--seed must be .* a number of 31 digits"),
    ],
)
def test_settings_that_no_manifest_may_hold_are_refused(tmp_path, options, message):
    with pytest.raises(CorpusError, match=message):
        pack_items([tone(0)], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_out_must_not_be_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ShardError, match=r"OUT must be a folder, but .*out is a file"):
        pack_items([tone(0)], tmp_path / "out")


def test_a_full_disk_is_one_sentence_and_keeps_finished_shards(tmp_path):
    noisy = tmp_path / "full_disk.py"
    # A limit on file size fails a write the way a full disk does. Shard 0 fits, shard 1 does not.
    noisy.write_text(
        """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tones import Tone, pack_items, utterance
from shards.errors import ShardError
from shards.schema import SourceUtterance
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
items = [SourceUtterance(utterance(f"u{n}"), Tone(300.7, 1_000 if n < 4 else 90_000)) for n in range(8)]
try:
    pack_items(items, Path(sys.argv[2]))
except ShardError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(sorted(path.name for path in Path(sys.argv[2]).iterdir()))
print(pack_items(items, Path(sys.argv[2])).num_kept_shards)
"""
    )
    done = subprocess.run(
        [sys.executable, str(noisy), str(TESTS), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    sentence, names, num_kept = done.stdout.splitlines()
    assert "tones-000001.tar could not be written: File too large; whatever is finished is kept" in sentence
    assert names == "['.packing', 'tones-000000.tar']"
    assert num_kept == "1"


# ---------------------------------------------------------------- what is rejected


def _write_wav(path, amplitude, num_samples=1_600, rate_hz=16_000):
    sf.write(path, amplitude * np.sin(np.arange(num_samples) / 9), rate_hz, subtype="PCM_16")


def _item(key, path):
    return SourceUtterance(utterance(key), AudioFile(path))


def _bad_items(folder):
    """One of each kind of unusable thing, in the order in which packing meets them."""
    _write_wav(folder / "whole.wav", 0.5)
    whole = (folder / "whole.wav").read_bytes()
    (folder / "c_truncated.wav").write_bytes(whole[:-1_000])
    (folder / "d_text.wav").write_text("no audio at all")
    _write_wav(folder / "e_empty.wav", 0.5, num_samples=0)
    sf.write(folder / "f_nan.wav", np.asarray([0.5, np.nan, 0.5]), 16_000, subtype="FLOAT")
    _write_wav(folder / "g_silence.wav", 0.0)
    _write_wav(folder / "h_long.wav", 0.5, num_samples=17_000)
    _write_wav(folder / "j_speck.wav", 0.5, num_samples=1, rate_hz=192_000)
    return [
        (
            Rejection("table.csv row 3", "emotion must be one of anger, neutral, got 'hangry'", "unknown label"),
            "hangry",
        ),
        (tone(1), "u001.wav: has the same key 'tones/u001' as u001.wav"),
        (SourceUtterance(Utterance(key="../../evil", corpus="tones"), Tone(300)), "got '../../evil'"),
        (SourceUtterance(Utterance(key="tones/" + "/".join(["x" * 80] * 4), corpus="tones"), Tone(300)), "too long"),
        (SourceUtterance(utterance("nan", valence=float("nan")), Tone(300)), "finite numbers"),
        (_item("c", folder / "c_truncated.wav"), "truncated"),
        (_item("d", folder / "d_text.wav"), "decoding .*d_text.wav failed"),
        (_item("e", folder / "e_empty.wav"), "length zero"),
        (_item("f", folder / "f_nan.wav"), "NaN"),
        (_item("g", folder / "g_silence.wav"), r"all 1600 samples are zero \(silence\)"),
        (_item("h", folder / "h_long.wav"), "lasts 1.06 s, longer than --max-duration 1"),
        (_item("i", folder / "i_missing.wav"), "i_missing.wav is not"),
        (_item("j", folder / "j_speck.wav"), "less than one sample"),
    ]


@pytest.mark.parametrize("position", range(13))
def test_each_bad_thing_stops_packing_with_one_sentence(tmp_path, position):
    item, message = _bad_items(tmp_path)[position]
    out = tmp_path / "out"
    with pytest.raises(CorpusError, match=message) as caught:
        pack_items([tone(0), tone(1), item], out, max_duration_s=1.0)
    assert "--on-bad skip" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (out / "manifest.json").exists()


def test_skipped_things_are_listed_and_counted(tmp_path):
    bad = [item for item, _ in _bad_items(tmp_path)]
    out = tmp_path / "out"
    summary = pack_items([tone(0), tone(1), *bad], out, on_bad="skip", max_duration_s=1.0)
    assert summary.num_utterances == 2
    assert summary.num_rejected_by_kind == {
        "bad key": 2,
        "bad metadata": 1,
        "duplicate key": 1,
        "silence": 1,
        "too long": 1,
        "unknown label": 1,
        "unusable audio": 6,
    }
    listed = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [sorted(line) for line in listed] == [["kind", "reason", "source"]] * 13
    assert listed[0]["source"] == "table.csv row 3"
    assert {line["source"] for line in listed} >= {f"{name}.wav" for name in ("c", "d", "e", "f", "g", "h", "i", "j")}
    assert load_index([out]).values("key") == ["tones/u000", "tones/u001"]
    assert sorted(path.name for path in tmp_path.parent.rglob("*evil*")) == []


def test_packed_bytes_do_not_tell_where_the_corpus_lay(tmp_path):
    packed = []
    for place in ("here", "elsewhere"):
        corpus, out = tmp_path / place / "corpus", tmp_path / place / "out"
        corpus.mkdir(parents=True)
        _write_wav(corpus / "whole.wav", 0.5)
        (corpus / "cut.wav").write_bytes((corpus / "whole.wav").read_bytes()[:-1_000])
        items = [
            _item("a", corpus / "cut.wav"),
            _item("b", corpus / "whole.wav"),
            Rejection(str(corpus / "c.wav"), "has no row", "no row"),
        ]
        pack_corpus(reader(items), corpus, out, on_bad="skip")
        packed.append(folder_bytes(out))
    assert packed[0] == packed[1]
    assert b'"source":"c.wav"' in packed[0]["rejected.jsonl"]


def test_a_folder_packed_with_skip_does_not_satisfy_raise(tmp_path):
    items = [tone(0), SourceUtterance(utterance("zz"), Broken("hiss"))]
    pack_items(items, tmp_path, on_bad="skip")
    assert pack_items(items, tmp_path, on_bad="skip").was_complete
    with pytest.raises(ShardError, match="leaves out 1 utterances"):
        pack_items(items, tmp_path)


def test_the_first_bad_utterance_by_key_stops_whatever_process_meets_it(tmp_path):
    items = [SourceUtterance(utterance(f"b{number}"), Broken(f"hiss {number}")) for number in range(8)]
    with pytest.raises(CorpusError, match=r"b0\.wav: hiss 0"):
        pack_items(items[::-1], tmp_path, num_workers=2)


def test_a_corpus_without_usable_utterances_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match=r"at least one utterance to pack, but corpus 'tones' has none"):
        pack_items([], tmp_path / "a")
    assert not (tmp_path / "a").exists()
    broken = [SourceUtterance(utterance("a"), Broken("hiss")), Rejection("b.wav", "has no row", "no metadata")]
    with pytest.raises(CorpusError, match=r"all of .* rejected \(no metadata: 1, unusable audio: 1\).* b.wav: has no"):
        pack_items(broken, tmp_path / "b", on_bad="skip")
    assert not (tmp_path / "b" / "manifest.json").exists()


def test_source_must_exist(tmp_path):
    with pytest.raises(CorpusError, match=r"SOURCE .*nowhere does not exist"):
        pack_corpus(reader([tone(0)]), tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(CorpusError, match=r"CORPUS must be one of .* got 'emo'"):
        pack_corpus("emo", None, tmp_path / "out")


# ---------------------------------------------------------------- what is noticed


def test_identical_audio_is_named_also_across_splits(tmp_path):
    twins = [
        SourceUtterance(utterance(f"twin{number}", split=split), Tone(440))
        for number, split in enumerate(("train", "test"))
    ]
    (warning,) = pack_items([*twins, tone(0)], tmp_path).warnings
    assert warning == "1 groups of utterances have identical audio, 1 of them across splits: tones/twin0 = tones/twin1"
    assert read_manifest(tmp_path).warnings == (warning,)


def test_mixing_down_and_mixed_rates_are_told(tmp_path):
    items = [
        SourceUtterance(utterance("a"), Tone(440, 1_600, num_channels=2)),
        SourceUtterance(utterance("b"), Tone(440, 4_410, rate_hz=44_100)),
        SourceUtterance(utterance("c"), Tone(440, 4_410, rate_hz=44_100, num_channels=1, amplitude=0.1)),
    ]
    assert pack_items(items, tmp_path).warnings == (
        "1 of 3 utterances had several channels and were mixed down to one, the first a.wav; where each channel is "
        "another person, take one with --channel or a column channel",
        "the sources have several sample rates (1 at 16000 Hz, 2 at 44100 Hz); all are brought to 16000 Hz",
    )
    assert load_index([tmp_path]).num_samples.tolist() == [1_600, 1_600, 1_600]


def test_clipping_and_near_silence_are_told(tmp_path):
    items = [
        SourceUtterance(utterance("clipped"), Tone(300, amplitude=2.0)),
        SourceUtterance(utterance("peak"), Tone(4_000, amplitude=1.0)),
        SourceUtterance(utterance("quiet"), Tone(301, amplitude=0.0009)),
        SourceUtterance(utterance("fine"), Tone(302)),
    ]
    assert pack_items(items, tmp_path).warnings == (
        "1 of 4 utterances are clipped (3 or more samples at full scale)",
        "1 of 4 utterances are all but silent (peak below -60 dB of full scale)",
    )


@pytest.mark.parametrize(("num_equal", "is_told"), [(11, True), (10, False)])
def test_clips_cut_to_one_length_and_a_single_emotion_are_told(tmp_path, num_equal, is_told):
    items = [
        SourceUtterance(
            utterance(f"{number:02d}", emotion="anger"), Tone(300 + number, 800 if number < num_equal else 900 + number)
        )
        for number in range(20)
    ]
    warnings = pack_items(items, tmp_path).warnings
    assert (f"{num_equal} of 20 utterances last exactly 0.050 s" in warnings[0]) == is_told
    assert warnings[-1] == "all 20 emotion labels are 'anger', which teaches nothing"


def test_progress_counts_utterances(tmp_path):
    calls = []
    pack_items([tone(number) for number in range(6)], tmp_path, progress=lambda *call: calls.append(call))
    assert calls == [(4, 6), (6, 6)]


def test_packing_loads_no_torch():
    code = "import sys, shards.pack, shards.survey, shards.filter; print({'torch', 'webdataset'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_an_ogg_file_cut_between_two_pages_is_packed_and_said(tmp_path):
    """Its samples are all there, and recorders of phones write such files: only a person can tell."""
    noise = np.random.default_rng(0).normal(size=160_000) * 0.1
    for name in ("cut", "whole"):
        sf.write(tmp_path / f"{name}.ogg", noise, 16_000, format="OGG", subtype="VORBIS")
    data = (tmp_path / "cut.ogg").read_bytes()
    last = data.rindex(b"OggS")
    (tmp_path / "cut.ogg").write_bytes(data[:last])
    (tmp_path / "t.csv").write_text("file,emotion\ncut.ogg,joy\nwhole.ogg,anger\n")
    summary = pack_corpus("csv", tmp_path / "t.csv", tmp_path / "packed")
    assert summary.num_utterances == 2
    (said,) = [warning for warning in summary.warnings if "OGG" in warning]
    assert said.startswith("1 of 2 utterances are of OGG files without a mark at their end, the first cut.ogg;")
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "a.tar", "w") as tar:
        tar.add(tmp_path / "cut.ogg", "x.ogg")
        tar.add(tmp_path / "whole.ogg", "y.ogg")
    warnings = adopt_shards(tmp_path / "shards", tmp_path / "adopted").warnings
    assert any(warning.startswith("1 of 2 utterances are of OGG files") for warning in warnings)


# ---------------------------------------------------------------- paths that lead nowhere


@pytest.fixture
def nowhere(tmp_path):
    """Paths by what is wrong with them."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "file.wav").write_bytes(b"RIFF")
    os.mkfifo(tmp_path / "pipe")
    return {
        "Too many levels of symbolic links": tmp_path / "loop",
        "Too many levels of symbolic links ": tmp_path / "loop" / "inside",
        "File name too long": tmp_path / ("x" * 300),
        "Not a directory": tmp_path / "file.wav" / "inside",
        "is a link to what does not exist": tmp_path / "dangling",
        "does not exist": tmp_path / "gone",
        "is a file, not a folder": tmp_path / "file.wav",
        "is no folder": tmp_path / "pipe",
    }


FOLDERS = ["emodb", "ravdess", "iemocap", "crema-d", "msp-podcast", "meld", "nemo", "an4", "folder", "audiofolder"]


@pytest.mark.parametrize("corpus", [*FOLDERS, "csv", "jsonl", "audformat"])
def test_source_that_leads_nowhere_is_told_with_the_true_reason(tmp_path, nowhere, corpus):
    for reason, source in nowhere.items():
        if corpus not in FOLDERS and "folder" in reason:
            continue
        with pytest.raises(CorpusError) as refused:
            pack_corpus(corpus, source, tmp_path / "out")
        assert f"{source} " in str(refused.value)
        assert reason.strip() in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_folder_where_a_table_is_meant_is_told(tmp_path):
    for corpus in ("csv", "jsonl"):
        with pytest.raises(CorpusError, match="is a folder, not a file"):
            pack_corpus(corpus, tmp_path, tmp_path / "out")
    (tmp_path / "VideoDemographics.csv").mkdir()
    (tmp_path / "AudioWAV").mkdir()
    (tmp_path / "AudioWAV" / "a.wav").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"VideoDemographics\.csv must be .* but it is a folder, not a file"):
        pack_corpus("crema-d", tmp_path, tmp_path / "out")


def test_out_and_source_of_tars_that_lead_nowhere_are_told_with_the_true_reason(tmp_path, nowhere):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").write_bytes(bytes(1024))
    for reason, path in nowhere.items():
        with pytest.raises(CorpusError, match=reason.strip()):
            adopt_shards(path, tmp_path / "out")
        words = "no such directory" if reason == "does not exist" else reason.strip()
        with pytest.raises(ShardError, match=words):
            read_manifest(path)
        if reason == "does not exist":
            continue
        with pytest.raises(ShardError, match=reason.strip()):
            adopt_shards(tmp_path / "tars", path)
        with pytest.raises(ShardError, match=reason.strip()):
            pack_items([tone(0)], path)


def test_folders_that_lead_nowhere_inside_a_corpus_are_told(tmp_path):
    (tmp_path / "AudioWAV").symlink_to("AudioWAV")
    with pytest.raises(CorpusError, match=r"AudioWAV must be a folder .* but it cannot be reached: Too many levels"):
        pack_corpus("crema-d", tmp_path, tmp_path / "out")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "an4_train.fileids").symlink_to("an4_train.fileids")
    with pytest.raises(CorpusError, match=r"an4_train\.fileids must be a file .* but it cannot be reached: Too many"):
        pack_corpus("an4", tmp_path, tmp_path / "out")
