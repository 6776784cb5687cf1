"""Every corpus module reads its layout in a fixed order and rejects, by name, what it cannot use."""

import pickle
import re
from collections import Counter
from pathlib import Path

import pytest
from corpustrees import read, real, write_audio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.corpora.base import CORPORA, corpus_reader
from shards.errors import AudioError, CorpusError
from shards.schema import SourceUtterance


@pytest.mark.parametrize("name", CORPORA)
def test_readers_are_complete(name: str) -> None:
    reader = corpus_reader(name)
    assert reader.name == name
    assert reader.title and reader.licence


def test_unknown_corpus_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"must be one of emodb, ravdess, iemocap, .* csv, demo or wds, got 'iemodb'"):
        corpus_reader("iemodb")


# EMO-DB


@pytest.fixture
def emodb(tmp_path):
    for name in ("16b10Wa", "03a01Fa", "08a02Ab"):
        write_audio(tmp_path / "wav" / f"{name}.wav")
    rows = "Nr.\tSatz\terkannt\tnatuerlich\n1\xa0\t03a01Fa.wav\t90,50\xa0\xa0\t75,00\xa0\n2\t03a01Ab.wav\t65\t35\n"
    (tmp_path / "erkennung.txt").write_text(rows, "latin-1")
    return tmp_path


def test_emodb_reads_names_and_the_listening_test(emodb) -> None:
    found, rejected = read("emodb", emodb)
    assert rejected == []
    assert [u.key for u in found] == ["emodb/03a01Fa", "emodb/08a02Ab", "emodb/16b10Wa"]
    assert found[0].model_dump(exclude_none=True) == {
        "key": "emodb/03a01Fa",
        "corpus": "emodb",
        "source": "03a01Fa.wav",
        "text": "Der Lappen liegt auf dem Eisschrank.",
        "language": "de",
        "emotion": "happiness",
        "gender": "male",
        "speaker": "03",
        "age": 31.0,
        "style": "scripted",
        "extra": {"recognised_percent": 90.5, "natural_percent": 75.0},
    }
    assert (found[1].emotion, found[1].gender, found[1].age, found[1].extra) == ("fear", "female", 34.0, {})
    assert (found[2].emotion, found[2].speaker) == ("anger", "16")


def test_emodb_accepts_the_wav_folder_itself(emodb) -> None:
    found, _ = read("emodb", emodb / "wav")
    assert len(found) == 3
    assert found[0].extra["recognised_percent"] == 90.5


def test_emodb_without_listening_test(emodb) -> None:
    (emodb / "erkennung.txt").unlink()
    assert all(u.extra == {} for u in read("emodb", emodb)[0])


@pytest.mark.parametrize("row", ["3\t03a01Fa.wav\tviele\t1,0", "3\t03a01Fa.wav\t90,5"])
def test_emodb_names_a_broken_line_of_the_listening_test(emodb, row) -> None:
    (emodb / "erkennung.txt").write_text(f"Nr.\tSatz\terkannt\tnatuerlich\n{row}\n", "latin-1")
    with pytest.raises(CorpusError, match=r"erkennung\.txt must hold a number, .* but line 2 is '3"):
        read("emodb", emodb)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("03a01Xa", "unknown label", "emotion 'X' is none of W, L, E, A, F, T, N"),
        ("99a01Wa", "unknown label", "speaker '99' is none of 03, 08"),
        ("03a03Wa", "unknown label", "text 'a03' is none of a01, a02"),
        ("noise", "unknown file name", "like 03a01Fa, got 'noise'"),
        ("03a01W", "unknown file name", "got '03a01W'"),
    ],
)
def test_emodb_rejects_unknown_names(emodb, name, kind, words) -> None:
    write_audio(emodb / "wav" / f"{name}.wav")
    found, (rejection,) = read("emodb", emodb)
    assert len(found) == 3
    assert rejection.kind == kind
    assert words in rejection.reason
    assert rejection.source.endswith(f"{name}.wav")


def test_emodb_knows_every_letter(tmp_path) -> None:
    for letter in "WLEAFTN":
        write_audio(tmp_path / f"03a01{letter}a.wav")
    assert {u.source[5]: u.emotion for u in read("emodb", tmp_path)[0]} == {
        "W": "anger",
        "L": "boredom",
        "E": "disgust",
        "A": "fear",
        "F": "happiness",
        "T": "sadness",
        "N": "neutral",
    }


@pytest.mark.parametrize("source", ["", "missing"])
def test_emodb_refuses_other_folders(tmp_path, source) -> None:
    with pytest.raises(CorpusError, match=f"not an EMO-DB folder: neither {tmp_path / source}/wav"):
        read("emodb", tmp_path / source)


def test_real_emodb() -> None:
    found, rejected = read("emodb", real("emodb"))
    assert rejected == []
    assert Counter(u.emotion for u in found) == {"anger": 72, "neutral": 52, "happiness": 44, "sadness": 35}
    assert len({u.speaker for u in found}) == 6
    assert all({"recognised_percent", "natural_percent"} == set(u.extra) for u in found)
    items = corpus_reader("emodb").read(real("emodb"), 0)
    seconds = sum(len(samples) / rate_hz for samples, rate_hz in (item.audio.load() for item in items))
    assert seconds / 60 == pytest.approx(9.5, abs=0.05)


# AN4


@pytest.fixture
def an4(tmp_path):
    for file_id in ("an4_clstk/fash/an251-fash-b", "an4_clstk/mblb/cen1-mblb-b", "an4test_clstk/fjlp/an416-fjlp-b"):
        write_audio(tmp_path / "wav" / f"{file_id}.sph", container="NIST")
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "an4_train.fileids").write_text("an4_clstk/mblb/cen1-mblb-b\nan4_clstk/fash/an251-fash-b\n")
    (etc / "an4_train.transcription").write_text("<s> G A R Y </s> (cen1-mblb-b)\n<s> YES </s> (an251-fash-b)\n")
    (etc / "an4_test.fileids").write_text("\nan4test_clstk/fjlp/an416-fjlp-b\n")
    (etc / "an4_test.transcription").write_text("\nENTER NINE (an416-fjlp-b)\n")
    return tmp_path


def test_an4_reads_transcripts_and_splits(an4) -> None:
    found, rejected = read("an4", an4)
    assert rejected == []
    assert [(u.key, u.text, u.split, u.speaker, u.gender) for u in found] == [
        ("an4/fash/an251-fash-b", "YES", "train", "fash", "female"),
        ("an4/mblb/cen1-mblb-b", "G A R Y", "train", "mblb", "male"),
        ("an4/fjlp/an416-fjlp-b", "ENTER NINE", "test", "fjlp", "female"),
    ]
    assert {(u.language, u.emotion, u.style) for u in found} == {("en", None, None)}
    assert found[0].source == "an4_clstk/fash/an251-fash-b.sph"
    samples, rate_hz = next(corpus_reader("an4").read(an4, 0)).audio.load()
    assert (len(samples), rate_hz) == (1600, 16_000)


def test_an4_rejects_a_row_without_audio(an4) -> None:
    (an4 / "wav" / "an4_clstk" / "fash" / "an251-fash-b.sph").unlink()
    found, (rejection,) = read("an4", an4)
    assert len(found) == 2
    assert (rejection.kind, rejection.source) == ("row without audio", "an4_train.fileids")
    assert "row an4_clstk/fash/an251-fash-b has no file" in rejection.reason


def test_an4_audio_in_no_list_is_an_utterance_without_words(an4) -> None:
    write_audio(an4 / "wav" / "an4test_clstk" / "fcaw" / "an406-fcaw-b.sph", container="NIST")
    found, rejected = read("an4", an4)
    assert rejected == []
    assert [(u.text, u.split, u.speaker, u.gender) for u in found][3:] == [(None, "test", "fcaw", "female")]


def test_an4_rejects_audio_without_a_transcript(an4) -> None:
    (an4 / "etc" / "an4_test.transcription").write_text("\n")
    found, (rejection,) = read("an4", an4)
    assert len(found) == 2
    assert "an4test_clstk/fjlp/an416-fjlp-b has no words in an4_test.transcription" in rejection.reason


def test_an4_rows_cannot_leave_the_corpus(an4) -> None:
    write_audio(an4 / "secret.sph", container="NIST")
    (an4 / "etc" / "an4_test.fileids").write_text("an4test_clstk/../secret\n../secret\n")
    _, rejected = read("an4", an4)
    assert [r.kind for r in rejected][:2] == ["unknown file name"] * 2


def test_an4_names_a_broken_transcript(an4) -> None:
    (an4 / "etc" / "an4_test.transcription").write_text("ENTER NINE\n")
    with pytest.raises(CorpusError, match=r"must hold words and an id in brackets per line, got 'ENTER NINE'"):
        read("an4", an4)


@pytest.mark.parametrize("missing", ["an4_test.fileids", "an4_train.transcription"])
def test_an4_refuses_other_folders(an4, missing) -> None:
    (an4 / "etc" / missing).unlink()
    with pytest.raises(CorpusError, match=rf"not an AN4 folder: .*{missing}"):
        read("an4", an4)


def test_real_an4() -> None:
    found, rejected = read("an4", real("an4"))
    assert rejected == []
    assert Counter(u.split for u in found) == {"train": 948, "test": 130}
    assert len({u.speaker for u in found}) == 84
    assert len({u.key for u in found}) == 1078
    # One test speaker's 13 files stand in neither list.
    assert Counter(u.speaker for u in found if u.text is None) == {"fcaw": 13}
    assert all("<" not in u.text and "(" not in u.text for u in found if u.text)
    assert Counter(u.gender for u in found) == {"male": 771, "female": 307}
    items = list(corpus_reader("an4").read(real("an4"), 0))
    samples, rate_hz = items[0].audio.load()
    assert (rate_hz, samples.ndim) == (16_000, 1)


# csv


def table(folder: Path, text: str, name: str = "mine.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def clips(tmp_path):
    for name in ("a.wav", "b.wav", "deep/Ses01F.impro01.wav"):
        write_audio(tmp_path / name, duration_s=1.0)
    return tmp_path


def test_csv_reads_every_column(clips) -> None:
    source = table(
        clips,
        "file,Emotion,gender,speaker,age,valence,style,split,text,language,emotion_votes,session,microphone,corpus\n"
        'a.wav,HAPPY,F,s1,"31,5",0.25,Scripted,dev,"Well, yes",en,"{""joy"": 1, ""happy"": 1, ""neutral"": 2}",2,AK,x\n'
        "b.wav,,,,,,,,,,,,,\n",
    )
    found, rejected = read("csv", source)
    assert rejected == []
    assert found[0].model_dump(exclude_none=True) == {
        "key": "mine/a",
        "corpus": "mine",
        "source": "a.wav",
        "emotion": "happiness",
        "gender": "female",
        "speaker": "s1",
        "age": 31.5,
        "valence": 0.25,
        "style": "scripted",
        "split": "dev",
        "text": "Well, yes",
        "language": "en",
        "emotion_votes": {"happiness": 2.0, "neutral": 2.0},
        "session": "2",
        "extra": {"microphone": "AK", "corpus": "x"},
    }
    assert found[1].model_dump(exclude_none=True) == {
        "key": "mine/b",
        "corpus": "mine",
        "source": "b.wav",
        "extra": {},
    }


@pytest.mark.parametrize(
    ("name", "separator", "encoding"),
    [("t.csv", ",", "utf-8-sig"), ("t.csv", ";", "latin-1"), ("t.tsv", "\t", "utf-8"), ("t.csv", "\t", "utf-8")],
)
def test_csv_dialects(clips, name, separator, encoding) -> None:
    rows = [("file", "text", "arousal"), ("a.wav", "könnte", '"0,5"')]
    source = table(clips, "\r\n".join(map(separator.join, rows)) + "\r\n", name, encoding)
    (utterance,), rejected = read("csv", source)
    assert rejected == []
    assert (utterance.text, utterance.arousal) == ("könnte", 0.5)


def test_csv_segments_have_their_own_keys_and_samples(clips) -> None:
    source = table(clips, "file,start,end\na.wav,0,0.25\na.wav,0.25,\na.wav,,0.5\na.wav,,\n")
    items = [item for item in corpus_reader("csv").read(source, 0) if isinstance(item, SourceUtterance)]
    assert [i.utterance.key for i in items] == ["mine/a/0-250", "mine/a/250-end", "mine/a/0-500", "mine/a"]
    assert [len(i.audio.load()[0]) for i in items] == [4000, 12_000, 8000, 16_000]
    assert pickle.loads(pickle.dumps(items[0])) == items[0]


def test_csv_segment_behind_the_end_is_an_audio_error(clips) -> None:
    item, *_ = corpus_reader("csv").read(table(clips, "file,start,end\na.wav,0.5,2\n"), 0)
    with pytest.raises(AudioError, match=r"a\.wav lasts 1\.000 s and the segment goes from 0\.5 to 2\.0 s"):
        item.audio.load()


def test_csv_keys(clips) -> None:
    write_audio(clips.parent / "outside.wav")
    source = table(
        clips,
        f"file,key\ndeep/Ses01F.impro01.wav,\n{clips / 'a.wav'},\n../outside.wav,\nb.wav,../../etc/passwd\n",
        "my set.csv",
    )
    found, rejected = read("csv", source)
    assert rejected == []
    assert {u.corpus for u in found} == {"my%20set"}
    keys = [u.key for u in found]
    assert keys[0] == "my%20set/deep/Ses01F%2Eimpro01"
    assert keys[1].startswith("my%20set/%2F/")
    assert keys[2:] == ["my%20set/%2E%2E/outside", "my%20set/%2E%2E%2F%2E%2E%2Fetc%2Fpasswd"]


def test_csv_dots_do_not_merge(clips) -> None:
    for name in ("Ses01F.impro01", "Ses01F.impro02"):
        write_audio(clips / name)
    found, _ = read("csv", table(clips, "file\nSes01F.impro01\nSes01F.impro02\n"))
    assert [u.key for u in found] == ["mine/Ses01F%2Eimpro01", "mine/Ses01F%2Eimpro02"]


@pytest.mark.parametrize(
    ("columns", "cells", "kind", "words"),
    [
        ("style", "read", "unknown label", "style must be one of improvised, scripted, got 'read'"),
        ("split", "holdout", "unknown label", "split must be one of train, dev, test, got 'holdout'"),
        ("emotion_votes", '"{""anger"": NaN}"', "bad number", "emotion_votes must be JSON"),
        ("emotion_votes", '"{""anger"": 1e999}"', "bad number", "emotion_votes must be JSON"),
        ("emotion_votes", '"{""anger"": -1}"', "bad number", "emotion_votes must be JSON"),
        ("emotion_votes", '"{""anger"": true}"', "bad number", "emotion_votes must be JSON"),
        ("emotion_votes", "anger 2", "bad number", "emotion_votes must be JSON .*got 'anger 2'"),
        ("age", "old", "bad number", "age must be a finite number, got 'old'"),
        ("valence", "1_0", "bad number", "valence must be a finite number, got '1_0'"),
        ("end", "inf", "bad number", "end must be a finite number"),
        ("start", "-1", "bad number", "0 <= start < end, got -1.0 and None"),
        ("start,end", "1,1", "bad number", "0 <= start < end, got 1.0 and 1.0"),
        ("end", "0", "bad number", "0 <= start < end, got None and 0.0"),
        ("key", "k" * 91, "bad key", "must have 1 to 90 bytes"),
        ("text", "too,many", "bad row", "the header's 2 cells, got 3"),
    ],
)
def test_csv_rejects_bad_rows(clips, columns, cells, kind, words) -> None:
    num_columns = columns.count(",") + 1
    source = table(clips, f"file,{columns}\na.wav{',' * num_columns}\n\nb.wav,{cells}\n")
    found, (rejection,) = read("csv", source)
    assert [u.source for u in found] == ["a.wav"]
    assert (rejection.source, rejection.kind) == ("mine.csv row 4", kind)
    assert re.search(words, rejection.reason), rejection.reason


@pytest.mark.parametrize("name", ["gone.wav", "deep", "x" * 300, '""'])
def test_csv_rejects_rows_without_audio(clips, name) -> None:
    _, (rejection,) = read("csv", table(clips, f"file,text\n{name},hello\n"))
    assert rejection.kind == "row without audio"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("take,emotion\na.wav,anger\n", "must have a column file, but its first row is take, emotion"),
        ("ta\x1bke,\x07\na.wav,anger\n", r"its first row is ta\\x1bke, \\x07; name"),
        ("path,audio\na.wav,a.wav\n", "must have one column file, but each of path, audio may be it"),
        ("", "must have a column file, but its first row is empty"),
        ("file,text,Text\na.wav,x,y\n", "must name each column once, but repeats text"),
        ('file,text\na.wav,"x, y"\nb.wav,"open\n', "must be a well-formed table, but its line 3 is not"),
    ],
)
def test_csv_refuses_unusable_tables(clips, text, words) -> None:
    with pytest.raises(CorpusError, match=words):
        read("csv", table(clips, text))


def test_csv_ignores_nameless_columns(clips) -> None:
    (utterance,), rejected = read("csv", table(clips, ",file,emotion,\n0,a.wav,anger,\n"))
    assert rejected == []
    assert (utterance.emotion, utterance.extra) == ("anger", {})


def test_csv_needs_a_file(tmp_path) -> None:
    with pytest.raises(CorpusError, match="must be a table"):
        read("csv", tmp_path)
    with pytest.raises(CorpusError, match="must be a table"):
        read("csv", None)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["emotion", "age", "emotion_votes", "start", "key", "file", "split"]),
    st.text(st.characters(exclude_characters='",\r\n', exclude_categories=["Cs"]), max_size=20),
)
def test_csv_never_fails_on_a_cell(clips, column, cell) -> None:
    header = "file" if column == "file" else f"file,{column}"
    source = table(clips, f"{header}\n{'' if column == 'file' else 'a.wav,'}{cell}\n")
    found, rejected = read("csv", source)
    assert len(found) + len(rejected) <= 1


# demo


@pytest.mark.parametrize("source", [None, Path("-")])
def test_demo_is_made_not_read(source) -> None:
    pytest.importorskip("espeakng_loader", reason="eSpeak NG comes with the extra demo")
    found, rejected = read("demo", source)
    assert (len(found), rejected) == (600, [])


def test_demo_takes_no_source(tmp_path) -> None:
    with pytest.raises(CorpusError, match=rf"SOURCE must be -, got {tmp_path}"):
        read("demo", tmp_path)
