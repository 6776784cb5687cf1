"""The wheel holds all that an installation needs, and nothing of the checkout."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.wheel

REPOSITORY = Path(__file__).parents[1]
TIMEOUT_S = 300


def run(*command, folder):
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY, folder=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel alone; everything else is seen in the first environment, as packages without a checkout."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, folder=folder)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip())
    # A path in a .pth file comes after site-packages, and the .pth files inside it (the editable install) are not read.
    (packages / "first.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_it_holds_our_three_packages_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"launch", "metaser", "shards"}
    assert "launch/demo.yaml" in names
    assert not [name for name in names if "__pycache__" in name or "test" in name]
    tracked = run("git", "ls-files", "launch/*.py", "metaser/*.py", "shards/*.py", folder=REPOSITORY).split()
    assert set(tracked) <= set(names)


def test_the_packages_come_from_the_wheel(installed, tmp_path):
    program = "import launch, metaser, shards\nfor package in (launch, metaser, shards): print(package.__file__)"
    files = run(installed / "bin" / "python", "-c", program, folder=tmp_path).split()
    assert len(files) == 3
    assert all(Path(file).is_relative_to(installed) for file in files)


def test_the_command_works_outside_the_checkout(installed, tmp_path):
    metaser = installed / "bin" / "metaser"
    assert "predict" in run(metaser, "--help", folder=tmp_path)
    table = tmp_path / "table.csv"
    table.write_text("file,emotion\ntone.wav,anger\n")
    program = "import numpy, soundfile; soundfile.write('tone.wav', 0.1 * numpy.sin(numpy.arange(8000) / 9), 16000)"
    run(installed / "bin" / "python", "-c", program, folder=tmp_path)
    run(metaser, "pack", "csv", table, "shards", "--workers", "1", folder=tmp_path)
    assert '"num_utterances": 1' in run(metaser, "inspect", "shards", "--json", folder=tmp_path)
    program = "from launch.verbs.demo import _config_path; print(_config_path())"
    demo = Path(run(installed / "bin" / "python", "-c", program, folder=tmp_path).strip())
    assert demo.is_relative_to(installed)
    assert "output_dir: runs/demo" in run(metaser, "train", demo, "--print-config", folder=tmp_path)
