import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metaser.config.schema import LogMelEncoderConfig, ModelConfig, ScheduleConfig, StageConfig
from metaser.model.metaser import build_model
from metaser.tasks import TaskSpec
from metaser.train.optim import build_optimizer, schedule_factor, set_learning_rates

fractions = st.floats(0, 1)
schedules = st.builds(
    ScheduleConfig,
    warmup_fraction=fractions,
    decay=st.sampled_from(["linear", "cosine", "constant"]),
    final_fraction=fractions,
)


@given(schedules, st.integers(1, 400))
def test_the_rate_rises_to_its_peak_falls_to_its_end_and_never_leaves_the_range(schedule, num_steps):
    factors = [schedule_factor(schedule, step, num_steps) for step in range(1, num_steps + 1)]
    num_warmup = round(schedule.warmup_fraction * num_steps)
    assert all(0 <= factor <= 1 for factor in factors)
    rising, falling = factors[:num_warmup], factors[num_warmup:]
    assert rising == pytest.approx([(step + 1) / num_warmup for step in range(num_warmup)])
    assert falling == sorted(falling, reverse=True)
    if falling:
        end = 1.0 if schedule.decay == "constant" else schedule.final_fraction
        assert falling[-1] == pytest.approx(end)
    assert max(factors) == (1.0 if num_warmup or schedule.decay == "constant" else pytest.approx(factors[0]))


def test_known_values():
    schedule = ScheduleConfig(warmup_fraction=0.2, decay="cosine", final_fraction=0.1)
    factors = [schedule_factor(schedule, step, 10) for step in range(1, 11)]
    assert factors[:2] == [0.5, 1.0]
    assert factors[5] == pytest.approx(0.1 + 0.9 / 2)
    linear = ScheduleConfig(warmup_fraction=0, decay="linear")
    assert [schedule_factor(linear, step, 4) for step in (1, 2, 3, 4)] == pytest.approx([0.75, 0.5, 0.25, 0.0])


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


def rates(stage=STAGE, names=None):
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
