"""How input is damaged: bytes, trees of JSON and YAML, and words; each choice comes from one seeded generator."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

NUMBERS = (
    *(0, 1, -1, 2, 3, 127, 128, 255, 256, 32_767, 32_768, 65_535, 65_536, 1 << 24, (1 << 31) - 1, 1 << 31),
    *(-(1 << 31), (1 << 32) - 1, 1 << 32, 10**12, 1 << 40, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
"""Where counts, sizes and signs turn over."""
PAYLOAD = "PWNED"
"""A file of this name appears where words of a fuzzed file have become a command."""
WORDS = (
    *("", " ", "a\nb", "a\r\nb", "a\tb", "a|b\n## Injected", "<script>alert(1)</script>", '=HYPERLINK("http://e")'),
    *(
        "\x1b[2J\x1b[31mRED",
        "\x07",
        "\x7f",
        "\x9b31m",
        "\u202egnp.exe",
        "\u2028",
        "\ufeff",
        "\x00",
        "e\u0301",
        "ß" * 40,
    ),
    *("../../outside", "/etc/passwd", "/dev/zero", "/dev/full", ".", "..", "a/b", "a\\b", "-rf", "--help", "C:\\x"),
    *("nan", "inf", "-inf", "1e999", "010", "0x10", "1:30", "1_000", "~", "~/r", "null", "None", "true", "yes", "off"),
    *("[bold red]", "{0}", "%s%n", "${HOME}", f"$(touch {PAYLOAD})", f"`touch {PAYLOAD}`", f"'; touch {PAYLOAD}; '"),
    *(f'"; touch {PAYLOAD}; "', f"a\ntouch {PAYLOAD} #", f"a\rtouch {PAYLOAD} #", f"a\u2028touch {PAYLOAD} #"),
    *("x" * 300, "x" * 70_000, "[" * 3000, "http://127.0.0.1:9/x", "s3://none/none", "file:///etc/passwd"),
)
RAW = {
    "@raw:deep-list@": "[" * 100_000 + "]" * 100_000,
    "@raw:deep-object@": '{"a":' * 3000 + "1" + "}" * 3000,
    "@raw:digits@": "1" * 5000,
    "@raw:exponent@": "1e999999",
    "@raw:nan@": "NaN",
    "@raw:infinity@": "-Infinity",
    "@raw:twice@": '{"a": 1, "a": 2}',
    "@raw:surrogate@": '"\\ud800"',
    "@raw:nul@": '"a\\u0000b"',
    "@raw:escaped@": '"\\u001b[2J"',
    "@raw:minus@": "-",
    "@raw:comment@": "/* x */ 1",
}
"""Values that no tree can hold, by the words that stand for them in it."""
VALUES: tuple[Any, ...] = (None, True, False, *NUMBERS, 10**30, 0.5, -0.0, 1e308, 1e-320, [], {}, [[]], {"a": {}}, *RAW)


# ---------------------------------------------------------------- bytes


def damaged_bytes(draw: random.Random, data: bytes, *, other: bytes = b"") -> bytes:
    """Return `data` with one to four changes, never `data` itself; `other` lends pieces of a file of the same kind."""
    changed = data
    for _ in range(draw.choice((1, 1, 1, 2, 3, 4))):
        changed = _one_change(draw, changed, other)
    return changed if changed != data else data + b"\0"


def _one_change(draw: random.Random, data: bytes, other: bytes) -> bytes:
    size = len(data)
    # Headers are where the meaning is.
    start = draw.randrange(min(size, 512) + 1) if draw.random() < 0.5 else draw.randrange(size + 1)
    length = draw.choice((1, 1, 2, 4, 8, 16, 512, size))
    kind = draw.choice(
        ("flip", "flip", "flip", "byte", "number", "number", "cut", "insert", "delete", "again", "splice")
    )
    if kind == "flip" and start < size:
        return _put(data, start, bytes([data[start] ^ 1 << draw.randrange(8)]))
    if kind == "byte" and start < size:
        return _put(data, start, bytes([draw.choice((0, 0xFF, 0x0A, 0x20, 0x80, draw.randrange(256)))]))
    if kind == "number":
        width = draw.choice((1, 2, 4, 8))
        value = draw.choice(NUMBERS) % (1 << 8 * width)
        return _put(data, start, value.to_bytes(width, draw.choice(("little", "big"))))[: max(size, 1)]
    if kind == "cut":
        return data[: draw.choice((0, 1, start, size // 2, size - 1, max(0, size - length)))]
    if kind == "delete":
        return data[:start] + data[start + length :]
    if kind == "again":
        return data[:start] + data[start : start + length] * draw.choice((2, 3)) + data[start + length :]
    if kind == "splice" and other:
        at = draw.randrange(len(other))
        return data[:start] + other[at : at + length] + data[start + length :]
    filling = draw.choice((b"\0", b"\xff", b"[", b"\n", b"\r", b" ", draw.randbytes(1)))
    return data[:start] + filling * min(length, 1 << 16) + data[start:]


def _put(data: bytes, position: int, value: bytes) -> bytes:
    return data[:position] + value + data[position + len(value) :]


# ---------------------------------------------------------------- trees


def damaged_tree(draw: random.Random, tree: Any) -> Any:
    """Return a copy of a JSON-like value with one to three nodes changed, removed, renamed or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return draw.choice(VALUES)
        tree = _changed(draw, tree, places)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in list(items):
        yield tree, name
        yield from _places(value)


def _changed(draw: random.Random, tree: Any, places: list[tuple[Any, Any]]) -> Any:
    holder, name = draw.choice(places)
    kind = draw.choice(("value", "value", "word", "near", "near", "remove", "rename", "add", "other", "wrap", "root"))
    value = holder[name]
    if kind == "remove":
        del holder[name]
    elif kind == "rename" and isinstance(holder, dict):
        holder[draw.choice((f"{name}x", str(name)[:-1], *WORDS[:40]))] = holder.pop(name)
    elif kind == "add" and isinstance(holder, list):
        holder.insert(draw.randrange(len(holder) + 1), copy.deepcopy(value))
    elif kind == "add":
        holder[draw.choice(("extra", *WORDS[:40]))] = copy.deepcopy(value)
    elif kind == "other":
        where, what = draw.choice(places)
        # Of the tree as it was: a node put into itself has no end.
        holder[name] = copy.deepcopy(where[what])
    elif kind == "wrap":
        holder[name] = draw.choice(([value], {"a": value}, [value, value]))
    elif kind == "root" and draw.random() < 0.2:
        return draw.choice((*VALUES, [tree]))
    elif kind == "word":
        holder[name] = draw.choice(WORDS)
    elif kind == "near":
        holder[name] = near(draw, value)
    else:
        holder[name] = draw.choice(VALUES)
    return tree


def near(draw: random.Random, value: Any) -> Any:
    """Return a value of the same type, where there is one, that differs from `value` a little."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice((value + 1, value - 1, -value, value * 2, value // 2, value + 512, float(value), str(value)))
    if isinstance(value, float):
        return draw.choice((value + 0.5, -value, value * 2, value / 2, int(value), str(value)))
    if isinstance(value, str):
        return draw.choice(
            (value + "x", value[:-1], value.upper(), value * 2, f" {value}", f"{value}\n", _flipped(draw, value))
        )
    if isinstance(value, list):
        return draw.choice((value[:-1], value[::-1], value * 2, []))
    if isinstance(value, dict):
        return draw.choice((dict(list(value.items())[:-1]), dict.fromkeys(value), list(value)))
    return draw.choice(VALUES)


def _flipped(draw: random.Random, text: str) -> str:
    if not text:
        return "x"
    at = draw.randrange(len(text))
    return text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]


def json_bytes(tree: Any, **form: Any) -> bytes:
    """Return `tree` as JSON, the stand-ins of `RAW` replaced by what they stand for; lone surrogates are kept."""
    text = json.dumps(tree, **form)
    for stand_in, raw in RAW.items():
        text = text.replace(f'"{stand_in}"', raw)
    return text.encode("utf-8", "surrogatepass")


def holds_raw(tree: Any) -> bool:
    """Return whether `tree` cannot be hashed as it will be read: a stand-in of `RAW` stands in it, or it in itself."""
    try:
        text = json.dumps(tree)
    except ValueError:
        return True
    return any(stand_in in text for stand_in in RAW)


def doubled_name(draw: random.Random, text: str) -> str:
    """Return JSON text in which one name of an object stands twice, where there is a simple one."""
    lines = text.splitlines(keepends=True)
    simple = [number for number, line in enumerate(lines) if '": ' in line and line.rstrip().endswith(",")]
    if not simple:
        return text
    number = draw.choice(simple)
    return "".join([*lines[: number + 1], lines[number], *lines[number + 1 :]])
