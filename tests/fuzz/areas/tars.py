"""WebDataset shards of somebody else: what is not adopted is rejected by name, and what is adopted, verify accepts."""

from __future__ import annotations

import gzip
import io
import json
import random
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import soundfile as sf

from fuzz.area import ACCEPTED, REFUSED, Area, Plan, Run, need, refused
from fuzz.common import choose, make_common, replace_file, sound
from fuzz.mutate import WORDS, damaged_bytes, damaged_tree, json_bytes

_BLOCK = 512
_NAMES = ("u0", "u1", "u2", "u3")
_EMOTIONS = ("anger", "fear", "sadness", "neutral")
Member = tuple[bytes, bytes]
"""A header and its data, both of whole blocks."""


class Tars(Area):
    """`pack wds` of a damaged tar and a sound one, then `inspect --verify`."""

    name = "tars"

    def prepare(self) -> None:
        make_common(with_run=False)
        for number in range(8):
            buffer = io.BytesIO()
            sf.write(buffer, sound(number, 2400), 16_000, format="FLAC")
            (self.base / f"{number}.flac").write_bytes(buffer.getvalue())

    @cached_property
    def _flacs(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.base.glob("*.flac"))]

    def make(self, draw: random.Random, work: Path) -> Plan:
        source = work / "in"
        source.mkdir()
        (source / "b.tar").write_bytes(_joined(self._members("b", 4)))
        kind = choose(
            draw, [("bytes", 4), ("header", 5), ("extra", 6), ("meta", 6), ("end", 1), ("foreign", 1), ("place", 1)]
        )
        members, healthy, recipe = self._members("a", 0), [f"b{name}" for name in _NAMES], ""
        data = None
        if kind == "bytes":
            data = damaged_bytes(draw, _joined(members))
        elif kind == "header":
            members, recipe = _strange_header(draw, members)
        elif kind == "extra":
            members, recipe = _strange_members(draw, members, self._flacs)
        elif kind == "meta":
            members, bad, recipe = self._strange_meta(draw, members)
            healthy += [f"a{name}" for name in _NAMES if name != bad]
        elif kind == "end":
            whole = _joined(members)
            recipe = draw.choice(("no end", "garbage", "zeros", "twice", "gzip"))
            data = {
                "no end": whole.rstrip(b"\0"),
                "garbage": whole + draw.randbytes(1000),
                "zeros": whole + bytes(100_000),
                "twice": whole + whole,
                "gzip": gzip.compress(whole, mtime=0),
            }[recipe]
        (source / "a.tar").write_bytes(_joined(members) if data is None else data)
        in_place = draw.random() < 0.2
        if kind == "foreign":
            name = draw.choice(("index.parquet", "rejected.jsonl", "manifest.json", ".packing"))
            out = source if in_place else work / "out"
            out.mkdir(exist_ok=True)
            (out / name).write_text("MY OWN FILE")
            recipe = name
        elif kind == "place":
            recipe = replace_file(draw, source / "a.tar")
        return {"kind": kind, "recipe": recipe, "in_place": in_place, "healthy": healthy}

    def _members(self, prefix: str, first: int) -> list[Member]:
        members = []
        for number, name in enumerate(_NAMES):
            meta = {"emotion": _EMOTIONS[number], "speaker": f"s{number}"}
            members.append(member(f"{prefix}{name}.flac", self._flacs[first + number]))
            members.append(member(f"{prefix}{name}.json", json.dumps(meta).encode()))
        return members

    def _strange_meta(self, draw: random.Random, members: list[Member]) -> tuple[list[Member], str, str]:
        """Change what is said of one recording."""
        number = draw.randrange(len(_NAMES))
        name = _NAMES[number]
        meta: dict[str, Any] = {
            "emotion": _EMOTIONS[number],
            "speaker": "s",
            "age": 30,
            "extra": {"a": 1},
            "text": "so",
        }
        recipe = draw.choice(("tree", "bytes", "large", "twice", "field", "ours"))
        changed: list[Member]
        if recipe == "tree":
            changed = [member(f"a{name}.json", json_bytes(damaged_tree(draw, meta)))]
        elif recipe == "bytes":
            changed = [member(f"a{name}.json", damaged_bytes(draw, json.dumps(meta).encode()))]
        elif recipe == "large":
            changed = [
                member(
                    f"a{name}.json",
                    json.dumps({**meta, "more": "x" * draw.choice((70_000, 1 << 20, 3 << 20))}).encode(),
                )
            ]
        elif recipe == "twice":
            changed = [
                member(f"a{name}.json", b'{"emotion": "anger"}'),
                member(f"a{name}.json", b'{"emotion": "fear"}'),
            ]
        elif recipe == "ours":
            ours = {"schema_version": 1, "key": f"in/a{name}", "corpus": "in", "source": None, "extra": {}, **meta}
            changed = [member(f"a{name}.json", json_bytes(damaged_tree(draw, ours)))]
        else:
            field = draw.choice(("speaker", "emotion", "txt", "age", "split", "language"))
            changed = [member(f"a{name}.{field}", draw.choice((*WORDS, "\ud800")).encode("utf-8", "surrogatepass"))]
        at = 2 * number
        return [*members[: at + 1], *changed, *members[at + 2 :]], name, recipe

    def judge(self, work: Path, plan: Plan, run: Run) -> str:
        source = work / "in"
        out = source if plan["in_place"] else work / "out"
        before = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file() and not path.is_symlink()}
        said = run(["pack", "wds", source, out, "--on-bad", "skip", "--workers", "1"])
        for name, data in before.items():
            need((source / name).read_bytes() == data, f"{name} of others was changed by {plan}")
        if refused(said):
            need(plan["kind"] in ("foreign", "place"), f"the sound tar was not adopted: {said.sentence}")
            return REFUSED
        verified = run(["inspect", out, "--verify", "--json"])
        need(verified.code == 0, f"adopted, but not verified: {verified.err[-700:]!r} after {plan}")
        table = pq.read_table(out / "index.parquet").to_pylist()
        rows = {row["key"].rpartition("/")[2]: row for row in table}
        rejected = (out / "rejected.jsonl").read_text()
        for key in plan["healthy"]:
            need(key in rows, f"the sound {key} was not adopted after {plan}: {rejected[:500]}")
            emotion = _EMOTIONS[_NAMES.index(key[1:])]
            need(rows[key]["emotion"] == emotion, f"{key} is {rows[key]['emotion']} after {plan}")
        if plan["kind"] in ("extra", "meta"):
            for name in _NAMES:
                is_told = f"a{name}" in rejected or '{"kind":"broken tar"' in rejected
                need(f"a{name}" in rows or is_told, f"a{name} was lost without a word after {plan}")
        if plan["recipe"] in ("member twice", "json twice", "twice"):
            need(len(rejected.splitlines()) >= 1, f"of two members one was taken without a word after {plan}")
        return ACCEPTED


# ---------------------------------------------------------------- what tars are made of


def header(name: bytes, size: int, kind: bytes = b"0", *, link: bytes = b"", mode: bytes = b"0000644\0") -> bytes:
    """Return a header with the right checksum."""
    size_field = b"%011o\0" % size if 0 <= size < 1 << 33 else b"\x80" + (size % (1 << 88)).to_bytes(11, "big")
    head = name[:100].ljust(100, b"\0") + mode + b"0000000\0" * 2 + size_field + b"00000000000\0" + b" " * 8 + kind
    return summed((head + link[:100].ljust(100, b"\0") + b"ustar\00000").ljust(_BLOCK, b"\0"))


def summed(head: bytes) -> bytes:
    """Return a header with its checksum made right."""
    return head[:148] + b"%06o\0 " % (sum(head[:148]) + sum(head[156:_BLOCK]) + 256) + head[156:]


def member(name: str, data: bytes, kind: bytes = b"0") -> Member:
    """Return a member as it lies in a tar."""
    return header(name.encode("utf-8", "surrogatepass"), len(data), kind), data + bytes(-len(data) % _BLOCK)


def _pax_raw(body: bytes, kind: bytes = b"x") -> bytes:
    return header(b"PaxHeader", len(body), kind) + body + bytes(-len(body) % _BLOCK)


def _record(name: bytes, value: bytes) -> bytes:
    body = b" " + name + b"=" + value + b"\n"
    length = len(body) + len(str(len(body)))
    length = len(body) + len(str(length))
    return str(length).encode() + body


def _joined(members: list[Member]) -> bytes:
    return b"".join(head + data for head, data in members) + bytes(2 * _BLOCK)


def _strange_header(draw: random.Random, members: list[Member]) -> tuple[list[Member], str]:
    """Change a field of one header, the checksum made right or not."""
    at = draw.randrange(len(members))
    head, data = members[at]
    fields = {
        "name": (0, 100),
        "mode": (100, 8),
        "size": (124, 12),
        "mtime": (136, 12),
        "type": (156, 1),
        "link": (157, 100),
    }
    fields |= {"magic": (257, 8), "prefix": (345, 155), "sum": (148, 8)}
    name = draw.choice(list(fields))
    start, width = fields[name]
    values = [
        bytes(width),
        b"\xff" * width,
        b"9" * width,
        b"-1".ljust(width),
        b"77777777777\0"[:width],
        b"\x80" + b"\xff" * (width - 1),
    ]
    values += [
        b"\x80" + bytes(width - 1),
        b"00000000000\0"[:width],
        b"00000001000\0"[:width],
        draw.randbytes(width),
        b" " * width,
    ]
    values += [draw.choice(WORDS).encode("utf-8", "replace")[:width].ljust(width, b"\0"), b"../../../x.flac\0"[:width]]
    if name == "type":
        values = [bytes([kind]) for kind in b"01234567LKxgSDVNMXA\0\xff"]
    value = draw.choice(values)[:width].ljust(width, b"\0")
    changed = head[:start] + value + head[start + width :]
    changed = changed if draw.random() < 0.15 or name == "sum" else summed(changed)
    return [*members[:at], (changed, data), *members[at + 1 :]], f"{name} {value[:20]!r}"


def _strange_members(draw: random.Random, members: list[Member], flacs: list[bytes]) -> tuple[list[Member], str]:
    """Put something before one recording, or in place of its neighbours; every sound recording stays there."""
    at = 2 * draw.randrange(len(_NAMES))
    name = f"a{_NAMES[at // 2]}"
    long_name = b"x" * draw.choice((101, 300, 5000, 70_000))
    recipes: dict[str, list[Member]] = {
        "member twice": [member(f"{name}.flac", flacs[-1])],
        "json twice": [member(f"{name}.json", b'{"emotion": "anger"}')],
        "other audio": [member(f"{name}.wav", flacs[-1])],
        "long name": [
            (
                header(b"././@LongLink", len(long_name), b"L")
                + long_name.ljust(-(-len(long_name) // 512) * 512, b"\0"),
                b"",
            )
        ],
        "long names": [member("././@LongLink", b"a" * 10 + b"\0", b"L")] * draw.choice((2, 100, 1500, 3000)),
        "long link": [member("././@LongLink", b"a" * 10 + b"\0", b"K")],
        "link": [(header(b"z.flac", 0, b"2", link=b"/etc/passwd"), b"")],
        "hard link": [(header(b"z.flac", 0, b"1", link=name.encode() + b".flac"), b"")],
        "folder": [(header(b"folder/", 0, b"5"), b"")],
        "device": [(header(b"z.flac", 0, b"3"), b"")],
        "pipe": [(header(b"z.flac", 0, b"6"), b"")],
        "outside": [member("../../outside.flac", flacs[-1])],
        "absolute": [member("/tmp/outside.flac", flacs[-1])],
        "nameless": [member("", flacs[-1])],
        "dots": [member("z.q.flac", flacs[-1]), member(".flac", flacs[-1]), member("z..flac", flacs[-1])],
        "bytes": [(header(b"\xff\xfe.flac", len(flacs[-1])), flacs[-1] + bytes(-len(flacs[-1]) % _BLOCK))],
        "escape": [member("\x1b[2Jz.flac", flacs[-1]), member("a\nb.flac", flacs[-1])],
        "word": [member(f"{draw.choice(WORDS)[:90]}.flac", flacs[-1])],
        "large unread": [member("z.bin", bytes(3 << 20))],
        "empty": [member("z.flac", b"")],
        "bad audio": [member("z.flac", damaged_bytes(draw, flacs[-1]))],
        "pax": [(_pax_raw(_pax_body(draw)), b"")],
        "pax global": [(_pax_raw(_pax_body(draw), b"g"), b"")],
        "sparse": [(_pax_raw(_record(b"GNU.sparse.map", draw.choice((b"abc", b"0,1,2", b"0," * 5000, b"-1,5")))), b"")],
        "old sparse": [(header(b"z.flac", 512, b"S"), bytes(512))],
    }
    recipe = draw.choice(list(recipes))
    return [*members[:at], *recipes[recipe], *members[at:]], recipe


def _pax_body(draw: random.Random) -> bytes:
    digits = b"9" * draw.choice((5, 400, 5000))
    values: list[tuple[bytes, bytes]] = [
        (b"size", draw.choice((b"0", b"-1", digits, b"x", b"1e3", b"8589934591"))),
        (b"path", draw.choice((b"", b"../x.flac", b"\0", b"a\nb.flac", b"x" * 100_000, b"\xff"))),
        (b"mtime", draw.choice((b"nan", digits, b"-1", b""))),
        (b"hdrcharset", b"BINARY"),
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.realsize", digits),
        (b"GNU.sparse.name", b"other.flac"),
        (b"comment", b"x" * draw.choice((10, 1 << 20))),
    ]
    body = b"".join(_record(name, value) for name, value in draw.sample(values, draw.choice((1, 1, 2, 3))))
    return damaged_bytes(draw, body) if draw.random() < 0.3 else body
