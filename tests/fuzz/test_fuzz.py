"""Bad input: a quick slice of `run.py`, everything that once did harm, and arbitrary text to every parser."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import click
import pytest
from fuzz import commands, good, mutate, readers, run
from fuzz.readers import PLACES, REGRESSIONS, Reader, heavy, judged, light, prepared, refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.models import save_gguf
from support.patience import HANGS, grows_with_its_input

from lorasize.artifacts import calibrations as catalog
from lorasize.artifacts.events import read_steps
from lorasize.cli.config import read_config
from lorasize.corpus import read_corpus
from lorasize.errors import CalibrationError, CorpusError, ModelError
from lorasize.probing import Journal

LIGHT = {reader.name: reader for reader in light()}
SEED = 1
JUST = 70  # mutated inputs for each light reader
FEW = 8  # for each that loads a model

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn of what is wrong before they refuse it


@pytest.fixture(autouse=True)
def _any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here an input hangs only when it never ends: seconds are for `run.py`, which hunts for slow ones."""
    monkeypatch.setattr(readers, "SECONDS", HANGS)


@pytest.fixture(scope="module")
def at_work(
    torch: Any, tiny_llama: Path, tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Reader]]:
    """The readers that need models, and the commands."""
    made = tmp_path_factory.mktemp("made")
    with ExitStack() as stack:
        found = [*heavy(tiny_llama, tiny_gpt2, made), *commands.readers(tiny_llama, made, stack)]
        yield {reader.name: reader for reader in found}


def wrongs(reader: Reader, n: int, work: Path) -> list[str]:
    """What is wrong with how a reader takes its kept and good files, the odd places, and n mutated inputs."""
    tally = run.Tally()
    run.feed(reader, n, SEED, work, tally)
    assert tally.given[reader.name] >= n + len(reader.good)
    return tally.wrong


@pytest.mark.parametrize("name", LIGHT)
def test_light_readers_succeed_or_say_one_line(name: str, tmp_path: Path) -> None:
    assert wrongs(LIGHT[name], JUST, tmp_path) == []


@pytest.mark.slow
def test_readers_of_models_and_adapters_and_the_commands_do_too(at_work: dict[str, Reader], tmp_path: Path) -> None:
    assert [line for reader in at_work.values() for line in wrongs(reader, FEW, tmp_path)] == []


def test_every_regression_belongs_to_a_reader(at_work: dict[str, Reader]) -> None:
    owners = {readers.folder_of(reader).name for reader in (*LIGHT.values(), *at_work.values())}
    assert {folder.name for folder in REGRESSIONS.iterdir()} - owners == set()


@pytest.mark.parametrize("kind", mutate.KINDS)
def test_mutations_come_from_the_seed_and_change_something(kind: str) -> None:
    data = {reader.kind: reader.good[0] for reader in LIGHT.values()}.get(kind, b"GGUF" + bytes(400))
    one, two = ([mutate.mutated(random, data, kind) for _ in range(50)] for random in (Random(3), Random(3)))
    assert one == two
    assert sum(changed != data for changed in one) > 25
    assert len(set(one)) > 25


_SLICE = 120  # mutations; of a long record such as a plan few are read


def test_the_slice_meets_both_ends(tmp_path: Path) -> None:
    """Mutations that are all refused, or all read, would test half of a reader."""
    for reader in LIGHT.values():
        random, path, refused = Random(5), prepared(reader, tmp_path), 0
        for _ in range(_SLICE):
            path.write_bytes(mutate.mutated(random, random.choice(reader.good), reader.kind))
            refused += refusal(partial(reader.read, path)) is not None
        assert refused < _SLICE, reader.name
        assert refused > 0 or reader.name in ("corpus-text", "corpus-markdown", "events", "journal"), reader.name


def _says(message: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        raise CorpusError(message)

    return read


def _crashes(path: Path) -> object:
    raise ValueError("no")


def _panics(path: Path) -> object:
    raise BaseException("a Rust library")


def _sleeps(path: Path) -> object:
    return time.sleep(60)


def _hoards(path: Path) -> object:
    return bytearray(readers.BYTES * 2)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (_says("fine"), None),
        (_says("one\ntwo"), "2 lines"),
        (_says("one\u2028two"), "2 lines"),
        (_says(""), "0 lines"),
        (_says("x" * 1001), "1001 characters"),
        (_crashes, "traceback: ValueError: no"),
        (_panics, "traceback: BaseException: a Rust library"),
        (_hoards, "traceback: MemoryError"),
        (_sleeps, "hangs"),
    ],
)
def test_the_judge(
    read: Callable[[Path], object], said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if read is _sleeps:  # the others end by themselves
        monkeypatch.setattr(readers, "SECONDS", 0.05)
    found = judged(Reader("x", "x", "text", (), read, 1), tmp_path)
    assert found == said if said is None else said in (found or "")


def test_a_good_file_must_be_read(tmp_path: Path) -> None:
    refusing = Reader("x", "x", "text", (), _says("no"), 1)
    assert "a good file is refused: no" in (judged(refusing, tmp_path, good=True) or "")


def test_what_is_wrong_is_kept_and_fed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "REGRESSIONS", tmp_path / "regressions")
    crashing = replace(LIGHT["corpus-text"], read=_crashes, good=())
    tally = run.Tally()
    run.give(crashing, tmp_path / "corpus.txt", "input 0", b"abc", tally)
    assert [path.read_bytes() for path in readers.kept(crashing)] == [b"abc"]
    assert wrongs(replace(crashing, read=lambda path: None), 0, tmp_path / "work") == []
    assert any("kept" in line for line in wrongs(crashing, 0, tmp_path / "work"))


def test_a_command_that_ends_otherwise_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = iter([70, 2])
    monkeypatch.setattr(commands, "main", lambda arguments: next(ends))
    with pytest.raises(commands.Wrong, match="exit code 70"):
        commands.run(tmp_path, "show", "x")
    with pytest.raises(commands.Wrong, match="the first line is ''"):
        commands.run(tmp_path, "show", "x")
    monkeypatch.setattr(commands, "main", lambda arguments: Path("left").touch() or 0)
    with pytest.raises(commands.Wrong, match="left"):
        commands.run(tmp_path, "show", "x")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["corpus-text", "corpus-markdown", "corpus-jsonl", "corpus-csv"])
@pytest.mark.parametrize("many", [False, True])
def test_time_is_linear_in_one_line_and_in_many(name: str, many: bool, tmp_path: Path) -> None:
    """Two million characters, in one line or in a million."""
    reader, path = LIGHT[name], prepared(LIGHT[name], tmp_path)

    def read(size: int) -> None:
        path.write_bytes((piece * 2 + b"\n") * (size // 2) if many else piece * size)
        assert judged(reader, path) is None

    for piece in (b"x", b'"', b" ", b"`", b",", b"[", b"\\", b"\r"):
        assert grows_with_its_input(read, 2_000_000), piece


@pytest.mark.slow
def test_time_is_linear_up_to_fifty_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"

    def read(n_blocks: int) -> None:
        path.write_bytes((b"a line of some forty characters, or nearly\n" * 12 + b"\n") * n_blocks)
        assert path.stat().st_size > 500 * n_blocks
        assert len(read_corpus([path])[0]) == n_blocks

    assert grows_with_its_input(read, 100_000)


def test_a_corpus_over_the_limit_is_refused(tmp_path: Path) -> None:
    PLACES["a terabyte of nothing"](tmp_path / "corpus.txt")
    with pytest.raises(CorpusError, match=r"corpus\.txt: larger than 1 GB"):
        read_corpus([tmp_path / "corpus.txt"])


@pytest.mark.parametrize("place", ["pipe", "socket", "zeros without end"])
def test_what_is_no_file_is_named(place: str, tmp_path: Path) -> None:
    """Whether it is a corpus, a configuration or a journal: to read it might never end."""
    for name in ("corpus.csv", "lorasize.toml", "j.journal"):
        PLACES[place](tmp_path / name)
    with pytest.raises(CorpusError, match="not a regular file"):
        read_corpus([tmp_path / "corpus.csv"])
    with pytest.raises(click.UsageError, match="not a regular file"):
        read_config(tmp_path)
    with pytest.raises(CalibrationError, match="not a regular file"):
        Journal(tmp_path / "j.journal", good.KEY)


def _spoiled(base: Path, folder: Path, change: Callable[[dict[str, Any]], None], scale: float = 1.0) -> Path:
    """A copy of a model whose weights went through `change`, the first value of each times `scale`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    for tensor in tensors.values():
        tensor.view(-1)[0] *= scale
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_model_that_lacks_weights_is_refused(torch: Any, tiny_llama: Path, tmp_path: Path) -> None:
    """transformers draws what is missing at random, and warns at most."""
    from lorasize import models

    folder = _spoiled(tiny_llama, tmp_path / "m", lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"1 of its weights are not there, such as model\.layers\.2\.mlp\.up_proj"):
        models.load(str(folder), device="cpu")


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_a_model_of_damaged_numbers_is_refused(torch: Any, tiny_llama: Path, tmp_path: Path, scale: float) -> None:
    from lorasize import models

    with pytest.raises(ModelError, match="damaged: .* holds "):
        models.load(str(_spoiled(tiny_llama, tmp_path / "m", lambda tensors: None, scale)), device="cpu")


def test_a_gguf_that_lacks_weights_leaves_nothing_behind(torch: Any, tiny_llama: Path, tmp_path: Path) -> None:
    """Nor one that claims more layers than it has; the whole one is converted."""
    from lorasize import models

    path = tmp_path / "tiny.gguf"
    whole = save_gguf(tiny_llama, path).read_bytes()
    named = b"llama.block_count" + struct.pack("<II", 4, 4)
    assert named in whole
    bad = [(whole.replace(b"blk.3.attn_v.weight", b"blk.3.attn_w.weight"), "weights are not there")]
    for layers, said in ((5, "names 5 layers and holds weights of 4"), (0, "layers is 0"), (2**32 - 1, "4294967295")):
        bad.append((whole.replace(named, named[:-4] + struct.pack("<I", layers)), said))
    for data, said in bad:
        path.write_bytes(data)
        with pytest.raises(ModelError, match=said):
            models.resolve(str(path))
        folder = catalog.cache_folder() / "models"
        assert not folder.exists() or list(folder.iterdir()) == []
    path.write_bytes(whole)
    converted = models.load(str(path), device="cpu").model.state_dict()
    original = models.load(str(tiny_llama), device="cpu").model.state_dict()
    assert converted.keys() == original.keys()
    kept = [name for name in original if "q_proj" not in name and "k_proj" not in name]  # in GGUF's order
    assert all(torch.equal(converted[name], original[name]) for name in kept)


TEXT = st.text(st.one_of(st.characters(), st.sampled_from('{}[]",:\\\n\r\t`~#=0')), max_size=200)
BYTES = st.binary(max_size=200) | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))
ONE = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(ONE, lambda more: st.lists(more) | st.dictionaries(TEXT, more))
NAMES = ("a.txt", "a.md", "a.jsonl", "a.csv", "a.tsv", "a.parquet")
UNSLOWED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]  # on a busy machine nothing is fast
any_number = settings(max_examples=40, deadline=None, suppress_health_check=UNSLOWED)


def _one_line(message: str) -> bool:
    return readers.of_message(message, readers.CHARACTERS) is None


@given(data=BYTES, name=st.sampled_from(NAMES))
@settings(any_number, max_examples=200)
def test_any_bytes_are_a_corpus_or_an_error_at_their_file(data: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    message = refusal(lambda: read_corpus([path]))
    if message is not None:
        assert _one_line(message)
        assert message.startswith(f"{path}:")
        return
    passages, (file,) = read_corpus([path])
    assert passages
    assert file.path == str(path)
    for passage in passages:
        assert passage.target
        if passage.start is not None:
            assert data[passage.start : passage.end].decode() == passage.target


@pytest.mark.slow
@given(record=st.dictionaries(st.sampled_from(["prompt", "completion", "messages", "text", "a\nb"]) | TEXT, JSON))
@any_number
def test_any_record_is_passages_or_an_error_at_its_line(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" + json.dumps(record).encode())
    message = refusal(lambda: read_corpus([path]))
    if message is not None:
        assert _one_line(message)
        assert message.startswith(f"{path}:2: ")
    else:
        assert {passage.line for passage in read_corpus([path])[0]} == {2}


@given(text=TEXT | TEXT.map(lambda text: f"seed = {text}") | TEXT.map(lambda text: f"[budget]\nbytes = {text}"))
@any_number
def test_any_text_is_a_configuration_or_a_usage_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "lorasize.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    message = refusal(lambda: read_config(tmp_path))
    if message is not None:
        assert _one_line(message)
        assert "lorasize.toml" in message
    else:
        assert set(read_config(tmp_path)) <= {"seed", "max_bytes"}


@given(more=st.lists(JSON.map(json.dumps) | TEXT, max_size=3))
@any_number
def test_steps_before_a_strange_line_are_kept(more: list[str], tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(good.events() + "\n".join(more).encode("utf-8", "replace"))
    assert [step.step for step in read_steps(path)][:2] == [1, 2]


@given(at=st.integers(0, 3), data=BYTES)
@any_number
def test_a_strange_line_costs_the_journal_no_other(at: int, data: bytes, tmp_path: Path) -> None:
    """Only a strange first line, which says whose journal it is, does."""
    path = tmp_path / "j.journal"
    lines = good.journal().splitlines()
    path.write_bytes(b"\n".join([*lines[:at], data.replace(b"\r", b"\n"), *lines[at:]]))
    Journal(path, good.KEY)
    kept = path.read_bytes().splitlines()
    whole = at > 0 or data.replace(b"\r", b"\n").splitlines()[:1] == []
    assert kept[0] == lines[0]
    assert set(kept[1:]) == (set(lines[1:]) if whole and at > 0 else set())


@given(lines=st.lists(JSON.map(json.dumps) | TEXT, min_size=1, max_size=3))
@any_number
def test_any_passages_jsonl_is_read_or_refused_at_its_line(torch: Any, lines: list[str], tmp_path: Path) -> None:
    from lorasize.artifacts.adapter_folder import PASSAGES, read_addresses

    (tmp_path / PASSAGES).write_bytes("\n".join(lines).encode("utf-8", "replace"))
    with pytest.raises(ModelError, match=r"passages\.jsonl:\d+: damaged") as caught:
        read_addresses(tmp_path)
    assert _one_line(str(caught.value))


def test_the_alarm_is_given_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with readers.within(HANGS):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
