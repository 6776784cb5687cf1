"""Exported models: no changed byte is believed, and what is hostile with right checksums is one sentence."""

import copy
import hashlib
import json
import os
import shutil
import struct

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import WavLMConfig

from metaser.config.encoders import HuggingFaceEncoderConfig, LogMelEncoderConfig
from metaser.config.schema import CoattentionConfig, ModelConfig
from metaser.errors import ModelError
from metaser.model.metaser import COVERED, MetaSERConfig, MetaSERModel, build_model, load_export
from metaser.predict import load_model, predict_files
from metaser.sums import SUMS, write_sums
from metaser.tasks.spec import TaskSpec

TASKS = (
    TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=("anger", "joy")),
    TaskSpec(name="affect", kind="regression", fields=("valence", "arousal"), labels=("valence", "arousal")),
    TaskSpec(name="asr", kind="ctc", fields=("text",), labels=("<blank>", "<unk>", "a", "b")),
)
LOGMEL = LogMelEncoderConfig(num_mels=16, width=16, num_layers=2, num_heads=2, feed_forward=16)
MODEL = ModelConfig(encoder=LOGMEL, coattention=CoattentionConfig(width=8, num_heads=2), head_width=8)
WAVLM = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
    **{"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
}


def pretrained_form():
    """Return the configuration of a model with an encoder of transformers."""
    form = WavLMConfig(**WAVLM)
    encoder = {
        "kind": "huggingface",
        "config": json.loads(form.to_json_string(use_diff=False)),
        "do_normalize": True,
        "freeze_feature_encoder": True,
    }
    model = MODEL.model_copy(update={"encoder": HuggingFaceEncoderConfig(kind="huggingface", name="wavlm")})
    tasks = [task.model_dump(mode="json") for task in TASKS]
    return MetaSERConfig(encoder=encoder, model=model.model_dump(mode="json"), tasks=tasks, main_task="emotion")


@pytest.fixture(scope="module", params=["logmel", "wavlm"])
def export(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "best"
    model = build_model(MODEL, TASKS, "emotion") if request.param == "logmel" else MetaSERModel(pretrained_form())
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(export, tmp_path):
    return shutil.copytree(export, tmp_path / "best")


def refusal(folder):
    """Return the one sentence with which `predict` and `from_pretrained` alike refuse the folder."""
    with pytest.raises(ModelError) as refused:
        load_model(folder)
    with pytest.raises(ModelError) as also_refused:
        MetaSERModel.from_pretrained(folder)
    said = str(refused.value)
    assert str(folder) in str(also_refused.value)
    assert str(folder) in said
    assert said.isprintable()
    assert len(said) < 2000
    return said


# ---------------------------------------------------------------- checksums


def test_the_checksums_are_those_of_sha256sum(export):
    lines = [f"{hashlib.sha256((export / name).read_bytes()).hexdigest()}  {name}\n" for name in COVERED]
    assert (export / SUMS).read_text() == "".join(lines)


def test_a_whole_export_is_loaded_bit_by_bit(export):
    tensors = load_file(export / "model.safetensors")
    state = load_model(export).cpu().state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], tensors[name]) for name in tensors)


def test_a_loaded_model_is_saved_with_checksums_of_its_own(export, tmp_path):
    load_export(export, setting="MODEL").save_pretrained(tmp_path / "again")
    again, before = (load_model(folder).cpu().state_dict() for folder in (tmp_path / "again", export))
    assert all(torch.equal(again[name], before[name]) for name in before)


@settings(max_examples=40)
@given(st.data())
def test_no_changed_byte_of_any_file_is_believed(export, tmp_path_factory, data):
    folder = shutil.copytree(export, tmp_path_factory.mktemp("flipped") / "best")
    file = folder / data.draw(st.sampled_from([*COVERED, SUMS]))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    refusal(folder)


@settings(max_examples=40)
@given(st.data())
def test_no_changed_byte_of_a_configuration_alone_is_believed(export, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flipped")
    for name in ("config.json", SUMS):
        shutil.copy(export / name, folder)
    values = json.loads((export / "config.json").read_text())
    assert MetaSERConfig.from_pretrained(folder).blueprint() == MetaSERConfig(**values).blueprint()
    file = folder / data.draw(st.sampled_from(["config.json", SUMS]))
    content = bytearray(file.read_bytes())
    # Of the checksums, the first is that of config.json.
    end = content.index(b"\n") if file.name == SUMS else len(content)
    content[data.draw(st.integers(0, end - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    with pytest.raises(ModelError, match=str(folder)):
        MetaSERConfig.from_pretrained(folder)
    (folder / SUMS).unlink()
    with pytest.raises(ModelError, match=str(folder)):
        MetaSERConfig.from_pretrained(folder)


def test_arguments_of_a_configuration_stay_those_of_transformers(export, tmp_path):
    config, left = MetaSERConfig.from_pretrained(
        export, sampling_rate=8000, colour="red", local_files_only=True, return_unused_kwargs=True
    )
    assert config.sampling_rate == 8000
    assert left == {"colour": "red"}
    with pytest.raises(ModelError, match=r"which is no folder here and could not be fetched"):
        MetaSERConfig.from_pretrained(tmp_path / "nowhere", local_files_only=True)


@pytest.mark.parametrize("name", [*COVERED, SUMS])
@pytest.mark.parametrize("fault", ["missing", "cut", "empty", "one byte more", "a line more", "a folder", "a pipe"])
def test_a_file_that_is_not_as_it_was_written(copied, name, fault):
    file = copied / name
    content = file.read_bytes()
    file.unlink()
    if fault == "a folder":
        file.mkdir()
    elif fault == "a pipe":
        os.mkfifo(file)
    elif fault != "missing":
        changed = {"cut": content[:-3], "empty": b"", "one byte more": content + b"\0", "a line more": content + b"\n"}
        file.write_bytes(changed[fault])
    said = refusal(copied)
    assert name in said


@pytest.mark.parametrize("name", COVERED)
def test_a_file_of_another_model(copied, tmp_path, name):
    other = tmp_path / "other"
    model = load_export(copied, setting="MODEL")
    with torch.no_grad():
        next(model.heads.parameters()).add_(1.0)
    model.config.window_s = 3.0
    model.save_pretrained(other)
    shutil.copy(other / name, copied / name)
    assert f"{copied / name} must have the sha256" in refusal(copied)


def rewritten(folder, change):
    """Change config.json as its author could."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_an_export_of_an_earlier_version_is_read_and_said(copied, caplog):
    rewritten(copied, lambda config: config.pop("checksums"))
    (copied / SUMS).unlink()
    load_model(copied)
    assert f"{copied} holds no {SUMS}, because an earlier version" in caplog.text


# ---------------------------------------------------------------- hostile, with right checksums


def resigned(folder, change):
    rewritten(folder, change)
    write_sums(folder, COVERED)


def form_of(config):
    """Return the part that says how large the encoder is."""
    return config["encoder"].get("config", config["encoder"])


HOSTILE = {
    "wide": lambda config: form_of(config).update(width=10**9, hidden_size=10**9),
    "wider": lambda config: form_of(config).update(width=2**16, hidden_size=2**16),
    "deep": lambda config: form_of(config).update(num_layers=10**9, num_hidden_layers=10**9),
    "deeper": lambda config: form_of(config).update(num_layers=256, num_hidden_layers=256),
    "heads": lambda config: config["model"]["coattention"].update(num_heads=10**6),
    "head width": lambda config: config["model"].update(head_width=10**12),
    "other width": lambda config: config["model"].update(head_width=9),
    "rank": lambda config: config["model"]["adapters"].update(lora_rank=2**60),
    "bottleneck": lambda config: config["model"]["adapters"].update(bottleneck=10**30),
    "no labels": lambda config: config["tasks"][0].update(labels=[]),
    "an empty label": lambda config: config["tasks"][0].update(labels=["", "joy"]),
    "equal labels": lambda config: config["tasks"][0].update(labels=["joy", "joy"]),
    "many labels": lambda config: config["tasks"][0].update(labels=[str(number) for number in range(10**5)]),
    "no task": lambda config: config.update(tasks=[]),
    "no such task": lambda config: config.update(main_task="mood"),
    "tasks twice": lambda config: config.update(tasks=[config["tasks"][0]] * 2),
    "many tasks": lambda config: config.update(tasks=[config["tasks"][0] | {"name": f"t{n}"} for n in range(10**4)]),
    "other fields": lambda config: config["tasks"][1].update(labels=["a", "b"]),
    "huge scale": lambda config: config["tasks"][1].update(scale=1e308),
    "no scale": lambda config: config["tasks"][1].update(scale=0),
    "unknown kind": lambda config: config["tasks"][0].update(kind="guess"),
    "unknown encoder": lambda config: config["encoder"].update(kind="whisper"),
    "unknown form": lambda config: config["model"]["ari"].update(form="magic"),
    "unknown key": lambda config: config["model"].update(magic=1),
    "other rate": lambda config: config.update(sampling_rate=8000),
    "a window that is true": lambda config: config.update(window_s=True),
    "a type that is code": lambda config: config.update(dtype="nn"),
    "words of a terminal": lambda config: config.update(main_task="\x1b[2J\n"),
    "an encoder": lambda config: config.update(model_type="wavlm"),
    "a long word": lambda config: config["model"].update({"x" * 10**6: "y" * 10**6}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_config_with_right_checksums(copied, name):
    resigned(copied, HOSTILE[name])
    refusal(copied)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 5000 + "1" + "}" * 5000,
        '{"model_type": "metaser", "model_type": "metaser"}',
        '{"model_type": "metaser", "window_s": NaN}',
        '{"model_type": "\\ud800"}',
        f'{{"window_s": {"9" * 5000}}}',
        '{"window_s": 1e999}',
        "null",
        "\ufeff{}",
    ],
    ids=["brackets", "deep", "twice", "NaN", "half a character", "digits", "infinite", "null", "mark"],
)
def test_hostile_json_with_right_checksums(copied, text):
    (copied / "config.json").write_text(text)
    write_sums(copied, COVERED)
    refusal(copied)


def test_entries_of_transformers_change_nothing(copied):
    """Of what transformers itself would obey, nothing is read."""
    foreign = {
        **{"quantization_config": {"quant_method": "gptq"}, "auto_map": {"AutoModel": "evil--code.Model"}},
        **{"num_labels": 10**9, "torch_dtype": [3], "fusion_config": {"a": 1}, "id2label": {"0": "x"}},
        **{"transformers_weights": "/etc/passwd", "architectures": 7, "problem_type": "?", "pruned_heads": {"a": 1}},
    }
    resigned(copied, lambda config: (config.update(foreign), config["encoder"].get("config", {}).update(foreign)))
    model = load_model(copied)
    assert model.config.id2label == {0: "anger", 1: "joy"}


PLACES = st.lists(st.integers(0, 30), min_size=1, max_size=6)
VALUES = st.one_of(
    *(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5)),
    st.sampled_from([[], {}, [[]], {"a": 1}, [1], ["a", "a"], 10**9, "\x1b", "nan", "1"]),
)


@settings(max_examples=25)
@given(places=PLACES, value=VALUES, is_removed=st.booleans())
def test_any_value_anywhere_is_loaded_or_refused(export, tmp_path_factory, places, value, is_removed):
    folder = shutil.copytree(export, tmp_path_factory.mktemp("values") / "best")

    def change(config):
        node = config
        for place in places:
            names = sorted(node) if isinstance(node, dict) else list(range(len(node)))
            name = names[place % len(names)]
            if place == places[-1] or not isinstance(node[name], dict | list) or not node[name]:
                break
            node = node[name]
        if is_removed:
            del node[name]
        else:
            node[name] = copy.deepcopy(value)

    resigned(folder, change)
    try:
        load_model(folder)
    except ModelError as error:
        assert str(folder) in str(error)
        assert str(error).isprintable()


def test_numbers_that_are_not_finite(copied):
    path = copied / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith("heads."))
    for value in (torch.nan, torch.inf, -torch.inf):
        tensors[name].view(-1)[-1] = value
        save_file(tensors, path)
        write_sums(copied, COVERED)
        assert f"{name} must be finite" in refusal(copied)


def test_weights_so_large_that_answers_are_no_numbers_are_no_answer(copied, tmp_path):
    path = copied / "model.safetensors"
    tensors = {
        name: torch.full_like(tensor, 3e38) if "heads." in name else tensor for name, tensor in load_file(path).items()
    }
    save_file(tensors, path)
    write_sums(copied, COVERED)
    sf.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    (answer,) = predict_files(load_model(copied), [str(tmp_path / "a.wav")])
    assert not answer.tasks
    assert "is NaN or infinite" in answer.error


# ---------------------------------------------------------------- hostile headers


def with_header(folder, change):
    """Change the weights' header as its author could."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    changed = change(header, rest)
    header, rest = (header, rest) if changed is None else changed
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)
    write_sums(folder, COVERED)


def entry(header, number=1):
    """Return a tensor's entry."""
    return header[sorted(name for name in header if name != "__metadata__")[number]]


def without_the_last(header, rest):
    """Take away the tensor at the end of the file."""
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    start, _ = header.pop(last)["data_offsets"]
    return header, rest[:start]


HEADERS = {
    "beyond the file": lambda header, rest: entry(header).update(data_offsets=[0, 2**40]),
    "backwards": lambda header, rest: entry(header).update(data_offsets=entry(header)["data_offsets"][::-1]),
    "overlapping": lambda header, rest: entry(header).update(data_offsets=entry(header, 2)["data_offsets"]),
    "negative": lambda header, rest: entry(header).update(data_offsets=[-4, 0]),
    "huge numbers": lambda header, rest: entry(header).update(shape=[10**60, 0], data_offsets=[0, 0]),
    "other shape": lambda header, rest: entry(header).update(shape=[1, *entry(header)["shape"]]),
    "many dimensions": lambda header, rest: entry(header).update(shape=[1] * 1000),
    "true": lambda header, rest: entry(header).update(shape=[True]),
    "words": lambda header, rest: entry(header).update(shape="3"),
    "fractions": lambda header, rest: entry(header).update(shape=[1.5]),
    "unknown type": lambda header, rest: entry(header).update(dtype="F8_E4M3"),
    "type of whole numbers": lambda header, rest: entry(header).update(dtype="I32"),
    "no type": lambda header, rest: (header, rest) if entry(header).pop("dtype") else None,
    "no object": lambda header, rest: header.update(x=3),
    "a list": lambda header, rest: (b"[]", rest),
    "deep": lambda header, rest: (b"[" * 50_000, rest),
    "a name twice": lambda header, rest: (b'{"a": {}, "a": {}}', rest),
    "no text": lambda header, rest: (b"\xff\xfe{}", rest),
    "nothing": lambda header, rest: ({}, b""),
    "more than said": lambda header, rest: (header, rest + b"\0" * 64),
    "less than said": lambda header, rest: (header, rest[:-64]),
    "one more": lambda header, rest: (
        header | {"\x1b[2J": {"dtype": "F32", "shape": [1], "data_offsets": [len(rest), len(rest) + 4]}},
        rest + b"\0" * 4,
    ),
    "one less": without_the_last,
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_with_right_checksums(copied, name):
    with_header(copied, HEADERS[name])
    assert "model.safetensors" in refusal(copied)


@pytest.mark.parametrize("length", [0, 1, 2**24 + 1, 2**63, 2**64 - 1])
def test_a_length_of_the_header_that_is_none(copied, length):
    path = copied / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    write_sums(copied, COVERED)
    assert f"{path} must hold" in refusal(copied)


def test_a_file_that_is_larger_than_the_memory_is_not_read(copied):
    """A sparse file takes no room on the disk, but would take it in memory."""
    os.truncate(copied / "model.safetensors", 2**43)
    assert "must end with the file" in refusal(copied)
