"""All stages of an experiment in order, from wherever the run's folder says it stands."""

from __future__ import annotations

import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal

import torch

from metaser.config.load import dump_experiment, load_experiment
from metaser.config.schema import ExperimentConfig, StageConfig
from metaser.distributed import DistInfo
from metaser.errors import RunError
from metaser.eval.protocol import evaluate_run_split
from metaser.export import export_model, model_card
from metaser.model.metaser import MetaSERModel, build_model
from metaser.provenance import git_state
from metaser.rundir import RunDir, RunLock
from metaser.seeding import seed_generators
from metaser.targets import Targets, resolve_tasks
from metaser.tasks import TaskSpec
from metaser.tracking import Tracker
from metaser.train.augment import Augmenter, build_augmenters, check_stretched
from metaser.train.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint, step_folder
from metaser.train.engine import Engine, Processes
from metaser.train.loop import StageLoop
from metaser.train.optim import build_optimizer
from metaser.train.stage import freeze_all_but, select_parameters, stage_data, training_rows
from metaser.train.state import TrainState
from metaser.train.step import StepRunner
from metaser.train.stop import StopRequest
from shards.errors import InputError
from shards.index import Index, load_index
from shards.plan import Schedule, check_sizes, stable_seed
from shards.sampling import sampling_weights
from shards.schema import RATE_HZ
from shards.splits import SplitAssignment, assign_splits

log = logging.getLogger(__name__)

Resume = Literal["auto", "never"]
OnMetrics = Callable[[dict[str, Any]], None]


def train(
    config: ExperimentConfig,
    info: DistInfo,
    *,
    resume: Resume = "auto",
    on_metrics: OnMetrics = lambda line: None,
    stop_request: StopRequest | None = None,
) -> bool:
    """Train all stages and evaluate on test; return False when stopped on request (saved, to be continued).

    The main process calls `on_metrics` with every line of `metrics.jsonl` as it is written. A `stop_request` that the
    caller has entered already is used instead of an own one.

    Raises:
        InputError: if configuration, data or run folder do not allow it.
    """
    run = RunDir(Path(config.output_dir))
    with StopRequest(run.stop_file) if stop_request is None else nullcontext(stop_request) as stop_request:
        processes = Processes(config.parallel, info)
        lock: RunLock | None = None
        try:
            lock = _open_run(run, config, processes, resume)
            with _logging_to(run, is_main=info.is_main):
                log.info("%d process(es) on %s", info.num_processes, processes.device)
                return _Training(config, run, processes, stop_request, on_metrics).run()
        finally:
            processes.close()
            if lock is not None:
                lock.release()


def _open_run(run: RunDir, config: ExperimentConfig, processes: Processes, resume: Resume) -> RunLock | None:
    """Take the folder in the main process; what it refuses, every process refuses.

    The others do not look themselves: they would find what the main process has just written.
    """
    lock: RunLock | None = None
    refusal: str | None = None
    if processes.info.is_main:
        try:
            lock = _take_run(run, config, processes.info, resume)
        except InputError as error:
            refusal = str(error)
    refusal = processes.from_main(refusal)
    if refusal is not None:
        raise RunError(refusal)
    return lock


def _take_run(run: RunDir, config: ExperimentConfig, info: DistInfo, resume: Resume) -> RunLock:
    if run.root.exists() and not run.root.is_dir():
        raise RunError(f"output_dir must be a folder, but {str(run.root)!r} is a file")
    if run.is_run():
        if resume == "never":
            raise RunError(f"--resume never needs an empty run folder, but {str(run.root)!r} already holds a run")
        refuse_changes(load_experiment(run.config), config, run)
    return RunLock(run)


def _record_start(run: RunDir, config: ExperimentConfig, info: DistInfo) -> None:
    """Write the experiment and the environment into the run: from here on it is a run, tied to this experiment."""
    temporary = run.config.with_suffix(".tmp")
    temporary.write_text(dump_experiment(config))
    temporary.replace(run.config)
    _append_environment(run, info)


def refuse_changes(before: ExperimentConfig, now: ExperimentConfig, run: RunDir) -> None:
    """Refuse to continue a run with another experiment: only `output_dir`, `parallel` and more steps may change.

    A stage that a later one has built on keeps its number of steps.

    Raises:
        RunError: naming every changed value.
    """
    old, new = (config.model_dump(mode="json", exclude={"output_dir", "parallel"}) for config in (before, now))
    for number, (old_stage, new_stage) in enumerate(zip(old["stages"], new["stages"], strict=False), start=1):
        is_built_on = run.checkpoints(number + 1).is_dir()
        if new_stage["num_steps"] >= old_stage["num_steps"] and not is_built_on:
            old_stage["num_steps"] = new_stage["num_steps"]
    changes = list(_differences(old, new, ""))
    if changes:
        raise RunError(
            f"run {str(run.root)!r} can only be continued with the experiment it was started with, but these changed: "
            f"{'; '.join(changes)}; choose another output_dir"
        )


def _differences(old: Any, new: Any, path: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [change for name in names for change in _differences(old.get(name), new.get(name), f"{path}.{name}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [change for number, (a, b) in pairs for change in _differences(a, b, f"{path}.{number}")]
    return [] if old == new else [f"{path.lstrip('.')} from {old!r} to {new!r}"]


@dataclass
class _Training:
    config: ExperimentConfig
    run_dir: RunDir
    processes: Processes
    stop_request: StopRequest
    on_metrics: OnMetrics

    def run(self) -> bool:
        config = self.config
        index = load_index(config.data.shard_folders, config.data.remote)
        splits = assign_splits(index, config.data.splits, allow_speaker_overlap=config.data.allow_speaker_overlap)
        specs = resolve_tasks(config.tasks, index.take(training_rows(config, index, splits)))
        # Everything a user may have got wrong is found before the first step of the first stage.
        data = [stage_data(stage, specs, index, splits) for stage in config.stages]
        for part in data:
            for split in (part.training, part.dev):
                check_sizes(
                    split.num_samples,
                    num_processes=self.processes.info.num_processes,
                    max_slot_s=config.data.max_slot_s,
                    rate_hz=RATE_HZ,
                )
        for stage, part in zip(config.stages, data, strict=True):
            check_stretched(stage.augment, part.training.num_samples, config.data.max_slot_s)
        augmenters = build_augmenters(config)
        model = self._fresh_model(specs)
        model.to(self.processes.device)  # type: ignore[arg-type]
        for stage in config.stages:
            select_parameters(model, stage)
        self._log_size(model, index)
        # Only now: a mistake found above must not tie the folder to the experiment that has it.
        if self.processes.info.is_main:
            _record_start(self.run_dir, config, self.processes.info)

        resumed = self._newest()
        first = resumed.state.stage if resumed is not None else 1
        step = resumed.state.step if resumed is not None else 0
        tracker = Tracker(self.run_dir, stage=first, step=step) if self.processes.info.is_main else None
        try:
            for number in range(first, len(config.stages) + 1):
                stage = config.stages[number - 1]
                if number > first:
                    resumed = None
                    model = self._handed_on(model, number - 1)
                elif resumed is None and number > 1:
                    raise RunError(f"run {str(self.run_dir.root)!r} has no checkpoint of stage {number}")
                done = self._run_stage(
                    number, stage, model, specs, data[number - 1], augmenters[number - 1], splits, resumed, tracker
                )
                if not done:
                    log.info(
                        "stopped by %s and saved; start again to continue", self.stop_request.signal_name or "a signal"
                    )
                    return False
        finally:
            if tracker is not None:
                tracker.close()
        evaluate_run_split(self.run_dir, config, index, splits, self.processes)
        return True

    def _fresh_model(self, specs: tuple[TaskSpec, ...]) -> MetaSERModel:
        seed_generators(self.config.seed, "init")
        return build_model(self.config.model, specs, self.config.main_task)

    def _newest(self) -> Checkpoint | None:
        for number in range(len(self.config.stages), 0, -1):
            found = newest_checkpoint(self.run_dir.checkpoints(number))
            if found is not None:
                log.info("continuing stage %d after step %d (%s)", number, found.state.step, found.path)
                return found
        return None

    def _handed_on(self, model: MetaSERModel, stage_number: int) -> MetaSERModel:
        """Return the model with the weights that `stage_number` selected."""
        folder = self.run_dir.checkpoints(stage_number)
        last = newest_checkpoint(folder)
        if last is None or last.state.best_step == 0:
            raise RunError(f"stage {stage_number} left no selected checkpoint in {folder}; it must be trained first")
        selected = read_checkpoint(step_folder(folder, last.state.best_step))
        log.info("stage %d hands on its step %d", stage_number, last.state.best_step)
        model.load_state_dict(selected.model_tensors())
        return model

    def _run_stage(
        self,
        number: int,
        stage: StageConfig,
        model: MetaSERModel,
        specs: tuple[TaskSpec, ...],
        data: Any,
        augmenter: Augmenter,
        splits: SplitAssignment,
        resumed: Checkpoint | None,
        tracker: Tracker | None,
    ) -> bool:
        config = self.config
        if resumed is not None:
            model.load_state_dict(resumed.model_tensors())
        trainable = select_parameters(model, stage)
        freeze_all_but(model, trainable)
        model.train()
        engine = Engine(
            self.processes,
            model,
            build_optimizer(model, trainable, stage),
            precision=config.parallel.precision,
            max_grad_norm=stage.max_grad_norm,
        )
        if resumed is not None:
            engine.load_optimizer_state(resumed.optimizer_tensors())
        training: Index = data.training
        runner = StepRunner(
            config=config,
            stage=stage,
            stage_number=number,
            specs=specs,
            index=training,
            targets=Targets(specs, training),
            schedule=Schedule(
                training.num_samples,
                batch_utterances=config.data.batch_utterances,
                pool_utterances=config.data.pool_utterances,
                seed=stable_seed(config.seed, number),
                weights=sampling_weights(training, stage.sampling),
            ),
            engine=engine,
            augmenter=augmenter,
        )
        log.info(
            "stage %d (%s): %d steps over %d utterances (%.2f h), dev %d, %d trainable parameters",
            number,
            stage.name,
            stage.num_steps,
            len(training),
            float(training.duration_s.sum()) / 3600,
            len(data.dev),
            sum(parameter.numel() for parameter in trainable.values()),
        )
        state = resumed.state if resumed is not None else TrainState(stage=number)
        is_last = number == len(config.stages)
        loop = StageLoop(
            runner=runner,
            dev=data.dev,
            state=state,
            checkpoints=self.run_dir.checkpoints(number),
            write_metrics=lambda line: self._write_metrics(line, tracker),
            stop_request=self.stop_request,
            on_selected=(lambda: self._export(model, stage, splits, state)) if is_last else lambda: None,
        )
        if is_last and state.best_step:
            self._restore_best(model, stage, splits, state)
        return loop.run()

    def _write_metrics(self, line: dict[str, Any], tracker: Tracker | None) -> None:
        if tracker is not None:
            tracker.log(line)
            self.on_metrics(line)

    def _export(self, model: MetaSERModel, stage: StageConfig, splits: SplitAssignment, state: TrainState) -> None:
        if self.processes.info.is_main:
            dev = f"Selected at step {state.best_step} by dev {stage.select} = {state.best_value:.4f}."
            export_model(model, self.run_dir.best, card=model_card(model, trained_on=splits.protocol, dev=dev))
        self.processes.wait()

    def _restore_best(
        self, model: MetaSERModel, stage: StageConfig, splits: SplitAssignment, state: TrainState
    ) -> None:
        """Export anew: the process may have died between saving the best checkpoint and exporting it."""
        current = {name: value.clone() for name, value in model.state_dict().items()}
        folder = self.run_dir.checkpoints(state.stage)
        model.load_state_dict(read_checkpoint(step_folder(folder, state.best_step)).model_tensors())
        self._export(model, stage, splits, state)
        model.load_state_dict(current)

    def _log_size(self, model: MetaSERModel, index: Index) -> None:
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        hours = float(index.duration_s.sum()) / 3600
        log.info("%d utterances, %.2f h; model of %.1f M parameters", len(index), hours, num_parameters / 1e6)


def _append_environment(run: RunDir, info: DistInfo) -> None:
    starts = json.loads(run.environment.read_text()) if run.environment.exists() else []
    starts.append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": sys.argv,
            "host": platform.node(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "num_processes": info.num_processes,
            "num_threads": torch.get_num_threads(),
            "cuda_devices": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
            "git": git_state(),
            "packages": dict(sorted((package.name, package.version) for package in distributions())),
        }
    )
    temporary = run.environment.with_suffix(".tmp")
    temporary.write_text(json.dumps(starts, indent=1))
    temporary.replace(run.environment)


@contextmanager
def _logging_to(run: RunDir, *, is_main: bool) -> Iterator[None]:
    """Send the package's messages to the run's log while training; other processes only warn."""
    if not is_main:
        yield
        return
    handler = logging.FileHandler(run.log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    packages = [logging.getLogger(name) for name in ("metaser", "shards")]
    levels = [package.level for package in packages]
    # Whoever calls us as a library may have set no level, which would leave the log empty.
    for package in packages:
        package.setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
        for package, level in zip(packages, levels, strict=True):
            package.setLevel(level)
