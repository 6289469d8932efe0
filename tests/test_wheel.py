"""What a user gets from a wheel: built from what a clone holds, installed where no source is, and run there.

Nothing is downloaded: the libraries that the wheel needs are those of the environment that runs the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow

LITTLE_DEMO = """
import sys
from pathlib import Path
import espalier
from espalier import cli
from espalier.demo import chain
assert "site-packages" in espalier.__file__ and sys.prefix in espalier.__file__, espalier.__file__
chain.QUICK_SIZES = {"pretrain": 60, "pretrain_dev": 8, "sft_train": 24, "sft_dev": 6, "pref_train": 24, "pref_dev": 6,
                     "prompts": 12, "prompts_dev": 4, "exam": 4}
chain._quicker = lambda: [f"{name}.max_steps=1" for name in chain.TRAINED]
code = chain.run_demo(Path(sys.argv[1]), quick=True)
assert code in (0, 1)  # a step improves nothing; that it is told so is the demo's own business
"""


def run(*words: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A process that cannot find the checkout; its output, where it ends well."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ESPALIER_"))} | more
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def of_a_clone(folder: Path) -> Path:
    """A copy of the files that a clone would have: what git tracks, and what it would if all were added."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no clone: git says which files one has")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clone = of_a_clone(tmp_path_factory.mktemp("clone"))
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, clone, cwd=out)
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that has the wheel, and the libraries of this one."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Only now, so that pip has not taken this environment's own copy for one that is installed there already. A folder
    # that a .pth file names is looked through for modules, but its own .pth files (an editable install) are not read.
    (packages / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", "utf-8")
    return folder / "bin"


def test_a_wheel_holds_all_that_the_package_reads(wheel: Path) -> None:
    source = ROOT / "src"
    ignored = shutil.ignore_patterns("*.pyc", "__pycache__", "*.egg-info")
    wanted = set()
    for folder, folders, files in os.walk(source):
        left_out = ignored(folder, [*folders, *files])
        folders[:] = [name for name in folders if name not in left_out]
        wanted |= {
            (Path(folder) / name).relative_to(source).as_posix() for name in files if name not in left_out
        }
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        licence = archive.read(next(name for name in held if name.endswith("/LICENSE")))
    assert {name for name in held if ".dist-info/" not in name} == wanted
    assert {"espalier/py.typed", "espalier/demo/chain.yaml"} <= held
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_a_fresh_environment_runs_the_commands_and_a_little_demo(fresh: Path, tmp_path: Path) -> None:
    """The demo with data and steps cut down; `espalier demo --quick` itself takes more than a minute."""
    shown = run(fresh / "espalier", "--help", cwd=tmp_path).stdout
    assert "demo" in shown and "evaluate" in shown
    run(fresh / "python", "-c", LITTLE_DEMO, tmp_path / "demo", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert (tmp_path / "demo" / "report.html").is_file()
    assert (tmp_path / "demo" / "grpo" / "model" / "model.safetensors").is_file()
