import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables import index_of
from torch.nn import functional

from metaser.errors import TrainingError
from metaser.targets import Targets, resolve_tasks
from metaser.tasks.classification import ClassificationTask
from metaser.tasks.ctc import UNKNOWN as CTC_UNKNOWN
from metaser.tasks.ctc import CtcTask
from metaser.tasks.kinds import kind_of
from metaser.tasks.regression import RegressionTask
from metaser.train.objective import micro_batch_loss, utterance_losses
from shards.errors import FilterError

TASKS = (
    CtcTask(kind="ctc"),
    ClassificationTask(kind="classification", name="emotion", labels=("a", "b", "c")),
    RegressionTask(kind="regression", name="affect", fields=("valence", "arousal"), offset=3, scale=2),
)


def table(count=4):
    return index_of(
        text=["Ab", None, "a  b c", "aa"][:count],
        emotion=["a", "c", None, "b"][:count],
        valence=[1.0, None, 5.0, 3.0][:count],
        arousal=[2.0, None, None, 3.0][:count],
    )


def outputs(targets, items, seed=0, num_frames=12):
    generator = torch.Generator().manual_seed(seed)
    count = len(items)
    shapes = {"asr": (count, num_frames, 6), "emotion": (count, 3), "affect": (count, 2)}
    logits = {name: torch.randn(shape, generator=generator).requires_grad_() for name, shape in shapes.items()}
    return logits, torch.full((count,), num_frames), targets.lookup(np.asarray(items))


def test_specs_are_made_from_the_training_utterances():
    asr, emotion, affect = resolve_tasks(TASKS, table())
    assert asr.labels == ("<blank>", "<unk>", " ", "a", "b", "c")
    assert emotion.labels == ("a", "b", "c")
    assert affect.labels == ("valence", "arousal")


def test_open_label_sets_come_from_training_in_sorted_order():
    speakers = index_of(speaker=["z", "b", None, "z"])
    (spec,) = resolve_tasks([ClassificationTask(kind="classification", name="speaker")], speakers)
    assert spec.labels == ("b", "z")
    unseen = Targets([spec], index_of(speaker=["b", "new", None]))
    assert unseen.present("speaker").tolist() == [True, False, False]
    with pytest.raises(TrainingError, match=r"at least two labels, but the 2 training utterances have \['x'\]"):
        resolve_tasks([ClassificationTask(kind="classification", name="speaker")], index_of(speaker=["x", "x"]))


def test_numbers_may_be_a_column_of_text():
    (spec,) = resolve_tasks([RegressionTask(kind="regression", fields=("extra.mos",), offset=1)], table())
    index = index_of(extra=['{"mos": "3.5"}', '{"mos": "2,0"}', '{"mos": 4}', '{"mos": "NA"}', "{}"])
    index = replace(index, extra_names=("mos",))
    values = Targets([spec], index).lookup(np.arange(5))["affect"].values
    assert values[:3, 0].tolist() == [2.5, 1.0, 3.0]
    assert values[3:].isnan().all()
    with pytest.raises(FilterError, match=r"extra\.mos must be numbers, but one of its values is 'good'"):
        Targets([spec], replace(index_of(extra=['{"mos": "good"}']), extra_names=("mos",)))


def test_balanced_class_weights_make_every_class_count_alike():
    task = ClassificationTask(kind="classification", name="gender", class_weights="balanced")
    (spec,) = resolve_tasks([task], index_of(gender=["female", "male", "male", "male", None]))
    assert spec.class_weights == pytest.approx((2.0, 2 / 3))
    with pytest.raises(TrainingError, match=r"\['female'\] have none"):
        resolve_tasks([task], index_of(gender=["male"]))


def test_merged_values_count_as_the_label_they_lead_to():
    task = ClassificationTask(
        kind="classification",
        name="emotion",
        labels=("happiness", "neutral"),
        merge={"excitement": "happiness"},
        class_weights="balanced",
    )
    index = index_of(emotion=["excitement", "neutral", None, "happiness", "excitement", "anger"])
    (spec,) = resolve_tasks([task], index)
    assert spec.class_weights == pytest.approx((4 / 6, 2.0))
    targets = Targets([spec], index)
    assert targets.lookup(np.arange(6))["emotion"].values.tolist() == [0, 1, -1, 0, 0, -1]
    assert [spec.label_of(word) for word in ("excitement", "anger")] == ["happiness", "anger"]


def test_merging_an_open_label_set_leaves_the_merged_values_out():
    task = ClassificationTask(kind="classification", name="language", merge={"en-GB": "en", "en-US": "en"})
    (spec,) = resolve_tasks([task], index_of(language=["en-GB", "en-US", "de", None]))
    assert spec.labels == ("de", "en")


def test_losses_are_those_of_torch_one_utterance_at_a_time():
    specs = resolve_tasks(TASKS, table())
    targets = Targets(specs, table())
    logits, num_frames, found = outputs(targets, [0, 1, 2, 3])
    logits = {name: value.detach() for name, value in logits.items()}
    by_name = {spec.name: utterance_losses(spec, logits[spec.name], num_frames, found[spec.name]) for spec in specs}
    for row, label in enumerate([0, 2, None, 1]):
        expected = 0.0 if label is None else functional.cross_entropy(logits["emotion"][row], torch.tensor(label))
        assert by_name["emotion"][row] == pytest.approx(float(expected), abs=1e-6)
    for row, text in enumerate(["ab", None, "a b c", "aa"]):
        tokens = None if text is None else torch.tensor([specs[0].labels.index(char) for char in text])
        expected = (
            0.0
            if tokens is None
            else functional.ctc_loss(
                logits["asr"][row].log_softmax(-1)[:, None],
                tokens[None],
                torch.tensor([12]),
                torch.tensor([len(tokens)]),
            )
        )
        assert by_name["asr"][row] == pytest.approx(float(expected), abs=1e-5)
    first = (logits["affect"][0] - torch.tensor([-1.0, -0.5])).square().sum()
    assert by_name["affect"][0] == pytest.approx(float(first), abs=1e-5)
    assert by_name["affect"][1] == 0
    assert by_name["affect"][2] == pytest.approx(float((logits["affect"][2, 0] - 1).square()), abs=1e-5)


@given(st.permutations(range(4)), st.integers(1, 3))
def test_cutting_a_step_into_micro_batches_changes_nothing(order, cut):
    specs = resolve_tasks(TASKS, table())
    targets = Targets(specs, table())
    denominators = targets.denominators(np.arange(4))
    weights = {"asr": 1.0, "emotion": 0.5, "affect": 2.0}
    whole_logits, num_frames, _ = outputs(targets, range(4))

    def loss(items, valid):
        picked = {name: value[items] for name, value in whole_logits.items()}
        found = targets.lookup(np.asarray(items))
        total, _ = micro_batch_loss(
            specs, weights, picked, num_frames[: len(items)], found, torch.tensor(valid), denominators
        )
        return float(total.detach())

    whole = loss(list(range(4)), [True] * 4)
    parts = loss(order[:cut], [True] * cut) + loss(order[cut:], [True] * (4 - cut))
    assert parts == pytest.approx(whole, rel=1e-5)
    assert loss(order[:cut], [False] * cut) == 0


def test_a_step_without_any_label_of_a_task_gives_zero_and_keeps_its_head_in_the_graph():
    specs = resolve_tasks(TASKS, table())
    targets = Targets(specs, table())
    logits, num_frames, found = outputs(targets, [1])
    total, shares = micro_batch_loss(
        specs, {"asr": 1.0}, logits, num_frames, found, torch.tensor([True]), targets.denominators(np.asarray([1]))
    )
    total.backward()
    assert float(total.detach()) == 0 and float(shares["asr"]) == 0
    assert logits["asr"].grad is not None and not logits["asr"].grad.any()
    assert logits["emotion"].grad is None


def test_transcripts_longer_than_their_frames_give_zero_and_are_counted():
    specs = resolve_tasks(TASKS, table())
    targets = Targets(specs, table())
    logits, _, found = outputs(targets, [0, 3], num_frames=2)
    num_frames = torch.tensor([2, 2])
    losses = utterance_losses(specs[0], logits["asr"], num_frames, found["asr"])
    assert math.isfinite(losses[0].item()) and losses[0].item() > 0
    assert losses[1].item() == 0, "'aa' needs a blank between its letters: three frames"
    assert kind_of(specs[0]).num_too_long(num_frames, found["asr"]) == 1


def test_characters_unseen_in_training_become_unknown():
    specs = resolve_tasks(TASKS[:1], index_of(text=["ab"]))
    tokens = Targets(specs, index_of(text=["aéb"])).lookup(np.asarray([0]))["asr"].values
    assert tokens[0, 1] == CTC_UNKNOWN
