"""A disk that is full and one that is read-only: a clean error, and what was there before is whole."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import faults as work
from support.models import plan_by_hand
from support.patience import HANGS

from lorasize.artifacts.plans import write_plan
from lorasize.records import Site
from lorasize.training import read_checkpoint

pytestmark = pytest.mark.slow

UP = Site(target_modules=("up_proj",), layers_to_transform=(1, 2))
RECORDS = [(f"{i}:", f" {i * 7919 % 9973} {i * 104729 % 99991}") for i in range(1, 13)]


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of this size in memory, where this user may mount one."""
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system can be mounted by root alone")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def plan(able_llama: Path, tmp_path: Path) -> Path:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"prompt": p, "completion": t}) + "\n" for p, t in RECORDS), "utf-8")
    write_plan(plan_by_hand(able_llama, corpus, UP, 4), tmp_path / "plan.json")
    return tmp_path / "plan.json"


def run(tmp_path: Path, *arguments: str) -> tuple[int | None, str]:
    """Exit code and everything said."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lorasize.verbs.apply", "lorasize.verbs.calibrate"])
    process = context.Process(target=work.command, args=([*arguments, "-q"], str(tmp_path / "said")))
    process.start()
    process.join(HANGS)
    return process.exitcode, (tmp_path / "said").read_text("utf-8")


@pytest.mark.parametrize("size", ["8k", "60k", "96k"])
def test_apply_on_a_full_disk(plan: Path, tmp_path: Path, size: str) -> None:
    with small_disk(tmp_path / "disk", size) as disk:
        code, said = run(tmp_path, "apply", str(plan), "--out", str(disk / "adapter"), "--device", "cpu")
        assert (code, said.startswith("error: "), "No space left on device" in said) == (2, True, True), said
        assert "Traceback" not in said
        left = {path.name for path in disk.iterdir()}
        assert left <= {".adapter.partial"}
        for checkpoint in (disk / ".adapter.partial").glob("*/state.safetensors"):
            assert read_checkpoint(checkpoint) is not None
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert run(tmp_path, "apply", str(plan), "--out", str(disk / "adapter"), "--device", "cpu")[0] == 0
        assert [path.name for path in disk.iterdir()] == ["adapter"]


def test_calibrate_on_a_full_disk(able_llama: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4k") as disk:
        line = ("calibrate", str(able_llama), "--device", "cpu", "--out", str(disk / "calibrations"))
        code, said = run(tmp_path, *line)
        assert (code, said.startswith("error: "), "No space left on device" in said) == (3, True, True), said
        assert [p for p in disk.rglob("*.json")] == []
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert run(tmp_path, *line)[0] == 0
        assert len(os.listdir(disk / "calibrations")) == 1


def test_a_read_only_folder_is_noticed_before_any_work(able_llama: Path, plan: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        code, said = run(tmp_path, "apply", str(plan), "--out", str(disk / "adapter"), "--device", "cpu")
        assert (code, "cannot be written (Read-only file system)" in said, "step 1" in said) == (2, True, False), said
        code, said = run(tmp_path, "calibrate", str(able_llama), "--device", "cpu", "--out", str(disk / "c"))
        assert (code, "cannot be written (Read-only file system)" in said) == (2, True), said
