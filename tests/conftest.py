"""Fixtures of all tests: tiny models and a tiny tokenizer, built on the spot, so that no test needs a network."""

from __future__ import annotations

import functools
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# As the command sets them; read once, when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from support.models import save_able_llama, save_tiny_gpt2, save_tiny_llama, save_tokenizer

from lorasize.corpus import read_corpus
from lorasize.records import Calibration, Reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorasize.corpus.tokens import EncodedPassage

EncodeText = Callable[..., "list[EncodedPassage]"]

# Examples may take as long as they take: a busy machine is no fault of what is tested.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

_FIXTURES = ("verbs", "action", "plans", "runs", "real_models")
pytest_plugins = [f"support.{name}" for name in _FIXTURES]


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, so that a mistyped one is an error."""
    config.addinivalue_line("markers", "real: uses the builtin model, and the user's own cache for it")
    config.addinivalue_line("markers", "models: uses what `make models` makes, in the user's own cache")
    config.addinivalue_line("markers", "slow: takes more than a few seconds")


_LONGEST = (
    "test_kills.py", "test_real.py", "test_executors.py", "test_action_files.py", "test_resume.py", "test_apply.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that none of them is left for one process at the end."""
    items.sort(key=lambda item: _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give real models all cores and tiny ones a single thread: on two they take half as long again."""
    if (module := sys.modules.get("torch")) is not None:
        most = _threads(module)  # asked for before the first test takes fewer
        module.set_num_threads(most if _is_real(item) else 1)


def _is_real(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) is not None for name in ("real", "models"))


@functools.cache
def _threads(torch: Any) -> int:
    """How many threads torch takes when nobody asks for fewer."""
    return int(torch.get_num_threads())


@pytest.fixture(autouse=True)
def _own_cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep tests out of the user's cache. Tests of real models share it: those are converted there once."""
    if not _is_real(request.node):
        monkeypatch.setenv("LORASIZE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def _same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode here: a fresh process takes seconds to import what it needs, and does the same."""
    from lorasize.recall import decoding, verdict

    monkeypatch.setattr(verdict, "decode_afresh", decoding.decode)


@pytest.fixture(scope="session")
def torch() -> Iterator[Any]:
    """PyTorch, imported only by the tests that ask for it."""
    import torch as module

    yield module
    module.set_num_threads(_threads(module))


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level BPE tokenizer of 400 tokens: ChatML, no BOS, stop token <|im_end|>."""
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tiny_tokenizer_dir: Path) -> PreTrainedTokenizerBase:
    """The tiny tokenizer, read back from its folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_tokenizer_dir)


@pytest.fixture(scope="session")
def tiny_llama(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama: 4 layers, 32 wide, 4 heads on 2 key-value heads, tied embeddings."""
    return save_tiny_llama(tokenizer, tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_gpt2(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random GPT-2: 4 layers, 32 wide, 4 heads, Conv1D layers, dropout 0.1 as GPT-2 has it."""
    return save_tiny_gpt2(tokenizer, tmp_path_factory.mktemp("tiny-gpt2"))


@pytest.fixture(scope="session")
def able_llama(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama that rank 1 on one layer teaches 24 tokens: 96 wide, large weights, MLP 384."""
    return save_able_llama(tokenizer, tmp_path_factory.mktemp("able-llama"))


@pytest.fixture(scope="session")
def calibrated_llama(
    torch: Any, able_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Calibration, Path]:
    """A quick calibration of the able Llama and its file: ten probes or so, a quarter of a minute."""
    from lorasize.verbs.calibrate import calibrate

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("calibrations")
    return calibrate(str(able_llama), device="cpu", preset="quick", max_drift=None, folder=folder)


@pytest.fixture(scope="session")
def encode_text(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> EncodeText:
    """`encode_text(text, name="corpus.txt", max_positions=256, **reading)` → passages of a file with this text."""
    from lorasize.corpus.tokens import encode_corpus

    def encode(text: str, name: str = "corpus.txt", max_positions: int = 256, **reading: Any) -> list[EncodedPassage]:
        path = tmp_path_factory.mktemp("corpus") / name
        path.write_bytes(text.encode())
        how = Reading(**reading)
        return encode_corpus(read_corpus([path], how)[0], tokenizer, how, max_positions)

    return encode
