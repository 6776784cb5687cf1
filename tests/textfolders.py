"""Small BERT folders as users have them: random weights, and a tokenizer of whole words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

_MEL = "{kind: logmel, num_mels: 8, width: 6, num_layers: 1, num_heads: 2, feed_forward: 8, dropout: 0.1}"
_NUMBERS = "{kind: numbers, fields: [extra.pitch_hz, extra.number, extra.none], width: 4}"


def with_views(bert: Path) -> tuple[str, ...]:
    """Return the overrides that add views of the text, the sound and numbers to the tiny experiment's second stage."""
    return (
        f"model.views={{words: {{kind: text, name: {bert}}}, mel: {_MEL}, pitch: {_NUMBERS}}}",
        "stages.1.train=[encoder, views, ari, heads, coattention]",
        "stages.1.learning_rate.views=0.003",
    )


SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def word_level(words: Sequence[str]) -> Tokenizer:
    """Return a tokenizer that knows `words`."""
    built = Tokenizer(models.WordLevel({word: number for number, word in enumerate((*SPECIAL, *words))}, "[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    built.add_special_tokens(list(SPECIAL))
    return built


def save_bert(folder: Path, words: Sequence[str] = ("an", "ha", "ne", "sa", "so", "no")) -> Path:
    """Save a BERT of two narrow layers that knows `words` (by default those of the tiny corpus) into `folder`."""
    built = word_level(words)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=built.get_vocab_size(), max_position_embeddings=16, **sizes)  # type: ignore[arg-type]
    BertModel(config).save_pretrained(folder)
    built.save(str(folder / "tokenizer.json"))
    return folder
