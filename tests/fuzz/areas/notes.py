"""What an interrupted packing left: whatever was done to it, the folder becomes a clean packing's, or is refused."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import soundfile as sf

from fuzz.area import ACCEPTED, REFUSED, Area, Plan, Run, check_sentence, need
from fuzz.common import choose, copy_folder, files_of, make_common, replace_file, sound
from fuzz.mutate import damaged_bytes, damaged_tree, json_bytes

_COUNT, _SHARD = 12, 4


class _KilledError(Exception):
    """Stands for the end of the process."""


class Notes(Area):
    """Packing again over damaged notes and shards, and over a finished folder whose recordings have changed."""

    name = "notes"

    def prepare(self) -> None:
        make_common(with_run=False)
        corpus = self.base / "corpus"
        corpus.mkdir()
        for number in range(_COUNT):
            sf.write(corpus / f"{number:02d}.wav", sound(number, 1700), 16_000)
        rows = "".join(f"{number:02d}.wav,{('anger', 'fear')[number % 2]}\n" for number in range(_COUNT))
        (corpus / "table.csv").write_text(f"file,emotion\n{rows}")
        _pack(corpus, self.base / "clean")
        for stop in (1, 2, 3):
            out = self.base / f"stopped-{stop}"
            with contextlib.suppress(_KilledError):
                _pack(corpus, out, stop_after=stop)
            if stop == 3:
                # Killed after the last shard, before the manifest.
                need(not (out / "manifest.json").exists(), "not stopped")

    @cached_property
    def _clean(self) -> dict[str, bytes]:
        return _contents(self.base / "clean")

    def make(self, draw: random.Random, work: Path) -> Plan:
        corpus = self.base / "corpus"
        kind = choose(draw, [("note", 8), ("tar", 3), ("file", 1), ("finished", 2), ("sources", 2)])
        if kind in ("finished", "sources"):
            # Times as they were, as after a restored backup: only the sound tells.
            copy_folder(corpus, work / "corpus")
            if kind == "finished":
                copy_folder(self.base / "clean", work / "out")
            else:
                copy_folder(self.base / f"stopped-{draw.choice((1, 2, 3))}", work / "out")
            number = draw.randrange(_COUNT)
            sf.write(work / "corpus" / f"{number:02d}.wav", sound(number + 100, 1700), 16_000)
            return {"kind": kind}
        out = copy_folder(self.base / f"stopped-{draw.choice((1, 2, 3))}", work / "out")
        notes, tars = sorted((out / ".packing").glob("*.json")), sorted(out.glob("*.tar"))
        if kind == "note":
            path = draw.choice(notes)
            note = json.loads(path.read_bytes())
            kind = choose(
                draw, [("note bytes", 3), ("note tree", 3), ("note rows", 4), ("note of another", 1), ("note place", 1)]
            )
            if kind == "note bytes":
                path.write_bytes(damaged_bytes(draw, path.read_bytes()))
            elif kind == "note tree":
                path.write_bytes(json_bytes(damaged_tree(draw, note)))
            elif kind == "note rows":
                path.write_bytes(json_bytes(_other_rows(draw, note)))
            elif kind == "note of another":
                path.write_bytes(draw.choice(notes).read_bytes())
            else:
                kind = f"note {replace_file(draw, path)}"
        elif kind == "tar":
            path = draw.choice(tars)
            data = path.read_bytes()
            at = draw.randrange(len(data))
            # The same length, which alone tells nothing.
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :])
        else:
            kind = f"file {replace_file(draw, draw.choice(files_of(out)))}"
        return {"kind": kind}

    def judge(self, work: Path, plan: Plan, run: Run) -> str:
        from shards.errors import InputError

        corpus, out = (work if (work / "corpus").exists() else self.base) / "corpus", work / "out"
        if plan["kind"] == "finished":
            said = run(["pack", "csv", corpus / "table.csv", out, "--workers", "1"])
            if said.code:
                return REFUSED
            is_told = "sound was not" in said.out + said.err or "not compared" in said.out + said.err
            need(is_told or _contents(out) != self._clean, f"other recordings, but {said.out!r}")
            return ACCEPTED
        try:
            _pack(corpus, out)
        except InputError as error:
            check_sentence(str(error))
            return REFUSED
        right = self._clean if plan["kind"] != "sources" else _packed_anew(corpus, work / "anew")
        found = _contents(out)
        different = sorted(name for name in found.keys() | right.keys() if found.get(name) != right.get(name))
        need(not different, f"{different} are not as a clean packing makes them after {plan}")
        return ACCEPTED


def _pack(corpus: Path, out: Path, *, stop_after: int | None = None) -> None:
    from shards.pack import pack_corpus

    def progress(num_done: int, _num_all: int) -> None:
        if stop_after is not None and num_done >= stop_after * _SHARD:
            raise _KilledError

    pack_corpus("csv", corpus / "table.csv", out, shard_utterances=_SHARD, progress=progress)


def _packed_anew(corpus: Path, out: Path) -> dict[str, bytes]:
    _pack(corpus, out)
    found = _contents(out)
    shutil.rmtree(out)
    return found


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in files_of(folder)}


def _other_rows(draw: random.Random, note: dict[str, Any]) -> dict[str, Any]:
    """Return a note that says something else in the form that it must have."""
    rows = note["rows"]
    at, other = draw.randrange(len(rows)), draw.randrange(len(rows))
    kind = draw.choice(("less", "twice", "swapped", "field", "offset", "count", "rejection", "audio"))
    if kind == "less":
        del rows[at]
        if draw.random() < 0.5:
            note["shard"]["num_utterances"] -= 1
    elif kind == "twice":
        rows.append(dict(rows[at]))
    elif kind == "swapped":
        name = draw.choice(("emotion", "source", "audio_offset", "pcm_sha256", "meta_offset"))
        rows[at][name], rows[other][name] = rows[other][name], rows[at][name]
    elif kind == "field":
        rows[at][draw.choice(("emotion", "speaker", "split", "text"))] = "other"
    elif kind == "offset":
        rows[at][draw.choice(("audio_offset", "audio_bytes", "meta_bytes", "num_samples"))] += draw.choice((1, -1, 512))
    elif kind == "count":
        note["shard"][draw.choice(("num_utterances", "duration_s", "num_bytes"))] += 1
    elif kind == "rejection":
        note["rejections"] = [{"source": "x", "reason": "y", "kind": "z"}]
    else:
        note["audio"]["num_clipped"] = 3
    return note
