"""What judged utterances share with those that made a model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import index_of

from shards.errors import ShardError
from shards.kinship import START, Material, kinship


def material(split="train", **columns):
    count = len(next(iter(columns.values())))
    columns.setdefault("pcm_sha256", [bytes([len(split), row]) * 16 for row in range(count)])
    return Material.of(index_of(**columns), {split: np.arange(count)})


def compared(made, judged, *, same_shards=False):
    return kinship(material(**made), material("test", **judged), same_shards=same_shards)


def test_equal_samples_are_known_under_any_name():
    digest = [b"x" * 32]
    made = {"speaker": ["a:1"], "corpus": ["a"], "pcm_sha256": digest}
    found = compared(made, {"speaker": ["b:2"], "corpus": ["b"], "pcm_sha256": digest})
    assert (found.num_recordings, found.speaker_overlap) == (1, True)


@given(st.lists(st.sampled_from([None, "c:a", "c:b", "d:a", "d:x"]), min_size=2, max_size=8), st.data())
def test_unseen_speakers_are_claimed_only_where_all_are_known_and_none_is_called_like_another(people, data):
    cut = data.draw(st.integers(1, len(people) - 1))
    made, judged = people[:cut], people[cut:]
    for same_shards in (True, False):
        found = compared({"speaker": made}, {"speaker": judged}, same_shards=same_shards)
        shared = (set(made) & set(judged)) - {None}
        names = {who[2:] for who in made if who} & {who[2:] for who in judged if who}
        unsure = None in people or (names and not same_shards)
        assert found.speaker_overlap is (True if shared else None if unsure else False)
        assert (found.num_without_speaker, found.num_made_without_speaker) == (judged.count(None), made.count(None))


@pytest.mark.parametrize("field", ["session", "dialogue", "source"])
def test_dialogue_partners_are_people_of_one_session_dialogue_or_file(field):
    made = {"speaker": ["c:a", "c:b", None], field: ["one", "two", "one"]}
    judged = {"speaker": ["c:x", "c:x"], field: ["one", None]}
    assert compared(made, judged, same_shards=True).partners == ("c:a",)
    assert compared(made, judged | {field: ["three", None]}, same_shards=True).partners == ()


def test_texts_are_the_same_whatever_their_case_and_punctuation():
    made = {"text": ["Der Lappen liegt auf dem Eisschrank.", "Straße", None, "..."]}
    judged = {"text": ["der LAPPEN  liegt, auf dem Eisschrank", "STRASSE!", None, "?", "neu"]}
    found = compared(made, judged)
    assert (found.num_texts, found.num_with_text) == (2, 3)


def test_what_a_start_was_trained_on_counts_as_training():
    made = material(START, text=["a b"], speaker=["c:a"], session=["one"])
    found = kinship(made, material("test", text=["a b"], speaker=["c:x"], session=["one"]), same_shards=True)
    assert (found.num_texts, found.partners) == (1, ("c:a",))


def test_texts_of_dev_are_no_training_texts_but_its_recordings_count():
    digest = [b"y" * 32]
    made = material("dev", text=["a b"], pcm_sha256=digest)
    found = kinship(made, material("test", text=["a b"], pcm_sha256=digest), same_shards=True)
    assert (found.num_texts, found.num_recordings) == (0, 1)


def test_files_of_other_shards_prove_nothing_but_forbid_the_claim():
    columns = {"speaker": ["c:a"], "source": ["call.wav"]}
    found = compared(columns, columns | {"speaker": ["c:b"]})
    assert (found.num_files, found.speaker_overlap) == (1, None)


def test_trained_utterances_are_no_parts_of_files_that_others_were_cut_from():
    columns = {"speaker": ["c:a", "c:a", "c:b"], "source": ["call.wav", "call.wav", "alone.wav"]}
    made = material(**{name: values[::2] for name, values in columns.items()})
    judged = columns | {"pcm_sha256": [bytes([5, row]) * 16 for row in (0, 2, 1)]}
    found = kinship(made, material("all", **judged), same_shards=True)
    assert (found.num_recordings, found.num_files) == (2, 1)


def test_a_record_is_read_back_joined_and_refused_when_damaged(tmp_path):
    first, second = material(speaker=["c:a", None], text=["x", None]), material("dev", speaker=["c:b"])
    path = tmp_path / "record.parquet"
    first.write(path)
    assert Material.read(path).table == first.table
    both = first.joined(second).joined(first)
    assert len(both) == 3
    assert both.of_split("dev").values("speaker") == {"c:b"}
    path.write_bytes(b"PAR1")
    with pytest.raises(ShardError, match=r"record.parquet must be the record of what a run was trained on"):
        Material.read(path)
