"""The part `real` of gpu.py: the commands as people type them, on the builtin model. No script."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from support.corpora import write_corpus
from support.gpu_rows import Rows

from lorasize import models

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = [ROOT / "examples" / "update" / name for name in ("page.md", "table.jsonl")]
CORPORA = (("prose", 240), ("code", 240), ("records", 150))
SEED = 300
WAYS = ((), ("--merged",), ("--batch-size", "8"))
BARE = ("--max-drift", "off")
INSIDE = "LORASIZE_GPU_TINY"


@contextlib.contextmanager
def in_this_process(*, wanted: bool = True) -> Iterator[None]:
    """Let commands run in this process while this is open, if `wanted`: they start no Python of their own."""
    before = os.environ.get(INSIDE)
    try:
        if wanted:
            os.environ[INSIDE] = "1"
        yield
    finally:
        os.environ.pop(INSIDE, None)
        os.environ.update({} if before is None else {INSIDE: before})


def lorasize(*arguments: Any, cwd: Path) -> tuple[float, int, str]:
    """Run the command: seconds, exit code, and what it said. With `INSIDE` set it is no process of its own."""
    began, words = time.perf_counter(), [str(one) for one in arguments]
    if os.environ.get(INSIDE):
        said, code = _inside(words, cwd)
    else:
        command = [sys.executable, "-m", "lorasize", *words]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        said, code = f"{done.stdout}\n{done.stderr}", done.returncode
    seconds = time.perf_counter() - began
    with (cwd / "commands.log").open("a", encoding="utf-8") as log:
        log.write(f"$ lorasize {' '.join(words)}\n{said}\nexit {code}, {seconds:.1f} s\n\n")
    print(said[-1500:], flush=True)
    return seconds, code, said


def _inside(words: list[str], cwd: Path) -> tuple[str, int]:
    from lorasize.cli import main

    said, before = io.StringIO(), Path.cwd()
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main(words)
    finally:
        os.chdir(before)
    return said.getvalue(), code


def calibrated(rows: Rows, device: str, folder: Path, preset: str, *model: Any) -> Path | None:
    """Calibrate by the command, the builtin model or the one that is named; the file."""
    seconds, code, _ = lorasize(
        "calibrate", *model, "--preset", preset, "--device", device, "--out", folder / preset, "-q", cwd=folder
    )
    limit = 120 if preset == "standard" else 180
    good = seconds <= limit and not code
    rows.add(f"calibrate --preset {preset}", seconds, "s", wanted=f"<= {limit}, exit 0", good=good)
    files = sorted((folder / preset).glob("*.json"))
    if not files:
        return None
    made = json.loads(files[0].read_bytes())
    probes = made["observations"]
    rows.add("... probes, and steps of all", f"{len(probes)}, {sum(o['steps'] for o in probes)}")
    rows.add("... probes that held every token", sum(o["threshold_met"] for o in probes))
    rows.add("... r² of the law", made["law"]["r_squared"])
    rows.add("... seconds of the probes alone", sum(o["seconds"] for o in probes), "s")
    if (bounded := made.get("bounded")) is not None:
        rows.add("... probes under a bound", len(bounded["observations"]))
    return files[0]


def memorised(
    rows: Rows, what: str, corpus: list[Path], calibration: Path | None, device: str, folder: Path, *more: Any
) -> Path | None:
    """Plan, with what more is asked, and apply; the adapter's folder. Without a calibration, by the nearest."""
    folder.mkdir(parents=True, exist_ok=True)
    known = () if calibration is None else ("--calibration", calibration)
    seconds, code, _ = lorasize("plan", *corpus, *known, "--device", device, *more, "--out", "plan.json", cwd=folder)
    plan = json.loads((folder / "plan.json").read_bytes()) if (folder / "plan.json").exists() else {}
    rows.add(f"{what}: plan", seconds, "s", wanted="exit 0", good=not code)
    if code:
        return None
    adapter, predicted = plan["adapter"], plan["prediction"]
    where = f"rank {adapter['rank']} {','.join(adapter['target_modules'])} {adapter['layers_to_transform']}"
    rows.add("... adapter", f"{where}, {adapter['n_parameters']} parameters, {plan['corpus']['n_tokens']} tokens")
    steps = predicted["steps"]
    rows.add("... steps predicted", f"{steps['point']:.0f} ({steps['lo']:.0f} to {steps['hi']:.0f})")
    seconds, code, _ = lorasize("apply", "plan.json", "--device", device, "--no-escalate", "--no-learn", cwd=folder)
    rows.add(f"{what}: from apply to proof", seconds, "s", wanted="<= 30, exit 0", good=seconds <= 30 and not code)
    made = folder / "adapter"
    if not (made / "lorasize.json").exists():
        return None
    record = json.loads((made / "lorasize.json").read_bytes())
    recall = record["recall"]
    n = f"{recall['n_recalled']} of {recall['n_passages']}"
    rows.add("... passages recalled", n, good=recall["n_recalled"] == recall["n_passages"])
    rows.add("... steps, and seconds of training", f"{record['steps']}, {record['seconds']:.2f}")
    told_drift(rows, record["drift"])
    return made


def told_drift(rows: Rows, drift: dict[str, Any]) -> None:
    """What the adapter does to text that its training did not look at, against the bound where there was one."""
    bound, grown = drift["bound"], drift["nats"]
    wanted = {} if bound is None else {"wanted": f"<= {bound}", "good": grown <= bound}
    rows.add("... growth of the loss of other text", grown, "nats per token", **wanted)
    rows.add("... KL(base || adapted) there", drift["divergence"], "nats per token")
    kept = [one["unchanged"] for one in drift["texts"]]
    rows.add("... positions whose likeliest token stays", sum(kept) / len(kept))


def verified(rows: Rows, adapter: Path, device: str, folder: Path, ways: Sequence[tuple[str, ...]]) -> None:
    """Verify, in each of these ways."""
    for how in ways:
        seconds, code, said = lorasize("verify", adapter, "--device", device, *how, cwd=folder)
        found = re.search(r"(\d+ of \d+)", said)
        said = f"verify {' '.join(how) or 'plain'}: {found[1] if found else ''}"
        rows.add(said, seconds, "s", wanted="exit 0", good=not code)


def alone(rows: Rows, adapter: Path, device: str, folder: Path, model: Path | None = None) -> None:
    """The example script of transformers and PEFT alone, on the card."""
    base = model or models.resolve(models.BUILTIN)
    script = (ROOT / "examples" / "recall_check.py").read_text(encoding="utf-8")
    dtype = "bfloat16" if device == "cuda" else "float32"
    copy = folder / "recall_alone.py"
    copy.write_text(f"import torch\ntorch.set_default_device({device!r})\n{script.replace('float32', dtype)}", "utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, copy, base, adapter], cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    n = done.stdout.count("recalled ")
    said = "by transformers and PEFT alone, on the device: passages recalled"
    rows.add(said, n, wanted="exit 0", good=not done.returncode)


def real(rows: Rows, device: torch.device, folder: Path, *, tiny: bool) -> None:
    """All of it; `tiny` makes no calibration, starts no command as a process, and verifies in one way."""
    folder.mkdir(parents=True, exist_ok=True)
    kind, shipped = device.type, next((ROOT / "calibrations").glob("builtin*cpu*.json"))
    corpus, ways = EXAMPLE, WAYS
    if tiny:
        short = folder / "short.txt"
        short.write_text("The kettle is in the third drawer, beside the amber lantern.\n", encoding="utf-8")
        corpus, ways = [short], WAYS[:1]
    with in_this_process(wanted=tiny):
        made = None if tiny else calibrated(rows, kind, folder, "standard")
        what, given = "example page and table", (made or shipped, kind)
        adapter = None if tiny else memorised(rows, what, corpus, *given, folder / "example")
        bare = memorised(rows, f"{what}, no bound", corpus, *given, folder / "bare", *BARE)
    with in_this_process():  # what follows is about what comes back
        if (proven := adapter or bare) is not None:
            alone(rows, proven, kind, proven.parent)
            verified(rows, proven, kind, proven.parent, ways)
        for name, tokens in () if tiny else CORPORA:
            at = folder / name
            at.mkdir(parents=True, exist_ok=True)
            path = write_corpus(at, name, tokens, SEED, models.load_tokenizer(models.resolve(models.BUILTIN)))
            memorised(rows, f"{name}, {tokens} tokens", [path], *given, at)
