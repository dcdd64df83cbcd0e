"""The seconds and rates of a calibration, measured again on this machine by a few steps of its own probes.

    python benchmarks/retime.py FILE --out OUT [--core N] [--model MODEL]

What the probes observed, and so the law, stays as it was, and so does memory, which whole runs are nearer to; the
device that is named is this one. With `--core` on that core alone, as `plan_accuracy.py` trains. Printed: seconds of
each probe's step beside what was kept of it.
"""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path

from support.cores import pin

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # both as the command line sets them
os.environ.setdefault("HF_HUB_OFFLINE", "1")

STEPS = 10  # of each probe


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--core", type=int)
    parser.add_argument("--model", default="", help="the calibration's own when left out")
    chosen = parser.parse_args()
    if chosen.core is not None:
        pin(chosen.core)

    from lorasize import models
    from lorasize.artifacts.calibrations import read_calibration, write_calibration
    from lorasize.models.device_rates import device_rates
    from lorasize.probing import run_probe
    from lorasize.probing.costs import fit_cost

    read = read_calibration(chosen.file)
    base = models.load(chosen.model or read.model.ref, device="cpu", dtype=read.dtype)
    by_size = sorted((o.probe for o in read.observations), key=lambda probe: probe.n_tokens)
    longest = {min(probe.layers_to_transform): probe for probe in by_size}  # at each depth
    specs = [by_size[0], by_size[len(by_size) // 2], *longest.values()]
    specs = sorted(dict.fromkeys(specs), key=lambda probe: probe.n_tokens)  # memory at the peak only grows
    timed = [run_probe(base, spec.model_copy(update={"max_steps": STEPS})) for spec in specs]
    kept = {o.probe: o for o in read.observations}
    for one, spec in zip(timed, specs, strict=True):
        before = kept[spec].seconds_per_step
        print(f"{spec.n_tokens:4} tokens, rank {spec.rank}: {one.seconds_per_step:.3f} s a step for {before:.3f}")
    cost = fit_cost(base, timed)
    memory = {name: getattr(read.cost, name) for name in type(read.cost).model_fields if name.startswith("memory_")}
    cost = cost.model_copy(update=memory)
    told = {**read.provenance, "timed": f"{datetime.now(UTC):%Y-%m-%d} on {base.place}"}
    update = {"cost": cost, "rates": device_rates(base.device, base.dtype), "device": base.place}
    write_calibration(read.model_copy(update={**update, "provenance": told}), chosen.out)


if __name__ == "__main__":
    main()
