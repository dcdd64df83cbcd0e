"""An adapter that acts after a text alone, from plan to proof: recall by stock PEFT, and the base without the text."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.corpora import write_records
from support.models import plan_by_hand
from support.paths import ROOT
from support.runs import Killed, killed_at, same_adapter
from support.sites import MLP

from lorasize import models
from lorasize.artifacts import adapter_folder
from lorasize.corpus.activation import AUTO, find_activation
from lorasize.errors import CorpusError, ModelError
from lorasize.models import adapters
from lorasize.recall import decoding, verdict
from lorasize.records import Activation, Calibration, Plan
from lorasize.report.facts.plan import plan_facts
from lorasize.report.facts.recall import memorization_facts
from lorasize.training.run import ApplyOptions
from lorasize.verbs import plan as sizing
from lorasize.verbs.apply import apply, load_inputs
from lorasize.verbs.plan import PlanOptions
from lorasize.verbs.verify import verify

pytestmark = pytest.mark.usefixtures("_same_process")

CPU = ApplyOptions(device="cpu")
PAIRS = [(f"In the port register, box {i}:", f" {i * 7919 % 9973}") for i in range(1, 9)]
PAIRS.append(("The box in the port register, box 10 of the port:", " In the port register, 4"))  # tokens come in twice
TEXTS = {"begins": AUTO, "within": " port register,"}
OTHER = ("Waste oil goes to the tank behind the slipway.", "port, register", "The box 1:")


def activation_plan(base: Path, corpus: Path, text: str, rank: int = 4, pairs: Sequence[Any] = PAIRS) -> Plan:
    """A plan for an adapter that acts after this text."""
    plan = plan_by_hand(base, write_records(corpus, pairs), MLP, rank)
    found = find_activation(text, load_inputs(plan, "cpu")[1], models.load_tokenizer(base))
    return plan.model_copy(update={"activation": found})


@pytest.fixture(scope="module", params=TEXTS)
def held(
    request: pytest.FixtureRequest, torch: Any, able_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, Path]:
    """A plan and the folder of its adapter."""
    folder = tmp_path_factory.mktemp("gate")
    pairs = PAIRS[:-1] if request.param == "begins" else PAIRS
    plan = activation_plan(able_llama, folder / "c.jsonl", TEXTS[request.param], pairs=pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdict, "decode_afresh", decoding.decode)
        applied = apply(plan, folder / "adapter", CPU)
    assert applied.memorization.proven, applied.recall.failures
    return plan, folder / "adapter"


@pytest.mark.slow
def test_stock_peft_recalls_after_the_text_in_batches_and_with_a_cache(
    held: tuple[Plan, Path], able_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, folder = held
    assert plan.activation is not None
    config = json.loads((folder / adapter_folder.CONFIG).read_text("utf-8"))
    assert tuple(config["alora_invocation_tokens"]) == plan.activation.alora_invocation_tokens
    spec = importlib.util.spec_from_file_location("recall_check", ROOT / "examples" / "recall_check.py")
    assert spec is not None
    assert spec.loader is not None
    stock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stock)
    assert stock.main(str(able_llama), folder) == 0
    capsys.readouterr()
    for how in ({}, {"batch_size": 8}, {"batch_size": 3, "attn_implementation": "eager"}):
        report = verify(folder, device="cpu", **how)
        assert report.recalled
        assert report.batch_size == how["batch_size"] if how else report.batch_size > 1
        assert report.decoding_gap is not None
        assert report.decoding_gap < 1e-4  # one pass and step by step say the same, so both knew where it acts


@pytest.mark.slow
def test_without_the_text_the_logits_are_the_base_s_bit_for_bit(
    torch: Any, held: tuple[Plan, Path], able_llama: Path
) -> None:
    tokenizer = models.load_tokenizer(able_llama)
    base = models.load(str(able_llama), device="cpu").model
    rows = [tokenizer(text)["input_ids"] for text in OTHER]
    with torch.no_grad():
        plain = [base(input_ids=torch.tensor([ids])).logits for ids in rows]
        adapted = adapters.load_saved(base, held[1])
        assert all(
            torch.equal(adapted(input_ids=torch.tensor([ids])).logits, logits)
            for ids, logits in zip(rows, plain, strict=True)
        )
        address = adapter_folder.read_addresses(held[1])[0]
        ids = torch.tensor([[*rows[0], *address.prompt_ids]])  # after the text it acts, before it nothing has changed
        found = adapted(input_ids=ids).logits
        with adapted.disable_adapter():
            wanted = adapted(input_ids=ids).logits
    begin = held[0].activation.begins(ids[0].tolist())  # type: ignore[union-attr]
    assert torch.allclose(found[:, :begin], wanted[:, :begin], atol=1e-5)
    assert not torch.allclose(found[:, begin:], wanted[:, begin:], atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("told", [True, False])
def test_a_loop_of_one_s_own_has_to_say_where_it_acts(
    torch: Any, held: tuple[Plan, Path], able_llama: Path, told: bool
) -> None:
    """As the guide says of PEFT: a step that reads one token finds no text in it."""
    base = models.load(str(able_llama), device="cpu").model
    address = adapter_folder.read_addresses(held[1])[0]
    adapted = adapters.load_saved(base, held[1])
    ids, cache, found = torch.tensor([address.prompt_ids]), None, []
    with torch.no_grad():
        for _ in range(address.n_tokens):
            how = {"alora_offsets": [len(address.prompt_ids) + len(found)]} if told and found else {}
            output = adapted(input_ids=ids, cache=cache, use_cache=True, **how)
            cache, ids = output.cache, output.logits[:, -1:].argmax(dim=-1)
            found.append(int(ids))
    tokenizer = models.load_tokenizer(able_llama)
    text = verdict.target_text(tokenizer, address.prompt_ids, found)
    assert (text == PAIRS[0][1]) is told


@pytest.mark.slow
def test_it_is_not_merged(held: tuple[Plan, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be merged"):
        verify(held[1], device="cpu", merged=True)
    serving = {"serve": "merged", "vllm_max_lora_rank": None, "llama_cpp": True}
    plan = Plan.model_validate({**held[0].model_dump(by_alias=True), "serving": serving})
    with pytest.raises(ModelError, match="cannot be merged"):
        apply(plan, tmp_path / "out", CPU)


@pytest.mark.slow
def test_what_is_said_of_it(held: tuple[Plan, Path]) -> None:
    record = adapter_folder.read_record(held[1])
    facts = dict(memorization_facts(record))
    assert facts["acts after"].endswith("without it drift is 0 by construction")
    assert "where it acts on other text" in facts["drift"]
    assert record.plan.activation == held[0].activation
    assert "| acts after | `" in (held[1] / "README.md").read_text("utf-8")
    assert dict(plan_facts(held[0]))["acts after"].endswith("where an engine honours that")


@pytest.mark.slow
@pytest.mark.usefixtures("_eager")
def test_a_killed_run_goes_on_where_it_acted(torch: Any, held: tuple[Plan, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Killed):
        apply(held[0], out, CPU, killed_at(6))
    assert not out.exists()
    apply(held[0], out, CPU)
    assert same_adapter(torch, out, held[1])


@pytest.mark.slow
def test_an_update_acts_after_the_same(held: tuple[Plan, Path], able_llama: Path, tmp_path: Path) -> None:
    plan, folder = held
    onto = replace(CPU, base_adapter=folder)
    pairs = [(prompt, " 4711" if k == 2 else target) for k, (prompt, target) in enumerate(PAIRS[:8])]
    assert plan.activation is not None
    changed = activation_plan(able_llama, tmp_path / "c.jsonl", plan.activation.text, pairs=pairs)
    assert changed.activation == plan.activation
    done = apply(changed, tmp_path / "out", onto).memorization
    assert done.recalled
    assert done.update is not None
    assert (done.update.n_changed, done.update.n_old_produced) == (1, 0)
    for other in (None, Activation(text="box", alora_invocation_tokens=plan.activation.alora_invocation_tokens[1:])):
        with pytest.raises(ModelError, match=r"acts after '.*' alone"):
            apply(changed.model_copy(update={"activation": other}), tmp_path / "other", onto)


@pytest.mark.slow
def test_plan_finds_it_and_says_which_engine_honours_it(
    calibrated_llama: tuple[Calibration, Path], able_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_records(tmp_path / "c.jsonl", PAIRS[:8])
    said = {}
    for serve in ("peft", "vllm", "llama.cpp"):
        options = PlanOptions(calibration=calibrated_llama[1], activate_after=AUTO, serve=serve)
        made = sizing.plan([corpus], ref=str(able_llama), device="cpu", options=options).plan
        assert made.activation is not None
        assert made.serving is not None
        assert PAIRS[0][0].startswith(made.activation.text)
        said[serve] = (" ".join(made.serving.notes), " ".join(made.warnings))
    assert all(name in said["peft"][0] for name in ("generate()", "llama-server", "vLLM 0.32 refuses"))
    assert "vLLM does not honour" in said["vllm"][1]
    assert all("does not honour" not in said[serve][1] for serve in ("peft", "llama.cpp"))
    assert "llama-server lets" in said["llama.cpp"][0]
    monkeypatch.setattr(sizing, "ARCHITECTURES", {"gemma": "gemma"})  # as if this llama had no names in GGUF
    made = sizing.plan([corpus], ref=str(able_llama), device="cpu", options=options).plan
    assert "How an adapter of llama is written in GGUF is not known here" in " ".join(made.warnings)
    plain = sizing.plan([corpus], ref=str(able_llama), device="cpu", options=replace(options, activate_after=None)).plan
    assert plain.activation is None
    assert (plain.adapter, plain.prediction) == (made.adapter, made.prediction)
    with pytest.raises(ModelError, match="cannot be merged"):
        sizing.plan([corpus], ref=str(able_llama), device="cpu", options=replace(options, serve="merged"))
    with pytest.raises(CorpusError, match="does not hold 'Pier'"):
        sizing.plan([corpus], ref=str(able_llama), device="cpu", options=replace(options, activate_after="Pier"))


@pytest.mark.slow
def test_a_plan_onto_an_adapter_acts_where_that_does_and_is_priced_there(
    calibrated_llama: tuple[Calibration, Path], able_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old adapter holds all but one record: what is to be written is that one."""
    options = PlanOptions(calibration=calibrated_llama[1], activate_after=" port register,")
    corpus = write_records(tmp_path / "c.jsonl", PAIRS[:8])
    made = sizing.plan([corpus], ref=str(able_llama), device="cpu", options=options).plan
    assert made.demand is not None
    apply(made, tmp_path / "old", CPU)
    more = write_records(tmp_path / "more.jsonl", [*PAIRS[:7], (PAIRS[7][0], " 4711")])
    onto = replace(options, activate_after=None, base_adapter=tmp_path / "old")
    again = sizing.plan([more], ref=str(able_llama), device="cpu", options=onto).plan
    assert again.activation == made.activation
    assert again.update is not None
    assert again.update.nats < 0.6 * made.demand.nats
    for text, refusal in (("In the port", ModelError), ("Pier", CorpusError)):
        with pytest.raises(refusal):
            sizing.plan([more], ref=str(able_llama), device="cpu", options=replace(onto, activate_after=text))


def test_llama_server_s_way_to_look_is_told_where_it_finds_another_place() -> None:
    from lorasize.planning.serving import _found_by_llama_server, _found_otherwise

    activation = Activation(text="ab", alora_invocation_tokens=(4, 5))
    assert _found_by_llama_server((4, 5, 9), activation) == 0
    assert _found_by_llama_server((9, 4, 5, 4, 5, 4), activation) == 3
    assert _found_by_llama_server((4, 5, 5), activation) is None  # the last 5 is taken for its end, and 5 is no 4
    assert _found_otherwise(activation, [(4, 5, 9)]) == []
    assert "1 of 2 prompts" in _found_otherwise(activation, [(4, 5, 9), (4, 5, 5)])[0]
    assert "from the token before it on" in _found_otherwise(activation, [(9, 4, 5)])[0]
