"""A trained model as a folder that `MetaSERModel.from_pretrained` reads."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from metaser.model.metaser import MetaSERModel
from metaser.rundir import writing
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
        (temporary / "README.md").write_text(card)
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def hear_as_trained(model: MetaSERModel, num_samples: np.ndarray, data: DataConfig) -> None:
    """Write into the configuration how long a window of a long recording `metaser predict` lets the model hear.

    That is the window it was trained with, or its longest training clip in whole seconds, up to a minute: the memory of
    some encoders grows with the square.
    """
    longest_s = min(float(math.ceil(num_samples.max() / RATE_HZ)), _LONGEST_WINDOW_S)
    model.config.window_s = longest_s if data.window_s is None else data.window_s
    model.config.window_overlap_s = data.window_overlap_s


def model_card(model: MetaSERModel, *, trained_on: dict[str, Any], dev: str) -> str:
    """Return the README of an exported model.

    `trained_on` is the split protocol of the run, `dev` one sentence about how the weights were selected.
    """
    tasks = "\n".join(
        f"| {task['name']} | {task['kind']} | {', '.join(task['labels']) if task['kind'] != 'ctc' else 'characters'} |"
        for task in model.config.tasks
    )
    counts, speakers = trained_on["num_utterances"], trained_on["num_speakers"]
    overlap = (
        "**Train, dev and test share speakers (speaker overlap).**"
        if trained_on["speaker_overlap"]
        else ("Train, dev and test share no speaker.")
    )
    return f"""---
library_name: transformers
pipeline_tag: audio-classification
tags: [speech-emotion-recognition, metaser]
---

# MetaSER model

Trained by MetaSER in two stages: on the corpus's metadata, then on {model.config.main_task}. {dev}

| task | kind | labels |
|---|---|---|
{tasks}

Trained on {counts["train"]} utterances of {speakers["train"]} speakers, selected on {counts["dev"]} of
{speakers["dev"]}.
{overlap}

Input is mono audio at 16 kHz. `metaser predict FOLDER some.wav` prints the probabilities; in Python:
`MetaSERModel.from_pretrained(FOLDER)` from `metaser.model.metaser`.
"""
