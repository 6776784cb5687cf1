"""Cases run one by one in worker processes that a watchdog ends, with limits of time and memory, and are counted."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from fuzz.area import (
    ACCEPTED,
    REFUSED,
    Area,
    CrashError,
    HangError,
    MemoryUseError,
    Run,
    WrongAnswerError,
    run_here,
    run_whole,
)

MAX_MIB = 2048
"""Of a process, and what it may take beyond what it has when it is ready."""
WHOLE_EVERY = 200
"""One case in so many runs the command as a user does."""
CASES_PER_WORKER = 400
_PLAN = "plan.json"
_INPUT = "input"
_RECIPE = "case.json"
FAILURES = ("crash", "hang", "memory", "wrong")
AreaMaker = Callable[[Path], Area]


@dataclass(frozen=True)
class Verdict:
    """What came of a case."""

    outcome: str
    """refused, accepted, crash, hang, memory or wrong."""
    detail: str = ""
    peak_mib: float = 0.0
    seconds: float = 0.0


@dataclass
class Tally:
    """What came of an area's cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    peak_mib: float = 0.0
    longest_s: float = 0.0
    seconds: float = 0.0
    failures: list[tuple[int, Verdict]] = field(default_factory=list)

    def add(self, number: int, verdict: Verdict) -> None:
        """Count one case."""
        self.outcomes[verdict.outcome] += 1
        self.peak_mib = max(self.peak_mib, verdict.peak_mib)
        self.longest_s = max(self.longest_s, verdict.seconds)
        self.seconds += verdict.seconds
        if verdict.outcome in FAILURES:
            self.failures.append((number, verdict))

    @property
    def num_runs(self) -> int:
        """How many cases there were."""
        return sum(self.outcomes.values())


def generator(area: str, seed: int, number: int) -> random.Random:
    """Return what decides a case."""
    return random.Random(f"{area}/{seed}/{number}")


# ---------------------------------------------------------------- in a worker


def attempt(area: Area, folder: Path, run: Run) -> Verdict:
    """Judge the case in `folder` here."""
    plan = json.loads((folder / _PLAN).read_bytes())
    started = time.perf_counter()
    _reset_peak()
    outcome, detail = ACCEPTED, ""
    try:
        outcome = area.judge(folder / _INPUT, plan, run)
    except WrongAnswerError as error:
        outcome, detail = "wrong", str(error)
    except MemoryError:
        outcome, detail = "memory", traceback.format_exc()
    except HangError as error:
        outcome, detail = "hang", str(error)
    except MemoryUseError as error:
        outcome, detail = "memory", str(error)
    except CrashError as error:
        detail = str(error)
        outcome = "memory" if re.search(r"^(?:numpy\S*)?\w*MemoryError", detail, re.MULTILINE) else "crash"
    except (Exception, SystemExit):
        outcome, detail = "crash", traceback.format_exc()
    peak_mib = _peak_mib()
    if peak_mib > MAX_MIB:
        outcome, detail = "memory", f"{peak_mib:.0f} MiB; {outcome} {detail}"
    return Verdict(outcome, detail[-6000:], peak_mib, time.perf_counter() - started)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    return _status_mib("VmHWM")


def _status_mib(name: str) -> float:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1]) / 1024 if match else 0.0


def _limit_memory(max_mib: int) -> None:
    most = int((_status_mib("VmSize") + max_mib) * 1024 * 1024)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _serve(connection: Connection, makers: Sequence[AreaMaker], base: Path, max_mib: int) -> None:
    """Answer each task, an area's name and the folder of its case, with a verdict."""
    # What it starts ends with it.
    os.setsid()
    _say_into(os.devnull)
    os.chdir(base)
    areas = {area.name: area for area in made(makers, base)}
    _limit_memory(max_mib)
    gc.collect()
    gc.freeze()
    # From here on the watchdog counts.
    connection.send(None)
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        area = areas[task.area]
        if task.seed is not None:
            make_case(area, task.seed, task.number, task.folder)
        connection.send(attempt(area, task.folder, run_whole if task.is_whole else run_here))


def made(makers: Iterable[AreaMaker], base: Path) -> list[Area]:
    """Return the areas with their sound input below `base`."""
    return [maker(base) for maker in makers]


def _prepare(makers: Sequence[AreaMaker], base: Path) -> None:
    base.mkdir(exist_ok=True)
    os.chdir(base)
    _say_into("prepare.log")
    for area in made(makers, base):
        area.base.mkdir()
        area.prepare()


def _say_into(path: str | Path) -> None:
    said = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for stream in (0, 1, 2):
        os.dup2(said, stream)


# ---------------------------------------------------------------- before them


@dataclass(frozen=True)
class Task:
    """A case to be judged."""

    area: str
    folder: Path
    seed: int | None = None
    """With it the case is made first; without, it lies there."""
    number: int = 0
    is_whole: bool = False


class Worker:
    """A process that judges cases, started anew after each that it does not survive."""

    def __init__(self, makers: Sequence[AreaMaker], base: Path, *, max_mib: int = MAX_MIB) -> None:
        self._arguments = (makers, base, max_mib)
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._num_cases = 0

    def judge(self, task: Task, limit_s: float) -> Verdict:
        """Return the verdict on a case; what seems to hang gets thrice the time once, as the machine may be busy."""
        # The command's start takes seconds.
        limit_s = limit_s * 6 if task.is_whole else limit_s
        verdict = self._judge(task, limit_s)
        return self._judge(task, 3 * limit_s) if verdict.outcome == "hang" else verdict

    def _judge(self, task: Task, limit_s: float) -> Verdict:
        if self._connection is None or self._num_cases >= CASES_PER_WORKER:
            self.end()
            self._start()
        assert self._connection is not None
        assert self._process is not None
        self._num_cases += 1
        started = time.perf_counter()
        try:
            self._connection.send(task)
            if not self._connection.poll(limit_s):
                self.end()
                return Verdict("hang", f"still running after {limit_s:g} s", 0.0, time.perf_counter() - started)
            verdict: Verdict = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(5)
            code = self._process.exitcode
            self.end()
            return Verdict("crash", f"the process died with {code}", 0.0, time.perf_counter() - started)
        return verdict

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._arguments))
        self._process.start()
        theirs.close()
        self._connection.recv()
        self._num_cases = 0

    def end(self) -> None:
        """End the process and what it has started."""
        if self._process is None or self._connection is None:
            return
        self._connection.close()
        try:
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._process.join()
        self._process, self._connection = None, None


def prepare(makers: Sequence[AreaMaker], base: Path) -> None:
    """Make the areas' sound input, in a process of its own so that this one stays as it is.

    Raises:
        RuntimeError: if it cannot be made.
    """
    process = multiprocessing.get_context("forkserver").Process(target=_prepare, args=(makers, base))
    process.start()
    process.join()
    if process.exitcode:
        said = (base / "prepare.log").read_text()
        raise RuntimeError(f"the sound input could not be made (exit code {process.exitcode}):\n{said}")


def make_case(area: Area, seed: int, number: int, folder: Path) -> None:
    """Write the case into `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / _INPUT).mkdir(parents=True)
    plan = area.make(generator(area.name, seed, number), folder / _INPUT)
    (folder / _PLAN).write_text(json.dumps(plan))


def replay(makers: Sequence[AreaMaker], folder: Path, base: Path) -> Verdict:
    """Judge a case that was kept; the kept copy stays as it is."""
    recipe = json.loads((folder / _RECIPE).read_bytes())
    (area,) = [area for area in made(makers, base) if area.name == recipe["area"]]
    with tempfile.TemporaryDirectory() as name:
        # Pipes and links among it, which `shutil` does not copy as they are.
        subprocess.run(["cp", "-a", folder, f"{name}/case"], check=True)
        worker = Worker(makers, base)
        try:
            return worker.judge(Task(area.name, Path(name, "case")), area.limit_s)
        finally:
            worker.end()


class _Session:
    """What several threads, each with a worker, take their cases from."""

    def __init__(self, areas: Sequence[Area], seconds: float, most_runs: int | None) -> None:
        self.areas = {area.name: area for area in areas}
        self.tallies = {area.name: Tally() for area in areas}
        self._numbers = dict.fromkeys(self.areas, 0)
        self._spent_s = dict.fromkeys(self.areas, 0.0)
        self._deadline = time.monotonic() + seconds
        self._most_runs = most_runs
        self._lock = threading.Lock()

    def next(self) -> tuple[Area, int] | None:
        """Return an area's next case: of that which has had the least time."""
        with self._lock:
            names = [
                name for name, number in self._numbers.items() if self._most_runs is None or number < self._most_runs
            ]
            if not names or time.monotonic() > self._deadline:
                return None
            name = min(names, key=self._spent_s.__getitem__)
            number = self._numbers[name]
            self._numbers[name] += 1
            # So that the other threads look elsewhere meanwhile.
            self._spent_s[name] += self._mean_s(name)
            return self.areas[name], number

    def add(self, name: str, number: int, verdict: Verdict, spent_s: float) -> None:
        """Count a case."""
        with self._lock:
            self._spent_s[name] += spent_s - self._mean_s(name)
            self.tallies[name].add(number, verdict)

    def _mean_s(self, name: str) -> float:
        return self._spent_s[name] / max(1, self.tallies[name].num_runs)


def fuzz(
    makers: Sequence[AreaMaker],
    base: Path,
    *,
    seed: int,
    seconds: float,
    jobs: int = 1,
    most_runs: int | None = None,
    kept: Path | None = None,
    say: Callable[[str], None],
) -> dict[str, Tally]:
    """Give each area the same time; return what came of it by area.

    Args:
        makers: of the areas, which `prepare` has prepared.
        base: where their sound input lies; cases are written there, too.
        seed: decides every case.
        seconds: for all areas together.
        jobs: workers at the same time.
        most_runs: of each area.
        kept: where failures are written to.
        say: told of each failure.
    """
    session = _Session(made(makers, base), seconds, most_runs)

    def serve(micro_batch: int) -> None:
        worker = Worker(makers, base)
        try:
            while (chosen := session.next()) is not None:
                area, number = chosen
                started = time.monotonic()
                # The same ones in every run.
                is_whole = generator(area.name, seed, number).randrange(WHOLE_EVERY) == 0
                task = Task(area.name, base / f"case-{micro_batch}", seed, number, is_whole)
                verdict = worker.judge(task, area.limit_s)
                session.add(area.name, number, verdict, time.monotonic() - started)
                if verdict.outcome in FAILURES:
                    say(f"{area.name} {number}: {verdict.outcome}: {_last_line(verdict.detail)}")
                    if kept is not None:
                        _keep(area, seed, number, kept / f"{area.name}-{seed}-{number}", verdict)
        finally:
            worker.end()

    # Cases that failed are made again here, and areas read their sound input relative to `base`.
    with contextlib.chdir(base), ThreadPoolExecutor(jobs) as pool:
        list(pool.map(serve, range(jobs)))
    return session.tallies


def _keep(area: Area, seed: int, number: int, folder: Path, verdict: Verdict) -> None:
    """Write a case, its verdict and how to come by it again."""
    make_case(area, seed, number, folder)
    recipe = {"area": area.name, "seed": seed, "number": number, "outcome": verdict.outcome}
    (folder / _RECIPE).write_text(json.dumps(recipe))
    (folder / "verdict.txt").write_text(verdict.detail)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else ""


def table(tallies: dict[str, Tally]) -> str:
    """Return what came of it as a table in Markdown."""
    columns = (
        "area",
        "runs",
        "refused",
        "succeeded",
        "crashes",
        "hangs",
        "over 2 GiB",
        "wrong",
        "peak MiB",
        "longest s",
    )
    rows = [columns, ("---",) * len(columns)]
    for name, tally in {**tallies, "all": _sum(tallies.values())}.items():
        counts = (tally.outcomes[outcome] for outcome in (REFUSED, ACCEPTED, *FAILURES))
        rows.append((name, str(tally.num_runs), *map(str, counts), f"{tally.peak_mib:.0f}", f"{tally.longest_s:.1f}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _sum(tallies: Iterable[Tally]) -> Tally:
    whole = Tally()
    for tally in tallies:
        whole.outcomes.update(tally.outcomes)
        whole.peak_mib = max(whole.peak_mib, tally.peak_mib)
        whole.longest_s = max(whole.longest_s, tally.longest_s)
    return whole
