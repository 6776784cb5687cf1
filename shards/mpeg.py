"""MPEG audio (MP3, MP2) as what it is, a row of frames: they are counted, whatever a header says of their number."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from shards.errors import AudioError
from shards.limits import check_num_joined
from shards.stream import Stream
from shards.tags import skip_tags

_KBIT_PER_S = {
    # (MPEG 1, layer), by the header's index; 0 is the free format, which states no size.
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_ROOMY_BITRATE = 8
"""Index of a bit rate whose frames have room for a Xing header at every sample rate."""
_VBRI_OFFSET = 36
_MAX_JUNK_BYTES = 4096


@dataclass(frozen=True)
class _Frame:
    """What a frame's header says."""

    num_bytes: int
    num_samples: int
    form: tuple[int, int, int, bool]
    """Version, layer, rate in Hz, whether mono: the same in all frames of a stream."""
    info_offset: int
    """Where a Xing header stands, if the frame holds one."""

    @property
    def layer(self) -> int:
        """1 to 3."""
        return self.form[1]


@lru_cache(maxsize=4096)
def _frame(header: bytes) -> _Frame | None:
    """Return what the four bytes say, None if they are no frame's header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = (header[1] >> 3) & 3, 4 - ((header[1] >> 1) & 3)
    bitrate, rate = header[2] >> 4, (header[2] >> 2) & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    is_first, is_mono, padding = version == 3, header[3] >> 6 == 3, (header[2] >> 1) & 1
    rate_hz, bit_per_s = _RATES_HZ[version][rate], 1000 * _KBIT_PER_S[is_first, layer][bitrate]
    num_samples = 384 if layer == 1 else 1152 if layer == 2 or is_first else 576
    num_bytes = (
        (12 * bit_per_s // rate_hz + padding) * 4 if layer == 1 else num_samples // 8 * bit_per_s // rate_hz + padding
    )
    side_bytes = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    return _Frame(num_bytes, num_samples, (version, layer, rate_hz, is_mono), 4 + side_bytes)


def is_mpeg(data: bytes) -> bool:
    """Return whether `data` begins with two frames, or with the only one it has."""
    first = _frame(data[:4])
    if first is None:
        return False
    following = data[first.num_bytes : first.num_bytes + 4]
    if len(following) < 4:
        return True
    second = _frame(following)
    return (second is not None and second.form == first.form) or skip_tags(data, first.num_bytes) > first.num_bytes


@dataclass
class _Stream:
    """The frames behind one info header, or behind none."""

    header: bytes
    info: bytes | None
    num_frames: int = 0
    runs: list[list[int]] = field(default_factory=list)
    """Where its frames lie: a start and an end for each row without tags between."""

    def add(self, start: int, end: int) -> None:
        """Take in the frame at these bytes."""
        self.num_frames += 1
        if self.runs and self.runs[-1][1] == start:
            self.runs[-1][1] = end
        else:
            self.runs.append([start, end])

    def counted(self, data: bytes, form: _Frame, name: str) -> Stream:
        """Return the stream behind an info header that states its frames.

        Layers I and II have no such header, so that libsndfile estimates their length from that of the file: some
        frames more at the end make the estimate too high.

        Raises:
            AudioError: if its own header promises more.
        """
        stated = None if self.info is None else _stated_frames(self.info, form)
        # Some encoders count the header's own frame.
        if stated is not None and stated > self.num_frames + 1:
            raise AudioError(
                f"audio must be whole, but {name} is truncated: its header promises {stated} MPEG frames and "
                f"{self.num_frames} are there; copy it again"
            )
        frames = b"".join(data[start:end] for start, end in self.runs)
        if form.layer != 3:
            num_samples = self.num_frames * form.num_samples
            filling = frames[: form.num_bytes] * (4 + self.num_frames // 8)
            return Stream(frames + filling, num_samples, num_samples)
        if self.info is None or stated is None:
            return Stream(_info_frame(self.header, self.num_frames) + frames)
        position = form.info_offset + 8
        return Stream(self.info[:position] + self.num_frames.to_bytes(4, "big") + self.info[position + 4 :] + frames)


def streams(data: bytes, name: str) -> list[Stream]:
    """Return the streams that are joined in `data`, most often one, each with a header that states its frames rightly.

    libsndfile believes the number in a Xing header, and guesses where there is none. An encoder's own header stays
    where it is right, because it also says how much silence the encoder added.

    Raises:
        AudioError: if frames are cut, missing, or of several forms.
    """
    first = _frame(data[:4])
    if first is None:
        raise AudioError(f"audio must be readable and whole, but {name} does not begin with an MPEG frame; convert it")
    found: list[_Stream] = []
    position = 0
    while position < len(data):
        frame = _frame(data[position : position + 4])
        if frame is None:
            position = _behind_junk(data, position, first, name)
            continue
        if frame.form != first.form:
            raise AudioError(
                f"audio must have one rate and number of channels, but the MPEG frames of {name} change theirs at byte "
                f"{position}; split it"
            )
        end = position + frame.num_bytes
        if end > len(data):
            raise AudioError(
                f"audio must be whole, but {name} is truncated: its last MPEG frame has {len(data) - position} of "
                f"{frame.num_bytes} bytes; copy it again"
            )
        info = data[position:end] if _is_info(data, position, frame) else None
        if info is not None or not found:
            found.append(_Stream(data[:4], info))
            check_num_joined(len(found), name)
        if info is None:
            found[-1].add(position, end)
        position = end
    return [stream.counted(data, first, name) for stream in found if stream.num_frames]


def _behind_junk(data: bytes, position: int, first: _Frame, name: str) -> int:
    """Return where frames go on behind tags or padding, or the end of `data` behind a little junk.

    Raises:
        AudioError: if something else stands among the frames.
    """
    following = skip_tags(data, position)
    if following > position:
        return following
    is_last = len(data) - position <= _MAX_JUNK_BYTES and not any(
        frame is not None and frame.form == first.form
        for frame in (_frame(data[start : start + 4]) for start in range(position + 1, len(data) - 3))
    )
    if is_last:
        return len(data)
    raise AudioError(
        f"audio must be whole, but {name} has bytes at {position} of {len(data)} that are no MPEG frame; copy it again"
    )


def _is_info(data: bytes, position: int, frame: _Frame) -> bool:
    if frame.layer != 3:
        return False
    start = position + frame.info_offset
    return data[start : start + 4] in (b"Xing", b"Info") or data.startswith(b"VBRI", position + _VBRI_OFFSET)


def _stated_frames(info: bytes, form: _Frame) -> int | None:
    """Return the number of frames that an info frame states."""
    flags = info[form.info_offset + 7 : form.info_offset + 8]
    if info[form.info_offset :][:4] not in (b"Xing", b"Info") or not flags or not flags[0] & 1:
        return None
    return int.from_bytes(info[form.info_offset + 8 : form.info_offset + 12], "big")


def _info_frame(header: bytes, num_frames: int) -> bytes:
    """Return a silent frame that states the number of the frames behind it."""
    roomy = bytes([header[0], header[1] | 1, (_ROOMY_BITRATE << 4) | (header[2] & 0x0C), header[3]])
    frame = _frame(roomy)
    if frame is None:
        return b""
    info = bytearray(frame.num_bytes)
    info[:4] = roomy
    info[frame.info_offset : frame.info_offset + 12] = b"Xing" + (1).to_bytes(4, "big") + num_frames.to_bytes(4, "big")
    return bytes(info)
