"""Pictures of a run: confusion matrix, learning curves, ARI coefficients; drawn with Agg, never on a screen.

Colours are those of Okabe and Ito and of matplotlib's PuOr and Blues, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from metaser.errors import RunError
from metaser.tasks.kinds import KINDS
from shards.figures import COLOURS, DPI
from shards.files import whole_file
from shards.shown import shown

MAX_NUMBERED_CELLS = 200
"""Larger heat maps show colours only: numbers would overlap."""

_MAX_NAMED_TICKS = 40
_MAX_CURVE_POINTS = 200
_GREY = "#555555"


def confusion_figure(labels: Sequence[str], confusion: Sequence[Sequence[int]], path: Path, title: str) -> None:
    """Draw a confusion matrix as PNG: colours are shares of the reference class, numbers are utterances.

    Args:
        labels: names of rows and columns.
        confusion: counts, rows are references, columns predictions.
        path: the PNG to write.
        title: what was evaluated.
    """
    counts_CC = np.asarray(confusion, dtype=float)
    shares_CC = counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1)
    side_inch = float(np.clip(1.6 + 0.62 * len(labels), 3.6, 9.0))
    figure = Figure(figsize=(side_inch + 1.0, side_inch), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
    if counts_CC.size <= MAX_NUMBERED_CELLS:
        for (row, column), count in np.ndenumerate(counts_CC):
            share = shares_CC[row, column]
            text = f"{count:.0f}\n{share:.2f}" if count else "0"
            axes.text(
                column, row, text, ha="center", va="center", fontsize=8, color="white" if share > 0.55 else "#222222"
            )
    _name_ticks(axes, labels, labels)
    axes.set(xlabel="predicted", ylabel="reference")
    axes.set_title(shown(title), fontsize=11, parse_math=False)
    figure.colorbar(image, ax=axes, label="share of the reference class", shrink=0.8)
    _save(figure, path)


def curves_figure(metrics_lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw losses and dev metrics of all stages, one after the other on one axis of steps, as PNG.

    Args:
        metrics_lines: the lines of `metrics.jsonl`: training steps (`stage`, `step`, `loss`, `losses` per task) and
            evaluations (`stage`, `step`, `dev`).
        path: the PNG to write.

    Raises:
        RunError: if there is no training step.
    """
    lines = list(metrics_lines)
    training = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "dev" in line]
    if not training:
        raise RunError(f"metrics must hold at least one training step, got {len(lines)} lines without; train first")
    num_steps = {stage: max(line["step"] for line in lines if line["stage"] == stage) for stage in _stages(lines)}
    offsets = {stage: sum(num for other, num in num_steps.items() if other < stage) for stage in num_steps}
    task_names = sorted({name for line in training for name in line.get("losses", {})})
    task_names += sorted({name for line in evaluations for name in line["dev"].get("tasks", {})} - set(task_names))
    colour_of = {name: COLOURS[row % len(COLOURS)] for row, name in enumerate(task_names)}

    figure = Figure(figsize=(8.5, 6.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for stage, offset in offsets.items():
        steps = [line for line in training if line["stage"] == stage]
        devs = [line for line in evaluations if line["stage"] == stage]
        points = [(offset + line["step"], line["loss"]) for line in steps]
        upper.plot(*_thinned(points), color="black", linewidth=1.8, label="weighted sum (train)", zorder=3)
        points = [(offset + line["step"], line["dev"].get("loss")) for line in devs]
        upper.plot(
            *_present(points), "o--", color="black", markersize=4, linewidth=1, label="weighted sum (dev)", zorder=3
        )
        for name in task_names:
            points = [(offset + line["step"], line.get("losses", {}).get(name)) for line in steps]
            upper.plot(*_thinned(points), color=colour_of[name], linewidth=1.2, label=shown(f"{name} (train)"))
        for name in task_names:
            for metric in [kind.curve for kind in KINDS.values()]:
                points = [
                    (offset + line["step"], line["dev"].get("tasks", {}).get(name, {}).get(metric)) for line in devs
                ]
                label = shown(f"{name} {metric.upper()}")
                lower.plot(*_present(points), "o-", color=colour_of[name], markersize=4, linewidth=1.2, label=label)
    for stage, offset in offsets.items():
        for axes in (upper, lower):
            if offset:
                axes.axvline(offset + 0.5, color=_GREY, linewidth=0.8, linestyle=":")
        middle = offset + num_steps[stage] / 2
        upper.text(
            middle, 1.01, f"stage {stage}", transform=upper.get_xaxis_transform(), ha="center", va="bottom", color=_GREY
        )
    _finish_curves(upper, "loss")
    _finish_curves(lower, "dev metric")
    if all(
        loss > 0 for line in upper.get_lines() for loss in np.asarray(line.get_ydata()) if line.get_label()[0] != "_"
    ):
        upper.set_yscale("log")
        upper.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        upper.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        upper.yaxis.set_minor_formatter(NullFormatter())
    bottom, top = lower.get_ylim()
    lower.set_ylim(min(bottom, -0.02), max(top, 1.02))
    lower.set_xlabel("optimizer step")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, path)


def ari_figure(
    tasks: Sequence[str],
    layers: Sequence[str | int],
    coefficients_KN: Sequence[Sequence[float]] | np.ndarray,
    path: Path,
) -> None:
    """Draw the learned ARI coefficients, one row per task and one column per layer, as PNG.

    Args:
        tasks: names of the K rows.
        layers: names of the N columns.
        coefficients_KN: the coefficients; the colours are symmetric around zero.
        path: the PNG to write.
    """
    values_KN = np.asarray(coefficients_KN, dtype=float)
    limit = float(np.abs(values_KN).max()) or 1.0
    size_inch = (float(np.clip(2.6 + 0.5 * len(layers), 4.5, 14)), float(np.clip(1.4 + 0.42 * len(tasks), 2.0, 8)))
    figure = Figure(figsize=size_inch, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values_KN, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    if values_KN.size <= MAX_NUMBERED_CELLS:
        for (row, column), value in np.ndenumerate(values_KN):
            colour = "white" if abs(value) > 0.65 * limit else "#222222"
            axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7, color=colour)
    _name_ticks(axes, tasks, [str(layer) for layer in layers], rotate=False)
    axes.set_xlabel("encoder layer")
    axes.set_title("ARI coefficients", fontsize=11)
    figure.colorbar(image, ax=axes)
    _save(figure, path)


def _stages(lines: Iterable[Mapping[str, Any]]) -> list[int]:
    return sorted({line["stage"] for line in lines})


def _present(points: Sequence[tuple[float, float | None]]) -> tuple[list[float], list[float]]:
    # A skipped step has no finite loss.
    kept = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    return [x for x, _ in kept], [y for _, y in kept]


def _thinned(points: Sequence[tuple[float, float | None]]) -> tuple[np.ndarray, np.ndarray]:
    """Return means over equal runs of steps, so that thousands of noisy steps stay readable."""
    steps, values = _present(points)
    num_blocks = min(len(steps), _MAX_CURVE_POINTS) or 1
    blocks = [np.array_split(np.asarray(column, dtype=float), num_blocks) for column in (steps, values)]
    means = [np.array([block.mean() for block in column if block.size]) for column in blocks]
    return means[0], means[1]


def _finish_curves(axes: Axes, ylabel: str) -> None:
    """Label the panel; curves without points vanish, and each name stands once although every stage drew it."""
    for line in list(axes.get_lines()):
        if not np.size(line.get_xdata()):
            line.remove()
    handles, names = axes.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    if unique:
        legend = axes.legend(
            unique.values(), unique.keys(), loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _name_ticks(axes: Axes, rows: Sequence[str], columns: Sequence[str], *, rotate: bool = True) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    angle: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if rotate else {}
    for names, set_ticks, extra in ((rows, axes.set_yticks, {}), (columns, axes.set_xticks, angle)):
        if len(names) <= _MAX_NAMED_TICKS:
            set_ticks(range(len(names)), [shown(name) for name in names], fontsize=9, parse_math=False, **extra)
        else:
            set_ticks([])


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as file:
        # Without the version in the metadata the same numbers give the same bytes.
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
