import numpy as np
import pytest
from tables import index_of

from metaser.config.encoders import LogMelEncoderConfig
from metaser.config.schema import (
    AdapterConfig,
    AriConfig,
    CoattentionConfig,
    ExperimentConfig,
    ModelConfig,
    StageConfig,
)
from metaser.errors import ConfigError, TrainingError
from metaser.model.metaser import build_model
from metaser.stagedata import select_utterances, stage_data, training_rows
from metaser.tasks.spec import TaskSpec
from metaser.train.stage import freeze_all_but, select_parameters
from shards.config import StoredSplit
from shards.errors import FilterError
from shards.splits import assign_splits

SPECS = (
    TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=("anger", "neutral")),
    TaskSpec(name="asr", kind="ctc", fields=("text",), labels=("<blank>", "<unk>", "a")),
    TaskSpec(name="gender", kind="classification", fields=("gender",), labels=("female", "male")),
)
ENCODER = LogMelEncoderConfig(num_mels=8, width=8, num_layers=3, num_heads=2, feed_forward=8)


def stage(train=("encoder",), weights=None, **more):
    values = {"name": "s", "train": train, "weights": weights or {"asr": 1.0, "gender": 0.1}, "num_steps": 1, **more}
    return StageConfig.model_validate(values)


def model(**changes):
    return build_model(ModelConfig(encoder=ENCODER, **changes), SPECS, "emotion")


def six():
    return index_of(
        emotion=["anger", None, "neutral", None, "anger", "joy"],
        text=["a", "b", None, None, "a", "a"],
        split=["train", "train", "train", "train", "dev", "train"],
        speaker=["c:1", "c:1", "c:2", "c:2", "c:3", "c:1"],
    )


def splits_of(index):
    return assign_splits(index, [StoredSplit()])


def test_an_utterance_counts_if_it_passes_the_filter_and_has_some_weighted_label():
    index = six()
    assert select_utterances(stage(weights={"asr": 1}), SPECS, index).tolist() == [0, 1, 4, 5]
    assert select_utterances(stage(weights={"emotion": 1, "asr": 0}), SPECS, index).tolist() == [0, 2, 4]
    assert select_utterances(stage(weights={"emotion": 1, "asr": 1}), SPECS, index).tolist() == [0, 1, 2, 4, 5]
    only_anger = stage(weights={"asr": 1}, filter='emotion == "anger"')
    assert select_utterances(only_anger, SPECS, index).tolist() == [0, 4]


def test_stages_get_their_own_training_and_dev_utterances():
    index = six()
    found = stage_data(stage(weights={"emotion": 1}), SPECS, index, splits_of(index))
    assert found.training.values("key") == ["c/0000", "c/0002"]
    assert found.dev.values("key") == ["c/0004"]


def test_nothing_left_names_the_split_the_filter_and_the_tasks():
    index = six()
    words = r"stage 's' needs dev utterances, but none of 1 passes its filter \('emotion == \"neutral\"'\) .*\['asr'\]"
    with pytest.raises(TrainingError, match=words):
        stage_data(
            stage(weights={"asr": 1}, filter='emotion == "neutral" or split == "train"').model_copy(
                update={"filter": 'emotion == "neutral"'}
            ),
            (SPECS[0], SPECS[1].model_copy(update={"fields": ("emotion",)})),
            index,
            splits_of(index),
        )


def test_a_weighted_task_without_any_label_is_named_with_its_weight_and_field():
    index = six()
    words = r"task 'gender' has weight 0.1 in stage 's', but none of its 3 training utterances has gender"
    with pytest.raises(TrainingError, match=words):
        stage_data(stage(), SPECS, index, splits_of(index))


def test_what_a_stage_trains_on_must_be_a_label_or_merged_into_one():
    index = six()
    words = r"label of task 'emotion' \['anger', 'neutral'\], but found \{'joy': 1\}; add the labels, merge them"
    by_words = stage(weights={"asr": 1, "emotion": 1})
    with pytest.raises(TrainingError, match=words):
        stage_data(by_words, SPECS, index, splits_of(index))
    merged = (SPECS[0].model_copy(update={"merge": {"joy": "anger"}}), *SPECS[1:])
    assert len(stage_data(by_words, merged, index, splits_of(index)).training) == 4
    assert select_utterances(stage(weights={"emotion": 1}), merged, index).tolist() == [0, 2, 4, 5]


def test_a_filter_over_unknown_fields_is_an_error():
    index = six()
    with pytest.raises(FilterError, match="shoe_size"):
        select_utterances(stage(filter="shoe_size > 3"), SPECS, index)


def test_label_sets_are_made_from_what_any_stage_admits():
    index = six()

    def rows(*filters):
        config = ExperimentConfig.model_validate(
            {
                "output_dir": "x",
                "data": {"shards": "y"},
                "model": {"coattention": {"form": "none"}},
                "tasks": [{"name": "emotion", "kind": "classification"}],
                "stages": [stage(weights={"emotion": 1}, filter=text).model_dump() for text in filters],
            }
        )
        return training_rows(config, index, splits_of(index)).tolist()

    assert rows('emotion == "anger"') == [0]
    assert rows('emotion == "anger"', 'text == "b"') == [0, 1]
    assert rows('emotion == "anger"', None) == [0, 1, 2, 3, 5]


GROUPS = ("ari", "encoder")


def names(built, *train, weights=None):
    return set(select_parameters(built, stage(train, weights)))


def test_groups_hold_the_parameters_they_name():
    built = model()
    every = {name for name, _ in built.named_parameters()}
    assert names(built, "encoder") == {name for name in every if name.startswith("encoder.")}
    assert names(built, "encoder.layers.1-2") == {
        name for name in every if name.startswith(("encoder.layers.1.", "encoder.layers.2.", "encoder.final_norm."))
    }
    assert names(built, "heads") == {name for name in every if name.startswith(("heads.asr.", "heads.gender."))}
    assert names(built, "heads.asr", "ari") == {name for name in every if name.startswith(("heads.asr.", "ari."))}
    everything = names(built, "encoder", "ari", "heads", "coattention", weights={"emotion": 1, "asr": 1, "gender": 1})
    assert everything == every


def test_what_a_stage_trains_is_in_the_models_order_whatever_the_order_of_its_groups():
    built = model()
    forward, backward = (list(select_parameters(built, stage(train))) for train in (GROUPS, GROUPS[::-1]))
    assert forward == backward == [name for name, _ in built.named_parameters() if name in set(forward)]


@pytest.mark.parametrize(
    ("train", "weights", "error", "words"),
    [
        (("encoder.layers.2-3",), None, ConfigError, r"0 <= A <= B <= 2, .*got 'encoder.layers.2-3'"),
        (("heads.style",), None, ConfigError, r"got 'heads.style'"),
        (("coattention",), None, TrainingError, r"trains 'coattention' but gives 'emotion' no weight"),
        (("heads.emotion",), None, TrainingError, r"trains 'heads.emotion', a task without weight"),
        (("adapters",), None, TrainingError, r"trains 'adapters', but this model has no such parameters"),
    ],
)
def test_what_no_gradient_would_reach_is_refused(train, weights, error, words):
    with pytest.raises(error, match=words):
        select_parameters(model(), stage(train, weights))


def test_switching_off_ari_or_coattention_needs_no_other_change():
    bare = model(ari=AriConfig(form="none"), coattention=CoattentionConfig(form="none"))
    assert names(bare, "ari", "heads.asr") == {"heads.asr.linear.weight", "heads.asr.linear.bias"}
    assert names(bare, "coattention", "heads.emotion", weights={"emotion": 1}) == {
        f"heads.emotion.{part}.{kind}" for part in ("hidden", "linear") for kind in ("weight", "bias")
    }


def test_adapters_train_without_the_encoder_around_them():
    adapted = model(adapters=AdapterConfig(lora_rank=2, bottleneck=4))
    found = names(adapted, "adapters")
    assert found
    assert not found & names(adapted, "encoder")


def test_gradients_reach_exactly_what_trains():
    built = model()
    trainable = select_parameters(built, stage(("heads",)))
    freeze_all_but(built, trainable)
    assert {name for name, value in built.named_parameters() if value.requires_grad} == set(trainable)
    freeze_all_but(built, select_parameters(built, stage(("encoder",))))
    assert np.all([value.requires_grad == name.startswith("encoder.") for name, value in built.named_parameters()])
