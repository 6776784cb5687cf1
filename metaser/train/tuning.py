"""Which settings to try next on a machine, and which to take: pure functions of what was measured so far.

Only settings that leave what is learned alone are looked for: batches, seeds and learning rates stay as they are.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from metaser.config.schema import ExperimentConfig

CLEARLY_FASTER = 1.03
"""Speeds that differ by less count as equal: a few steps on a machine that is not idle scatter by more than 1 %."""
_WORKERS = (0, 1, 2, 4)


@dataclass(frozen=True, order=True)
class Settings:
    """What is looked for; in the order of fields, the first of equally fast ones is the one to take."""

    compile_layers: bool
    activation_checkpointing: bool
    max_micro_batch_s: float
    num_workers: int

    @classmethod
    def of(cls, config: ExperimentConfig) -> Settings:
        """Return an experiment's."""
        data, parallel = config.data, config.parallel
        return cls(parallel.compile_layers, parallel.activation_checkpointing, data.max_micro_batch_s, data.num_workers)

    def applied_to(self, config: ExperimentConfig) -> ExperimentConfig:
        """Return the experiment with these settings."""
        return config.model_copy(
            update={name: getattr(config, name).model_copy(update=part) for name, part in self.to_tree().items()}
        )

    def to_tree(self) -> dict[str, dict[str, float | int | bool]]:
        """Return what an experiment's YAML has of them."""
        seconds = self.max_micro_batch_s
        return {
            "data": {
                "max_micro_batch_s": int(seconds) if seconds == int(seconds) else seconds,
                "num_workers": self.num_workers,
            },
            "parallel": {
                "compile_layers": self.compile_layers,
                "activation_checkpointing": self.activation_checkpointing,
            },
        }


@dataclass(frozen=True)
class Outcome:
    """What settings gave; with a `problem`, they cannot be used, and there are no numbers."""

    audio_s_per_s: float = 0.0
    """Real seconds of audio, padding left out, over the stages as long as each is."""
    step_s: float = 0.0
    memory_gib: float = 0.0
    """Peak, of the GPU or of the process."""
    num_steps: int = 0
    """Measured in each stage."""
    problem: str | None = None
    is_refused: bool = False
    """Whether the problem is a mistake of the caller's, not one of memory or time."""

    @property
    def fits(self) -> bool:
        """Whether the settings can be used."""
        return self.problem is None


Measured = Mapping[Settings, Outcome]


@dataclass(frozen=True)
class Space:
    """What can be tried."""

    micro_batches_s: tuple[float, ...]
    """Ascending; the first holds the longest clip, the last a whole step."""
    num_workers: tuple[int, ...]
    given: Settings
    """The experiment's own."""

    @classmethod
    def between(cls, lowest_s: float, highest_s: float, given: Settings) -> Space:
        """Return the space of micro-batches from `lowest_s` (the longest clip) to `highest_s` (a whole step)."""
        first, last = _rounded_up(lowest_s), _rounded_up(max(lowest_s, highest_s))
        sizes = [first]
        while sizes[-1] < last:
            sizes.append(min(2 * sizes[-1], last))
        most = len(os.sched_getaffinity(0))
        return cls(tuple(sizes), tuple(number for number in _WORKERS if number <= most), given)


def _rounded_up(seconds: float) -> float:
    """Return seconds that read well: whole ones from 10 on, tenths below."""
    return float(math.ceil(seconds)) if seconds > 10 else math.ceil(round(seconds * 10, 6)) / 10


def recommended(measured: Measured) -> Settings | None:
    """Return the plainest settings of those that fit and are about as fast as the fastest; None if none fits."""
    fitting = {settings: outcome for settings, outcome in measured.items() if outcome.fits}
    fastest = max((outcome.audio_s_per_s for outcome in fitting.values()), default=0.0)
    return min(
        (settings for settings, outcome in fitting.items() if outcome.audio_s_per_s * CLEARLY_FASTER >= fastest),
        default=None,
    )


def next_candidate(space: Space, measured: Measured) -> Settings | None:
    """Return what to measure next, None if nothing is left."""
    candidates = (part(space, measured) for part in PARTS.values())
    return next((candidate for candidate in candidates if candidate is not None), None)


def unfinished(space: Space, measured: Measured) -> list[str]:
    """Return which parts of the search have something left to measure."""
    return [name for name, part in PARTS.items() if part(space, measured) is not None]


def _plain(space: Space, size_s: float) -> Settings:
    return Settings(False, False, size_s, space.given.num_workers)


def _larger_micro_batches(space: Space, measured: Measured) -> Settings | None:
    """From the smallest up, so that memory runs out late and by little; twice without gain is the end."""
    best, num_without_gain = 0.0, 0
    for size_s in space.micro_batches_s:
        settings = _plain(space, size_s)
        outcome = measured.get(settings)
        if outcome is None:
            return settings
        if not outcome.fits:
            return None
        num_without_gain = 0 if outcome.audio_s_per_s > best * CLEARLY_FASTER else num_without_gain + 1
        best = max(best, outcome.audio_s_per_s)
        if num_without_gain == 2:
            return None
    return None


def _recomputed_activations(space: Space, measured: Measured) -> Settings | None:
    """Only micro-batches that do not fit without, as long as each is faster: computing twice costs a third more."""
    best = 0.0
    for size_s in space.micro_batches_s:
        plain = measured.get(_plain(space, size_s))
        if plain is not None and plain.fits:
            best = max(best, plain.audio_s_per_s)
            continue
        if plain is None and not _too_large(space, measured, size_s):
            return None
        settings = replace(_plain(space, size_s), activation_checkpointing=True)
        outcome = measured.get(settings)
        if outcome is None:
            return settings
        if not outcome.fits or outcome.audio_s_per_s <= best * CLEARLY_FASTER:
            return None
        best = outcome.audio_s_per_s
    return None


def _too_large(space: Space, measured: Measured, size_s: float) -> bool:
    """Return whether a smaller micro-batch did not fit already."""
    smaller = (measured.get(_plain(space, size)) for size in space.micro_batches_s if size < size_s)
    return any(outcome is not None and not outcome.fits for outcome in smaller)


def _reader_processes(space: Space, measured: Measured) -> Settings | None:
    chosen = recommended(
        {
            settings: outcome
            for settings, outcome in measured.items()
            if settings.num_workers == space.given.num_workers
            and not settings.compile_layers
            and settings.max_micro_batch_s in space.micro_batches_s
        }
    )
    if chosen is None:
        return None
    candidates = (replace(chosen, num_workers=number) for number in space.num_workers)
    return next((settings for settings in candidates if settings not in measured), None)


def _compiled_layers(space: Space, measured: Measured) -> Settings | None:
    """Last but one: compiling takes the longest."""
    chosen = recommended(
        {
            settings: outcome
            for settings, outcome in measured.items()
            if not settings.compile_layers and settings.max_micro_batch_s in space.micro_batches_s
        }
    )
    if chosen is None:
        return None
    compiled = replace(chosen, compile_layers=True)
    return compiled if compiled not in measured else None


def _as_given(space: Space, measured: Measured) -> Settings | None:
    """The experiment's own, to compare with, unless no micro-batch of it can hold the longest clip."""
    is_possible = space.given.max_micro_batch_s >= space.micro_batches_s[0]
    # Beyond a whole step all sizes are alike.
    given = replace(space.given, max_micro_batch_s=min(space.given.max_micro_batch_s, space.micro_batches_s[-1]))
    return given if is_possible and given not in measured else None


PARTS: dict[str, Callable[[Space, Measured], Settings | None]] = {
    "larger micro-batches": _larger_micro_batches,
    "activation checkpointing": _recomputed_activations,
    "reader processes": _reader_processes,
    "compiled layers": _compiled_layers,
    "the settings as given": _as_given,
}
"""In this order; each returns what it wants measured next, None if it has enough."""


@dataclass
class Search:
    """Measures one candidate after another until nothing is left or the time is over."""

    space: Space
    seconds: float
    """Nothing new is begun after so long, and what runs then is ended once anything fits."""
    measured: dict[Settings, Outcome] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """What the time did not suffice for."""

    def run(
        self,
        measure: Callable[[Settings, float], Outcome | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> Iterator[tuple[Settings, Outcome]]:
        """Yield every settings that `measure` was asked about, with their outcome.

        Args:
            measure: Gets settings and the seconds that it may take (infinite until something fits); returns None if it
                did not end within them.
            clock: Seconds.
        """
        end = clock() + self.seconds
        while (candidate := next_candidate(self.space, self.measured)) is not None:
            left_s = end - clock()
            is_any = any(outcome.fits for outcome in self.measured.values())
            outcome = None if self.measured and left_s <= 0 else measure(candidate, left_s if is_any else math.inf)
            if outcome is None:
                self.left_out = unfinished(self.space, self.measured)
                return
            self.measured[candidate] = outcome
            yield candidate, outcome
