"""Losses with missing labels.

A task's loss is a sum over utterances divided by the global number of present labels of the whole step, so the result
depends neither on how a step is cut into micro-batches nor on how many processes share them.

Legend: B utterances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from metaser.tasks.kind import TaskTarget
from metaser.tasks.kinds import kind_of
from metaser.tasks.spec import TaskSpec


def utterance_losses(
    spec: TaskSpec, logits: Tensor, num_frames_B: Int[Tensor, "B"], target: TaskTarget
) -> Float[Tensor, "B"]:
    """Return each utterance's loss in float32, not normalised; 0 where the label is missing."""
    return kind_of(spec).losses(spec, logits.float(), num_frames_B, target)


def micro_batch_loss(
    specs: Sequence[TaskSpec],
    weights: Mapping[str, float],
    logits: Mapping[str, Tensor],
    num_frames_B: Int[Tensor, "B"],
    targets: Mapping[str, TaskTarget],
    valid_B: Bool[Tensor, "B"],
    denominators: Mapping[str, float],
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Return this micro-batch's share of the step's loss, and of each weighted task's unweighted mean loss.

    Summed over all micro-batches of all processes they are the step's values. Clips with `valid_B` false count zero.
    """
    total = torch.zeros((), device=num_frames_B.device)
    shares: dict[str, Tensor] = {}
    for spec in specs:
        weight = weights.get(spec.name, 0.0)
        if spec.name not in logits or weight == 0:
            continue
        losses_B = utterance_losses(spec, logits[spec.name], num_frames_B, targets[spec.name])
        share = torch.where(valid_B, losses_B, torch.zeros_like(losses_B)).sum() / denominators[spec.name]
        total = total + weight * share
        shares[spec.name] = share.detach()
    return total, shares
