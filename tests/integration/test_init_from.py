"""A run that starts from another run's weights: what it takes, what is fresh, and that it says so."""

import json
import logging
import shutil

import pytest
import torch
from tinyruns import ALONE, losses

from metaser.config.load import load_experiment
from metaser.config.schema import AdapterConfig, ModelConfig
from metaser.errors import ConfigError, ModelError
from metaser.eval.crossval import plan_folds
from metaser.model.metaser import MetaSERModel, build_model
from metaser.tasks.spec import TaskSpec
from metaser.train.checks import check_folds
from metaser.train.initial import load_initial_weights
from metaser.train.run import train
from shards.errors import SplitError

HEADS_ONLY = (
    "stages=[{name: only, train: [heads], weights: {emotion: 1, gender: 1}, num_steps: 2, eval_every_steps: 2, "
    "save_every_steps: 1}]"
)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def source_of(run):
    return MetaSERModel.from_pretrained(run / "best")


def fresh_model(source, tasks=None, **changes):
    """Return a fresh model of the source's form with changes."""
    torch.manual_seed(7)
    blueprint = source.config.blueprint()
    values = blueprint.model.model_dump() | changes
    return build_model(ModelConfig.model_validate(values), tasks or blueprint.tasks, "emotion")


def taken_and_kept(before, after, source):
    """Return the names of the tensors that are the source's now, and of those that are what they were."""
    theirs = {name: source.get(name.replace(".base_layer.", ".")) for name in after}
    taken = {name for name in after if theirs[name] is not None and torch.equal(after[name], theirs[name])}
    return taken, {name for name in after if torch.equal(after[name], before[name])}


def test_a_model_of_the_same_form_takes_everything(finished):
    source = source_of(finished)
    model = fresh_model(source)
    said = load_initial_weights(model, str(finished))
    expected = weights(source)
    assert all(torch.equal(value, expected[name]) for name, value in weights(model).items())
    assert (said.fresh, said.unused) == ({}, {})
    assert sum(said.loaded.values()) == len(expected)
    assert load_initial_weights(model, str(finished / "best")).sha256 == said.sha256


def test_other_labels_other_tasks_and_their_rows_of_ari_are_fresh_and_said(finished, tmp_path):
    source = source_of(finished)
    emotion, asr, gender, _ = source.config.blueprint().tasks
    with torch.no_grad():
        source.ari.integration.task_scalars.copy_(torch.arange(4.0)[:, None])
    source.save_pretrained(tmp_path / "changed")
    fewer = emotion.model_copy(update={"labels": emotion.labels[:3]})
    age = TaskSpec(name="age", kind="classification", fields=("age_group",), labels=("child", "adult"))
    model = fresh_model(source, (gender, age, fewer, asr))
    before = weights(model)
    said = load_initial_weights(model, str(tmp_path / "changed"))
    taken, kept = taken_and_kept(before, weights(model), weights(source))
    assert set(said.loaded) == {"encoder", "ari", "heads.asr", "heads.gender"}
    assert said.fresh["heads.emotion"] == f"labels {', '.join(emotion.labels)} there"
    assert said.fresh["heads.age"] == "no such task there"
    assert "tasks" in said.fresh["coattention"]
    assert set(said.unused) == {"coattention", "heads.style", "heads.emotion"}
    assert model.ari.integration.task_scalars[:, 0].tolist() == [2.0, 0.0, 0.0, 1.0]
    parts = ("encoder.", "heads.asr.", "heads.gender.", "ari.integration.norms.")
    assert taken >= {name for name in before if name.startswith(parts)}
    assert kept >= {name for name in before if name.startswith(("heads.emotion.", "heads.age.", "coattention."))}
    for words in ("loaded encoder (", "fresh: ", "not used: ", "heads.style ("):
        assert words in str(said)


def test_adapters_join_an_encoder_that_had_none(finished):
    source = source_of(finished)
    model = fresh_model(source, adapters=AdapterConfig(lora_rank=2, bottleneck=4).model_dump())
    before = weights(model)
    said = load_initial_weights(model, str(finished))
    assert said.fresh == {"adapters": "others there, or none"}
    taken, kept = taken_and_kept(before, weights(model), weights(source))
    encoder = {name for name in before if name.startswith("encoder.") and ".lora_" not in name}
    assert encoder <= taken
    assert {name for name in before if ".lora_" in name or name.startswith("adapters.")} <= kept


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 32}, "width is 16 there and 32 here"),
        ({"num_layers": 3}, "num_layers is 2 there and 3 here"),
        ({"num_heads": 4}, "num_heads is 2 there and 4 here"),
    ],
)
def test_another_encoder_is_refused_even_where_shapes_agree(finished, changes, words):
    source = source_of(finished)
    model = fresh_model(source, encoder=source.config.blueprint().model.encoder.model_dump() | changes)
    before = weights(model)
    with pytest.raises(ModelError, match=words):
        load_initial_weights(model, str(finished))
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


WAVLM, LFS = b'{"model_type": "wavlm"}', b"version https://git-lfs.github.com/spec/v1"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (None, "init_from must be a run's folder or an exported model's, but .* does not exist"),
        ({}, "holds no config.json"),
        ({"config.yaml": b"x"}, "holds no config.json"),
        ({"config.json": b"{}"}, "holds no model.safetensors"),
        ({"config.json": WAVLM, "model.safetensors": b""}, "an encoder's checkpoint belongs in .*, got 'wavlm'"),
        ({"config.json": b"[]", "model.safetensors": b""}, "configuration of an exported model"),
        ({"config.json": b'{"model_type": "metaser", "encoder": 5}', "model.safetensors": b""}, "encoder: .* got 5"),
        ({"config.json": b"<html>", "model.safetensors": b""}, "a web page"),
        ({"config.json": None, "model.safetensors": LFS}, "a pointer of Git LFS"),
    ],
)
def test_what_is_no_model_is_one_sentence(finished, tmp_path, files, words):
    folder = tmp_path / "source"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes((finished / "best" / name).read_bytes() if content is None else content)
    with pytest.raises(ModelError, match=words):
        load_initial_weights(source_of(finished), str(folder))


def test_weights_that_are_not_finite_are_refused(finished, tmp_path):
    source = source_of(finished)
    with torch.no_grad():
        source.ari.integration.task_scalars[0] = torch.nan
    source.save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelError, match="task_scalars"):
        load_initial_weights(source_of(finished), str(tmp_path / "broken"))


def test_a_run_starts_from_it_once_says_so_and_goes_on_without_it(corpus, finished, tmp_path, caplog):
    source = shutil.copytree(finished, tmp_path / "source")
    theirs = source_of(source).state_dict()
    overrides = (f"init_from={source}", HEADS_ONLY, "tasks.3={name: session, kind: classification, labels: [a, b]}")
    caplog.set_level(logging.INFO)
    run = corpus.train(tmp_path / "run", *overrides)
    assert f"weights of {source} (tensors): loaded encoder (" in caplog.text
    assert f"init_from: {source}" in (run / "config.yaml").read_text()
    (start,) = json.loads((run / "environment.json").read_text())["starts"]
    assert start["init_from"]["source"] == str(source)
    assert start["init_from"]["fresh"]["heads.session"] == "no such task there"
    name = "encoder.layers.1.up.weight"
    assert torch.equal(source_of(run).state_dict()[name], theirs[name])
    shutil.rmtree(source)
    caplog.clear()
    more = (overrides[0], HEADS_ONLY.replace("num_steps: 2", "num_steps: 4"), overrides[2])
    assert train(load_experiment(corpus.yaml, [f"output_dir={run}", *more]), ALONE)
    assert "weights of" not in caplog.text
    assert len(losses(run)) == 4
    first, second = json.loads((run / "environment.json").read_text())["starts"]
    assert (first["init_from"] is None, second["init_from"] is None) == (False, True)
    assert torch.equal(source_of(run).state_dict()[name], theirs[name])


def test_a_wrong_folder_leaves_no_run_behind(corpus, tmp_path):
    with pytest.raises(ModelError, match="init_from must be a run's folder"):
        corpus.train(tmp_path / "run", f"init_from={tmp_path / 'nowhere'}")
    assert not (tmp_path / "run/config.yaml").exists()


ONE_STEP = HEADS_ONLY.replace("num_steps: 2", "num_steps: 1")
OVERLAP = ("data.allow_speaker_overlap=true", "data.allow_recording_overlap=true")


def judged(run):
    report = json.loads((run / "report/report.json").read_text())
    return report["protocol"], (run / "report/report.md").read_text(), (run / "best/README.md").read_text()


def test_what_made_the_source_made_the_run(corpus, finished, tmp_path):
    """The source has heard speakers 0 to 4; this run would call speaker 0, its test speaker, unseen."""
    fold = "data.splits=[{policy: leave_one_out, fold: 0}]"
    with pytest.raises(SplitError, match=r"a run that starts from .* 'tiny:s0'\); .* data\.allow_speaker_overlap=true"):
        corpus.train(tmp_path / "refused", f"init_from={finished}", fold, ONE_STEP)
    assert not (tmp_path / "refused/config.yaml").exists()
    run = corpus.train(tmp_path / "run", f"init_from={finished}", fold, ONE_STEP, *OVERLAP)
    protocol, report, card = judged(run)
    assert (protocol["speaker_overlap"], protocol["init_from"]) == (True, str(finished))
    assert protocol["num_utterances_trained_on"] == 6
    for text in (report, card):
        assert f"started from the weights of {str(finished)!r}, which 30 utterances of tiny made" in text
        assert "unseen speakers" not in text
    grandchild = corpus.train(tmp_path / "grandchild", f"init_from={run / 'best'}", fold, ONE_STEP, *OVERLAP)
    assert judged(grandchild)[0]["speaker_overlap"] is True


def test_a_source_of_the_same_splits_leaves_the_test_speakers_unseen(corpus, finished, tmp_path):
    protocol, report, _ = judged(corpus.train(tmp_path / "run", f"init_from={finished}", ONE_STEP))
    assert protocol["speaker_overlap"] is False
    assert "unseen speakers" in report


def test_a_source_without_a_record_leaves_it_unknown_here_and_in_what_starts_from_this_run(corpus, finished, tmp_path):
    shutil.copytree(finished / "best", tmp_path / "export")
    first = corpus.train(tmp_path / "first", f"init_from={tmp_path / 'export'}", ONE_STEP)
    second = corpus.train(tmp_path / "second", f"init_from={first}", ONE_STEP)
    for run, why in ((first, "it has no record of that"), (second, f"it started from {str(tmp_path / 'export')!r}")):
        protocol, report, card = judged(run)
        assert protocol["speaker_overlap"] is None
        assert "unknown whether these speakers were trained on" in report
        for text in (report, card):
            assert why in text


def test_every_fold_is_compared_with_the_source(corpus, finished, tmp_path):
    folds = "data.splits=[{policy: leave_one_out}]"
    plan = plan_folds(corpus.experiment(tmp_path / "runs", f"init_from={finished}", folds, ONE_STEP))
    with pytest.raises(ConfigError, match=r"5 of 6 are not: .*fold 0 \(tiny:s0\)") as caught:
        check_folds(plan)
    assert "fold 5" not in str(caught.value)
