import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinyencoders import BUCKETS, SIZES, WHISPER
from transformers import Data2VecAudioConfig, HubertConfig, Wav2Vec2Config, WavLMConfig, WhisperConfig

from metaser.config.encoders import LogMelEncoderConfig
from metaser.config.schema import AdapterConfig, AriConfig, CoattentionConfig, ModelConfig, ScheduleConfig, StageConfig
from metaser.model.encoders.pretrained import FAMILIES as ENCODERS
from metaser.model.metaser import MetaSERConfig, MetaSERModel, build_model
from metaser.tasks.spec import TaskSpec
from metaser.train.optim import build_optimizer, schedule_factor, set_learning_rates

fractions = st.floats(0, 1)
schedules = st.builds(
    ScheduleConfig,
    warmup_fraction=fractions,
    decay=st.sampled_from(["linear", "cosine", "constant"]),
    final_fraction=fractions,
)


@given(schedules, st.integers(1, 400))
def test_the_rate_rises_to_its_peak_falls_towards_its_end_and_every_step_counts(schedule, num_steps):
    factors = [schedule_factor(schedule, step, num_steps) for step in range(1, num_steps + 1)]
    peak_step = max(1, round(schedule.warmup_fraction * num_steps))
    assert all(0 < factor <= 1 for factor in factors)
    rising, falling = factors[:peak_step], factors[peak_step - 1 :]
    assert rising == pytest.approx([(step + 1) / peak_step for step in range(peak_step)])
    assert falling == sorted(falling, reverse=True)
    assert max(factors) == 1.0
    if schedule.decay != "constant" and schedule.final_fraction < 1:
        assert factors[-1] > schedule.final_fraction or num_steps == peak_step


@given(st.sampled_from(["linear", "cosine"]), fractions, st.integers(2, 400))
def test_one_step_after_the_last_the_rate_would_be_at_its_end(decay, final_fraction, num_steps):
    schedule = ScheduleConfig(decay=decay, final_fraction=final_fraction)
    assert schedule_factor(schedule, num_steps + 1, num_steps) == pytest.approx(final_fraction)


def test_known_values():
    schedule = ScheduleConfig(warmup_fraction=0.2, decay="cosine", final_fraction=0.1)
    factors = [schedule_factor(schedule, step, 9) for step in range(1, 10)]
    assert factors[:2] == [0.5, 1.0]
    assert factors[5] == pytest.approx(0.1 + 0.9 / 2)
    linear = ScheduleConfig(warmup_fraction=0, decay="linear")
    assert [schedule_factor(linear, step, 4) for step in (1, 2, 3, 4)] == pytest.approx([1.0, 0.75, 0.5, 0.25])


TASKS = (
    TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=("a", "b")),
    TaskSpec(name="asr", kind="ctc", fields=("text",), labels=("<blank>", "<unk>", "a")),
)
STAGE = StageConfig.model_validate(
    {
        "name": "s",
        "train": ["encoder"],
        "weights": {"asr": 1},
        "num_steps": 1,
        "weight_decay": 0.03,
        "learning_rate": {"encoder": 1e-3, "heads": 2e-3, "ari": 5e-2, "layer_decay": 0.5},
    }
)


def rates(stage=STAGE, names=None, model=None):
    if model is None:
        encoder = LogMelEncoderConfig(num_mels=8, width=8, num_layers=3, num_heads=2, feed_forward=8)
        model = build_model(ModelConfig(encoder=encoder), TASKS, "emotion")
    trainable = {name: value for name, value in model.named_parameters() if names is None or name in names}
    optimizer = build_optimizer(model, trainable, stage)
    name_of = {id(value): name for name, value in model.named_parameters()}
    return optimizer, {
        name_of[id(value)]: (group["peak_lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for value in group["params"]
    }


def test_every_part_has_its_rate_and_lower_layers_a_lower_one():
    _, found = rates()
    assert found["encoder.layers.2.up.weight"] == (1e-3, 0.03)
    assert found["encoder.layers.0.up.weight"] == (pytest.approx(1e-3 / 4), 0.03)
    assert found["encoder.final_norm.weight"] == (1e-3, 0.0)
    assert found["encoder.subsampling.convolutions.0.weight"] == (pytest.approx(1e-3 / 8), 0.03)
    assert found["heads.asr.linear.weight"] == (2e-3, 0.03)
    assert found["coattention.projections.asr.weight"] == (2e-3, 0.03)


def test_vectors_and_coefficients_are_not_decayed():
    _, found = rates()
    assert found["ari.integration.task_scalars"] == (5e-2, 0.0)
    for name, (_, decay) in found.items():
        assert decay == 0.0 or name.endswith("weight")
    assert found["encoder.layers.2.up.bias"] == (1e-3, 0.0)
    assert found["encoder.layers.2.attention_norm.weight"] == (1e-3, 0.0)


PRE_NORM = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
FAMILIES = {
    "wav2vec2": Wav2Vec2Config(**SIZES),
    "wav2vec2-large": Wav2Vec2Config(**SIZES, **PRE_NORM),
    "hubert": HubertConfig(**SIZES),
    "hubert-batch-norm": HubertConfig(**SIZES, conv_pos_batch_norm=True),
    "hubert-large": HubertConfig(**SIZES, **PRE_NORM),
    "wavlm": WavLMConfig(**SIZES, **BUCKETS),
    "wavlm-large": WavLMConfig(**SIZES, **BUCKETS, **PRE_NORM),
    "data2vec": Data2VecAudioConfig(**SIZES, conv_pos_kernel_size=3),
}
LINEAR_IN_A_LAYER = ("q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense")
UPPER, LOWER, LOWEST = 1e-3, 1e-3 / 2, 1e-3 / 4


def with_adapters(config):
    """Return a whole model around a random encoder of that form: ARI's gates, adapters, co-attention, every head."""
    model = ModelConfig(
        encoder=LogMelEncoderConfig(),
        ari=AriConfig(form="gated"),
        coattention=CoattentionConfig(width=8, num_heads=2),
        adapters=AdapterConfig(lora_rank=1, bottleneck=3),
        pooling="attentive_statistics",
    )
    encoder = ENCODERS[config.model_type](config, do_normalize=True, freeze_feature_encoder=False)
    affect = TaskSpec(name="affect", kind="regression", fields=("valence",), labels=("valence",))
    tasks = (*TASKS, affect)
    form = MetaSERConfig(
        encoder=encoder.architecture(),
        model=model.model_dump(mode="json"),
        tasks=[task.model_dump(mode="json") for task in tasks],
        main_task="emotion",
    )
    return MetaSERModel(form, encoder)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_parameter_of_every_family_has_its_decay_and_its_place(family):
    model = with_adapters(FAMILIES[family])
    _, found = rates(model=model)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    decayed = {name for name, (_, decay) in found.items() if decay}
    not_decayed = found.keys() - decayed
    # Biases, norms, the lengths of weight norm, WavLM's constants and table of position biases, ARI's coefficients.
    endings = ("bias", "norms.0.weight", "original0", "gru_rel_pos_const", "rel_attn_embed.weight", "scalars")
    endings += ("gate_vectors",)
    assert [name for name in not_decayed if not name.endswith(endings) and "norm" not in name.split(".")[-2]] == []
    assert [name for name in decayed if not name.endswith(("weight", "original1"))] == []
    assert [name for name in decayed if "norm" in name.split(".")[-2] or "original0" in name] == []
    layers = [name for name in decayed if ".encoder.layers." in name and "lora" not in name]
    linear = {name.split("layers.")[1].split(".", 1)[1].removesuffix(".weight").split(".")[1] for name in layers}
    assert linear >= set(LINEAR_IN_A_LAYER)
    for name in ("encoder.feature_projection.projection.weight", "heads.affect.linear.weight", "adapters.0.up.weight"):
        assert name in decayed
    for part in ("lora_A", "lora_B", "coattention.projections", "heads.affect.pooling.score"):
        assert any(part in name for name in decayed), part

    def rates_of(prefix):
        return {rate for name, (rate, _) in found.items() if name.startswith(prefix) and ".lora_" not in name}

    assert rates_of("encoder.encoder.layers.1.") == {UPPER}
    assert rates_of("encoder.encoder.layers.0.") == {LOWER}
    before = ("encoder.feature_extractor.", "encoder.feature_projection.", "encoder.encoder.pos_conv_embed.")
    assert [rates_of(prefix) for prefix in before] == [{LOWEST}] * 3
    assert rates_of("encoder.encoder.layer_norm.") == {UPPER if family.endswith("large") else LOWEST}
    assert rates_of(("adapters.", "coattention.", "heads.")) == {2e-3}
    assert {rate for name, (rate, _) in found.items() if ".lora_" in name} == {2e-3}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_range_with_the_top_layer_has_the_norm_over_it(family):
    model = with_adapters(FAMILIES[family])
    norm = {"encoder.encoder.layer_norm.weight", "encoder.encoder.layer_norm.bias"}
    upper, lower = (set(model.parameters_of(f"encoder.layers.{layers}")) for layers in ("1-1", "0-0"))
    assert norm <= upper if family.endswith("large") else not norm & upper
    assert not norm & lower
    assert {name for name in upper if ".layers.1." not in name} <= norm


def test_every_parameter_of_whisper_has_its_decay_and_its_place():
    model = with_adapters(WhisperConfig(**WHISPER))
    _, found = rates(model=model)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    for name, (rate, decay) in found.items():
        part = name.removeprefix("encoder.")
        if part == name or ".lora_" in name:
            continue
        # Layer by layer downwards; the norm over the top layer is its part, the convolutions lie below all layers.
        upper = part.startswith(("layers.1.", "layer_norm."))
        assert rate == (UPPER if upper else LOWER if part.startswith("layers.0.") else LOWEST), name
        assert (decay == 0) == (name.endswith("bias") or "norm" in name), name
    assert not any("embed_positions" in name for name in found)
    norm = {"encoder.layer_norm.weight", "encoder.layer_norm.bias"}
    assert norm <= set(model.parameters_of("encoder.layers.1-1"))
    assert not norm & set(model.parameters_of("encoder.layers.0-0"))


def test_only_what_is_given_is_in_the_optimizer():
    _, found = rates(names={"heads.asr.linear.weight", "heads.asr.linear.bias"})
    assert found.keys() == {"heads.asr.linear.weight", "heads.asr.linear.bias"}


def test_setting_the_rate_scales_every_groups_peak_each_time_anew():
    optimizer, _ = rates()
    for factor in (0.25, 0.5):
        set_learning_rates(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [
            pytest.approx(group["peak_lr"] * factor) for group in optimizer.param_groups
        ]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert all(group["betas"] == (0.9, 0.98) for group in optimizer.param_groups)


def test_a_blank_model_keeps_frozen_what_is_never_trained() -> None:
    encoder = ENCODERS["wav2vec2"](FAMILIES["wav2vec2"], do_normalize=True, freeze_feature_encoder=True)
    settings = ModelConfig(encoder=LogMelEncoderConfig(), coattention=CoattentionConfig(width=8, num_heads=2))
    form = MetaSERConfig(
        encoder=encoder.architecture(),
        model=settings.model_dump(mode="json"),
        tasks=[task.model_dump(mode="json") for task in TASKS],
        main_task="emotion",
    )
    frozen, again = (
        {name for name, value in model.named_parameters() if not value.requires_grad}
        for model in (MetaSERModel(form, encoder), MetaSERModel(form, encoder).blank())
    )
    assert frozen == again and all(name.startswith("encoder.feature_extractor.") for name in frozen) and frozen
