"""The kind `text`: BERT's and RoBERTa's own frames, whoever shares the batch, and tokenizers that may be hostile."""

from __future__ import annotations

import copy
import json
import pickle
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertModel, RobertaConfig, RobertaForMaskedLM

from metaser.config.encoders import LogMelEncoderConfig, TextEncoderConfig
from metaser.config.schema import CoattentionConfig, ModelConfig
from metaser.errors import ModelError
from metaser.model.encoders import tokenizer as tokenizer_module
from metaser.model.encoders.base import EncoderOutput, Inputs, Tokens
from metaser.model.encoders.families import build_encoder, encoder_class, load_encoder
from metaser.model.encoders.text import TextEncoder
from metaser.model.metaser import MetaSERConfig, MetaSERModel, build_model
from metaser.tasks.spec import TaskSpec

torch.set_num_threads(1)

WORDS = ("the", "cat", "sat", "on", "mat", "i", "am", "so", "angry", "!", "?", ",", "##gry", "un", "##happy")
SIZES: dict[str, Any] = {
    **{"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24},
    **{"max_position_embeddings": 40},
}
TEXTS = ("I am so angry!", "the cat", "the mat, the mat, the mat, the mat sat on the cat so unhappy", None, "  ", "?")
WITHOUT = Inputs(torch.zeros(1, 1), torch.ones(1))
SAVED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def word_level(words: Sequence[str] = WORDS) -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *words))}
    built = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    built.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return built


def word_piece() -> Tokenizer:
    built = word_level()
    built.model = models.WordPiece(built.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=100)
    return built


def byte_level() -> Tokenizer:
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate(("<s>", "<pad>", "</s>", "<unk>", *signs, "th", "the"))}
    built = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    built.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    return built


KINDS: dict[str, tuple[Callable[[], Tokenizer], Any, Any]] = {
    "bert": (word_level, BertConfig, BertForMaskedLM),
    "bert-pieces": (word_piece, BertConfig, BertForMaskedLM),
    "roberta": (byte_level, RobertaConfig, RobertaForMaskedLM),
}


def save_folder(kind: str, folder: Path) -> Path:
    tokenizer, config, model_class = KINDS[kind]
    built = tokenizer()
    torch.manual_seed(0)
    model = model_class(config(vocab_size=built.get_vocab_size() + 2, **SIZES))
    with torch.no_grad():  # no scale, shift or padding's row may stay at its neutral start
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    built.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("text-encoders")
    return {kind: save_folder(kind, root / kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def source(folders: dict[str, Path], request: pytest.FixtureRequest) -> Path:
    return folders[request.param]


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(source, tmp_path / "encoder")


@pytest.fixture
def bert(folders: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(folders["bert"], tmp_path / "bert")


def load(folder: Path, **options: object) -> TextEncoder:
    encoder = load_encoder(TextEncoderConfig(kind="text", name=str(folder), **options), setting="model.views.words")
    assert isinstance(encoder, TextEncoder)
    return encoder.eval()


def refusal(folder: Path, **options: object) -> str:
    with pytest.raises(ModelError) as refused:
        load(folder, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def run(encoder: TextEncoder, tokens: Tokens) -> EncoderOutput:
    output = encoder(WITHOUT._replace(tokens={encoder.view: tokens}))
    assert isinstance(output, EncoderOutput)
    return output


def with_json(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))
    return folder


# ---------------------------------------------------------------- what it computes


@torch.no_grad()
def test_frames_of_a_single_text_are_those_of_transformers(source: Path) -> None:
    encoder, model = load(source), AutoModel.from_pretrained(source).eval()
    for text in TEXTS[:3]:
        tokens = encoder.tokenize([text])
        expected = model(tokens.ids_BM, output_hidden_states=True).hidden_states
        output = run(encoder, tokens)
        assert len(output.layers) == len(expected) == encoder.num_layers + 1
        for layer, theirs in zip(output.layers, expected, strict=True):
            torch.testing.assert_close(layer, theirs, rtol=0, atol=1e-5)


@SAVED
@given(
    texts=st.lists(st.one_of(st.none(), st.sampled_from(TEXTS), st.text(max_size=60)), min_size=2, max_size=6),
    kind=st.sampled_from(sorted(KINDS)),
    padding=st.integers(-(2**40), 2**40),
)
@torch.no_grad()
def test_padding_never_changes_a_frame(
    folders: dict[str, Path], texts: list[str | None], kind: str, padding: int
) -> None:
    encoder = load(folders[kind])
    tokens = encoder.tokenize(texts)
    ids_BM = torch.nn.functional.pad(tokens.ids_BM, (0, 2))[:, : encoder.max_tokens]
    real_BM = torch.arange(ids_BM.shape[1]) < tokens.num_tokens_B[:, None]
    output = run(encoder, Tokens(ids_BM.where(real_BM, torch.tensor(padding)), tokens.num_tokens_B))
    assert output.frame_mask_BL.equal(real_BM)
    for row, text in enumerate(texts):
        alone, length = run(encoder, encoder.tokenize([text])), int(tokens.num_tokens_B[row])
        assert bool(alone.frame_mask_BL.all()) and alone.frame_mask_BL.shape == (1, length)
        for together, single in zip(output.layers, alone.layers, strict=True):
            assert bool(together.isfinite().all())
            torch.testing.assert_close(together[row, :length], single[0], rtol=0, atol=2e-6)


@torch.no_grad()
def test_a_mix_sees_the_layers_and_replaces_them(source: Path) -> None:
    encoder = load(source)
    tokens, seen = encoder.tokenize(TEXTS), []

    def mix(number: int, earlier: Sequence[Tensor], output_BLD: Tensor) -> Tensor:
        seen.append((number, len(earlier)))
        return output_BLD + earlier[0]

    mixed = encoder(WITHOUT._replace(tokens={"text": tokens}), mix=mix)
    assert seen == [(1, 1), (2, 2), (3, 3)]
    plain = run(encoder, tokens)
    torch.testing.assert_close(mixed.layers[1], plain.layers[1] + plain.layers[0])


def test_checkpointing_changes_no_gradient_and_every_tensor_has_one(source: Path) -> None:
    gradients = []
    for checkpointed in (False, True):
        encoder = load(source, dropout=0.0).train()
        encoder.gradient_checkpointing = checkpointed
        run(encoder, encoder.tokenize(TEXTS)).layers[-1].square().sum().backward()
        found = {name: parameter.grad for name, parameter in encoder.named_parameters()}
        assert [name for name, gradient in found.items() if gradient is None] == []
        assert found["embeddings.word_embeddings.weight"][encoder.no_text].abs().max() > 0
        gradients.append(found)
    assert list(encoder.frozen_parameters()) == []
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_what_all_layers_do_compiles_to_the_same(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(source)
    tokens = encoder.tokenize(TEXTS)
    plain, compiler = run(encoder, tokens), torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, dynamic: compiler(function, dynamic=dynamic, backend="eager")
    )
    encoder.compile_layers()
    for compiled, layer in zip(run(encoder, tokens).layers, plain.layers, strict=True):
        torch.testing.assert_close(compiled, layer)


def test_dropout_is_the_checkpoints_or_the_configurations(bert: Path) -> None:
    with_json(bert, "config.json", lambda config: config.update(hidden_dropout_prob=0.3))
    for encoder, hidden, attention in ((load(bert), 0.3, 0.1), (load(bert, dropout=0.7), 0.7, 0.7)):
        layer: Any = encoder.transformer_layers[0]
        assert (layer.output.dropout.p, layer.attention.self.dropout.p) == (hidden, attention)
        run(encoder, encoder.tokenize(TEXTS))
    tokens = encoder.tokenize(TEXTS)
    assert not torch.equal(run(encoder.train(), tokens).layers[-1], run(encoder, tokens).layers[-1])


# ---------------------------------------------------------------- tokens


def test_special_tokens_stand_around_a_text_that_is_cut(source: Path) -> None:
    encoder = load(source, max_tokens=5)
    first, last = encoder.tokenize(["i"]).ids_BM[0, [0, -1]]
    whole = load(source).tokenize([TEXTS[2]])
    cut = encoder.tokenize([TEXTS[2]])
    assert cut.num_tokens_B.tolist() == [5] and whole.num_tokens_B.item() > 5
    assert cut.ids_BM[0].tolist() == [int(first), *whole.ids_BM[0, 1:4].tolist(), int(last)]


def test_texts_are_never_longer_than_the_positions(folders: dict[str, Path]) -> None:
    for kind, longest in (("bert", 40), ("roberta", 38)):
        encoder = load(folders[kind])
        assert encoder.max_tokens == longest
        tokens = encoder.tokenize(["the cat " * 100])
        assert tokens.ids_BM.shape == (1, longest)
        assert run(encoder, tokens).layers[-1].isfinite().all()


def test_an_utterance_without_text_is_one_token_of_its_own(source: Path) -> None:
    encoder, weights = load(source), load_file(source / "model.safetensors")
    (words_VD,) = (tensor for name, tensor in weights.items() if name.endswith("word_embeddings.weight"))
    ours_VD = encoder.state_dict()["embeddings.word_embeddings.weight"]
    assert encoder.no_text == len(words_VD)
    torch.testing.assert_close(ours_VD[:-1], words_VD)
    torch.testing.assert_close(ours_VD[-1], words_VD.mean(0))
    tokens = encoder.tokenize([None, "", " \t\n\u3000", "the"])
    assert tokens.num_tokens_B.tolist()[:3] == [1, 1, 1]
    assert tokens.ids_BM[:3, 0].tolist() == [encoder.no_text] * 3
    assert tokens.ids_BM[3].max() < encoder.no_text


def test_special_tokens_in_a_text_are_words(folders: dict[str, Path]) -> None:
    bert = load(folders["bert"])
    assert bert.tokenize(["the [SEP] [PAD] cat"]).ids_BM[0].tolist()[1:-1].count(3) == 0
    roberta = load(folders["roberta"])
    assert not set(roberta.tokenize(["a<pad></s>"]).ids_BM[0].tolist()[1:-1]) & {0, 1, 2, 3}


@SAVED
@given(text=st.text(st.characters(), max_size=300), kind=st.sampled_from(sorted(KINDS)))
def test_any_text_has_tokens(folders: dict[str, Path], text: str, kind: str) -> None:
    encoder = load(folders[kind])
    tokens = encoder.tokenize([text, "the"])
    assert tokens.ids_BM.dtype == tokens.num_tokens_B.dtype == torch.long
    assert 1 <= int(tokens.num_tokens_B[0]) <= encoder.max_tokens
    assert int(tokens.ids_BM.min()) >= 0 and int(tokens.ids_BM.max()) <= encoder.no_text
    again = load(folders[kind]).tokenize([text, "the"])
    assert tokens.ids_BM.equal(again.ids_BM)


def test_lone_surrogates_and_no_texts_have_tokens(source: Path) -> None:
    encoder = load(source)
    assert int(encoder.tokenize(["\ud800 the \udfff"]).num_tokens_B[0]) > 1
    assert encoder.tokenize([]).ids_BM.shape[0] == 0


def test_an_encoder_and_its_tokenizer_can_be_copied(source: Path) -> None:
    encoder = load(source, max_tokens=6)
    expected = encoder.tokenize([TEXTS[2], "[SEP] <pad>"])
    for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert copied.tokenize([TEXTS[2], "[SEP] <pad>"]).ids_BM.equal(expected.ids_BM)


# ---------------------------------------------------------------- kept with a model


@torch.no_grad()
def test_an_architecture_and_files_rebuild_it(source: Path, tmp_path: Path) -> None:
    encoder = load(source, field="extra.hypothesis", max_tokens=30)
    encoder.view = "words"
    architecture = json.loads(json.dumps(encoder.architecture()))
    kind = encoder_class("text")
    assert kind.read_architecture(architecture, tmp_path) == architecture
    assert kind.files_of("words") == ("tokenizer_words.json",)
    encoder.save_files(tmp_path)
    assert (tmp_path / "tokenizer_words.json").read_bytes() == encoder.tokenizer_json
    assert encoder.tokenizer_json == (source / "tokenizer.json").read_bytes()
    with torch.device("meta"):
        rebuilt = build_encoder(architecture)
    assert isinstance(rebuilt, TextEncoder) and rebuilt.tokenizer_json == b""
    with pytest.raises(RuntimeError, match="read_files"):
        rebuilt.tokenize(["a"])
    rebuilt.view = "words"
    rebuilt.load_state_dict(encoder.state_dict(), assign=True)
    rebuilt.read_files(tmp_path)
    assert rebuilt.architecture() == encoder.architecture() and rebuilt.field == "extra.hypothesis"
    assert all(not tensor.is_meta for tensor in (*rebuilt.parameters(), *rebuilt.buffers()))
    tokens = rebuilt.tokenize(TEXTS)
    assert tokens.ids_BM.equal(encoder.tokenize(TEXTS).ids_BM)
    for ours, theirs in zip(run(rebuilt.eval(), tokens).layers, run(encoder, tokens).layers, strict=True):
        assert torch.equal(ours, theirs)


def test_a_fresh_one_of_an_architecture_is_initialised(source: Path) -> None:
    encoder = build_encoder(load(source).architecture())
    assert all(bool(parameter.isfinite().all()) for parameter in encoder.parameters())


def test_the_form_is_that_of_the_weights_and_of_the_tokenizer(bert: Path) -> None:
    def form(**options: object) -> dict[str, Any]:
        return TextEncoder.form_of(load(bert, **options).architecture())

    before = form()
    assert form(dropout=0.5, field="extra.hypothesis", max_tokens=8) == before
    word_level((*WORDS[:-1], "##sad")).save(str(bert / "tokenizer.json"))
    assert {name for name, value in form().items() if value != before[name]} == {"tokenizer_sha256"}


def test_another_tokenizer_or_none_is_refused(source: Path, tmp_path: Path) -> None:
    encoder = load(source)
    with pytest.raises(ModelError, match=r"must hold tokenizer_text\.json, but does not"):
        encoder.read_files(tmp_path)
    encoder.save_files(tmp_path)
    path = tmp_path / "tokenizer_text.json"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ModelError, match="must be the tokenizer that the model was trained with"):
        encoder.read_files(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer_sha256": "a"},
        {"max_tokens": 0},
        {"max_tokens": 2**20},
        {"field": "speaker"},
        {"config": {"model_type": "gpt2"}},
        {"config": {"model_type": "bert", "hidden_size": 2**40}},
        {"config": []},
        {"config": {"model_type": "bert", "hidden_size": 10, "num_attention_heads": 4}},
    ],
)
def test_a_hostile_architecture_is_refused(folders: dict[str, Path], tmp_path: Path, change: dict[str, Any]) -> None:
    architecture = load(folders["bert"]).architecture()
    with pytest.raises((ModelError, ValidationError)):
        TextEncoder.read_architecture(architecture | change, tmp_path)


# ---------------------------------------------------------------- beside a speech encoder

SPEECH = LogMelEncoderConfig(num_mels=16, width=16, num_layers=2, num_heads=2, feed_forward=16)
EMOTION = TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=("anger", "sadness"))


def model_of(folder: Path, form: str = "cross") -> MetaSERModel:
    coattention = CoattentionConfig(form=form, width=8, num_heads=2)  # type: ignore[arg-type]
    views = {"words": TextEncoderConfig(kind="text", name=str(folder))}
    return build_model(ModelConfig(encoder=SPEECH, views=views, coattention=coattention), [EMOTION], "emotion").eval()


@pytest.mark.parametrize("form", ["concat", "cross", "frame_weights"])
@torch.no_grad()
def test_as_a_view_padding_changes_nothing(source: Path, form: str) -> None:
    model, lengths, texts = model_of(source, form), (4000, 900, 2600), TEXTS[1:4]
    view = model.views["words"]
    assert isinstance(view, TextEncoder) and view.view == "words"
    wave_BT, num_samples_B = torch.randn(3, 4000), torch.tensor(lengths)
    together = model(wave_BT, num_samples_B, tokens={"words": view.tokenize(texts)}).logits["emotion"]
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        tokens = {"words": view.tokenize(texts[one])}
        alone = model(wave_BT[one, :length], num_samples_B[one], tokens=tokens).logits["emotion"]
        torch.testing.assert_close(together[one], alone, atol=2e-6, rtol=2e-5)


def test_a_model_built_again_reads_the_same(source: Path, tmp_path: Path) -> None:
    model = model_of(source)
    # As JSON would hold it.
    with torch.device("meta"):
        again = MetaSERModel(MetaSERConfig(**json.loads(model.config.to_json_string(use_diff=False))))
    again.load_state_dict(model.state_dict(), assign=True)
    for each in (model, again):
        (view,) = each.views.values()
        assert isinstance(view, TextEncoder)
        view.save_files(tmp_path) if each is model else view.read_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer_words.json"]


def test_a_views_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"^model\.views\.words\.name must be"):
        model_of(tmp_path / "file")


# ---------------------------------------------------------------- checkpoints as people have them


def test_a_bare_model_and_one_inside_others_are_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    BertModel.from_pretrained(folders["bert"], add_pooling_layer=True).save_pretrained(bare)
    shutil.copy(folders["bert"] / "tokenizer.json", bare)
    expected = load(folders["bert"]).state_dict()
    assert not any("pooler" in name for name in expected)
    for name, tensor in load(bare).state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


def test_names_of_tensorflow_are_known(bert: Path) -> None:
    expected = load(bert).state_dict()
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(bert / "model.safetensors").items()
    }
    save_file(weights | {"bert.embeddings.position_ids": torch.arange(40)[None]}, bert / "model.safetensors")
    for name, tensor in load(bert).state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected[name])


def test_half_precision_becomes_single(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in weights.items()}, bert / "model.safetensors")
    assert {tensor.dtype for tensor in load(bert).state_dict().values()} == {torch.float32}


def test_a_missing_weight_is_named(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    name = "bert.encoder.layer.1.attention.self.key.weight"
    save_file({key: tensor for key, tensor in weights.items() if key != name}, bert / "model.safetensors")
    assert "without encoder.layer.1.attention.self.key.weight (1 of " in refusal(bert)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: .+'absolute'"),
        ({"is_decoder": True}, "is_decoder"),
        ({"vocab_size": 2**30}, "vocab_size: .+1048576"),
        ({"vocab_size": 22}, "word_embeddings.weight must have the shape .22, 16. that config.json implies"),
        ({"vocab_size": 7}, "must give ids below 7, the vocab_size of config.json, but gives 18 to '##happy'"),
        ({"num_attention_heads": 3}, "must be a multiple of num_attention_heads, got 16 and 3"),
        ({"hidden_act": "boom"}, "hidden_act must be an activation"),
        ({"pad_token_id": 99}, "pad_token_id must be less than vocab_size"),
        ({"model_type": "roberta", "pad_token_id": None}, "pad_token_id must be a number"),
        ({"model_type": "roberta", "pad_token_id": 3, "max_position_embeddings": 4}, "max_position_embeddings must be"),
        ({"model_type": "wavlm"}, r"model\.views\.words\.name must be a model of type bert, roberta"),
        ({"max_position_embeddings": 2}, "max_tokens must be greater than the 2 special tokens"),
    ],
)
def test_a_config_of_another_model_is_refused(bert: Path, change: dict[str, Any], words: str) -> None:
    assert re.search(words, refusal(with_json(bert, "config.json", lambda config: config.update(change))))


def test_the_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("no/such/model", str(tmp_path / "file")):
        with pytest.raises(ModelError, match=r"^model\.views\.words\.name must be"):
            load(Path(name))


def test_a_vocabulary_alone_is_refused_with_the_way_out(bert: Path) -> None:
    (bert / "tokenizer.json").rename(bert / "vocab.txt")
    said = refusal(bert)
    assert (
        "must hold tokenizer.json" in said and f"AutoTokenizer.from_pretrained({str(bert)!r}).save_pretrained" in said
    )


# ---------------------------------------------------------------- damaged and hostile tokenizers


def replaced(entry: str, part: object) -> Callable[[dict[str, Any]], object]:
    return lambda values: values.update({entry: part})


def template(*pieces: dict[str, Any]) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": list(pieces), "pair": list(pieces), "special_tokens": {}}


TEXT_PIECE = {"Sequence": {"id": "A", "type_id": 0}}
DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replaced("normalizer", DOUBLING), "a normalizer of type .+, but has 'Replace'"),
        (replaced("normalizer", {"type": "Sequence", "normalizers": [DOUBLING] * 40}), "but has 'Replace'"),
        (replaced("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 40}), "at most 16 parts"),
        (replaced("normalizer", "NFC"), "a normalizer of type"),
        (
            replaced("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated"}),
            "a pre_tokenizer of type .+, but has 'Split'",
        ),
        (replaced("post_processor", template(TEXT_PIECE, TEXT_PIECE)), r"one of them the text \(Sequence A\)"),
        (replaced("post_processor", template({"Sequence": {"id": "B", "type_id": 0}})), "one of them the text"),
        (replaced("post_processor", template({"SpecialToken": {"id": "[CLS]"}})), "one of them the text"),
        (replaced("post_processor", template(TEXT_PIECE, *[{"SpecialToken": {"id": "a"}}] * 40)), "at most 16 pieces"),
        (replaced("post_processor", template(TEXT_PIECE) | {"single": "$A"}), "at most 16 pieces"),
        (
            replaced("post_processor", {"type": "BertProcessing", "sep": ["[SEP]", 900], "cls": ["[CLS]", 2]}),
            "ids below 21, got 2 up to 900",
        ),
        (lambda values: values["model"].update(type="Unigram"), "a model of type WordPiece, BPE, WordLevel"),
        (lambda values: values["model"].update(type=["BPE"]), "a model of type"),
        (lambda values: values["model"].update(unk_token="absent"), "must read every text, such as .+unk|UNK"),
        (lambda values: values["model"]["vocab"].update(extra=21), "must give ids below 21.+gives 21 to 'extra'"),
        (lambda values: values["model"]["vocab"].update(extra=-1), "must be read, but cannot"),
        (
            lambda values: values["model"].update(
                type="WordPiece", continuing_subword_prefix="##", max_input_chars_per_word=10**9
            ),
            "words of at most 200 characters",
        ),
        (
            replaced("model", {"type": "BPE", "dropout": 0.5, "vocab": {"a": 0}, "merges": []}),
            "no dropout, which makes tokens random",
        ),
        (replaced("added_tokens", [{"id": 0, "content": ""}]), "added_tokens of 1 to 200 characters"),
        (replaced("added_tokens", {}), "a list of at most 10000 added_tokens"),
        (replaced("added_tokens", [0] * 20_000), "a list of at most 10000 added_tokens, but has 20000"),
        (
            lambda values: values["model"].update(type="WordPiece", continuing_subword_prefix="#" * 10**6),
            "a model whose continuing_subword_prefix has at most 200 characters",
        ),
        (replaced("decoder", {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""}), "a decoder of type"),
        (replaced("model", None), "a model of type"),
        (lambda values: values.clear(), "a model of type"),
    ],
)
def test_a_hostile_tokenizer_is_refused(bert: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    assert re.search(words, refusal(with_json(bert, "tokenizer.json", change)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "must be JSON"),
        (b"[]", "an object of JSON, but has list"),
        (b"[" * 100_000, "must be JSON"),
        (b'{"model": {}, "model": {}}', "names model twice"),
        (b"\xff", "not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html>", "a web page"),
    ],
)
def test_what_is_no_tokenizer_is_refused(bert: Path, data: bytes, words: str) -> None:
    (bert / "tokenizer.json").write_bytes(data)
    assert words in refusal(bert)


def test_a_tokenizer_of_many_bytes_is_refused(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "MAX_TOKENIZER_BYTES", 100)
    assert "at most 100 are read" in refusal(bert)


def test_an_early_tokenizer_without_the_models_type_is_read(source: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(source, tmp_path / "early")
    with_json(folder, "tokenizer.json", lambda values: values["model"].pop("type"))
    assert load(folder).tokenize(TEXTS).ids_BM.equal(load(source).tokenize(TEXTS).ids_BM)


def test_own_padding_and_truncation_of_a_file_are_not_run(bert: Path) -> None:
    expected = load(bert).tokenize(TEXTS)
    built = Tokenizer.from_file(str(bert / "tokenizer.json"))
    built.enable_truncation(3, direction="left")
    built.enable_padding(length=30)
    built.save(str(bert / "tokenizer.json"))
    assert load(bert).tokenize(TEXTS).ids_BM.equal(expected.ids_BM)


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5), st.just([]), st.just({})
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the ways to everything inside a value of JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, item in items for place in places(item, (*path, name)))]


@SAVED
@given(data=st.data(), kind=st.sampled_from(sorted(KINDS)), name=st.sampled_from(["tokenizer.json", "config.json"]))
def test_a_damaged_file_is_read_or_refused_in_one_sentence(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str, name: str
) -> None:
    folder = tmp_path_factory.mktemp("damaged") / "encoder"
    shutil.copytree(folders[kind], folder)
    original = (folder / name).read_text()
    if data.draw(st.booleans()):
        values = json.loads(original)
        *path, last = data.draw(st.sampled_from(places(values)[1:]))
        inside = values
        for part in path:
            inside = inside[part]
        inside[last] = data.draw(_VALUES)
        (folder / name).write_text(json.dumps(values))
    else:
        at = data.draw(st.integers(0, len(original)))
        (folder / name).write_bytes(
            original.encode()[:at] + data.draw(st.binary(max_size=4)) + original.encode()[at + 2 :]
        )
    try:
        encoder = load(folder)
    except ModelError as error:
        assert "\n" not in str(error)
        return
    assert int(encoder.tokenize(["the cat \u00e4", None]).ids_BM.max()) <= encoder.no_text
