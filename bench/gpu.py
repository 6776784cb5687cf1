"""Everything about training speed on one GPU, in less than six minutes: no network, no corpus, random weights.

    python bench/gpu.py                                      on a GPU
    python bench/gpu.py --only ceilings,wavlm-large,trainer  some parts
    python bench/gpu.py --shape toy --budget 120             on a CPU, to see that it works
    python bench/gpu.py --predict                            what a roofline allows, counted without a GPU

Parts: `ceilings` (bf16 matrix product on random data, device copy), `wav2vec2-large`, `wavlm-large`, `hubert-large`
(both stages with all tasks: speed, where a step's time goes, the twenty dearest kernels, several micro-batches,
compiled layers), `trainer` (the Trainer of transformers and plain loops on the same encoder, clips and precision),
`tests` (`pytest -m gpu`: one process, plain and with ZeRO 1 to 3 over NCCL, in bf16 and fp16).

Clips are noise of IEMOCAP-like lengths and lie in (on a GPU: page-locked) memory; bench/reader.py measures reading. A
row is written as soon as it is measured: `rows.jsonl`, `results.json` and `results.md` in `--out`. A part that fails
leaves its traceback, the others go on in a new process; what no longer fits `--budget` is left out and said. The exit
code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from gpu.report import Rows, part_states, write_report

LEAST_S = {"ceilings": 8, "wav2vec2-large": 40, "wavlm-large": 40, "trainer": 35, "tests": 45, "hubert-large": 30}
"""The parts in their order, each with the seconds below which it is not begun. HuBERT has wav2vec 2.0's modules,
so it is what a short budget loses first."""
GRACE_S = 15
"""How long a part may exceed its share of the budget, in a compilation for instance, before its process is ended."""


def main() -> int:
    """Run the parts in processes of their own, write what they find, say what was left out."""
    arguments = parse()
    out: Path = arguments.out
    parts = ["predict"] if arguments.predict else arguments.only.split(",")
    if arguments.worker:
        from gpu.worker import work

        arguments.least_s = LEAST_S
        return work(arguments, parts)
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.jsonl").unlink(missing_ok=True)
    arguments.deadline = time.time() + (float("inf") if arguments.predict else arguments.budget)
    waiting = parts
    while waiting:
        supervise(arguments, waiting, parts)
        states = part_states(Rows(out / "rows.jsonl").read(), parts)
        waiting = [part for part in parts if states[part]["state"] == "waiting"]
    write_report(out, parts)
    rows = Rows(out / "rows.jsonl").read()
    print((out / "results.md").read_text("utf-8"))
    print(f"written: {out / 'results.json'}, {out / 'results.md'}")
    return int(any(row["table"] == "failures" for row in rows))


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder (runs/gpu, or runs/gpu-predicted with --predict)")
    parser.add_argument("--only", default=",".join(LEAST_S), help="parts, separated by commas")
    parser.add_argument("--shape", choices=("large", "toy"), default="large")
    parser.add_argument("--budget", type=float, default=330, help="seconds for all parts")
    parser.add_argument("--precision", choices=("bf16", "fp16", "float32"), default="bf16")
    parser.add_argument("--batch", type=int, help="clips of a step (large: 64, toy: 8)")
    parser.add_argument("--micro-batch-s", help="padded seconds of a micro-batch, the main one first (160,80,320)")
    parser.add_argument("--steps", type=int, help="most timed steps of a measurement (large: 12, toy: 2)")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled layers out")
    parser.add_argument("--predict", action="store_true", help="count a roofline from the modules, run nothing")
    parser.add_argument("--tflops", type=float, default=790, help="of --predict: bf16 matrix products")
    parser.add_argument("--bandwidth", type=float, default=3.0, help="of --predict: TB/s, read and written")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out = arguments.out or Path("runs/gpu-predicted" if arguments.predict else "runs/gpu")
    unknown = [part for part in arguments.only.split(",") if part not in LEAST_S]
    if unknown:
        parser.error(f"--only takes {', '.join(LEAST_S)}, got {', '.join(unknown)}")
    return arguments


def supervise(arguments: argparse.Namespace, waiting: list[str], parts: list[str]) -> None:
    """Let one process work through `waiting` until it is done or dies; every part that it began has a state then."""
    rows = Rows(arguments.out / "rows.jsonl")
    given = [word for word in sys.argv[1:] if word != "--worker"]
    command = [sys.executable, __file__, *given, "--only", ",".join(waiting), "--worker"]
    if arguments.predict:
        command = [sys.executable, __file__, *given, "--worker"]
    command += ["--deadline", str(arguments.deadline)]
    # A session of its own, so that its readers, tests and compilers end with it.
    process = subprocess.Popen(command, start_new_session=True)
    num_rows = -1
    cut = None
    try:
        while process.poll() is None:
            so_far = rows.read()
            if len(so_far) != num_rows:
                num_rows = len(so_far)
                write_report(arguments.out, parts)
            started = [row for row in so_far if row["table"] == "state"][-1:]
            if started and started[0]["state"] == "started" and time.time() > started[0]["until"] + GRACE_S:
                cut = f"it exceeded its share of the budget by {GRACE_S} s"
                break
            if time.time() > arguments.deadline:
                cut = "the budget was spent"
                break
            time.sleep(0.2)
    finally:
        # Even where the process itself has ended: what it left would disturb the next measurements.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    states = part_states(rows.read(), waiting)
    begun = [part for part in waiting if states[part]["state"] == "started"]
    why = cut or f"its process ended with {process.returncode}"
    if process.returncode and not cut and not begun and states[waiting[0]]["state"] == "waiting":
        begun = waiting[:1]
    for part in begun:
        rows.append("state", part, state="cut off" if cut else "failed", why=why)
        rows.append("left out" if cut else "failures", part, what="the rest of the part", why=why)
    if cut == "the budget was spent":
        for part in waiting:
            if states[part]["state"] == "waiting":
                rows.append("state", part, state="left out", why=why)


if __name__ == "__main__":
    sys.exit(main())
