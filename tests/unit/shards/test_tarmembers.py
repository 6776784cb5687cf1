"""Members of a tar are those that tarfile finds in a whole one; whatever is not whole is said, at once."""

import hashlib
import io
import re
import tarfile
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import tarwalk
from shards.tarmembers import MAX_NAME_BYTES, MAX_PAX_BYTES, BrokenTarError, tar_members

END = bytes(1024)


def walked(data):
    """The members before a fault, and the fault."""
    found = []
    try:
        for member in tar_members(io.BytesIO(data), len(data)):
            found.append(member)
    except BrokenTarError as error:
        return found, error
    return found, None


def written(members, form=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def header(name, num_bytes, kind=b"0", size=None):
    size = b"%011o\0" % num_bytes if size is None else size
    head = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"00000000000\0" + b" " * 8 + kind
    head = (head + bytes(100) + b"ustar\x0000").ljust(512, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def block(data):
    return data + bytes(-len(data) % 512)


def pax(**records):
    body = b""
    for name, value in records.items():
        rest = b" " + name.replace("__", ".").encode() + b"=" + value + b"\n"
        length = len(rest) + len(str(len(rest)))
        length += len(str(length)) - len(str(len(rest)))
        body += str(length).encode() + rest
    return header(b"pax", len(body), b"x") + block(body)


def plain(name, data=b"sound"):
    return header(name, len(data)) + block(data)


names = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=150
).filter(lambda name: name.strip("/") == name)
members = st.lists(st.tuples(names, st.binary(max_size=1_200)), max_size=5)


@settings(max_examples=60, deadline=None)
@given(members, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_members_are_those_of_tarfile(contents, form):
    data = written(contents, form)
    found, fault = walked(data)
    assert fault is None
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar]
    assert [(member.name, member.offset, member.num_bytes) for member in found] == expected
    assert not any(member.fault or member.is_folder for member in found)


@settings(max_examples=60, deadline=None)
@given(members.filter(bool), st.data())
def test_a_tar_that_is_cut_anywhere_before_its_end_is_not_whole(contents, data):
    whole = written(contents)
    members_end = max(member.offset + -(-member.num_bytes // 512) * 512 for member in walked(whole)[0])
    cut = data.draw(st.integers(0, members_end + 511))
    found, fault = walked(whole[:cut])
    assert fault is not None
    assert not fault.is_behind_end
    assert found == walked(whole)[0][: len(found)]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 511), st.integers(1, 255))
def test_a_changed_byte_of_a_header_is_noticed(at, change):
    data = bytearray(plain(b"a.wav") + plain(b"b.wav") + END)
    data[1024 + at] ^= change
    found, fault = walked(bytes(data))
    before, _ = walked(plain(b"a.wav") + plain(b"b.wav") + END)
    # Of the checksum itself, the blank and the NUL behind its digits are padding.
    assert fault is not None or found == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\x1f\x8b" + bytes(600), r"compressed \(gzip\)"),
        (b"BZh9" + bytes(600), "bzip2"),
        (b"\xfd7zXZ\0" + bytes(600), "xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "zstd"),
        (b"not a tar" * 100, "at byte 0 is no header"),
        (plain(b"a.wav"), "no block of zeros at its end, byte 1024"),
        (plain(b"a.wav") + END + b"garbage" * 100, "at byte 2048 is no header"),
        (plain(b"a.wav") + END + b"x", "cut at byte 2049"),
        (header(b"a.wav", (1 << 33) - 1) + END, "a.wav claims 8589934591 bytes from byte 512 on, but the tar has 1536"),
        (header(b"a.wav", 0, size=b"\x80" + b"\xff" * 11) + END, "a.wav claims 309485009821345068724781055 bytes"),
        (header(b"a.wav", 0, size=b"\xff" * 12) + END, "states no size"),
        (header(b"a.wav", 0, size=b"12x45678901\0") + END, "states no size"),
        (pax(size=b"9" * 20) + plain(b"a.wav") + END, "a.wav claims 9{20} bytes"),
        (pax(path=b"b.wav") + END, "between a member's headers"),
        (header(b"g", 0, b"g") + plain(b"a.wav") + header(b"L", 9_000_000, b"L"), "claims 9000000 bytes"),
        (header(b"g", 18, b"g") + block(b"18 path=all.wav!!\n") + plain(b"a.wav") + END, "give all members one name"),
        (header(b"s", 0, b"S")[:482] + b"\1" + bytes(29), "no header of a tar"),
    ],
)
def test_what_ends_a_tar_is_said(data, message):
    with pytest.raises(BrokenTarError, match=message):
        list(tar_members(io.BytesIO(data), len(data)))


LONG = header(b"L", 11, b"L") + block(b"a" * 10 + b"\0")


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (LONG * 2_000, "two headers of one kind"),
        (pax(comment=b"x") * 2_000, "two headers of one kind"),
        (header(b"L", MAX_NAME_BYTES + 1, b"L") + block(b"a" * (MAX_NAME_BYTES + 1)), "4097 bytes .* at most 4096"),
        (pax(path=b"a" * (MAX_NAME_BYTES + 1)), "its name has 4097 bytes, but at most 4096 are read"),
        (pax(comment=b"x" * MAX_PAX_BYTES), "header of .* bytes .* at most 1048576 are read"),
        (pax(path=b"a\0b"), "holds a NUL"),
        (pax(size=b"5" * 5_000), "state no size"),
        (pax(size=b"-5"), "state no size"),
        (pax(GNU__sparse__map=b"abc"), "sparse"),
        (pax(GNU__sparse__major=b"1", GNU__sparse__name=b"u.wav"), "sparse"),
        (header(b"x", 9, b"x") + block(b"99 path=a"), "records cannot be read"),
        (header(b"x", 9, b"x") + block(b"========="), "records cannot be read"),
    ],
)
def test_a_member_that_is_refused_takes_none_with_it(before, message):
    started = time.perf_counter()
    found, fault = walked(plain(b"a.wav") + before + plain(b"b.wav") + plain(b"c.wav") + END)
    assert time.perf_counter() - started < 2
    assert fault is None

    assert [bool(member.fault) for member in found] == [False, True, False]
    assert re.search(message, found[1].fault)
    assert found[2].name == "c.wav"


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"6", b"S", b"M", b"Z"])
def test_what_is_no_plain_file_is_named(kind):
    found, fault = walked(header(b"x.wav", 0, kind) + plain(b"y.wav") + END)
    assert fault is None
    assert found[0].name == "x.wav"
    assert "must be a plain file" in found[0].fault
    assert found[1].fault is None


def test_joined_tars_are_read_to_their_end():
    found, fault = walked(written([("a", b"1")]) + written([("b", b"2")]))
    assert fault is None
    assert [member.name for member in found] == ["a", "b"]


def test_what_follows_the_end_is_told_from_a_cut():
    assert walked(plain(b"a.wav") + END + b"garbage" * 100)[1].is_behind_end
    assert not walked(plain(b"a.wav") + b"garbage" * 100)[1].is_behind_end


class _Stored:
    """What a `RangeReader` is to a `TarStream`."""

    def __init__(self, data):
        self._data = data

    def read(self, place, offset, num_bytes, *, fresh):
        return self._data[offset : offset + num_bytes]


@settings(max_examples=30, deadline=None)
@given(members, members, st.integers(0, 300), st.binary(max_size=600))
def test_a_tar_that_comes_in_pieces_has_the_same_members_and_its_hash(first, second, num_zeros, more):
    data = written(first) + bytes(512 * num_zeros) + written(second) + more
    for piece_bytes in (512, 700, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tarwalk, "PIECE_BYTES", piece_bytes)
            stream = tarwalk.TarStream(_Stored(data), "a.tar", len(data))
            found = []
            try:
                for member in tar_members(stream, len(data)):
                    found.append((member, stream.read(member.num_bytes)))
            except BrokenTarError:
                assert walked(data)[1] is not None
            assert [member for member, _ in found] == walked(data)[0]
            assert all(sound == data[member.offset : member.offset + member.num_bytes] for member, sound in found)
            assert stream.hexdigest() == hashlib.sha256(data).hexdigest()
