"""Probes elsewhere: the same observations from other processes and from a Ray cluster, whatever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.patience import HANGS, PATIENT_RAY

from lorasize.artifacts.calibrations import read_calibration
from lorasize.errors import CalibrationError
from lorasize.probing import executor
from lorasize.probing.executors import run_job
from lorasize.records import Calibration, Observation, ProbeJob, ProbeSpec
from lorasize.verbs.calibrate import calibrate


def assert_same(found: Calibration, expected: Calibration) -> None:
    """The same probes with the same ends; clock, memory and the last digits of losses apart."""
    apart = {"seconds", "seconds_per_step", "peak_memory_bytes", "base_loss", "final_loss", "loss_reduction"}
    apart |= {"early_loss", "drift"}
    one, two = ([o.model_dump(exclude=apart) for o in calibration.observations] for calibration in (found, expected))
    assert one == two
    assert [o.base_loss for o in found.observations] == pytest.approx([o.base_loss for o in expected.observations])


def job(folder: Path, **changes: Any) -> ProbeJob:
    """A small probe on a model."""
    where: dict[str, Any] = {"target_modules": ("up_proj",), "layers_to_transform": (2,), "rank": 1, "kind": "random"}
    spec = ProbeSpec(**{**where, "n_tokens": 14, "seed": 0, "max_steps": 6, **changes})
    return ProbeJob(ref=str(folder), revision=None, device="cpu", dtype="float32", spec=spec)


def test_a_job_is_json_in_and_out(able_llama: Path) -> None:
    asked = job(able_llama)
    observation = Observation.model_validate_json(run_job(asked.model_dump_json()))
    assert observation.probe == asked.spec
    assert observation.steps == 6


def test_one_worker_here_needs_no_executor_and_an_unknown_one_is_refused() -> None:
    assert executor("local") is None
    assert executor("local", 2) is not None
    with pytest.raises(CalibrationError, match="no executor 'slurm'"):
        executor("slurm")


@pytest.fixture
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers have a thread each then, as this process has: their sums come in its order, on any machine."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


@pytest.mark.slow
@pytest.mark.usefixtures("_two_cores")
@pytest.mark.filterwarnings("ignore:A worker stopped")  # one that had waited for some minutes; another takes its place
def test_processes_observe_what_this_process_does(able_llama: Path, tmp_path: Path) -> None:
    made = [
        calibrate(
            str(able_llama), device="cpu", max_drift=None, folder=tmp_path / str(n), execute=executor("local", n)
        )[0]
        for n in (1, 2)
    ]
    assert_same(made[1], made[0])
    assert made[1].law.parameter_exponent == pytest.approx(made[0].law.parameter_exponent, rel=0.05)
    assert made[1].cost.seconds_overhead + made[1].cost.seconds_per_layer_token > 0


@pytest.mark.slow
def test_a_worker_that_dies_is_one_error_and_the_next_call_goes_on(
    able_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorasize.probing.executors.run_job", _dies)
    with pytest.raises(CalibrationError, match="a worker process died"):
        calibrate(str(able_llama), device="cpu", max_drift=None, folder=tmp_path, execute=executor("local", 2))
    kept = next(tmp_path.glob("*.journal.jsonl")).read_text("utf-8").splitlines()[1:]
    assert len(kept) >= 1  # the search for the boundary, which ran here
    monkeypatch.undo()
    calibration, path = calibrate(str(able_llama), device="cpu", max_drift=None, folder=tmp_path)
    assert path.is_file()
    assert [o.model_dump_json() for o in calibration.observations[: len(kept)]] == kept


def _dies(text: str) -> str:
    os._exit(1)


RAY_DRIVER = """
import os
import signal
import sys
from pathlib import Path
from lorasize.verbs.calibrate import calibrate
from lorasize.probing import executor, executors

os.cpu_count = lambda: 2  # two workers have a thread each then, as the test has
run_job = executors.run_job
fuse, waits = Path(sys.argv[3]), "wait" in sys.argv
back = []  # from the cluster

def killed_once(text):
    try:
        fuse.unlink()  # two jobs may come at once
    except FileNotFoundError:
        return run_job(text)
    os._exit(1)

executors.run_job = killed_once
cluster = executor("ray", 2)

def noted(jobs):
    for text in cluster(jobs):
        back.append(text)
        yield text

def told(report):
    print(report.done, len(back), flush=True)
    while back and waits:
        signal.pause()  # to be killed

calibrate(sys.argv[1], device="cpu", max_drift=None, folder=Path(sys.argv[2]), execute=noted, notify=told)
print("fuse", fuse.exists(), flush=True)
"""


@pytest.fixture
def on_ray(able_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calibrates on a local Ray cluster; the first job kills its worker if the file `fuse` is there.

    With `wait` after it, the command waits to be killed once an observation has come back from the cluster.
    """
    pytest.importorskip("ray")
    environment = {**PATIENT_RAY, "RAY_USE_MULTIPROCESSING_CPU_COUNT": "1", "PYTHONPATH": str(ROOT)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(RAY_DRIVER), encoding="utf-8")
    return [sys.executable, str(script), str(able_llama), str(tmp_path / "out"), str(tmp_path / "fuse")]


def written(folder: Path) -> Calibration:
    """The calibration that a driver wrote."""
    return read_calibration(next((folder / "out").glob("*.json")))


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_job_runs_again(
    on_ray: list[str], calibrated_llama: tuple[Calibration, Path], tmp_path: Path
) -> None:
    (tmp_path / "fuse").touch()
    done = subprocess.run(on_ray, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "fuse False"
    assert_same(written(tmp_path), calibrated_llama[0])


@pytest.mark.slow
def test_a_killed_driver_loses_nothing_that_had_come_back(
    on_ray: list[str], calibrated_llama: tuple[Calibration, Path], tmp_path: Path
) -> None:
    first = subprocess.Popen([*on_ray, "wait"], stdout=subprocess.PIPE, text=True, start_new_session=True)
    guard = threading.Timer(HANGS, first.kill)
    guard.daemon = True
    guard.start()
    assert first.stdout is not None
    done = next(int(line.split()[0]) for line in first.stdout if not line.endswith(" 0\n"))
    os.killpg(first.pid, signal.SIGKILL)
    guard.cancel()
    first.wait()
    first.stdout.close()
    journal = next((tmp_path / "out").glob("*.journal.jsonl"))
    kept = journal.read_text("utf-8").splitlines()[1:]
    assert len(kept) >= done
    again = subprocess.run(on_ray, capture_output=True, text=True, check=True, timeout=HANGS)
    assert again.stdout.splitlines()[-1] == "fuse False"
    assert {*kept} <= {o.model_dump_json() for o in written(tmp_path).observations}  # with their seconds
    assert_same(written(tmp_path), calibrated_llama[0])
