"""What `make oldest` does beside the unit tests: import all modules, train a tiny model, load and ask its export.

python tests/oldest.py constraints      # what pip must install for it
"""

from __future__ import annotations

import importlib
import pkgutil
import platform
import sys
import tempfile
import tomllib
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))
NAMES = ("torch", "transformers", "accelerate", "deepspeed", "numpy", "pyarrow", "pydantic", "huggingface_hub", "peft")


def constraints() -> str:
    """Return the lowest version of each package that pyproject.toml names for users, as pip's constraints."""
    from packaging.requirements import Requirement

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = [texts for extra, texts in project["optional-dependencies"].items() if extra != "dev"]
    named = [text for texts in (project["dependencies"], *extras) for text in texts]
    lowest = [
        f"{requirement.name}=={bound.version}"
        for requirement in map(Requirement, named)
        for bound in requirement.specifier
        if bound.operator == ">="
    ]
    return "\n".join(lowest)


def import_all() -> int:
    """Import every module of our packages and return how many there are."""
    packages = [importlib.import_module(name) for name in ("launch", "metaser", "shards")]
    found = [module.name for each in packages for module in pkgutil.walk_packages(each.__path__, f"{each.__name__}.")]
    for name in found:
        importlib.import_module(name)
    return len(packages) + len(found)


def train_and_predict(folder: Path) -> str:
    """Train both stages, evaluate, export; return the label that the exported model gives a clip."""
    import soundfile
    from tinyruns import clip, make_corpus

    from metaser.predict import load_model, predict_files

    run = make_corpus(folder).train(folder / "run")
    wave, rate_hz = clip(0).audio.load()
    soundfile.write(folder / "clip.wav", wave, rate_hz)
    (prediction,) = predict_files(load_model(run), [str(folder / "clip.wav")])
    label: str = prediction.tasks["emotion"]["label"]
    return label


if __name__ == "__main__":
    if sys.argv[1:] == ["constraints"]:
        print(constraints())
        sys.exit()
    print(platform.python_version(), *(f"{name} {version(name)}" for name in NAMES), sep=", ")
    print(f"{import_all()} modules imported")
    with tempfile.TemporaryDirectory() as temporary:
        print(f"trained, exported and loaded; its first word is {train_and_predict(Path(temporary))!r}")
