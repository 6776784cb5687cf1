"""Stdout and stderr as they may be: full, closed, read by nobody, or not of UTF-8."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.errors import InputError


class OutputError(InputError):
    """What MetaSER answers cannot be written to its standard output."""


class ReaderGoneError(Exception):
    """Whoever read our standard output has closed it: nothing more is wanted."""


@contextmanager
def writable_output() -> Iterator[None]:
    """Make stdout fail with the true reason, also at the end, and stderr never; neither fails at a sign it lacks.

    Raises:
        OutputError: if stdout is closed or the system refuses what is written.
        ReaderGoneError: if its reader has gone.
    """
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
    if sys.stdout is None:
        raise OutputError("standard output must be open, but is closed; send it to /dev/null if nobody wants it")
    if sys.stdout is not sys.__stdout__ or not isinstance(sys.__stdout__, io.TextIOWrapper):
        # Somebody who calls us as a library has streams of their own.
        yield
        return
    sys.stdout = _reopened(sys.__stdout__, _Stdout)
    if sys.stderr is sys.__stderr__ and isinstance(sys.__stderr__, io.TextIOWrapper):
        sys.stderr = _reopened(sys.__stderr__, _Stderr)
    try:
        yield
    except Exception:
        # What went wrong is told, not that the answer before it cannot be.
        with suppress(OutputError, ReaderGoneError):
            sys.stdout.flush()
        raise
    finally:
        sys.stdout.flush()


class _Stdout(io.FileIO):
    """Tells a stdout that fails from other files that do."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BrokenPipeError:
            self._close()
            raise ReaderGoneError from None
        except OSError as error:
            self._close()
            raise OutputError(
                f"standard output must be writable, but is not: {error.strerror}; not all of the answer was written"
            ) from None

    def _close(self) -> None:
        """Send the rest nowhere: Python flushes once more at its exit, and would complain again."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


class _Stderr(io.FileIO):
    """Drops what stderr does not take: there is no other place to say so, and the work goes on."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError:
            return memoryview(data).nbytes  # type: ignore[arg-type]


def _reopened(stream: io.TextIOWrapper, kind: type[io.FileIO]) -> io.TextIOWrapper:
    """Return `stream` anew over a file of the given kind."""
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(kind(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=bool(stream.line_buffering) or kind is _Stderr,
    )


def no_temporary_files() -> str | None:
    """Return why no temporary file can be written on this system, None if one can; torch and matplotlib need some."""
    try:
        tempfile.gettempdir()
    except OSError as error:
        return f"temporary files must be writable somewhere, but: {error.strerror}; make room in one, or set TMPDIR"
    return None


def speak_utf8() -> None:
    """Start this process again in Python's UTF-8 mode if the locale would let it see only ASCII.

    Names of files that are not ASCII cannot be opened otherwise, whatever a corpus or a configuration calls them.
    """
    if sys.getfilesystemencoding() == "utf-8" or sys.flags.ignore_environment or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 (the same program)
