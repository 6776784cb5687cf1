"""What the command says: sentences on stderr, lines and data on stdout; words of others can do nothing there."""

from __future__ import annotations

import sys
from typing import Any

from shards.jsontext import dump_json
from shards.shown import shown


def say(*lines: str) -> None:
    """Print lines on stderr, which tells a person what is going on."""
    for line in lines:
        print(shown(line), file=sys.stderr, flush=True)


def tell(*lines: str) -> None:
    """Print lines on stdout, which holds the answer."""
    for line in lines:
        print(shown(line), flush=True)


def tell_data(text: str) -> None:
    """Print text of a format that is UTF-8 wherever it is read, as it is, on stdout."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    sys.stdout.write(text)


def tell_json(value: Any, indent: int | None = None) -> None:
    """Print a value as JSON on stdout, one line unless indented."""
    tell_data(f"{dump_json(value, indent=indent)}\n")
    sys.stdout.flush()
