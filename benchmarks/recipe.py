"""Steps to "every token above ½" under other learning rates and objectives: why the recipe is what it is.

    python benchmarks/recipe.py [--tokens 96] [--seeds 1]

One adapter (rank 1, the reference site) learns random tokens after a fixed prompt, once for each variant and seed, with
at most 200 steps. A run that does not get there prints the tokens left.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded

from lorasize import adapters, models
from lorasize.calibration import calibrated_sites
from lorasize.probing import probe_passage
from lorasize.records import ProbeSpec
from lorasize.training import Trainer, TrainingOptions

VARIANTS = {
    "memft, rate 0.06 (the default)": TrainingOptions(max_steps=200),
    "memft, rate 0.03": TrainingOptions(max_steps=200, learning_rate=0.03),
    "memft, rate 0.1": TrainingOptions(max_steps=200, learning_rate=0.1),
    "sft": TrainingOptions(max_steps=200, method="sft"),
    "memft-ot as published (release at ½)": TrainingOptions(max_steps=200, method="memft-ot", margin=0.0),
    "memft-sw": TrainingOptions(max_steps=200, method="memft-sw", margin=0.0),
}


def run(base: models.BaseModel, options: TrainingOptions, n_tokens: int, seed: int) -> str:
    """What one variant did on one seed."""
    site = calibrated_sites(base, "quick")[0]
    spec = ProbeSpec(
        target_modules=site.target_modules, layers_to_transform=site.layers_to_transform, rank=1, kind="random",
        n_tokens=n_tokens, seed=seed, max_steps=options.max_steps,
    )  # fmt: skip
    adapted = adapters.attach(base.model, site, 1, seed)
    *_, last = Trainer(adapted, [probe_passage(base, spec)], options).steps()
    adapters.detach(adapted)
    return f"{last.step} steps" if last.n_stubborn == 0 else f"{last.n_stubborn} left after {last.step}"


def main() -> None:
    """Print one line a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=1)
    chosen = parser.parse_args()
    base = models.load(models.BUILTIN)
    for name, options in VARIANTS.items():
        results = [run(base, options, chosen.tokens, seed) for seed in range(chosen.seeds)]
        print(f"{name:40} {'; '.join(results)}", flush=True)


if __name__ == "__main__":
    main()
