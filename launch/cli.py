"""The `metaser` command, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import typer

from launch.output import ReaderGoneError, no_temporary_files, speak_utf8, writable_output
from launch.train import train
from launch.verbs.crossval import crossval
from launch.verbs.demo import demo
from launch.verbs.evaluate import evaluate
from launch.verbs.inspect import inspect
from launch.verbs.pack import pack
from launch.verbs.predict import predict
from launch.verbs.status import status
from launch.verbs.stop import stop
from launch.verbs.submit import submit
from launch.waiting import wait_passively
from launch.words import say
from shards.errors import InputError

app = typer.Typer(
    name="metaser",
    help="Speech emotion recognition that learns from all the metadata a corpus carries.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (demo, pack, inspect, train, evaluate, crossval, predict, submit, status, stop):
    app.command()(verb)


def exit_code(action: Callable[[], object]) -> int:
    """Run `action`; return 0, or 2 after one sentence on stderr for the caller's mistakes, or 1 after the traceback."""
    wait_passively()
    try:
        with writable_output():
            action()
    except InputError as error:
        say(f"error: {error}")
        return 2
    except ReaderGoneError:
        # `metaser inspect ... | head` closes our stdout.
        return 0
    except Exception as error:
        if isinstance(error, OSError) and (reason := no_temporary_files()) is not None:
            say(f"error: {reason}")
            return 2
        say(f"a bug in MetaSER, on rank {os.environ.get('RANK', '0')}:", *traceback.format_exc().splitlines())
        return 1
    return 0


def exit_with_code(action: Callable[[], object]) -> NoReturn:
    """Run `action` and exit with its `exit_code`."""
    speak_utf8()
    sys.exit(exit_code(action))


def main() -> None:
    """Entry point of the `metaser` command."""
    exit_with_code(app)


if __name__ == "__main__":
    main()
