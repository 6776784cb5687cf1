"""Losses with missing labels.

A task's loss is a sum over utterances divided by the global number of present labels of the whole step, so the result
depends neither on how a step is cut into slots nor on how many processes share them.

Legend: B utterances, L frames, C classes, F regression fields, U target characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from metaser.targets import TaskTarget
from metaser.tasks import CTC_BLANK, TaskSpec


def utterance_losses(
    spec: TaskSpec, logits: Tensor, num_frames_B: Int[Tensor, "B"], target: TaskTarget
) -> Float[Tensor, "B"]:
    """Return each utterance's loss in float32 (class-weighted, not normalised); 0 where the label is missing.

    CTC is divided by the target's length; a target that is longer than its frames gives 0 (`zero_infinity`).
    Regression sums the squared errors of the present fields.
    """
    logits = logits.float()
    if spec.kind == "ctc":
        return _ctc(logits, num_frames_B, target)
    if spec.kind == "classification":
        weights = None if spec.class_weights is None else logits.new_tensor(spec.class_weights)
        return functional.cross_entropy(
            logits,
            target.values,
            weight=weights,
            ignore_index=-1,
            label_smoothing=spec.label_smoothing,
            reduction="none",
        )
    present_BF = ~torch.isnan(target.values)
    errors_BF = torch.where(present_BF, logits - torch.nan_to_num(target.values), torch.zeros_like(logits))
    return errors_BF.square().sum(dim=1)


def _ctc(logits_BLC: Tensor, num_frames_B: Tensor, target: TaskTarget) -> Tensor:
    log_probs_LBC = logits_BLC.log_softmax(dim=-1).transpose(0, 1)
    losses_B = functional.ctc_loss(
        log_probs_LBC,
        target.values,
        num_frames_B,
        target.lengths_B,
        blank=CTC_BLANK,
        reduction="none",
        zero_infinity=True,
    )
    present_B = target.lengths_B > 0
    return torch.where(present_B, losses_B / target.lengths_B.clamp(min=1), torch.zeros_like(losses_B))


def num_ctc_too_long(num_frames_B: Tensor, target: TaskTarget) -> Int[Tensor, ""]:
    """Return how many transcripts need more frames than their clip has (a repeated character needs a blank)."""
    tokens_BU = target.values
    repeats_B = ((tokens_BU[:, 1:] == tokens_BU[:, :-1]) & (tokens_BU[:, 1:] != CTC_BLANK)).sum(dim=1)
    return (target.lengths_B + repeats_B > num_frames_B).sum()


def slot_loss(
    specs: Sequence[TaskSpec],
    weights: Mapping[str, float],
    logits: Mapping[str, Tensor],
    num_frames_B: Int[Tensor, "B"],
    targets: Mapping[str, TaskTarget],
    valid_B: Bool[Tensor, "B"],
    denominators: Mapping[str, float],
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Return this slot's share of the step's loss, and of each weighted task's unweighted mean loss.

    Summed over all slots of all processes they are the step's values. Clips with `valid_B` false count zero.
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
