"""Pictures of a corpus: how long its utterances are, what they are labelled, who speaks; drawn without a screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from shards.errors import ShardError
from shards.index import Index
from shards.shown import shown
from shards.survey import Survey

DPI = 150
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Okabe and Ito's, which colour-blind readers can tell apart."""
_MAX_NAMED_SPEAKERS = 40


def draw_survey(found: Survey, index: Index, folder: Path) -> list[Path]:
    """Write `durations.png`, `labels.png` and `speakers.png` into `folder`, as far as there is something to draw.

    Raises:
        ShardError: if the folder cannot be written.
    """
    figures = {"durations": _durations(index.duration_s)}
    if found.emotion_by_split:
        figures["labels"] = _stacked("emotion", found.emotion_by_split)
    if found.speakers:
        figures["speakers"] = _speakers(found.speakers)
    paths = [folder / f"{name}.png" for name in figures]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, figure in zip(paths, figures.values(), strict=True):
            figure.savefig(path, dpi=DPI)
    except OSError as error:
        raise ShardError(
            f"--png must be a folder that can be written, but {folder} is not: {error.strerror}"
        ) from error
    return paths


def _durations(durations_s: np.ndarray) -> Figure:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.hist(durations_s, bins=min(60, 10 + len(durations_s) // 20), color=COLOURS[0])
    middle, high = np.percentile(durations_s, [50, 95])
    for value, name, style in ((middle, "median", "-"), (high, "95 %", "--")):
        axes.axvline(value, color="black", linewidth=1, linestyle=style, label=f"{name} {value:.2f} s")
    axes.set(xlabel="duration in s", ylabel="utterances", xlim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _stacked(field: str, table: Mapping[str, Mapping[str, int]]) -> Figure:
    figure = Figure(figsize=(6.4, 1.2 + 0.35 * len(table)), layout="constrained")
    axes = figure.subplots()
    words, splits = list(table)[::-1], list(next(iter(table.values())))
    rows = range(len(words))
    left = np.zeros(len(words))
    for split, colour in zip(splits, COLOURS, strict=False):
        counts = np.asarray([table[word][split] for word in words])
        axes.barh(rows, counts, left=left, color=colour, label=split if split != "none" else "no split of its own")
        left += counts
    axes.set_yticks(rows, map(shown, words), parse_math=False)
    axes.set(xlabel=f"utterances by {field}")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _speakers(speakers: Mapping[str, int]) -> Figure:
    ordered = sorted(speakers.items(), key=lambda item: -item[1])
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(ordered)), [count for _, count in ordered], color=COLOURS[0])
    if len(ordered) <= _MAX_NAMED_SPEAKERS:
        axes.set_xticks(range(len(ordered)), [shown(name) for name, _ in ordered], rotation=90, parse_math=False)
    else:
        axes.set(xlabel=f"{len(ordered)} speakers, by number of utterances")
    axes.set(ylabel="utterances")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
