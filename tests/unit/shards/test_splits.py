import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import index_of

from shards.config import LeaveOneOut, RandomSpeakers, StoredSplit
from shards.errors import SplitError
from shards.splits import assign_splits, describe_splits


def table(speakers, *, split=None, gender=None, session=None, corpus="c"):
    count = len(speakers)
    return index_of(
        corpus=[corpus] * count if isinstance(corpus, str) else corpus,
        speaker=speakers,
        split=split or [None] * count,
        gender=gender or [None] * count,
        session=session or [None] * count,
    )


@given(st.lists(st.sampled_from("abcdefg"), min_size=4, max_size=60).filter(lambda s: len(set(s)) > 3), st.data())
def test_no_policy_shares_a_speaker_between_splits(speakers, data):
    num_speakers = len(set(speakers))
    rule = data.draw(
        st.sampled_from(
            [
                LeaveOneOut(policy="leave_one_out", fold=data.draw(st.integers(0, num_speakers - 1))),
                RandomSpeakers(policy="random_speakers", seed=data.draw(st.integers(0, 5))),
            ]
        )
    )
    names = assign_splits(table(speakers), [rule]).names
    for speaker in set(speakers):
        assert len({name for name, who in zip(names, speakers, strict=True) if who == speaker}) == 1
    assert set(names) == {"train", "dev", "test"}


def test_leave_one_out_takes_each_group_once_as_test_and_the_next_as_dev():
    speakers = ["s1", "s1", "s2", "s3"]
    tests = []
    for fold in range(3):
        names = assign_splits(table(speakers), [LeaveOneOut(policy="leave_one_out", fold=fold)]).names
        (test,) = {who for who, name in zip(speakers, names, strict=True) if name == "test"}
        (dev,) = {who for who, name in zip(speakers, names, strict=True) if name == "dev"}
        assert (int(dev[1]) - int(test[1])) % 3 == 1
        tests.append(test)
    assert tests == ["s1", "s2", "s3"]


def test_stored_split_holds_out_dev_speakers_of_both_ends_of_the_list():
    speakers = [f"f{number}" for number in range(5)] + [f"m{number}" for number in range(5)] + ["t"]
    split = ["train"] * 10 + ["test"]
    names = assign_splits(table(speakers, split=split), [StoredSplit(num_dev_speakers=2)]).names
    assert [who for who, name in zip(speakers, names, strict=True) if name == "dev"] == ["f0", "m4"]
    assert names[-1] == "test"


def test_random_speakers_are_of_both_genders():
    speakers = [f"s{number}" for number in range(8)]
    gender = ["female"] * 4 + ["male"] * 4
    for seed in range(10):
        rule = RandomSpeakers(policy="random_speakers", num_test_speakers=2, seed=seed)
        names = assign_splits(table(speakers, gender=gender), [rule]).names
        assert {who for who, name in zip(gender, names, strict=True) if name == "test"} == {"female", "male"}


def test_rules_apply_to_their_own_corpus():
    both = table(["a", "b", "c", "x", "y"], split=[None] * 3 + ["train", "test"], corpus=["e"] * 3 + ["n"] * 2)
    rules = [LeaveOneOut(policy="leave_one_out", corpus="e", fold=0), StoredSplit()]
    assignment = assign_splits(both, rules)
    assert assignment.names.tolist() == ["test", "dev", "train", "train", "test"]
    assert assignment.rows("test").tolist() == [0, 4]
    assert assignment.protocol["num_speakers"] == {"train": 2, "dev": 1, "test": 2}


@pytest.mark.parametrize(
    ("utterances", "rules", "words"),
    [
        (
            table(["a", "a"], split=["train", "test"]),
            [StoredSplit()],
            r"must not share speakers, but 1 do \(first: 'a'\)",
        ),
        (table(["a", "b"]), [StoredSplit()], "needs a split for every utterance, but 2 of 2"),
        (table(["a", "b"], split=["train", "test"]), [StoredSplit(num_dev_speakers=1)], r"\(1\), got 1"),
        (table(["a", "b", "c"]), [LeaveOneOut(policy="leave_one_out", fold=3)], r"\(3\), got 3"),
        (table(["a", "b"]), [LeaveOneOut(policy="leave_one_out")], "leaves none of the 2"),
        (table(["a", None, "c"]), [LeaveOneOut(policy="leave_one_out")], "but 1 of 3 have none"),
        (table(["a", "b", "c"]), [RandomSpeakers(policy="random_speakers")], "leave none of the 3"),
        (table(["a", "b"], split=["train", "test"]), [StoredSplit(corpus="z")], r"names corpora \['z'\]"),
        (table(["a"], corpus="q"), [StoredSplit(corpus="q"), StoredSplit(corpus="z")], r"names corpora \['z'\]"),
    ],
)
def test_impossible_splits_are_refused_with_the_value(utterances, rules, words):
    with pytest.raises(SplitError, match=words):
        assign_splits(utterances, rules)


def test_overlap_can_be_allowed_and_is_reported():
    assignment = assign_splits(table(["a", "a"], split=["train", "test"]), [StoredSplit()], allow_speaker_overlap=True)
    assert assignment.protocol["speaker_overlap"] is True


@given(st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=3, max_size=12), st.data())
def test_overlap_is_denied_only_where_every_speaker_is_known(speakers, data):
    split = [data.draw(st.sampled_from(["train", "dev", "test"])) for _ in speakers]
    protocol = assign_splits(table(speakers, split=split), [StoredSplit()], allow_speaker_overlap=True).protocol
    places = {who: {s for s, other in zip(split, speakers, strict=True) if other == who} for who in set(speakers)}
    shared = any(len(places[who]) > 1 for who in places if who is not None)
    assert protocol["speaker_overlap"] is (True if shared else None if None in speakers else False)
    for name in ("train", "dev", "test"):
        known = {who for who, s in zip(speakers, split, strict=True) if s == name and who is not None}
        unknown = sum(who is None and s == name for who, s in zip(speakers, split, strict=True))
        assert protocol["num_utterances_without_speaker"][name] == unknown
        assert protocol["num_speakers"][name] == (None if unknown and not known else len(known))
    said = describe_splits(protocol)
    assert ("no speaker in two of them" in said) == (protocol["speaker_overlap"] is False)
    assert " 0 speakers" not in said or not all(name in split for name in ("train", "dev", "test"))


def test_known_speakers_must_not_overlap_beside_unknown_ones():
    utterances = table(["a", None, "a", None], split=["train", "train", "test", "test"])
    with pytest.raises(SplitError, match=r"must not share speakers, but 1 do \(first: 'a'\)"):
        assign_splits(utterances, [StoredSplit()])


def test_rows_of_an_unknown_split_are_refused():
    assignment = assign_splits(table(["a"], split=["train"]), [StoredSplit()])
    with pytest.raises(SplitError, match="got 'validation'"):
        assignment.rows("validation")


def recordings(*numbers, split, speakers=None, source=None):
    return index_of(
        speaker=speakers or [f"s{row}" for row in range(len(numbers))],
        split=split,
        source=source or [None] * len(numbers),
        pcm_sha256=[bytes([number]) * 32 for number in numbers],
    )


def test_one_recording_in_two_splits_is_refused_under_any_name_unless_allowed():
    index = recordings(1, 2, 1, 3, 3, split=["train", "train", "test", "dev", "dev"])
    first = r"1 stand in several \(first: 'c/0000' in train = 'c/0002' in test\); .* data.allow_recording_overlap"
    with pytest.raises(SplitError, match=first):
        assign_splits(index, [StoredSplit()], allow_speaker_overlap=True)
    splits = assign_splits(index, [StoredSplit()], allow_recording_overlap=True)
    assert splits.recordings_across == [[0, 2]]
    assert splits.protocol["num_recordings_in_two_splits"] == 1
    assert splits.protocol["speaker_overlap"] is True, "equal samples are one speaker, whatever the names"


def test_recordings_without_a_digest_are_no_copies_of_one_another():
    index = index_of(speaker=["a", "b"], split=["train", "test"], pcm_sha256=[None, None])
    assert assign_splits(index, [StoredSplit()]).protocol["num_recordings_in_two_splits"] == 0


@pytest.mark.parametrize("speakers", [[None, None], ["a", None], [None, "b"], ["a", "a"]])
@pytest.mark.parametrize("files", [["call.wav", "call.wav"], ["./a/call.wav", "a/./call.wav"]])
def test_one_file_in_two_splits_is_refused_where_one_person_may_speak_in_both(speakers, files):
    index = recordings(1, 2, split=["train", "test"], speakers=speakers, source=files)
    with pytest.raises(SplitError, match=r"those of 1 files .*first: 'c:(a/)?call.wav'.* data.allow_recording_overlap"):
        assign_splits(index, [StoredSplit()], allow_speaker_overlap=True)
    allowed = assign_splits(index, [StoredSplit()], allow_speaker_overlap=True, allow_recording_overlap=True)
    assert allowed.protocol["num_files_in_two_splits"] == 1
    assert allowed.protocol["speaker_overlap"] is (True if speakers == ["a", "a"] else None)


def test_one_file_may_hold_people_of_two_splits():
    index = recordings(1, 2, 3, split=["train", "test", "train"], speakers=["a", "b", "a"], source=["x", "x", "y"])
    protocol = assign_splits(index, [StoredSplit()]).protocol
    assert (protocol["num_files_in_two_splits"], protocol["speaker_overlap"]) == (1, False)


# ---------------------------------------------------------------- dialogue partners


def dialogues(people, *, field="session"):
    """Two turns of each of several pairs (or trios), each of which shares a place."""
    rows = [(who, place) for place, group in people.items() for who in group for _ in range(2)]
    return index_of(speaker=[who for who, _ in rows], **{field: [place for _, place in rows]})


def people_in(index, splits):
    return {split: sorted(set(index.take(splits.rows(split)).values("speaker"))) for split in ("train", "dev", "test")}


@pytest.mark.parametrize("field", ["session", "dialogue"])
def test_the_partner_of_the_test_speaker_is_dev_in_every_fold(field):
    pairs = {f"S{number}": [f"S{number}F", f"S{number}M"] for number in range(1, 6)}
    index = dialogues(pairs, field=field)
    for fold in range(10):
        found = people_in(index, assign_splits(index, [LeaveOneOut(policy="leave_one_out", fold=fold)]))
        (test,) = found["test"]
        assert found["dev"] == [test[:2] + {"F": "M", "M": "F"}[test[2]]]
        assert len(found["train"]) == 8


def test_dev_is_filled_with_the_next_speakers_beside_partners_and_holds_them_all():
    index = dialogues({"one": ["a", "c"], "two": ["b", "d", "e"], "three": ["f"]})
    two = [LeaveOneOut(policy="leave_one_out", fold=0, num_dev_groups=2)]
    assert people_in(index, assign_splits(index, two))["dev"] == ["b", "c"]
    one = [LeaveOneOut(policy="leave_one_out", fold=1)]
    assert people_in(index, assign_splits(index, one)) == {"test": ["b"], "dev": ["d", "e"], "train": ["a", "c", "f"]}


def test_partners_of_all_are_refused_or_ignored_when_asked():
    index = dialogues({"everybody": ["a", "b", "c"]})
    with pytest.raises(
        SplitError, match=r"with the test speaker 'a' must not train, but all 2 others .*partners: train"
    ):
        assign_splits(index, [LeaveOneOut(policy="leave_one_out")])
    found = people_in(index, assign_splits(index, [LeaveOneOut(policy="leave_one_out", partners="train")]))
    assert found == {"test": ["a"], "dev": ["b"], "train": ["c"]}
