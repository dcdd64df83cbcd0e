"""How long the commands that need no model take to start, beside an empty Python, click alone and ruff.

    python benchmarks/start_time.py [--runs 10] [--plan FILE]

Printed: the median and the range of wall seconds over fresh processes. The commands take turns, so that whatever else
the machine does falls on all of them alike; the peers are measured in the same turns. Without --plan, `check` and
`show` read a plan made here, from the shipped calibration and a corpus of two records. `check` then exits with 0.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lorasize.artifacts.calibrations import read_calibration, search_path
from lorasize.artifacts.plans import write_plan
from lorasize.corpus import corpus_sha256, read_corpus
from lorasize.planning import Workload, make_plan
from lorasize.records import CorpusSummary, Demand, PlanInputs, PlanModel, Reading, digest

CALIBRATION = "builtin-smollm2-135m-instruct.cpu.float32.json"
RECORDS = '{"prompt": "A:", "completion": " 1"}\n{"prompt": "B:", "completion": " 2"}\n'


def planned(folder: Path) -> Path:
    """A plan that holds, with its corpus, in this folder."""
    calibration = read_calibration(next(path / CALIBRATION for path in search_path() if (path / CALIBRATION).is_file()))
    (folder / "facts.jsonl").write_text(RECORDS, "utf-8")
    _, files = read_corpus([folder / "facts.jsonl"])
    sha256 = corpus_sha256(files)
    plan = make_plan(
        calibration=calibration,
        model=PlanModel(ref="m", fingerprint="f", dtype="float32", n_layers=30),
        corpus=CorpusSummary(n_passages=2, n_tokens=300, sha256=sha256, files=files, reading=Reading()),
        demand=Demand(base_loss=6.0, nats=1800.0, bits=2597.0),
        inputs=PlanInputs(
            corpus_sha256=sha256,
            model_fingerprint="f",
            tokenizer_sha256=calibration.model.fingerprint.tokenizer,
            calibration_sha256=digest(calibration),
            recipe=calibration.recipe,
        ),
        work=Workload(n_positions=310, linear_parameters_per_rank=500_000),
    )
    write_plan(plan, folder / "lorasize.plan.json")
    return folder / "lorasize.plan.json"


def commands(plan: Path) -> dict[str, list[str]]:
    """What is measured, by the name that is printed; ruff where it is installed."""
    lorasize = [sys.executable, "-m", "lorasize"]
    found = {
        "lorasize --help": [*lorasize, "--help"],
        "lorasize config": [*lorasize, "config"],
        "lorasize check PLAN": [*lorasize, "check", str(plan)],
        "lorasize show PLAN": [*lorasize, "show", str(plan)],
        "python -c pass": [sys.executable, "-c", "pass"],
        'python -c "import click"': [sys.executable, "-c", "import click"],
    }
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    return found | ({"ruff --version": [ruff, "--version"]} if ruff else {})


def seconds(command: list[str], folder: Path) -> float:
    """Wall seconds of one process, its standard output thrown away.

    Raises:
        CalledProcessError: it did not exit with 0.
    """
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print one line a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--plan", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timed = commands(asked.plan.resolve() if asked.plan else planned(folder))
        for command in timed.values():
            seconds(command, folder)  # the files are in the cache from here on
        runs = [{name: seconds(command, folder) for name, command in timed.items()} for _ in range(asked.runs)]
    if hasattr(os, "getloadavg"):
        print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, {asked.runs} runs each")
    for name in timed:
        each = [run[name] for run in runs]
        print(f"{name:26}{statistics.median(each):7.3f} s  ({min(each):.3f} to {max(each):.3f})")


if __name__ == "__main__":
    main()
