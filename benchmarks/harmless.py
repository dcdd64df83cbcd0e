"""Whether plans under the bound on drift come true, and what they cost beside plans without one.

    python benchmarks/harmless.py [--model MODEL] [--corpora 12 | --tokens 100,150,220,300] [--first-seed 9000]
                                  [--calibration FILE] [--ways bounded,bare,earlier] [--earlier CHECKOUT]
                                  [--folder FOLDER] [--out FILE] [--finished]

Corpora nobody tuned for are made from a seed: prose, code, records, random tokens (support/corpora.py); with
`--tokens`, one of each kind at each of these sizes. Each is planned and applied by the command line with
`--max-drift 0.02` (`bounded`) and `--max-drift off` (`bare`), without growing; `earlier` is an older lorasize, as it
comes, from a checkout of it. What other text suffers and whether the
corpus comes back is told by stock tools alone: examples/harm_check.py and examples/recall_check.py; so is what becomes
of its sibling, a corpus of the same kind and size that it was not trained on. Every finished run is kept in FOLDER, so
the same command goes on where it was stopped; `--finished` plans and trains nothing and judges what is there.

Printed: one line for each run; then how many were recalled, drift and KL as mean and worst kind, of all texts and of
those that are not of the corpus's own kind (code, of corpora of code), the share of positions whose likeliest token
stays, the siblings' KL, seconds of training as a ratio of the two ways, and how often the plan's interval of drift held
what was measured: the larger of growth and KL, as a mean over the texts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.corpora import KINDS, write_corpus

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
WAYS = ("bounded", "bare", "earlier")
CORPORA = (  # kind, and target tokens, about
    ("prose", 150), ("code", 120), ("records", 100), ("random", 100),
    ("prose", 300), ("code", 250), ("records", 180), ("random", 160),
    ("prose", 800), ("code", 500), ("records", 300), ("random", 240),
)  # fmt: skip
BOUND = 0.02  # nats per token: the default, by name
TOKENS = 192  # of each text that harm is measured on
SIBLING = 77  # seed of the corpora that nothing is trained on


def run(*words: object, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A Python command in a process of its own, with the lorasize of a checkout; its output is kept."""
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})


def one_run(corpus: Path, way: str, base: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Plan, apply and look: what came of it."""
    place = corpus.parent / way
    place.mkdir(exist_ok=True)
    plan, adapter, harm = place / "plan.json", place / "adapter", place / "harm.json"
    how: list[object] = ["--model", asked.model, "-q", "--out", plan]
    how += [] if way == "earlier" else ["--max-drift", BOUND if way == "bounded" else "off"]
    root = asked.earlier if way == "earlier" else ROOT
    how += [] if asked.calibration is None else ["--calibration", asked.calibration]
    made = run("-m", "lorasize", "plan", corpus, *how, root=root)
    if made.returncode:
        return {"error": made.stderr.strip()[-300:]}
    applied = run("-m", "lorasize", "apply", plan, "--no-escalate", "--no-learn", "-q", "--out", adapter, root=root)
    if not (adapter / "lorasize.json").is_file():
        return {"error": applied.stderr.strip()[-300:]}
    told, planned = (json.loads(file.read_text(encoding="utf-8")) for file in (adapter / "lorasize.json", plan))
    recalled = run(EXAMPLES / "recall_check.py", base, adapter)
    run(EXAMPLES / "harm_check.py", base, adapter, "--tokens", TOKENS, "--json", harm)
    seen = json.loads(harm.read_text(encoding="utf-8"))
    return {
        "rank": told["adapter"]["rank"],
        "parameters": told["adapter"]["n_parameters"],
        "tokens": told["n_tokens"],
        "nats": planned["demand"]["nats"],
        "exit": applied.returncode,
        "recalled": recalled.returncode == 0,
        "steps": told["steps"],
        "seconds": told["seconds"],
        "predicted": {name: planned["prediction"].get(name) for name in ("steps", "seconds", "drift")},
        "own_drift": {name: told["drift"].get(name) for name in ("nats", "divergence")},
        "mean": seen["mean"],
        "worst": seen["worst"],
    }


def runs(asked: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each corpus and way with what came of it, as it comes."""
    from lorasize import models

    folder = models.open(asked.model, None)
    wanted = [(kind, n) for n in asked.tokens for kind in KINDS] or CORPORA[: asked.corpora]
    for k, (kind, n_tokens) in enumerate(wanted):
        for way in asked.ways.split(","):
            seed = asked.first_seed + k
            name = f"{kind}-{n_tokens}-{seed}"
            place = asked.folder / name
            kept = place / f"{way}.json"
            if not kept.is_file() and not asked.finished:
                place.mkdir(parents=True, exist_ok=True)
                corpus = write_corpus(place, kind, n_tokens, seed, folder.tokenizer)
                found = one_run(corpus, way, str(folder.path), asked)
                kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            if kept.is_file():
                found = json.loads(kept.read_text(encoding="utf-8"))
                beside = of_sibling(place / way, kind, folder.tokenizer, str(folder.path))
                yield name, way, {**found, **of_others(place / way, kind), **beside}


def of_others(place: Path, kind: str) -> dict[str, Any]:
    """What a run did to the texts that are not of the corpus's own kind; nothing of a run that failed."""
    harm = place / "harm.json"
    if not harm.is_file():
        return {}
    texts = json.loads(harm.read_text(encoding="utf-8"))["texts"]
    others = [one for name, one in texts.items() if name != kind]
    growth, kl = ([one[key] for one in others] for key in ("growth", "kl"))
    mean = {"growth": statistics.fmean(growth), "kl": statistics.fmean(kl)}
    return {"others": {"mean": mean, "worst": {"growth": max(growth), "kl": max(kl)}}}


def of_sibling(place: Path, kind: str, tokenizer: Any, base: str) -> dict[str, Any]:
    """What a run did to a corpus like its own, as plain text; nothing of a run that failed."""
    adapter, told = place / "adapter", place / "sibling.json"
    if not adapter.is_dir():
        return {}
    if not told.is_file():
        text = place / "sibling.txt"
        source = write_corpus(place, kind, TOKENS, SIBLING, tokenizer)
        lines = source.read_text(encoding="utf-8").splitlines()
        if kind == "records":
            lines = ["".join(json.loads(one).values()).replace("box ", "box 9") for one in lines]
        text.write_text("\n".join(lines) + "\n", encoding="utf-8")
        run(EXAMPLES / "harm_check.py", base, adapter, text, "--tokens", TOKENS, "--json", told)
    (seen,) = json.loads(told.read_text(encoding="utf-8"))["texts"].values()
    return {"sibling": {name: seen[name] for name in ("growth", "kl", "kept")}}


def line(name: str, way: str, found: dict[str, Any]) -> str:
    """A run in a line."""
    if "error" in found:
        return f"{name:20} {way:8} {found['error']}"
    mean, worst = found["mean"], found["worst"]
    return (
        f"{name:20} {way:8} {found['tokens']:4} tokens {found['nats']:6.0f} nats  rank {found['rank']:3}  "
        f"{'recalled' if found['recalled'] else 'LOST':8} exit {found['exit']}  {found['steps']:4} steps "
        f"({found['predicted']['steps']['point']:4.0f})  {found['seconds']:5.0f} s  growth {mean['growth']:+.4f} "
        f"(worst {worst['growth']['value']:+.4f})  KL {mean['kl']:.4f} (worst {worst['kl']['value']:.4f})  "
        f"kept {mean['kept']:.1%} (least {worst['kept']['value']:.1%})  sibling KL {found['sibling']['kl']:.3f}"
    )


def summary(found: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """The figures over all runs of each way, and both ways compared where both were run."""
    told: dict[str, Any] = {}
    for way in WAYS:
        of = [one for (_, w), one in found.items() if w == way and "error" not in one]
        if not of:
            continue
        moved = [(max(one["mean"]["growth"], one["mean"]["kl"]), one["predicted"]["drift"]) for one in of]
        told[way] = {
            "runs": len(of),
            "recalled": sum(one["recalled"] for one in of),
            "proven": sum(one["exit"] == 0 for one in of),
            "growth, largest mean": max(one["mean"]["growth"] for one in of),
            "growth, worst text": max(one["worst"]["growth"]["value"] for one in of),
            "KL, largest mean": max(one["mean"]["kl"] for one in of),
            "KL, worst text": max(one["worst"]["kl"]["value"] for one in of),
            "without the corpus's own kind": {
                f"{what}, {which}": max(one["others"][key][name] for one in of)
                for name, what in (("growth", "growth"), ("kl", "KL"))
                for key, which in (("mean", "largest mean"), ("worst", "worst text"))
            },
            "KL of the sibling, median": statistics.median(one["sibling"]["kl"] for one in of),
            "KL of the sibling, largest": max(one["sibling"]["kl"] for one in of),
            "kept, least mean": min(one["mean"]["kept"] for one in of),
            "drift within its interval": sum(d is not None and d["lo"] <= drift <= d["hi"] for drift, d in moved),
            "steps within 30 %": sum(0.7 <= one["steps"] / one["predicted"]["steps"]["point"] <= 1.3 for one in of),
            "steps within their interval": sum(
                one["predicted"]["steps"]["lo"] <= one["steps"] <= one["predicted"]["steps"]["hi"] for one in of
            ),
            "median seconds": statistics.median(one["seconds"] for one in of),
        }
    for other in WAYS[1:]:
        both = [name for name, way in found if way == other and "seconds" in found.get((name, "bounded"), {})]
        ratios = [found[name, "bounded"]["seconds"] / found[name, other]["seconds"] for name in both]
        if ratios:
            told[f"seconds, bounded ÷ {other}"] = {"corpora": len(ratios), "median": statistics.median(ratios)}
    return told


def main() -> None:
    """Run what is missing, print what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--corpora", type=int, default=12)
    parser.add_argument("--tokens", type=lambda listed: [int(n) for n in listed.split(",")], default=[])
    parser.add_argument("--first-seed", type=int, default=9000)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--ways", default=",".join(WAYS[:2]))
    parser.add_argument("--earlier", type=Path, metavar="CHECKOUT")
    parser.add_argument("--folder", type=Path, default=Path("harmless"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--finished", action="store_true")
    asked = parser.parse_args()
    found = {}
    for name, way, one in runs(asked):
        found[name, way] = one
        print(line(name, way, one), flush=True)
    told = summary(found)
    print(json.dumps(told, indent=1, ensure_ascii=False))
    if asked.out is not None:
        rows = [{"corpus": name, "way": way, **one} for (name, way), one in found.items()]
        whole = {"model": asked.model, "first_seed": asked.first_seed, "runs": rows, "summary": told}
        asked.out.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
