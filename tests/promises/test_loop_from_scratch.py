"""examples/loop_from_scratch.py against the package's trainer: one passage, the same steps."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from lorasize import models
from lorasize.corpus.tokens import EncodedPassage
from lorasize.models import adapters
from lorasize.records import Passage, Site
from lorasize.training import Trainer, TrainingOptions

EXAMPLE = ROOT / "examples" / "loop_from_scratch.py"
SITE = Site(target_modules=("up_proj",), layers_to_transform=(2,))
RANK, SEED = 2, 5
PROMPT_IDS, TARGET_IDS = list(range(40, 46)), [*range(100, 340, 11), 2]


@pytest.fixture(scope="module")
def example() -> Any:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("loop_from_scratch", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(torch: Any, example: Any, able_llama: Path) -> tuple[Any, list[float]]:
    """The example's adapter once every token has passed, and its losses."""
    torch.set_num_threads(1)
    base = models.load_weights(able_llama, torch.device("cpu"), torch.float32)
    with torch.random.fork_rng():
        modules, layers = list(SITE.target_modules), list(SITE.layers_to_transform)
        adapted = example.attach(base, modules, layers, RANK, SEED)
    return adapted, example.train(adapted, PROMPT_IDS, TARGET_IDS)


@pytest.fixture(scope="module")
def reported(torch: Any, able_llama: Path) -> list[float]:
    """The losses that the package's trainer reports for the same passage, the last look included."""
    torch.set_num_threads(1)
    nothing = Passage(id="x", file="x", line=1, prompt="", target="x")
    encoded = [EncodedPassage(nothing, tuple(PROMPT_IDS), tuple(TARGET_IDS))]
    adapted = adapters.attach(models.load(str(able_llama), device="cpu").model, SITE, RANK, SEED)
    with pytest.MonkeyPatch.context() as patch:  # steps in float32 on every processor: the example knows nothing else
        patch.setattr("lorasize.training.trainer.has_coarse_products", lambda device: False)
        trainer = Trainer(adapted, encoded, TrainingOptions(seed=SEED))
    return [report.loss for report in trainer.steps()]


def test_it_takes_the_trainers_steps(trained: tuple[Any, list[float]], reported: list[float]) -> None:
    """Both add up in other orders, which Adam enlarges step by step: ten steps are compared closely, then the end."""
    losses = trained[1]
    assert len(losses) > 15
    assert losses[-1] < 0.5 < 8.0 < losses[0]
    assert losses[:10] == pytest.approx(reported[:10], rel=2e-3)  # 1e-6 where written
    assert abs(len(losses) - len(reported)) <= 2


def test_its_decoding_gives_the_target(example: Any, trained: tuple[Any, list[float]]) -> None:
    assert example.decode(trained[0], PROMPT_IDS, len(TARGET_IDS)) == TARGET_IDS


def test_it_knows_nothing_of_lorasize() -> None:
    code = EXAMPLE.read_text(encoding="utf-8")
    assert "import lorasize" not in code
    assert "from lorasize" not in code
    assert code.count("\n") <= 100
