"""The module that answers beside the model that trains: the same numbers, with far less imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from tinyencoders import BUCKETS, SIZES, WHISPER
from transformers import PreTrainedModel, WavLMConfig, WavLMModel, WhisperConfig, WhisperModel

from metaser.config.encoders import EncoderConfig, HuggingFaceEncoderConfig, LogMelEncoderConfig
from metaser.config.schema import AdapterConfig, AriConfig, CoattentionConfig, ModelConfig
from metaser.model.metaser import MetaSERModel, build_model, load_export
from metaser.model.network import load_network
from metaser.tasks.spec import TaskSpec
from shards.schema import RATE_HZ

TASKS = (
    TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=("anger", "joy")),
    TaskSpec(name="asr", kind="ctc", fields=("text",), labels=("<blank>", "<unk>", "a")),
)
LOGMEL = LogMelEncoderConfig(num_mels=20, width=16, num_layers=2, num_heads=2, feed_forward=24)
CHECKPOINTS = {
    "wavlm": lambda: WavLMModel(WavLMConfig(**SIZES, **BUCKETS)),
    "whisper": lambda: WhisperModel(WhisperConfig(**WHISPER)),
}
NOT_NEEDED = (
    *("peft", "accelerate", "deepspeed", "torch._dynamo", "torch._inductor", "torchaudio", "torchvision", "pyarrow"),
    *("pandas", "sklearn", "scipy", "matplotlib", "tensorboard", "webdataset", "transformers.modeling_utils"),
)
SCRIPT = """
import sys
from importlib.machinery import ModuleSpec

class Absent:
    "Finds torchaudio, and refuses to load it."
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.split(".")[0] == "torchaudio" else None
    def create_module(self, spec):
        raise ImportError(f"{spec.name} is not here")
    def exec_module(self, module):
        raise AssertionError

sys.meta_path.insert(0, Absent())
from launch.cli import main
sys.argv = ["metaser", "predict", *sys.argv[2:], "--format", "jsonl"]
try:
    main()
finally:
    print(sorted(sys.modules.keys() & set(NOT_NEEDED)), file=sys.stderr)
"""


def saved(folder: Path, kind: str, *, lora_rank: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Export a small model of random weights, none of them at its start."""
    torch.manual_seed(0)
    encoder: EncoderConfig = LOGMEL
    if kind != "logmel":
        model: PreTrainedModel = CHECKPOINTS[kind]()
        model.save_pretrained(folder / "encoder")
        encoder = HuggingFaceEncoderConfig(kind="huggingface", name=str(folder / "encoder"))
    config = ModelConfig(
        encoder=encoder,
        views={"mel": LOGMEL},
        ari=AriConfig(form="dense+task"),
        adapters=AdapterConfig(lora_rank=lora_rank, bottleneck=2 if lora_rank else 0),
        coattention=CoattentionConfig(width=8, num_heads=2),
        pooling="attentive_statistics",
    )
    built = build_model(config, TASKS, "emotion")
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    built.to(dtype).save_pretrained(folder / "model")
    return folder / "model"


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("kind", ["logmel", *CHECKPOINTS])
def test_it_answers_as_the_model_that_trains(tmp_path: Path, kind: str, lora_rank: int) -> None:
    folder = saved(tmp_path, kind, lora_rank=lora_rank)
    network, model = load_network(folder, setting="MODEL"), load_export(folder, setting="MODEL")
    assert not isinstance(network, MetaSERModel) and not network.training
    theirs = model.state_dict()
    assert network.state_dict().keys() == theirs.keys()
    for name, value in network.state_dict().items():
        assert torch.equal(value, theirs[name]) and value.dtype == theirs[name].dtype, name
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert frozen == [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    batch = 0.1 * torch.randn(2, 8000), torch.tensor([8000, 5000])
    with torch.no_grad():
        expected = model.eval()(*batch).logits
        for name, logits in network(*batch).logits.items():
            assert torch.equal(logits, expected[name]), name


def test_what_was_saved_in_half_precision_answers_in_single(tmp_path: Path) -> None:
    network = load_network(saved(tmp_path, "logmel", dtype=torch.bfloat16), setting="MODEL")
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert bool(network(torch.randn(1, 4000), torch.tensor([4000])).logits["emotion"].isfinite().all())


@pytest.mark.parametrize("kind", ["logmel", *CHECKPOINTS])
def test_predict_imports_little_and_needs_no_torchaudio(tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path, kind)
    sf.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(RATE_HZ), RATE_HZ)
    script = f"NOT_NEEDED = {NOT_NEEDED}\n{SCRIPT}"
    done = subprocess.run(
        [sys.executable, "-c", script, "--", str(folder), str(tmp_path / "a.wav")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (0, "[]"), done.stderr
    assert '"emotion": {"label": ' in done.stdout
