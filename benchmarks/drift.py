"""What memorising a page does to other text, with and without a bound on it.

    python benchmarks/drift.py [--bound 0.02] [--seeds 2] [--corpora 0] [--first-seed 100] [--json]
    python benchmarks/drift.py --measure CALIBRATION

The page of the example update (278 target tokens) is memorised in the adapter that `plan` recommends; the drift is the
loss added on a neutral text that the training may look at (`lorasize/losses/neutral.txt`) and on one it never sees
(LICENSE, its first 2,000 characters), nats per token.

With `--corpora N` the first N corpora of plan_accuracy.py are memorised instead, each in its recommended adapter and
without a bound, and the drift on the neutral text is held against what `plan` predicts from the calibration's probes.

With `--measure` the probes of a calibration that were run before probes told their drift are run again, and it is
written into the file. Nothing else in it changes: a probe is a function of its spec.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from support.corpora import corpora, write_corpus

from lorasize import models
from lorasize.artifacts.calibrations import read_calibration, write_calibration
from lorasize.losses.base import base_losses
from lorasize.losses.neutral import neutral_text, windows
from lorasize.models import adapters
from lorasize.probing import run_probe
from lorasize.training.run import ApplyOptions, Session
from lorasize.verbs.plan import PlanOptions, plan

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "examples" / "update" / "page.md"
SEEN = neutral_text()
BARE = PlanOptions(max_drift=math.inf)  # the smallest adapter, whatever it does to other text
UNSEEN = (ROOT / "LICENSE").read_text(encoding="utf-8")[:2000]


def loss(base: models.BaseModel, text: str) -> float:
    """Mean loss of a text by the plain model, whatever adapter is in it, nats per token."""
    return float(torch.cat(base_losses(base, windows(text, base.tokenizer, base.max_positions - 1, base.n_ids))).mean())


def run(base: models.BaseModel, sized: Any, seed: int, bound: float | None) -> dict[str, Any]:
    """One training and what it did to both texts."""
    before = {text: loss(base, text) for text in (SEEN, UNSEEN)}
    options = ApplyOptions(seed=seed, device="cpu", max_drift=bound)
    session = Session(base=base, encoded=sized.encoded, plan=sized.plan, options=options, retained=SEEN)
    session.run()
    state = session.state
    drift = {text: loss(base, text) - before[text] for text in (SEEN, UNSEEN)}
    adapters.detach(session.adapted)
    assert state.outcome is not None
    return {
        "seed": seed, "bound": bound, "outcome": state.outcome.value, "steps": state.steps,
        "seconds": round(state.seconds, 1), "rank": state.spec.rank, "seen": drift[SEEN], "unseen": drift[UNSEEN],
    }  # fmt: skip


def predicted(base: models.BaseModel, kind: str, n_tokens: int, seed: int) -> dict[str, Any]:
    """One corpus: drift on the neutral text, and what the plan said of it."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_corpus(Path(folder), kind, n_tokens, seed, base.tokenizer)
        sized = plan([file], device="cpu", dtype="float32", options=BARE)
    assert sized.plan.prediction is not None
    assert sized.plan.prediction.drift is not None
    assert sized.plan.demand is not None
    told = sized.plan.prediction.drift
    row = run(base, sized, 0, None)
    row |= {"kind": kind, "n_tokens": sized.plan.corpus.n_tokens, "nats": round(sized.plan.demand.nats)}
    return row | {"predicted": told.model_dump(), "covered": told.lo <= row["seen"] <= told.hi}


def spread(rows: list[dict[str, Any]]) -> str:
    """How wide the drifts lie, and how much of that the nats of the corpus explain."""
    logs = [math.log(max(1e-3, row["seen"])) for row in rows]
    share = statistics.correlation(logs, [math.log(row["nats"]) for row in rows]) ** 2
    return (
        f"{len(rows)} corpora: geometric mean {math.exp(statistics.fmean(logs)):.2f} nats per token, spread "
        f"{statistics.stdev(logs):.2f} in ln; ln nats explain {share:.0%} of its variance; "
        f"{sum(row['covered'] for row in rows)} inside the predicted interval"
    )


def measure(path: Path) -> None:
    """Give every observation of a calibration its drift."""
    read = read_calibration(path)
    base = models.load(models.BUILTIN, device="cpu", dtype=read.dtype)
    told = []
    for k, old in enumerate(read.observations, 1):
        seen = old if old.drift is not None else run_probe(base, old.probe)
        if seen.steps != old.steps:
            raise SystemExit(f"probe {k} took {seen.steps} steps where {old.steps} are noted: another probe")
        told.append(old.model_copy(update={"drift": seen.drift}))
        print(f"probe {k} of {len(read.observations)}: {seen.steps} steps, drift {seen.drift:+.2f}", flush=True)
    write_calibration(read.model_copy(update={"observations": tuple(told)}), path)


def main() -> None:
    """Print every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bound", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--corpora", type=int, default=0)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", type=Path, metavar="CALIBRATION")
    chosen = parser.parse_args()
    if chosen.measure:
        measure(chosen.measure)
        return
    if chosen.corpora:
        base = models.load(models.BUILTIN, device="cpu", dtype="float32")
        found = [predicted(base, *corpus) for corpus in corpora(chosen.corpora, chosen.first_seed)]
        for row in [] if chosen.json else found:
            lo, point, hi = (row["predicted"][name] for name in ("lo", "point", "hi"))
            print(
                f"{row['kind']:8} {row['n_tokens']:4} tokens, {row['nats']:5} nats, {row['steps']:4} steps: drift "
                f"{row['seen']:+.2f}, predicted {point:.1f} ({lo:.1f} to {hi:.1f})"
            )
        print(json.dumps(found) if chosen.json else spread(found))
        return
    sized = plan([PAGE], device="cpu", dtype="float32", options=BARE)
    base = models.load(models.BUILTIN, device="cpu", dtype="float32")
    rows = [run(base, sized, seed, bound) for seed in range(chosen.seeds) for bound in (None, chosen.bound)]
    if chosen.json:
        print(json.dumps(rows))
        return
    for row in rows:
        asked = "no bound" if row["bound"] is None else f"bound {row['bound']:g}"
        print(
            f"seed {row['seed']}, {asked:10} {row['outcome']}, rank {row['rank']}, {row['steps']} steps, "
            f"{row['seconds']:.0f} s; drift {row['seen']:+.4f} on the text looked at, {row['unseen']:+.4f} on the other"
        )


if __name__ == "__main__":
    main()
