"""Adapters: counted as PEFT counts, no-ops when fresh, plain on disk, and gone without a trace."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorasize import models
from lorasize.errors import ModelError
from lorasize.models import BaseModel, adapters, linear_shapes
from lorasize.records import Site

LLAMA_SITES = [
    Site(target_modules=("up_proj",), layers_to_transform=(2,)),
    Site(target_modules=("q_proj", "v_proj"), layers_to_transform=(0, 3)),
    Site(target_modules=("gate_proj", "up_proj", "down_proj"), layers_to_transform=(0, 1, 2, 3)),
]
GPT2_SITES = [
    Site(target_modules=("c_fc",), layers_to_transform=(2,)),
    Site(target_modules=("mlp.c_proj",), layers_to_transform=(1, 3)),
    Site(target_modules=("c_attn", "attn.c_proj"), layers_to_transform=(0,)),
]
CASES = [("llama", site) for site in LLAMA_SITES] + [("gpt2", site) for site in GPT2_SITES]


@pytest.fixture(scope="module")
def bases(torch: Any, tiny_llama: Path, tiny_gpt2: Path) -> dict[str, BaseModel]:
    """Tiny Llama and tiny GPT-2 in memory."""
    return {"llama": models.load(str(tiny_llama), device="cpu"), "gpt2": models.load(str(tiny_gpt2), device="cpu")}


@pytest.fixture(autouse=True)
def _left_as_they_were(bases: dict[str, BaseModel]) -> Iterator[None]:
    """Take off what a failing test left on, so that the next one starts from the base."""
    yield
    for base in bases.values():
        layers = [m for m in base.model.modules() if hasattr(m, "lora_A")]
        assert not layers, "a test left its adapter on"


def logits(torch: Any, model: Any) -> Any:
    """Logits of the plain model on fixed ids."""
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None]).logits


def umask() -> int:
    """The process's umask, which can only be read by setting it."""
    now = os.umask(0)
    os.umask(now)
    return now


def learn(torch: Any, adapted: Any, seed: int = 1) -> None:
    """Move every adapter parameter away from where it started."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters(adapted).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(("name", "site"), CASES)
@pytest.mark.parametrize("rank", [1, 5])
def test_parameters_are_counted_as_peft_counts(bases: dict[str, BaseModel], name: str, site: Site, rank: int) -> None:
    base = bases[name]
    expected = adapters.count_parameters(linear_shapes(base.model), site, rank)
    adapted = adapters.attach(base.model, site, rank, seed=0)
    trainable, _ = adapted.get_nb_trainable_parameters()
    assert expected == trainable == sum(p.numel() for p in adapters.parameters(adapted).values())
    assert adapters.realised_rank(adapted) == rank
    assert adapters.first_adapted_layer(adapted) == site.layers_to_transform[0]
    assert linear_shapes(adapters.base_of(adapted)) == linear_shapes(adapters.detach(adapted))


def test_a_module_in_the_attention_is_not_hit_by_the_name_of_the_mlp_s(bases: dict[str, BaseModel]) -> None:
    adapted = adapters.attach(bases["gpt2"].model, GPT2_SITES[1], 2, seed=0)
    names = list(adapters.parameters(adapted))
    adapters.detach(adapted)
    assert len(names) == 4
    assert all(".mlp.c_proj." in name for name in names)


@pytest.mark.parametrize(("name", "site"), CASES)
def test_a_fresh_adapter_changes_nothing(torch: Any, bases: dict[str, BaseModel], name: str, site: Site) -> None:
    base = bases[name]
    before = logits(torch, base.model)
    adapted = adapters.attach(base.model, site, 4, seed=0)
    fresh = logits(torch, adapted)
    learn(torch, adapted)
    learned = logits(torch, adapted)
    adapters.detach(adapted)
    assert torch.equal(fresh, before)
    assert not torch.allclose(learned, before, atol=1e-4)


def test_the_seed_decides_the_adapter(torch: Any, bases: dict[str, BaseModel]) -> None:
    state = torch.get_rng_state()
    drawn = []
    for seed in (0, 0, 1):
        adapted = adapters.attach(bases["llama"].model, LLAMA_SITES[0], 2, seed)
        drawn.append(torch.cat([p.detach().flatten().clone() for p in adapters.parameters(adapted).values()]))
        adapters.detach(adapted)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), state)  # the caller's own randomness goes on untouched


def test_an_adapter_is_float32_on_a_bfloat16_base(torch: Any, tiny_llama: Path) -> None:
    base = models.load(str(tiny_llama), device="cpu", dtype="bfloat16")
    adapted = adapters.attach(base.model, LLAMA_SITES[0], 2, seed=0)
    assert {p.dtype for p in adapters.parameters(adapted).values()} == {torch.float32}
    assert base.model.dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "site"), CASES)
def test_detach_leaves_the_base_as_it_was(torch: Any, bases: dict[str, BaseModel], name: str, site: Site) -> None:
    base = bases[name]
    before, tree = logits(torch, base.model), [n for n, _ in base.model.named_modules()]
    for seed in (0, 1):  # warnings are errors: a second adapter comes without PEFT's complaint
        adapted = adapters.attach(base.model, site, 3, seed)
        learn(torch, adapted)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
            assert adapters.detach(adapted) is base.model
    assert torch.equal(logits(torch, base.model), before)
    assert [n for n, _ in base.model.named_modules()] == tree
    assert not any("lora" in n for n in tree)
    assert not any(p.requires_grad for p in base.model.parameters())
    assert not hasattr(base.model, "peft_config")


@pytest.mark.parametrize(
    ("name", "site", "larger"),
    [
        ("llama", LLAMA_SITES[0], LLAMA_SITES[0]),
        ("llama", LLAMA_SITES[0], Site(target_modules=("up_proj",), layers_to_transform=(1, 2, 3))),
        ("llama", LLAMA_SITES[0], LLAMA_SITES[2]),
        ("gpt2", GPT2_SITES[1], Site(target_modules=("mlp.c_proj", "c_fc"), layers_to_transform=(0, 1, 3))),
    ],
)
def test_a_grown_adapter_computes_the_same(
    torch: Any, bases: dict[str, BaseModel], name: str, site: Site, larger: Site
) -> None:
    adapted = adapters.attach(bases[name].model, site, 2, seed=0)
    learn(torch, adapted)
    old = {n: p.detach().clone() for n, p in adapters.parameters(adapted).items()}
    before = logits(torch, adapted)
    grown = adapters.grow(adapted, larger, 5, seed=7)
    after, new = logits(torch, grown), {n: p.detach().clone() for n, p in adapters.parameters(grown).items()}
    assert adapters.realised_rank(grown) == 5
    adapters.detach(grown)
    assert torch.allclose(after, before, atol=1e-5)
    assert len(new) == 2 * len(larger.target_modules) * len(larger.layers_to_transform)
    for key, kept in old.items():
        assert torch.equal(new[key][tuple(slice(0, n) for n in kept.shape)], kept)
    for key, values in new.items():
        added = values[:, 2:] if key in old else values
        if "lora_B" in key:
            assert not added.any()
        else:
            assert (values[2:] if key in old else values).any(dim=1).all()  # B = 0 and A = 0 would never learn


@pytest.mark.parametrize(
    ("site", "rank", "message"),
    [
        (LLAMA_SITES[0], 1, "cannot shrink"),
        (Site(target_modules=("up_proj",), layers_to_transform=(1,)), 2, "lacks"),
        (Site(target_modules=("gate_proj",), layers_to_transform=(2,)), 4, "lacks"),
    ],
)
def test_an_adapter_never_shrinks(tiny_llama: Path, site: Site, rank: int, message: str) -> None:
    adapted = adapters.attach(models.load(str(tiny_llama), device="cpu").model, LLAMA_SITES[0], 2, seed=0)
    with pytest.raises(ValueError, match=message):
        adapters.grow(adapted, site, rank, seed=0)


def test_ranks_that_differ_are_refused(torch: Any, tiny_llama: Path) -> None:
    adapted = adapters.attach(models.load(str(tiny_llama), device="cpu").model, LLAMA_SITES[1], 2, seed=0)
    layer = next(m for m in adapted.modules() if hasattr(m, "lora_A"))
    layer.lora_A["default"].weight = torch.nn.Parameter(torch.zeros(3, 32))
    with pytest.raises(ValueError, match=r"ranks differ between modules: \[2, 3\]"):
        adapters.realised_rank(adapted)


@pytest.mark.parametrize(("name", "site"), CASES)
def test_what_is_saved_is_plain_and_comes_back(
    torch: Any, bases: dict[str, BaseModel], name: str, site: Site, tmp_path: Path
) -> None:
    base = bases[name]
    adapted = adapters.attach(base.model, site, 3, seed=0)
    learn(torch, adapted)
    expected = logits(torch, adapted)
    adapters.save(adapted, tmp_path / "out", "owner/tiny")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o666 & ~umask()}
    adapters.detach(adapted)
    check_plain(tmp_path / "out", base, site)
    from peft import PeftModel

    again = PeftModel.from_pretrained(base.model, str(tmp_path / "out"))
    found = logits(torch, again.eval())
    adapters.detach(again)
    assert torch.allclose(found, expected, atol=1e-6)


def check_plain(folder: Path, base: BaseModel, site: Site) -> None:
    """The folder says what every runtime understands, and names no place on the machine that made it."""
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    plain = {"r": 3, "lora_alpha": 3, "bias": "none", "lora_dropout": 0.0, "modules_to_save": None}
    plain |= {"layers_to_transform": list(site.layers_to_transform), "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    plain |= {"base_model_name_or_path": "owner/tiny", "rank_pattern": {}, "alpha_pattern": {}, "use_dora": False}
    plain |= {"use_rslora": False, "inference_mode": True}
    assert {key: config[key] for key in plain} == plain
    assert set(config["target_modules"]) == set(site.target_modules)
    assert {p.name for p in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    for file in folder.iterdir():
        content = file.read_bytes()
        for place in (folder, base.folder, Path.home()):
            assert str(place).encode() not in content, f"{file.name} names {place}"


@pytest.mark.parametrize("spoil", ["missing", "truncated", "no config", "other shapes"])
def test_a_damaged_adapter_is_refused_in_one_line(torch: Any, tiny_llama: Path, tmp_path: Path, spoil: str) -> None:
    model = models.load(str(tiny_llama), device="cpu").model
    adapted = adapters.attach(model, LLAMA_SITES[0], 2, seed=0)
    adapters.save(adapted, tmp_path, "owner/tiny")
    adapters.detach(adapted)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    if spoil == "missing":
        weights.unlink()
    elif spoil == "truncated":
        weights.write_bytes(weights.read_bytes()[:-5])
    elif spoil == "no config":
        config.unlink()
    else:
        config.write_text(config.read_text("utf-8").replace('"r": 2', '"r": 3'), "utf-8")
    with pytest.raises(ModelError, match="the adapter cannot be loaded") as refused:
        adapters.load_saved(model, tmp_path)
    assert "\n" not in str(refused.value)
