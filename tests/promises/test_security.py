"""What SECURITY.md promises: models, adapters and files from others are data, and none of them runs."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pickle
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import ROOT

from lorasize import models
from lorasize.artifacts import adapter_folder
from lorasize.artifacts.files import file_sha256
from lorasize.errors import ModelError
from lorasize.models import adapters, conversion
from lorasize.models import references as finding
from lorasize.recall.process import decode_afresh
from lorasize.records import DecodeJob, Site

SOURCES = sorted((ROOT / "lorasize").rglob("*.py"))
SITE = Site(target_modules=("up_proj",), layers_to_transform=(2,))


class Bomb:
    """Something whose unpickling writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What is there once something has run that should not."""
    return tmp_path / "ran"


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may spoil."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture
def adapter(torch: Any, tiny_llama: Path, tmp_path: Path) -> Path:
    """A plain adapter folder for the tiny Llama."""
    base = models.load(str(tiny_llama), device="cpu").model
    adapters.save(adapters.attach(base, SITE, 2, seed=0), tmp_path / "adapter", "owner/tiny")
    return tmp_path / "adapter"


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def test_the_bomb_works(marker: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(marker), protocol=2))
    assert marker.exists()


def plant(folder: Path, marker: Path) -> None:
    """Give a model folder code of its own, in the way in which the hub's models bring theirs."""
    code = f"import os\nos.mkdir({str(marker)!r})\nConfig = Model = Tokenizer = dict\n"
    (folder / "own.py").write_text(code, "utf-8")
    edit(folder / "config.json", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]})


def test_the_code_of_a_known_architecture_is_ours(model: Path, marker: Path) -> None:
    plant(model, marker)
    base = models.load(str(model), device="cpu")
    assert type(base.model).__name__ == "LlamaForCausalLM"
    assert not marker.exists()


def test_an_architecture_with_its_own_code_is_refused(model: Path, marker: Path) -> None:
    plant(model, marker)
    edit(model / "config.json", model_type="own", architectures=["Own"])
    with pytest.raises(ModelError, match="cannot be read"):
        models.load(str(model), device="cpu")
    assert not marker.exists()


def test_a_tokenizer_with_its_own_code_is_refused(model: Path, marker: Path) -> None:
    plant(model, marker)
    edit(model / "config.json", model_type="own", auto_map={})
    edit(model / "tokenizer_config.json", tokenizer_class="OwnTokenizer")
    with pytest.raises(ModelError, match="tokenizer cannot be read"):
        models.load_tokenizer(model)
    assert not marker.exists()


def test_a_gguf_takes_no_code_from_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Reader:
        @staticmethod
        def from_pretrained(folder: str, **options: Any) -> Any:
            asked.update(options)
            raise ValueError("enough")

    monkeypatch.setattr(conversion, "AutoTokenizer", Reader)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="enough"):
        models.resolve(str(tmp_path / "a.gguf"))
    assert asked["trust_remote_code"] is False  # None would ask at the terminal


def test_a_pickled_model_is_refused_unread(model: Path, marker: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker), protocol=2))
    models.load(str(model), device="cpu")  # what lies beside safetensors is not looked at
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickled weights are not read"):
        models.load(str(model), device="cpu")
    with pytest.raises(ModelError, match="cannot be loaded"):
        models.load_weights(model, models.pick_device("cpu"), models.pick_dtype("float32", models.pick_device("cpu")))
    assert not marker.exists()


def test_a_model_that_points_at_another_is_refused(model: Path, able_llama: Path) -> None:
    pointer = {"peft_type": "LORA", "base_model_name_or_path": str(able_llama)}
    (model / "adapter_config.json").write_text(json.dumps(pointer), "utf-8")
    with pytest.raises(ModelError, match="not a base model alone"):
        models.load(str(model), device="cpu")


@pytest.mark.real
def test_the_builtin_model_is_the_one_whose_digest_stands_in_the_source() -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", finding._BUILTIN_SHA256)
    assert file_sha256(finding._builtin_gguf()) == finding._BUILTIN_SHA256


def test_a_pickled_adapter_is_refused_and_never_unpickled(adapter: Path, tiny_llama: Path, marker: Path) -> None:
    (adapter / adapter_folder.WEIGHTS).unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(marker), protocol=2))
    for name in (adapter_folder.RECORD, adapter_folder.PASSAGES):
        (adapter / name).write_text("", "utf-8")
    adapter_folder.write_sums(adapter)
    with pytest.raises(ModelError, match=adapter_folder.WEIGHTS):
        adapter_folder.check_weights(adapter)
    with pytest.raises(ModelError, match="SHA256SUMS: damaged"):
        adapter_folder.changed_files(adapter)
    with pytest.raises(ModelError, match="cannot be loaded"):  # not even where nobody has checked
        adapters.load_saved(models.load(str(tiny_llama), device="cpu").model, adapter)
    assert not marker.exists()


def named_library(adapter: Path, marker: Path) -> None:
    edit(adapter / adapter_folder.CONFIG, megatron_config={"a": 1}, megatron_core="planted")


def automatic_class(adapter: Path, marker: Path) -> None:
    edit(adapter / adapter_folder.CONFIG, auto_mapping={"base_model_class": "Model", "parent_library": "planted"})


def another_kind(adapter: Path, kind: str, **values: Any) -> None:
    """Make the folder that of another kind of adapter."""
    values |= {"peft_type": kind, "task_type": "CAUSAL_LM", "num_virtual_tokens": 2}
    (adapter / adapter_folder.CONFIG).write_text(json.dumps(values), "utf-8")


def tokenizer_with_code(adapter: Path, marker: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        (adapter / name).write_text("{}", "utf-8")
    plant(adapter, marker)
    own = {"tokenizer_name_or_path": str(adapter), "tokenizer_kwargs": {"trust_remote_code": True}}
    another_kind(adapter, "PROMPT_TUNING", prompt_tuning_init="TEXT", prompt_tuning_init_text="a", **own)


def pickled_prompt(adapter: Path, marker: Path) -> None:
    (adapter / "state.bin").write_bytes(pickle.dumps(Bomb(marker), protocol=2))
    values = {"num_tasks": 1, "prompt_tuning_init_state_dict_path": str(adapter / "state.bin")}
    another_kind(adapter, "MULTITASK_PROMPT_TUNING", prompt_tuning_init="AVERAGE_SOURCE_TASKS", **values)


def pickled_expert(adapter: Path, marker: Path) -> None:
    expert = adapter / "expert"
    expert.mkdir()
    shutil.copy(adapter / adapter_folder.CONFIG, expert)
    (expert / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(marker), protocol=2))
    values = {"peft_type": "XLORA", "task_type": "CAUSAL_LM", "adapters": {"0": str(expert)}, "hidden_size": 32}
    (adapter / adapter_folder.CONFIG).write_text(json.dumps(values), "utf-8")


REFUSED = {
    named_library: "does not start with a valid prefix",
    tokenizer_with_code: "instead of LORA",
    pickled_prompt: "instead of LORA",
    pickled_expert: "instead of LORA",
}


@pytest.mark.parametrize("way", [*REFUSED, automatic_class], ids=lambda way: way.__name__)
def test_nothing_in_an_adapter_s_configuration_runs(
    way: Callable[[Path, Path], None], adapter: Path, tiny_llama: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(adapter, marker)
    (marker.parent / "planted.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n", "utf-8")
    monkeypatch.syspath_prepend(marker.parent)
    base = models.load(str(tiny_llama), device="cpu").model
    base.config.use_cache = False  # X-LoRA asks for it
    with contextlib.nullcontext() if way is automatic_class else pytest.raises(ModelError, match=REFUSED[way]):
        adapters.load_saved(base, adapter)
    assert not marker.exists()


@pytest.mark.slow
def test_the_fresh_process_takes_no_module_from_the_folder_one_is_in(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "safetensors.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    job = DecodeJob(
        base="nowhere", adapter="nowhere", device="cpu", dtype="float32", prompts=((1,),), targets=(), n_tokens=(1,)
    )
    with pytest.raises(ModelError):
        list(decode_afresh(job))
    assert not marker.exists()


NEVER = {"pickle", "marshal", "shelve", "dill", "eval", "exec", "compile", "os.system", "os.popen", "torch.load"}


def dangers(source: str) -> list[str]:
    """Calls and imports that can run what they are given, and loaders of transformers that may run a model's code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in NEVER]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in NEVER:
            found.append(node.module or "")
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            auto = re.fullmatch(r"Auto\w+\.from_pretrained", name) and given.get("trust_remote_code") != "False"
            found += [name] if name in NEVER or auto or given.get("shell") == "True" else []
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_of_ours_runs_what_it_reads(path: Path) -> None:
    assert dangers(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from shelve import open", "eval(x)", "torch.load(f)", "subprocess.run(x, shell=True)",
        "AutoModelForCausalLM.from_pretrained(f)", "AutoConfig.from_pretrained(f, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_what_would_run_is_seen(source: str) -> None:
    assert len(dangers(source)) == 1
    assert dangers("model.eval()\nAutoConfig.from_pretrained(f, trust_remote_code=False)\nre.compile(x)") == []


def pins(name: str) -> dict[str, str]:
    """Version by package of a requirements file."""
    found = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / name).read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}


def test_the_lock_holds_what_is_installed_at_the_pinned_versions_with_hashes() -> None:
    locked, pinned = pins("requirements.lock"), pins("constraints.txt")
    assert {name for name in locked if locked[name] != pinned.get(name)} <= {"colorama", "httpx2-jsfetch"}  # elsewhere
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = re.search(r"^EXTRAS := (.+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert extras is not None
    wanted = [*project["dependencies"], *(d for e in extras[1].split(",") for d in project["optional-dependencies"][e])]
    names = {re.split(r"[<>=!~\[; ]", one)[0].lower() for one in wanted}
    assert sorted(names - locked.keys()) == ["torch"], "run `make lock`"
    entries = re.split(r"\n(?=\w)", (ROOT / "requirements.lock").read_text("utf-8"))[1:]
    assert len(entries) == len(locked)
    assert [entry for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)] == []


def test_our_workflow_is_pinned_and_may_only_read() -> None:
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text("utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    used = re.findall(r"uses: (\S+)(.*)", text)
    assert used
    pinned = [re.search(r"@[0-9a-f]{40}$", one) and re.match(r" # v\d", version) for one, version in used]
    assert all(pinned)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (steps,) = (job["steps"] for job in workflow["jobs"].values())
    assert [step["run"] for step in steps if "run" in step] == ['make "$TARGET"']
    targets = {one["target"] for job in workflow["jobs"].values() for one in job["strategy"]["matrix"]["include"]}
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_the_page_names_files_that_are_there() -> None:
    named = re.findall(r"`((?:lorasize|tests)/[\w/.]+)`", (ROOT / "SECURITY.md").read_text("utf-8"))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
