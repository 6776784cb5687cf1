"""Text files in whatever encoding people have them: known surely, or refused with the line and the remedy."""

from __future__ import annotations

import codecs
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from shards.errors import CorpusError
from shards.inputfile import MAX_TEXT_BYTES, read_regular

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    # Before UTF-16, whose little-endian mark it begins with.
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_LEGACY = (
    "cp1252",
    "cp1250",
    "cp1251",
    "cp1253",
    "cp1254",
    "cp1257",
    "iso8859-2",
    "koi8-r",
    "cp866",
    "cp850",
    "mac-roman",
    "gb18030",
    "big5",
    "cp932",
    "euc-jp",
    "cp949",
    "cp874",
    "cp1255",
    "cp1256",
    "cp1258",
    "iso8859-4",
    "iso8859-5",
    "iso8859-6",
    "iso8859-7",
    "iso8859-8",
    "koi8-u",
    "kz1048",
    "cp737",
    "cp775",
    "cp852",
    "cp857",
    "cp862",
    "cp864",
    "mac-cyrillic",
    "mac-greek",
    "mac-latin2",
    "mac-turkish",
    "johab",
)
"""What tables are still written in; subsets of these (Latin-1, GBK, Shift-JIS, EUC-KR) need no place of their own."""
_CHAOS_MARGIN = 0.1
"""By how much less noisy the best reading must be than any other, in charset-normalizer's measure from 0 to 1."""
_MIN_LETTERS = {"gb18030": 3, "big5": 3, "cp932": 3, "euc-jp": 3, "cp949": 3, "johab": 3}
"""Fewer letters of an encoding that takes two bytes for each may be chance; elsewhere one accent is enough."""
_RARE_FROM = {
    "gb18030": ("gb2312", 0xD8),
    "big5": ("big5", 0xC9),
    "cp932": ("euc-jp", 0xD0),
    "euc-jp": ("euc-jp", 0xD0),
}
"""From which first byte on, in which encoding, standards put the letters that are seldom used."""
_MAX_RARE = 0.2
_MIN_EASTERN_TO_COMPARE = 8
_MIN_OTHERS_TO_COMPARE = 60
"""Letters beyond ASCII without which the measure of noise says nothing, as tried on short texts."""
_MAX_TONOS = 1
"""Of a Greek word that no enclitic follows."""
_MAX_ACCENTED = 0.25
"""Of the letters in lines that have any, in a language such as English or Polish."""
_TYPOGRAPHY = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201c\u201d\u201e", "'") | dict.fromkeys("\u2013\u2014\u2026", " ")
)
"""What word processors make of ASCII's quotes, dashes and dots."""
_MAX_LINES_JUDGED = 2000
_MAX_CHARS_JUDGED = 150_000
_MAX_SAMPLE_CHARS = 120
_LINE = re.compile(rb"\r\n|\n|\r")
_WORD = re.compile(r"[^\W\d_]+(?:[^\s\w,;|\"'()\[\]{}<>.:!?/\\*#&=+-][^\W\d_]*)*")
"""Letters, and what stands inside or right behind them without being punctuation."""


_HZ = re.compile(rb"~\{(?:[!-w][!-~])+~\}")
_DIGITS_IN_WORDS = re.compile(r"(?<=[A-Za-z])\d++|(?<!\d)\d++(?=[A-Za-z])")
_SIGNS = re.compile(r"[^\w\s\x00-\x7f\u2013-\u2026\u3000-\u303f\uff00-\uffef]{3}")
"""More signs in a row than people write."""


@dataclass(frozen=True)
class Text:
    """A file's characters and the encoding they were in."""

    content: str
    encoding: str
    is_guess: bool
    """Whether the encoding was found out from the characters, and should be said."""
    sample: str = ""
    """Some of the words that the guess decided."""


def read_text_in(path: Path, encoding: str | None = None, usual: str | None = None) -> Text:
    """Return a text file's content without a byte order mark.

    Args:
        path: The file.
        encoding: Its encoding as Python calls it; None to find it out.
        usual: Where it is not UTF-8 and may be several others, the one that its corpus is known to be written in.

    Raises:
        FileNotFoundError: if there is no such file.
        CorpusError: if it cannot be read, is not in `encoding`, or its encoding cannot be told surely.
    """
    try:
        data = read_regular(path, max_bytes=MAX_TEXT_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CorpusError(f"{path} must be text that can be read, but cannot: {error.strerror}") from error
    if data[:4] == b"PK\x03\x04":
        raise CorpusError(f"{path} must be text, but is a workbook or an archive; save the sheet as CSV in UTF-8")
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is not None:
        return Text(_decoded_as(path, data, encoding, marked), encoding, is_guess=False)
    if marked is not None:
        return Text(_strict(path, data, marked).removeprefix("\ufeff"), marked, is_guess=False)
    if b"\0" in data:
        wide = next((name for name in _WIDE if _is_wide(data, name)), None)
        if wide is not None:
            return Text(data.decode(wide), wide, is_guess=True)
    if re.search(rb"\x1b[$(]", data):
        return _escaped(path, data)
    shifted = _HZ.search(data)
    if shifted is not None:
        raise CorpusError(
            f"{path} must be in an encoding that can be told, but {_place(data, shifted.start())} may be Chinese in "
            "HZ; pass --encoding hz, or utf-8 if ~{ and ~} are characters"
        )
    try:
        return Text(data.decode("utf-8"), "utf-8", is_guess=False)
    except UnicodeDecodeError as error:
        return _legacy(path, data, error, usual)


def _decoded_as(path: Path, data: bytes, encoding: str, marked: str | None) -> str:
    try:
        known = codecs.lookup(encoding)
        "".encode(encoding)
    except LookupError as error:
        raise CorpusError(
            f"--encoding must be a text encoding that Python knows, such as gbk or cp1252, got {encoding!r}"
        ) from error
    family = (marked or known.name).removesuffix("-le").removesuffix("-be")
    if marked is not None and not known.name.startswith(family):
        raise CorpusError(
            f"--encoding must agree with the file, but {path} begins with the byte order mark of {marked}, got "
            f"{encoding!r}; leave --encoding out"
        )
    return _strict(path, data, encoding).removeprefix("\ufeff")


def _strict(path: Path, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} must be text in {encoding}, but {_place(data, error.start)} is not ({error.reason}); name its "
            "encoding with --encoding, or save it in UTF-8"
        ) from error


def _place(data: bytes, start: int) -> str:
    """Return where decoding stopped, as `line 7 (b'...')`."""
    number = len(_LINE.findall(data[:start])) + 1
    line = (_LINE.split(data[:start])[-1] + _LINE.split(data[start:])[0])[:60]
    return f"line {number} ({line!r})"


def _is_wide(data: bytes, encoding: str) -> bool:
    """Return whether `data` is text of 16 or 32 bits a sign: its header, mostly ASCII, tells."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return False
    header = re.split(r"[\r\n]", text, maxsplit=1)[0]
    return "\0" not in text and sum(character.isascii() for character in header) > len(header) / 2


def _escaped(path: Path, data: bytes) -> Text:
    """Return text of seven bits whose escapes switch to Japanese; as UTF-8 it would be well-formed nonsense."""
    try:
        content = data.decode("iso2022_jp_ext")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} must be in an encoding that can be told, but {_place(data, error.start)} holds escapes that are "
            "not ISO-2022-JP; name its encoding with --encoding"
        ) from error
    return Text(content, "iso2022_jp", is_guess=True, sample=_sample(content))


def _legacy(path: Path, data: bytes, error: UnicodeDecodeError, usual: str | None) -> Text:
    """Return the one plausible reading of text that is not UTF-8."""
    refusal = (
        f"{path} must be UTF-8 or in an encoding that can be told surely, but {_place(data, error.start)} is not UTF-8"
    )
    remedy = "name its encoding with --encoding (gbk, cp1252, ...), or save it in UTF-8"
    if _is_damaged_utf8(data):
        raise CorpusError(f"{refusal} while other lines are; {remedy}") from error
    if usual is not None and _decodes(data, usual) and _is_latin(data.decode(usual)):
        content = data.decode(usual)
        return Text(content, usual, is_guess=True, sample=_sample(content))
    readings = dict(_plausible(data))
    if len(set(readings.values())) > 1:
        readings = _least_noisy(data, readings)
    if len(set(readings.values())) != 1 or not _may_be_chosen(*next(iter(readings.items()))):
        shown = "; ".join(f"as {name} it would read {_sample(text)!r}" for name, text in list(readings.items())[:4])
        raise CorpusError(f"{refusal}{f': {shown}' if shown else ''}; {remedy}") from error
    encoding, content = next(iter(readings.items()))
    return Text(content, encoding, is_guess=True, sample=_sample(content))


def _is_damaged_utf8(data: bytes) -> bool:
    """Return whether most of the bytes beyond ASCII are UTF-8, which no other encoding's text is by chance."""
    lines = [line for line in _LINE.split(data) if not line.isascii()]
    return 2 * sum(_decodes(line, "utf-8") for line in lines) > len(lines)


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _plausible(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield each legacy encoding that all of `data` decodes in, to words as people write them, and the text."""
    for encoding in _LEGACY:
        if not _decodes(data, encoding):
            continue
        text = data.decode(encoding)
        lines = _judged(text)
        if all(map(_is_written_by_people, lines)) and _num_foreign(lines) >= _MIN_LETTERS.get(encoding, 1):
            yield encoding, text


def _may_be_chosen(encoding: str, text: str) -> bool:
    """Return whether a reading that takes two bytes for a letter is of letters in use, and so no chance.

    Bytes of Thai and Cyrillic come out as half-width katakana, or as signs that few people know.
    """
    eastern = [sign for sign in text if not sign.isascii() and sign.isalpha()]
    if encoding not in _RARE_FROM or not eastern:
        return True
    num_rare = sum(sign.encode(_RARE_FROM[encoding][0], "replace")[0] >= _RARE_FROM[encoding][1] for sign in eastern)
    return num_rare <= _MAX_RARE * len(eastern) and not any("\uff66" <= sign <= "\uff9f" for sign in eastern)


def _is_latin(text: str) -> bool:
    """Return whether `text` is of a language whose letters, and those of each word, are mostly ASCII's."""
    plain = text.translate(_TYPOGRAPHY)
    lines = _judged(plain)
    letters = [sign for line in lines for sign in line if sign.isalpha()]
    num_accented = sum(not sign.isascii() for sign in letters)
    return (
        all(map(_is_written_by_people, lines))
        and num_accented <= _MAX_ACCENTED * len(letters)
        and not any(len(word) > 1 and not re.search("[A-Za-z]", word) for word in re.findall(r"[^\W\d_]+", plain))
    )


def _judged(text: str) -> list[str]:
    """Return the first lines with signs beyond ASCII, as many as judging takes a few seconds for."""
    lines = [line[:_MAX_CHARS_JUDGED] for line in text.splitlines() if not line.isascii()][:_MAX_LINES_JUDGED]
    num_chars = list(accumulate(map(len, lines)))
    return lines[: bisect_right(num_chars, _MAX_CHARS_JUDGED)]


def _num_foreign(lines: Sequence[str]) -> int:
    return sum(not sign.isascii() for line in lines for sign in line)


def _is_written_by_people(line: str) -> bool:
    # Lines and words may be long, and of few signs.
    if any(unicodedata.category(sign) in ("Cc", "Cn", "Co") for sign in {*line} - {"\t"}) or _SIGNS.search(line):
        return False
    if any(not digits.isascii() for digits in _DIGITS_IN_WORDS.findall(line)):
        return False
    words = _WORD.findall(_without_eastern_punctuation(line))
    return all(_is_word(word) for word in {*words} if not word.isascii())


def _without_eastern_punctuation(line: str) -> str:
    """Return `line` with blanks for the punctuation that stands between Chinese or Japanese letters without any."""
    if "Lo" not in map(unicodedata.category, {*line}):
        return line
    return "".join(
        " " if unicodedata.category(sign)[0] == "P" and "Lo" in map(unicodedata.category, before + after) else sign
        for before, sign, after in zip(" " + line[:-1], line, line[1:] + " ", strict=True)
    )


def _is_word(word: str) -> bool:
    """Return whether a word is of one script, has no sign inside, and capitals only where words have them."""
    if not all(sign.isalpha() or unicodedata.category(sign) in ("Mn", "Lm") for sign in {*word}):
        return False
    # Names such as those that tables number with a letter.
    body = re.sub(r"^[A-Za-z]{1,2}(?=\W*[^\x00-\x7f])|(?<=[^\x00-\x7f])[A-Za-z]{1,2}$", "", word)
    scripts = {_script(sign) for sign in {*(body if _script(body[0]) in ("CJK", "HANGUL") else word)}}
    rest = word[1:]
    if scripts == {"GREEK"} and unicodedata.normalize("NFD", word).count("\N{COMBINING ACUTE ACCENT}") > _MAX_TONOS:
        return False
    return len(scripts) == 1 and (word == word.upper() or rest == rest.lower())


def _script(character: str) -> str:
    """Return a character's script; those that Japanese mixes count as one."""
    name = unicodedata.name(character, "").split(" ")[0]
    return "CJK" if name in ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA") else name


def _least_noisy(data: bytes, readings: dict[str, str]) -> dict[str, str]:
    """Return the reading that charset-normalizer prefers by far; all of them if there is none."""
    from charset_normalizer import from_bytes

    chaos = {str(match): match.chaos - match.coherence for match in from_bytes(data)}
    ordered = sorted(
        {text: chaos[text] for text in readings.values() if text in chaos}.items(), key=lambda item: item[1]
    )
    if not ordered or (len(ordered) > 1 and ordered[1][1] - ordered[0][1] < _CHAOS_MARGIN):
        return readings
    is_eastern = any(name in _MIN_LETTERS for name, text in readings.items() if text == ordered[0][0])
    if _num_foreign([ordered[0][0]]) < (_MIN_EASTERN_TO_COMPARE if is_eastern else _MIN_OTHERS_TO_COMPARE):
        return readings
    return {name: text for name, text in readings.items() if text == ordered[0][0]}


def _sample(text: str) -> str:
    """Return the first words beyond ASCII."""
    words = [word for word in re.findall(r"\w+", text) if not word.isascii()]
    return " ".join(dict.fromkeys(words[:3]))[:_MAX_SAMPLE_CHARS]
