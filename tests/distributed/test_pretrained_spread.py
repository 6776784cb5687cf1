"""Hugging Face encoders spread by ZeRO: weight norm's two halves, gates and group norms, cut up between processes."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tinyencoders import WHISPER
from tinyruns import dev_metrics, losses, train_ranks
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from metaser.train.checkpoint import newest_checkpoint

pytestmark = pytest.mark.distributed

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "num_buckets": 32,
    "max_bucket_distance": 40,
}
ENCODERS = {
    "wav2vec2-large": (
        Wav2Vec2Model,
        Wav2Vec2Config(**SIZES, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True),
    ),
    "wavlm-base": (WavLMModel, WavLMConfig(**SIZES)),
    "whisper": (WhisperModel, WhisperConfig(**WHISPER | {"d_model": 32})),
}
SMALL_ELEMENTS = 300
"""Keeps whole what is small in a large encoder, and cuts up what is large in it: here all are small."""
CUT_UP = f"parallel.extra={{zero_optimization: {{stage3_param_persistence_threshold: {SMALL_ELEMENTS}}}}}"
SPREAD = {"zero2": ("parallel.strategy=zero2",), "zero3": ("parallel.strategy=zero3", CUT_UP)}
"""Overrides by strategy."""


@pytest.fixture(scope="module", params=list(ENCODERS))
def encoder(request, tmp_path_factory):
    """Return overrides that start from the encoder's folder and train all of it, without dropout."""
    folder = tmp_path_factory.mktemp(request.param)
    kind, config = ENCODERS[request.param]
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    if request.param == "whisper":
        WhisperFeatureExtractor(feature_size=WHISPER["num_mel_bins"]).save_pretrained(folder)
    else:
        Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    settings = {"kind": "huggingface", "name": str(folder), "dropout": 0.0, "freeze_feature_encoder": False}
    exact = ("model.coattention.dropout=0", "model.head_dropout=0", "model.spec_augment={}")
    return (f"model.encoder={json.dumps(settings)}", *exact)


@pytest.fixture(scope="module")
def alone(corpus, encoder, tmp_path_factory):
    return corpus.train(tmp_path_factory.mktemp("alone") / "run", *encoder)


def test_what_is_cut_up_here_is_what_a_large_encoder_has_cut_up(alone):
    sizes = {name: value.numel() for name, value in load_file(alone / "best/model.safetensors").items()}
    cut = {name for name, size in sizes.items() if size > SMALL_ELEMENTS}
    is_whole = not any("parametrizations" in name for name in sizes)
    assert is_whole or any(name.endswith("parametrizations.weight.original1") for name in cut), sorted(cut)
    assert any("q_proj.weight" in name for name in cut)


@pytest.mark.parametrize("strategy", SPREAD)
def test_a_pretrained_encoder_learns_the_same_spread_by_zero(corpus, encoder, alone, tmp_path, strategy):
    run = train_ranks(2, corpus.yaml, tmp_path / "run", *encoder, *SPREAD[strategy])
    for ours, theirs in zip(losses(run), losses(alone), strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2] == pytest.approx(theirs[2], rel=1e-4)
    for ours, theirs in zip(dev_metrics(run), dev_metrics(alone), strict=True):
        assert ours[2]["loss"] == pytest.approx(theirs[2]["loss"], rel=1e-4)
    mine, expected = (newest_checkpoint(each / "stage2/checkpoints") for each in (run, alone))
    for found, wanted in (
        (mine.model_tensors(), expected.model_tensors()),
        (mine.optimizer_tensors(), expected.optimizer_tensors()),
    ):
        assert {name: value.shape for name, value in found.items()} == {
            name: value.shape for name, value in wanted.items()
        }


@pytest.mark.parametrize("strategy", [pytest.param("zero2", marks=pytest.mark.reliability), "zero3"])
def test_a_pretrained_encoder_continues_spread_by_zero(corpus, encoder, alone, tmp_path, strategy):
    run = tmp_path / "run"
    constant = ("stages.1.schedule={decay: constant, warmup_fraction: 0}", "stages.1.eval_every_steps=3")
    train_ranks(2, corpus.yaml, run, *encoder, *constant, "stages.1.num_steps=3", *SPREAD[strategy])
    train_ranks(2, corpus.yaml, run, *encoder, *constant, "stages.1.num_steps=6", *SPREAD[strategy])
    whole = corpus.train(tmp_path / "whole", *encoder, *constant)
    assert [line[2] for line in losses(run)] == pytest.approx([line[2] for line in losses(whole)], rel=1e-4)
