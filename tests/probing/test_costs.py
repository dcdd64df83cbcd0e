"""What training costs, fitted to probes: seconds of a step, and of what comes before the first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from support.calibration import CALIBRATION

from lorasize.probing import costs


def test_what_comes_before_the_steps_is_no_part_of_them(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes of 0.1 s and 1 ms a layer and position, each after 5 s of setting up."""
    monkeypatch.setattr(costs, "resident_bytes", lambda model: 1000)
    base: Any = SimpleNamespace(n_layers=30, model=None, device=torch.device("cpu"))
    observed = []
    for k, one in enumerate(CALIBRATION.observations[:1] * 6):
        n_tokens, steps = 20 * (k + 1), 10 * (k + 1)
        layers = 30 - min(one.probe.layers_to_transform)
        each = 0.1 + 1e-3 * layers * n_tokens
        probe = one.probe.model_copy(update={"n_tokens": n_tokens})
        changes = {"probe": probe, "steps": steps, "seconds_per_step": each, "seconds": 5.0 + steps * each}
        observed.append(one.model_copy(update=changes))
    found = costs.fit_cost(base, observed)
    assert found.seconds_setup == pytest.approx(5.0)
    assert found.seconds_overhead == pytest.approx(0.1, rel=1e-3)
