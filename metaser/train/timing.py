"""Where a step's time goes: data, forward, backward, optimizer; and a profiler's trace of a few steps."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from metaser.runfiles import writing

PARTS = ("data", "forward", "backward", "optimizer")


class StepClock:
    """Adds up the seconds of a step's parts, on a GPU by events, so that nothing waits for the clock."""

    def __init__(self, device: torch.device) -> None:
        self._uses_events = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside as `name`; a profiler's trace shows it under this name."""
        with record_function(f"metaser.{name}"):
            if self._uses_events and name != "data":
                start, end = _event(), _event()
                start.record()
                yield
                end.record()
                self._events.append((name, start, end))
            else:
                started = time.perf_counter()
                yield
                self._seconds[name] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Return the seconds by part since the last call, and start anew. On a GPU, waits for it."""
        for name, start, end in self._events:
            end.synchronize()
            self._seconds[name] += start.elapsed_time(end) / 1000
        seconds = {name: self._seconds[name] for name in PARTS}
        self._events.clear()
        self._seconds.clear()
        return seconds


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class CpuWait:
    """Tells once, after the first steps, when other work keeps this process from the processors."""

    STEPS, SHARE = 10, 0.3

    def __init__(self) -> None:
        self._before = cpu_seconds()
        self._num_steps = 0

    def after_step(self) -> str | None:
        """Call after each step; return the sentence if it is due."""
        self._num_steps += 1
        if self._num_steps != self.STEPS:
            return None
        computed, waited = (now - before for now, before in zip(cpu_seconds(), self._before, strict=True))
        if waited <= self.SHARE * (computed + waited):
            return None
        return (
            f"other work shares the processors: in the first {self.STEPS} steps this process waited for one "
            f"{waited / (computed + waited):.0%} of its time, so that the training is slower than on an idle machine"
        )


def cpu_seconds() -> tuple[float, float]:
    """Return how long this process's present threads have computed, and have waited for a processor (Linux)."""
    computed_ns = waited_ns = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            computed, waited, _ = path.read_bytes().split()
            computed_ns += int(computed)
            waited_ns += int(waited)
    return computed_ns / 1e9, waited_ns / 1e9


class StepProfiler:
    """A trace (Chrome format) and a table of a few steps after the first two, which allocate and pick kernels."""

    SKIPPED, TRACED = 2, 5

    def __init__(self, folder: Path, name: str, device: torch.device) -> None:
        """Write `NAME.json` and `NAME.txt` into `folder` once enough steps are done."""
        self._folder, self._name = folder, name
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self._profile: profile | None = profile(activities=activities)
        self._lines: list[dict[str, float]] = []
        self._num_steps = 0

    def before_step(self) -> None:
        """Call before each step."""
        if self._profile is not None and self._num_steps == self.SKIPPED:
            self._profile.start()

    def after_step(self, step_s: float, parts_s: dict[str, float]) -> str | None:
        """Call after each step with its seconds; return the table when the trace is written, else None."""
        if self._profile is None:
            return None
        self._num_steps += 1
        if self._num_steps <= self.SKIPPED:
            return None
        self._lines.append({**parts_s, "other": step_s - sum(parts_s.values()), "step": step_s})
        return self.finish() if len(self._lines) == self.TRACED else None

    def finish(self) -> str | None:
        """Write what was traced, if anything and not yet; return the table, or why there is none.

        Raises:
            RunError: if it cannot be written.
        """
        if self._profile is None:
            return None
        if not self._lines:
            return f"nothing was traced: {self._num_steps} steps were done, the first {self.SKIPPED} are left out"
        self._profile.stop()
        table = self._table()
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self._folder / f"{self._name}.json"))
            (self._folder / f"{self._name}.txt").write_text(table + "\n", encoding="utf-8")
        self._profile = None
        return table

    def _table(self) -> str:
        mean = {name: sum(line[name] for line in self._lines) / len(self._lines) for name in (*PARTS, "other", "step")}
        rows = [f"{name:<10} {1000 * mean[name]:>10.1f} ms {mean[name] / mean['step']:>7.1%}" for name in mean]
        return "\n".join([f"mean of {len(self._lines)} steps", *rows])
