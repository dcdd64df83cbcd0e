"""Text that training must not harm: the drift that is measured, the pull against autograd, and a bound that is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.models import TRAINING_TEXT, plan_by_hand
from support.sites import MLP

from lorasize import cli, models
from lorasize.artifacts.plans import write_plan
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import CorpusError
from lorasize.losses import statistics
from lorasize.losses.base import base_losses
from lorasize.losses.head import Head
from lorasize.losses.neutral import windows
from lorasize.losses.statistics import Statistics, statistics_of
from lorasize.losses.texts import windows_of
from lorasize.losses.token_losses import divergence_gradient
from lorasize.models import BaseModel, adapters
from lorasize.records import Drift, KindDrift, Outcome, Passage
from lorasize.training import Checkpoint, Trainer, TrainingOptions, control, guard, read_checkpoint, write_checkpoint
from lorasize.training.control import Control, OtherText, other_text
from lorasize.training.guard import Guard
from lorasize.training.run import ApplyOptions, Session
from lorasize.verbs.apply import apply, load_inputs, retained_text

pytestmark = pytest.mark.usefixtures("_same_process")

RECORDS = [(f"{i}:", f" {i * 7919 % 9973} {i * 104729 % 99991}") for i in range(1, 9)]
OTHER = TRAINING_TEXT * 3


@pytest.fixture(scope="module")
def base(torch: Any, able_llama: Path) -> BaseModel:
    return models.load(str(able_llama), device="cpu")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completion": t}) + "\n" for p, t in RECORDS), "utf-8")
    return path


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_gradient_of_a_divergence_is_what_autograd_says(torch: Any, softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, base = torch.randn(50, 8, generator=generator), torch.randn(30, 8, generator=generator)
    hidden = (base + 0.3 * torch.randn(30, 8, generator=generator)).requires_grad_()

    def predicted(states: Any) -> Any:
        logits = states @ weight.t()
        return torch.log_softmax(logits if softcap is None else softcap * (logits / softcap).tanh(), -1)

    before, after = predicted(base), predicted(hidden)
    (before.exp() * (before - after)).sum().backward()
    head = Head(weight, None, softcap, 1.0)
    found = divergence_gradient(head, hidden.detach(), torch.softmax(head.logits(base), dim=0))
    torch.testing.assert_close(found, hidden.grad, rtol=1e-4, atol=1e-5)


def test_statistics_are_means_over_all_positions(torch: Any, base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """C from a plain forward pass; G is positive, and the cache gives the same."""
    monkeypatch.setattr(statistics, "texts", lambda use: {"one": TRAINING_TEXT, "two": "Another text, of its own."})
    path = "model.layers.1.mlp.up_proj"
    told: list[tuple[int, int]] = []
    found = statistics_of(base, [path], progress=lambda *parts: told.append(parts))[path]
    assert told
    assert told == [(done, len(told)) for done in range(len(told))]
    read = []
    handle = base.model.get_submodule(path).register_forward_pre_hook(lambda module, args: read.append(args[0][0]))
    try:
        for text in ("one", "two"):
            for window in windows_of(base, statistics.texts("general")[text], statistics.TOKENS_OF_A_KIND):
                base.model(torch.tensor([[*window.prompt_ids, *window.target_ids[:-1]]]))
    finally:
        handle.remove()
    x = torch.cat(read)
    torch.testing.assert_close(found.inputs, x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    assert bool((found.gradients > 0).all())
    again = statistics_of(base, [path], progress=lambda *parts: pytest.fail("measured again"))[path]
    assert torch.equal(again.inputs, found.inputs)
    assert torch.equal(again.gradients, found.gradients)


def test_the_pull_is_the_gradient_of_the_penalty_and_a_stays_outside(torch: Any, base: BaseModel) -> None:
    adapted = adapters.attach(base.model, MLP, 2, 0)
    try:
        pairs = adapters.adapted_pairs(adapted)
        draw = torch.Generator().manual_seed(1)
        known = {}
        for path, (a, b) in pairs.items():
            rows = torch.randn(64, a.shape[1], generator=draw)
            known[path] = Statistics(rows.T @ rows / 64, torch.rand(len(b), generator=draw))
            b.data.normal_(generator=draw)
        pull = Guard(adapted, known)
        pull.state.strength = 2.0
        pull.pull()
        for path, (a, b) in pairs.items():
            c, g = known[path].inputs, known[path].gradients
            change = b @ a
            penalty = 2.0 * 0.5 * (change.T @ (g[:, None] * change) * c).sum()
            wanted = torch.autograd.grad(penalty, (a, b))
            torch.testing.assert_close(a.grad, wanted[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(b.grad, wanted[1], rtol=1e-4, atol=1e-5)
            strongest = torch.linalg.eigh(c).eigenvectors[:, -1]
            assert float((a.detach() @ strongest).abs().max()) < 1e-5
    finally:
        adapters.detach(adapted)


def test_windows_cover_a_short_text_and_spread_over_a_long_one(base: BaseModel) -> None:
    ids = list(base.tokenizer(OTHER, add_special_tokens=False).input_ids)
    found = windows(OTHER, base.tokenizer, 255, base.n_ids)
    assert sum(one.n_tokens for one in found) in (len(ids) - 1, len(ids) - 2)  # a window of one token predicts nothing
    assert list(found[0].prompt_ids + found[0].target_ids) == ids[: 1 + found[0].n_tokens]
    long = windows(OTHER * 60, base.tokenizer, 255, base.n_ids)
    assert sum(one.n_tokens for one in long) <= 2048
    assert long[-1].target_ids == windows(OTHER * 60 + "", base.tokenizer, 255, base.n_ids)[-1].target_ids
    assert windows("", base.tokenizer, 255, base.n_ids) == []


def test_drift_is_what_the_plain_model_says(torch: Any, base: BaseModel, encode_text: Any) -> None:
    text = windows(OTHER, base.tokenizer, 255, base.n_ids)
    other = OtherText({"mine": text})
    before = float(torch.cat(base_losses(base, text)).mean())
    adapted = adapters.attach(base.model, MLP, 2, 0)
    try:
        trainer = Trainer(adapted, encode_text("One line."), TrainingOptions(max_steps=3), other)
        assert trainer.control is not None
        first = trainer.control.measure()
        assert first.before == pytest.approx(before, abs=1e-4)
        assert (first.nats, first.divergence) == pytest.approx((0.0, 0.0), abs=1e-5)
        assert first.texts[0].unchanged == 1.0
        list(trainer.steps())
        now = float(torch.cat(base_losses(base, text)).mean())  # the adapter is in it
        drift = trainer.control.drift
        assert drift is not None
        assert drift.nats == pytest.approx(now - before, abs=1e-4)
        assert abs(drift.nats) > 1e-3
        again = Trainer(adapted, encode_text("One line."), TrainingOptions(max_steps=3), other)
        assert again.control is not None
        assert again.control.measure().before == pytest.approx(before, abs=1e-4)  # measured without the adapter
    finally:
        adapters.detach(adapted)


def trained(base: BaseModel, model: Path, corpus: Path, bound: float | None, **options: Any) -> Session:
    plan = plan_by_hand(model, corpus, MLP, 4)
    _, encoded = load_inputs(plan, "cpu")
    how = ApplyOptions(device="cpu", max_drift=bound, **options)
    run = Session(base=base, encoded=encoded, plan=plan, options=how, retained=OTHER)
    run.run()
    adapters.detach(run.adapted)
    return run


@pytest.mark.slow
def test_a_bound_is_kept_and_everything_memorised(
    base: BaseModel, able_llama: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny model of random weights has little room: a loose bound, and a pull that begins low."""
    monkeypatch.setattr(guard, "STRENGTH", 1.0)
    free = trained(base, able_llama, corpus, None).state
    assert free.drift is not None
    assert free.outcome is Outcome.MEMORIZED
    bound = free.drift.moved / 2
    assert bound > 0.01  # else there is nothing to keep
    bounded = trained(base, able_llama, corpus, bound).state
    assert bounded.drift is not None
    assert bounded.outcome is Outcome.MEMORIZED
    assert bounded.drift.bound == bound
    assert bounded.drift.moved < 1.5 * bound  # of texts that training did not look at
    assert bounded.spec.rank >= 16
    assert len(bounded.spec.layers_to_transform) > 1


@pytest.fixture
def _harmful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is trained, other text loses 0.3 nats per token."""
    monkeypatch.setattr(guard, "STRENGTH", 0.0)

    def measure(self: Control) -> Drift:
        one = KindDrift(kind="prose", before=1.0, after=1.3, divergence=0.3, unchanged=0.9)
        self.drift = Drift(before=1.0, after=1.3, nats=0.3, bound=self.bound, divergence=0.3, texts=(one,))
        return self.drift

    monkeypatch.setattr(Control, "measure", measure)


@pytest.mark.slow
@pytest.mark.usefixtures("_harmful")
def test_a_bound_that_cannot_be_kept_is_a_result(base: BaseModel, able_llama: Path, corpus: Path) -> None:
    run = trained(base, able_llama, corpus, 0.2, max_steps=40)
    assert run.state.outcome is Outcome.STEP_BUDGET_EXHAUSTED
    assert run.final.min_probability > 0.52  # every token passed, and it was not enough
    assert run.state.drift is not None
    assert run.state.drift.broken
    assert run.state.steps == 40


@pytest.mark.slow
@pytest.mark.usefixtures("_harmful")
def test_apply_records_drift_and_ends_with_4_when_it_is_too_large(
    able_llama: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_by_hand(able_llama, corpus, MLP, 4)
    record = apply(plan, tmp_path / "free", ApplyOptions(device="cpu")).memorization
    assert record.drift is not None  # on the neutral text
    assert record.drift.bound is None
    assert (record.drift.nats, record.drift.after - record.drift.before) == pytest.approx((0.3, 0.3))
    assert record.proven
    write_plan(plan, tmp_path / "p.json")
    (tmp_path / "other.txt").write_text(OTHER, "utf-8")
    line = "apply p.json --device cpu --retain other.txt --max-drift 0.2 --max-steps 40 --no-learn -q"
    assert cli.main(line.split()) == 4
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("NOT MEMORIZED: other text moved by 0.300 nats per token")
    assert "at most +0.200 asked" in said


@pytest.mark.slow
def test_training_goes_on_where_text_that_nobody_watched_moves_by_too_much(
    base: BaseModel, able_llama: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shown is a quarter over the bound once, then within it."""
    monkeypatch.setattr(guard, "STRENGTH", 1.0)
    shares, bounds = iter([1.25, 0.5]), []

    def shown(self: Session, path: Any) -> Drift:
        nats = next(shares) * 0.5
        return Drift(before=1.0, after=1.0 + nats, nats=nats, bound=0.5)

    def tighten(self: Control, share: float) -> None:
        bounds.append(self.bound)
        real(self, share)
        bounds.append(self.bound)

    real = Control.tighten
    monkeypatch.setattr(Session, "_drift", shown)
    monkeypatch.setattr(Control, "tighten", tighten)
    run = trained(base, able_llama, corpus, 0.5)
    assert run.state.outcome is Outcome.MEMORIZED
    assert run.final.min_probability > 0.52
    assert run.state.drift is not None
    assert run.state.drift.share_of_bound == 0.5
    assert len(bounds) == 2
    assert bounds[1] < bounds[0]


@pytest.mark.slow
def test_an_adapter_that_held_every_token_is_kept_where_training_on_leads_nowhere(
    base: BaseModel, able_llama: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "STRENGTH", 1.0)
    broken = Drift(before=1.0, after=2.0, nats=1.0, bound=0.5)
    monkeypatch.setattr(Session, "_drift", lambda self, path: broken)
    run = trained(base, able_llama, corpus, 0.5, escalate=False, max_steps=200)
    assert run.final.min_probability > 0.52
    assert run.state.outcome is Outcome.MEMORIZED
    assert run.state.drift is not None
    assert run.state.drift.model_copy(update={"neighbours": None}) == broken


def test_a_single_token_cannot_be_retained(able_llama: Path, corpus: Path, tmp_path: Path) -> None:
    """There is nothing to measure: a bound on it would always be kept."""
    (tmp_path / "a.txt").write_text("a", "utf-8")
    plan = plan_by_hand(able_llama, corpus, MLP, 4)
    options = ApplyOptions(device="cpu", retain=tmp_path / "a.txt", max_drift=0.01)
    with pytest.raises(CorpusError, match="holds a single token"):
        apply(plan, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_a_text_that_cannot_be_retained(tmp_path: Path) -> None:
    assert retained_text(None) == ""
    for data, said in ((b"\xff", "not UTF-8"), (b" \n", "holds no text"), (None, "there is no such file")):
        path = tmp_path / "text"
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(CorpusError, match=said):
            retained_text(path)


@pytest.mark.slow
def test_a_bounded_training_goes_on_as_if_it_had_not_stopped(
    torch: Any, base: BaseModel, able_llama: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strength, what was last measured, and the adapter: all from a checkpoint on disk."""
    monkeypatch.setattr(guard, "STRENGTH", 1.0)
    plan = plan_by_hand(able_llama, corpus, MLP, 4)
    _, encoded = load_inputs(plan, "cpu")
    taken: list[Checkpoint] = []

    def train(start: Checkpoint | None) -> tuple[int, list[Any]]:
        adapted = adapters.attach(base.model, MLP, 16, 0)
        try:
            trainer = Trainer(adapted, encoded, TrainingOptions(max_steps=30), other_text(base, adapted, "", 0.5))
            if start is not None:
                trainer.restore(start)

            def keep() -> None:
                if start is None and not taken and trainer.state().state["step"] >= 5:
                    write_checkpoint(trainer.state(), tmp_path / "c.safetensors")
                    found = read_checkpoint(tmp_path / "c.safetensors")
                    assert found is not None
                    taken.append(found)

            last = list(trainer.steps(keep))[-1]
            return last.step, [p.detach().clone() for p in adapters.parameters(adapted).values()]
        finally:
            adapters.detach(adapted)

    whole = train(None)
    assert taken[0].state["control"]["guard"]["strength"] != 0.0
    again = train(taken[0])
    assert again[0] == whole[0] > 5
    assert all(torch.equal(a, b) for a, b in zip(whole[1], again[1], strict=True))


def a_passage(*prompt: int) -> EncodedPassage:
    """One of which nothing but the prompt matters."""
    return EncodedPassage(Passage(id="one", file="file", line=1, prompt="", target="text"), prompt, (1, 2))


def test_prompts_that_begin_as_no_other_are_held_from_their_first_token_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_PROMPT_TOKENS", 3)
    monkeypatch.setattr(control, "_PROMPT_POSITIONS", 7)
    longer, same, one, other = a_passage(1, 2, 3, 4, 5), a_passage(1, 2, 3, 4, 9), a_passage(7), a_passage(1, 5, 6, 7)
    alike, too_many = a_passage(1, 2, 9, 9), a_passage(8, 5, 6)
    found = control._beginnings([longer, same, alike, one, other, too_many])
    assert [(begin.prompt_ids, begin.target_ids) for begin in found] == [((1,), (2, 3, 4)), ((1,), (5, 6, 7))]


def test_nothing_is_measured_twice(base: BaseModel, encode_text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at the watched texts costs as much as several steps: once for each state of the adapter is enough."""
    measured: list[int] = []
    real = Control.measure

    def measure(self: Control) -> Drift:
        measured.append(trainer.state().state["step"])
        return real(self)

    monkeypatch.setattr(Control, "measure", measure)
    adapted = adapters.attach(base.model, MLP, 4, 0)
    try:
        other = other_text(base, adapted, "", 0.05)
        trainer = Trainer(adapted, encode_text("The pilot boards."), TrainingOptions(max_steps=60), other)
        last = list(trainer.steps())[-1]
    finally:
        adapters.detach(adapted)
    assert last.evaluated
    assert measured
    assert len(set(measured)) == len(measured)
    assert measured[-1] == last.step


def test_what_a_prompt_begins_with_stays_the_base_models(
    torch: Any, base: BaseModel, encode_text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text that begins as a prompt does is other text: nothing that is to be held stands there."""
    encoded = encode_text("The pilot boards at the second buoy.\n\nWater and power are at every berth.")

    def moved(pull: float) -> float:
        monkeypatch.setattr(control, "_PROMPTS_PULL", pull)
        adapted = adapters.attach(base.model, MLP, 4, 0)
        try:
            trainer = Trainer(adapted, encoded, TrainingOptions(max_steps=40), other_text(base, adapted, "", 1.0))
            list(trainer.steps())
            prompts = trainer.control.prompts
            path = prompts.path
            with path.suffix.entered(), torch.no_grad():
                seen = [
                    (base * (base / torch.softmax(path.head.logits(path.hidden(batch)), dim=0)).log()).sum(dim=0)
                    for batch, base in zip(path.batches, prompts.predicted, strict=True)
                ]
            return float(torch.cat(seen).mean())
        finally:
            adapters.detach(adapted)

    assert moved(1.0) < 0.5 * moved(0.0)
