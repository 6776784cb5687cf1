"""Whisper's encoder beside transformers' own, on clips of 30 s and on shorter ones, which transformers pads."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tinyencoders import WHISPER
from torch import Tensor
from torch.nn.functional import gelu, pad
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel
from transformers.audio_utils import mel_filter_bank
from transformers.models.whisper import modeling_whisper

from metaser.config.encoders import HuggingFaceEncoderConfig
from metaser.errors import ModelError
from metaser.model.encoders.base import FrameMasks, Inputs, SpeechEncoder
from metaser.model.encoders.families import build_encoder, load_encoder
from metaser.model.encoders.whisper import WhisperEncoder, _slaney_filters, sinusoids
from shards.schema import RATE_HZ

torch.set_num_threads(1)

LONGEST = 30 * RATE_HZ
SHARED = Path(__file__).parents[4] / "shared" / "models" / "whisper-base-encoder"


@pytest.fixture(scope="module")
def source() -> WhisperModel:
    torch.manual_seed(0)
    model = WhisperModel(WhisperConfig(**WHISPER, dropout=0.1, attention_dropout=0.1, activation_dropout=0.1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=WHISPER["num_mel_bins"])


@pytest.fixture(scope="module")
def folder(source: WhisperModel, extractor: WhisperFeatureExtractor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper") / "source"
    source.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> WhisperEncoder:
    return load(folder)


def load(folder: Path, **settings: object) -> WhisperEncoder:
    encoder = load_encoder(HuggingFaceEncoderConfig(kind="huggingface", name=str(folder), **settings)).eval()
    assert isinstance(encoder, WhisperEncoder)
    return encoder


def voice(num_samples: int, seed: int = 0) -> Tensor:
    """Return noise whose level wavers over more than the eight decades that Whisper keeps."""
    generator = torch.Generator().manual_seed(seed)
    level_T = 10 ** (2.5 * torch.sin(torch.arange(num_samples) / 3000.0 + seed) - 3.5)
    return level_T * torch.randn(num_samples, generator=generator)


def encode(encoder: SpeechEncoder, *waves: Tensor, masks: FrameMasks | None = None) -> tuple[Tensor, ...]:
    """Return all layers of a batch that is padded with a loud value."""
    num_samples_B = torch.tensor([len(wave) for wave in waves])
    longest = int(num_samples_B.max())
    wave_BT = torch.stack([pad(wave, (0, longest - len(wave)), value=0.7) for wave in waves])
    with torch.no_grad():
        return encoder(Inputs(wave_BT, num_samples_B, masks)).layers


def hear_short(model: torch.nn.Module, mel_BFM: Tensor) -> list[Tensor]:
    """Return all layers of transformers' encoder, its positions cut to the clip."""
    with torch.no_grad():
        frames_BLD = gelu(model.conv2(gelu(model.conv1(mel_BFM)))).transpose(1, 2)
        layers = [frames_BLD + model.embed_positions.weight[: frames_BLD.shape[1]]]
        for layer in model.layers:
            layers.append(layer(layers[-1], None))
        return [*layers[:-1], model.layer_norm(layers[-1])]


def scaled_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


# ---------------------------------------------------------------- equality


@pytest.mark.parametrize("num_mels", [80, 128])
def test_mel_filters_equal_transformers(num_mels: int) -> None:
    expected = mel_filter_bank(201, num_mels, 0.0, 8000.0, RATE_HZ, norm="slaney", mel_scale="slaney")
    torch.testing.assert_close(torch.tensor(_slaney_filters(num_mels)), torch.tensor(expected).float())


def test_positions_equal_transformers() -> None:
    assert torch.equal(sinusoids(1500, 64), modeling_whisper.sinusoids(1500, 64))


def test_a_clip_of_30_s_equals_transformers(
    source: WhisperModel, extractor: WhisperFeatureExtractor, encoder: WhisperEncoder
) -> None:
    wave = voice(LONGEST)
    mel_BFM = extractor(wave.numpy(), sampling_rate=RATE_HZ, return_tensors="pt").input_features
    with torch.no_grad():
        expected = source.encoder(mel_BFM).last_hidden_state
    ours = encode(encoder, wave)[-1]
    assert ours.shape == (1, 1500, WHISPER["d_model"])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=20)
@given(st.integers(160, 40_000) | st.integers(1, 100).map(lambda hops: 160 * hops), st.integers(0, 9))
def test_a_shorter_clip_equals_transformers_modules_on_its_frames(
    source: WhisperModel,
    extractor: WhisperFeatureExtractor,
    encoder: WhisperEncoder,
    num_samples: int,
    seed: int,
) -> None:
    wave = voice(num_samples, seed)
    mel_BFM = extractor(wave.numpy(), sampling_rate=RATE_HZ, return_tensors="pt").input_features
    expected = hear_short(source.encoder, mel_BFM[:, :, : num_samples // 160])
    for ours, theirs in zip(encode(encoder, wave), expected, strict=True):
        assert ours.shape == theirs.shape
        assert scaled_error(ours, theirs) < 2e-5


@settings(max_examples=10)
@given(st.lists(st.integers(1, 30_000), min_size=1, max_size=3))
def test_padding_changes_nothing_even_beside_a_clip_of_30_s(encoder: WhisperEncoder, lengths: list[int]) -> None:
    waves = [voice(length, seed) for seed, length in enumerate([LONGEST, *lengths] if len(lengths) == 1 else lengths)]
    together = encode(encoder, *waves)
    for row, wave in enumerate(waves):
        for ours, alone in zip(together, encode(encoder, wave), strict=True):
            assert scaled_error(ours[row, : alone.shape[1]], alone[0]) < 2e-6


def test_frames_are_one_for_two_mel_frames_of_10_ms(encoder: WhisperEncoder) -> None:
    num_samples = torch.arange(1, 5000)
    assert torch.equal(encoder.num_frames(num_samples), ((num_samples // 160).clamp(min=1) + 1) // 2)
    assert encoder.num_frames(LONGEST) == 1500
    assert encoder.hop_samples == 320


# ---------------------------------------------------------------- what it hears


def test_it_hears_as_much_as_it_has_positions(encoder: WhisperEncoder, tmp_path: Path) -> None:
    assert encoder.longest_samples == LONGEST
    torch.manual_seed(0)
    WhisperModel(WhisperConfig(**WHISPER, max_source_positions=10)).save_pretrained(tmp_path)
    short = load(tmp_path)
    assert short.longest_samples == 3200
    assert encode(short, voice(3200))[-1].shape[1] == 10
    with pytest.raises(ModelError, match=r"hears at most 0\.2 s at once, got 0\.225 s; cut the clips into windows"):
        encode(short, voice(3600))


def test_masks_hide_mel_bins_and_leave_hidden_frames_their_place(encoder: WhisperEncoder) -> None:
    seen: list[Tensor] = []
    handle = encoder.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    waves = [voice(9000), voice(5000, 1)]
    assert encoder.num_mask_features == WHISPER["num_mel_bins"]
    masks = FrameMasks(torch.zeros(2, 28, dtype=torch.bool), torch.zeros(2, 20, dtype=torch.bool))
    masks.time_BL[:, 3:6] = True
    masks.feature_BD[:, 4:9] = True
    hidden_BLD = encode(encoder, *waves, masks=masks)[0]
    plain_BLD = encode(encoder, *waves)[0]
    handle.remove()
    assert (seen[0][:, 4:9] == 0).all()
    assert torch.equal(seen[0][:, 9:], seen[1][:, 9:])
    assert torch.equal(hidden_BLD[:, 3:6], encoder.embed_positions.weight[3:6].expand(2, 3, -1))
    assert not torch.isclose(plain_BLD[:, 3:6], encoder.embed_positions.weight[3:6]).all(-1).any()


def test_dropout_is_the_checkpoints_or_ours(folder: Path) -> None:
    wave = voice(4000)
    kept = load(folder).train()
    assert not torch.equal(encode(kept, wave)[0], encode(kept, wave)[0])
    without = load(folder, dropout=0.0)
    expected = encode(without, wave)[-1]
    assert torch.equal(encode(without.train(), wave)[-1], expected)


def test_positions_are_never_trained(folder: Path) -> None:
    encoder = load(folder, freeze_feature_encoder=False)
    assert not any("embed_positions" in name for name, _ in encoder.named_parameters())
    assert "embed_positions.weight" in encoder.state_dict()
    assert not list(encoder.frozen_parameters())


def test_fresh_positions_are_sinusoids(encoder: WhisperEncoder) -> None:
    fresh = build_encoder(encoder.architecture())
    assert torch.equal(fresh.state_dict()["embed_positions.weight"], sinusoids(1500, WHISPER["d_model"]))


def test_float16_stays_finite_with_loud_silent_and_hidden_frames(encoder: WhisperEncoder) -> None:
    waves = torch.stack([voice(8000) * 100, torch.zeros(8000)])
    masks = FrameMasks(torch.ones(2, 25, dtype=torch.bool), torch.ones(2, 20, dtype=torch.bool))
    for hidden in (None, masks):
        with torch.autocast("cpu", dtype=torch.float16):
            layers = encoder(Inputs(waves, torch.tensor([8000, 8000]), hidden)).layers
        layers[-1].float().square().mean().backward()
        assert all(frames.isfinite().all() for frames in layers)
    gradients = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    encoder.zero_grad()


def test_compiled_layers_change_nothing(encoder: WhisperEncoder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[dict] = []

    def keep(function, **options):
        compiled.append(options)
        return function

    monkeypatch.setattr(torch, "compile", keep)
    other = load(folder)
    other.compile_layers()
    assert compiled == [{"dynamic": True}]
    assert torch.equal(encode(other, voice(4000))[-1], encode(encoder, voice(4000))[-1])


# ---------------------------------------------------------------- checkpoints


def test_the_decoder_of_a_whole_checkpoint_is_ignored_in_one_short_line(
    source: WhisperModel, encoder: WhisperEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = WhisperForConditionalGeneration(source.config)
    whole.model.load_state_dict(source.state_dict())
    whole.half().save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO):
        loaded = load(tmp_path)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    assert scaled_error(encode(loaded, voice(4000))[-1], encode(encoder, voice(4000))[-1]) < 0.01
    (line,) = [record.getMessage() for record in caplog.records if "outside the encoder" in record.getMessage()]
    assert line.endswith(", ...") and len(line) < 250 + len(str(tmp_path))
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def changed(folder: Path, target: Path, **changes: object) -> Path:
    target.mkdir()
    (target / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_layers_that_the_configuration_leaves_out_are_told(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(changed(folder, tmp_path / "copy", encoder_layers=1))
    assert (
        "config.json says 1 layers; 15 tensors of further ones are left out, the first encoder.layers.1" in caplog.text
    )


def test_a_missing_weight_is_named_and_no_fairseq_suspected(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layers.1.self_attn.out_proj.bias"]
    target = changed(folder, tmp_path / "copy")
    (target / "model.safetensors").unlink()
    save_file(weights, target / "model.safetensors")
    words = r"without layers\.1\.self_attn\.out_proj\.bias \(1 of \d+ are missing\); point to a complete checkpoint"
    with pytest.raises(ModelError, match=words):
        load(target)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"d_model": "16"}, "d_model: Input should be a valid integer, got '16'"),
        ({"d_model": 10**30}, "d_model: .+, got 1000"),
        ({"d_model": 2, "encoder_attention_heads": 1}, "d_model must be even and at least 4, got 2"),
        ({"d_model": 15, "encoder_attention_heads": 1}, "d_model must be even and at least 4, got 15"),
        ({"encoder_attention_heads": 3}, "d_model must be a multiple of encoder_attention_heads, got 16 and 3"),
        ({"encoder_layers": 10**6}, "encoder_layers: Input should be less than or equal to 256, got 1000000"),
        ({"encoder_layers": 3}, r"must hold every weight .+ without layers\.2\."),
        ({"encoder_ffn_dim": -1}, "encoder_ffn_dim: Input should be greater than 0, got -1"),
        ({"num_mel_bins": 0}, "num_mel_bins: Input should be greater than 0, got 0"),
        ({"num_mel_bins": 80}, r"conv1.weight must have the shape \(16, 80, 3\) that config.json implies"),
        ({"max_source_positions": 10**9}, "max_source_positions: Input should be less than or equal to 32768"),
        ({"max_source_positions": 3}, r"embed_positions.weight must have the shape \(3, 16\)"),
        ({"activation_function": "swooosh"}, "activation_function must be one of gelu, relu, silu, got 'swooosh'"),
        ({"dropout": float("nan")}, "dropout: Input should be a finite number, got nan"),
        ({"attention_dropout": 1.5}, "attention_dropout: Input should be less than or equal to 1, got 1.5"),
    ],
)
def test_a_configuration_of_which_no_encoder_can_be_built(
    folder: Path, tmp_path: Path, changes: dict, words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        load(changed(folder, tmp_path / "copy", **changes))


def test_what_does_not_concern_the_encoder_may_be_anything(
    folder: Path, tmp_path: Path, encoder: WhisperEncoder
) -> None:
    strange = {"encoder_layerdrop": 0.9, "scale_embedding": "yes", "decoder_layers": None, "vocab_size": [], "a": {}}
    loaded = load(changed(folder, tmp_path / "copy", **strange))
    assert torch.equal(encode(loaded.train(False), voice(4000))[-1], encode(encoder, voice(4000))[-1])


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not here")
def test_a_real_checkpoint_equals_transformers() -> None:
    encoder = load(SHARED)
    model = modeling_whisper.WhisperEncoder(WhisperConfig.from_pretrained(SHARED)).eval()
    model.load_state_dict({name: value.float() for name, value in encoder.state_dict().items()})
    extractor = WhisperFeatureExtractor.from_pretrained(SHARED)
    wave = voice(16_000)
    mel_BFM = extractor(wave.numpy(), sampling_rate=RATE_HZ, return_tensors="pt").input_features
    expected = hear_short(model, mel_BFM[:, :, :100])[-1]
    assert scaled_error(encode(encoder, wave)[-1], expected) < 2e-5
