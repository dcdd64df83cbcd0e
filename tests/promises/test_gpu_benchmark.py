"""`benchmarks/gpu.py --tiny`: every part goes through on a CPU: no time on a card is spent on a typing error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.real]


def run(folder: Path, *parts: str) -> list[dict[str, Any]]:
    """The rows of these parts."""
    limits = [f"--seconds={part}=1200" for part in parts]
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", *parts, *limits, "--out", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / "results.json").read_bytes())
    assert found["about"]["tiny"] is True
    rows: list[dict[str, Any]] = found["rows"]
    assert {row["part"] for row in rows} == set(parts)
    assert [row for row in rows if row["what"] == "broke off" or "Error" in str(row["value"])] == []
    return rows


def test_what_a_card_computes_is_compared_and_large_models_are_timed(tmp_path: Path) -> None:
    rows = run(tmp_path, "correct", "large")
    correct = [row for row in rows if row["part"] == "correct"]
    assert len(correct) > 20
    assert [row for row in correct if row.get("good") is False] == []
    assert any("a quick calibration's" in row["what"] for row in rows)


def test_the_commands_run_and_the_peers_train(tmp_path: Path) -> None:
    rows = run(tmp_path, "real", "disk", "peers")
    assert [row["value"] for row in rows if row["what"] == "... passages recalled"] == ["1 of 1", "1 of 1"]
    assert any("HF Trainer" in row["what"] for row in rows)
