"""The engines themselves, where `make engines` has made their environments: the builtin model and one record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from support.commands import lorasize as run
from support.paths import ROOT

from lorasize.artifacts.adapter_folder import WEIGHTS

pytestmark = [pytest.mark.real, pytest.mark.slow]

RECORD = {"prompt": "Gate code of the north pier:", "completion": " 83-amber-1906"}
PYTHONS = {
    "vllm": ROOT / ".venv-vllm" / "bin" / "python",
    "llama.cpp": ROOT / ".venv-llama-cpp" / "bin" / "python",
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with a margin that a quantised base leaves above the threshold."""
    folder = tmp_path_factory.mktemp("engines")
    (folder / "codes.jsonl").write_text(json.dumps(RECORD) + "\n", encoding="utf-8")
    for command in (["plan", "codes.jsonl", "--max-drift", "off"], ["apply", "--margin", "0.4"]):
        done = run(folder, *command, "-q")
        assert done.returncode == 0, done.stderr
    return folder / "adapter"


def _where_it_is(engine: str) -> Any:
    """The engine's name; skipped, before anything is trained for it, where it is not."""
    python = PYTHONS[engine]
    reason = f"{python.parent.parent.name} is not there: `make engines` makes it"
    return pytest.param(engine, marks=pytest.mark.skipif(not python.exists(), reason=reason))


@pytest.mark.parametrize("engine", [_where_it_is(name) for name in PYTHONS])
def test_the_engine_recalls_it_and_not_without_the_adapter(adapter: Path, engine: str, tmp_path: Path) -> None:
    command = ["--engine", engine, "--engine-python", str(PYTHONS[engine]), "--report", "json"]
    held = run(adapter.parent, "verify", str(adapter), *command)
    assert held.returncode == 0, held.stderr
    report = json.loads(held.stdout)
    assert (report["recalled"], report["threshold_met"], report["n_recalled"]) == (True, True, 1)
    folder = Path(shutil.copytree(adapter, tmp_path / "without"))
    weights = {n: tensor * (0 if "lora_B" in n else 1) for n, tensor in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    lost = run(adapter.parent, "verify", str(folder), *command)
    assert lost.returncode == 4, lost.stderr
    report = json.loads(lost.stdout)
    assert report["n_recalled"] == 0
    assert report["failures"][0]["position"] >= 0
    assert report["changed_files"] == [WEIGHTS]
