"""What other work on the machine does to a training's speed, by how the threads of an operation wait for each other.

    python bench/busy.py                 # alone, beside one busy loop, beside one per processor
    python bench/busy.py --real-time     # where other work cannot be stopped: "alone" runs ahead of it (as root)

One process for each way stays alive; they do a training step of the demo's first stage in turn, round after round, so
that what the machine does in the meantime meets all of them. Medians over the rounds, and of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
NUM_CPUS = len(os.sched_getaffinity(0))
OURS = f"{NUM_CPUS} threads, 1,000 spins"
WAYS = {
    f"{NUM_CPUS} threads, as torch waits": {"OMP_NUM_THREADS": str(NUM_CPUS)},
    OURS: {"OMP_NUM_THREADS": str(NUM_CPUS), "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"},
    f"{NUM_CPUS} threads, passive": {"OMP_NUM_THREADS": str(NUM_CPUS), "OMP_WAIT_POLICY": "passive"},
    "1 thread": {"OMP_NUM_THREADS": "1"},
}


def main() -> None:
    """Time every way in every condition, and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of each condition")
    parser.add_argument("--clips", type=int, default=8, help="clips of about 2 s in a step")
    parser.add_argument("--real-time", action="store_true", help="let 'alone' run ahead of all other work")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.clips)
        return
    print(f"{arguments.clips} clips a step, {NUM_CPUS} processors, load average {os.getloadavg()[0]:.1f} at the start")
    with ExitStack() as stack:
        plain = {way: stack.enter_context(worker(way, arguments.clips)) for way in WAYS}
        alone = plain
        if arguments.real_time:
            alone = {way: stack.enter_context(worker(way, arguments.clips, real_time=True)) for way in WAYS}
        for process in {*plain.values(), *alone.values()}:
            process.stdout.readline()
        for num_loops in sorted({0, 1, NUM_CPUS}):
            with busy_loops(num_loops):
                report(num_loops, alone if num_loops == 0 else plain, arguments.rounds)
    print(f"load average {os.getloadavg()[0]:.1f} at the end")


def report(num_loops: int, workers: dict[str, subprocess.Popen[str]], rounds: int) -> None:
    """Time each worker in turn and print one line for each."""
    speeds: dict[str, list[float]] = {way: [] for way in workers}
    for _ in range(rounds):
        for way, process in workers.items():
            speeds[way].append(speed_of(process))
    print("alone" if num_loops == 0 else f"beside {num_loops} busy loop(s)")
    for way, values in speeds.items():
        ratio = statistics.median(one / own for one, own in zip(values, speeds[OURS], strict=True))
        spread = f"({min(values):.1f} to {max(values):.1f})"
        print(
            f"  {way:28s} {statistics.median(values):6.1f} audio-s/s {spread:18s} x {ratio:.2f} of ours",
            flush=True,
        )


def speed_of(process: subprocess.Popen[str]) -> float:
    """Let a worker do one step; return its audio-seconds per second."""
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


@contextmanager
def worker(way: str, clips: int, *, real_time: bool = False):
    """Start a process that waits in that way, and says when it is ready to be timed."""
    chosen = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    process = subprocess.Popen(
        [sys.executable, __file__, "--worker", "--clips", str(clips)],
        env=chosen | WAYS[way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=run_ahead if real_time else None,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run_ahead() -> None:
    """Let this process and its threads have a processor whenever they want one."""
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


@contextmanager
def busy_loops(count: int):
    """Keep so many processors busy."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    time.sleep(0.5)
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def work(clips: int) -> None:
    """In a worker: do one step for each line that comes, and answer with its speed."""
    # Only here: a worker's variables must be set before torch is loaded.
    import numpy as np
    import torch
    from training import SPECS, time_step

    from metaser.config.load import load_experiment
    from metaser.config.schema import ParallelConfig
    from metaser.distributed import dist_info
    from metaser.model.metaser import build_model
    from metaser.processes import Processes
    from metaser.train.engine import Engine
    from metaser.train.optim import build_optimizer
    from metaser.train.stage import freeze_all_but, select_parameters

    experiment = load_experiment(ROOT / "configs" / "experiment" / "demo.yaml")
    stage = experiment.stages[0]
    torch.manual_seed(0)
    model = build_model(experiment.model, SPECS, "emotion")
    trainable = select_parameters(model, stage)
    freeze_all_but(model, trainable)
    model.train()
    processes = Processes(ParallelConfig(device="cpu"), dist_info())
    engine = Engine(processes, model, build_optimizer(model, trainable, stage), precision="float32", max_grad_norm=1.0)
    num_samples = np.sort(np.random.default_rng(0).normal(2.0, 0.4, clips).clip(1, 3) * 16_000).astype(int)
    for _ in range(2):  # the first steps allocate
        time_step(engine, stage, num_samples)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(time_step(engine, stage, num_samples), flush=True)


if __name__ == "__main__":
    main()
