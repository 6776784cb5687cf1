"""The view `numbers`: what it is given, and what it makes of numbers that are missing, alike or out of all measure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tinyruns import clip
from tones import pack_items
from torch import Tensor

from metaser.config.encoders import NumbersEncoderConfig
from metaser.config.schema import ExperimentConfig
from metaser.errors import ConfigError
from metaser.fields import numbers_in
from metaser.model.encoders.base import Inputs
from metaser.model.encoders.families import build_encoder, load_encoder
from metaser.model.encoders.numbers import NumbersEncoder
from shards.index import Index
from shards.indexload import load_index

FIELDS = ("extra.pitch", "age", "extra.snr")


def encoder_of(*fields: str) -> NumbersEncoder:
    torch.manual_seed(0)
    encoder = load_encoder(NumbersEncoderConfig(kind="numbers", fields=fields, width=8)).eval()
    assert isinstance(encoder, NumbersEncoder)
    encoder.view = "told"
    return encoder


def frames(encoder: NumbersEncoder, numbers: Any) -> Tensor:
    vectors_BV = torch.tensor(numbers, dtype=torch.float32)
    inputs = Inputs(torch.zeros(len(vectors_BV), 10), torch.full((len(vectors_BV),), 10))
    output = encoder(inputs.with_given({"told": vectors_BV}))
    assert output.frame_mask_BL.all() and output.layers[0].shape == (len(vectors_BV), 1, 8)
    return output.layers[0][:, 0].detach()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Four utterances: with every number, with none, with words that say numbers, and with a word that says none."""
    rows: list[dict[str, Any]] = [
        {"extra": {"pitch": 120.5, "snr": 3, "word": "loud"}, "age": 30.0},
        {"extra": {}},
        {"extra": {"pitch": "99", "snr": True}, "age": 41.0},
        {"extra": {"snr": "NA", "pitch": -7}},
    ]
    folder = tmp_path_factory.mktemp("shards")
    pack_items([clip(number, **row) for number, row in enumerate(rows)], folder, shard_utterances=3)
    return load_index([folder])


def test_numbers_are_read_as_fields_of_numbers_are(index: Index) -> None:
    table_UV = index.number_table(FIELDS)
    np.testing.assert_array_equal(table_UV, np.stack([index.numbers(name) for name in FIELDS], axis=1))
    np.testing.assert_array_equal(table_UV[:, 0], [120.5, math.nan, 99, -7])
    rows = [2, 0, 2]
    np.testing.assert_array_equal(index.take(rows).number_table(FIELDS), table_UV[rows])


def test_the_lookup_gives_each_utterance_its_numbers_and_nan_for_what_the_shards_lack(index: Index) -> None:
    found = encoder_of("extra.nowhere", *FIELDS).lookup(index)(np.asarray([3, 0]))
    assert isinstance(found, Tensor)
    expected = [[math.nan, -7, math.nan, math.nan], [math.nan, 120.5, 30, 3]]
    torch.testing.assert_close(found, torch.tensor(expected), equal_nan=True)


def test_a_field_of_words_is_refused_with_the_word(index: Index) -> None:
    with pytest.raises(ConfigError, match=r"^model\.views\.told\.fields must be .* extra\.word must .* 'loud'; leave"):
        numbers_in(index, ("extra.snr", "extra.word"), setting="model.views.told")


def test_fit_takes_what_is_there(index: Index) -> None:
    encoder = encoder_of("extra.nowhere", *FIELDS)
    encoder.fit(index)
    table_UV = index.number_table(FIELDS)
    np.testing.assert_allclose(encoder.mean_V.numpy(), [0, *np.nanmean(table_UV, axis=0)], rtol=1e-6)
    np.testing.assert_allclose(encoder.deviation_V.numpy(), [1, *np.nanstd(table_UV, axis=0)], rtol=1e-6)


def test_numbers_that_are_all_alike_tell_nothing(index: Index) -> None:
    encoder = encoder_of("extra.pitch", "age")
    encoder.fit(index.take([0, 0, 0]))
    assert encoder.deviation_V.tolist() == [1, 1]
    assert frames(encoder, [[120.5, 30.0]]).isfinite().all()


@given(st.lists(st.floats(width=32), min_size=2, max_size=2))
@settings(max_examples=200)
def test_any_number_gives_a_finite_frame(numbers: list[float]) -> None:
    assert frames(encoder_of("age", "extra.a"), [numbers]).isfinite().all()


def test_a_missing_number_is_none_and_not_the_mean() -> None:
    encoder = encoder_of("age", "extra.a")
    none, mean, both = frames(encoder, [[math.nan, 1.0], [0.0, 1.0], [math.nan, math.nan]])
    assert not torch.equal(none, mean) and not torch.equal(none, both)
    # `predict` gives a model no numbers at all.
    output = encoder(Inputs(torch.zeros(1, 10), torch.tensor([10])))
    assert torch.equal(output.layers[0][0, 0], both)


def test_a_slip_counts_as_far_away_and_no_further() -> None:
    encoder = encoder_of("age")
    assert torch.equal(*frames(encoder, [[1e3], [1e30]]))


def test_an_encoder_is_built_of_its_architecture_alone() -> None:
    encoder = encoder_of(*FIELDS)
    read = type(encoder).read_architecture(encoder.architecture(), Path("config.json"))
    again = build_encoder(read)
    again.load_state_dict(encoder.state_dict())
    assert again.given_fields == FIELDS and type(encoder).form_of(read)["fields"] == list(FIELDS)


EXPERIMENT = {
    "output_dir": "runs/x",
    "data": {"shards": "shards", "batch_utterances": 2, "max_micro_batch_s": 10},
    "stages": [{"name": "s", "train": ["heads"], "weights": {"main": 1}, "num_steps": 1}],
    "main_task": "main",
}


@pytest.mark.parametrize(
    ("fields", "task", "words"),
    [
        (["valence"], {"kind": "classification", "field": "emotion"}, r"fields\.0"),
        (["age", "age"], {"kind": "classification", "field": "emotion"}, r"fields must be named once, got \['age'\]"),
        ([], {"kind": "classification", "field": "emotion"}, "at least 1 item"),
        (["age"], {"kind": "classification", "field": "age_group"}, r"answer of the main task 'main'.*\['age'\]"),
        (["extra.a"], {"kind": "regression", "fields": ["extra.a"]}, r"answer of the main task 'main'.*\['extra.a'\]"),
    ],
)
def test_fields_that_cannot_be_given(fields: list[str], task: dict[str, Any], words: str) -> None:
    model = {"views": {"told": {"kind": "numbers", "fields": fields}}}
    tasks = [{"name": "main", **task}]
    with pytest.raises(ValidationError, match=words):
        ExperimentConfig.model_validate({**EXPERIMENT, "model": model, "tasks": tasks})


def test_a_text_that_is_the_answer_is_not_read() -> None:
    model = {"views": {"words": {"kind": "text", "name": "bert", "field": "extra.mood"}}}
    tasks = [{"name": "main", "kind": "classification", "field": "extra.mood"}]
    with pytest.raises(ValidationError, match=r"answer of the main task 'main', but reads \['extra.mood'\]"):
        ExperimentConfig.model_validate({**EXPERIMENT, "model": model, "tasks": tasks})
