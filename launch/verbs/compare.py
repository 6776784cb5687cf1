"""`metaser compare`: runs beside one another, on the same utterances."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.words import tell_json


def compare(
    runs: Annotated[list[str], typer.Argument(help="Runs or cross-validations; the first is compared to.")],
    task: Annotated[str | None, typer.Option(help="Another task than the main one of the first.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Print what runs differ by on the same test utterances, with intervals and tests over speakers."""
    from rich.console import Console

    from metaser.errors import ConfigError
    from metaser.eval.compare import (
        compare_systems,
        comparison_notes,
        difference_rows,
        metric_rows,
        read_system,
    )
    from shards.shown import shown_table, shown_text

    if len(runs) < 2:
        raise ConfigError(f"compare needs two runs or more, got {runs[0]!r} alone")
    names = _names(runs)
    systems = [read_system(name, [run], task) for name, run in zip(names, runs, strict=True)]
    comparison = compare_systems(systems)
    if json:
        tell_json(comparison.to_dict(), indent=1)
        return
    console = Console()
    console.print(shown_table(*metric_rows(comparison)))
    console.print(shown_table(*difference_rows(comparison)))
    for note in comparison_notes(comparison):
        console.print(shown_text(note), highlight=False, soft_wrap=True)


def _names(runs: list[str]) -> list[str]:
    """Return the runs' folder names, or as much of their paths as tells them apart."""
    from metaser.errors import ConfigError

    paths = [Path(run).resolve() for run in runs]
    for num_parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-num_parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(f"compare needs runs that differ, got {', '.join(runs)}")
