"""One stage from its first or its next step to its last."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from metaser.eval.evaluate import evaluate
from metaser.eval.metrics import evaluate_results, selected_value
from metaser.train.checkpoint import prune_checkpoints, save_checkpoint
from metaser.train.state import TrainState
from metaser.train.step import StepRunner
from metaser.train.stop import StopRequest
from shards.batch import Batch
from shards.index import Index
from shards.read import read_slots

log = logging.getLogger(__name__)


@dataclass
class StageLoop:
    """Steps, evaluates, selects and saves until the stage is done or someone asks to stop."""

    runner: StepRunner
    dev: Index
    state: TrainState
    checkpoints: Path
    write_metrics: Callable[[dict[str, Any]], None]
    stop_request: StopRequest
    on_selected: Callable[[], None]
    """Called on every process after a checkpoint with a new best dev value is complete."""
    _saved_step: int = field(default=-1, init=False)

    def run(self) -> bool:
        """Return True when the stage is done, False when it stopped on request; both are saved."""
        runner, state = self.runner, self.state
        processes = runner.engine.processes
        batches = self._batches(num_workers=runner.config.data.num_workers)
        if processes.info.num_processes > 1 and state.step < runner.stage.num_steps:
            runner.warm_up(next(self._batches(num_workers=0)))
        self._evaluate_if_due()
        while state.step < runner.stage.num_steps:
            step = state.step + 1
            slots = runner.slots_of(step)
            line, stop = runner.run(step, list(islice(batches, len(slots))), state, stop=self.stop_request.is_set)
            state.step = step
            self.write_metrics(line)
            self._evaluate_if_due()
            is_last = step == runner.stage.num_steps
            if stop and not is_last:
                self._save()
                return False
            if is_last or step % runner.stage.save_every_steps == 0:
                self._save()
        return True

    def _batches(self, *, num_workers: int) -> Iterator[Batch]:
        data = self.runner.config.data
        return read_slots(
            self.runner.index,
            self.runner.all_slots(self.state.step + 1),
            num_workers=num_workers,
            timeout_s=data.worker_timeout_s,
            remote=data.remote,
            pin_memory=self.runner.engine.processes.device.type == "cuda",
        )

    def _evaluate_if_due(self) -> None:
        stage, state = self.runner.stage, self.state
        due = state.step > 0 and (state.step % stage.eval_every_steps == 0 or state.step == stage.num_steps)
        if not due or state.evaluated_step == state.step:
            return
        dev = self._dev_metrics()
        state.evaluated_step = state.step
        self.write_metrics({"stage": state.stage, "step": state.step, "dev": dev})
        value, higher_is_better = selected_value(dev, stage.select)
        log.info("stage %d step %d: dev %s = %.4f", state.stage, state.step, stage.select, value)
        if state.best_value is None or (value > state.best_value if higher_is_better else value < state.best_value):
            state.best_value, state.best_step = value, state.step
            self._save()
            self.on_selected()

    def _dev_metrics(self) -> dict[str, Any]:
        runner = self.runner
        tasks = runner.stage.weighted_tasks
        specs = [spec for spec in runner.specs if spec.name in tasks]
        runner.engine.model.train(mode=False)
        results = evaluate(
            lambda batch: runner.engine.forward(batch, None, tasks),
            specs,
            self.dev,
            runner.config.data,
            runner.engine.processes,
        )
        runner.engine.model.train()
        dev = evaluate_results(specs, results, weights=runner.stage.weights)
        # A speaker task's confusion matrix would make every line longer than all the rest together.
        brief = {
            name: {key: value for key, value in metrics.items() if key not in ("confusion", "labels", "classes")}
            for name, metrics in dev["tasks"].items()
        }
        return {**dev, "tasks": brief}

    def _save(self) -> None:
        processes, engine = self.runner.engine.processes, self.runner.engine
        if self._saved_step == self.state.step:
            return
        if processes.info.is_main:
            save_checkpoint(self.checkpoints, engine.model_state(), engine.optimizer_state(), self.state)
            prune_checkpoints(self.checkpoints, keep_last=self.runner.config.checkpoints.keep_last)
        self._saved_step = self.state.step
        processes.wait()
