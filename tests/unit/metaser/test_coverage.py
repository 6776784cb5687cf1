"""What labels leave out, and classes that training or the judges lack, are said before the first step."""

import re

import pytest
from tables import index_of

from metaser.config.schema import ExperimentConfig
from metaser.errors import TrainingError
from metaser.eval.coverage import add_left_out, all_left_out, check_labels
from metaser.stagedata import experiment_specs
from metaser.tasks.classification import ClassificationTask
from shards.splits import assign_splits

FOUR = ["anger", "happiness", "neutral", "sadness"]


def corpus(train, dev=None, test=None):
    """Return an index with these emotions in its splits; every utterance is its own speaker."""
    parts = {"train": train, "dev": FOUR if dev is None else dev, "test": FOUR if test is None else test}
    emotions = [emotion for part in parts.values() for emotion in part]
    return index_of(
        emotion=emotions,
        text=["a b"] * len(emotions),
        split=[split for split, part in parts.items() for _ in part],
        speaker=[f"c:{number}" for number in range(len(emotions))],
    )


def experiment(stage_filter=None, **task):
    tasks = [{"name": "emotion", "kind": "classification", **task}, {"name": "asr", "kind": "ctc"}]
    stages = [
        {"name": "text", "train": ["heads"], "weights": {"asr": 1}, "num_steps": 1},
        {"name": "emotion", "train": ["heads"], "weights": {"emotion": 1}, "num_steps": 1, "filter": stage_filter},
    ]
    return ExperimentConfig.model_validate(
        {"output_dir": "runs/x", "data": {"shards": "x"}, "tasks": tasks, "stages": stages}
    )


def notes(config, index):
    splits = assign_splits(index, config.data.splits)
    return check_labels(config, experiment_specs(config, index, splits), index, splits)


def labels(config, index):
    return experiment_specs(config, index, assign_splits(index, config.data.splits))[0].labels


def test_a_fifth_class_is_said_by_name_and_count():
    index = corpus([*FOUR, *["surprise"] * 25, None], test=[*FOUR, *["surprise"] * 5, *["fear"] * 10])
    assert notes(experiment(), index) == ["emotion: 40 of 52 utterances are left out by labels: surprise 30, fear 10"]


def test_what_a_filter_excludes_or_a_merge_renames_is_not_left_out_by_labels():
    index = corpus([*FOUR, "surprise", "fury"])
    assert notes(experiment('emotion != "surprise"', merge={"fury": "anger"}), index) == []


def test_unseen_speakers_are_what_splits_are_for():
    assert notes(experiment(field="speaker"), corpus(FOUR)) == []


def test_the_report_counts_per_split_and_folds_add_up():
    config, index = experiment(), corpus(FOUR, test=[*FOUR, "fear", "fear", "calm"])
    splits = assign_splits(index, config.data.splits)
    specs = experiment_specs(config, index, splits)
    test, dev = (all_left_out(config, specs, index.take(splits.rows(split))) for split in ("test", "dev"))
    assert test["emotion"].model_dump() == {"num_utterances": 7, "num_left_out": 3, "words": {"fear": 2, "calm": 1}}
    assert dev["emotion"].num_left_out == 0
    both = add_left_out([test, dev])["emotion"]
    assert (both.num_utterances, both.num_left_out, both.words) == (11, 3, {"fear": 2, "calm": 1})


def test_thousands_of_words_are_counted_and_the_most_frequent_named():
    words = [f"word{number:04d}" for number in range(1000)]
    index = corpus(FOUR, test=[*FOUR, *words, "word0999"])
    (note,) = notes(experiment(), index)
    assert note.startswith("emotion: 1001 of 1013 utterances are left out by labels: word0999 2, word0000 1, ")
    assert note.endswith("and 88 more")


def test_all_labels_are_those_that_the_weighing_stages_train_on_in_sorted_order():
    index = corpus(["joy", "anger", "joy", "Wut"], dev=["joy"], test=["joy", "fear"])
    config = experiment(labels="all")
    assert labels(config, index) == ("Wut", "anger", "joy")
    assert labels(experiment('emotion != "Wut"', labels="all"), index) == ("anger", "joy")
    assert labels(experiment(labels="all", merge={"Wut": "anger"}), index) == ("anger", "joy")
    assert notes(config, index)[0] == "emotion: 1 of 7 utterances are left out by labels: fear 1"
    assert labels(experiment(), index) == tuple(FOUR)


def test_all_labels_weigh_in_balance():
    index = corpus(["joy", "anger", "joy", "joy"])
    (spec, _) = experiment_specs(
        config := experiment(labels="all", class_weights="balanced"), index, assign_splits(index, config.data.splits)
    )
    assert spec.class_weights == pytest.approx((2.0, 4 / 6))


def test_weights_as_a_list_need_labels_as_a_list():
    with pytest.raises(ValueError, match="follows the order of labels, which must be a list"):
        ClassificationTask(kind="classification", name="emotion", labels="all", class_weights=(1.0, 2.0))


def test_a_label_that_no_utterance_has_is_refused_with_what_there_is():
    words = r"none of joy \(training has anger 1, .+; dev and test have none, either\); remove the labels"
    with pytest.raises(TrainingError, match=words):
        notes(experiment(labels=[*FOUR, "joy"]), corpus(FOUR))


def test_a_class_that_is_judged_but_not_trained_is_said_or_if_chosen_refused():
    words = "(training has anger 1, happiness 1, neutral 1; dev has sadness 1; test has sadness 1)"
    assert notes(experiment(), corpus(FOUR[:3])) == [f"emotion: the model cannot learn sadness {words}"]
    with pytest.raises(TrainingError, match=rf"none of sadness {re.escape(words)}"):
        notes(experiment(labels=FOUR[::-1]), corpus(FOUR[:3]))


def test_an_output_of_the_usual_four_that_the_data_lacks_is_said():
    (first, *_) = notes(experiment(), corpus(FOUR[:3], FOUR[:3], FOUR[:3]))
    assert first.startswith("emotion: the model cannot learn sadness (training has anger 1, ")
    assert first.endswith("; dev and test have none, either)")


def test_balanced_weights_of_an_absent_class_name_it_and_what_there_is():
    words = r"needs training utterances of every label, but \['sadness'\] have none \(training has anger 1, happiness 1"
    with pytest.raises(TrainingError, match=words):
        notes(experiment(class_weights="balanced"), corpus(FOUR[:3]))


def test_a_test_set_without_a_class_is_said():
    assert notes(experiment(), corpus(FOUR, test=["anger", "anger", "neutral"])) == [
        "emotion: the test set (3 utterances) has no happiness, sadness; its UA is the mean over anger, neutral"
    ]
