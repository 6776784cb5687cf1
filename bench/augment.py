"""What augmentation costs: each one's time as a share of a forward and backward pass of the demo's encoder.

    python bench/augment.py                 a batch as the demo's: 16 clips of about 2 s
    python bench/augment.py --mean-s 4.5    clips of IEMOCAP-like lengths

Every augmentation changes every clip (probability 1), drawing and computing included. The passes and all augmentations
are timed in turn, round after round, on the same batch; times, and shares of the same round's pass, are medians over
the rounds. Runs on a GPU if there is one, else on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from metaser.config.augment import AugmentConfig
from metaser.config.load import load_experiment
from metaser.model.encoders.base import Inputs, SpeechEncoder
from metaser.model.encoders.families import build_encoder
from metaser.model.encoders.logmel import log_mel
from metaser.train.augment import Augmenter
from shards.batch import Batch, as_batch
from shards.schema import RATE_HZ

DEMO = Path(__file__).parents[1] / "configs" / "experiment" / "demo.yaml"
AUGMENTATIONS = {
    "speed 0.9 or 1.1": {"speed": {"factors": [0.9, 1.1]}},
    "reverberation": {"reverberation": {}},
    "noise": {"noise": {}},
    "gain": {"gain": {}},
    "band limit: telephone": {"band_limit": {"kinds": ["telephone"]}},
    "band limit: 8khz": {"band_limit": {"kinds": ["8khz"]}},
    "band limit: mu_law": {"band_limit": {"kinds": ["mu_law"]}},
}


def main() -> None:
    """Time everything and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="clips")
    parser.add_argument("--mean-s", type=float, default=2.0, help="mean length of a clip")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = noise_batch(arguments.batch, arguments.mean_s)
    config = load_experiment(DEMO).model.encoder
    torch.manual_seed(0)
    encoder = build_encoder(config.model_dump()).to(device)
    on_device = batch.to(device)
    works: dict[str, Callable[[int], object]] = {"pass": lambda number: forward_backward(encoder, on_device)}
    for name, parts in AUGMENTATIONS.items():
        works[name] = augmentation(parts, batch, device)
    every = {name: values for parts in AUGMENTATIONS.values() for name, values in parts.items()}
    works["all of these together"] = augmentation({**every, "band_limit": {}}, batch, device)
    works["log-mel"] = lambda number: mel_frames(encoder, on_device, None)
    works["log-mel with VTLP"] = lambda number: mel_frames(
        encoder, on_device, torch.linspace(0.9, 1.1, arguments.batch)
    )
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(arguments.rounds + 2):
        for name, work in works.items():
            taken = timed(work, number)
            if number >= 2:  # the first rounds allocate, make filters and built-in noise
                seconds[name].append(taken)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    audio_s = float(batch.num_samples_B.sum()) / RATE_HZ
    print(f"{arguments.batch} clips, {audio_s:.1f} s of audio, {where}, torch {torch.__version__}")
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"forward and backward of the demo's encoder: {1000 * median['pass']:.1f} ms")
    seconds["vtlp, on top of plain log-mel"] = [
        warped - plain for warped, plain in zip(seconds["log-mel with VTLP"], seconds["log-mel"], strict=True)
    ]
    for name in [*AUGMENTATIONS, "all of these together", "vtlp, on top of plain log-mel"]:
        share = statistics.median(taken / one for taken, one in zip(seconds[name], seconds["pass"], strict=True))
        print(f"{name}: {1000 * statistics.median(seconds[name]):.2f} ms, {share:.1%}")


def noise_batch(num_clips: int, mean_s: float) -> Batch:
    """Return noise whose lengths spread as those of IEMOCAP: log-normal."""
    generator = np.random.default_rng(0)
    seconds = np.sort(np.clip(np.exp(generator.normal(np.log(mean_s) - 0.18, 0.6, num_clips)), 0.6, 30))
    lengths = [round(length * RATE_HZ) for length in seconds]
    wave_BT = np.zeros((num_clips, max(lengths)), np.float32)
    for row, length in zip(wave_BT, lengths, strict=True):
        row[:length] = generator.normal(0, 0.1, length)
    return as_batch(np.arange(num_clips), wave_BT, lengths, [True] * num_clips)


def augmentation(parts: dict[str, dict[str, object]], batch: Batch, device: torch.device) -> Callable[[int], object]:
    """Return work that draws for the epoch it is given and changes every clip."""
    config = AugmentConfig.model_validate({name: {"probability": 1, **values} for name, values in parts.items()})
    augmenter = Augmenter(config, seed=0)
    keys, on_device = [str(number) for number in range(len(batch.items_B))], batch.to(device)
    return lambda epoch: augmenter.apply(on_device, augmenter.draw(batch, keys, epoch))


def forward_backward(encoder: SpeechEncoder, batch: Batch) -> None:
    """Do what a training step does to the encoder, without the update."""
    encoder(Inputs(batch.wave_BT, batch.num_samples_B)).layers[-1].square().mean().backward()
    encoder.zero_grad()


def mel_frames(encoder: SpeechEncoder, batch: Batch, warp_B: torch.Tensor | None) -> torch.Tensor:
    """Return the encoder's input frames."""
    real_BT = torch.arange(batch.wave_BT.shape[1], device=batch.wave_BT.device) < batch.num_samples_B[:, None]
    warp_B = None if warp_B is None else warp_B.to(batch.wave_BT.device)
    return log_mel(batch.wave_BT, real_BT, encoder.num_mask_features, warp_B)


def timed(work: Callable[[int], object], number: int) -> float:
    """Return the seconds that one call takes, the device's work included."""
    synchronise()
    started = time.perf_counter()
    work(number)
    synchronise()
    return time.perf_counter() - started


def synchronise() -> None:
    """Wait for the device, so that the clock sees its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
