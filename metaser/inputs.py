"""From a batch of clips to what the model sees of it, the same for training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from metaser.model.encoders.base import Inputs, Tokens
from shards.batch import Batch

Augment = Callable[[Batch, torch.device], Inputs]
"""Changes a batch that lies on the CPU on its way to the device."""


TextLookup = Callable[[np.ndarray], Tokens]
"""Returns the tokens of a split's utterances at some positions."""


def make_inputs(
    batch: Batch, device: torch.device, texts: Mapping[str, TextLookup], *, augment: Augment | None = None
) -> Inputs:
    """Return what a model on `device` sees of `batch`, which lies on the CPU.

    Args:
        batch: The clips.
        device: Where the model computes.
        texts: What each view that reads is given, by the view's name.
        augment: What training does to the clips; None leaves them as they are.
    """
    items = batch.items_B.numpy()
    tokens = {view: lookup(items).to(device) for view, lookup in texts.items()}
    heard = Inputs(batch.wave_BT, batch.num_samples_B).to(device) if augment is None else augment(batch, device)
    return heard._replace(tokens=tokens)
