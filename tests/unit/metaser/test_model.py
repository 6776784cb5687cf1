from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from tinyencoders import WHISPER
from torch import Tensor, nn
from transformers import (
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperModel,
)

from metaser.config.ari import ARI_FORMS, AriForm
from metaser.config.encoders import EncoderConfig, HuggingFaceEncoderConfig, LogMelEncoderConfig
from metaser.config.schema import AdapterConfig, AriConfig, CoattentionConfig, CoattentionForm, ModelConfig
from metaser.errors import ConfigError, ModelError
from metaser.model.encoders.base import Inputs
from metaser.model.metaser import MetaSERConfig, MetaSERModel, build_model
from metaser.tasks.spec import TaskSpec

ARI_FORMS = tuple(ARI_FORMS)
COATTENTION_FORMS = get_args(CoattentionForm)
TASKS = (
    TaskSpec(name="asr", kind="ctc", fields=("text",), labels=("<blank>", "<unk>", "a", "b")),
    TaskSpec(name="gender", kind="classification", fields=("gender",), labels=("female", "male")),
    TaskSpec(name="affect", kind="regression", fields=("valence", "arousal"), labels=("valence", "arousal")),
    TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=("anger", "joy", "neutral")),
)
LOGMEL = LogMelEncoderConfig(num_mels=20, width=16, num_layers=3, num_heads=2, feed_forward=24)
SMALL = LogMelEncoderConfig(num_mels=20, width=16, num_layers=2, num_heads=2, feed_forward=24)
LENGTHS = (6000, 3000, 700)
CONVOLUTIONS = ("encoder.feature_extractor.", "encoder.conv1.", "encoder.conv2.")
"""Which the encoders of checkpoints keep as they are."""


def configured(
    ari: AriForm = "task",
    coattention: CoattentionForm = "cross",
    encoder: EncoderConfig = LOGMEL,
    adapters: AdapterConfig | None = None,
    **others: Any,
) -> ModelConfig:
    return ModelConfig(
        encoder=encoder,
        ari=AriConfig(form=ari),
        coattention=CoattentionConfig(form=coattention, width=8, num_heads=2),
        adapters=adapters or AdapterConfig(),
        head_width=12,
        **others,
    )


ADAPTERS = AdapterConfig(lora_rank=2, lora_alpha=4.0, bottleneck=3)


def build(*args: Any, **kwargs: Any) -> MetaSERModel:
    torch.manual_seed(0)
    model = build_model(configured(*args, **kwargs), TASKS, "emotion")
    model.train(False)
    return model


def perturb(model: nn.Module) -> None:
    """Move every parameter off its start, so that what starts at zero takes part."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    wave_BT = torch.randn(len(LENGTHS), max(LENGTHS), generator=generator)
    num_samples_B = torch.tensor(LENGTHS)
    return wave_BT * (torch.arange(max(LENGTHS)) < num_samples_B[:, None]), num_samples_B


@pytest.fixture
def checkpoints(tmp_path: Path) -> Callable[[str], HuggingFaceEncoderConfig]:
    """Save a small Hugging Face checkpoint of a family and return the encoder that reads it."""
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "conv_dim": (8, 8),
        "conv_kernel": (40, 20),
        "conv_stride": (20, 16),
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }

    def save(family: str) -> HuggingFaceEncoderConfig:
        torch.manual_seed(7)
        model: PreTrainedModel
        if family == "hubert":
            model = HubertModel(HubertConfig(**sizes))
        elif family == "whisper":
            model = WhisperModel(WhisperConfig(**WHISPER | {"encoder_layers": 3}))
        else:
            model = WavLMModel(WavLMConfig(**sizes, do_stable_layer_norm=True, feat_extract_norm="layer"))
        model.save_pretrained(tmp_path / family)
        return HuggingFaceEncoderConfig(kind="huggingface", name=str(tmp_path / family))

    return save


def total(logits: dict[str, Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    terms = [(values * torch.randn(values.shape, generator=generator)).sum() for values in logits.values()]
    return torch.stack(terms).sum()


def assert_every_trainable_tensor_learns(model: MetaSERModel, batch: tuple[Tensor, Tensor]) -> None:
    torch.autograd.backward(total(model(*batch).logits))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            # The softmax over the keys ignores a bias of the keys: its true gradient is zero.
            assert parameter.grad.abs().sum() > 0 or name.endswith(("k_proj.bias", "k_proj.base_layer.bias")), name


@pytest.mark.parametrize("coattention", COATTENTION_FORMS)
@pytest.mark.parametrize("ari", ARI_FORMS)
def test_every_trainable_tensor_gets_a_gradient(
    ari: AriForm, coattention: CoattentionForm, batch: tuple[Tensor, Tensor]
) -> None:
    model = build(ari, coattention, adapters=ADAPTERS)
    perturb(model)
    assert_every_trainable_tensor_learns(model.train(), batch)


@pytest.mark.parametrize("family", ["hubert", "wavlm", "whisper"])
def test_every_trainable_tensor_of_a_checkpoint_gets_a_gradient(
    family: str, checkpoints: Callable[[str], HuggingFaceEncoderConfig], batch: tuple[Tensor, Tensor]
) -> None:
    model = build("dense+task", encoder=checkpoints(family), adapters=ADAPTERS)
    perturb(model)
    assert_every_trainable_tensor_learns(model, batch)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen and all(name.startswith(CONVOLUTIONS) for name in frozen)


@pytest.mark.parametrize("pooling", ["mean", "attentive_statistics"])
@pytest.mark.parametrize(
    ("ari", "coattention"),
    [(ari, "cross") for ari in ARI_FORMS] + [("task", form) for form in COATTENTION_FORMS if form != "cross"],
)
def test_a_padded_batch_equals_the_single_clips(
    ari: AriForm, coattention: CoattentionForm, pooling: str, batch: tuple[Tensor, Tensor]
) -> None:
    model = build(ari, coattention, adapters=ADAPTERS, pooling=pooling)
    perturb(model)
    wave_BT, num_samples_B = batch
    with torch.no_grad():
        together = model(wave_BT, num_samples_B)
        for row, length in enumerate(LENGTHS):
            alone = model(wave_BT[row : row + 1, :length], num_samples_B[row : row + 1])
            num_frames = int(alone.num_frames_B)
            assert together.num_frames_B[row] == num_frames == model.encoder.num_frames(length)
            for name, logits in alone.logits.items():
                ours = together.logits[name][row]
                ours = ours[:num_frames] if name == "asr" else ours
                torch.testing.assert_close(ours, logits[0], atol=1e-5, rtol=1e-5)


def test_outputs_have_the_shape_of_their_task_in_float32(batch: tuple[Tensor, Tensor]) -> None:
    model = build()
    num_frames = int(model.encoder.num_frames(max(LENGTHS)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(*batch).logits
    assert {name: tuple(values.shape) for name, values in logits.items()} == {
        "asr": (3, num_frames, 4),
        "gender": (3, 2),
        "affect": (3, 2),
        "emotion": (3, 3),
    }
    assert {values.dtype for values in logits.values()} == {torch.float32}


@pytest.mark.parametrize("family", ["logmel", "hubert", "wavlm", "whisper"])
@pytest.mark.parametrize("ari", [form for form in ARI_FORMS if "weighted_sum" not in form])
def test_fresh_ari_and_adapters_leave_the_encoder_exactly_as_it_is(
    ari: AriForm,
    family: str,
    checkpoints: Callable[[str], HuggingFaceEncoderConfig],
    batch: tuple[Tensor, Tensor],
) -> None:
    encoder = LOGMEL if family == "logmel" else checkpoints(family)
    plain = build("none", encoder=encoder)
    with torch.no_grad():
        expected = plain.encoder(Inputs(*batch))
        for adapters in (AdapterConfig(), ADAPTERS):
            model = build(ari, encoder=encoder, adapters=adapters)
            encoded = model.encoder(Inputs(*batch), mix=model._layer_mix())
            for frames_BLD in model.ari(encoded.layers, encoded.frame_mask_BL).values():
                assert torch.equal(frames_BLD, expected.layers[-1])


def test_a_fresh_model_equals_transformers(checkpoints: Callable[[str], HuggingFaceEncoderConfig]) -> None:
    encoder = checkpoints("hubert")
    model = build("dense+task", encoder=encoder, adapters=ADAPTERS)
    wave_BT = torch.randn(1, 4000, generator=torch.Generator().manual_seed(6))
    theirs = HubertModel.from_pretrained(encoder.name).eval()
    with torch.no_grad():
        encoded = model.encoder(Inputs(wave_BT, torch.tensor([4000])), mix=model._layer_mix())
        ours_BLD = model.ari(encoded.layers, encoded.frame_mask_BL)["emotion"]
        normalised_BT = (wave_BT - wave_BT.mean()) / (wave_BT.var(correction=0) + 1e-7).sqrt()
        theirs_BLD = theirs(normalised_BT).last_hidden_state
    torch.testing.assert_close(ours_BLD, theirs_BLD, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("family", ["logmel", "hubert", "wavlm", "whisper"])
@pytest.mark.parametrize("adapters", [AdapterConfig(), ADAPTERS])
def test_a_round_trip_gives_identical_logits(
    family: str,
    adapters: AdapterConfig,
    checkpoints: Callable[[str], HuggingFaceEncoderConfig],
    batch: tuple[Tensor, Tensor],
    tmp_path: Path,
) -> None:
    encoder = LOGMEL if family == "logmel" else checkpoints(family)
    model = build("dense+task", encoder=encoder, adapters=adapters)
    perturb(model)
    model.save_pretrained(tmp_path / "saved")
    loaded = MetaSERModel.from_pretrained(tmp_path / "saved")
    loaded.train(False)
    with torch.no_grad():
        for name, logits in model(*batch).logits.items():
            assert torch.equal(loaded(*batch).logits[name], logits), name
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable == [name for name, parameter in loaded.named_parameters() if parameter.requires_grad]
    for group in ("encoder", "ari", "heads", "coattention", "adapters"):
        assert list(loaded.parameters_of(group)) == list(model.parameters_of(group))


@pytest.mark.parametrize("family", ["wavlm", "whisper"])
def test_a_fresh_build_keeps_the_checkpoints_weights(
    family: str,
    checkpoints: Callable[[str], HuggingFaceEncoderConfig],
) -> None:
    encoder = checkpoints(family)
    stored = load_file(Path(encoder.name) / "model.safetensors")
    if family == "whisper":
        parts = {name: value for name, value in stored.items() if name.startswith("encoder.")}
        stored = {name.removeprefix("encoder."): value for name, value in parts.items()}
    model = build(encoder=encoder, adapters=ADAPTERS)
    ours = {name.replace(".base_layer", ""): value for name, value in model.encoder.state_dict().items()}
    assert set(stored) <= set(ours)
    for name, value in stored.items():
        assert torch.equal(ours[name], value), name


def saved_tensors(model: MetaSERModel, folder: Path) -> dict[str, Tensor]:
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.fixture
def _memory_without_luck() -> Iterator[None]:
    """Fill fresh memory with NaN: memory that happens to hold zeros hides a parameter that nothing sets."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_memory_without_luck")
@pytest.mark.parametrize(
    ("ari", "coattention", "adapters"),
    [
        ("dense+task", "cross", ADAPTERS),
        ("gated", "frame_weights", AdapterConfig()),
        ("weighted_sum", "concat", AdapterConfig()),
    ],
)
def test_each_missing_tensor_of_ours_comes_back_fresh(
    ari: AriForm, coattention: CoattentionForm, adapters: AdapterConfig, tmp_path: Path
) -> None:
    config = configured(ari, coattention, SMALL, adapters, pooling="attentive_statistics")
    model = build_model(config, TASKS[2:], "emotion")
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    perturb(model)
    tensors = saved_tensors(model, tmp_path)
    ours = [name for name in tensors if not name.startswith("encoder.") or ".lora_" in name]
    assert any(".lora_B" in name for name in ours) == (adapters == ADAPTERS)
    for dropped in ours:
        rest = {name: value for name, value in tensors.items() if name != dropped}
        state = MetaSERModel.from_pretrained(None, config=model.config, state_dict=rest).state_dict()
        for name, value in state.items():
            if name != dropped:
                assert torch.equal(value, tensors[name]), (dropped, name)
        assert same_kind(state[dropped], fresh[dropped]), dropped


def same_kind(value: Tensor, fresh: Tensor) -> bool:
    """Return whether two tensors are the same constant, or random of about the same spread."""
    if fresh.numel() == 1 or fresh.std() == 0:
        return bool(value.isfinite().all()) and (fresh.numel() == 1 or torch.equal(value, fresh))
    spread = float(value.std() / fresh.std())
    return bool(value.isfinite().all()) and 0.4 < spread < 2.5 and not torch.equal(value, fresh)


# ---------------------------------------------------------------- configuration


def test_labels_are_those_of_the_main_task(tmp_path: Path) -> None:
    model = build()
    model.save_pretrained(tmp_path)
    loaded = MetaSERConfig.from_pretrained(tmp_path)
    for config in (model.config, loaded):
        assert config.id2label == {0: "anger", 1: "joy", 2: "neutral"}
        assert config.label2id == {"anger": 0, "joy": 1, "neutral": 2}
        assert config.sampling_rate == 16000
    assert loaded.blueprint() == model.config.blueprint()
    assert loaded.blueprint().tasks == TASKS
    assert loaded.blueprint().model == configured()


def changed(section: str, value: Any) -> MetaSERConfig:
    sections: dict[str, Any] = {
        "encoder": LOGMEL.model_dump(),
        "model": configured().model_dump(mode="json"),
        "tasks": [task.model_dump(mode="json") for task in TASKS],
        "main_task": "emotion",
    }
    return MetaSERConfig(**(sections | {section: value}))


@pytest.mark.parametrize(
    ("section", "value", "words"),
    [
        ("model", {"coattentions": {}}, r"model\.coattentions: Extra inputs are not permitted, got \{\}; build or"),
        ("model", {"ari": {"form": "tusk"}}, r"model\.ari\.form: must be one of none, .*, got 'tusk'"),
        ("tasks", [{"name": "emotion", "kind": "classification", "lables": []}], r"tasks\.0\.lables: Extra inputs"),
        ("tasks", [TASKS[3].model_dump()] * 2, r"task names must differ, got \['emotion', 'emotion'\]"),
        ("main_task", "asr", "must answer once an utterance, but 'asr' of kind ctc answers for every frame"),
        ("main_task", "mood", r"main_task must be one of the tasks \['asr', .*, got 'mood'"),
    ],
)
def test_a_wrong_section_is_refused(section: str, value: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        changed(section, value)


@pytest.mark.parametrize("name", ["extra.accent", "keys", "training"])
def test_task_names_must_fit_parameter_names(name: str) -> None:
    task = TASKS[1].model_copy(update={"name": name})
    with pytest.raises(ModelError, match=rf"identifiers that torch does not use itself, got \['{name}'\]; rename"):
        build_model(configured(), [task, TASKS[3]], "emotion")


# ---------------------------------------------------------------- groups

GROUPS = ("encoder", "ari", "heads", "coattention", "adapters")


@pytest.mark.parametrize("family", ["wavlm", "whisper"])
def test_groups_are_disjoint_and_cover_all_that_trains(
    family: str,
    checkpoints: Callable[[str], HuggingFaceEncoderConfig],
) -> None:
    model = build("gated", encoder=checkpoints(family), adapters=ADAPTERS)
    names = [name for group in GROUPS for name in model.parameters_of(group)]
    assert len(names) == len(set(names))
    assert set(names) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for group in GROUPS:
        for name, parameter in model.parameters_of(group).items():
            assert parameter is model.get_parameter(name)
            assert model.group_of(name).split(".")[0] == group
    lora = {name for name in names if ".lora_" in name}
    assert len(lora) == 2 * 3 * 3 and lora < set(model.parameters_of("adapters"))


@pytest.mark.parametrize("family", ["hubert", "whisper"])
def test_a_frozen_encoder_can_be_thawed_again_without_its_cnn(
    family: str,
    checkpoints: Callable[[str], HuggingFaceEncoderConfig],
) -> None:
    model = build(encoder=checkpoints(family))
    before = set(model.parameters_of("encoder"))
    model.requires_grad_(False)
    assert set(model.parameters_of("encoder")) == before
    assert not any(name.startswith(CONVOLUTIONS) for name in before)


def test_heads_can_be_chosen_by_task() -> None:
    model = build()
    parts = [set(model.parameters_of(f"heads.{task.name}")) for task in TASKS]
    assert all(parts)
    assert set().union(*parts) == set(model.parameters_of("heads"))
    assert sum(map(len, parts)) == len(model.parameters_of("heads"))
    assert set(model.parameters_of("heads.asr")) == {"heads.asr.linear.weight", "heads.asr.linear.bias"}


def test_layers_can_be_chosen_by_range() -> None:
    model = build(adapters=ADAPTERS)
    upper = set(model.parameters_of("encoder.layers.1-2"))
    assert upper == set(model.parameters_of("encoder.layers.1-1")) | set(model.parameters_of("encoder.layers.2-2"))
    assert upper < set(model.parameters_of("encoder"))
    assert {model.layer_of(name) for name in upper} == {1, 2}
    inside = {id(parameter) for parameter in model.encoder.transformer_layers[1:].parameters()}
    inside |= {id(parameter) for parameter in model.encoder.top_norm().parameters()}
    lora = {id(parameter) for name, parameter in model.named_parameters() if ".lora_" in name}
    assert {id(model.get_parameter(name)) for name in upper} == inside - lora
    outside = {model.layer_of(name) for group in GROUPS[1:] for name in model.parameters_of(group)}
    assert outside == {None}


@pytest.mark.parametrize(
    "group",
    ["encoders", "heads.mood", "encoder.layers.2-1", "encoder.layers.1-3", "encoder.layers.1", "heads.", ""],
)
def test_an_unknown_group_is_named_with_the_choices(group: str) -> None:
    words = (
        r"a stage trains encoder, encoder\.layers\.A-B with 0 <= A <= B <= 2, ari, heads, heads\.asr, "
        rf"heads\.gender, heads\.affect, heads\.emotion, coattention or adapters, got '{group}'; name one of these"
    )
    with pytest.raises(ConfigError, match=words):
        build().parameters_of(group)


@pytest.mark.parametrize(
    ("ari", "adapters", "trained", "learns"),
    [
        ("task", AdapterConfig(), ("ari", "heads", "coattention"), False),
        ("dense", AdapterConfig(), ("ari", "heads", "coattention"), True),
        ("task", ADAPTERS, ("heads",), False),
        ("task", ADAPTERS, ("heads", "adapters"), True),
        ("task", AdapterConfig(bottleneck=3), ("heads", "adapters"), True),
        ("task", AdapterConfig(), ("encoder.layers.2-2", "heads"), True),
    ],
)
def test_a_frozen_encoder_builds_no_graph_unless_something_inside_learns(
    ari: AriForm,
    adapters: AdapterConfig,
    trained: tuple[str, ...],
    learns: bool,
    batch: tuple[Tensor, Tensor],
) -> None:
    model = build(ari, adapters=adapters).train().requires_grad_(False)
    chosen = {name: value for group in trained for name, value in model.parameters_of(group).items()}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    graphs = []
    model.encoder.register_forward_hook(lambda module, inputs, output: graphs.append(output.layers[-1].requires_grad))
    torch.autograd.backward(total(model(*batch).logits))
    assert graphs == [learns]
    assert all(parameter.grad is not None for parameter in chosen.values())
