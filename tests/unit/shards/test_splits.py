import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import index_of

from shards.config import LeaveOneOut, RandomSpeakers, StoredSplit
from shards.errors import SplitError
from shards.splits import assign_splits, duplicates_across


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


def test_rows_of_an_unknown_split_are_refused():
    assignment = assign_splits(table(["a"], split=["train"]), [StoredSplit()])
    with pytest.raises(SplitError, match="got 'validation'"):
        assignment.rows("validation")


def test_one_recording_in_two_splits_is_found_under_any_name():
    digests = [bytes([number]) * 32 for number in (1, 2, 1, 3, 3)]
    index = index_of(
        speaker=["a", "b", "c", "d", "d"], split=["train", "train", "test", "dev", "dev"], pcm_sha256=digests
    )
    assert duplicates_across(index, assign_splits(index, [StoredSplit()])) == [[0, 2]]
