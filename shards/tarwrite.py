"""An utterance's two members in a tar, the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import tarfile
from typing import Any

from shards.audio import pcm_sha256
from shards.files import canonical_json
from shards.indexwrite import index_row
from shards.schema import AUDIO_SUFFIX, META_SUFFIX, SCHEMA_VERSION, Utterance


def described(utterance: Utterance, about_audio: dict[str, Any]) -> bytes:
    """Return what lies beside an utterance's audio."""
    return canonical_json({"schema_version": SCHEMA_VERSION, **utterance.model_dump(), **about_audio})


def add_utterance(tar: tarfile.TarFile, utterance: Utterance, flac: bytes, pcm: Any) -> dict[str, Any]:
    """Append an utterance's two members; return its index row."""
    audio: dict[str, Any] = {"num_samples": len(pcm), "pcm_sha256": pcm_sha256(pcm).hex()}
    audio_offset = _add(tar, f"{utterance.key}.{AUDIO_SUFFIX}", flac)
    meta = described(utterance, audio)
    return index_row(
        utterance,
        **audio,
        audio_sha256=hashlib.sha256(flac).hexdigest(),
        audio_offset=audio_offset,
        audio_bytes=len(flac),
        meta_offset=_add(tar, f"{utterance.key}.{META_SUFFIX}", meta),
        meta_bytes=len(meta),
    )


def member_header(name: str, data: bytes) -> tarfile.TarInfo:
    """Return a header whose owner, mode and time are fixed, so that bytes repeat."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    return member


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member; return where its data begins."""
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member_header(name, data), io.BytesIO(data))
    return offset
