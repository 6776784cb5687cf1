"""The embedded corpus repeats for a seed in any order and process, and its emotions overlap but differ."""

import collections
import hashlib
import itertools
import multiprocessing
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.corpora.demo import SCRIPTED_SENTENCES, VOICES, draw_prosody, draw_text, utterances
from shards.corpora.espeak import DemoSpeech, Prosody, shape
from shards.errors import AudioError
from shards.labels import FOUR_EMOTIONS
from shards.schema import SourceUtterance, is_key

seeds = st.integers(0, 2**63)
PLAIN = Prosody(50, 50, 175, 100, 0, 0, 0)


@pytest.fixture(scope="module")
def corpus() -> list[SourceUtterance]:
    pytest.importorskip("espeakng_loader", reason="eSpeak NG comes with the extra demo")
    return list(utterances(0))


def digest(item: SourceUtterance) -> str:
    samples, rate_hz = item.audio.load()
    assert rate_hz == 22_050
    return hashlib.sha256(samples.tobytes()).hexdigest()


def test_counts(corpus) -> None:
    fields = [item.utterance for item in corpus]
    assert len({u.key for u in fields}) == 600
    assert all(is_key(u.key) for u in fields)
    assert collections.Counter(u.emotion for u in fields) == dict.fromkeys(FOUR_EMOTIONS, 150)
    assert len({u.speaker for u in fields}) == 12
    assert collections.Counter(u.gender for u in fields) == {"female": 300, "male": 300}
    assert {u.style for u in fields} == {"scripted", "improvised"}
    for speaker, group in itertools.groupby(fields, lambda u: u.speaker):
        styles = collections.Counter((u.emotion, u.style) for u in group)
        assert min(styles.values()) >= 6, speaker


def test_splits_share_no_speaker_and_test_has_both_genders() -> None:
    assert sorted(voice.gender for voice in VOICES if voice.split == "test") == ["female", "male"]
    assert sum(voice.split == "dev" for voice in VOICES) == 1
    assert len({voice.name for voice in VOICES}) == len(VOICES)


def test_transcripts_are_plain_words(corpus) -> None:
    vocabulary = {word for item in corpus for word in item.utterance.text.split(" ")}
    assert 100 <= len(vocabulary) <= 130
    assert all(word.isascii() and word.isalpha() and word.islower() for word in vocabulary)
    assert all(item.utterance.text == item.audio.text for item in corpus)


def test_metadata(corpus) -> None:
    first = corpus[0].utterance
    assert (first.key, first.source) == ("demo/f1-00", "f1-00")
    assert (first.corpus, first.language, first.age, first.split) == ("demo", "en", 24, "train")
    assert first.style == "scripted" and first.text in SCRIPTED_SENTENCES


def test_bytes_repeat_in_any_order_and_process(corpus) -> None:
    some = corpus[::41]
    here = [digest(item) for item in some]
    assert len(set(here)) == len(some)
    assert [digest(item) for item in reversed(some)] == here[::-1]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(digest, some) == here


def test_seed_changes_words_and_prosody_but_not_labels(corpus) -> None:
    other = list(utterances(1))
    assert [item.utterance.key for item in other] == [item.utterance.key for item in corpus]
    assert [item.utterance.emotion for item in other] == [item.utterance.emotion for item in corpus]
    assert all(a.audio != b.audio for a, b in zip(corpus, other, strict=True))
    assert [item.audio for item in utterances(1)] == [item.audio for item in other]


def test_durations_and_levels(corpus) -> None:
    durations_s = []
    for item in corpus[::7]:
        samples, rate_hz = item.audio.load()
        assert samples.dtype == np.float32 and samples.ndim == 1
        assert 0.02 < np.abs(samples).max() < 1
        durations_s.append(len(samples) / rate_hz)
    assert min(durations_s) >= 1.0 and max(durations_s) <= 4.0
    assert 1.6 < np.mean(durations_s) < 2.4


@pytest.mark.parametrize("voice", VOICES, ids=lambda voice: voice.name)
def test_extreme_durations_stay_within_one_and_four_seconds(corpus, voice) -> None:
    fastest, slowest = Prosody(60, 50, 215, 90, 0, 0, -5), Prosody(33, 16, 138, 50, 2, 0, -5)
    quick = DemoSpeech(voice.name, "so i saw the red cup", fastest, 1).load()[0]
    slow = DemoSpeech(voice.name, " ".join(["mountain"] * 6), slowest, 1).load()[0]
    assert 22_050 <= len(quick) < len(slow) <= 4 * 22_050


def test_speech_is_picklable_and_its_noise_is_seeded(corpus) -> None:
    # Only voices with breath have noise, f2 among them.
    speech = next(item.audio for item in corpus if item.utterance.speaker == "f2")
    assert pickle.loads(pickle.dumps(speech)) == speech
    other = replace(speech, noise_seed=speech.noise_seed ^ 1)
    assert not np.array_equal(speech.load()[0], other.load()[0])


def test_prosody_reaches_the_voice(corpus) -> None:
    def pitch_hz(prosody: Prosody) -> float:
        samples, rate_hz = DemoSpeech("m1", "the red door is open again", prosody, 1).load()
        correlation = np.fft.irfft(np.abs(np.fft.rfft(samples, 2 * len(samples))) ** 2)
        shortest = rate_hz // 300
        return rate_hz / (shortest + correlation[shortest : rate_hz // 50].argmax())

    assert pitch_hz(replace(PLAIN, pitch=80)) > 1.2 * pitch_hz(PLAIN)

    def num_samples(prosody: Prosody) -> int:
        return len(DemoSpeech("m1", "the red door is open again", prosody, 1).load()[0])

    assert num_samples(replace(PLAIN, rate_wpm=140)) > 1.15 * num_samples(PLAIN)
    assert num_samples(replace(PLAIN, word_gap=3)) > num_samples(PLAIN)
    loud, soft = (DemoSpeech("m1", "no", replace(PLAIN, volume=volume), 1).load()[0].std() for volume in (100, 50))
    assert loud > 1.5 * soft


def test_a_failing_child_is_an_audio_error(corpus) -> None:
    with pytest.raises(AudioError, match=r"must speak .* as 'f1', but its process ended with code 1 after 0 bytes"):
        DemoSpeech("f1", "no bytes for \ud800", PLAIN, 1).load()


def test_missing_package_is_one_sentence() -> None:
    program = (
        "import sys; sys.modules['espeakng_loader'] = None\n"
        "from shards.corpora.demo import utterances\n"
        "from shards.errors import CorpusError\n"
        "try: next(utterances(0))\n"
        "except CorpusError as error: print(error)\n"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "espeakng-loader is not installed" in output
    assert 'pip install "metaser[demo]"' in output


def test_long_installation_paths_work(corpus, tmp_path) -> None:
    import espeakng_loader

    link = tmp_path / ("x" * 200)
    link.symlink_to(espeakng_loader.get_data_path())
    program = (
        f"import espeakng_loader; espeakng_loader.get_data_path = lambda: {str(link)!r}\n"
        "from shards.corpora.demo import utterances\n"
        "print(len(next(utterances(0)).audio.load()[0]))\n"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(output) == len(corpus[0].audio.load()[0])


def test_torch_is_not_imported() -> None:
    program = "import sys, shards.corpora.demo, shards.corpora.espeak, shards.audio; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"


@given(seeds, st.sampled_from(FOUR_EMOTIONS), st.sampled_from(VOICES))
def test_prosody_stays_in_the_library_s_ranges(seed, emotion, voice) -> None:
    prosody = draw_prosody(emotion, voice, np.random.default_rng(seed))
    assert prosody == draw_prosody(emotion, voice, np.random.default_rng(seed))
    assert 0 <= prosody.pitch <= 99 and 0 <= prosody.pitch_range <= 99
    assert 80 <= prosody.rate_wpm <= 450 and 0 < prosody.volume <= 100 and prosody.word_gap >= 0
    assert abs(prosody.effort) < 1 and prosody.gain_db <= 0


def test_emotions_differ_in_the_mean_and_overlap() -> None:
    rng = np.random.default_rng(0)
    drawn = {emotion: [draw_prosody(emotion, VOICES[0], rng) for _ in range(400)] for emotion in FOUR_EMOTIONS}
    pitch = {emotion: np.array([p.pitch for p in drawn[emotion]]) for emotion in FOUR_EMOTIONS}
    rate = {emotion: np.array([p.rate_wpm for p in drawn[emotion]]) for emotion in FOUR_EMOTIONS}
    for one, other in itertools.combinations(FOUR_EMOTIONS, 2):
        assert abs(pitch[one].mean() - pitch[other].mean()) > 5
    assert pitch["neutral"].max() > pitch["anger"].mean()
    assert rate["sadness"].max() > rate["neutral"].mean() > rate["sadness"].mean()


def test_voice_shifts_pitch_only() -> None:
    low, high = (
        draw_prosody("neutral", replace(VOICES[0], pitch=pitch), np.random.default_rng(3)) for pitch in (-5.0, 5.0)
    )
    assert high == replace(low, pitch=pytest.approx(low.pitch + 10))


@given(seeds)
def test_texts_follow_their_style(seed) -> None:
    assert draw_text("scripted", np.random.default_rng(seed)) in SCRIPTED_SENTENCES
    improvised = draw_text("improvised", np.random.default_rng(seed))
    assert improvised not in SCRIPTED_SENTENCES
    assert 6 <= len(improvised.split()) <= 9


@given(st.floats(-0.7, 0.7), st.floats(-12, 0))
def test_shape_never_clips(effort, gain_db) -> None:
    extreme = np.array([32_767, -32_768] * 8 + [32_767] * 8, dtype=np.int16)
    assert np.abs(shape(extreme, replace(PLAIN, effort=effort, gain_db=gain_db))).max() <= 1 + 1e-6


def test_effort_tilts_the_spectrum_and_gain_scales() -> None:
    pcm = (np.random.default_rng(0).normal(size=8192) * 1000).astype(np.int16)

    def high_share(effort: float) -> float:
        power = np.abs(np.fft.rfft(shape(pcm, replace(PLAIN, effort=effort)))) ** 2
        return power[len(power) // 2 :].sum() / power.sum()

    assert high_share(-0.5) < 0.3 < high_share(0.0) < 0.7 < high_share(0.5)
    np.testing.assert_allclose(shape(pcm, PLAIN), pcm / 32_768, rtol=1e-6)
    np.testing.assert_allclose(shape(pcm, replace(PLAIN, gain_db=-20)), pcm / 327_680, rtol=1e-5)
