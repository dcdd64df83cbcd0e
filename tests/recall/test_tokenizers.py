"""Records once lost with Mistral's tokenizers though the adapter held them: planned, applied, verified, and checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.models import save_able_llama
from support.paths import ROOT
from support.tokenizers import EXACT

from lorasize import cli
from lorasize.artifacts.adapter_folder import read_addresses, read_record

CHAT = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "Pier 9."}]
RECORDS: list[dict[str, Any]] = [{"prompt": "Colour of the buoy: ", "completion": "red"}, {"messages": CHAT}]
TARGETS = ["Pier 9.", "red", "Pier 9."]


@pytest.fixture(params=["Mistral 7B v0.1", "Mistral 7B v0.3"])
def base(request: pytest.FixtureRequest, torch: Any, tmp_path: Path) -> Path:
    """A tiny Llama with one of these tokenizers."""
    for name in ("tokenizer", "base"):
        (tmp_path / name).mkdir()
    tokenizer = EXACT[request.param](tmp_path / "tokenizer")
    return save_able_llama(tokenizer, tmp_path / "base")


@pytest.mark.slow
def test_plan_apply_verify_and_the_check_by_hand(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("page.md").write_text("Pier 9.\n", "utf-8")
    Path("records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS), "utf-8")
    where = ["--model", str(base), "--device", "cpu", "-q", "--max-drift", "off"]
    assert cli.main(["plan", "page.md", "records.jsonl", *where]) == 0
    assert cli.main(["apply", "--device", "cpu", "-q"]) == 0
    assert read_record(Path("adapter")).proven
    capsys.readouterr()
    assert cli.main(["verify", "adapter", "--device", "cpu", "-q", "--report", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["text"] for one in report["passages"]] == TARGETS

    Path("page.md").unlink()  # without the corpus texts are compared by their digests: by the same rule
    assert cli.main(["verify", "adapter", "--device", "cpu", "-q"]) == 0
    checked = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "recall_check.py"), str(base), "adapter"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert checked.stdout.splitlines() == [f"recalled {one.id}" for one in read_addresses(Path("adapter"))]
    assert (checked.returncode, len(read_addresses(Path("adapter")))) == (0, 3)
