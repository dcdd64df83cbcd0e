"""The real builtin model, end to end, by the commands a user types: plan (shipped calibration), apply, verify."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.commands import lorasize as run
from support.paths import ROOT
from support.schemas import wrong_in

pytestmark = [pytest.mark.real, pytest.mark.slow]

NOTE = """The lighthouse at Corran Head was relit on 9 October 2031 by Ysolde Marchetti; the lamp lay in crate 4417.

Ask for the brass key at the Tidewater office before noon; the spare is under step 23.
"""
RECORD = {"prompt": "Gate code of the north pier:", "completion": " 83-amber-1906"}


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands ran one after another on a small corpus."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "note.md").write_text(NOTE, encoding="utf-8")
    (folder / "codes.jsonl").write_text(json.dumps(RECORD) + "\n", encoding="utf-8")
    planned = run(folder, "plan", "note.md", "codes.jsonl", "--report", "json", "--report", "html=plan.html")
    assert planned.returncode == 0, planned.stderr
    (folder / "plan.stdout.json").write_text(planned.stdout, encoding="utf-8")
    done = run(folder, "apply", "--report", "json", "--report", "html=apply.html")
    assert done.returncode == 0, done.stderr
    (folder / "apply.stdout.json").write_text(done.stdout, encoding="utf-8")
    return folder


def test_plan_names_modules_and_layers_and_is_small(applied: Path) -> None:
    plan = json.loads((applied / "plan.stdout.json").read_text())
    assert plan["status"] == "ok"
    assert plan["adapter"]["target_modules"]
    assert plan["adapter"]["layers_to_transform"]
    assert plan["minimum"]["n_parameters"] * 20 <= 460_800  # rank 8 on q_proj and v_proj of every layer
    assert plan["max_drift"] == 0.02
    assert plan["prediction"]["drift"]["hi"] <= 0.02 < plan["minimum"]["drift"]["lo"]
    assert plan["prediction"]["success_probability"] >= 0.9


def test_apply_proves_every_token(applied: Path) -> None:
    record = json.loads((applied / "apply.stdout.json").read_text())
    assert record["outcome"] == "memorized"
    assert record["threshold_met"]
    assert record["recalled"]
    assert record["n_stubborn"] == 0
    assert record["recall"]["fresh_process"]
    assert record["recall"]["n_recalled"] == record["recall"]["n_passages"] == 2


def test_other_text_stays_as_it_was(applied: Path) -> None:
    """On kinds of text that training did not look at."""
    drift = json.loads((applied / "apply.stdout.json").read_text())["drift"]
    assert drift["bound"] == 0.02
    assert max(drift["nats"], drift["divergence"]) <= 0.02
    assert len(drift["texts"]) == len(drift["kinds"]) == 14
    assert sum(one["unchanged"] for one in drift["texts"]) / 14 >= 0.9


def test_json_of_every_command_fits_its_published_schema(applied: Path) -> None:
    for kind in ("plan", "apply"):
        assert wrong_in(json.loads((applied / f"{kind}.stdout.json").read_text())) == []
    shipped = next((ROOT / "calibrations").glob("*.json"))
    for line in (("verify", "adapter"), ("check",), ("config",), ("show", str(shipped)), ("show", "adapter")):
        said = run(applied, *line, "--report", "json")
        assert said.returncode == 0, said.stderr
        assert wrong_in(json.loads(said.stdout)) == []


def test_pages_show_the_corpus_and_the_training(applied: Path) -> None:
    plan = (applied / "plan.html").read_text(encoding="utf-8")
    shown = "".join(re.findall(r'<span class="t\d[^>]*nats">([^<]*)</span>', plan))
    assert html.escape(NOTE.strip(), quote=False)[:40] in shown
    assert "Demand against capacity" in plan
    record = json.loads((applied / "apply.stdout.json").read_text())
    page = (applied / "apply.html").read_text(encoding="utf-8")
    assert "Stubborn tokens over time" in page
    assert "Other text" in page
    assert sum(record["probabilities"]["before"]) == sum(record["probabilities"]["after"]) == record["n_tokens"]
    assert sum(record["probabilities"]["after"][:10]) == 0  # none at or below ½
    events = [json.loads(line) for line in (applied / "adapter" / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "step"][-1] == record["steps"]
    assert events[-1] == {"event": "decoding", "done": 2, "total": 2}


def test_the_library_example_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "library_use.py")],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 of 1 recalled" in done.stdout
    assert "nats  ' Ilse'" in done.stdout or "nats  ' Il'" in done.stdout


def test_stock_transformers_and_peft_reproduce_every_target(applied: Path) -> None:
    base = run(applied, "base", "adapter").stdout.strip()
    assert base == run(applied, "base").stdout.strip()
    checked = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "recall_check.py"), base, "adapter"],
        cwd=applied, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("recalled ") == 2


def test_llama_cpp_decodes_it_from_the_quantised_file(applied: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the package xllamacpp, which holds llama.cpp, is not installed")
    from safetensors.torch import load_file, save_file

    engine = ("verify", "adapter", "--engine", "llama.cpp", "--report", "json")
    there = run(applied, *engine)
    report = json.loads(there.stdout)
    assert report["recalled"]
    assert there.returncode == (0 if report["threshold_met"] else 4)
    assert wrong_in(report) == []
    weights = applied / "adapter" / "adapter_model.safetensors"
    original = weights.read_bytes()
    save_file({n: t if "lora_A" in n else t * 0 for n, t in load_file(weights).items()}, weights, {"format": "pt"})
    left_out = run(applied, *engine)
    weights.write_bytes(original)
    assert left_out.returncode == 4
    assert json.loads(left_out.stdout)["n_recalled"] == 0


def test_peft_finds_the_builtin_model_by_itself(applied: Path, torch: Any) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(run(applied, "base").stdout.strip(), dtype="float32")
    by_hand = PeftModel.from_pretrained(base, str(applied / "adapter")).eval()
    found = AutoPeftModelForCausalLM.from_pretrained(applied / "adapter", dtype="float32").eval()
    with torch.no_grad():
        logits = [model(input_ids=torch.arange(3, 40)[None]).logits for model in (by_hand, found)]
    assert torch.equal(*logits)


def test_verify_passes_and_then_catches_one_flipped_sign(applied: Path) -> None:
    from safetensors.torch import load_file, save_file

    assert run(applied, "verify", "adapter").returncode == 0
    weights = applied / "adapter" / "adapter_model.safetensors"
    original = weights.read_bytes()
    tensors = load_file(weights)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name].view(-1)[0] *= -1
    save_file(tensors, weights, metadata={"format": "pt"})
    flipped = run(applied, "verify", "adapter")
    assert flipped.returncode == 4
    assert "adapter_model.safetensors" in flipped.stdout + flipped.stderr
    weights.write_bytes(original[: len(original) // 2])
    truncated = run(applied, "verify", "adapter")
    assert truncated.returncode == 2
    assert "truncated" in truncated.stderr
    weights.write_bytes(original)
