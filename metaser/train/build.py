"""A stage with its engine, by the strategy of its processes, and its step runner."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metaser.config.schema import ExperimentConfig, StageConfig
from metaser.given import FramesOf, lookups
from metaser.model.metaser import MetaSERModel
from metaser.processes import Processes
from metaser.stagedata import StageData, heard_samples, is_cut
from metaser.targets import Targets
from metaser.tasks.spec import TaskSpec
from metaser.train.augment import Augmenter, build_augmenters
from metaser.train.checks import CheckedData
from metaser.train.engine import Engine
from metaser.train.optim import build_optimizer
from metaser.train.stage import freeze_all_but, select_parameters
from metaser.train.step import StepRunner
from shards.plan import Schedule, stable_seed
from shards.sampling import sampling_weights


@dataclass(frozen=True)
class Stage:
    """One stage of an experiment with all that does not depend on how far it is."""

    number: int
    """1-based."""
    config: StageConfig
    specs: tuple[TaskSpec, ...]
    data: StageData
    augmenter: Augmenter
    is_last: bool


def build_stages(config: ExperimentConfig, data: CheckedData) -> list[Stage]:
    """Return the experiment's stages over its checked data.

    Raises:
        TrainingError: if a folder of augmentation cannot be used.
        AudioError: if a file in one cannot be decoded.
    """
    parts = enumerate(zip(config.stages, data.stages, build_augmenters(config), strict=True), start=1)
    return [
        Stage(number, stage, data.specs, part, augmenter, is_last=number == len(config.stages))
        for number, (stage, part, augmenter) in parts
    ]


def prepare_stage(model: MetaSERModel, stage: StageConfig) -> dict[str, torch.nn.Parameter]:
    """Let gradients reach exactly what the stage names; return that."""
    trainable = select_parameters(model, stage)
    freeze_all_but(model, trainable)
    return trainable


def build_stage_engine(processes: Processes, model: MetaSERModel, stage: StageConfig) -> Engine:
    """Return the stage's engine, which trains exactly what the stage names; `model` as in `build_engine`."""
    trainable = prepare_stage(model, stage)
    model.train()
    return build_engine(
        processes,
        model,
        build_optimizer(model, trainable, stage),
        max_grad_norm=stage.max_grad_norm,
        ema_decay=stage.ema_decay,
    )


def build_step_runner(
    config: ExperimentConfig, stage: Stage, engine: Engine, *, frames_of: FramesOf | None = None
) -> StepRunner:
    """Return what runs the stage's steps through its engine; see `lookups`."""
    data, training = config.data, stage.data.training
    return StepRunner(
        config=config,
        stage=stage.config,
        stage_number=stage.number,
        specs=stage.specs,
        index=training,
        targets=Targets(stage.specs, training, is_cut=is_cut(training, data)),
        schedule=Schedule(
            heard_samples(training, data),
            batch_utterances=data.batch_utterances,
            pool_utterances=data.pool_utterances,
            seed=stable_seed(config.seed, stage.number),
            weights=sampling_weights(training, stage.config.sampling),
        ),
        engine=engine,
        augmenter=stage.augmenter,
        lookups=lookups(engine.model, training, frames_of),
    )


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
