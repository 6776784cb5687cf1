"""The whole model as a module of torch: encoder, views, adapters, ARI, co-attention and one head per task.

`metaser.model.metaser` makes a `PreTrainedModel` of it, for training and for who knows transformers. To answer, the
module is enough: loading transformers' models takes longer than all else that answering for a short file does.

Legend: B utterances, T samples, L frames, C outputs of a task.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from pydantic import ValidationError, model_validator
from torch import Tensor, nn
from transformers import PreTrainedConfig

from metaser.config.schema import PARAMETER_GROUPS, ModelConfig
from metaser.errors import ConfigError, ModelError
from metaser.model.adapters import Bottlenecks, add_lora, is_lora
from metaser.model.ari import build_ari
from metaser.model.coattention import Plan, build_coattention
from metaser.model.encoders.base import Encoder, FrameMasks, FrozenFrames, Inputs, LayerMix, SpeechEncoder, Tokens
from metaser.model.encoders.families import build_encoder
from metaser.model.exported import (
    CONFIG,
    HUB_OPTIONS,
    describe_problems,
    export_folder,
    find_export,
    read_config,
    read_export,
)
from metaser.model.heads import FrameHead, MainHead, UtteranceHead
from metaser.model.streams import Stream
from metaser.tasks.kinds import check_kind, kind_of
from metaser.tasks.spec import TaskSpec
from shards.record import Section


class Blueprint(Section):
    """What a model is built from, beside its encoder's architecture."""

    model: ModelConfig
    tasks: tuple[TaskSpec, ...]
    main_task: str

    @property
    def main(self) -> TaskSpec:
        """The main task."""
        return next(task for task in self.tasks if task.name == self.main_task)

    @property
    def others(self) -> tuple[TaskSpec, ...]:
        """All tasks but the main one."""
        return tuple(task for task in self.tasks if task.name != self.main_task)

    @model_validator(mode="after")
    def _check(self) -> Blueprint:
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"task names must differ, got {names}")
        # Names become parts of parameter names, beside the methods that torch's ModuleDict has.
        parts = [*names, *self.model.views]
        unusable = [name for name in parts if not name.isidentifier() or hasattr(nn.ModuleDict(), name)]
        if unusable:
            raise ValueError(
                f"names of tasks and views must be identifiers that torch does not use itself, got {unusable}; rename "
                "them, and give a task's metadata field separately"
            )
        for task in self.tasks:
            _check_outputs(task)
        if self.main_task not in names:
            raise ValueError(f"main_task must be one of the tasks {names}, got {self.main_task!r}")
        self.model.other_streams(self.main_task, names)
        if kind_of(self.main).per_frame:
            raise ValueError(
                f"main_task must answer once an utterance, but {self.main_task!r} of kind {self.main.kind} answers for "
                "every frame"
            )
        return self


_LARGEST = 1e9
"""Of what a regression's answer is made from; float32 ends at 3e38."""


def _check_outputs(task: TaskSpec) -> None:
    """Refuse tasks whose answers would lose or lack a name."""
    check_kind(task.kind)
    if not task.fields or not task.labels:
        raise ValueError(f"task {task.name!r} must have fields and labels, got {task.fields} and {task.labels}")
    twice = sorted(label for label, count in Counter(task.labels).items() if count > 1)
    if twice or "" in task.labels:
        raise ValueError(f"task {task.name!r} must have labels that differ and are not empty, got {twice or ['']}")
    kind_of(task).check(task)
    if not 0 < task.scale <= _LARGEST or abs(task.offset) > _LARGEST:
        raise ValueError(
            f"task {task.name!r} must have a scale above 0 and an offset, neither beyond {_LARGEST:g}, got "
            f"{task.scale:g} and {task.offset:g}"
        )
    weights = task.class_weights
    if weights is not None and (len(weights) != len(task.labels) or min(weights) < 0):
        raise ValueError(f"task {task.name!r} must have a weight of 0 or more for each label, got {weights}")


class MetaSERConfig(PreTrainedConfig):
    """What config.json holds: enough to build the model without its encoder's checkpoint."""

    model_type = "metaser"
    # Until 5.17 at least, transformers compares what it saves with a configuration built without arguments.
    has_no_defaults_at_init = True

    def __init__(
        self,
        *,
        encoder: dict[str, Any],
        model: dict[str, Any],
        tasks: list[dict[str, Any]],
        main_task: str,
        views: dict[str, dict[str, Any]] | None = None,
        sampling_rate: int = 16000,
        checksums: str | None = None,
        **others: Any,
    ) -> None:
        """Check everything, unknown keys included, and derive id2label from the main task.

        Args:
            encoder: `SpeechEncoder.architecture()`.
            model: A dumped `ModelConfig`.
            tasks: Dumped `TaskSpec`s.
            main_task: Name of the task whose stream co-attends to the others.
            views: `Encoder.architecture()` of each view, by its name.
            sampling_rate: Samples a second that the model hears.
            checksums: The file beside config.json that has the checksums, so that it cannot get lost unnoticed.
            others: What transformers itself stores.

        Raises:
            ModelError: A section is not what this version of MetaSER reads; every problem is listed.
        """
        self.encoder = encoder
        self.model = model
        self.tasks = tasks
        self.main_task = main_task
        self.views = dict(sorted((views or {}).items()))
        self.sampling_rate = sampling_rate
        self.checksums = checksums
        labels = self.blueprint().main.labels
        names = {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
        }
        super().__init__(**(others | names))

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what `from_pretrained` makes a configuration of, compared with its checksum; and other arguments.

        Raises:
            ModelError: There is none, or it is damaged.
        """
        options = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        folder = export_folder(pretrained_model_name_or_path, (CONFIG,), options)
        return read_config(folder, cls).to_dict(), kwargs

    def blueprint(self) -> Blueprint:
        """Return the sections as typed values.

        Raises:
            ModelError: As in `__init__`.
        """
        try:
            blueprint = Blueprint.model_validate(
                {"model": self.model, "tasks": self.tasks, "main_task": self.main_task}
            )
        except ValidationError as error:
            raise ModelError(
                f"a MetaSER configuration must be one that this version writes, got {describe_problems(error, 'model')}"
                "; build or export the model again"
            ) from error
        if list(self.views) != list(blueprint.model.views):
            raise ModelError(
                f"a MetaSER configuration must describe the encoder of each view {list(blueprint.model.views)}, got "
                f"{list(self.views)}; build or export the model again"
            )
        return blueprint


class MetaSEROutput(NamedTuple):
    """Every task's outputs for a batch."""

    logits: dict[str, Float[Tensor, "B ..."]]
    """float32. `B L C` of kinds of tasks that answer for every frame, `B C` of the others."""
    num_frames_B: Int[Tensor, "B"]
    """True frames of each utterance: how many of the L columns count."""

    def frames_of(self, task: str) -> Int[Tensor, "B"]:
        """Return how many frames of the task's logits count; all tasks have the same."""
        return self.num_frames_B


class MetaSERNetwork(nn.Module):
    """Encoder, views, adapters, ARI, co-attention and one head per task."""

    config_class = MetaSERConfig

    def __init__(
        self,
        config: MetaSERConfig,
        encoder: SpeechEncoder | None = None,
        views: Mapping[str, Encoder] | None = None,
    ) -> None:
        """Build the model.

        Args:
            config: What to build.
            encoder: An encoder of the configured architecture; None builds a fresh one.
            views: Loaded views, likewise.
        """
        super().__init__()
        self.config = config
        self._assemble(config, encoder, views)

    def _assemble(
        self, config: MetaSERConfig, encoder: SpeechEncoder | None, views: Mapping[str, Encoder] | None
    ) -> None:
        """Add all parts."""
        blueprint = config.blueprint()
        model, main, others = blueprint.model, blueprint.main, blueprint.others
        if encoder is None:
            encoder = hearing(build_encoder(config.encoder))
        self._num_layers = encoder.num_layers
        self._layer_name = re.compile(re.escape(_name_of(encoder.transformer_layers, encoder)) + r"\.(\d+)\.")
        top_norm = encoder.top_norm()
        self._top_norm_prefix = None if top_norm is None else f"{_name_of(top_norm, encoder)}."
        self.encoder = encoder
        if views is None:
            views = {name: build_encoder(architecture) for name, architecture in config.views.items()}
        self.views = nn.ModuleDict(dict(views))
        for name, view in views.items():
            view.view = name
        if model.adapters.lora_rank:
            add_lora(encoder, model.adapters.lora_rank, model.adapters.lora_alpha)
        self.adapters = (
            Bottlenecks(encoder.num_layers, encoder.hidden_size, model.adapters.bottleneck)
            if model.adapters.bottleneck
            else None
        )
        tasks = [task.name for task in blueprint.tasks]
        self.ari = build_ari(model.ari.form, encoder.num_layers, encoder.hidden_size, tasks)
        widths = dict.fromkeys(tasks, encoder.hidden_size)
        widths |= {name: view.hidden_size for name, view in views.items()}
        joined = (main.name, *model.other_streams(main.name, tasks))
        self.joined_views = tuple(name for name in joined if name in views and model.coattention.form != "none")
        """Those that co-attention joins to the main task's stream; no other is computed."""
        self.coattention = build_coattention(
            Plan(model.coattention, model.pooling, {name: widths[name] for name in joined})
        )
        self.heads = nn.ModuleDict({task.name: _head(task, encoder.hidden_size, model) for task in others})
        self.heads[main.name] = MainHead(
            self.coattention.output_width,
            main.num_outputs,
            hidden_width=model.head_width,
            dropout=model.head_dropout,
        )
        self._main_task = main.name

    def forward(
        self,
        wave_BT: Float[Tensor, "B T"],
        num_samples_B: Int[Tensor, "B"],
        masks: FrameMasks | None = None,
        warp_B: Float[Tensor, "B"] | None = None,
        tokens: Mapping[str, Tokens] | None = None,
        vectors: Mapping[str, Float[Tensor, "B V"]] | None = None,
        frozen: FrozenFrames | None = None,
        *,
        tasks: Sequence[str] | None = None,
    ) -> MetaSEROutput:
        """Return the outputs of every task asked for; each of their heads is in the graph.

        Args:
            wave_BT: Mono audio at `config.sampling_rate`, zero-padded at the end.
            num_samples_B: True samples of each utterance.
            masks: SpecAugment masks over the encoder's input frames; None masks nothing.
            warp_B: How far VTLP moves each clip's mel filters; None moves none.
            tokens: The texts of views that read, by the view's name.
            vectors: The numbers of views that are given some, by the view's name.
            frozen: What the encoder's frozen part would compute; None computes it.
            tasks: Names of the tasks to compute; None computes all.
        """
        inputs = Inputs(wave_BT, num_samples_B, masks, warp_B, tokens or {}, vectors or {}, frozen)
        encoded = self.encoder(inputs, mix=self._layer_mix())
        frames = self.ari(encoded.layers, encoded.frame_mask_BL)
        streams = {name: Stream(frames_BLD, encoded.frame_mask_BL) for name, frames_BLD in frames.items()}
        logits = {}
        for name, head in self.heads.items():
            if tasks is not None and name not in tasks:
                continue
            if name == self._main_task:
                logits[name] = head(self.coattention(streams | self._view_streams(inputs)).vector_BE).float()
            else:
                logits[name] = head(streams[name]).float()
        return MetaSEROutput(logits, encoded.frame_mask_BL.sum(dim=1))

    def _view_streams(self, inputs: Inputs) -> dict[str, Stream]:
        """Return the top layers' frames of the views; SpecAugment's masks have the main encoder's shape."""
        outputs = {name: self.views[name](inputs._replace(masks=None, frozen=None)) for name in self.joined_views}
        return {name: Stream(output.layers[-1], output.frame_mask_BL) for name, output in outputs.items()}

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.parameters()).device

    @property
    def mixes_layers(self) -> bool:
        """Whether something is mixed into the encoder's frames between its layers."""
        return self._layer_mix() is not None

    @property
    def given_views(self) -> dict[str, Encoder]:
        """The views that are given something beside the sound and that co-attention joins, by name."""
        views = {name: cast(Encoder, self.views[name]) for name in self.joined_views}
        return {name: view for name, view in views.items() if view.given_fields}

    @property
    def reads_text(self) -> bool:
        """Whether a view is given texts."""
        return any(view.reads_text for view in self.given_views.values())

    @property
    def encoders(self) -> dict[str, Encoder]:
        """The main encoder and the views by where they stand: `encoder`, `views.NAME`."""
        views = {f"views.{name}": cast(Encoder, view) for name, view in self.views.items()}
        return {"encoder": self.encoder, **views}

    @property
    def task_specs(self) -> tuple[TaskSpec, ...]:
        """The tasks, in the order of the configuration."""
        return self.config.blueprint().tasks

    @property
    def longest_samples(self) -> int | None:
        """The longest clip that the encoder and all joined views hear, in samples; None: they hear any."""
        parts = [self.encoder, *(cast(Encoder, self.views[name]) for name in self.joined_views)]
        limits = [part.longest_samples for part in parts if part.longest_samples is not None]
        return min(limits, default=None)

    def group_of(self, parameter_name: str) -> str:
        """Return `encoder`, `views.NAME`, `ari`, `heads.NAME`, `coattention` or `adapters` for a parameter's name."""
        if is_lora(parameter_name):
            return "adapters"
        top, below = parameter_name.split(".", 2)[:2]
        return f"{top}.{below}" if top in ("heads", "views") else top

    def layer_of(self, parameter_name: str) -> int | None:
        """Return the index (from 0) of the transformer layer that a parameter of the encoder lies in.

        A norm over the top layer's output belongs to that layer. None for what lies before the layers, and for other
        groups (LoRA and bottlenecks included).
        """
        if self.group_of(parameter_name) != "encoder":
            return None
        name = parameter_name.removeprefix("encoder.")
        if self._top_norm_prefix is not None and name.startswith(self._top_norm_prefix):
            return self._num_layers - 1
        found = self._layer_name.match(name)
        return int(found[1]) if found else None

    def parameters_of(self, group: str) -> dict[str, nn.Parameter]:
        """Return a group's parameters by name; empty where the model has no such part.

        Args:
            group: `encoder`, `encoder.layers.A-B` (transformer layers A to B, from 0, both included, and the norm over
                the top one), `views` (those that co-attention joins), `views.NAME`, `ari`, `heads`, `heads.NAME`,
                `coattention` or `adapters`. An encoder's frozen CNN and its adapters are no part of it.

        Raises:
            ConfigError: There is no such group.
        """
        chosen = self._layer_range(group)
        parts = [*(f"heads.{name}" for name in self.heads), *(f"views.{name}" for name in self.views)]
        if chosen is None and group not in {*PARAMETER_GROUPS, *parts}:
            views = "views, " if self.views else ""
            raise ConfigError(
                f"a stage trains encoder, encoder.layers.A-B with 0 <= A <= B <= {self._num_layers - 1}, {views}ari, "
                f"heads, {', '.join(parts)}, coattention or adapters, got {group!r}; name one of these"
            )
        parameters = {}
        left_out = {id(parameter) for encoder in self.encoders.values() for parameter in encoder.frozen_parameters()}
        if group == "views":
            for name, view in self.views.items():
                left_out |= set() if name in self.joined_views else {id(parameter) for parameter in view.parameters()}
        for name, parameter in self.named_parameters():
            own = self.group_of(name)
            belongs = self.layer_of(name) in chosen if chosen is not None else group in (own, own.split(".")[0])
            if belongs and id(parameter) not in left_out:
                parameters[name] = parameter
        return parameters

    def _layer_mix(self) -> LayerMix | None:
        mix = self.ari.layer_mix()
        return mix if self.adapters is None else self.adapters.before(mix)

    def _layer_range(self, group: str) -> range | None:
        found = re.fullmatch(r"encoder\.layers\.(\d+)-(\d+)", group)
        if not found:
            return None
        layers = range(int(found[1]), int(found[2]) + 1)
        return layers if layers and layers[-1] < self._num_layers else None


def load_network(path: str | Path, *, setting: str) -> MetaSERNetwork:
    """Return what `load_export` returns, as far as it answers: the module alone, in evaluation mode, on the CPU.

    Raises:
        ModelError: There is none, or it is damaged.
    """
    export = read_export(find_export(path, setting=setting), MetaSERConfig, MetaSERNetwork)
    # On the meta device no time goes into random weights.
    with torch.device("meta"):
        network = MetaSERNetwork(export.config)
    # Whatever it was saved in: what answers computes in float32.
    weights = {name: value.float() if value.is_floating_point() else value for name, value in export.tensors.items()}
    network.load_state_dict(weights, assign=True)
    for view in network.views.values():
        cast(Encoder, view).read_files(export.folder)
    return network.eval()


def hearing(encoder: Encoder) -> SpeechEncoder:
    """Return `encoder` if it hears.

    Raises:
        ModelError: It does not.
    """
    if not isinstance(encoder, SpeechEncoder):
        raise ModelError(
            f"model.encoder must be an encoder that hears, got one of kind {encoder.architecture()['kind']!r}; make it "
            "one of model.views"
        )
    return encoder


def _head(task: TaskSpec, width: int, model: ModelConfig) -> nn.Module:
    if kind_of(task).per_frame:
        return FrameHead(width, task.num_outputs)
    return UtteranceHead(width, task.num_outputs, pooling=model.pooling, dropout=model.head_dropout)


def _name_of(part: nn.Module, encoder: SpeechEncoder) -> str:
    names: list[str] = [name for name, module in encoder.named_modules() if module is part]
    return names[0]
