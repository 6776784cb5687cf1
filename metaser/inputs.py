"""From a batch of clips to what the model sees of it, the same for training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from metaser.model.encoders.base import Inputs, Lookup
from shards.batch import Batch

Augment = Callable[[Batch, torch.device], Inputs]
"""Changes a batch that lies on the CPU on its way to the device."""


def make_inputs(
    batch: Batch, device: torch.device, lookups: Mapping[str, Lookup], *, augment: Augment | None = None
) -> Inputs:
    """Return what a model on `device` sees of `batch`, which lies on the CPU.

    Args:
        batch: The clips.
        device: Where the model computes.
        lookups: Where to find what each view is given, by the view's name.
        augment: What training does to the clips; None leaves them as they are.
    """
    items = batch.items_B.numpy()
    given = {view: lookup(items).to(device) for view, lookup in lookups.items()}
    heard = Inputs(batch.wave_BT, batch.num_samples_B).to(device) if augment is None else augment(batch, device)
    return heard.with_given(given)
