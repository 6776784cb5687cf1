"""SpecAugment masks (Park et al., arXiv 1904.08779) drawn from (seed, epoch, key).

A clip's masks depend neither on its neighbours, nor on the number of processes, nor on an interruption.

Legend: B utterances, L frames, F maskable features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from metaser.config.schema import SpecAugmentConfig
from metaser.model.encoders.base import FrameMasks
from shards.plan import stable_seed


def draw_masks(
    config: SpecAugmentConfig,
    keys: Sequence[str],
    num_frames: Sequence[int],
    num_features: int,
    *,
    seed: int,
    epoch: int,
) -> FrameMasks | None:
    """Return the masks of one micro-batch (True: hidden), or None if none are asked for.

    A time mask never hides more than a quarter of its clip, so that a short clip keeps something to recognise.
    """
    if not config.num_time_masks and not config.num_feature_masks:
        return None
    time_BL = np.zeros((len(keys), max(num_frames)), dtype=bool)
    feature_BF = np.zeros((len(keys), num_features), dtype=bool)
    for row, (key, length) in enumerate(zip(keys, num_frames, strict=True)):
        generator = np.random.Generator(np.random.PCG64(stable_seed("masks", seed, epoch, key)))
        widest = min(config.max_time_mask_frames, length // 4)
        _hide_spans(time_BL[row, :length], config.num_time_masks, widest, generator)
        _hide_spans(feature_BF[row], config.num_feature_masks, config.max_feature_mask, generator)
    return _to_tensors(time_BL, feature_BF)


def _hide_spans(row: np.ndarray, num_spans: int, widest: int, generator: np.random.Generator) -> None:
    for _ in range(num_spans):
        width = int(generator.integers(0, min(widest, len(row)) + 1))
        start = int(generator.integers(0, len(row) - width + 1))
        row[start : start + width] = True


def _to_tensors(time_BL: np.ndarray, feature_BF: np.ndarray) -> FrameMasks:
    hidden_BL: Bool[Tensor, "B L"] = torch.from_numpy(time_BL)
    hidden_BF: Bool[Tensor, "B F"] = torch.from_numpy(feature_BF)
    return FrameMasks(hidden_BL, hidden_BF)
