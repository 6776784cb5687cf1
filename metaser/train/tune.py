"""The fastest settings that fit this machine, found by trying them in processes of their own."""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np

from metaser.config.schema import ExperimentConfig
from metaser.errors import TrainingError
from metaser.memory import available_bytes
from metaser.stagedata import heard_samples
from metaser.train.trial import OUT_OF_MEMORY, checked_data, run_trial
from metaser.train.tuning import Outcome, Search, Settings, Space
from shards.config import MAX_SECONDS
from shards.index import Index
from shards.schema import RATE_HZ

NUM_STEPS = 8
"""Of each stage are measured, or as many as a first trial does within its share of the time."""
_FIRST_SHARE = 0.1
_KEPT_FREE = 0.05
"""A trial is ended when less than this share of the memory that was available before is left."""
_LOOK_EVERY_S = 0.02
_END_S = 5.0

OnOutcome = Callable[[Settings, Outcome], None]


def tune(config: ExperimentConfig, *, seconds: float, on_outcome: OnOutcome = lambda settings, outcome: None) -> Search:
    """Return the finished search for the fastest settings of an experiment in one process on this machine.

    Nothing is written. `on_outcome` is called after each trial.

    Args:
        config: The experiment.
        seconds: How long to search.
        on_outcome: Hears of every trial.

    Raises:
        InputError: if the experiment cannot be trained, whatever the settings.
        TrainingError: if nothing fits the memory.
    """
    config = config.model_copy(update={"parallel": config.parallel.model_copy(update={"peak_tflops": None})})
    space = _space(config)
    search = Search(space, seconds)
    num_steps: int | None = None

    def measure(settings: Settings, left_s: float) -> Outcome | None:
        nonlocal num_steps
        share_s = _FIRST_SHARE * seconds / len(config.stages) if num_steps is None else math.inf
        outcome = _try(settings.applied_to(config), num_steps or NUM_STEPS, share_s, left_s)
        if outcome is not None and outcome.fits:
            num_steps = num_steps or outcome.num_steps
        return outcome

    for settings, outcome in search.run(measure):
        if outcome.is_refused and len(search.measured) == 1:
            raise TrainingError(str(outcome.problem))
        on_outcome(settings, outcome)
    if not any(outcome.fits for outcome in search.measured.values()):
        raise TrainingError(
            f"a micro-batch of {space.micro_batches_s[0]:g} s, which holds the longest clip, must fit the memory, but "
            "does not; set data.window_s, filter by duration_s, spread the model with parallel.strategy, or choose a "
            "smaller encoder"
        )
    return search


def _space(config: ExperimentConfig) -> Space:
    """Return which micro-batches there can be: from the longest clip of all splits to the heaviest step."""
    given = Settings.of(config)
    unlimited = Settings(False, False, MAX_SECONDS, given.num_workers).applied_to(config)
    _, _, checked = checked_data(unlimited)

    def longest_s(index: Index) -> float:
        return float(heard_samples(index, config.data).max(initial=0)) / RATE_HZ

    lowest_s = max(longest_s(checked.test), config.data.window_s or 0.0)
    highest_s = 0.0
    for stage, part in zip(config.stages, checked.stages, strict=True):
        stretch = stage.augment.speed.longest_stretch
        lowest_s = max(lowest_s, longest_s(part.dev), stretch * longest_s(part.training))
        lengths = np.sort(heard_samples(part.training, config.data))[::-1]
        # With weights, one clip may be drawn several times in a row.
        counts = np.minimum(config.data.batch_utterances, len(lengths) - np.arange(len(lengths)))
        most = counts if stage.sampling == type(stage.sampling)() else config.data.batch_utterances
        highest_s = max(highest_s, stretch * float((lengths * most).max()) / RATE_HZ)
    return Space.between(lowest_s, highest_s, given)


def _try(config: ExperimentConfig, num_steps: int, share_s: float, left_s: float) -> Outcome | None:
    """Return what a trial of `config` gives; None if it takes longer than `left_s`."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    available = available_bytes()
    process = context.Process(target=run_trial, args=(theirs, config, available, num_steps, share_s))
    process.start()
    theirs.close()
    try:
        outcome = _outcome_of(process, ours, available, time.monotonic() + left_s)
        if outcome is not None:
            # It may end its readers.
            process.join(_END_S)
        return outcome
    finally:
        process.kill()
        process.join()
        ours.close()


def _outcome_of(process: BaseProcess, connection: Connection, available: int, end: float) -> Outcome | None:
    while not connection.poll(_LOOK_EVERY_S):
        if time.monotonic() > end:
            return None
        if available_bytes() < _KEPT_FREE * available:
            process.kill()
            return Outcome(problem=OUT_OF_MEMORY)
    try:
        return Outcome(**json.loads(connection.recv_bytes()))
    except EOFError:
        process.join()
    code = process.exitcode
    if code == -signal.SIGKILL:
        # Nobody but the kernel, which has no memory left, ends it so.
        return Outcome(problem=OUT_OF_MEMORY)
    ended = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
    return Outcome(problem=f"failed: its process ended {ended}")
