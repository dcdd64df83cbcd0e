"""What memorising a page does to other text, with and without a bound on it.

    python benchmarks/drift.py [--bound 0.02] [--seeds 2] [--json]

The page of the example update (278 target tokens) is memorised in the adapter that `plan` recommends; the drift is the
loss added on a neutral text that the training may look at (`lorasize/neutral.txt`) and on one it never sees (LICENSE,
its first 2,000 characters), nats per token.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from lorasize import adapters, models
from lorasize.session import ApplyOptions, Session
from lorasize.sizing import plan
from lorasize.training import base_losses, windows

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "examples" / "update" / "page.md"
SEEN = (ROOT / "lorasize" / "neutral.txt").read_text(encoding="utf-8")
UNSEEN = (ROOT / "LICENSE").read_text(encoding="utf-8")[:2000]


def loss(base: models.BaseModel, text: str) -> float:
    """Mean loss of a text by the plain model, whatever adapter is in it, nats per token."""
    return float(torch.cat(base_losses(base, windows(text, base.tokenizer, base.max_positions - 1))).mean())


def run(base: models.BaseModel, sized: Any, seed: int, bound: float | None) -> dict[str, Any]:
    """One training and what it did to both texts."""
    before = {text: loss(base, text) for text in (SEEN, UNSEEN)}
    options = ApplyOptions(seed=seed, device="cpu", max_drift=bound)
    session = Session(base, sized.encoded, sized.plan, options, lambda event: None, SEEN)
    session.run()
    drift = {text: loss(base, text) - before[text] for text in (SEEN, UNSEEN)}
    adapters.detach(session.adapted)
    assert session.outcome is not None
    return {
        "seed": seed, "bound": bound, "outcome": session.outcome.value, "steps": session.steps,
        "seconds": round(session.seconds, 1), "rank": session.spec.rank, "seen": drift[SEEN], "unseen": drift[UNSEEN],
    }  # fmt: skip


def main() -> None:
    """Print every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bound", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    sized = plan([PAGE], device="cpu", dtype="float32")
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
