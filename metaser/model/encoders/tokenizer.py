"""The tokenizer of a BERT or RoBERTa checkpoint: its `tokenizer.json`, run by the tokenizers library.

The file may be damaged or hostile. Only parts whose work and memory grow with the text alone are run: no regular
expressions and no replacements of the file's own, nothing random.

Legend: B texts, M tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models

from metaser.errors import ModelError
from metaser.model.checkpoints import refuse_stand_in
from metaser.model.encoders.base import Tokens
from shards.inputfile import read_regular
from shards.jsontext import JsonTextError, parse_json
from shards.shown import shown

TOKENIZER = "tokenizer.json"
"""The file's name in a checkpoint's folder."""
MAX_TOKENIZER_BYTES = 64 << 20
"""Those of BERT and RoBERTa have 0.5 to 10 MB."""
_MAX_PARTS = 16
"""Normalizers, pre-tokenizers and post-processors of a file, and pieces of a template."""
_MAX_ADDED = 10_000
_MAX_ADDED_CHARS = 200
"""All added tokens are searched for at once, by an automaton that grows with their length."""
_MAX_WORD_CHARS = 200
"""That WordPiece takes apart, in a time that grows with their square; 100 in BERT's."""

_MODELS = {"WordPiece": models.WordPiece, "BPE": models.BPE, "WordLevel": models.WordLevel}
_NORMALIZERS = frozenset(
    {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Strip", "StripAccents", "Sequence"}
)
_PRE_TOKENIZERS = frozenset(
    {"BertPreTokenizer", "ByteLevel", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "Sequence"}
)
_POST_PROCESSORS = frozenset({"BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing", "Sequence"})
_DECODERS = frozenset({"BPEDecoder", "ByteLevel", "Fuse", "WordPiece", "Sequence"})
_PARTS = (
    ("normalizer", "normalizers", _NORMALIZERS),
    ("pre_tokenizer", "pretokenizers", _PRE_TOKENIZERS),
    ("post_processor", "processors", _POST_PROCESSORS),
    # Never run, but the library would compile their regular expressions.
    ("decoder", "decoders", _DECODERS),
)
"""Entry of the file, where its sequences have their parts, and the types that are run."""
_PROBE = "A b, 7 \u00e4\u4e2d\u0e01\u0378\U0001f600 zqxj "
"""Words, digits, signs of several scripts, and one that Unicode does not assign."""
_AGAIN = "fetch the checkpoint again, or save its tokenizer again by AutoTokenizer.from_pretrained(...).save_pretrained"


def read_tokenizer(path: Path) -> bytes:
    """Return the bytes of a `tokenizer.json`.

    Raises:
        ModelError: if it is missing, unreadable or too large.
    """
    try:
        data = read_regular(path, max_bytes=MAX_TOKENIZER_BYTES)
    except FileNotFoundError:
        raise ModelError(
            f"{str(path.parent)!r} must hold {path.name}, but does not; where it holds a vocabulary alone, make the "
            f"file by AutoTokenizer.from_pretrained({str(path.parent)!r}).save_pretrained({str(path.parent)!r})"
        ) from None
    except OSError as error:
        raise ModelError(f"{path} must be readable, but is not: {error.strerror}") from error
    refuse_stand_in(data, path)
    return data


class TextTokenizer:
    """A checkpoint's tokenizer, which reads any text.

    Special tokens stand where the file's post-processor puts them. Words of the text that look like one are words.

    Attributes:
        data: The bytes of its `tokenizer.json`.
        sha256: Theirs.
    """

    def __init__(self, data: bytes, path: Path, num_ids: int, max_tokens: int) -> None:
        """Build the tokenizer.

        Args:
            data: What stands in `path`.
            path: The file, for messages.
            num_ids: The model's vocabulary has ids below this.
            max_tokens: M at most, special tokens included.

        Raises:
            ModelError: if the file is no tokenizer that is run here, or one of another model.
        """
        self.data = data
        self.sha256 = sha256(data).hexdigest()
        self._path, self._num_ids, self._max_tokens = path, num_ids, max_tokens
        _check_file(data, path)
        with self._running("be read"):
            self._tokenizer: Any = Tokenizer.from_str(data.decode())
        self._check()

    def __reduce__(self) -> tuple[Any, ...]:
        """Be copied and sent as the file, because the library's own copies forget settings."""
        return TextTokenizer, (self.data, self._path, self._num_ids, self._max_tokens)

    def ids_of(self, text: str) -> list[int]:
        """Return the ids of a text, at most M: its end is cut off, the special tokens after it are not.

        Raises:
            ModelError: if the tokenizer fails on it.
        """
        # Lone surrogates, which no text should hold, become question marks.
        text = text.encode(errors="replace").decode()
        with self._running(f"read every text, such as {shown(repr(text), 60)}"):
            # Never a batch of texts: that would start threads in the processes that load data.
            ids: list[int] = self._tokenizer.encode(text).ids
        if not (len(ids) <= self._max_tokens and all(number < self._num_ids for number in ids)):
            raise ModelError(
                f"{self._path} must give at most {self._max_tokens} tokens with ids below {self._num_ids}, got "
                f"{len(ids)} up to {max(ids)}; point to a checkpoint whose files belong together"
            )
        return ids

    def _check(self) -> None:
        model = self._tokenizer.model
        if not isinstance(model, tuple(_MODELS.values())):
            raise self._refusal(f"a model of type {', '.join(_MODELS)}", type(model).__name__)
        if isinstance(model, models.WordPiece) and model.max_input_chars_per_word > _MAX_WORD_CHARS:
            words = f"words of at most {_MAX_WORD_CHARS} characters (max_input_chars_per_word)"
            raise self._refusal(words, str(model.max_input_chars_per_word))
        if isinstance(model, models.BPE) and model.dropout:
            raise self._refusal("no dropout, which makes tokens random", str(model.dropout))
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        word = max(vocabulary, key=vocabulary.__getitem__, default="")
        if vocabulary and vocabulary[word] >= self._num_ids:
            raise ModelError(
                f"{self._path} must give ids below {self._num_ids}, the vocab_size of config.json, but gives "
                f"{vocabulary[word]} to {shown(repr(word), 60)}; point to a checkpoint whose files belong together"
            )
        num_special = self._tokenizer.num_special_tokens_to_add(False)
        if num_special >= self._max_tokens:
            raise ModelError(
                f"max_tokens must be greater than the {num_special} special tokens that {self._path} puts around a "
                f"text, got {self._max_tokens}; raise it"
            )
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self._max_tokens)
        for text in ("", _PROBE, _PROBE * self._max_tokens):
            self.ids_of(text)

    @contextmanager
    def _running(self, what: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            # The library's panics are no `Exception`, and their class has no name to import.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = shown(" ".join(str(error).split()), 200)
            raise ModelError(f"{self._path} must {what}, but cannot: {reason}; {_AGAIN}") from None

    def _refusal(self, rule: str, got: str) -> ModelError:
        return _refusal(self._path, rule, got)


def pack_tokens(texts: Sequence[Sequence[int]]) -> Tokens:
    """Return the ids of texts, none of them empty, padded with zeros."""
    num_tokens_B = torch.tensor([len(ids) for ids in texts], dtype=torch.long)
    ids_BM = torch.zeros(len(texts), max(map(len, texts), default=1), dtype=torch.long)
    for row_M, ids in zip(ids_BM, texts, strict=True):
        row_M[: len(ids)] = torch.tensor(ids)
    return Tokens(ids_BM, num_tokens_B)


def _check_file(data: bytes, path: Path) -> None:
    """Refuse what the library would run without bounds, or panic over."""
    try:
        values = parse_json(data)
    except JsonTextError as error:
        raise ModelError(f"{path} must be JSON, but is not: {shown(str(error), 120)}; {_AGAIN}") from None
    if not isinstance(values, dict):
        raise _refusal(path, "an object of JSON", type(values).__name__)
    model = values.get("model")
    # Early files leave the type out; what the library takes such a model for is looked at later.
    kind = model.get("type", "BPE") if isinstance(model, dict) else model
    if not isinstance(kind, str) or kind not in _MODELS:
        raise _refusal(path, f"a model of type {', '.join(_MODELS)}", repr(kind))
    for name, value in model.items() if isinstance(model, dict) else ():
        # Such as the prefix of all pieces that do not begin a word.
        if isinstance(value, str) and len(value) > _MAX_ADDED_CHARS:
            raise _refusal(path, f"a model whose {shown(name, 40)} has at most {_MAX_ADDED_CHARS} characters", value)
    num_parts = 0
    for entry, inner, types in _PARTS:
        for part in _flattened(values.get(entry), inner):
            num_parts += 1
            kind = part.get("type") if isinstance(part, dict) else None
            if not isinstance(kind, str) or kind not in types:
                rule = f"a {entry} of type {', '.join(sorted(types))}"
                raise _refusal(path, rule, repr(kind if isinstance(part, dict) else part))
            if kind == "TemplateProcessing":
                _check_template(part.get("single"), path)
    if num_parts > _MAX_PARTS:
        raise _refusal(path, f"at most {_MAX_PARTS} parts", str(num_parts))
    added = values.get("added_tokens")
    if added is None:
        return
    if not isinstance(added, list) or len(added) > _MAX_ADDED:
        got = str(len(added)) if isinstance(added, list) else repr(added)
        raise _refusal(path, f"a list of at most {_MAX_ADDED} added_tokens", got)
    for token in added:
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or not 0 < len(content) <= _MAX_ADDED_CHARS:
            raise _refusal(path, f"added_tokens of 1 to {_MAX_ADDED_CHARS} characters", repr(content))


def _check_template(pieces: Any, path: Path) -> None:
    """Refuse templates that repeat the text, or want a second one."""
    rule = f"a template of at most {_MAX_PARTS} pieces, one of them the text (Sequence A)"
    if not isinstance(pieces, list) or not all(isinstance(piece, dict) for piece in pieces):
        raise _refusal(path, rule, repr(pieces))
    texts = [piece["Sequence"] for piece in pieces if "Sequence" in piece]
    is_one = len(texts) == 1 and isinstance(texts[0], dict) and texts[0].get("id") == "A"
    if not is_one or len(pieces) > _MAX_PARTS:
        raise _refusal(path, rule, repr(pieces))


def _flattened(part: Any, inner: str) -> Iterator[Any]:
    """Yield a part and those in it; JSON of bounded depth has no end of them in each other."""
    if part is None:
        return
    yield part
    if isinstance(part, dict) and part.get("type") == "Sequence":
        parts = part.get(inner)
        for each in parts if isinstance(parts, list) else [parts]:
            yield from _flattened(each, inner)


def _refusal(path: Path, rule: str, got: str) -> ModelError:
    return ModelError(f"{path} must be a tokenizer with {rule}, but has {shown(got, 80)}; choose another checkpoint")
