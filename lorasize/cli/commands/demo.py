"""The demo: calibrate, plan, apply and verify on the example that comes with the package, with the builtin model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorasize.cli import options
from lorasize.cli.commands.verify import verdict
from lorasize.cli.failures import INFEASIBLE, NOT_PROVEN, OVER_BUDGET, Invocation
from lorasize.cli.options import ADAPTER_FOLDER, PLAN_FILE
from lorasize.cli.output import Target, emit, show

if TYPE_CHECKING:
    from pydantic import BaseModel

    from lorasize.records import Calibration, Plan
    from lorasize.report import Companions, Progress

CORPUS = ("page.md", "table.jsonl")


@dataclass
class _Demo:
    """A demo under way."""

    folder: Path
    device: str
    seed: int
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """A heading, and the time that the block takes."""
        self.progress.heading(f"{name}: {what}")
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        self.progress.note(f"{name} took {self.seconds[name]:.1f} s")


@click.command(
    epilog="""\b
Example:
  lorasize demo
  lorasize demo --out try-it --device cpu
"""
)
@options.all_of(options.device, options.seed)
@options.out("lorasize-demo", "Working folder.")
@options.quiet
@click.pass_obj
def demo(invocation: Invocation, /, **chosen: Any) -> int:
    """Run all of it on a small example with the builtin model: calibrate, plan, apply, verify.

    Exits with 4 when some passage does not come back.
    """
    from lorasize.report import Progress

    corpus = copy_corpus(chosen["out"])
    with Progress(quiet=chosen["quiet"]) as progress:
        run = _Demo(chosen["out"], chosen["device"], chosen["seed"], progress)
        return _run(run, corpus)


def copy_corpus(folder: Path) -> list[Path]:
    """The example's files in the working folder; those already there are kept as the user left them."""
    packaged = Path(str(files("lorasize"))) / "examples"
    source = packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / "examples" / "update"
    folder.mkdir(parents=True, exist_ok=True)
    for name in CORPUS:
        if not (folder / name).exists():
            shutil.copyfile(source / name, folder / name)
    return [folder / name for name in CORPUS]


def _run(run: _Demo, corpus: list[Path]) -> int:
    with run.stage("calibrate", "how much can an adapter of this model hold?"):
        calibration = _calibrate(run)
    with run.stage("plan", "how small may the adapter for these files be?"):
        plan = _plan(run, corpus, calibration)
    if plan.status != "ok":
        return INFEASIBLE if plan.status == "infeasible" else OVER_BUDGET
    return _prove(run, plan)


def _calibrate(run: _Demo) -> Path:
    """The file of a quick calibration: one made earlier on this device, else a new one."""
    from lorasize import models
    from lorasize.verbs.calibrate import calibrate

    folder = run.folder / "calibrations"
    if (known := _finished_calibration(run, folder)) is not None:
        run.progress.note(f"reusing {known}, a finished calibration of this model on this device")
        return known
    run.progress.doing("loading the model")
    how: dict[str, Any] = {"seed": run.seed, "folder": folder, "notify": run.progress.probe}
    how["max_drift"] = None  # those of the shipped calibration of this model serve
    calibration, path = calibrate(models.BUILTIN, device=run.device, preset="quick", **how)
    _page(run, "calibration", calibration)
    return path


def _finished_calibration(run: _Demo, folder: Path) -> Path | None:
    """The file of a quick calibration of the builtin model on this device, if the folder holds one."""
    from lorasize import models
    from lorasize.artifacts.calibrations import calibration_path, find_calibration
    from lorasize.errors import CalibrationError
    from lorasize.records import RECIPE

    device = models.pick_device(run.device)
    dtype = models.dtype_name(models.pick_dtype("auto", device))
    path = calibration_path(models.BUILTIN, device.type, dtype, folder)
    if not path.is_file():
        return None
    fingerprint = models.fingerprint(models.resolve(models.BUILTIN))
    try:
        calibration, _ = find_calibration(fingerprint, models.BUILTIN, device.type, dtype, RECIPE, path)
    except CalibrationError:
        return None
    return path if _is_reusable(calibration, models.device_name(device)) else None


def _is_reusable(calibration: Calibration, device: str) -> bool:
    return calibration.provenance.get("preset") == "quick" and calibration.device == device


def _plan(run: _Demo, corpus: list[Path], calibration: Path) -> Plan:
    from lorasize import models
    from lorasize.artifacts.plans import write_plan
    from lorasize.cli.companions import of_plan
    from lorasize.report import plan_table
    from lorasize.verbs import plan as verb

    run.progress.doing("measuring what the corpus asks of the model")
    wanted = verb.PlanOptions(calibration=calibration)
    sized = verb.plan(corpus, ref=models.BUILTIN, device=run.device, options=wanted)
    plan = sized.plan
    write_plan(plan, run.folder / PLAN_FILE)
    _page(run, "plan", plan, lambda: of_plan(sized))
    run.progress.heading(str(run.folder / PLAN_FILE))
    show(plan_table(plan))
    return plan


def _page(run: _Demo, name: str, record: BaseModel, companions: Callable[[], Companions] | None = None) -> None:
    """The record as an HTML page in the working folder, where the libraries for it are installed."""
    from lorasize.errors import LorasizeError

    path = run.folder / f"{name}.html"
    try:
        emit(record, [Target("html", path)], companions)
    except LorasizeError as error:
        run.progress.note(str(error))
    else:
        run.progress.note(f"wrote {path}")


def _prove(run: _Demo, plan: Plan) -> int:
    from lorasize.cli.companions import of_apply
    from lorasize.report import memorization_table, recall_table, side_by_side
    from lorasize.training.run import ApplyOptions
    from lorasize.verbs.apply import apply
    from lorasize.verbs.verify import verify

    folder = run.folder / ADAPTER_FOLDER
    with run.stage("apply", "train until every token passes, save, decode from disk"):
        how = ApplyOptions(seed=run.seed, device=run.device)
        run.progress.expect(plan)
        applied = apply(plan, folder, how, run.progress.event)
        _page(run, "apply", applied.memorization, lambda: of_apply(applied))
        run.progress.heading(str(folder))
        show(memorization_table(applied.memorization))
    with run.stage("verify", "the adapter from disk, in a fresh process"):
        report = verify(
            folder, applied.encoded, device=run.device, dtype=plan.model.dtype, notify=run.progress.decoded
        )
        run.progress.heading("recalled text beside the original")
        show(recall_table(report))
    show("")
    show(side_by_side(applied.encoded, report))
    total = sum(run.seconds.values())
    show(" · ".join([*(f"{name} {seconds:.0f} s" for name, seconds in run.seconds.items()), f"in all {total:.0f} s"]))
    return max(verdict(report), 0 if applied.memorization.recalled else NOT_PROVEN)
