"""Sealed lines: nothing in a file of them is changed, dropped, doubled or moved without being noticed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaser.errors import RunError
from metaser.lines import Chain, read_lines

numbers = st.floats() | st.integers(-(2**63), 2**63)
values = st.dictionaries(
    st.text(min_size=1).filter(lambda name: name not in ("stage", "step", "loss", "losses", "dev", "seal")),
    numbers | st.text() | st.dictionaries(st.text(), numbers, max_size=2),
    max_size=3,
)
steps = st.lists(values, min_size=1, max_size=5).map(
    lambda found: [{"stage": 1, "step": number, **more} for number, more in enumerate(found, start=1)]
)


def sealed(lines, *, num_unsealed=0):
    """Return the lines as a training writes them, of which the first are from an earlier version."""
    bodies = [json.dumps(line).encode() for line in lines]
    head = b"".join(body + b"\n" for body in bodies[:num_unsealed])
    chain = Chain.after(head, "here")
    return head.splitlines() + [chain.sealed(body) for body in bodies[num_unsealed:]]


def read(lines, **options):
    return list(read_lines(((line, "here") for line in lines), Chain(**options)))


@given(lines=steps, num_unsealed=st.integers(0, 5))
def test_lines_come_back_as_they_were_written(lines, num_unsealed):
    written = sealed(lines, num_unsealed=num_unsealed)
    assert repr(read(written)) == repr(lines)
    assert all(json.loads(line)["seal"] for line in written[num_unsealed:])


@given(lines=steps, data=st.data())
def test_no_changed_byte_is_believed(lines, data):
    content = bytearray(b"".join(line + b"\n" for line in sealed(lines)))
    at = data.draw(st.integers(0, len(content) - 2))
    content[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RunError, match=r"^here is damaged: "):
        read(bytes(content).split(b"\n")[:-1])


@given(lines=steps, num_unsealed=st.integers(0, 4), data=st.data())
def test_what_stands_before_sealed_lines_is_covered_by_them(lines, num_unsealed, data):
    lines.append({"stage": 2, "step": 1})
    written = sealed(lines, num_unsealed=min(num_unsealed, len(lines) - 1))
    kind, at = data.draw(st.sampled_from(["gone", "twice", "moved"])), data.draw(st.integers(0, len(lines) - 2))
    changed = [*written]
    if kind == "gone":
        del changed[at]
    elif kind == "twice":
        changed.insert(at, changed[at])
    else:
        changed.append(changed.pop(at))
    with pytest.raises(RunError, match=r"^here is damaged: "):
        read(changed)


@given(lines=steps, start=st.integers(0, 4))
def test_the_end_of_a_file_is_checked_without_its_beginning(lines, start):
    lines.append({"stage": 2, "step": 1})
    end = sealed(lines)[start:]
    assert repr(read(end, is_at_start=False)) == repr(lines[start:])
    if len(end) > 1:
        with pytest.raises(RunError, match="not the line that followed"):
            read([end[0], *end], is_at_start=False)


def test_lines_of_an_earlier_version_are_read():
    lines = [{"stage": 1, "step": 1, "loss": 1.0}, {"stage": 1, "step": 2, "loss": 0.5}]
    assert read([json.dumps(line).encode() for line in lines]) == lines


@pytest.mark.parametrize("name", ["seal", "sebl"])
def test_a_single_line_whose_seal_is_damaged_is_of_no_earlier_version(name):
    (line,) = sealed([{"stage": 1, "step": 1, "loss": 1.0}])
    assert read([line])
    changed = line.replace(b"seal", name.encode()) if name != "seal" else line[:-3] + b'x"}'
    with pytest.raises(RunError, match="it must end with its seal, but does not"):
        read([changed])


def test_a_line_without_a_seal_after_one_that_has_it_is_refused():
    with pytest.raises(RunError, match="it must end with its seal"):
        read([*sealed([{"stage": 1, "step": 1}]), b'{"stage": 1, "step": 2}'])
