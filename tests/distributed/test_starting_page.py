"""The commands of docs/getting-started.md that train, evaluate and predict, as they stand there but for fewer steps."""

import os
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from startingpage import PAGE, RUNNABLE
from tinyencoders import BUCKETS, SIZES
from tinyruns import REPOSITORY, metaser
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

pytestmark = pytest.mark.distributed

FEW = dict.fromkeys(("num_steps", "eval_every_steps", "save_every_steps"), 2)
NUM_STAGES = {"configs/experiment/emodb.yaml": 2, "configs/experiment/demo.yaml": 2, "mine.yaml": 1}


def block(first_line):
    """Return what stands indented on the page from `first_line` on."""
    (found,) = re.findall(rf"^(    {re.escape(first_line)}.*\n(?:(?:    .*)?\n)*)", PAGE, flags=re.MULTILINE)
    return "\n".join(line[4:] for line in found.splitlines())


@pytest.fixture(scope="module")
def place(corpus, tmp_path_factory):
    """A folder that holds what the page's commands name."""
    folder = tmp_path_factory.mktemp("page")
    corpus.train(folder / "runs/demo")
    shutil.copytree(corpus.shards, folder / "runs/demo/shards")
    shutil.copytree(corpus.shards, folder / "data/mine")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    (folder / "mine.yaml").write_text(block("# Emotion only, from scratch"))
    for name in ("some.wav", "other.mp3", "new.wav", "meeting.flac", "call.wav"):
        sound = 0.1 * np.random.default_rng(1).standard_normal((24_000, 2 if name == "call.wav" else 1))
        soundfile.write(folder / name, sound, 16_000)
    # The hub's name is a folder's here.
    torch.manual_seed(0)
    WavLMModel(WavLMConfig(**SIZES, **BUCKETS)).save_pretrained(folder / "microsoft/wavlm-large")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder / "microsoft/wavlm-large")
    return folder


def test_training_evaluating_and_predicting_as_on_the_page(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    run = []
    for verb, *arguments in RUNNABLE:
        if verb not in ("train", "evaluate", "predict", "status"):
            continue
        words = [
            path for word in arguments for path in (map(str, sorted(Path().glob(word))) if "*" in word else [word])
        ]
        if verb == "train":
            given = " ".join(words)
            stages = [
                f"stages.{stage}.{name}={steps}" for stage in range(NUM_STAGES[words[0]]) for name, steps in FEW.items()
            ]
            words += [override for override in stages if override.split("=")[0] not in given]
        done = metaser(verb, *words, folder=tmp_path, before=partial(os.chdir, place))
        if "--text" in words:
            # The page says for which models this is; this one has no view of the text.
            assert done.returncode == 2 and "this one only hears" in done.stderr
        else:
            assert done.returncode == 0, f"metaser {verb} {' '.join(words)}: {done.stderr}"
        run.append(verb)
    assert {verb: run.count(verb) for verb in ("train", "evaluate", "predict", "status")} == {
        "train": 3,
        "evaluate": 1,
        "predict": 7,
        "status": 1,
    }
    exec(block("from metaser.predict import load_model"), {})
