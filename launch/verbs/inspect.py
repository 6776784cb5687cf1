"""`metaser inspect`: what stands in shards, and whether it is still what was packed."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.words import say, tell, tell_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shards.survey import Survey

_BAR_WIDTH = 40
_NUM_SHOWN = 10


def inspect(
    shards: Annotated[list[str], typer.Argument(help="Shard folder or URL, or several.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every byte, row and count with what is stated.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
    png: Annotated[Path | None, typer.Option(help="Also draw durations, labels and speakers into this folder.")] = None,
) -> None:
    """Show utterances, hours, speakers, labels, durations, missing metadata and duplicates."""
    from shards.errors import ShardError
    from shards.indexload import load_index
    from shards.manifest import read_manifest
    from shards.survey import survey
    from shards.survey import verify as verify_shards

    if verify:
        problems = verify_shards(shards)
        if problems:
            for problem in problems[1:_NUM_SHOWN]:
                say(f"also: {problem}")
            raise ShardError(f"{problems[0]} (problem 1 of {len(problems)}); pack or copy the folder again")
    index = load_index(shards)
    found = survey(index, [read_manifest(folder) for folder in shards])
    if png is not None:
        from shards.figures import draw_survey

        for path in draw_survey(found, index, png):
            say(f"drew {path}")
    if as_json:
        tell_json({**asdict(found), "verified": verify})
        return
    _show(found)
    if verify:
        tell(f"verified: all {found.num_utterances} utterances are those of the tars, the index and the manifest")


def _show(found: Survey) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    tell(
        f"{found.num_utterances} utterances, {found.duration_s / 3600:.2f} h, {found.num_shards} shards, "
        f"{_speakers(found)}, "
        f"{found.shortest_s:.2f} to {found.longest_s:.2f} s each"
    )
    if found.emotion_by_split:
        columns = list(next(iter(found.emotion_by_split.values())))
        rows = [[emotion, *map(str, counts.values())] for emotion, counts in found.emotion_by_split.items()]
        console.print(_table("emotion by split", ["emotion", *columns], rows))
    labels = [
        [field, ", ".join(f"{value}: {count}" for value, count in _most_frequent(table))]
        for field, table in {**found.labels, "speaker": found.speakers}.items()
        if table
    ]
    console.print(_table("labels", ["field", "utterances"], labels))
    console.print(_table("durations", ["seconds", "utterances", ""], _histogram_rows(found)))
    if found.missing:
        missing = [[field, str(count)] for field, count in found.missing.items()]
        console.print(_table("missing metadata", ["field", "utterances without"], missing))
    for keys in found.duplicates[:_NUM_SHOWN]:
        tell(f"identical audio: {' = '.join(keys)}")
    if len(found.duplicates) > _NUM_SHOWN:
        tell(f"identical audio: {len(found.duplicates) - _NUM_SHOWN} more groups")
    for kind, count in found.num_rejected_by_kind.items():
        tell(f"left out when packing: {kind}: {count}")
    for warning in found.warnings:
        tell(f"warning: {warning}")


def _speakers(found: Survey) -> str:
    if not found.speakers:
        return "speakers unknown"
    genders = ", ".join(f"{count} {gender}" for gender, count in found.num_speakers_by_gender.items())
    unknown = found.missing.get("speaker", 0)
    more = f" and those of {unknown} utterances unknown" if unknown else ""
    return f"{len(found.speakers)} speakers{f' ({genders})' if genders else ''}{more}"


def _table(title: str, columns: list[str], rows: list[list[str]]) -> RenderableType:
    from rich import box

    from shards.shown import shown_table

    return shown_table(columns, rows, title=title, title_justify="left", box=box.SIMPLE_HEAD)


def _most_frequent(table: dict[str, int]) -> list[tuple[str, int]]:
    """Return all values of a short table, the first of a long one and how many more there are."""
    ordered = sorted(table.items(), key=lambda item: -item[1])
    rest = ordered[_NUM_SHOWN:]
    return [*ordered[:_NUM_SHOWN], *([(f"{len(rest)} more", sum(count for _, count in rest))] if rest else [])]


def _histogram_rows(found: Survey) -> list[list[str]]:
    highest = max(part.num_utterances for part in found.duration_histogram)
    return [
        [
            f"{part.start_s:g} to {part.end_s:g}" if part.end_s is not None else f"{part.start_s:g} and more",
            str(part.num_utterances),
            "#" * round(_BAR_WIDTH * part.num_utterances / highest),
        ]
        for part in found.duration_histogram
    ]
