"""Two packers of one folder, the one stopped before each thing that it does to the file system, the other run whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]

# Forks of one process that has all modules: a packer stops where the audit hook tells it to, on the far side of nothing
# of ours.
PROGRAM = """
import json, os, shutil, sys, traceback
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from tones import folder_bytes, pack_items, tone
from shards.adopt import adopt_shards
from shards.errors import InputError
from shards.survey import verify

EVENTS = {
    "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "fcntl.flock", "os.truncate",
}


def work(way, root):
    if way == "adopt":
        adopt_shards(root / "tars", root / "out")
    elif way == "pack":
        pack_items([tone(0), tone(1)], root / "out", shard_utterances=2)
    else:
        from shards.pack import pack_corpus
        from tones import reader
        pack_corpus(reader([tone(0)], "other"), None, root / "out")


def packer(way, root, stop_at, says, hears):
    \"\"\"Pack in a fork; before the step `stop_at` say so, and wait.\"\"\"
    child = os.fork()
    if child:
        return child
    step = 0

    def hook(event, arguments):
        nonlocal step
        if event not in EVENTS:
            return
        place = arguments[0] if arguments else ""
        if event != "fcntl.flock" and str(root / "out") not in str(place):
            return
        step += 1
        if step == stop_at:
            os.write(says, b"s")
            os.read(hears, 1)

    code = 0
    try:
        if stop_at:
            sys.addaudithook(hook)
        work(way, root)
    except InputError as error:
        code = 2
        if len(str(error).splitlines()) != 1:
            code = 3
    except BaseException:
        traceback.print_exc()
        code = 1
    if stop_at:
        os.write(says, b"e")
    os._exit(code)


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def interleaved(first, second, stop_at, root, whole):
    shutil.rmtree(root / "out", ignore_errors=True)
    (hears_stop, says_stop), (hears_go, says_go) = os.pipe(), os.pipe()
    slow = packer(first, root, stop_at, says_stop, hears_go)
    is_stopped = os.read(hears_stop, 1) == b"s"
    quick = ended(packer(second, root, 0, 0, 0))
    os.write(says_go, b"g")
    codes = [ended(slow), quick]
    for end in (hears_stop, says_stop, hears_go, says_go):
        os.close(end)
    wrong = []
    if not set(codes) <= {0, 2} or 0 not in codes:
        wrong.append(f"exit codes {codes}")
    found = folder_bytes(root / "out")
    if found not in whole.values():
        wrong.append(f"the folder holds {sorted(found)}")
    elif verify([root / "out"]):
        wrong.append("verify refuses it")
    return is_stopped, wrong


root = Path(sys.argv[2])
first, second = sys.argv[3], sys.argv[4]
pack_items([tone(2)], root / "packed")
(root / "tars").mkdir()
shutil.copy(root / "packed" / "tones-000000.tar", root / "tars")
whole = {}
for way in {first, second}:
    child = packer(way, root, 0, 0, 0)
    assert ended(child) == 0
    whole[way] = folder_bytes(root / "out")
    shutil.rmtree(root / "out")
step, faults, is_stopped = 0, [], True
while is_stopped and step < 300:
    step += 1
    is_stopped, wrong = interleaved(first, second, step, root, whole)
    faults += [f"step {step}: {what}" for what in wrong]
print(json.dumps({"steps": step - 1, "faults": faults}))
"""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("pack", "pack"),
        pytest.param("adopt", "adopt", marks=pytest.mark.reliability),
        pytest.param("pack", "another corpus", marks=pytest.mark.reliability),
        pytest.param("adopt", "pack", marks=pytest.mark.reliability),
    ],
)
def test_two_packers_interleaved_at_every_step_leave_one_whole_folder(tmp_path, first, second):
    program = tmp_path / "packers.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), str(TESTS), str(tmp_path), first, second],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["steps"] > 30
    assert found["faults"] == [], done.stderr
