"""An utterance's two members in a tar, written by webdataset, the same bytes every time."""

from __future__ import annotations

import hashlib
import tarfile
from typing import IO, TYPE_CHECKING, Any

from shards.audio import pcm_sha256
from shards.files import canonical_json
from shards.indexwrite import index_row
from shards.schema import AUDIO_SUFFIX, META_SUFFIX, SCHEMA_VERSION, Utterance

if TYPE_CHECKING:
    from webdataset import TarWriter


def tar_writer(file: IO[bytes]) -> TarWriter:
    """Return webdataset's writer onto `file`, a context; owner, mode and time are fixed, so that bytes repeat."""
    # Late, because webdataset imports torch, which whoever plans a packing, or reads, need not wait for.
    from webdataset import TarWriter

    writer = TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False)
    # Its argument `format` does not arrive at tarfile, which by default writes long names as PAX headers.
    writer.tarstream.format = tarfile.USTAR_FORMAT
    return writer


def add_utterance(writer: TarWriter, utterance: Utterance, flac: bytes, pcm: Any) -> dict[str, Any]:
    """Append an utterance's two members, the audio first; return its index row."""
    audio: dict[str, Any] = {"num_samples": len(pcm), "pcm_sha256": pcm_sha256(pcm).hex()}
    meta = described(utterance, audio)
    offset = writer.tarstream.offset
    writer.write({"__key__": utterance.key, AUDIO_SUFFIX: flac, META_SUFFIX: meta})
    return index_row(
        utterance,
        **audio,
        audio_sha256=hashlib.sha256(flac).hexdigest(),
        audio_offset=offset + tarfile.BLOCKSIZE,
        audio_bytes=len(flac),
        # Both have a header of one block and fill whole ones; the second ends where the tar does.
        meta_offset=writer.tarstream.offset - _num_blocks(len(meta)) * tarfile.BLOCKSIZE,
        meta_bytes=len(meta),
    )


def described(utterance: Utterance, about_audio: dict[str, Any]) -> bytes:
    """Return what lies beside an utterance's audio."""
    return canonical_json({"schema_version": SCHEMA_VERSION, **utterance.model_dump(), **about_audio})


def fits_tar(key: str) -> bool:
    """Return whether a tar can hold members of this key."""
    try:
        tarfile.TarInfo(f"{key}.{AUDIO_SUFFIX}").tobuf(tarfile.USTAR_FORMAT)
    except ValueError:
        return False
    return True


def _num_blocks(num_bytes: int) -> int:
    return -(-num_bytes // tarfile.BLOCKSIZE)
