"""The one place where errors become exit codes."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import typer

from launch.output import ReaderGoneError, no_temporary_files, speak_utf8, writable_output
from launch.waiting import wait_passively
from launch.words import say
from shards.errors import InputError
from shards.shown import ShownRecords

# typer offers no other name for it in all of its versions.
_TyperError: Any = typer.BadParameter.__mro__[2]


class UsageError(InputError):
    """The command line is wrong."""


class App(typer.Typer):
    """Verbs whose ends and errors come out as exceptions, for `exit_code` to tell them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the verb that the command line names.

        Raises:
            UsageError: if that is not understood.
            typer.Exit: with the verb's own exit code.
        """
        command, name = typer.main.get_command(self), self.info.name
        try:
            # Not as typer's own `main`, which shows arguments as they are and ends quietly at any broken pipe.
            with command.make_context(name, sys.argv[1:]) as context:
                command.invoke(context)
        except _TyperError as error:
            if not sys.argv[1:] and self.info.no_args_is_help:
                say(*error.format_message().splitlines())
                raise typer.Exit(error.exit_code) from None
            where = getattr(error, "ctx", None)
            path = name if where is None else where.command_path
            raise UsageError(f"{error.format_message().rstrip('.')}; see `{path} --help`") from None


def exit_code(action: Callable[[], object]) -> int:
    """Run `action`; return 0, or 2 after one sentence on stderr for the caller's mistakes, or 1 after the traceback."""
    wait_passively()
    if not _has_current_folder():
        # torch's oneMKL would end the process without a word of ours.
        say("error: the current folder must be there, but was removed; change into another one")
        return 2
    if logging.lastResort is not None:
        # What is logged where no verb has set up its own.
        logging.lastResort.addFilter(_SHOWN)
    try:
        with writable_output():
            return _end_of(action)
    except InputError as error:
        say(f"error: {error}")
        return 2
    except ReaderGoneError:
        # `metaser inspect ... | head` closes our stdout.
        return 0
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and (reason := _system_fault(error)) is not None:
            say(f"error: {reason}")
            return 2
        say(f"a bug in MetaSER, on rank {os.environ.get('RANK', '0')}:", *traceback.format_exc().splitlines())
        return 1


def _end_of(action: Callable[[], object]) -> int:
    """Run `action`; return the exit code that it ends with itself."""
    try:
        action()
    except typer.Exit as end:
        return end.exit_code
    return 0


_SHOWN = ShownRecords()
_INTERRUPTED = 128 + signal.SIGINT
_SYSTEM_ERRORS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE),
        *(errno.EMFILE, errno.ENFILE, errno.ELOOP, errno.ENAMETOOLONG, errno.EFBIG),
    }
)
"""Numbers of errors that lie in the system, not in MetaSER."""


def _system_fault(error: OSError) -> str | None:
    """Return what the system lacks, None if the error may be ours."""
    if (reason := no_temporary_files()) is not None:
        return reason
    if error.errno == errno.EPIPE:
        return f"what MetaSER writes to must stay open until it is done, but was closed ({error}); start again"
    if error.errno not in _SYSTEM_ERRORS:
        return None
    what = "what MetaSER reads and writes" if error.filename is None else repr(str(error.filename))
    return f"{what} must be usable, but is not: {error.strerror}"


def _has_current_folder() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def exit_with_code(action: Callable[[], object]) -> NoReturn:
    """Run `action` and exit with its `exit_code`."""
    speak_utf8()
    sys.exit(exit_code(action))
