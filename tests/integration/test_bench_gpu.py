"""`bench/gpu.py` end to end on a CPU: every part leaves rows, and what fails or dies ends nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "bench/gpu.py"
PARTS = ("ceilings", "wav2vec2-large", "wavlm-large", "trainer", "tests", "hubert-large")
KILLED = "wav2vec2-large"
LIMIT_S = 600


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), "--shape", "toy", "--out", str(out), *options]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def process_of(out: Path, part: str) -> int:
    """Wait until `part` has started; return the number of the process that works on it."""
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        text = (out / "rows.jsonl").read_text() if (out / "rows.jsonl").exists() else ""
        # The last line may be half written.
        for row in map(json.loads, text[: text.rfind("\n") + 1].splitlines()):
            if row["part"] == part and row.get("state") == "started":
                return row["pid"]
        time.sleep(0.05)
    raise TimeoutError(part)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[dict, str, int]:
    """The results of a run in which one process is killed, and micro-batches of 0.1 s cannot hold the clips."""
    out = tmp_path_factory.mktemp("bench") / "out"
    options = ("--no-compile", "--steps", "1", "--batch", "4", "--micro-batch-s", "8,0.1", "--budget", str(LIMIT_S))
    process = start(out, *options)
    os.kill(process_of(out, KILLED), signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)
    return json.loads((out / "results.json").read_text()), (out / "results.md").read_text(), process.returncode


def rows_of(results: dict, part: str, table: str) -> list[dict]:
    return [row for row in results["rows"] if row["part"] == part and row["table"] == table]


def test_every_part_leaves_rows(run) -> None:
    results, _, _ = run
    (ceilings,) = rows_of(results, "ceilings", "ceilings")
    assert ceilings["tflops"] > 0 and ceilings["copy_tb_per_s"] > 0
    for encoder in ("wavlm-large", "hubert-large"):
        speeds = rows_of(results, encoder, "speed")
        assert [row["stage"] for row in speeds] == ["emotion", "metadata"]
        for row in speeds:
            assert row["audio_s_per_s"] > 0 and row["p95_step_ms"] >= row["p50_step_ms"] > 0 and row["mfu"] > 0
            assert 0 <= row["padded_share"] < 0.5 and row["peak_gib"] > 0
        (parts,) = rows_of(results, encoder, "parts")
        names = ("data", "CNN", "positional_convolution", "layers", "ARI", "co-attention", "heads_and_losses")
        shares = [parts[name] for name in (*names, "optimizer")]
        assert min(shares) > 0 and sum(shares) == pytest.approx(1)
        assert len(rows_of(results, encoder, "kernels")) == 20
    peers = rows_of(results, "trainer", "peers")
    assert [row["peer"] for row in peers] == [
        *("Trainer, default", "Trainer, best", "plain loop, random batches", "plain loop, MetaSER's batches")
    ]
    assert all(row["audio_s_per_s"] > 0 for row in peers)
    assert "no GPU" in rows_of(results, "tests", "left out")[0]["why"]


def test_what_fails_or_dies_ends_nothing_else(run) -> None:
    results, table, code = run
    assert {part: state["state"] for part, state in results["parts"].items()} == {
        part: "failed" if part == KILLED else "done" for part in PARTS
    }
    failures = {(row["part"], row["what"]): row for row in results["rows"] if row["table"] == "failures"}
    assert failures[KILLED, "the rest of the part"]["why"] == f"its process ended with -{signal.SIGKILL}"
    too_short = failures["hubert-large", "micro-batches of 0.1 s"]
    assert "max_micro_batch_s must hold the longest clip" in too_short["why"] and "PlanError" in too_short["traceback"]
    assert code == 1
    assert "## Failures" in table and "--no-compile" in table.partition("## Left out")[2]


def test_a_spent_budget_is_said(tmp_path) -> None:
    process = start(tmp_path / "out", "--budget", "0.5")
    output, _ = process.communicate(timeout=LIMIT_S)
    states = json.loads((tmp_path / "out/results.json").read_text())["parts"]
    assert {state["state"] for state in states.values()} == {"left out"}
    assert all("budget" in state["why"] for state in states.values())
    assert process.returncode == 0, output


def test_an_unknown_part_is_refused(tmp_path) -> None:
    process = start(tmp_path / "out", "--only", "ceilings,wavlm-huge")
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2 and "wavlm-huge" in output and "wavlm-large" in output
