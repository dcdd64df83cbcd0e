"""What a finished run teaches the calibration that planned it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorasize.catalog import find_by_digest, is_shipped, read_calibration, write_calibration
from lorasize.learning import learn
from lorasize.records import Calibration, Observation, digest

SHIPPED = Path(__file__).resolve().parent.parent / "calibrations" / "builtin-smollm2-135m-instruct.cpu.float32.json"
FOLDER = Path("calibrations")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calibration:
    """The user's calibration in ./calibrations: the shipped one without its last site."""
    monkeypatch.chdir(tmp_path)
    whole = read_calibration(SHIPPED)
    kept = tuple(o for o in whole.observations if o.probe.target_modules != ("down_proj",))
    mine = whole.model_copy(update={"observations": kept})
    write_calibration(mine, FOLDER / "mine.json")
    return mine


def run(calibration: Calibration, *, held: bool, n_tokens: int = 300) -> Observation:
    """A finished apply of rank 4 at the reference site."""
    seen = next(o for o in calibration.observations if o.probe.kind == "text")
    probe = seen.probe.model_copy(update={"rank": 4, "n_tokens": n_tokens, "seed": 77})
    final = 0.1 if held else 1.5
    result = {"final_loss": final, "loss_reduction": seen.base_loss - final, "threshold_met": held, "steps": 60}
    return seen.model_copy(update={"probe": probe, "n_parameters": 4 * 2112, **result})


def test_a_run_joins_the_calibration_and_moves_the_transition(own: Calibration) -> None:
    learned = learn(digest(own), run(own, held=False))
    assert learned is not None
    assert learned.path.name == "mine.json"
    assert read_calibration(FOLDER / "mine.json") == learned.after
    assert len(learned.after.observations) == len(own.observations) + 1
    assert learned.after.transition.n_observations == len(own.observations) + 1
    assert learned.after.transition.location > learned.before.transition.location  # it failed with slack to spare
    assert learned.after.cost == own.cost


def test_a_run_that_held_as_expected_makes_the_law_no_less_sure(own: Calibration) -> None:
    learned = learn(digest(own), run(own, held=True))
    assert learned is not None
    assert learned.after.transition.n_successes == learned.before.transition.n_successes + 1
    assert learned.after.transition.location_stderr <= 1.1 * learned.before.transition.location_stderr


def test_a_shipped_calibration_is_copied_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before, bytes_before = read_calibration(SHIPPED), SHIPPED.read_bytes()
    assert learn(digest(before), run(before, held=True)) is None
    assert not FOLDER.exists()
    learned = learn(digest(before), run(before, held=True), copy_shipped=True)
    assert learned is not None
    assert learned.path == FOLDER / SHIPPED.name
    assert SHIPPED.read_bytes() == bytes_before
    assert not is_shipped(learned.path)
    assert is_shipped(SHIPPED)


def test_what_is_not_in_reach_or_not_comparable_teaches_nothing(own: Calibration) -> None:
    assert learn("0" * 64, run(own, held=True)) is None
    other = run(own, held=True)
    other = other.model_copy(update={"probe": other.probe.model_copy(update={"recipe": "memft/1"})})
    assert learn(digest(own), other) is None
    assert learn(digest(own), own.observations[0]) is None
    assert read_calibration(FOLDER / "mine.json") == own
    assert find_by_digest(digest(own)) == (own, FOLDER / "mine.json")
