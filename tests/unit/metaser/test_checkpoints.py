"""Encoder folders as people have them: read right, or refused in one sentence that names the file."""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tinyencoders import SIZES
from torch import Tensor
from transformers import (
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from metaser.config.encoders import HuggingFaceEncoderConfig, LogMelEncoderConfig
from metaser.config.schema import CoattentionConfig, ModelConfig
from metaser.errors import ModelError
from metaser.model.encoders.families import load_encoder
from metaser.model.encoders.wav2vec2 import Wav2Vec2Encoder
from metaser.model.metaser import build_model
from metaser.model.network import MetaSERNetwork
from metaser.predict import load_model
from metaser.tasks.spec import TaskSpec

torch.set_num_threads(1)

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 377607901\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
FORMATS = {"model.safetensors": save_file, "pytorch_model.bin": torch.save}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "source"
    torch.manual_seed(0)
    Wav2Vec2Model(Wav2Vec2Config(**SIZES)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(source, tmp_path / "encoder")


@pytest.fixture
def tensors(source: Path) -> dict[str, Tensor]:
    return load_file(source / "model.safetensors")


def load(folder: Path) -> Wav2Vec2Encoder:
    encoder = load_encoder(HuggingFaceEncoderConfig(kind="huggingface", name=str(folder)))
    assert isinstance(encoder, Wav2Vec2Encoder)
    return encoder


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as refused:
        load(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def assert_same(encoder: Wav2Vec2Encoder, tensors: dict[str, Tensor]) -> None:
    state = encoder.state_dict()
    for name, tensor in state.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, tensors[name].float())


def with_weights(folder: Path, weights: object, name: str = "pytorch_model.bin") -> Path:
    (folder / "model.safetensors").unlink()
    FORMATS[name](weights, folder / name)
    return folder


def with_config(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# ---------------------------------------------------------------- what stands in place of a file


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "processor_config.json", *FORMATS])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (LFS, r"is not the file itself but a pointer of Git LFS.+git lfs pull"),
        (HTML, "is not the file itself but a web page; fetch"),
    ],
)
def test_a_stand_in_is_told_from_the_file(folder: Path, name: str, data: bytes, words: str) -> None:
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(data)
    with pytest.raises(ModelError, match=f"{folder}/{name} {words}"):
        load(folder)


NO_JSON = {"empty": b"", "cut": b'{"model_type": "wav', "latin-1": b'{"model_type": "\xff"}', "nested": b"[" * 9999}
NO_OBJECT = {"a list": b"[1]", "a number": b"7", "null": b"null", "text": b'"wav2vec2"'}


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize("data", [*NO_JSON, *NO_OBJECT])
def test_what_is_no_json_object(folder: Path, name: str, data: str) -> None:
    (folder / name).write_bytes((NO_JSON | NO_OBJECT)[data])
    assert refusal(folder).startswith(f"{folder}/{name} must hold ")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_folder_in_place_of_a_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    assert f"{folder}/{name} must" in refusal(folder)
    assert "a folder" in refusal(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["", "config.json", "model.safetensors"])
def test_what_may_not_be_read(folder: Path, name: str) -> None:
    (folder / name).chmod(0)
    assert "Permission denied" in refusal(folder)
    (folder / name).chmod(0o700)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "~nobody-of-this-name/x"])
def test_a_name_that_no_folder_can_have(name: str) -> None:
    with pytest.raises(ModelError, match=r"model\.encoder\.name must be"):
        load(Path(name))


def test_a_file_in_place_of_the_folder(folder: Path) -> None:
    assert "must be a folder with config.json and weights" in refusal(folder / "model.safetensors")


# ---------------------------------------------------------------- config.json and preprocessing


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "bark"}, "must be a model of type wav2vec2, .+ of type 'bark'"),
        ({"model_type": None}, "of type None"),
        ({"model_type": 7}, "model_type: Input should be a valid string, got 7"),
        ({"hidden_size": "16"}, "hidden_size: Input should be a valid integer, got '16'"),
        ({"hidden_size": -16}, "hidden_size: Input should be greater than 0, got -16"),
        ({"hidden_size": 10**30}, "hidden_size: .+, got 1000"),
        ({"hidden_size": None}, "hidden_size: .+, got None"),
        ({"hidden_size": 18}, r"mismatch|must have the shape \(.+ that config.json implies"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers: Input should be less than or equal to 256, got 1000000"),
        ({"num_hidden_layers": 3}, r"must hold every weight .+ without encoder\.layers\.2\."),
        ({"num_attention_heads": 3}, "hidden_size must be a multiple of num_attention_heads, got 16 and 3"),
        ({"num_conv_pos_embedding_groups": 5}, "a multiple of num_conv_pos_embedding_groups, got 16 and 5"),
        ({"conv_dim": [8, 8]}, r"conv_dim, conv_stride and conv_kernel must be equally long, got \[2, 7, 7\]"),
        ({"conv_stride": [0] * 7}, "conv_stride: 0: Input should be greater than 0, got 0"),
        ({"conv_kernel": "10"}, "conv_kernel: Input should be a valid (array|tuple|list), got '10'"),
        ({"hidden_act": "swooosh"}, "hidden_act must be an activation of transformers such as gelu, got 'swooosh'"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm: Input should be 'group' or 'layer', got 'batch'"),
        ({"hidden_dropout": 1.5}, "hidden_dropout: Input should be less than or equal to 1, got 1.5"),
        ({"conv_stride": [65536] * 7}, "must make windows and steps of at most 160000 samples, got"),
        ({"conv_kernel": [65536] * 7}, "must make windows and steps of at most 160000 samples, got"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps: Input should be greater than or equal to .+, got 0.0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps: Input should be a finite number, got nan"),
        ({"do_stable_layer_norm": "yes"}, "do_stable_layer_norm: Input should be a valid boolean, got 'yes'"),
    ],
)
def test_a_configuration_of_which_no_encoder_can_be_built(folder: Path, changes: dict, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load(with_config(folder, **changes))


def test_what_does_not_concern_the_encoder_may_be_anything(folder: Path, tensors: dict[str, Tensor]) -> None:
    strange = {"id2label": 7, "torch_dtype": "float17", "vocab_size": "x", "quantization_config": [], "a": {"b": None}}
    assert_same(load(with_config(folder, **strange)), tensors)


def test_wavlms_distances_must_fit_its_buckets(tmp_path: Path) -> None:
    folder = tmp_path / "wavlm"
    WavLMModel(WavLMConfig(**SIZES, num_buckets=32, max_bucket_distance=40)).save_pretrained(folder)
    load(folder)
    with pytest.raises(ModelError, match="must be greater than a quarter of num_buckets, got 8 and"):
        load(with_config(folder, max_bucket_distance=8))


def preprocessing(folder: Path, **files: object) -> Path:
    for name in ("preprocessor", "processor"):
        path = folder / f"{name}_config.json"
        path.unlink(missing_ok=True)
        if name in files:
            path.write_text(json.dumps(files[name]))
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, True),
        ({"preprocessor": {"do_normalize": False}}, False),
        ({"preprocessor": {}}, True),
        ({"processor": {"feature_extractor": {"do_normalize": False, "sampling_rate": 16000}}}, False),
        ({"processor": {"audio_processor": {"do_normalize": False}}}, False),
        ({"processor": {"processor_class": "Wav2Vec2Processor"}, "preprocessor": {"do_normalize": False}}, False),
        # transformers' own order.
        ({"processor": {"feature_extractor": {"do_normalize": True}}, "preprocessor": {"do_normalize": False}}, True),
    ],
)
def test_normalisation_is_sought_where_transformers_seeks_it(folder: Path, files: dict, expected: bool) -> None:
    preprocessing(folder, **files)
    assert load(folder).architecture()["do_normalize"] is expected
    if files:
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
        assert getattr(extractor, "do_normalize", True) is expected


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"preprocessor": {"sampling_rate": 8000}}, "preprocessor_config.json says sampling_rate 8000"),
        ({"processor": {"feature_extractor": {"sampling_rate": 44100}}}, "processor_config.json says .+ 44100"),
        ({"preprocessor": {"do_normalize": "no"}}, "do_normalize: Input should be a valid boolean, got 'no'"),
        ({"preprocessor": {"sampling_rate": "16k"}}, "sampling_rate: .+ got '16k'"),
        ({"processor": {"feature_extractor": [1]}}, "feature_extractor: .+ got"),
    ],
)
def test_preprocessing_of_another_kind(folder: Path, files: dict, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load(preprocessing(folder, **files))


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", FORMATS)
def test_weights_of_any_float_type_are_loaded_as_float32(
    folder: Path, tensors: dict[str, Tensor], name: str, dtype: torch.dtype
) -> None:
    weights = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    assert_same(load(with_weights(folder, weights, name)), weights)


@pytest.mark.parametrize("name", FORMATS)
def test_parts_are_those_that_the_index_names(folder: Path, tensors: dict[str, Tensor], name: str) -> None:
    (folder / "model.safetensors").unlink()
    stem, _, suffix = name.partition(".")
    parts = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    halves = [dict(list(tensors.items())[number::2]) for number in (0, 1)]
    for part, half in zip(parts, halves, strict=True):
        FORMATS[name](half, folder / part)
    index = {key: part for part, half in zip(parts, halves, strict=True) for key in half}
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    zeros = {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}
    for stray in (f"{stem}-backup.{suffix}", f"{stem}-00001-of-00003.{suffix}", f"{stem}_ema.{suffix}"):
        FORMATS[name](zeros, folder / stray)
    assert_same(load(folder), tensors)
    (folder / parts[1]).unlink()
    assert f"{name}.index.json names must lie beside it, but '{parts[1]}' (2 of 2) does not" in refusal(folder)


@pytest.mark.parametrize("name", FORMATS)
def test_one_prefix_holds_for_all_parts(folder: Path, tensors: dict[str, Tensor], name: str) -> None:
    (folder / "model.safetensors").unlink()
    weights = {f"model.wav2vec2.{key}": tensor for key, tensor in tensors.items()}
    index = {}
    for number, key in enumerate(weights):
        part = f"part-{number % 3}.{name.partition('.')[2]}"
        index[key] = part
    for part in set(index.values()):
        FORMATS[name]({key: weights[key] for key in weights if index[key] == part}, folder / part)
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": index}))
    assert_same(load(folder), tensors)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}'])
def test_a_damaged_index(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors.index.json").write_bytes(data)
    assert "model.safetensors.index.json must hold an index of weights" in refusal(folder)


@pytest.mark.parametrize("part", ["../source/model.safetensors", "/etc/passwd", "..", "", "x" * 300, "a\0b"])
def test_an_index_that_points_elsewhere(folder: Path, part: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": part}}))
    assert "must lie beside it, but" in refusal(folder)


@pytest.mark.parametrize("name", FORMATS)
def test_a_stray_file_changes_no_weight(folder: Path, tensors: dict[str, Tensor], name: str) -> None:
    zeros = {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}
    if name != "model.safetensors":
        with_weights(folder, tensors, name)
    stem, _, suffix = name.partition(".")
    for stray in (f"{stem}_old.{suffix}", f"{stem}-00001-of-00001.{suffix}", f"{stem}.ema.{suffix}"):
        FORMATS[name](zeros, folder / stray)
    assert_same(load(folder), tensors)
    (folder / name).unlink()
    assert "an encoder folder without weights" in refusal(folder)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "wav2vec2.", "module.", "model.encoder.wav2vec2."])
def test_the_state_in_a_trainers_file_is_found(
    folder: Path, tensors: dict[str, Tensor], caplog: pytest.LogCaptureFixture, key: str, prefix: str
) -> None:
    weights = {prefix + name: tensor for name, tensor in tensors.items()} | {"head.weight": torch.zeros(3)}
    with caplog.at_level(logging.INFO):
        encoder = load(with_weights(folder, {key: weights, "epoch": 3, "optimizer": {"state": {}}}))
    assert_same(encoder, tensors)
    assert f"the weights are those under '{key}'" in caplog.text


def test_two_encoders_in_one_file(folder: Path, tensors: dict[str, Tensor]) -> None:
    weights = {f"{who}.{name}": tensor for who in ("student", "teacher") for name, tensor in tensors.items()}
    assert "must hold one encoder, but holds 2, under 'student.', 'teacher.'" in refusal(with_weights(folder, weights))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("prefixes", [("", "wav2vec2."), ("wav2vec2.", "")])
def test_a_weight_under_two_names(
    folder: Path, tensors: dict[str, Tensor], name: str, prefixes: tuple[str, str]
) -> None:
    """Equal ones are a copy, and do no harm."""
    first, second = ({prefix + key: tensor.clone() for key, tensor in tensors.items()} for prefix in prefixes)
    assert_same(load(with_weights(folder, first | second, name)), tensors)
    changed = f"{prefixes[1]}encoder.layer_norm.bias"
    second[changed] = second[changed] + 1
    FORMATS[name](first | second, folder / name)
    words = refusal(folder)
    assert "must hold each weight of the encoder once" in words
    assert "encoder.layer_norm.bias" in words


def test_both_halves_of_weight_norm_in_two_spellings(folder: Path, tensors: dict[str, Tensor]) -> None:
    (old,) = [name for name in tensors if name.endswith(("parametrizations.weight.original0", "weight_g"))]
    names = [old, old.replace("parametrizations.weight.original0", "weight_g")]
    weights = tensors | {names[-1]: tensors[old] + 1}
    assert names[0] != names[1]
    assert "must hold each weight of the encoder once" in refusal(with_weights(folder, weights))


def test_a_state_in_a_state(folder: Path, tensors: dict[str, Tensor]) -> None:
    assert_same(load(with_weights(folder, {"model": {"model": tensors}})), tensors)


def test_layers_that_the_configuration_leaves_out_are_told(
    folder: Path, tensors: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": config["num_hidden_layers"] - 1}))
    load(folder)
    assert f"config.json says {config['num_hidden_layers'] - 1} layers" in caplog.text


class Unwanted:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("what", [Unwanted(), argparse.Namespace(arch="wav2vec2")])
@pytest.mark.parametrize("old_format", [True, False])
def test_a_pickle_is_never_executed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Tensor], what: object, old_format: bool
) -> None:
    monkeypatch.chdir(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"args": what, "model": tensors}, "pytorch_model.bin", _use_new_zipfile_serialization=not old_format)
    words = refusal(folder)
    assert "which are never executed; convert it by transformers' convert_" in words
    assert not Path("executed").exists()


def test_a_checkpoint_of_fairseq_without_objects(folder: Path) -> None:
    names = ("mask_emb", "encoder.layers.0.self_attn.k_proj.weight", "feature_extractor.conv_layers.0.0.weight")
    weights = {"cfg": None, "model": {name: torch.zeros(3) for name in names}}
    assert "convert it by transformers' convert_" in refusal(with_weights(folder, weights))


@pytest.mark.parametrize(
    "content",
    [[1, 2], torch.zeros(3), {}, {"a": 1}, 7, None, {1: torch.zeros(2)}],
    ids=lambda content: type(content).__name__,
)
def test_other_pickles(folder: Path, content: object) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    assert "must hold" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(content if not isinstance(content, Tensor) else "x"))
    assert "must hold" in refusal(folder)


def test_an_archive_that_unpacks_to_more_than_it_holds(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save({"a": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    assert path.stat().st_size < 10**5
    assert "bytes that unpack to 400" in refusal(folder)


def _pickled(opcodes: bytes) -> bytes:
    return b"\x80\x02" + opcodes + b"."


_DOUBLED = b"".join(b"h%ch%c\x86q%c" % (number, number, number + 1) for number in range(1, 60))
EXCESSIVE = {
    "tuples": _pickled(b"})q\x01" + _DOUBLED + b"K\x01s"),
    "wide tuples": _pickled(
        b"})q\x01" + b"".join(b"(" + b"h%c" % n * 99 + b"tq%c" % (n + 1) for n in range(1, 9)) + b"K\x01s"
    ),
    "memory": _pickled(b"}X\x01\0\0\0acbuiltins\nbytearray\n\x8a\x08" + (1 << 36).to_bytes(8, "little") + b"\x85Rs"),
    "memory in Python 2": _pickled(b"}X\x01\0\0\0ac__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85Rs"),
}
"""The hash of 2^60 tuples, memory of 64 GiB: what a few bytes ask for, and torch would give."""


@pytest.mark.parametrize("is_archive", [True, False])
@pytest.mark.parametrize("kind", EXCESSIVE)
def test_pickles_of_which_little_makes_much(folder: Path, kind: str, is_archive: bool) -> None:
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    if is_archive:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", EXCESSIVE[kind])
            archive.writestr("archive/version", "3\n")
    else:
        path.write_bytes(EXCESSIVE[kind])
    assert f"{path} must hold tensors by name, but holds " in refusal(folder)


def test_a_state_that_holds_itself(folder: Path) -> None:
    state: dict[str, object] = {}
    state["model"] = state
    assert "holds states in states without end" in refusal(with_weights(folder, state))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}', "cannot be read: it names a twice"),
        (b"[" * 1000, "cannot be read: it is deeper than 64|cannot be read: Expecting"),
        (b" " * (17 << 20), "its header has 17825792 bytes, and at most 16777216 are read"),
        (b'{"a":{"dtype":"\\u001b[2J","shape":[0],"data_offsets":[0,0]}}', r"\\x1b\[2J"),
    ],
)
def test_headers_of_weights(folder: Path, header: bytes, words: str) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    said = refusal(folder)
    assert re.search(words, said)
    assert said.isprintable()


def test_shapes_that_many_tensors_share_are_no_excess(folder: Path, tensors: dict[str, Tensor]) -> None:
    shared = ("a", (1, 2), (3.0,) * 500)
    groups = [{"betas": shared, "params": list(range(number))} for number in range(200)]
    assert_same(load(with_weights(folder, {"model": tensors, "optimizer": {"groups": groups}})), tensors)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"model_type": "wav2vec2", "hidden_size": 16, "hidden_size": 32}'),
        ("config.json", '{"model_type": "wav2vec2", "x": {"y": 1, "y": 1}}'),
        ("preprocessor_config.json", '{"do_normalize": true, "do_normalize": false}'),
        ("processor_config.json", '{"feature_extractor": {"do_normalize": true, "do_normalize": false}}'),
        ("model.safetensors.index.json", '{"weight_map": {"a": "model.safetensors", "a": "b"}}'),
    ],
)
def test_a_name_that_stands_twice(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    assert "twice; fetch the checkpoint again" in refusal(folder)


@pytest.mark.parametrize("changes", [{"hidden_size": 2**14}, {"intermediate_size": 2**20, "num_hidden_layers": 256}])
def test_a_configuration_of_far_more_than_the_weights_beside_it(folder: Path, changes: dict[str, int]) -> None:
    with_config(folder, **changes)
    assert "must describe the weights beside it" in refusal(folder)


FOREIGN = {
    "empty": b"",
    "text": b"see https://example.org/weights\n",
    "zeros": bytes(4096),
    "gguf": b"GGUF\x03\0\0\0" + bytes(64),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(64),
    "numpy": b"\x93NUMPY\x01\0v\0{'descr'" + bytes(64),
    "zip": b"PK\x03\x04" + bytes(64),
    "huge header": (2**60).to_bytes(8, "little") + b"{}",
    "list header": (2).to_bytes(8, "little") + b"[]",
    "no tensors": (2).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", FOREIGN)
def test_files_of_another_kind(folder: Path, name: str, kind: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(FOREIGN[kind])
    words = refusal(folder)
    assert f"{folder}/{name} must hold weights, but cannot be read: " in words or "must hold every weight" in words


NAME = "encoder.layers.1.feed_forward.output_dense.weight"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda tensor: tensor.index_fill(0, torch.tensor([3]), torch.nan),
            "must be finite, but holds NaN",
        ),
        (
            lambda tensor: tensor.index_fill(1, torch.tensor([0]), torch.inf),
            "must be finite, but holds NaN",
        ),
        (lambda tensor: (tensor * 100).to(torch.int8), "must be of type float32, got int8; .+ not quantised"),
        (
            lambda tensor: tensor[:, :8].clone(),
            r"must have the shape \(16, 16\) .+ got \(16, 8\)",
        ),
        (lambda tensor: tensor.flatten(), r"got \(256,\)"),
    ],
)
def test_a_tensor_that_does_not_fit(folder: Path, tensors: dict[str, Tensor], name: str, change, words: str) -> None:
    weights = tensors | {NAME: change(tensors[NAME])}
    with pytest.raises(ModelError, match=rf"{NAME}.* {words}"):
        load(with_weights(folder, weights, name))


@pytest.mark.parametrize("value", [1.0, "x", None, torch.zeros(16, 16).to_sparse(), torch.zeros(16, 16, device="meta")])
def test_a_value_that_is_no_plain_tensor(folder: Path, tensors: dict[str, Tensor], value: object) -> None:
    with pytest.raises(ModelError, match=f"{NAME} in .+ must be a plain tensor, but is|cannot be read"):
        load(with_weights(folder, tensors | {NAME: value}))


def test_batch_norm_counts_stay_integers(tmp_path: Path) -> None:
    folder = tmp_path / "hubert"
    HubertModel(HubertConfig(**SIZES, conv_pos_batch_norm=True)).save_pretrained(folder)
    assert load(folder).state_dict()["encoder.pos_conv_embed.batch_norm.num_batches_tracked"].dtype == torch.int64


# ---------------------------------------------------------------- mutations


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """Return `data` with bytes changed, cut, added, repeated or zeroed."""
    changed, position = bytearray(data), int(random.integers(len(data)))
    # The beginning and the end are where formats keep what they are.
    position = (position, position % 200, len(data) - 1 - position % 200)[int(random.integers(3))] % len(data)
    length = int(random.integers(1, 64))
    match int(random.integers(5)):
        case 0:
            changed[position] = int(random.integers(256))
        case 1:
            del changed[position:]
        case 2:
            del changed[position : position + length]
        case 3:
            changed[position:position] = random.bytes(length)
        case _:
            changed[position : position + length] = bytes(length)
    return bytes(changed)


@contextmanager
def read_or_refused(folder: Path, naming: str = "") -> Iterator[None]:
    """Hold what is done with `folder` to success or one sentence, and remove the folder."""
    try:
        yield
    except ModelError as refused:
        assert naming in str(refused)
        assert "\n" not in str(refused)
    finally:
        shutil.rmtree(folder)


@settings(max_examples=60)
@given(st.sampled_from(["config.json", "preprocessor_config.json", *FORMATS]), st.integers(0, 2**32))
def test_a_mutated_file_is_read_or_refused(source: Path, tmp_path_factory, name: str, seed: int) -> None:
    folder = shutil.copytree(source, tmp_path_factory.mktemp("mutated") / "encoder")
    if name == "pytorch_model.bin":
        with_weights(folder, load_file(source / "model.safetensors"))
    random = np.random.default_rng(seed)
    data = (folder / name).read_bytes()
    for _ in range(int(random.integers(1, 4))):
        data = mutated(data, random) if data else data
    (folder / name).write_bytes(data)
    with read_or_refused(folder, naming=str(folder)):
        load(folder)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.integers(-9, 99))


@settings(max_examples=25)
@given(st.data())
def test_any_value_in_the_configuration_is_read_or_refused(source: Path, tmp_path_factory, data) -> None:
    folder = shutil.copytree(source, tmp_path_factory.mktemp("values") / "encoder")
    keys = sorted(json.loads((folder / "config.json").read_text()))
    with_config(folder, **{data.draw(st.sampled_from(keys)): data.draw(VALUES) for _ in range(2)})
    with read_or_refused(folder, naming=str(folder)):
        load(folder)


# ---------------------------------------------------------------- exported models


@pytest.fixture(scope="session", params=["huggingface", "logmel"])
def export(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder: HuggingFaceEncoderConfig | LogMelEncoderConfig
    if request.param == "logmel":
        encoder = LogMelEncoderConfig(num_mels=16, width=16, num_layers=2, num_heads=2, feed_forward=16)
    else:
        encoder = HuggingFaceEncoderConfig(kind="huggingface", name=str(source))
    task = TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=("anger", "joy"))
    model = ModelConfig(encoder=encoder, coattention=CoattentionConfig(form="none", width=8, num_heads=2), head_width=8)
    folder = tmp_path_factory.mktemp("export") / "model"
    build_model(model, (task,), "emotion").save_pretrained(folder)
    return folder


def test_a_whole_export_is_loaded(export: Path) -> None:
    tensors = load_file(export / "model.safetensors")
    for name, tensor in load_model(export).state_dict().items():
        torch.testing.assert_close(tensor.cpu(), tensors[name])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("data", [LFS, HTML, b"", b"[]", b"text"])
def test_an_export_with_something_else_in_place_of_a_file(export: Path, tmp_path: Path, name: str, data: bytes) -> None:
    folder = shutil.copytree(export, tmp_path / "copy")
    (folder / name).write_bytes(data)
    with pytest.raises(ModelError, match=f"{folder}/{name} "):
        load_model(folder)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", [False, 3, []])
def test_an_export_of_a_type_that_is_none(export: Path, tmp_path: Path, name: str, value: object) -> None:
    folder = shutil.copytree(export, tmp_path / "copy")
    with_config(folder, **{name: value})
    with pytest.raises(ModelError, match=str(folder)):
        load_model(folder)


def test_an_export_without_a_weight(export: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(export, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if name.startswith("heads."))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=f"must hold every weight, got '{folder}' without {lost}"):
        load_model(folder)


@settings(max_examples=30)
@given(name=st.sampled_from(["config.json", "model.safetensors"]), seed=st.integers(0, 2**32))
def test_a_mutated_export_is_loaded_or_refused(export: Path, tmp_path_factory, name: str, seed: int) -> None:
    folder = shutil.copytree(export, tmp_path_factory.mktemp("mutated") / "model")
    (folder / name).write_bytes(mutated((folder / name).read_bytes(), np.random.default_rng(seed)))
    with read_or_refused(folder):
        load_model(folder)


@settings(max_examples=15)
@given(st.data())
def test_any_value_in_an_export_s_configuration_is_loaded_or_refused(export: Path, tmp_path_factory, data) -> None:
    folder = shutil.copytree(export, tmp_path_factory.mktemp("values") / "model")
    config = json.loads((folder / "config.json").read_text())
    section = data.draw(st.sampled_from([config, config["encoder"], config["encoder"].get("config", config)]))
    section[data.draw(st.sampled_from(sorted(section)))] = data.draw(VALUES)
    (folder / "config.json").write_text(json.dumps(config))
    with read_or_refused(folder):
        load_model(folder)


def test_a_mistake_of_ours_is_no_damaged_export(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise AttributeError("ours")

    monkeypatch.setattr(MetaSERNetwork, "__init__", broken)
    with pytest.raises(AttributeError, match="ours"):
        load_model(export)
