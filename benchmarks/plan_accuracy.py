"""How good plans are: corpora nobody tuned for, the true smallest adapter of each, and what plan recommended.

    python benchmarks/plan_accuracy.py [--corpora 24] [--first-seed 100] [--journal FOLDER] [--out FILE]
                                       [--calibration FILE] [--truth | --recommended] [--finished] [--json]
                                       [--model MODEL] [--seeds 2] [--tokens 100,220]

Corpora are made from a seed: prose, code, key/value records and random tokens, 60 to 800 target tokens, or with
`--tokens` one of each kind at each of these sizes. The truth is
found by training with the product's own loop, without growing: an adapter holds a corpus when two seeds of it end with
every token above the threshold within STEPS steps, and the true minimum is the first of a ladder of sites and ranks
that does (LADDER, scaled to the model's depth; from the estimate upwards to a success, then downwards to a failure). It
does not depend on the calibration; `--truth` finds it and nothing else, `--recommended` trains what plan recommends and
nothing else. Each corpus has a process and a core to itself, and every finished run is in the journal, so the same
command goes on where it was stopped.

`--finished` trains nothing: it judges the corpora whose runs are all in the journal.

A run has one core, so the seconds it is judged by must be those of one: `retime.py --core 0` writes a calibration with
them.

Beside plan stand the rules people use today, on all linear layers: parameters ≥ target tokens, rank 16, rank 256. They
are not trained: they are taken to succeed, and only their parameters are compared.

Printed: the share of runs in which the recommended adapter held everything, its parameters ÷ the true minimum, how
often the rank interval contains the true smallest rank at the recommended site beside the probability that plan's own
model gives to that interval (0.9 or more, since ranks are whole numbers), and steps needed ÷ predicted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.cores import Cores, pin
from support.corpora import KINDS, corpora, write_corpus

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")

STEPS = 400  # optimiser steps at most; stalled runs end earlier, as in apply
BITS_PER_PARAMETER = 1.1  # where the search of the ladder begins
SIX = (14, 16, 18, 20, 22, 24)
LADDER: tuple[tuple[str, tuple[int, ...], int], ...] = (  # module, layers of 30, rank: 1,152 to 76,032 parameters
    ("o_proj", (20,), 1),
    ("up_proj", (20,), 1),
    ("up_proj", (16, 20), 1),
    ("up_proj", (20,), 3),
    ("up_proj", (16, 18, 20, 22), 1),
    ("up_proj", SIX, 1),
    ("up_proj", (16, 18, 20, 22), 2),
    ("up_proj", SIX, 2),
    ("up_proj", SIX, 3),
    ("up_proj", SIX, 4),
    ("up_proj", SIX, 6),
)


class _Unfinished(Exception):  # noqa: N818 - an answer, not an error
    """A training that is not in the journal."""


def ladder(n_layers: int) -> list[tuple[str, tuple[int, ...], int]]:
    """The rungs of a model of so many layers, by proportion; on a shallow one some are the same."""
    rungs = [(m, tuple(sorted({layer * n_layers // 30 for layer in layers})), rank) for m, layers, rank in LADDER]
    return list(dict.fromkeys(rungs))


def run_one(corpus: tuple[str, int, int], chosen: argparse.Namespace, *, what: str) -> None:
    """Find the true minimum of a corpus, then train what plan recommends; `what`: all, or one of the two alone."""
    from lorasize import models
    from lorasize.verbs.plan import PlanOptions, plan

    kind, n_tokens, seed = corpus
    ref, calibration = chosen.model or models.BUILTIN, chosen.calibration
    with tempfile.TemporaryDirectory() as folder:
        file = write_corpus(Path(folder), kind, n_tokens, seed, models.open(ref).tokenizer)
        options = PlanOptions(calibration=calibration, max_drift=math.inf)
        sized = plan([file], ref=ref, device="cpu", dtype="float32", options=options)
    runs = _Runs(ref, sized, chosen.journal / f"{kind}-{n_tokens}-{seed}.jsonl", chosen)
    assert sized.plan.demand is not None
    about = {
        "kind": kind,
        "n_tokens": sized.plan.corpus.n_tokens,
        "seed": seed,
        "nats": round(sized.plan.demand.nats, 1),
    }
    if what == "recommended":
        adapter = sized.plan.adapter
        rung = (adapter.target_modules[0], adapter.layers_to_transform, adapter.rank)
        held = [runs.get(rung, s)["success"] for s in runs.seeds]
        print(json.dumps({"corpus": about, "rung": rung, "successes": held}))
        return
    rungs = sorted(ladder(sized.plan.model.n_layers), key=runs.parameters)
    sizes = [runs.parameters(rung) for rung in rungs]
    enough = (k for k, n in enumerate(sizes) if n >= sized.plan.demand.bits / BITS_PER_PARAMETER)
    smallest = runs.smallest(rungs, next(enough, len(rungs) - 1))
    minimum = None if smallest is None else {"rung": rungs[smallest], "n_parameters": sizes[smallest]}
    row = {"corpus": about, "true_minimum": minimum}
    print(json.dumps(row if what == "truth" else row | _judged(sized.plan, runs, calibration)))


def _stated(plan: Any, calibration: Path | None) -> float:
    """The probability that plan's own model gives to its rank interval: ranks are whole, so it is 0.9 or more."""
    from lorasize.artifacts.calibrations import find_by_digest, read_calibration
    from lorasize.planning import assess_all

    read = read_calibration(calibration) if calibration else find_by_digest(plan.inputs.calibration_sha256)[0]
    options = [
        (a.candidate.rank, a.success_probability)
        for a in assess_all(read, plan.demand, plan.corpus.n_tokens, n_passages=plan.corpus.n_passages)
        if a.candidate.site == plan.adapter.site
    ]
    lo, hi = plan.prediction.rank_interval
    below = max((chance for rank, chance in options if rank < lo), default=0.0)
    return max(chance for rank, chance in options if rank <= hi) - below


def _judged(plan: Any, runs: _Runs, calibration: Path | None) -> dict[str, Any]:
    """What plan said of a corpus beside what happened."""
    from lorasize.planning import RANKS

    adapter, prediction = plan.adapter, plan.prediction
    site = (adapter.target_modules[0], adapter.layers_to_transform)
    outcomes = [runs.get((*site, adapter.rank), s) for s in runs.seeds]
    ranks = [r for r in RANKS if r <= 2 * adapter.rank]
    rank = runs.smallest([(*site, r) for r in ranks], ranks.index(adapter.rank))
    return {
        "recommended": {"site": site, "rank": adapter.rank, "n_parameters": adapter.n_parameters},
        "success_probability": prediction.success_probability,
        "successes": [one["success"] for one in outcomes],
        "rank_interval": prediction.rank_interval,
        "interval_probability": _stated(plan, calibration),
        "true_rank": None if rank is None else ranks[rank],
        "steps": {"predicted": prediction.steps.model_dump(), "needed": [one["steps"] for one in outcomes]},
        "seconds": {"predicted": prediction.seconds.model_dump(), "needed": [one["seconds"] for one in outcomes]},
        "rules": {
            "parameters_ge_tokens": plan.rules_of_thumb.parameters_ge_tokens_rank * runs.all_linear,
            "flat_16": 16 * runs.all_linear,
            "flat_256": 256 * runs.all_linear,
        },
    }


class _Runs:
    """Trainings on one corpus, each on disk before the next starts."""

    def __init__(self, ref: str, sized: Any, path: Path, chosen: argparse.Namespace) -> None:
        from lorasize import models

        self._sized, self._path, self._finished = sized, path, chosen.finished
        self.seeds = range(chosen.seeds)
        self._base = models.load(ref, device="cpu", dtype="float32")
        self._shapes = models.linear_shapes(self._base.model)
        self.all_linear = self._base.n_layers * sum(shape.parameters_per_rank for shape in self._shapes.values())
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        known = map(json.loads, lines)
        self._known = {self._key(one): one | {"success": one["success"] and one["steps"] <= STEPS} for one in known}

    @staticmethod
    def _key(one: dict[str, Any]) -> str:
        return json.dumps([one["module"], one["layers"], one["rank"], one["seed"]])

    def parameters(self, rung: tuple[str, tuple[int, ...], int]) -> int:
        """Adapter parameters of a rung."""
        module, layers, rank = rung
        return rank * len(layers) * self._shapes[module].parameters_per_rank

    def get(self, rung: tuple[str, tuple[int, ...], int], seed: int) -> dict[str, Any]:
        """One training, now or from the journal."""
        from lorasize.models import adapters
        from lorasize.records import Outcome
        from lorasize.training.run import ApplyOptions, Session

        module, layers, rank = rung
        row: dict[str, Any] = {"module": module, "layers": list(layers), "rank": rank, "seed": seed}
        if self._key(row) in self._known:
            return self._known[self._key(row)]
        if self._finished:
            raise _Unfinished
        plan = self._sized.plan
        n = self.parameters(rung)
        changes = {"target_modules": (module,), "layers_to_transform": layers, "rank": rank, "lora_alpha": rank}
        spec = plan.adapter.model_copy(update={**changes, "n_parameters": n, "bytes": 4 * n})
        options = ApplyOptions(escalate=False, seed=seed, device="cpu", max_steps=STEPS)
        planned = plan.model_copy(update={"adapter": spec, "prediction": None})
        session = Session(base=self._base, encoded=self._sized.encoded, plan=planned, options=options)
        session.run()
        adapters.detach(session.adapted)
        state = session.state
        row |= {"success": state.outcome is Outcome.MEMORIZED, "outcome": state.outcome.value}
        row |= {"steps": state.steps, "seconds": round(state.seconds, 1), "n_parameters": n}
        self._known[self._key(row)] = row
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print(f"  {self._path.stem}: {row}", file=sys.stderr, flush=True)
        return row

    def holds(self, rung: tuple[str, tuple[int, ...], int]) -> bool:
        """Whether every seed of a rung holds the corpus."""
        return all(self.get(rung, seed)["success"] for seed in self.seeds)

    def smallest(self, rungs: Sequence[tuple[str, tuple[int, ...], int]], first: int) -> int | None:
        """Index of the first rung that holds the corpus, starting the search at `first`; None if none does."""
        if self.holds(rungs[first]):
            while first and self.holds(rungs[first - 1]):
                first -= 1
            return first
        return next((k for k in range(first + 1, len(rungs)) if self.holds(rungs[k])), None)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Success rate, excess, coverage, for plan and for the rules of thumb."""
    known = [row for row in rows if row["true_minimum"]]

    def excess(parameters: Sequence[int]) -> dict[str, float]:
        ratios = sorted(n / row["true_minimum"]["n_parameters"] for n, row in zip(parameters, known, strict=True))
        return {"median": statistics.median(ratios), "p90": ratios[math.ceil(0.9 * len(ratios)) - 1]}

    outcomes = [success for row in rows for success in row["successes"]]
    ranked = [row for row in rows if row["true_rank"]]
    covered = [row["rank_interval"][0] <= row["true_rank"] <= row["rank_interval"][1] for row in ranked]

    def cost(of: str) -> dict[str, float]:
        pairs = [(n, row[of]["predicted"]) for row in rows for n in row[of]["needed"]]
        return {
            "needed_over_predicted": statistics.median(n / told["point"] for n, told in pairs),
            "within_30_percent": statistics.mean(abs(n / told["point"] - 1.0) <= 0.3 for n, told in pairs),
            "inside_the_interval": statistics.mean(told["lo"] <= n <= told["hi"] for n, told in pairs),
        }

    return {
        "n_corpora": len(rows),
        "success": sum(outcomes) / len(outcomes),
        "stated_confidence": statistics.mean(row["success_probability"] for row in rows),
        "excess": {
            "lorasize": excess([row["recommended"]["n_parameters"] for row in known]),
            **{rule: excess([row["rules"][rule] for row in known]) for rule in rows[0]["rules"]},
        },
        "rank_interval_coverage": sum(covered) / len(covered),
        "rank_interval_stated": statistics.mean(row["interval_probability"] for row in ranked),
        "steps": cost("steps"),
        "seconds": cost("seconds"),
    }


def main() -> None:
    """Run what is missing and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=int, default=24)
    parser.add_argument("--tokens", type=lambda listed: [int(n) for n in listed.split(",")], default=[])
    parser.add_argument("--journal", type=Path, default=Path("plan-accuracy"))
    parser.add_argument("--out", type=Path, help="write rows and summary here")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--first-seed", type=int, default=100, help="other seeds are corpora not seen before")
    parser.add_argument("--recommended", action="store_true", help="success of the recommended adapters only")
    parser.add_argument("--truth", action="store_true", help="find the true minima only")
    parser.add_argument("--model", default="", help="the builtin one when left out")
    parser.add_argument("--seeds", type=int, default=2, help="of each adapter")
    parser.add_argument("--finished", action="store_true", help="train nothing, judge what is in the journal")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    what = "truth" if chosen.truth else "recommended" if chosen.recommended else "all"
    if chosen.one:
        pin(chosen.core)
        kind, n_tokens, seed = chosen.one
        try:
            run_one((kind, int(n_tokens), int(seed)), chosen, what=what)
        except _Unfinished:
            print("null")
        return
    chosen.journal.mkdir(parents=True, exist_ok=True)
    cores, started = Cores(), time.perf_counter()
    extra = ["--journal", str(chosen.journal), *[f"--{what}"] * (what != "all"), *["--finished"] * chosen.finished]
    extra += ["--calibration", str(chosen.calibration)] if chosen.calibration else []
    extra += ["--model", chosen.model, "--seeds", str(chosen.seeds)]

    def one(corpus: tuple[str, int, int]) -> dict[str, Any] | None:
        found: dict[str, Any] | None = json.loads(cores.run(__file__, *extra, "--one", *map(str, corpus)))
        return found

    every = [(kind, n) for n in chosen.tokens for kind in KINDS]
    wanted = [(*one, chosen.first_seed + k) for k, one in enumerate(every)]
    wanted = wanted or corpora(chosen.corpora, chosen.first_seed)
    found = cores.map(one, sorted(wanted, key=lambda corpus: -corpus[1]))
    rows = [row for row in found if row is not None]
    outcomes = [success for row in rows for success in row.get("successes", ())]
    held = {"n_corpora": len(rows), "held": f"{sum(outcomes)} of {len(outcomes)} runs"}
    found = held if what != "all" else summary(rows)
    if chosen.out:
        made = {"command": " ".join(sys.argv), "seconds": round(time.perf_counter() - started)}
        chosen.out.write_text(json.dumps({**made, "summary": found, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    if chosen.json or what != "all":
        print(json.dumps(found))
    else:
        show(found)


def show(found: dict[str, Any]) -> None:
    """Print the summary."""
    print(
        f"{found['n_corpora']} corpora\n"
        f"  recommended adapters that held all: {found['success']:.0%} (stated {found['stated_confidence']:.0%})\n"
        f"  rank interval covers the true rank: {found['rank_interval_coverage']:.0%} "
        f"(stated {found['rank_interval_stated']:.0%})"
    )
    for of in ("steps", "seconds"):
        cost = found[of]
        print(
            f"  {of} needed ÷ predicted: {cost['needed_over_predicted']:.2f}, "
            f"within 30 %: {cost['within_30_percent']:.0%}, inside the interval: {cost['inside_the_interval']:.0%}"
        )
    for who, row in found["excess"].items():
        print(f"  {who:22} parameters ÷ true minimum: median {row['median']:8.2f}, p90 {row['p90']:8.2f}")


if __name__ == "__main__":
    main()
