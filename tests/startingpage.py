"""The commands that docs/getting-started.md shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from corpustrees import write, write_audio

PAGE = (Path(__file__).parents[1] / "docs" / "getting-started.md").read_text("utf-8")
COMMANDS = [
    shlex.split(line.replace("\\\n", " "), comments=True)[1:]
    for line in re.findall(r"^    (metaser (?:.*\\\n)*.*)$", PAGE, flags=re.MULTILINE)
]
IS_TEMPLATE = re.compile(r"[A-Z]{4,}|\[|^\.\.\.$")
RUNNABLE = [command for command in COMMANDS if not any(map(IS_TEMPLATE.search, command))]
"""Those without placeholders."""
TABLES = {
    "mine.csv": "file,emotion,speaker\na.wav,angry,anna\nb.wav,sad,ben\n",
    "mapped.csv": "recording_name,mood,internal\na.wav,angry,1\nb.wav,sad,2\n",
    "own.csv": "file,emotion\na.wav,Joyful\nb.wav,Schadenfreude\nc.wav,xxx\n",
    "labels.yaml": "joyful: happiness\nSchadenfreude: contempt\n",
    "calls.csv": "file,channel,emotion,speaker\ncall.wav,0,happy,agent\ncall.wav,1,angry,customer\n",
    "long.csv": "file,emotion\na.wav,happy\n",
    "left.csv": "file,emotion\ncall.wav,happy\n",
    "messy.csv": "file,age\na.wav,old\nb.wav,31\nb.wav,31\ngone.wav,30\n",
    "hf/metadata.csv": "file_name,label\na.wav,happy\n",
    "mine.jsonl": '{"audio_filepath": "a.wav", "offset": 0.01, "duration": 0.05, "text": "hello"}\n',
    "data/emodb/fold_1/emodb_train_fold_1.jsonl": '{"key": "emodb-a", "wav": "downloads/a.wav", "emo": "happy"}\n',
    "database/db.yaml": "name: small\ntables:\n  files: {type: filewise, columns: {emotion: {}}}\n",
    "database/db.files.csv": "file,emotion\na.wav,anger\n",
    "db.segments.csv": "file,start,end,emotion\na.wav,0 days 00:00:00,0 days 00:00:00.05,anger\na.wav,NaT,NaT,fear\n",
}
AUDIO = (
    *("a.wav", "b.wav", "c.wav", "hf/a.wav", "database/a.wav", "downloads/a.wav"),
    *("sorted/anger/1.wav", "sorted/Freude/2.wav"),
)


def write_inputs(folder: Path) -> None:
    """Write what the page's commands pack into `folder`."""
    for name, content in TABLES.items():
        write(folder / name, content)
    write(folder / "gbk.csv", "file,speaker,text\na.wav,王,你今天怎么样\n", "gbk")
    for name in AUDIO:
        write_audio(folder / name)
    write_audio(folder / "call.wav", channels=2)
