"""What a finished run teaches the calibration that planned it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.paths import SHIPPED

from lorasize.artifacts.calibrations import find_by_digest, is_shipped, read_calibration, write_calibration
from lorasize.artifacts.workspace import locked
from lorasize.errors import ModelError
from lorasize.records import Calibration, Observation, digest
from lorasize.verbs.learn import Learned, learn

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


def joined(found: Learned | str) -> Learned:
    """What was learned, which must be something."""
    assert isinstance(found, Learned), found
    return found


def test_a_run_joins_the_calibration_and_moves_the_transition(own: Calibration) -> None:
    learned = joined(learn(digest(own), run(own, held=False)))
    assert learned.path.name == "mine.json"
    assert read_calibration(FOLDER / "mine.json") == learned.after
    assert len(learned.after.observations) == len(own.observations) + 1
    assert learned.after.transition.n_observations == len(own.observations) + 1
    assert learned.after.transition.location > learned.before.transition.location  # it failed with slack to spare
    assert learned.after.cost == own.cost


def test_a_run_that_held_as_expected_makes_the_law_no_less_sure(own: Calibration) -> None:
    learned = joined(learn(digest(own), run(own, held=True)))
    assert learned.after.transition.n_successes == learned.before.transition.n_successes + 1
    assert learned.after.transition.location_stderr <= 1.1 * learned.before.transition.location_stderr


def test_a_shipped_calibration_is_copied_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before, bytes_before = read_calibration(SHIPPED), SHIPPED.read_bytes()
    why = learn(digest(before), run(before, held=True))
    assert isinstance(why, str)
    assert why.endswith("came with lorasize: only a copy of it learns")
    assert not FOLDER.exists()
    learned = joined(learn(digest(before), run(before, held=True), copy_shipped=True))
    assert learned.path == FOLDER / SHIPPED.name
    assert SHIPPED.read_bytes() == bytes_before
    assert not is_shipped(learned.path)
    assert is_shipped(SHIPPED)


def test_what_is_not_in_reach_or_not_comparable_teaches_nothing(own: Calibration) -> None:
    assert learn("0" * 64, run(own, held=True)) == "the calibration that the plan was made from is not here"
    other = run(own, held=True)
    other = other.model_copy(update={"probe": other.probe.model_copy(update={"recipe": "memft/1"})})
    assert learn(digest(own), other) == f"{FOLDER / 'mine.json'} is for training recipe {own.recipe}"
    slower = own.observations[0].model_copy(update={"seconds": 1e3})
    assert learn(digest(own), slower) == f"{FOLDER / 'mine.json'} holds this run already"
    assert read_calibration(FOLDER / "mine.json") == own
    assert find_by_digest(digest(own)) == (own, FOLDER / "mine.json")


def test_plans_made_before_a_run_joined_find_what_it_became(own: Calibration) -> None:
    first = joined(learn(digest(own), run(own, held=True))).after
    second = joined(learn(digest(own), run(own, held=True, n_tokens=400))).after  # by the same, older plan
    assert second.grown_from == (*own.grown_from, digest(own), digest(first))
    assert find_by_digest(digest(own)) == find_by_digest(digest(first)) == (second, FOLDER / "mine.json")
    assert len(second.observations) == len(own.observations) + 2


def test_a_copy_of_a_shipped_calibration_replaces_nothing(own: Calibration) -> None:
    shipped = read_calibration(SHIPPED)
    write_calibration(own, FOLDER / SHIPPED.name)  # made here, as `calibrate` names it
    why = learn(digest(shipped), run(shipped, held=True), copy_shipped=True)
    assert why == f"{FOLDER / SHIPPED.name} is another calibration: it is not replaced"
    assert read_calibration(FOLDER / SHIPPED.name) == own


def test_two_runs_do_not_write_one_calibration(own: Calibration) -> None:
    busy = pytest.raises(ModelError, match="another run is at work on it")
    with locked(FOLDER / ".mine.json.lock", "mine"), busy:
        learn(digest(own), run(own, held=True))
    assert read_calibration(FOLDER / "mine.json") == own
