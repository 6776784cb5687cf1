"""AdamW with a learning rate per parameter group, as a function of the step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from metaser.config.schema import ScheduleConfig, StageConfig
from metaser.model.metaser import MetaSERModel


def schedule_factor(schedule: ScheduleConfig, step: int, num_steps: int) -> float:
    """Return the share of the peak learning rate at the 1-based `step` of `num_steps`.

    The first step before the rise, and the first after the last step, would have the rates 0 and `final_fraction`.
    """
    peak_step = max(1, round(schedule.warmup_fraction * num_steps))
    if step <= peak_step:
        return step / peak_step
    if schedule.decay == "constant":
        return 1.0
    progress = (step - peak_step) / (num_steps + 1 - peak_step)
    remaining = 1 - progress if schedule.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return schedule.final_fraction + (1 - schedule.final_fraction) * remaining


def build_optimizer(model: MetaSERModel, trainable: dict[str, Parameter], stage: StageConfig) -> torch.optim.AdamW:
    """Return AdamW over `trainable` (by parameter name).

    Each group carries its peak rate as `peak_lr`, and as `kind` the key of `stages.N.learning_rate` that the rate comes
    from: encoder, views, ari or heads. Only the weights of linear maps and convolutions are decayed.
    """
    matrices = {id(parameter) for parameter in _matrices(model)}
    scalars = {id(parameter) for parameter in model.ari.scalar_parameters().values()}
    rates = stage.learning_rate
    grouped: dict[tuple[str, float, bool], list[Parameter]] = defaultdict(list)
    for name, parameter in trainable.items():
        if id(parameter) in scalars:
            kind, rate = "ari", rates.ari
        elif model.group_of(name) == "encoder":
            layer = model.layer_of(name)
            depth = model.encoder.num_layers - (0 if layer is None else layer + 1)
            kind, rate = "encoder", rates.encoder * rates.layer_decay**depth
        elif model.group_of(name).startswith("views."):
            kind, rate = "views", rates.views
        else:
            kind, rate = "heads", rates.heads
        grouped[kind, rate, id(parameter) in matrices].append(parameter)
    groups = [
        {
            "params": parameters,
            "lr": rate,
            "peak_lr": rate,
            "kind": kind,
            "weight_decay": stage.weight_decay if decays else 0.0,
        }
        for (kind, rate, decays), parameters in grouped.items()
    ]
    # Fused: one pass, and no temporaries as large as a whole group, which with ZeRO is one tensor.
    return torch.optim.AdamW(groups, betas=stage.betas, eps=1e-8, fused=True)


def _matrices(model: MetaSERModel) -> Iterator[Parameter]:
    """Yield the weights of linear maps and convolutions.

    Their shape does not tell them apart: the lengths that weight norm gives a kernel's points, and WavLM's constant per
    head, have several dimensions too.
    """
    for module in model.modules():
        held: Any = module
        if isinstance(module, ParametrizationList):
            # Weight norm: original1 is the direction, original0 the length.
            yield held.original1
        elif isinstance(module, nn.Linear | nn.Conv1d) and not is_parametrized(module, "weight"):
            yield held.weight


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the present rate by kind; of the encoder's, which may decay from layer to layer, the highest."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        rates[group["kind"]] = max(group["lr"], rates.get(group["kind"], 0.0))
    return rates
