from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from metaser.config.schema import CoattentionConfig, CoattentionForm
from metaser.errors import ConfigError
from metaser.model.coattention import Coattention, CrossAttention, CrossPair, Plan, build_coattention
from metaser.model.pooling import AttentiveStatistics, build_pooling, masked_mean
from metaser.model.streams import Stream

WIDTHS = {"emotion": 10, "asr": 10, "gender": 10, "words": 6}
"""Three tasks, whose frames are the main encoder's, and a view with frames of its own."""
LENGTHS = {"emotion": (7, 1, 4), "asr": (7, 1, 4), "gender": (7, 1, 4), "words": (2, 5, 1)}
OTHERS = ("asr", "gender", "words")
FORMS = get_args(CoattentionForm)
POOLINGS = ("mean", "attentive_statistics")


def build(form: CoattentionForm, pooling: str = "mean", others: tuple[str, ...] = OTHERS) -> Coattention:
    torch.manual_seed(0)
    config = CoattentionConfig(form=form, width=8, num_heads=2)
    widths = {name: WIDTHS[name] for name in ("emotion", *others)}
    return build_coattention(Plan(config, pooling, widths)).eval()  # type: ignore[arg-type]


def mask_of(lengths: tuple[int, ...]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@pytest.fixture(name="streams", params=[False, True], ids=["", "weighted"])
def make_streams(request: pytest.FixtureRequest) -> dict[str, Stream]:
    generator = torch.Generator().manual_seed(1)
    streams = {}
    for name, lengths in LENGTHS.items():
        frames_BLD = torch.randn((len(lengths), max(lengths), WIDTHS[name]), generator=generator)
        weight_BL = torch.rand(frames_BLD.shape[:2], generator=generator) if request.param else None
        streams[name] = Stream(frames_BLD, mask_of(lengths), weight_BL)
    return streams


def clip(stream: Stream, row: int, length: int) -> Stream:
    """Return one utterance's stream without its padding."""
    return Stream(*(None if part is None else part[row : row + 1, :length] for part in stream))


def projected(coattention: Coattention, name: str, stream: Stream) -> Stream:
    projection = coattention.get_submodule(f"projections.{name}")
    return stream._replace(frames_BLD=projection(stream.frames_BLD))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("form", FORMS)
def test_a_padded_batch_equals_the_single_clips(
    form: CoattentionForm, pooling: str, streams: dict[str, Stream]
) -> None:
    coattention = build(form, pooling)
    for stream in streams.values():
        stream.frames_BLD[~stream.mask_BL] = 1e4  # whatever the padding holds must not matter
    batch_BE = coattention(streams).vector_BE
    assert batch_BE.shape == (3, coattention.output_width)
    for row in range(3):
        single = {name: clip(stream, row, LENGTHS[name][row]) for name, stream in streams.items()}
        alone_BE = coattention(single).vector_BE
        torch.testing.assert_close(batch_BE[row : row + 1], alone_BE, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@given(weight=st.floats(0.05, 1.0))
def test_equal_weights_are_no_weights(form: CoattentionForm, weight: float) -> None:
    coattention = build(form)
    generator = torch.Generator().manual_seed(3)
    plain = {
        name: Stream(torch.randn((3, max(lengths), WIDTHS[name]), generator=generator), mask_of(lengths))
        for name, lengths in LENGTHS.items()
    }
    weighted = {
        name: stream._replace(weight_BL=torch.full(stream.mask_BL.shape, weight)) for name, stream in plain.items()
    }
    torch.testing.assert_close(coattention(plain).vector_BE, coattention(weighted).vector_BE, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_frame_that_counts_nothing_is_hardly_heard(form: CoattentionForm, streams: dict[str, Stream]) -> None:
    coattention = build(form)
    muted = {name: stream._replace(weight_BL=stream.mask_BL.float()) for name, stream in streams.items()}
    for name in ("emotion",) if form == "none" else WIDTHS:
        weight_BL = muted[name].mask_BL.float()
        weight_BL[0, 1] = 0.0
        before = muted | {name: muted[name]._replace(weight_BL=weight_BL)}
        frames_BLD = muted[name].frames_BLD.clone()
        frames_BLD[0, 1] += 1.0
        after = before | {name: before[name]._replace(frames_BLD=frames_BLD)}
        heard = muted | {name: muted[name]._replace(frames_BLD=frames_BLD)}
        change, loud = (
            (coattention(one).vector_BE - coattention(other).vector_BE).abs().max()
            for one, other in ((after, before), (heard, muted))
        )
        assert change < loud / 20, name


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_gets_a_finite_gradient_even_from_single_frames(
    form: CoattentionForm, pooling: str, streams: dict[str, Stream]
) -> None:
    coattention = build(form, pooling)
    for stream in streams.values():
        stream.frames_BLD.requires_grad_()
    coattention({name: clip(stream, 0, 1) for name, stream in streams.items()}).vector_BE.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in coattention.parameters())  # type: ignore[union-attr]
    coattention.zero_grad()
    generator = torch.Generator().manual_seed(2)
    vector_BE = coattention(streams).vector_BE
    (vector_BE * torch.randn(vector_BE.shape, generator=generator)).sum().backward()
    for name, parameter in coattention.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("form", [form for form in FORMS if form != "none"])
def test_every_stream_matters(form: CoattentionForm, streams: dict[str, Stream]) -> None:
    coattention = build(form)
    before = coattention(streams).vector_BE
    for name, stream in streams.items():
        changed = streams | {name: stream._replace(frames_BLD=stream.frames_BLD + 1.0)}
        assert (coattention(changed).vector_BE - before).abs().amax() > 1e-3, name


def test_a_stream_that_is_not_joined_does_not_matter(streams: dict[str, Stream]) -> None:
    coattention = build("cross", others=("asr", "words"))
    changed = streams | {"gender": streams["gender"]._replace(frames_BLD=streams["gender"].frames_BLD + 1.0)}
    assert torch.equal(coattention(streams).vector_BE, coattention(changed).vector_BE)


def test_none_is_the_pooled_main_task(streams: dict[str, Stream]) -> None:
    output = build("none", others=())(streams, return_maps=True)
    torch.testing.assert_close(output.vector_BE, masked_mean(streams["emotion"]))
    assert output.maps == {}


def test_frame_weights_is_the_definition(streams: dict[str, Stream]) -> None:
    coattention = build("frame_weights")
    streams = {name: stream._replace(weight_BL=None) for name, stream in streams.items()}
    vector_BE, maps = coattention(streams, return_maps=True)
    query, key = coattention.get_submodule("query"), coattention.get_submodule("key")
    for row, length in enumerate(LENGTHS["emotion"]):
        inside = {
            name: projected(coattention, name, clip(stream, row, LENGTHS[name][row])).frames_BLD[0]
            for name, stream in streams.items()
        }
        z = inside["emotion"]
        c = torch.cat([inside[name].mean(0) for name in OTHERS])
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
    torch.testing.assert_close(ours(main_BLW, Stream(other_BMW, mask_BM)), expected_BLW, atol=1e-5, rtol=1e-5)


def test_cross_pools_both_streams_of_every_pair(streams: dict[str, Stream]) -> None:
    coattention = build("cross")
    streams = {name: stream._replace(weight_BL=None) for name, stream in streams.items()}
    inside = {name: projected(coattention, name, stream) for name, stream in streams.items()}
    parts, maps = [], {}
    for name in OTHERS:
        pair = coattention.get_submodule(f"pairs.{name}")
        assert isinstance(pair, CrossPair)
        for attention, pooling, here, there in (
            (pair.main, pair.main_pooling, "emotion", name),
            (pair.other, pair.other_pooling, name, "emotion"),
        ):
            attended_BLW = attention(inside[here].frames_BLD, inside[there])
            parts.append(pooling(inside[here]._replace(frames_BLD=attended_BLW)))
            query, key = inside[here].frames_BLD, inside[there].frames_BLD
            padding_BM = ~inside[there].mask_BL
            maps[f"{here}->{there}"] = reference(attention, 8, 2)(query, key, key, key_padding_mask=padding_BM)[1]
    output = coattention(streams, return_maps=True)
    torch.testing.assert_close(output.vector_BE, torch.cat(parts, dim=1))
    assert set(output.maps) == set(maps)
    for name, map_BLM in maps.items():
        torch.testing.assert_close(output.maps[name], map_BLM, atol=1e-5, rtol=1e-5)


def test_cross_maps_come_on_demand_and_ignore_the_padding(streams: dict[str, Stream]) -> None:
    coattention = build("cross")
    assert coattention(streams).maps == {}
    for name, map_BLM in coattention(streams, return_maps=True).maps.items():
        assert not map_BLM.requires_grad
        torch.testing.assert_close(map_BLM.sum(-1), torch.ones(map_BLM.shape[:2]))
        assert map_BLM.masked_select(~streams[name.split("->")[1]].mask_BL[:, None, :]).eq(0).all()


def test_attentive_statistics_is_the_weighted_mean_and_deviation(streams: dict[str, Stream]) -> None:
    torch.manual_seed(0)
    pooling = AttentiveStatistics(WIDTHS["asr"])
    stream = streams["asr"]._replace(weight_BL=None)
    vector_BE = pooling(stream)
    for row, length in enumerate(LENGTHS["asr"]):
        h = stream.frames_BLD[row, :length]
        w = torch.softmax(pooling.score(torch.tanh(pooling.hidden(h))), dim=0)
        mean = (w * h).sum(0)
        deviation = ((w * h.square()).sum(0) - mean.square()).clamp(min=0).sqrt()
        torch.testing.assert_close(vector_BE[row], torch.cat([mean, deviation]), atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_stays_in_float32_for_half_precision_frames(pooling: str, streams: dict[str, Stream]) -> None:
    pool = build_pooling(pooling, WIDTHS["asr"]).bfloat16()  # type: ignore[arg-type]
    stream = streams["asr"]
    assert pool(stream._replace(frames_BLD=stream.frames_BLD.bfloat16())).dtype == torch.float32


@pytest.mark.parametrize("form", [form for form in FORMS if form != "none"])
def test_a_lonely_main_task_is_refused(form: CoattentionForm) -> None:
    with pytest.raises(ConfigError, match=f"'{form}' needs a second task or view beside 'emotion'; add one or set"):
        build(form, others=())


def test_heads_must_divide_the_width() -> None:
    config = CoattentionConfig(form="cross", width=9, num_heads=2)
    with pytest.raises(ConfigError, match="width must be a multiple of num_heads, got 9 and 2; change one"):
        build_coattention(Plan(config, "mean", {"emotion": 10, "asr": 10}))
