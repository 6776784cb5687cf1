"""Counting the operations of a training step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def flop_counter() -> FlopCounterMode:
    """Return a context that counts the matrix products and convolutions inside, forward and backward, by formula."""
    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: convolution_backward_flops}
    )


def convolution_backward_flops(
    gradient_shape: Sequence[int],
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    """Return the operations of a convolution's backward pass from its shapes, in the order of aten's arguments.

    The gradients of input and weight cost as much as the forward pass each. torch's own formula (2.14) counts the
    weight's as if there were one group: of wav2vec 2.0's positional convolution 16 times too much, which is a tenth of
    a large encoder's step.
    """
    strided = input_shape if transposed else gradient_shape
    forward = 2 * math.prod(strided) * math.prod(weight_shape[1:])
    return forward * sum(output_mask[:2])
