"""Models larger than one device: layers on disk, and the same losses and the same adapter as with all in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from support.models import plan_by_hand, random_passages
from support.sites import MLP, UP

from lorasize import models
from lorasize.errors import ModelError
from lorasize.models import adapters, placement
from lorasize.records import Calibration, Outcome, Site
from lorasize.training.run import ApplyOptions, Loading
from lorasize.verbs import plan as sizing
from lorasize.verbs.apply import apply
from lorasize.verbs.plan import PlanOptions
from lorasize.verbs.verify import verify

MAP = "auto,cpu=1500KB"  # of 2.4 MB of weights: one layer of four stays in memory


@pytest.fixture(scope="module")
def plain(able_llama: Path) -> models.BaseModel:
    """The model in memory."""
    return models.load(str(able_llama), device="cpu")


@pytest.fixture
def spread(able_llama: Path) -> models.BaseModel:
    """The same with most of its layers on disk."""
    return models.load(str(able_llama), device="cpu", device_map=MAP)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A sentence in a file."""
    (tmp_path / "corpus.txt").write_text("Pier 9 is closed on Mondays after ten.", encoding="utf-8")
    return tmp_path / "corpus.txt"


def on_disk(base: models.BaseModel) -> list[str]:
    """Names of the weights that are put aside now."""
    return [name for name, p in base.model.named_parameters() if p.device.type == "meta"]


def test_same_losses_and_less_memory(plain: models.BaseModel, spread: models.BaseModel, torch: Any) -> None:
    from lorasize.losses.base import base_losses

    aside = on_disk(spread)
    assert any("layers.3" in name for name in aside)
    assert not any("layers.0" in name for name in aside)
    assert spread.device == torch.device("cpu")
    assert placement.resident_bytes(spread.model) < 0.5 * placement.resident_bytes(plain.model)
    assert " on cpu, " in spread.place
    assert spread.place.endswith(" on disk")
    passages = random_passages(torch, [(5, 12), (3, 40)])
    for here, there in zip(base_losses(plain, passages), base_losses(spread, passages), strict=True):
        assert torch.equal(here, there)
    assert on_disk(spread) == aside


@pytest.mark.parametrize("site", [UP, MLP])
def test_attach_and_detach(site: Site, plain: models.BaseModel, spread: models.BaseModel, torch: Any) -> None:
    """The same fresh values, in memory; and afterwards the model as it was, nothing of it kept."""
    aside = on_disk(spread)
    made = [adapters.attach(base.model, site, 2, seed=3) for base in (plain, spread)]
    here, there = (adapters.parameters(adapted) for adapted in made)
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert len(on_disk(spread)) == len(aside)
    grown = [adapters.grow(adapted, site, 3, seed=4) for adapted in made]
    here, there = (adapters.parameters(adapted) for adapted in grown)
    assert all(torch.equal(here[name], there[name]) for name in here)
    for adapted in grown:
        adapters.detach(adapted)
    assert on_disk(spread) == aside


def test_backward_keeps_no_weights(spread: models.BaseModel, torch: Any) -> None:
    """What a forward pass read from disk is not held until the backward pass, which reads it again."""
    from lorasize.losses.head import decoder

    adapted = adapters.attach(spread.model, MLP, 1, seed=0)
    shapes = {tuple(p.shape) for name, p in spread.model.named_parameters() if "layers.3" in name and p.dim() == 2}
    held: list[tuple[int, ...]] = []

    def pack(tensor: Any) -> Any:
        held.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = decoder(spread.model)(input_ids=torch.arange(12)[None], use_cache=False).last_hidden_state
    assert not [shape for shape in held if shape in shapes or shape[::-1] in shapes]
    out.sum().backward()
    gradients = [p.grad for p in adapters.parameters(adapted).values()]
    assert all(gradient is not None for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients if gradient is not None)
    adapters.detach(adapted)


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process")
@pytest.mark.parametrize("site", [UP, MLP])
def test_same_adapter(site: Site, able_llama: Path, corpus: Path, tmp_path: Path, torch: Any) -> None:
    """Training, proof and verify with layers on disk: the same bits as without."""
    from safetensors.torch import load_file

    planned = plan_by_hand(able_llama, corpus, site, 2)
    places = {"here": None, "there": MAP}
    made = {
        name: apply(planned, tmp_path / name, ApplyOptions(device="cpu", loading=Loading(device_map=how)))
        for name, how in places.items()
    }
    here, there = (load_file(tmp_path / name / "adapter_model.safetensors") for name in places)
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert all(applied.memorization.outcome is Outcome.MEMORIZED for applied in made.values())
    assert made["here"].recall.min_probability == made["there"].recall.min_probability
    report = verify(tmp_path / "here", made["here"].encoded, device="cpu", device_map=MAP)
    assert report.recalled
    with pytest.raises(ModelError, match="merge without a map of devices"):
        verify(tmp_path / "here", device="cpu", device_map=MAP, merged=True)


def test_plan_tells_where_weights_are(
    calibrated_llama: tuple[Calibration, Path], able_llama: Path, corpus: Path
) -> None:
    options = PlanOptions(calibration=calibrated_llama[1])
    made = sizing.plan([corpus], ref=str(able_llama), device="cpu", device_map=MAP, options=options).plan
    assert any(warning.startswith("The model is spread: ") and " on disk" in warning for warning in made.warnings)
    assert not made.inputs.same_device  # its times are of a model in memory


def test_all_fits(able_llama: Path) -> None:
    base = models.load(str(able_llama), device="cpu", device_map="auto")
    assert on_disk(base) == []
    assert "spread" not in base.place


def test_nothing_is_left(able_llama: Path) -> None:
    """Weights are read from the model's own folder, which is as it was; nothing is written elsewhere."""
    before = sorted(path.name for path in able_llama.iterdir())
    left = set(Path(tempfile.gettempdir()).glob("lorasize-offload-*"))
    base = models.load(str(able_llama), device="cpu", device_map=MAP)
    assert on_disk(base)
    assert sorted(path.name for path in able_llama.iterdir()) == before
    assert set(Path(tempfile.gettempdir()).glob("lorasize-offload-*")) <= left


@pytest.mark.parametrize("text", ["balanced", "auto,gpu=3GB", "auto,cpu=much", "auto,cpu", '{"": "cpu"}'])
def test_map_not_understood(text: str, able_llama: Path) -> None:
    with pytest.raises(ModelError, match=r'a map of devices is "auto"'):
        models.load(str(able_llama), device="cpu", device_map=text)
