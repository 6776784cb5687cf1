"""A trained model's answers for audio files: any format, rate, length and number of channels.

A recording that is longer than a window is heard window by window, so that memory does not grow with its length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metaser.errors import ConfigError
from metaser.given import given_text
from metaser.inputs import make_inputs
from metaser.memory import refusing_lack_of_memory
from metaser.model.network import MetaSERNetwork, load_network
from metaser.tasks.kinds import kind_of
from metaser.tasks.spec import TaskSpec
from metaser.windows import JoinedOutput, WindowOutput, choose_windows, join_windows
from shards.batch import as_batch
from shards.corpora.said import SIDES
from shards.errors import AudioError
from shards.schema import RATE_HZ
from shards.shown import shown
from shards.track import Track
from shards.windows import Window, Windowing, is_silent

SHORTEST_S = 0.1
_MAX_DIGITS = 9
"""Of a channel's number."""

ChannelChoice = int | Literal["mix", "each"]


@dataclass(frozen=True)
class WindowPrediction:
    """What the model says of one window; no tasks if it is silent."""

    start_s: float
    end_s: float
    tasks: dict[str, dict[str, Any]]

    @property
    def is_silent(self) -> bool:
        """Whether there was nothing to hear."""
        return not self.tasks


@dataclass(frozen=True)
class FilePrediction:
    """What the model says of one file, or of one channel of it; `error` and no tasks if it cannot be used."""

    file: str
    duration_s: float | None
    tasks: dict[str, dict[str, Any]]
    """By task what its kind's `answer` returns: `label` and `probabilities`, `text`, the fields' values, `frames`."""
    error: str | None = None
    channel: int | Literal["mix"] | None = None
    """Counted from 1; `mix` is the mean of several."""
    num_channels: int | None = None
    windows: tuple[WindowPrediction, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences about what was done with the file that the answer does not show."""
    text: str | None = None
    """What the model was told is said."""


def load_model(path: str | Path) -> MetaSERNetwork:
    """Return the model in an exported folder, or the best model of a run's folder, ready to predict.

    Raises:
        ModelError: if there is none, or it is damaged.
    """
    model = load_network(path, setting="MODEL")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model


def choose_channel(text: str) -> ChannelChoice:
    """Return what `--channel` says in any case: a number from 1, `left`, `right`, `each` or `mix`.

    Raises:
        ConfigError: if it says none of these.
    """
    lowered = text.strip().lower()
    if lowered in ("mix", "each"):
        return lowered  # type: ignore[return-value]
    number = str(SIDES.get(lowered, lowered))
    if number.isascii() and number.isdigit() and len(number) <= _MAX_DIGITS and int(number) > 0:
        return int(number)
    raise ConfigError(f"--channel must be a number from 1, left, right, each or mix, got {text!r}; correct it")


def predict_files(
    model: MetaSERNetwork,
    files: Sequence[str],
    *,
    windowing: Windowing | None = None,
    channel: ChannelChoice = "mix",
    texts: Sequence[str] = (),
) -> Iterator[FilePrediction]:
    """Return the prediction for each file (with `each`: for each channel of it), made one after another.

    A file that cannot be used, or whose windows do not fit the memory, has an `error` and never ends the others.

    Args:
        model: Who answers.
        files: Audio files.
        windowing: How long recordings are cut; None cuts them as `choose_windows` does.
        channel: What is heard of several channels.
        texts: What is said in each file, for a model that reads; every window and channel of the file comes with all of
            it. Without any, no file has a text.

    Raises:
        ConfigError: if there are texts, but not one for each file, or the model reads none.
    """
    if texts and not model.reads_text:
        raise ConfigError(
            f"--text is for models that read, but this one only hears, got {shown(texts[0], 80)!r}; leave it out"
        )
    if texts and len(texts) != len(files):
        raise ConfigError(
            f"--text must be given once for each file, in their order, got {len(texts)} for {len(files)}; correct it"
        )
    windowing = choose_windows(model) if windowing is None else windowing
    recordings = [_Recording(model, file, text) for file, text in zip_longest(files, texts)]
    return (prediction for recording in recordings for prediction in _predict_recording(recording, windowing, channel))


class _Recording(NamedTuple):
    """A file, what is said in it, and who is asked about it."""

    model: MetaSERNetwork
    file: str
    text: str | None


def _predict_recording(recording: _Recording, windowing: Windowing, channel: ChannelChoice) -> Iterator[FilePrediction]:
    file = recording.file
    try:
        with _memory_for(file, windowing):
            track = Track(Path(file), 1 if channel == "each" else None if channel == "mix" else channel)
    except AudioError as error:
        yield FilePrediction(file, None, {}, error=str(error))
        return
    for number in range(1, track.num_channels + 1) if channel == "each" else [channel]:
        try:
            with _memory_for(file, windowing):
                prediction = _predict_track(recording, track, windowing, None if number == "mix" else number)
        except AudioError as error:
            prediction = FilePrediction(file, None, {}, error=str(error), channel=number)
        yield prediction


def _memory_for(file: str, windowing: Windowing) -> AbstractContextManager[None]:
    """Turn a lack of memory into an error of the file."""
    return refusing_lack_of_memory(
        lambda: AudioError(
            f"a window must fit the memory, but {file} in windows of {windowing.length / RATE_HZ:g} s needs more than "
            "there is; give a shorter --window"
        )
    )


class _HeardWindow(NamedTuple):
    """One window's sound in the model's words; no tasks and no logits if it is silent."""

    start: int
    end: int
    tasks: dict[str, dict[str, Any]]
    logits: dict[str, Tensor] | None
    """Without a batch dimension, condensed by each task's kind."""


def _predict_track(recording: _Recording, track: Track, windowing: Windowing, channel: int | None) -> FilePrediction:
    model, file, text = recording
    mono_T = track.mono(channel)
    if len(mono_T) < SHORTEST_S * RATE_HZ:
        raise AudioError(f"{file} must be at least {SHORTEST_S:g} s long, got {len(mono_T) / RATE_HZ:.3f} s")
    if channel is None and track.channels.cancel:
        raise AudioError(
            f"channels must not cancel each other when they are mixed, but those of {file} do; choose one of its "
            f"{track.num_channels} with --channel 1 or each"
        )
    if track.channels.is_silent(channel):
        raise _silence(file, channel)
    windows = windowing.cut(len(mono_T))
    heard = [_predict_window(recording, window.start, mono_T[window.start : window.end]) for window in windows]
    if all(window.logits is None for window in heard):
        raise _silence(file, channel)
    return FilePrediction(
        file,
        heard[-1].end / RATE_HZ,
        heard[0].tasks if len(heard) == 1 else _joined_tasks(model, heard, windows),
        channel="mix" if channel is None and track.num_channels > 1 else channel,
        num_channels=track.num_channels,
        windows=tuple(WindowPrediction(start / RATE_HZ, end / RATE_HZ, tasks) for start, end, tasks, _ in heard),
        notes=tuple(_notes(recording, track, channel, heard)),
        text=text,
    )


def _silence(file: str, channel: int | None) -> AudioError:
    what = file if channel is None else f"channel {channel} of {file}"
    return AudioError(
        f"audio must hold sound, but {what} is silent from end to end; "
        f"{'record it again' if channel is None else 'choose another --channel'}"
    )


def _predict_window(recording: _Recording, start: int, samples_T: np.ndarray) -> _HeardWindow:
    model, file, text = recording
    end = start + len(samples_T)
    if is_silent(samples_T):
        return _HeardWindow(start, end, {}, None)
    batch = as_batch(np.zeros(1), np.ascontiguousarray(samples_T)[None], [len(samples_T)], [True])
    with torch.inference_mode():
        output = model(*make_inputs(batch, model.device, given_text(model, text)))
    logits = {name: values.cpu() for name, values in output.logits.items()}
    for name, values in logits.items():
        if not bool(torch.isfinite(values).all()):
            raise AudioError(
                f"a model must answer in numbers, but for {file} its {name} is NaN or infinite from "
                f"{start / RATE_HZ:g} s on; its weights or the samples are too large to compute with: correct the "
                "file, or export the model again"
            )
    num_frames = dict.fromkeys(logits, int(output.num_frames_B[0]))
    tasks = _answers(model.task_specs, JoinedOutput(logits, num_frames))
    condensed = {spec.name: kind_of(spec).condense(logits[spec.name])[0] for spec in model.task_specs}
    return _HeardWindow(start, end, tasks, condensed)


def _joined_tasks(
    model: MetaSERNetwork, heard: Sequence[_HeardWindow], windows: Sequence[Window]
) -> dict[str, dict[str, Any]]:
    outputs = [WindowOutput(window, part.logits) for window, part in zip(windows, heard, strict=True)]
    return _answers(model.task_specs, join_windows(model.task_specs, outputs, hop_samples=model.encoder.hop_samples))


def _answers(specs: Sequence[TaskSpec], output: JoinedOutput) -> dict[str, dict[str, Any]]:
    answers = {}
    for spec in specs:
        (said,) = kind_of(spec).predictions(spec, output.logits[spec.name], output.frames_of(spec.name))
        answers[spec.name] = kind_of(spec).answer(spec, *said)
    return answers


def _notes(recording: _Recording, track: Track, channel: int | None, heard: Sequence[_HeardWindow]) -> Iterator[str]:
    file, channels = recording.file, track.channels
    if recording.text is None and recording.model.reads_text:
        yield f"the model reads what is said, but was given no text for {file}; --text gives it"
    if any(not view.reads_text for view in recording.model.given_views.values()):
        yield f"the model was trained with numbers beside the sound, but has none for {file}, which count as missing"
    if channel is None and 0 < len(channels.quiet) < channels.num:
        yield (
            f"{file} has {channels.num} channels, which were mixed although channel "
            f"{', '.join(map(str, channels.quiet))} is silent; --channel picks one"
        )
    elif channel is None and not channels.are_alike:
        yield f"{file} has {channels.num} channels, which were mixed; --channel 1, 2 or each keeps them apart"
    num_silent = sum(window.logits is None for window in heard)
    if num_silent:
        yield f"{num_silent} of the {len(heard)} windows of {file} are silent and have no answer"
