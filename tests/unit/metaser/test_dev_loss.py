"""The loss of dev is the loss of training: one step over a whole set, and the evaluation of the same set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import index_of

from metaser.errors import TrainingError
from metaser.eval.evaluate import utterance_results
from metaser.eval.metrics import evaluate_results
from metaser.model.metaser import MetaSEROutput
from metaser.targets import Targets, resolve_tasks
from metaser.tasks.classification import ClassificationTask
from metaser.tasks.ctc import CtcTask
from metaser.tasks.regression import RegressionTask
from metaser.tasks.spec import TaskSpec
from metaser.train.objective import micro_batch_loss
from shards.index import Index

WEIGHTS = {"emotion": 1.0, "smooth": 0.7, "asr": 0.3, "affect": 2.0, "gender": 0.0}
TASKS = (
    ClassificationTask(kind="classification", name="emotion", labels=("a", "b"), class_weights=(10.0, 3.0)),
    ClassificationTask(
        kind="classification",
        name="smooth",
        field="emotion",
        labels=("a", "b"),
        class_weights=(0.5, 4.0),
        label_smoothing=0.2,
    ),
    CtcTask(kind="ctc"),
    RegressionTask(kind="regression", name="affect", fields=("valence", "arousal"), offset=1.0, scale=2.0),
    ClassificationTask(kind="classification", name="gender"),
)
ALPHABET = index_of(text=["ab c"], gender=["male"], emotion=["a"])
NUM_FRAMES = 6

rows = st.fixed_dictionaries(
    {
        "emotion": st.sampled_from(["a", "b", "outside", None]),
        # The last one is longer than its frames.
        "text": st.sampled_from(["ab", "a unseen", " ", None, "aabbaabbaabb"]),
        "valence": st.sampled_from([1.0, 4.0, None]),
        "arousal": st.sampled_from([2.0, None]),
        "gender": st.sampled_from(["male", None]),
    }
)


def both_losses(specs: tuple[TaskSpec, ...], index: Index) -> tuple[dict[str, float], dict[str, Any]]:
    """Return what training logs for one step over all of `index`, and what dev logs for `index`, same outputs."""
    generator = torch.Generator().manual_seed(len(index))
    logits = {}
    for spec in specs:
        frames = [NUM_FRAMES] if spec.kind == "ctc" else []
        logits[spec.name] = torch.randn((len(index), *frames, spec.num_outputs), generator=generator)
    num_frames_B = torch.full((len(index),), NUM_FRAMES)
    items = np.arange(len(index))
    targets = Targets(specs, index)
    total, shares = micro_batch_loss(
        specs,
        WEIGHTS,
        logits,
        num_frames_B,
        targets.lookup(items),
        torch.ones(len(index), dtype=torch.bool),
        targets.denominators(items),
    )
    results = list(utterance_results(specs, index, items, MetaSEROutput(logits, num_frames_B), targets))
    training = {name: float(share) for name, share in shares.items()} | {"all": float(total)}
    return training, evaluate_results(specs, results, weights=WEIGHTS)


@settings(max_examples=15)
@given(st.lists(rows, min_size=1, max_size=12))
def test_dev_loss_is_the_loss_of_one_training_step_over_the_same_set(table: list[dict[str, Any]]) -> None:
    index = index_of(**{name: [row[name] for row in table] for name in table[0]})
    specs = resolve_tasks(TASKS, ALPHABET)
    training, dev = both_losses(specs, index)
    for name in ("emotion", "smooth", "asr", "affect"):
        of_dev = dev["tasks"][name]["loss"] if name in dev["tasks"] else 0.0
        assert of_dev == pytest.approx(training[name], rel=1e-5, abs=1e-6)
    assert (dev["loss"] or 0.0) == pytest.approx(training["all"], rel=1e-5, abs=1e-6)


def test_a_class_weight_of_all_classes_changes_no_loss() -> None:
    index = index_of(emotion=["a", "b", "b"])
    losses = []
    for weights in (None, (10.0, 10.0)):
        task = ClassificationTask(kind="classification", name="emotion", labels=("a", "b"), class_weights=weights)
        _, dev = both_losses(resolve_tasks([task], index), index)
        losses.append(dev["tasks"]["emotion"]["loss"])
    assert losses[0] == pytest.approx(losses[1])


def test_test_sets_of_a_corpus_that_has_several_are_groups() -> None:
    index = index_of(emotion=["a", "b", "a"], extra=['{"split_set":"Test1"}', '{"split_set":"Test2"}', "{}"])
    index = replace(index, extra_names=("split_set",))
    task = ClassificationTask(kind="classification", name="emotion", labels=("a", "b"))
    specs = resolve_tasks([task], index)
    items = np.arange(3)
    output = MetaSEROutput({"emotion": torch.zeros(3, 2)}, torch.full((3,), NUM_FRAMES))
    results = utterance_results(specs, index, items, output, Targets(specs, index))
    assert [result.groups["split_set"] for result in results] == ["Test1", "Test2", None]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["emotion", "asr", "affect"])
def test_no_score_is_made_of_answers_that_are_no_numbers(name: str, value: float) -> None:
    index = index_of(
        key=["x/a", "x/b", "x/c"],
        emotion=["a", "b", "a"],
        text=["ab", "a", "b"],
        valence=[1.0, 2.0, 3.0],
        arousal=[1.0, 2.0, 3.0],
        gender=["male"] * 3,
    )
    specs = tuple(spec for spec in resolve_tasks(TASKS, index) if spec.name == name)
    frames = [NUM_FRAMES] if name == "asr" else []
    logits = {name: torch.zeros((3, *frames, specs[0].num_outputs))}
    lengths_B = torch.full((3,), NUM_FRAMES - 1)
    items, targets = np.arange(3), Targets(specs, index)
    if name == "asr":
        logits[name][1, -1] = value  # behind its own frames
        assert len(list(utterance_results(specs, index, items, MetaSEROutput(logits, lengths_B), targets))) == 3
    logits[name].flatten(1)[1, 0] = value
    with pytest.raises(TrainingError, match=f"must answer in numbers, but its {name} of 'x/b' is NaN or infinite"):
        list(utterance_results(specs, index, items, MetaSEROutput(logits, lengths_B), targets))
