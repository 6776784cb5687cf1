"""Recordings: what cannot be used is refused, never answered with NaN, and takes no other recording's answer along."""

from __future__ import annotations

import io
import json
import math
import random
import re
import struct
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from fuzz.area import ACCEPTED, REFUSED, Area, Plan, Run, check_sentence, need, parsed_json, refused
from fuzz.common import GOOD, RUN, choose, json_lines, make_common, sound
from fuzz.mutate import damaged_bytes

_FORMS = (
    *(
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("WAV", "FLOAT"),
        ("WAV", "IMA_ADPCM"),
        ("WAVEX", "PCM_16"),
        ("RF64", "PCM_16"),
    ),
    *(("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16")),
    *(
        ("AU", "PCM_16"),
        ("CAF", "PCM_16"),
        ("CAF", "ALAC_16"),
        ("NIST", "PCM_16"),
        ("W64", "PCM_16"),
        ("VOC", "PCM_16"),
    ),
    *(("SVX", "PCM_16"), ("AVR", "PCM_16"), ("IRCAM", "PCM_16"), ("PAF", "PCM_16"), ("PVF", "PCM_16")),
)
_LONGEST_S = 3700.0
"""Of sound that small files may turn out to hold."""
_RATES_HZ = (
    0,
    1,
    2,
    7,
    10,
    99,
    100,
    999,
    1000,
    4000,
    7999,
    8001,
    44_100,
    192_000,
    768_001,
    10**6,
    1 << 24,
    1 << 31,
    (1 << 32) - 1,
)


_NAN_CELL = re.compile(r"(?:^|[,|│ ])[-+]?(?:nan|inf)(?:$|[,|│ ])", re.MULTILINE)


class Audio(Area):
    """`predict` and `pack` on a damaged recording and a sound one."""

    name = "audio"

    def prepare(self) -> None:
        make_common()
        for number, (container, codec) in enumerate(_FORMS):
            (self.base / f"{number:02d}-{container}-{codec}").write_bytes(_encoded(container, codec))

    @cached_property
    def _sources(self) -> list[tuple[str, bytes]]:
        paths = sorted(path for path in self.base.iterdir() if path.stat().st_size)
        return [(path.name, path.read_bytes()) for path in paths]

    def make(self, draw: random.Random, work: Path) -> Plan:
        kind = choose(draw, [("bytes", 8), ("wav", 5), ("nist", 2), ("samples", 3), ("flac", 1), ("joined", 1)])
        name, data = draw.choice(self._sources)
        if kind == "bytes":
            data = damaged_bytes(draw, data, other=draw.choice(self._sources)[1])
        elif kind == "wav":
            data = _strange_wav(draw)
        elif kind == "nist":
            data = _strange_nist(draw)
        elif kind == "samples":
            data = _strange_samples(draw)
        elif kind == "flac":
            data = _strange_flac(draw, dict(self._sources)[next(n for n, _ in self._sources if "FLAC" in n)])
        else:
            data += draw.choice(self._sources)[1]
        (work / "bad.wav").write_bytes(data)
        (work / "good.wav").write_bytes(GOOD.read_bytes())
        entry = choose(draw, [("model", 6), ("predict", 1), ("csv", 1), ("table", 1), ("pack", 3), ("part", 2)])
        start = round(draw.uniform(0, 0.3), 3)
        channel = draw.choice(("mix",) * 9 + ("each", "1", "2", "left", "99"))
        plan = {
            "kind": kind,
            "form": name,
            "entry": entry,
            "start": start,
            "end": round(start + draw.uniform(0, 0.3), 3),
        }
        return {**plan, "channel": channel, "per_window": draw.random() < 0.5}

    def judge(self, work: Path, plan: Plan, run: Run) -> str:
        if plan["entry"] == "model":
            return self._by_model(work, plan)
        if plan["entry"] in ("pack", "part"):
            return self._packed(work, plan, run)
        files = [work / "bad.wav", work / "good.wav"]
        form = {"predict": "jsonl"}.get(plan["entry"], plan["entry"])
        per_window = ["--per-window"] if plan["per_window"] else []
        said = run(["predict", RUN, *files, "--format", form, "--channel", plan["channel"], *per_window])
        if form != "jsonl":
            need(not _NAN_CELL.search(said.out), f"an answer holds NaN: {said.out[:500]!r}")
            need(said.code == 0 or "bad.wav" in said.out + said.err or "good.wav" in said.err, f"no word of it: {said}")
            return ACCEPTED if said.code == 0 else REFUSED
        lines = json_lines(said.out)
        self._check_lines(lines, str(work / "good.wav"), plan["channel"])
        return ACCEPTED if said.code == 0 else REFUSED

    def _by_model(self, work: Path, plan: Plan) -> str:
        from launch.verbs.predict import _json_line
        from metaser.predict import choose_channel, predict_files

        files = [str(work / "bad.wav"), str(work / "good.wav")]
        found = list(predict_files(self._model, files, channel=choose_channel(plan["channel"])))
        lines = [parsed_json(json.dumps(_json_line(prediction))) for prediction in found]
        self._check_lines(lines, files[1], plan["channel"])
        return REFUSED if "error" in lines[0] else ACCEPTED

    def _check_lines(self, lines: list[Any], good: str, channel: str) -> None:
        mine = [line for line in lines if line["file"] == good]
        others = [line for line in lines if line["file"] != good]
        need(others, "the damaged file has no line")
        for line in others:
            if "error" in line:
                check_sentence(line["error"])
                continue
            need(0 < line["duration_s"] < _LONGEST_S, f"{line['duration_s']} s of so small a file")
            for values in (line["emotion"], *(window["emotion"] for window in line["windows"] if "emotion" in window)):
                shares = values["probabilities"].values()
                is_sound = all(0 <= share <= 1 for share in shares) and math.isclose(sum(shares), 1, abs_tol=1e-4)
                need(is_sound, f"probabilities {values['probabilities']}")
        need(len(mine) == 1, f"the sound file must have one line, got {mine}")
        if channel in ("mix", "each", "1", "left"):
            answer = mine[0].get("emotion")
            need(answer == self._right, f"the sound file's answer is {mine[0]}")

    def _packed(self, work: Path, plan: Plan, run: Run) -> str:
        is_part = plan["entry"] == "part"
        times = f",{plan['start']},{plan['end']}" if is_part else ""
        head = "file,start,end" if is_part else "file"
        good_times = ",0.1,0.4" if is_part else ""
        (work / "table.csv").write_text(f"{head}\nbad.wav{times}\ngood.wav{good_times}\n")
        out = work / "out"
        channel = ["--channel", plan["channel"]] if plan["channel"] in ("1", "2", "left") else []
        said = run(["pack", "csv", work / "table.csv", out, "--on-bad", "skip", "--workers", "1", *channel])
        if plan["channel"] == "2":
            # The sound file has none.
            return REFUSED if refused(said) else ACCEPTED
        need(said.code == 0, f"the sound file was not packed: {said.err[-500:]!r}")
        keys = packed_keys(out)
        need(any("good" in key for key in keys), f"the sound file is not among {keys}")
        rejected = (out / "rejected.jsonl").read_text().splitlines()
        need(len(keys) + len(rejected) == 2, f"2 rows, but {keys} packed and {rejected} rejected")
        verified = run(["inspect", out, "--verify", "--json"])
        need(verified.code == 0, f"packed, but not verified: {verified.err[-500:]!r}")
        return ACCEPTED if len(keys) == 2 else REFUSED

    @cached_property
    def _model(self) -> Any:
        from metaser.predict import load_model

        return load_model(RUN)

    @cached_property
    def _right(self) -> Any:
        from metaser.predict import predict_files

        (found,) = predict_files(self._model, [str(GOOD)])
        return json.loads(json.dumps(found.tasks["emotion"]))


def packed_keys(folder: Path) -> list[str]:
    """Return the keys of a shard folder's rows."""
    import pyarrow.parquet as pq

    keys: list[str] = pq.read_table(folder / "index.parquet", columns=["key"]).column(0).to_pylist()
    return keys


def _encoded(container: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    try:
        sf.write(buffer, sound(1), 16_000, format=container, subtype=codec)
    except (sf.SoundFileError, ValueError):
        # Not every version writes every one.
        return b""
    return buffer.getvalue()


def _strange_wav(draw: random.Random) -> bytes:
    """Return a WAV in whose header one to three things are strange."""
    data = (sound(2) * 20_000).astype("<i2").tobytes() * draw.choice((1, 1, 4, 16))
    strange: dict[str, tuple[int, ...]] = {
        "rate": _RATES_HZ,
        "channels": (2, 0, 3, 255, 1024, 65_535),
        "bits": (8, 24, 32, 64, 0, 1, 12, 65_535),
        "codec": (3, 6, 7, 2, 17, 85, 0xFFFE, 0, 65_535),
        "width": (0, 1, 4, 65_535),
        "size": (0, len(data) + 2, (1 << 32) - 1, 1 << 31, len(data) // 3),
        "format size": (18, 40, 0, 1 << 31),
        "whole size": (0, (1 << 32) - 1, 8),
    }
    chosen = draw.sample(list(strange), draw.choice((1, 1, 2, 3)))
    said = {name: draw.choice(strange[name]) for name in chosen}
    if draw.random() < 0.2:
        said = {"rate": draw.choice((1, 2, 3, 10, 50, 400, 1000))}
    rate, channels, bits = said.get("rate", 16_000), said.get("channels", 1), said.get("bits", 16)
    width = said.get("width", channels * bits // 8 & 0xFFFF)
    speed = rate * width & 0xFFFFFFFF
    chunks = b"fmt " + struct.pack("<I", said.get("format size", 16))
    chunks += struct.pack("<HHIIHH", said.get("codec", 1), channels, rate & 0xFFFFFFFF, speed, width, bits)
    if draw.random() < 0.1:
        extra = draw.choice((b"LIST", b"fact", b"data", b"cue ", b"JUNK", b"\0\0\0\0"))
        chunks += extra + struct.pack("<I", draw.choice((4, 0, 5, 1 << 31))) + b"abcd"
    chunks += b"data" + struct.pack("<I", said.get("size", len(data))) + data
    return b"RIFF" + struct.pack("<I", said.get("whole size", 4 + len(chunks))) + b"WAVE" + chunks


def _strange_nist(draw: random.Random) -> bytes:
    count = 4000
    fields = {
        "sample_rate": "-i 16000",
        "channel_count": "-i 1",
        "sample_n_bytes": "-i 2",
        "sample_count": f"-i {count}",
        "sample_byte_format": "-s2 01",
        "sample_coding": "-s3 pcm",
    }
    for _ in range(draw.choice((0, 1, 1, 2))):
        name = draw.choice(list(fields))
        values = (
            "-i 0",
            "-i -1",
            "-i 1",
            "-i 99999999999999999999",
            "-r 1.5",
            "-s4 ulaw",
            "-s3 x\n",
            "",
            "-i 4294967296",
        )
        fields[name] = draw.choice((*values, "-s26 pcm,embedded-shorten-v2.00", "-s2 10", "-i 65535", "-i 2147483647"))
    lines = [f"{name} {value}" for name, value in fields.items()]
    draw.shuffle(lines)
    head = "\n".join(
        ["NIST_1A", draw.choice(("   1024",) * 6 + ("      0", "99999999", "  -1024", "abc")), *lines, "end_head\n"]
    )
    return (
        head.encode().ljust(draw.choice((1024, 1024, 1024, 512)), draw.choice((b" ", b"\0", b"\n")))
        + (sound(3, count) * 20_000).astype("<i2").tobytes()
    )


def _strange_samples(draw: random.Random) -> bytes:
    """Return a file of floating-point numbers that are none, huge, tiny, or cancel each other."""
    channels = draw.choice((1, 2, 2, 3))
    samples = np.stack([sound(number, 4000) for number in range(channels)], axis=1).astype(np.float64)
    for _ in range(draw.choice((1, 1, 2))):
        value = draw.choice((np.nan, np.inf, -np.inf, 3e38, -3e38, 3.4e38, 1e30, 1e-40, 1e300, 0.0, 2.0, 1e6))
        where = draw.choice((slice(None), slice(0, 1), slice(-1, None), slice(1000, 1100)))
        samples[where, draw.randrange(channels) if draw.random() < 0.5 else slice(None)] = value
    if draw.random() < 0.2 and channels == 2:
        samples[:, 1] = -samples[:, 0]
    buffer = io.BytesIO()
    sf.write(
        buffer,
        samples,
        draw.choice((16_000, 16_000, 8000, 44_100)),
        format=draw.choice(("WAV", "AU", "CAF")),
        subtype=draw.choice(("FLOAT", "DOUBLE")),
    )
    return buffer.getvalue()


def _strange_flac(draw: random.Random, data: bytes) -> bytes:
    """Return a FLAC whose first block says another rate, size or length."""
    block = bytearray(data[8:42])
    packed = int.from_bytes(block[10:18], "big")
    rate = draw.choice(_RATES_HZ) & 0xFFFFF
    count = draw.choice((packed & (1 << 36) - 1, 0, 1, (1 << 36) - 1, 1 << 32))
    packed = rate << 44 | (packed >> 36 & 0xFF) << 36 | count
    block[10:18] = packed.to_bytes(8, "big")
    if draw.random() < 0.3:
        block[0:4] = draw.randbytes(4)
    return data[:8] + bytes(block) + data[42:]
