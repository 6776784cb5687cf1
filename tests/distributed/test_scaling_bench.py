"""Bytes that two processes send are what each strategy must, and the benchmark of scaling runs from end to end."""

import json
import os
import subprocess
import sys

import pytest
from tinyruns import REPOSITORY

pytestmark = pytest.mark.distributed

TOY = ("--processes", "2", "--width", "64", "--layers", "2", "--rounds", "1")
PREDICTED = ("--gpus", "8", "--clips-per-gpu", "4")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("scaling") / "rows.json"
    command = [sys.executable, REPOSITORY / "bench" / "scaling.py", *TOY, *PREDICTED, "--json", path]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def test_every_way_sends_what_its_collectives_need(rows):
    counted = {row["way"]: row for row in rows["measured"] if "sent_mb" in row}
    assert counted.keys() >= {"torch", "accelerate", "metaser ddp", *(f"metaser zero{stage}" for stage in (1, 2, 3))}
    for way, row in counted.items():
        # Over gloo, between two processes: a whole tensor for a reduction, half of one for a gathering.
        sizes = {name: mb for name, (_, mb) in row["collectives"].items()}
        expected = sum(mb * (0.5 if name == "all_gather" else 1.0) for name, mb in sizes.items())
        # Each call has headers of its own: 284 bytes were measured.
        calls = sum(number for number, _ in row["collectives"].values())
        assert expected <= row["sent_mb"] <= 1.01 * expected + calls * 500e-6, way


def test_ddp_sends_the_theory_and_nothing_besides(rows):
    for row in rows["measured"]:
        if row["way"] in ("torch", "accelerate", "metaser ddp"):
            assert row["sent_mb"] == pytest.approx(row["theory_mb"], rel=0.01)


def test_metaser_sends_as_much_as_deepspeed_alone(rows):
    sent = {row["way"]: row["sent_mb"] for row in rows["measured"] if "sent_mb" in row}
    for stage in (1, 2, 3):
        assert sent[f"metaser zero{stage}"] == pytest.approx(sent[f"deepspeed {stage}"], rel=0.02)


def test_the_model_is_compared_with_every_strategy(rows):
    compared = {row["way"]: row["error"] for row in rows["measured"] if "error" in row}
    assert compared.keys() == {"metaser ddp", "metaser zero1", "metaser zero2", "metaser zero3"}
    assert all(error > -1 for error in compared.values())
    assert {row["strategy"] for row in rows["predicted"]} == {"ddp", "zero1", "zero2", "zero3"}
