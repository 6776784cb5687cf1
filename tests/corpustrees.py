"""Small synthetic copies of published corpora: the same folders, names and tables, with audio that says nothing."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from shards.corpora.base import corpus_reader
from shards.schema import Rejection, SourceUtterance, Utterance, is_key

DATA = Path(__file__).parents[2] / "shared" / "data"


def read(corpus: str, source: Path | None) -> tuple[list[Utterance], list[Rejection]]:
    """Return what a corpus's reader finds, its keys checked."""
    items = list(corpus_reader(corpus).read(source, 0))
    found = [item.utterance for item in items if isinstance(item, SourceUtterance)]
    assert all(is_key(utterance.key) for utterance in found)
    return found, [item for item in items if isinstance(item, Rejection)]


def kinds(rejections: list[Rejection]) -> list[str]:
    """Return the kind of each rejection."""
    return [rejection.kind for rejection in rejections]


def write_audio(
    path: Path, duration_s: float = 0.1, container: str = "WAV", rate_hz: int = 16_000, channels: int = 1
) -> None:
    """Write a constant that differs from path to path, so that no two files are taken for one recording."""
    path.parent.mkdir(parents=True, exist_ok=True)
    level = 0.1 + zlib.crc32(f"{path.parent.name}/{path.name}".encode()) % 16_384 / 32_768
    sf.write(path, np.full((int(rate_hz * duration_s), channels), level), rate_hz, format=container, subtype="PCM_16")


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    """Write `text`, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def real(name: str) -> Path:
    """Return the folder of a real corpus, or skip the test."""
    if not (DATA / name).is_dir():
        pytest.skip(f"the real corpus is not at hand: {DATA / name} is missing")
    return DATA / name


# ---------------------------------------------------------------- the corpora


def ravdess(root: Path) -> Path:
    """Two actors, a song, and what macOS leaves behind."""
    for actor in ("03", "04"):
        for name in ("03-01-01-01-01-01", "03-01-05-02-02-02"):
            write_audio(root / f"Actor_{actor}" / f"{name}-{actor}.wav")
    write_audio(root / "Actor_04" / "03-02-02-01-01-01-04.wav")
    return root


def crema_d(root: Path) -> Path:
    """Two actors, the published name that lost a letter, and the table of actors."""
    for name in ("1001_DFA_ANG_XX", "1001_IEO_HAP_HI", "1040_ITH_SAD_X"):
        write_audio(root / "AudioWAV" / f"{name}.wav")
    write(
        root / "VideoDemographics.csv",
        '"ActorID","Age","Sex","Race","Ethnicity"\n1001,51,"Male","Caucasian","Not Hispanic"\n'
        '1040,42,"Female","Caucasian","Not Hispanic"\n',
    )
    return root


def nemo(root: Path) -> Path:
    """Two speakers, whose ids stand behind blanks as in the published table."""
    for name in ("WR0_surprised_64", "EB0_neutral_13", "EB0_anger_57"):
        write_audio(root / "samples" / f"{name}.wav")
    columns = "file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage\n"
    rows = [
        "WR0_surprised_64.wav\tsurprised\tUcho wykrywa dźwięki.\tucho wykrywa dźwięki\t        WR0\tmale\t23",
        "EB0_neutral_13.wav\tneutral\t„Ród smoka” to serial.\tród smoka to serial\t        EB0\tfemale\t27",
        "EB0_anger_57.wav\tanger\tJedz inaczej.\tjedz inaczej\t        EB0\tfemale\t27",
    ]
    write(root / "data.tsv", columns + "\n".join(rows) + "\n")
    return root


IEMOCAP_TURNS = {
    "Ses01F_impro01": ("neu", "xxx"),
    "Ses01M_script01_1b": ("exc", "hap"),
    "Ses02F_impro02": ("fru", "ang"),
    "Ses03M_impro08b": ("sad", "oth"),
    "Ses04F_script02_2": ("neu", "exc"),
    "Ses05M_impro04": ("sad", "dis"),
}
"""Labels of the turns F000 and M001 of each dialogue."""


def iemocap(root: Path) -> Path:
    """Five sessions, six dialogues of two turns each."""
    for dialogue, labels in IEMOCAP_TURNS.items():
        session = root / f"Session{dialogue[4]}"
        blocks, lines = [], []
        for number, label in enumerate(labels):
            turn = f"{dialogue}_{'FM'[number]}{number:03d}"
            blocks.append(
                f"[{6.29 + number:.4f} - {8.2357 + number:.4f}]\t{turn}\t{label}\t[2.5000, 3.5000, {number + 1}.0000]\n"
                "C-E2:\tNeutral;\t()\nC-E3:\tNeutral; Sadness;\t()\nC-E4:\tNeutral state;\t(calm)\nC-F1:\tAnger;\t()\n"
                "A-E3:\tval 3; act 2; dom  2;\t()\nA-F1:\tval 3; act 2; dom  1;\t()\n"
            )
            lines.append(f"{turn} [006.2901-008.2357]: Excuse me.\n")
            write_audio(session / "sentences" / "wav" / dialogue / f"{turn}.wav")
        labels_folder = session / "dialog" / "EmoEvaluation"
        write(
            labels_folder / f"{dialogue}.txt",
            "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n" + "\n".join(blocks),
        )
        write(labels_folder / "Categorical" / f"{dialogue}_e2_cat.txt", f"{dialogue}_F000 :neutral state; ()\n")
        write(session / "dialog" / "transcriptions" / f"{dialogue}.txt", "".join(lines) + "M: [LAUGHTER]\n")
    return root


def msp_podcast(root: Path) -> Path:
    """One utterance of each kind of split, one without speaker, one of the hidden test set, one transcript missing."""
    names = ("0001_0008", "0001_0009", "0153_0227_0001", "0002_0001", "test3_0001")
    for name in names:
        write_audio(root / "Audios" / f"MSP-PODCAST_{name}.wav")
    for name in names[:3]:
        write(root / "Transcripts" / f"MSP-PODCAST_{name}.txt", f"Words of\n{name}.\n")
    write(
        root / "Labels" / "labels_consensus.csv",
        "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set\n"
        "MSP-PODCAST_0001_0008.wav,N,2.2,4.0,2.6,30,Male,Test1\n"
        "MSP-PODCAST_0001_0009.wav,X,3.777778,3.555556,3.777778,Unknown,Unknown,Train\n"
        "MSP-PODCAST_0153_0227_0001.wav,U,4,4,4,39,Female,Development\n"
        "MSP-PODCAST_0002_0001.wav,O,4,4,4,1021,Female,Test2\n",
    )
    return root


MELD_HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
MELD_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}


def meld(root: Path, suffix: str = ".wav") -> Path:
    """Two utterances in each of three splits; the training table has Windows' characters as published."""
    speakers = {"train": ("Chandler", "The Interviewer"), "dev": ("Phoebe", "Monica"), "test": ("Mark", "Mrs. Green")}
    for split, (first, second) in speakers.items():
        write(
            root / f"{split}_sent_emo.csv",
            f'{MELD_HEADER}1,"He\x92s lost it, \x93man\x94.",{first},joy,positive,0,0,8,21,"0:16:16,05","0:16:21,73"\n'
            f'2,I see.,{second},neutral,neutral,0,1,8,21,"00:16:48,800","00:16:51,886"\n',
        )
        for turn in range(2):
            path = root / MELD_FOLDERS[split] / f"dia0_utt{turn}{suffix}"
            if suffix == ".mp4":
                write(path, "a video")
            else:
                write_audio(path, container=suffix[1:].upper())
    return root


TREES = {
    "ravdess": ravdess,
    "crema-d": crema_d,
    "nemo": nemo,
    "iemocap": iemocap,
    "msp-podcast": msp_podcast,
    "meld": meld,
}
"""Writers of a small copy by corpus."""
