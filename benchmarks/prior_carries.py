"""How far one model's calibration carries to another: the builtin model's to models that have one of their own.

    python benchmarks/prior_carries.py --model MODEL [--model MODEL] [--folder FOLDER] [--json]
    python benchmarks/prior_carries.py [--steps 2000] [--folder FOLDER] [--json]

The bits that a parameter of the reference site holds at an even chance of recall are compared: by the model's own
calibration, and by the builtin model's moved over, as `plan` does before a model is calibrated. Of a `--model` its own
is the one in reach (`calibrations/`), and what was moved over is written to FOLDER, for the `--calibration` of
harmless.py and plan_accuracy.py: what plans by it are worth.

Without one, so that nothing has to be downloaded, a small GPT-2 and Qwen2 are made here: 4 layers of width 128 and a
byte-level BPE of 1,024 tokens, trained on the sources of Python's own library, so that they are not random. Each is
then calibrated (`quick`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from lorasize.artifacts.calibrations import calibration_path, find_calibration, read_calibration, write_calibration
from lorasize.errors import FitError
from lorasize.law.form import required_parameters
from lorasize.models import BUILTIN, load
from lorasize.records import RECIPE, Calibration
from lorasize.units import bits
from lorasize.verbs.calibrate import calibrate
from lorasize.verbs.plan_basis import moved_over

SHIPPED = Path(__file__).resolve().parents[1] / "calibrations"
VOCABULARY, WIDTH, LAYERS, POSITIONS = 1024, 128, 4, 1024
ROWS, LENGTH = 16, 128  # of a training batch
_RATE = 3e-3


def library_text() -> str:
    """Sources of Python's library, about 4 MB."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return "\n".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)[:4_000_000]


def make_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE of this text."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>")


def make_model(name: str) -> Any:
    """A small model with random weights."""
    torch.manual_seed(0)
    if name == "gpt2":
        shape = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": POSITIONS, "vocab_size": VOCABULARY}
        return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS}
    size = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": LAYERS}
    return Qwen2ForCausalLM(Qwen2Config(**heads, **size, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0))


def train(model: Any, ids: torch.Tensor, steps: int) -> float:
    """Next-token training on windows of the text; the mean loss of the last 20 steps, nats per token."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.95))
    seen = []
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1.0, (step + 1) / 20) * (1 - 0.9 * step / steps)
        starts = torch.randint(len(ids) - LENGTH, (ROWS,), generator=generator)
        batch = torch.stack([ids[s : s + LENGTH] for s in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    return sum(seen[-20:]) / len(seen[-20:])


def bits_per_parameter(calibration: Calibration, n_tokens: float = 64.0) -> float:
    """Bits that a parameter of the reference site holds at an even chance of recall, for so many random tokens."""
    law = calibration.law
    reduction = law.reference_loss * math.exp(calibration.transition.location)
    return bits(n_tokens * law.reference_loss) / required_parameters(law, reduction, n_tokens)


def made_here(
    name: str, tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor, steps: int, folder: Path
) -> tuple[str, Calibration]:
    """Make, train, calibrate: a model's folder and calibration.

    Raises:
        FitError: it cannot be calibrated.
    """
    where, started = folder / name, time.perf_counter()
    if not (where / "config.json").exists():
        model = make_model(name)
        loss = train(model, ids, steps)
        model.save_pretrained(where)
        tokenizer.save_pretrained(where)
        print(f"  {name}: loss {loss:.2f} after {steps} steps, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    own, _ = calibrate(str(where), device="cpu", dtype="float32", folder=folder / "calibrations")
    return str(where), own


def own_of(ref: str) -> Calibration:
    """The calibration in reach of a model."""
    return find_calibration(load(ref, device="cpu", dtype="float32").fingerprint, ref, "cpu", "float32", RECIPE)[0]


def compare(ref: str, own: Calibration, folder: Path) -> dict[str, Any]:
    """Both figures; what was moved over is written down."""
    source = read_calibration(calibration_path(BUILTIN, "cpu", "float32", SHIPPED))
    prior = moved_over(source, load(ref, device="cpu", dtype="float32"), ref)
    write_calibration(prior, folder / f"{Path(ref).name}.prior.json")
    found = {"own": bits_per_parameter(own), "prior": bits_per_parameter(prior)}
    return {**found, "own_over_prior": found["own"] / found["prior"], "reference_loss": own.law.reference_loss}


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="one that has a calibration of its own")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=Path("prior-carries"))
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    found: dict[str, Any] = {ref: compare(ref, own_of(ref), chosen.folder) for ref in chosen.model}
    if not found:
        text = library_text()
        tokenizer = make_tokenizer(text)
        ids = torch.tensor(tokenizer(text, verbose=False).input_ids)
        for name in ("gpt2", "qwen2"):
            try:
                found[name] = compare(*made_here(name, tokenizer, ids, chosen.steps, chosen.folder), chosen.folder)
            except FitError as error:
                found[name] = {"error": str(error)}
    if chosen.json:
        print(json.dumps(found))
        return
    for name, row in found.items():
        if "error" in row:
            print(f"{name} could not be calibrated: {row['error']}")
            continue
        print(
            f"{name} holds {row['own']:.2f} bits a parameter at its reference site; "
            f"the prior says {row['prior']:.2f} (own ÷ prior {row['own_over_prior']:.2f})"
        )


if __name__ == "__main__":
    main()
