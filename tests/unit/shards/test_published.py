"""Whatever is packed with success can be read and verifies; what no reader would accept is rejected by name."""

import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tones import Tone, pack_items, reader, tone

from shards import indexfile, indexwrite, manifest, verification
from shards.errors import InputError, ShardError
from shards.indexload import load_index
from shards.manifest import read_manifest
from shards.pack import pack_corpus
from shards.schema import Rejection, SourceUtterance, Utterance
from shards.survey import verify

letters = st.text(max_size=20) | st.sampled_from(
    ["", ",[{" * 40, "\x00" * 60, "\x01\n\r\u2028", "\ud800", '"' * 50, "é" * 30, "\U0001f600" * 20, "=1+1", "a" * 200]
)
"""Words of a small world, in which no limit is higher than a few hundred bytes."""
numbers = st.none() | st.floats() | st.sampled_from([-1.0, 0.0, 150.0, 1e308, 30.0])
extras = st.dictionaries(
    letters,
    letters | st.booleans() | st.floats() | st.sampled_from([10**99, -(10**100), 10**100, 10**400, 0]),
    max_size=3,
)
votes = st.none() | st.dictionaries(letters, st.floats() | st.sampled_from([-1.0, 0.0, 2.0]), max_size=3)


@st.composite
def utterances(draw):
    words = ("text", "language", "emotion", "gender", "speaker", "style", "intensity", "session", "dialogue", "turn")
    found = []
    for number in range(draw(st.integers(1, 5))):
        described = {name: draw(st.none() | letters) for name in draw(st.sets(st.sampled_from(words), max_size=4))}
        described.update(
            valence=draw(numbers),
            age=draw(numbers),
            emotion_votes=draw(votes),
            extra=draw(extras),
            source=draw(letters),
        )
        name = draw(st.sampled_from(string.ascii_lowercase))
        key = f"tones/{name * draw(st.integers(1, 3))}"
        found.append(SourceUtterance(Utterance(key=key, corpus="tones", **described), Tone(300 + number)))
    return found + [Rejection(draw(letters), draw(letters), draw(letters)) for _ in range(draw(st.integers(0, 2)))]


@given(utterances())
@settings(max_examples=25, deadline=None)
def test_what_is_packed_with_success_verifies(tmp_path_factory, items):
    out = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patched:
        for module, name, most in (
            (indexfile, "MAX_COLUMN_BYTES", 2_000),
            (indexwrite, "_MAX_GROUP_CHARS", 200),
            (indexfile, "MAX_FOOTER_BYTES", 20_000),
            (manifest, "_MAX_VALUES", 400),
        ):
            patched.setattr(module, name, most)
        try:
            summary = pack_items(items, out, on_bad="skip")
        except InputError as error:
            assert "\n" not in str(error)
            assert not (out / "manifest.json").exists()
            return
        assert verify([out]) == []
        assert len(load_index([out])) == summary.num_utterances
        assert read_manifest(out).num_rejected + summary.num_utterances == len(items)


@pytest.mark.parametrize(
    ("described", "words"),
    [
        (
            {"text": "\x01" * 1_000_000, "source": "\x02" * 1_000_000},
            "metadata must take at most 8387584 bytes",
        ),
        ({"extra": {"number": 10**100}}, "whole numbers must have at most 100 digits, but number has more"),
        ({"emotion_votes": {"anger": -1.0}}, "votes must be 0 or more, got -1"),
    ],
)
def test_what_no_reader_would_accept_is_rejected_by_name(tmp_path, described, words):
    odd = tone(3)
    odd = SourceUtterance(odd.utterance.model_copy(update=described), odd.audio)
    summary = pack_items([tone(0), odd], tmp_path, on_bad="skip")
    assert summary.num_utterances == 1
    assert words in (tmp_path / "rejected.jsonl").read_text()
    assert verify([tmp_path]) == []


def test_long_texts_are_stored_in_groups_of_rows_that_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(indexwrite, "_MAX_GROUP_CHARS", 4 << 20)
    monkeypatch.setattr(indexfile, "MAX_COLUMN_BYTES", 8 << 20)
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list(string.ascii_letters), 1_000_000)) for _ in range(3)]
    items = [tone(number, text=texts[number % 3], extra={"copy": texts[0][:100_000]}) for number in range(12)]
    pack_items(items, tmp_path)
    assert load_index([tmp_path]).values("text") == [texts[number % 3] for number in range(12)]
    assert verify([tmp_path]) == []


def test_a_rejection_is_no_longer_than_a_line_that_is_read(tmp_path):
    pack_items([tone(0), Rejection("\x01" * (4 << 20), "\U0001f600" * (8 << 20), "odd")], tmp_path, on_bad="skip")
    assert len((tmp_path / "rejected.jsonl").read_bytes()) < verification.MAX_META_BYTES
    assert verify([tmp_path]) == []


@pytest.mark.parametrize(
    ("module", "name", "most", "words"),
    [
        (indexfile, "MAX_FOOTER_BYTES", 100, "bytes of footer"),
        (indexfile, "MAX_COLUMN_BYTES", 10, "bytes a column"),
        (manifest, "_MAX_VALUES", 10, "values"),
    ],
)
def test_what_is_over_a_reader_s_limit_is_not_published(tmp_path, monkeypatch, module, name, most, words):
    monkeypatch.setattr(module, name, most)
    with pytest.raises(ShardError, match=words):
        pack_corpus(reader([tone(number) for number in range(4)]), None, tmp_path)
    assert not (tmp_path / "manifest.json").exists()
