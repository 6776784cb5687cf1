"""The kinds of encoders that `model.encoder` and `model.views` choose from; a new one is a module and a line here."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, PlainValidator, SerializeAsAny, model_validator

from metaser.registry import imported
from shards.record import Section

Width = Annotated[int, Field(gt=0, le=2**16)]
"""Larger ones are slips or attacks: a square of them takes 16 GB."""
_NumLayers = Annotated[int, Field(gt=0, le=256)]
NumHeads = Annotated[int, Field(gt=0, le=1024)]


class EncoderConfig(Section):
    """What an encoder is made from."""

    kind: str
    has_mel_filters: ClassVar[bool] = False
    """Whether VTLP has something to move."""

    @property
    def text_field(self) -> str | None:
        """The metadata field with the text that the encoder reads; None hears."""
        return None

    def describe(self) -> str:
        """Return what the encoder is, for a model card."""
        return f"of kind {self.kind}"


class LogMelEncoderConfig(EncoderConfig):
    """A small pre-norm transformer over log-mel frames, trained from scratch."""

    kind: Literal["logmel"] = "logmel"
    num_mels: int = Field(default=80, gt=0, le=1024)
    width: Width = 144
    num_layers: _NumLayers = 4
    num_heads: NumHeads = 4
    feed_forward: int = Field(default=576, gt=0, le=2**20)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    has_mel_filters: ClassVar[bool] = True

    @model_validator(mode="after")
    def _check(self) -> LogMelEncoderConfig:
        if self.width % self.num_heads:
            raise ValueError(
                f"width must be a multiple of num_heads, got {self.width} and {self.num_heads}; change one of them"
            )
        return self

    def describe(self) -> str:
        """Return what the encoder is."""
        return f"a transformer of {self.num_layers} layers over log-mel frames, trained from scratch"


class HuggingFaceEncoderConfig(EncoderConfig):
    """A checkpoint of wav2vec 2.0, HuBERT, WavLM, data2vec-audio or Whisper: a folder or a hub name, never code."""

    kind: Literal["huggingface"]
    name: str = Field(pattern=r"^\S(.*\S)?$")
    revision: str | None = None
    freeze_feature_encoder: bool = True
    """Keep the convolutions before the layers as they are and run them without autograd."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Replaces the checkpoint's hidden, attention and activation dropout; None keeps them."""


class TextEncoderConfig(EncoderConfig):
    """A checkpoint of BERT or RoBERTa that reads an utterance's text: a local folder or a hub name, never code."""

    kind: Literal["text"]
    name: str = Field(pattern=r"^\S(.*\S)?$")
    revision: str | None = None
    field: str = Field(default="text", pattern=r"^(text|extra\..+)$")
    """Metadata field with the text: `text`, or `extra.NAME`."""
    max_tokens: int = Field(default=512, gt=0, le=2**16)
    """Longer texts lose their end; never more than the checkpoint has positions for."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Replaces the checkpoint's hidden and attention dropout; None keeps them."""

    @property
    def text_field(self) -> str | None:
        """The metadata field with the text."""
        return self.field


class EncoderKind(NamedTuple):
    """Where a kind of encoder is, as `MODULE:CLASS`."""

    config: str
    """An `EncoderConfig`."""
    encoder: str
    """A `metaser.model.encoders.base.Encoder`."""


ENCODER_KINDS: dict[str, EncoderKind] = {
    "logmel": EncoderKind("metaser.config.encoders:LogMelEncoderConfig", "metaser.model.encoders.logmel:LogMelEncoder"),
    "huggingface": EncoderKind(
        "metaser.config.encoders:HuggingFaceEncoderConfig", "metaser.model.encoders.pretrained:PretrainedEncoder"
    ),
    "text": EncoderKind("metaser.config.encoders:TextEncoderConfig", "metaser.model.encoders.text:TextEncoder"),
}
"""By the word that `kind` holds."""


def _parse_encoder(value: Any) -> EncoderConfig:
    if isinstance(value, EncoderConfig):
        return value
    kinds = ", ".join(ENCODER_KINDS)
    if not isinstance(value, dict):
        raise ValueError(f"an encoder must be a mapping with a kind, which is one of {kinds}")
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in ENCODER_KINDS:
        raise ValueError(f"kind must be one of {kinds}, got {kind!r}")
    config: type[EncoderConfig] = imported(ENCODER_KINDS[kind].config)
    return config.model_validate(value)


AnyEncoder = Annotated[SerializeAsAny[EncoderConfig], PlainValidator(_parse_encoder)]
"""An encoder of whichever kind."""
