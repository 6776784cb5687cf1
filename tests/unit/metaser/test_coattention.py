from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from metaser.config.schema import CoattentionConfig, CoattentionForm
from metaser.errors import ConfigError
from metaser.model.coattention import Coattention, CrossAttention, CrossPair, build_coattention
from metaser.model.pooling import AttentiveStatistics, build_pooling, masked_mean

WIDTH = 10
LENGTHS = (7, 1, 4)
FORMS = get_args(CoattentionForm)
POOLINGS = ("mean", "attentive_statistics")


def build(form: CoattentionForm, pooling: str = "mean", others: tuple[str, ...] = ("asr", "gender")) -> Coattention:
    torch.manual_seed(0)
    config = CoattentionConfig(form=form, width=8, num_heads=2)
    return build_coattention(config, pooling, WIDTH, "emotion", others).eval()  # type: ignore[arg-type]


@pytest.fixture
def frames() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (len(LENGTHS), max(LENGTHS), WIDTH)
    return {name: torch.randn(shape, generator=generator) for name in ("asr", "gender", "emotion")}


@pytest.fixture(name="mask_BL")
def frame_mask() -> Tensor:
    return torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("form", FORMS)
def test_a_padded_batch_equals_the_single_clips(
    form: CoattentionForm, pooling: str, frames: dict[str, Tensor], mask_BL: Tensor
) -> None:
    coattention = build(form, pooling)
    for values in frames.values():
        values[~mask_BL] = 1e4  # whatever the padding holds must not matter
    batch_BE = coattention(frames, mask_BL).vector_BE
    assert batch_BE.shape == (len(LENGTHS), coattention.output_width)
    for row, length in enumerate(LENGTHS):
        single = {name: values[row : row + 1, :length] for name, values in frames.items()}
        alone_BE = coattention(single, torch.ones(1, length, dtype=torch.bool)).vector_BE
        torch.testing.assert_close(batch_BE[row : row + 1], alone_BE, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_gets_a_finite_gradient_even_from_single_frames(
    form: CoattentionForm, pooling: str, frames: dict[str, Tensor], mask_BL: Tensor
) -> None:
    coattention = build(form, pooling)
    short = {name: values[:, :1].clone().requires_grad_() for name, values in frames.items()}
    coattention(short, mask_BL[:, :1]).vector_BE.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in coattention.parameters())  # type: ignore[union-attr]
    coattention.zero_grad()
    generator = torch.Generator().manual_seed(2)
    tracked = {name: values.clone().requires_grad_() for name, values in frames.items()}
    vector_BE = coattention(tracked, mask_BL).vector_BE
    (vector_BE * torch.randn(vector_BE.shape, generator=generator)).sum().backward()
    for name, parameter in coattention.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("form", [form for form in FORMS if form != "none"])
def test_every_task_matters(form: CoattentionForm, frames: dict[str, Tensor], mask_BL: Tensor) -> None:
    coattention = build(form)
    before = coattention(frames, mask_BL).vector_BE
    for name in frames:
        changed = coattention(frames | {name: frames[name] + 1.0}, mask_BL).vector_BE
        assert (changed - before).abs().amax() > 1e-3, name


def test_none_is_the_pooled_main_task(frames: dict[str, Tensor], mask_BL: Tensor) -> None:
    output = build("none", others=())(frames, mask_BL, return_maps=True)
    torch.testing.assert_close(output.vector_BE, masked_mean(frames["emotion"], mask_BL))
    assert output.maps == {}


def test_frame_weights_is_the_definition(frames: dict[str, Tensor], mask_BL: Tensor) -> None:
    coattention = build("frame_weights")
    vector_BE, maps = coattention(frames, mask_BL, return_maps=True)
    projections = coattention.get_submodule("projections")
    query, key = coattention.get_submodule("query"), coattention.get_submodule("key")
    assert isinstance(projections, nn.ModuleDict)
    for row, length in enumerate(LENGTHS):
        z = projections["emotion"](frames["emotion"][row, :length])
        c = torch.cat([projections[name](frames[name][row, :length]).mean(0) for name in ("asr", "gender")])
        w = torch.softmax(key(z) @ query(c) / math.sqrt(8), dim=0)
        torch.testing.assert_close(vector_BE[row], torch.cat([w @ z, c]))
        torch.testing.assert_close(maps["emotion"][row, :length], w)
        assert maps["emotion"][row, length:].eq(0).all()


def reference(ours: CrossAttention, width: int, num_heads: int) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(width, num_heads, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, torch.zeros(width), ours.value.bias]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    return theirs


def test_cross_attention_is_multi_head_attention_with_residual_and_norm() -> None:
    torch.manual_seed(0)
    ours = CrossAttention(CoattentionConfig(form="cross", width=8, num_heads=2)).eval()
    main_BLW, other_BMW = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    mask_BM = torch.tensor([[True, True, True], [True, False, False]])
    found_BLW, _ = reference(ours, 8, 2)(main_BLW, other_BMW, other_BMW, key_padding_mask=~mask_BM)
    expected_BLW = nn.functional.layer_norm(main_BLW + found_BLW, (8,))
    torch.testing.assert_close(ours(main_BLW, other_BMW, mask_BM), expected_BLW, atol=1e-5, rtol=1e-5)


def test_cross_pools_both_streams_of_every_pair(frames: dict[str, Tensor], mask_BL: Tensor) -> None:
    coattention = build("cross")
    projected = {name: coattention.get_submodule(f"projections.{name}")(frames[name]) for name in frames}
    parts, maps = [], {}
    for name in ("asr", "gender"):
        pair = coattention.get_submodule(f"pairs.{name}")
        assert isinstance(pair, CrossPair)
        for attention, pooling, here, there in (
            (pair.main, pair.main_pooling, "emotion", name),
            (pair.other, pair.other_pooling, name, "emotion"),
        ):
            attended_BLW = attention(projected[here], projected[there], mask_BL)
            parts.append(pooling(attended_BLW, mask_BL))
            query, key = projected[here], projected[there]
            maps[f"{here}->{there}"] = reference(attention, 8, 2)(query, key, key, key_padding_mask=~mask_BL)[1]
    output = coattention(frames, mask_BL, return_maps=True)
    torch.testing.assert_close(output.vector_BE, torch.cat(parts, dim=1))
    assert set(output.maps) == set(maps)
    for name, map_BLM in maps.items():
        torch.testing.assert_close(output.maps[name], map_BLM, atol=1e-5, rtol=1e-5)


def test_cross_maps_come_on_demand_and_ignore_the_padding(frames: dict[str, Tensor], mask_BL: Tensor) -> None:
    coattention = build("cross")
    assert coattention(frames, mask_BL).maps == {}
    for map_BLM in coattention(frames, mask_BL, return_maps=True).maps.values():
        assert not map_BLM.requires_grad
        torch.testing.assert_close(map_BLM.sum(-1), torch.ones(len(LENGTHS), max(LENGTHS)))
        assert map_BLM.masked_select(~mask_BL[:, None, :]).eq(0).all()


def test_attentive_statistics_is_the_weighted_mean_and_deviation(frames: dict[str, Tensor], mask_BL: Tensor) -> None:
    torch.manual_seed(0)
    pooling = AttentiveStatistics(WIDTH)
    vector_BE = pooling(frames["asr"], mask_BL)
    for row, length in enumerate(LENGTHS):
        h = frames["asr"][row, :length]
        w = torch.softmax(pooling.score(torch.tanh(pooling.hidden(h))), dim=0)
        mean = (w * h).sum(0)
        deviation = ((w * h.square()).sum(0) - mean.square()).clamp(min=0).sqrt()
        torch.testing.assert_close(vector_BE[row], torch.cat([mean, deviation]), atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_stays_in_float32_for_half_precision_frames(
    pooling: str, frames: dict[str, Tensor], mask_BL: Tensor
) -> None:
    pool = build_pooling(pooling, WIDTH).bfloat16()  # type: ignore[arg-type]
    assert pool(frames["asr"].bfloat16(), mask_BL).dtype == torch.float32


@pytest.mark.parametrize("form", [form for form in FORMS if form != "none"])
def test_a_lonely_main_task_is_refused(form: CoattentionForm) -> None:
    with pytest.raises(ConfigError, match=f"'{form}' needs a second task beside 'emotion'; add one or set"):
        build(form, others=())


def test_heads_must_divide_the_width() -> None:
    config = CoattentionConfig(form="cross", width=9, num_heads=2)
    with pytest.raises(ConfigError, match="width must be a multiple of num_heads, got 9 and 2; change one"):
        build_coattention(config, "mean", WIDTH, "emotion", ("asr",))
