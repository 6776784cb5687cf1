"""The kinds of encoders that `model.encoder` and `model.views` choose from; a new one is a module and a line here."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, PlainValidator, SerializeAsAny, field_validator, model_validator

from metaser.fields import numbers_in, texts_in
from metaser.registry import imported
from shards.record import Section

if TYPE_CHECKING:
    from shards.index import Index

Width = Annotated[int, Field(gt=0, le=2**16)]
"""Larger ones are slips or attacks: a square of them takes 16 GB."""
_NumLayers = Annotated[int, Field(gt=0, le=256)]
NumHeads = Annotated[int, Field(gt=0, le=1024)]


class EncoderConfig(Section):
    """What an encoder is made from."""

    kind: str
    has_mel_filters: ClassVar[bool] = False
    """Whether VTLP has something to move."""

    reads_text: ClassVar[bool] = False
    """Whether `metaser predict --text` has something to tell it."""

    @property
    def given_fields(self) -> tuple[str, ...]:
        """The metadata fields that the encoder is given beside the sound; none where it only hears."""
        return ()

    def describe_given(self) -> str:
        """Return the names of the `given_fields`, for messages and reports."""
        first, *others = self.given_fields
        return f"{1 + len(others)} fields ({first!r} first)" if others else f"the field {first!r}"

    def num_given(self, index: Index, *, setting: str) -> int:
        """Return how many utterances have something in the `given_fields`.

        Args:
            index: The utterances.
            setting: Where the encoder stands in the experiment, for messages.

        Raises:
            ConfigError: The fields hold what the encoder cannot be given.
        """
        raise NotImplementedError

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

    reads_text: ClassVar[bool] = True

    @property
    def given_fields(self) -> tuple[str, ...]:
        """The metadata field with the text."""
        return (self.field,)

    def num_given(self, index: Index, *, setting: str) -> int:
        """Return how many utterances have a text; see `EncoderConfig.num_given`."""
        return sum(bool((text or "").strip()) for text in texts_in(index, self.field, setting=setting))


class NumbersEncoderConfig(EncoderConfig):
    """A small network over numbers of the metadata, such as functionals of the clip: no sound, one frame."""

    kind: Literal["numbers"]
    fields: tuple[Annotated[str, Field(pattern=r"^(age|extra\..+)$")], ...] = Field(min_length=1, max_length=8192)
    """Metadata fields with the numbers: `age`, or `extra.NAME`; what may be labels is none of them."""
    width: Width = 64
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @field_validator("fields")
    @classmethod
    def _check_fields(cls, fields: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted(name for name, count in Counter(fields).items() if count > 1)
        if twice:
            raise ValueError(f"fields must be named once, got {twice} more often; leave the others out")
        return fields

    @property
    def given_fields(self) -> tuple[str, ...]:
        """The metadata fields with the numbers."""
        return self.fields

    def num_given(self, index: Index, *, setting: str) -> int:
        """Return how many utterances have at least one of the numbers; see `EncoderConfig.num_given`."""
        numbers_UV = numbers_in(index, self.fields, setting=setting)
        return int(np.isfinite(numbers_UV).any(axis=1).sum())

    def describe(self) -> str:
        """Return what the encoder is."""
        return f"a network over {len(self.fields)} numbers of the metadata, trained from scratch"


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
    "numbers": EncoderKind(
        "metaser.config.encoders:NumbersEncoderConfig", "metaser.model.encoders.numbers:NumbersEncoder"
    ),
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
