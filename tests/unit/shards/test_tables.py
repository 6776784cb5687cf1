"""No row of a table is lost, no value is read as another: encodings, quotes, columns, missing words, own words."""

import contextlib
import csv
import io
import random
import unicodedata
from pathlib import Path

import pytest
from corpustrees import write_audio
from hypothesis import given
from hypothesis import strategies as st
from mutatedtables import make, outcome, prepared

from shards.corpora.base import corpus_reader
from shards.corpora.encodings import read_text_in
from shards.corpora.identities import nearly_equal, plain_name, tidy
from shards.corpora.options import ReadOptions
from shards.corpora.paths import find_audio
from shards.corpora.said import channel_number, columns_said, labels_said
from shards.corpora.times import seconds_in
from shards.emotionwords import KNOWN_WORDS
from shards.errors import CorpusError, ShardError
from shards.indexload import load_index
from shards.labels import EMOTIONS, known_emotion
from shards.manifest import read_manifest
from shards.pack import pack_corpus
from shards.rejections import account_of_rows
from shards.schema import Note, Rejection, RowCount, SourceUtterance


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    """Names of audio; readers do not decode it."""
    return prepared(tmp_path_factory.mktemp("audio"))


def read(folder: Path, content: str | bytes, name: str = "mine.csv", corpus: str = "csv", **options):
    """Return what a table's reader finds: utterances, rejections, notes."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    found = list(corpus_reader(corpus, ReadOptions(**options)).read(path, 0))
    utterances = [item.utterance for item in found if isinstance(item, SourceUtterance)]
    rejections = [item for item in found if isinstance(item, Rejection)]
    assert sum(item.number for item in found if isinstance(item, RowCount)) == len(utterances) + len(rejections)
    return utterances, rejections, " | ".join(item.text for item in found if isinstance(item, Note))


def items(folder: Path, content: str, **options) -> list[SourceUtterance]:
    path = folder / "mine.csv"
    path.write_text(content)
    return [i for i in corpus_reader("csv", ReadOptions(**options)).read(path, 0) if isinstance(i, SourceUtterance)]


# ---------------------------------------------------------------- all of it at once


@pytest.mark.parametrize("seed", range(10_000, 10_060))
def test_every_row_of_a_mutated_table_is_packed_right_or_rejected(audio, seed) -> None:
    assert outcome(make(seed), audio) in ("packed", "rejections", "refused")


# ---------------------------------------------------------------- quotes


LITERAL = "client_id\tpath\tsentence\tgender\ns1\t0.wav\t{}\tmale\ns1\t1.wav\tGut so\tfemale\ns2\t2.wav\t{}\tmale\n"


@pytest.mark.parametrize(
    ("first", "last"),
    [('"Nein', 'Ja"'), ('"Nein', "Ja"), ('"Ist das wahr?" fragte er.', "Ja"), ('"', '"'), ('"Nein"', '"Ja"')],
)
def test_quotes_of_an_unquoted_table_belong_to_its_texts(audio, first, last) -> None:
    found, rejected, said = read(audio, LITERAL.format(first, last), "mine.tsv")
    assert rejected == []
    assert [u.text for u in found] == [first, "Gut so", last]
    assert '" is a character like any other' in said


def test_quotes_of_a_quoted_table_belong_to_its_form(audio) -> None:
    texts = ["one\ntwo", 'say "no"', "a\tb", "0.wav", "", "x"]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t").writerows([["file", "text"], *([f"{n}.wav", t] for n, t in enumerate(texts))])
    found, rejected, _ = read(audio, buffer.getvalue(), "mine.tsv")
    assert rejected == []
    assert [u.text or "" for u in found] == texts


def test_rows_swallowed_by_a_lone_quote_are_found_in_any_table(audio) -> None:
    found, _, _ = read(audio, 'file,text\n0.wav,"Nein\n1.wav,Gut so\n2.wav,Ja"\n')
    assert [u.text for u in found] == ['"Nein', "Gut so", 'Ja"']


def test_a_row_with_a_nul_byte_is_not_swallowed_either(audio) -> None:
    found, rejected, _ = read(audio, 'file,text\n0.wav,"Nein\n1.wav\0,Gut so\n2.wav,Ja"\n')
    assert [u.text for u in found] == ['"Nein', 'Ja"']
    assert [r.source for r in rejected] == ["mine.csv row 3"]


def test_a_row_with_a_cell_too_many_makes_no_said_quotes_enclosing(audio):
    rows = 'file\ttext\n0.wav\t"Nein"\n1.wav\t"Ja"\tmore\n2.wav\t5" lang\n'
    found, rejected, _ = read(audio, rows, name="mine.tsv")
    assert ([u.text for u in found], len(rejected)) == (['"Nein"', '5" lang'], 1)


def test_what_can_be_read_in_two_ways_is_refused_until_it_is_said(audio) -> None:
    table = 'file,text\n0.wav,"well, yes"\n1.wav,"Nein\n2.wav,Ja"\n'
    with pytest.raises(CorpusError, match=r"must be read in one way.*--quotes double or --quotes none"):
        read(audio, table)
    found, rejected, _ = read(audio, table, quotes="none")
    assert ([u.text for u in found], len(rejected)) == (['"Nein', 'Ja"'], 1)
    found, rejected, _ = read(audio, table, quotes="double")
    assert ([u.text for u in found], len(rejected)) == (["well, yes", "Nein\n2.wav,Ja"], 0)


SWALLOWED = [
    '0.wav,"hello,anger\n1.wav,bye",sad\n2.wav,ok,fear\n',
    '0.wav,"hello, you,anger\n1.wav,bye",sad\n',
    '0.wav,"hello,anger\n1.wav,bye, you",sad\n',
    '0.wav,"hello,anger\n0.wav,bye, you",sad\n',
    '"0.wav","one, two","fear"\n1.wav,"hello,anger\n2.wav,bye",sad\n',
    '0.wav, "hello,anger\n1.wav,bye",sad\n',
    '0.wav,"hello \\"you\\",anger\n1.wav,bye",sad\n',
]


@pytest.mark.parametrize("rows", SWALLOWED)
@pytest.mark.parametrize(
    "header", ['"file","text","emotion"', "file,text,emotion", '"file",text,"emotion"', '"file", "text", "emotion"']
)
def test_no_row_is_swallowed_whatever_the_header(audio, header, rows) -> None:
    names = [line.split(",")[0].strip('"') for line in rows.splitlines()]
    try:
        found, rejected, _ = read(audio, f"{header}\n{rows}")
    except CorpusError as error:
        assert "--quotes double or --quotes none" in str(error)
    else:
        assert [u.source for u in found] + [r.source for r in rejected] == names
        assert all(u.text and "\n" not in u.text for u in found)
    found, rejected, _ = read(audio, f"{header}\n{rows}", quotes="none")
    assert len(found) + len(rejected) == len(names)


@pytest.mark.parametrize(
    "columns", [("file", "text", "emotion"), ("text", "file", "emotion"), ("emotion", "text", "file")]
)
@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
@given(st.lists(st.text("ab, \n\"'", max_size=9), min_size=1, max_size=4))
def test_line_breaks_in_a_quoted_table_are_read(audio, quoting, columns, texts) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerow(columns)
    writer = csv.writer(buffer, quoting=quoting)
    for number, text in enumerate(texts):
        row = {"file": f"{number}.wav", "text": text, "emotion": "sad"}
        writer.writerow([row[name] for name in columns])
    found, rejected, _ = read(audio, buffer.getvalue())
    assert rejected == []
    assert [u.text or "" for u in found] == [tidy(text) for text in texts]


@pytest.mark.parametrize(
    "table",
    [
        'file, emotion, text\n0.wav, sad, "hello, you"\n1.wav, "sad", "say ""no"""\n',
        '"file", "emotion", "text"\n"0.wav", "sad", "hello, you"\n"1.wav", "sad", "say \\"no\\""\n',
        'file;  emotion;  text\n 0.wav;  sad;  "hello, you"\n 1.wav;  sad;  "say ""no"""\n',
        'file,emotion,text\n0.wav,sad,"hello, you"\n1.wav,sad, "say ""no"""\n',
    ],
)
def test_blanks_before_quotes_are_no_part_of_a_cell(audio, table) -> None:
    found, rejected, said = read(audio, table)
    assert rejected == []
    assert [(u.source, u.emotion, u.text) for u in found] == [
        ("0.wav", "sadness", "hello, you"),
        ("1.wav", "sadness", 'say "no"'),
    ]
    assert 'blanks before a " that encloses a cell are no part of it' in said


def test_backslashes_before_quotes(audio) -> None:
    found, _, said = read(audio, 'file,text\n0.wav,"say \\"no\\", please"\n')
    assert found[0].text == 'say "no", please'
    assert "\\ stands before one that does not" in said


@pytest.mark.parametrize(
    "table",
    [
        "sep=;\r\nfile;text\r\n0.wav;x, y\r\n",
        "file|text\r0.wav|x, y\r",
        "\n# made by hand\n\n# file\ttext\n0.wav\tx, y\n\n",
        'file,text,\n0.wav,"x, y",\n,,\n',
        '"file";"text"\n"0.wav";"x, y"\n',
        '\ufefffile,text\n0.wav,"x, y"\n# the end\n',
    ],
)
def test_forms_that_programs_write(audio, table) -> None:
    (utterance,), rejected, _ = read(audio, table)
    assert (utterance.source, utterance.text, rejected) == ("0.wav", "x, y", [])


def test_cells_beyond_the_header_and_nul_bytes_reject_their_row_alone(audio) -> None:
    found, rejected, _ = read(audio, "file,text,\n0.wav,x\n1.wav,y,z\n2.wav,a\0b\n3.wav\n")
    assert [u.source for u in found] == ["0.wav"]
    assert [(r.source, r.kind) for r in rejected] == [(f"mine.csv row {n}", "bad row") for n in (3, 4, 5)]


def test_a_row_that_begins_with_a_hash_is_a_row_where_its_audio_exists(audio) -> None:
    (audio / "#1.wav").touch()
    found, rejected, said = read(audio, "file,text\n#1.wav,x\n#2.wav,y\n# z\n")
    assert ([u.source for u in found], rejected) == (["#1.wav"], [])
    assert "2 lines that begin with # are comments (first: row 3)" in said


def test_a_workbook_is_no_table(audio) -> None:
    with pytest.raises(CorpusError, match="is a workbook or an archive; save the sheet as CSV in UTF-8"):
        read(audio, b"PK\x03\x04rest", "mine.csv")


# ---------------------------------------------------------------- encodings


SENTENCES = {
    "gb18030": "你今天怎么样 我很生气 别烦我 太好了 王小明 今天天气真好 我们去公园吧 老师说明天考试",
    "big5": "你今天怎麼樣 李大華 我很高興 別煩我 今天天氣真好 我們去公園吧 老師說明天考試",
    "cp932": "今日は元気ですか とても悲しいです 田中さん ありがとうございます 明日また来ます 電車が遅れています",
    "euc-jp": "今日は元気ですか とても悲しいです 田中さん ありがとうございます 明日また来ます 電車が遅れています",
    "iso2022_jp": "今日は元気ですか とても悲しいです 田中さん",
    "cp949": "오늘 어때요 너무 슬퍼요 김철수 안녕하세요 감사합니다 내일 다시 올게요 기차가 늦었어요",
    "cp1252": "Heute abend könnte ich es Jürgen sagen Größe über Straße déjà año coração città",
    "cp1250": "Chcę iść do domu źle śnieg Małgorzata Łukasz żółć próba žluťoučký kůň",
    "cp1251": "Сегодня вечером я мог бы это сказать Иван Анна грустно очень правда спасибо завтра",
    "koi8-r": "Сегодня вечером я мог бы это сказать Иван Анна грустно очень правда спасибо завтра",
    "cp1253": "Σήμερα το βράδυ θα ήθελα να σου πω Γιώργος ευχαριστώ αύριο συγγνώμη",
    "cp1254": "Bugün hava çok güzel değil mi Şükrü İbrahim ışık teşekkürler yarın",
    "cp850": "Heute abend könnte ich es Jürgen sagen Größe über Straße",
    "mac-roman": "Heute abend könnte ich es Jürgen sagen Größe über Straße",
    "tis-620": "สมชาย สมหญิง สวัสดีครับ วันนี้อากาศดีมาก มานี ชูใจ ปิติ ดี นก ปู ตา เจอกัน ฉันโกรธ",
    "cp1255": "שלום דוד רחל היום יפה מאוד אני כועס תודה רבה משה יעל",
    "cp862": "שלום דוד רחל היום יפה מאוד אני כועס תודה רבה משה יעל",
    "cp1256": "مرحبا محمد فاطمة اليوم الجو جميل انا غاضب شكرا احمد علي",
    "iso8859-5": "Сегодня вечером я мог бы это сказать Иван Анна грустно",
    "mac-cyrillic": "Сегодня вечером я мог бы это сказать Иван Анна грустно",
    "koi8-u": "Сьогодні увечері я міг би це сказати Іван Ганна сумно дуже їжак",
    "kz1048": "Бүгін қалай Айдана Нұрлан өте жақсы",
    "cp737": "Σήμερα το βράδυ θα ήθελα να σου πω Γιώργος Μαρία",
    "cp852": "Chcę iść do domu źle śnieg Małgorzata Łukasz żółć",
    "cp857": "Bugün hava çok güzel değil mi Şükrü İbrahim ışık",
    "cp775": "Šodien laiks ļoti jauks Jānis Pēteris",
    "johab": "오늘 어때요 너무 슬퍼요 김철수 안녕하세요",
}
TOLD = {
    "gb18030": "你今天怎么样，我很生气，别烦我，太好了",
    "big5": "你今天怎麼樣，李大華，我很高興",
    "iso2022_jp": "とても悲しいです",
    "cp1252": "Heute abend könnte ich es Jürgen sagen",
    "cp1251": SENTENCES["cp1251"],
    "koi8-r": SENTENCES["koi8-r"],
    "cp1253": SENTENCES["cp1253"],
}


@pytest.mark.parametrize("encoding", TOLD)
def test_an_encoding_that_can_be_told_is_told_and_said(audio, encoding) -> None:
    (utterance,), _, said = read(audio, f"file,text\n0.wav,{TOLD[encoding]}\n".encode(encoding))
    assert utterance.text == TOLD[encoding]
    assert f"is read as {encoding}" in said


@pytest.mark.parametrize("word", ["Größe", "könnte", "Jürgen"])
def test_one_german_word_is_enough(audio, word) -> None:
    assert read(audio, f"file,text\n0.wav,{word}\n".encode("latin-1"))[0][0].text == word


@pytest.mark.parametrize("encoding", SENTENCES)
def test_an_encoding_is_told_right_or_not_at_all(tmp_path, encoding) -> None:
    words = SENTENCES[encoding].split()
    draw = random.Random(encoding)
    for number in range(12):
        rows = [f"{n}.wav,{' '.join(draw.choices(words, k=draw.randint(1, 5)))}" for n in range(1 + number // 2)]
        text = "file,text\n" + "\n".join(rows) + "\n"
        (tmp_path / "t.csv").write_bytes(text.encode(encoding))
        with contextlib.suppress(CorpusError):
            assert read_text_in(tmp_path / "t.csv").content == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@given(text=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=30))
def test_unicode_in_any_form_is_read_as_it_is(tmp_path_factory, encoding, text) -> None:
    path = tmp_path_factory.getbasetemp() / "unicode.csv"
    path.write_bytes(f"file,text\n0.wav,{text}\n".encode(encoding))
    assert read_text_in(path).content.splitlines()[0] == "file,text"
    assert f",{text}\n" in read_text_in(path).content


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            "file,text\n0.wav,x\n1.wav,año\n".encode("cp1252"),
            r"line 3 \(b'1\.wav,a\\xf1o'\).*as cp1252 it would read 'año'",
        ),
        ("file,text\n0.wav,Иван\n".encode("cp1251"), r"line 2 .*name its encoding with --encoding"),
        ("file,text\n0.wav,x\n1.wav,你好\n".encode("hz"), r"line 3 .*may be Chinese in HZ; pass --encoding hz"),
        ("file,speaker\n0.wav,ﾀﾅｶ\n1.wav,ｽｽﾞｷ\n".encode("cp932"), r"line 2 .*name its encoding with --encoding"),
        ("file,text\n0.wav,ü\n1.wav,ä\n".encode() + b"2.wav,\xff\n", r"line 4 .*while other lines are"),
    ],
)
def test_an_encoding_that_cannot_be_told_is_refused_with_the_line(audio, data, words) -> None:
    with pytest.raises(CorpusError, match=words) as caught:
        read(audio, data)
    assert "--encoding" in str(caught.value)


def test_an_encoding_that_is_given_is_held_to(audio) -> None:
    (utterance,), _, said = read(audio, "file,text\n0.wav,año\n".encode("cp1252"), encoding="cp1252")
    assert utterance.text == "año"
    assert "read as" not in said
    with pytest.raises(CorpusError, match=r"must be text in ascii, but line 2 \(b'0\.wav,\\xf1'\) is not"):
        read(audio, b"file,text\n0.wav,\xf1\n", encoding="ascii")
    for name in ("klingon", "hex"):
        with pytest.raises(CorpusError, match="--encoding must be a text encoding that Python knows"):
            read(audio, b"file\n0.wav\n", encoding=name)
    with pytest.raises(CorpusError, match="begins with the byte order mark of utf-8"):
        read(audio, "\ufefffile\n0.wav\n", encoding="cp1252")


# ---------------------------------------------------------------- columns


def test_usual_names_are_used_and_said(audio) -> None:
    table = "Path,label,spk,sex,Sentence,Begin,Duration\n0.wav,sad,s1,f,hello,0.5,0.25\n"
    (item,) = items(audio, table)
    assert (item.audio.start_s, item.audio.end_s) == (0.5, 0.75)
    (utterance,), _, said = read(audio, table)
    assert (utterance.emotion, utterance.speaker, utterance.gender, utterance.text) == (
        "sadness",
        "s1",
        "female",
        "hello",
    )
    assert "Path as file, label as emotion, spk as speaker, sex as gender, Sentence as text, Begin as start" in said


def test_columns_of_no_use_are_said_with_what_they_may_be(audio) -> None:
    (utterance,), _, said = read(audio, "file,emotoin,speaker_name_2,mic\n0.wav,sad,s1,AK\n")
    assert utterance.extra == {"emotoin": "sad", "speaker_name_2": "s1", "mic": "AK"}
    assert "3 columns are kept as extra: emotoin, speaker_name_2, mic; did you mean emotion, speaker?" in said
    assert "--map emotoin=emotion" in said


def test_what_the_user_says_of_columns_goes_first(audio) -> None:
    table = "path,file,mood,label\n0.wav,1.wav,sad,angry\n"
    (utterance,), _, _ = read(audio, table)
    assert (utterance.source, utterance.emotion, utterance.extra) == (
        "1.wav",
        "anger",
        {"path": "0.wav", "mood": "sad"},
    )
    (utterance,), _, _ = read(audio, table, columns={"path": "file", "file": None, "mood": "emotion", "label": None})
    assert (utterance.source, utterance.emotion, utterance.extra) == ("0.wav", "sadness", {})


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"moood": "emotion"}, "--map must name columns of .*mine.csv, which has file, mood, got moood"),
        ({"mood": "feeling"}, r"--map must name fields \(file, key, .*\), got feeling"),
        ({"mood": "file"}, "must name each column once, but repeats file"),
    ],
)
def test_what_is_said_of_columns_must_fit(audio, columns, words) -> None:
    with pytest.raises(CorpusError, match=words):
        read(audio, "file,mood\n0.wav,sad\n", columns=columns)


def test_one_field_under_two_usual_names_is_left_to_the_user(audio) -> None:
    (utterance,), _, said = read(audio, "file,label,emo\n0.wav,sad,angry\n")
    assert (utterance.emotion, utterance.extra) == (None, {"label": "sad", "emo": "angry"})
    assert "did you mean emotion? (--map label=emotion --map emo=emotion)" in said
    with pytest.raises(CorpusError, match=r"each of wav, audio may be it; say which: --map wav=file"):
        read(audio, "wav,audio\n0.wav,1.wav\n")


def test_a_usual_name_with_unusual_values_is_no_field(audio) -> None:
    (utterance, _), _, said = read(audio, "file,partition,activation\n0.wav,A,high\n1.wav,B,low\n")
    assert (utterance.split, utterance.extra) == (None, {"partition": "A", "activation": "high"})
    assert "are not taken, partition for split, activation for arousal" in said
    _, rejected, _ = read(audio, "file,partition\n0.wav,A\n1.wav,train\n")
    assert [r.kind for r in rejected] == ["unknown label"]
    _, rejected, _ = read(audio, "file,partition\n0.wav,A\n", columns={"partition": "split"})
    assert [r.kind for r in rejected] == ["unknown label"]


def test_a_table_as_common_voice_publishes_it(audio) -> None:
    header = "client_id\tpath\tsentence_id\tsentence\tup_votes\tage\tgender\taccents\tlocale\tsegment\n"
    row = 'abc\t0.wav\t7f\t"Ja", sagte er.\t2\ttwenties\tmale_masculine\t\tde\t\n'
    (utterance,), _, said = read(audio, header + row, "validated.tsv")
    assert utterance.model_dump(exclude_none=True) == {
        "key": "validated/0",
        "corpus": "validated",
        "source": "0.wav",
        "text": '"Ja", sagte er.',
        "language": "de",
        "gender": "male",
        "speaker": "abc",
        "extra": {"sentence_id": "7f", "up_votes": "2", "age": "twenties"},
    }
    assert "kept as extra, with the field that may be meant: age twenties (1)" in said


def test_a_duration_without_a_start_cuts_nothing(audio) -> None:
    (item,) = items(audio, "file,duration\n0.wav,0.5\n")
    assert (item.audio.start_s, item.audio.end_s) == (None, None)
    (item,) = items(audio, "file,end,duration\n0.wav,,0.5\n")
    assert (item.audio.start_s, item.audio.end_s) == (None, None)
    assert item.stated is not None
    assert item.stated.duration_s == 0.5


@pytest.mark.parametrize(
    ("columns", "cells", "part"),
    [
        ("start,end,duration", "0.2,,0.3", (0.2, 0.5)),
        ("start,end,duration", ",,0.3", (None, 0.3)),
        ("start,end,duration", "0,NaT,0.3", (0.0, 0.3)),
        ("start,duration", ",0.3", (None, 0.3)),
        ("start,duration", "0.2,", (0.2, None)),
        ("start,end,duration", "0.2,0.4,0.2", (0.2, 0.4)),
        ("start,end,duration", "0.2,0.4,much", (0.2, 0.4)),
        ("start_ms,end_ms,dur_ms", "200,,300", (0.2, 0.5)),
        ("begin,stop,length", "0.2,-,0.3", (0.2, 0.5)),
    ],
)
def test_a_duration_ends_a_part_in_each_row_without_an_end(audio, columns, cells, part) -> None:
    table = f"file,{columns}\n0.wav,{cells}\n1.wav,{','.join('1000' for _ in columns.split(','))}\n"
    item = items(audio, table)[0]
    assert (item.audio.start_s, item.audio.end_s) == pytest.approx(part)


def test_a_duration_that_contradicts_the_end_is_warned_of(audio) -> None:
    table = "file,start,end,duration\n0.wav,0.2,0.9,0.7\n1.wav,0.2,0.5,0.9\n2.wav,0,1,2\n"
    found, _, said = read(audio, table)
    assert "2 rows have a duration that is not from start to end (first: mine.csv row 3: 0.9); their end is" in said
    assert [u.extra["duration"] for u in found] == ["0.7", "0.9", "2"]


def test_a_duration_that_contradicts_its_file_is_warned_of(tmp_path) -> None:
    seconds = (0.4, 0.95, 1, 2, "", "x", "00:00:01.2")
    rows = [f"{number}.wav,{cell}" for number, cell in enumerate(seconds)]
    for number in range(len(rows)):
        write_audio(tmp_path / f"{number}.wav", 1.0)
    (tmp_path / "mine.csv").write_text("\n".join(["file,duration", *rows]))
    summary = pack_corpus("csv", tmp_path / "mine.csv", tmp_path / "out")
    (warning,) = [text for text in summary.warnings if "durations" in text]
    assert "3 of 7 utterances last longer or shorter than" in warning
    assert "the first 0.wav (0.4 s stated, 1.000 s found)" in warning
    assert load_index([tmp_path / "out"]).duration_s.tolist() == [1.0] * 7


@pytest.mark.parametrize(
    "column", ["start_sample", "start_frame", "startSample", "offset (samples)", "first_frame", "begin_us", "start_idx"]
)
def test_times_in_other_units_are_never_taken_for_seconds(audio, column) -> None:
    (utterance,), _, said = read(audio, f"file,{column},end_sample\n0.wav,100,200\n")
    assert utterance.extra == {column: "100", "end_sample": "200"}
    assert "--map" not in said
    assert f"no part of a file is cut by {column}, end_sample, whose unit is not read; a part needs columns" in said
    (item,) = items(audio, f"file,start,end,{column},duration_frames\n0.wav,0.1,0.2,100,7\n")
    assert item.audio.end_s == 0.2


def test_times_of_unknown_units_are_suggested_as_seconds_only(audio) -> None:
    _, _, said = read(audio, "file,start_mark\n0.wav,100\n")
    assert "(--map start_mark=start, where times are in seconds)" in said


def test_milliseconds_only_where_the_name_says_so(audio) -> None:
    (item,) = items(audio, "file,start_ms,end_ms\n0.wav,500,1500\n")
    assert (item.audio.start_s, item.audio.end_s) == (0.5, 1.5)
    (item,) = items(audio, "file,start,end\n0.wav,500,1500\n")
    assert (item.audio.start_s, item.audio.end_s) == (500, 1500)


@pytest.mark.parametrize(
    ("cell", "time_s"),
    [
        ("1.5", 1.5),
        ("1,5", 1.5),
        ("90:01.5", 5401.5),
        ("01:02:03.250", 3723.25),
        ("01:02:03,250", 3723.25),
        ("0 days 00:00:01.500000", 1.5),
        ("1 day, 0:00:01", 86_401),
        ("PT1.5S", 1.5),
        ("PT1H2M", 3720),
        ("1500 ms", 1.5),
        ("2s", 2),
    ],
)
def test_times(cell, time_s) -> None:
    assert seconds_in(cell) == pytest.approx(time_s)


@pytest.mark.parametrize("cell", ["", "P", "PT", "1:60", "1:60:00", "1:2:3:4", "nan", "inf", "1e999", "noon", "1_0"])
def test_what_is_no_time(cell) -> None:
    with pytest.raises(ValueError, match=r"is no|is not"):
        seconds_in(cell)


def test_no_time_at_the_end_is_the_end_of_the_file(audio) -> None:
    found = items(audio, "file,start,end\n0.wav,0 days 00:00:00.5,NaT\n1.wav,NaT,\n")
    assert [(item.audio.start_s, item.audio.end_s) for item in found] == [(0.5, None), (None, None)]


@pytest.mark.parametrize(
    ("cells", "channels"),
    [
        (("0", "1"), [1, 2]),
        (("1", "2"), [1, 2]),
        (("left", "right"), [1, 2]),
        (("L", "2"), [1, 2]),
        (("0.0", ""), [1, None]),
        (("0", "right"), [1, 2]),
    ],
)
def test_channels_are_utterances_of_their_own(audio, cells, channels) -> None:
    found = items(audio, f"file,channel,speaker\n0.wav,{cells[0]},agent\n0.wav,{cells[1]},customer\n")
    assert [item.audio.channel for item in found] == channels
    assert len({item.utterance.key for item in found}) == 2


def test_a_repeated_row_and_a_repeated_key_name_both_rows(audio) -> None:
    _, rejected, _ = read(audio, "file,emotion\n0.wav,sad\n0.wav,sad\n\n0.wav,angry\n")
    assert [(r.source, r.kind, r.reason) for r in rejected] == [
        ("mine.csv row 3", "duplicate row", "repeats row 2 word for word"),
        (
            "mine.csv row 5",
            "duplicate key",
            "has the same key 'mine/0' as row 2, but another emotion ('sad' and 'angry')",
        ),
    ]


def test_audio_is_found_in_either_unicode_form_and_where_collections_keep_it(tmp_path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Jürgen") for form in ("NFC", "NFD"))
    (tmp_path / decomposed).mkdir()
    (tmp_path / decomposed / f"{composed}.wav").touch()
    assert find_audio([tmp_path], f"{composed}/{decomposed}.wav") == tmp_path / decomposed / f"{composed}.wav"
    assert find_audio([tmp_path], f"{composed}\\{decomposed}.wav") is not None
    assert find_audio([tmp_path], "Jörgen/x.wav") is None
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "0.mp3").touch()
    (utterance,), _, said = read(tmp_path, "path\n0.mp3\n")
    assert utterance.key == "mine/0"
    assert f"the audio of 1 rows lies in {tmp_path / 'clips'}" in said


def test_the_audio_may_lie_elsewhere_and_the_corpus_have_a_name(tmp_path, audio) -> None:
    (utterance,), _, _ = read(tmp_path, "file\n0.wav\n", audio=audio, name="calls")
    assert (utterance.key, utterance.corpus) == ("calls/0", "calls")
    _, (rejection,), _ = read(tmp_path, "file\n0.wav\n")
    assert rejection.kind == "row without audio"
    with pytest.raises(CorpusError, match="--audio must be a folder"):
        read(tmp_path, "file\n0.wav\n", audio=tmp_path / "nowhere")


# ---------------------------------------------------------------- words for missing, names


def test_words_for_missing_are_absent_except_from_texts(audio) -> None:
    found, _, said = read(
        audio,
        "file,speaker,gender,emotion,arousal,text\n0.wav,nan,NaN,None,null,nan\n1.wav,N/A,-,?,NA,None\n"
        "2.wav,s1,f,xxx,0.5,hello\n",
    )
    assert [(u.speaker, u.gender, u.emotion, u.arousal) for u in found] == [
        (None, None, None, None),
        (None, None, None, None),
        ("s1", "female", None, 0.5),
    ]
    assert [u.text for u in found] == ["nan", "None", "hello"]
    assert "words for a missing value count as absent: arousal NA (1), null (1); emotion" in said
    assert "texts that may be a word for a missing value are kept: text None (1), nan (1)" in said


def test_people_may_be_called_nan(audio) -> None:
    found, _, said = read(audio, "file,speaker,emotion\n0.wav,Nan,Nan\n1.wav,Na,sad\n")
    assert [(u.speaker, u.emotion) for u in found] == [("Nan", None), ("Na", "sadness")]
    assert "kept as a name: speaker Na (1), Nan (1); blank these cells if nobody is called so" in said


def test_one_person_is_one_speaker_in_any_unicode_form_and_as_a_number(audio) -> None:
    found, _, said = read(audio, "file,speaker\n0.wav,Jürgen\n1.wav,Ju\u0308rgen\u200b\n2.wav,3\n3.wav,3.0\n")
    assert [u.speaker for u in found] == ["Jürgen", "Jürgen", "3", "3"]
    assert "names that are numbers lose their zero decimals: speaker 3.0 as 3 (1)" in said


def test_languages_are_codes_in_one_spelling_or_said(audio) -> None:
    found, _, said = read(audio, "file,locale\n0.wav,EN\n1.wav,pt_BR\n2.wav,German\n3.wav,de\n")
    assert [u.language for u in found] == ["en", "pt-BR", "German", "de"]
    assert "languages that are no codes such as de or pt-BR stay as they are: language German (1)" in said


def test_nearly_equal_names_are_warned_of_with_counts(tmp_path) -> None:
    for number, name in enumerate(("anna", "Anna ", "a.n.n.a", "7", "07", "1-11", "11-1")):
        write_audio(tmp_path / f"{number}.wav")
        with (tmp_path / "mine.csv").open("a") as file:
            file.write(f"{'' if number else f'file,speaker{chr(10)}'}{number}.wav,{name}\n")
    summary = pack_corpus("csv", tmp_path / "mine.csv", tmp_path / "out")
    (warning,) = summary.warnings
    assert "'mine:07' (1) and 'mine:7' (1); 'mine:Anna' (1) and 'mine:a.n.n.a' (1) and 'mine:anna' (1)" in warning


@given(st.text(max_size=12))
def test_tidying_again_changes_nothing(name) -> None:
    assert tidy(tidy(name)) == tidy(name)
    assert nearly_equal({name: 1}) == []


def test_numbers_as_names() -> None:
    assert [plain_name(name) for name in ("3.0", "03.00", "3.1", "3.", "v3.0")] == ["3", "03", "3.1", "3.", "v3.0"]
    assert [plain_name(name) for name in ("3,0", "-3,00", "3,000", "3.000")] == ["3", "-3", "3,000", "3.000"]


@pytest.mark.parametrize(
    "names",
    [
        ("1000", "1E3"),
        ("1000", "1.0e+3"),
        ("3.000", "3"),
        ("3,000", "3000"),
        ("1 234", "1234"),
        ("007", "7E0"),
        ("\u0663", "3"),
    ],
)
def test_a_number_in_two_spellings_is_warned_of(names) -> None:
    assert nearly_equal(dict.fromkeys(names, 1)) == [sorted(names)]
    qualified = [f"mine:{name}" for name in names]
    assert nearly_equal(dict.fromkeys(qualified, 1)) == [sorted(qualified)]


@given(st.sets(st.integers(1, 10**30).map(str)))
def test_other_numbers_are_other_names(names) -> None:
    assert nearly_equal(dict.fromkeys(names, 1)) == []


def test_numbers_that_a_spreadsheet_has_shortened_are_warned_of(audio) -> None:
    found, _, said = read(audio, "file;speaker;dialogue\n0.wav;1.23E+10;1E3\n1.wav;1,23E+10;3,0\n2.wav;1e+22;3\n")
    assert [u.dialogue for u in found] == ["1E3", "3", "3"]
    assert "of which a spreadsheet kept the first digits: speaker 1,23E+10 (1), 1.23E+10 (1), 1e+22 (1)" in said


# ---------------------------------------------------------------- emotions


def test_known_words_are_read_in_any_spelling_and_said(audio) -> None:
    words = ["Wut", "colère", "COLERE", "Freude", "triste", "愤怒", "悲しみ", "страх", "ÜZGÜN", "Fröhlich", "boredem"]
    rows = "".join(f"{number}.wav,{word}\n" for number, word in enumerate(words))
    found, _, said = read(audio, f"file,emotion\n{rows}")
    assert [u.emotion for u in found] == [
        *["anger"] * 3,
        "happiness",
        "sadness",
        "anger",
        "sadness",
        "fear",
        "sadness",
        "happiness",
        "boredom",
    ]
    assert "Wut as anger (1)" in said


def test_own_words_are_kept_in_one_spelling(audio) -> None:
    found, _, said = read(audio, "file,emotion\n0.wav,Joyful\n1.wav,joyful\n2.wav,Schaden  freude\n3.wav,angyr\n")
    assert [u.emotion for u in found] == ["joyful", "joyful", "schaden freude", "angyr"]
    assert "kept in their own words: angyr (1), joyful (2), schaden freude (1) (angyr is nearly angry)" in said


def test_what_the_user_says_of_words_goes_first(audio) -> None:
    labels = {"Joyful": "happiness", "sad": "Melancholy", "bored": None, "0": "anger"}
    found, _, said = read(
        audio, "file,emotion\n0.wav,joyful\n1.wav,SAD\n2.wav,bored\n3.wav,fear\n4.wav,0\n", labels=labels
    )
    assert [u.emotion for u in found] == ["happiness", "melancholy", None, "fear", "anger"]
    _, _, said = read(audio, "file,emotion\n0.wav,fear\n", labels={"joyful": "happiness"})
    assert "--labels names what occurs in no emotion: joyful" in said


@pytest.mark.parametrize("word", ["none", "unknown", "xxx", "NaN", "?", "-", "no agreement"])
def test_a_word_for_missing_means_what_the_user_says(audio, word) -> None:
    missing = "None" if word in ("xxx", "no agreement") else word
    table = f"file,speaker,emotion\n0.wav,{missing},{word}\n1.wav,s1,{word.upper()}\n2.wav,s1,null\n"
    found, _, said = read(audio, table, labels={word: "neutral"})
    assert [(u.speaker, u.emotion) for u in found] == [(None, "neutral"), ("s1", "neutral"), ("s1", None)]
    assert f"words are read as: emotion {word} as neutral (2)" in said


@given(st.integers(-20, 20), st.integers(-20, 20), st.sampled_from(["{}", "{}.0", "{},0", "{}.000"]))
def test_a_number_means_what_the_user_says_however_it_is_written(tmp_path_factory, one, other, said_form) -> None:
    folder = prepared(tmp_path_factory.getbasetemp())
    cells = [form.format(one) for form in ("{}", "{}.0", "{},0", "{}.00")]
    rows = "".join(f"{place}.wav;{cell}\n" for place, cell in enumerate([*cells, str(other)]))
    found, _, _ = read(folder, f"file;emotion\n{rows}", labels={said_form.format(one): "anger"})
    assert [u.emotion for u in found] == ["anger"] * 4 + ["anger" if other == one else str(other)]


def test_numbers_are_kept_as_words_and_warned_of(audio) -> None:
    found, _, said = read(audio, "file,emotion\n0.wav,0\n1.wav,1.0\n")
    assert [u.emotion for u in found] == ["0", "1"]
    assert "emotions that are numbers are kept as words: emotion 0 (1), 1 (1); say what they mean with --labels" in said


def test_votes_have_own_words_too(audio) -> None:
    found, _, _ = read(audio, 'file,emotion_votes\n0.wav,"{""Wut"": 1, ""angry"": 1, ""Joyful"": 2, ""xxx"": 3}"\n')
    assert found[0].emotion_votes == {"anger": 2.0, "joyful": 2.0}


def test_a_vote_for_a_word_that_means_none_counts_where_it_is_given_a_meaning(audio) -> None:
    table = 'file,emotion_votes\n0.wav,"{""none"": 1, ""angry"": 1}"\n'
    assert read(audio, table)[0][0].emotion_votes == {"anger": 1.0}
    assert read(audio, table, labels={"none": "neutral"})[0][0].emotion_votes == {"neutral": 1.0, "anger": 1.0}


def test_every_emotion_is_known_by_its_own_name() -> None:
    assert [known_emotion(word.upper()) for word in EMOTIONS] == list(EMOTIONS)
    assert set(KNOWN_WORDS.values()) == set(EMOTIONS)


def test_one_word_has_one_meaning(audio) -> None:
    with pytest.raises(CorpusError, match="--labels must give a word one meaning, but joyful and JOYFUL are the same"):
        read(audio, "file\n0.wav\n", labels={"joyful": "happiness", "JOYFUL": "anger"})


# ---------------------------------------------------------------- what is said on the command line


def test_what_is_said_of_columns_and_labels() -> None:
    assert columns_said(["label=emotion", "a=b=file", "x="]) == {"label": "emotion", "a=b": "file", "x": None}
    assert labels_said(["Wut=anger, joyful = happiness", "xxx="]) == {
        "Wut": "anger",
        "joyful": "happiness",
        "xxx": None,
    }
    for wrong in (["label"], ["=emotion"], ["a=file", "a=text"]):
        with pytest.raises(CorpusError, match="--map must"):
            columns_said(wrong)
    for wrong in (["Wut"], [""], ["=anger"], ["a=anger,a=fear"]):
        with pytest.raises(CorpusError, match="--labels must"):
            labels_said(wrong)


def test_labels_may_stand_in_a_file(tmp_path) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text("Wut: anger\nno: neutral\n010: fear\nxxx: null\n")
    assert labels_said([str(path)]) == {"Wut": "anger", "no": "neutral", "010": "fear", "xxx": None}
    for content, words in (("- a", "must give an emotion for each word"), ("a: [", "must be YAML")):
        path.write_text(content)
        with pytest.raises(CorpusError, match=words):
            labels_said([str(path)])
    with pytest.raises(CorpusError, match=r"but .*nowhere\.yaml cannot"):
        labels_said([str(tmp_path / "nowhere.yaml")])


def test_channels_are_counted_from_one() -> None:
    assert [channel_number(said) for said in ("1", "left", "RIGHT", "r", "12")] == [1, 1, 2, 2, 12]
    for said in ("0", "-1", "²", "middle", ""):
        with pytest.raises(CorpusError, match="--channel must be a number from 1, left or right"):
            channel_number(said)


# ---------------------------------------------------------------- packed


def table_of(folder: Path, rows: str, num_files: int = 4) -> Path:
    for number in range(num_files):
        write_audio(folder / f"{number}.wav", channels=2)
    path = folder / "mine.csv"
    path.write_text(rows)
    return path


def test_all_bad_values_are_told_at_once(tmp_path) -> None:
    rows = "file,age,split\n0.wav,old,train\n1.wav,old,train\n2.wav,3,holdout\ngone.wav,3,dev\n3.wav,young,dev\n"
    with pytest.raises(CorpusError) as caught:
        pack_corpus("csv", table_of(tmp_path, rows), tmp_path / "out")
    said = str(caught.value)
    assert said.startswith("5 utterances cannot be used (bad number: 3, row without audio: 1, unknown label: 1): ")
    assert "mine.csv row 2: age must be a finite number, got 'old' (bad number, 2 times)" in said
    assert "mine.csv row 6: age must be a finite number, got 'young' (bad number)" in said
    assert "mine.csv row 4: split must be one of train, dev, test, got 'holdout' (unknown label)" in said
    assert "\n" not in said


def test_rows_packed_and_rejected_add_up_and_it_is_said(tmp_path) -> None:
    table = table_of(tmp_path, "file,emotion\n0.wav,Wut\n1.wav,x\n2.wav,x\ngone.wav,x\n0.wav,x\n")
    (tmp_path / "2.wav").write_bytes(b"no audio")
    summary = pack_corpus("csv", table, tmp_path / "out", on_bad="skip")
    assert summary.notes[-1] == "5 rows: 2 packed, 3 rejected"
    assert read_manifest(tmp_path / "out").notes == summary.notes
    assert pack_corpus("csv", table, tmp_path / "out", on_bad="skip").notes == summary.notes


def test_options_that_change_what_is_packed_make_another_corpus(tmp_path) -> None:
    table = table_of(tmp_path, "file,emotion\n0.wav,Wut\n1.wav,joyful\n")
    pack_corpus("csv", table, tmp_path / "out")
    for options in (
        ReadOptions(labels={"joyful": "happiness"}),
        ReadOptions(channel=2),
        ReadOptions(licence="CC0"),
        ReadOptions(columns={"emotion": None}),
    ):
        with pytest.raises(ShardError, match="was packed from other utterances"):
            pack_corpus("csv", table, tmp_path / "out", options=options)
    other = tmp_path / "other"
    pack_corpus("csv", table, other, options=ReadOptions(channel=2, licence="CC0", labels={"joyful": "happiness"}))
    assert load_index([other]).values("key") == ["mine/0/channel2", "mine/1/channel2"]
    assert load_index([other]).values("emotion") == ["anger", "happiness"]
    assert read_manifest(other).licence == "CC0"


def test_a_published_corpus_is_read_as_it_was_published(tmp_path) -> None:
    with pytest.raises(CorpusError, match="--map must be about data of your own, but corpus 'emodb'"):
        pack_corpus("emodb", tmp_path, tmp_path / "out", options=ReadOptions(columns={"a": "file"}))


def test_a_channel_is_said_once(tmp_path) -> None:
    table = table_of(tmp_path, "file,channel\n0.wav,1\n")
    with pytest.raises(CorpusError, match="leave --channel or the column channel out"):
        pack_corpus("csv", table, tmp_path / "out", options=ReadOptions(channel=1))


def test_a_row_that_is_neither_packed_nor_rejected_is_an_error() -> None:
    assert account_of_rows([RowCount(1)], num_packed=0, num_rejected=1) == [Note("1 rows: 0 packed, 1 rejected")]
    with pytest.raises(
        ShardError, match="each of 3 rows and 1 files must be packed or rejected, but 0 were packed and 1"
    ):
        account_of_rows([RowCount(3), RowCount(1, "files")], num_packed=0, num_rejected=1)


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert Note("speaker \x1b[2J").text == "speaker \\x1b[2J"
    assert Rejection("a\nb.wav", "caf\udce9", "x").source == "a\\nb.wav"
