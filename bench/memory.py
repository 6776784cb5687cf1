"""Peak memory of each process by strategy: a random encoder of about 100 M parameters, two processes on a CPU, float32.

    python bench/memory.py [--steps 3]

No data is needed. For each strategy the peak resident memory of a process is read after the weights are spread, from
there to the end of the last step, and compared with that before the model was built. The figures in docs/reliability.md
come from here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from metaser.config.encoders import LogMelEncoderConfig
from metaser.config.schema import ModelConfig, ParallelConfig, StageConfig
from metaser.distributed import dist_info
from metaser.model.encoders.base import Inputs
from metaser.model.metaser import build_model
from metaser.processes import Processes
from metaser.tasks.spec import TaskSpec
from metaser.train.build import build_engine
from metaser.train.optim import build_optimizer
from metaser.train.stage import freeze_all_but, select_parameters
from shards.batch import as_batch

WAYS = {
    "ddp": {"strategy": "ddp"},
    "zero1": {"strategy": "zero1"},
    "zero2": {"strategy": "zero2"},
    "zero3": {"strategy": "zero3"},
}
COUNT = 2
ENCODER = LogMelEncoderConfig(width=768, num_layers=14, num_heads=12, feed_forward=3072, dropout=0.0)
SPECS = (
    TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=("a", "b", "c", "d")),
    TaskSpec(name="gender", kind="classification", fields=("gender",), labels=("f", "m")),
)
STAGE = StageConfig(
    name="both", train=("encoder", "ari", "heads", "coattention"), weights={"emotion": 1, "gender": 1}, num_steps=9
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    # Otherwise the allocator keeps what was freed, and the figures are of its habits.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    for name, way in WAYS.items():
        print(json.dumps({"strategy": name, **measure(way, arguments.steps)}), flush=True)


def measure(way: dict[str, str], num_steps: int) -> dict[str, float]:
    """Return the largest figures of any process, in MiB."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(COUNT):
        ours, theirs = context.Pipe()
        process = context.Process(target=run_rank, args=(rank, port, way, num_steps, theirs))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    found = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    return {key: round(max(figures[key] for figures in found)) for key in found[0]}


def run_rank(rank: int, port: int, way: dict[str, str], num_steps: int, pipe: Connection) -> None:
    """Train a few steps on noise and send what memory that took."""
    place = {"RANK": rank, "WORLD_SIZE": COUNT, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()})
    torch.set_num_threads(1)
    processes = Processes(ParallelConfig(device="cpu", **way), dist_info())  # type: ignore[arg-type]
    before = resident_mib("VmRSS")
    torch.manual_seed(0)
    model = build_model(ModelConfig(encoder=ENCODER), SPECS, "emotion")
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    trainable = select_parameters(model, STAGE)
    freeze_all_but(model, trainable)
    engine = build_engine(processes, model.train(), build_optimizer(model, trainable, STAGE), max_grad_norm=1.0)
    clip = np.random.default_rng(rank).normal(0, 0.1, 16_000).astype(np.float32)
    batch = as_batch(np.arange(1), clip[None], [len(clip)], [True])
    # Spreading needs the whole model for a moment; what counts is what training needs.
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(num_steps):
        with engine.accumulating(is_last=True):
            output = engine.forward(Inputs(batch.wave_BT, batch.num_samples_B))
            engine.backward(sum(logits.square().mean() for logits in output.logits.values()))  # type: ignore[arg-type]
        engine.step()
    pipe.send(
        {
            "peak_mib": resident_mib("VmHWM") - before,
            "between_steps_mib": resident_mib("VmRSS") - before,
            "parameters_m": num_parameters / 1e6,
        }
    )
    processes.barrier()
    processes.close()


def resident_mib(entry: str) -> float:
    """Return an entry of /proc/self/status: VmRSS now, VmHWM the most since it was reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry):
            return int(line.split()[1]) / 1024
    raise KeyError(entry)


if __name__ == "__main__":
    main()
