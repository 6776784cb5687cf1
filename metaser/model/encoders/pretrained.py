"""The kind `huggingface`: encoders of transformers' families with the weights of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import BaseModel, ConfigDict, StrictBool
from transformers import PreTrainedConfig

from metaser.config.encoders import HuggingFaceEncoderConfig
from metaser.errors import ModelError
from metaser.model.checkpoints import FromFile, open_checkpoint, read_weights, unbuildable
from metaser.model.encoders.base import SpeechEncoder, init_encoder_weights
from metaser.model.encoders.families import FAMILY_PLACES
from metaser.registry import imported
from shards.shown import shown

Refusal = Callable[[str, str], ModelError]
"""Makes the error of a rule and what there is instead."""


class _Architecture(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    kind: Literal["huggingface"]
    config: dict[str, Any]
    do_normalize: StrictBool
    freeze_feature_encoder: StrictBool


class Original(NamedTuple):
    """What matters of transformers' model, whose modelling code takes seconds to load."""

    config_class: type[PreTrainedConfig]
    prefix: str
    """What stands before the names of the encoder's weights in a larger model."""


class PretrainedEncoder(SpeechEncoder):
    """A family of pre-trained speech encoders, in modules of ours under the names that transformers gives them."""

    originals: ClassVar[Mapping[str, Original]]
    """transformers' models by the `model_type` of config.json."""
    form: ClassVar[type[FromFile]]
    """What counts of a checkpoint's config.json, which may be damaged or hostile."""
    form_names: ClassVar[tuple[str, ...]]
    """What of it decides the weights' form and meaning."""
    dropouts: ClassVar[tuple[str, ...]]
    """What `model.encoder.dropout` replaces."""
    anchor: ClassVar[str]
    """A weight that every encoder of the family has, by which their place in a larger model is found."""
    zero_if_absent: ClassVar[Mapping[str, str]] = {}
    """Weights that are zero where a checkpoint lacks them, each with what comes of that."""

    def __init__(self, config: Any, *, do_normalize: bool, freeze_feature_encoder: bool, **sizes: Any) -> None:
        """Build with random weights.

        Args:
            config: The transformers configuration.
            do_normalize: Bring each clip to zero mean and unit variance.
            freeze_feature_encoder: Keep the convolutions before the layers as they are.
            sizes: Those of `SpeechEncoder`.
        """
        super().__init__(**sizes)
        self._config = config
        self._do_normalize = do_normalize
        self._freeze_feature_encoder = freeze_feature_encoder

    @classmethod
    def check_form(cls, config: Mapping[str, Any], refuse: Refusal) -> None:
        """Refuse sizes of which no encoder can be built, given with the defaults of those that the file leaves out."""
        raise NotImplementedError

    @classmethod
    def form_in(cls, config: FromFile, path: Path) -> dict[str, Any]:
        """Return what `config` says, which stands in `path`, without what it leaves out.

        Raises:
            ModelError: if no encoder can be built of it.
        """
        said = config.model_dump(exclude_unset=True)
        refuse = partial(unbuildable, path)
        cls.check_form({**cls.originals[said["model_type"]].config_class().to_dict(), **said}, refuse)
        return said

    @classmethod
    def from_config(cls, config: HuggingFaceEncoderConfig, *, setting: str = "model.encoder") -> SpeechEncoder:
        """Return an encoder with the checkpoint's weights.

        Whether clips are normalised is the checkpoint's `do_normalize`. Where no file tells they are, as in
        transformers; for models whose CNN has group norm this makes no difference beyond rounding.

        Raises:
            ModelError: The checkpoint does not exist, is damaged, lacks weights, or is of another kind of model.
        """
        checkpoint = open_checkpoint(config.name, config.revision, FAMILIES, setting=f"{setting}.name")
        settings = dict(checkpoint.config)
        family = FAMILIES[settings["model_type"]]
        if config.dropout is not None:
            settings |= dict.fromkeys(family.dropouts, config.dropout)
        # On the meta device no time goes into random weights.
        with torch.device("meta"):
            encoder = cls.from_architecture(
                {
                    "config": settings,
                    "do_normalize": checkpoint.do_normalize,
                    "freeze_feature_encoder": config.freeze_feature_encoder,
                }
            )
            encoder.apply(init_encoder_weights)
        prefix = f"{family.originals[settings['model_type']].prefix}."
        encoder.load_state_dict(read_weights(checkpoint, encoder.state_dict(), prefix, family), assign=True)
        return encoder

    @classmethod
    def from_architecture(cls, architecture: Mapping[str, Any]) -> SpeechEncoder:
        """Return an encoder with random weights, from what `architecture` gave; reads no files."""
        config = architecture["config"]
        family = FAMILIES[config["model_type"]]
        return family(
            family.originals[config["model_type"]].config_class.from_dict(config),
            do_normalize=architecture["do_normalize"],
            freeze_feature_encoder=architecture["freeze_feature_encoder"],
        )

    @classmethod
    def read_architecture(cls, values: Any, path: Path) -> dict[str, Any]:
        """Return an exported model's `architecture`; see `Encoder.read_architecture`."""
        architecture = _Architecture.model_validate(values)
        model_type = architecture.config.get("model_type")
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            raise ModelError(
                f"the encoder in {path} must be of type {', '.join(FAMILIES)}, got {shown(repr(model_type), 60)}; "
                "export again"
            )
        family = FAMILIES[model_type]
        said = family.form_in(family.form.model_validate_json(json.dumps(architecture.config)), path)
        return {**architecture.model_dump(), "config": said}

    @classmethod
    def form_of(cls, architecture: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of `architecture` decides the weights' form and meaning."""
        config = architecture["config"]
        names = ("model_type", *FAMILIES[config["model_type"]].form_names)
        return {"do_normalize": architecture["do_normalize"]} | {name: config.get(name) for name in names}

    def architecture(self) -> dict[str, Any]:
        """Return what `from_architecture` needs."""
        return {
            "kind": "huggingface",
            "config": cast("dict[str, Any]", json.loads(self._config.to_json_string(use_diff=False))),
            "do_normalize": self._do_normalize,
            "freeze_feature_encoder": self._freeze_feature_encoder,
        }


class _Families(Mapping[str, "type[PretrainedEncoder]"]):
    """The families by `model_type`, each imported when it is asked for."""

    def __getitem__(self, model_type: str) -> type[PretrainedEncoder]:
        return cast("type[PretrainedEncoder]", imported(FAMILY_PLACES[model_type]))

    def __iter__(self) -> Iterator[str]:
        return iter(FAMILY_PLACES)

    def __len__(self) -> int:
        return len(FAMILY_PLACES)


FAMILIES = _Families()
