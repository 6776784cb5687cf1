"""All stages of an experiment in order, from wherever the run's folder says it stands."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metaser.config.load import dump_experiment, load_experiment
from metaser.config.schema import ExperimentConfig
from metaser.continuing import refuse_changes
from metaser.distributed import DistInfo
from metaser.environment import append_start
from metaser.errors import RunError, TrainingError
from metaser.eval.protocol import evaluate_run_split
from metaser.eval.start import Start, check_start, describe_start, read_start
from metaser.framecache import fill, frozen_depth, open_cache
from metaser.given import FramesOf, fit_views, lookups
from metaser.memory import refusing_lack_of_memory, training_advice
from metaser.model.metaser import MetaSERModel, build_model
from metaser.processes import Processes
from metaser.record import write_record
from metaser.rundir import RunDir, refuse_output_dir
from metaser.runfiles import reading, write_whole, writing
from metaser.runlock import RunLock
from metaser.runlog import logging_to
from metaser.seeding import seed_generators
from metaser.stagedata import load_split_index, training_rows
from metaser.sums import sealed_yaml
from metaser.tracking import KeyLog, OnMetrics, Recorder, Tracker, cut_back_keys
from metaser.train.build import Stage, build_stage_engine, build_stages, build_step_runner, prepare_stage
from metaser.train.checkpoint import Checkpoint, newest_checkpoint, step_folders
from metaser.train.checks import check_data, check_heard
from metaser.train.initial import InitialWeights, load_initial_weights
from metaser.train.loop import StageLoop, stop_if_asked
from metaser.train.selected import BestExport, load_weights, next_stage_model
from metaser.train.stage import select_parameters
from metaser.train.state import TrainState
from metaser.train.stop import StopNow, StopRequest
from metaser.train.timing import CpuWait, StepProfiler
from shards.index import Index
from shards.splits import SplitAssignment, describe_splits

log = logging.getLogger(__name__)

Resume = Literal["auto", "never"]


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
    few steps of every stage into `profile/`. A caller that listens to signals already gives its entered `stop_request`;
    without one, this function enters its own.

    Raises:
        InputError: if configuration, data or run folder do not allow it.
    """
    run = RunDir(Path(config.output_dir))
    entered = StopRequest(run.stop_file) if stop_request is None else nullcontext(stop_request)
    with entered as stop_request, _only_new_garbage():
        processes = Processes(config.parallel, info)
        lock: RunLock | None = None
        try:
            lock = _open_run(run, config, processes, resume)
            with logging_to(run, is_main=info.is_main), processes.monitored():
                log.info("%d process(es) on %s, %s", info.num_processes, processes.device, processes.strategy)
                with refusing_lack_of_memory(lambda: TrainingError(_no_memory(config))):
                    done = _Training(config, run, processes, stop_request, on_metrics, profile).run()
                if not done:
                    log.info("stopped by %s and saved; start again to continue", stop_request.reason)
                return done
        finally:
            processes.close()
            if lock is not None:
                lock.release()


def _no_memory(config: ExperimentConfig) -> str:
    """Return what is said of a lack of memory outside of any micro-batch, whose sentence is `StepRunner`'s."""
    return (
        "model, optimizer and what is read and evaluated must fit the memory, but need more than there is; "
        f"{training_advice(config)}"
    )


@contextmanager
def _only_new_garbage() -> Iterator[None]:
    """Let Python's garbage collector pass over what exists already: modules and classes, which stay to the end.

    Looking through them takes 0.3 s, in the midst of a step or, because accelerate asks for it, after every stage.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _open_run(run: RunDir, config: ExperimentConfig, processes: Processes, resume: Resume) -> RunLock | None:
    """Take the folder in the main process; what it refuses, every process refuses.

    The others do not look themselves: they would find what the main process has just written.
    """
    return processes.on_main(lambda: _lock_run(run, config, resume))


def _lock_run(run: RunDir, config: ExperimentConfig, resume: Resume) -> RunLock:
    refuse_output_dir(run)
    with reading(run.root):
        is_run = run.is_run()
    if is_run:
        if resume == "never":
            raise RunError(f"--resume never needs an empty run folder, but {str(run.root)!r} already holds a run")
        refuse_changes(load_experiment(run.config), config, run)
    return RunLock(run)


@dataclass(frozen=True)
class _Origin:
    """What a run with `init_from` begins with."""

    weights: InitialWeights
    start: Start


@dataclass(frozen=True)
class _Training:
    """One start of a run in one process."""

    config: ExperimentConfig
    run_dir: RunDir
    processes: Processes
    stop_request: StopRequest
    on_metrics: OnMetrics
    profile: bool

    def run(self) -> bool:
        """Train what is left of all stages and evaluate; return False when stopped on request."""
        config = self.config
        index, splits = load_split_index(config.data)
        _warn_of_duplicates(index, splits)
        data = check_data(config, index, splits, num_processes=self.processes.info.num_processes)
        stages = build_stages(config, data)
        seed_generators(config.seed, "init")
        model = build_model(config.model, data.specs, config.main_task)
        check_heard(config, data, model.longest_samples)
        resumed = self._newest_checkpoint()
        if resumed is None:
            fit_views(model, index.take(training_rows(config, index, splits)))
        origin = self._load_origin(model, index, splits) if resumed is None else None
        model.to(self.processes.device)  # type: ignore[arg-type]
        for stage in config.stages:
            select_parameters(model, stage)
        _log_size(model, index)
        if self.processes.info.is_main:
            for note in data.notes:
                log.warning(note)
        # Only now: a mistake found above must not tie the folder to the experiment that has it.
        self._record_start(origin)
        taken = None if origin is None else (origin.start.record, origin.start.made)
        self.processes.on_main(lambda: write_record(self.run_dir, config, data.specs, index, splits, taken))
        log.info("%s", describe_splits(splits.protocol))
        if origin is not None:
            log.info("%s", describe_start(origin.start.record))
        last_loop = self._train_stages(stages, model, resumed)
        if last_loop is None:
            return False
        try:
            evaluate_run_split(self.run_dir, config, index, splits, self.processes, at_boundary=last_loop.stop_if_asked)
        except StopNow:
            return False
        return True

    def _newest_checkpoint(self) -> Checkpoint | None:
        """Return where the run goes on, None if it begins."""
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

    def _load_origin(self, model: MetaSERModel, index: Index, splits: SplitAssignment) -> _Origin | None:
        """Give the fresh model the weights that the experiment starts from; None if it starts from none."""
        if self.config.init_from is None:
            return None
        weights = load_initial_weights(model, self.config.init_from)
        log.info("%s", weights)
        start = read_start(self.config.init_from)
        check_start(start, self.config, index, splits)
        return _Origin(weights, start)

    def _record_start(self, origin: _Origin | None) -> None:
        """Write the experiment and the environment into the run: from here on it is a run, tied to this experiment."""
        run, config, info = self.run_dir, self.config, self.processes.info

        def write() -> None:
            with writing(run.config):
                write_whole(run.config, sealed_yaml(dump_experiment(config)))
            with writing(run.environment):
                append_start(run, info, None if origin is None else origin.weights.to_dict())

        self.processes.on_main(write)

    def _train_stages(self, stages: list[Stage], model: MetaSERModel, resumed: Checkpoint | None) -> StageLoop | None:
        """Train from `resumed` or from the beginning; return the last stage's loop, None when stopped on request."""
        first = resumed.state.stage if resumed is not None else 1
        recorder = self._open_recorder(first, step=resumed.state.step if resumed is not None else 0)
        cpu_wait = CpuWait()
        try:
            for stage in stages[first - 1 :]:
                if stage.number > first:
                    resumed = None
                    model = next_stage_model(self.run_dir, model, stage.number - 1, self.processes.device)
                elif resumed is None and stage.number > 1:
                    raise RunError(f"run {str(self.run_dir.root)!r} has no checkpoint of stage {stage.number}")
                if resumed is not None:
                    load_weights(model, resumed.model_tensors(), resumed.path)
                try:
                    frames_of = self._kept_frames(stage, model)
                except StopNow:
                    return None
                loop = self._stage_loop(stage, model, resumed, recorder, cpu_wait, frames_of)
                done = loop.run()
                loop.runner.engine.close()
                if not done:
                    return None
        finally:
            recorder.close()
        return loop

    def _open_recorder(self, stage: int, *, step: int) -> Recorder:
        """Cut the numbers back to the 1-based `stage` and its `step`, and go on behind them."""
        tracker = self.processes.on_main(lambda: Tracker(self.run_dir, stage=stage, step=step))
        self.processes.on_main(lambda: cut_back_keys(self.run_dir, stage=stage, step=step))
        key_log = KeyLog(self.run_dir, self.processes.info.rank) if self.config.log_keys else None
        return Recorder(tracker, key_log, self.on_metrics)

    def _is_stopped(self) -> bool:
        return self.stop_request.look() is not None

    def _kept_frames(self, stage: Stage, model: MetaSERModel) -> FramesOf | None:
        """Keep what the stage cannot change of the encoder's frames, before the strategy spreads the weights.

        Return what finds it, None if the stage computes all itself.

        Raises:
            StopNow: if any process was asked to stop; what is kept so far stays.
        """
        if self.config.frame_cache is None:
            return None
        prepare_stage(model, stage.config)
        depth = frozen_depth(self.config, stage.config, model, stage.data)
        if isinstance(depth, str):
            log.info("stage %d keeps no frames: %s", stage.number, depth)
            return None
        cache = open_cache(Path(self.config.frame_cache), model.encoder, depth, self.config.parallel.precision)
        model.train(mode=False)
        for part in (stage.data.training, stage.data.dev):
            problem = fill(cache, model.encoder, part, self.config, self.processes, self._is_stopped)
            stop_if_asked(self.processes, self.stop_request)
            if problem is not None:
                log.info("stage %d keeps no frames: %s", stage.number, problem)
                return None
        return cache.lookup

    def _stage_loop(
        self,
        stage: Stage,
        model: MetaSERModel,
        resumed: Checkpoint | None,
        recorder: Recorder,
        cpu_wait: CpuWait,
        frames_of: FramesOf | None,
    ) -> StageLoop:
        """Return the stage's loop at its first step, or behind that of `resumed`, whose weights `model` has.

        `model` lies on the device.
        """
        engine = build_stage_engine(self.processes, model, stage.config)
        if resumed is not None:
            engine.load_optimizer_state(resumed.optimizer_tensors())
            engine.load_average_state(resumed.average_tensors(), num_updates=resumed.state.num_updates)
        runner = build_step_runner(self.config, stage, engine, frames_of=frames_of)
        log.info(
            "stage %d (%s): %d steps over %d utterances (%.2f h), dev %d, %d trainable parameters",
            stage.number,
            stage.config.name,
            stage.config.num_steps,
            len(stage.data.training),
            float(stage.data.training.duration_s.sum()) / 3600,
            len(stage.data.dev),
            engine.num_trainable,
        )
        state = resumed.state if resumed is not None else TrainState(stage=stage.number)
        best = BestExport(self.run_dir, self.config)

        def export() -> None:
            self.processes.on_main(lambda: best.write(model, state, stage.data.training))

        if stage.is_last and state.best_step:
            # Anew: the process may have died between saving the best checkpoint and exporting it.
            export()
        profiler = None
        if self.profile and self.processes.info.is_main:
            profiler = StepProfiler(self.run_dir.profile, f"stage{stage.number}", self.processes.device)
        return StageLoop(
            runner=runner,
            dev=stage.data.dev,
            dev_lookups=lookups(runner.engine.model, stage.data.dev, frames_of),
            state=state,
            checkpoints=self.run_dir.checkpoints(stage.number),
            recorder=recorder,
            stop_request=self.stop_request,
            on_selected=export if stage.is_last else lambda: None,
            profiler=profiler,
            cpu_wait=cpu_wait,
        )


def _log_size(model: MetaSERModel, index: Index) -> None:
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    hours = float(index.duration_s.sum()) / 3600
    log.info("%d utterances, %.2f h; model of %.1f M parameters", len(index), hours, num_parameters / 1e6)


def _warn_of_duplicates(index: Index, splits: SplitAssignment) -> None:
    groups = splits.recordings_across
    if groups:
        keys = " = ".join(index.take(groups[0]).values("key"))
        log.warning("%d recordings stand in more than one split, under different names: %s", len(groups), keys)
