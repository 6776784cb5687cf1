"""Checkpoints as models: what a stage selected starts the next stage, or is exported as the run's best model."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from metaser.config.schema import ExperimentConfig
from metaser.errors import RunError
from metaser.eval.card import model_card
from metaser.export import export_model, hear_as_trained
from metaser.model.metaser import MetaSERModel
from metaser.rundir import RunDir, step_folder
from metaser.train.checkpoint import newest_checkpoint, read_checkpoint
from metaser.train.state import TrainState
from shards.index import Index
from shards.shown import shown

log = logging.getLogger(__name__)


def load_weights(model: MetaSERModel, tensors: dict[str, Tensor], path: Path) -> None:
    """Give the model a checkpoint's weights.

    Raises:
        RunError: if they are those of another model.
    """
    places = model.state_dict()
    unfit = sorted(
        name
        for name in places.keys() | tensors.keys()
        if name not in places or name not in tensors or places[name].shape != tensors[name].shape
    )
    if unfit:
        raise RunError(
            f"{path} must hold exactly the weights of its experiment's model, but {len(unfit)} differ (first: "
            f"{shown(unfit[0], 80)}); put back what was there"
        )
    model.load_state_dict(tensors)


def next_stage_model(run: RunDir, like: MetaSERModel, stage: int, device: torch.device) -> MetaSERModel:
    """Return a fresh model of the form of `like` with the weights that the 1-based `stage` selected.

    Raises:
        RunError: if the stage selected none, or they are those of another model.
    """
    folder = run.checkpoints(stage)
    last = newest_checkpoint(folder)
    if last is None or last.state.best_step == 0:
        raise RunError(f"stage {stage} left no selected checkpoint in {folder}; it must be trained first")
    selected = read_checkpoint(step_folder(folder, last.state.best_step))
    log.info("stage %d hands on its step %d", stage, last.state.best_step)
    model = like.blank()
    load_weights(model, selected.selected_tensors(), selected.path)
    model.to(device)  # type: ignore[arg-type]
    return model


class BestExport:
    """Writes the checkpoint that a stage selected to `best/`; the main process uses one for the last stage."""

    def __init__(self, run: RunDir, config: ExperimentConfig) -> None:
        """Export into `run`."""
        self._run = run
        self._config = config
        self._model: MetaSERModel | None = None
        """On the CPU, filled anew with each export: the weights in training may be spread over processes."""

    def write(self, like: MetaSERModel, state: TrainState, training: Index) -> None:
        """Export the selected checkpoint of `state`'s stage, of a model of the form of `like` trained on `training`.

        Raises:
            RunError: if the checkpoint is damaged or the disk refuses.
        """
        selected = read_checkpoint(step_folder(self._run.checkpoints(state.stage), state.best_step))
        if self._model is None:
            self._model = like.blank()
        load_weights(self._model, selected.selected_tensors(), selected.path)
        hear_as_trained(self._model, training.num_samples, self._config.data)
        card = model_card(self._run, self._config, self._model.task_specs)
        export_model(self._model, self._run.best, card=card)
