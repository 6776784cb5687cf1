"""What an area of the fuzzing provides: a way to make damaged input, and a judge that knows the right answer."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import resource
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from shards.errors import InputError
from shards.shown import shown

REPOSITORY = Path(__file__).parents[2]
LONGEST_SENTENCE = 4000
"""Characters; who is told more is told nothing."""
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
REFUSED, ACCEPTED = "refused", "accepted"


class WrongAnswerError(Exception):
    """Damaged input was answered as if it were sound, or sound input beside it was not answered."""


class CrashError(Exception):
    """The command ended in a traceback, or by a signal."""


class HangError(Exception):
    """The command did not end in time."""


class MemoryUseError(Exception):
    """The command took more memory than it may."""


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The line of the error."""
        return next((line for line in reversed(self.err.splitlines()) if line.startswith("error: ")), "")


Run = Callable[[Sequence[object]], Said]
Plan = dict[str, Any]


class Area(ABC):
    """One kind of input. Instances live as long as their process; what they keep must not change from case to case.

    Judges run in the folder above `base`, so that what is kept of a case can be judged elsewhere: paths in it are
    relative to there.
    """

    name: ClassVar[str]
    limit_s: ClassVar[float] = 10.0

    def __init__(self, base: Path) -> None:
        """Take the folder for the sound input of all areas; nothing may be read yet."""
        self.base = base / self.name

    def prepare(self) -> None:  # noqa: B027 (not every area needs it)
        """Make the sound input in the empty folder `base`; called once, in a process of its own."""

    @abstractmethod
    def make(self, draw: random.Random, work: Path) -> Plan:
        """Write damaged input into the empty folder `work`; return what the judge must know, as JSON can hold it."""

    @abstractmethod
    def judge(self, work: Path, plan: Plan, run: Run) -> str:
        """Give the input in `work` to the real entry point; return `REFUSED` or `ACCEPTED`.

        Raises:
            WrongAnswerError: if the answer is neither a refusal nor right.
        """


def need(condition: object, what: str) -> None:
    """Refuse an answer.

    Raises:
        WrongAnswerError: unless `condition` holds; `what` says what should.
    """
    if not condition:
        raise WrongAnswerError(what)


# ---------------------------------------------------------------- commands


def run_here(arguments: Sequence[object]) -> Said:
    """Run the `metaser` command in this process."""
    from launch.cli import app
    from launch.exits import exit_code

    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["metaser", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = exit_code(app)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return _checked(Said(code, out.getvalue(), err.getvalue()))


def run_whole(arguments: Sequence[object], *, limit_s: float = 60.0, max_mib: int = 2048) -> Said:
    """Run the `metaser` command as a user does.

    Raises:
        HangError: if it takes longer than `limit_s`, its start included.
        MemoryUseError: if it takes more than `max_mib`.
    """
    command = [sys.executable, "-m", "launch.cli", *map(str, arguments)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=limit_s, env=environment, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise HangError(f"the spawned command ran longer than {limit_s:g} s") from error
    # Of all children so far the largest; it grows only when this one was larger.
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if most > before and most > max_mib * 1024:
        raise MemoryUseError(f"the spawned command took {most / 1024:.0f} MiB")
    code, out, err = done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    return _checked(Said(code, out, err))


def _checked(said: Said) -> Said:
    if said.code not in (0, 2) or "Traceback (most recent call last)" in said.err:
        raise CrashError(f"exit code {said.code}\n{said.err[-4000:]}")
    for name, text in (("stdout", said.out), ("stderr", said.err)):
        found = _OBEYED.search(text)
        need(
            found is None,
            f"{name} holds {found and found[0]!r}, which a terminal obeys: {found and _around(text, found)}",
        )
    need(len(said.sentence) <= LONGEST_SENTENCE, f"an error of {len(said.sentence)} characters")
    return said


def _around(text: str, match: re.Match[str]) -> str:
    return repr(text[max(0, match.start() - 80) : match.end() + 80])


def refused(said: Said) -> bool:
    """Return whether a command refused its input, in one sentence.

    Raises:
        WrongAnswerError: if it refused it otherwise.
    """
    if said.code == 0:
        return False
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    need(len(errors) == 1, f"a refusal must be one sentence, got {len(errors)}: {said.err[-500:]!r}")
    need(said.err.splitlines()[-1] == errors[0], f"the last line must be the error, got {said.err[-500:]!r}")
    return True


def raises_input_error(action: Callable[[], object]) -> bool:
    """Return whether `action` refuses its input, in one sentence."""
    try:
        action()
    except InputError as error:
        check_sentence(str(error))
        return True
    return False


def check_sentence(text: str) -> None:
    """Hold an error against what a user is told: what the command shows of it is one line, and not a long one."""
    length = len(shown(text))
    need(0 < length <= LONGEST_SENTENCE, f"an error of {length} characters: {shown(text, 200)}")


def parsed_json(text: str) -> Any:
    """Return what stands in JSON text of ours, which never holds NaN.

    Raises:
        WrongAnswerError: if it does, or is no JSON.
    """

    def refuse(word: str) -> None:
        raise WrongAnswerError(f"output holds {word}: {text[:300]!r}")

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError as error:
        raise WrongAnswerError(f"output must be JSON, but {error}: {text[:300]!r}") from error
