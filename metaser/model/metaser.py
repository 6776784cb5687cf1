"""The whole model as a Hugging Face `PreTrainedModel`: what is trained, saved and loaded with transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, initialization

from metaser.config.schema import ModelConfig
from metaser.model.adapters import reset_lora
from metaser.model.encoders.base import Encoder, SpeechEncoder, init_encoder_weights
from metaser.model.encoders.families import load_encoder
from metaser.model.exported import COVERED, HUB_OPTIONS, export_folder, find_export, read_export
from metaser.model.network import Blueprint, MetaSERConfig, MetaSERNetwork, MetaSEROutput, hearing
from metaser.sums import SUMS, write_sums
from metaser.tasks.spec import TaskSpec

__all__ = ["Blueprint", "MetaSERConfig", "MetaSERModel", "MetaSEROutput", "build_model", "load_export"]


class MetaSERModel(MetaSERNetwork, PreTrainedModel):
    """Encoder, views, adapters, ARI, co-attention and one head per task."""

    config: MetaSERConfig
    config_class = MetaSERConfig
    main_input_name = "wave_BT"

    def __init__(
        self,
        config: MetaSERConfig,
        encoder: SpeechEncoder | None = None,
        views: Mapping[str, Encoder] | None = None,
    ) -> None:
        """Build the model.

        Args:
            config: What to build.
            encoder: A loaded encoder of the configured architecture, whose weights are kept; None builds a fresh one.
            views: Loaded views, likewise.
        """
        PreTrainedModel.__init__(self, config)
        # How transformers tells loaded modules from those that post_init() has to initialise.
        for loaded in (*(() if encoder is None else (encoder,)), *(views or {}).values()):
            for module in loaded.modules():
                module._is_hf_initialized = True
        self._assemble(config, encoder, views)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Return the exported model in a folder or on the hub, its files compared with their checksums.

        The arguments are those of transformers; a `config` is taken from the folder in any case.

        Raises:
            ModelError: There is none, or its files are damaged.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *model_args, **kwargs)
        options = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        export = read_export(export_folder(pretrained_model_name_or_path, COVERED, options), MetaSERConfig, cls)
        kwargs["config"], kwargs["state_dict"] = export.config, export.tensors
        loaded = super().from_pretrained(None, *model_args, **kwargs)
        # A loading_info makes it a pair.
        model: MetaSERModel = loaded[0] if isinstance(loaded, tuple) else loaded
        for view in model.views.values():
            cast(Encoder, view).read_files(export.folder)
        return loaded

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write `config.json` and `model.safetensors`, as transformers does, and the checksums of both."""
        self.config.checksums = SUMS
        super().save_pretrained(save_directory, *args, **kwargs)
        for view in self.views.values():
            cast(Encoder, view).save_files(Path(save_directory))
        write_sums(Path(save_directory), COVERED)

    def blank(self) -> MetaSERModel:
        """Return a model of the same form on the CPU, with the files of its views, whose weights are to be loaded."""
        # Random weights of a large encoder take seconds, and each of them is replaced.
        with initialization.no_init_weights():
            model = MetaSERModel(self.config)
        for name, view in self.views.items():
            cast(Encoder, model.views[name]).share_files(cast(Encoder, view))
        return model

    def initialize_weights(self) -> None:
        """Initialise what is not loaded, then set to zero what starts at zero.

        transformers asks `_init_weights` about modules that hold parameters themselves, one by one; it cannot know
        that a linear layer is the output of LoRA or of a bottleneck. It also replaces parameters as it loads them,
        and forgets which are frozen.
        """
        super().initialize_weights()  # type: ignore[no-untyped-call]
        with torch.no_grad(), initialization.guard_torch_init_functions():
            self.ari.reset_coefficients()
            reset_lora(self.encoder)
            if self.adapters is not None:
                self.adapters.reset_outputs()
        for encoder in self.encoders.values():
            for parameter in encoder.frozen_parameters():
                parameter.requires_grad_(False)

    def _init_weights(self, module: nn.Module) -> None:
        init_encoder_weights(module)


def build_model(config: ModelConfig, tasks: Sequence[TaskSpec], main_task: str) -> MetaSERModel:
    """Return a model with its encoder loaded (or fresh, for an encoder without a checkpoint) and the rest fresh.

    Raises:
        ModelError: The encoder cannot be loaded, or the tasks cannot be built.
        ConfigError: The parts do not fit together.
    """
    encoder = hearing(load_encoder(config.encoder))
    views = {name: load_encoder(view, setting=f"model.views.{name}") for name, view in config.views.items()}
    built = MetaSERConfig(
        encoder=encoder.architecture(),
        model=config.model_dump(mode="json"),
        tasks=[task.model_dump(mode="json") for task in tasks],
        main_task=main_task,
        views={name: view.architecture() for name, view in views.items()},
    )
    return MetaSERModel(built, encoder, views)


def load_export(path: str | Path, *, setting: str) -> MetaSERModel:
    """Return the model in the folder that `find_export` finds, on the CPU; `setting` is as there.

    Raises:
        ModelError: There is none, or it is damaged.
    """
    model: MetaSERModel = MetaSERModel.from_pretrained(find_export(path, setting=setting))
    return model
