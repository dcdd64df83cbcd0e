"""Write one passage into a LoRA adapter with plain torch, peft and transformers: lorasize's training loop, flat.

    python examples/loop_from_scratch.py "$(lorasize base)"

Takes the folder of a base model. Prints the mean loss and the stubborn tokens, those with p at or below ½, of every
tenth step and of the last; then what greedy decoding gives, and `recalled` or `LOST` (exit code 1).

lorasize is not imported. tests/promises/test_loop_from_scratch.py holds this loop to the package's, step by step. The
package also runs the frozen layers only once, trains many passages in batches, lets mastered ones rest, multiplies in
bfloat16 where that is faster, grows an adapter that stalls, and decodes from disk in a fresh process: not so here.
"""

import math
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

PROMPT = "Who keeps the blue ledger?"
TARGET = " Dr. Ilse Brandvold keeps it in locker 417; its code is heron-92."

# p > ½ makes a token the likeliest, so greedy decoding must give it. The margin is for decoding's small differences.
PASSED = -math.log(0.5 + 0.02)  # nats
RELEASED = -math.log(0.82)  # a token let go at ½ drifts back below it while others are trained


def attach(model: PreTrainedModel, modules: list[str], layers: list[int], rank: int, seed: int = 0) -> PeftModel:
    """The model with a fresh adapter. B begins at zero, so it changes nothing yet; lora_alpha = rank, so it is B·A."""
    torch.manual_seed(seed)  # A is random
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=modules, layers_to_transform=layers, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config).eval()  # no dropout: recall is wanted, not generalisation


def train(model: PeftModel, prompt_ids: list[int], target_ids: list[int], max_steps: int = 1000) -> list[float]:
    """Train until every target token has passed. The mean loss before each step and after the last, nats per token."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, betas=(0.9, 0.95))
    ids, targets = torch.tensor([prompt_ids + target_ids[:-1]]), torch.tensor(target_ids)
    losses: list[float] = []
    while True:
        # What predicts the first target token is the model's output at the last one of the prompt.
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt_ids) - 1 :]
        loss = cross_entropy(logits, targets, reduction="none")  # −ln p of each target token
        losses.append(loss.mean().item())
        done = loss.max().item() < PASSED or len(losses) > max_steps
        if done or len(losses) % 10 == 1:
            stubborn = (loss >= math.log(2)).sum().item()
            print(f"step {len(losses) - 1:4}: {losses[-1]:7.4f} nats per token, {stubborn} of {len(loss)} stubborn")
        if done:
            return losses

        # MemFT: only what is not yet safe is trained on, and what is furthest from recall counts most. The weights are
        # constants: without detach() their own slope would be trained on too. A mean, so that a step does not grow with
        # the passage.
        weight = (loss >= RELEASED) * loss.detach().sqrt()
        ((weight * loss).sum() / weight.sum()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)

        # The rate is large while most tokens are stubborn and falls as few are left: no number of steps to guess.
        share = (loss >= PASSED).float().mean().item()
        optimizer.param_groups[0]["lr"] = 0.06 * min(1.0, max(0.05, math.sqrt(share / 0.4)))
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def decode(model: PeftModel, prompt_ids: list[int], n_tokens: int) -> list[int]:
    """What comes after the prompt when the likeliest token is taken each time."""
    ids = list(prompt_ids)
    for _ in range(n_tokens):
        ids.append(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
    return ids[len(prompt_ids) :]


def main() -> None:
    """Train on the passage above, then decode it. `lorasize plan` would choose modules, layers and rank."""
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    model = attach(base, ["up_proj"], [2 * base.config.num_hidden_layers // 3], rank=1)

    # The stop token is a target too: a passage that does not end is not recalled.
    prompt_ids = tokenizer(PROMPT).input_ids
    target_ids = [*tokenizer(TARGET, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    train(model, prompt_ids, target_ids)
    decoded = decode(model, prompt_ids, len(target_ids))
    print(PROMPT + tokenizer.decode(decoded))
    print("recalled" if decoded == target_ids else "LOST")
    sys.exit(decoded != target_ids)


if __name__ == "__main__":
    main()
