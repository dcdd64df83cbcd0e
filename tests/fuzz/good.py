"""Good files of every kind lorasize reads: what the bad ones are made from."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from support.paths import ROOT

from lorasize import records as r
from lorasize.records import to_json

KEY = {"model": "m", "device": "cpu", "dtype": "float32", "recipe": r.RECIPE}  # of the journal

TEXT = (ROOT / "examples/update/page.md").read_bytes()
FENCED = b"# Title\n\n```python\na = 1\n\nb = 2\n```\n\n~~~~\n~~~\n\n~~~~\nlast \xc3\xa9\xf0\x9f\x99\x82\r\n\r\nend"
SHAPES = [
    {"prompt": "Becerra:", "completion": " 9100672710"},
    {"key": 1.50, "value": 12345678901234567890123},
    {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
    {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
    {"text": "whole\u2028line é 🙂"},
]
JSONL = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in SHAPES).encode()
_CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.50}}}]}
_TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"minimum": 0}}}]
CHATS = [
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "u"}], "name": ""}, _CALL,
                  {"role": "tool", "name": "f", "content": "9"}, {"role": "assistant", "content": "a", "weight": 1}],
     "tools": _TOOLS, "chat_template_kwargs": {"enable_thinking": False}, "system": "s", "id": 7},
    {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}],
     "tools": json.dumps(_TOOLS)},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}, {"from": "human", "value": ""}]},
    {"instruction": "Give the hour.", "input": "Maple Street", "output": "06:40", "source": None},
    {"prompts": ["q", [{"role": "user", "content": "q"}]], "completion": 4},
    {"question": "q", "answer": "a"},
]  # fmt: skip
LIST = json.dumps(CHATS, indent=1, ensure_ascii=False).encode()
LINES = "".join(json.dumps(record) + "\n" for record in CHATS).encode()
SEMICOLONS = b'sep=;\r\nprompt;completion;note\r\na;"b;c";\r\n'
CSV = b'key,value,note\r\nNA,007,\r\n"two\r\nlines"," 1,5 ","say ""x"""\r\n\r\nlast,\xc3\xa9,null\r\n'
TSV = b"prompt\tcompletion\nHolm, Agnes\t04\nBell\tding dong\n"
LORASIZE_TOML = b"""model = "builtin:smollm2-135m-instruct"
device = "cpu"
seed = 1
confidence = 0.9
minimize = "parameters"
passage_tokens = 256

[budget]
parameters = 20000
bytes = { limit = "100 KB", against = "upper" }
seconds = { limit = "15 min", level = "warn" }
memory = 8e9
"""
PYPROJECT_TOML = b'''[project]
name = "x"

[tool.lorasize]
device = "cpu"
margin = 0.02

[tool.lorasize.budget]
rank = 8
'''


def parquet() -> tuple[bytes, ...]:
    """A table of two columns and one of chats."""
    import pyarrow
    import pyarrow.parquet

    chat = [[{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]]
    tables = (pyarrow.table({"key": ["NA", "b"], "value": [7, 8]}), pyarrow.table({"messages": chat}))
    return tuple(_written(lambda stream, table=table: pyarrow.parquet.write_table(table, stream)) for table in tables)


def _written(write: Callable[[io.BytesIO], None]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


@cache
def calibration() -> r.Calibration:
    """The shipped one with three of its observations."""
    file = next((ROOT / "calibrations").glob("*.json"))
    found = r.Calibration.model_validate_json(file.read_bytes())
    return found.model_copy(update={"observations": found.observations[:3], "held_out": found.observations[3:4]})


def adapter(**changes: Any) -> r.AdapterSpec:
    """Rank 2 on one module of two layers."""
    values = {
        "rank": 2, "lora_alpha": 2, "target_modules": ("up_proj",), "layers_to_transform": (1, 2),
        "n_parameters": 384, "bytes": 1536, "bits_per_parameter": 0.5,
    }  # fmt: skip
    return r.AdapterSpec(**values | changes)


def plan(corpus: str = "corpus.jsonl", **changes: Any) -> r.Plan:
    """A plan with every part filled."""
    spec, about = adapter(), r.Estimate(point=100, lo=80, hi=150)
    demand = r.PassageDemand(id="corpus.jsonl:1", file=corpus, line=1, n_tokens=4, nats=9.5)
    issue = r.FeasibilityIssue(kind="same_prompt", passages=(0, 1), position=0, file=corpus, line=2, message="two ways")
    values: dict[str, Any] = {
        "status": "ok",
        "model": r.PlanModel(ref="tiny", fingerprint="f", dtype="float32", n_layers=4),
        "corpus": r.CorpusSummary(
            n_passages=3, n_tokens=60, sha256="a", files=(r.CorpusFile(path=corpus, sha256="b"),),
            reading=r.Reading(fields={"prompt": "key"}),
        ),
        "demand": r.Demand(base_loss=3.2, nats=190.0, bits=274.1, n_repeated=2, costliest=(demand,)),
        "feasibility": r.Feasibility(feasible=True, issues=(issue,)),
        "adapter": spec,
        "prediction": r.Prediction(
            final_loss=0.1, loss_reduction=3.1, capacity_slack=1.8, success_probability=0.93, confidence=0.9,
            rank_interval=(1, 4), steps=about, seconds=about, peak_memory_bytes=10**9, extrapolated=False,
        ),
        "alternatives": (r.Alternative(**spec.model_dump(), success_probability=0.91, seconds=99.0),),
        "rules_of_thumb": r.RulesOfThumb(parameters_ge_tokens_rank=3, flat_rank=16),
        "budgets": (r.Budget(id="bytes", limit=4e6, actual=1536, level="error", result="pass"),),
        "serving": r.Serving(vllm_max_lora_rank=8, llama_cpp=True, notes=("PEFT loads the folder as it is.",)),
        "inputs": r.PlanInputs(
            corpus_sha256="a", model_fingerprint="f", tokenizer_sha256="t", calibration_sha256="c", recipe=r.RECIPE
        ),
        "warnings": ("Times were measured on another device.",),
        "compared": (r.Difference(id="rank", before=1, after=2),),
    }  # fmt: skip
    return r.Plan(**values | changes)


def recall() -> r.RecallReport:
    """One passage that came back, and one that did not."""
    failure = r.RecallFailure(passage="corpus.jsonl:2", position=1, expected=" a", got="\n", probability=0.31)
    one = r.PassageRecall(passage="corpus.jsonl:1", recalled=True, n_tokens=4, min_probability=0.7, text="first")
    return r.RecallReport(
        recalled=False, n_passages=2, n_recalled=1, threshold_met=False, min_probability=0.3, failures=(failure,),
        passages=(one,), changed_files=("README.md",), dtype="float32", device="cpu", attn_implementation="sdpa",
        batch_size=1, fresh_process=True,
    )  # fmt: skip


def memorization(**changes: Any) -> r.Memorization:
    """The record of an apply."""
    values: dict[str, Any] = {
        "outcome": r.Outcome.MEMORIZED, "threshold": 0.5, "threshold_met": True, "min_probability": 0.52,
        "n_tokens": 60, "n_stubborn": 0, "recalled": True, "steps": 140, "seconds": 10.0, "tokens_per_second": 840.0,
        "adapter": adapter(), "escalations": (r.Escalation(**{"from": "rank 1"}, to="rank 2", step=90),),
        "recall": r.RecallSummary(**recall().model_dump(include=set(r.RecallSummary.model_fields))),
        "drift": r.Drift(before=1.0, after=1.01, nats=0.01),
        "model_fingerprint": r.ModelFingerprint(weights="w", config="c", tokenizer="t"), "plan": plan(),
        "probabilities": r.Histogram(edges=(0.0, 0.5, 1.0), before=(3, 1), after=(0, 4)),
    }  # fmt: skip
    return r.Memorization(**values | changes)


def artifacts() -> tuple[bytes, ...]:
    """One of each kind that `show` reads."""
    check = r.Check(
        status="stale", plan="p.json", stale=("corpus.jsonl changed",), feasibility=plan().feasibility,
        adapter=adapter(), budgets=plan().budgets, costliest=plan().demand.costliest,  # type: ignore[union-attr]
    )  # fmt: skip
    config = r.Config(values=(r.ConfigValue(key="seed", value=0, source="default"),), files=("lorasize.toml",))
    found = (memorization(), recall(), check, config, plan(), calibration())
    return tuple(to_json(record).encode() for record in found)


def events() -> bytes:
    """Two steps, a growth and a decoding."""
    step = r.StepReport(
        step=1, loss=2.5, n_tokens=60, n_stubborn=40, n_active=50, min_probability=1e-6, seconds=0.5, evaluated=False
    )
    lines: list[dict[str, Any]] = [{"event": "step", **step.model_dump(), "step": k} for k in (1, 2)]
    lines += [{"event": "escalation", "from": "rank 1", "to": "rank 2", "step": 2}]
    lines += [{"event": "decoding", "done": 1, "total": 2}]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def journal() -> bytes:
    """The key and three observations."""
    lines = [json.dumps(KEY, sort_keys=True), *(o.model_dump_json() for o in calibration().observations)]
    return "".join(line + "\n" for line in lines).encode()


def models(folder: Path) -> dict[str, Path]:
    """Tiny models, built in a folder: for the command, which has no fixtures."""
    from support.models import save_tiny_gpt2, save_tiny_llama, save_tokenizer
    from transformers import AutoTokenizer

    for name in ("tokenizer", "tiny-llama", "tiny-gpt2"):
        (folder / name).mkdir()
    tokenizer = AutoTokenizer.from_pretrained(save_tokenizer(folder / "tokenizer"))
    return {
        "tiny_llama": save_tiny_llama(tokenizer, folder / "tiny-llama"),
        "tiny_gpt2": save_tiny_gpt2(tokenizer, folder / "tiny-gpt2"),
    }


def adapter_folder(base: Path, folder: Path) -> Path:
    """A whole adapter folder for this base, of weights that were not trained."""
    from lorasize import models
    from lorasize.artifacts import adapter_folder
    from lorasize.artifacts.adapter_folder import RECORD
    from lorasize.artifacts.events import EVENTS
    from lorasize.corpus import read_corpus
    from lorasize.corpus.tokens import encode_corpus
    from lorasize.models import adapters

    corpus = folder / "corpus.jsonl"
    corpus.write_text('{"key": "Holm:", "value": " 44"}\n', encoding="utf-8")
    loaded = models.load(str(base), device="cpu")
    passages, files = read_corpus([corpus])
    encoded = encode_corpus(passages, loaded.tokenizer, r.Reading(), 256)
    made = plan(str(corpus))
    about = made.model.model_copy(update={"ref": str(base), "fingerprint": loaded.fingerprint.digest})
    summary = made.corpus.model_copy(update={"files": files, "reading": r.Reading()})
    made = made.model_copy(update={"model": about, "corpus": summary})
    out = folder / "adapter"
    out.mkdir()
    adapters.save(adapters.attach(loaded.model, adapter().site, 2, 0), out, str(base))
    adapter_folder.write_addresses([one.address() for one in encoded], out)
    (out / EVENTS).write_bytes(events())
    shown = memorization().recall.model_copy(update={"n_passages": 1, "n_recalled": 1, "failures": ()})
    record = memorization(plan=made, model_fingerprint=loaded.fingerprint, recall=shown)
    (out / RECORD).write_text(to_json(record), encoding="utf-8")
    adapter_folder.write_sums(out)
    return out
