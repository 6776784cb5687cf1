"""Sound input that several areas damage: a tiny corpus, the run trained on it, and recordings."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import yaml

from shards.schema import RATE_HZ

COMMON = Path("common")
"""Below the folder in which areas run."""
RUN, SHARDS, EXPERIMENT, GOOD = COMMON / "run", COMMON / "shards", COMMON / "tiny.yaml", COMMON / "good.wav"
RUN_WITH_VIEWS = COMMON / "run-with-views"
"""Trained with a view of the sound and one of the text."""


def make_common(*, with_run: bool = True) -> None:
    """Make what is not there yet: the corpus, the experiment, a recording, and the run."""
    from tinyruns import make_corpus

    if not SHARDS.exists():
        COMMON.mkdir(exist_ok=True)
        make_corpus(COMMON)
        sf.write(GOOD, sound(0), RATE_HZ)
    if with_run and not RUN.exists():
        train(RUN)


def make_run_with_views() -> None:
    """Make what is not there yet of the run with views."""
    from textfolders import save_bert, with_views

    make_common(with_run=False)
    if not RUN_WITH_VIEWS.exists():
        train(RUN_WITH_VIEWS, *with_views(save_bert(COMMON / "bert")))


def train(run: Path, *overrides: str) -> None:
    """Train the tiny experiment in this process."""
    from metaser.config.load import load_experiment
    from metaser.distributed import DistInfo
    from metaser.train.run import train as train_run

    train_run(load_experiment(EXPERIMENT, [f"output_dir={run}", *overrides]), DistInfo(0, 1, 0))


def sound(seed: int, num_samples: int = 8000) -> np.ndarray:
    """Return a tone in noise."""
    noise = np.random.default_rng(seed).standard_normal(num_samples)
    return (0.2 * np.sin(np.arange(num_samples) * (0.02 + 0.01 * seed)) + 0.02 * noise).astype(np.float32)


@cache
def experiment() -> dict[str, Any]:
    """Return the tree of the tiny experiment."""
    tree: dict[str, Any] = yaml.safe_load(EXPERIMENT.read_text())
    return tree


def copy_folder(source: Path, to: Path) -> Path:
    """Copy a folder, files that are only read as links: what is damaged is written anew."""
    return shutil.copytree(source, to)


def files_of(folder: Path) -> list[Path]:
    """Return all files below `folder`, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def replace_file(draw: random.Random, path: Path) -> str:
    """Put something in the place of a file that is none, or nothing; return what."""
    what = draw.choice(("gone", "folder", "loop", "empty", "device", "pipe"))
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "empty":
        path.touch()
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "pipe":
        os.mkfifo(path)
    return what


def resign(path: Path) -> None:
    """Make right the hash of a changed file: beside it, in config.json or in the marker of its checkpoint."""
    if path.name.startswith("tokenizer_"):
        config = path.with_name("config.json")
        tree = json.loads(config.read_bytes())
        tree["views"]["words"]["tokenizer_sha256"] = _sha256(path)
        config.write_text(json.dumps(tree, indent=2))
    sums = path.with_name("SHA256SUMS")
    if sums.is_file():
        names = [line.split("  ", 1)[1] for line in sums.read_text().splitlines()]
        sums.write_text("".join(f"{_sha256(path.with_name(name))}  {name}\n" for name in names))
    marker = path.with_name("checkpoint.json")
    if marker.is_file():
        try:
            tree = json.loads(marker.read_bytes())
            for name, record in tree["files"].items():
                file = marker.with_name(name)
                record |= {"num_bytes": file.stat().st_size, "sha256": _sha256(file)}
            tree.pop("sha256", None)
        except (ValueError, TypeError, LookupError, AttributeError, OSError, RecursionError):
            return
        digest = hashlib.sha256(json.dumps(tree, indent=1, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()
        marker.write_text(json.dumps({**tree, "sha256": digest}, indent=1, ensure_ascii=False), errors="replace")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def json_lines(text: str) -> list[Any]:
    """Return the objects of JSON lines of ours."""
    from fuzz.area import parsed_json

    return [parsed_json(line) for line in text.splitlines()]


def choose(draw: random.Random, weighted: Sequence[tuple[str, int]]) -> str:
    """Return one of several words, each as often as its number says."""
    (chosen,) = draw.choices([word for word, _ in weighted], [weight for _, weight in weighted])
    return chosen
