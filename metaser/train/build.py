"""The engine of a stage, by the strategy of its processes."""

from __future__ import annotations

import torch

from metaser.model.metaser import MetaSERModel
from metaser.processes import Processes
from metaser.train.engine import Engine


def build_engine(
    processes: Processes,
    model: MetaSERModel,
    optimizer: torch.optim.Optimizer,
    *,
    max_grad_norm: float,
    ema_decay: float | None = None,
) -> Engine:
    """Return the engine that the processes' strategy asks for; `model` lies on the device, with its weights loaded."""
    parallel = processes.parallel
    for encoder in model.encoders.values():
        encoder.gradient_checkpointing = parallel.activation_checkpointing
    if parallel.compile_layers:
        # Every recompilation with its reason, on stderr: one for training, evaluation and a single utterance is normal.
        torch._logging.set_logs(recompiles=True)  # type: ignore[attr-defined]
        for encoder in model.encoders.values():
            encoder.compile_layers()
    kind = Engine
    if processes.strategy.startswith("zero"):
        from metaser.train.zero import ZeroEngine

        kind = ZeroEngine
    return kind(
        processes, model, optimizer, precision=parallel.precision, max_grad_norm=max_grad_norm, ema_decay=ema_decay
    )
