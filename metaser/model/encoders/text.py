"""The kind `text`: BERT and RoBERTa with transformers' weights, over the tokens of what was said.

They run through the loop of all encoders, so that padding never changes a text's frames, of which each token is one.

Legend: B utterances, M tokens, D hidden, H heads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
import transformers
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers.activations import ACT2FN

from metaser.config.encoders import TextEncoderConfig
from metaser.errors import ModelError
from metaser.fields import texts_in
from metaser.model.attention import AttentionMask
from metaser.model.checkpoints import Fraction, FromFile, Name, Size, open_checkpoint, read_weights, unbuildable
from metaser.model.encoders.base import (
    Encoder,
    EncoderOutput,
    Inputs,
    LayerMix,
    Lookup,
    Tokens,
    init_encoder_weights,
    real_mask,
)
from metaser.model.encoders.tokenizer import TOKENIZER, TextTokenizer, pack_tokens, read_tokenizer
from shards.shown import shown

if TYPE_CHECKING:
    from shards.index import Index

_WORDS = "embeddings.word_embeddings.weight"
_MODELS = {"bert": "BertModel", "roberta": "RobertaModel"}
"""Names of transformers' models by the `model_type` of config.json."""
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_FORM = (*_SIZES, "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id")
"""What of a config.json decides the weights' form and meaning, with `model_type`."""


class _Form(FromFile):
    """What counts of a checkpoint's config.json. What it leaves out has the default of its model, not that below."""

    model_type: Literal["bert", "roberta"]
    vocab_size: Annotated[int, Field(gt=0, le=2**20)] = 1
    hidden_size: Size = 1
    num_hidden_layers: Annotated[int, Field(gt=0, le=256)] = 1
    num_attention_heads: Size = 1
    intermediate_size: Annotated[int, Field(gt=0, le=2**20)] = 1
    hidden_act: Name = ""
    hidden_dropout_prob: Fraction = 0
    attention_probs_dropout_prob: Fraction = 0
    max_position_embeddings: Annotated[int, Field(gt=0, le=2**16)] = 1
    type_vocab_size: Annotated[int, Field(gt=0, le=1024)] = 1
    layer_norm_eps: Annotated[float, Field(ge=1e-12, le=1)] = 1
    pad_token_id: Annotated[int, Field(ge=0)] | None = 0
    position_embedding_type: Literal["absolute"] = "absolute"
    is_decoder: Literal[False] = False
    add_cross_attention: Literal[False] = False


class _Architecture(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    kind: Literal["text"]
    config: dict[str, Any]
    field: str
    max_tokens: int
    tokenizer_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class TextEncoder(Encoder):
    """The modules of transformers' BERT or RoBERTa under their own names, without the pooler.

    The word embeddings have one more row at their end, `[NOTEXT]`, which stands for utterances without text; it starts
    at the mean of the checkpoint's rows. All tokens are of type 0, as those of a single text in transformers.

    Attributes:
        view: Its name in the model: the one of its `Tokens`, and part of its files' names.
        field: Metadata field with the text.
        max_tokens: M at most.
        no_text: The id of `[NOTEXT]`.
        tokenizer_json: The bytes of the tokenizer; empty before `read_files` where the architecture alone was given.
    """

    files: ClassVar[tuple[str, ...]] = ("tokenizer_{view}.json",)
    form: ClassVar[type[FromFile]] = _Form
    anchor: ClassVar[str] = _WORDS
    zero_if_absent: ClassVar[Mapping[str, str]] = {}

    embeddings: Any
    encoder: Any

    def __init__(self, config: Mapping[str, Any], *, field: str, max_tokens: int, tokenizer_sha256: str) -> None:
        """Build with random weights and without the tokenizer.

        Args:
            config: What `form_in` gave.
            field: Metadata field with the text.
            max_tokens: M at most, where the checkpoint has positions for as many.
            tokenizer_sha256: Of the tokenizer's file.
        """
        super().__init__(num_layers=config["num_hidden_layers"], hidden_size=config["hidden_size"])
        self.view = "text"
        self.field = field
        self.given_fields = (field,)
        self.reads_text = True
        self.max_tokens = min(max_tokens, _num_positions(config))
        self.no_text: int = config["vocab_size"]
        self._config = dict(config)
        self._tokenizer_sha256 = tokenizer_sha256
        self._tokenizer: TextTokenizer | None = None
        settings = {**config, "vocab_size": config["vocab_size"] + 1}
        model_class = _model_class(config["model_type"])
        model = model_class(model_class.config_class(**settings), add_pooling_layer=False)
        self.embeddings = model.embeddings
        self.encoder = model.encoder
        # Buffers that no checkpoint holds, and that would stay on the meta device.
        for name in ("position_ids", "token_type_ids"):
            delattr(self.embeddings, name)

    @classmethod
    def form_in(cls, config: FromFile, path: Path) -> dict[str, Any]:
        """Return what decides the model's form of what stands in `path`.

        Raises:
            ModelError: if no encoder can be built of it.
        """
        refuse = partial(unbuildable, path)
        said = config.model_dump(exclude_unset=True)
        defaults = _model_class(said["model_type"]).config_class().to_dict()
        form = {name: said.get(name, defaults[name]) for name in ("model_type", *_FORM, *_DROPOUTS)}
        hidden, heads = form["hidden_size"], form["num_attention_heads"]
        if hidden % heads:
            raise refuse("hidden_size must be a multiple of num_attention_heads", f"{hidden} and {heads}")
        if form["hidden_act"] not in ACT2FN:
            raise refuse(
                "hidden_act must be an activation of transformers such as gelu", shown(repr(form["hidden_act"]))
            )
        padding = form["pad_token_id"]
        if padding is not None and padding >= form["vocab_size"]:
            raise refuse("pad_token_id must be less than vocab_size", f"{padding} and {form['vocab_size']}")
        if padding is None and form["model_type"] == "roberta":
            raise refuse("pad_token_id must be a number, from which positions are counted", "null")
        if _num_positions(form) < 1:
            numbers = f"{form['max_position_embeddings']} and {padding}"
            raise refuse("max_position_embeddings must be greater than pad_token_id + 1", numbers)
        return form

    @classmethod
    def from_config(cls, config: TextEncoderConfig, *, setting: str = "model.encoder") -> TextEncoder:
        """Return an encoder with the checkpoint's weights and its tokenizer; see `Encoder.from_config`."""
        families = dict.fromkeys(_MODELS, cls)
        checkpoint = open_checkpoint(
            config.name, config.revision, families, setting=f"{setting}.name", files=(TOKENIZER,)
        )
        form = dict(checkpoint.config)
        if config.dropout is not None:
            form |= dict.fromkeys(_DROPOUTS, config.dropout)
        max_tokens = min(config.max_tokens, _num_positions(form))
        path = checkpoint.folder / TOKENIZER
        tokenizer = TextTokenizer(read_tokenizer(path), path, form["vocab_size"], max_tokens)
        # On the meta device no time goes into random weights.
        with torch.device("meta"):
            encoder = cls(form, field=config.field, max_tokens=max_tokens, tokenizer_sha256=tokenizer.sha256)
            encoder.apply(init_encoder_weights)
        expected = encoder.state_dict()
        expected[_WORDS] = expected[_WORDS][:-1]
        prefix = f"{_model_class(form['model_type']).base_model_prefix}."
        weights = read_weights(checkpoint, expected, prefix, cls)
        words_VD = weights[_WORDS]
        weights[_WORDS] = torch.cat([words_VD, words_VD.mean(0, keepdim=True)])
        encoder.load_state_dict(weights, assign=True)
        encoder._tokenizer = tokenizer
        return encoder

    @classmethod
    def from_architecture(cls, architecture: Mapping[str, Any]) -> TextEncoder:
        """Return an encoder with random weights, from what `architecture` gave; its tokenizer is `read_files`'s."""
        return cls(**{name: value for name, value in architecture.items() if name != "kind"})

    @classmethod
    def read_architecture(cls, values: Any, path: Path) -> dict[str, Any]:
        """Return an exported model's `architecture`; see `Encoder.read_architecture`."""
        architecture = _Architecture.model_validate(values)
        said = cls.form_in(_Form.model_validate_json(json.dumps(architecture.config)), path)
        # The bounds of the two are those of the configuration.
        bounded = {"field": architecture.field, "max_tokens": architecture.max_tokens}
        TextEncoderConfig.model_validate({"kind": "text", "name": "exported", **bounded})
        return {**architecture.model_dump(), "config": said}

    @classmethod
    def form_of(cls, architecture: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of `architecture` decides the weights' form and meaning."""
        config = architecture["config"]
        form = {name: config.get(name) for name in ("model_type", *_FORM)}
        return {"tokenizer_sha256": architecture["tokenizer_sha256"]} | form

    def architecture(self) -> dict[str, Any]:
        """Return what `from_architecture` needs."""
        return {
            "kind": "text",
            "config": dict(self._config),
            "field": self.field,
            "max_tokens": self.max_tokens,
            "tokenizer_sha256": self._tokenizer_sha256,
        }

    @property
    def tokenizer_json(self) -> bytes:
        """The bytes of the tokenizer's file."""
        return b"" if self._tokenizer is None else self._tokenizer.data

    def save_files(self, folder: Path) -> None:
        """Write the tokenizer into the folder of an exported model."""
        (name,) = self.files_of(self.view)
        (folder / name).write_bytes(self._running_tokenizer().data)

    def read_files(self, folder: Path) -> None:
        """Take the tokenizer from the folder of an exported model.

        Raises:
            ModelError: It is missing, damaged, or not the one that the model was trained with.
        """
        (name,) = self.files_of(self.view)
        path = folder / name
        tokenizer = TextTokenizer(read_tokenizer(path), path, self.no_text, self.max_tokens)
        if tokenizer.sha256 != self._tokenizer_sha256:
            raise ModelError(
                f"{path} must be the tokenizer that the model was trained with, of sha256 {self._tokenizer_sha256}, "
                f"got one of {tokenizer.sha256}; export the model again"
            )
        self._tokenizer = tokenizer

    def share_files(self, other: Encoder) -> None:
        """Take the tokenizer from an encoder of the same architecture."""
        if isinstance(other, TextEncoder):
            self._tokenizer = other._tokenizer

    def lookup(self, index: Index) -> Lookup:
        """Return what finds the tokens of the utterances' texts."""
        setting = f"model.views.{self.view}"
        return lambda items: self.tokenize(texts_in(index.take(items), self.field, setting=setting))

    def tokenize(self, texts: Sequence[str | None]) -> Tokens:
        """Return the tokens of texts, on the CPU; one that is None or blank is `[NOTEXT]`.

        Raises:
            ModelError: if the tokenizer fails on a text.
        """
        tokenizer = self._running_tokenizer()
        ids = [tokenizer.ids_of(text) if text is not None and text.strip() else [] for text in texts]
        return pack_tokens([each or [self.no_text] for each in ids])

    @property
    def transformer_layers(self) -> nn.ModuleList:
        """The N layers, lowest first."""
        layers: nn.ModuleList = self.encoder.layer
        return layers

    def top_norm(self) -> nn.Module | None:
        """Return None: the models are post-norm."""
        return None

    def forward(self, inputs: Inputs, *, mix: LayerMix | None = None) -> EncoderOutput:
        """Return the frames of all layers, L = M; see `Encoder.forward`."""
        ids_BM, num_tokens_B = inputs.tokens.get(self.view) or self._without_text(inputs)
        real_BM = real_mask(num_tokens_B, ids_BM.shape[1])
        ids_BM = ids_BM.masked_fill(~real_BM, 0)
        first = _first_position(self._config)
        positions_BM = torch.arange(first, first + ids_BM.shape[1], device=ids_BM.device).expand_as(ids_BM)
        embedded_BMD = self.embeddings(
            input_ids=ids_BM, token_type_ids=torch.zeros_like(ids_BM), position_ids=positions_BM
        )
        return self._run_layers([embedded_BMD], real_BM, mix)

    def _without_text(self, inputs: Inputs) -> Tokens:
        num_utterances, device = len(inputs.num_samples_B), inputs.wave_BT.device
        ids_BM = torch.full((num_utterances, 1), self.no_text, device=device)
        return Tokens(ids_BM, torch.ones(num_utterances, dtype=torch.long, device=device))

    def _run_layer(self, layer: Any, frames_BLD: Tensor, mask: AttentionMask) -> Tensor:
        attention = layer.attention
        frames_BLD = attention.output(_attend(attention.self, frames_BLD, mask), frames_BLD)
        output_BLD: Tensor = layer.output(layer.intermediate(frames_BLD), frames_BLD)
        return output_BLD

    def _running_tokenizer(self) -> TextTokenizer:
        if self._tokenizer is None:
            raise RuntimeError("read_files must be called before an encoder built of its architecture reads texts")
        return self._tokenizer


def _model_class(model_type: str) -> Any:
    return getattr(transformers, _MODELS[model_type])


def _first_position(config: Mapping[str, Any]) -> int:
    """Return the first token's row of the position embeddings: RoBERTa's (fairseq's) count from the padding's on."""
    return config["pad_token_id"] + 1 if config["model_type"] == "roberta" else 0


def _num_positions(config: Mapping[str, Any]) -> int:
    positions: int = config["max_position_embeddings"] - _first_position(config)
    return positions


def _attend(attention: Any, frames_BLD: Float[Tensor, "B L D"], mask: AttentionMask) -> Float[Tensor, "B L D"]:
    """Return what `metaser.model.attention.attend` does, before the output's projection, for BERT's attention."""
    query_BHLE, key_BHLE, value_BHLE = (
        project(frames_BLD).unflatten(2, (attention.num_attention_heads, -1)).transpose(1, 2)
        for project in (attention.query, attention.key, attention.value)
    )
    attended_BHLE = nn.functional.scaled_dot_product_attention(
        query_BHLE,
        key_BHLE,
        value_BHLE,
        attn_mask=mask.keys_B11L,
        dropout_p=attention.dropout.p if attention.training else 0.0,
    )
    return attended_BHLE.transpose(1, 2).flatten(2)
