"""What users install: the wheel carries calibrations and the example, and finds them without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from support.paths import ROOT
from support.patience import HANGS

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints, run where no checkout is on the path."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with the hatchling of this environment: nothing is downloaded."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel")
    run(*pip, "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out, ROOT, cwd=out)
    (built,) = out.glob("lorasize-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an empty environment that holds the wheel alone, without its dependencies."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder, system_site_packages=False, with_pip=False, symlinks=os.name != "nt")
    inside = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", inside)
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return inside


def test_wheel_carries_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"lorasize/examples/page.md", "lorasize/examples/table.jsonl", "lorasize/py.typed"} <= set(names)
    assert {f"lorasize/report/formats/html/{name}" for name in ("page.html.jinja", "style.css")} <= set(names)
    assert [n for n in names if n.startswith("lorasize/calibrations/") and n.endswith(".json")]
    texts = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lorasize/losses/texts").rglob("*.txt")}
    assert len(texts) >= 20
    assert texts <= set(names)


def test_wheel_carries_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.partition("/")[0].partition("-")[0] for n in names} == {"lorasize"}
    assert [n for n in names if "__pycache__" in n or n.endswith(".journal.jsonl")] == []


def test_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert any(n.endswith("/licenses/LICENSE") for n in archive.namelist())
    assert str(metadata.get_payload()).strip() == (ROOT / "README.md").read_text("utf-8").strip()


RESOURCES = """
import sys
from importlib.resources import files
import lorasize
root = files("lorasize")
assert root.joinpath("examples", "page.md").is_file()
print(lorasize.__file__)
print(lorasize.__version__)
print(*sorted(f.name for f in root.joinpath("calibrations").iterdir() if f.name.endswith(".json")))
"""


def test_resources_are_found_without_the_checkout(python: Path) -> None:
    file, version, calibrations = run(python, "-I", "-c", RESOURCES, cwd=python.parent).split("\n", 2)
    assert Path(file).is_relative_to(python.parent.parent)
    assert f'__version__ = "{version}"' in (ROOT / "lorasize" / "__init__.py").read_text("utf-8")
    assert calibrations.split()


def test_console_script(python: Path) -> None:
    script = python.parent / ("lorasize.exe" if os.name == "nt" else "lorasize")
    assert script.is_file()
    assert os.access(script, os.X_OK)
    entry = "from importlib.metadata import entry_points as e; print(*(p.value for p in e(group='console_scripts')))"
    assert "lorasize.cli:main" in run(python, "-I", "-c", entry, cwd=python.parent).split()
