"""`examples/harm_check.py`: what stock tools alone say of an adapter's harm, against the same worked out here."""

from __future__ import annotations

import ast
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models import disturb
from support.paths import ROOT

from lorasize import models
from lorasize.models import adapters
from lorasize.records import Site

SCRIPT = ROOT / "examples" / "harm_check.py"
REPORT = ROOT / "lorasize" / "losses" / "texts" / "report"
SITE = Site(target_modules=("up_proj",), layers_to_transform=(1, 2))


def save_adapter(base: Path, out: Path, torch: Any, scale: float) -> Path:
    """The folder, with an adapter that has been moved so far away from zero."""
    adapted = adapters.attach(models.load(str(base), device="cpu").model, SITE, 2, 0)
    if scale:
        disturb(torch, adapted, scale)
    adapted.save_pretrained(out)
    return out


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The script, run here: a process of its own would take seconds to import what it needs."""

    def run(*words: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", ["harm_check.py", *map(str, words)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def by_hand(torch: Any, base: Path, adapter: Path, text: str, n: int) -> dict[str, float]:
    """The same figures from the plain model and from one that the adapter is merged into, one position at a time."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(base)(text).input_ids[:n]
    plain, other = (AutoModelForCausalLM.from_pretrained(base, dtype="float32").eval() for _ in range(2))
    merged = PeftModel.from_pretrained(other, adapter).merge_and_unload()
    with torch.no_grad():
        p, q = (model(input_ids=torch.tensor([ids])).logits[0, :-1].double().softmax(-1) for model in (plain, merged))
    places = range(len(ids) - 1)
    before, after = (-sum(float(r[k, ids[k + 1]].log()) for k in places) / len(places) for r in (p, q))
    kl = sum(float((p[k] * (p[k] / q[k]).log()).sum()) for k in places) / len(places)
    kept = sum(int(p[k].argmax()) == int(q[k].argmax()) for k in places) / len(places)
    found = {"tokens": len(places), "before": before, "after": after, "growth": after - before}
    return found | {"kl": kl, "kept": kept}


def test_it_imports_stock_tools_only() -> None:
    tree = ast.parse(SCRIPT.read_text("utf-8"))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    tops = {name.partition(".")[0] for name in found}
    assert tops - set(sys.stdlib_module_names) == {"peft", "torch", "transformers"}


def test_figures_of_texts_that_are_named(
    tiny_llama: Path, tmp_path: Path, torch: Any, check: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "adapter", torch, 0.3)
    short, long = tmp_path / "short.txt", REPORT / "licence.txt"
    short.write_text("The pilot waits outside.\n", encoding="utf-8")
    check(tiny_llama, adapter, short, long, "--json", tmp_path / "harm.json")
    found = json.loads((tmp_path / "harm.json").read_text("utf-8"))
    assert list(found["texts"]) == [str(short), str(long)]
    for path in (short, long):
        told = by_hand(torch, tiny_llama, adapter, path.read_text("utf-8"), 256)  # positions that this model has
        assert found["texts"][str(path)] == pytest.approx(told, abs=1e-5)
    one, two = found["texts"].values()
    assert two["kl"] > 1e-4
    assert found["mean"]["kl"] == pytest.approx((one["kl"] + two["kl"]) / 2)
    assert found["worst"]["kl"]["value"] == max(one["kl"], two["kl"])
    assert found["worst"]["kept"]["value"] == min(one["kept"], two["kept"])
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == ["tokens", str(short), str(long), "mean", "worst"]
    assert f"{two['kl']:.5f}" in table[2]
    assert f"kl {max(one['kl'], two['kl']):.5f} (" in table[-1]


def test_an_adapter_of_zeros_does_nothing_to_the_texts_of_the_report(
    tiny_llama: Path, tmp_path: Path, torch: Any, check: Callable[..., None]
) -> None:
    check(tiny_llama, save_adapter(tiny_llama, tmp_path / "adapter", torch, 0), "--json", tmp_path / "harm.json")
    found = json.loads((tmp_path / "harm.json").read_text("utf-8"))
    assert list(found["texts"]) == sorted(path.stem for path in REPORT.glob("*.txt"))
    assert {one["growth"] for one in found["texts"].values()} == {0.0}
    assert {one["kept"] for one in found["texts"].values()} == {1.0}
    assert found["worst"]["kl"]["value"] == pytest.approx(0, abs=1e-6)


def test_the_texts_of_the_report_are_found_away_from_the_checkout(tmp_path: Path) -> None:
    copy = tmp_path / "here" / "harm_check.py"
    copy.parent.mkdir()
    copy.write_bytes(SCRIPT.read_bytes())
    assert runpy.run_path(str(copy))["held_out"]() == {path.stem: path for path in sorted(REPORT.glob("*.txt"))}


def test_a_text_of_one_token_cannot_be_looked_at(
    tiny_llama: Path, tmp_path: Path, torch: Any, check: Callable[..., None]
) -> None:
    (tmp_path / "one.txt").write_text("a", encoding="utf-8")
    adapter = save_adapter(tiny_llama, tmp_path / "adapter", torch, 0)
    with pytest.raises(SystemExit, match=r"one\.txt: fewer than two tokens"):
        check(tiny_llama, adapter, tmp_path / "one.txt")
