"""Quantised weights: folders of every kind that a library on this machine reads, and what is said without it."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.models import plan_by_hand, random_passages
from support.quantized import NEEDED, quantized_copy, skip_without
from support.sites import UP

from lorasize import models
from lorasize.artifacts.calibrations import calibration_path, find_calibration, write_calibration
from lorasize.errors import CalibrationError, ModelError
from lorasize.models import quantization
from lorasize.models.forward import widths
from lorasize.records import Calibration
from lorasize.training.run import ApplyOptions
from lorasize.verbs import plan as sizing
from lorasize.verbs.apply import apply
from lorasize.verbs.plan import PlanOptions
from lorasize.verbs.verify import verify

TEXT = "Pier 9 is closed on Mondays after ten."
SAID = {"nf4": "nf4", "nf4-double": "nf4, scales quantised too", "int8": "int8", "gptq": "gptq 4-bit"}
SAID |= {"awq": "awq 4-bit", "packed": "compressed-tensors pack-quantized"}
SAID |= {"fp8": "compressed-tensors float-quantized", "torchao": "torchao Int8WeightOnlyConfig"}
# Mean difference of a token's loss from that in float, nats, of a loss of 10: large weights lose much in four bits.
SHIFT = {"int8": 1.0, "torchao": 0.5, "fp8": 1.5}
# Libraries of others warn as they are imported and as they quantise.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=NEEDED)
def folder(request: pytest.FixtureRequest, able_llama: Path, tmp_path: Path) -> tuple[str, Path]:
    """A kind of quantised weights, and a folder with them."""
    skip_without(request.param)
    return request.param, quantized_copy(able_llama, request.param, tmp_path / request.param)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A sentence in a file."""
    (tmp_path / "corpus.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "corpus.txt"


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process")
def test_quantised_folder(
    folder: tuple[str, Path], able_llama: Path, corpus: Path, tmp_path: Path, torch: Any
) -> None:
    """It loads, its losses are near those in float, and an adapter made on it is proven on it."""
    from lorasize.losses.base import base_losses

    kind, quantised = folder
    base, plain = (models.load(str(place), device="cpu") for place in (quantised, able_llama))
    assert base.quantization == SAID[kind]
    assert models.linear_shapes(base.model) == models.linear_shapes(plain.model)
    passages = random_passages(torch, [(5, 12)])
    shift = (base_losses(base, passages)[0] - base_losses(plain, passages)[0]).abs().mean()
    assert 1e-6 < float(shift) < SHIFT.get(kind, 3.0)
    planned = plan_by_hand(quantised, corpus, UP, 2)
    planned = planned.model_copy(update={"model": planned.model.model_copy(update={"quantization": SAID[kind]})})
    applied = apply(planned, tmp_path / "out", ApplyOptions(device="cpu"))
    assert applied.memorization.proven
    report = verify(tmp_path / "out", applied.encoded, device="cpu")
    assert report.recalled
    assert report.quantization == SAID[kind]
    with pytest.raises(ModelError, match=r"weights are quantised .*rounded away"):
        verify(tmp_path / "out", applied.encoded, device="cpu", merged=True)


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "pip install bitsandbytes"),
    "no method": ({"load_in_8bit": True}, "pip install bitsandbytes"),
    "gptq": ({"quant_method": "gptq", "bits": 4}, "pip install optimum gptqmodel"),
    "awq": ({"quant_method": "awq", "bits": 4}, "pip install gptqmodel"),
    "compressed-tensors": ({"quant_method": "compressed-tensors"}, "pip install compressed-tensors"),
    "torchao": ({"quant_method": "torchao"}, "pip install torchao"),
    "auto-round": ({"quant_method": "auto-round", "bits": 4}, "pip install auto-round"),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_library_missing(kind: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says by what the folder is quantised, and names the package."""
    settings, wanted = SETTINGS[kind]
    place = shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    (place / "config.json").write_text(json.dumps(config | {"quantization_config": settings}), encoding="utf-8")
    monkeypatch.setattr(quantization, "_is_installed", lambda module: False)
    with pytest.raises(ModelError) as said:
        models.load(str(place), device="cpu")
    method = settings.get("quant_method", "bitsandbytes")
    assert str(said.value) == f"{place} is quantised by {method}: {wanted}"


def test_unknown_method(tiny_llama: Path, tmp_path: Path) -> None:
    place = shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    settings = {"quant_method": "folded-twice"}
    (place / "config.json").write_text(json.dumps(config | {"quantization_config": settings}), encoding="utf-8")
    with pytest.raises(ModelError, match="'folded-twice', which transformers here does not know"):
        models.load(str(place), device="cpu")


def test_library_missing_for_plain_weights(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "_is_installed", lambda module: False)
    with pytest.raises(ModelError, match="to quantise weights to nf4: pip install bitsandbytes"):
        models.load(str(tiny_llama), device="cpu", quantization="nf4")


def test_unknown_quantization(tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match="can be quantised to nf4 or int8, not int3"):
        models.load(str(tiny_llama), device="cpu", quantization="int3")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_quantised_otherwise(tiny_llama: Path, tmp_path: Path) -> None:
    place = quantized_copy(tiny_llama, "nf4", tmp_path / "nf4")
    with pytest.raises(ModelError, match=r"quantised already \(nf4\): it cannot be loaded as int8"):
        models.load(str(place), device="cpu", quantization="int8")
    assert models.load(str(place), device="cpu", quantization="nf4").quantization == "nf4"


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process")
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantize_plain_weights(
    kind: str, calibrated_llama: tuple[Calibration, Path], able_llama: Path, corpus: Path, tmp_path: Path
) -> None:
    """The plan says that weights are quantised, apply and the proof do it, and verify repeats it unless told not to."""
    skip_without(kind)
    bare = PlanOptions(max_drift=math.inf)
    sized = sizing.plan([corpus], ref=str(able_llama), device="cpu", quantization=kind, options=bare)
    assert sized.plan.model.quantization == kind
    assert sized.plan.inputs.prior  # the float model's calibration stands in, and is not taken for its own
    applied = apply(sized.plan, tmp_path / "out", ApplyOptions(device="cpu"))
    assert applied.memorization.proven
    assert applied.memorization.recall.quantization == kind
    assert f"weights in {kind}" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    again = verify(tmp_path / "out", applied.encoded, device="cpu")
    assert (again.recalled, again.quantization) == (True, kind)
    plain = verify(tmp_path / "out", applied.encoded, device="cpu", quantize="none")
    assert plain.quantization is None
    assert plain.min_probability != again.min_probability


def test_no_merging_is_planned(able_llama: Path, corpus: Path, tmp_path: Path) -> None:
    options = PlanOptions(serve="merged")
    with pytest.raises(ModelError, match=r"quantised \(nf4\): an adapter added to them is rounded away"):
        sizing.plan([corpus], ref=str(able_llama), device="cpu", quantization="nf4", options=options)


def test_calibration_of_other_weights(
    calibrated_llama: tuple[Calibration, Path], able_llama: Path, tmp_path: Path
) -> None:
    """A calibration is for the weights it was made on: float or quantised, each to its own."""
    plain, _ = calibrated_llama
    made = plain.model_copy(update={"quantization": "nf4"})
    path = calibration_path(str(able_llama), "cpu", "float32", tmp_path, "nf4")
    assert path.name.endswith(".cpu.float32-nf4.json")
    write_calibration(made, path)
    wanted = (plain.model.fingerprint, str(able_llama), "cpu", "float32", plain.recipe, path)
    assert find_calibration(*wanted, quantization="nf4")[0] == made
    with pytest.raises(CalibrationError, match="nf4 weights, not plain"):
        find_calibration(*wanted)
    with pytest.raises(CalibrationError, match=r"float32 with int8 weights(.|\n)*nf4 weights, not int8"):
        find_calibration(*wanted, quantization="int8")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.filterwarnings("ignore")
def test_damaged_scales(able_llama: Path, tmp_path: Path) -> None:
    """Packed bytes say nothing of damage; their scales do."""
    from safetensors.torch import load_file, save_file

    place = quantized_copy(able_llama, "nf4", tmp_path / "nf4")
    tensors = load_file(place / "model.safetensors")
    name = next(name for name in tensors if name.endswith("up_proj.weight.absmax"))
    tensors[name][0] = float("nan")
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"damaged: scales of .*up_proj\.weight holds nan"):
        models.load(str(place), device="cpu")


def test_weight_through_the_layer(torch: Any) -> None:
    """A packed head is read by what it does to the identity; bias and all rows are in their places."""

    class Packed(torch.nn.Module):  # type: ignore[misc,name-defined]
        in_features, out_features = 600, 7

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("qweight", torch.randint(-8, 8, (7, 600), dtype=torch.int32))
            self.register_buffer("bias", torch.randn(7))

        def forward(self, x: Any) -> Any:
            return x @ self.qweight.float().t() + self.bias

    layer = Packed()
    found = quantization.plain_weight(layer)
    assert found is not None
    assert torch.allclose(found, layer.qweight.float(), atol=1e-5)
    assert widths(layer) == (600, 7)
