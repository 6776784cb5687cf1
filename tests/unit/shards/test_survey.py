import json
import shutil
from pathlib import Path

import pytest
from tones import Tone, folder_bytes, pack_items, reader, tone, utterance

from shards.indexload import load_index
from shards.manifest import read_manifest
from shards.pack import pack_corpus
from shards.schema import Rejection, SourceUtterance, Utterance
from shards.survey import DurationBin, survey, verify


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    items = [
        *(tone(number) for number in range(7)),
        SourceUtterance(utterance("twin", split=None, gender="female", speaker="s0"), tone(3).audio),
        SourceUtterance(utterance("long", emotion="anger"), Tone(300, 40_000)),
        Rejection("row 3", "has no audio", "no audio"),
    ]
    pack_items(items, folder, on_bad="skip")
    return folder


def _survey(*folders):
    return survey(load_index(folders), [read_manifest(folder) for folder in folders])


def test_survey_counts_what_users_ask(packed):
    found = _survey(packed)
    assert (found.num_utterances, found.num_shards) == (9, 3)
    samples = sum(800 + 160 * number for number in range(7)) + 1_280 + 40_000
    assert found.duration_s == pytest.approx(samples / 16_000)
    assert (found.shortest_s, found.longest_s) == (0.05, 2.5)
    assert found.speakers == {"tones:s0": 3, "tones:s1": 2, "tones:s2": 2, "tones:s3": 1}
    assert found.labels["emotion"] == {"anger": 5, "neutral": 3}
    assert found.labels["split"] == {"dev": 2, "test": 2, "train": 3}
    assert found.emotion_by_split == {
        "anger": {"train": 2, "dev": 1, "test": 1, "none": 1},
        "neutral": {"train": 1, "dev": 1, "test": 1, "none": 0},
    }
    assert found.duration_histogram == (
        DurationBin(0.0, 0.5, 8),
        DurationBin(0.5, 1.0, 0),
        DurationBin(1.0, 2.0, 0),
        DurationBin(2.0, 3.0, 1),
    )
    assert found.duplicates == (("tones/twin", "tones/u003"),)
    assert found.missing["text"] == 9
    assert found.missing["emotion"] == 1
    assert found.missing["gender"] == 3
    assert found.num_rejected_by_kind == {"no audio": 1}
    assert found.warnings == read_manifest(packed).warnings


def test_speakers_are_counted_once_per_gender(tmp_path):
    people = [("a", "female"), ("a", "female"), ("b", "female"), ("c", "male"), (None, "male")]
    items = [
        SourceUtterance(utterance(f"u{number}", speaker=speaker, gender=gender), Tone(300 + number))
        for number, (speaker, gender) in enumerate(people)
    ]
    pack_items(items, tmp_path)
    assert _survey(tmp_path).num_speakers_by_gender == {"female": 2, "male": 1}


def test_duplicates_are_found_across_corpora(packed, tmp_path):
    copy = SourceUtterance(Utterance(key="others/copy", corpus="others"), tone(5).audio)
    pack_corpus(reader([copy], "others"), None, tmp_path)
    assert ("tones/u005", "others/copy") in _survey(packed, tmp_path).duplicates


# ---------------------------------------------------------------- verification


def test_an_untouched_folder_verifies_and_reports_progress(packed):
    calls = []
    assert verify([packed], lambda *call: calls.append(call)) == []
    assert calls == [(4, 9), (8, 9), (9, 9)]


def _flipped(data, position, mask=1):
    changed = bytearray(data)
    changed[position] ^= mask
    return bytes(changed)


def test_one_flipped_bit_anywhere_is_found(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "copy")
    for name, data in folder_bytes(packed).items():
        for position in range(0, len(data), max(1, len(data) // 40)):
            (copy / name).write_bytes(_flipped(data, position, 1 << position % 8))
            assert verify([copy]), f"bit {position % 8} of byte {position} of {name} changed unnoticed"
        (copy / name).write_bytes(data)
    assert verify([copy]) == []


@pytest.mark.parametrize("part", ["audio", "meta"])
def test_damage_inside_an_utterance_names_its_key(packed, tmp_path, part):
    copy = shutil.copytree(packed, tmp_path / "copy")
    index = load_index([packed])
    for row, key in enumerate(index.values("key")):
        shard = copy / Path(index.shard_places[index.numbers("shard")[row]]).name
        data = shard.read_bytes()
        middle = int(index.numbers(f"{part}_offset")[row]) + int(index.numbers(f"{part}_bytes")[row]) // 2
        shard.write_bytes(_flipped(data, middle))
        (problem,) = verify([copy])
        assert f"utterance {key!r} in {shard}" in problem
        shard.write_bytes(data)


def test_damage_between_utterances_names_the_file(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "copy")
    shard = copy / "tones-000002.tar"
    shard.write_bytes(_flipped(shard.read_bytes(), -1))
    (problem,) = verify([copy])
    assert problem.startswith(f"{shard} must have sha256")


def test_metadata_that_is_well_formed_but_not_the_packed_one_is_found(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "copy")
    index = load_index([packed])
    offset, size = (int(index.numbers(f"meta_{part}")[0]) for part in ("offset", "bytes"))
    shard = copy / "tones-000000.tar"
    data = shard.read_bytes()
    swapped = data[offset : offset + size].replace(b'"tones/long"', b'"tones/Long"')
    shard.write_bytes(data[:offset] + swapped + data[offset + size :])
    (problem,) = verify([copy])
    assert "'tones/long'" in problem
    assert "metadata differs from the index" in problem


def test_side_files_are_verified(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "copy")
    (copy / "rejected.jsonl").write_text("")
    (problem,) = verify([copy])
    assert "rejected.jsonl must have sha256" in problem
    shutil.copy(packed / "rejected.jsonl", copy)
    manifest = json.loads((packed / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (problem,) = verify([copy])
    assert "manifest.json must be written as packing writes it" in problem
    (copy / "manifest.json").unlink()
    (problem,) = verify([copy])
    assert "is not a shard folder" in problem
