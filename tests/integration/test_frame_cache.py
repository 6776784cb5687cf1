"""`frame_cache`: the frames of the encoder's frozen part are computed once, kept, shared and checked."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tinyencoders import WHISPER
from tinyruns import dev_metrics, losses
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model, WhisperConfig, WhisperModel

from metaser.errors import RunError

EXACT = ("model.coattention.dropout=0", "model.head_dropout=0")
STAGES = ("stages.0.train=[ari, heads]", "stages.1.train=[encoder.layers.1-1, ari, heads, coattention]")
PLAIN = (*EXACT, *STAGES, "model.spec_augment={}")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Return the override that reads a small encoder, by its family; two layers each."""
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    WhisperModel(WhisperConfig(**WHISPER | {"max_source_positions": 50})).save_pretrained(folder / "whisper")
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2}
    form = {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    Wav2Vec2Model(Wav2Vec2Config(**sizes, **form)).save_pretrained(folder / "wav2vec2")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder / "wav2vec2")
    return {
        name: f"model.encoder={{kind: huggingface, name: {folder / name}, dropout: 0}}"
        for name in ("whisper", "wav2vec2")
    }


def pieces(cache):
    return sorted(cache.rglob("*.safetensors"))


def kept_clips(cache):
    return sum(len(safe_open(path, framework="pt").keys()) for path in pieces(cache))


def same(run, other, *, within=2e-5):
    assert len(losses(run)) == len(losses(other)) > 0
    for ours, theirs in zip(losses(run), losses(other), strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2] == pytest.approx(theirs[2], rel=within)
    for ours, theirs in zip(dev_metrics(run), dev_metrics(other), strict=True):
        assert ours[2]["loss"] == pytest.approx(theirs[2]["loss"], rel=within)


@pytest.mark.parametrize("family", ["whisper", "wav2vec2"])
def test_a_run_learns_the_same_from_kept_frames_and_others_share_them(corpus, encoders, tmp_path, family, caplog):
    caplog.set_level(logging.INFO)
    plain = corpus.train(tmp_path / "plain", encoders[family], *PLAIN)
    cached = (encoders[family], *PLAIN, f"frame_cache={tmp_path / 'cache'}")
    run = corpus.train(tmp_path / "run", *cached)
    same(run, plain)
    # Stage 1 keeps all layers of 24 training and 6 dev clips, stage 2 what lies below its layer.
    folders = {path.parent for path in pieces(tmp_path / "cache")}
    assert len(folders) == 2
    before = pieces(tmp_path / "cache")
    caplog.clear()
    again = corpus.train(tmp_path / "again", *cached, "seed=0")
    assert losses(again) == losses(run)
    assert pieces(tmp_path / "cache") == before
    assert "keeping the frames" not in caplog.text
    other = corpus.train(tmp_path / "other", *cached, "data.batch_utterances=5", "model.ari.form=none")
    assert losses(other) != losses(run)
    assert pieces(tmp_path / "cache") == before


@pytest.mark.parametrize("piece_bytes", [1 << 10, 1 << 15])
def test_frames_fill_as_many_files_as_they_need(corpus, encoders, tmp_path, monkeypatch, piece_bytes):
    plain = corpus.train(tmp_path / "plain", encoders["whisper"], *PLAIN)
    # Of the two, the smaller holds not even one clip.
    monkeypatch.setattr("metaser.framecache._PIECE_BYTES", piece_bytes)
    run = corpus.train(tmp_path / "run", encoders["whisper"], *PLAIN, f"frame_cache={tmp_path / 'cache'}")
    same(run, plain)
    assert len(pieces(tmp_path / "cache")) > 4


def test_features_are_kept_under_spec_augment_and_trained_layers(corpus, encoders, tmp_path):
    overrides = (encoders["wav2vec2"], *EXACT)
    plain = corpus.train(tmp_path / "plain", *overrides)
    run = corpus.train(tmp_path / "run", *overrides, f"frame_cache={tmp_path / 'cache'}")
    same(run, plain)
    (folder,) = {path.parent for path in pieces(tmp_path / "cache")}
    (piece, *_) = pieces(folder)
    with safe_open(piece, framework="pt") as file:
        assert {file.get_tensor(name).shape[::2] for name in file.keys()} == {(1, 16)}  # noqa: SIM118


def test_other_weights_precision_or_depth_keep_their_own_frames(corpus, encoders, tmp_path):
    cache = tmp_path / "cache"
    short = ("stages.0.num_steps=1", "stages.1.num_steps=1", f"frame_cache={cache}")
    corpus.train(tmp_path / "whisper", encoders["whisper"], *PLAIN, *short)
    num_folders = len([*cache.iterdir()])
    corpus.train(tmp_path / "bf16", encoders["whisper"], *PLAIN, *short, "parallel.precision=bf16")
    assert len([*cache.iterdir()]) == 2 * num_folders
    corpus.train(tmp_path / "wav2vec2", encoders["wav2vec2"], *PLAIN, *short)
    assert len([*cache.iterdir()]) == 3 * num_folders


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("stages.0.augment.gain.probability=0.5",), "augment.gain changes the sound"),
        (("data.window_s=0.5", "data.window_overlap_s=0.1"), r"\d+ utterances are longer than data.window_s"),
        (("stages.0.train=[encoder, ari, heads]",), "the stage trains the encoder from the beginning"),
    ],
)
def test_a_stage_that_cannot_keep_frames_says_why(corpus, encoders, tmp_path, caplog, overrides, reason):
    caplog.set_level(logging.INFO)
    encoder = encoders["whisper"].replace("dropout: 0", "dropout: 0, freeze_feature_encoder: false")
    settings = (encoder, *PLAIN, *overrides)
    plain = corpus.train(tmp_path / "plain", *settings)
    caplog.clear()
    run = corpus.train(tmp_path / "run", *settings, f"frame_cache={tmp_path / 'cache'}")
    assert re.search(f"stage 1 keeps no frames: {reason}", caplog.text)
    # Stage 2 may keep some.
    same(run, plain)


def test_damaged_frames_are_refused_with_their_file(corpus, encoders, tmp_path):
    settings = (encoders["whisper"], *PLAIN, f"frame_cache={tmp_path / 'cache'}")
    corpus.train(tmp_path / "run", *settings)
    for number, path in enumerate(pieces(tmp_path / "cache")):
        whole = path.read_bytes()
        for damaged in (
            whole[: len(whole) // 2],
            b"",
            whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:],
            whole[:20] + b"\xff" + whole[21:],
        ):
            path.write_bytes(damaged)
            with pytest.raises(RunError, match=f"{re.escape(str(path))} must hold frames .+ damaged; delete it"):
                corpus.train(tmp_path / f"damaged{number}", *settings, "stages.1.num_steps=12")
        path.unlink()
        corpus.train(tmp_path / f"damaged{number}", *settings, "stages.1.num_steps=12")


def test_a_folder_that_cannot_be_written_is_one_sentence(corpus, encoders, tmp_path):
    (tmp_path / "file").write_text("")
    settings = (encoders["whisper"], *PLAIN, f"frame_cache={tmp_path / 'file'}")
    with pytest.raises(RunError, match="cannot be written"):
        corpus.train(tmp_path / "run", *settings)


def test_a_run_continues_from_kept_frames_bit_for_bit(corpus, encoders, tmp_path):
    constant = "stages.1.schedule={decay: constant, warmup_fraction: 0}"
    settings = (encoders["whisper"], *PLAIN, constant, f"frame_cache={tmp_path / 'cache'}")
    whole = corpus.train(tmp_path / "whole", *settings)
    part = corpus.train(tmp_path / "part", *settings, "stages.1.num_steps=3")
    moved = f"frame_cache={(tmp_path / 'cache').rename(tmp_path / 'moved')}"
    with pytest.raises(RunError, match="frame_cache from True to False"):
        corpus.train(part, *settings, "frame_cache=null")
    corpus.train(part, *settings, moved)
    assert losses(part) == losses(whole)
    expected, found = (load_file(run / "best/model.safetensors") for run in (whole, part))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
