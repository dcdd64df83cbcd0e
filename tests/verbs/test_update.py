"""Updates: what changed is priced alone and trained on from the old adapter; what was, is gone, and both are proven."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.corpora import write_records
from support.models import plan_by_hand
from support.sites import MLP

from lorasize import models
from lorasize.artifacts import adapter_folder
from lorasize.artifacts.calibrations import write_calibration
from lorasize.errors import CalibrationError, ModelError, StalePlanError
from lorasize.models import adapters
from lorasize.records import Calibration, Plan, PlanUpdate, Site
from lorasize.training.run import ApplyOptions
from lorasize.verbs import plan as sizing
from lorasize.verbs import update as updating
from lorasize.verbs.apply import apply
from lorasize.verbs.verify import verify

pytestmark = pytest.mark.usefixtures("_same_process")

OLD = [(f"Box {i}:", f" {i * 7919 % 9973}") for i in range(1, 13)]
NEW = [("Box 3:", " 4711"), *OLD[:2], *OLD[3:10], ("Box 99:", " 1848")]  # 1 changed, 1 added, 2 removed
CPU = ApplyOptions(device="cpu")


@pytest.fixture(scope="module")
def held(torch: Any, able_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter that holds the old records."""
    folder = tmp_path_factory.mktemp("old")
    apply(plan_by_hand(able_llama, write_records(folder / "c.jsonl", OLD), MLP, 4), folder / "adapter", CPU)
    return folder / "adapter"


@pytest.fixture
def plan(able_llama: Path, tmp_path: Path) -> Plan:
    return plan_by_hand(able_llama, write_records(tmp_path / "c.jsonl", NEW), MLP, 4)


@pytest.mark.slow
def test_passages_are_told_apart_by_their_prompts(held: Path, plan: Plan, able_llama: Path) -> None:
    from lorasize.verbs.apply import load_inputs

    _, encoded = load_inputs(plan, "cpu")
    old = updating.read_base_adapter(held, models.fingerprint(able_llama), "m")
    change = updating.compare(old.addresses, encoded)
    assert [p.passage.prompt for p in change.changed] == ["Box 3:"]
    assert [p.passage.prompt for p in change.added] == ["Box 99:"]
    assert [p.prompt for p in change.removed] == ["Box 11:", "Box 12:"]
    assert len(change.unchanged) == 9
    assert updating.compare((), encoded).added == tuple(encoded)


@pytest.mark.slow
def test_an_update_keeps_what_stayed_and_loses_what_was(held: Path, plan: Plan, tmp_path: Path) -> None:
    fresh = apply(plan, tmp_path / "fresh", CPU).memorization
    done = apply(plan, tmp_path / "out", ApplyOptions(device="cpu", base_adapter=held))
    record = done.memorization
    assert record.recalled
    assert record.recall.n_recalled == len(NEW)
    assert record.update is not None
    assert (record.update.n_unchanged, record.update.n_changed, record.update.n_added) == (9, 1, 1)
    assert record.update.n_removed == 2
    assert record.steps < fresh.steps
    assert fresh.update is None
    # counted, not assumed: with the old adapter itself in place of the new one, the old target comes back
    assert verify(held, device="cpu").recalled


@pytest.mark.slow
def test_old_targets_that_still_come_back_are_counted(held: Path, plan: Plan, tmp_path: Path) -> None:
    options = ApplyOptions(device="cpu", base_adapter=held, max_steps=1, threshold=0.01, margin=0.0)
    record = apply(plan, tmp_path / "out", options).memorization
    assert record.update is not None
    assert record.update.n_old_produced >= 2  # a single step forgets nothing


@pytest.mark.slow
def test_a_fresh_adapter_computes_what_the_old_one_does(torch: Any, held: Path, able_llama: Path) -> None:
    base = models.load(str(able_llama), device="cpu")
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        plain = base.model(ids).logits
        saved = adapters.load_saved(base.model, held)
        wanted = base.model(ids).logits
        adapters.detach(saved)
        grown = adapters.attach(base.model, MLP, 6, 3)
        adapters.start_from(grown, held)
        found = base.model(ids).logits
        adapters.detach(grown)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert float((wanted - plain).abs().max()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("site", "rank"), [(MLP, 3), (Site(target_modules=("up_proj",), layers_to_transform=(2,)), 8)])
def test_an_adapter_without_room_is_refused(
    held: Path, able_llama: Path, tmp_path: Path, site: Site, rank: int
) -> None:
    made = plan_by_hand(able_llama, write_records(tmp_path / "c.jsonl", NEW), site, rank)
    with pytest.raises(ModelError, match="plan with it as the base"):
        apply(made, tmp_path / "out", ApplyOptions(device="cpu", base_adapter=held))


@pytest.mark.slow
def test_another_base_or_a_changed_adapter_is_refused(
    held: Path, plan: Plan, tiny_llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="another base model"):
        updating.read_base_adapter(held, models.fingerprint(tiny_llama), "tiny")
    update = PlanUpdate(
        adapter=str(held), weights_sha256="0" * 64, n_unchanged=9, n_changed=1, n_added=1, n_removed=2, nats=1.0
    )
    with pytest.raises(StalePlanError, match="changed since the plan was made"):
        apply(plan.model_copy(update={"update": update}), tmp_path / "out", CPU)


@pytest.mark.slow
def test_an_adapter_that_is_not_what_was_proven_is_no_base(held: Path, able_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(held, tmp_path / "held"))
    (folder / "README.md").write_text("my own words", "utf-8")
    updating.read_base_adapter(folder, models.fingerprint(able_llama), "able")
    with (folder / adapter_folder.PASSAGES).open("a", encoding="utf-8") as stream:
        stream.write("\n")
    with pytest.raises(ModelError, match=r"passages\.jsonl changed since it was proven"):
        updating.read_base_adapter(folder, models.fingerprint(able_llama), "able")


@pytest.mark.slow
def test_a_plan_prices_only_the_change(
    held: Path, able_llama: Path, calibrated_llama: tuple[Calibration, Path], tmp_path: Path
) -> None:
    calibration, path = calibrated_llama[0], tmp_path / "calibration.json"
    write_calibration(calibration, path)
    corpus = write_records(tmp_path / "c.jsonl", NEW)
    options = sizing.PlanOptions(calibration=path, base_adapter=held)
    with pytest.raises(CalibrationError, match="holds no site gate_proj, up_proj, down_proj in layers 1, 2, 3"):
        sizing.plan([corpus], ref=str(able_llama), device="cpu", options=options)
    site = calibration.sites[0].model_copy(update=MLP.model_dump())
    write_calibration(calibration.model_copy(update={"sites": (*calibration.sites, site)}), path)
    made = sizing.plan([corpus], ref=str(able_llama), device="cpu", options=options).plan
    assert made.adapter is not None
    assert made.demand is not None
    assert made.update is not None
    assert made.adapter.site == MLP
    assert made.adapter.rank >= 4
    assert (made.update.n_changed, made.update.n_added, made.update.n_unchanged) == (1, 1, 9)
    assert made.update.nats < made.demand.nats / 2
    record = apply(made, tmp_path / "out", CPU).memorization  # the plan names the adapter to start from
    assert record.update is not None
    assert record.recalled
