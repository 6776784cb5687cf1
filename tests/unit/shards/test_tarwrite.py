"""Tars that webdataset writes have the bytes that packing has always written, and only packing loads webdataset."""

import hashlib
import io
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tones import pack_items, tone

from shards.schema import AUDIO_SUFFIX, META_SUFFIX, Utterance, is_key
from shards.tarmembers import tar_members
from shards.tarwrite import add_utterance, described, fits_tar, tar_writer

KEYS = st.lists(st.text("abcXYZ019_%-", min_size=1, max_size=90), min_size=1, max_size=3).map("/".join)
UTTERANCES = (
    Utterance(key="tones/a", corpus="tones"),
    Utterance(key=f"tones/{'b' * 90}", corpus="tones", text="ü", emotion="anger", extra={"n": 1}),
    Utterance(key=f"tones/{'/'.join(['c' * 60] * 3)}", corpus="tones", speaker="7"),
)


def written(items):
    """Return the tar of utterances with their stored audio, and their rows."""
    buffer = io.BytesIO()
    with tar_writer(buffer) as writer:
        rows = [add_utterance(writer, *item, np.arange(100 * number, dtype=np.int16)) for number, item in items]
    return buffer.getvalue(), rows


def test_the_bytes_are_those_of_earlier_versions():
    tar, rows = written([(n, (item, bytes(range(256)) * n)) for n, item in enumerate(UTTERANCES, start=1)])
    # Of the tar that tarfile alone wrote before webdataset did.
    assert hashlib.sha256(tar).hexdigest() == "e436ccaa19731bbd594ed6dad50c7b09fb80eb558bdacf6c22fab1d65fd9393f"
    places = [(row["audio_offset"], row["audio_bytes"], row["meta_offset"], row["meta_bytes"]) for row in rows]
    assert places == [(512, 256, 1536, 413), (2560, 512, 3584, 510), (4608, 768, 6144, 593)]


@given(st.lists(st.tuples(KEYS, st.binary(max_size=1200)), max_size=12))
def test_any_tar_is_tarfile_s_own_and_its_rows_lead_to_its_members(found):
    items = [(Utterance(key=f"tones/{key}", corpus="tones"), flac) for key, flac in found]
    items = [item for item in items if is_key(item[0].key) and fits_tar(item[0].key)]
    tar, rows = written([(n, item) for n, item in enumerate(items, start=1)])
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as other:
        for row, (utterance, flac) in zip(rows, items, strict=True):
            meta = described(utterance, {name: row[name] for name in ("num_samples", "pcm_sha256")})
            for suffix, data in ((AUDIO_SUFFIX, flac), (META_SUFFIX, meta)):
                member = tarfile.TarInfo(f"{utterance.key}.{suffix}")
                member.size, member.mode = len(data), 0o644
                other.addfile(member, io.BytesIO(data))
    assert tar == expected.getvalue()
    members = list(tar_members(io.BytesIO(tar), len(tar)))
    stated = [(row[f"{part}_offset"], row[f"{part}_bytes"]) for row in rows for part in ("audio", "meta")]
    assert [(member.offset, member.num_bytes) for member in members] == stated


def test_a_key_that_is_too_long_is_not_written():
    key = f"tones/{'/'.join(['c' * 90] * 3)}"
    assert not fits_tar(key)
    with pytest.raises(ValueError, match="name is too long"):
        written([(1, (Utterance(key=key, corpus="tones"), b"x"))])


LOADED = "import sys; print('loaded:', sorted({'webdataset', 'torch'} & {*sys.modules}))"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import metaser.predict, launch.train, launch.verbs.predict, launch.verbs.evaluate", "['torch']"),
        (
            "from shards.indexload import load_index; from shards.plan import MicroBatch; import numpy as np\n"
            "from shards.read import read_batches\n"
            "index, two = load_index([sys.argv[1]]), MicroBatch(np.arange(2))\n"
            "batches = read_batches(index, [two], num_workers=0, timeout_s=10)\n"
            "assert [batch.valid_B.tolist() for batch in batches] == [[True, True]]",
            "['torch']",
        ),
        ("from shards.survey import verify\nverify([sys.argv[1]])", "[]"),
    ],
    ids=["predict", "read", "verify"],
)
def test_only_packing_loads_webdataset(tmp_path, program, expected):
    pack_items([tone(0), tone(1)], tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}\n{LOADED}", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"loaded: {expected}"
