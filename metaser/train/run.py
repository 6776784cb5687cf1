"""All stages of an experiment in order, from wherever the run's folder says it stands."""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter
from torch import Tensor
from transformers import PreTrainedConfig

from metaser.config.load import dump_experiment, load_experiment
from metaser.config.schema import ExperimentConfig, StageConfig
from metaser.continuing import refuse_changes
from metaser.distributed import DistInfo
from metaser.errors import RunError
from metaser.eval.card import model_card
from metaser.eval.protocol import evaluate_run_split
from metaser.eval.start import check_start, describe_start, read_start
from metaser.export import export_model, hear_as_trained
from metaser.model.metaser import MetaSERModel, build_model
from metaser.processes import Processes
from metaser.provenance import git_state, installed_packages
from metaser.record import write_record
from metaser.rundir import RunDir, RunLock, read_json, reading, refuse_output_dir, write_whole, writing
from metaser.seeding import seed_generators
from metaser.stagedata import StageData, heard_samples, is_cut
from metaser.sums import sealed_json, sealed_yaml
from metaser.targets import Targets
from metaser.tasks.spec import TaskSpec
from metaser.tracking import KeyLog, Tracker, cut_back_keys
from metaser.train.augment import Augmenter, build_augmenters
from metaser.train.build import build_engine
from metaser.train.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint, step_folder, step_folders
from metaser.train.checks import check_data
from metaser.train.initial import InitialWeights, load_initial_weights
from metaser.train.loop import StageLoop
from metaser.train.optim import build_optimizer
from metaser.train.stage import freeze_all_but, select_parameters
from metaser.train.state import TrainState
from metaser.train.step import StepRunner
from metaser.train.stop import StopNow, StopRequest
from metaser.train.timing import CpuWait, StepProfiler
from shards.index import Index, load_index
from shards.plan import Schedule, stable_seed
from shards.sampling import sampling_weights
from shards.shown import ShownRecords, shown
from shards.splits import SplitAssignment, assign_splits, describe_splits

log = logging.getLogger(__name__)

Resume = Literal["auto", "never"]
OnMetrics = Callable[[dict[str, Any]], None]


def train(
    config: ExperimentConfig,
    info: DistInfo,
    *,
    resume: Resume = "auto",
    on_metrics: OnMetrics = lambda line: None,
    profile: bool = False,
    stop_request: StopRequest | None = None,
) -> bool:
    """Train all stages and evaluate on test; return False when stopped on request (saved, to be continued).

    The main process calls `on_metrics` with every line of `metrics.jsonl` as it is written. With `profile` it traces a
    few steps of every stage into `profile/`. A `stop_request` that the caller has entered already is used instead of an
    own one.

    Raises:
        InputError: if configuration, data or run folder do not allow it.
    """
    run = RunDir(Path(config.output_dir))
    with StopRequest(run.stop_file) if stop_request is None else nullcontext(stop_request) as stop_request:
        processes = Processes(config.parallel, info)
        lock: RunLock | None = None
        try:
            lock = _open_run(run, config, processes, resume)
            with _logging_to(run, is_main=info.is_main), processes.watching():
                log.info("%d process(es) on %s, %s", info.num_processes, processes.device, processes.strategy)
                done = _Training(config, run, processes, stop_request, on_metrics, profile).run()
                if not done:
                    log.info("stopped by %s and saved; start again to continue", stop_request.reason)
                return done
        finally:
            processes.close()
            if lock is not None:
                lock.release()


def _open_run(run: RunDir, config: ExperimentConfig, processes: Processes, resume: Resume) -> RunLock | None:
    """Take the folder in the main process; what it refuses, every process refuses.

    The others do not look themselves: they would find what the main process has just written.
    """
    return processes.on_main(lambda: _take_run(run, config, processes.info, resume))


def _take_run(run: RunDir, config: ExperimentConfig, info: DistInfo, resume: Resume) -> RunLock:
    refuse_output_dir(run)
    with reading(run.root):
        is_run = run.is_run()
    if is_run:
        if resume == "never":
            raise RunError(f"--resume never needs an empty run folder, but {str(run.root)!r} already holds a run")
        refuse_changes(load_experiment(run.config), config, run)
    return RunLock(run)


def _record_start(
    run: RunDir, config: ExperimentConfig, info: DistInfo, initial_weights: InitialWeights | None
) -> None:
    """Write the experiment and the environment into the run: from here on it is a run, tied to this experiment."""
    with writing(run.config):
        write_whole(run.config, sealed_yaml(dump_experiment(config)))
    with writing(run.environment):
        _append_environment(run, info, initial_weights)


@dataclass
class _Training:
    config: ExperimentConfig
    run_dir: RunDir
    processes: Processes
    stop_request: StopRequest
    on_metrics: OnMetrics
    profile: bool
    _shelf: MetaSERModel | None = field(default=None, init=False)
    """A model on the CPU of the main process that lends its form to what is exported."""

    def run(self) -> bool:
        config = self.config
        index = load_index(config.data.shard_folders, config.data.remote)
        splits = assign_splits(
            index,
            config.data.splits,
            allow_speaker_overlap=config.data.allow_speaker_overlap,
            allow_recording_overlap=config.data.allow_recording_overlap,
        )
        _warn_of_duplicates(index, splits)
        data = check_data(config, index, splits, num_processes=self.processes.info.num_processes)
        augmenters = build_augmenters(config)
        model = self._fresh_model(data.specs)
        resumed = self._newest()
        initial_weights = start = None
        if config.init_from is not None and resumed is None:
            initial_weights = load_initial_weights(model, config.init_from)
            log.info("%s", initial_weights)
            start = read_start(config.init_from)
            check_start(start, config, index, splits)
        model.to(self.processes.device)  # type: ignore[arg-type]
        for stage in config.stages:
            select_parameters(model, stage)
        self._log_size(model, index)
        if self.processes.info.is_main:
            for note in data.notes:
                log.warning(note)
        # Only now: a mistake found above must not tie the folder to the experiment that has it.
        self.processes.on_main(lambda: _record_start(self.run_dir, config, self.processes.info, initial_weights))
        taken = None if start is None else (start.record, start.made)
        self.processes.on_main(lambda: write_record(self.run_dir, config, data.specs, index, splits, taken))
        log.info("%s", describe_splits(splits.protocol))
        if start is not None:
            log.info("%s", describe_start(start.record))

        first = resumed.state.stage if resumed is not None else 1
        step = resumed.state.step if resumed is not None else 0
        tracker = self.processes.on_main(lambda: Tracker(self.run_dir, stage=first, step=step))
        self.processes.on_main(lambda: cut_back_keys(self.run_dir, stage=first, step=step))
        key_log = KeyLog(self.run_dir, self.processes.info.rank) if config.log_keys else None
        cpu_wait = CpuWait()
        try:
            for number in range(first, len(config.stages) + 1):
                stage = config.stages[number - 1]
                if number > first:
                    resumed = None
                    model = self._handed_on(model.config, number - 1)
                elif resumed is None and number > 1:
                    raise RunError(f"run {str(self.run_dir.root)!r} has no checkpoint of stage {number}")
                loop = self._stage_loop(
                    number, stage, model, data.specs, data.stages[number - 1], augmenters[number - 1], resumed, tracker
                )
                loop.key_log = key_log
                loop.cpu_wait = cpu_wait
                done = loop.run()
                loop.runner.engine.close()
                if not done:
                    return False
        finally:
            if tracker is not None:
                tracker.close()
            if key_log is not None:
                key_log.close()
        try:
            evaluate_run_split(self.run_dir, config, index, splits, self.processes, at_boundary=loop.stop_if_asked)
        except StopNow:
            return False
        return True

    def _fresh_model(self, specs: tuple[TaskSpec, ...]) -> MetaSERModel:
        seed_generators(self.config.seed, "init")
        return build_model(self.config.model, specs, self.config.main_task)

    def _newest(self) -> Checkpoint | None:
        for number in range(len(self.config.stages), 0, -1):
            found = newest_checkpoint(self.run_dir.checkpoints(number))
            if found is not None:
                self._refuse_other_stage(found, number)
                log.info("continuing stage %d after step %d (%s)", number, found.state.step, found.path)
                return found
        numbers = range(1, len(self.config.stages) + 1)
        damaged = [path for number in numbers for path in step_folders(self.run_dir.checkpoints(number))]
        if damaged:
            raise RunError(
                f"run {str(self.run_dir.root)!r} has {len(damaged)} checkpoints, but none is complete (newest: "
                f"{str(damaged[-1])!r}); put one back, or delete them to start from the beginning"
            )
        return None

    def _refuse_other_stage(self, found: Checkpoint, number: int) -> None:
        num_steps = self.config.stages[number - 1].num_steps
        if found.state.stage != number or found.state.step > num_steps:
            raise RunError(
                f"{found.path} must be a checkpoint of stage {number} with its {num_steps} steps, but is one of step "
                f"{found.state.step} of stage {found.state.stage}; put back what was there"
            )

    def _handed_on(self, form: PreTrainedConfig, stage_number: int) -> MetaSERModel:
        """Return a fresh model with the weights that `stage_number` selected: a stage gets its own engine."""
        folder = self.run_dir.checkpoints(stage_number)
        last = newest_checkpoint(folder)
        if last is None or last.state.best_step == 0:
            raise RunError(f"stage {stage_number} left no selected checkpoint in {folder}; it must be trained first")
        selected = read_checkpoint(step_folder(folder, last.state.best_step))
        log.info("stage %d hands on its step %d", stage_number, last.state.best_step)
        model = MetaSERModel(form)  # type: ignore[arg-type]
        _fill(model, selected.selected_tensors(), selected.path)
        model.to(self.processes.device)  # type: ignore[arg-type]
        return model

    def _stage_loop(
        self,
        number: int,
        stage: StageConfig,
        model: MetaSERModel,
        specs: tuple[TaskSpec, ...],
        data: StageData,
        augmenter: Augmenter,
        resumed: Checkpoint | None,
        tracker: Tracker | None,
    ) -> StageLoop:
        config = self.config
        if resumed is not None:
            _fill(model, resumed.model_tensors(), resumed.path)
        trainable = select_parameters(model, stage)
        freeze_all_but(model, trainable)
        model.train()
        engine = build_engine(
            self.processes,
            model,
            build_optimizer(model, trainable, stage),
            max_grad_norm=stage.max_grad_norm,
            ema_decay=stage.ema_decay,
        )
        if resumed is not None:
            engine.load_optimizer_state(resumed.optimizer_tensors())
            engine.load_average_state(resumed.average_tensors(), num_updates=resumed.state.num_updates)
        training: Index = data.training
        runner = StepRunner(
            config=config,
            stage=stage,
            stage_number=number,
            specs=specs,
            index=training,
            targets=Targets(specs, training, is_cut=is_cut(training, config.data)),
            schedule=Schedule(
                heard_samples(training, config.data),
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

        def export() -> None:
            self.processes.on_main(lambda: self._export(model.config, state, training))

        if is_last and state.best_step:
            # Anew: the process may have died between saving the best checkpoint and exporting it.
            export()
        profiler = None
        if self.profile and self.processes.info.is_main:
            profiler = StepProfiler(self.run_dir.profile, f"stage{number}", self.processes.device)
        return StageLoop(
            runner=runner,
            dev=data.dev,
            state=state,
            checkpoints=self.run_dir.checkpoints(number),
            write_metrics=lambda line: self._write_metrics(line, tracker),
            stop_request=self.stop_request,
            on_selected=export if is_last else lambda: None,
            profiler=profiler,
        )

    def _write_metrics(self, line: dict[str, Any], tracker: Tracker | None) -> None:
        if tracker is not None:
            tracker.log(line)
            self.on_metrics(line)

    def _export(self, form: PreTrainedConfig, state: TrainState, training: Index) -> None:
        """Export the selected checkpoint: whatever holds the weights in training, its files hold them whole."""
        selected = read_checkpoint(step_folder(self.run_dir.checkpoints(state.stage), state.best_step))
        if self._shelf is None:
            self._shelf = MetaSERModel(form)  # type: ignore[arg-type]
        _fill(self._shelf, selected.selected_tensors(), selected.path)
        hear_as_trained(self._shelf, training.num_samples, self.config.data)
        card = model_card(self.run_dir, self.config, self._shelf.task_specs)
        export_model(self._shelf, self.run_dir.best, card=card)

    def _log_size(self, model: MetaSERModel, index: Index) -> None:
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        hours = float(index.duration_s.sum()) / 3600
        log.info("%d utterances, %.2f h; model of %.1f M parameters", len(index), hours, num_parameters / 1e6)


def _fill(model: MetaSERModel, tensors: dict[str, Tensor], path: Path) -> None:
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


def _warn_of_duplicates(index: Index, splits: SplitAssignment) -> None:
    groups = splits.recordings_across
    if groups:
        keys = " = ".join(index.take(groups[0]).values("key"))
        log.warning("%d recordings stand in more than one split, under different names: %s", len(groups), keys)


@dataclass(frozen=True)
class _Environment:
    """What `environment.json` holds; earlier versions wrote the list alone."""

    starts: list[dict[str, Any]]


_validate_environment = TypeAdapter(_Environment | list[dict[str, Any]]).validate_json


def _append_environment(run: RunDir, info: DistInfo, initial_weights: InitialWeights | None) -> None:
    found = read_json(run.environment, _validate_environment) or []
    starts = found if isinstance(found, list) else found.starts
    starts.append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": [shown(argument) for argument in sys.argv],
            "host": platform.node(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "num_processes": info.num_processes,
            "num_threads": torch.get_num_threads(),
            "cuda_devices": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
            "init_from": None if initial_weights is None else initial_weights.to_dict(),
            "git": git_state(),
            "packages": installed_packages(),
        }
    )
    write_whole(run.environment, sealed_json({"starts": starts}))


class _RunLog(logging.FileHandler):
    """Ends the training, as any other file would, when the disk refuses; logging itself would print a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        with writing(Path(self.baseFilename)):
            raise error


@contextmanager
def _logging_to(run: RunDir, *, is_main: bool) -> Iterator[None]:
    """Send the package's messages to the run's log while training; other processes only warn."""
    if not is_main:
        yield
        return
    with writing(run.log):
        handler = _RunLog(run.log, encoding="utf-8")
    handler.addFilter(ShownRecords())
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
