"""Further encoders beside the main one, and the streams that co-attention joins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from textfolders import save_bert
from torch import Tensor

from metaser.config.encoders import EncoderConfig, LogMelEncoderConfig, NumbersEncoderConfig, TextEncoderConfig
from metaser.config.schema import (
    AdapterConfig,
    CoattentionConfig,
    ExperimentConfig,
    LearningRates,
    ModelConfig,
    StageConfig,
)
from metaser.errors import ConfigError, ModelError, TrainingError
from metaser.model.metaser import MetaSERConfig, MetaSERModel, build_model
from metaser.model.network import load_network
from metaser.tasks.spec import TaskSpec
from metaser.train.optim import build_optimizer
from metaser.train.stage import freeze_all_but, select_parameters

MAIN = LogMelEncoderConfig(num_mels=16, width=16, num_layers=2, num_heads=2, feed_forward=16)
NARROW = LogMelEncoderConfig(num_mels=8, width=6, num_layers=1, num_heads=2, feed_forward=8, dropout=0.3)
TASKS = (
    TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=("anger", "sadness")),
    TaskSpec(name="gender", kind="classification", fields=("gender",), labels=("female", "male")),
)
LENGTHS = (4000, 900, 2600)


def config(*, form: str = "cross", streams: tuple[str, ...] | None = None, **views: EncoderConfig) -> ModelConfig:
    coattention = CoattentionConfig(form=form, width=8, num_heads=2, streams=streams)  # type: ignore[arg-type]
    return ModelConfig(encoder=MAIN, views=views or {"mel": NARROW}, coattention=coattention, head_width=8)


def model_of(**changes: object) -> MetaSERModel:
    torch.manual_seed(0)
    return build_model(config(**changes), TASKS, "emotion").eval()  # type: ignore[arg-type]


def clips() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(LENGTHS), max(LENGTHS), generator=generator), torch.tensor(LENGTHS)


def stage(*train: str, **changes: object) -> StageConfig:
    settings = {"name": "emotion", "train": train, "weights": {"emotion": 1.0}, "num_steps": 3} | changes
    return StageConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["none", "concat", "cross", "frame_weights"])
def test_a_padded_batch_equals_the_single_clips(form: str) -> None:
    model = model_of(form=form)
    wave_BT, num_samples_B = clips()
    with torch.no_grad():
        together = model(wave_BT, num_samples_B)
        for row, length in enumerate(LENGTHS):
            alone = model(wave_BT[row : row + 1, :length], num_samples_B[row : row + 1])
            for task, logits in alone.logits.items():
                torch.testing.assert_close(together.logits[task][row : row + 1], logits, atol=2e-6, rtol=2e-5)


def test_a_view_has_its_own_group_rate_and_gradient() -> None:
    model = model_of()
    own = model.parameters_of("views.mel")
    assert own and all(name.startswith("views.mel.") for name in own)
    assert model.parameters_of("views").keys() == own.keys()
    assert not any(name.startswith("views.") for name in model.parameters_of("encoder"))
    rates = LearningRates(encoder=1e-5, views=3e-4, heads=1e-3)
    trained = stage("encoder", "views.mel", "coattention", "heads", learning_rate=rates)
    parameters = select_parameters(model, trained)
    freeze_all_but(model, parameters)
    optimizer = build_optimizer(model, parameters, trained)
    of_views = [group for group in optimizer.param_groups if group["kind"] == "views"]
    assert {group["lr"] for group in of_views} == {3e-4}
    assert sum(len(group["params"]) for group in of_views) == len(own)
    model(*clips(), tasks=("emotion",)).logits["emotion"].square().sum().backward()
    missing = [name for name, value in parameters.items() if value.grad is None or not value.grad.abs().sum() > 0]
    # Gender's stream is joined, its head is not asked.
    assert missing == []


def test_only_what_a_stage_names_moves() -> None:
    model = model_of()
    assert not any(name.startswith("views.") for name in select_parameters(model, stage("encoder", "heads")))


@pytest.mark.parametrize(
    ("changes", "train", "words"),
    [
        ({}, ("views.mel",), None),
        ({"streams": ("gender",)}, ("views.mel",), "'views.mel', which model.coattention does not join to 'emotion'"),
        ({"form": "none"}, ("views", "heads"), None),
        ({"form": "none"}, ("views.mel",), "which model.coattention does not join"),
    ],
)
def test_a_view_that_nothing_hears_does_not_train(
    changes: dict[str, object], train: tuple[str, ...], words: str | None
) -> None:
    model = model_of(**changes)
    if words is None:
        select_parameters(model, stage(*train))
    else:
        with pytest.raises(TrainingError, match=words):
            select_parameters(model, stage(*train))


def test_a_view_in_a_stage_without_the_main_task_is_refused() -> None:
    with pytest.raises(TrainingError, match="trains 'views' but gives 'emotion' no weight"):
        select_parameters(model_of(), stage("views", "heads", weights={"gender": 1.0}))


def test_unknown_groups_are_told_with_the_views() -> None:
    with pytest.raises(ConfigError, match=r"views, ari, heads, heads\.gender, heads\.emotion, views\.mel, coattention"):
        model_of().parameters_of("views.text")


def test_a_view_that_is_not_joined_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(streams=("gender",))
    monkeypatch.setattr(model.views["mel"], "forward", None)
    model(*clips())


@pytest.mark.parametrize("form", ["cross", "none"])
def test_an_export_gives_identical_logits(form: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = model_of(form=form)
    model.save_pretrained(tmp_path / "best")
    again = MetaSERModel.from_pretrained(tmp_path / "best").eval()
    assert {name: value.view for name, value in again.views.items()} == {"mel": "mel"}
    with torch.no_grad():
        for task, logits in model(*clips()).logits.items():
            assert torch.equal(again(*clips()).logits[task], logits)


def test_an_export_of_before_there_were_views_is_read() -> None:
    plain = ModelConfig(encoder=MAIN, coattention=CoattentionConfig(form="none"))
    values = build_model(plain, TASKS, "emotion").config.to_dict()
    del values["views"], values["model"]["views"], values["model"]["coattention"]["streams"]
    names = ("encoder", "model", "tasks", "main_task")
    read = MetaSERConfig(**{name: values[name] for name in names})
    assert list(MetaSERModel(read).views) == []


def test_a_configuration_must_describe_every_view() -> None:
    values = model_of().config
    with pytest.raises(ModelError, match=r"the encoder of each view \['mel'\], got \[\]"):
        MetaSERConfig(encoder=values.encoder, model=values.model, tasks=values.tasks, main_task="emotion")


EXPERIMENT = {
    "output_dir": "runs/x",
    "data": {"shards": "shards", "batch_utterances": 2, "max_micro_batch_s": 10},
    "tasks": [{"name": "emotion", "kind": "classification"}, {"name": "gender", "kind": "classification"}],
    "stages": [{"name": "s", "train": ["heads"], "weights": {"emotion": 1}, "num_steps": 1}],
}


def experiment(**model: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate({**EXPERIMENT, "model": model})


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"views": {"gender": {"kind": "logmel"}}}, r"views must have other names than tasks, got \['gender'\]"),
        ({"coattention": {"streams": ["mel"]}}, r"other than 'emotion' \(gender\), got \['mel'\]"),
        ({"coattention": {"streams": ["emotion"]}}, r"got \['emotion'\]"),
        ({"coattention": {"streams": ["gender", "gender"]}}, r"once, got \['gender', 'gender'\]"),
        ({"coattention": {"streams": []}}, "needs a second task or view beside 'emotion'"),
        ({"views": {"mel": {"kind": "melody"}}}, "kind must be one of logmel, huggingface.*, got 'melody'"),
        ({"views": {"mel": 3}}, "an encoder must be a mapping with a kind"),
        ({"views": {"mel": {"kind": "logmel", "wdth": 3}}}, "wdth"),
    ],
)
def test_views_and_streams_that_cannot_be(model: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        experiment(**model)


@given(st.lists(st.sampled_from(["gender", "mel", "low"]), unique=True, min_size=1))
def test_streams_are_joined_in_the_order_in_which_they_are_named(streams: list[str]) -> None:
    views = {"mel": {"kind": "logmel"}, "low": {"kind": "logmel"}}
    model = experiment(views=views, coattention={"streams": streams}).model
    assert model.other_streams("emotion", ["emotion", "gender"]) == tuple(streams)
    assert experiment(views=views).model.other_streams("emotion", ["emotion", "gender"]) == ("gender", "low", "mel")


def test_a_stage_may_train_views_by_name() -> None:
    stages = [{"name": "s", "train": ["views.mel"], "weights": {"emotion": 1}, "num_steps": 1}]
    ExperimentConfig.model_validate({**EXPERIMENT, "model": {"views": {"mel": {"kind": "logmel"}}}, "stages": stages})
    with pytest.raises(ValidationError, match="unknown parameter groups"):
        ExperimentConfig.model_validate({**EXPERIMENT, "stages": stages})


@pytest.fixture
def _memory_without_luck() -> Iterator[None]:
    """Fill fresh memory with NaN: memory that happens to hold zeros hides a parameter that nothing sets."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_memory_without_luck")
def test_each_missing_tensor_of_a_view_comes_back_fresh(tmp_path: Path) -> None:
    words = TextEncoderConfig(kind="text", name=str(save_bert(tmp_path / "bert")))
    told = NumbersEncoderConfig(kind="numbers", fields=("age", "extra.snr"), width=4)
    model = build_model(config(mel=NARROW, words=words, told=told), TASKS, "emotion")
    model.views["told"].mean_V.add_(1)
    model.views["told"].deviation_V.add_(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    for dropped in [name for name in tensors if name.startswith("views.")]:
        rest = {name: value for name, value in tensors.items() if name != dropped}
        state = MetaSERModel.from_pretrained(None, config=model.config, state_dict=rest).state_dict()
        assert state.keys() == tensors.keys()
        for name, value in state.items():
            assert bool(value.isfinite().all()), (dropped, name)
            assert torch.equal(value, tensors[name]) != (name == dropped), (dropped, name)


@pytest.mark.parametrize("form", ["concat", "cross", "frame_weights"])
def test_the_order_in_which_views_are_given_makes_no_difference(form: str, tmp_path: Path) -> None:
    both = {"z": NARROW, "a": NARROW.model_copy(update={"width": 4})}
    assert config(**both) == config(**dict(reversed(both.items())))
    model = model_of(form=form, **both)
    model.save_pretrained(tmp_path)
    right = model(*clips()).logits["emotion"]
    for again in (MetaSERModel.from_pretrained(tmp_path).eval(), load_network(tmp_path, setting="MODEL")):
        assert torch.equal(again(*clips()).logits["emotion"], right)


def test_a_view_may_be_called_like_a_part_of_lora() -> None:
    model = model_of(lora_a=NARROW)
    assert {name.split(".")[1] for name in select_parameters(model, stage("views"))} == {"lora_a"}


@pytest.mark.parametrize("name", ["a.b", "", "1", "a" * 41, "\u00fc", "a b"])
def test_views_of_names_that_no_parameter_can_have(name: str) -> None:
    with pytest.raises(ValidationError, match="views must have names of up to 40 letters, digits and _, got"):
        experiment(views={name: {"kind": "logmel"}})


def test_a_main_encoder_that_reads_is_refused_before_its_files_are_looked_for() -> None:
    with pytest.raises(ValidationError, match="must be an encoder that hears, got one of kind 'text'"):
        experiment(encoder={"kind": "text", "name": "nowhere"})


@pytest.mark.parametrize(
    ("model", "weights", "is_right"),
    [
        ({}, {"emotion": 1}, True),
        ({}, {"gender": 1}, False),
        ({"coattention": {"form": "none"}}, {"emotion": 1}, False),
        ({"coattention": {"streams": ["gender"]}}, {"emotion": 1}, False),
    ],
)
def test_vtlp_needs_an_encoder_that_is_computed(model: dict[str, Any], weights: dict[str, int], is_right: bool) -> None:
    moved = {
        "name": "s",
        "train": ["heads"],
        "weights": weights,
        "num_steps": 1,
        "augment": {"vtlp": {"probability": 0.5}},
    }
    pretrained = {"kind": "huggingface", "name": "facebook/wav2vec2-base"}
    tree = {
        **EXPERIMENT,
        "stages": [moved],
        "model": {"encoder": pretrained, "views": {"mel": {"kind": "logmel"}}, **model},
    }
    if is_right:
        ExperimentConfig.model_validate(tree)
    else:
        with pytest.raises(ValidationError, match="moves mel filters, but model\\.encoder\\.kind is 'huggingface'"):
            ExperimentConfig.model_validate(tree)


def test_a_stage_that_would_train_nothing_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"must train something, but nothing of \['views'\] is in this model"):
        select_parameters(model_of(form="none"), stage("views"))


def test_without_tokens_a_model_that_reads_is_told_that_there_is_no_text(tmp_path: Path) -> None:
    words = TextEncoderConfig(kind="text", name=str(save_bert(tmp_path / "bert")))
    model = build_model(config(words=words), TASKS, "emotion").eval()
    silent = model.given_views["words"].tokenize([None] * len(LENGTHS))
    with torch.no_grad():
        said = [model(*clips(), tokens=tokens).logits["emotion"] for tokens in (None, {"words": silent})]
    assert torch.equal(*said)


def test_an_export_in_half_precision_answers_in_single(tmp_path: Path) -> None:
    model_of().to(torch.bfloat16).save_pretrained(tmp_path)
    answer = load_network(tmp_path, setting="MODEL")(*clips()).logits["emotion"]
    assert answer.dtype == torch.float32 and bool(answer.isfinite().all())


@pytest.mark.usefixtures("_memory_without_luck")
def test_a_blank_model_is_the_same_but_for_its_weights() -> None:
    model = build_model(
        config(mel=NARROW).model_copy(update={"adapters": AdapterConfig(lora_rank=1, bottleneck=2)}), TASKS, "emotion"
    )
    blank = model.blank()
    assert [(name, value.requires_grad) for name, value in blank.named_parameters()] == [
        (name, value.requires_grad) for name, value in model.named_parameters()
    ]
    blank.load_state_dict(model.state_dict())
    with torch.no_grad():
        for task, logits in model.eval()(*clips()).logits.items():
            assert torch.equal(blank.eval()(*clips()).logits[task], logits)
