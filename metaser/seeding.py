"""Randomness that depends on the position only, so that no generator state needs storing."""

from __future__ import annotations

import random

import numpy as np
import torch

from shards.plan import stable_seed


def seed_generators(*position: object) -> None:
    """Seed Python's, numpy's and torch's (all devices) generators from `position`: (seed, stage, step, micro-batch)."""
    seed = stable_seed(*position)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
