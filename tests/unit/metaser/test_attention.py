from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from metaser.model.attention import AttentionMask, SelfAttention, attend, position_buckets, relative_position_bias

torch.set_num_threads(1)


def wavlm_attention(has_bias: bool = True) -> WavLMAttention:
    torch.manual_seed(0)
    attention = WavLMAttention(32, 4, num_buckets=32, max_distance=60, has_relative_position_bias=has_bias).eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(0, 0.5)
    return attention


@pytest.mark.parametrize("num_frames", [1, 2, 7, 150])
def test_position_bias_equals_wavlms(num_frames: int) -> None:
    attention = wavlm_attention()
    expected = attention.compute_bias(num_frames, num_frames)
    assert torch.equal(relative_position_bias(attention, num_frames), expected)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(320, 800), (32, 128), (33, 40), (8, 16), (4, 2), (7, 5)])
def test_distances_have_the_buckets_that_checkpoints_were_trained_with(num_buckets: int, max_distance: int) -> None:
    attention = WavLMAttention(32, 4, num_buckets=num_buckets, max_distance=max_distance)
    distances_P = torch.arange(-3000, 3001)
    expected = attention._relative_positions_bucket(distances_P)
    buckets_P = position_buckets(distances_P, num_buckets, max_distance)
    assert torch.equal(buckets_P, expected)
    assert buckets_P.min() >= 0 and buckets_P.max() < num_buckets


def test_attention_equals_wavlms_with_padding() -> None:
    attention = wavlm_attention()
    frames_BLD = torch.randn(2, 90, 32)
    real_BL = torch.arange(90) < torch.tensor([[90], [40]])
    expected, _, _ = attention(frames_BLD, attention_mask=real_BL.long())
    mask = AttentionMask(real_BL[:, None, None, :], relative_position_bias(attention, 90))
    attended = attend(attention, frames_BLD, mask)
    torch.testing.assert_close(attended[real_BL], expected[real_BL], atol=1e-5, rtol=1e-5)


def test_every_tensor_of_wavlms_attention_gets_a_gradient() -> None:
    attention = wavlm_attention()
    mask = AttentionMask(torch.ones(1, 1, 1, 9, dtype=torch.bool), relative_position_bias(attention, 9))
    attend(attention, torch.randn(1, 9, 32), mask).square().sum().backward()
    without = [name for name, parameter in attention.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert without == ["k_proj.bias"] or without == []  # a key bias only shifts all scores of a query


def test_self_attention_equals_torchs_and_hides_padding() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(16, 4, dropout=0.0)
    reference = nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        reference.in_proj_weight.copy_(torch.cat([linear.weight for linear in projections]))
        reference.in_proj_bias.copy_(torch.cat([linear.bias for linear in projections]))
        reference.out_proj.load_state_dict(attention.out_proj.state_dict())
    frames_BLD = torch.randn(2, 6, 16)
    real_BL = torch.arange(6) < torch.tensor([[6], [3]])
    expected, _ = reference(frames_BLD, frames_BLD, frames_BLD, key_padding_mask=~real_BL)
    attended = attention(frames_BLD, AttentionMask(real_BL[:, None, None, :]))
    torch.testing.assert_close(attended, expected, atol=1e-5, rtol=1e-5)


def test_attention_drops_only_in_training() -> None:
    attention = SelfAttention(16, 4, dropout=0.5)
    frames_BLD, mask = torch.randn(1, 20, 16), AttentionMask(torch.ones(1, 1, 1, 20, dtype=torch.bool))
    assert not torch.equal(attention(frames_BLD, mask), attention(frames_BLD, mask))
    attention.eval()
    assert torch.equal(attention(frames_BLD, mask), attention(frames_BLD, mask))
