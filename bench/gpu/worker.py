"""The process that works through parts, one after the other, until one breaks it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import accelerate
import torch
import transformers
from accelerate.state import AcceleratorState
from training import synchronise

from gpu.ceilings import measure_ceilings
from gpu.peers import measure_peers
from gpu.predict import predict
from gpu.report import Rows
from gpu.speed import measure_encoder
from gpu.work import ENCODERS, SHAPES, Bench, Shape, failure, free_memory

REPOSITORY = Path(__file__).resolve().parents[2]


def work(arguments: argparse.Namespace, parts: list[str]) -> int:
    """Run `parts`; return 0, or 1 if one failed such that the rest needs a new process."""
    rows = Rows(arguments.out / "rows.jsonl")
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.predict else "cpu")
    if not any(row["table"] == "machine" for row in rows.read()):
        rows.append("machine", parts[0], **describe_machine(device), command=shape_words(arguments))
    shape = shape_of(arguments)
    for number, part in enumerate(parts):
        later_s = sum(arguments.least_s[later] for later in parts[number + 1 :] if device.type == "cuda")
        until = arguments.deadline - later_s
        least_s = arguments.least_s.get(part, 0) if device.type == "cuda" else 0
        if time.time() + least_s > arguments.deadline:
            why = (
                f"{max(0, arguments.deadline - time.time()):.0f} s were left of the budget, it needs about {least_s} s"
            )
            rows.append("state", part, state="left out", why=why)
            continue
        # The Trainer sets accelerate up by other settings than MetaSER.
        AcceleratorState._reset_state(reset_partial_state=True)
        started = time.time()
        until = max(until, started + least_s)
        rows.append("state", part, state="started", until=until, pid=os.getpid())
        bench = Bench(arguments, rows, part, until, shape, device)
        try:
            PARTS[part](bench)
        except Exception as error:
            rows.append("failures", part, what="the part", **failure(error))
            rows.append("state", part, state="failed", seconds=time.time() - started)
            free_memory()
            # Tests that were cut off may have left processes, which end with this one's group.
            if part == "tests" or is_broken():
                return 1
            continue
        rows.append("state", part, state="done", seconds=time.time() - started)
        free_memory()
    return 0


def is_broken() -> bool:
    """Return whether the GPU answers no more in this process."""
    try:
        synchronise()
    except RuntimeError:
        return True
    return False


def shape_of(arguments: argparse.Namespace) -> Shape:
    """Return the shape that the command line names, with what it changes."""
    shape = SHAPES[arguments.shape]
    if arguments.micro_batch_s:
        shape = shape._replace(micro_batches_s=tuple(map(float, arguments.micro_batch_s.split(","))))
    return shape._replace(batch=arguments.batch or shape.batch, steps=arguments.steps or shape.steps)


def shape_words(arguments: argparse.Namespace) -> str:
    """Return what a reader must know of the command line."""
    shape = shape_of(arguments)
    return f"{arguments.shape} shape, {arguments.precision}, {shape.batch} clips a step"


def describe_machine(device: torch.device) -> dict[str, object]:
    """Return the device and the versions."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }


def run_gpu_tests(bench: Bench) -> None:
    """Run `pytest -m gpu`, over several processes where there are cores for them.

    Raises:
        RuntimeError: A test failed, or the tests did not end in time.
    """
    if bench.device.type != "cuda":
        bench.row("left out", what="the `gpu` tests", why="there is no GPU")
        return
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/distributed/test_gpu.py"]
    if importlib.util.find_spec("xdist") and (os.cpu_count() or 1) >= 8:
        command += ["-n", "4"]
    started = time.time()
    left_s = bench.until - started
    try:
        done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=left_s)
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"")[-4000:].decode(errors="replace")
        bench.row("tests", passed=None, seconds=left_s, output=output)
        raise RuntimeError(f"the `gpu` tests did not end within {left_s:.0f} s") from error
    output = done.stdout[-6000:].decode(errors="replace")
    counted = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|error|skipped)", output)}
    bench.row("tests", **counted, seconds=time.time() - started, output=output)
    if done.returncode:
        raise RuntimeError(f"pytest -m gpu ended with {done.returncode}: {output[-300:]}")


PARTS: dict[str, Callable[[Bench], None]] = {
    "ceilings": measure_ceilings,
    **{name: partial(measure_encoder, name=name) for name in ENCODERS},
    "trainer": measure_peers,
    "tests": run_gpu_tests,
    "predict": predict,
}
