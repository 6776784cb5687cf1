"""The folder of a model that MetaSER has trained, found and checked before anything is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from metaser.errors import ModelError
from metaser.model.checkpoints import check_export
from metaser.model.encoder import FAMILIES
from metaser.model.metaser import MetaSERConfig, MetaSERModel


def load_export(path: str | Path, *, setting: str) -> MetaSERModel:
    """Return the model in the folder that `open_export` finds, on the CPU.

    Raises:
        ModelError: if there is none, or it is damaged.
    """
    folder, config = open_export(path, setting=setting)
    try:
        loaded: Any = MetaSERModel.from_pretrained(folder, config=config, output_loading_info=True)
    except (RuntimeError, ValueError, LookupError, StrictDataclassError) as error:
        # What config.json says and what model.safetensors holds do not belong together.
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{setting} must be what MetaSER exported, but {str(folder)!r} is not: {reason}") from error
    model: MetaSERModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise ModelError(
            f"{setting} must hold every weight, got {str(folder)!r} without {missing[0]} ({len(missing)} are missing); "
            "export it again"
        )
    return model


def open_export(path: str | Path, *, setting: str) -> tuple[Path, MetaSERConfig]:
    """Return the exported model's folder at `path`, or the best model's of the run there, and its configuration.

    Args:
        path: what the user gave.
        setting: as what, for messages.

    Raises:
        ModelError: if there is none, or its files are damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(f"{setting} must be a run's folder or an exported model's, but {str(path)!r} is not a folder")
    if not (folder / "config.json").is_file() and (folder / "best" / "config.json").is_file():
        folder = folder / "best"
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(
                f"{setting} must be an exported model's folder, or that of a run whose last stage was evaluated, but "
                f"{str(folder)!r} holds no {name}"
            )
    check_export(folder, FAMILIES)
    return folder, _read_config(folder, setting)


def _read_config(folder: Path, setting: str) -> MetaSERConfig:
    try:
        config: MetaSERConfig = MetaSERConfig.from_pretrained(folder)
        if config.encoder["kind"] == "huggingface":
            form = config.encoder["config"]
            FAMILIES[form["model_type"]].config_class.from_dict(form)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, StrictDataclassError) as error:
        # transformers takes values of config.json as they are.
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{setting} must be what MetaSER exported, but {str(folder / 'config.json')!r} is not: {reason}"
        ) from error
    return config
