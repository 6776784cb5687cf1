"""What corpora look like after years on people's disks: every reader and the packer take it or report it."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corpustrees import TREES, crema_d, iemocap, kinds, meld, nemo, ravdess, read, real, write, write_audio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaser.targets import Targets
from metaser.tasks.spec import TaskSpec
from shards.config import LeaveOneOut, RandomSpeakers
from shards.errors import CorpusError
from shards.index import Index
from shards.indexload import load_index
from shards.pack import pack_corpus
from shards.publish import PackSummary
from shards.splits import assign_splits

ALL = sorted(TREES)


# ---------------------------------------------------------------- what is on the disk beside the corpus


@pytest.mark.parametrize("corpus", ALL)
def test_reading_again_gives_the_same_in_the_same_order(tmp_path, corpus) -> None:
    root = TREES[corpus](tmp_path)
    assert read(corpus, root) == read(corpus, root)
    assert read(corpus, root)[0]


@pytest.mark.parametrize("corpus", ALL)
def test_leftovers_of_macos_are_no_audio(tmp_path, corpus) -> None:
    root = TREES[corpus](tmp_path)
    before = read(corpus, root)
    for path in [path for path in root.rglob("*") if path.is_file()]:
        (path.parent / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
    for folder in {path.parent for path in root.rglob("*")}:
        (folder / ".DS_Store").write_bytes(b"Bud1")
    assert read(corpus, root) == before


@pytest.mark.parametrize("corpus", ALL)
def test_suffixes_in_capitals_are_audio(tmp_path, corpus) -> None:
    root = TREES[corpus](tmp_path)
    before, _ = read(corpus, root)
    for path in list(root.rglob("*.wav")):
        path.rename(path.with_suffix(".WAV"))
    found, rejected = read(corpus, root)
    assert rejected == []
    assert [u.key for u in found] == [u.key for u in before]


@pytest.mark.parametrize("corpus", ALL)
@pytest.mark.parametrize("source", ["", "missing", "empty"])
def test_another_folder_is_refused_with_what_was_looked_for(tmp_path, corpus, source) -> None:
    (tmp_path / "empty" / "Actor_01").mkdir(parents=True)
    (tmp_path / "empty" / "AudioWAV").mkdir()
    (tmp_path / "empty" / "Session1" / "dialog" / "EmoEvaluation").mkdir(parents=True)
    with pytest.raises(CorpusError, match=rf"not an? .* folder: .*{tmp_path / source}.*; give "):
        read(corpus, tmp_path / source)


@pytest.mark.parametrize("corpus", ALL)
def test_a_corpus_that_is_read_needs_a_source(corpus) -> None:
    with pytest.raises(CorpusError):
        read(corpus, None)


def test_empty_folders_hold_nothing(tmp_path) -> None:
    (ravdess(tmp_path) / "Actor_05").mkdir()
    found, rejected = read("ravdess", tmp_path)
    assert (len(found), rejected) == (5, [])
    (iemocap(tmp_path / "iemocap") / "Session1" / "sentences" / "wav" / "Ses01F_impro09").mkdir()
    assert len(read("iemocap", tmp_path / "iemocap")[0]) == 12


@pytest.mark.parametrize("corpus", ALL)
def test_a_label_without_audio_and_audio_without_a_label_are_reported(tmp_path, corpus) -> None:
    root = TREES[corpus](tmp_path)
    count = len(read(corpus, root)[0])
    first = min(root.rglob("*.wav"))
    stem = {"crema-d": "1003_DFA_ANG_XX", "ravdess": "03-01-01-01-01-01-09"}.get(corpus, f"{first.stem}9")
    first.rename(first.with_name(f"{stem}.wav"))
    found, rejected = read(corpus, root)
    assert len(found) == count - 1
    in_names = {"crema-d": ["audio without row"], "ravdess": ["wrong folder"]}
    assert kinds(rejected) == in_names.get(corpus, ["row without audio", "audio without row"])


DAMAGE = st.one_of(
    st.tuples(st.just("rename"), st.binary(min_size=1, max_size=40).filter(lambda name: not set(name) & set(b"/\0."))),
    st.tuples(st.just("overwrite"), st.binary(max_size=60)),
    st.tuples(st.just("swap"), st.just(b"")),
    st.tuples(st.just("remove"), st.just(b"")),
)


@pytest.mark.parametrize("corpus", ALL)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damages=st.lists(st.tuples(DAMAGE, st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=4))
def test_no_damaged_name_or_table_crashes_a_reader(tmp_path, corpus, damages) -> None:
    whole, root = tmp_path / "whole", tmp_path / "damaged"
    if not whole.exists():
        TREES[corpus](whole)
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(whole, root)
    for (kind, data), which, where in damages:
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        if not paths:
            break
        path = paths[which % len(paths)]
        if kind == "rename":
            path.rename(path.parent / os.fsdecode(data + path.suffix.encode()))
        elif kind == "overwrite":
            content = path.read_bytes()
            start = where % (len(content) + 1)
            path.write_bytes(content[:start] + data + content[start + len(data) // 2 :])
        elif kind == "swap":
            other = paths[where % len(paths)]
            content = path.read_bytes()
            path.write_bytes(other.read_bytes())
            other.write_bytes(content)
        else:
            path.unlink()
    try:
        found, rejected = read(corpus, root)
    except CorpusError as error:
        assert str(error)
    else:
        assert all(item.kind and item.reason and "\n" not in item.kind for item in rejected)
        assert all(u.model_dump_json() for u in found)


# ---------------------------------------------------------------- packed


def packed(corpus: str, root: Path, out: Path) -> tuple[Index, PackSummary]:
    summary = pack_corpus(corpus, root, out, on_bad="skip")
    return load_index([out]), summary


@pytest.mark.parametrize("corpus", ALL)
def test_every_corpus_packs(tmp_path, corpus) -> None:
    index, summary = packed(corpus, TREES[corpus](tmp_path / "in"), tmp_path / "out")
    found, _ = read(corpus, tmp_path / "in")
    assert sorted(u.key for u in found) == index.values("key")
    assert summary.num_rejected_by_kind == {}
    assert summary.warnings == ()


def test_containers_channels_and_rates_may_differ_within_a_corpus(tmp_path) -> None:
    folder = tmp_path / "in" / "Actor_01"
    forms = {
        "01": {"container": "NIST"},
        "02": {"container": "AIFF"},
        "03": {"channels": 2},
        "04": {"rate_hz": 96_000},
        "05": {"rate_hz": 48_000, "channels": 6},
    }
    for emotion, form in forms.items():
        write_audio(folder / f"03-01-{emotion}-01-01-01-01.wav", **form)
    assert (folder / "03-01-01-01-01-01-01.wav").read_bytes()[:7] == b"NIST_1A"
    assert (folder / "03-01-02-01-01-01-01.wav").read_bytes()[:4] == b"FORM"
    index, summary = packed("ravdess", tmp_path / "in", tmp_path / "out")
    assert index.num_samples.tolist() == [1600] * 5
    assert summary.warnings == (
        "2 of 5 utterances had several channels and were mixed down to one, the first "
        "Actor_01/03-01-03-01-01-01-01.wav; where each channel is another person, take one with --channel "
        "or a column channel",
        "the sources have several sample rates (3 at 16000 Hz, 1 at 48000 Hz, 1 at 96000 Hz); all are brought to "
        "16000 Hz",
    )


def test_one_recording_under_two_names_is_a_warning(tmp_path) -> None:
    folder = ravdess(tmp_path / "in") / "Actor_03"
    shutil.copy(folder / "03-01-01-01-01-01-03.wav", folder / "03-01-01-01-01-02-03.wav")
    _, summary = packed("ravdess", tmp_path / "in", tmp_path / "out")
    assert summary.warnings == (
        "1 groups of utterances have identical audio: ravdess/03-01-01-01-01-01-03 = ravdess/03-01-01-01-01-02-03",
    )


def test_one_archive_unpacked_twice_is_reported_not_doubled(tmp_path) -> None:
    ravdess(tmp_path / "in")
    ravdess(tmp_path / "in" / "audio_speech_actors_01-24")
    index, summary = packed("ravdess", tmp_path / "in", tmp_path / "out")
    assert len(index) == 5
    assert summary.num_rejected_by_kind == {"duplicate key": 5}


def test_names_that_are_no_unicode_are_reported(tmp_path) -> None:
    folder = crema_d(tmp_path / "in") / "AudioWAV"
    (folder / "1001_DFA_ANG_XX.wav").rename(folder / os.fsdecode(b"1001_caf\xe9.wav"))
    _, summary = packed("crema-d", tmp_path / "in", tmp_path / "out")
    assert summary.num_rejected_by_kind == {"unknown file name": 1}
    (line,) = (tmp_path / "out" / "rejected.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["source"] == "AudioWAV/1001_caf\\udce9.wav"
    with pytest.raises(CorpusError, match=r"1001_caf\\udce9\.wav"):
        pack_corpus("crema-d", tmp_path / "in", tmp_path / "again")


def test_a_clone_without_git_lfs_says_so(tmp_path) -> None:
    root = crema_d(tmp_path / "in")
    write(root / "AudioWAV" / "1001_DFA_ANG_XX.wav", "version https://git-lfs.github.com/spec/v1\noid x\n")
    with pytest.raises(CorpusError, match=r"1001_DFA_ANG_XX\.wav.* is a pointer of Git LFS; run `git lfs pull`"):
        pack_corpus("crema-d", root, tmp_path / "out")


def test_speaker_names_with_blanks_survive_packing_and_splitting(tmp_path) -> None:
    index, _ = packed("meld", meld(tmp_path / "in"), tmp_path / "out")
    assert {"meld:Mrs. Green", "meld:The Interviewer"} < set(index.values("speaker"))
    splits = assign_splits(index, [RandomSpeakers(policy="random_speakers", num_test_speakers=2, num_dev_speakers=1)])
    assert splits.protocol["num_speakers"] == {"train": 3, "dev": 1, "test": 2}
    index, _ = packed("nemo", nemo(tmp_path / "nemo"), tmp_path / "nemo-out")
    assert sorted(set(index.values("speaker"))) == ["nemo:EB0", "nemo:WR0"]


def test_iemocap_left_out_by_speaker_never_trains_on_the_partner(tmp_path) -> None:
    index, _ = packed("iemocap", iemocap(tmp_path / "in"), tmp_path / "out")
    for fold in range(10):
        splits = assign_splits(index, [LeaveOneOut(policy="leave_one_out", field="speaker", fold=fold)])
        (test,), (dev,) = (set(index.take(splits.rows(split)).values("speaker")) for split in ("test", "dev"))
        session, own = fold // 2 + 1, "FM"[fold % 2]
        assert (test, dev) == (f"iemocap:Ses0{session}{own}", f"iemocap:Ses0{session}{'MF'[fold % 2]}")
        assert splits.protocol["num_speakers"] == {"train": 8, "dev": 1, "test": 1}


def test_iemocap_is_left_out_by_session_and_its_four_classes_are_chosen_by_configuration(tmp_path) -> None:
    index, _ = packed("iemocap", iemocap(tmp_path / "in"), tmp_path / "out")
    splits = assign_splits(index, [LeaveOneOut(policy="leave_one_out", field="session", fold=3)])
    assert set(index.take(splits.rows("test")).values("session")) == {"iemocap:Session4"}
    assert splits.protocol["num_speakers"] == {"train": 6, "dev": 2, "test": 2}
    spec = TaskSpec(
        name="emotion",
        kind="classification",
        fields=("emotion",),
        labels=("anger", "happiness", "neutral", "sadness"),
        merge={"excitement": "happiness"},
    )
    classes = Targets([spec], index).lookup(np.arange(len(index)))["emotion"].values
    assert Counter(spec.labels[number] for number in classes if number >= 0) == {
        "happiness": 3,
        "neutral": 2,
        "sadness": 2,
        "anger": 1,
    }


# ---------------------------------------------------------------- the real ones


def test_real_emodb_packs_to_exact_counts(tmp_path) -> None:
    index, summary = packed("emodb", real("emodb"), tmp_path / "out")
    assert (len(index), summary.num_rejected_by_kind, summary.warnings) == (203, {}, ())
    assert Counter(index.values("emotion")) == {"anger": 72, "neutral": 52, "happiness": 44, "sadness": 35}
    assert speakers_by_gender(index) == {
        "female": {"emodb:08", "emodb:09", "emodb:13"},
        "male": {"emodb:03", "emodb:10", "emodb:11"},
    }
    assert Counter(index.values("gender")) == {"female": 108, "male": 95}
    assert index.num_samples.sum() / 16_000 / 3600 == pytest.approx(0.15808, abs=1e-5)


def test_real_an4_packs_to_exact_counts(tmp_path) -> None:
    index, summary = packed("an4", real("an4"), tmp_path / "out")
    assert (len(index), summary.num_rejected_by_kind, summary.warnings) == (1078, {}, ())
    assert {gender: len(names) for gender, names in speakers_by_gender(index).items()} == {"female": 24, "male": 60}
    assert Counter(index.values("gender")) == {"female": 307, "male": 771}
    assert Counter(index.values("split")) == {"train": 948, "test": 130}
    assert index.num_samples.sum() / 16_000 / 3600 == pytest.approx(0.80647, abs=1e-5)


def speakers_by_gender(index: Index) -> dict[str, set[str]]:
    people = set(zip(index.values("gender"), index.values("speaker"), strict=True))
    return {gender: {name for of_gender, name in people if of_gender == gender} for gender, _ in people}
