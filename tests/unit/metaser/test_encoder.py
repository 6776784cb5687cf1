from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tinyencoders import WHISPER
from torch import Tensor
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    PretrainedConfig,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperModel,
)

from metaser.config.encoders import HuggingFaceEncoderConfig, LogMelEncoderConfig
from metaser.errors import ModelError
from metaser.model.encoders.base import EncoderOutput, FrameMasks, Inputs, SpeechEncoder, init_encoder_weights
from metaser.model.encoders.families import build_encoder, load_encoder
from metaser.model.encoders.logmel import _mel_filters, log_mel
from metaser.model.encoders.wav2vec2 import Wav2Vec2Encoder
from metaser.model.encoders.wav2vec2_modules import _group_norm

torch.set_num_threads(1)

MODELS = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "hubert": (HubertConfig, HubertModel),
    "wavlm": (WavLMConfig, WavLMModel),
    "data2vec": (Data2VecAudioConfig, Data2VecAudioModel),
}
BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
# family, changes to its configuration, do_normalize
VARIANTS: dict[str, tuple[str, dict, bool]] = {
    "wav2vec2-base": ("wav2vec2", BASE, True),
    "wav2vec2-large": ("wav2vec2", LARGE, True),
    "wav2vec2-adapted": ("wav2vec2", LARGE | {"adapter_attn_dim": 4, "add_adapter": True}, True),
    "hubert-base": ("hubert", BASE, False),
    "hubert-large": ("hubert", LARGE, True),
    "hubert-batch-norm": ("hubert", BASE | {"conv_pos_batch_norm": True, "feat_proj_layer_norm": False}, False),
    "wavlm-base": ("wavlm", BASE, False),
    "wavlm-large": ("wavlm", LARGE, True),
    "data2vec": ("data2vec", {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 9}, True),
}
NAMES = [*VARIANTS, "whisper", "logmel"]
LENGTHS = (9000, 6111, 1700, 400, 250)


def make_model(variant: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if variant == "whisper":
        sizes = WHISPER | {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 4}
        return perturbed(WhisperModel(WhisperConfig(**sizes)))
    family, changes, _ = VARIANTS[variant]
    config_class, model_class = MODELS[family]
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "num_adapter_layers": 1,
        "max_bucket_distance": 40,
        "num_buckets": 32,
    }
    return perturbed(model_class(config_class(**(sizes | changes))))


def perturbed(model: PreTrainedModel) -> PreTrainedModel:
    model.eval()
    with torch.no_grad():  # no scale or shift may stay at its neutral start
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    for variant, (_, _, do_normalize) in VARIANTS.items():
        make_model(variant).save_pretrained(root / variant)
        Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(root / variant)
    make_model("whisper").save_pretrained(root / "whisper")
    return {variant: root / variant for variant in (*VARIANTS, "whisper")}


def load(folder: Path, **settings: object) -> SpeechEncoder:
    return load_encoder(HuggingFaceEncoderConfig(kind="huggingface", name=str(folder), **settings)).eval()


def logmel(**settings: object) -> SpeechEncoder:
    torch.manual_seed(0)
    sizes = {"num_mels": 40, "width": 32, "num_layers": 3, "num_heads": 4, "feed_forward": 48}
    return load_encoder(LogMelEncoderConfig(**(sizes | settings))).eval()


def clips() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, generator=generator) * 0.1 + 0.02 for length in LENGTHS]


def batch(waves: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad with a loud value, so that nothing may lean on silence."""
    num_samples_B = torch.tensor([len(wave) for wave in waves])
    wave_BT = torch.full((len(waves), int(num_samples_B.max())), 0.7)
    for row, wave in zip(wave_BT, waves, strict=True):
        row[: len(wave)] = wave
    return wave_BT, num_samples_B


def encode(encoder: SpeechEncoder, wave: Tensor, **options: object) -> EncoderOutput:
    with torch.no_grad():
        return encoder(Inputs(wave[None], torch.tensor([len(wave)])), **options)


def encoders(folders: dict[str, Path], name: str, **settings: object) -> SpeechEncoder:
    return logmel() if name == "logmel" else load(folders[name], **settings)


# ---------------------------------------------------------------- equality


@pytest.mark.parametrize("variant", VARIANTS)
def test_single_clips_equal_transformers(folders: dict[str, Path], variant: str) -> None:
    family, _, _ = VARIANTS[variant]
    model = MODELS[family][1].from_pretrained(folders[variant]).eval()
    model.adapter = None
    if family == "hubert" and "batch" in variant:
        assert model.encoder.pos_conv_embed.batch_norm is not None
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folders[variant])
    encoder = load(folders[variant])
    raw: list[Tensor] = []

    def keep(_module: object, arguments: tuple, options: dict, output: object) -> None:
        if not raw:
            raw.append(arguments[0] if arguments else options["hidden_states"])
        raw.append(output[0] if isinstance(output, tuple) else output)

    for layer in model.encoder.layers:
        layer.register_forward_hook(keep, with_kwargs=True)
    for wave in clips()[:4]:
        raw.clear()
        inputs = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
        with torch.no_grad():
            last = model(inputs).last_hidden_state
        layers, frame_mask_BL = encode(encoder, wave)
        assert frame_mask_BL.all()
        assert len(layers) == 4
        for ours, theirs in zip(layers, [*raw[:-1], last], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_transformers_in_its_order(folders: dict[str, Path], variant: str) -> None:
    """Sums over all parameters, such as the norm of the gradients, round by their order."""
    model = make_model(variant)
    encoder = load(folders[variant])

    def of_encoder(name: str) -> bool:
        return not name.startswith(("adapter.", "masked_spec_embed"))

    ours = [(name, value.shape) for name, value in encoder.named_parameters()]
    assert ours == [(name, value.shape) for name, value in model.named_parameters() if of_encoder(name)]
    ours = [(name, value.shape) for name, value in encoder.named_buffers() if of_encoder(name)]
    assert ours == [(name, value.shape) for name, value in model.named_buffers()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_dropout_is_where_transformers_has_it(folders: dict[str, Path], tmp_path: Path, variant: str) -> None:
    chances = {"hidden_dropout": 0.1, "activation_dropout": 0.2, "attention_dropout": 0.3, "feat_proj_dropout": 0.4}
    config = json.loads((folders[variant] / "config.json").read_text()) | chances
    folder = copy_with(folders[variant], tmp_path / "copy", load_file(folders[variant] / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(config))
    family, _, _ = VARIANTS[variant]
    config_class, model_class = MODELS[family]

    def found(model: torch.nn.Module) -> dict[str, float]:
        chances = {name: part.p for name, part in model.named_modules() if isinstance(part, torch.nn.Dropout)}
        attentions = {name: part.dropout for name, part in model.named_modules() if name.endswith("attention")}
        return chances | attentions

    assert found(load(folder)) == found(model_class(config_class.from_dict(config)))


@pytest.mark.parametrize("name", NAMES)
def test_padded_batch_equals_single_clips(folders: dict[str, Path], name: str) -> None:
    encoder = encoders(folders, name)
    waves = clips()
    with torch.no_grad():
        together = encoder(Inputs(*batch(waves)))
    assert together.frame_mask_BL.sum(1).tolist() == [encoder.num_frames(len(wave)) for wave in waves]
    for row, wave in enumerate(waves):
        alone = encode(encoder, wave)
        for ours, theirs in zip(together.layers, alone.layers, strict=True):
            assert ours.isfinite().all()
            torch.testing.assert_close(ours[row, : theirs.shape[1]], theirs[0], atol=1e-5, rtol=1e-5)


def test_batch_norm_keeps_the_checkpoints_statistics_in_training(folders: dict[str, Path]) -> None:
    encoder = load(folders["hubert-batch-norm"], dropout=0.0)
    expected = encode(encoder, clips()[1]).layers[-1]
    encoder.train()
    assert torch.equal(encode(encoder, clips()[1]).layers[-1], expected)
    assert torch.equal(encode(encoder, clips()[1]).layers[-1], expected)


def test_layers_are_never_dropped_and_dropout_is_replaced(folders: dict[str, Path]) -> None:
    for variant in ("wav2vec2-base", "wavlm-large"):
        config = json.loads((folders[variant] / "config.json").read_text())
        assert config["layerdrop"] > 0
        assert config["mask_time_prob"] > 0
        encoder = load(folders[variant], dropout=0.0)
        expected = encode(encoder, clips()[0]).layers[-1]
        encoder.train()
        assert torch.equal(encode(encoder, clips()[0]).layers[-1], expected)
        kept = load(folders[variant]).train()
        assert not torch.equal(encode(kept, clips()[0]).layers[-1], encode(kept, clips()[0]).layers[-1])


def test_clips_are_normalised_as_the_checkpoint_says(folders: dict[str, Path], tmp_path: Path) -> None:
    wave = clips()[0]
    encoder = load(folders["wavlm-large"])
    louder = encode(encoder, 3 * wave + 0.1).layers[-1]
    torch.testing.assert_close(encode(encoder, wave).layers[-1], louder, atol=1e-4, rtol=1e-4)
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((folders["wavlm-large"] / file).read_bytes())
    assert load(tmp_path).architecture()["do_normalize"] is True
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    plain = load(tmp_path)
    assert not torch.allclose(encode(plain, wave).layers[-1], encode(plain, 3 * wave).layers[-1], atol=1e-3, rtol=1e-3)


# ---------------------------------------------------------------- frames


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 4000), min_size=1, max_size=4))
@pytest.mark.parametrize("name", ["wav2vec2-base", "whisper", "logmel"])
def test_num_frames_counts_the_real_frames(folders: dict[str, Path], name: str, lengths: list[int]) -> None:
    encoder = _cached(folders, name)
    num_samples_B = torch.tensor(lengths)
    with torch.no_grad():
        layers, frame_mask_BL = encoder(Inputs(torch.randn(len(lengths), max(lengths)), num_samples_B))
    assert torch.equal(frame_mask_BL.sum(1), encoder.num_frames(num_samples_B))
    assert layers[0].shape == (len(lengths), encoder.num_frames(max(lengths)), encoder.hidden_size)
    assert encoder.num_frames(np.array(lengths)).tolist() == [encoder.num_frames(one) for one in lengths]


_CACHE: dict[str, SpeechEncoder] = {}


def _cached(folders: dict[str, Path], name: str) -> SpeechEncoder:
    return _CACHE.setdefault(name, encoders(folders, name))


@pytest.mark.parametrize("name", ["wav2vec2-base", "whisper", "logmel"])
def test_num_frames_is_monotone_and_never_zero(folders: dict[str, Path], name: str) -> None:
    encoder = _cached(folders, name)
    counts = encoder.num_frames(torch.arange(20_000))
    assert counts.min() == 1
    assert (counts.diff() >= 0).all()
    assert encoder.num_frames(16_000) == (50 if name == "whisper" else 49)


# ---------------------------------------------------------------- masks, mixes, gradients


def masks_for(encoder: SpeechEncoder, waves: list[Tensor]) -> FrameMasks:
    num_frames = encoder.num_frames(max(len(wave) for wave in waves))
    time_BL = torch.zeros(len(waves), num_frames, dtype=torch.bool)
    feature_BD = torch.zeros(len(waves), encoder.num_mask_features, dtype=torch.bool)
    time_BL[:, 3:6] = True
    feature_BD[:, 4:9] = True
    return FrameMasks(time_BL, feature_BD)


def test_masks_hide_frames_and_features(folders: dict[str, Path]) -> None:
    encoder = load(folders["wav2vec2-base"])
    seen: list[Tensor] = []
    encoder.encoder.pos_conv_embed.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    waves = clips()[:2]
    masks = masks_for(encoder, waves)
    with torch.no_grad():
        encoder(Inputs(*batch(waves), masks))
    frames_BLD = seen[0].transpose(1, 2)
    assert (frames_BLD[:, :, 4:9] == 0).all()
    hidden_D = encoder.masked_spec_embed.clone()
    hidden_D[4:9] = 0
    assert hidden_D.abs().sum() > 0
    assert torch.equal(frames_BLD[:, 3:6], hidden_D.expand(2, 3, -1))
    assert (frames_BLD[:, 6:12, 10:] != 0).all()


def test_logmel_masks_hide_mel_frames_and_bins() -> None:
    encoder = logmel()
    seen: list[Tensor] = []
    encoder.subsampling.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    waves = clips()[:2]
    with torch.no_grad():
        encoder(Inputs(*batch(waves), masks_for(encoder, waves)))
    mel_BMF = seen[0]
    assert (mel_BMF[:, 6:12] == 0).all()
    assert (mel_BMF[:, :, 4:9] == 0).all()
    assert (mel_BMF[:, :6, 9:] != 0).all()
    assert (mel_BMF[:, 12:20, 9:] != 0).all()


@pytest.mark.parametrize("name", ["wav2vec2-base", "hubert-large", "whisper", "logmel"])
def test_mix_runs_between_the_layers(folders: dict[str, Path], name: str) -> None:
    encoder = encoders(folders, name)
    wave = clips()[1]
    plain = encode(encoder, wave)
    calls: list[tuple[int, int]] = []

    def nothing(layer: int, earlier: tuple[Tensor, ...], output_BLD: Tensor) -> Tensor:
        calls.append((layer, len(earlier)))
        return output_BLD + 0.0 * sum(earlier)

    for ours, theirs in zip(encode(encoder, wave, mix=nothing).layers, plain.layers, strict=True):
        assert torch.equal(ours, theirs)
    assert calls == [(1, 1), (2, 2), (3, 3)]

    def first_only(layer: int, earlier: tuple[Tensor, ...], output_BLD: Tensor) -> Tensor:
        return output_BLD if layer == 1 else earlier[-1]

    held = encode(encoder, wave, mix=first_only).layers
    assert torch.equal(held[2], plain.layers[1])
    if name == "wav2vec2-base":
        assert torch.equal(held[3], plain.layers[1])
    else:  # the final norm sees what the mix made of the last layer
        torch.testing.assert_close(held[3].mean(-1), encoder._final_norm(plain.layers[1]).mean(-1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frozen", [True, False])
def test_every_trainable_tensor_gets_a_gradient(folders: dict[str, Path], name: str, frozen: bool) -> None:
    encoder = encoders(folders, name, freeze_feature_encoder=frozen).train()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"]), encoder)
    for parameter in encoder.parameters():
        parameter.requires_grad_(True)
    for parameter in encoder.frozen_parameters():
        parameter.requires_grad_(False)
    encoder(Inputs(*batch(clips()), masks_for(encoder, clips()))).layers[-1].square().mean().backward()
    with_grad = {key for key, parameter in encoder.named_parameters() if parameter.grad is not None}
    convolutions = ("feature_extractor.", "conv1.", "conv2.")
    expected = {key for key, _ in encoder.named_parameters() if not (frozen and key.startswith(convolutions))}
    assert with_grad == expected
    assert sum("lora_B" in key for key in with_grad) == 9
    assert "masked_spec_embed" not in with_grad


@pytest.mark.parametrize("name", ["wav2vec2-base", "whisper"])
def test_frozen_cnn_does_not_train(folders: dict[str, Path], name: str) -> None:
    encoder = load(folders[name])
    frozen = [key for key, parameter in encoder.named_parameters() if not parameter.requires_grad]
    assert frozen
    assert all(key.startswith(("feature_extractor.", "conv1.", "conv2.")) for key in frozen)
    for parameter in encoder.parameters():
        parameter.requires_grad_(True)
    encoder(Inputs(*batch(clips()))).layers[-1].square().mean().backward()
    assert all(parameter.grad is None for parameter in encoder.frozen_parameters())
    free = load(folders[name], freeze_feature_encoder=False)
    assert all(parameter.requires_grad for parameter in free.parameters())


@pytest.mark.parametrize("name", ["wavlm-base", "hubert-large", "whisper", "logmel"])
def test_gradient_checkpointing_changes_no_gradient(folders: dict[str, Path], name: str) -> None:
    gradients = []
    for recompute in (False, True):
        encoder = encoders(folders, name).train()
        encoder.gradient_checkpointing = recompute
        torch.manual_seed(0)
        encoder(Inputs(*batch(clips()))).layers[-1].square().mean().backward()
        gradients.append(
            {key: parameter.grad for key, parameter in encoder.named_parameters() if parameter.requires_grad}
        )
    torch.testing.assert_close(gradients[0], gradients[1])


def bf16_error(forward: Callable[[], Tensor], real_BL: Tensor) -> float:
    """Return how far autocast moves what `forward` returns, relative to its size in float32."""
    with torch.no_grad():
        expected = forward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = forward().float()
    rounded.square().mean().backward()
    return ((rounded - expected)[real_BL].abs().mean() / expected[real_BL].abs().mean()).item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_autocast_moves_us_no_further_than_transformers(folders: dict[str, Path], variant: str) -> None:
    """Both meet the same bf16 kernels, which differ, also in what they get wrong, from processor to processor."""
    waves = clips()[:4]  # of the fifth, transformers makes no frame
    encoder = load(folders[variant], freeze_feature_encoder=False)
    real_BL = encoder(Inputs(*batch(waves))).frame_mask_BL
    model = MODELS[VARIANTS[variant][0]][1].from_pretrained(folders[variant]).eval()
    model.adapter = None
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folders[variant])
    inputs = extractor(
        [wave.numpy() for wave in waves],
        sampling_rate=16_000,
        padding=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    theirs = bf16_error(lambda: model(**inputs).last_hidden_state, real_BL)
    ours = bf16_error(lambda: encoder(Inputs(*batch(waves))).layers[-1], real_BL)
    assert 0 < ours < 1.5 * theirs


@pytest.mark.parametrize("name", ["logmel", "whisper"])
def test_bf16_autocast_moves_log_mel_a_little(folders: dict[str, Path], name: str) -> None:
    encoder = encoders(folders, name)
    real_BL = encoder(Inputs(*batch(clips()))).frame_mask_BL
    # Rounding is 0.01; there is nothing to compare it with.
    assert 0 < bf16_error(lambda: encoder(Inputs(*batch(clips()))).layers[-1], real_BL) < 0.1


def test_log_mel_and_group_norm_keep_float32_under_autocast() -> None:
    encoder = logmel()
    seen: list[Tensor] = []
    encoder.subsampling.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encode(encoder, clips()[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encode(encoder, clips()[0])
    assert torch.equal(seen[0], seen[1])
    features_BLD = (torch.randn(1, 5000, 4) + 3).bfloat16()
    norm = torch.nn.GroupNorm(4, 4)
    normalised_BLD = _group_norm(norm, features_BLD, torch.tensor([5000]))
    expected_BDL = norm(features_BLD.float().transpose(1, 2))
    torch.testing.assert_close(normalised_BLD.transpose(1, 2), expected_BDL, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- building and loading


@pytest.mark.parametrize("name", NAMES)
def test_architecture_rebuilds_the_encoder_on_the_meta_device(folders: dict[str, Path], name: str) -> None:
    encoder = encoders(folders, name)
    architecture = json.loads(json.dumps(encoder.architecture()))
    with torch.device("meta"):
        rebuilt = build_encoder(architecture)
    assert all(tensor.is_meta for tensor in rebuilt.state_dict().values())
    rebuilt.load_state_dict(encoder.state_dict(), assign=True)
    assert rebuilt.eval().architecture() == architecture
    wave = clips()[1]
    assert torch.equal(encode(rebuilt, wave).layers[-1], encode(encoder, wave).layers[-1])


def test_encoders_survive_from_pretrained(folders: dict[str, Path], tmp_path: Path) -> None:
    class Config(PretrainedConfig):
        model_type = "test-holder"

    class Holder(PreTrainedModel):
        config_class = Config

        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.encoder = build_encoder(config.architecture)
            self.post_init()

        def _init_weights(self, module: torch.nn.Module) -> None:
            init_encoder_weights(module)

    for name in ("wavlm-base", "hubert-batch-norm", "whisper", "logmel"):
        encoder = encoders(folders, name)
        holder = Holder(Config(architecture=encoder.architecture()))
        holder.encoder.load_state_dict(encoder.state_dict())
        holder.save_pretrained(tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        weights = load_file(file)
        loaded = Holder.from_pretrained(tmp_path / name).eval()
        assert torch.equal(encode(loaded.encoder, clips()[1]).layers[-1], encode(encoder, clips()[1]).layers[-1])
        # Whatever a checkpoint lacks starts afresh, the rest stays; the layers are alike.
        for missing in {re.sub(r"\d+", "N", key): key for key in weights}.values():
            save_file({key: weights[key] for key in weights if key != missing}, file, {"format": "pt"})
            state = Holder.from_pretrained(tmp_path / name).state_dict()
            assert all(torch.equal(state[key], weights[key]) for key in weights if key != missing)
            assert state[missing].float().abs().max() < 10, missing
            if missing.endswith(("original0", "gru_rel_pos_const")):
                assert (state[missing] > 0).all()


def test_random_weights_are_sensible() -> None:
    config = WavLMConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    encoder = build_encoder(
        {
            "kind": "huggingface",
            "config": config.to_dict(),
            "do_normalize": True,
            "freeze_feature_encoder": True,
        }
    )
    state = encoder.state_dict()
    assert (state["encoder.layers.0.attention.gru_rel_pos_const"] == 1).all()
    conv = encoder.encoder.pos_conv_embed.conv
    direction = conv.parametrizations.weight.original1
    torch.testing.assert_close(conv.weight, direction)
    assert 0.2 < direction.std() / (2 / (8 * 16)) ** 0.5 < 5
    assert encode(encoder, clips()[0]).layers[-1].std() > 0.1


def copy_with(folder: Path, target: Path, weights: dict[str, Tensor], binary: bool = False) -> Path:
    target.mkdir()
    for file in ("config.json", "preprocessor_config.json"):
        (target / file).write_bytes((folder / file).read_bytes())
    if binary:
        torch.save(weights, target / "pytorch_model.bin")
    else:
        save_file(weights, target / "model.safetensors")
    return target


@pytest.mark.parametrize("binary", [False, True])
def test_both_spellings_of_weight_norm_load(folders: dict[str, Path], tmp_path: Path, binary: bool) -> None:
    for variant in ("wav2vec2-base", "wavlm-large"):
        new = make_model(variant).state_dict()
        old = {
            key.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): tensor
            for key, tensor in new.items()
        }
        assert set(old) != set(new)
        expected = encode(load(folders[variant]), clips()[0]).layers[-1]
        for spelling, weights in (("new", new), ("old", old)):
            folder = copy_with(folders[variant], tmp_path / f"{variant}-{spelling}", weights, binary)
            assert torch.equal(encode(load(folder), clips()[0]).layers[-1], expected)


def test_checkpoints_of_models_with_heads_load(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = make_model("wav2vec2-large")
    model = Wav2Vec2ForCTC(encoder.config)
    model.wav2vec2.load_state_dict(encoder.state_dict())
    model.half().save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO):
        loaded = load(tmp_path)
    assert "lm_head.weight" in caplog.text
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    expected = encode(load(folders["wav2vec2-large"]), clips()[0]).layers[-1]
    torch.testing.assert_close(encode(loaded, clips()[0]).layers[-1], expected, atol=0.05, rtol=0.05)


def test_missing_mask_embedding_is_reported_and_zero(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = load_file(folders["hubert-base"] / "model.safetensors")
    del weights["masked_spec_embed"]
    encoder = load(copy_with(folders["hubert-base"], tmp_path / "copy", weights))
    assert "lacks masked_spec_embed" in caplog.text
    assert isinstance(encoder, Wav2Vec2Encoder)
    assert (encoder.masked_spec_embed == 0).all()


@pytest.mark.parametrize(
    "part",
    [
        "encoder.layers.1.attention.k_proj.weight",
        "encoder.layers.2.",
        "feature_extractor.conv_layers.0.conv.weight",
        "feature_projection.projection.bias",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
    ],
)
def test_missing_weights_are_an_error(folders: dict[str, Path], tmp_path: Path, part: str) -> None:
    weights = load_file(folders["wavlm-base"] / "model.safetensors")
    left = {key: tensor for key, tensor in weights.items() if not key.startswith(part)}
    folder = copy_with(folders["wavlm-base"], tmp_path / "copy", left)
    with pytest.raises(ModelError, match=rf"must hold every weight.*copy.*{part}.*are missing"):
        load(folder)


def test_wrong_shapes_are_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    weights = load_file(folders["wavlm-base"] / "model.safetensors")
    weights["encoder.layer_norm.bias"] = torch.zeros(7)
    folder = copy_with(folders["wavlm-base"], tmp_path / "copy", weights)
    with pytest.raises(ModelError, match=r"encoder.layer_norm.bias must have the shape \(32,\).*got \(7,\)"):
        load(folder)


def test_unusable_folders_are_errors(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="must hold config"):
        load(tmp_path)
    (tmp_path / "config.json").write_bytes((folders["wavlm-base"] / "config.json").read_bytes())
    with pytest.raises(ModelError, match="an encoder folder without weights"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "bark"}')
    with pytest.raises(ModelError, match=r"wavlm, data2vec-audio, whisper, got .* of type 'bark'"):
        load(tmp_path)
    for name in (tmp_path / "nowhere", "metaser-tests/nowhere"):
        with pytest.raises(ModelError, match=r"got '.*nowhere', which is no folder here"):
            load(name)
    with pytest.raises(ValidationError, match="width must be a multiple of num_heads, got 32 and 5"):
        logmel(num_heads=5)


# ---------------------------------------------------------------- log-mel


def test_mel_filters_equal_torchaudios() -> None:
    functional = pytest.importorskip("torchaudio.functional")
    expected = functional.melscale_fbanks(257, 20.0, 8000.0, 80, 16_000).numpy()
    np.testing.assert_allclose(_mel_filters(80), expected, atol=1e-4)
    assert (_mel_filters(80).sum(0) > 0).all()


def test_log_mel_ignores_level_but_not_pitch() -> None:
    time_T = torch.arange(8000) / 16_000
    real_BT = torch.ones(1, 8000, dtype=torch.bool)

    def bins(hz: float, level: float) -> Tensor:
        return log_mel(level * torch.sin(2 * torch.pi * hz * time_T)[None], real_BT, 40)

    torch.testing.assert_close(bins(440, 0.5), bins(440, 0.01), atol=1e-3, rtol=1e-3)
    assert bins(440, 0.5).mean(1).argmax() < bins(880, 0.5).mean(1).argmax()
    assert log_mel(torch.zeros(1, 8000), real_BT, 40).isfinite().all()
