"""Every corpus reader on a damaged copy of its corpus: what was not damaged is read as before."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from fuzz.area import ACCEPTED, REFUSED, Area, Plan, Run, check_sentence, need, refused
from fuzz.areas.audio import packed_keys
from fuzz.common import choose, copy_folder, files_of, make_common, replace_file
from fuzz.mutate import WORDS, damaged_bytes

_AUDIO = (".wav", ".sph", ".flac", ".mp3")


def _emodb(root: Path) -> Path:
    from corpustrees import write_audio

    for name in ("16b10Wa", "03a01Fa", "08a02Ab"):
        write_audio(root / "wav" / f"{name}.wav")
    rows = "Nr.\tSatz\terkannt\tnatuerlich\n1\xa0\t03a01Fa.wav\t90,50\xa0\xa0\t75,00\xa0\n2\t03a01Ab.wav\t65\t35\n"
    (root / "erkennung.txt").write_text(rows, "latin-1")
    return root


def _an4(root: Path) -> Path:
    from corpustrees import write, write_audio

    for name in ("an4_clstk/fash/an251-fash-b", "an4_clstk/mblb/cen1-mblb-b", "an4test_clstk/fjlp/an416-fjlp-b"):
        write_audio(root / "wav" / f"{name}.sph", container="NIST")
    write(root / "etc/an4_train.fileids", "an4_clstk/mblb/cen1-mblb-b\nan4_clstk/fash/an251-fash-b\n")
    write(root / "etc/an4_train.transcription", "<s> G A R Y </s> (cen1-mblb-b)\n<s> YES </s> (an251-fash-b)\n")
    write(root / "etc/an4_test.fileids", "\nan4test_clstk/fjlp/an416-fjlp-b\n")
    write(root / "etc/an4_test.transcription", "\nENTER NINE (an416-fjlp-b)\n")
    return root


def _folder(root: Path) -> Path:
    from corpustrees import write_audio

    for emotion in ("anger", "fear"):
        for number in range(3):
            write_audio(root / emotion / f"{number}.wav")
    return root


def _audiofolder(root: Path) -> Path:
    from corpustrees import write, write_audio

    for number in range(4):
        write_audio(root / "train" / f"{number}.wav")
    rows = "".join(f"{number}.wav,{('anger', 'fear')[number % 2]}\n" for number in range(4))
    write(root / "train" / "metadata.csv", f"file_name,emotion\n{rows}")
    return root


class Corpora(Area):
    """The readers of published corpora and of folders, and packing what they find."""

    name = "corpora"

    def prepare(self) -> None:
        from corpustrees import TREES

        make_common(with_run=False)
        trees: dict[str, Callable[[Path], Path]] = {**TREES, "emodb": _emodb, "an4": _an4}
        for name, make in {**trees, "folder": _folder, "audiofolder": _audiofolder}.items():
            (self.base / name).mkdir()
            make(self.base / name)

    @cached_property
    def _corpora(self) -> list[str]:
        return sorted(path.name for path in self.base.iterdir())

    def make(self, draw: random.Random, work: Path) -> Plan:
        corpus = draw.choice(self._corpora)
        root = copy_folder(self.base / corpus, work / corpus)
        files = files_of(root)
        texts = [path for path in files if path.suffix not in _AUDIO]
        kind = choose(draw, [("text", 8), ("audio", 3), ("replaced", 3), ("renamed", 3), ("more", 3), ("folder", 1)])
        path = draw.choice(texts if kind == "text" and texts else files)
        if kind in ("text", "audio"):
            path = path if kind == "text" and texts else draw.choice([path for path in files if path.suffix in _AUDIO])
            path.write_bytes(damaged_bytes(draw, path.read_bytes(), other=draw.choice(files).read_bytes()))
        elif kind == "replaced":
            kind = f"replaced: {replace_file(draw, path)}"
        elif kind == "renamed":
            path.rename(path.with_name(_name(draw, path)))
        elif kind == "more":
            more = path.with_name(_name(draw, path))
            if not more.exists():
                more.write_bytes(draw.choice((b"", path.read_bytes(), b"x")))
        else:
            (path.parent / "loop").symlink_to(path.parent, target_is_directory=True)
        is_audio = path.suffix in _AUDIO and not kind.startswith(("renamed", "more"))
        entry = choose(draw, [("read", 4), ("pack", 1)])
        return {
            "corpus": corpus,
            "kind": kind,
            "path": str(path.relative_to(work)),
            "is_audio": is_audio,
            "entry": entry,
        }

    def judge(self, work: Path, plan: Plan, run: Run) -> str:
        return self._packed(work, plan, run) if plan["entry"] == "pack" else self._read(work, plan)

    def _read(self, work: Path, plan: Plan) -> str:
        from shards.errors import InputError

        try:
            found = self._found(work / plan["corpus"], plan["corpus"])
        except InputError as error:
            check_sentence(str(error))
            return REFUSED
        if plan["is_audio"]:
            right = self._found(self.base / plan["corpus"], plan["corpus"])
            for source, words in right.items():
                is_damaged = source is not None and Path(source).stem in plan["path"]
                need(is_damaged or found.get(source) == words, f"{source} is read as {found.get(source)} after {plan}")
        return ACCEPTED

    def _found(self, root: Path, corpus: str) -> dict[str | None, object]:
        from shards.corpora.base import corpus_reader
        from shards.schema import Rejection, RowCount, SourceUtterance

        found = list(corpus_reader(corpus).read(root, 0))
        items = [item for item in found if isinstance(item, SourceUtterance)]
        rejections = [item for item in found if isinstance(item, Rejection)]
        counts = [item.number for item in found if isinstance(item, RowCount)]
        if counts:
            need(sum(counts) == len(items) + len(rejections), f"{counts} rows, {len(items)} + {len(rejections)} found")
        return {item.utterance.source: item.utterance.model_dump() for item in items}

    def _packed(self, work: Path, plan: Plan, run: Run) -> str:
        out = work / "out"
        said = run(["pack", plan["corpus"], work / plan["corpus"], out, "--on-bad", "skip", "--workers", "1"])
        if refused(said):
            need(not plan["is_audio"], f"one recording took the others with it after {plan}: {said.sentence}")
            return REFUSED
        verified = run(["inspect", out, "--verify", "--json"])
        need(verified.code == 0, f"packed, but not verified: {verified.err[-500:]!r}")
        shown = run(["inspect", out])
        need(shown.code == 0, f"packed, but not shown: {shown.err[-500:]!r}")
        need(packed_keys(out), "nothing was packed")
        return ACCEPTED


def _name(draw: random.Random, path: Path) -> str:
    word = draw.choice(WORDS).replace("/", "_").replace("\0", "")[:80]
    stem, suffix = path.stem, path.suffix
    names = (f"{word}{suffix}", f"{stem}{word}{suffix}", f"{stem[:-1]}{suffix}", f"{stem}x{suffix}", f"{stem}{suffix}x")
    raw = os.fsdecode(b"\xff\xfe" + os.fsencode(suffix))
    return draw.choice((*names, stem.swapcase() + suffix, raw, f".{stem}{suffix}")) or "x"
