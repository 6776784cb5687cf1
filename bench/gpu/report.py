"""Results as they come: lines that processes append, and the JSON and Markdown files that are made of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Rows:
    """Lines of JSON in a file, of which each is whole as soon as it stands there; several processes append."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, table: str, part: str, **values: Any) -> None:
        """Add a row of `table`, measured by `part`."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"table": table, "part": part, **values}) + "\n")

    def read(self) -> list[Row]:
        """Return all rows so far; a last line that is not complete yet is left out."""
        if not self._path.exists():
            return []
        text = self._path.read_text("utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def part_states(rows: Iterable[Row], parts: Sequence[str]) -> dict[str, Row]:
    """Return each part's last state: waiting, started, done, failed or left out."""
    states: dict[str, Row] = {part: {"state": "waiting"} for part in parts}
    states |= {row["part"]: row for row in rows if row["table"] == "state"}
    return states


def write_report(out: Path, parts: Sequence[str]) -> None:
    """Write `results.json` and `results.md` of the rows that are there."""
    rows = Rows(out / "rows.jsonl").read()
    states = part_states(rows, parts)
    measured = [row for row in rows if row["table"] != "state"]
    _add_shares(measured)
    _replace(out / "results.json", json.dumps({"parts": states, "rows": measured}, indent=1) + "\n")
    _replace(out / "results.md", _markdown(states, measured))


def _replace(path: Path, text: str) -> None:
    written = path.with_suffix(".part")
    written.write_text(text, "utf-8")
    written.replace(path)


def _add_shares(rows: list[Row]) -> None:
    """Add what needs two rows: MFU, and how much faster MetaSER's best is than each peer."""
    ceilings = [row for row in rows if row["table"] == "ceilings"]
    for row in rows:
        if ceilings and row.get("tflop_per_audio_s"):
            row["mfu"] = row["audio_s_per_s"] * row["tflop_per_audio_s"] / ceilings[-1]["tflops"]
    ours = [row for row in rows if row["table"] == "speed" and row["stage"] == "emotion"]
    for row in rows:
        speeds = [our["audio_s_per_s"] for our in ours if row["table"] == "peers" and our["part"] == row["encoder"]]
        if speeds:
            row["metaser_is_faster"] = max(speeds) / row["audio_s_per_s"]


_TITLES = {
    "machine": "Machine",
    "ceilings": "Ceilings",
    "tests": "The `gpu` tests",
    "speed": "Speed",
    "parts": "Where a step's time goes",
    "gaps": "Share of a step in which no kernel runs",
    "peers": "Peers",
    "kernels": "The dearest kernels",
    "prediction": "Prediction by part",
    "sums": "Prediction of the whole",
    "wastes": "The dearest wastes predicted: time beyond that of the matrix products alone",
}
_LEFT_TO_JSON = {"table", "traceback", "output"}


def _markdown(states: dict[str, Row], rows: list[Row]) -> str:
    lines = ["# Results", ""]
    lines += _table([{"part": part, **_shown_state(state)} for part, state in states.items()])
    for name, title in _TITLES.items():
        of_table = [row for row in rows if row["table"] == name]
        if of_table:
            lines += [f"## {title}", "", *_table(of_table)]
    failures = [row for row in rows if row["table"] == "failures"]
    if failures:
        lines += ["## Failures", "", "Tracebacks stand in `results.json`.", "", *_table(failures)]
    left_out = [row for row in rows if row["table"] == "left out"]
    lines += ["## Left out", "", *(_table(left_out) if left_out else ["Nothing within the parts that ran.", ""])]
    return "\n".join(lines)


def _shown_state(state: Row) -> Row:
    return {name: state[name] for name in ("state", "seconds", "why") if name in state}


def _table(rows: Sequence[Row]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row if name not in _LEFT_TO_JSON))
    lines = [f"| {' | '.join(column.replace('_', ' ') for column in columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        lines.append(f"| {' | '.join(_shown(row.get(column)) for column in columns)} |")
    return [*lines, ""]


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")[:160]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def speed_of(audio_s: Sequence[float], seconds: Sequence[float]) -> Row:
    """Return the columns that every measurement of steps has, from each step's audio and time."""
    return {
        "audio_s_per_s": sum(audio_s) / sum(seconds),
        "p50_step_ms": 1000 * statistics.median(seconds),
        "p95_step_ms": 1000 * percentile(seconds, 0.95),
        "steps": len(seconds),
    }
