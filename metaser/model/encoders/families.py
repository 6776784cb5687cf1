"""Where encoders come from: the families of pre-trained ones, and what builds and loads an encoder of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from metaser.config.encoders import ENCODER_KINDS, EncoderConfig
from metaser.model.encoders.base import Encoder, init_encoder_weights
from metaser.registry import imported

FAMILY_PLACES: dict[str, str] = {
    "wav2vec2": "metaser.model.encoders.wav2vec2:Wav2Vec2Encoder",
    "hubert": "metaser.model.encoders.wav2vec2:Wav2Vec2Encoder",
    "wavlm": "metaser.model.encoders.wav2vec2:Wav2Vec2Encoder",
    "data2vec-audio": "metaser.model.encoders.wav2vec2:Wav2Vec2Encoder",
    "whisper": "metaser.model.encoders.whisper:WhisperEncoder",
}
"""A `PretrainedEncoder` as `MODULE:CLASS` by the `model_type` of a checkpoint's config.json."""


def encoder_class(kind: str) -> type[Encoder]:
    """Return the class of a kind of encoder."""
    return cast("type[Encoder]", imported(ENCODER_KINDS[kind].encoder))


def build_encoder(architecture: Mapping[str, Any]) -> Encoder:
    """Return an encoder with random weights, from what `Encoder.architecture` gave; reads no files."""
    encoder = encoder_class(architecture["kind"]).from_architecture(architecture)
    encoder.apply(init_encoder_weights)
    return encoder


def load_encoder(config: EncoderConfig, *, setting: str = "model.encoder") -> Encoder:
    """Return the encoder that a configuration asks for: with its checkpoint's weights, or fresh where it has none.

    Args:
        config: The configuration.
        setting: Where it stands in the experiment, such as `model.views.text`, for messages.

    Raises:
        ModelError: The checkpoint does not exist, is damaged, lacks weights, or is of another kind of model.
    """
    return encoder_class(config.kind).from_config(config, setting=setting)
