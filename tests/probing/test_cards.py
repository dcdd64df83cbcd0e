"""Probes on several cards, which are counted and not there: who computes on which, and never two on a leased one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.patience import HANGS, PATIENT_RAY

from lorasize.errors import CalibrationError
from lorasize.probing import executor, executors
from lorasize.records import ProbeJob, ProbeSpec


def jobs(n: int, **changes: Any) -> list[ProbeJob]:
    """So many jobs for a card; none is run."""
    where: dict[str, Any] = {"target_modules": ("up_proj",), "layers_to_transform": (2,), "rank": 1, "kind": "random"}
    model: dict[str, Any] = {"ref": "m", "revision": None, "device": "auto", "dtype": "float32", **changes}
    specs = [ProbeSpec(**where, n_tokens=14, seed=seed, max_steps=6) for seed in range(n)]
    return [ProbeJob(**model, spec=spec) for spec in specs]


@pytest.fixture
def _two_cards(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "n_cards", lambda kind: 2)
    kinds = {"auto": "cuda"}
    monkeypatch.setattr(executors.models, "pick_device", lambda name: torch.device(kinds.get(name, name)))


def _reports(text: str) -> str:
    """Instead of a probe: where it would run, and the process."""
    import json
    import os
    import time

    time.sleep(0.3)
    return json.dumps([json.loads(text)["device"], os.getpid()])


@pytest.mark.slow
@pytest.mark.usefixtures("_two_cards")
def test_worker_k_computes_on_card_k_modulo_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "run_job", _reports)
    execute = executor("local", 2)
    assert execute is not None
    found = [json.loads(text) for _ in range(2) for text in execute(jobs(6))]  # two rounds, the same processes
    of_process = {process: {card for card, by in found if by == process} for _, process in found}
    assert sorted(map(sorted, of_process.values())) == [["cuda:0"], ["cuda:1"]]
    assert len(found) == 12


def test_workers_that_are_more_than_the_cards_share_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = ["cuda:0", "cuda:1"]
    held = []
    for _ in range(4):
        executors._claimed.cache_clear()  # as another process
        number, lock = executors._claimed(str(tmp_path), 3)
        held.append(lock)
        place = executors._on_a_card(_device_of, str(tmp_path), 3, cards, jobs(1)[0].model_dump_json())
        assert place == cards[number % 2]
    assert held[3] is None  # it shares with the first
    held[1].release()  # that worker died
    executors._claimed.cache_clear()
    assert executors._claimed(str(tmp_path), 3)[0] == 1
    executors._claimed.cache_clear()


def _device_of(text: str) -> str:
    return ProbeJob.model_validate_json(text).device


@pytest.mark.usefixtures("_two_cards")
def test_a_card_that_was_named_and_a_model_that_is_spread_stay_where_they_are() -> None:
    assert executors._cards(jobs(1)) == ["cuda:0", "cuda:1"]
    assert executors._cards(jobs(1, device="cuda")) == ["cuda:0", "cuda:1"]
    assert executors._cards(jobs(1, device="cuda:1")) == []
    assert executors._cards(jobs(1, device_map="auto")) == []
    assert executors._cards([]) == []


def test_jobs_that_lease_a_card_leave_cpus_to_each() -> None:
    large, small = {"CPU": 64.0, "GPU": 8.0}, {"CPU": 4.0, "GPU": 4.0}
    assert executors._cpus([large], 1, 1) <= 8
    assert executors._cpus([large, small], 1, 1) == 1
    assert executors._cpus([{"CPU": 2.0}], 1, 0) == min(2, os.cpu_count() or 1)
    assert executors._cpus([{"CPU": 2.0}], 5, 0) == 1
    with pytest.raises(CalibrationError, match="no machine of the Ray cluster has a GPU"):
        executors._cpus([{"CPU": 2.0}], 1, 1)


LEASES = """
import json
import sys
import time
import ray
import torch
from lorasize.probing import executor, executors
from lorasize.records import ProbeJob

def reports(text):
    started = time.time()
    time.sleep(0.2)
    return json.dumps([ray.get_gpu_ids(), json.loads(text)["device"], started, time.time()])

executors.run_job = reports
executors.models.pick_device = lambda name: torch.device("cuda")
ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
asked = [ProbeJob.model_validate_json(line) for line in sys.stdin]
print(json.dumps([json.loads(text) for text in executor("ray", 4)(asked)]))
"""


@pytest.mark.slow
def test_no_two_probes_on_ray_share_a_card_and_every_card_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    for name, value in {**PATIENT_RAY, "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    asked = "".join(job.model_dump_json() + "\n" for job in jobs(8, device="cuda:1"))  # as the driver counts them
    done = subprocess.run(
        [sys.executable, "-c", LEASES], input=asked, capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert done.returncode == 0, done.stderr
    leases = json.loads(done.stdout.splitlines()[-1])
    assert len(leases) == 8
    assert {device for _, device, _, _ in leases} == {"cuda"}  # of a worker, the only one that it sees
    assert all(len(ids) == 1 for ids, _, _, _ in leases)
    on = {card: sorted(times for (one,), _, *times in leases if one == card) for (card,), *_ in leases}
    assert len(on) == 2
    for times in on.values():
        assert all(before[1] <= after[0] for before, after in zip(times, times[1:], strict=False))
