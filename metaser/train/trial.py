"""A few steps of every stage with given settings, in a process of their own, which memory may fail."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from metaser.config.schema import ExperimentConfig
from metaser.distributed import DistInfo
from metaser.given import fit_views
from metaser.memory import data_bytes, is_lack_of_memory
from metaser.model.metaser import build_model
from metaser.processes import Processes
from metaser.seeding import seed_generators
from metaser.stagedata import load_split_index, training_rows
from metaser.train.build import Stage, build_stage_engine, build_stages, build_step_runner
from metaser.train.checks import CheckedData, check_data, check_heard
from metaser.train.state import TrainState
from metaser.train.step import StepRunner, peak_memory_gib
from metaser.train.tuning import Outcome
from shards.errors import InputError
from shards.index import Index
from shards.parentdeath import exit_with_parent
from shards.plan import MicroBatch
from shards.schema import RATE_HZ
from shards.splits import SplitAssignment

MEMORY_SHARE = 0.85
"""Of what is available, a trial may take so much: steps that it does not try, evaluation and others need some, too."""
_MIN_STEPS = 2
OUT_OF_MEMORY = "out of memory"


def checked_data(config: ExperimentConfig) -> tuple[Index, SplitAssignment, CheckedData]:
    """Return an experiment's utterances and what its stages make of them, for one process.

    Raises:
        InputError: if they cannot be trained on.
    """
    index, splits = load_split_index(config.data)
    return index, splits, check_data(config, index, splits, num_processes=1)


def heaviest(num_samples: np.ndarray, *, batch_utterances: int, max_samples: int) -> list[np.ndarray]:
    """Return the micro-batch of the longest clips and the one of the most padded samples, if it is another.

    No step of any epoch has one with a longer clip or with more padded samples; each is positions in `num_samples`.
    """
    order = np.argsort(-num_samples, kind="stable")
    lengths = num_samples[order]
    most = np.minimum(batch_utterances, max_samples // np.maximum(lengths, 1))
    counts = np.maximum(1, np.minimum(most, len(order) - np.arange(len(order))))
    largest = int(np.argmax(counts * lengths))
    return [order[start : start + counts[start]] for start in dict.fromkeys((0, largest))]


def run_trial(
    connection: Connection, config: ExperimentConfig, available_bytes: int, num_steps: int, share_s: float
) -> None:
    """Send the outcome as JSON: the target of a process of its own.

    Args:
        connection: Where to.
        config: The experiment with the settings to try.
        available_bytes: How much memory the system had before.
        num_steps: How many steps of each stage are measured.
        share_s: Fewer are, though at least two, if a stage's have taken so many seconds.
    """
    exit_with_parent()
    # Ctrl-C ends the parent, and this process with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries write on stdout, which is for the answer.
    os.dup2(2, 1)
    # If memory runs out in spite of all, the kernel takes this process and no other.
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    try:
        outcome = _measure(config, available_bytes, num_steps, share_s)
    except (InputError, MemoryError, RuntimeError) as error:
        if is_lack_of_memory(error):
            outcome = Outcome(problem=OUT_OF_MEMORY)
        elif isinstance(error, InputError):
            outcome = Outcome(problem=str(error), is_refused=True)
        else:
            raise
    connection.send_bytes(json.dumps(asdict(outcome)).encode())


def _measure(config: ExperimentConfig, available_bytes: int, num_steps: int, share_s: float) -> Outcome:
    processes = Processes(config.parallel, DistInfo(rank=0, num_processes=1, local_rank=0))
    _limit_memory(processes.device, available_bytes)
    index, splits, data = checked_data(config)
    audio_s = seconds = 0.0
    fewest = num_steps
    for stage in build_stages(config, data):
        steps = _measure_stage(
            config, processes, stage, data, index.take(training_rows(config, index, splits)), num_steps, share_s
        )
        audio_s += stage.config.num_steps * float(np.mean([audio for audio, _ in steps]))
        seconds += stage.config.num_steps * float(np.mean([step_s for _, step_s in steps]))
        fewest = min(fewest, len(steps))
        gc.collect()
    total = sum(stage.num_steps for stage in config.stages)
    return Outcome(audio_s / seconds, seconds / total, peak_memory_gib(processes.device), fewest)


def _limit_memory(device: torch.device, available_bytes: int) -> None:
    """Let an allocation beyond the share fail, instead of the system."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE * free / total, device)
        return
    limit = data_bytes() + int(MEMORY_SHARE * available_bytes)
    for given in resource.getrlimit(resource.RLIMIT_DATA):
        if given != resource.RLIM_INFINITY:
            limit = min(limit, given)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _measure_stage(
    config: ExperimentConfig,
    processes: Processes,
    stage: Stage,
    data: CheckedData,
    training: Index,
    num_steps: int,
    share_s: float,
) -> list[tuple[float, float]]:
    """Return the real seconds of audio and the seconds of each measured step, behind the heaviest and one more."""
    seed_generators(config.seed, "init")
    model = build_model(config.model, data.specs, config.main_task)
    check_heard(config, data, model.longest_samples)
    fit_views(model, training)
    model.to(processes.device)  # type: ignore[arg-type]
    engine = build_stage_engine(processes, model, stage.config)
    runner = build_step_runner(config, stage, engine)
    heavy = _heavy_steps(runner)
    # In the schedule's order, which is random; a stage may have fewer steps.
    typical = ((number % stage.config.num_steps) + 1 for number in range(1 + num_steps))
    steps = [*heavy, *((step, runner.micro_batches_of(step)) for step in typical)]
    batches = runner.read(_in_turn(steps), num_workers=config.data.num_workers)
    state = TrainState(stage=stage.number)
    measured: list[tuple[float, float]] = []
    started = time.monotonic()
    for number, (step, micro_batches) in enumerate(steps):
        engine.clock.take()
        with engine.clock.part("data"):
            mine = list(islice(batches, len(micro_batches)))
        line, _ = runner.run(step, mine, state, stop=None)
        if number > len(heavy):
            measured.append((line["audio_s_per_s"] * line["step_s"], line["step_s"]))
        if len(measured) >= _MIN_STEPS and time.monotonic() - started > share_s:
            break
    engine.close()
    return measured


def _in_turn(steps: Sequence[tuple[int, Sequence[MicroBatch]]]) -> Iterator[MicroBatch]:
    for _, micro_batches in steps:
        yield from micro_batches


def _heavy_steps(runner: StepRunner) -> list[tuple[int, list[MicroBatch]]]:
    """Return steps of the heaviest micro-batches that there may be.

    If steps are accumulated, one follows another in a step, whose gradients are there already. Speed perturbation is
    drawn for each clip: so that those which it leaves as long take as much, they are cut as without it.
    """
    lengths, batch_utterances = runner.schedule.num_samples, runner.config.data.batch_utterances
    max_samples = round(runner.config.data.max_micro_batch_s * RATE_HZ)
    found = [
        runner.in_windows(MicroBatch(items), 1)
        for items in heaviest(lengths, batch_utterances=batch_utterances, max_samples=max_samples)
    ]
    if max_samples < batch_utterances * int(lengths.max()):
        return [(1, [*found, found[0]])]
    return [(1, [micro_batch]) for micro_batch in found]
