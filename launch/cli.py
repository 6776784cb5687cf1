"""The `metaser` command, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import typer

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
        action()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # `metaser inspect ... | head` closes our stdout; Python must not complain about it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception:
        print(f"a bug in MetaSER, on rank {os.environ.get('RANK', '0')}:", file=sys.stderr)
        traceback.print_exc()
        return 1
    return 0


def exit_with_code(action: Callable[[], object]) -> NoReturn:
    """Run `action` and exit with its `exit_code`."""
    sys.exit(exit_code(action))


def main() -> None:
    """Entry point of the `metaser` command."""
    exit_with_code(app)


if __name__ == "__main__":
    main()
