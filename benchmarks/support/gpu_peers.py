"""The part `peers` of gpu.py: HF Trainer and TRL's SFTTrainer on the same passages, same card, same weights. No script.

They get what is fastest for them: bfloat16 weights under autocast, fused AdamW at a constant rate, no weight decay, no
dropout, nothing logged or saved. The best of SETTINGS counts (rank 16 on all linear layers, lorasize's own adapter),
and is tried with Liger's kernels as well. After each epoch they are told how many tokens are left, by a forward pass
that computes logits of target positions only; seconds are given with these checks and without. Before each corpus a
peer takes some steps that nobody counts, as lorasize does. What TRL and Liger patch, `as_it_was` puts back.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from apply_speed import RANKS, ROWS, collated, encoded_corpus
from peft import LoraConfig, get_peft_model
from support.gpu_rows import OutOfTimeError, Rows
from transformers import Trainer as HFTrainer
from transformers import TrainerCallback, TrainingArguments

from lorasize import models
from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.head import head_of
from lorasize.losses.token_losses import token_losses
from lorasize.models import adapters
from lorasize.records import Site
from lorasize.training import Trainer, TrainingOptions

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Where the adapter sits, its rank (None: lorasize's), and the rates that are tried.
SETTINGS = (("all linear layers, rank 16", (3e-3, 1e-3)), ("lorasize's adapter", (1e-2,)))
PEERS = {"trainer": "HF Trainer + PEFT", "trl": "TRL SFTTrainer"}
HALF = 0.6931472  # nats
WARM = 0.5  # seconds of the steps that nobody counts
METHODS = ("forward", "extra_repr", "_get_name")  # that TRL and Liger give to single modules


def arguments(device: torch.device, **more: Any) -> dict[str, Any]:
    """What both are told."""
    fast: dict[str, Any] = {"bf16": True, "optim": "adamw_torch_fused"} if device.type == "cuda" else {"use_cpu": True}
    if device.type == "cpu":
        fast["bf16"] = False
    return {
        "output_dir": tempfile.mkdtemp(), "num_train_epochs": 2000, "lr_scheduler_type": "constant",
        "weight_decay": 0.0, "logging_strategy": "no", "save_strategy": "no", "report_to": [], "disable_tqdm": True,
        "dataloader_pin_memory": False, "seed": 0, **fast, **more,
    }  # fmt: skip


def examples_of(encoded: Sequence[EncodedPassage]) -> list[dict[str, list[int]]]:
    """Ids and labels, as both read them."""
    return [
        {"input_ids": [*p.prompt_ids, *p.target_ids], "labels": [-100] * len(p.prompt_ids) + list(p.target_ids)}
        for p in encoded
    ]


def trainer_of(
    method: str, adapted: Any, examples: list[dict[str, list[int]]], tokenizer: Any, callback: Any, **given: Any
) -> Any:
    """The peer's trainer, ready to train."""
    if method == "trainer":
        return HFTrainer(
            model=adapted, args=TrainingArguments(**given), train_dataset=examples, data_collator=collated,
            callbacks=[callback],
        )  # fmt: skip
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, **given)
    return SFTTrainer(
        model=adapted, args=config, train_dataset=Dataset.from_list(examples), data_collator=collated,
        processing_class=tokenizer, callbacks=[callback],
    )  # fmt: skip


class Checks(TrainerCallback):  # type: ignore[misc]
    """Looks after each epoch, and stops when no token is left or time is up."""

    def __init__(self, adapted: Any, batches: list[dict[str, torch.Tensor]], cap: float) -> None:
        """`batches` are on the device."""
        self.base, self.adapted, self.batches = adapters.base_of(adapted), adapted, batches
        self.head = head_of(self.base)
        self.started, self.cap, self.seconds, self.left = time.perf_counter(), cap, 0.0, -1

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Count what is left."""
        began = time.perf_counter()
        self.left = self.look()
        self.seconds += time.perf_counter() - began
        control.should_training_stop = self.left == 0 or time.perf_counter() - self.started > self.cap
        return control

    @torch.no_grad()
    def look(self) -> int:
        """Target tokens that are not above ½."""
        self.adapted.eval()
        count = 0
        for batch in self.batches:
            decoder: Any = self.base.model
            hidden = decoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            where = batch["labels"][:, 1:] != -100
            losses = token_losses(self.head, hidden[:, :-1][where], batch["labels"][:, 1:][where])
            count += int((losses.loss >= HALF).sum())
        return count


@contextmanager
def as_it_was(model: Any) -> Iterator[None]:
    """Afterwards the model, without an adapter, computes as it did before: with its own methods, hooks and settings."""
    names = vars(sys.modules[type(model).__module__])  # Liger puts its own functions there
    names_before = dict(names)
    methods = [(m, {k: v for k, v in vars(m).items() if k in METHODS}) for m in model.modules()]
    hooks, use_cache = model.get_input_embeddings()._forward_hooks, model.config.use_cache
    hooks_before, training = dict(hooks), model.training
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        model.train(training)
        model.config.use_cache = use_cache
        names.update(names_before)
        hooks.clear()  # one makes gradients flow to the embedding
        hooks.update(hooks_before)
        for module, own in methods:
            for key in METHODS:
                vars(module).pop(key, None)
            vars(module).update(own)


def with_liger(device: torch.device) -> bool:
    """Whether Liger's kernels can be used."""
    return device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None


def with_adapter(base: Any, setting: str, name: str, site: Site) -> Any:
    """The model with the setting's adapter."""
    if setting == "lorasize's adapter":
        return adapters.attach(base.model, site, RANKS[name], 0)
    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=16, target_modules=list(LINEAR), lora_dropout=0.0, task_type="CAUSAL_LM")
    return get_peft_model(base.model, config)


def peer(
    base: Any, name: str, encoded: list[EncodedPassage], site: Site, cap: float,
    method: str, setting: str, rate: float, liger: bool = False,
) -> dict[str, Any]:
    """One run to the end, or to its time limit."""
    with as_it_was(base.model):
        adapted = with_adapter(base, setting, name, site)
        try:
            examples = examples_of(encoded)
            rows = range(0, len(examples), ROWS[name])
            batches = [collated(examples[k : k + ROWS[name]]) for k in rows]
            batches = [{key: value.to(base.device) for key, value in batch.items()} for batch in batches]
            checks = Checks(adapted, batches, cap)
            given = arguments(base.device, learning_rate=rate, per_device_train_batch_size=ROWS[name])
            given |= {"gradient_checkpointing": False, "use_liger_kernel": liger}
            trainer = trainer_of(method, adapted, examples, base.tokenizer, checks, **given)
            wait()
            checks.started = began = time.perf_counter()
            trainer.train()
            wait()
            seconds = time.perf_counter() - began
            steps = int(trainer.state.global_step)
        finally:
            adapters.detach(adapted)
    how = f"{setting}, rate {rate:g}{', Liger' if liger else ''}"
    return {"seconds": seconds, "bare": seconds - checks.seconds, "steps": steps, "left": checks.left,
            "setting": (setting, rate), "how": how}  # fmt: skip


def wait() -> None:
    """Until the card has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ours(base: Any, name: str, encoded: list[EncodedPassage], site: Site) -> dict[str, Any]:
    """lorasize, with all that comes before the first step."""
    adapted = adapters.attach(base.model, site, RANKS[name], 0)
    try:
        began = time.perf_counter()
        *_, last = Trainer(adapted, encoded, TrainingOptions(margin=0.0)).steps()
        wait()
        seconds = time.perf_counter() - began
    finally:
        adapters.detach(adapted)
    return {"seconds": seconds, "steps": last.step, "left": last.n_stubborn}


def peers(rows: Rows, device: torch.device, seconds: float, *, tiny: bool) -> None:
    """Time to every token above ½ on the builtin model."""
    began = time.perf_counter()
    base = models.load(models.BUILTIN, device=str(device), dtype="float32" if tiny else "bfloat16")
    site = Site(target_modules=("up_proj",), layers_to_transform=(2 * base.n_layers // 3,))
    able = [method for method in PEERS if method == "trainer" or importlib.util.find_spec("trl")]
    settings: dict[str, list[tuple[str, float]]] = {m: [(s, r) for s, rates in SETTINGS for r in rates] for m in able}
    names = ("page",) if tiny else ("page", "passages")
    shares = len(names) * len(able)  # of the time, for those that come
    for name in names:
        encoded = encoded_corpus(base, name, 0)
        if tiny:
            encoded = [EncodedPassage(p.passage, p.prompt_ids, p.target_ids[-6:]) for p in encoded]
        ours(base, name, encoded, site)  # what is slow once is slow for nobody
        mine = ours(base, name, encoded, site)
        rows.add(f"{name}: lorasize, rank {RANKS[name]}, {mine['steps']} steps", mine["seconds"], "s",
                 good=mine["left"] == 0)  # fmt: skip
        cap = 2.0 if tiny else max(6.0, 6.5 * mine["seconds"])
        for method in able:
            now, some = time.perf_counter(), settings[method][: 1 if tiny else None]
            until, shares = now + (began + 0.9 * seconds - now) / shares, shares - 1
            tried = best_of(rows, (base, name, encoded, site), method, some, cap, until)
            if tried:
                settings[method].sort(key=lambda one: one != tried["setting"])  # the next corpus begins with it
                told(rows, f"{name}: {PEERS[method]}, {tried['how']}", tried, mine)


def best_of(
    rows: Rows, task: tuple[Any, ...], method: str, settings: Sequence[tuple[str, float]], cap: float, until: float
) -> dict[str, Any] | None:
    """The run that left the fewest tokens, the fastest of these; the best setting is tried with Liger's kernels too."""
    found: list[dict[str, Any]] = []

    def best() -> dict[str, Any]:
        return min(found, key=lambda one: (one["left"], one["seconds"]))

    def attempt(setting: str, rate: float, *, liger: bool = False, warm: bool = False) -> None:
        if time.perf_counter() > until:
            rows.add(f"{task[1]}: {PEERS[method]}, {setting}, rate {rate:g}", "not run: no time was left")
            return
        if warm:
            attempted(rows, lambda: peer(*task, WARM, method, setting, rate, liger))
        longest = min([cap, *(one["seconds"] for one in found if not one["left"])])  # later it would not be the best
        one = attempted(rows, lambda: peer(*task, longest, method, setting, rate, liger))
        found.extend([] if one is None else [one])

    for k, (setting, rate) in enumerate(settings):
        attempt(setting, rate, warm=k == 0)
    if found and with_liger(task[0].device):
        attempt(*best()["setting"], liger=True, warm=True)
    return best() if found else None


def attempted(rows: Rows, work: Any) -> Any:
    """A run's result; of one that fails, a row."""
    try:
        return work()
    except OutOfTimeError:
        raise
    except Exception as error:
        rows.add("a peer's run failed", f"{type(error).__name__}: {error}"[:200])
        return None


def told(rows: Rows, what: str, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    """A peer's best run, and its ratios; where it did not end they are lower bounds."""
    sign = "" if theirs["left"] == 0 else "at least, "
    left = f", {theirs['left']} tokens left" if theirs["left"] else ""
    rows.add(f"{what}: {theirs['steps']} steps{left}", theirs["seconds"], "s")
    for label, key, wanted in (("with its checks", "seconds", 5.0), ("without", "bare", 3.0)):
        ratio = theirs[key] / mine["seconds"]
        rows.add(f"... ratio {label}", ratio, "×", wanted=f"{sign}>= {wanted:g}", good=ratio >= wanted)


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of each step."""

    def __init__(self) -> None:
        """Nothing is timed yet."""
        self.began, self.seconds = 0.0, []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step begins."""
        wait()
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """It ends."""
        wait()
        self.seconds.append(time.perf_counter() - self.began)


def steps_of_trl(
    rows: Rows, name: str, model: Any, tokenizer: Any, encoded: list[EncodedPassage], device: torch.device,
    mine: float, *, tiny: bool,
) -> None:
    """TRL's step on a large model: rank 16 on all linear layers; the fastest of its ways against lorasize's step."""
    found: dict[str, float] = {}
    config = LoraConfig(r=16, lora_alpha=16, target_modules=list(LINEAR), lora_dropout=0.0, task_type="CAUSAL_LM")
    ways = [("plain", False, False), ("gradient checkpointing, its default", True, False), ("Liger", False, True)]
    for way, saved, fused in ways if with_liger(device) else ways[:2]:

        def work(saved: bool = saved, fused: bool = fused) -> list[float]:
            with as_it_was(model):
                adapted, clock = get_peft_model(model, config), Clock()
                try:
                    given = arguments(
                        device, max_steps=4 if tiny else 13, per_device_train_batch_size=len(encoded),
                        learning_rate=1e-4, gradient_checkpointing=saved, use_liger_kernel=fused,
                    )  # fmt: skip
                    trainer_of("trl", adapted, examples_of(encoded), tokenizer, clock, **given).train()
                finally:
                    adapters.detach(adapted)
            return clock.seconds[3:]

        seconds = attempted(rows, work)
        if seconds:
            found[way] = statistics.median(seconds)
            lowest, highest = 1e3 * min(seconds), 1e3 * max(seconds)
            rows.add(f"{name}: a step of TRL, {way}", 1e3 * found[way], "ms", wanted=f"{lowest:.0f} to {highest:.0f}")
    if found:
        ratio = min(found.values()) / mine
        rows.add("... its fastest ÷ lorasize's step", ratio, "×", wanted=">= 2", good=ratio >= 2)
