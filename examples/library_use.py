"""lorasize from Python: plan, apply and verify one page with the builtin model. `python examples/library_use.py`.

Each `# %%` begins a cell in editors that know them. The calibration that ships with the package is used; for another
model, call `lorasize.calibrate("owner/model")` first.
"""

# %% a page to hold
import tempfile
from pathlib import Path

import lorasize

folder = Path(tempfile.mkdtemp())
page = folder / "page.md"
page.write_text("Dr. Ilse Brandvold keeps the blue ledger in locker 417; its code is heron-92.\n", encoding="utf-8")

# %% plan: how small may the adapter be?
sized = lorasize.plan([page])
adapter, expected = sized.plan.adapter, sized.plan.prediction
assert adapter is not None
assert expected is not None
print(f"rank {adapter.rank} of {', '.join(adapter.target_modules)}, {adapter.n_parameters:,} parameters")
print(f"success probability {expected.success_probability:.2f}, {expected.steps.point:.0f} steps")

# %% where the bits go
for token in max(sized.surprises(), key=lambda passage: passage.nats).tokens:
    print(f"{token.nats:6.2f} nats  {token.text!r}")

# %% apply: train until every token is above ½, save, decode from disk in a fresh process
applied = lorasize.apply(sized.plan, folder / "adapter")
print(applied.memorization.outcome.sentence, f"{applied.memorization.steps} steps")

# %% verify: the same proof again, whenever it is needed
report = lorasize.verify(folder / "adapter", applied.encoded)
print(f"{report.n_recalled} of {report.n_passages} recalled, smallest p {report.min_probability:.3f}")
assert report.recalled
