"""Kept frames of the encoder's frozen part, with several processes and under every strategy."""

import pytest
import torch
from safetensors import safe_open
from tinyencoders import WHISPER
from tinyruns import losses, train_ranks
from transformers import WhisperConfig, WhisperModel

pytestmark = pytest.mark.distributed

STAGES = ("stages.0.train=[ari, heads]", "stages.1.train=[encoder.layers.1-1, ari, heads, coattention]")
EXACT = ("model.coattention.dropout=0", "model.head_dropout=0", "model.spec_augment={}")


@pytest.mark.parametrize(("count", "strategy"), [(2, "ddp"), (3, "ddp"), (2, "zero2"), (2, "zero3")])
def test_processes_share_the_work_of_keeping_frames_and_learn_the_same(corpus, tmp_path, count, strategy):
    torch.manual_seed(0)
    config = WhisperConfig(**WHISPER | {"max_source_positions": 50, "d_model": 32})
    WhisperModel(config).save_pretrained(tmp_path / "encoder")
    encoder = f"model.encoder={{kind: huggingface, name: {tmp_path / 'encoder'}, dropout: 0}}"
    plain = corpus.train(tmp_path / "plain", encoder, *STAGES, *EXACT)
    settings = (encoder, *STAGES, *EXACT, f"frame_cache={tmp_path / 'cache'}", f"parallel.strategy={strategy}")
    run = train_ranks(count, corpus.yaml, tmp_path / "run", *settings)
    for ours, theirs in zip(losses(run), losses(plain), strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2] == pytest.approx(theirs[2], rel=1e-4)
    # Both stages: 24 training clips and 6 of dev, each computed once.
    kept = [safe_open(path, framework="pt").keys() for path in (tmp_path / "cache").rglob("*.safetensors")]
    names = [name for keys in kept for name in keys]
    assert len(names) == 2 * len(set(names)) > 0
