"""The examples of docs/extending, built as they stand there, from outside the packages: one file and one line each."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import soundfile as sf
import torch
from safetensors.torch import load_file
from tinyruns import Speech, dev_metrics, losses, pack_clips, read_json
from torch import Tensor

from metaser.config.ari import ARI_FORMS, Form
from metaser.config.encoders import ENCODER_KINDS, EncoderKind, HuggingFaceEncoderConfig
from metaser.model.encoders.base import Inputs
from metaser.model.encoders.families import FAMILY_PLACES, load_encoder
from metaser.model.metaser import MetaSERModel, load_export
from metaser.predict import load_model, predict_files
from metaser.tasks.kinds import KINDS
from shards.corpora import base
from shards.indexload import load_index
from shards.pack import pack_corpus
from shards.survey import verify

PAGES = Path(__file__).parents[2] / "docs" / "extending"


def example(page: str, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the one module that a page shows, imported as `name`."""
    (code,) = re.findall(r"```python\n(.*?)```", (PAGES / f"{page}.md").read_text(), re.DOTALL)
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(code, f"{page}.md", "exec"), module.__dict__)
    return module


def test_a_corpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    example("corpus", "shards.corpora.talk", monkeypatch)
    monkeypatch.setattr(base, "CORPORA", (*base.CORPORA, "talk"))
    source = tmp_path / "talk"
    source.mkdir()
    for number, name in enumerate(("s01_f_happy_1", "s01_f_calm_2", "s02_m_happy_1", "notes")):
        samples, rate_hz = Speech(120.0, 3.0, 0.5, number).load()
        sf.write(source / f"{name}.wav", samples, rate_hz)
    done = pack_corpus("talk", source, tmp_path / "out", num_workers=1, on_bad="skip")
    assert (done.num_utterances, dict(done.num_rejected_by_kind)) == (3, {"unknown name": 1})
    assert not verify([tmp_path / "out"])
    index = load_index([tmp_path / "out"])
    assert sorted(index.values("emotion")) == ["calm", "happiness", "happiness"]
    assert set(index.values("speaker")) == {"talk:s01", "talk:s02"}


def test_a_kind_of_task(corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(KINDS, "sign", example("task", "sign", monkeypatch).Sign())
    shards = pack_clips(tmp_path / "shards", valence=-2.0)
    run = corpus.train(
        tmp_path / "run",
        f"data.shards={shards}",
        "tasks=[{name: emotion, kind: classification}, {name: cheerful, kind: sign, field: valence}]",
        "stages.0.weights={cheerful: 1.0}",
        "stages.0.select=cheerful.hits",
        "stages.1.weights={emotion: 1.0, cheerful: 0.1}",
    )
    assert losses(run)[0][-1]["cheerful"] > 0
    assert {dev["tasks"]["cheerful"]["num_utterances"] for *_, dev in dev_metrics(run)} == {6}
    report = read_json(run / "report/report.json")
    with (run / "report/predictions.csv").open() as file:
        said = [row["cheerful.prediction"].lstrip("'") for row in csv.DictReader(file)]
    assert report["tasks"]["cheerful"]["hits"] == said.count("-") / len(said)
    assert "hits" in (run / "report/report.md").read_text() and "hits" in (run / "best/README.md").read_text()
    samples, rate_hz = Speech(120.0, 3.0, 0.5, 1).load()
    sf.write(tmp_path / "a.wav", samples, rate_hz)
    (answer,) = predict_files(load_model(run), [str(tmp_path / "a.wav")])
    assert answer.tasks["cheerful"]["sign"] in ("+", "-") and json.dumps(answer.tasks)


def logits_alone_and_together(model: MetaSERModel) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each clip's answer in a padded batch, and alone."""
    lengths = (4000, 900, 2600)
    wave_BT = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = model(wave_BT, torch.tensor(lengths)).logits["emotion"]
        for row, length in enumerate(lengths):
            yield together[row], model(wave_BT[row : row + 1, :length], torch.tensor([length])).logits["emotion"][0]


def test_a_view(corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    example("view", "loudness", monkeypatch)
    monkeypatch.setitem(ENCODER_KINDS, "loudness", EncoderKind("loudness:LoudnessConfig", "loudness:Loudness"))
    run = corpus.train(
        tmp_path / "run",
        "model.views={level: {kind: loudness, width: 8}}",
        "stages.1.train=[encoder, views.level, ari, heads, coattention]",
        "stages.1.learning_rate.views=0.01",
    )
    fresh = load_file(run / "stage1/checkpoints/step-000006/model.safetensors")
    trained = load_export(run, setting="RUN").state_dict()
    moved = [name for name in trained if name.startswith("views.") and not torch.equal(trained[name], fresh[name])]
    assert sorted(moved) == ["views.level.linear.bias", "views.level.linear.weight"]
    for together, alone in logits_alone_and_together(load_export(run, setting="RUN").eval()):
        torch.testing.assert_close(together, alone, atol=2e-6, rtol=2e-5)
    samples, rate_hz = Speech(120.0, 3.0, 0.5, 1).load()
    sf.write(tmp_path / "a.wav", samples, rate_hz)
    (answer,) = predict_files(load_model(run), [str(tmp_path / "a.wav")])
    assert sum(answer.tasks["emotion"]["probabilities"].values()) == pytest.approx(1)


def test_a_form_of_ari(corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    example("ari", "mean_of_layers", monkeypatch)
    monkeypatch.setitem(ARI_FORMS, "mean", Form("mean_of_layers:MeanOfLayers"))
    run = corpus.train(tmp_path / "run", "model.ari.form=mean")
    model = load_export(run, setting="RUN").eval()
    coefficients = model.ari.coefficients()["task"]
    assert coefficients.shape == (4, 3) and coefficients[:, 1].abs().max() > 0
    assert coefficients[:, 0].eq(0).all() and coefficients[:, 2].eq(1).all()
    for together, alone in logits_alone_and_together(model):
        torch.testing.assert_close(together, alone, atol=2e-6, rtol=2e-5)


def test_an_encoder_family(corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hum = example("encoder", "metaser.model.encoders.hum", monkeypatch)
    monkeypatch.setitem(FAMILY_PLACES, "hum", "metaser.model.encoders.hum:HumEncoder")
    torch.manual_seed(0)
    hum.HumModel(hum.HumConfig()).save_pretrained(tmp_path / "encoder")
    encoder = load_encoder(HuggingFaceEncoderConfig(kind="huggingface", name=str(tmp_path / "encoder"))).eval()
    wave_BT, num_samples_B = torch.randn(3, 5000), torch.tensor([5000, 2000, 90])
    with torch.no_grad():
        together = encoder(Inputs(wave_BT, num_samples_B))
        assert torch.equal(together.frame_mask_BL.sum(1), encoder.num_frames(num_samples_B))
        for row, length in enumerate(num_samples_B.tolist()):
            alone = encoder(Inputs(wave_BT[row : row + 1, :length], num_samples_B[row : row + 1]))
            for ours, theirs in zip(together.layers, alone.layers, strict=True):
                torch.testing.assert_close(ours[row, : theirs.shape[1]], theirs[0], atol=2e-6, rtol=2e-6)
    run = corpus.train(
        tmp_path / "run",
        f"model.encoder={{kind: huggingface, name: {tmp_path / 'encoder'}}}",
        "model.adapters={lora_rank: 1, bottleneck: 2}",
        "stages.0.learning_rate.layer_decay=0.5",
    )
    assert len(losses(run)) == 12
    samples, rate_hz = Speech(120.0, 3.0, 0.5, 1).load()
    sf.write(tmp_path / "a.wav", samples, rate_hz)
    (answer,) = predict_files(load_model(run), [str(tmp_path / "a.wav")])
    assert answer.error is None and set(answer.tasks) == {"emotion", "asr", "gender", "style"}
