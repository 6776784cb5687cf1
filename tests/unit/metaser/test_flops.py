"""Operations are counted as often as they are done."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metaser.train.flops import flop_counter

NUM_CHANNELS, LENGTH, KERNEL = 16, 40, 5


@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("is_first", [False, True])
def test_each_gradient_of_a_convolution_costs_as_much_as_the_convolution(groups, is_first) -> None:
    convolution = nn.Conv1d(NUM_CHANNELS, NUM_CHANNELS, KERNEL, padding=KERNEL // 2, groups=groups)
    waves = torch.randn(3, NUM_CHANNELS, LENGTH, requires_grad=not is_first)
    with flop_counter() as counter:
        convolution(waves).sum().backward()
    forward = 2 * 3 * NUM_CHANNELS * LENGTH * (NUM_CHANNELS // groups) * KERNEL
    assert counter.get_total_flops() == forward * (2 if is_first else 3)


def test_a_transposed_convolution_is_counted_likewise() -> None:
    convolution = nn.ConvTranspose1d(NUM_CHANNELS, 2 * NUM_CHANNELS, KERNEL, stride=2, groups=4)
    waves = torch.randn(3, NUM_CHANNELS, LENGTH, requires_grad=True)
    with flop_counter() as counter:
        convolution(waves).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 3 * NUM_CHANNELS * LENGTH * (2 * NUM_CHANNELS // 4) * KERNEL
