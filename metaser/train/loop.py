"""One stage from its first or its next step to its last."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from metaser.eval.evaluate import evaluate
from metaser.eval.metrics import add_interval, evaluate_results, selected_value
from metaser.inputs import make_inputs
from metaser.model.encoders.base import Lookup
from metaser.processes import Processes
from metaser.tracking import Recorder
from metaser.train.checkpoint import prune_checkpoints, save_checkpoint
from metaser.train.state import TrainState
from metaser.train.step import StepRunner
from metaser.train.stop import StopNow, StopRequest, reason_flags, strongest_reason
from metaser.train.timing import CpuWait, StepProfiler
from shards.batch import Batch
from shards.index import Index

log = logging.getLogger(__name__)


def stop_if_asked(processes: Processes, request: StopRequest) -> None:
    """Stop all processes here if any of them was asked to; all must call this.

    Raises:
        StopNow: if so.
    """
    flags = torch.tensor(reason_flags(request.look()))
    _stop_for(strongest_reason(processes.all_reduce(flags).tolist()), request)


def _stop_for(reason: str | None, request: StopRequest) -> None:
    if reason is not None:
        # The same in all processes, also where a signal or the file is yet to be seen.
        request.agree(reason)
        raise StopNow


@dataclass
class StageLoop:
    """Steps, evaluates, selects and saves until the stage is done or someone asks to stop."""

    runner: StepRunner
    dev: Index
    state: TrainState
    checkpoints: Path
    recorder: Recorder
    stop_request: StopRequest
    on_selected: Callable[[], None]
    """Called on every process after a checkpoint with a new best dev value is complete."""
    dev_lookups: Mapping[str, Lookup] = field(default_factory=dict)
    """What each view that reads is given of the dev utterances, by the view's name."""
    profiler: StepProfiler | None = None
    cpu_wait: CpuWait = field(default_factory=CpuWait)
    _saved_step: int = field(default=-1, init=False)

    def run(self) -> bool:
        """Return True when the stage is done, False when it stopped on request; both are saved."""
        # What is there already need not be written again.
        self._saved_step = self.state.step
        try:
            self._run()
        except StopNow:
            self._save()
            return False
        finally:
            if self.profiler is not None:
                self._report_profile(self.profiler.finish())
        return True

    def stop_if_asked(self) -> None:
        """Stop all processes here if any of them was asked to; all must call this.

        Raises:
            StopNow: if so.
        """
        stop_if_asked(self.runner.engine.processes, self.stop_request)

    def _run(self) -> None:
        runner, state = self.runner, self.state
        engine = runner.engine
        batches = self._batches(num_workers=runner.config.data.num_workers)
        is_done = state.step == runner.stage.num_steps
        if not is_done:
            self.stop_if_asked()
        if engine.needs_warm_up and engine.processes.info.num_processes > 1 and not is_done:
            runner.warm_up(next(self._batches(num_workers=0)))
            self.stop_if_asked()
        self._evaluate_if_due()
        while state.step < runner.stage.num_steps:
            reason = self._step(batches)
            self._evaluate_if_due()
            if state.step < runner.stage.num_steps:
                _stop_for(reason, self.stop_request)
            if state.step % runner.stage.save_every_steps == 0:
                self._save()
        self._save()

    def _step(self, batches: Iterator[Batch]) -> str | None:
        """Do the next step; return why any process was asked to stop, None if none was."""
        runner, state = self.runner, self.state
        step = state.step + 1
        runner.engine.processes.note(f"in step {step} of stage {state.stage}")
        if self.profiler is not None:
            self.profiler.before_step()
        runner.engine.clock.take()
        with runner.engine.clock.part("data"):
            mine = list(islice(batches, len(runner.micro_batches_of(step))))
        line, reason = runner.run(step, mine, state, stop=self.stop_request.look())
        state.step = step
        self.recorder.write_metrics(line)
        if self.recorder.key_log is not None:
            self.recorder.key_log.write(state.stage, step, runner.keys_of(mine))
        crowded = self.cpu_wait.after_step()
        if crowded is not None:
            log.info("%s", crowded)
        if self.profiler is not None:
            self._report_profile(self.profiler.after_step(line["step_s"], line["time_s"]))
        return reason

    def _report_profile(self, table: str | None) -> None:
        if table is not None:
            said = "where the time of a step goes, stage %d, %s"
            log.info(said, self.state.stage, table, extra={"has_lines": True})

    def _batches(self, *, num_workers: int) -> Iterator[Batch]:
        return self.runner.read(self.runner.all_micro_batches(self.state.step + 1), num_workers=num_workers)

    def _evaluate_if_due(self) -> None:
        stage, state = self.runner.stage, self.state
        due = state.step > 0 and (state.step % stage.eval_every_steps == 0 or state.step == stage.num_steps)
        if not due or state.evaluated_step == state.step:
            return
        dev = self._dev_metrics()
        state.evaluated_step = state.step
        self._saved_step = -1
        self.recorder.write_metrics({"stage": state.stage, "step": state.step, "dev": dev})
        value, higher_is_better = selected_value(dev, stage.select)
        log.info("stage %d step %d: dev %s = %.4f", state.stage, state.step, stage.select, value)
        if state.best_value is None or (value > state.best_value if higher_is_better else value < state.best_value):
            # Weights that no number speaks for are selected only until others have one.
            state.best_value, state.best_step = value if math.isfinite(value) else None, state.step
            self._save()
            self.on_selected()

    def _dev_metrics(self) -> dict[str, Any]:
        runner = self.runner
        tasks, device = runner.stage.weighted_tasks, runner.engine.processes.device
        specs = [spec for spec in runner.specs if spec.name in tasks]
        runner.engine.model.train(mode=False)
        with runner.engine.averaged():
            results = evaluate(
                lambda batch: runner.engine.forward(make_inputs(batch, device, self.dev_lookups), tasks),
                specs,
                self.dev,
                runner.config.data,
                runner.engine.processes,
                at_boundary=self.stop_if_asked,
                hop_samples=runner.engine.model.encoder.hop_samples,
            )
        runner.engine.model.train()
        dev = evaluate_results(specs, results, weights=runner.stage.weights)
        # A speaker task's confusion matrix would make every line longer than all the rest together.
        brief = {
            name: {key: value for key, value in metrics.items() if key not in ("confusion", "labels", "classes")}
            for name, metrics in dev["tasks"].items()
        }
        for spec in specs:
            if spec.name in brief:
                add_interval(brief[spec.name], spec, results)
        return {**dev, "tasks": brief}

    def _save(self) -> None:
        engine, state = self.runner.engine, self.state
        if self._saved_step == state.step:
            return
        # All processes gather, the main one writes.
        model, optimizer = engine.model_state(), engine.optimizer_state()
        average = engine.average_state() if engine.has_average else None

        def write() -> None:
            save_checkpoint(self.checkpoints, model, optimizer, state, average=average)
            prune_checkpoints(self.checkpoints, keep_last=self.runner.config.checkpoints.keep_last)

        engine.processes.on_main(write)
        self._saved_step = state.step
