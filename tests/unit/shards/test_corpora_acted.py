"""RAVDESS, CREMA-D and nEMO: actors say given sentences, and names or one table tell the rest."""

import pytest
from corpustrees import crema_d, kinds, nemo, ravdess, read, write, write_audio

from shards.errors import CorpusError

# RAVDESS


def test_ravdess_reads_the_seven_parts_of_a_name(tmp_path) -> None:
    found, rejected = read("ravdess", ravdess(tmp_path))
    assert rejected == []
    assert [u.key for u in found][:2] == ["ravdess/03-01-01-01-01-01-03", "ravdess/03-01-05-02-02-02-03"]
    assert found[1].model_dump(exclude_none=True) == {
        "key": "ravdess/03-01-05-02-02-02-03",
        "corpus": "ravdess",
        "source": "Actor_03/03-01-05-02-02-02-03.wav",
        "text": "Dogs are sitting by the door.",
        "language": "en",
        "emotion": "anger",
        "gender": "male",
        "speaker": "03",
        "style": "scripted",
        "intensity": "strong",
        "extra": {"vocal_channel": "speech", "repetition": 2},
    }
    song = found[-1]
    assert (song.emotion, song.gender, song.intensity, song.text) == (
        "calm",
        "female",
        "normal",
        "Kids are talking by the door.",
    )
    assert song.extra["vocal_channel"] == "song"


def test_ravdess_knows_every_emotion_and_actor(tmp_path) -> None:
    for emotion in range(1, 9):
        write_audio(tmp_path / "Actor_24" / f"03-01-{emotion:02d}-01-01-01-24.wav")
    for actor in range(1, 24):
        write_audio(tmp_path / f"Actor_{actor:02d}" / f"03-01-01-01-01-01-{actor:02d}.wav")
    found, rejected = read("ravdess", tmp_path)
    assert rejected == []
    assert [u.emotion for u in found if u.speaker == "24"] == [
        "neutral",
        "calm",
        "happiness",
        "sadness",
        "anger",
        "fear",
        "disgust",
        "surprise",
    ]
    assert {u.speaker for u in found if u.gender == "male"} == {f"{actor:02d}" for actor in range(1, 25, 2)}


def test_ravdess_archives_may_lie_side_by_side(tmp_path) -> None:
    ravdess(tmp_path / "Audio_Speech_Actors_01-24")
    write_audio(tmp_path / "Audio_Song_Actors_01-24" / "Actor_04" / "03-02-03-01-01-01-04.wav")
    found, rejected = read("ravdess", tmp_path)
    assert rejected == []
    assert len(found) == 6
    assert found[0].source == "Audio_Song_Actors_01-24/Actor_04/03-02-03-01-01-01-04.wav"


@pytest.mark.parametrize(
    ("place", "kind", "words"),
    [
        ("Actor_04/03-01-09-01-01-01-04", "unknown label", "emotion '09' is none of 01, 02"),
        ("Actor_04/01-01-01-01-01-01-04", "unknown label", "modality '01' is none of 03"),
        ("Actor_04/03-03-01-01-03-01-04", "unknown label", "vocal channel '03' is none of 01, 02; statement '03'"),
        ("Actor_04/03-01-01-01-01-01-25", "unknown label", "actor '25' is none of 01"),
        ("Actor_04/03-01-02-01-01-01-03", "wrong folder", "a file of actor 03 must not lie in Actor_04"),
        ("Actor_04/03-01-01-01-01-01", "unknown file name", "like 03-01-06-01-02-01-12, got '03-01-01-01-01-01'"),
        ("Actor_04/٠٣-01-01-01-01-01-04", "unknown file name", "7 numbers"),
        ("Actor_x/03-01-02-01-01-01-04", "wrong folder", "must not lie in Actor_x"),
    ],
)
def test_ravdess_rejects_names_that_cannot_be(tmp_path, place, kind, words) -> None:
    write_audio(ravdess(tmp_path) / f"{place}.wav")
    found, (rejection,) = read("ravdess", tmp_path)
    assert len(found) == 5
    assert (rejection.kind, rejection.source) == (kind, str(tmp_path / f"{place}.wav"))
    assert words in rejection.reason


# CREMA-D


def test_crema_d_reads_names_and_the_table_of_actors(tmp_path) -> None:
    found, rejected = read("crema-d", crema_d(tmp_path))
    assert rejected == []
    assert found[0].model_dump(exclude_none=True) == {
        "key": "crema-d/1001_DFA_ANG_XX",
        "corpus": "crema-d",
        "source": "AudioWAV/1001_DFA_ANG_XX.wav",
        "text": "Don't forget a jacket.",
        "language": "en",
        "emotion": "anger",
        "gender": "male",
        "speaker": "1001",
        "age": 51.0,
        "style": "scripted",
        "extra": {},
    }
    assert (found[1].emotion, found[1].intensity, found[1].text) == ("happiness", "high", "It's eleven o'clock.")
    assert (found[2].key, found[2].intensity, found[2].gender) == ("crema-d/1040_ITH_SAD_X", None, "female")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("1001_ABC_ANG_XX", "unknown label", "sentence 'ABC' is none of IEO, TIE"),
        ("1001_DFA_SUR_MX", "unknown label", "emotion 'SUR' is none of ANG, DIS, FEA, HAP, NEU, SAD; level 'MX'"),
        ("2001_DFA_ANG_XX", "audio without row", "actor 2001 has no usable row in VideoDemographics.csv"),
        ("DFA_ANG_XX", "unknown file name", "like 1001_DFA_ANG_XX, got 'DFA_ANG_XX'"),
    ],
)
def test_crema_d_rejects_names_that_cannot_be(tmp_path, name, kind, words) -> None:
    write_audio(crema_d(tmp_path) / "AudioWAV" / f"{name}.wav")
    found, (rejection,) = read("crema-d", tmp_path)
    assert len(found) == 3
    assert rejection.kind == kind
    assert words in rejection.reason


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("ActorID;Age;Sex\n1001;51,5;Male\n1040;42;Weiblich ä\n", [51.5, 51.5, 42.0]),
        ('"ActorID"\t"Age"\t"Sex"\n 1001 \t 51.5 \tM\n1040\t42\tf\n', [51.5, 51.5, 42.0]),
    ],
)
def test_crema_d_reads_a_table_that_went_through_a_spreadsheet(tmp_path, table, expected) -> None:
    write(crema_d(tmp_path) / "VideoDemographics.csv", table, "latin-1")
    found, rejected = read("crema-d", tmp_path)
    assert rejected == []
    assert [u.age for u in found] == expected


def test_crema_d_reports_an_unusable_row_and_its_actors_audio(tmp_path) -> None:
    write(crema_d(tmp_path) / "VideoDemographics.csv", "ActorID,Age,Sex\n1001,unknown,Male\n1040,42,Female,x\n")
    found, rejected = read("crema-d", tmp_path)
    assert found == []
    assert kinds(rejected) == ["bad row", "bad row", *["audio without row"] * 3]
    assert rejected[0].reason == "a row must have sex and age, got 'Male' and 'unknown'"
    assert rejected[1].reason == "a row must have the header's 3 cells, got 4"


def test_crema_d_names_missing_columns(tmp_path) -> None:
    write(crema_d(tmp_path) / "VideoDemographics.csv", "ActorID,Alter,Sex\n")
    with pytest.raises(CorpusError, match="must have the columns ActorID, Age, Sex, but Age is not among its ActorID"):
        read("crema-d", tmp_path)


# nEMO


def test_nemo_reads_its_table(tmp_path) -> None:
    found, rejected = read("nemo", nemo(tmp_path))
    assert rejected == []
    assert found[0].model_dump(exclude_none=True) == {
        "key": "nemo/WR0_surprised_64",
        "corpus": "nemo",
        "source": "samples/WR0_surprised_64.wav",
        "text": "Ucho wykrywa dźwięki.",
        "language": "pl",
        "emotion": "surprise",
        "gender": "male",
        "speaker": "WR0",
        "age": 23.0,
        "style": "scripted",
        "extra": {"normalized_text": "ucho wykrywa dźwięki"},
    }
    assert {u.speaker for u in found} == {"WR0", "EB0"}
    assert found[1].text == "„Ród smoka” to serial."


@pytest.mark.parametrize(
    ("row", "kinds_expected", "words"),
    [
        ("KS0_anger_1.wav\tanger\tx\tx\tKS0\tmale\t23", ["row without audio"], "KS0_anger_1.wav is not in samples"),
        ("EB0_anger_9.wav\tanger\tx\tx\tWR0\tmale\t23", ["contradiction"], "speaker and emotion, which are 'WR0'"),
        ("EB0_anger_9.wav\tfear\tx\tx\tEB0\tfemale\t27", ["contradiction"], "which are 'EB0' and 'fear'"),
        ("EB0_anger_9.wav\tanger\tx\tx\tEB0\t\t27", ["unknown label"], "gender must not be blank"),
        ("EB0_anger_9.wav\tanger\tx\tx\tEB0\tfemale\told", ["bad number"], "age must be a number, got 'old'"),
        ("../EB0_anger_9.wav\tanger\tx\tx\tEB0\tfemale\t27", ["unknown file name", "audio without row"], "got '../EB0"),
        ("EB0_anger_9.wav\tanger\tx", ["bad row", "audio without row"], "the header's 7 cells, got 3"),
    ],
)
def test_nemo_rejects_bad_rows(tmp_path, row, kinds_expected, words) -> None:
    if "KS0" not in row:
        write_audio(nemo(tmp_path) / "samples" / "EB0_anger_9.wav")
    table = nemo(tmp_path) / "data.tsv"
    write(table, table.read_text("utf-8") + row + "\n")
    found, rejected = read("nemo", tmp_path)
    assert len(found) == 3
    assert kinds(rejected) == kinds_expected
    assert rejected[0].source == "data.tsv row 5"
    assert words in rejected[0].reason


def test_nemo_rejects_a_state_that_is_no_emotion(tmp_path) -> None:
    write_audio(nemo(tmp_path) / "samples" / "EB0_hunger_9.wav")
    table = tmp_path / "data.tsv"
    write(table, table.read_text("utf-8") + "EB0_hunger_9.wav\thunger\tx\tx\tEB0\tfemale\t27\n")
    _, (rejection,) = read("nemo", tmp_path)
    assert rejection.kind == "unknown label"
    assert "got 'hunger'" in rejection.reason
