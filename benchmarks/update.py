"""What an update costs: 5 of 60 records changed, trained on from the old adapter and from scratch.

    python benchmarks/update.py [--seed 0] [--folder FOLDER] [--json]

60 records such as "Code of box 17:" with six digits are memorised in the adapter that `plan` recommends, under its
bound on drift; then five get new digits. Printed: steps and seconds of the update and of a fresh run on the changed
records, how many of the 60 come back from disk in a fresh process, how many of the five old values still do, and how
far other text moved. Finished runs in the folder are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lorasize.artifacts.adapter_folder import read_record
from lorasize.records import Memorization
from lorasize.training.run import ApplyOptions
from lorasize.verbs.apply import apply
from lorasize.verbs.plan import PlanOptions, plan

RECORDS, CHANGED = 60, 5


def write(path: Path, values: list[str]) -> Path:
    """The records as JSONL."""
    rows = [{"prompt": f"Code of box {k}:", "completion": f" {value}"} for k, value in enumerate(values, 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(corpus: Path, out: Path, seed: int, base: Path | None = None) -> tuple[Any, Memorization]:
    """The plan of a corpus and what apply did, from `base` where there is one."""
    sized = plan([corpus], device="cpu", dtype="float32", options=PlanOptions(base_adapter=base))
    if not (out / "lorasize.json").exists():
        apply(sized.plan, out, ApplyOptions(seed=seed, device="cpu"))
    return sized.plan, read_record(out)


def moved(record: Memorization) -> float:
    """How far other text moved, nats per token."""
    assert record.drift is not None
    return round(record.drift.moved, 4)


def main() -> None:
    """Print the three runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("update-cost"))
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(chosen.seed)
    values = [f"{draw.randrange(10**6):06d}" for _ in range(RECORDS)]
    old = write(chosen.folder / "old.jsonl", values)
    for k in draw.sample(range(RECORDS), CHANGED):
        values[k] = f"{draw.randrange(10**6):06d}"
    new = write(chosen.folder / "new.jsonl", values)
    _, before = run(old, chosen.folder / "old", chosen.seed)
    priced, updated = run(new, chosen.folder / "updated", chosen.seed, chosen.folder / "old")
    whole, fresh = run(new, chosen.folder / "fresh", chosen.seed)
    assert updated.update is not None
    found = {
        "old": {"steps": before.steps, "rank": before.adapter.rank, "drift": moved(before)},
        "update": {
            "steps": updated.steps, "seconds": round(updated.seconds, 1), "recalled": updated.recall.n_recalled,
            "changed": updated.update.n_changed, "old_produced": updated.update.n_old_produced,
            "nats": round(priced.update.nats), "rank": updated.adapter.rank, "drift": moved(updated),
        },
        "fresh": {
            "steps": fresh.steps, "seconds": round(fresh.seconds, 1), "recalled": fresh.recall.n_recalled,
            "nats": round(whole.demand.nats), "rank": fresh.adapter.rank, "drift": moved(fresh),
        },
    }  # fmt: skip
    if chosen.json:
        print(json.dumps(found))
        return
    for name, row in found.items():
        print(f"{name:7}", ", ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
