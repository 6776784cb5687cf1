"""What this card can do at most: bf16 matrix products and copies in its memory."""

from __future__ import annotations

import time

import torch
from training import synchronise

from gpu.work import Bench

REPETITIONS = 20


def measure_ceilings(bench: Bench) -> None:
    """Write the TFLOP/s of a matrix product and the bytes read plus written each second by a copy."""
    size, device = bench.shape.matrix, bench.device
    # Random: of zeros a card multiplies faster, because it needs less power.
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)

    def multiply() -> None:
        torch.mm(left, right, out=product)

    source = torch.empty(bench.shape.copied_mib * 2**20, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    bench.row(
        "ceilings",
        matrix=size,
        tflops=2 * size**3 / seconds_of(multiply) / 1e12,
        copied_mib=bench.shape.copied_mib,
        copy_tb_per_s=2 * source.numel() / seconds_of(copy) / 1e12,
    )


def seconds_of(action) -> float:
    """Return the mean time of `action` after warming up."""
    for _ in range(3):
        action()
    synchronise()
    started = time.perf_counter()
    for _ in range(REPETITIONS):
        action()
    synchronise()
    return (time.perf_counter() - started) / REPETITIONS
