"""A trained model as a folder that `MetaSERModel.from_pretrained` reads."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np

from metaser.model.metaser import MetaSERModel
from metaser.runfiles import writing
from shards.config import DataConfig
from shards.schema import RATE_HZ

_LONGEST_WINDOW_S = 60.0


def export_model(model: MetaSERModel, folder: Path, *, card: str) -> None:
    """Write `config.json`, `model.safetensors` and `README.md` (`card`) to `folder`, replacing what is there.

    The folder appears whole: a reader sees the old model or the new one.

    Raises:
        RunError: if the disk refuses; what was there stays.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    replaced = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    with writing(folder):
        model.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def hear_as_trained(model: MetaSERModel, num_samples: np.ndarray, data: DataConfig) -> None:
    """Write into the configuration how long a window of a long recording `metaser predict` lets the model hear.

    That is the window it was trained with, or its longest training clip in whole seconds, up to a minute (the memory of
    some encoders grows with the square) and up to what its encoder hears.
    """
    longest_s = min(float(math.ceil(num_samples.max() / RATE_HZ)), _LONGEST_WINDOW_S)
    if model.longest_samples is not None:
        longest_s = min(longest_s, model.longest_samples / RATE_HZ)
    model.config.window_s = longest_s if data.window_s is None else data.window_s
    model.config.window_overlap_s = data.window_overlap_s
